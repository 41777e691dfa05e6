"""The stage 'shrink' of a cell: the model of another cell, cut to the sizes of this one."""
import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from downscale import config
from downscale.config import Experiment
from downscale.experiment.references import parent_folder, reference_of
from downscale.model.init import abstract_params
from downscale.model.vlm import Vlm
from downscale.runtime.files import PathLike, write_json
from downscale.shrink.transform import Shrinking, folded, shrink
from downscale.sizes import Growth, Parametrisation
from downscale.stage_config import Stage
from downscale.stages.fingerprint import fingerprint
from downscale.stages.models import groups_of, model_of
from downscale.train.checkpoint import committed, load_params
from downscale.train.lazy_leaves import save_leaves

NOTE = 'shrink.json'  # what was done to a model, beside it


def shrink_stage(study: PathLike, experiment: Experiment, stage: Stage, folder: Path,
                 batches: Iterable[dict[str, Any]]) -> None:
    """Write the smaller model into the folder of its stage, unless it is there; one process does.

    It is held in memory as a whole. ValueError where a group of it has no parent.
    """
    if committed(folder) is not None:  # killed before it was called done
        return
    source = parent_folder(study, experiment, stage.parents['language'])
    before = config.load(source)
    model, params = _source(study, experiment, stage, before)
    how = Shrinking(
        after=_decoder(experiment),
        by=stage.by,
        bits=stage.bits,
        group=stage.group,
    )
    read = itertools.islice(batches, stage.steps)
    params, done = shrink(model, params, how, read)
    # Of the study, not of the machine: it may be moved, and what is cut is the same elsewhere.
    write_note(folder, done, source, reference_of(experiment, stage.parents['language']))
    save_arrays(folder, params, stage.steps)


def _source(study, experiment, stage, before):
    """Return (model, its numpy parameters) that a stage starts from, as of the standard kind."""
    model = model_of(dataclasses.replace(experiment, language=before.language), stage.name)
    assert isinstance(model, Vlm)
    groups = groups_of(model, sees=stage.tiles > 0)
    lacking = sorted(set(groups) - set(stage.parents))
    if lacking:
        raise ValueError(f'{experiment.name}, stage {stage.name}: its parents say nothing of '
                         f'{", ".join(lacking)}; name where they come from, or set tiles=0')
    params = {}
    for reference in sorted({stage.parents[group] for group in groups}):
        wanted = [group for group in groups if stage.parents[group] == reference]
        # pyrefly: ignore[bad-argument-type]
        params |= load_params(parent_folder(study, experiment, reference),
                              abstract_params(model, groups), wanted)
    return model, standard(params, before)


def standard(params: dict[str, Any], cell: Experiment) -> dict[str, Any]:
    """Return the parameters of a cell as those of the standard kind that compute the same."""
    language = _decoder(cell)
    growth = cell.parametrisation.growth(language)
    if growth == Growth():
        return params
    return {**params, 'language': folded(params['language'], growth, language.tie)}


def _decoder(cell):
    assert cell.language is not None  # a tower alone has no stages
    return cell.language


def write_note(folder: Path, done: dict[str, Any], source: Path, name: str) -> None:
    """Write what was done to the model in `source`, called `name`, into the folder of the new one.
    """
    # muP of the source is in the weights of the new one.
    kind = config.load(source).parametrisation.kind
    write_json(folder / NOTE, {'source': name, 'fingerprint': fingerprint(source),
                               'parametrisation': kind, **done})


@dataclass(frozen=True, eq=False)
class _Array:
    """A numpy array as `save_leaves` reads it: in one chunk."""
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def chunk(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        return np.ascontiguousarray(self.values[index])


def save_arrays(folder: Path, params: dict[str, Any], step: int = 0) -> None:
    """Write numpy parameters by group as a step of `folder`."""
    save_leaves(folder, jax.tree.map(lambda leaf: _Array(np.asarray(leaf)), params), {}, step)


def plain(cell: Experiment, **changes: Any) -> Experiment:
    """Return a cell as that of a model that stands alone: no stages, imports or muP."""
    return dataclasses.replace(cell, stages=(), imports={}, tokenizer='', budget='', trained_as='',
                               parametrisation=Parametrisation(), **changes)
