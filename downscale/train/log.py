"""The logs of a run: `metrics.jsonl`, which a rerun repeats, and `timing.jsonl` with its speed."""
import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from downscale.results.curves import lost_rows, row_of
from downscale.runtime import processes
from downscale.runtime.files import in_bucket, naming, place, scratch, write_bytes
from downscale.runtime.peers import say
from downscale.train.trackers import Tracker

LOG_EVERY = 10  # steps from one row of timing.jsonl to the next


class Log:
    """`metrics.jsonl`, without rows past the checkpoint on resume, and `timing.jsonl`.

    Every process reads the metrics, and fails where they are not finite; process 0 writes them, and
    to a tracker. A row of `timing.jsonl` says when its session `began` (Unix time) and how many
    `cells` shared the program, and thus its `seconds` since then. With `ideal` (see `StageRun`) it
    has `mfu`, the share of its seconds that the same FLOPs take at the devices' peak. `shares`
    tells what else of so many seconds went where.
    """

    def __init__(self, folder: Path, first: int, tokens: int, tracker: str,
                 bits: dict[str, int] | None = None,
                 ideal: dict[tuple[int, int], float] | None = None,
                 shares: Callable[[float], dict[str, float]] | None = None) -> None:
        self.tokens = tokens
        # Speed is that of this session: what earlier ones have read does not count.
        self.before = tokens
        self.bits = bits or {}  # checkpoints from before there were any have none
        self.ideal = ideal or {}
        self.shares = shares
        self.shapes = deque()  # (tokens, tiles of a row) of batches whose step is not written yet
        self.best = 0.0  # seconds that the steps of this session would take at the peak
        self.waited = 0.0
        self.cells = 1
        self.session = round(time.time(), 3)
        self.began = time.perf_counter()
        self.files = contextlib.ExitStack()
        paths = [Path(os.devnull)] * 2
        self.copies = {}
        if processes.first():
            paths = [scratch(folder) / name for name in ('metrics.jsonl', 'timing.jsonl')]
            # A bucket knows no append: rows grow in a local file, copied over before each save.
            if in_bucket(folder):
                self.copies = {path: place(folder) / path.name for path in paths}
                _fetch(self.copies)
            # Its steps are trained again. timing.jsonl keeps all rows, which name their session.
            _cut(paths[0], first)
        self.tracker = Tracker(tracker if processes.first() else 'none', scratch(folder), first)
        self.files.callback(self.tracker.close)
        if self.copies and self.tracker.path:
            path = self.tracker.path
            self.copies[path] = place(folder) / path.parent.name / path.name
        self.metrics, self.timing = (self.files.enter_context(path.open('a')) for path in paths)

    def timed(self, stream: Iterator) -> Any:
        """Return the next batch; what it took counts as waiting for input."""
        begin = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - begin
        tiles = batch['tiles'].shape[1] if 'tiles' in batch else 0
        self.shapes.append((batch['tokens'].shape[1], tiles))
        return batch

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        return {'tokens': self.tokens} | ({'bits': self.bits} if self.bits else {})

    def write(self, step: int, read: float, factor: float, metrics: dict[str, Any],
              still: Collection[str] = ()) -> tuple[int, dict[str, Any]]:
        """Append the row of a finished step; returns (steps done, row). Waits for the device.

        `still` are groups that the whole stage has not moved: said, and in the row of its end.
        """
        row = {name: float(np.asarray(value)) for name, value in metrics.items()}
        # In all processes, and before the row is written: a step that failed has none.
        if not math.isfinite(row['loss']) or not math.isfinite(row['grad_norm']):
            raise FloatingPointError(
                f'step {step}: loss {row["loss"]}, gradient norm {row["grad_norm"]}; lower the '
                'learning rate or look at the data of this step')
        self.tokens += int(read)
        if self.ideal:
            self.best += self.ideal[self.shapes.popleft()]
        row = {'tokens': self.tokens, 'lr_factor': factor, **row}
        self.tracker.write(step + 1, row)
        row = {'step': step + 1, **row, **({'unmoved': still} if still else {})}
        if still and processes.first():
            say(f'{self.metrics.name}: training moved no weight of {", ".join(still)}; look at its '
                'rate, at `clip`, and whether the data reach it')
        _append(self.metrics, row)
        # Clock times never repeat, so they stay out of `metrics.jsonl`.
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - self.began
            speed = {'tokens_per_s': (self.tokens - self.before) / seconds,
                     'input_share': self.waited / seconds}
            if self.shares:
                speed |= self.shares(seconds)
            if self.ideal:
                speed['mfu'] = self.best / seconds
            self.tracker.write(step + 1, speed)
            _append(self.timing, {
                'step': step + 1, 'began': self.session, 'seconds': round(seconds, 3),
                'cells': self.cells, **speed})
        return step + 1, row

    def upload(self) -> None:
        """Copy the rows into the run folder where that is in a bucket."""
        if self.copies:
            self.tracker.flush()
        for path, copy in self.copies.items():
            write_bytes(copy, path.read_bytes())

    def close(self) -> None:
        """Close the files and the tracker."""
        with naming(self.metrics.name):  # what could not be written is tried once more
            self.files.close()


def _append(file, row):
    """Append a row to an open file, and flush it: whoever watches the run sees it at once."""
    with naming(file.name):
        file.write(json.dumps(row) + '\n')
        file.flush()


def _fetch(copies):
    """Copy the rows that another machine may have written, to go on with them."""
    for path, copy in copies.items():
        path.write_bytes(copy.read_bytes() if copy.exists() else b'')


def _cut(path, first):
    """Cut `path` behind the row of step `first`, and say which earlier rows are missing.

    A last line that was torn by the end of a process goes as well.
    """
    kept = []
    steps = []
    for line in path.read_text().splitlines() if path.exists() else ():
        row = row_of(line)
        if row and row['step'] <= first:
            kept.append(line)
            steps.append(row['step'])
    write_bytes(path, ''.join(f'{line}\n' for line in kept).encode())
    if lost := lost_rows(steps, first):
        say(f'{path} {lost}: it was cut or changed; training goes on, its curve keeps the gap')
