"""Train any stage: on rows that are given, or on those that it writes itself."""
import zlib
from collections.abc import Callable
from pathlib import Path

from downscale.config import Experiment
from downscale.evaluate.answers import wording_of
from downscale.policy.reward import open_reasoners
from downscale.policy.rollouts import Rollouts
from downscale.runtime.files import PathLike
from downscale.sharding import shardings
from downscale.stage_config import Stage
from downscale.stages import training
from downscale.stages.start import start_params
from downscale.train import loop
from downscale.train.run import StageRun


def train_stage(study: PathLike, experiment: Experiment, name: str,
                report: Callable[[int, dict], object] = lambda step, metrics: None,
                tracker: str = 'tensorboard') -> None:
    """Train stage `name` of a cell to its end, as `stages.training.train_stage` does."""
    training.train_stage(study, experiment, name, report, tracker, rollouts)


def rollouts(study: PathLike, experiment: Experiment, stage: Stage, run: StageRun,
             folder: Path) -> Rollouts:
    """Return the stream of what a stage writes, with its reasoners and where it began."""
    policy = stage.policy
    wording = wording_of(experiment, bool(policy.questions))
    # Before anything is written: a reasoner that is not there is told at once.
    reasoners = open_reasoners(study, experiment, stage, wording)
    # By name, as the streams of other stages: cells of one seed are asked the same.
    seed = zlib.crc32(f'{experiment.seed} {stage.name}'.encode())
    batches = Rollouts(study, experiment, stage, run, reasoners, folder, seed)
    # Two models at once, where the distance from the start counts.
    if policy.measures:
        params = start_params(study, experiment, stage, run.mesh)
        batches.begin(loop.on_mesh(params, shardings(params, run.mesh, run.model.rules)))
    return batches
