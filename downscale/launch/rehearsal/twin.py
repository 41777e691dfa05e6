"""The tiny twin of a study: the same cells, stages and tasks, at sizes that run here in seconds."""
import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from downscale.config import Experiment
from downscale.experiment import file
from downscale.launch.backends import sweep
from downscale.launch.backends.sweep import Sweep
from downscale.launch.spec import Spec, processes_of

RUN = 'gs://rehearsal/run'  # where none is given
STEPS = 6
DECAY = 0.2  # of each fork of so few steps the last one
SAVE_EVERY = 2  # so that each stage has something to lose between two checkpoints
# The most of everything that makes a study of scenes large. `None` is where a study says nothing.
MOST = {'data.train': 60, 'data.validation': 4, 'data.test': 12, 'evaluation.scenes': 4,
        'evaluation.batch': 16, 'evaluation.answer': 8, 'evaluation.write': 8,
        'evaluation.think': 8, 'evaluation.pictures': 2}
# What a twin may differ in; a prefix ends with a dot.
SIZES = ('name', 'size', 'language.', 'vision.', 'dtype', 'imports.', 'data.', 'stages.*.steps',
         'stages.*.save_every', 'stages.*.batch', 'stages.*.length', 'stages.*.tiles',
         'stages.*.buckets.', 'stages.*.parents.', 'stages.*.forks', 'stages.*.forks.',
         'stages.*.decay', 'stages.*.warmup', 'stages.*.trunk', 'stages.*.teacher', 'trained_as',
         'evaluation.')


def arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Return the command line of the twin of a study: another `FILE.py:ARG`, and more of `--set`.

    ValueError in one line for a study that is too large and declares no `twin(arg)`.
    """
    path = args.config.partition(':')[0]
    arg = file.twin_of(args.config)
    name = args.config if arg is None else f'{path}:{arg}'
    config, _ = file.load_study(name, args.set)
    if config.family != 'micro':
        raise ValueError(f'{path}: models of the family {config.family} are too large for a '
                         'rehearsal; give the file a function twin(arg), as '
                         'experiments/extraction_tuning.py has')
    count, each = processes_of(args.topology or sweep.HERE)
    changes = _changes(config.to_dict(), count * each)
    twin = argparse.Namespace(**vars(args))
    twin.config = name
    twin.folder = args.folder or RUN
    twin.set = [*args.set, *(f'{key}={value!r}' for key, value in changes.items())]
    return twin


def _changes(config, devices):
    """Return {key: value} of what makes a study smaller; what is small stays."""
    changes = {}
    for name, stage in config['stages'].items():
        changes[f'stages.{name}.steps'] = min(stage['steps'], STEPS)
        changes[f'stages.{name}.save_every'] = SAVE_EVERY
        if stage.get('forks'):
            changes[f'stages.{name}.forks'] = _forks(name, len(stage['forks']))
            changes |= {f'stages.{name}.decay': DECAY, f'stages.{name}.warmup': 0.0}
        # Each device has a part of a batch.
        batch = math.lcm(stage['batch'], devices)
        if batch != stage['batch']:
            changes[f'stages.{name}.batch'] = devices
    for key, most in MOST.items():
        group, _, part = key.partition('.')
        value = config.get(group, {}).get(part)
        if isinstance(value, int) and value > most:
            changes[key] = most
    return changes


def _forks(stage, count):
    """Return the last `count` numbers of steps before those of the twin; ValueError for more."""
    if count > STEPS - 2:
        raise ValueError(f'stage {stage} has {count} forks, and a rehearsal takes {STEPS} steps; '
                         'give the file a function twin(arg)')
    return tuple(range(STEPS - count, STEPS))


def paired(submitted: Sweep, twin: Sweep) -> list[tuple[Spec, Spec]]:
    """Return (spec as submitted, spec of the twin) of every job.

    ValueError in one line where the twin has other jobs, or steps that its sweep sets.
    """
    if [spec.part for spec in submitted.planned] != [spec.part for spec in twin.planned]:
        raise ValueError(f'the twin has {len(twin.planned)} jobs and the study '
                         f'{len(submitted.planned)}; its twin(arg) must make the same cells')
    for cell in twin.cells:
        for stage in cell.stages:
            if stage.steps > STEPS:
                raise ValueError(f'{cell.name}: its point sets {stage.steps} steps of '
                                 f'{stage.name}; give the file a function twin(arg)')
    return list(zip(submitted.planned, twin.planned, strict=True))


# --- differences ------------------------------------------------------------------------------

def rehearsed(manifest: Any, submitted: Spec, twin: Spec) -> Any:
    """Return a manifest as it is submitted, with the names of the twin in the place of its own."""
    names = {submitted.name: twin.name, submitted.hash: twin.hash, submitted.cell: twin.cell,
             submitted.run: twin.run, submitted.group: twin.group}
    if isinstance(manifest, dict):
        return {key: rehearsed(value, submitted, twin) for key, value in manifest.items()}
    if isinstance(manifest, list):
        return [rehearsed(value, submitted, twin) for value in manifest]
    if isinstance(manifest, str):
        for before, after in names.items():
            manifest = manifest.replace(before, after)
    return manifest


def flat(value: Any, path: str = '') -> dict[str, Any]:
    """Return {path: leaf} of nested dicts and lists; what has a name is listed by it."""
    if isinstance(value, dict) and value:
        parts = value.items()
    elif isinstance(value, (list, tuple)) and value:
        parts = [(part.get('name', str(k)) if isinstance(part, dict) else str(k), part)
                 for k, part in enumerate(value)]
    else:
        return {path: value}
    leaves = {}
    for key, part in parts:
        leaves |= flat(part, f'{path}.{key}' if path else str(key))
    return leaves


def differences(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Return {path: (before, after)} of the leaves that differ; one that is missing is None."""
    one = flat(before)
    other = flat(after)
    return {path: (one.get(path), other.get(path)) for path in one | other
            if one.get(path) != other.get(path)}


def of_cells(submitted: Sequence[Experiment],
             twin: Sequence[Experiment]) -> dict[str, tuple[Any, Any]]:
    """Return {setting: (before, after)} of what differs between the cells of a study and its twin.

    A setting that differs from cell to cell has all its values.
    """
    changed = {}
    for large, small in zip(submitted, twin, strict=True):
        # Through JSON, as a cell is saved: there tuples are lists.
        pair = [json.loads(json.dumps(dataclasses.asdict(cell))) for cell in (large, small)]
        for path, (before, after) in differences(*pair).items():
            values = changed.setdefault(path, ([], []))
            for kept, value in zip(values, (before, after), strict=True):
                if value not in kept:
                    kept.append(value)
    return {path: (_shown(before), _shown(after)) for path, (before, after) in changed.items()}


def _shown(values):
    return values[0] if len(values) == 1 else ', '.join(map(str, values))


def beyond_size(changed: Mapping[str, Any]) -> list[str]:
    """Return those of the settings that are neither a size nor a number of steps."""
    return [path for path in changed if not any(_allowed(path, size) for size in SIZES)]


def _allowed(path, size):
    parts = path.split('.')
    wanted = size.rstrip('.').split('.')
    if len(parts) < len(wanted) or (len(parts) > len(wanted) and not size.endswith('.')):
        return False
    return all(want in ('*', part) for part, want in zip(parts, wanted, strict=False))


def edited(folder: Path, spec: Spec, ending: str) -> str:
    """Return the manifest or commands of a job that `launch plan` has written into a folder."""
    path = folder / f'{spec.name}{ending}'
    if not path.is_file():
        raise ValueError(f'no {path}, the manifest of {spec.key}; write it with: downscale launch '
                         'plan, and the same settings')
    return path.read_text()
