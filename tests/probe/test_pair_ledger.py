"""The ledger of pictures in files: the same as that of scenes, and of any model that sees.

The models are those of `broken_models.py`, which lose what they are asked at known places, and tiny
ones of random values.
"""
import dataclasses
import itertools

import broken_models
import jax.numpy as jnp
import numpy as np
import pair_file
import probed_study
import pytest
import small
from question_file import fails
from tokenizers import normalizers

from downscale.data.scenes import pairs as scene_pairs
from downscale.evaluate.answers import items_of
from downscale.model.init import init_params
from downscale.model.vlm import splice
from downscale.probe import causal, interchange, pair_ledger
from downscale.probe.causal import CausalPlan
from downscale.probe.pair_files import read_pairs
from downscale.probe.passes import Looker
from downscale.sizes import Pictures, VisionConfig
from downscale.stages.models import model_of

PLAN = CausalPlan(pairs=60, scenes=4, bootstraps=200)
SHARE = 'share of the full swap'


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """(folder, cells by name, pairs of its world that were written to files and read)."""
    folder = tmp_path_factory.mktemp('pairs') / 'study'
    cells = broken_models.build(folder)
    path = pair_file.of_world(folder.parent / 'pictures', cells['whole'], 'shape',
                              ('asked', 'other', 'nothing'), PLAN.pairs)
    return folder, cells, read_pairs(path)


@pytest.fixture(scope='module')
def ledgers(study):
    """{model: (rows by place and number, what was left out)}, through the door of files."""
    folder, cells, pairs = study
    # What lies in a cell is named by its place, which no patch needs to hold: no key.
    pairs = [dataclasses.replace(pair, key='') for pair in pairs]
    found = {}
    for name, cell in cells.items():
        rows, notes = pair_ledger.pair_ledger(Looker(folder, cell), name, pairs, PLAN)
        found[name] = {(row.setting, row.what): row for row in rows
                       if row.family != 'macro' or row.what == 'place'}, notes
    return found


# --- both doors -------------------------------------------------------------------------------

@pytest.mark.parametrize('model', ['whole', 'connector'])
def test_both_doors_tell_the_same_of_every_swap(study, ledgers, model):
    """Nats, shares by place and the control are those of the very scenes that the files show."""
    folder, cells, _ = study
    cell = cells[model]
    looker = Looker(folder, cell)
    by_change = {}
    for change in ('asked', 'other'):
        scenes = [scene_pairs.pair(cell.world, 'test', cell.data.test + n, 'shape', change)
                  for n in range(PLAN.pairs)]
        by_change[change], _ = interchange.interchange(
            looker, [interchange.matched(scene, cell) for scene in scenes])
    wanted = causal.moved_rows(model, 'shape', by_change, PLAN)
    rows, _ = ledgers[model]
    assert {(row.setting, row.what) for row in wanted} <= set(rows)
    assert any(row.what == SHARE for row in wanted) == (model == 'whole')
    for row in wanted:
        same = rows[row.setting, row.what]
        assert same.value == pytest.approx(row.value, abs=1e-5)
        assert (same.n, same.clusters) == (row.n, row.clusters) == (PLAN.pairs, PLAN.pairs)


@pytest.mark.parametrize('model, place', broken_models.PLACES.items())
def test_the_place_of_a_planted_fault_is_named_from_files(ledgers, model, place):
    rows, notes = ledgers[model]
    assert (place, 'place') in rows and not any('no probes' in note for note in notes)


def test_what_is_left_follows_from_both_pictures_of_a_pair(ledgers):
    rows, _ = ledgers['whole']
    assert rows['read', 'left'].n == 2 * PLAN.pairs and rows['read', 'left'].value > .9
    assert rows['tower', 'probe of shape'].clusters == PLAN.pairs
    shuffled = rows['connector', 'probe of shape, shuffled labels']
    assert shuffled.value < .6 < rows['connector', 'probe of shape'].value
    assert abs(rows['full swap, nothing', 'nats'].value) < 1
    assert abs(rows['full swap, other', 'nats'].value) < 2


# --- few pairs --------------------------------------------------------------------------------

def test_few_pairs_have_no_probes_and_say_how_many_are_needed(study):
    folder, cells, pairs = study
    asked = [pair for pair in pairs if pair.change == 'asked'][:12]
    rows, notes = pair_ledger.pair_ledger(Looker(folder, cells['whole']), 'x', asked, PLAN)
    told = {(row.setting, row.what) for row in rows}
    assert ('full swap, asked', 'nats') in told and ('connector, asked', SHARE) in told
    assert {key for key in told if key[1] in ('left', 'lost', 'place')} == {('read', 'left')}
    assert not any(what.startswith('probe') for _, what in told)
    assert any('stands with' in note and f'{pair_ledger.EACH} are needed' in note
               for note in notes)
    assert any('no controls' in note for note in notes)


def test_where_no_swap_can_be_clear_that_is_said(study):
    folder, cells, pairs = study
    rows, notes = pair_ledger.pair_ledger(Looker(folder, cells['whole']), 'x', pairs[:3], PLAN)
    assert not any(row.what == SHARE for row in rows)
    assert any('not clearly above 0.01 over 3 different pictures' in note for note in notes)


def labels(count, rare=0, of=('a', 'b')):
    """Answers of pictures before and after, `rare` pairs ending in another; their pictures."""
    answers = [of[0]] * count + [of[1]] * (count - rare) + ['c'] * rare
    return answers, [str(k) for k in range(count)] * 2


@pytest.mark.parametrize('count, rare, of, told', [
    (24, 0, 'ab', ''), (23, 0, 'ab', "'a' stands with 23"), (30, 6, 'ab', "'c' stands with 6"),
    (30, 0, 'aa', "'a' is the only one")])
def test_a_probe_wants_every_label_on_so_many_different_pictures(count, rare, of, told):
    answers, clusters = labels(count, rare, of)
    found, notes = pair_ledger._labels('color', answers, [''] * len(answers), clusters)
    assert list(found) == ([] if told else ['color'])
    assert ''.join(notes).count(told) and bool(notes) == bool(told)


def test_many_questions_about_one_picture_are_one_picture():
    answers, clusters = labels(40)
    assert pair_ledger._labels('color', answers, [''] * 80, ['0'] * 40 + clusters[40:])[0] == {}


@pytest.mark.parametrize('keys, told', [
    (['mug', 'cup'] * 24 * 2, ''), (['mug'] * 96, 'is the only one'),
    (['mug', ''] * 48, 'some pairs have no key'), (['mug'] * 95 + ['cup'], "'cup' stands with 1")])
def test_a_key_is_probed_where_all_pairs_have_one_and_several_stand_often(keys, told):
    answers, clusters = labels(48)
    found, notes = pair_ledger._labels('color', answers, keys, clusters)
    assert list(found) == (['color'] if told else ['color, key', 'color'])
    assert bool(notes) == bool(told) and told in ''.join(notes)


# --- tiles ------------------------------------------------------------------------------------

def tiny(folder, pictures, **changes):
    """A folder of a model of random values that cuts `pictures` so."""
    one = probed_study.cell('w32d2')
    one = dataclasses.replace(one, pictures=pictures, **changes)
    probed_study.save(folder, init_params(model_of(one), 3), one)
    small.tokenizer().save(str(folder / 'tokenizer.json'))
    return Looker(folder)


TILED = Pictures('anyres', 4, tuple(itertools.product((1, 2, 3), repeat=2)))
WORDS = {'question': 'what is at a1', 'answer_before': 'circle', 'answer_after': 'square'}


@pytest.fixture(scope='module', params=[Pictures('padded'), TILED, Pictures('anyres', 1)],
                ids=['padded', 'tiles', 'reduced'])
def looked(request, tmp_path_factory):
    """(a model, a pair of pictures of 90 x 50 pixels as it sees them)."""
    folder = tmp_path_factory.mktemp('tiles')
    looker = tiny(folder / 'model', request.param)
    for side, colour in (('before', (220, 40, 40)), ('after', (40, 200, 40))):
        pair_file.picture(folder / f'{side}.png', (90, 50), (12, 10, 42, 30), colour)
    row = {'before': 'before.png', 'after': 'after.png', 'box': [12, 10, 42, 30], **WORDS}
    pair, = read_pairs(pair_file.write_rows(folder, [row]))
    return looker, pair_ledger.matched(looker, pair)


def test_a_token_is_own_where_it_shows_an_own_patch(looked):
    """Features are 1 in own patches and 0 elsewhere: own tokens are those that are not 0."""
    looker, pair = looked
    batch = looker.batch(items_of([pair.base], 1))
    own_BJ = pair.own_J[None]
    own_BL, shows_BL = interchange.shown_by(batch.index_BLC, own_BJ)
    weights = None if batch.weight_BLC is None else jnp.asarray(batch.weight_BLC)

    def spliced(patches_BJ, newline):
        features_BLD = jnp.asarray([[*patches_BJ[0], newline]], jnp.float32)[:, :, None]
        image_BLD = splice(features_BLD, jnp.asarray(batch.index_BLC), weights)
        return np.asarray(image_BLD[0, :, 0]) * (batch.index_BLC[0, :, 0] >= 0)
    np.testing.assert_array_equal(own_BL[0], spliced(own_BJ.astype(float), 0) > 0)
    np.testing.assert_array_equal(shows_BL[0], spliced(np.ones_like(own_BJ, float), 0) > 0)
    assert 0 < own_BL.sum() < shows_BL.sum()


def test_what_lies_in_own_patches_passes_through_them_in_every_tile(looked):
    looker, pair = looked
    pairs = [pair, dataclasses.replace(pair, base=pair.source, source=pair.base)]
    moved, left_out = interchange.interchange(looker, pairs)
    assert left_out == 0 and np.abs(moved.full).min() > 1e-4
    shares = {key: effect / moved.full for key, effect in moved.effects.items()}
    # Only pixels of own patches differ, so that in the first layer no other token does.
    last = max(depth for site, depth in shares if site == 'answer')
    for site in (('all patches', np.nan), ('answer', last)):
        np.testing.assert_allclose(share_of(shares, *site), 1, atol=2e-3)
    np.testing.assert_allclose(share_of(shares, 'own patches', last), 0, atol=1e-4)
    np.testing.assert_allclose(share_of(shares, 'answer', 0), 0, atol=1e-4)
    # The connector looks at one patch at a time: before and behind it the same is taken over.
    own = share_of(shares, 'connector', np.nan)
    np.testing.assert_allclose(share_of(shares, 'tower', np.nan), own, atol=1e-3)
    assert np.abs(share_of(shares, 'connector, other patches', np.nan) - own).min() > .01
    # A swap there and back moves by the same, in either direction.
    np.testing.assert_allclose(moved.full[0], moved.full[1], rtol=1e-3)


def share_of(shares, site, depth):
    return next(share for (name, at), share in shares.items()
                if name == site and (at == depth or np.isnan(at) and np.isnan(depth)))


def test_means_of_own_patches_are_what_lies_there(looked):
    """Read by the tower alone, tile by tile."""
    looker, pair = looked
    turned = dataclasses.replace(pair, base=pair.source, source=pair.base)
    read = interchange.read(looker, [pair, turned])
    batch = looker.batch(items_of([pair.base], 1))
    _, tiles, patches, _ = batch.tiles_BIPQ.shape
    from downscale.probe.passes import _tower
    x_IPW = _tower(looker.params['tower'], batch.tiles_BIPQ[0], vision=looker.model.vision,
                   dtype='float32')
    x_JW = np.asarray(x_IPW).reshape(tiles * patches, -1)
    np.testing.assert_allclose(read['own patches'][0], x_JW[pair.own_J].mean(axis=0), atol=1e-5)
    assert np.abs(read['own patches'][0] - read['own patches'][1]).max() > 1e-3
    layers, items = read['own tokens'].shape[:2]
    assert (layers, items) == (3, 2) and read['answer'].shape[:2] == (3, 2)


# --- what a model cannot be asked -------------------------------------------------------------

BORDER = VisionConfig(layers=1, W=32, H=2, F=64, patch=18, image=40)


@pytest.mark.parametrize('changes, words', [
    ({'answer_after': 'violet'}, 'answer_after holds words that the tokenizer'),
    ({'question': 'what is it?'}, 'question holds words that the tokenizer of this model'),
    ({'box': [39, 1, 40, 30]}, 'the box lies at a border that the model does not see')])
def test_what_a_model_cannot_be_asked_is_refused_by_name(tmp_path, changes, words):
    looker = tiny(tmp_path / 'model', Pictures('padded'), vision=BORDER)
    path = pair_file.drawn(tmp_path, **{**WORDS, **changes})
    if 'box' in changes:  # what differs must lie in it
        pair_file.picture(tmp_path / 'after0.png', box=changes['box'])
    pairs = read_pairs(path)
    fails(lambda: pair_ledger.pair_ledger(looker, 'x', pairs, PLAN), 'pairs.jsonl, line 1', words)


def test_answers_that_are_one_to_a_model_are_refused(tmp_path):
    looker = tiny(tmp_path / 'model', Pictures('padded'))
    looker.encoder.tokenizer.normalizer = normalizers.Lowercase()
    pairs = read_pairs(pair_file.drawn(tmp_path, **{**WORDS, 'answer_after': 'Circle'}))
    fails(lambda: pair_ledger.pair_ledger(looker, 'x', pairs, PLAN),
          'line 1: the two answers are the same tokens to this model')


def test_an_answer_in_which_a_reply_would_end_is_refused(tmp_path):
    looker = tiny(tmp_path / 'model', Pictures('padded'))
    looker.encoder.stops |= {*looker.encoder.ids('square')}
    pairs = read_pairs(pair_file.drawn(tmp_path, **WORDS))
    fails(lambda: pair_ledger.pair_ledger(looker, 'x', pairs, PLAN),
          'line 1: an answer holds a token that ends replies of this model')


def test_a_prompt_beyond_the_context_of_a_model_is_refused(tmp_path):
    looker = tiny(tmp_path / 'model', Pictures('padded'))
    looker.encoder.context = 8
    pairs = read_pairs(pair_file.drawn(tmp_path, **WORDS))
    fails(lambda: pair_ledger.pair_ledger(looker, 'x', pairs, PLAN),
          'tokens, the model was trained on 8 (max_position_embeddings)')
    looker.encoder.context = 64
    assert pair_ledger.pair_ledger(looker, 'x', pairs, PLAN)


def test_answers_of_several_tokens_are_told_apart_at_the_first_that_differs(tmp_path):
    """Where one ends and the other goes on, by the token that ends a reply."""
    looker = tiny(tmp_path / 'model', Pictures('padded'))
    token = looker.encoder.ids
    for before, first in (('red circle', token('circle')), ('red', [looker.encoder.stop])):
        path = pair_file.drawn(tmp_path, **{**WORDS, 'answer_before': before,
                                            'answer_after': 'red square'})
        pair = pair_ledger.matched(looker, read_pairs(path)[0])
        batch = looker.batch(items_of([pair.base, pair.source], 2))
        at_B, answers_BA = interchange._answers(batch, 1, [])
        np.testing.assert_array_equal(at_B, batch.length_B)
        assert answers_BA.tolist() == [[*first, *token('square')]] * 2


def test_an_unchanged_answer_is_held_against_another_of_the_file(tmp_path):
    """Also where a pass holds no other: a control of equal tokens would always be 0."""
    looker = tiny(tmp_path / 'model', Pictures('padded'))
    pairs = [pair_ledger.matched(looker, pair) for pair in read_pairs(
        pair_file.drawn(tmp_path, count=2, **WORDS))]
    control = dataclasses.replace(pairs[0], change='other', source=dataclasses.replace(
        pairs[0].source, questions=pairs[0].base.questions))
    moved, _ = interchange.interchange(looker, [control], others=pairs)
    assert abs(moved.full[0]) > 1e-5
    fails(lambda: interchange.interchange(looker, [control]), 'one and the same')
