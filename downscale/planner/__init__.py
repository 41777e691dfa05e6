"""Does it fit its TPU? Programs compiled for a topology that need not be there."""
