"""What a reader meets first: answer, claims, why pairs are not read, and labels that keep apart."""
import json
import re

import numpy as np
import pytest
from fake_study import fake_study

from downscale.analysis import accuracy, health, measures
from downscale.report import (
    axes,
    claim_table,
    figures,
    first_screen,
    gallery,
    pair_figures,
    report,
    sections,
)
from downscale.results.study import load_study
from downscale.statistics.bootstrap import Interval


@pytest.fixture(scope='module')
def guessing(tmp_path_factory):
    """The page and numbers of a study whose reasoners guess."""
    root = fake_study(tmp_path_factory.mktemp('guessing') / 'study', pictures=12, gold=.3)
    path = report.write_report(root, bootstraps=40)
    return root, path.read_text(), json.loads((path.parent / 'report.json').read_text())


def interval(value, low, high):
    return Interval(value=value, low=low, high=high, n=9, clusters=9, method='planted')


def test_a_failed_gate_is_explained_once_and_at_the_claims_that_it_touches(guessing):
    _, html, numbers = guessing
    assert not numbers['gate']['interpretable']
    assert html.count('so that a wrong answer says nothing') == 1
    touched = [row['id'] for row in numbers['claims'] if row['gate'].startswith('failed (')]
    assert touched and f'<li>{", ".join(touched)}: Pairs are not interpretable' in html
    assert html.index('id="claims"') < html.index('so that a wrong') < html.index('id="look"')
    assert 'Decoupled, ' not in html and 'With seeing and reasoning split' not in html


def test_the_answer_is_that_of_the_numbers(guessing):
    root, html, numbers = guessing
    answer = re.search(r'<p class="answer">(.*?)</p>', html)[1]
    drop = numbers['answer']['kinds']['visual']['drop']
    assert f'{abs(drop["value"]):.2f}' in answer
    assert 'From w64d4 (750k parameters) to w16d2 (30k)' in answer
    claim = next(row for row in numbers['claims'] if row['id'] == 'a')
    assert numbers['answer']['difference']['value'] == claim['effect']
    tasks = numbers['answer']['kinds']['visual']['families']
    by_family = numbers['drops']['families']
    mean = np.mean([by_family[task]['absolute']['value'] for task in tasks])
    assert drop['value'] == pytest.approx(mean, abs=1e-6)


def test_every_dot_is_one_seed_and_their_mean_is_the_line(guessing):
    root, _, _ = guessing
    kinds = accuracy.by_kind(measures.scored(load_study(root), 20))['kinds']
    assert kinds['knowledge']['families'] == ['animal']
    for part in kinds.values():
        for size, seeds in part['seeds'].items():
            assert np.mean(list(seeds.values())) == pytest.approx(part['sizes'][size].value)
            assert part['guesses']['floor'] >= part['guesses']['chance']


def test_every_panel_names_its_axes(guessing, tmp_path):
    """But for heat maps and bars, whose rows have names; no panel leans on its neighbour's."""
    root, _, _ = guessing
    results, _ = report._results(measures.scored(load_study(root), 20))
    for draw, part in ((figures.accuracy, 'accuracy'), (figures.drops, 'drops'),
                       (figures.reliance, 'reliance'), (figures.losses, 'losses'),
                       (pair_figures.grid, 'grid'), (pair_figures.marginals, 'grid')):
        with axes.plotting().rc_context(axes.STYLE):
            figure, _ = draw(results[part])
        figure.draw_without_rendering()
        shown = [axis for axis in figure.axes if axis.get_visible()]
        assert shown
        for axis in shown:
            names = [label.get_text() for label in axis.get_yticklabels()]
            assert axis.get_ylabel() or all(names), (part, axis.get_title())
            sizes = [text.get_fontsize() for text in (*axis.texts, *axis.get_xticklabels())]
            assert min(sizes) >= 8, (part, axis.get_title())
    assert {axis.get_yscale() for axis in figures.losses(results['losses'])[0].axes
            if axis.get_visible()} == {'log'}


@pytest.mark.parametrize('loss', [(2., .5), (1e-9, 1e-9), (.3, -.2), (-.2, -.5), (-.1, 0.),
                                  (0., 0.), (1., np.nan),
                                  (np.nan, np.nan), (np.inf, .2)])
@pytest.mark.parametrize('what', ['training loss', 'reward'])
def test_a_curve_of_any_sign_has_a_panel_with_its_end_beside_it(loss, what):
    curves = [{'size': size, 'run_id': size, 'axis': 'step', 'x': np.array([1., 2.]),
               'what': what, 'y': np.array(loss) * scale}
              for size, scale in (('w16d2', 1.), ('w64d4', 2.))]
    figure, rows = figures.losses({'stages': {'perceive': curves}, 'sizes': ['w16d2', 'w64d4']})
    figure.draw_without_rendering()
    axis = figure.axes[0]
    assert axis.get_ylabel() == what and {row['what'] for row in rows} == {what}
    signed = what == 'reward' or any(value <= 0 for value in loss)
    assert len(rows) == 4 and axis.get_yscale() == ('linear' if signed else 'log')
    ends = {float(text.get_text()): text.get_position()[1] for text in axis.texts}
    assert ends.keys() == {float(f'{scale * loss[1]:.3g}') for scale in (1, 2)
                           if not np.isnan(loss[1])}
    assert all(0 <= place <= 1.1 for place in ends.values())
    assert sorted(ends) == sorted(ends, key=ends.get)      # as high as its loss


def test_rows_of_bars_meet_their_labels_where_a_bar_is_missing():
    none = interval(.5, -np.inf, np.inf)
    row = {'absolute': interval(.5, .4, .6), 'relative_chance': interval(.5, .4, .6)}
    table = {'families': {'a': {**row, 'relative_chance': none}, 'b': row}, 'macro': row,
             'large': 'w64d4', 'small': 'w16d2'}
    figure, _ = figures.drops(table)
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()
    assert [bar.get_y() for bar in right.patches] == [bar.get_y() for bar in left.patches[1:]]


def test_labels_are_moved_apart_in_their_order_and_stay_within():
    for places in ([.99, .5, .51, .52, 1.], [.02, 0., .01, .5]):
        moved = axes.spread(places, .1)
        assert np.argsort(moved).tolist() == np.argsort(places).tolist()
        assert np.diff(sorted(moved)).min() >= .1 - 1e-9 and 0 <= min(moved) <= max(moved) <= 1
    assert axes.spread([.2, .8], .1) == [.2, .8]


def test_ticks_of_close_sizes_have_no_label_but_the_ends_have():
    _, (axis,) = axes.small_axes(1)
    axis.plot([1e5, 1e7], [0, 1])
    axis.set(xscale='log')
    axes.spread_ticks(axis, [1e5, 1.1e5, 1e6, 9e6, 1e7], ['a', 'b', 'c', 'd', 'e'])
    assert [label.get_text() for label in axis.get_xticklabels()] == ['a', '', 'c', '', 'e']


def test_a_cell_of_a_heat_map_shows_both_ends_of_an_uneven_interval():
    assert pair_figures.between(interval(1., .71, 1.)) == '.71–1.00'
    assert pair_figures.between(interval(.1, 0., .2)) == '.00–.20'


def test_exchanged_pictures_that_change_nothing_are_said_to():
    losses = {'color': interval(.01, -.1, .1), 'count': interval(.3, .2, .4),
              'animal': interval(0., -.1, .1)}
    told = sections._exchanged({'large': 'w', 'conditions': {'shuffled': losses}},
                               ['color', 'count'])
    assert told == ('With the picture of another question w clearly loses in 1 of 2 visual '
                    'families; no loss is clear in color.')
    told = sections._exchanged({'large': 'w', 'conditions': {'shuffled': losses}}, ['color'])
    assert 'its answers do not depend on what it sees' in told


def test_claims_that_share_a_reason_share_a_note():
    row = {'verdict': 'inconclusive', 'gate': 'none',
           'reason': 'the interval lies partly within +-0.05'}
    notes = claim_table._notes([{**row, 'id': 'a'}, {**row, 'id': 'b'}], {})
    assert notes == ['a, b: the interval lies partly within ±0.05.']


def test_an_effect_that_is_not_known_is_a_dash_and_bars_share_a_scale():
    unknown = {'effect': float('nan'), 'low': None, 'high': None, 'contrast': 'thinking'}
    wide = {'effect': .25, 'low': -.2, 'high': 1.07, 'contrast': 'thinking'}
    assert claim_table._interval(unknown) == '–'
    assert claim_table._interval(wide) == '+0.25 [-0.20 to +1.07]'
    assert claim_table._reach([{**unknown, 'low': float('nan'), 'high': float('nan')}, wide]) == 1


def test_six_cards_are_of_different_classes_and_families():
    def sample(family, question='What?'):
        return {'family': family, 'question': question, 'pictures': ['data:']}
    result = {'both': [sample('color'), sample('count')],
              'recovered': [sample('color'), sample('fact')],
              'right everywhere': [sample('color', ''), sample('read')]}
    chosen = [(kind, x['family']) for kind, x in gallery.choose(result, 4)]
    assert chosen[:3] == [('both', 'color'), ('recovered', 'fact'), ('right everywhere', 'read')]
    assert len(chosen) == 4


def panel(between):
    """Marginal drops of one setting, of which only the difference of the sides matters."""
    side = {'macro': interval(.2, .1, .3)}
    return {'marginal': {'perception': side, 'reasoner': side,
                         'perception_minus_reasoner': between}}


def test_settings_that_come_out_otherwise_are_told_beside_the_first():
    results = {'gate': {'modes': {'think': {'interpretable': True},
                                  'direct': {'interpretable': False}}},
               'grid': {'extraction, think': panel(interval(-.3, -.4, -.2)),
                        'extraction, direct': panel(interval(.3, .2, .4)),   # fails the gate
                        'caption, think': panel(interval(.3, .2, .4))}}
    text = first_screen._sides(results)
    assert '(extractions and thinking)' in text and 'reasoning costs more, by 0.30' in text
    assert text.endswith('Other settings come out otherwise: perception costs more with captions '
                         'and thinking.')
    results['grid']['caption, think'] = panel(interval(-.1, -.2, -.05))
    assert 'otherwise' not in first_screen._sides(results)
    results['grid']['caption, think'] = panel(interval(-.1, -.2, .05))
    assert 'no clear difference with captions and thinking.' in first_screen._sides(results)


def test_a_run_that_answers_alike_is_named_with_its_answer(tmp_path):
    root = fake_study(tmp_path / 'study', pictures=12)
    s = measures.scored(load_study(root), 20)
    assert not health.constant(s)
    cell = measures.joint_cells(s, s.sizes[0], 'image')[0]
    rows = s.study.cells[cell]
    golds = {task: len(set(s.study.items['gold'][rows][s.study.items['task'][rows] == task]))
             for task in set(s.study.items['task'][rows])}
    task = max(golds, key=golds.get)
    of_task = rows[s.study.items['task'][rows] == task]
    s.study.items['pred'][of_task] = 'c3'
    found = health.constant(s)
    assert [(row['run_id'], row['family'], row['answer'], row['share']) for row in found] == [
        (cell.p_run, task, 'c3', 1)]
    assert f'{cell.p_run} says “c3” to 100 % of {task}' in health.constant_sentence(found)
    # Where the truth is one answer it is no fault.
    s.study.items['gold'][of_task] = 'c3'
    assert not health.constant(s)


@pytest.mark.parametrize(('lowest', 'told'), [(.98, True), (.9, False)])
def test_a_kind_that_is_right_at_every_size_is_called_a_ceiling(lowest, told):
    part = {'drop': interval(.01, -.1, .12), 'sizes': {'small': interval(lowest, .8, 1),
                                                       'large': interval(1, .9, 1)}}
    text = first_screen._change(part, 'facts')
    assert 'no clear fall on facts (0.01 [-0.10 to 0.12]' in text
    assert ('at the ceiling' in text) is told
    falls = first_screen._change(part | {'drop': interval(.2, .1, .3)}, 'facts')
    assert falls == 'falls by 0.20 [0.10 to 0.30] on facts'


def test_a_small_card_says_no_class_of_pairs(guessing):
    root, _, _ = guessing
    found = gallery.samples(measures.scored(load_study(root), 20))
    for kind, sample in gallery.choose(found, first_screen.CARDS):
        card = gallery.small_cards([(kind, sample)])
        assert (gallery.TITLES[kind] in card) is (kind in gallery.JOINT), kind
        assert all(f'wrote “{text["text"][:20]}' in card for text in sample['texts'][:1])
