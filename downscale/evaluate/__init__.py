"""Asking, answering and scoring: joint, and decoupled into perception and reasoning."""
