"""What a model holds inside."""
