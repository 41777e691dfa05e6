"""Power before the run: what it says is what repeated studies find."""
import numpy as np
import pytest
from scipy.stats import t

from downscale.statistics import power

MANY = 10 ** 9   # questions: nothing is left of the pictures


@pytest.mark.parametrize(('sd', 'effects'), [
    (.032, (.104, .054, .037)), (.069, (.225, .116, .080))])
def test_the_smallest_effect_is_that_of_a_t_test_over_seeds(sd, effects):
    found = [power.smallest_effect(*power.error(seeds, sd, MANY, 96)) for seeds in (3, 5, 8)]
    assert found == pytest.approx(effects, abs=1.5e-3)


def test_an_equivalence_needs_far_more_seeds_than_a_difference():
    found = [power.equivalence(*power.error(seeds, .03, MANY, 96), .05) for seeds in (3, 5, 8)]
    assert found == pytest.approx((.22, .64, .96), abs=.015)
    assert power.equivalence(*power.error(5, .03, MANY, 96), 1e-4) == 0


def test_simulated_studies_find_the_smallest_effect_in_80_per_cent():
    rng, seeds, sd, questions = np.random.default_rng(0), 5, .04, 400
    effect = power.smallest_effect(*power.error(seeds, sd, questions, questions))
    of_pictures = power.TURNED / questions
    values = (effect + sd * rng.standard_normal((20_000, seeds))
              + of_pictures ** .5 * rng.standard_normal((20_000, 1)))
    of_seeds = values.var(axis=1, ddof=1) / seeds
    degrees = (of_seeds + of_pictures) ** 2 / (of_seeds ** 2 / (seeds - 1)
                                               + of_pictures ** 2 / (questions - 1))
    reach = t.ppf(.975, degrees) * (of_seeds + of_pictures) ** .5
    assert np.mean(values.mean(axis=1) > reach) == pytest.approx(.8, abs=.03)


def test_pictures_alone_and_few_families_are_told_as_they_are():
    error, degrees = power.error(1, .5, 400, 100)   # one seed covers none
    assert (error, degrees) == pytest.approx(((power.TURNED / 400) ** .5, 99))
    assert power.smallest_rank_correlation(3) == 1
    assert .95 < power.smallest_rank_correlation(6) < .97 > power.smallest_rank_correlation(16)
