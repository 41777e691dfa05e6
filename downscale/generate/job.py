"""One call of the engine: requests into slots, tokens out of them, replies as rows end."""
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from downscale.data.records import THINK
from downscale.generate import programs, requests, thinking
from downscale.generate.lanes import PRODUCT, PRODUCT_ON_CPU, Lanes
from downscale.generate.requests import Decoding, Reply, Request
from downscale.generate.sampling import mask
from downscale.model.cache import edges, ladder

if TYPE_CHECKING:  # engine.py imports this module
    from downscale.generate.engine import Engine

ROOM = 32  # tokens a row that one call of decode may write
ROOM_TO_STOP = 8  # the same where a stop string may end a row: what follows it is lost work
SHORTEST = 64  # tokens of a prefill: shorter products may be summed otherwise (`alike.py`)


@dataclass(kw_only=True)
class _Row:
    """A request in a slot: its index, the position of its last token, and what it wrote.

    `nats_BL` [B, scored] are those of the prefill that read it; those of row `place` are its own.
    """
    index: int
    position: int
    nats_BL: jax.Array | None
    place: int
    ids: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


class EngineJob:
    """One call of `Engine.stream`: its queue, its slots and the rows in them."""

    def __init__(self, engine: 'Engine', asked: Sequence[Request], decoding: Decoding) -> None:
        self.engine = engine
        self.asked = asked
        self.decoding = decoding
        on_cpu = jax.default_backend() == 'cpu'
        self.lanes = Lanes(asked, engine.lanes, engine.usable, self._length_of,
                           product=PRODUCT_ON_CPU if on_cpu else PRODUCT)
        self.busy = {}  # slot -> _Row
        self.thinks = any(request.think is not None for request in asked)
        longest = max((len(r.target) for r in asked if r.target is not None), default=0)
        self.scored = ladder(longest, 8) if longest else 0
        self._rules()
        self._room()

    def _rules(self):
        """Set how rows are written: the machine of thoughts, stop tokens, the rules as arrays."""
        decoding = self.decoding
        vocabulary = self.engine.model.language.V
        opened, closed, newline = self.engine.encoder.thought
        self.mode = thinking.Thinking(
            open=opened, close=closed, newline=newline, nudge=decoding.nudge,
            reference_compat=decoding.reference_compat)
        self.stops = {*self.engine.encoder.stops, *decoding.stops} - {-1}
        self.rules = jax.device_put(programs.DecodingRules(
            seed=np.uint32(decoding.seed),
            stops_V=mask(self.stops, vocabulary),
            forbidden_V=mask(decoding.forbidden, vocabulary),
            banned_V=mask(decoding.banned_thinking, vocabulary),
            min_new=np.int32(decoding.min_new),
        ))
        self.options = programs.DecodeOptions(
            room=ROOM,
            sampling=decoding.sampling,
            mode=self.mode,
            thinks=self.thinks,
            forbids=bool(decoding.forbidden) or decoding.min_new > 0,
            costs=decoding.costs,
        )

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
        # A prefill writes its whole static length into the cache, padding as well.
        most = max(max(request.room, self.prefix_room + self._length_of(k))
                   for k, request in enumerate(self.asked))
        self.slots = engine.call(programs.empty_slots, rows=engine.lanes * engine.per_lane,
                                 ends=edges(most))

    def _length_of(self, k):
        """Return the static length that a prefill reads of request `k`: all behind its pictures."""
        request = self.asked[k]
        return ladder(len(request.prompt.tokens) - request.prompt.prefix
                      + len(request.target or ()), SHORTEST)

    def run(self) -> Iterator[tuple[int, Reply]]:
        """Yield (index, Reply) as rows end."""
        began = time.perf_counter()
        stats = self.engine.stats
        while self.lanes.left() or self.busy:
            # 1. Read requests into free slots; without refill only when all slots are free.
            if self.engine.refill or not self.busy:
                self._fill()
            # 2. Decode until enough rows have ended, or the room of a call is used up.
            # 3. Hand over the rows that ended; what the caller does meanwhile is not our time.
            for index, reply in self._write():
                stats.rows += 1
                stats.seconds += time.perf_counter() - began
                yield index, reply
                began = time.perf_counter()
        stats.seconds += time.perf_counter() - began

    # --- prompts into slots ---------------------------------------------------------------------

    def _fill(self):
        """Read requests into slots, until no free slot can take one."""
        while True:
            # 1. Take what fits together.
            picked, size = self.lanes.take()
            if not any(picked):
                return
            # 2. See the pictures of lanes that go on to others.
            self._show([self.asked[indices[0]].prompt if indices else None for indices in picked])
            # 3. Read what stands behind the pictures.
            self._read(picked, size)

    def _show(self, prompts):
        """Give every lane the pictures that its prompt (None: any) shows."""
        new = [prompt if prompt and prompt.prefix and prompt.prefix_hash != before else None
               for prompt, before in zip(prompts, self.lane_prefix)]
        if not any(new):
            return
        engine = self.engine
        # 1. See the tiles, one of each lane at a time.
        for at in range(max(len(prompt.tiles) for prompt in new if prompt)):
            self._see(new, at)
        # 2. Read the text up to the last picture with their features.
        length = ladder(max(prompt.prefix for prompt in new if prompt), SHORTEST)
        arrays = requests.prompt_arrays(new, length, engine.model.vision, self.tiles)
        lengths = np.array([prompt.prefix if prompt else 0 for prompt in new], np.int32)
        self.shown = engine.call(
            programs.prefix, engine.params, self.shown, *jax.tree.map(engine.by_lane, arrays),
            engine.by_lane(lengths), engine.by_lane(lengths > 0))
        # 3. Remember whose pictures a lane shows.
        engine.stats.pictures += int((lengths > 0).sum())
        engine.stats.read += int(lengths.sum())
        engine.stats.read_padded += length * len(new)
        for lane, prompt in enumerate(new):
            if prompt:
                self.lane_prefix[lane] = prompt.prefix_hash

    def _see(self, prompts, at):
        """See tile number `at` of those prompts (None: nothing new) that have as many."""
        engine = self.engine
        vision = engine.model.vision
        has = np.array([prompt is not None and at < len(prompt.tiles) for prompt in prompts])
        tiles_BPQ = np.zeros((len(prompts), vision.P, vision.Q), np.uint8)
        for lane in np.flatnonzero(has):
            tiles_BPQ[lane] = prompts[lane].tiles[at]
        self.shown = engine.call(programs.see, engine.params, self.shown,
                                 engine.by_lane(tiles_BPQ), np.int32(at), engine.by_lane(has))

    def _read(self, picked, size):
        """Put the picked requests, up to `size` of each lane, into free slots."""
        engine = self.engine
        # 1. Give each of them a place in the prefill, and a slot of its lane.
        placed = {}  # slot -> (place, index of the request)
        for lane, indices in enumerate(picked):
            for place, k in enumerate(indices, lane * size):
                placed[lane * engine.per_lane + self.lanes.free[lane].pop()] = place, k
        # 2. Read them, with as many blocks of the cache as they can reach.
        rows = self._rows(placed, engine.lanes * size)
        part, rest = self._blocks(len(edges(self.prefix_room + rows.tokens_BL.shape[1])))
        part, nats_BL = engine.call(
            programs.prefill, engine.params, part, self.shown,
            jax.tree.map(engine.by_lane, rows), lanes=engine.lanes, scored=self.scored)
        self._join(part, rest)
        # 3. Begin to write behind them.
        for slot, (place, k) in placed.items():
            last = len(self.asked[k].prompt.tokens) - 1
            self.busy[slot] = _Row(index=k, position=last, nats_BL=nats_BL, place=place)

    def _rows(self, placed, count):
        """Return the `programs.Rows`, `count` numpy rows, of {slot: (place, index of a request)}.

        A place without a prompt has one token, so that there is a last one, and no slot.
        """
        engine = self.engine
        length = max(self._length_of(k) for _, k in placed.values())
        zeros = partial(np.zeros, count)
        rows = programs.Rows(
            tokens_BL=np.zeros((count, length), np.int32),
            length_B=zeros('int32') + 1,
            slot_B=zeros('int32') + engine.per_lane,
            pictured_B=zeros(bool),
            sample_B=zeros('uint32'),
            budget_B=zeros('int32'),
            limit_B=zeros('int32'),
        )
        for slot, (place, k) in placed.items():
            request = self.asked[k]
            prompt = request.prompt
            suffix = prompt.tokens[prompt.prefix:]
            target = request.target or ()
            rows.tokens_BL[place, :len(suffix)] = suffix
            rows.tokens_BL[place, len(suffix):len(suffix) + len(target)] = target
            rows.length_B[place] = len(suffix)
            rows.slot_B[place] = slot % engine.per_lane
            rows.pictured_B[place] = prompt.prefix > 0
            rows.sample_B[place] = request.sample
            rows.budget_B[place] = -1 if request.think is None else request.think
            rows.limit_B[place] = request.limit
            # The last token of a prompt is read by decode.
            engine.stats.read += len(suffix) - 1 + len(target)
        engine.stats.read_padded += length * count
        return rows

    def _blocks(self, count):
        """Return (slots with the first `count` blocks of the cache, the other blocks: k, v)."""
        part = self.slots._replace(k=self.slots.k[:count], v=self.slots.v[:count])
        return part, (self.slots.k[count:], self.slots.v[count:])

    def _join(self, part, rest):
        """Take back what `_blocks` has given away."""
        self.slots = part._replace(k=part.k + rest[0], v=part.v + rest[1])

    # --- tokens out of slots --------------------------------------------------------------------

    def _write(self):
        """Decode until rows end; return [(index, Reply)] of those that did."""
        # 1. Decode, with as many blocks of the cache as the furthest row can reach.
        out_BL, active_B, mind, nats_BL = self._decode()
        closes = thinking.endings(mind)
        written_B = (out_BL >= 0).sum(axis=1)
        most = int(written_B.max())
        assert most > 0, 'no row had room in the cache; this loop would never end'
        # 2. Count.
        stats = self.engine.stats
        stats.steps += most
        stats.slot_steps += most * self.engine.lanes * self.engine.usable
        stats.tokens += sum(int(written_B[slot]) for slot in self.busy)
        # 3. Give each row its tokens, and free the slots of those that ended.
        ended = []
        for slot, row in list(self.busy.items()):
            row.ids += out_BL[slot, :written_B[slot]].tolist()
            if nats_BL is not None:
                row.costs += nats_BL[slot, :written_B[slot]].tolist()
            row.position += int(written_B[slot])
            counts = closes[slot], int(mind.thought_B[slot]), int(mind.answered_B[slot])
            reply = self._reply(row, active_B[slot], counts)
            if reply:
                ended.append((row.index, reply))
                del self.busy[slot]
                lane, place = divmod(slot, self.engine.per_lane)
                self.lanes.free[lane].append(place)
        return ended

    def _decode(self):
        """Return numpy arrays of decode: tokens [B, ROOM], active rows [B], minds, nats."""
        engine = self.engine
        enough = len(self.busy)
        if engine.refill and self.lanes.left():
            # With few slots each end is worth a refill; with many, a few may wait for company.
            enough = max(1, engine.lanes * engine.usable // 16)
        alive = np.zeros(engine.lanes * engine.per_lane, bool)
        alive[list(self.busy)] = True
        furthest = max(row.position for row in self.busy.values())
        part, rest = self._blocks(len(edges(furthest + 1)))
        room = ROOM_TO_STOP if self.decoding.stop_strings else ROOM
        part, out_BL, active_B, nats_BL = engine.call(
            programs.decode, engine.params, part, self.rules, engine.by_lane(alive),
            np.int32(room), np.int32(enough), options=self.options)
        self._join(part, rest)
        return jax.device_get((out_BL, active_B, self.slots.mind, nats_BL))

    def _reply(self, row, active, counts):
        """Return the Reply of a row that has ended, else None.

        `counts` are (how the thought ended, its tokens, those of the answer).
        """
        text_of = self.engine.encoder.text
        ids = row.ids
        finish = 'length'
        stop = -1
        if not active and ids[-1] in self.stops:
            stop = ids[-1]
            ids = ids[:-1]
            finish = 'stop'
        cut = self.decoding.stop_strings and requests.first_stop(ids, text_of,
                                                                 self.decoding.stop_strings)
        if active and not cut:
            return None
        if cut:
            keep, text = cut
            ids = ids[:keep]
            row.costs = row.costs[:keep]
            finish = 'string'
            # How much the call wrote behind the string must leave no trace.
            counts = thinking.recount(self.mode, self.asked[row.index].think, ids, counts[0])
        else:
            text = text_of(ids)
        close, thought, answered = counts
        spelled = 0
        # One mark is the token that closes; only of several may one stand in the thought.
        if close and (close == 'open' or text.count(THINK[1]) > 1):
            spelled = thinking.spelled(self.mode, ids, text_of, THINK[1])
        return Reply(
            ids=tuple(ids),
            text=text,
            finish=finish,
            nll=self._nats(row),
            close=close,
            thought=thought,
            answered=answered,
            spelled=spelled,
            stop=stop,
            costs=tuple(row.costs),
        )

    def _nats(self, row):
        """Return the nats of a row's target, NaN without one."""
        target = self.asked[row.index].target
        if target is None:
            return math.nan
        if len(target) == 0:
            return 0.0
        return math.fsum(np.asarray(row.nats_BL)[row.place, :len(target)].tolist())
