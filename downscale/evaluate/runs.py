"""The models of a chain: run folders with a name, an identity and, when needed, an engine."""
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax

from downscale import config
from downscale.generate.engine import Engine
from downscale.generate.reflexive import reflexive_ids
from downscale.sharding import mesh
from downscale.stages.fingerprint import fingerprint
from downscale.stages.loading import encoder_of, load, tokenizer_of, tokenizer_path
from downscale.train.checkpoint import latest, stored_leaves

SEES = {'tower', 'connector'}


@dataclass(frozen=True, kw_only=True)
class ChainModel:
    """A model of the chain; `name` is unique within it, `reflexive` what it may be forbidden."""
    name: str
    folder: Path
    fingerprint: str
    reflexive: tuple[int, ...] = ()


def open_runs(folders, role, sees=False, ban=False):
    """Return the `ChainModel`s of run folders, each checked before any work.

    ValueError or FileNotFoundError in one line where one cannot do what its `role` asks, `sees` or
    `ban`, or stands there twice.
    """
    found = []
    for folder in folders:
        folder = Path(folder).absolute()
        experiment = config.load(folder)
        groups = {name.split('/')[0] for name in stored_leaves(latest(folder))}
        lacking = sorted(({'language'} | (SEES if sees else set())) - groups)
        if lacking:
            raise ValueError(f'--{role} {folder} has no {" and no ".join(lacking)}; give a model '
                             f'that can {"see" if sees else "write"}')
        if not tokenizer_path(folder, experiment).is_file():
            raise FileNotFoundError(f'--{role} {folder} has no tokenizer.json, nor a folder above')
        banned = tuple(sorted(reflexive_ids(tokenizer_of(folder, experiment)))) if ban else ()
        found.append(
            ChainModel(
                name=_name(folder), folder=folder, fingerprint=fingerprint(folder), reflexive=banned
            )
        )
    prints = [run.fingerprint for run in found]
    again = [run.folder for k, run in enumerate(found) if run.fingerprint in prints[:k]]
    if again:
        raise ValueError(f'--{role}: {again[0]} is given twice, or equals another')
    names = [run.name for run in found]
    return tuple(dataclasses.replace(run, name=f'{run.name}-{run.fingerprint[:6]}')
                 if names.count(run.name) > 1 else run for run in found)


def prompts_for(folders):
    """Return the name of the prompts that the models of these run folders are used to.

    ValueError where the scene world's models stand beside others: no prompts suit both.
    """
    micro = {folder: config.load(folder).chat == 'micro' for folder in folders}
    if len(set(micro.values())) > 1:
        one, other = (next(folder for folder in micro if micro[folder] == kind)
                      for kind in (True, False))
        raise ValueError(f'{one} is a model of the scene world, {other} is not; say with --prompts '
                         'how to ask both: micro, paper or a file')
    return 'micro' if all(micro.values()) else 'paper'


def _name(folder):
    """Return the cell and stage of a study's folder, or the name of an imported model, fit for a
    file.
    """
    name = f'{folder.parent.name}-{folder.name}' if folder.parent.parent.name == 'cells' \
        else folder.name
    return ''.join(letter if letter.isalnum() or letter in '-_.+' else '_' for letter in name)


def open_engine(folder, slots):
    """Return the engine of a run folder, over the devices of this process."""
    devices = jax.local_devices()
    grid = mesh(devices=devices) if len(devices) > 1 else None
    model, params, _, _ = load(folder, grid)
    return Engine(model, params if grid else jax.device_put(params), open_encoder(folder), slots,
                  grid)


def open_encoder(folder):
    """Return the `Encoder` of a run folder, without its model."""
    return encoder_of(folder, config.load(folder), folder.name)
