"""Cells of published rows: when one is empty, and how a row is refused that cannot be used."""
from typing import Any

from downscale.data.row_files import shown

REASONS = ('wrong type', 'unreadable row', 'unknown column', 'no answer', 'unclear answer',
           'unknown role', 'bad text', 'chat token', 'image marks', 'no picture', 'video',
           'missing image', 'image path', 'unreadable image', 'too long', 'duplicate')


class Rejected(ValueError):
    """A row that cannot be used: `reason` is one of `REASONS`, the message says what is wrong."""

    def __init__(self, reason: str, detail: Any) -> None:
        super().__init__(f'{reason}: {shown(detail, 200)}')
        self.reason = reason


def empty(value: Any) -> bool:
    """Return whether a cell holds nothing."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, (list, tuple)):
        return all(map(empty, value))
    if isinstance(value, dict):
        return all(map(empty, value.values()))
    # NaN, the one value that does not equal itself, is how pandas writes an empty cell.
    return value is None or value == b'' or isinstance(value, float) and value != value


def typed(value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise `Rejected` unless `value`, which a message calls `what`, is a `kind`."""
    if not isinstance(value, kind):
        raise Rejected('wrong type', f'{what} is {type(value).__name__}')
