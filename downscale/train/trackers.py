"""Curves to look at while a run goes on: TensorBoard, or Weights & Biases.

They are copies. The files of the run folder stay the truth: nothing here is ever read by analysis,
and training goes on where writing fails.
"""
import importlib
import os
import time
from pathlib import Path
from typing import Any

from downscale.runtime.peers import line_of, say

# How old the curves that a person looks at may be, without a flush for every step.
FLUSH_SECONDS = 10


class _TensorBoard:
    """An event file in `folder/tensorboard`, one more for each time that the run is continued.

    TensorBoard's record writer needs neither TensorFlow nor PyTorch, and 0.2 s to import; its
    summary writer, and tensorboardX, import one or the other where they are installed.
    """

    def __init__(self, folder, first):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        self.event = Event
        self.summary = Summary
        folder = Path(folder) / 'tensorboard'
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f'events.out.tfevents.{time.time_ns()}.{os.getpid()}'
        self.file = self.path.open('xb')
        self.records = RecordWriter(self.file)
        self.flushed = time.monotonic()
        self._add(file_version='brain.Event:2')
        # What an earlier session has written from this step on is not shown.
        self._add(step=first + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields):
        event = self.event(wall_time=time.time(), **fields)
        self.records.write(event.SerializeToString())

    def write(self, step, row):
        values = [self.summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._add(step=step, summary=self.summary(value=values))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        self.file.flush()
        self.flushed = time.monotonic()

    def close(self):
        self.file.close()


class _Wandb:
    """A run of the project that is named after the study.

    Continued, it stays the same run, which takes no step a second time.
    """
    path = None

    def __init__(self, folder, first):
        import wandb
        del first
        *_, study, _, cell, stage = Path(folder).absolute().parts
        # The id is made of names, so that every restart finds the same run.
        self.run = wandb.init(project=study, name=f'{cell}/{stage}', id=f'{study}-{cell}-{stage}',
                              group=cell, dir=str(folder), resume='allow', reinit='create_new')

    def write(self, step, row):
        self.run.log(row, step=step)

    def flush(self):
        pass

    def close(self):
        self.run.finish()


WRITERS = {'tensorboard': _TensorBoard, 'wandb': _Wandb, 'none': None}


def choose(kind: str | None) -> str:
    """Return the tracker that was asked for; for None TensorBoard, or 'none' where it is missing.

    ImportError with what to install where one that was asked for by name is missing; RuntimeError
    where Weights & Biases does not know who we are.
    """
    if kind == 'none':
        return kind
    try:
        library = importlib.import_module(kind or 'tensorboard')
    except ImportError:
        if kind is None:
            say("no tensorboard, so no curves but in metrics.jsonl; pip install "
                "'downscale[tensorboard]', or --tracker none")
            return 'none'
        raise ImportError(f"no {kind}; pip install 'downscale[{kind}]', or --tracker none"
                          ) from None
    if kind == 'wandb' and os.environ.get('WANDB_MODE', 'online') in ('online', 'shared'):
        try:
            library.login()
        except Exception as error:
            raise RuntimeError(f'--tracker wandb: {line_of(error)}; `wandb login` first, or set '
                               'WANDB_MODE=offline') from None
    return kind or 'tensorboard'


class Tracker:
    """The writer of a `kind` for the run in a local `folder` that goes on behind step `first`.

    The first error is said in one line, and ends the writer instead of the run.
    """

    def __init__(self, kind: str, folder: Path, first: int) -> None:
        self.kind = kind
        # None for the kind 'none', in processes other than the first, and once writing has failed.
        self.writer = None
        if WRITERS[kind]:
            self.writer = self._tried(lambda: WRITERS[kind](folder, first))
        self.path = self.writer and self.writer.path

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Add the numbers of `row` at `step`."""
        self._do('write', step, row)

    def flush(self) -> None:
        """Flush what was written into the file."""
        self._do('flush')

    def close(self) -> None:
        """Close the writer: nothing more will be written."""
        self._do('close')

    def _do(self, method, *values):
        if self.writer is not None:
            self._tried(lambda: getattr(self.writer, method)(*values))

    def _tried(self, action):
        try:
            return action()
        except Exception as error:  # a full disk or a lost network must not cost a run
            self.writer = None
            say(f'tracker {self.kind}: {line_of(error)}; training goes on without it')
            return None
