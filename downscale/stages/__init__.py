"""One stage of one cell: what it starts from, what it trains on, what it leaves."""


def __getattr__(name):
    """Return what the module that stood here before had under `name` (see `downscale/moved.py`)."""
    if name.startswith('__'):
        raise AttributeError(name)
    from downscale.moved import attribute
    return attribute('stages', name)
