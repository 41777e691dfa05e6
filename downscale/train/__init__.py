"""One loop, one step: stages differ by data, trainable groups and schedule only."""
