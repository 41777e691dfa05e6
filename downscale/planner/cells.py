"""From a request back to what it is compiled from: a cell, its model, their parameters, a teacher.
"""
from typing import Any

from jax.sharding import Mesh

from downscale import config
from downscale.model.init import abstract_params
from downscale.model.tower_words import WordModel, abstract_word_params
from downscale.model.vision import Tower
from downscale.model.vlm import Vlm
from downscale.planner.programs import ProgramRequest
from downscale.stages import teachers
from downscale.stages.models import groups_of, model_of
from downscale.train.run import TeacherModel
from downscale.values import from_dict


def experiment_of(request: ProgramRequest) -> config.Experiment:
    """Return the `Experiment` of a request, with one stage where one is trained."""
    stages = []
    if request.stage is not None:
        groups = list(request.stage['trainable'])
        # Rates and steps decide nothing of the program; they are there for the checks of a stage.
        stages = [{'name': request.stage['name'], 'steps': 1, 'batch': request.rows,
                   'length': request.length, 'tiles': request.tiles, 'trainable': groups,
                   'rates': dict.fromkeys(groups, 1.0), 'parents': {}}]
    return _cell_of(request.cell, mesh=dict(zip(('data', 'fsdp', 'tensor'), request.mesh)),
                    stages=stages)


def _cell_of(essence, **more):
    """Return the `Experiment` of what of a cell decides its programs."""
    # A text-only program has no tower and no pictures: None there means the default.
    cell = {key: part for key, part in essence.items() if part is not None}
    return from_dict(config.Experiment, {
        **cell, 'name': 'cell', 'size': 'any', 'seed': 0, **more,
        'language': essence['language'], 'vision': essence['vision']})


def teacher_of(cell: config.Experiment, request: ProgramRequest,
               target: Mesh) -> TeacherModel | None:
    """Return the teacher of the cell's only stage, on the mesh `target`; None without one."""
    taught = (request.stage or {}).get('teacher')
    if taught is None:
        return None
    stage, = cell.stages
    return teachers.of_cell(_cell_of(taught['cell']), taught['stage'], cell, stage, target)


def model_of_request(cell: config.Experiment, request: ProgramRequest) -> Vlm | WordModel:
    """Return the module whose parameters a program holds."""
    model = model_of(cell, request.stage['name'] if request.stage else 'instruct')
    assert not isinstance(model, Tower)  # a cell without a language model has no programs
    return model


def params_of(model: Vlm | WordModel, request: ProgramRequest) -> dict[str, Any]:
    """Return ShapeDtypeStructs of the parameters that a program holds."""
    if isinstance(model, WordModel):
        return abstract_word_params(model)
    parts = groups_of(model, sees=request.tiles > 0)
    if request.kind == 'see':
        parts = ('tower', 'connector')
    elif request.kind == 'prefix':  # reads features of pictures, which `see` has made
        parts = tuple(name for name in groups_of(model, sees=True)
                      if name not in ('tower', 'connector'))
    # pyrefly: ignore[bad-argument-type]
    return abstract_params(model, parts)
