"""Costs of runs and answers, and the frontier of accuracy against them."""
import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from downscale.accounting import decode_flops, forward_flops, train_flops
from downscale.analysis import costs, measures, pareto, synth
from downscale.analysis.measures import Missing
from downscale.commands import main
from downscale.commands.analyze import COSTS
from downscale.results.study import Cell, load_study
from downscale.runtime.files import read_json, write_json
from downscale.sizes import MICRO, SIGLIP, scale

SMALL, LARGE = 'w32d2', 'w256d8'


@pytest.fixture(scope='module')
def s(tmp_path_factory):
    place = tmp_path_factory.mktemp('pareto') / 'study'
    return measures.scored(synth(2, place, sizes=2, seeds=1, items=160).study, 200)


def test_the_frontier_is_what_no_cheaper_way_beats():
    rng = np.random.default_rng(0)
    for _ in range(50):
        prices = np.sort(rng.integers(0, 6, 12)).astype(float)   # with ties
        values = rng.integers(0, 8, 12).astype(float)
        slow = [not any(q <= p and w > v or q < p and w >= v for q, w in zip(
            prices, values, strict=True)) for p, v in zip(prices, values, strict=True)]
        np.testing.assert_array_equal(pareto.frontier(prices, values), slow)
    many = pareto.frontier(prices, np.stack([values, -values]))
    np.testing.assert_array_equal(many[1], pareto.frontier(prices, -values))


def test_a_chance_of_being_on_the_frontier_is_the_share_of_resamples(s):
    found = pareto.ways_by_cost(s, 'params')
    rows = {row['way']: row for row in found['rows']}
    assert [row['cost'] for row in found['rows']] == sorted(row['cost'] for row in found['rows'])
    assert rows[f'joint {SMALL}']['probability'] == 1    # nothing is cheaper
    assert len(rows) == 2 + 2 * 2 * 4 and found['skipped'] == {}
    # all at one price: exactly one is best in almost every resample
    same = [row for row in found['rows'] if row['way'].startswith(f'{LARGE} -> {LARGE}')]
    assert 0 < sum(row['probability'] for row in same) <= 1.2
    assert sum(row['on'] for row in same) <= 1


def test_a_model_costs_what_all_its_stages_have_cost_and_a_shared_tower_once(s):
    end = f'{SMALL}-s0'
    language, vision = scale(MICRO['w64d2'], 32, 2, 320), SIGLIP['micro']

    def flops(groups, tiles):
        return 4000 * train_flops(language, vision, rows=16, length=128, tiles=tiles,
                                  groups=groups)['total']
    joint = flops(('tower',), 32) + flops(('language',), 0) + flops(('connector',), 32) \
        + flops(('language',), 32)
    assert costs.of_cell(s, Cell(end, '', '', False, 'image'), 'train_flops') == joint
    # the writer's own stage and the reasoner's come on top; its text stage is shared
    pair = Cell(end, end, 'extraction', True, 'image')
    assert costs.of_cell(s, pair, 'train_flops') == joint + flops(('language',), 32) + flops(
        ('language',), 0)
    assert costs.of_cell(s, pair, 'samples') == 16 * 4000 * 4    # tower, align, instruct, extract
    assert costs.of_cell(s, pair, 'chip_hours') == pytest.approx(6 * 4000 * .05 / 3600)
    both = {run['run_id']: run for run in s.study.meta['runs']}[end]
    assert costs.of_cell(s, pair, 'params') == 2 * both['n_total'] - both['n_vision']


def test_inference_counts_reading_writing_and_thinking(s):
    cells = {mode: Cell(f'{SMALL}-s0', f'{LARGE}-s0', 'caption', mode, 'image')
             for mode in (False, True)}
    direct, think = (costs.of_cell(s, cells[mode], 'inference_flops') for mode in (False, True))
    tokens = {mode: s.study.items['n_gen_tokens'][s.study.cells[cell]].mean()
              for mode, cell in cells.items()}
    large = scale(MICRO['w64d2'], 256, 8, 320)
    length = s.study.texts['n_tokens'][(s.study.texts['p_run'] == f'{SMALL}-s0')
                                       & (s.study.texts['text_kind'] == 'caption')].mean()
    more = tokens[True] * decode_flops(large, length + (tokens[True] + 1) / 2) \
        - tokens[False] * decode_flops(large, length + (tokens[False] + 1) / 2)
    assert think - direct == pytest.approx(more)
    small, vision = scale(MICRO['w64d2'], 32, 2, 320), SIGLIP['micro']
    seen = forward_flops(small, vision, rows=1, length=vision.P, tiles=1,
                         head_positions=1)['total']
    assert costs.of_cell(s, Cell(f'{SMALL}-s0', '', '', False, 'image'), 'inference_flops') == \
        pytest.approx(seen + 3 * decode_flops(small, vision.P + 2))


def test_flops_of_buckets_are_weighed_by_how_often_each_came(tmp_path):
    s = measures.scored(synth(2, tmp_path / 'study', sizes=2, seeds=1, items=16).study, 100)
    folder = tmp_path / 'study' / 'cells' / f'{SMALL}-s0' / 'instruct'
    told = read_json(folder / 'experiment.json')
    stage = told['stages'][0]
    stage['buckets'] = [{'batch': 64, 'length': 32, 'tiles': 1}]
    write_json(folder / 'experiment.json', told)
    write_json(folder / 'padding.json', {'total': {'conversations': 1000}, 'buckets': [
        {'batch': 64, 'length': 32, 'tiles_per_row': 1, 'rows': 64 * 9},
        {'batch': 16, 'length': 128, 'tiles_per_row': 2, 'rows': 16}]})
    few, many = (train_flops(scale(MICRO['w64d2'], 32, 2, 320), SIGLIP['micro'], rows=rows,
                             length=length, tiles=rows * tiles, groups=('language',))['total']
                 for rows, length, tiles in ((64, 32, 1), (16, 128, 2)))
    one = costs.stages_of(s)[f'{SMALL}-s0', 'instruct']
    assert one.flops == pytest.approx(stage['steps'] * (.9 * few + .1 * many))
    (folder / 'padding.json').unlink()
    s.made.pop('stages')
    with pytest.raises(Missing, match=r'buckets has no padding\.json'):
        costs.of_cell(s, Cell(f'{SMALL}-s0', '', '', False, 'image'), 'train_flops')


def test_a_model_that_cuts_pictures_into_tiles_pays_for_them(tmp_path):
    root = tmp_path / 'study'
    s = measures.scored(synth(2, root, sizes=2, seeds=1, items=16).study, 100)
    cell, vision = Cell(f'{SMALL}-s0', '', '', False, 'image'), SIGLIP['micro']
    one = costs.of_cell(s, cell, 'inference_flops')
    path = root / 'cells' / f'{SMALL}-s0' / 'instruct' / 'experiment.json'
    told = read_json(path)
    write_json(path, {**told, 'pictures': {'mode': 'anyres', 'max_tiles': 9,
                                           'grids': [[1, 1], [1, 2], [2, 1]]}})
    s.made.clear()
    for saved in (root / 'pictures').glob('*.png'):
        Image.new('RGB', (2 * vision.image, vision.image)).save(saved)   # a grid of 2 x 1
    tokens = s.study.items['n_gen_tokens'][s.study.cells[cell]].mean()
    side = vision.image // vision.patch
    seen = vision.P + side * (2 * side + 1)
    small = scale(MICRO['w64d2'], 32, 2, 320)
    assert costs.of_cell(s, cell, 'inference_flops') == pytest.approx(forward_flops(
        small, vision, rows=1, length=seen, tiles=3, head_positions=1)['total']
        + tokens * decode_flops(small, seen + (tokens + 1) / 2))
    assert costs.of_cell(s, cell, 'inference_flops') > 2 * one
    shutil.rmtree(root / 'pictures')
    s.made.clear()
    with pytest.raises(Missing, match='none of the pictures is saved'):
        costs.of_cell(s, cell, 'inference_flops')


def test_examples_are_conversations_however_they_are_packed(tmp_path):
    made = synth(2, tmp_path / 'study', sizes=2, seeds=1, items=32)
    cells = tmp_path / 'study' / 'cells'
    write_json(cells / f'{LARGE}-s0' / 'caption' / 'padding.json', {
        'total': {'conversations': 600, 'rows': 180}, 'buckets': [
            {'batch': 16, 'rows': 160}, {'batch': 4, 'rows': 20}]})
    s = measures.scored(made.study, 100)
    assert costs.tuned_examples(s, [LARGE], 'extraction') == 4000 * 16   # one to a row
    assert costs.tuned_examples(s, [LARGE], 'caption') == 4000 * 600 / (160 / 16 + 20 / 4)
    (cells / f'{LARGE}-s0' / 'caption' / 'padding.json').unlink()
    s = measures.scored(made.study, 100)
    assert costs.tuned_examples(s, [LARGE], 'caption') is None


def test_what_a_study_does_not_tell_is_skipped_with_the_reason(tmp_path):
    place = tmp_path / 'study'
    made = synth(2, place, sizes=2, seeds=1, items=32)
    pair = Cell(f'{SMALL}-s0', f'{LARGE}-s0', 'extraction', True, 'image')
    whole = costs.of_cell(measures.scored(made.study, 100), pair, 'chip_hours')
    for stage in ('reason', 'extract'):   # imported reasoners, and no writers of their own
        for path in place.glob(f'cells/*/{stage}/experiment.json'):
            path.unlink()
    s = measures.scored(load_study(place), 100)
    assert costs.of_cell(s, pair, 'chip_hours') == pytest.approx(whole * 4 / 7)
    for path in place.glob(f'cells/{LARGE}-s0/instruct/experiment.json'):
        path.unlink()
    found = pareto.ways_by_cost(measures.scored(load_study(place), 100), 'samples')
    assert f'no finished stage of {LARGE}-s0 for joint answers' in found['skipped']
    assert f'joint {LARGE}' in next(iter(found['skipped'].values()))
    for path in place.glob('cells/*/*/experiment.json'):
        path.unlink()
    s = measures.scored(made.study, 100)
    with pytest.raises(Missing, match='two ways of answering with a cost'):
        pareto.ways_by_cost(s, 'train_flops')
    with pytest.raises(ValueError, match="unknown cost 'flops'; did you mean 'train_flops'"):
        costs.of_cell(s, next(iter(s.study.cells)), 'flops')


def test_the_command_prints_and_writes_the_frontier(capsys, s, tmp_path):
    argv = ['analyze', 'pareto', str(s.study.root), '--cost', 'inference_flops', '--bootstraps',
            '200', '--out', str(tmp_path)]
    assert main.main(argv) == 0
    assert 'P(on the frontier)' in capsys.readouterr().out
    found = read_json(tmp_path / 'pareto.json')
    assert found['input_hash'] == s.study.input_hash and found['rows']
    with (tmp_path / 'pareto_pareto.csv').open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 18 and (tmp_path / 'pareto_pareto.png').stat().st_size > 2000
    costs_of = [float(row['cost']) for row in table]
    assert costs_of == sorted(costs_of)
    write_json(tmp_path / 'x.json', found)
    assert tuple(costs.COSTS) == COSTS


def test_resamples_that_lack_a_family_do_not_count(s, monkeypatch):
    whole = pareto.bootstrap.macro

    def torn(means):
        found = whole(means)
        found.draws[::2] = np.nan
        return found
    before = pareto.ways_by_cost(s, 'params')['rows'][0]
    monkeypatch.setattr(pareto.bootstrap, 'macro', torn)
    after = pareto.ways_by_cost(s, 'params')['rows'][0]
    assert before['on'] and after['probability'] == before['probability'] == 1
