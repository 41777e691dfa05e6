"""Where a stage lives, and whose folder that is."""
import dataclasses
import json
from pathlib import Path

from downscale import config
from downscale.config import Experiment
from downscale.runtime.files import PathLike, place, read_json


def folder_of(study: PathLike, experiment: Experiment, stage: str) -> Path:
    """Return the folder of a stage of a cell."""
    return place(study) / 'cells' / (experiment.trained_as or experiment.name) / stage


def is_done(folder: PathLike, experiment: Experiment) -> bool:
    """Return whether `folder` holds a finished run of exactly this cell."""
    done = read_json(place(folder) / 'DONE.json')
    return done is not None and done.get('hash') == experiment.hash


def refuse_other(folder: PathLike, experiment: Experiment) -> None:
    """Raise ValueError naming what differs when `folder` was started with another experiment."""
    # Through JSON, as the file has been: there tuples are lists and keys are text.
    before, now = (json.loads(json.dumps(dataclasses.asdict(cell)))
                   for cell in (config.load(folder), experiment))
    # Where the work is done is not what is done: a checkpoint continues on any mesh. Labels change
    # nothing.
    changed = sorted(key for key in now if now[key] != before[key]
                     and key not in ('mesh', *config.LABELS))
    if changed:
        raise ValueError(f'{folder} was started with other settings ({", ".join(changed)}); give '
                         'the study another folder with --out, or delete that one')
