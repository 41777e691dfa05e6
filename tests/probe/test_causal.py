"""The causal ledger, on a small model that answers and on three that were broken at a known place.
"""
import dataclasses
import json
from types import SimpleNamespace

import broken_models
import numpy as np
import probed_study
import pytest
from probed_study import save

from downscale.analysis.measures import Row
from downscale.commands import main
from downscale.data.scenes import pairs
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.world import World, caption, sample
from downscale.evaluate import decoupled
from downscale.evaluate.answers import item_of, wording_of
from downscale.model.init import init_params
from downscale.probe import causal, interchange, linear
from downscale.probe.causal import CausalPlan
from downscale.probe.checkpoints import open_checkpoint
from downscale.probe.interchange import Moved
from downscale.probe.linear import Probed
from downscale.probe.passes import Looker
from downscale.stage_table import STAGES
from downscale.stages.folders import folder_of
from downscale.stages.models import model_of
from downscale.study.preparation import prepare

PLAN = CausalPlan(pairs=24, scenes=160, bootstraps=300)
WORLD = World(n_shapes=10, max_objects=6)


# --- matched scenes ---------------------------------------------------------------------------

def records(example):
    return example.caption.split(' ; ')


@pytest.mark.parametrize('field', list(pairs.ASKED))
def test_a_pair_differs_in_one_field_of_one_object_and_nothing_else(field):
    for index in range(20):
        asked, other, nothing, question = (
            pairs.pair(WORLD, 'test', index, field, change) for change in pairs.CHANGES)
        assert {one.base for one in (other, nothing, question)} == {asked.base}
        told = asked.base.questions[0]
        assert told.answer == vars(asked.asked)[field]
        # Of the asked object another value is told, of another object the same.
        for one, changes in ((asked, True), (other, False), (nothing, False)):
            lines = [set(records(one.base)), set(records(one.source))]
            assert len(lines[0] - lines[1]) == len(lines[1] - lines[0]) == (one is not nothing)
            assert (one.source.questions[0].answer != told.answer) == changes
            assert one.source.questions[0].text == told.text
        assert question.source.images == question.base.images
        assert question.source.questions[0].text != told.text
        assert nothing.source.caption == caption(sample(WORLD, 'test', index))


CLUTTER = Clutter(min_objects=4, max_objects=6)


@pytest.mark.parametrize('field', list(pairs.ASKED))
def test_a_cluttered_pair_differs_in_one_field_of_one_thing_and_nothing_else(field):
    for index in range(12):
        asked, other, nothing, question = (
            pairs.pair(CLUTTER, 'test', index, field, change) for change in pairs.CHANGES)
        assert asked.base == nothing.base == question.base
        assert asked.base.images == other.base.images and asked.asked != other.asked
        for one, changed, lines in ((asked, True, 1), (other, False, 1), (nothing, False, 0)):
            told, again = one.base.questions[0], one.source.questions[0]
            assert told.text == again.text and told.answer == vars(one.asked)[field]
            assert (told.answer != again.answer) == changed
            parts = [set(each.caption.removesuffix(' ;').split(' ; '))
                     for each in (one.base, one.source)]
            assert len(parts[0] - parts[1]) == len(parts[1] - parts[0]) == lines
            assert one.base.images != one.source.images
        # The same picture is asked about two things of which one has another value.
        assert question.source.images == question.base.images
        first, second = (each.questions[0] for each in (question.base, question.source))
        assert first.text != second.text and first.answer != second.answer


def test_a_world_without_another_shape_asks_for_none():
    assert 'shape' in pairs.fields_of(WORLD)
    assert 'shape' not in pairs.fields_of(World(n_shapes=8, max_objects=8))
    assert pairs.fields_of(World(families=('fact', 'count'))) == []
    # Nor does a world ask what none of its families does.
    assert pairs.fields_of(Clutter()) == list(pairs.CLUTTERED)
    assert pairs.fields_of(Clutter(families=('color', 'read', 'held'))) == ['color', 'char']


# --- levels -----------------------------------------------------------------------------------

def probed(accuracy, chance=.25):
    return Probed(hits=np.repeat([1., 0.], [int(100 * accuracy), 100 - int(100 * accuracy)]),
                  shuffled=np.zeros(100), chance=chance)


@pytest.mark.parametrize('tower, connector, answer, right, place', [
    ((1, 1), (1, 1), 1, 1, 'nowhere'), ((1, .4), (1, .4), .4, .4, 'encode'),
    ((1, 1), (.3, 1), .3, .3, 'carry'),       # the key alone is enough to be lost
    ((1, 1), (1, 1), .3, .3, 'address'), ((1, 1), (1, 1), 1, .3, 'read'),
    ((1, 1), (.3, 1), .3, 1, 'nowhere')])     # what is answered was there
def test_the_place_is_where_most_is_lost(tower, connector, answer, right, place):
    found = {('answer', 0.0, 'color'): probed(.25), ('answer', 1.0, 'color'): probed(answer)}
    for site, accuracies in (('tower', tower), ('connector', connector)):
        for name, accuracy in zip(('shape', 'color'), accuracies, strict=True):
            found[site, np.nan, name] = probed(accuracy)
    left = causal.levels(found, probed(right).hits, .25)
    lost = causal.losses(left)
    assert causal.place(lost) == place
    assert sum(lost.values()) + left['read'] == pytest.approx(1)
    assert list(left.values()) == sorted(left.values(), reverse=True)


def test_sizes_with_seeds_have_an_interval_from_three_on():
    losses = {'a-s0': .1, 'a-s1': .3, 'a-s2': .2, 'b-s0': .5, 'b-s1': .7}
    rows = [Row(table=name, setting=stage, family='macro', what='lost', value=value)
            for name, value in losses.items() for stage in causal.STAGES]
    cells = [SimpleNamespace(name=name, size=name[0]) for name in losses]
    means = {row.table: row for row in causal.over_seeds(cells, rows) if row.setting == 'carry'}
    three, two = means['a, mean over seeds'], means['b, mean over seeds']
    # t of two degrees, 4.303, times .1 / sqrt(3).
    assert (three.value, three.seeds) == (pytest.approx(.2), 3)
    assert (three.low, three.high) == (pytest.approx(.2 - .2484, abs=1e-3),
                                       pytest.approx(.2 + .2484, abs=1e-3))
    assert two.value == pytest.approx(.6) and np.isnan(two.low)


def test_a_probe_that_more_scenes_would_help_says_so():
    key, other = ('tower', np.nan, 'shape'), ('tower', np.nan, 'color')
    told = causal._rising({key: probed(.4), other: probed(.9)},
                          {key: probed(.5), other: probed(.92)})
    assert told == ('less is lost than told: probes still rise, of shape (0.40 from half of the '
                    'scenes, 0.50 from all)')
    assert causal._rising({key: probed(.5)}, {key: probed(.54)}) == ''


# --- models -----------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(folder, cells by name): the model as it is, and broken at each of three places."""
    folder = tmp_path_factory.mktemp('causal') / 'study'
    return folder, broken_models.build(folder)


@pytest.fixture(scope='module')
def ledgers(study):
    """{model: {(place, what): row}} of the one field that is asked for."""
    folder, cells = study
    return {name: {(row.setting, row.what): row
                   for row in causal.causal_ledger(folder, cell, PLAN) if row.family != 'macro'
                   or row.what == 'place'} for name, cell in cells.items()}


@pytest.mark.parametrize('model, place', broken_models.PLACES.items())
def test_the_place_of_a_planted_fault_is_named(ledgers, model, place):
    assert (place, 'place') in ledgers[model]


def test_what_a_whole_model_answers_hangs_on_the_patches_of_the_object(ledgers):
    rows = ledgers['whole']
    share = 'share of the full swap'
    assert rows['read', 'left'].value > .9 and rows['full swap, asked', 'nats'].low > 5
    assert rows['connector, asked', share].value > .9
    assert abs(rows['connector, other patches, asked', share].value) < .1
    # At first all of it stands in the patches, in the end at the place of the answer.
    assert rows['own patches 0, asked', share].value > .9
    assert rows['answer 0, asked', share].value == pytest.approx(0, abs=1e-4)
    assert rows['own patches 1, asked', share].value == pytest.approx(0, abs=1e-4)
    # Another question about the same picture passes through the words.
    assert rows['question 0, question', share].value == pytest.approx(1, abs=1e-3)
    assert rows['all patches, question', share].value == pytest.approx(0, abs=1e-4)


def test_controls_are_nothing_or_everything(ledgers):
    for name in ('whole', 'connector', 'head'):
        rows = ledgers[name]
        full = rows['full swap, asked', 'nats'].value
        assert abs(rows['full swap, nothing', 'nats'].value) < .1 * max(1, abs(full))
        for site in ('all patches, asked', 'answer 1, asked'):
            if (site, 'share of the full swap') in rows:
                assert rows[site, 'share of the full swap'].value == pytest.approx(1, abs=1e-3)
        shuffled = rows['connector', 'probe of shape, shuffled labels']
        assert shuffled.value < .6 < rows['tower', 'probe of shape'].value
    assert abs(ledgers['whole']['full swap, other', 'nats'].value) < 2


def test_where_a_swap_moves_nothing_no_share_is_told(ledgers):
    assert ledgers['blind']['full swap, asked', 'nats'].value == pytest.approx(0, abs=1e-4)
    assert not [key for key in ledgers['blind'] if key[1] == 'share of the full swap'
                and key[0].endswith('asked')]


@pytest.mark.parametrize('nats, told', [(.001, False), (.1, True)])
def test_of_next_to_nothing_no_share_is_told(nats, told):
    full = nats * np.linspace(.9, 1.1, 20)
    moved = Moved(pairs=[SimpleNamespace(cluster=str(n)) for n in range(20)], full=full,
                  right=full, right_source=full, effects={('answer', 1.0): full})
    rows = causal.moved_rows('run', 'shape', {'asked': moved}, PLAN)
    assert [row.value for row in rows if row.what == 'nats'] == [pytest.approx(nats)]
    assert [row.value for row in rows if row.what == 'share of the full swap'] == pytest.approx(
        [1.0] * told)


def test_each_object_is_read_as_it_is_read_alone(study):
    folder, cells = study
    cell = cells['whole']
    looker = Looker(folder, cell)
    scenes = [pairs.pair(cell.world, 'test', n, 'shape') for n in range(9)]
    parts = [interchange.things(one, cell) for one in scenes]
    assert len({len(part) for part in parts}) > 1  # scenes have fewer objects or more
    together = interchange.read(looker, [interchange.matched(one, cell) for one in scenes], parts)
    alone = interchange.read(looker, [
        dataclasses.replace(interchange.matched(one, cell), own_J=part[k])
        for one, part in zip(scenes, parts, strict=True) for k in range(len(part))])
    for name in ('own patches', 'own connected', 'own tokens'):
        assert together[name].shape[-2] == sum(map(len, parts))
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4, atol=1e-5)
    first = np.cumsum([0, *map(len, parts)])[:-1]
    np.testing.assert_allclose(together['answer'], alone['answer'][:, first], rtol=1e-4, atol=1e-5)


def test_probes_of_patches_learn_from_all_objects_of_a_scene(study, monkeypatch):
    folder, cells = study
    learnt = []
    monkeypatch.setattr(causal, 'fit_all', lambda sites, labels, seed: learnt.append(
        {site[0]: len(x) for site, x in sites.items()}) or linear.fit_all(sites, labels, seed))
    causal.causal_ledger(folder, cells['whole'], CausalPlan(pairs=4, scenes=24, bootstraps=100))
    patches, half, answers = learnt
    scenes = [pairs.pair(cells['whole'].world, 'test', causal.SPARE + n, 'shape')
              for n in range(24)]
    objects = sum(len(one.objects) for one in scenes)
    assert patches == {'tower': objects, 'connector': objects, 'own patches': objects}
    assert half == {'tower': (objects + 1) // 2}
    assert answers == {'answer': 24} and objects > 48


def test_places_taken_over_side_by_side_move_what_each_moves_alone(study, monkeypatch):
    folder, cells = study
    looker = Looker(folder, cells['whole'])
    scenes = [interchange.matched(pairs.pair(cells['whole'].world, 'test', n, 'shape'),
                                  cells['whole']) for n in range(6)]
    together, _ = interchange.interchange(looker, scenes)
    monkeypatch.setattr(interchange, 'COPIES', 1)
    alone, _ = interchange.interchange(looker, scenes)
    assert together.effects.keys() == alone.effects.keys() and len(alone.effects) >= 12
    for place, effect in alone.effects.items():
        np.testing.assert_allclose(together.effects[place], effect, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(together.full, alone.full, rtol=1e-3, atol=1e-3)
    assert (together.right == alone.right).all()
    assert (together.right_source == alone.right_source).all()


# --- stages that write ------------------------------------------------------------------------

@pytest.fixture(scope='module')
def writers(study):
    """{(model, stage): {(place, what): row}} of models that are taken for ones that write."""
    folder, cells = study
    ledgers = {}
    for name, stage in (('whole', 'extract'), ('blind', 'extract'), ('whole', 'caption')):
        params = open_checkpoint(folder_of(folder, cells[name], 'instruct')).params()
        save(folder_of(folder, cells[name], stage), params, cells[name])
        ledgers[name, stage] = {
            (row.setting, row.what): row
            for row in causal.causal_ledger(folder, cells[name], PLAN, stage=stage)}
    return ledgers


@pytest.mark.parametrize('stage', ['extract', 'caption'])
def test_a_writer_is_asked_for_its_text_and_the_token_that_the_field_decides(study, stage):
    _, cells = study
    cell = cells['whole']
    for index in range(6):
        one = pairs.pair(cell.world, 'test', index, 'shape')
        found = interchange.matched(one, cell, stage)
        for asked, plain in ((found.base, one.base), (found.source, one.source)):
            item = item_of(plain, plain.questions[0])
            kind = STAGES[stage].writes
            told, = decoupled.gold_texts([item], kind).values()
            assert asked.questions[0].text == wording_of(cell).describe(item, kind)
            assert asked.questions[0].answer == told
        texts = [each.questions[0].answer.split() for each in (found.base, found.source)]
        first = next(both for both in zip(*texts, strict=True) if both[0] != both[1])
        assert first == tuple(each.questions[0].answer for each in (one.base, one.source))


def test_the_answer_of_a_writer_stands_before_what_the_field_decides(study, writers):
    folder, cells = study
    asked = [interchange.matched(pairs.pair(cells['whole'].world, 'test', n, 'shape'),
                                 cells['whole'], 'extract') for n in range(24)]
    # Before any layer that place holds the last word that both right texts have, and nothing else.
    held = interchange.read(Looker(folder, cells['whole'], 'extract'), asked)['answer'][0]
    of_word = {}
    for one, x in zip(asked, held, strict=True):
        first, second = (each.questions[0].answer.split() for each in (one.base, one.source))
        same = next(k for k, both in enumerate(zip(first, second)) if both[0] != both[1])
        of_word.setdefault(first[same - 1], []).append(x)
    assert len(of_word) > 1
    for rows in of_word.values():
        np.testing.assert_allclose(rows, np.broadcast_to(rows[0], np.shape(rows)), atol=1e-6)
    one, other = (rows[0] for rows in list(of_word.values())[:2])
    assert np.abs(one - other).max() > 1e-3


def test_controls_of_a_writer_are_nothing_or_everything(writers):
    share = 'share of the full swap'
    for stage in ('extract', 'caption'):
        rows = writers['whole', stage]
        full = rows['full swap, asked', 'nats']
        assert full.low > 0.1
        assert abs(rows['full swap, nothing', 'nats'].value) < .1 * full.value
        for site in ('all patches, asked', 'answer 1, asked'):
            assert rows[site, share].value == pytest.approx(1, abs=1e-3)
        assert rows['answer 0, asked', share].value == pytest.approx(0, abs=1e-4)
    assert writers['blind', 'extract']['full swap, asked', 'nats'].value == pytest.approx(
        0, abs=1e-4)


def test_all_questions_about_a_scene_have_one_caption(writers):
    assert ('full swap, question', 'nats') in writers['whole', 'extract']
    assert ('full swap, question', 'nats') not in writers['whole', 'caption']


# --- the command ------------------------------------------------------------------------------

def test_the_command_leaves_a_table_and_a_figure(study, tmp_path, capsys):
    folder, _ = study
    assert main.main(['analyze', 'ledger', str(folder), '--cell', 'w64d2-s2', '--pairs', '8',
                      '--scenes', '40', '--bootstraps', '200', '--out', str(tmp_path / 'out'),
                      '--quiet']) == 0
    said = capsys.readouterr().out
    assert 'w64d2-s2: most is lost where it should address' in said and 'over seeds' not in said
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'ledger.json', 'ledger.csv', 'ledger.png'}


def test_a_cluttered_world_has_a_ledger_of_its_four_fields(tmp_path):
    """Of a model that nobody trained: what is asked of it is lost, and the tower still encodes."""
    one = probed_study.cell('w32d2')
    one = dataclasses.replace(
        one, world=CLUTTER, stages=(dataclasses.replace(one.stages[0], length=200),),
        data=dataclasses.replace(one.data, similarity_share=0.0),
        vision=dataclasses.replace(one.vision, patch=12, image=96))
    prepare(tmp_path / 'study', 'clutter', [one], True)
    model = model_of(one)
    save(folder_of(tmp_path / 'study', one, 'instruct'), init_params(model, 0), one)
    assert main.main(['analyze', 'ledger', str(tmp_path / 'study'), '--pairs', '6', '--scenes',
                      '24', '--bootstraps', '200', '--out', str(tmp_path / 'out'), '--quiet']) == 0
    rows = json.loads((tmp_path / 'out' / 'ledger.json').read_text())['rows']
    by_place = {(row['setting'], row['what'], row['family']): row for row in rows}
    for field in pairs.CLUTTERED:
        assert by_place['full swap, asked', 'nats', field]['n'] >= 4
        # A random model may answer anything, but the same for the same.
        lost = sum(by_place[stage, 'lost', field]['value'] for stage in causal.STAGES)
        assert lost == pytest.approx(1 - by_place['read', 'left', field]['value'])
        assert by_place['tower', f'probe of {field}', field]['n'] == 6
        # A shape is asked for by its place, which is told by where the patches stand.
        assert (('tower', f'probe of {linear.NAMED}', field) in by_place) == (field != 'shape')


@pytest.mark.parametrize('argv, told', [
    (['--stage', 'extrat'], "--stage: unknown stage 'extrat'; did you mean 'extract'?"),
    (['--stage', 'perceive'], 'w64d2-s0: skipped: no finished stage perceive'),
    (['--stage', 'reason'], "--stage: unknown stage 'reason'"),
    (['--stage', 'extract', '--data', 'x.jsonl', '--out', 'x'], '--stage is about made-up scenes'),
    (['--cell', 'w64d2-s9'], "unknown cell 'w64d2-s9'; did you mean"),
    (['--bootstraps', '5'], 'too few for an interval')])
def test_what_cannot_be_looked_at_is_one_line(study, capsys, argv, told):
    assert main.main(['analyze', 'ledger', str(study[0]), *argv]) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1 and told in line
