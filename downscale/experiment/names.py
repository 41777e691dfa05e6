"""Names from values: short, safe for folders, labels and shells, and different for each value.

What is safe as it stands stays as it stands. Anything else becomes its letters and digits, cut, and
eight characters of its hash: 'data/built/a' is 'data-built-a-1f0c2f6e'. No name tells capitals from
small letters, since some file systems do not.
"""
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downscale.config import Experiment

DIGITS = 8
READABLE = 24
LONGEST = 100  # of the name of a cell: the folders made of it add some 20 to that, of 255
PLAIN = re.compile(r'[a-z0-9._+-]{1,40}')
GOOGLE = re.compile('[a-z]([a-z0-9_-]{0,61}[a-z0-9])?')
KUBERNETES = re.compile('[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?')


def digest(value: Any, digits: int = DIGITS) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a value as JSON; a tuple is a list."""
    text = json.dumps(_sorted(value), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _sorted(value):
    """Return mappings as pairs in the order of their keys, which need not be comparable."""
    if isinstance(value, dict):
        # Inside {'': ...}, so that a mapping never has the digest of a list of the same pairs.
        return {'': [[key, _sorted(value[key])] for key in sorted(value, key=str)]}
    return [_sorted(part) for part in value] if isinstance(value, (list, tuple)) else value


def slug(text: str) -> str:
    """Return `text` in lower-case letters, digits and single hyphens, beginning with a letter."""
    found = re.sub('[^a-z0-9]+', '-', text.lower()).strip('-') or 'x'
    return found if found[0].isalpha() else f'x{found}'


def hashed(text: str, value: Any, most: int) -> str:
    """Return what can be read of `text`, and the digest of `value`: at most `most` characters."""
    return f'{slug(text)[:most - DIGITS - 1].rstrip("-")}-{digest(value)}'


def word(key: str, value: Any) -> str:
    """Return what the name of a cell says of a setting, such as 'language0.001'.

    A number or a plain word stands as it is, anything else with its digest.
    """
    name = key.rpartition('.')[2]
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    if not isinstance(value, (list, tuple, dict)) and PLAIN.fullmatch(text):
        return f'{name}{text}'
    return f'{name}-{hashed(text, value, READABLE + DIGITS + 1)}'


def short(name: str, value: Any) -> str:
    """Return `name`, or where it is too long its beginning and the digest of `value`."""
    return name if len(name) <= LONGEST else f'{name[:LONGEST - DIGITS - 1]}-{digest(value)}'


def label(text: str, form: re.Pattern[str]) -> str:
    """Return `text` as a label value of at most 63 characters; `form` is GOOGLE or KUBERNETES."""
    return text if form.fullmatch(text) else hashed(text, text, 63)


def reference_of(cell: 'Experiment', reference: str) -> str:
    """Return 'CELL/STAGE' of a parent: 'text' of this cell, or 'tower/tower' of the shared one.

    '/CELL/STAGE' is of any cell: what a fork has not trained itself is its trunk's.
    """
    if reference.startswith('/'):
        return reference[1:]
    other, _, stage = reference.rpartition('/')
    return f'{other}-s{cell.seed}/{stage}' if other else f'{cell.name}/{stage}'
