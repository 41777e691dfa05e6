"""Benchmarks and one's own questions in the place of scenes: a study's items (arXiv 2511.17487,
sections 3.2 and 3.3)."""
import difflib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from downscale.config import Evaluation
from downscale.data.corpora.options import ASK_LETTER
from downscale.data.records import Extraction, Question, Trace
from downscale.evaluate import guessers
from downscale.evaluate.answers import Item
from downscale.evaluate.asked import Asked, Questions, informed, of_file
from downscale.evaluate.benchmarks import BENCHMARKS, questions_of
from downscale.evaluate.question_files import SUFFIXES
from downscale.results.text_kinds import EXTRACTION, PERCEIVED
from downscale.values import unknown


def items(evaluation: Evaluation) -> list[Item]:
    """Return the `Item`s of every benchmark of an `Evaluation`.

    They are the first `scenes` questions of each (0: all). A name that no published benchmark has
    belongs to a file of one's own questions. Families are the benchmarks' names, of own questions
    those of their rows; a question without a picture counts as knowledge. ValueError or
    FileNotFoundError in one line for data that is not there or not as published.
    """
    for what in ('information', 'images', 'scorers'):
        stray = sorted(set(vars(evaluation)[what]) - set(evaluation.benchmarks))
        if stray:
            raise ValueError(f'evaluation.{what}: ' + unknown('benchmark', stray[0],
                                                              list(evaluation.benchmarks)))
    every = []
    for name in evaluation.benchmarks:
        questions = _questions(evaluation, name)
        # A reply that says nothing shows whether the scorer has anything to compare with.
        scored = [asked for asked in questions.asked
                  if asked.right is not None and questions.judge(asked, 'x', False)[2] is not None]
        of_one = [_item(name, questions, asked) for asked in scored]
        # Published benchmarks keep the chance of their options; own data may be guessable.
        every += of_one if name in BENCHMARKS else guessers.with_priors(of_one)
    return every


def _questions(evaluation, name):
    """Return the `Questions` of one benchmark."""
    path = evaluation.benchmarks[name]
    images = evaluation.images.get(name)
    limit = evaluation.scenes or None
    scorer = evaluation.scorers.get(name, '')
    if name in BENCHMARKS:
        questions = questions_of(BENCHMARKS[name], path, images, limit, scorer)
    elif Path(path).suffix in SUFFIXES:
        questions = _own(name, path, images, limit, scorer)
    else:
        raise ValueError(f'{unknown("benchmark", name, list(BENCHMARKS))}; own questions are in '
                         f'{", ".join(SUFFIXES)} files, not {path}')
    # By id alone: rows of a benchmark may stand in another order in the next release.
    if name in evaluation.information:
        questions = informed(questions, evaluation.information[name], numbers=False)
    lacking = [asked for asked in questions.asked if not asked.information]
    if lacking and {EXTRACTION, PERCEIVED} & set(evaluation.texts):
        raise ValueError(f'evaluation.texts names extractions, but {len(lacking)} of '
                         f'{len(questions.asked)} questions of {name} do not say what to look at; '
                         f'add evaluation.information.{name}, or leave extraction out')
    return questions


def _own(name, path, images, limit, scorer):
    """Return the `Questions` of a file of one's own, every one with an answer."""
    try:
        questions = of_file(path, images, limit, scorer)
    except ValueError as error:
        # What cannot be read as own questions may be a benchmark's, its name spelt wrong.
        near = difflib.get_close_matches(name, list(BENCHMARKS), 1, 0.8)
        hint = f'; or did you mean the benchmark {near[0]!r}?' if near else ''
        raise ValueError(f'{error}{hint}') from None
    open_ended = [asked.id for asked in questions.asked if asked.right is None]
    if open_ended:
        raise ValueError(f'{path}: {len(open_ended)} of {len(questions.asked)} questions have no '
                         f'answer (first {open_ended[0]!r}); an evaluation needs them all')
    return questions


@dataclass(frozen=True, kw_only=True)
class _LazyExample:
    """An example whose pictures are read when they are shown.

    Those of a whole benchmark would fill the memory.
    """
    scene_id: str
    questions: Questions
    asked: Asked
    caption: str = ''

    @property
    def images(self):
        return self.questions.images(self.asked)

    @property
    def count(self):
        return len(self.asked.pictures)


def _item(name, questions, asked):
    """Return one question; its clusters and ids carry the name of the benchmark."""
    choices = asked.right.choices
    cluster = f'{name}/{asked.cluster}'
    if name in BENCHMARKS:
        tail = BENCHMARKS[name].tail
        family = name
    else:
        # Options of own questions are asked for as they are trained on.
        tail = f'\n{ASK_LETTER}' if choices else ''
        family = asked.family or name
    extraction = Extraction(asked.information or '', '')
    question = Question(
        item_id=f'{name}/{asked.id}',
        cluster_id=cluster,
        family=family,
        kind='visual' if asked.pictures else 'knowledge',
        text=asked.text + tail,
        answer=asked.right.gold,
        distractors=(),
        chance=1 / len(choices) if choices else 0.0,
        extraction=extraction,
        trace=Trace('', ''),
    )
    return Item(
        question=question,
        example=_LazyExample(scene_id=cluster, questions=questions, asked=asked),
        judge=partial(_judge, questions, asked),
        scorer=questions.scorer_of(asked),
        bare=asked.text,
    )


def _judge(questions, asked, text, marked):
    pred, parsed, score = questions.judge(asked, text, marked)
    return '' if pred is None else str(pred), parsed, score
