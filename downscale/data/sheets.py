"""Sheets of text, CSV and TSV: which mark cuts the cells, what the header names, which rows fit."""
import ast
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from downscale.data.bad_rows import BadRow, fault, is_unicode, shown

ANSWERS = ('answer', 'answers', 'gold')  # columns whose cells may spell a list of accepted texts
LONGEST_CELL = 1 << 26  # characters of one cell of a sheet; pictures as base64 are long


def sheet_rows(text: str, path: Path, usual: str) -> list[tuple[str, dict[str, Any] | BadRow]]:
    """Return [(where, row or `BadRow`)] of the text of a sheet with a header.

    `usual` is what separates cells unless the header says otherwise. ValueError that names `path`
    where there is no readable header.
    """
    mark = re.match(r'sep=(.)(\r\n|\r|\n)', text)  # how spreadsheets tell one another
    before = 1 if mark else 0  # lines in front of the header
    text = text[mark.end():] if mark else text
    cut = mark[1] if mark else _cut(text, usual)
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.reader(io.StringIO(text, newline=''), delimiter=cut, strict=True)
    try:
        names = _header(next((cells for cells in lines if any(cells)), []), path)
    except csv.Error as error:
        raise fault(path, f'its header is no readable CSV ({error})') from None
    broken = not is_unicode(text)
    rows = []
    while True:
        # A row may span lines: it is told by the first of them.
        where = f'line {lines.line_num + before + 1}'
        try:
            cells = next(lines)
        except StopIteration:
            return rows
        except csv.Error as error:
            detail = f'no readable cells up to line {lines.line_num + before} ({error})'
            rows.append((where, BadRow(where, 'unreadable row', detail)))
            continue
        if any(cells):
            rows.append((where, _row(names, cells, where, broken)))


def _row(names, cells, where, broken):
    """Return the dict or `BadRow` of some cells; `broken` says that the sheet is no Unicode."""
    if len(cells) != len(names):
        return BadRow(where, 'unreadable row', f'{len(cells)} cells for {len(names)} columns')
    if broken and not is_unicode('\n'.join(cells)):
        return BadRow(where, 'bad text', 'not UTF-8; save the sheet as UTF-8')
    row: dict[str, Any] = dict(zip(names, cells))
    # A cell is a text; a list of accepted answers can only be spelled in it.
    for name in ANSWERS:
        if name in row:
            row[name] = list_of_texts(row[name]) or row[name]
    return row


def list_of_texts(text: str) -> list[str]:
    """Return the list of texts that `text` spells, as JSON or as Python shows it.

    [] where it spells none.
    """
    if not (text.strip().startswith('[') and text.strip().endswith(']')):
        return []
    # pandas writes a list as Python shows it, with single quotes.
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return value
    return []


def _cut(text, usual):
    """Return what separates cells: the usual, unless the header has none of it and has another."""
    header = re.match(r'[\r\n]*([^\r\n]*)', text)[1]
    return next((mark for mark in (usual, ',', ';', '\t') if mark in header), usual)


def _header(cells, path):
    """Return the names of the columns; ValueError where they name none or one twice."""
    if not cells:
        raise fault(path, 'holds no header; the first line must name the columns')
    if not is_unicode('\n'.join(cells)):
        raise fault(path, 'its header is not UTF-8; save the sheet as UTF-8')
    names = [name or f'Unnamed: {k}' for k, name in enumerate(cells)]
    # A dict of the cells would keep the last.
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise fault(path, f'its header names a column twice: {shown(twice, 120)}')
    return names
