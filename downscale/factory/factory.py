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

from downscale.data.images import decode, open_under
from downscale.evaluate.run_settings import begin, sample_of
from downscale.factory import quality, training
from downscale.factory.source import Pictured, Skipped
from downscale.factory.steps import Steps
from downscale.factory.teachers import Ask, Failure
from downscale.results.samples import Samples, key_of, line_of
from downscale.runtime.files import lock, write_json
from downscale.values import hash_of

FEW = 50  # replies before which a share of failures says little
STEPS = ('statements', 'information', 'descriptions', 'judgements')
THOUGHT = '</think>'


@dataclass(frozen=True, kw_only=True)
class Factory:
    """Work to be done below `to`: pictures with questions below `root`, and who writes.

    `judge` is a teacher or None. With more than `most_failures` (a share) of the replies failing a
    step is given up. `report` is called with (step, done, total), `note` with lines for a person.
    """
    to: Path
    items: tuple[Pictured, ...]
    skipped: tuple[Skipped, ...]
    root: Path
    teacher: object
    steps: Steps
    form: object
    judge: object = None
    seed: int = 0
    most_failures: float = 0.1
    report: Callable = lambda name, done, total: None
    note: Callable = lambda line: None

    def settings(self):
        """Return what must not change below one folder; pictures may come and go."""
        return {'teacher': self.teacher.settings, 'prompts': self.steps.hash,
                'training_prompts': self.form.hash, 'seed': self.seed,
                'judge': self.judge.settings if self.judge else None}

    def run(self):
        """Return all steps; returns the rows of `quality.jsonl`. RuntimeError in one line where too
        many replies fail, ValueError where `to` was begun otherwise.
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
        statements = self._step('statements', failed, [
            (item, steps.ask_statements(item.pairs)) for item in self.items])
        looked = self._step('information', failed, [
            (item, steps.ask_information(item.pairs)) for item in self.items])
        # What the statements spoil a description cannot mend: nobody is paid for it.
        sound = {item: lines for item in self.items if (row := statements.get(item.image))
                 and not quality.spoilt(row) and (lines := quality.statements_of(row['text']))}
        told = self._step('descriptions', failed, [
            (item, steps.ask_description(lines)) for item, lines in sound.items()], shown=True)
        judged = {} if self.judge is None else self._step('judgements', failed, [
            (item, steps.ask_judge(lines, told[item.image]['text']))
            for item, lines in sound.items() if item.image in told])
        rows = self._check({'statements': statements, 'information': looked, 'descriptions': told,
                            'judgements': judged}, failed)
        write_json(self.to / 'failures.json', failed)
        write_json(self.to / 'skipped.json', [vars(one) for one in self.skipped])
        write_json(self.to / 'training.json', training.rows(self, rows, looked, told))
        return rows

    # --- asking ---

    def _step(self, name, failed, asked, shown=False):
        """Return {image: row} of what a teacher writes to (item, prompt); only missing rows are
        asked for.

        Why a row is missing goes into `failed` under the step and the image.
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
        teacher = self.judge if name == 'judgements' else self.teacher
        kept = len(store.records)  # by which few failures that stay do not end each later run
        total = kept + len(jobs)
        with open(self.to / 'usage.jsonl', 'ab') as usage:
            usage.write(b'\n')  # behind what a kill may have torn
            began = time.monotonic()
            asks = self._asks(name, jobs, shown, reasons)
            for done, (ask, reply) in enumerate(teacher.write(asks), kept + 1):
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
        """RuntimeError when more of `done` replies failed than may."""
        if len(reasons) > self.most_failures * done:
            first = next(iter(reasons.values()))
            raise RuntimeError(
                f'{name}: {len(reasons)} replies failed (first: {first}), more than '
                f'--most-failures {self.most_failures:g} of {done}; what was written is kept: see '
                'to the teacher and run the same command again')

    def _asks(self, name, jobs, shown, reasons):
        """Yield what a teacher is asked; a picture that its header belied goes into `reasons`
        instead.
        """
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

    def _record(self, name, item, prompt, shown):
        """Return the row of an ask without its reply: where it comes from, and the key of all
        that.
        """
        teacher = self.judge if name == 'judgements' else self.teacher
        record = {'doc_id': item.image, 'ids': list(item.ids), 'step': name,
                  'picture': item.picture if shown else None, 'teacher': teacher.settings,
                  'prompts': self.steps.hash, 'prompt_hash': hash_of(prompt), 'prompt': prompt,
                  'limit': self._limit(name),
                  'seed': sample_of(self.seed, name, item.image, prompt)}
        record['key'] = key_of(record)
        return record

    # --- checking ---

    def _check(self, texts, failed):
        """Return the rows of `quality.jsonl`, one a picture, finished."""
        rows = []
        for item in self.items:
            found = {step: rows_of.get(item.image) for step, rows_of in texts.items()}
            missing = {step: failed[f'{step} {item.image}'] for step in STEPS
                       if f'{step} {item.image}' in failed}
            checks = quality.check(item.pairs, found, missing, self.judge is not None)
            record = {'doc_id': item.image, 'ids': list(item.ids), 'checks': checks,
                      'accepted': not any(checks.values()), 'rules': quality.VERSION,
                      'rows': {step: row['key'] for step, row in found.items() if row}}
            rows.append(record | {'key': key_of([record['rows'], item.image, item.pairs, checks])})
        store = Samples.open(self.to, 'quality')
        for record in rows:
            if record['key'] not in store.records:
                store.add(record)
        return store.finalise([record['key'] for record in rows])


def _usage(name, ask, reply, seconds):
    """Return a line of the log of calls: what came of one after how many attempts, and when."""
    failed = isinstance(reply, Failure)
    return line_of({'step': name, 'key': ask.key, 'attempts': reply.attempts,
                    'seconds': round(seconds, 3), 'unix': round(time.time()),
                    'failure': reply.reason if failed else None,
                    'tokens_in': None if failed else reply.tokens_in,
                    'tokens_out': None if failed else reply.tokens_out})


def outcome(reply, name, steps):
    """Return the fields of a row that come from the reply; a thought and a mark before the text are
    left out, and what to look at is one line.
    """
    text = reply.text.rpartition(THOUGHT)[2].strip()
    mark = {'information': steps.information_mark, 'descriptions': steps.description_mark}.get(name)
    if mark and text.casefold().startswith(mark.casefold()):
        text = text[len(mark):].strip()
    if name == 'information':
        text = ' '.join(text.split())
    return {'text': text, 'finish': reply.finish, 'tokens_in': reply.tokens_in,
            'tokens_out': reply.tokens_out}
