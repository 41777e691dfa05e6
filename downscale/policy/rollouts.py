"""Rollouts inside the train loop: the model writes, reasoners answer, and a batch is what they say.

A stream like any other, but that it is given the parameters before each batch (`take`). What is
written follows from the parameters, the position in the questions and the seed alone, so that a run
that goes on from a checkpoint writes the same again. Each process writes for its own rows.
"""
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from downscale.config import Experiment
from downscale.data.pipeline import packed_batch
from downscale.data.scenes.clutter_telling import within
from downscale.evaluate import decoupled
from downscale.evaluate.answers import wording_of
from downscale.evaluate.runs import own_mesh
from downscale.generate.engine import Engine
from downscale.generate.requests import Decoding, Request
from downscale.generate.sampling import Sampling
from downscale.policy import reward, slopes
from downscale.policy.descriptions import Description, arrays_of, prompt_for, questions_of
from downscale.runtime import processes
from downscale.runtime.files import PathLike, write_json
from downscale.runtime.peers import say
from downscale.stage_config import Stage
from downscale.stages.inputs import encoder_of
from downscale.train import loop
from downscale.train.run import StageRun
from downscale.train.step import compiled_nats

SHOWN = 16  # descriptions of a writing that are kept for people to read
GAP = 1e-4  # nats by which sampling and training may differ, in float32
COLLAPSED = 0.1  # share of the first entropy below which a model repeats itself
LONGER = 2.0  # times the first length


class Rollouts:
    """The endless stream of batches that a policy writes; see `train/loop.train`.

    Leaves are those of a packed batch with one row a description, and `slopes` [B, L] and
    `temperature` [B]. `reasoners` answer from what is written.
    """

    def __init__(self, study: PathLike, experiment: Experiment, stage: Stage, run: StageRun,
                 reasoners: Sequence[reward.Reasoner], folder: Path, seed: int) -> None:
        self.stage = stage
        self.policy = stage.policy
        self.folder = folder
        self.seed = seed
        self.grid = run.mesh
        self.reasoners = reasoners
        self.model = run.model
        self.encoder = encoder_of(study, experiment, stage.name)
        self.wording = wording_of(experiment, bool(stage.policy.questions))
        self.share = loop.share(run.mesh, run.model.rules)
        self.questions = questions_of(study, experiment, stage, seed)
        self.groups = self._groups()
        self.nats = compiled_nats(run.model, run.mesh, tuple(sorted(run.attention.items())))
        self.engine = None
        self.start = None
        self.params = None
        self.position = 0
        self.first = {}
        self.pending = deque()
        self.metrics = {}
        self.seconds = dict.fromkeys(('update', 'writing', 'reward', 'scoring'), 0.0)
        self.alarmed = set()

    def _groups(self):
        """Return how many groups this process writes for a batch; ValueError where one is cut."""
        G = self.policy.group
        rows = self.share.rows(self.stage.batch)
        whole = {int(row) // G for row in rows}
        if len(whole) * G != len(rows):
            raise ValueError(f'stage {self.stage.name}: groups of {G} rows lie across processes, '
                             f'of which this one holds {len(rows)} of {self.stage.batch}; raise '
                             'batch or lower policy.group')
        if self.policy.scrambled and len(whole) == 1:
            raise ValueError(f'stage {self.stage.name}: policy.scrambled pays a group what another '
                             f'of this process earned, which writes one group of {G} rows a batch; '
                             'raise batch or lower policy.group')
        return len(whole)

    # --- what the loop asks ---------------------------------------------------------------------

    def begin(self, start: Any) -> None:
        """Keep the parameters that the stage began with, to measure the distance from them."""
        self.start = start

    def take(self, params: Any) -> None:
        """Write and score with `params` from now on, which are given away by the next step."""
        self.params = params

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        begun = time.perf_counter()
        jax.block_until_ready(self.params)  # of the step before: no writing waits for it below
        self.seconds['update'] += time.perf_counter() - begun
        if not self.pending:
            self._write()
        rows, arrays, then_BL, costs_BL = self.pending.popleft()
        own_BL = arrays['own']
        batch = {name: array for name, array in arrays.items() if name != 'own'}
        begun = time.perf_counter()
        now_BL, entropy_BL = self._scored(self.params, batch)
        if then_BL is None:  # nothing was learnt since: these parameters wrote it
            then_BL = now_BL
        start_BL = self._scored(self.start, batch)[0] if self.start is not None else None
        self.seconds['scoring'] += time.perf_counter() - begun
        written = slopes.Written(
            own_BL=own_BL, now_BL=now_BL, then_BL=then_BL, start_BL=start_BL,
            reward_B=np.array([row.earns.reward for row in rows]),
            solved_B=np.array([row.earns.solved for row in rows]))
        gap = np.abs(then_BL + costs_BL)[own_BL].max()
        about = float(entropy_BL[own_BL].mean()), float(gap)
        if self.policy.method == 'distil':  # the loss is the step's own, of every token alike
            self._note(rows, written, None, *about)
            return batch
        learnt = slopes.slopes_of(self.policy, self.stage.loss_norm, written)
        self._note(rows, written, learnt, *about)
        return batch | {'slopes': learnt.slopes_BL.astype(np.float32),
                        'weights': learnt.weights_BL.astype(np.float32)}

    def get_state(self) -> dict[str, Any]:
        """Return the place in the questions, and what alarms compare with."""
        assert not self.pending, 'saved between two writings'  # `Stage` and `stop` see to that
        return {'position': self.position, 'first': self.first}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.position = state['position']
        self.first = state['first']

    def stop(self, step: int) -> bool:
        """Return whether to end behind a step: between two writings alone, as nothing else is kept.
        """
        return step % self.policy.updates == 0 and processes.stop(step)

    def shares(self, seconds: float) -> dict[str, float]:
        """Return which shares of some seconds went into updates, writing, rewards and scoring."""
        return {f'{name}_share': spent / seconds for name, spent in self.seconds.items()}

    def close(self) -> None:
        """Let the models go."""
        self.engine = self.start = self.params = None
        self.reasoners = ()

    # --- writing --------------------------------------------------------------------------------

    def _write(self):
        """Write the rows of the next `updates` batches, and have them answered."""
        policy = self.policy
        wanted = policy.updates * self.groups
        # 1. The questions of this process, and a prompt for each.
        each = self.stage.batch // policy.group * policy.updates * policy.tries
        begin = self.position + jax.process_index() * wanted * policy.tries
        numbers = range(begin, begin + wanted * policy.tries)
        items = [self.questions[number] for number in numbers]
        prompts = [prompt_for(self.stage, self.encoder, self.wording, item) for item in items]
        items, prompts = _each(items, policy.group), _each(prompts, policy.group)
        # 2. A group of descriptions for each question, every one with a randomness of its own.
        begun = time.perf_counter()
        requests = [Request(prompt, limit=policy.write, sample=sample % 2**32)
                    for sample, prompt in enumerate(prompts, begin * policy.group)]
        replies = self._engine().write(requests, Decoding(
            Sampling(policy.temperature), seed=self.seed % 2**32, costs=True))
        self.seconds['writing'] += time.perf_counter() - begun
        # 3. What they are worth.
        rows = self._judged(items, prompts, replies)
        # 4. Groups that disagree first: of the others nothing is learnt.
        # A stable order, so that equal groups stay as they came.
        differs = slopes.mixed(np.array([row.reward for row in rows]), policy.group)
        order = np.argsort(~differs, kind='stable')[:wanted]
        if policy.scrambled:
            # Behind that choice: a control has the questions of what it is a control for.
            rows = _scrambled(rows, np.split(order, policy.updates), policy.group)
        # All batches at once: the second is learnt by other parameters than those that wrote it.
        self.pending.extend(self._batches(rows, order))
        self._keep(rows)
        self.position += each

    def _engine(self):
        """Return the engine that writes, with the parameters of now."""
        params = jax.tree.map(_whole, self.params)
        # One engine for the whole stage: its programs are compiled once.
        if self.engine is None:
            rows = self.policy.updates * self.groups * self.policy.tries * self.policy.group
            self.engine = Engine(self.model, params, self.encoder,
                                 min(rows, self.stage.batch), own_mesh())
        else:
            self.engine.take(params)
        return self.engine

    def _judged(self, items, prompts, replies):
        """Return the `Description` of each reply."""
        begun = time.perf_counter()
        texts = [within(reply.text, self.policy.budget or None) for reply in replies]
        # A reader's answer is asked for, and handed over to nobody.
        if self.stage.kind.reads:
            solved_B = reward.own_answers(items, replies)
            leaks_B = np.zeros(len(items), bool)
        else:
            solved_B = np.zeros(len(items))
            for reasoner in self.reasoners:
                solved_B += reasoner.solved(items, texts, self.policy) / len(self.reasoners)
            leaks_B = np.array([decoupled.hands_over(item, text)
                                for item, text in zip(items, texts)])
        tokens_B = np.array([len(reply.ids) for reply in replies])
        worth_B = reward.worth(self.policy, solved_B, leaks_B, tokens_B)
        self.seconds['reward'] += time.perf_counter() - begun
        names = ('item', 'prompt', 'reply', 'text', 'solved', 'leaks', 'reward')
        columns = (items, prompts, replies, texts, solved_B.tolist(), leaks_B.tolist(),
                   worth_B.tolist())
        return [Description(**dict(zip(names, row))) for row in zip(*columns, strict=True)]

    def _batches(self, rows, groups):
        """Yield (rows, arrays, log-probabilities then, the engine's nats) of the next batches."""
        G = self.policy.group
        places = np.arange(len(rows)).reshape(-1, G)
        for part in np.split(groups, self.policy.updates):
            chosen = [rows[place] for place in places[part].ravel()]
            arrays = packed_batch([[arrays_of(row)] for row in chosen], self.stage.shape,
                                  self.encoder.layout)
            arrays['temperature'] = np.full(len(chosen), self.policy.temperature, np.float32)
            arrays['own'] = arrays['weights'] > 0
            costs_BL = np.zeros(arrays['own'].shape)
            for place, row in enumerate(chosen):
                costs_BL[place, arrays['own'][place]] = row.reply.costs
            then_BL = None
            # With one update the score of the step itself is that of the writing.
            if self.policy.updates > 1:
                then_BL = self._scored(self.params, {
                    name: array for name, array in arrays.items() if name != 'own'})[0]
            yield chosen, arrays, then_BL, costs_BL

    def _scored(self, params, batch):
        """Return (log-probabilities, entropies) [B, L] of the rows of this process."""
        placed = loop.on_devices(batch, self.share, self.grid, self.model.rules)
        nats_BL, entropy_BL = map(_whole, self.nats(params, placed))
        rows = self.share.rows(self.stage.batch)
        return -nats_BL[rows].astype(np.float64), entropy_BL[rows]

    # --- what people see ------------------------------------------------------------------------

    def _note(self, rows, written, learnt, entropy, gap):
        """Set the metrics of a batch, and say what is wrong with it."""
        tokens_B = np.array([len(row.reply.ids) for row in rows])
        # 'loss' and 'accuracy' take the place of the step's own, but where a teacher has a say.
        mixed_Q = slopes.mixed(written.reward_B, self.policy.group)
        means = {'written_tokens': tokens_B, 'leaks': [row.leaks for row in rows],
                 'truncated': [row.reply.truncated for row in rows]}
        if learnt is not None:
            means |= {'loss': learnt.loss, 'accuracy': [row.solved for row in rows],
                      'clipped': learnt.clipped,
                      'reward': written.reward_B, 'mixed_groups': mixed_Q}
        if self.start is not None:
            means['kl'] = slopes.distance(written)
        numbers = {name: float(np.mean(x)) for name, x in means.items()}
        numbers |= {'entropy': entropy, 'sampling_gap': gap}
        if jax.process_count() > 1:
            every = process_allgather(np.array(list(numbers.values())))
            # All have as many rows; of the gap the largest counts.
            numbers = dict(zip(numbers, every.mean(0).tolist())) | {
                'sampling_gap': float(every[:, -1].max())}
        self.metrics = numbers
        self.first = self.first or {name: numbers[name] for name in ('entropy', 'written_tokens')}
        self._alarm('entropy', entropy < COLLAPSED * self.first['entropy'],
                    'it writes the same again and again; raise kl or the temperature')
        self._alarm('written_tokens', tokens_B.mean() > LONGER * self.first['written_tokens'],
                    'descriptions grow; raise length_price')
        # bfloat16 rounds at every product, and differently in a step of one token.
        self._alarm('sampling_gap', gap > GAP and self.model.dtype == 'float32',
                    'sampling and training differ by more than rounding')

    def _alarm(self, name, wrong, why):
        """Say once that a figure of the batch is `wrong`."""
        if wrong and name not in self.alarmed and processes.first():
            self.alarmed.add(name)
            say(f'{self.stage.name}: {name} is {self.metrics[name]:.3g}, at first '
                f'{self.first.get(name, 0):.3g}: {why}')

    def _keep(self, rows):
        """Keep some of what was written for people, where a checkpoint was just saved."""
        step = self.position * self.policy.group // (self.stage.batch * self.policy.tries)
        if step % self.stage.save_every or not processes.first():
            return
        write_json(self.folder / 'written' / f'{step}.json', [row.told() for row in rows[:SHOWN]])


def _each(values, times):
    """Return a list with each value so many times, one behind the other."""
    return list(itertools.chain.from_iterable(itertools.repeat(value, times) for value in values))


def _scrambled(rows, batches, group):
    """Return rows of which each group is paid what the next of its batch earned.

    The last is paid what the first earned. `batches` are the numbers of their groups. Groups stay
    whole: as many disagree, and by as much.
    """
    paid = list(rows)
    for groups in batches:
        for one, other in zip(groups * group, np.roll(groups, -1) * group, strict=True):
            for k in range(group):
                paid[one + k] = dataclasses.replace(rows[one + k], paid_as=rows[other + k])
    return paid


def _whole(array):
    """Return all of an array on the host, also where other processes hold parts of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return process_allgather(array, tiled=True)
