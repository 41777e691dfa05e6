"""Studies with known truth: what is planted in them, and the files that a real one would write."""
