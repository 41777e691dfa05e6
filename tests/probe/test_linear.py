"""Linear probes: what they read where the truth is known, and their controls."""
import numpy as np
import pytest

from downscale.probe import linear


def clouds(items, labels, noise, seed=0):
    """(features, labels): each label's items lie around a place of its own."""
    draw = np.random.default_rng(seed)
    names = draw.choice(list('abcdefghijkl'[:labels]), items)
    middles = draw.normal(size=(labels, 20))
    x = middles[[ord(name) - 97 for name in names]]
    return x + noise * draw.normal(size=x.shape), names


def test_a_probe_reads_what_is_there_and_nothing_of_shuffled_labels():
    x, labels = clouds(600, 4, .3)
    one = linear.fit(x[:400], labels[:400], 0).score(x[400:], labels[400:])
    assert one.hits.mean() > .9 and one.shuffled.mean() < .4 and .2 < one.chance < .4


def test_a_label_that_no_item_taught_is_never_right():
    x, labels = clouds(600, 4, .3)
    known = labels != 'd'
    probed = linear.fit(x[:400][known[:400]], labels[:400][known[:400]], 0).score(
        x[400:], labels[400:])
    assert probed.hits[known[400:]].mean() > .9 and not probed.hits[~known[400:]].any()


def test_a_probe_is_the_best_of_its_kind():
    """Nothing near its weights has a smaller loss, and it does as well as the best rule there is.

    Around places of equal spread the nearest place is the best guess, and that rule is linear.
    """
    x, labels = clouds(6000, 12, 1.5)
    probe = linear.fit(x[:4000], labels[:4000], 0)
    told = probe.score(x[4000:], labels[4000:]).hits.mean()
    middles = np.array([x[labels == name].mean(axis=0) for name in sorted(set(labels))])
    nearest = np.array(sorted(set(labels)))[
        ((x[4000:, None] - middles) ** 2).sum(axis=2).argmin(axis=1)]
    assert told == pytest.approx((nearest == labels[4000:]).mean(), abs=.02)
    assert .5 < told < .95


def test_probes_of_several_places_are_scored_where_they_are_asked():
    x, labels = clouds(600, 4, .3)
    sites = {('near', 0.0): x, ('nothing', 0.5): np.zeros_like(x)}
    train, test = ({site: each[part] for site, each in sites.items()}
                   for part in (slice(400), slice(400, None)))
    probes = linear.fit_all(train, {'name': labels[:400]}, 0)
    scored = linear.score_all(probes, test, {'name': labels[400:]})
    assert scored['near', 0.0, 'name'].hits.mean() > .9
    # Where nothing is held the most frequent label is all there is.
    assert scored['nothing', 0.5, 'name'].hits.mean() < .45


def test_the_object_that_is_named_is_found_among_those_of_its_scene():
    """By all words of its name together, where none of them alone tells it from the others."""
    draw = np.random.default_rng(0)
    counts = draw.integers(3, 6, 200)
    # The first two have one shape, the first and the third one color.
    shapes = np.concatenate([['a', 'a', *draw.choice(list('bcd'), count - 2)] for count in counts])
    colors = np.concatenate([['r', 'g', 'r', *draw.choice(list('gb'), count - 3)]
                             for count in counts])
    x = np.column_stack([*(shapes == name for name in 'abcd'), *(colors == name for name in 'rgb')])
    sites = {('tower', 0.0): x + .2 * draw.normal(size=x.shape)}
    probes = linear.fit_all(sites, {'shape': shapes, 'color': colors}, 0)

    def found(**words):
        return linear.find_all(probes, sites, counts, [0] * 200, [words] * 200)[
            'tower', 0.0, linear.NAMED]
    both = found(shape='a', color='r')
    assert both.hits.mean() > .95 and both.shuffled.mean() < .5
    assert both.chance == pytest.approx(np.mean(1 / counts))
    assert found(shape='a').hits.mean() < .7 and found(color='r').hits.mean() < .7
    assert not found(shape='e').hits.any()  # of which no probe was taught
