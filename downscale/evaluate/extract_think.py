"""Extract+Think: perception models write, text-only reasoners answer; the whole grid in one go.

Every perception model describes each picture once and all reasoners read the same texts. Each
process works on its own pictures on its own devices, and writes its own part of every file;
process 0 joins the parts. See `results/samples.py` for what makes the result independent of that.
"""
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.evaluate import cells
from downscale.evaluate.answers import answer_in, prompt_of, windows
from downscale.evaluate.asked import Asked, Questions
from downscale.evaluate.chain_steps import Files, Grid, ReplyJob, Step, Written
from downscale.evaluate.room import weigh
from downscale.evaluate.run_settings import begin
from downscale.evaluate.runs import open_engine
from downscale.generate.requests import Request
from downscale.results.samples import Samples, join
from downscale.runtime.files import read_json, write_json
from downscale.values import hash_of

ROWS = 4096  # requests that are made before the first of them is answered
PATIENCE = 3600  # seconds without a new row after which process 0 gives the others up


@dataclass(frozen=True, kw_only=True)
class Chain(Grid):
    """A grid of models over questions, to be written below `out`.

    `process` of `processes` takes every `processes`-th picture. `engine` opens a run folder
    (folder, slots); `report` is called with (name, done, total), `note` with lines for a person.
    """
    out: Path
    questions: Questions
    process: int = 0
    processes: int = 1
    slots: int = 16
    engine: Callable = open_engine
    report: Callable[[str, int, int], object] = lambda name, done, total: None
    note: Callable[[str], object] = lambda line: None
    patience: float = PATIENCE

    def run(self) -> list[dict[str, Any]] | None:
        """Generate the rows of this process; on process 0 join the files and return the summary.

        ValueError naming what differs when `out` was begun with other settings, where an extraction
        has nothing to look at, and where a context cannot hold what may be asked: before any row is
        written. Other processes return None.
        """
        self._check_information()
        steps = self.steps()
        # 1. Nothing is written until every prompt fits its model.
        self._weigh(steps)
        begin(self.out, self.settings(), alone=self.processes == 1)
        # 2. The own rows: a step reads the own rows of the steps before it.
        questions = self._own_questions()
        written = {}
        for step in steps:
            rows = self._generate(step, step.files_of(questions, written))
            written |= rows if step.feeds else {}
        if self.process:
            return None
        # 3. The rows of all processes: a file is joined before the jobs that read it are known.
        written = {}
        for step in steps:
            rows = self._finish(step.files_of(self.questions.asked, written))
            written |= rows if step.feeds else {}
        summary = cells.summary(self, written)
        write_json(self.out / 'summary.json', {'settings': hash_of(self.settings()),
                                               'scorer': self.questions.scorer, 'cells': summary})
        return summary

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the files, as JSON; slots and processes do not."""
        def prints(runs):
            return {run.name: run.fingerprint for run in runs}

        asked = self.questions
        settings = {
            'plan': json.loads(json.dumps(dataclasses.asdict(self.plan))),
            'prompts': self.prompts.hash,
            'data': {'hash': asked.hash, 'questions': len(asked.asked), 'scorer': asked.scorer},
            'informer': prints([self.informer] if self.informer else []),
            'perception': prints(self.perceptions),
            'reasoner': prints(self.reasoners),
        }
        # Folders from before there were models that see must still be continued.
        if self.sighted:
            settings |= {'sighted': prints(self.sighted), 'tail': repr(self.tail)}
        return settings

    # --- before any work ---

    def _check_information(self):
        """Raise ValueError where an extraction has nothing to look at."""
        if self.plan.describe != 'extract' or self.informer or not self.perceptions:
            return
        asked = self.questions.asked
        lacking = [question for question in asked if not question.information]
        if lacking:
            raise ValueError(
                f'{len(lacking)} of {len(asked)} questions do not say what to look at (first '
                f'{lacking[0].id!r}); give --information or --informer, or --describe caption')

    def _weigh(self, steps):
        """Raise ValueError where a prompt may not fit the context of its model."""
        written = {}
        for step in steps:
            files = step.files_of(self.questions.asked, written)
            jobs = sum(files.values(), [])
            weigh(step.run, jobs, self.questions.images, self.plan.describe_tokens)
            for name in files:
                # Texts to come are empty here and counted by their limits.
                blank = {'filtered_resps': [''], 'key': ''}
                written[name] = {job.asked.doc_id: blank for job in files[name]}

    def _own_questions(self) -> list[Asked]:
        """Return the questions of every `processes`-th picture.

        Questions that share a picture stay together, so that it is described once. A question
        without a picture counts as one.
        """
        # Pictures are numbered as they first come, so that every process counts alike.
        order = {}
        for asked in self.questions.asked:
            order.setdefault(asked.pictures or asked.id, len(order))
        return [asked for asked in self.questions.asked
                if order[asked.pictures or asked.id] % self.processes == self.process]

    # --- generating ---

    def _generate(self, step: Step, files: Files) -> Written:
        """Generate the rows that are missing in the own part of each file, and return all."""
        stores = {name: Samples.open(self.out, name, self.process) for name in files}
        # Perception models that wrote the same text lead to one prompt: it is answered once, and
        # the reply becomes a row in each of their files.
        groups = {}
        for name, store in stores.items():
            lacking = set(store.missing(job.record['key'] for job in files[name]))
            for job in files[name]:
                if job.record['key'] in lacking:
                    groups.setdefault(job.content, []).append((store, job))
        try:
            if groups:
                self._decode(step, list(groups.values()), sum(map(len, files.values())))
        finally:
            # A killed engine leaves whole rows: the next run makes only what is missing.
            for store in stores.values():
                store.close()
        return {name: _joined(store, files[name]) for name, store in stores.items()}

    def _decode(self, step: Step, groups: Sequence[list[tuple[Samples, ReplyJob]]], total: int):
        """Generate each group of jobs of equal content once and write a row for each of them."""
        kind, _, _ = groups[0][0][1].manner.task.partition('-')
        name = f'{kind} {step.run.name}'
        done = total - sum(map(len, groups))
        self.report(name, done, total)
        engine = self.engine(step.run.folder, self.slots)
        requests = (self._request(jobs[0][1], engine.encoder) for jobs in groups)
        # Replies come in the order in which rows end; `first` is the place of the window.
        first = 0
        for window in windows(requests, ROWS):
            for index, reply in engine.stream(window, step.decoding):
                for store, job in groups[first + index]:
                    store.add({**job.record, **self._outcome(job, reply)})
                    done += 1
                self.report(name, done, total)
            first += len(window)
        self._keep_throughput(name, engine.stats.summary())

    def _request(self, job, encoder):
        manner = job.manner
        pngs = self.questions.images(job.asked) if manner.shown else ()
        try:
            prompt = prompt_of(encoder, job.text, pngs, manner.thinking)
        except ValueError as error:
            raise ValueError(f'question {job.asked.id!r}: {error}') from None
        return Request(prompt, limit=manner.limit, sample=job.sample, think=manner.think)

    def _outcome(self, job, reply):
        """Return the fields of a record that come from the reply."""
        task = job.manner.task
        verdict = {}
        if task.startswith('answer'):
            text, _ = answer_in(reply.text, job.manner.thinking, reply.spelled)
            # Models that see are not asked for 'Answer: X': their prompts are those of harnesses.
            pred, parsed, score = self.questions.judge(job.asked, text, task != 'answer-joint')
            verdict = {'pred': pred, 'scorer': self.questions.scorer_of(job.asked)}
            if score is not None:
                verdict['score'] = score
        else:
            text = self.prompts.information_in(reply.text) if task == 'information' \
                else reply.text.strip()
            parsed = bool(text)
        return {
            **verdict,
            'resps': [[reply.text]],
            'filtered_resps': [text],
            'parse_ok': parsed,
            'finish_reason': reply.finish,
            'truncated': reply.finish == 'length',
            'close': reply.close,
            'n_think': reply.thought,
            'n_answer': reply.answered,
        }

    def _keep_throughput(self, name, stats):
        """Write what this process measured in a step beside what it did in others before."""
        part = f'.p{self.process}' if self.process else ''
        path = self.out / f'throughput{part}.json'
        before = read_json(path) or {}
        write_json(path, before | {name: stats})
        written = (f'{stats["rows"]} rows, {stats["tokens"]} tokens in {stats["seconds"]:.1f} s '
                   f'({stats["tokens_per_second"]:.0f} tokens/s)')
        compiled = (f'{stats["compiles"]} programs compiled in {stats["compile_seconds"]:.1f} s of '
                    'that')
        idle = (f'slots {stats["slot_occupancy"]:.0%} busy; {stats["padding_waste"]:.0%} of what '
                'was read is padding')
        self.note(f'{name}: {written}; {compiled}; {idle}')

    # --- finishing ---

    def _finish(self, files: Files) -> Written:
        """Join the parts of each file, once the rows of other processes are there too."""
        written = {}
        for name, jobs in files.items():
            # Opened anew: the rows of all parts, not of this process alone.
            store = Samples.open(self.out, name)
            keys = [job.record['key'] for job in jobs]
            self._wait(store, keys)
            store.finalise(keys)
            written[name] = _joined(store, jobs)
        return written

    def _wait(self, store, keys):
        """Return when no row of `keys` is missing; RuntimeError where none comes any more."""
        lacking = store.missing(keys)
        since = time.monotonic()
        if lacking:
            self.note(f'waiting for {len(lacking)} rows of {store.name} by other processes')
        while lacking:
            if time.monotonic() - since > self.patience:
                raise RuntimeError(
                    f'{len(lacking)} of {len(keys)} rows of {store.name} are missing; start all '
                    f'{self.processes} processes, or the same command with fewer')
            time.sleep(min(1.0, self.patience / 4))
            store.reload()
            before = len(lacking)
            lacking = store.missing(keys)
            # Any new row shows that the others are alive, and patience begins anew.
            since = time.monotonic() if len(lacking) < before else since


def _joined(store, jobs):
    """Return {doc_id: record} of the first repeat, each checked to be what its job wants."""
    first = [job.record for job in jobs if not job.record.get('repeat')]
    return join([store.records[record['key']] for record in first], first)
