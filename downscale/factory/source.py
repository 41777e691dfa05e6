"""What the factory starts from: questions with answers about pictures, in LLaVA's JSON or JSONL."""
import json
import re
from dataclasses import dataclass
from pathlib import Path

from downscale.data.images import open_under
from downscale.data.measure import picture_size
from downscale.data.records import IMAGE
from downscale.evaluate.asked import digest

SPEAKERS = {'human': 'question', 'user': 'question', 'gpt': 'answer', 'assistant': 'answer'}


@dataclass(frozen=True)
class Pictured:
    """One picture (a path below the root, and its digest) with all questions about it.

    `ids` are those of the records that asked them; `pairs` are (question, answer), each once.
    """
    image: str
    picture: str
    ids: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Skipped:
    """A record or picture that is no work for the factory, and why."""
    id: str
    reason: str


def read(path, root, limit=None):
    """(`Pictured` of the first `limit` pictures, sorted by path; `Skipped` records).

    Records that show one picture are joined; those of another form are skipped. ValueError or
    FileNotFoundError in one line for a file that is no JSON.
    """
    by_image, skipped = {}, []
    for where, record in _records(Path(path)):
        try:
            name, image, pairs = _checked(record)
        except ValueError as error:  # also for half a surrogate pair, which fits no request
            skipped.append(Skipped(where, str(error)))
            continue
        reason = 'no picture' if image is None else 'several pictures' if isinstance(image, list) \
            else '' if pairs else 'no question with an answer'
        if reason:
            skipped.append(Skipped(name, reason))
        else:
            by_image.setdefault(image, []).append((name, pairs))
    found = []
    for image in sorted(by_image)[:limit]:
        ids = tuple(dict.fromkeys(name for name, _ in by_image[image]))
        pairs = tuple(dict.fromkeys(pair for _, some in by_image[image] for pair in some))
        try:
            data = open_under(root, image)
            picture_size(data, image)  # the header: every start reads all pictures
        except (ValueError, OSError) as error:
            skipped.append(Skipped(ids[0], f'picture: {_short(error)}'))
            continue
        asked = [question for question, _ in pairs]
        if len(set(asked)) < len(asked):
            skipped.append(Skipped(ids[0], 'one question with two answers'))
            continue
        found.append(Pictured(image, digest(data), ids, pairs))
    return tuple(found), tuple(skipped)


def _short(error):
    """The kind of trouble without the paths, which differ between machines."""
    if isinstance(error, FileNotFoundError):
        return 'there is none'
    return 'leaves its folder' if 'leaves its folder' in str(error) else 'unreadable'


def _records(path):
    """(where, record) of a JSON list or of a file with one object a line."""
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}; give a .json or .jsonl file of conversations')
    data = path.read_bytes()
    if path.suffix == '.jsonl':
        for number, line in enumerate(data.split(b'\n'), 1):
            if line.strip():
                yield f'line {number}', _json(line, f'{path}, line {number}')
        return
    value = _json(data, path)
    if not isinstance(value, list):
        raise ValueError(f'{path} must hold a JSON list of records, not {type(value).__name__}')
    yield from ((f'record {k}', record) for k, record in enumerate(value))


def _json(data, where):
    try:
        return json.loads(data.decode())
    except ValueError as error:
        raise ValueError(f'{where}: no readable JSON ({error})') from None


def _checked(record):
    """(id, image, pairs) of one record; ValueError for another form, or text that is no Unicode."""
    json.dumps(record, ensure_ascii=False).encode()
    if not isinstance(record, dict) or not isinstance(record.get('conversations'), list):
        raise ValueError('must be an object with "id", "image" and a list "conversations"')
    name, image = record.get('id'), record.get('image')
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise ValueError(f'id must be a text or a number, not {name!r}')
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, (str, list)) and image is not None:
        raise ValueError(f'image must be a path, not {image!r}')
    pairs, question = [], None
    for turn in record['conversations']:
        if not isinstance(turn, dict) or not isinstance(turn.get('value'), str) \
                or turn.get('from') not in {*SPEAKERS, 'system'}:
            raise ValueError('a turn must be {"from": "human" or "gpt", "value": text}, not '
                             f'{json.dumps(turn)[:80]}')
        text = turn['value'].replace(IMAGE, '').strip()
        if SPEAKERS.get(turn['from']) == 'question':
            question = bare_question(text)
        elif SPEAKERS.get(turn['from']) == 'answer' and question and text:
            pairs.append((question, text))
            question = None
    return str(name), image or None, pairs


# What LLaVA's sets append so that a model answers in a form; it is nothing to describe.
_FORM = re.compile(r'\s*answer (?:the question )?(?:using|with) (?:a single word|the option|one)'
                   r'[^\n]*$', re.IGNORECASE)


def bare_question(text):
    """A question without the request for a form of answer behind it."""
    return _FORM.sub('', text).strip()
