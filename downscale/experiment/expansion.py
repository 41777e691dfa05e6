"""From a study file's ConfigDict and sweep to its cells; nothing else sees a ConfigDict."""
import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from downscale.config import LABELS, Experiment
from downscale.experiment import shrunk, sweeps, teachers
from downscale.experiment.references import reference_of
from downscale.sizes import LANGUAGE, LanguageConfig, scale
from downscale.stage_config import is_stage
from downscale.stage_table import STAGES
from downscale.values import from_dict, shown, unknown

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def language_of(family: str, size: str, vocabulary: int) -> LanguageConfig:
    """Return the LanguageConfig of `size` in a family's table.

    A size may also be any micro point like 'w96d5', or one that is cut from another: '135m-d15'
    keeps 15 layers (see `shrunk.py`, and `downscale import --layers`).
    """
    if family not in LANGUAGE:
        raise ValueError(unknown('family', family, list(LANGUAGE)))
    table = LANGUAGE[family]
    base = shrunk.base_of(size)
    if base in table:
        return shrunk.cut_to(scale(table[base], vocabulary=vocabulary or None), size)
    point = re.fullmatch('w(0|[1-9][0-9]{0,5})d(0|[1-9][0-9]{0,5})', base)
    # Micro models exist at any width and depth: the table only holds the usual ones.
    if family == 'micro' and point:
        return shrunk.cut_to(scale(table['w64d2'], int(point[1]), int(point[2]),
                                   vocabulary or None), size)
    raise ValueError(unknown(f'{family} size', size, list(table)))


def cells_of(config: 'ConfigDict', sweep: Collection[dict[str, Any]]) -> tuple[Experiment, ...]:
    """Return the experiments of the study, shared tower cells included.

    `config` is the locked ConfigDict of `get_config`; `sweep` lists points (see `sweeps.py`). Every
    cell is checked here, before any work starts.
    """
    # 1. What is of the study and not of a cell: its name and its claims.
    value = config.to_dict()
    name = value.pop('study', None)
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w .,+-]{0,99}', name):
        raise ValueError(f'study {shown(name)} must be the name of one folder: letters, digits and '
                         'any of " .,+-", at most 100')
    value.pop('claims', None)  # of the study, not of a cell
    # 2. The types that all below relies on.
    for key, kind in (('family', str), ('vocabulary', int), ('stages', dict)):
        if not isinstance(value.get(key), kind):
            raise ValueError(f'get_config(): {key} {shown(value.get(key))} must be of type '
                             f'{kind.__name__}')
    stages = value['stages']
    for name, settings in stages.items():
        if name not in STAGES:
            raise ValueError(f'stages: {unknown("stage", name, list(STAGES))}')
        if not isinstance(settings, dict):
            raise ValueError(f'stages.{name} must be a mapping, not {shown(settings)}')
        if settings.get('forks') and STAGES[name].shared:
            raise ValueError(f'stages.{name}.forks: all cells of a seed share the {name}; it has '
                             'none')
        if 'trunk' in settings:
            raise ValueError(f'stages.{name}.trunk is for the cells that `forks` makes; give forks')
    sweeps.check(sweep, stages)
    # 3. The cells, one seed after the other.
    shared = [name for name in stages if STAGES[name].shared]
    plain = [name for name in stages if not STAGES[name].named]
    cells = []
    for seed in dict.fromkeys(point['seed'] for point in sweep):
        points = [point for point in sweep if point['seed'] == seed]
        # The tower is shared by all sizes of a seed, and first, as they start from it.
        for name in shared:
            towers = {}
            for point in points:
                towers.setdefault(sweeps.shared_name(name, point), sweeps.shared(point))
            cells += [_cell(value, tower, point, [name]) for tower, point in towers.items()]
        # What is only asked otherwise stands behind the cell that is trained.
        trained = {}
        for point in sorted(points, key=sweeps.is_asked_otherwise):
            of_size = [name for name in point.get('stages', plain) if name not in shared]
            cell = _cell(value, sweeps.name_of(point), point, of_size)
            made = [cell, *_forks(cell, point)]
            first = trained.setdefault(sweeps.trained(point), made)
            if first is not made:
                made = [dataclasses.replace(asked, trained_as=other.name)
                        for asked, other in zip(made, first, strict=True)]
            cells += made
    _check_names(cells)
    _check_parents(cells)
    teachers.check(cells)
    shrunk.check_sources(cells)
    return tuple(cells)


def _forks(cell, point):
    """Return a cell for each fork of a cell's stages: that stage, and all that start from it."""
    forking = [stage for stage in cell.stages if stage.forks]
    if len(forking) > 1:
        names = ' and '.join(stage.name for stage in forking)
        raise ValueError(f'{cell.name}: stages {names} have forks; one stage may have them')
    cells = []
    for fork in forking[0].forked(cell.name) if forking else ():
        stages = [_of_trunk(fork, cell, ())]
        for later in cell.stages[cell.stages.index(forking[0]) + 1:]:
            there = [stage.name for stage in stages]
            if not set(there).isdisjoint(later.parents.values()):
                stages.append(_of_trunk(later, cell, there))
        name = sweeps.name_of({**point, f'stages.{fork.name}.steps': fork.steps})
        label = cell.label and f'{cell.label} steps{fork.steps}'
        cells.append(dataclasses.replace(cell, name=name, label=label, stages=tuple(stages)))
    return cells


def _of_trunk(stage, trunk, there):
    """Return a stage of a fork, with what is not `there` taken from its trunk."""
    parents = {group: parent if parent in there or '/' in parent else f'/{trunk.name}/{parent}'
               for group, parent in stage.parents.items()}
    teacher = stage.teacher
    if teacher in STAGES and teacher not in there:
        teacher = f'/{trunk.name}/{teacher}'
    return dataclasses.replace(stage, parents=parents, teacher=teacher)


def changes_of(cell: Experiment) -> str:
    """Return what tables call what a cell's point sets beside size and seed; '' for a plain cell.

    It is the label, or else as the cell's name has it, 'language0.001'.
    """
    return cell.label or cell.name.partition(f'{cell.size}-s{cell.seed}-')[2]


def _check_names(cells):
    """Raise ValueError where a fork has the name of another cell, or a label is told of two."""
    taken = set()
    called = {}
    for cell in cells:
        # Runs that are called alike would pass for seeds of one setting.
        key = cell.size, cell.seed, changes_of(cell)
        if not cell.is_shared and called.setdefault(key, cell.name) != cell.name:
            raise ValueError(f'{called[key]} and {cell.name} would both be called '
                             f'{shown(key[2])} in tables; give one another label')
        if cell.name.lower() in taken:
            raise ValueError(f'two cells would be called {cell.name}: one is a fork; leave it out '
                             'of sweep() or of `forks`')
        taken.add(cell.name.lower())


def _check_parents(cells):
    """Raise ValueError where a stage starts from one that is not before it.

    It would wait for ever.
    """
    # In the order in which cells are trained: what comes later can be no parent.
    before = set()
    for cell in cells:
        for stage in cell.stages if not cell.trained_as else ():
            for reference in stage.parents.values():
                name = reference_of(cell, reference)
                if name not in before:
                    known = [place.partition('/')[2] for place in before
                             if place.startswith(f'{cell.name}/')]
                    raise ValueError(f'{cell.name}, stage {stage.name}, parents: '
                                     f'{unknown("stage", reference, known)}')
                other, _, start = name.partition('/')
                # Of two that are both meant, perhaps, neither is taken in silence.
                if reference.startswith('{size}/') and other != cell.name and start != stage.name \
                        and start in (trained.name for trained in cell.stages):
                    raise ValueError(f'{cell.name}, stage {stage.name}, parents: {reference} is '
                                     f'that of {other}, and this cell trains its own; write '
                                     f'{start!r} or {"/" + name!r}')
            before.add(f'{cell.name}/{stage.name}')
    _check_reasoners(cells, before)


def _check_reasoners(cells, trained):
    """Raise ValueError where a stage is to be judged by one that no cell trains.

    A stage of text starts from no stage that sees, so that none waits for itself.
    """
    for cell in cells:
        for stage in cell.stages:
            for name in filter(is_stage, stage.judges):
                if reference_of(cell, name) not in trained:
                    known = sorted(place for place in trained if is_stage(place))
                    raise ValueError(f'{cell.name}, stage {stage.name}, policy.reasoners: '
                                     f'{unknown("stage", reference_of(cell, name), known)}')


def _cell(value, name, point, stages):
    """Return the cell of a point, with the named ones of the study's stages."""
    # What is cut computes as standard: muP's multipliers are in its weights.
    if 'shrink' in stages:
        value = {key: part for key, part in value.items() if key != 'parametrisation'}
    value = sweeps.applied(value, point)
    if 'trained_as' in value:
        raise ValueError('trained_as is for cells that sweep() asks otherwise; leave it out')
    for key in LABELS:
        if key in value:
            raise ValueError(f'{key} is declared by the points of sweep(), each its own; leave it '
                             'out of get_config()')
    # An Experiment has these in another form: its language and its stages are made of them.
    family, vocabulary, made = (value.pop(key) for key in ('family', 'vocabulary', 'stages'))
    language = dataclasses.asdict(language_of(family, point['size'], vocabulary))
    for where in (value, point):
        if not isinstance(where.get('imports', {}), Mapping):
            raise ValueError(f'{name}.imports must be groups and where they come from, not '
                             f'{shown(where["imports"])}')
    imports = {**value.get('imports', {}), **point.get('imports', {})}
    # A ConfigDict sorts its keys; STAGES holds parents before children.
    full = [{'name': stage, 'parents': kind.parents, 'trainable': kind.trainable, **made[stage]}
            for stage, kind in STAGES.items() if stage in made and stage in stages]
    full = shrunk.with_sources(full, point['size'], name)
    # An imported group has no parent unless a stage of this study makes it.
    for stage in full:
        if isinstance(stage['parents'], Mapping):  # else `from_dict` says what is wrong with it
            stage['parents'] = {group: _shared_parent(parent, point)
                                for group, parent in stage['parents'].items()
                                if group not in imports or str(parent).rpartition('/')[2] in made}
    return from_dict(Experiment, {**value, 'name': name, 'size': point['size'],
                                  'seed': point['seed'], 'language': language, 'stages': full,
                                  'imports': imports,
                                  'budget': point.get('budget', ''),
                                  'label': point.get('label', '')}, name)


def _shared_parent(parent, point):
    """Return a parent; of a shared cell that is not that of all points of a seed, by its name."""
    other, _, stage = str(parent).rpartition('/')
    name = sweeps.shared_name(other, point)
    return parent if not other or name == f'{other}-s{point["seed"]}' else f'/{name}/{stage}'
