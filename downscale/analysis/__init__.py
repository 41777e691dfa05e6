"""Compare the runs of a study from the files they wrote; nothing in here needs JAX."""


def __getattr__(name):
    """Return `synth`, imported on first use so that the package stays instant."""
    if name == 'synth':
        from downscale.analysis.planted.study import synth
        return synth
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
