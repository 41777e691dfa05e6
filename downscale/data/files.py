"""The one reader of text files that people bring: JSON, JSON lines, CSV and TSV.

    for where, row in files.read(path):     # 'line 7' or 'entry 7', counted from 1
        if isinstance(row, files.BadRow):   # count it as rejected (row.reason, str(row)), or refuse
    for where, row in files.read_whole(path):     # ValueError at the first bad row
    value = files.read_object(path)               # the one object of a JSON file

A row is a dict with text keys, or a `BadRow`; nothing else comes out. The form follows the content
where that is plain: a JSON list in a .jsonl file and JSON lines in a .json file are read as what
they are, and so is a list wrapped as {"data": [...]} beside keys of `ABOUT`. UTF-8 with and without
its mark, UTF-16 and UTF-32, LF, CRLF and CR are one; lines that are blank, and lines of a sheet
that hold empty cells only, are no rows. A sheet may be cut by comma, semicolon or tab, as its
header shows, and a header without a name is 'Unnamed: K' as pandas calls it; its cells are texts,
'' where empty. NaN and Infinity of JSON arrive as floats: whether NaN is a missing value or a
fault, the caller knows. A row that is no JSON, no object, nested deeply, not Unicode, or that holds
a key twice or a number of cells that the header has not is a `BadRow`. What is wrong with a whole
file is a ValueError of one line of at most `LONGEST_ERROR` characters; FileNotFoundError where
there is none.
"""
import ast
import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.runtime.streams import LONGEST_ERROR, printable

FORMS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv')
ANSWERS = ('answer', 'answers', 'gold')  # columns whose cells may spell a list of accepted texts
LONGEST_CELL = 1 << 26  # characters of one cell of a sheet; pictures as base64 are long
DEEPEST = 64  # levels of a row: code that walks through a row must not run out of stack
# What stands beside the one list of a published file, about the file and no row.
ABOUT = ('info', 'license', 'licenses', 'version', 'task_type', 'data_type', 'data_subtype',
         'dataset_name', 'dataset_type', 'dataset_version', 'dataset_split')
# How a file begins that is none of these forms, whatever its name says.
OTHERS = {b'\x1f\x8b': 'packed with gzip; unpack it first',
          b'PK\x03\x04': 'a zip archive or a spreadsheet; unpack it, or save it as CSV (UTF-8)',
          b'\xd0\xcf\x11\xe0': 'an old spreadsheet; save it as CSV (UTF-8)',
          b'BZh': 'packed with bzip2; unpack it first',
          b'(\xb5/\xfd': 'packed with zstd; unpack it first',
          b'\xfd7zXZ': 'packed with xz; unpack it first',
          b'PAR1': 'Parquet; name it .parquet',
          b'ARROW1': 'Arrow; save it as Parquet',
          b'version https://git-lfs': 'a pointer of Git LFS, not the file; fetch it with git lfs'}
_SPACE = re.compile(r'[ \t\r\n]*')


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
    text = printable(str(value)[:most + 1])
    return text if len(text) <= most else f'{text[:most - 3]}...'


def fault(path: Path, cause: str) -> ValueError:
    """Return the ValueError of a file: path and cause in at most `LONGEST_ERROR` characters."""
    cause = shown(cause, LONGEST_ERROR - 82)
    return ValueError(f'{_short_path(path)}: {cause}')


def _short_path(path):
    """Return the end of a long path: the name of the file stands there."""
    text = printable(str(path))
    return text if len(text) <= 80 else f'...{text[-77:]}'


# --- files ------------------------------------------------------------------------------------

def read(path: Path) -> list[tuple[str, Any]]:
    """Return [(where, row or `BadRow`)] of a file of rows, in its order."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise fault(path, f'no form of rows is called {suffix or "so, without a suffix"}; known '
                          f'are {", ".join(FORMS)}')
    data = _bytes(path)
    if suffix in ('.csv', '.tsv'):
        return _sheet(data, path, '\t' if suffix == '.tsv' else ',')
    start = re.match(rb'\s*', data).end()
    first = data[start:start + 1]
    if first == b'[' and not (suffix != '.json' and _lists_in_lines(data[start:])):
        return _list(_text(data), path)
    if suffix != '.json':
        return _lines(data)
    if first == b'{':
        return _object(data, path)
    raise fault(path, f'must hold a JSON list of rows; it begins with {data[start:start + 12]!r}'
                if first else 'the file is empty')


def read_whole(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return [(where, dict)] of a file of which every row must be readable."""
    rows = read(path)
    bad = [row for _, row in rows if isinstance(row, BadRow)]
    if bad:
        more = f' ({len(bad):,} of {len(rows):,} rows are bad)' if len(bad) > 1 else ''
        raise fault(path, f'{bad[0]}{more}')
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """Return the dict of a file that holds one JSON object."""
    data = _bytes(path)
    row = _line(data.strip(), 'it')
    if isinstance(row, BadRow):
        raise fault(path, row.detail)
    return row


def _bytes(path):
    """Return the bytes of a file as UTF-8 without its mark."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f'no file {_short_path(path)}') from None
    except OSError as error:
        raise fault(path, error.strerror or 'cannot be read') from None
    for start, form in OTHERS.items():
        if data.startswith(start):
            raise fault(path, f'the file is {form}')
    if data[:256].lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise fault(path, 'the file is a web page or XML; was a page of errors downloaded?')
    coding = json.detect_encoding(data[:4])
    if coding == 'utf-8-sig':
        return data[3:]
    if coding == 'utf-8':
        return data
    try:
        return data.decode(coding, 'surrogatepass').encode('utf-8', 'surrogatepass')
    except UnicodeDecodeError as error:
        raise fault(path, f'begins as {coding.upper()} and is none ({error.reason})') from None


def _text(data):
    """Return the text of UTF-8; each byte that is none becomes half a surrogate pair."""
    return data.decode('utf-8', 'surrogateescape')


# --- JSON -------------------------------------------------------------------------------------

class _Twice(ValueError):
    """A key stands twice in one object."""


def _unique(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in value if names.count(name) > 1))
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique)
_lenient = json.JSONDecoder(parse_int=str)  # finds the end of what `_decoder` cannot take


def _lines(data):
    """Return rows of JSON lines. What JSON calls a line break never stands inside a value."""
    lines = data.splitlines()
    torn = len(lines) if data and not data.endswith((b'\n', b'\r')) else None
    return [(f'line {number}', _line(line, f'line {number}', number == torn))
            for number, line in enumerate(lines, 1) if line and not line.isspace()]


def _line(line, where, torn=False):
    """Return the dict or `BadRow` of the bytes of one value."""
    try:
        text = line.decode()
        value = _decoder.decode(text)
    except UnicodeDecodeError as error:
        return BadRow(where, 'bad text', f'not UTF-8 (byte {line[error.start]:#04x} at '
                                         f'{error.start})')
    except (ValueError, RecursionError) as error:
        cause = _cause(error)
        return BadRow(where, 'unreadable row', f'{cause}; the file ends in this line'
                      if torn and isinstance(error, json.JSONDecodeError) else cause)
    return _checked(value, text, where)


def _cause(error):
    """Return what is wrong, in words that do not grow with the file."""
    if isinstance(error, RecursionError):
        return f'nested more than {DEEPEST} levels deep'
    if isinstance(error, _Twice):
        return f'the key {shown(error)!r} stands twice'
    if isinstance(error, json.JSONDecodeError):
        line = f'line {error.lineno}, ' if error.lineno > 1 else ''
        return f'no readable JSON ({error.msg}, {line}column {error.colno})'
    return 'a number of more than 4,300 digits'


def _checked(value, text, where):
    """Return `value` of `text`, or a `BadRow` where it is no object, nested deeply or no
    Unicode.
    """
    if not isinstance(value, dict):
        name = {'NoneType': 'null', 'list': 'a list', 'str': 'a text', 'bool': 'true or false'}
        return BadRow(where, 'wrong type', 'must be a JSON object, not '
                      + name.get(type(value).__name__, 'a number'))
    # Few rows hold so many brackets or such an escape: the others are not walked through.
    if text.count('{') + text.count('[') > DEEPEST and _depth(value) > DEEPEST:
        return BadRow(where, 'unreadable row', f'nested more than {DEEPEST} levels deep')
    if '\\ud' in text or '\\uD' in text or not _is_unicode(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return BadRow(where, 'bad text', _broken(error))
    return value


def _broken(error):
    letter = ord(error.object[error.start])
    if 0xdc80 <= letter <= 0xdcff:
        return f'not UTF-8 (byte {letter - 0xdc00:#04x})'
    return f'half a surrogate pair (\\u{letter:04x})'


def _depth(value):
    """Return the levels of lists and dicts in each other."""
    deepest = 0
    todo = [(value, 1)]
    while todo:
        part, level = todo.pop()
        deepest = max(deepest, level)
        inner = part.values() if isinstance(part, dict) else part
        todo += [(child, level + 1) for child in inner if isinstance(child, (dict, list))]
    return deepest


def _list(text, path):
    """Return rows of the text of a JSON list."""
    rows = []
    at = _behind(text, text.index('[') + 1)
    if text[at:at + 1] == ']':
        return _ended(text, at, path, rows)
    while True:
        where = f'entry {len(rows) + 1}'
        row, at = _entry(text, at, where, path)
        rows.append((where, row))
        at = _behind(text, at)
        if text[at:at + 1] == ']':
            return _ended(text, at, path, rows)
        if text[at:at + 1] != ',':
            raise fault(path, f'the file ends behind {where} of its list; it was cut' if
                        at == len(text) else f'no comma behind {where}')
        at = _behind(text, at + 1)


def _behind(text, at):
    return _SPACE.match(text, at).end()


def _ended(text, at, path, rows):
    at = _behind(text, at + 1)
    if at < len(text):
        raise fault(path, f'text behind the end of its list: {shown(text[at:at + 40])!r}')
    return rows


def _entry(text, at, where, path):
    """Return (dict or `BadRow`, where it ends) of the value at `at`; ValueError where no end is
    seen.
    """
    try:
        value, end = _decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise fault(path, f'{where} of its list: {_json_error(error)}') from None
    except RecursionError as error:
        raise fault(path, f'{where} of its list is {_cause(error)}') from None
    except ValueError as error:
        return BadRow(where, 'unreadable row', _cause(error)), _end(text, at, where, path)
    return _checked(value, text[at:end], where), end


def _end(text, at, where, path):
    try:
        return _lenient.raw_decode(text, at)[1]
    except (ValueError, RecursionError) as error:
        raise fault(path, f'{where} of its list: {_cause(error)}') from None


def _json_error(error):
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated string'):
        return f'the file ends inside it or a quote is missing ({error.msg}, line {error.lineno})'
    return f'no readable JSON ({error.msg}, line {error.lineno}, column {error.colno})'


def _lists_in_lines(data):
    """Return whether the first line of JSON lines is a whole list: then the file is no one list."""
    first, more = re.match(rb'([^\r\n]*)(.*)', data, re.DOTALL).groups()
    try:
        json.loads(_text(first))
    except (ValueError, RecursionError):
        return False
    return bool(more.strip())


def _object(data, path):
    """Return rows of a .json file that begins with an object: JSON lines, or one wrapped list."""
    text = _text(data)
    start = _behind(text, 0)
    try:
        end = _lenient.raw_decode(text, start)[1]
        if _behind(text, end) < len(text):
            return _lines(data)
        value = _decoder.raw_decode(text, start)[0]
        lists = {name: json.dumps(part) for name, part in value.items()
                 if name not in ABOUT and isinstance(part, list)}
    except json.JSONDecodeError as error:
        raise fault(path, _json_error(error)) from None
    except (ValueError, RecursionError) as error:
        raise fault(path, _cause(error)) from None
    if len(lists) != 1 or set(value) - set(lists) - set(ABOUT):
        raise fault(path, 'must hold a JSON list of rows, and holds one object of the keys '
                          f'{shown(list(value)[:8], 120)}; keep the list alone, or one row a line')
    return _list(*lists.values(), path)


# --- sheets -----------------------------------------------------------------------------------

def _sheet(data, path, usual):
    """Return rows of a CSV or TSV file with a header."""
    text = _text(data)
    mark = re.match(r'sep=(.)(\r\n|\r|\n)', text)  # how spreadsheets tell one another
    text = text[mark.end():] if mark else text
    cut = mark[1] if mark else _cut(text, usual)
    csv.field_size_limit(LONGEST_CELL)
    lines = csv.reader(io.StringIO(text, newline=''), delimiter=cut, strict=True)
    try:
        names = _header(next((cells for cells in lines if any(cells)), []), path)
    except csv.Error as error:
        raise fault(path, f'its header is no readable CSV ({error})') from None
    broken = not _is_unicode(text)
    rows = []
    first = 1 + bool(mark)
    while True:
        first = lines.line_num + bool(mark) + 1
        row = None
        try:
            cells = next(lines)
            if not any(cells):
                continue
            row = dict(zip(names, cells))
        except StopIteration:
            return rows
        except csv.Error as error:
            cells = str(error)
        where = f'line {first}'
        if row is None:
            detail = f'no readable cells up to line {lines.line_num + bool(mark)} ({cells})'
            rows.append((where, BadRow(where, 'unreadable row', detail)))
        elif len(cells) != len(names):
            rows.append((where, BadRow(where, 'unreadable row', f'{len(cells)} cells for '
                                                                f'{len(names)} columns')))
        elif broken and not _is_unicode('\n'.join(cells)):
            rows.append((where, BadRow(where, 'bad text', 'not UTF-8; save the sheet as UTF-8')))
        else:
            # A cell is a text; a list of accepted answers can only be spelled in it.
            spelled = {name: list_of_texts(row[name]) for name in ANSWERS if name in row}
            rows.append((where, row | {name: value for name, value in spelled.items() if value}))


def list_of_texts(text: str) -> list[str]:
    """Return the list of texts that `text` spells, as JSON or as Python shows it; [] where it is
    none.
    """
    if not (text.strip().startswith('[') and text.strip().endswith(']')):
        return []
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return value
    return []


def _is_unicode(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(text, usual):
    """Return what separates cells: the usual, unless the header has none of it and has another."""
    header = re.match(r'[\r\n]*([^\r\n]*)', text)[1]
    return next((mark for mark in (usual, ',', ';', '\t') if mark in header), usual)


def _header(cells, path):
    """Return the names of the columns; ValueError where they name none or one twice."""
    if not cells:
        raise fault(path, 'holds no header; the first line must name the columns')
    if not _is_unicode('\n'.join(cells)):
        raise fault(path, 'its header is not UTF-8; save the sheet as UTF-8')
    names = [name or f'Unnamed: {k}' for k, name in enumerate(cells)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise fault(path, f'its header names a column twice: {shown(twice, 120)}')
    return names
