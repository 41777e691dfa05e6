"""Teachers of a study's stages: which model a reference names, and whether a stage can learn of it.

A reference whose last part is the name of a stage is one of this study; any other is the folder of
a model. In front stands what `parents` have there, or the name of a cell with its seed.
"""
import re
from collections.abc import Collection, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

from downscale.config import Experiment, load
from downscale.experiment.references import reference_of
from downscale.runtime.files import in_bucket, place
from downscale.stage_config import Stage, is_stage
from downscale.stage_table import STAGES
from downscale.values import shown, unknown


def stage_of(cell: Experiment, stage: Stage) -> str | None:
    """Return 'CELL/STAGE' of the teacher of a stage; None where it is a folder, or there is none.
    """
    other, _, name = stage.teacher.removeprefix('/').rpartition('/')
    if name not in STAGES or '/' in other:
        return None
    # Sizes have no seed in their names, cells have.
    of_one_cell = re.search(r'-s\d+(-|$)', other)
    return f'{other}/{name}' if of_one_cell else reference_of(cell, stage.teacher)


def find(cells: Collection[Experiment], cell: Experiment, stage: Stage) -> tuple[Experiment, str]:
    """Return (the teacher's cell, the name of its stage or of its folder).

    ValueError with the nearest that there is, where the study has no such stage and no folder of
    that name holds a model.
    """
    reference = stage_of(cell, stage)
    if in_bucket(stage.teacher):
        raise ValueError(f'{cell.name}, stage {stage.name}: its teacher {shown(stage.teacher)} is '
                         'in a bucket; mount that, or copy the model here')
    if reference is None and (place(stage.teacher) / 'experiment.json').is_file():
        return load(stage.teacher), PurePosixPath(stage.teacher).name
    names = {other.name: other for other in cells if not other.trained_as}
    name, _, taught = (reference or '').rpartition('/')
    if name in names and taught in [known.name for known in names[name].stages]:
        return names[name], taught
    raise ValueError(f'{cell.name}, stage {stage.name}: '
                     f'{unknown("teacher", stage.teacher, _known(names.values(), cell.seed))}')


def _known(cells, seed) -> Iterator[str]:
    """Yield how the stages of a study are named as teachers of a cell of this seed."""
    for cell in cells:
        size, dash, rest = cell.name.rpartition(f'-s{seed}')
        for stage in cell.stages:
            if stage.kind.loss in ('tokens', 'policy'):
                yield f'{size if dash and not rest else cell.name}/{stage.name}'


def check(cells: Sequence[Experiment]) -> None:
    """Raise ValueError in one line where a stage cannot learn from its teacher, or waits for ever.
    """
    for cell in cells:
        for stage in cell.stages if not cell.trained_as else ():
            if stage.teacher:
                teacher, name = find(cells, cell, stage)
                _refuse_later(cell, stage, teacher, name)
                fault = _fault(cell, stage, teacher, name)
                if fault:
                    raise ValueError(f'{cell.name}, stage {stage.name}: its teacher '
                                     f'{shown(stage.teacher)} {fault}')
    in_order(cells)


def _refuse_later(cell, stage, teacher, name):
    """Raise ValueError where a stage would learn from itself or from a later one of its cell."""
    # Of other cells `in_order` tells: here the order of the table is that of training.
    if teacher is not cell:
        return
    names = [each.name for each in cell.stages]
    if names.index(name) >= names.index(stage.name):
        which = 'itself' if name == stage.name else 'trained after it'
        raise ValueError(f'{cell.name}, stage {stage.name}: its teacher {shown(stage.teacher)} is '
                         f'{which}; give the teacher in the points of sweep() that learn from it')


def _fault(cell, stage, teacher, name):
    """Return why a stage cannot learn from its teacher, '' where it can."""
    if teacher.language is None or name in STAGES and STAGES[name].loss not in ('tokens', 'policy'):
        return 'has no distribution over the next token; name a stage that has a language model'
    if teacher.language.V != cell.language.V:
        return (f'has another vocabulary, of {teacher.language.V:,} rows and not '
                f'{cell.language.V:,}; both must have one tokenizer')
    if not stage.tiles:
        return ''
    trained = next((each for each in teacher.stages if each.name == name), None)
    if teacher.vision is None or trained is not None and not trained.tiles:
        return 'cannot see, and this stage has pictures; name one that was trained with them'
    if (teacher.vision.P, teacher.vision.Q) != (cell.vision.P, cell.vision.Q):
        return (f'sees {teacher.vision.P} patches of {teacher.vision.Q} numbers in a tile, and '
                f'this stage has {cell.vision.P} of {cell.vision.Q}; give both one `vision`')
    # An index to a newline would reach beyond the features of a model that has none.
    if cell.layout(stage.name).newline and not teacher.layout(name).newline:
        return ('knows no newline between rows of patches, which the pictures of this stage have; '
                'name a stage after `align`')
    return ''


def in_order(cells: Sequence[Experiment]) -> list[Experiment]:
    """Return the cells, each behind those that it starts or learns from, else in their order.

    ValueError where they wait for one another: a job trains a whole cell.
    """
    by_name = {cell.name: cell for cell in cells}
    needs = {name: [other for other in needs_of(cell) if other in by_name and other != name]
             for name, cell in by_name.items()}
    # Stages could take turns where a study runs them one by one; jobs of whole cells could not.
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = ', '.join(reversed(error.args[1]))
        raise ValueError(f'cells wait for one another, through parents, teachers or '
                         f'reasoners: {circle}; leave out one') from None
    # Not in the order of the sorter, which goes by rounds: without a teacher all stays as it is.
    placed = {}

    def put(name):
        for other in needs[name] if name not in placed else ():
            put(other)
        placed.setdefault(name, by_name[name])

    for name in by_name:
        put(name)
    return list(placed.values())


def needs_of(cell):
    """Yield the names of the cells that a cell starts or learns from."""
    for stage in cell.stages if not cell.trained_as else ():
        references = [reference_of(cell, parent) for parent in stage.parents.values()]
        references.append(stage_of(cell, stage) if stage.teacher else None)
        references += [reference_of(cell, name) for name in stage.judges if is_stage(name)]
        for reference in filter(None, references):
            yield reference.rpartition('/')[0]
        if stage.trunk:
            yield stage.trunk
