"""Skills that are there or not: the share of runs that learn one, and when it appears."""
import numpy as np
import pytest
from scipy.stats import beta

from downscale.statistics.learnt import appearance, has_learnt, probability

STUDIES = 300


def test_a_skill_is_learnt_above_the_middle_of_floor_and_one():
    assert has_learnt(.7, .37) and not has_learnt(.68, .37) and not has_learnt(.5, 0.)


def test_the_interval_of_a_share_of_runs_is_jeffreys_and_reaches_the_ends():
    x = probability(2, 7)
    assert (x.low, x.high) == pytest.approx(tuple(beta.ppf([.025, .975], 2.5, 5.5)))
    assert (x.value, x.n, x.seeds) == (2 / 7, 7, 7)
    assert probability(0, 3).low == 0 < .53 < probability(0, 3).high < .55
    assert probability(3, 3).high == 1 and probability(3, 3).low == 1 - probability(0, 3).high
    for learnt, runs in ((4, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match='runs have learnt it'):
            probability(learnt, runs)


@pytest.mark.parametrize('runs', [3, 5, 8])
def test_intervals_of_the_share_cover_it_over_a_ladder_of_sizes_and_no_more(runs):
    """P(learnt) rises along six sizes from study to study elsewhere: what a ladder looks like."""
    rng, hits = np.random.default_rng(0), {1.: [], 1.5: [], .6: []}
    for _ in range(STUDIES):
        shares = 1 / (1 + np.exp(-(np.linspace(-3, 3, 6) + rng.normal())))
        for share, learnt in zip(shares, rng.binomial(runs, shares), strict=True):
            x = probability(learnt, runs)
            for wider, held in hits.items():
                middle = (x.low + x.high) / 2
                held.append(abs(share - middle) <= wider * x.half)
    covers = {wider: np.mean(held) for wider, held in hits.items()}
    assert .92 <= covers[1.] <= .98, covers
    assert covers[1.5] > .98 and covers[.6] < .92


def test_a_skill_appears_between_the_last_look_without_and_the_first_with():
    steps = [100, 200, 400, 800]
    found = appearance(steps, [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]])
    # what is lost again was not there for good
    assert found.brackets == ((200, 400), (400, 800), (200, 400))
    middles = np.log([200 * 2 ** .5, 400 * 2 ** .5, 200 * 2 ** .5])
    assert found.steps.value == pytest.approx(np.exp(middles.mean()))
    assert found.steps.low < 282 and found.steps.high > 566
    alike = appearance(steps, [[0, 0, 1, 1]] * 5).steps
    assert (alike.low, alike.high) == pytest.approx((200, 400))
    never = appearance(steps, [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]]).steps
    assert (never.low, never.value, never.high) == (100, 800, np.inf)
    early = appearance(steps, [[1, 1, 1, 1], [0, 1, 1, 1]]).steps
    assert (early.low, early.high) == (0, 200) and early.method == 'range of the brackets'
    for wrong in ([200, 100, 400, 800], [100, 200, 400]):
        with pytest.raises(ValueError, match='steps must ascend'):
            appearance(wrong, [[0, 0, 1, 1]])


def test_intervals_of_the_step_cover_it_and_no_more():
    rng, looks, off = np.random.default_rng(1), 100 * 2. ** np.arange(12), []
    for _ in range(STUDIES):
        appears = np.exp(np.log(3000) + .8 * rng.standard_normal(5))
        x = appearance(looks, looks >= appears[:, None]).steps
        middle = np.log(x.low * x.high) / 2
        off.append(abs(np.log(3000) - middle) / (np.log(x.high / x.low) / 2))
    covers = [np.mean(np.array(off) <= wider) for wider in (1, 1.5, .6)]
    assert .92 <= covers[0] <= .98 and covers[1] > .98 and covers[2] < .92
