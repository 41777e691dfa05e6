"""Data for visual extraction tuning: from questions with answers to what a model should write."""
