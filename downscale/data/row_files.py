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
import json
import re
from pathlib import Path
from typing import Any

from downscale.data.bad_rows import BadRow, fault, is_unicode, short_path, shown
from downscale.data.sheets import sheet_rows

FORMS = ('.json', '.jsonl', '.ndjson', '.csv', '.tsv')
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
        return sheet_rows(_text(data), path, '\t' if suffix == '.tsv' else ',')
    start = re.match(rb'\s*', data).end()
    first = data[start:start + 1]
    in_lines = suffix != '.json' and first == b'[' and _lists_in_lines(data[start:])
    if first == b'[' and not in_lines:
        return _list(_text(data), path)
    if suffix != '.json':
        return _lines(data)
    if first == b'{':
        return _object(data, path)
    if not first:
        raise fault(path, 'the file is empty')
    raise fault(path, f'must hold a JSON list of rows; it begins with {data[start:start + 12]!r}')


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
        raise FileNotFoundError(f'no file {short_path(path)}') from None
    except OSError as error:
        raise fault(path, error.strerror or 'cannot be read') from None
    # Before decoding, which would only say that it is no text.
    for start, form in OTHERS.items():
        if data.startswith(start):
            raise fault(path, f'the file is {form}')
    if data[:256].lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise fault(path, 'the file is a web page or XML; was a page of errors downloaded?')
    # By the mark, or by the zeros between ASCII letters, with which such files begin.
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
    """Return the text of UTF-8; a byte that is not UTF-8 becomes half a surrogate pair."""
    return data.decode('utf-8', 'surrogateescape')


# --- JSON -------------------------------------------------------------------------------------

class _Twice(ValueError):
    """A key stands twice in one object."""


def _unique(pairs):
    """Return the dict of the pairs of a JSON object; `_Twice` where a key comes again."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in value if names.count(name) > 1))
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique)
# Finds the end of what `_decoder` cannot take: keys that stand twice, and long numbers, which
# Python refuses to convert.
_lenient = json.JSONDecoder(parse_int=str)


def _lines(data):
    """Return the rows of JSON lines; no line break stands inside a JSON value."""
    lines = data.splitlines()
    # A last line without an end may have been cut.
    torn = len(lines) if data and not data.endswith((b'\n', b'\r')) else None
    rows = []
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            where = f'line {number}'
            rows.append((where, _line(line, where, number == torn)))
    return rows


def _line(line, where, torn=False):
    """Return the dict or `BadRow` of the bytes of one value; `torn` says that it may be cut."""
    try:
        text = line.decode()
        value = _decoder.decode(text)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return BadRow(where, 'bad text', f'not UTF-8 (byte {byte:#04x} at {error.start})')
    except (ValueError, RecursionError) as error:
        cause = _cause(error)
        if torn and isinstance(error, json.JSONDecodeError):
            cause = f'{cause}; the file ends in this line'
        return BadRow(where, 'unreadable row', cause)
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
    """Return `value`, which `text` spells; a `BadRow` unless it is an object that can be used.

    It may be no object, be nested deeply, or hold what is no Unicode.
    """
    if not isinstance(value, dict):
        name = {'NoneType': 'null', 'list': 'a list', 'str': 'a text', 'bool': 'true or false'}
        return BadRow(where, 'wrong type', 'must be a JSON object, not '
                      + name.get(type(value).__name__, 'a number'))
    # Few rows hold so many brackets or such an escape: the others are not walked through.
    if text.count('{') + text.count('[') > DEEPEST and _depth(value) > DEEPEST:
        return BadRow(where, 'unreadable row', f'nested more than {DEEPEST} levels deep')
    if '\\ud' in text or '\\uD' in text or not is_unicode(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return BadRow(where, 'bad text', _broken(error))
    return value


def _broken(error):
    """Return what is wrong with a text that cannot be written as UTF-8."""
    letter = ord(error.object[error.start])
    if 0xdc80 <= letter <= 0xdcff:
        return f'not UTF-8 (byte {letter - 0xdc00:#04x})'
    return f'half a surrogate pair (\\u{letter:04x})'


def _depth(value):
    """Return the levels of lists and dicts in each other."""
    # Without recursion: a deep value would exhaust the stack.
    deepest = 0
    todo = [(value, 1)]
    while todo:
        part, level = todo.pop()
        deepest = max(deepest, level)
        inner = part.values() if isinstance(part, dict) else part
        todo += [(child, level + 1) for child in inner if isinstance(child, (dict, list))]
    return deepest


def _list(text, path):
    """Return the rows of the text of a JSON list.

    Its values are decoded one by one, so that a bad one does not hide the others.
    """
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
        if at == len(text):
            raise fault(path, f'the file ends behind {where} of its list; it was cut')
        if text[at:at + 1] != ',':
            raise fault(path, f'no comma behind {where}')
        at = _behind(text, at + 1)


def _behind(text, at):
    """Return the place of the next character that is no space."""
    return _SPACE.match(text, at).end()


def _ended(text, at, path, rows):
    """Return `rows`; ValueError where more text stands behind the bracket at `at`."""
    at = _behind(text, at + 1)
    if at < len(text):
        raise fault(path, f'text behind the end of its list: {shown(text[at:at + 40])!r}')
    return rows


def _entry(text, at, where, path):
    """Return (dict or `BadRow`, where it ends) of the value at `at`.

    ValueError where no end is seen.
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
    """Return where the value at `at` ends, which cannot be read as a row."""
    try:
        return _lenient.raw_decode(text, at)[1]
    except (ValueError, RecursionError) as error:
        raise fault(path, f'{where} of its list: {_cause(error)}') from None


def _json_error(error):
    """Return what is wrong with a whole file that is no JSON."""
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
    """Return the rows of a .json file that begins with an object.

    It holds JSON lines, or one wrapped list.
    """
    text = _text(data)
    start = _behind(text, 0)
    try:
        end = _lenient.raw_decode(text, start)[1]
        if _behind(text, end) < len(text):
            return _lines(data)
        value = _decoder.raw_decode(text, start)[0]
        # As text again, so that its rows are read, and named, like those of a bare list.
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
