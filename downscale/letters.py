"""What each axis letter means, and how a parameter's name tells its axes.

One letter is one axis, everywhere: `x_BLD`, `'BLD,DF->BLF'`, `gate_DF`.
"""
# A letter is spent once: adding an axis means taking a new letter, as names decide the sharding.
AXES = {
    'B': 'example in the batch',
    'L': 'query position (tokens)',
    'S': 'key position (tokens)',
    'D': 'language width',
    'F': 'hidden width of an MLP',
    'H': 'query head',
    'K': 'key/value head',
    'G': 'query head within its key/value head',
    'E': 'width of one head',
    'V': 'vocabulary row',
    'N': 'layer',
    'I': 'image tile',
    'P': 'patch of a tile',
    'Q': 'value of one patch (pixels x channels)',
    'W': 'vision width',
    'C': 'corner of a bilinear sample',
}


def axes_of(name: str) -> str:
    """Return the axis letters that end a leaf's name: `'q_DHE'` -> `'DHE'`, `'count'` -> `''`.

    Raises ValueError when the part after the last underscore is upper case and holds an unknown
    letter.
    """
    # Only capitals behind the last underscore: `count` and `opt_state` have no axes.
    _, underscore, tail = name.rpartition('_')
    if not underscore or not tail.isupper():
        return ''
    unknown = sorted(set(tail) - set(AXES))
    if unknown:
        raise ValueError(f'{name}: unknown axis letters {unknown}; known are {"".join(AXES)}')
    return tail
