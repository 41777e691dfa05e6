"""Parts of the report beside accuracy: laws, budgets, rates, layers, changed answers, classes."""
import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fake_study import fake_study

from downscale.analysis import (
    accuracy,
    drops,
    grids,
    health,
    layers,
    measures,
    study_laws,
    synth,
)
from downscale.analysis.measures import Missing
from downscale.commands import measure_rows
from downscale.laws.fits import fit
from downscale.laws.forms import POWER
from downscale.laws.isoflop import isoflop
from downscale.laws.learning_rates import RateRun, choose_all
from downscale.report import axes, figures, gallery, law_figures, report, share_figures
from downscale.results import probes, study, study_file
from downscale.results.items import TableError
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json
from downscale.statistics import bootstrap
from downscale.statistics.shapley import class_of

N = np.geomspace(1e4, 1e7, 7)


@pytest.fixture(scope='module')
def s(tmp_path_factory):
    root = fake_study(tmp_path_factory.mktemp('parts') / 'study', pictures=40)
    return measures.scored(load_study(root), 200)


def drawn(draw, result, folder):
    """The CSV rows of a figure, which is saved."""
    svg = figures.save(draw, result, folder, 'one')
    assert svg.startswith('<svg') and (folder / 'one.png').stat().st_size > 2000
    with (folder / 'one.csv').open() as file:
        return list(csv.DictReader(file))


def test_a_law_is_solid_where_sizes_were_dashed_beyond_and_hollow_where_held_out(tmp_path):
    loss = 1.2 + 30 * N ** -.35
    found = fit(POWER, N, loss, draws=100)
    points = [{'size': 'x', 'n': int(n), 'loss': float(y), 'runs': 1, 'held': n == N[-1]}
              for n, y in zip(N, loss, strict=True)]
    part = {'fit': found, 'points': points, 'curve': study_laws.curve(found, N)}
    rows = drawn(law_figures.laws, {'loss': part}, tmp_path)
    by_kind = {kind: [float(row['n']) for row in rows if row['kind'] == kind]
               for kind in ('point', 'held out', 'curve', 'extrapolation')}
    assert (len(by_kind['point']), by_kind['held out']) == (6, [float(int(N[-1]))])
    assert max(by_kind['curve']) <= N[-1] < min(by_kind['extrapolation'])
    assert max(by_kind['extrapolation']) == pytest.approx(N[-1] * study_laws.REACH)
    middle = next(row for row in rows if row['kind'] == 'curve' and float(row['n']) > 1e5)
    assert float(middle['value']) == pytest.approx(1.2 + 30 * float(middle['n']) ** -.35, rel=1e-4)


def test_minima_that_are_not_enclosed_are_told_apart(tmp_path):
    x = np.tile(np.geomspace(1e4, 1e6, 6), 2)
    budget = np.repeat(['1e13', '1e15'], 6)
    y = np.where(budget == '1e13', (np.log(x) - np.log(1e5)) ** 2, (np.log(x) - np.log(4e6)) ** 2)
    found = isoflop(x, 2 + .01 * y, budget, draws=100)
    rows = drawn(law_figures.isoflop, {'fit': found, 'points': [
        {'budget': b, 'n': n, 'loss': z} for b, n, z in zip(budget, x, y, strict=True)]}, tmp_path)
    assert [row['state'].partition(':')[0] for row in rows] == ['kept', 'edge']
    assert float(rows[0]['best_n']) == pytest.approx(1e5, rel=1e-3)


def test_rates_name_the_chosen_one_and_leave_out_what_diverged(tmp_path):
    choices, alarms = choose_all({'w32': [RateRun(rate, 0, loss) for rate, loss in (
        (1e-3, 3.), (2e-3, 2.), (4e-3, 2.5), (8e-3, np.inf))]})
    rows = drawn(law_figures.rates, {'stage': 'text', 'choices': choices, 'alarms': alarms,
                                     'seeds': {'w32': 1}}, tmp_path)
    assert [row['chosen'] for row in rows] == ['False', 'True', 'False', 'False']
    assert rows[-1]['loss'] == ''


def write_probes(root, rows):
    names = ('run_id', 'task', 'site', 'rel_depth', 'metric', 'value', 'lo', 'hi', 'n')
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]),
                   root / 'probes.parquet')


def test_probes_are_drawn_by_depth_and_listed_without_one(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=4, decoupled=False, conditions=('image',))
    s = measures.scored(load_study(root), 20)
    with pytest.raises(Missing, match='no probes.parquet'):
        layers.layers(s)
    write_probes(
        root,
        [
            (f'{size}-s0', 'color', 'image', depth, 'accuracy', 0.5 + 0.1 * depth, 0.4, 0.8, 9)
            for size in ('w16d2', 'w64d4')
            for depth in (1.0, 0.0, 0.5)
        ]
        + [
            ('w16d2-s0', 'color', 'connector', None, 'accuracy', 0.7, 0.6, 0.8, 9),
            ('w16d2-s0', 'color', 'output', 1.0, 'kl', 0.2, 0.1, 0.3, 9),
        ],
    )
    found = layers.layers(s)
    curve = found['curves']['accuracy, image, color']
    assert [point['rel_depth'] for point in curve['w16d2']] == [0, .5, 1]
    assert list(found['curves']) == ['accuracy, image, color']
    assert found['others'] == [['w16d2-s0', 'color', 'connector', 'accuracy', .7, .6, .8, 9],
                               ['w16d2-s0', 'color', 'output', 'kl', .2, .1, .3, 9]]
    rows = drawn(share_figures.layers, found, tmp_path)
    assert len(rows) == 6 and float(rows[0]['value']) == .5
    html = report.write_report(root, bootstraps=20).read_text()
    assert 'By relative depth of the language model' in html and '>connector' in html
    pq.write_table(pa.table({'run_id': ['x']}), root / 'probes.parquet')
    told = read_json(report.write_report(root, bootstraps=20).parent / 'report.json')['skipped']
    assert told['layers'].startswith('probes.parquet: 8 columns missing')


def test_answers_that_change_make_the_drop(s):
    flips, drop = study_laws.flips(s), drops.by_family(s)['macro']['absolute']
    of = flips['joint, w64d4 to w16d2']
    assert sum(x.value for x in of.values()) == pytest.approx(1)
    assert of['right to wrong'].value - of['wrong to right'].value == pytest.approx(drop.value)
    assert of['wrong to right'].value > .01
    assert set(flips) >= {'perception, caption, think', 'reasoner, extraction, direct'}


def test_samples_are_in_the_class_of_their_four_pairs(s):
    panel = grids.corners(s, grids.panels(s)['extraction', 'think'])
    cells, items = next(iter(panel.seeds.values())), s.study.items
    right = {key: {items['item_id'][row]: items['score'][row] > .5
                   for row in s.study.cells[cells[key]]} for key in grids.CORNERS}
    found = gallery.samples(s)
    for kind, samples in found.items():
        assert len(samples) <= gallery.PER_CLASS
        for sample in samples:
            item = sample['item_id']
            assert class_of(*(right[key][item] for key in ((1, 1), (0, 1), (1, 0), (0, 0)))) \
                == kind
            named = [answer['size'] for answer in sample['answers']]
            assert named[:3] == ['w16d2', 'w32d4', 'w64d4']
            assert named[3:] == [f'{p} → {r} (extraction, think)' for p, r in (
                ('w64d4', 'w64d4'), ('w16d2', 'w64d4'), ('w64d4', 'w16d2'), ('w16d2', 'w16d2'))]
    assert sum(map(len, found.values())) > 15
    assert all(sample['pictures'] for samples in found.values() for sample in samples)


def test_a_study_without_pairs_shows_its_joint_answers(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=20, decoupled=False, conditions=('image',))
    found = gallery.samples(measures.scored(load_study(root), 20))
    assert set(found) == set(gallery.JOINT) and found['lost']
    answers = found['lost'][0]['answers']
    assert [answer['right'] for answer in answers][::2] == [False, True]


def labels(axis):
    """Texts of the ticks within the limits of an x axis."""
    low, high = axis.get_xlim()
    return [str(axis.xaxis.get_major_formatter()(at)) for at in axis.get_xticks()
            if low <= at <= high]


@pytest.mark.parametrize(('low', 'high'), [(1e5, 1.3e5), (2.2e5, 4.1e5), (1.2e5, 8.4e5), (1e5, 1e7),
                                           (1e4, 1e9)])
def test_counts_are_ticked_within_a_decade_and_over_many(low, high):
    figure, (axis,) = axes.small_axes(1)
    axis.plot([low, high], [0, 1])
    axis.set(xscale='log')
    axes.counts(axis.xaxis)
    assert 2 <= len(labels(axis)) <= 9


def test_the_frontier_has_labelled_costs_and_its_legend_above_the_axes():
    x = bootstrap.Interval(value=.5, low=.4, high=.6, n=9, clusters=9, method='planted')
    rows = [{'way': f'joint {k}', 'cost': cost, 'accuracy': x, 'on': not k, 'probability': 1.}
            for k, cost in enumerate((2.2e5, 4.1e5))]
    figure, _ = share_figures.pareto({'cost': 'params', 'unit': 'parameters', 'rows': rows})
    axis, = figure.axes
    figure.draw_without_rendering()
    assert len(labels(axis)) >= 2
    legend = axis.get_legend().get_window_extent()
    assert legend.y0 >= axis.get_window_extent().y1


def test_families_of_one_point_share_a_label_and_no_slope_is_said(s):
    found = drops.reliance(s)
    one = found['conditions']['blind']['color']
    split = found['relation']['blind']['split halves']
    none = replace(split, slope=replace(split.slope, value=np.nan))
    figure, rows = figures.reliance({
        'conditions': {'blind': {'color': one, 'count': one}},
        'drop': dict.fromkeys(('color', 'count'), found['drop']['color']),
        'relation': {'blind': {'split halves': none}}})
    axis, = figure.axes
    assert [text.get_text() for text in axis.texts] == ['color, count'] and len(rows) == 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['no slope, split halves']


def of_sweep(root, changes):
    """The study of `root` scored as if its sweep had set the `changes` of {size: {seed: }}."""
    meta = read_json(root / 'study.json')
    runs = [{**run, 'changes': changes.get(run['size'], {}).get(run['seed'], '')}
            for run in meta['runs']]
    write_json(root / 'study.json', {**meta, 'runs': runs})
    return measures.scored(load_study(root), 100)


def test_runs_under_other_settings_are_no_seeds_of_their_size(tmp_path):
    root, rate = tmp_path / 'study', 'language0.01'
    synth(4, root, sizes=2, seeds=2, items=64)
    both = {0: rate, 1: rate}
    plain, alike, mixed = (of_sweep(root, changes) for changes in (
        {}, {'w32d2': both}, {'w32d2': {1: rate}, 'w256d8': {1: rate}}))
    assert plain.sizes == alike.sizes and [size.seeds for size in plain.sizes] == [(0, 1)] * 2
    assert [size.runs for size in mixed.sizes] == [('w32d2-s0',), ('w256d8-s0',)]
    assert not plain.study.notes and '2 runs differ from others' in mixed.study.notes[-1]
    value = accuracy.by_family(mixed)['macro']['sizes']['w32d2'].value
    cell, = measures.joint_cells(mixed, mixed.sizes[0], 'image')
    _, means = measures.means_of(plain, [[cell]])
    assert value == pytest.approx(means.value.mean())
    for part in (grids.grid, grids.panels, health.health, study_laws.flips, gallery.samples):
        assert part(mixed)
    found = study_laws.finals(mixed, 'text')
    assert set(found['cell'][found['planned']]) == {'w32d2-s0', 'w256d8-s0'}
    assert {run for run in found['cell'] if run.endswith('s1')} == {'w32d2-s1', 'w256d8-s1'}
    assert len(study_laws.rates(mixed)['choices']) == 1
    told = read_json(report.write_report(root, bootstraps=20).parent / 'report.json')['notes']
    assert any('w256d8-s1, w32d2-s1' in note for note in told)


def test_brief_captions_are_in_every_table_or_said_to_be_left_out(tmp_path):
    root = synth(1, tmp_path / 'study', sizes=2, seeds=3, items=80).folder
    for folder in root.glob('evaluations/*'):
        for name in ('items', 'texts'):
            path = folder / f'{name}.parquet'
            if path.is_file():
                table = pq.read_table(path)
                own = table.filter(pc.and_(pc.equal(table['text_kind'], 'caption'),
                                           pc.not_equal(table['p_run'], '')))
                for column in ('text_kind', *['eval_id'] * (name == 'items')):
                    place = own.schema.get_field_index(column)
                    own = own.set_column(place, table.schema.field(column), pc.replace_substring(
                        own[column], 'caption', 'brief'))
                pq.write_table(pa.concat_tables([table, own]), path)
    s = measures.scored(load_study(root), 50)
    grid, _ = measure_rows.grid_rows(s)
    shared, notes = measure_rows.attribution_rows(s)
    costed, _ = measure_rows.pareto_rows(s, 'inference_flops')
    for rows in (grid, shared, costed):
        assert any('brief' in row.setting for row in rows)
    assert any(row.table == 'all factors' and row.setting.endswith('(brief left out)')
               for row in shared)
    found = report._results(s)[0]
    for name in ('grid', 'flips'):
        assert any('brief' in key for key in found[name])
    for name in ('macro', 'scales', 'classes'):
        assert any('brief' in key for key in found['shares'][name])
    assert any('left out' in key for key in found['shares']['macro'])
    assert any('brief' in row['way'] for row in found['pareto']['costs']['params']['rows'])


def opened(root, run):
    """The files under `root` whose bytes `run` reads, those that Arrow opens as well."""
    found, watching = set(), [True]

    def watch(event, arguments):
        if watching and event == 'open' and str(arguments[0]).startswith(str(root)):
            found.add(Path(arguments[0]))
    sys.addaudithook(watch)
    run()
    watching.clear()
    return {path for path in found if path.is_file()} | set(root.rglob('*.parquet'))


def test_the_input_hash_follows_every_file_that_is_read(tmp_path):
    root = synth(1, tmp_path / 'study', sizes=2, seeds=1, items=80).folder
    for name in ('probes', 'probe_items'):
        pq.write_table(probes.SCHEMAS[name].empty_table(), root / f'{name}.parquet')
    (root / 'pictures' / 'foreign.txt').write_text('not read')
    for folder in root.glob('cells/*-s0-*'):   # those of sweeps
        shutil.rmtree(folder)
    read = opened(root, lambda: report._results(measures.scored(study.load_study(root), 20)))
    names = {path.name for path in read}
    assert {'experiment.json', 'padding.json', 'timing.jsonl', 'probes.parquet', 'study.json',
            'probe_items.parquet', 'items.parquet', 'metrics.jsonl'} <= names
    before = study_file.input_hash(root, study.READ)
    for path in {path.suffix + path.name + path.parent.name: path for path in read}.values():
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert study_file.input_hash(root, study.READ) != before, path
        path.unlink()
        assert study_file.input_hash(root, study.READ) != before, path
        path.write_bytes(data)
    assert study_file.input_hash(root, study.READ) == before


def test_a_stage_that_learns_from_a_reward_is_told_by_it(tmp_path):
    folder = fake_study(tmp_path / 'study')
    path = next(folder.glob('cells/*/extract/metrics.jsonl'))
    rows = [{**json.loads(line), 'reward': .1 * k} if k != 3 else json.loads(line)
            for k, line in enumerate(path.read_text().splitlines())]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    found = accuracy.losses(measures.scored(load_study(folder), 20))
    run = path.parts[-3]
    curves = {curve['run_id']: curve for curve in found['stages']['extract']}
    told = {name: curve['what'] for name, curve in curves.items()}
    assert told.pop(run) == 'reward' and set(told.values()) == {'training loss'}
    assert curves[run]['y'][:3].tolist() == pytest.approx([0, .1, .2])
    assert np.isnan(curves[run]['y'][3])      # not taken for 0
    path.write_text(path.read_text().replace('"reward": 0.2', '"reward": "much"'))
    with pytest.raises(TableError, match="field 'reward' of the 3rd row|field 'reward' of the"):
        load_study(folder)
