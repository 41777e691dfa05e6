"""Batched decoding over a fixed set of slots, exact with respect to the batch.

A row's tokens depend on its request, the decoding rules and the weights: not on its slot, its
company, the order, the number of slots or when others finish. Rows are read into free slots and
written together; a slot that ends is filled again at once. Randomness is named by request and
token; sums run in a fixed order and in fixed blocks; and the rows of a step stay within the numbers
that this machine sums alike (`alike.py`), the tokens of a prefill above them.

Several processes each run an engine over their own devices and their own share of the requests.
"""
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from downscale.data.records import THINK
from downscale.data.tokens import Encoder
from downscale.generate import forward, programs, requests, thinking
from downscale.generate.alike import alike
from downscale.generate.requests import Decoding, Prompt, Reply, Request  # noqa: F401
from downscale.generate.sampling import mask
from downscale.model.cache import edges, ladder
from downscale.model.vlm import Vlm
from downscale.runtime.memory import give_back
from downscale.sharding import batch_sharding, batch_ways, shardings

ROOM = 32  # tokens a row that one call of decode may write
SHORTEST = 64  # tokens of a prefill: shorter products may be summed otherwise (`alike.py`)
PRODUCT = 256  # tokens that are read together where as many are waiting
GREEDY = Decoding()
_compiled = {'count': 0, 'seconds': 0.0}


def _count(event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration':
        _compiled['count'] += 1
        _compiled['seconds'] += seconds


# pyrefly: ignore[bad-argument-type]
jax.monitoring.register_event_duration_secs_listener(_count)


@dataclass(kw_only=True)
class Stats:
    """What an engine has done: rows and tokens written, decode steps, prompt tokens read with and
    without padding, programs compiled (or found in the persistent cache), seconds of all and of
    compiling."""
    rows: int = 0
    tokens: int = 0
    steps: int = 0
    slot_steps: int = 0
    read: int = 0
    read_padded: int = 0
    pictures: int = 0
    compiles: int = 0
    compile_seconds: float = 0.0
    seconds: float = 0.0

    def summary(self) -> dict[str, int | float]:
        """Return the figures that a report shows; shares are of 1."""
        return {'rows': self.rows, 'tokens': self.tokens, 'seconds': self.seconds,
                'tokens_per_second': self.tokens / self.seconds if self.seconds else 0.0,
                'slot_occupancy': self.tokens / self.slot_steps if self.slot_steps else 0.0,
                'padding_waste': 1 - self.read / self.read_padded if self.read_padded else 0.0,
                'compiles': self.compiles, 'compile_seconds': self.compile_seconds}


class Engine:
    """A model and its parameters, ready to write replies and to score given ones.

    At most `slots` rows are written at once, rounded up to a multiple of the lanes, and fewer where
    more would be summed otherwise (`alike.py`). `mesh` (see `sharding.mesh`, over devices of this
    process) shares slots out over its data axes and weights over its tensor axis. Without `refill`
    a new batch begins only when the last row of the one before has ended.
    """

    def __init__(self, model: Vlm, params: dict[str, Any], encoder: Encoder, slots: int = 16,
                 mesh: Mesh | None = None, refill: bool = True) -> None:
        if slots < 1:
            raise ValueError(f'{slots} slots; at least 1 is needed')
        self.model = model.clone(kernels=jax.default_backend() == 'tpu')
        self.encoder = encoder
        self.mesh = mesh
        self.refill = refill
        self.lanes = batch_ways(mesh) if mesh else 1
        wanted = math.ceil(slots / self.lanes)
        fewest, most = alike(_products(model.language, mesh.shape['tensor'] if mesh else 1), wanted)
        self.usable = min(wanted, most or wanted)  # slots of a lane
        self.per_lane = max(fewest, self.usable)
        params = forward.unstack(jax.tree.map(np.asarray, params), model.dtype)
        where = shardings(params, mesh, model.rules) if mesh else None
        self.params = jax.device_put(params, where)
        self.stats = Stats()

    def write(self, asked: Sequence[Request], decoding: Decoding = GREEDY,
              report: Callable[[int, int], object] = lambda done, total: None) -> list[Reply]:
        """Return a `Reply` for every `Request`, in order."""
        replies = [None] * len(asked)
        for done, (index, reply) in enumerate(self.stream(asked, decoding), 1):
            replies[index] = reply
            report(done, len(asked))
        # pyrefly: ignore[bad-return]
        return replies

    def stream(self, asked: Sequence[Request],
               decoding: Decoding = GREEDY) -> Iterator[tuple[int, Reply]]:
        """Return (index, `Reply`) of each `Request`, as rows end. ValueError before work starts
        when a request cannot be answered.
        """
        patches = self.model.vision.P if 'tower' in self.params else 0
        requests.check(asked, decoding, self.model.language.V, self.encoder.thought[:2], patches,
                       self.encoder.context)
        return _Job(self, asked, decoding).run() if asked else iter(())

    def call(self, program: Callable, *args: Any, **static: Any) -> Any:
        """Run a compiled program on this engine's mesh."""
        within = jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()
        before = dict(_compiled)
        with within:
            result = program(*args, model=self.model, **static)
        if jax.default_backend() == 'cpu':
            jax.block_until_ready(result)  # side by side two programs take longer than in turn
        new = _compiled['count'] - before['count']
        if new:
            self.stats.compiles += new
            self.stats.compile_seconds += _compiled['seconds'] - before['seconds']
            give_back()
        return result

    def by_lane(self, array: Any) -> jax.Array | np.ndarray:
        """Return an array whose first axis is lanes or slots, on the devices that hold them."""
        return jax.device_put(array, batch_sharding(self.mesh, self.model.rules)) if self.mesh \
            else array


@dataclass(kw_only=True)
class _Row:
    """A request in a slot: its index, the position of its last token, what it wrote, and where its
    nats are (an array, and the place in it)."""
    index: int
    position: int
    nats: tuple
    ids: list = field(default_factory=list)


def _products(cfg, ways):
    """Return (terms, outputs) of the matrix products of one decoded token on one of `ways`
    devices.
    """
    heads = cfg.H * cfg.E // ways
    groups = cfg.K * cfg.E // ways
    hidden = cfg.F // ways
    return ((cfg.D, heads), (cfg.D, groups), (heads, cfg.D), (cfg.D, hidden), (hidden, cfg.D),
            (cfg.D, cfg.V // ways))


class _Job:
    """One call of `Engine.stream`: its queue, its slots and the rows in them."""

    def __init__(self, engine, asked, decoding):
        self.engine = engine
        self.asked = asked
        self.decoding = decoding
        self.waiting, self.text = _groups(asked)
        self.group = [self.text] * engine.lanes  # what each lane takes from
        self.free = [list(range(engine.usable))[::-1] for _ in range(engine.lanes)]
        self.busy = {}  # slot -> _Row
        self.scored = max((len(r.target) for r in asked if r.target is not None), default=0)
        self.scored = self.scored and ladder(self.scored, 8)
        self.thinks = any(request.think is not None for request in asked)
        self._rules()
        self._room()

    def _room(self):
        """Make the slots, and room for pictures where any are asked about."""
        engine = self.engine
        prompts = [request.prompt for request in self.asked]
        longest = max(prompt.prefix for prompt in prompts)
        self.tiles = max((len(p.tiles) for p in prompts if p.prefix), default=0)
        self.shown = None
        self.prefix_room = 0
        self.lane_prefix = [''] * engine.lanes
        if longest:
            ends = edges(longest)
            self.prefix_room = ends[-1]
            self.shown = engine.call(programs.empty_shown, lanes=engine.lanes, tiles=self.tiles,
                                     ends=ends)
        most = max(max(r.room, self.prefix_room + self._suffix(r)) for r in self.asked)
        self.ends = edges(most)
        self.slots = engine.call(programs.empty_slots, rows=engine.lanes * engine.per_lane,
                                 ends=self.ends)

    def _suffix(self, request):
        """Return static length of what a prefill reads of a request: all behind its pictures."""
        return ladder(len(request.prompt.tokens) - request.prompt.prefix
                      + len(request.target or ()), SHORTEST)

    def _rules(self):
        engine, decoding, vocabulary = self.engine, self.decoding, self.engine.model.language.V
        opened, closed, newline = engine.encoder.thought
        self.mode = thinking.Thinking(opened, closed, newline, decoding.nudge,
                                      decoding.reference_compat)
        self.stops = {*engine.encoder.stops, *decoding.stops} - {-1}
        self.rules = jax.device_put(programs.DecodingRules(
            np.uint32(decoding.seed), mask(self.stops, vocabulary),
            mask(decoding.forbidden, vocabulary),
            mask(decoding.banned_thinking, vocabulary), np.int32(decoding.min_new)))

    def run(self):
        """Yield (index, Reply) as rows end."""
        began = time.perf_counter()
        stats = self.engine.stats
        while self.waiting or any(self.group) or self.text or self.busy:
            if self.engine.refill or not self.busy:
                self._fill()
            for index, reply in self._write():
                stats.rows += 1
                stats.seconds, began = stats.seconds + time.perf_counter() - began, \
                    time.perf_counter()
                yield index, reply
                began = time.perf_counter()  # what the caller did meanwhile is not ours
        stats.seconds += time.perf_counter() - began

    # --- prompts into slots ---------------------------------------------------------------------

    def _fill(self):
        """Requests wait only while no slot is free that can take them."""
        while any(offers := self._offers()):
            most = PRODUCT // max(self._suffix(self.asked[found[0]]) for found in offers if found)
            # Idle company would cost as much as a prompt: as many as make a good product, or one.
            size = most if most > 1 and all(len(f) >= most for f in offers if f) else 1
            picked = [found[:size] for found in offers]
            for lane, found in enumerate(picked):
                for k in found:
                    self.group[lane].remove(k)
            self._show([self.asked[found[0]].prompt if found else None for found in picked])
            self._read(picked, size)

    def _offers(self):
        """For each lane the indices of requests of one static length that it can take next."""
        offers = []
        offered = set()
        for lane, free in enumerate(self.free):
            if free and not self.group[lane]:
                self.group[lane] = self.waiting.popleft() if self.waiting else self.text
            ahead = list(islice((k for k in self.group[lane] if k not in offered), 64))
            lengths = [self._suffix(self.asked[k]) for k in ahead]
            same = [k for k, length in zip(ahead, lengths) if length == lengths[0]]
            offers.append(same[:len(free)])
            offered |= set(offers[-1])
        return offers

    def _show(self, prompts):
        """Every lane's pictures are those that its prompt (None: any) shows."""
        new = [prompt if prompt and prompt.prefix and prompt.prefix_hash != held else None
               for prompt, held in zip(prompts, self.lane_prefix)]
        if not any(new):
            return
        engine, vision = self.engine, self.engine.model.vision
        for at in range(max(len(prompt.tiles) for prompt in new if prompt)):
            has = np.array([prompt is not None and at < len(prompt.tiles) for prompt in new])
            tiles_BPQ = np.zeros((len(new), vision.P, vision.Q), np.uint8)
            for lane in np.flatnonzero(has):
                tiles_BPQ[lane] = new[lane].tiles[at]
            self.shown = engine.call(programs.see, engine.params, self.shown,
                                     engine.by_lane(tiles_BPQ), np.int32(at), engine.by_lane(has))
        length = ladder(max(prompt.prefix for prompt in new if prompt), SHORTEST)
        arrays = requests.prompt_arrays(new, length, vision, self.tiles)
        lengths = np.array([prompt.prefix if prompt else 0 for prompt in new], np.int32)
        self.shown = engine.call(
            programs.prefix, engine.params, self.shown, *jax.tree.map(engine.by_lane, arrays),
            engine.by_lane(lengths), engine.by_lane(lengths > 0))
        engine.stats.pictures += int((lengths > 0).sum())
        engine.stats.read += int(lengths.sum())
        engine.stats.read_padded += length * len(new)
        for lane, prompt in enumerate(new):
            if prompt:
                self.lane_prefix[lane] = prompt.prefix_hash

    def _read(self, picked, size):
        """Put the picked requests, up to `size` a lane, into free slots."""
        engine, count = self.engine, self.engine.lanes * size
        length = max(self._suffix(self.asked[k]) for found in picked for k in found)
        tokens = np.zeros((count, length), np.int32)
        rows = np.zeros((6, count), np.int64)
        rows[0], rows[1] = 1, engine.per_lane  # a token to look at, and no slot
        nats = [None]
        for lane, k in ((lane, k) for lane, found in enumerate(picked) for k in found):
            request = self.asked[k]
            prompt = request.prompt
            target = request.target or ()
            n = len(prompt.tokens)
            own = prompt.tokens[prompt.prefix:]
            slot = self.free[lane].pop()
            at = lane * size + picked[lane].index(k)
            tokens[at, :len(own)] = own
            tokens[at, len(own):len(own) + len(target)] = target
            rows[:, at] = (len(own), slot, prompt.prefix > 0, request.sample,
                           -1 if request.think is None else request.think, request.limit)
            self.busy[lane * engine.per_lane + slot] = _Row(
                index=k, position=n - 1, nats=(nats, at)
            )
            engine.stats.read += len(own) - 1 + len(target)
        engine.stats.read_padded += length * count
        arrays = programs.Rows(tokens, rows[0].astype(np.int32), rows[1].astype(np.int32),
                               rows[2] > 0, rows[3].astype(np.uint32), rows[4].astype(np.int32),
                               rows[5].astype(np.int32))
        part, rest = self._blocks(len(edges(self.prefix_room + length)))
        part, nats[0] = engine.call(
            programs.prefill, engine.params, part, self.shown,
            jax.tree.map(engine.by_lane, arrays), lanes=engine.lanes, scored=self.scored)
        self._join(part, rest)

    def _blocks(self, count):
        """Return (slots with the first `count` blocks of the cache, the other blocks)."""
        return (self.slots._replace(k=self.slots.k[:count], v=self.slots.v[:count]),
                (self.slots.k[count:], self.slots.v[count:]))

    def _join(self, part, rest):
        self.slots = part._replace(k=part.k + rest[0], v=part.v + rest[1])

    # --- tokens out of slots --------------------------------------------------------------------

    def _write(self):
        """Decode until a row ends; [(index, Reply)] of the rows that did."""
        engine, stats, decoding = self.engine, self.engine.stats, self.decoding
        more = engine.refill and (self.waiting or any(self.group) or self.text)
        # With few slots each end is worth a refill; with many, a few may wait for company.
        enough = max(1, engine.lanes * engine.usable // 16) if more else len(self.busy)
        alive = np.zeros(engine.lanes * engine.per_lane, bool)
        alive[list(self.busy)] = True
        furthest = max(row.position for row in self.busy.values())
        part, rest = self._blocks(len(edges(furthest + 1)))
        part, out, active = engine.call(
            programs.decode, engine.params, part, self.rules, engine.by_lane(alive),
            np.int32(8 if decoding.stop_strings else ROOM), np.int32(enough), room=ROOM,
            sampling=decoding.sampling, mode=self.mode, thinks=self.thinks,
            forbids=bool(decoding.forbidden) or decoding.min_new > 0)
        self._join(part, rest)
        out, active, mind = jax.device_get((out, active, self.slots.mind))
        closes = thinking.endings(mind)
        written = (out >= 0).sum(axis=1)
        assert written.max() > 0, 'no row had room in the cache; this loop would never end'
        stats.steps += int(written.max())
        stats.slot_steps += int(written.max()) * engine.lanes * engine.usable
        ended = []
        for slot, row in list(self.busy.items()):
            row.ids += out[slot, :written[slot]].tolist()
            row.position += int(written[slot])
            stats.tokens += int(written[slot])
            reply = self._reply(row, active[slot], closes[slot], int(mind.thought_B[slot]),
                                int(mind.answered_B[slot]))
            if reply:
                ended.append((row.index, reply))
                del self.busy[slot]
                self.free[slot // engine.per_lane].append(slot % engine.per_lane)
        return ended

    def _reply(self, row, active, close, thought, answered):
        """Return the Reply of a row that has ended, else None."""
        ids = row.ids
        finish = 'length'
        text_of = self.engine.encoder.text
        if not active and ids[-1] in self.stops:
            ids = ids[:-1]
            finish = 'stop'
        cut = self.decoding.stop_strings and requests.first_stop(ids, text_of,
                                                                 self.decoding.stop_strings)
        if active and not cut:
            return None
        text = None
        if cut:
            keep, text = cut
            ids = ids[:keep]
            finish = 'string'
            # How much the call wrote behind the string must leave no trace.
            close, thought, answered = thinking.recount(
                self.mode, self.asked[row.index].think, ids, close)
        held, at = row.nats
        held[0] = None if held[0] is None else np.asarray(held[0])
        target = self.asked[row.index].target
        nll = math.nan if target is None else \
            math.fsum(held[0][at, :len(target)].tolist()) if len(target) else 0.0
        text = text_of(ids) if text is None else text
        # One mark is the token that closes; only of several may one stand in the thought.
        spelled = thinking.spelled(self.mode, ids, text_of, THINK[1]) \
            if close and (close == 'open' or text.count(THINK[1]) > 1) else 0
        return Reply(
            ids=tuple(ids),
            text=text,
            finish=finish,
            nll=nll,
            close=close,
            thought=thought,
            answered=answered,
            spelled=spelled,
        )


def _groups(asked):
    """Return (groups of requests that share pictures, those without): the longest way goes
    first.
    """
    order = sorted(range(len(asked)), key=lambda k: len(asked[k].prompt.tokens) - asked[k].room)
    groups = {}
    for k in order:
        groups.setdefault(asked[k].prompt.prefix_hash, deque()).append(k)
    text = groups.pop('', deque())
    return deque(groups.values()), text
