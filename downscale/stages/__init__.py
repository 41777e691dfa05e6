"""One stage of one cell: what it starts from, what it trains on, what it leaves."""


def __getattr__(name):
    """Names of the module that stood here before (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('stages', name)
