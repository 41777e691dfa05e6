"""Sweeps as values: a sweep is a list of points, a point what one cell changes in its study.

A point has a 'size' and a 'seed', may have 'imports' and the names of its 'stages', and changes
settings by their path: {'size': 'w32d2', 'seed': 0, 'stages.text.rates.language': 3e-3}. Its
'budget' (text, as '1e12') says which compute it spends: isoFLOP curves group by it as it stands.
Its 'label' is what tables and figures call what it changes, in the place of paths and values.
"""
import itertools
from collections.abc import Collection, Hashable, Iterable
from typing import Any

from downscale.experiment import names
from downscale.values import shown, unknown

POINT = ('size', 'seed', 'imports', 'stages', 'budget', 'label')
LONGEST = 60  # characters of a label: more fit no figure
# What cells of one study may differ in. Those that differ in none of `SEEN` share their tower, and
# those that differ in `ASKED` alone share all that is trained.
SEEN = ('world', 'data', 'vision')
ASKED = 'evaluation'
GROUPS = ('stages', *SEEN, ASKED, 'optimizer', 'parametrisation', 'mesh', 'dtype', 'remat',
          'unroll', 'attention')


def axis(key: str, values: Iterable) -> list[dict[str, Any]]:
    """Return the sweep over the values of one key."""
    return union([{key: value} for value in values])


def product(*sweeps: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every combination of points, the last sweep varying fastest."""
    points = [{}]
    for sweep in sweeps:
        pairs = itertools.product(points, sweep)
        points = [_merged(point, other) for point, other in pairs]
    return union(points)


def zipped(*sweeps: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return first points together, second points together, and so on.

    ValueError for sweeps of unequal lengths.
    """
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f'zipped sweeps must be of one length, not of {lengths}')
    return union([_joined(points) for points in zip(*sweeps)])


def union(*sweeps: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all points, in order; ValueError for one that occurs twice."""
    points = {}
    for point in itertools.chain.from_iterable(sweeps):
        key = _frozen(point)
        if key in points:
            raise ValueError(f'the sweep has the point {shown(point, 160)} twice')
        points[key] = point
    return list(points.values())


def _frozen(value):
    """Return a value that can be a key, equal for equal values."""
    # Thousands of points are compared: pair by pair would take their square.
    if isinstance(value, dict):
        return frozenset((key, _frozen(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_frozen(part) for part in value)
    return value if isinstance(value, Hashable) else repr(value)


def _joined(points):
    """Return what all these points change, as one point."""
    joined = {}
    for point in points:
        joined = _merged(joined, point)
    return joined


def _merged(point, other):
    """Return what two points change, as one; ValueError where they disagree."""
    for key in point.keys() & other.keys():
        if point[key] != other[key]:
            raise ValueError(f'one point cannot have {key} {shown(point[key])} and '
                             f'{shown(other[key])}; take the union of these sweeps, not their '
                             'product')
    return point | other


def shared(point: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a point that its tower cell has, which all cells of a seed share."""
    return {key: value for key, value in point.items()
            if key in ('size', 'seed', 'imports') or key.partition('.')[0] in SEEN}


def shared_name(name: str, point: dict[str, Any]) -> str:
    """Return the name of the cell that a point shares with others, such as 'tower-s0'."""
    changed = {key: value for key, value in shared(point).items() if key not in POINT}
    words = dict.fromkeys(names.word(key, value) for key, value in changed.items())
    return names.short('-'.join([f'{name}-s{point["seed"]}', *words]), changed)


def is_asked_otherwise(point: dict[str, Any]) -> bool:
    """Return whether a point changes what is asked of its cell."""
    return any(key.partition('.')[0] == ASKED for key in point)


def trained(point: dict[str, Any]) -> Hashable:
    """Return a key that is equal for points whose cells train alike and are asked otherwise."""
    return _frozen({key: value for key, value in point.items()
                    if key not in ('budget', 'label') and key.partition('.')[0] != ASKED})


def name_of(point: dict[str, Any]) -> str:
    """Return the name of a point's cell: size, seed, and the last words of what else it changes.

    It is fit for folders, labels and shells whatever the values are; see `names.py`.
    """
    changed = {key: value for key, value in point.items() if key not in POINT}
    words = dict.fromkeys(names.word(key, value) for key, value in changed.items())
    return names.short('-'.join([point['size'], f's{point["seed"]}', *words]), changed)


def check(sweep: Collection[dict[str, Any]], stages: Collection[str]) -> None:
    """Raise ValueError where points of a study with these `stages` are wrong or share a name."""
    if not isinstance(sweep, (list, tuple)) or not sweep:
        raise ValueError(f'sweep() gives {shown(sweep)}; it must give a list of points, one or '
                         "more, as {'size': 'w32d2', 'seed': 0}")
    for point in sweep:
        _check_point(point, stages)
    taken = {}
    for point in union(sweep):
        name = name_of(point)
        # Some file systems would put both in one folder.
        if name.lower() in taken:
            raise ValueError(f'two cells would be called {name}: {shown(taken[name.lower()])} and '
                             f'{shown(point)}')
        taken[name.lower()] = point


def _check_label(point):
    """Raise ValueError where a label is that of a plain point, or would spoil a table."""
    label = point.get('label', '')
    if label and point.keys() <= set(POINT):
        raise ValueError(f'sweep: label {shown(label)} is for what a point changes, and '
                         f'{shown(point)} changes nothing; leave it out')
    if len(label) > LONGEST or label.strip() != label or not label.isprintable():
        raise ValueError(f'sweep: label {shown(label)} must be a line of at most {LONGEST} '
                         'characters without blanks around it')


def _check_point(point, stages):
    """Raise ValueError where a point of the sweep lacks something or changes what it may not."""
    if not isinstance(point, dict) or not all(isinstance(key, str) for key in point):
        raise ValueError(f'the point {shown(point)} of the sweep must be a mapping of names')
    missing = [key for key in ('size', 'seed') if key not in point]
    if missing:
        raise ValueError(f'the point {shown(point)} of the sweep has no '
                         f'{" and no ".join(missing)}')
    for key, kind in (('size', str), ('seed', int), ('imports', dict), ('budget', str),
                      ('label', str)):
        # `kind()` is of the right type, so that what is not given passes.
        value = point.get(key, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f'sweep: {key} {shown(value)} must be of type {kind.__name__}')
    _check_label(point)
    chosen = point.get('stages', ())
    if not isinstance(chosen, (list, tuple)):
        raise ValueError(f'sweep: stages {shown(chosen)} must be a list of names')
    for name in chosen:
        if name not in stages:
            raise ValueError(f'sweep: {unknown("stage", name, list(stages))}')
    for key in sorted(point.keys() - set(POINT)):
        group, _, rest = key.partition('.')
        if group not in GROUPS or (group in ('stages', *SEEN, ASKED) and not rest):
            raise ValueError(f'sweep: {unknown("key", key, [*POINT, *GROUPS])}')
        if key.startswith('stages.tower.'):
            raise ValueError(f'sweep: {shown(key)}: all cells of a seed share the tower; change it '
                             'for all with --set')


def applied(settings: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a study's settings (plain dicts) with what a point changes by path."""
    settings = copied(settings)
    for key, value in point.items():
        if key not in POINT:
            set_value(settings, key, value, 'sweep')
    return settings


def copied(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts copied, so that no two places of the settings are one dict.

    A study file may write rates once for several stages; to change them in one changes no other.
    """
    return {key: copied(value) if isinstance(value, dict) else value
            for key, value in settings.items()}


def set_value(settings: Any, key: str, value: Any, where: str) -> None:
    """Set `key.path` of nested mappings; ValueError with the nearest valid key, after `where`."""
    path = tuple(key.split('.'))
    node = settings
    for depth, name in enumerate(path):
        written = set(node.keys()) if hasattr(node, 'keys') else set()
        # What the study file leaves to its default can be changed as well.
        known = sorted(written | _fields(path[:depth]))
        if name not in known:
            raise ValueError(f'{where} {shown(key)}: {unknown("key", name, known)}')
        if depth == len(path) - 1:
            break
        if name not in written:  # a group whose defaults the study file left alone
            node[name] = {}
        node = node[name]
    try:
        node[path[-1]] = value
    except TypeError:  # of a ConfigDict
        raise ValueError(f'{where} {shown(key)}: {shown(value)} must be of type '
                         f'{type(node[path[-1]]).__name__}') from None


def _fields(group):
    """Return the names of an `Experiment`'s fields in `group` (a path), defaults included."""
    from dataclasses import fields, is_dataclass
    from typing import get_args, get_type_hints

    from downscale.config import Experiment
    from downscale.stage_config import PolicySettings, Stage
    if not group:
        # By the points of the sweep, and in the table of stages.
        given_elsewhere = {'name', 'size', 'seed', 'language', 'stages', 'budget', 'label',
                           'trained_as'}
        return {field.name for field in fields(Experiment)} - given_elsewhere
    if group[0] == 'stages':
        if len(group) == 2:
            return {field.name for field in fields(Stage)} - {'name'}
        is_policy = len(group) == 3 and group[2] == 'policy'
        return {field.name for field in fields(PolicySettings)} if is_policy else set()
    hint = get_type_hints(Experiment).get(group[0])
    # A world is one of several records.
    kinds = [kind for kind in get_args(hint) or (hint,) if is_dataclass(kind)]
    return {field.name for kind in kinds for field in fields(kind)} if len(group) == 1 else set()
