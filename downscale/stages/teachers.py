"""The teacher of a stage: its model, its frozen parameters on the mesh, and a note which it was."""
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from downscale import config
from downscale.config import Experiment
from downscale.data.tokens import hash_of, load_tokenizer
from downscale.experiment import teachers
from downscale.model.init import abstract_params
from downscale.model.vlm import Vlm
from downscale.runtime.files import PathLike, place, read_json, scratch, write_json
from downscale.runtime.mounts import origin_of
from downscale.sharding import shardings
from downscale.stage_config import Stage
from downscale.stages import attention
from downscale.stages.loading import tokenizer_path
from downscale.stages.models import groups_of, model_of
from downscale.train.checkpoint import latest, load_params
from downscale.train.loss import Distillation
from downscale.train.run import TeacherModel
from downscale.train.state import abstract
from downscale.values import shown

NOTE = 'teacher.json'


def folder_of(study: PathLike, experiment: Experiment, stage: Stage) -> PathLike:
    """Return the folder of the teacher of a stage."""
    reference = teachers.stage_of(experiment, stage)
    return stage.teacher if reference is None else place(study) / 'cells' / reference


def teacher_of(study: PathLike, experiment: Experiment, stage: Stage,
               grid: Mesh) -> TeacherModel | None:
    """Return the teacher of a stage on the mesh `grid`; None where it has none.

    ValueError in one line where it is not trained to its end, or the mesh does not divide it.
    """
    if not stage.teacher:
        return None
    folder = folder_of(study, experiment, stage)
    where = f'{experiment.name}, stage {stage.name}: its teacher {shown(stage.teacher)}'
    # A half-trained one has checkpoints as well, and would teach without a word.
    if not (place(folder) / 'DONE.json').is_file():
        raise ValueError(f'{where} is not trained to its end; train it first')
    cell = config.load(folder)
    try:
        teacher = of_cell(cell, place(folder).name, experiment, stage, grid)
        shardings(shapes_of(teacher.model, stage), grid, teacher.model.rules)
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from None
    return teacher


def of_cell(cell: Experiment, name: str, experiment: Experiment, stage: Stage,
            grid: Mesh) -> TeacherModel:
    """Return the teacher that stage `name` of `cell` is for a stage of `experiment`."""
    # Nothing is differentiated, so nothing is computed again.
    model = model_of(cell, name).clone(remat='none')
    asked = dataclasses.replace(cell, attention=experiment.attention)
    programs = attention.programs(asked, stage, grid)
    return TeacherModel(model=model, attention=tuple(sorted(programs.items())),
                   distil=Distillation(stage.distil, stage.kind.divergence == 'reverse'))


def shapes_of(model: Vlm, stage: Stage) -> dict[str, Any]:
    """Return the ShapeDtypeStructs of what a stage reads of its teacher.

    Matrices are in the dtype that the teacher computes in, gains as they are stored.
    """
    def typed(path, leaf):
        gain = 'scale' in str(path[-1].key)
        return leaf if gain else jax.ShapeDtypeStruct(leaf.shape, model.dtype)

    # pyrefly: ignore[bad-argument-type]
    tree = abstract_params(model, groups_of(model, sees=stage.tiles > 0))
    return jax.tree_util.tree_map_with_path(typed, tree)


def params_of(study: PathLike, experiment: Experiment, stage: Stage, model: Vlm,
              grid: Mesh) -> dict[str, Any]:
    """Return the frozen parameters of the teacher `model` of a stage, on the devices of `grid`."""
    # Read to its devices in that dtype: no host holds the whole of a large teacher.
    shapes = shapes_of(model, stage)
    folder = folder_of(study, experiment, stage)
    return load_params(origin_of(folder), abstract(shapes, shardings(shapes, grid, model.rules)))


def note(study: PathLike, experiment: Experiment, stage: Stage, folder: Path) -> None:
    """Write into the `folder` of a stage which checkpoint teaches it; nothing without a teacher.

    ValueError where it was begun with another one, which has been trained anew since.
    """
    if not stage.teacher:
        return
    source = folder_of(study, experiment, stage)
    cell = config.load(source)
    assert cell.language is not None  # looked at before
    vision = cell.vision and dataclasses.asdict(cell.vision)
    # Its sizes as well: the analysis prices a run from this folder alone, wherever that is by then.
    value = {'teacher': teachers.stage_of(experiment, stage) or stage.teacher,
             'hash': cell.hash, 'step': int(latest(source).name), 'distil': stage.distil,
             'divergence': stage.kind.divergence,
             'language': dataclasses.asdict(cell.language), 'vision': vision}
    begun = read_json(folder / NOTE)
    if begun is not None and begun != value:
        changed = ', '.join(key for key in value if begun.get(key) != value[key])
        raise ValueError(f'{folder} was begun with another teacher ({changed}); give the study '
                         'another folder with --out, or delete this one')
    write_json(folder / NOTE, value)


def refuse_other_tokenizer(study: PathLike, cells: Iterable[Experiment]) -> None:
    """Raise ValueError where a teacher of `cells` has another tokenizer than the cell it teaches.

    The ids of one would be other words for the other.
    """
    cells = list(cells)
    for cell in cells:
        for stage in cell.stages if not cell.trained_as else ():
            if not stage.teacher:
                continue
            teacher, _ = teachers.find(cells, cell, stage)
            home = scratch(study)
            if teachers.stage_of(cell, stage) is None:
                home = Path(stage.teacher)
            paths = tokenizer_path(home, teacher), tokenizer_path(scratch(study), cell)
            # One path or one content: a study copies its tokenizer where it is taken along.
            if len({hash_of(load_tokenizer(path)) for path in set(paths)}) > 1:
                raise ValueError(f'{cell.name}, stage {stage.name}: its teacher '
                                 f'{shown(stage.teacher)} has another tokenizer, {paths[0]}, than '
                                 f'{paths[1]}; name a teacher of the same')
