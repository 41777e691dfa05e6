"""Compare the runs of a study from the files they wrote; nothing in here needs JAX."""
