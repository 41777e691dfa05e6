"""Is what a cell reads there, and can it be read: one record, one tensor, a byte of each file."""
import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from downscale.config import Experiment
from downscale.experiment.teachers import stage_of
from downscale.runtime.files import place
from downscale.runtime.mounts import FAILURE, mounted, origin_of
from downscale.stage_config import is_stage
from downscale.stages.inputs import corpus
from downscale.train.lazy_leaves import open_leaves


def check_mounts() -> None:
    """Raise ValueError or FileNotFoundError in one line where a folder is not mounted, or empty."""
    failure = os.environ.get(FAILURE)
    if failure:
        raise ValueError(f'the start-up script could not mount: {failure}')
    for name, origin in mounted().items():
        if not Path(name).is_dir() or next(Path(name).iterdir(), None) is None:
            raise FileNotFoundError(f'nothing is in {name}/, where {origin} should be mounted')


def check(experiment: Experiment) -> None:
    """Read a little of everything that a cell brings from elsewhere, before any work is done.

    One record of each mixture, one tensor of each imported model and the beginning of each file of
    a benchmark. FileNotFoundError or ValueError in one line for what is missing or damaged, with
    the place that is mounted there.
    """
    for stage in experiment.stages:
        if stage.mixture:
            with _named(stage.mixture):
                corpus(stage.mixture).record(0)
    others = [stage.teacher for stage in experiment.stages
              if stage.teacher and stage_of(experiment, stage) is None]
    others += [name for stage in experiment.stages for name in stage.judges if not is_stage(name)]
    for folder in sorted({*experiment.imports.values(), *others}):
        with _named(folder):
            _read_tensor(folder)
    asked = experiment.evaluation
    files = [*asked.benchmarks.values(), *asked.information.values(), *asked.images.values()]
    files += [stage.policy.questions for stage in experiment.stages if stage.policy.questions]
    if experiment.tokenizer:
        files.append(experiment.tokenizer)
    for path in files:
        with _named(path):
            _read_byte(Path(path))


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Say in an error about `path` what is mounted there."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        origin = origin_of(path)
        if origin == path:
            raise
        line = str(error) or 'cannot be read'
        raise type(error)(f'{line} ({path} is mounted from {origin})') from None


def _read_tensor(folder):
    """Read the smallest tensor of an imported model, as training will read all of them."""
    if not (place(folder) / 'experiment.json').is_file():
        raise FileNotFoundError(f'no {folder}/experiment.json; make the model with `downscale '
                                'import`')
    leaves = jax.tree.leaves(open_leaves(origin_of(folder)))
    if not leaves:
        raise ValueError(f'{folder} holds no tensor')
    min(leaves, key=lambda leaf: math.prod(leaf.shape)).read()


def _read_byte(path):
    """Read the first byte of a file, or the first name of a folder."""
    if path.is_dir():
        if next(path.iterdir(), None) is None:
            raise FileNotFoundError(f'{path} is empty')
        return
    if not path.is_file():
        raise FileNotFoundError(f'no {path}')
    with path.open('rb') as file:
        file.read(1)
