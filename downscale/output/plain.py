"""Results as JSON values."""
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np


def plain(value: Any, rounded: Callable[[float], float] = float) -> Any:
    """Return `value` as dicts, lists and numbers for JSON; what is not finite is None.

    A dataclass is a dict of the fields that its repr shows, a tuple as a key is joined by ' x '.
    Finite floats become what `rounded` makes of them.
    """
    if dataclasses.is_dataclass(value):
        # Fields that the repr hides are there to compute with: draws, vectors, the law itself.
        fields = [field.name for field in dataclasses.fields(value) if field.repr]
        return {name: plain(getattr(value, name), rounded) for name in fields}
    if isinstance(value, np.ndarray | np.generic):
        # `tolist` makes Python's own numbers of both; json knows no other.
        return plain(value.tolist(), rounded)
    if isinstance(value, dict):
        return {' x '.join(key) if isinstance(key, tuple) else str(key): plain(inner, rounded)
                for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, rounded) for inner in value]
    # JSON has no NaN and no infinity: null says that there is no number.
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return value
