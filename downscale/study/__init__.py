"""The whole study: its tasks, what is made before them, and the workers that run them."""


def __getattr__(name):
    """Names of the module that stood here before (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('study', name)
