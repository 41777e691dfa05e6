"""To and from Hugging Face checkpoints, without PyTorch: tables of names and lazy readers."""
