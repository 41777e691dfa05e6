"""Batched decoding over a fixed set of slots, exact with respect to the batch.

A row's tokens depend on its request, the decoding rules and the weights: not on its slot, its
company, the order, the number of slots or when others finish. Rows are read into free slots and
written together; a slot that ends is filled again at once. Randomness is named by request and
token; sums run in a fixed order and in fixed blocks; and the rows of a step are as many as this
machine sums alike (`alike.py`).

Several processes each run an engine over their own devices and their own share of the requests.
"""
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from downscale.data.tokens import Encoder
from downscale.generate import forward, requests
from downscale.generate.alike import alike
from downscale.generate.job import ROOM, SHORTEST, EngineJob  # noqa: F401
from downscale.generate.requests import Decoding, Prompt, Reply, Request  # noqa: F401
from downscale.model.vlm import Vlm
from downscale.runtime.memory import give_back
from downscale.sharding import batch_sharding, batch_ways, shardings

GREEDY = Decoding()
# JAX tells what it compiles to one listener for the process, not to the engine that asked.
_compiled = {'count': 0, 'seconds': 0.0}


def _count(event, seconds, **_):
    """Add one event of JAX to `_compiled`, where it is a compilation."""
    if event == '/jax/core/compile/backend_compile_duration':
        _compiled['count'] += 1
        _compiled['seconds'] += seconds


# pyrefly: ignore[bad-argument-type]
jax.monitoring.register_event_duration_secs_listener(_count)


@dataclass(kw_only=True)
class Stats:
    """What an engine has done so far.

    Rows and tokens written, decode steps and slots that these had, prompt tokens read without and
    with padding, pictures seen, programs compiled (or found in the persistent cache), seconds of
    all and of compiling.
    """
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
        speed = self.tokens / self.seconds if self.seconds else 0.0
        occupancy = self.tokens / self.slot_steps if self.slot_steps else 0.0
        waste = 1 - self.read / self.read_padded if self.read_padded else 0.0
        return {'rows': self.rows, 'tokens': self.tokens, 'seconds': self.seconds,
                'tokens_per_second': speed, 'slot_occupancy': occupancy, 'padding_waste': waste,
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
        # Decoding attends to blocks of its cache (`attend_blocks`); this decides their axes alone.
        attention = 'splash' if jax.default_backend() == 'tpu' else 'xla'
        self.model = model.clone(attention=attention)
        self.encoder = encoder
        self.mesh = mesh
        self.refill = refill
        self.lanes = batch_ways(mesh) if mesh else 1
        wanted = math.ceil(slots / self.lanes)
        # A lane of fewer rows than that is padded with slots that stay empty.
        self.per_lane = alike(_products(model.language, mesh.shape['tensor'] if mesh else 1),
                              wanted)
        self.usable = min(wanted, self.per_lane)  # slots of a lane
        self.stats = Stats()
        self.take(params)

    def take(self, params: dict[str, Any]) -> None:
        """Write with other parameters of the same shapes from now on; nothing is compiled again."""
        # On the host first: taken apart on a device, the model would be there twice.
        params = forward.unstack(jax.tree.map(np.asarray, params), self.model.dtype,
                                 turned=jax.default_backend() == 'cpu')
        where = shardings(params, self.mesh, self.model.rules) if self.mesh else None
        self.params = jax.device_put(params, where)

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
        """Return an iterator over (index, `Reply`) of the requests, as rows end.

        ValueError, already when this is called, where a request cannot be answered.
        """
        patches = self.model.vision.P if 'tower' in self.params else 0
        requests.check(asked, decoding, self.model.language.V, self.encoder.thought[:2], patches,
                       self.encoder.context)
        return EngineJob(self, asked, decoding).run() if asked else iter(())

    def call(self, program: Callable, *args: Any, **static: Any) -> Any:
        """Run a compiled program on this engine's mesh."""
        within = jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()
        before = dict(_compiled)
        with within:
            result = program(*args, model=self.model, **static)
        if jax.default_backend() == 'cpu':
            # Two programs side by side take longer than one after the other.
            jax.block_until_ready(result)
        new = _compiled['count'] - before['count']
        if new:
            self.stats.compiles += new
            self.stats.compile_seconds += _compiled['seconds'] - before['seconds']
            give_back()  # what the compiler needed
        return result

    def by_lane(self, array: Any) -> jax.Array | np.ndarray:
        """Return an array whose first axis is lanes or slots, on the devices that hold them."""
        if not self.mesh:
            return array
        return jax.device_put(array, batch_sharding(self.mesh, self.model.rules))


def _products(cfg, ways):
    """Return (terms, outputs) of each matrix product of a token on one of `ways` devices."""
    heads = cfg.H * cfg.E // ways
    groups = cfg.K * cfg.E // ways
    hidden = cfg.F // ways
    return ((cfg.D, heads), (cfg.D, groups), (heads, cfg.D), (cfg.D, hidden), (hidden, cfg.D),
            (cfg.D, cfg.V // ways))
