"""Choosing tokens: the kept set and its frequencies, and that a row's draw is its own."""
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from small import quick

from downscale.generate.sampling import Sampling, _nucleus, _total, choose, forbid, mask

MODES = [Sampling(0.7), Sampling(0.7, 7), Sampling(0.7, 0, 0.8), Sampling(0.7, 7, 0.8)]


@cache
def compiled(sampling):
    return quick(partial(choose, sampling))


def draw(sampling, logits_BV, seed=0, sample_B=None, step_B=None):
    rows = len(logits_BV)
    sample_B = np.arange(rows) if sample_B is None else sample_B
    step_B = np.zeros(rows) if step_B is None else step_B
    sample_B = np.asarray(sample_B).astype(np.uint32)
    return np.asarray(compiled(sampling)(logits_BV, jnp.uint32(seed), sample_B, np.int32(step_B)))


def logits(rows, tokens, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, tokens)).astype(np.float32)


def warped(sampling, logits_V):
    """What Hugging Face's warpers leave, written out for one row: probabilities [V]."""
    scores_V = logits_V.astype(np.float64) / sampling.temperature
    if sampling.top_k:
        scores_V = np.where(scores_V < np.sort(scores_V)[-sampling.top_k], -np.inf, scores_V)
    probability_V = np.exp(scores_V - scores_V.max())
    probability_V /= probability_V.sum()
    order = np.argsort(-probability_V, kind='stable')
    before = np.cumsum(probability_V[order]) - probability_V[order]
    kept_V = np.zeros(len(logits_V), bool)
    kept_V[order[before < sampling.top_p - 1e-12]] = True
    probability_V = np.where(kept_V, probability_V, 0)
    return probability_V / probability_V.sum()


@pytest.mark.parametrize('sampling', MODES)
def test_draws_follow_the_truncated_distribution(sampling):
    expected_V = warped(sampling, logits(1, 16)[0])
    drawn_B = draw(sampling, np.tile(logits(1, 16), (20_000, 1)))
    count_V = np.bincount(drawn_B, minlength=16)
    kept_V = expected_V > 0
    assert not count_V[~kept_V].any()
    assert (count_V[kept_V & (expected_V > 1e-3)] > 0).all()
    often_V = expected_V * 20_000 > 5
    assert chisquare(count_V[often_V], expected_V[often_V] * count_V[often_V].sum()
                     / expected_V[often_V].sum()).pvalue > 0.001


@pytest.mark.parametrize('sampling', [Sampling(1.3, 40), Sampling(2.5, 0, 0.6),
                                      Sampling(1.3, 40, 0.9)])
def test_no_draw_leaves_the_kept_set(sampling):
    rows_BV = logits(300, 400, seed=1)
    drawn_B = draw(sampling, rows_BV)
    kept = [warped(sampling, row_V)[token] > 0 for row_V, token in zip(rows_BV, drawn_B)]
    assert all(kept)


@pytest.mark.parametrize('sampling', [Sampling(0.6, 5), Sampling(1.5, 0, 0.7),
                                      Sampling(1.5, 12, 0.7)])
def test_the_warpers_of_transformers_keep_the_same_tokens(sampling):
    torch = pytest.importorskip('torch')
    warpers = pytest.importorskip('transformers.generation.logits_process')
    row_V = logits(1, 30, seed=2)
    scores_V = warpers.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(row_V))
    if sampling.top_k:
        scores_V = warpers.TopKLogitsWarper(sampling.top_k)(None, scores_V)
    scores_V = warpers.TopPLogitsWarper(sampling.top_p)(None, scores_V)
    kept = set(torch.isfinite(scores_V[0]).nonzero()[:, 0].tolist())
    assert set(draw(sampling, np.tile(row_V, (20_000, 1))).tolist()) == kept
    assert set(np.flatnonzero(warped(sampling, row_V[0])).tolist()) == kept


@pytest.mark.parametrize('sampling', [Sampling(), *MODES])
def test_a_draw_depends_neither_on_the_batch_nor_on_the_order(sampling):
    rows_BV, sample_B, step_B = logits(32, 3000, seed=3), np.arange(32) * 7, np.arange(32) % 5
    all_B = draw(sampling, rows_BV, 4, sample_B, step_B)
    for rows in (1, 5):
        for start in range(0, 30, rows):
            part = slice(start, start + rows)
            np.testing.assert_array_equal(
                draw(sampling, rows_BV[part], 4, sample_B[part], step_B[part]), all_B[part])
    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_array_equal(
        draw(sampling, rows_BV[order], 4, sample_B[order], step_B[order]), all_B[order])


def test_the_mass_of_a_row_is_added_in_one_order():
    """The bits of `sum` are not the same for 1 and 16 rows here, compiled as they are."""
    gap_BV = np.abs(logits(16, 151_936, seed=4)) * 3
    both = jax.jit(lambda gap_BV: (_nucleus(gap_BV, 0.95), _total(jnp.exp(-gap_BV))))
    kept_BV, total_B = both(gap_BV)
    for rows in (1, 2, 3):
        kept_part_BV, total_part_B = both(gap_BV[:rows])
        np.testing.assert_array_equal(total_part_B, total_B[:rows])
        np.testing.assert_array_equal(kept_part_BV, kept_BV[:rows])


@pytest.mark.parametrize('change', [dict(seed=1), dict(sample_B=np.arange(500) + 500),
                                    dict(step_B=np.ones(500)),
                                    dict(step_B=np.ones(500), sample_B=np.arange(-1, 499))])
def test_another_seed_sample_or_step_draws_anew(change):
    flat_BV = np.zeros((500, 50), np.float32)
    first_B, other_B = draw(MODES[0], flat_BV), draw(MODES[0], flat_BV, **change)
    assert (first_B == other_B).mean() < 0.1  # by chance 1 in 50
    assert len(set(first_B.tolist())) == 50


@pytest.mark.parametrize('sampling', MODES)
def test_noise_belongs_to_the_token_not_to_its_rank(sampling):
    rows_BV = np.tile(logits(1, 20, seed=5), (2000, 1))
    best, second = np.argsort(-rows_BV[0])[:2]
    rows_BV[:, second] = np.nextafter(rows_BV[:, best], -np.inf)
    swapped_BV = rows_BV.copy()
    swapped_BV[:, [best, second]] = rows_BV[:, [second, best]]
    np.testing.assert_array_equal(draw(sampling, rows_BV), draw(sampling, swapped_BV))


def test_top_k_of_the_whole_vocabulary_draws_as_without_it():
    rows_BV = logits(200, 30, seed=6)
    for top_p in (1.0, 0.8):
        everything_B = draw(Sampling(0.7, 0, top_p), rows_BV)
        for top_k in (29, 30, 31):  # the last of 30 is never drawn here, so 29 are all
            np.testing.assert_array_equal(draw(Sampling(0.7, top_k, top_p), rows_BV), everything_B)


def test_a_change_of_the_process_generator_changes_no_draw():
    flat_BV = np.zeros((50, 40), np.float32)
    usual_B = np.asarray(choose(MODES[0], flat_BV, 3, np.arange(50), np.arange(50)))
    with jax.default_prng_impl('rbg'):
        np.testing.assert_array_equal(
            choose(MODES[0], flat_BV, 3, np.arange(50), np.arange(50)), usual_B)


@pytest.mark.parametrize('top_p, kept', [(1e-9, {0}), (0.5, {0}), (0.51, {0, 1}), (0.75, {0, 1}),
                                         (0.76, {0, 1, 2}), (0.999, {0, 1, 2, 3})])
@pytest.mark.parametrize('top_k', [0, 4])
def test_the_token_that_crosses_p_stays(top_p, kept, top_k):
    row_V = np.log(np.float32([0.5, 0.25, 0.15, 0.1, 0]) + 1e-30)
    drawn_B = draw(Sampling(1.0, top_k, top_p), np.tile(row_V, (500, 1)))
    assert set(drawn_B.tolist()) == kept


def test_ties_are_kept_as_the_docstring_says():
    tied_BV = np.tile(np.float32([0, 2, 2, 2, 2, 0]), (500, 1))
    assert set(draw(Sampling(1.0, 2), tied_BV).tolist()) == {1, 2}
    assert set(draw(Sampling(1.0, 0, 0.4), tied_BV).tolist()) == {1, 2, 3, 4}
    assert set(draw(Sampling(1.0, 3, 0.4), tied_BV).tolist()) == {1, 2, 3}


def test_greedy_takes_the_best_token_and_the_lower_id_of_a_tie():
    rows_BV = logits(50, 60, seed=7)
    np.testing.assert_array_equal(draw(Sampling(top_k=3, top_p=0.5), rows_BV), rows_BV.argmax(-1))
    rows_BV[:, [20, 40]] = 99
    assert set(draw(Sampling(), rows_BV).tolist()) == {20}
    assert draw(Sampling(), rows_BV).dtype == draw(MODES[3], rows_BV).dtype == np.int32


@pytest.mark.parametrize('sampling', [Sampling(), *MODES])
def test_banned_tokens_are_not_drawn_and_a_forced_one_always_is(sampling):
    rows_BV = logits(200, 16, seed=8)
    rows_BV[:100, :10] = -np.inf
    rows_BV[100:] = -np.inf
    forced = np.arange(100) % 16
    rows_BV[np.arange(100, 200), forced] = -3
    drawn_B = draw(sampling, rows_BV)
    assert (drawn_B[:100] >= 10).all()
    np.testing.assert_array_equal(drawn_B[100:], forced)


def test_half_precision_and_a_tiny_temperature_do_not_break_a_draw():
    rows_BV = logits(20, 50, seed=9)
    np.testing.assert_array_equal(draw(Sampling(1e-30, 5, 0.9), rows_BV), rows_BV.argmax(-1))
    half_BV = jnp.asarray(rows_BV, jnp.bfloat16)
    np.testing.assert_array_equal(draw(MODES[3], half_BV),
                                  draw(MODES[3], half_BV.astype(jnp.float32)))


def test_forbidden_ids_are_out_only_where_asked():
    rows_BV, step_B = jnp.zeros((3, 6)), jnp.array([0, 1, 2])
    below_BV = np.asarray(forbid(rows_BV, mask((2, 5), 6), step_B < 2))
    assert np.isneginf(below_BV[:2, [2, 5]]).all() and np.isfinite(below_BV[:2, [0, 1, 3, 4]]).all()
    assert np.isfinite(below_BV[2]).all()
    assert np.isneginf(forbid(rows_BV, mask([2], 6), True)[:, 2]).all()
    assert not mask((), 6).any()


@pytest.mark.parametrize('bad', [dict(temperature=-1.0), dict(temperature=float('nan')),
                                 dict(temperature=float('inf')), dict(top_k=-1), dict(top_p=0.0),
                                 dict(top_p=1.1), dict(top_p=float('nan'))])
def test_settings_out_of_range_are_refused_in_one_line(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        Sampling(**bad)
    assert '\n' not in str(error.value)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r'\[6, -1\] are outside the vocabulary of 6 rows'):
        mask([2, 6, -1], 6)
