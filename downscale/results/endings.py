"""How replies end: cut off, without an answer to read, or in a thought that never closed."""
from collections.abc import Sequence
from typing import Any

import numpy as np

FAULTS = ('truncated', 'unparsed', 'unclosed')


def faults(truncated: Sequence[bool], parsed: Sequence[bool],
           close: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {fault: bool [rows]} of replies: which has it; `close` is that of `requests.Reply`."""
    return {
        'truncated': np.asarray(truncated, bool),
        'unparsed': ~np.asarray(parsed, bool),
        # A thought that was closed by force ('forced') has an answer behind it.
        'unclosed': np.asarray(close, object) == 'open',
    }


def completed(flags: dict[str, Any]) -> np.ndarray:
    """Return bool [rows]: the replies without any of the `faults`."""
    return ~np.any(list(flags.values()), axis=0)
