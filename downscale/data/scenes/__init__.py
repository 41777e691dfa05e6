"""Records of the made-up world: scenes, facts, questions and conversations about them."""


def __getattr__(name):
    """Names of the module that stood here before (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('data.scenes', name)
