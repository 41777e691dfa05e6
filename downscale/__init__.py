"""Downscaling the language model of a multimodal model: what breaks first, and how to repair it."""
