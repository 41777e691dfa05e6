"""`downscale analyze probe` and `ledger` on a study in whose weights something was planted."""
import json
import shutil

import jax
import numpy as np
import pyarrow.compute as pc
import pytest
from probed_study import SIZES, build, save

from downscale.commands import main
from downscale.evaluate.run import evaluate
from downscale.evaluate.run import test_items as asked_items
from downscale.model.init import init_params
from downscale.probe import passes, probe
from downscale.probe.passes import Looker
from downscale.probe.readout import ONE_OBJECT
from downscale.results.items import read_items, write_items
from downscale.results.probes import NO_DEPTH, read
from downscale.runtime.files import read_json, write_json
from downscale.stages.folders import folder_of
from downscale.stages.models import model_of

SMALL, LARGE = (f'{size}-s0' for size in SIZES)


@pytest.fixture(scope='module', autouse=True)
def quick():
    """Programs are optimised little, and kept nowhere: here compiling costs more than running."""
    jax.config.update('jax_disable_most_optimizations', True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('downscale.study.workers.use_cache', lambda folder: None)
        patch.setattr('downscale.commands.machine.keep_freed_memory', lambda: None)
        yield
    jax.config.update('jax_disable_most_optimizations', False)


def console(*argv):
    return main.main(['analyze', *map(str, argv)])


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(folder, cells): the small model asked with the engine, the large one given other answers to
    the same, and both probed by the command."""
    folder, cells = build(tmp_path_factory.mktemp('probe') / 'study')
    evaluate(folder, cells[0], 'joint')
    rows = read_items(folder / 'evaluations' / f'joint-{SMALL}' / 'items.parquet').to_pylist()
    write_items(folder / 'evaluations' / f'joint-{LARGE}' / 'items.parquet', [
        {**row, 'p_run': LARGE, 'eval_id': f'{row["eval_id"]}+', 'score': float(k % 2)}
        for k, row in enumerate(rows)])
    assert console('probe', folder, '--pictures', 120, '--bootstraps', 200, '--quiet') == 0
    return folder, cells


def values(study, run, task, site, depth=NO_DEPTH, metric='accuracy'):
    """{item_id: number} of the items table of probes."""
    table = read(study[0], 'probe_items')
    at = pc.is_nan(table['rel_depth']) if np.isnan(depth) else pc.equal(table['rel_depth'], depth)
    for name, value in (('run_id', run), ('task', task), ('site', site), ('metric', metric)):
        at = pc.and_(at, pc.equal(table[name], value))
    table = table.filter(at)
    return dict(zip(table['item_id'].to_pylist(), table['value'].to_pylist(), strict=True))


def joint(study, run, condition='image'):
    rows = read_items(study[0] / 'evaluations' / f'joint-{run}' / 'items.parquet').to_pylist()
    return {row['item_id']: row for row in rows if row['condition'] == condition}


@pytest.mark.parametrize('site, condition', [('output', 'image'), ('blind', 'blind')])
def test_items_and_nats_are_those_of_the_joint_evaluation(study, site, condition):
    depth, run = 1.0 if site == 'output' else NO_DEPTH, SMALL
    rows = joint(study, run, condition)
    found, exact = {}, {}
    for family in {row['task'] for row in rows.values()}:
        found |= values(study, run, family, site, depth, 'nll')
        exact |= values(study, run, family, site, depth, 'exact')
    assert found.keys() == rows.keys() and len(found) > 200
    np.testing.assert_allclose([found[item] for item in rows],
                               [row['nll_gold'] for row in rows.values()], rtol=1e-4)
    for item, row in rows.items():
        if row['task'] != 'ground':  # whose judge takes near misses
            assert exact[item] == row['score'] * (not row['truncated'])


def test_a_shared_tower_reads_alike_and_a_dead_connector_as_the_question(study):
    assert values(study, SMALL, 'asked color', 'vision') \
        == values(study, LARGE, 'asked color', 'vision')
    floor = values(study, SMALL, 'asked color', 'question')
    for site, depth in (('connector', NO_DEPTH), ('image', 0.0), ('image', 0.5), ('image', 1.0)):
        assert values(study, SMALL, 'asked color', site, depth) == floor
        assert values(study, LARGE, 'asked color', site, depth) != floor


def test_planted_colours_are_read_from_the_tower_and_shuffled_ones_are_not(study):
    right, floor, control = (
        np.mean(list(values(study, LARGE, 'asked color', site, metric=metric).values()))
        for site, metric in (('vision', 'accuracy'), ('question', 'accuracy'),
                             ('vision', 'control')))
    assert right > floor + .15 and right > control + .15


def test_a_probe_that_attends_is_asked_about_one_object_of_one_picture(study):
    for family in ONE_OBJECT:
        found = values(study, LARGE, family, 'vision', metric='attentive')
        assert found.keys() == values(study, LARGE, family, 'vision').keys() and found
        assert found.keys() == values(study, SMALL, family, 'vision',
                                      metric='attentive control').keys()
    assert not values(study, LARGE, 'relation', 'vision', metric='attentive')


def test_patches_are_those_of_each_item(study):
    looker = Looker(study[0], study[1][0])
    items = [item for item in asked_items(study[0], study[1][0])
             if item.question.family in ONE_OBJECT][:70]
    means = looker.see(items)[0]['vision', NO_DEPTH]
    np.testing.assert_allclose(looker.patches(items).mean(1), means, atol=1e-5)
    assert np.abs(means[0] - means[-1]).max() > 1e-3


def test_patches_that_would_fill_the_memory_are_left_out(study, monkeypatch):
    looker, plan = Looker(study[0], study[1][0]), probe.plan_of(study[1])
    items = asked_items(study[0], study[1][0])
    monkeypatch.setattr(probe, 'PATCHES', 100)
    assert probe._attend({}, looker, items, [], plan).keys() == set(ONE_OBJECT)
    other = [item for item in items if item.question.family == 'count']
    assert probe._attend({}, looker, other, [], plan) == {}


def test_means_have_intervals_and_selectivity_is_a_difference_on_the_same_items(study):
    rows = read(study[0], 'probes').to_pylist()
    held = {(row['run_id'], row['task'], row['site'], row['rel_depth'], row['metric']): row
            for row in rows}
    assert all(row['lo'] < row['hi'] and row['lo'] <= row['value'] <= row['hi'] for row in rows)
    for depth in passes.DEPTHS:
        a, c, s = (held[LARGE, 'read', 'answer', depth, m]['value']
                   for m in ('accuracy', 'control', 'selectivity'))
        assert s == pytest.approx(a - c)
    families = {task for _, task, *_ in held} - {'macro', 'similarity'}  # of three items
    alone = [held[LARGE, task, 'image', .5, 'accuracy'] for task in families
             if not task.startswith('asked')]
    macro = held[LARGE, 'macro', 'image', .5, 'accuracy']
    assert macro['value'] == pytest.approx(np.mean([row['value'] for row in alone]))
    assert macro['n'] == sum(row['n'] for row in alone) and {'fact', 'asked cell'} <= families
    pairs = read(study[0], 'probe_pairs').to_pylist()
    assert {(p['run_id'], p['other_id']) for p in pairs} == {(SMALL, LARGE)}
    assert {(p['rel_depth'], p['other_depth']) for p in pairs if p['metric'] == 'cka'} \
        == {(a, b) for a in passes.DEPTHS for b in passes.DEPTHS}


def test_hiding_the_picture_in_all_layers_is_asking_blind(study):
    """The picture stands first and rotary products depend on distance alone."""
    for family in ('read', 'similarity'):
        hidden, blind, seen, band = (values(study, LARGE, family, *at, 'nll') for at in (
            ('knock-out everywhere', NO_DEPTH), ('blind', NO_DEPTH), ('output', 1.0),
            ('knock-out', .25)))
        np.testing.assert_allclose(list(hidden.values()), list(blind.values()), rtol=1e-4)
        assert np.abs(np.subtract(list(seen.values()), list(blind.values()))).max() > .1
        assert np.abs(np.subtract(list(seen.values()), list(band.values()))).max() > .01


def test_an_ignored_picture_has_no_divergence_and_a_used_one_has(study, tmp_path):
    folder, (small, _) = study
    items = asked_items(folder, small)[:9]
    used = Looker(folder, small).see(items, 2)[1]['output', 1.0, 'kl']
    params = init_params(model_of(small), 1)
    params['language']['blocks']['attention']['o_HED'][:] = 0  # no token hears of another
    shutil.copytree(folder, tmp_path / 'study')
    shutil.rmtree(folder_of(tmp_path / 'study', small, 'instruct'))
    save(folder_of(tmp_path / 'study', small, 'instruct'), params, small)
    found = Looker(tmp_path / 'study', small).see(items, 2)[1]
    assert used.min() > 1e-3 and found['output', 1.0, 'kl'].max() < 1e-6
    np.testing.assert_allclose(found['knock-out', .25, 'nll'], found['output', 1.0, 'nll'])


def test_what_is_seen_does_not_depend_on_what_is_looked_at_together(study, monkeypatch):
    asked = asked_items(study[0], study[1][0])
    items = sorted(asked, key=lambda item: item.example.count)[-7:]  # three of three pictures
    looker = Looker(study[0], study[1][0])
    together = looker.see(items)[0]
    monkeypatch.setattr(passes, 'SCORES', 2 * looker.model.language.H * 32 ** 2)
    assert looker.rows(items) == 2
    apart = looker.see(items)[0]
    for site, x in together.items():
        np.testing.assert_allclose(x, apart[site], rtol=1e-4, atol=1e-5)


def test_finished_runs_are_left_alone_and_a_lost_one_comes_back_the_same(study, tmp_path,
                                                                          monkeypatch):
    folder = shutil.copytree(study[0], tmp_path / 'study')
    names = ('probes.parquet', 'probe_items.parquet', 'probe_pairs.parquet')
    before = [(folder / name).read_bytes() for name in names]
    looked = []
    monkeypatch.setattr(probe, 'Looker', lambda study, cell: looked.append(cell.name) or Looker(
        study, cell))
    again = ('probe', folder, '--pictures', 120, '--bootstraps', 200, '--quiet')
    for name in names:
        (folder / name).unlink()
    assert console(*again) == 0 and looked == []
    (folder / 'probes' / SMALL / 'DONE.json').unlink()  # as a kill leaves it
    assert console(*again) == 0 and looked == [SMALL]
    assert [(folder / name).read_bytes() for name in names] == before
    stage = folder / 'cells' / SMALL / 'instruct'
    write_json(stage / 'DONE.json', {'hash': 'of other settings'})
    found, without = probe.probed_cells(folder, read_json(folder / 'study.json'))
    assert [cell.name for cell in found] == [LARGE]
    assert without == [f'{SMALL}: skipped: stage instruct is not finished']


def test_the_ledger_stands_on_the_same_items(study, tmp_path, capsys):
    assert console('losses', study[0], '--out', tmp_path, '--bootstraps', 200, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row['table'], row['family'], row['what']): row for row in found['rows']
            if row['setting'] in (SMALL[:-3], f'{LARGE[:-3]} - {SMALL[:-3]}')}
    assert rows['losses', 'read', 'tower']['value'] == 0
    assert rows['levels', 'read', 'connector']['value'] == rows[
        'levels', 'read', 'question alone']['value']
    right = [row['score'] for row in joint(study, SMALL).values() if row['task'] == 'read']
    assert rows['levels', 'read', 'answered']['value'] == pytest.approx(np.mean(right), abs=1e-6)
    assert any('similarity: no probe at every site' in note for note in found['notes'])
    assert {path.name for path in tmp_path.iterdir()} == {'losses.json', 'losses.csv', 'losses.png'}
    assert {path.name for path in (study[0] / 'analysis').iterdir()} == {
        'probe.json', 'probe.csv', 'probe.png'}


def test_the_plan_suits_the_narrowest_and_the_shallowest(study):
    plan = probe.plan_of(study[1])
    assert (plan.dimensions, plan.bands) == (32, 2)
    assert probe.plan_of(study[1][1:]).bands == 4


@pytest.mark.parametrize('argv, told', [
    (('probe', 'nowhere'), 'no study.json'),
    (('probe', 'nowhere', '--bootstraps', 5), 'too few for an interval'),
    (('probe', 'nowhere', '--pictures', -1), 'must be at least 0'),
    (('losses', 'nowhere'), 'no study.json')])
def test_what_cannot_be_probed_is_one_line(capsys, argv, told):
    assert console(*argv) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1 and told in line


def test_a_study_without_a_model_that_sees_says_so(study, tmp_path):
    cell = study[1][0]
    rows = read_json(study[0] / 'study.json')['runs']
    write_json(tmp_path / 'study.json', {
        'runs': [row for row in rows if row['run_id'] == cell.name]})
    with pytest.raises(ValueError, match=f'nothing to probe: {cell.name}: skipped: no finished'):
        probe.probe_study(tmp_path)


def test_items_that_the_study_did_not_ask_are_refused_with_counts(study):
    folder, (small, _) = study
    items = asked_items(folder, small)
    probe.check_items(folder, small, items)
    with pytest.raises(ValueError, match=f'2 differ, first .*evaluate {SMALL} again'):
        probe.check_items(folder, small, items[2:])


def test_fresh_scenes_are_none_that_the_study_asks_about(study):
    folder, (small, _) = study
    asked = asked_items(folder, small)
    spare = probe.fresh_items(small, asked, 40)
    assert len({item.example.scene_id for item in spare}) > 20
    for part in ('scene_id', 'caption'):
        assert not {getattr(item.example, part) for item in asked} \
            & {getattr(item.example, part) for item in spare}
    assert all(item.example.count for item in spare)
