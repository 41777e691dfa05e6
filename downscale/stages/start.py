"""What a stage starts from: values of its parents, of imports, or drawn from the seed."""
from typing import Any

from jax.sharding import Mesh

from downscale.config import Experiment, load
from downscale.experiment.references import parent_folder
from downscale.model.init import abstract_params, init_tree
from downscale.model.tower_words import abstract_word_params
from downscale.model.vlm import Vlm
from downscale.runtime.files import PathLike
from downscale.runtime.mounts import origin_of
from downscale.sharding import mesh, shardings
from downscale.stage_config import Stage
from downscale.stages.models import groups_of, model_of
from downscale.stages.shrinking import standard
from downscale.train import loop
from downscale.train.checkpoint import load_params
from downscale.train.state import abstract


def start_shapes(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Return the ShapeDtypeStructs of `start_params`; nothing is read."""
    model = model_of(experiment, stage.name)
    if stage.kind.loss == 'words':
        # pyrefly: ignore[bad-argument-type]
        return abstract_word_params(model)
    assert isinstance(model, Vlm)  # an imported tower alone has no stages
    # pyrefly: ignore[bad-argument-type]
    return abstract_params(model, groups_of(model, sees=stage.tiles > 0))


def start_params(study: PathLike, experiment: Experiment, stage: Stage,
                 grid: Mesh | None = None) -> dict[str, Any]:
    """Return the parameters that a stage starts from, as nested dicts of numpy arrays.

    Groups with a parent come from its checkpoint, others from `imports` or drawn from the seed. On
    a `grid` those of a checkpoint are jax arrays on its devices: a process reads what they hold.
    """
    target = start_shapes(experiment, stage)
    if stage.kind.loss == 'words':
        return init_tree(target, experiment.seed)
    stored = target
    if grid is not None:
        stored = abstract(target, shardings(target, grid, model_of(experiment, stage.name).rules))
    groups = list(target)
    rest = [name for name in groups if name not in stage.parents]
    # 1. What nothing is inherited for, such as the connector of the first stage that sees.
    params = init_tree({name: target[name] for name in rest if name not in experiment.imports},
                       experiment.seed, model_of(experiment, stage.name).growth)
    # 2. Published models.
    for name in rest:
        if name in experiment.imports:
            # Of a mounted folder straight from the bucket: a mount reads in order, not in parts.
            params |= load_params(origin_of(experiment.imports[name]), stored, [name])
    if 'language' in params and 'language' in experiment.imports:
        # A run of a muP study: what it multiplies by stands in none of its tensors.
        params = standard(params, load(experiment.imports['language']))
    # 3. Parents, each checkpoint opened once for all the groups that come from it.
    for reference in sorted(set(stage.parents.values())):
        wanted = [name for name, parent in stage.parents.items()
                  if parent == reference and name in groups]
        folder = parent_folder(study, experiment, reference)
        params |= load_params(folder, stored, wanted)
    return params


def grid_of(experiment: Experiment) -> Mesh:
    """Return the cell's mesh over the devices at hand.

    ValueError when it does not fit them, or a batch does not divide over it.
    """
    size = experiment.mesh
    grid = mesh(size.data, size.fsdp, size.tensor)
    # All stages: one that begins hours later must not be the first to tell.
    for stage in experiment.stages:
        try:
            loop.share(grid, model_of(experiment, stage.name).rules).rows(stage.batch)
        except ValueError as error:
            raise ValueError(f'{experiment.name}, stage {stage.name}: {error}') from None
    return grid
