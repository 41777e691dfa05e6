"""A rehearsal: what a sweep sends to its cloud, run on this machine before a dollar is spent."""
