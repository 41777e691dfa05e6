"""The whole study: its tasks, what is made before them, and the workers that run them."""
