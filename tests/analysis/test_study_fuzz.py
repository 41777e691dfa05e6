"""Any file of a study folder mutated: right, named as missing, or one line with file and field."""
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downscale.analysis import absent, costs, drops, gate, measures, study_laws, synth
from downscale.analysis.measures import Missing
from downscale.analysis.validate import validate
from downscale.results.items import TableError
from downscale.results.study import load_study

CELL = 'cells/w32d2-s0/instruct'
JSON_FILES = ('study.json', f'{CELL}/experiment.json', f'{CELL}/padding.json')
LINE_FILES = (f'{CELL}/metrics.jsonl', f'{CELL}/timing.jsonl')
TABLE = 'evaluations/joint-w32d2-s0/items.parquet'
JUNK = st.sampled_from([None, True, -1, 0, 1e400, float('nan'), '', 'x', 'x' * 999, [], [1], {},
                        {'x': 1}, '\ud800'])
FUZZ = settings(max_examples=40, deadline=None, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture,
                                       HealthCheck.too_slow])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A small study with one unlike stage: two shapes of batches."""
    root = synth(0, tmp_path_factory.mktemp('fuzz') / 'study', sizes=2, seeds=1, items=16).folder
    for folder in root.glob('cells/*'):
        if folder.name not in ('w32d2-s0', 'w256d8-s0', 'tower-s0'):
            shutil.rmtree(folder)
    for folder in root.glob('evaluations/*'):
        if not folder.name.startswith(('joint', 'reason-w256d8', 'caption-w32d2')):
            shutil.rmtree(folder)
    shutil.rmtree(root / 'pictures')
    return root


def outcome(root):
    """What a study says: 'error' lines of `validate`, or the numbers, what is missing and notes."""
    errors, notes, _ = validate(root)
    for line in errors:
        assert len(line) <= 300 and '\n' not in line, line
    if errors:
        assert any(name in line for line in errors for name in (
            'study.json', '.parquet', '.jsonl', 'experiment.json', 'padding.json', 'pairing',
            'items', 'cells')), errors
        return 'error', errors
    s = measures.scored(load_study(root), 20)
    found = {}
    for name, compute in {
            'drops': drops.by_family, 'gate': lambda s: gate.gate(s)['line'],
            'loss': lambda s: {key: value.tolist() for key, value in
                               study_laws.finals(s, 'instruct').items()},
            'costs': lambda s: [costs.of_cell(s, cell, cost) for cell in sorted(s.study.cells)
                                if cell.p_run for cost in costs.COSTS]}.items():
        try:
            found[name] = repr(compute(s))
        except (Missing, TableError) as reason:
            assert len(str(reason)) <= 300 and '\n' not in str(reason)
            found[name] = f'skipped: {reason}'
    return 'numbers', (found, absent.absent(s), notes)


class Changed:
    """In this context a file of the study holds other bytes."""

    def __init__(self, root, name, data):
        self.path, self.data = root / name, data

    def __enter__(self):
        self.before = self.path.read_bytes()
        self.path.write_bytes(self.data)

    def __exit__(self, *_):
        self.path.write_bytes(self.before)


def places(value, path=()):
    """The paths of everything inside a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def mutated(value, path, junk, delete):
    """The value with `junk` at a path, or without what is there."""
    if not path:
        return junk
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if delete and not rest:
        del copy[key]
    else:
        copy[key] = mutated(value[key], rest, junk, delete)
    return copy


@pytest.mark.parametrize('name', JSON_FILES)
@FUZZ
@given(data=st.data())
def test_any_value_of_a_json_file_is_right_or_one_line(whole, name, data):
    value = json.loads((whole / name).read_text())
    path = data.draw(st.sampled_from(list(places(value))))
    changed = mutated(value, path, data.draw(JUNK), data.draw(st.booleans()))
    with Changed(whole, name, json.dumps(changed).encode()):
        outcome(whole)


@pytest.mark.parametrize('name', [*JSON_FILES, *LINE_FILES, TABLE])
@settings(FUZZ, max_examples=25)
@given(start=st.floats(0, 1), length=st.integers(0, 40), new=st.binary(max_size=8))
def test_any_bytes_are_right_or_one_line(whole, name, start, length, new):
    before = (whole / name).read_bytes()
    at = round(start * len(before))
    with Changed(whole, name, before[:at] + new + before[at + length:]):
        outcome(whole)


@pytest.mark.parametrize('name', LINE_FILES)
@settings(FUZZ, max_examples=30)
@given(data=st.data())
def test_any_line_is_right_or_one_line(whole, name, data):
    lines = (whole / name).read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[at])
    path = data.draw(st.sampled_from(list(places(row))))
    lines[at] = json.dumps(mutated(row, path, data.draw(JUNK), data.draw(st.booleans())))
    with Changed(whole, name, ('\n'.join(lines) + '\n').encode()):
        outcome(whole)


def changed_table(table, kind, name):
    """One kind of damage to a table, at one column."""
    column = table.schema.get_field_index(name)
    if kind == 'column gone':
        return table.drop_columns([name])
    if kind == 'nulls':
        empty = pa.nulls(1, table.schema.field(name).type)
        part = pa.concat_arrays([empty, table.column(name).combine_chunks()[1:]])
        return table.set_column(column, pa.field(name, part.type), part)
    if kind == 'other type':
        return table.set_column(column, name, pa.array([b'x'] * len(table)))
    if kind == 'NaN':
        part = pa.array([float('nan')] * len(table))
        return table.set_column(column, name, part)
    if kind == 'unknown text':
        return table.set_column(column, name, pa.array(['x' * 500] * len(table)))
    if kind == 'rows twice':
        return pa.concat_tables([table, table])
    return table.slice(0, 0 if kind == 'empty' else len(table) // 2)


@FUZZ
@given(kind=st.sampled_from(['column gone', 'nulls', 'other type', 'NaN', 'unknown text',
                             'rows twice', 'empty', 'half']), data=st.data())
def test_any_damage_to_a_table_is_named(whole, kind, data):
    table = pq.read_table(whole / TABLE)
    name = data.draw(st.sampled_from(table.schema.names))
    before = outcome(whole)
    sink = pa.BufferOutputStream()
    pq.write_table(changed_table(table, kind, name), sink)
    with Changed(whole, TABLE, sink.getvalue().to_pybytes()):
        after = outcome(whole)
    if after[0] == 'numbers' and after[1][0] != before[1][0]:
        assert after[1][1] or name in ('gold', 'pred', 'nll_gold', 'eval_id', 'prompt_hash'), (
            kind, name)   # what numbers lack is listed
