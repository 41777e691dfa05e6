"""What does a study show at each level of what it varies: curves, claims and laws of data."""
