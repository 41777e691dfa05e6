"""Which law fits these points."""
