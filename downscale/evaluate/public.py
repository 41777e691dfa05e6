"""Published benchmarks in the place of scenes: their questions as a study's items, and how they are
asked (arXiv 2511.17487, sections 3.2 and 3.3)."""
from dataclasses import dataclass
from functools import partial

from downscale.data.records import Extraction, Question, Trace
from downscale.evaluate import prompts
from downscale.evaluate.answers import Item, Wording
from downscale.evaluate.asked import Asked, Questions, informed
from downscale.evaluate.benchmarks import BENCHMARKS, questions_of
from downscale.strict import unknown


def items(evaluation):
    """The `Item`s of every benchmark of an `Evaluation`, the first `scenes` of each (0: all).

    Families are the benchmarks' names; a question without a picture counts as knowledge. ValueError
    or FileNotFoundError in one line for data that is not there or not as published.
    """
    stray = sorted(set(evaluation.information) - set(evaluation.benchmarks))
    if stray:
        raise ValueError('information: ' + unknown('benchmark', stray[0],
                                                   list(evaluation.benchmarks)))
    found = []
    for name, path in evaluation.benchmarks.items():
        if name not in BENCHMARKS:
            raise ValueError(unknown('benchmark', name, list(BENCHMARKS)))
        benchmark = BENCHMARKS[name]
        questions = questions_of(benchmark, path, evaluation.images.get(name),
                                 evaluation.scenes or None)
        if name in evaluation.information:
            questions = informed(questions, evaluation.information[name], numbers=False)
        elif 'extraction' in evaluation.texts:
            raise ValueError(f'evaluation.texts names extractions, but evaluation.information has '
                             f'no file for {name}; add it, or leave extraction out')
        found += [_item(benchmark, questions, asked) for asked in questions.asked
                  if asked.right is not None and questions.judge(asked, 'x', False)[2] is not None]
    return found


@dataclass(frozen=True)
class _Pictured:
    """An example whose pictures are read when they are shown: those of all would fill the memory.
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


def _item(benchmark, questions, asked):
    """One question; its clusters and ids carry the name of the benchmark."""
    name, choices = benchmark.name, asked.right.choices
    cluster = f'{name}/{asked.cluster}'
    question = Question(
        f'{name}/{asked.id}', cluster, name, 'visual' if asked.pictures else 'knowledge',
        asked.text + benchmark.tail, asked.right.gold, (), 1 / len(choices) if choices else 0.0,
        Extraction(asked.information or '', ''), Trace('', ''))
    return Item(question, _Pictured(cluster, questions, asked), partial(_judge, questions, asked))


def _judge(questions, asked, text, marked):
    pred, parsed, score = questions.judge(asked, text, marked)
    return '' if pred is None else str(pred), parsed, score


def wording(experiment):
    """The `Wording` of the prompts that suit a cell's chat; reasoners read no prompt tail."""
    worded = prompts.load('micro' if experiment.chat == 'micro' else 'paper')

    def bare(item):
        return item.question.text.removesuffix(BENCHMARKS[item.question.family].tail)

    return Wording(
        worded.hash, lambda item: item.question.text,
        lambda item, kind: worded.describe('extract' if kind == 'extraction' else kind,
                                           item.question.extraction.information),
        lambda item, text, thinking: worded.reason('think' if thinking else 'direct', text,
                                                   bare(item)))
