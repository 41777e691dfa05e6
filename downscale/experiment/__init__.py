"""What a study file says."""


def __getattr__(name):
    """Return a name of the module that stood here before (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('experiment', name)
