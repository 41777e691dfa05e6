"""What a chain asks: the questions of a study's split or of a `.jsonl` file, and their judge.

A line of such a file is {"id", "question", "images": [paths beside the file], "answer"?,
"information"?, "family"?}. Pictures are read when they are shown, not before.
"""
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from downscale import stages
from downscale.data.images import open_under
from downscale.data.questions import correct
from downscale.data.records import IMAGE
from downscale.evaluate.answers import hash_of
from downscale.evaluate.named import DEFAULT, Target, verdicts
from downscale.evaluate.reading import answer_of
from downscale.strict import unknown

FIELDS = {'id': (str, int), 'question': str, 'images': list, 'answer': str, 'information': str,
          'family': str}
NEEDED = ('id', 'question', 'images')


@dataclass(frozen=True)
class Asked:
    """One question: its number in the data, its id, and digests of its pictures in their order.

    `answer` and `information` are None where the data has none. Questions of one `cluster` share
    their pictures. A benchmark gives a `target`, more than one answer, and `strata`, its axes from
    the broadest to the finest.
    """
    doc_id: int
    id: str
    text: str
    pictures: tuple[str, ...]
    answer: str | None
    information: str | None
    family: str
    cluster: str
    target: Target | None = None
    strata: tuple[str, ...] = ()

    @property
    def right(self):
        """What the named scorers judge by; None where the data has no answer."""
        return self.target or (None if self.answer is None else Target((self.answer,)))


@dataclass(frozen=True)
class Questions:
    """Questions, how their pictures are opened (Asked -> bytes of each) and who judges.

    `scorer` names the rule and its version: 'scene-1' is the scene world's, the others are those of
    `named.py`, `DEFAULT` where the data names none.
    """
    asked: tuple[Asked, ...]
    images: Callable
    scorer: str

    @property
    def hash(self):
        """A short hash of all that is asked, shown and right."""
        rows = [dataclasses.asdict(asked) for asked in self.asked]
        for target in (row['target'] for row in rows if row['target']):
            if target['size'] is None:
                del target['size']
        # What only benchmarks have leaves the hash of other data alone.
        return hash_of([self.scorer, [
            {name: value for name, value in row.items()
             if value or name not in ('target', 'strata')} for row in rows]])

    def judge(self, asked, text, marked=True):
        """(answer, whether one was found, its score) of a reply without its thought.

        `marked` says that an 'Answer: X' was asked for (see `named.verdicts`). The score is None
        where the data has no answer. What cannot be read is never guessed.
        """
        if self.scorer == 'scene-1' or asked.right is None:
            pred = answer_of(text, self.scorer != 'scene-1', asked.answer)
            score = None if asked.answer is None else float(
                correct(asked.family, pred, asked.answer))
            return pred, bool(pred), score
        found = verdicts(text, asked.right, [self.scorer], marked=marked,
                         behind=True)[self.scorer]
        return found.value, found.parsed, found.score


def open_questions(path, split='test', limit=None):
    """The first `limit` `Questions` of a study folder's `split`, or of a `.jsonl` file.

    FileNotFoundError or ValueError in one line, for a file with the number of the line.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f'--limit {limit} must be at least 1')
    if path.is_dir():
        found = _of_study(path, split, limit)
    elif path.suffix == '.jsonl':
        found = _of_file(path, limit)
    else:
        raise ValueError(f'{path} is neither the folder of a study nor a .jsonl file of questions')
    if not found.asked:
        raise ValueError(f'{path} holds no question')
    return found


def digest(data):
    """The digest that stands for a picture."""
    return hashlib.sha256(data).hexdigest()[:32]


# --- a study ----------------------------------------------------------------------------------

def _of_study(folder, split, limit):
    library = stages.library(str(folder), split)
    asked, shown = [], {}
    for index in range(len(library)):
        example = library.example(index)
        pictures = tuple(map(digest, example.images))
        for question in example.questions:
            shown[len(asked)] = example.images
            asked.append(Asked(len(asked), question.item_id, question.text, pictures,
                               question.answer, question.extraction.information, question.family,
                               question.cluster_id))
        if limit is not None and len(asked) >= limit:
            break
    return Questions(tuple(asked[:limit]), lambda one: shown[one.doc_id], 'scene-1')


# --- a file of questions ------------------------------------------------------------------------

def _of_file(path, limit):
    if not path.is_file():
        raise FileNotFoundError(f'no file of questions {path}')
    asked, names, first = [], {}, {}
    for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
        if not line.strip() or limit is not None and len(asked) >= limit:
            continue
        where = f'{path}, line {number}'
        value = _checked(line, where)
        name = str(value['id'])
        if name in first:
            raise ValueError(f'{where}: id {name!r} stands in line {first[name]} already')
        first[name] = number
        try:
            pictures = tuple(digest(open_under(path.parent, image)) for image in value['images'])
        except (ValueError, OSError) as error:
            raise ValueError(f'{where}: {error}') from None
        names[len(asked)] = value['images']
        asked.append(Asked(len(asked), name, value['question'], pictures, value.get('answer'),
                           value.get('information'), value.get('family', ''),
                           hash_of(pictures) if pictures else name))
    return Questions(tuple(asked), lambda one: tuple(
        open_under(path.parent, image) for image in names[one.doc_id]), DEFAULT)


def _checked(line, where):
    """The object of one line, every field of its type."""
    try:
        value = json.loads(line.decode())
        line_again = json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fails
    except ValueError as error:
        raise ValueError(f'{where}: no readable JSON ({error})') from None
    if not isinstance(value, dict):
        raise ValueError(f'{where}: must be a JSON object, not {type(value).__name__}')
    for name, given in value.items():
        if name not in FIELDS:
            raise ValueError(f'{where}: {unknown("field", name, list(FIELDS))}')
        if isinstance(given, bool) or not isinstance(given, FIELDS[name]):
            raise ValueError(f'{where}: {name} must be a '
                             f'{"list of paths" if name == "images" else "text"}, not {given!r}')
    missing = [name for name in NEEDED if name not in value]
    if missing:
        raise ValueError(f'{where}: missing field {", ".join(map(repr, missing))}')
    if not value['question'].strip():
        raise ValueError(f'{where}: the question is empty')
    if not all(isinstance(image, str) and image for image in value['images']):
        raise ValueError(f'{where}: images must be a list of paths, not {value["images"]!r}')
    if IMAGE.encode() in line_again:
        raise ValueError(f'{where}: holds the image mark {IMAGE}; leave it out, pictures are put '
                         'in front')
    return value


# --- what to look at --------------------------------------------------------------------------

def informed(questions, path, numbers=True):
    """`questions` with the information of a JSON file {id or, with `numbers`, number in the data:
    text}.

    FileNotFoundError or ValueError in one line for a missing or damaged file and, with counts, for
    questions that it leaves out.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no file of information {path}')
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no readable JSON ({error})') from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f'{path} must hold one JSON object of texts')
    ids = not numbers or all(asked.id in found for asked in questions.asked)
    names = {asked.doc_id: asked.id if ids else str(asked.doc_id) for asked in questions.asked}
    lacking = [name for name in names.values() if name not in found]
    if lacking:
        raise ValueError(f'{path} lacks {len(lacking)} of {len(names)} questions, by id'
                         f'{" and by number" * numbers} (first {lacking[0]!r})')
    return dataclasses.replace(questions, asked=tuple(
        dataclasses.replace(asked, information=found[names[asked.doc_id]])
        for asked in questions.asked))
