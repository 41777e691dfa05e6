"""A rehearsal: the manifests of a sweep, run on this machine before a dollar is spent."""
