"""Every setting has a range: declared beside it, refused in one line outside, taken at its ends."""
import copy
import dataclasses
import json
import math
import types
import typing
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from downscale.config import Data, Evaluation, Experiment, MeshSize, Optimizer
from downscale.data.buckets import Shape
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.conversations import Recipe
from downscale.data.scenes.world import World
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.schedule import Schedule
from downscale.sizes import LanguageConfig, Parametrisation, Pictures, VisionConfig
from downscale.stage_config import Stage
from downscale.values import COUNT, Choice, Range, Several, check, from_dict, hints_of

SMOKE = str(Path(__file__).parent / 'data/three_sizes.py')
CLASSES = (World, Clutter, Data, Shape, Pictures, Stage, Optimizer, Schedule, Parametrisation,
           Evaluation, MeshSize, Experiment, Source, Mixture, Recipe, LanguageConfig, VisionConfig)
# Words that are no choice: names, paths, and what is looked up elsewhere.
FREE = {'name', 'size', 'version', 'tokenizer', 'budget', 'label', 'mixture', 'path', 'licence',
        'obtain', 'images', 'split', 'ask', 'only', 'ignore', 'benchmarks', 'information',
        'scorers', 'parents', 'imports', 'trunk', 'trained_as', 'teacher', 'reasoners', 'questions'}


def parts(hint, rules=()):
    """(type, rules) of every scalar and tuple that a type hint holds."""
    if typing.get_origin(hint) is typing.Annotated:
        yield from parts(hint.__origin__, hint.__metadata__)
        return
    origin = typing.get_origin(hint)
    inner = [part for part in typing.get_args(hint) if part not in (..., types.NoneType)]
    if origin in (typing.Union, types.UnionType):
        yield from parts(inner[0], rules)
        return
    if origin is tuple and hint.__args__[-1] is ...:
        yield tuple, rules
    elif not inner:
        yield hint, rules
    for part in inner:
        yield from parts(part)


FIELDS = [(kind, name, part, rules) for kind in CLASSES
          for name, hint in hints_of(kind).items() for part, rules in parts(hint)]


@pytest.mark.parametrize('kind, name, part, rules', FIELDS,
                         ids=[f'{kind.__name__}.{name}' for kind, name, *_ in FIELDS])
def test_every_field_declares_what_it_may_hold(kind, name, part, rules):
    if part in (int, float):
        rule, = rules
        assert isinstance(rule, Range) and len(rule.meaning) > 4
        assert math.isfinite(rule.low) and math.isfinite(rule.high)
    elif part is str and name not in FREE:
        assert isinstance(rules[0], Choice)
    elif part is tuple and (kind, name) not in ((Stage, 'buckets'), (Mixture, 'sources'),
                                                (Recipe, 'replay'), (Experiment, 'stages')):
        assert isinstance(rules[0], Several)


def refused(hint, value, where):
    with pytest.raises(ValueError) as error:
        from_dict(hint, value, where)
    line = str(error.value)
    assert '\n' not in line and len(line) <= 300 and where in line
    return line


RANGED = [(kind, name, part, rules[0]) for kind, name, part, rules in FIELDS
          if rules and isinstance(rules[0], Range)]


@pytest.mark.parametrize('kind, name, part, rule', RANGED,
                         ids=[f'{kind.__name__}.{name}' for kind, name, *_ in RANGED])
def test_numbers_outside_a_range_are_refused_with_it_and_its_ends_are_taken(kind, name, part, rule):
    hint, where = typing.Annotated[part, rule], f'{kind.__name__}.{name}'
    for end in (rule.low, rule.high):
        if end in rule.without:
            assert rule.meaning in refused(hint, part(end), where)
        else:
            assert from_dict(hint, part(end), where) == end
    beyond = 1 if part is int else max(1e-6, abs(rule.high) * 1e-6)
    for value in (rule.low - beyond, rule.high + beyond, *rule.without):
        line = refused(hint, part(value), where)
        assert rule.meaning in line and 'must be' in line
    for value in (math.nan, math.inf, -math.inf, True, None, '1', [1], {}, 10 ** 400, 'x' * 9999):
        refused(hint, value, where)
    if part is int:
        refused(hint, 2.0, where)


def test_a_record_that_is_built_in_python_is_checked_as_well():
    for kind, wrong in ((Optimizer, dict(clip=0)), (Optimizer, dict(clip=-1.)),
                        (Data, dict(test=-1)), (Schedule, dict(steps=4, warmup=100)),
                        (MeshSize, dict(data=0)),
                        (Evaluation, dict(thinking=())), (Evaluation, dict(conditions=('a',)))):
        with pytest.raises(ValueError, match=f'{kind.__name__}.{list(wrong)[-1]}'):
            kind(**wrong)
    check(Optimizer(clip=None))


@pytest.mark.parametrize('key, value, message', [
    ('optimizer.clip', '0', 'clip = 0.0 must be above 0 .*None is no clipping'),
    ('optimizer.accumulate', '0', 'accumulate = 0 must be at least 1'),
    ('optimizer.b1', '1', 'b1 = 1.0 must be at least 0 and below 1'),
    ('optimizer', 'None', 'optimizer must be a mapping, not None'),
    ('stages.text.warmup', '5', 'warmup = 5.0 .*below 1: the share of the steps .*not a number of'),
    ('stages.text.warmup', '1', 'warmup = 1.0'), ('stages.text.final', '-0.1', 'final = -0.1'),
    ('stages.text.trainable', '()', r'trainable = \(\) must have at least 1 entries: the groups'),
    ('stages.text.trainable', "('langage',)", "unknown group 'langage'; did you mean 'language'"),
    ('stages.text.rates.language', '0', 'rates.language = 0.0 must be above 0 .*to freeze it'),
    ('stages.text.rates.language', '1e-3x', "'1e-3x' must be of type float"),
    ('stages.text.steps', '2.0', 'steps = 2.0 must be of type int|must be of type int'),
    ('stages.text.steps', '[4]', 'must be of type int'),
    ('stages.text', 'None', 'must be a mapping'),
    ('stages', 'None', 'stages None must be of type dict'),
    ('vision', 'None', 'stage tower needs a model .* its vision is None'),
    ('evaluation.thinking', '(True, True)', 'has True 2 times; keep one'),
    ('data.similarity_share', '1.5', 'at most 1: share of picture triples'),
    ('mesh.data', '0', 'not 0: devices along an axis'), ('vocabulary', '-1', 'V = -1'),
    ('platform', '5', "platform"), ('study', "'../x'", "study '../x'"), ('study', "''", "study ''"),
])
def test_a_value_of_the_command_line_is_refused_in_one_line(key, value, message):
    with pytest.raises(ValueError, match=message) as error:
        file.open_cells(SMOKE, [f'{key}={value}'])
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


# --- any config -------------------------------------------------------------------------------

@cache
def _settings():
    study_config, _ = file.load_study(SMOKE, ())
    study_config = study_config.to_dict()
    del study_config['platform']
    # What a study may say too.
    study_config['stages']['caption']['parents'] = {'language': 'instruct'}
    study_config['imports'] = {'tower': 'models/any'}
    study_config['world']['families'] = ('count', 'fact')
    return study_config


def places(node, path=()):
    """The path of every entry of nested mappings."""
    for key, part in node.items():
        yield (*path, key)
        if isinstance(part, dict):
            yield from places(part, (*path, key))


PLACES = sorted(places(_settings()))
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2, COUNT, 2 ** 32, 10 ** 400, 0.0, 1.0, -0.5,
                     1e-9, 1e300, math.nan, math.inf, '', 'x', '1', 'x' * 2000, 'a\nb', (), [], {},
                     (1,), ['language'], {'a': 1}, {1: 2}, [dict(batch=0, length=0, tiles=0)], [{}],
                     1j,
                     [dict(batch=8, length=16, tiles=0)], b'x', {'text': 0.5}, ('language',)]),
    st.integers(-5, 200), st.floats(-2, 2), st.text(max_size=8))


@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3))
@example([(('imports',), 10 ** 400)])
@settings(max_examples=400, deadline=None)
def test_any_config_becomes_cells_or_one_line(changes):
    value = copy.deepcopy(_settings())
    for path, part in changes:
        node = value
        for name in path[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = copy.deepcopy(part)
    try:
        cells = cells_of(ConfigDict(value), [{'size': 'w32d2', 'seed': 0}])
    except ValueError as error:
        assert '\n' not in str(error) and len(str(error)) <= 300, str(error)
        return
    for cell in cells:  # what is taken survives its own file
        again = from_dict(Experiment, json.loads(json.dumps(dataclasses.asdict(cell))))
        assert again == cell and again.hash == cell.hash
