"""Extract+Think: perception models write, text-only reasoners answer; the whole grid in one go.

Every perception model describes each picture once and all reasoners read the same texts. Each
process works on its own pictures on its own devices, and writes its own part of every file;
process 0 joins the parts. See `samples.py` for what makes the result independent of all that.
"""
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from downscale.evaluate import cells
from downscale.evaluate.answers import answer_in, prompt_of
from downscale.evaluate.asked import Asked, Questions
from downscale.evaluate.plan import ChainPlan
from downscale.evaluate.prompts import Prompts
from downscale.evaluate.room import Demand, check_room, check_thinks, prompt_length
from downscale.evaluate.run_settings import begin, sample_of
from downscale.evaluate.runs import ChainModel, open_encoder, open_engine
from downscale.generate.engine import Decoding, Request
from downscale.results.samples import Samples, join, key_of
from downscale.runtime.files import read_json, write_json
from downscale.values import hash_of

WINDOW = 2 ** 30  # bytes of image tiles that are held at once; a large picture has 4 MB of them
ROWS = 4096
PATIENCE = 3600  # seconds without a new row after which process 0 gives the others up


@dataclass(frozen=True, kw_only=True)
class ReplyJob:
    """One row to generate: its record without the reply, and what the engine needs."""
    record: dict
    asked: Asked
    text: str
    shown: bool
    thinking: bool | None
    think: int | None
    limit: int
    sample: int

    @property
    def content(self):
        """What decides the reply within one model: equal content is generated once."""
        return (self.text, self.asked.pictures if self.shown else (), self.think, self.sample)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A grid of perception models and reasoners over questions, to be written below `out`.

    `informer` writes what to look at where it is given; `sighted` models answer with the picture
    themselves, their question followed by `tail`. `process` of `processes` takes every
    `processes`-th picture. `engine` opens a run folder (folder, slots); `report` is called with
    (name, done, total), `note` with lines for a person.
    """
    out: Path
    plan: ChainPlan
    prompts: Prompts
    questions: Questions
    perceptions: tuple[ChainModel, ...]
    reasoners: tuple[ChainModel, ...]
    informer: ChainModel | None = None
    sighted: tuple[ChainModel, ...] = ()
    tail: str = ''
    process: int = 0
    processes: int = 1
    slots: int = 16
    engine: Callable = open_engine
    report: Callable = lambda name, done, total: None
    note: Callable = lambda line: None
    patience: float = PATIENCE

    # --- the stages ---

    def run(self):
        """Return all of it: own rows, then, on process 0, files and summary. Returns the summary's
        cells.

        ValueError naming what differs when `out` was begun with other settings, where an extraction
        has nothing to look at, and where a context cannot hold what may be asked: before any row is
        written. Other processes return None.
        """
        if self.plan.describe == 'extract' and self.informer is None and self.perceptions:
            lacking = [asked for asked in self.questions.asked if not asked.information]
            if lacking:
                raise ValueError(
                    f'{len(lacking)} of {len(self.questions.asked)} questions do not say what to '
                    f'look at (first {lacking[0].id!r}); give --information or --informer, or '
                    '--describe caption')
        self._all(self.questions.asked, self._weigh)
        begin(self.out, self.settings(), alone=self.processes == 1)
        self._all(self._mine(), self._generate)
        if self.process:
            return None
        told = self._all(self.questions.asked, self._finish)
        found = cells.summary(self, told)
        write_json(self.out / 'summary.json', {'settings': hash_of(self.settings()),
                                               'scorer': self.questions.scorer, 'cells': found})
        return found

    def _all(self, every, handle):
        """Return {perception: {doc_id: record}} of the descriptions, after `handle` saw to the jobs
        of every model: (run, [(file, jobs)], decoding) -> [{doc_id: record}].
        """
        looked = self._inform(every, handle)
        told = {run.name: self._describe(run, every, looked, handle) for run in self.perceptions}
        for run in self.reasoners:
            self._answer(run, every, told, handle)
        for run in self.sighted:
            self._see(run, every, handle)
        return told

    def settings(self):
        """Return everything that decides the files, as JSON; slots and processes do not."""
        def prints(runs):
            return {run.name: run.fingerprint for run in runs}

        joint = {'sighted': prints(self.sighted), 'tail': repr(self.tail)} if self.sighted else {}
        return {**joint, 'plan': json.loads(json.dumps(dataclasses.asdict(self.plan))),
                'prompts': self.prompts.hash,
                'data': {'hash': self.questions.hash, 'questions': len(self.questions.asked),
                         'scorer': self.questions.scorer},
                'informer': prints([self.informer] if self.informer else []),
                'perception': prints(self.perceptions), 'reasoner': prints(self.reasoners)}

    def _mine(self):
        """Return questions of every `processes`-th picture: those that share one stay together, so
        that it is described once. A question without a picture counts as one.
        """
        order = {}
        for asked in self.questions.asked:
            order.setdefault(asked.pictures or asked.id, len(order))
        return [asked for asked in self.questions.asked
                if order[asked.pictures or asked.id] % self.processes == self.process]

    def _inform(self, every, handle):
        """Return {doc_id: what to look at}, from the data or from the informer."""
        if self.plan.describe == 'caption':
            return dict.fromkeys((asked.doc_id for asked in every), '')
        if self.informer is None:
            return {asked.doc_id: asked.information for asked in every}
        jobs = []
        for asked in every:
            text = self.prompts.inform(asked.text)
            jobs.append(self._job(self.informer, 'information', asked, text, sample_of(text),
                                  self._greedy(), self.plan.describe_tokens, thinking=False))
        records = handle(self.informer, [(f'information-{self.informer.name}', jobs)],
                         self._greedy())
        return {doc_id: record['filtered_resps'][0] for doc_id, record in records[0].items()}

    def _describe(self, run, every, looked, handle):
        """Return {doc_id: record} of what one perception model writes."""
        kind = self.plan.describe
        jobs = []
        for asked in every:
            text = self.prompts.describe(kind, looked[asked.doc_id])
            jobs.append(self._job(run, f'describe-{kind}', asked, text,
                                  sample_of(text, *asked.pictures), self._greedy(),
                                  self.plan.describe_tokens, shown=True))
        found, = handle(run, [(f'describe-{run.name}', jobs)], self._greedy())
        return found

    def _answer(self, run, every, told, handle):
        """What one reasoner makes of every perception model's texts, in every mode: one call, so
        that no slot waits for a cell to end."""
        decoding = self.plan.decoding(run.reflexive)
        stages = []
        for perception in self.perceptions:
            for mode in self.plan.reason:
                jobs = []
                for asked in every:
                    description = told[perception.name][asked.doc_id]
                    text = self.prompts.reason(mode, description['filtered_resps'][0], asked.text)
                    for repeat in range(self.plan.repeats):
                        jobs.append(self._job(
                            run, f'answer-{mode}', asked, text, sample_of(asked.id, str(repeat)),
                            decoding, self.plan.answer_tokens, thinking=mode == 'think',
                            think=self.plan.think_tokens if mode == 'think' else None,
                            repeat=repeat, perception=perception.name,
                            description=description['key']))
                stages.append((cells.file_name(perception, run, mode), jobs))
        handle(run, stages, decoding)

    def _see(self, run, every, handle):
        """What a model that sees the picture answers by itself."""
        jobs = [self._job(run, 'answer-joint', asked, asked.text + self.tail,
                          sample_of(asked.id, 'joint'), self._greedy(), self.plan.answer_tokens,
                          shown=True) for asked in every]
        handle(run, [(cells.joint_name(run), jobs)], self._greedy())

    def _greedy(self):
        return Decoding(seed=self.plan.seed)

    def _job(self, run, task, asked, text, sample, decoding, limit, thinking=None, think=None,
             shown=False, **more):
        """Return the job of one row; its key covers all that decides the reply."""
        generation = {**json.loads(json.dumps(dataclasses.asdict(decoding))), 'limit': limit,
                      'think': think, 'thinking': thinking}
        generation['banned_thinking'] = hash_of(generation['banned_thinking'])
        record = {
            'doc_id': asked.doc_id, 'target': asked.answer or '',
            'doc': {'id': asked.id, 'family': asked.family, 'cluster': asked.cluster,
                    **benchmark_fields(asked)},
            'input': text, 'arguments': [text, generation], 'task': task, 'model': run.name,
            'checkpoint': run.fingerprint, 'prompts': self.prompts.hash,
            'prompt_hash': hash_of(text), **more}
        record['key'] = key_of({
            'doc': [asked.doc_id, asked.id], 'task': task, 'text': text, 'sample': sample,
            'pictures': asked.pictures if shown else [], 'checkpoint': run.fingerprint,
            'prompts': self.prompts.hash, 'generation': generation})
        return ReplyJob(
            record=record,
            asked=asked,
            text=text,
            shown=shown,
            thinking=thinking,
            think=think,
            limit=limit,
            sample=sample,
        )

    # --- weighing, generating and finishing ---

    def _weigh(self, run, stages, decoding):
        """Return every job of several files fits the context of its model; texts to come are
        empty.
        """
        encoder = open_encoder(run.folder)
        demands = {}
        for job in (job for _, jobs in stages for job in jobs):
            if job.think is not None:
                check_thinks(run.name, encoder)
            asked = dataclasses.replace(job, sample=0).content  # repeats are as long
            if encoder.context and asked not in demands:
                pngs = self.questions.images(job.asked) if job.shown else ()
                demands[asked] = Demand(
                    id=job.asked.id, parts=self._parts(job),
                    prompt=prompt_length(encoder, job.text, pngs, job.thinking))
        if demands:
            check_room(run.name, encoder, list(demands.values()))
        return [{job.asked.doc_id: {'filtered_resps': [''], 'key': ''} for job in jobs}
                for _, jobs in stages]

    def _parts(self, job):
        """Return what comes to the prompt of a job: texts of other models, thought and reply."""
        task = job.record['task']
        longest = self.plan.describe_tokens
        parts = []
        if 'description' in job.record:
            parts.append(('description', 'describe', longest))
        if task == 'describe-extract' and self.informer:
            parts.append(('information', 'describe', longest))
        if job.think is not None:
            parts.append(('thought', 'think', job.think + 2))  # its marks
        parts.append(('answer', 'answer', job.limit) if task.startswith('answer')
                     else ('reply', 'describe', job.limit))
        return tuple(parts)

    def _generate(self, run, stages, decoding):
        """Return the own rows of several files are there; only missing ones are generated."""
        stores = [Samples.open(self.out, name, self.process) for name, _ in stages]
        todo = {}
        total = sum(len(jobs) for _, jobs in stages)
        for store, (_, jobs) in zip(stores, stages):
            lacking = set(store.missing(job.record['key'] for job in jobs))
            for job in jobs:
                if job.record['key'] in lacking:
                    todo.setdefault(job.content, []).append((store, job))
        try:
            if todo:
                self._decode(run, list(todo.values()), decoding, total)
        finally:
            for store in stores:
                store.close()
        return [self._joined(store, jobs) for store, (_, jobs) in zip(stores, stages)]

    def _decode(self, run, groups, decoding, total):
        """Generate each group of jobs of equal content once and write a row for each of them."""
        task, _, _ = groups[0][0][1].record['task'].partition('-')
        name = f'{task} {run.name}'
        done = total - sum(map(len, groups))
        self.report(name, done, total)
        engine = self.engine(run.folder, self.slots)
        for window in self._windows(groups, engine.encoder):
            requests = [request for request, _ in window]
            for index, reply in engine.stream(requests, decoding):
                for store, job in window[index][1]:
                    store.add({**job.record, **self._outcome(job, reply)})
                    done += 1
                self.report(name, done, total)
        self._keep_throughput(name, engine.stats.summary())

    def _windows(self, groups, encoder):
        """Yield lists of (request, its jobs) whose pictures fit in memory together."""
        window = []
        held = 0
        for group in groups:
            job = group[0][1]
            pngs = self.questions.images(job.asked) if job.shown else ()
            try:
                prompt = prompt_of(encoder, job.text, pngs, job.thinking)
            except ValueError as error:
                raise ValueError(f'question {job.asked.id!r}: {error}') from None
            size = 0 if prompt.tiles is None else prompt.tiles.nbytes
            if window and (held + size > WINDOW or len(window) >= ROWS):
                yield window
                window = []
                held = 0
            window.append(
                (Request(prompt, limit=job.limit, sample=job.sample, think=job.think), group)
            )
            held += size
        yield window

    def _outcome(self, job, reply):
        """Return the fields of a record that come from the reply."""
        task = job.record['task']
        if task.startswith('answer'):
            text, _ = answer_in(reply.text, job.thinking, reply.spelled)
            pred, parsed, score = self.questions.judge(job.asked, text, task != 'answer-joint')
            found = {'pred': pred, 'scorer': self.questions.scorer_of(job.asked)}
            found |= {} if score is None else {'score': score}
        else:
            text = self.prompts.information_in(reply.text) if task == 'information' \
                else reply.text.strip()
            parsed = bool(text)
            found = {}
        return {**found, 'resps': [[reply.text]], 'filtered_resps': [text], 'parse_ok': parsed,
                'finish_reason': reply.finish, 'truncated': reply.finish == 'length',
                'close': reply.close, 'n_think': reply.thought, 'n_answer': reply.answered}

    def _joined(self, store, jobs):
        """Return {doc_id: record} of the first repeat, each checked to be what its job wants."""
        first = [job.record for job in jobs if not job.record.get('repeat')]
        return join([store.records[record['key']] for record in first], first)

    def _finish(self, run, stages, decoding):
        """Return every file has all rows and is one file; waits for the rows of other processes."""
        found = []
        for name, jobs in stages:
            store = Samples.open(self.out, name)
            keys = [job.record['key'] for job in jobs]
            self._wait(store, keys)
            store.finalise(keys)
            found.append(self._joined(store, jobs))
        return found

    def _wait(self, store, keys):
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
            since = time.monotonic() if len(lacking) < before else since

    def _keep_throughput(self, name, stats):
        """What this process measured in a step stands beside what it did in others before."""
        path = self.out / ('throughput.json' if not self.process else
                           f'throughput.p{self.process}.json')
        before = read_json(path) or {}
        write_json(path, before | {name: stats})
        self.note(f'{name}: {stats["rows"]} rows, {stats["tokens"]} tokens in '
                  f'{stats["seconds"]:.1f} s ({stats["tokens_per_second"]:.0f} tokens/s); '
                  f'{stats["compiles"]} programs compiled in {stats["compile_seconds"]:.1f} s of '
                  f'that; slots {stats["slot_occupancy"]:.0%} busy; '
                  f'{stats["padding_waste"]:.0%} of what was read is padding')


def benchmark_fields(asked):
    """Return what the named scorers need beside the reply, in the form that `rescore` reads."""
    if asked.target is None:
        return {'strata': list(asked.strata)} if asked.strata else {}
    size = {'size': list(asked.target.size)} if asked.target.size else {}
    return {'answers': list(asked.target.answers), 'choices': list(map(list, asked.target.choices)),
            'share': asked.target.share, 'free': asked.target.free, 'strata': list(asked.strata),
            **size}
