"""Two texts compared word by word, as HTML."""
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from html import escape

LONGEST = 3000   # words: comparing takes the square of it


def compared(before: str, after: str) -> str:
    """Return `after` as HTML: words that `before` lacks are inserted, those it has more deleted."""
    old = _words(before)
    new = _words(after)
    if max(len(old), len(new)) > LONGEST:
        return escape(after)
    parts = []
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        dropped = escape(' '.join(old[start:end]))
        added = escape(' '.join(new[new_start:new_end]))
        if kind == 'equal':
            parts.append(added)
            continue
        if dropped:
            parts.append(f'<del>{dropped}</del>')
        if added:
            parts.append(f'<ins>{added}</ins>')
    return ' '.join(parts)


def neighbours(texts: Iterable[str]) -> list[str]:
    """Return texts as HTML, each compared with the one before it."""
    shown = []
    before = None
    for text in texts:
        shown.append(escape(text) if before is None else compared(before, text))
        before = text
    return shown


def _words(text):
    return re.findall(r'\S+', text)
