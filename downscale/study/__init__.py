"""The whole study: its tasks, what is made before them, and the workers that run them."""


def __getattr__(name):
    """Return what the module that stood here before had under `name` (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('study', name)
