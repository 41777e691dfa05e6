"""The models of a chain: run folders with a name, an identity and, when needed, an engine."""
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from downscale import config
from downscale.data.tokens import Encoder
from downscale.generate.engine import Engine
from downscale.generate.reflexive import reflexive_ids
from downscale.model.vlm import Vlm
from downscale.runtime.files import PathLike
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


def open_runs(folders: Iterable[PathLike], role: str, sees: bool = False,
              ban: bool = False) -> tuple[ChainModel, ...]:
    """Return the `ChainModel`s of run folders, each checked before any work.

    `role` is the option that names them, '' without one; models that `sees` must have a tower, and
    with `ban` their reflexive ids are looked up. ValueError or FileNotFoundError in one line for a
    model that cannot do its part or is given twice.
    """
    models = []
    for folder in folders:
        folder = Path(folder).absolute()
        named = f'--{role} {folder}' if role else str(folder)
        experiment = config.load(folder)
        # Parameter groups of the checkpoint say what a model can do, not its configuration.
        groups = {name.split('/')[0] for name in stored_leaves(latest(folder))}
        lacking = sorted(({'language'} | (SEES if sees else set())) - groups)
        if lacking:
            raise ValueError(f'{named} has no {" and no ".join(lacking)}; give a model '
                             f'that can {"see" if sees else "write"}')
        if not tokenizer_path(folder, experiment).is_file():
            raise FileNotFoundError(f'{named} has no tokenizer.json, nor a folder above')
        banned = ()
        tokenizer = tokenizer_of(folder, experiment) if ban else None
        if tokenizer is not None:
            banned = tuple(sorted(reflexive_ids(tokenizer)))
        models.append(
            ChainModel(
                name=_name(folder), folder=folder, fingerprint=fingerprint(folder), reflexive=banned
            )
        )
    prints = [run.fingerprint for run in models]
    again = [run.folder for k, run in enumerate(models) if run.fingerprint in prints[:k]]
    if again:
        named = f'--{role}: {again[0]}' if role else str(again[0])
        raise ValueError(f'{named} is given twice, or equals another')
    names = [run.name for run in models]
    # Files are called by these names: models that share one get the start of their fingerprint.
    return tuple(dataclasses.replace(run, name=f'{run.name}-{run.fingerprint[:6]}')
                 if names.count(run.name) > 1 else run for run in models)


def prompts_for(folders: Iterable[PathLike]) -> str:
    """Return the name of the prompts that the models of these run folders are used to.

    ValueError where the scene world's models stand beside others: no prompts suit both.
    """
    # Scene models know bare words only, the others need to be told what to do.
    micro = {folder: config.load(folder).chat == 'micro' for folder in folders}
    if len(set(micro.values())) > 1:
        # The first model of either kind: the dict is read from its end.
        first = {kind: folder for folder, kind in reversed(micro.items())}
        raise ValueError(f'{first[True]} is a model of the scene world, {first[False]} is not; say '
                         'with --prompts how to ask both: micro, paper or a file')
    return 'micro' if all(micro.values()) else 'paper'


def _name(folder):
    """Return the name that files get: cell and stage, or the folder of an imported model."""
    name = folder.name
    if folder.parent.parent.name == 'cells':
        name = f'{folder.parent.name}-{folder.name}'
    return ''.join(letter if letter.isalnum() or letter in '-_.+' else '_' for letter in name)


def open_engine(folder: Path, slots: int, tensor: int = 1) -> Engine:
    """Return the engine of a run folder, over the devices of this process.

    Heads are split over `tensor` of them.
    """
    model, params, _, _ = load(folder)
    assert isinstance(model, Vlm)  # `open_runs` lets no tower through
    return Engine(model, params, open_encoder(folder), slots, own_mesh(tensor))


def own_mesh(tensor: int = 1) -> Mesh | None:
    """Return a mesh over the devices of this process, None over one; rows share out the rest."""
    devices = jax.local_devices()
    return mesh(tensor=tensor, devices=devices) if len(devices) > 1 else None


def open_encoder(folder: Path) -> Encoder:
    """Return the `Encoder` of a run folder, without its model."""
    return encoder_of(folder, config.load(folder), folder.name)
