"""The steps of an Extract+Think chain: which model writes which files, and the jobs of each.

The jobs of a step follow from the questions and from what earlier steps wrote, and from nothing
else. So the same list of steps says what is weighed before any work (texts to come are empty), what
one process generates, and what the finished files hold.
"""
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from downscale.evaluate import cells
from downscale.evaluate.asked import Asked
from downscale.evaluate.plan import ChainPlan
from downscale.evaluate.prompts import Prompts
from downscale.evaluate.run_settings import sample_of
from downscale.evaluate.runs import ChainModel
from downscale.generate.requests import Decoding
from downscale.results.samples import key_of
from downscale.values import hash_of

Written = dict[str, dict[int, dict[str, Any]]]  # file name: {doc_id: record}


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one model writes the rows of one file: what decides a reply beside its question.

    `prompts` is the hash of the prompts; `shown` says that the pictures are; `reads` are texts of
    other models that stand in the prompt.
    """
    run: ChainModel
    task: str
    prompts: str
    decoding: Decoding
    limit: int
    thinking: bool | None = None
    think: int | None = None
    shown: bool = False
    reads: tuple[str, ...] = ()

    @cached_property
    def generation(self) -> dict[str, Any]:
        """All of it that is about tokens, as JSON; thousands of banned ids as their hash."""
        # Through JSON: a record that is read again must equal the one that was written.
        plain = json.loads(json.dumps(dataclasses.asdict(self.decoding)))
        del plain['costs']  # what a token cost is told beside it, and decides nothing
        plain['banned_thinking'] = hash_of(plain['banned_thinking'])
        return plain | {'limit': self.limit, 'think': self.think, 'thinking': self.thinking}


@dataclass(frozen=True, kw_only=True)
class ReplyJob:
    """One row to generate: its record without the reply, and what the engine needs."""
    record: dict[str, Any]
    manner: Manner
    asked: Asked
    text: str
    sample: int

    @property
    def content(self) -> tuple:
        """What decides the reply within one step: equal content is generated once."""
        pictures = self.asked.pictures if self.manner.shown else ()
        return self.text, pictures, self.manner.think, self.sample


def job(manner: Manner, asked: Asked, text: str, sample: int, **more: Any) -> ReplyJob:
    """Return the job of one row; its record holds `more`, its key covers all that decides it."""
    prints = {'task': manner.task, 'checkpoint': manner.run.fingerprint, 'prompts': manner.prompts}
    record = {
        'doc_id': asked.doc_id,
        'target': asked.answer or '',
        'doc': {'id': asked.id, 'family': asked.family, 'cluster': asked.cluster,
                **benchmark_fields(asked)},
        'input': text,
        'arguments': [text, manner.generation],
        'model': manner.run.name,
        'prompt_hash': hash_of(text),
        **prints,
        **more,
    }
    # Not in the key: names, which may be chosen anew, and what is right, which decides no reply.
    record['key'] = key_of({
        'doc': [asked.doc_id, asked.id],
        'text': text,
        'sample': sample,
        'pictures': asked.pictures if manner.shown else [],
        'generation': manner.generation,
        **prints,
    })
    return ReplyJob(record=record, manner=manner, asked=asked, text=text, sample=sample)


def benchmark_fields(asked: Asked) -> dict[str, Any]:
    """Return what the named scorers need beside the reply, in the form that `rescore` reads."""
    target = asked.target
    if target is None:
        return {'strata': list(asked.strata)} if asked.strata else {}
    size = {'size': list(target.size)} if target.size else {}
    return {
        'answers': list(target.answers),
        'choices': list(map(list, target.choices)),
        'share': target.share,
        'free': target.free,
        'strata': list(asked.strata),
        **size,
    }


Files = dict[str, list[ReplyJob]]  # file name: its rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one model writes in one call of its engine, so that no slot waits for a file to end.

    `files_of` takes questions and what earlier steps wrote about them. Later steps read what a
    step wrote where it `feeds` them.
    """
    run: ChainModel
    decoding: Decoding
    files_of: Callable[[Sequence[Asked], Written], Files]
    feeds: bool = False


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Perception models, and the reasoners that read what each of them writes.

    `informer` writes what to look at where it is given; `sighted` models answer with the picture
    themselves, their question followed by `tail`.
    """
    plan: ChainPlan
    prompts: Prompts
    perceptions: tuple[ChainModel, ...]
    reasoners: tuple[ChainModel, ...]
    informer: ChainModel | None = None
    sighted: tuple[ChainModel, ...] = ()
    tail: str = ''

    def steps(self) -> list[Step]:
        """Return the steps in the order of the work: each reads only what stands before it."""
        greedy = Decoding(seed=self.plan.seed)
        steps = []
        # A caption looks at everything: nobody is asked what to look at.
        if self.informer and self.plan.describe == 'extract':
            steps.append(Step(run=self.informer, decoding=greedy, feeds=True,
                              files_of=self._information))
        for run in self.perceptions:
            steps.append(Step(run=run, decoding=greedy, feeds=True,
                              files_of=partial(self._descriptions, run)))
        for run in self.reasoners:
            steps.append(Step(run=run, decoding=self.plan.decoding(run.reflexive),
                              files_of=partial(self._answers, run)))
        for run in self.sighted:
            steps.append(Step(run=run, decoding=greedy,
                              files_of=partial(self._joint_answers, run)))
        return steps

    def _greedy(self, run, task, limit, **more):
        """Return the `Manner` of everything but the answers of reasoners."""
        return Manner(run=run, task=task, prompts=self.prompts.hash, limit=limit,
                      decoding=Decoding(seed=self.plan.seed), **more)

    # The seed of a row (`sample_of`) hangs on what is asked, never on its place in a file: a
    # shorter run, other processes or other models beside it leave the row as it is.

    def _information(self, questions, written):
        """Return the file of what to look at, asked of the informer."""
        manner = self._greedy(self.informer, 'information', self.plan.describe_tokens,
                              thinking=False)
        jobs = []
        for asked in questions:
            text = self.prompts.inform(asked.text)
            jobs.append(job(manner, asked, text, sample_of(text)))
        return {cells.information_name(self.informer): jobs}

    def _descriptions(self, run, questions, written):
        """Return the file of what one perception model writes about each question."""
        kind = self.plan.describe
        informed = kind == 'extract' and self.informer is not None
        manner = self._greedy(run, f'describe-{kind}', self.plan.describe_tokens, shown=True,
                              reads=('information',) if informed else ())
        jobs = []
        for asked in questions:
            information = asked.information
            if informed:
                record = written[cells.information_name(self.informer)][asked.doc_id]
                information = record['filtered_resps'][0]
            text = self.prompts.describe(kind, information)
            jobs.append(job(manner, asked, text, sample_of(text, *asked.pictures)))
        return {cells.description_name(run): jobs}

    def _answers(self, run, questions, written):
        """Return the files of one reasoner: every perception model's texts, in every mode."""
        files = {}
        for perception in self.perceptions:
            descriptions = written[cells.description_name(perception)]
            for mode in self.plan.reason:
                manner = Manner(
                    run=run,
                    task=f'answer-{mode}',
                    prompts=self.prompts.hash,
                    decoding=self.plan.decoding(run.reflexive),
                    limit=self.plan.answer_tokens,
                    thinking=mode == 'think',
                    think=self.plan.think_tokens if mode == 'think' else None,
                    reads=('description',),
                )
                # The text and the row that it came from: a record names what it was made from.
                jobs = []
                for asked in questions:
                    description = descriptions[asked.doc_id]
                    text = self.prompts.reason(mode, description['filtered_resps'][0], asked.text)
                    for repeat in range(self.plan.repeats):
                        jobs.append(job(manner, asked, text, sample_of(asked.id, str(repeat)),
                                        repeat=repeat, perception=perception.name,
                                        description=description['key']))
                files[cells.file_name(perception, run, mode)] = jobs
        return files

    def _joint_answers(self, run, questions, written):
        """Return the file of what a model that sees the picture answers by itself."""
        manner = self._greedy(run, 'answer-joint', self.plan.answer_tokens, shown=True)
        return {cells.joint_name(run): [
            job(manner, asked, asked.text + self.tail, sample_of(asked.id, 'joint'))
            for asked in questions]}
