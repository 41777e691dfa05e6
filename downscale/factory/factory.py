"""The factory: statements, what to look at, descriptions, checks and training rows, step by step.

Every row is kept as it ends, under a hash of all that decides it (`results/samples.py`), so a
killed run goes on where it was and ends with the bytes of one that was not disturbed. What depends
on time (attempts, seconds) goes to `usage.jsonl` alone.
"""
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.data.images import decode, open_under
from downscale.evaluate.prompts import Prompts
from downscale.evaluate.run_settings import begin, sample_of
from downscale.factory import quality, training
from downscale.factory.source import Pictured, Skipped
from downscale.factory.steps import Steps
from downscale.factory.teachers import Ask, Failure, Teacher, TeacherReply
from downscale.results.samples import Samples, key_of, line_of
from downscale.runtime.files import lock, write_json
from downscale.values import hash_of

FEW = 50  # replies below which a share of failures says little
STEPS = ('statements', 'information', 'descriptions', 'judgements')
THOUGHT = '</think>'


@dataclass(frozen=True, kw_only=True)
class Factory:
    """Work to be done below `to`: pictures with questions below `root`, and who writes.

    `form` has the prompts of the training data. A step is given up when more than the share
    `most_failures` of its replies fail. `report` is called with (step, done, total), `note` with
    lines for a person.
    """
    to: Path
    items: tuple[Pictured, ...]
    skipped: tuple[Skipped, ...]
    root: Path
    teacher: Teacher
    steps: Steps
    form: Prompts
    judge: Teacher | None = None
    seed: int = 0
    most_failures: float = 0.1
    report: Callable = lambda name, done, total: None
    note: Callable = lambda line: None

    def settings(self) -> dict[str, Any]:
        """Return what must not change below one folder; pictures may come and go."""
        return {'teacher': self.teacher.settings, 'prompts': self.steps.hash,
                'training_prompts': self.form.hash, 'seed': self.seed,
                'judge': self.judge.settings if self.judge else None}

    def run(self) -> list[dict[str, Any]]:
        """Take every step for every picture, and return the rows of `quality.jsonl`.

        RuntimeError in one line where too many replies fail, ValueError where `to` was begun with
        other settings.
        """
        handle = lock(self.to)
        try:
            begin(self.to, self.settings())
            return self._run()
        finally:
            os.close(handle)

    def _run(self):
        steps = self.steps
        failed = {}
        # 1. From the questions alone, without the picture: statements, and what to look at.
        statements = self._step('statements', failed, [
            (item, steps.ask_statements(item.pairs)) for item in self.items])
        information = self._step('information', failed, [
            (item, steps.ask_information(item.pairs)) for item in self.items])
        # 2. A description of the picture that holds the statements. Nobody is paid for one from
        # statements that are spoilt, as it would be rejected in any case.
        sound = {}
        for item in self.items:
            row = statements.get(item.image)
            if row and not quality.spoilt(row) and (lines := quality.statements_of(row['text'])):
                sound[item] = lines
        descriptions = self._step('descriptions', failed, [
            (item, steps.ask_description(lines)) for item, lines in sound.items()], shown=True)
        # 3. What a judge says of the descriptions.
        judgements = {}
        if self.judge is not None:
            judgements = self._step('judgements', failed, [
                (item, steps.ask_judge(lines, descriptions[item.image]['text']))
                for item, lines in sound.items() if item.image in descriptions])
        # 4. The checks, and rows to train on of what passes them.
        rows = self._check({'statements': statements, 'information': information,
                            'descriptions': descriptions, 'judgements': judgements}, failed)
        write_json(self.to / 'failures.json', failed)
        write_json(self.to / 'skipped.json', [vars(record) for record in self.skipped])
        write_json(self.to / 'training.json',
                   training.rows(self, rows, information, descriptions))
        return rows

    # --- asking ---

    def _step(self, name, failed, asked, shown=False):
        """Return {image: row} of what a teacher writes to each (item, prompt) of `asked`.

        Only rows that are not on file yet are asked for; with `shown` the picture goes along. Why a
        row is missing goes into `failed` under the step and the image.
        """
        jobs = {}
        for item, prompt in asked:
            record = self._record(name, item, prompt, shown)
            jobs[record['key']] = item, prompt, record
        store = Samples.open(self.to, name)
        reasons = {}
        missing = store.missing(jobs)
        try:
            self._write(name, store, {key: jobs[key] for key in missing}, shown, reasons)
        finally:
            store.close()
        store.finalise(store.records)  # also of pictures that are not asked about this time
        failed |= {f'{name} {image}': reason for image, reason in reasons.items()}
        return {item.image: store.records[key] for key, (item, _, _) in jobs.items()
                if key in store.records}

    def _write(self, name, store, jobs, shown, reasons):
        """Ask for `jobs` {key: (item, prompt, record)}, and keep each row as its reply ends."""
        # Rows of earlier runs count: else a few asks that always fail would end every later run.
        kept = len(store.records)
        total = kept + len(jobs)
        with open(self.to / 'usage.jsonl', 'ab') as usage:
            usage.write(b'\n')  # behind what a kill may have torn
            began = time.monotonic()
            asks = self._asks(name, jobs, shown, reasons)
            for done, (ask, reply) in enumerate(self._writer(name).write(asks), kept + 1):
                item, _, record = jobs[ask.key]
                if isinstance(reply, Failure):
                    reasons[item.image] = reply.reason
                    self._give_up(name, reasons, max(done, FEW))
                else:
                    store.add({**record, **outcome(reply, name, self.steps)})
                usage.write(_usage(name, ask, reply, time.monotonic() - began))
                usage.flush()
                self.report(name, done, total)
            if jobs:
                self._give_up(name, reasons, total)

    def _give_up(self, name, reasons, done):
        """Raise RuntimeError when more of `done` replies failed than may."""
        if len(reasons) > self.most_failures * done:
            first = next(iter(reasons.values()))
            raise RuntimeError(
                f'{name}: {len(reasons)} replies failed (first: {first}), more than '
                f'--most-failures {self.most_failures:g} of {done}; what was written is kept: see '
                'to the teacher and run the same command again')

    def _asks(self, name, jobs, shown, reasons):
        """Yield what a teacher is asked; a picture that cannot be decoded goes into `reasons`."""
        limit = self._limit(name)
        for key, (item, prompt, record) in jobs.items():
            image = open_under(self.root, item.image) if shown else None
            try:
                if shown:
                    decode(image, item.image)
            except ValueError:
                reasons[item.image] = 'unreadable picture'
                continue
            yield Ask(key=key, prompt=prompt, image=image, limit=limit, seed=record['seed'])

    def _limit(self, name):
        steps = self.steps
        return {'statements': steps.statements_tokens, 'information': steps.information_tokens,
                'descriptions': steps.description_tokens, 'judgements': steps.judge_tokens}[name]

    def _writer(self, name):
        return self.judge if name == 'judgements' else self.teacher

    def _record(self, name, item, prompt, shown):
        """Return the row of an ask without its reply: all that decides it, and the key of that."""
        record = {'doc_id': item.image, 'ids': list(item.ids), 'step': name,
                  'picture': item.picture if shown else None,
                  'teacher': self._writer(name).settings, 'prompts': self.steps.hash}
        record |= {'prompt_hash': hash_of(prompt), 'prompt': prompt, 'limit': self._limit(name),
                   'seed': sample_of(self.seed, name, item.image, prompt)}
        return record | {'key': key_of(record)}

    # --- checking ---

    def _check(self, texts, failed):
        """Return the rows of `quality.jsonl`, one for each picture, and finish the file."""
        rows = []
        for item in self.items:
            by_step = {step: rows_of.get(item.image) for step, rows_of in texts.items()}
            missing = {step: failed[f'{step} {item.image}'] for step in STEPS
                       if f'{step} {item.image}' in failed}
            checks = quality.check(item.pairs, by_step, missing, self.judge is not None)
            record = {'doc_id': item.image, 'ids': list(item.ids), 'checks': checks,
                      'accepted': not any(checks.values()), 'rules': quality.VERSION,
                      'rows': {step: row['key'] for step, row in by_step.items() if row}}
            rows.append(record | {'key': key_of([record['rows'], item.image, item.pairs, checks])})
        store = Samples.open(self.to, 'quality')
        for record in rows:
            if record['key'] not in store.records:
                store.add(record)
        return store.finalise([record['key'] for record in rows])


def _usage(name, ask, reply, seconds):
    """Return a line of the log of calls: what came of one after how many attempts, and when."""
    line = {'step': name, 'key': ask.key, 'attempts': reply.attempts,
            'seconds': round(seconds, 3), 'unix': round(time.time()),
            'failure': None, 'tokens_in': None, 'tokens_out': None}
    if isinstance(reply, Failure):
        return line_of(line | {'failure': reply.reason})
    return line_of(line | {'tokens_in': reply.tokens_in, 'tokens_out': reply.tokens_out})


def outcome(reply: TeacherReply, name: str, steps: Steps) -> dict[str, Any]:
    """Return the fields of a row of step `name` that come from the reply.

    A thought and a mark before the text are left out; what to look at becomes one line.
    """
    text = reply.text.rpartition(THOUGHT)[2].strip()
    mark = {'information': steps.information_mark, 'descriptions': steps.description_mark}.get(name)
    if mark and text.casefold().startswith(mark.casefold()):
        text = text[len(mark):].strip()
    if name == 'information':
        text = ' '.join(text.split())
    return {'text': text, 'finish': reply.finish, 'tokens_in': reply.tokens_in,
            'tokens_out': reply.tokens_out}
