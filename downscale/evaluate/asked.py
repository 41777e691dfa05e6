"""What is asked: the questions of a study's split or of a file (`question_files.py`), their judge.
"""
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from downscale.data import row_files
from downscale.data.images import digest
from downscale.data.scenes.questions import SCORER, correct
from downscale.evaluate.question_files import SUFFIXES, own_questions
from downscale.evaluate.scoring.reading import answer_of
from downscale.evaluate.scoring.table import DEFAULT, verdicts
from downscale.evaluate.scoring.targets import Target
from downscale.runtime import copies
from downscale.runtime.files import PathLike, in_bucket
from downscale.stages import inputs
from downscale.values import hash_of


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question: its number in the data, its id, and digests of its pictures in their order.

    `answer` and `information` are None where the data has none. Questions of one `cluster` share
    their pictures. A benchmark gives a `target`, more than one answer, and `strata`, its axes from
    the broadest to the finest. `scorer` judges it in the place of that of all questions.
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
    scorer: str = ''

    @property
    def right(self) -> Target | None:
        """What the named scorers judge by; None where the data has no answer."""
        return self.target or (None if self.answer is None else Target(answers=(self.answer,)))


@dataclass(frozen=True)
class Questions:
    """Questions, how their pictures are opened (Asked -> bytes of each) and who judges.

    `scorer` names the rule and its version: `SCORER` is the scene world's, the others are those of
    `scoring/table.py`, `DEFAULT` where the data names none.
    """
    asked: tuple[Asked, ...]
    images: Callable[[Asked], Sequence[bytes]]
    scorer: str

    @property
    def hash(self) -> str:
        """A short hash of all that is asked, shown and right."""
        return hash_of([self.scorer, [_hashed(asked) for asked in self.asked]])

    def scorer_of(self, asked: Asked) -> str:
        """Return the name of the rule that judges a question."""
        return asked.scorer or self.scorer

    def judge(self, asked: Asked, text: str,
              marked: bool = True) -> tuple[str | float | None, bool, float | None]:
        """Return (answer, whether there is one, its score) of a reply without its thought.

        `marked` says that an 'Answer: X' was asked for (see `named.verdicts`). The score is None
        where the data has no answer. What cannot be read is never guessed.
        """
        # The scene world has rules of its own; without a right answer there is only the reading.
        scorer = self.scorer_of(asked)
        if scorer == SCORER or asked.right is None:
            pred = answer_of(text, scorer != SCORER, asked.answer)
            score = None if asked.answer is None else float(
                correct(asked.family, pred, asked.answer))
            return pred, bool(pred), score
        verdict = verdicts(text, asked.right, [scorer], marked=marked, behind=True)[scorer]
        return verdict.value, verdict.parsed, verdict.score


def _hashed(asked):
    """Return what the hash of questions sees of one.

    What only benchmarks have is left out where it is not there: hashes are older than those fields.
    """
    row = dataclasses.asdict(asked)
    if row['target'] and row['target']['size'] is None:
        del row['target']['size']
    return {name: value for name, value in row.items()
            if value or name not in ('target', 'strata', 'scorer')}


def open_questions(path: PathLike, split: str = 'test', limit: int | None = None) -> Questions:
    """Return the first `limit` `Questions` of a study folder's `split`, or of a file of questions.

    Either may be in a bucket (gs://); of a study only that split is copied here, of a file what its
    rows name. FileNotFoundError or ValueError in one line, for a file with the number of the line.
    """
    path = _local(path, split)
    if limit is not None and limit < 1:
        raise ValueError(f'--limit {limit} must be at least 1')
    if path.is_dir():
        questions = _of_study(path, split, limit)
    elif path.suffix in SUFFIXES:
        questions = of_file(path, limit=limit)
    else:
        raise ValueError(f'{path} is neither the folder of a study nor a {", ".join(SUFFIXES)} '
                         'file of questions')
    if not questions.asked:
        raise ValueError(f'{path} holds no question')
    return questions


def _local(path, split):
    """Return the local path of a study or of a file of questions."""
    if not in_bucket(path):
        return Path(path)
    # All of the folder is listed: the pictures that rows name lie beside the file.
    folder, _, name = str(path).rpartition('/')
    if Path(name).suffix in SUFFIXES:
        return copies.local_copy(folder, lambda names: {name} & set(names)) / name
    stored = 'data/*/*/*'
    return copies.local_copy(path, copies.matching(
        'data.json', f'{stored}/dataset_info.json', f'{stored}/features.json',
        f'{stored}/*-{split.partition("[")[0]}.array_record*'))


# --- a study ----------------------------------------------------------------------------------

def _of_study(folder, split, limit):
    library = inputs.library(str(folder), split)
    asked = []
    shown = {}
    for index in range(len(library)):
        example = library.example(index)
        pictures = tuple(map(digest, example.images))
        for question in example.questions:
            shown[len(asked)] = example.images
            asked.append(
                Asked(
                    doc_id=len(asked),
                    id=question.item_id,
                    text=question.text,
                    pictures=pictures,
                    answer=question.answer,
                    information=question.extraction.information,
                    family=question.family,
                    cluster=question.cluster_id,
                )
            )
        # Whole examples are read, and what is too much of the last is cut off below.
        if limit is not None and len(asked) >= limit:
            break
    return Questions(tuple(asked[:limit]), lambda question: shown[question.doc_id], SCORER)


# --- a file of questions ------------------------------------------------------------------------

def of_file(path: PathLike, images: PathLike | None = None, limit: int | None = None,
            scorer: str = '') -> Questions:
    """Return the `Questions` of a file of one's own (see `question_files.py`).

    Where a row names no scorer, `scorer` judges or, with '', the default.
    """
    rows = own_questions(path, images, limit, scorer)
    asked = []
    for number, question in enumerate(rows):
        pictures = tuple(map(digest, question.pictures()))
        # A plain answer needs no target: rows that were written before there were others hold none.
        target = question.target
        answer = target.gold if target else None
        if target == Target(answers=(answer or '',)):
            target = None
        asked.append(
            Asked(
                doc_id=number,
                id=question.id,
                text=question.text,
                pictures=pictures,
                answer=answer,
                information=question.information,
                family=question.family,
                cluster=hash_of(pictures) if pictures else question.id,
                target=target,
                scorer=question.scorer,
            )
        )
    return Questions(tuple(asked), lambda question: rows[question.doc_id].pictures(), DEFAULT)


# --- what to look at --------------------------------------------------------------------------

def informed(questions: Questions, path: PathLike, numbers: bool = True) -> Questions:
    """Return `questions` with the information of a JSON file {id: what to look at}.

    With `numbers` the keys may also be the numbers of the questions in the data.

    FileNotFoundError or ValueError in one line for a missing or damaged file and, with counts, for
    questions that it leaves out.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of information {path}')
    texts = row_files.read_object(path)
    wrong = [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise row_files.fault(path, f'must hold texts; {len(wrong)} of {len(texts)} are none '
                              f'(first {row_files.shown(wrong[0], 40)!r})')
    # All by id or all by number: a mixture may be a file about other data.
    ids = not numbers or all(asked.id in texts for asked in questions.asked)
    names = [asked.id if ids else str(asked.doc_id) for asked in questions.asked]
    lacking = [name for name in names if name not in texts]
    if lacking:
        ways = 'by id and by number' if numbers else 'by id'
        raise row_files.fault(path, f'lacks {len(lacking)} of {len(names)} questions, {ways} '
                              f'(first {row_files.shown(lacking[0], 40)!r})')
    asked = [dataclasses.replace(question, information=texts[name])
             for question, name in zip(questions.asked, names)]
    return dataclasses.replace(questions, asked=tuple(asked))
