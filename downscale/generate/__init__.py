"""Batched decoding with a key/value cache."""
