"""Files of one's own questions: JSON, JSON lines or Parquet, one question a row.

A row is {"id", "question", "images"?, "answer"?, "options"?, "information"?, "family"?, "scorer"?}.
`answer` is a text, a list of accepted texts, a box of four numbers or, with `options`, a letter,
the text of one or its place from 0. Every key is known or refused with the nearest one; a null is
as good as no key. Pictures are read when they are shown, not before.
"""
import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from downscale.data.images import open_under
from downscale.data.records import IMAGE
from downscale.evaluate.benchmark_files import plain_rows
from downscale.evaluate.named import LETTERS, SCORERS, Target, applying
from downscale.evaluate.reading import plain
from downscale.strict import unknown

FIELDS = {'id': (str, int), 'question': str, 'images': list, 'answer': (str, list, int),
          'options': (list, dict, str), 'information': str, 'family': str, 'scorer': str}
NEEDED = ('id', 'question')
WANTED = {'id': 'text or whole number', 'images': 'list of paths', 'options': 'list of texts',
          'answer': 'text, a list of texts or a box of four numbers'}
SUFFIXES = ('.jsonl', '.json', '.parquet')
BOX_SCORER = 'refcoco'  # judges a box where nobody names a scorer


@dataclass(frozen=True, kw_only=True)
class OwnQuestion:
    """One row, checked: `pictures` is a call that returns the bytes of each; `target` is None where
    the row has no answer, `scorer` '' where nobody names one."""
    id: str
    text: str
    pictures: Callable
    target: Target | None
    information: str | None
    family: str
    scorer: str


def own_questions(path, images=None, limit=None, scorer=''):
    """The first `limit` `OwnQuestion`s of a file; `images` is the folder of their pictures, without
    one that of the file, and `scorer` judges where a row names none.

    FileNotFoundError or ValueError in one line with the number of the line or row.
    """
    path, found, first = Path(path), [], {}
    if scorer and scorer not in SCORERS:
        raise ValueError(unknown('scorer', scorer, list(SCORERS)))
    if not path.is_file():
        raise FileNotFoundError(f'no file of questions {path}')
    for where, row in islice(_rows(path), limit):
        question = _question(row, where, Path(images or path.parent), scorer)
        if question.id in first:
            raise ValueError(f'{where}: id {question.id!r} stands in {first[question.id]} already')
        first[question.id] = where.rpartition(', ')[2]
        found.append(question)
    if not found:
        raise ValueError(f'{path} holds no question')
    return found


# --- rows -------------------------------------------------------------------------------------

def _rows(path):
    """(where it stands, row) of every row of a file."""
    if path.suffix == '.jsonl':
        for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
            if line.strip():
                yield f'{path}, line {number}', _json(line, f'{path}, line {number}')
    elif path.suffix == '.json':
        rows = _json(path.read_bytes(), str(path))
        if not isinstance(rows, list):
            raise ValueError(f'{path} must hold one JSON list, not {type(rows).__name__}')
        for number, row in enumerate(rows, 1):
            yield f'{path}, row {number}', row
    elif path.suffix == '.parquet':
        for number, row in enumerate(plain_rows(path, 'images'), 1):
            yield f'{path}, row {number}', row
    else:
        raise ValueError(f'{path} is no {", ".join(SUFFIXES)} file of questions')


def _json(data, where):
    try:
        value = json.loads(data.decode('utf-8-sig'))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fails
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where}: no readable JSON ({error})') from None
    return value


# --- one row ----------------------------------------------------------------------------------

def _question(row, where, folder, scorer):
    """The `OwnQuestion` of a row."""
    row = _checked(row, where)
    options = _options(row.get('options'), where)
    target = None if 'answer' not in row else Target(
        _answers(row['answer'], options, where), options)
    text = row['question']
    if options and not all(f'{letter}. {option}' in text for letter, option in options):
        text += '\n' + '\n'.join(f'{letter}. {option}' for letter, option in options)
    scorer = row.get('scorer', scorer)
    if target is not None:
        scorer = _scorer(scorer, target, where)
    return OwnQuestion(id=str(row['id']), text=text,
                       pictures=partial(_opened, folder, row.get('images', ()), where),
                       target=target, information=row.get('information'),
                       family=row.get('family', ''), scorer=scorer)


def _checked(row, where):
    """The fields of a row that hold something, every one of its type."""
    if not isinstance(row, dict):
        raise ValueError(f'{where}: must be a JSON object, not {type(row).__name__}')
    for name, value in row.items():
        if name not in FIELDS:
            raise ValueError(f'{where}: {unknown("field", name, list(FIELDS))}')
        if value is None or callable(value):
            continue
        if isinstance(value, bool) or not isinstance(value, FIELDS[name]):
            raise ValueError(f'{where}: {name} must be a {WANTED.get(name, "text")}, not '
                             f'{_short(value)}')
    row = {name: value for name, value in row.items() if value is not None}
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise ValueError(f'{where}: missing field {", ".join(map(repr, missing))}')
    if not row['question'].strip():
        raise ValueError(f'{where}: the question is empty')
    images = row.get('images', [])
    if not callable(images) and not all(isinstance(image, str) and image for image in images):
        raise ValueError(f'{where}: images must be a list of paths, not {_short(images)}')
    texts = {name: value for name, value in row.items() if not callable(value)}
    if IMAGE in json.dumps(texts, ensure_ascii=False):
        raise ValueError(f'{where}: holds the image mark {IMAGE}; leave it out, pictures are put '
                         'in front')
    return row


def _short(value):
    """`value` as an error line shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _options(options, where):
    """(letter, text) of every option of a list, of a mapping from letters or of the text of a list.
    """
    if options is None:
        return ()
    given = options
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            options = None
    if isinstance(options, list):
        options = dict(zip(LETTERS, options)) if len(options) <= len(LETTERS) else None
    if not isinstance(options, dict) or len(options) < 2 or \
            ''.join(map(str, options)) != LETTERS[:len(options)] or \
            not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise ValueError(f'{where}: options must be 2 to {len(LETTERS)} texts, as a list or by the '
                         f'letters A, B, ..., not {_short(given)}')
    return tuple(options.items())


def _answers(answer, options, where):
    """The right answers as texts; of options as letters."""
    if isinstance(answer, int):
        if not 0 <= answer < len(options):
            raise ValueError(f'{where}: answer must be a text, or with options the place of one '
                             f'from 0, not {_short(answer)} of {len(options)} options')
        return (LETTERS[answer],)
    if isinstance(answer, str):
        return (_lettered(answer, options, where),)
    numbers = [number for number in answer
               if isinstance(number, (int, float)) and not isinstance(number, bool)]
    if len(answer) == len(numbers) == 4 and not options:
        return (json.dumps(answer),)
    if not answer or not all(isinstance(text, str) for text in answer):
        raise ValueError(f'{where}: answer must be a text, a list of texts or a box of four '
                         f'numbers, not {_short(answer)}')
    return tuple(_lettered(text, options, where) for text in answer)


def _lettered(answer, options, where):
    """`answer`; where there are options the letter of the one that it names."""
    if not answer.strip():
        raise ValueError(f'{where}: the answer is empty; leave it out where none is known')
    if not options:
        return answer
    bare = answer.strip().strip('().:').upper()
    fits = {letter for letter, text in options if letter == bare or plain(text) == plain(answer)}
    if len(fits) != 1:
        raise ValueError(f'{where}: answer {_short(answer)} names {len(fits)} of the options '
                         f'{_short([text for _, text in options])}; give the letter of one')
    return fits.pop()


def _scorer(name, target, where):
    """The scorer that judges a target: `name`, or for a box that of boxes; '' is the default."""
    if not name:
        return BOX_SCORER if target.forms == {'box'} else ''
    if name not in SCORERS:
        raise ValueError(f'{where}: {unknown("scorer", name, list(SCORERS))}')
    if not applying(target, [name]):
        fitting = [scorer.name for scorer in applying(target)]
        raise ValueError(f'{where}: scorer {name} cannot judge the answer {_short(target.gold)}; '
                         f'these can: {", ".join(fitting)}')
    return name


def _opened(folder, given, where):
    """The bytes of pictures: of files inside `folder`, or as a Parquet file holds them."""
    found = []
    for value in given() if callable(given) else given:
        if isinstance(value, dict):
            value = value.get('path') if value.get('bytes') is None else value['bytes']
        try:
            found.append(value if isinstance(value, bytes) else open_under(folder, value))
        except (ValueError, OSError, TypeError) as error:
            raise ValueError(f'{where}: {error}') from None
    return tuple(found)
