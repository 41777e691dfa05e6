"""Rows of text files, the bad ones among them, and how a message says what is wrong with a file."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.runtime.streams import LONGEST_ERROR, printable


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read: where it stands, a reason for counting, and what is wrong.

    `reason` is 'unreadable row', 'wrong type' (no object) or 'bad text' (no Unicode).
    """
    where: str
    reason: str
    detail: str

    def __str__(self):
        return f'{self.where}: {self.detail}'


def shown(value: Any, most: int = 60) -> str:
    """Return `value` as it may stand in a message: one line of at most `most` characters."""
    # Cut first: a value may be a picture of many megabytes.
    text = printable(str(value)[:most + 1])
    return text if len(text) <= most else f'{text[:most - 3]}...'


def fault(path: Path, cause: str) -> ValueError:
    """Return the ValueError of a file: path and cause in at most `LONGEST_ERROR` characters."""
    cause = shown(cause, LONGEST_ERROR - 82)
    return ValueError(f'{short_path(path)}: {cause}')


def short_path(path: Path) -> str:
    """Return the end of a long path: the name of the file stands there."""
    text = printable(str(path))
    return text if len(text) <= 80 else f'...{text[-77:]}'


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
