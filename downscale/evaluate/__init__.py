"""Asking, answering and scoring: joint, and decoupled into perception and reasoning.

Two machines ask here, and share prompts, windows of pictures, the reading of replies, scorers and
the count of faults. `run` writes a study's items, which the analysis pairs over seeds and
resamples, as one strict table that is written whole. `extract_think` lets any models answer any
questions, one line a reply, so that any number of processes may be killed and continued anywhere.
"""
