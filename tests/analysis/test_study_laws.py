"""Laws of size over runs whose seeds saw slightly other numbers of tokens, or diverged."""
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from downscale.accounting import totals
from downscale.analysis import study_laws
from downscale.analysis.measures import Missing
from downscale.runtime.files import write_json
from downscale.sizes import MICRO, scale

SIZES = [(32, 1), (32, 2), (64, 2), (64, 4), (96, 4), (128, 6)]
PACKED = (13447, 13452, 13477)   # tokens of three seeds in rows of the same room


def study(root, runs):
    """A scored study of `runs` (size, seed, rate, loss or a reason to have failed, steps)."""
    curves, names = {}, []
    for k, ((width, depth), seed, rate, loss, steps) in enumerate(runs):
        cell, size = f'w{width}d{depth}-s{seed}-{k}', f'w{width}d{depth}'
        folder = root / 'cells' / cell / 'text'
        language = scale(MICRO['w64d2'], width, depth, 320)
        write_json(folder / 'experiment.json', {
            'size': size, 'seed': seed, 'language': asdict(language), 'stages': [{
                'name': 'text', 'steps': steps, 'batch': 8, 'length': 128, 'tiles': 0,
                'rates': {'language': rate}, 'trainable': ['language'], 'parents': {}}]})
        if isinstance(loss, str):
            write_json(folder / 'FATAL.json', {'reason': loss})
        else:
            write_json(folder / 'DONE.json', {})
            curves[cell, 'text'] = {'tokens': np.full(10, PACKED[seed % 3] * steps / 14),
                                    'loss': np.full(10, loss)}
        names.append(cell)
    return SimpleNamespace(made={}, resamples=SimpleNamespace(weights=np.zeros((100, 1))),
                           sizes=(SimpleNamespace(runs=tuple(names)),),
                           study=SimpleNamespace(root=root, meta={}, curves=curves))


def loss_of(size, seed):
    n = totals(scale(MICRO['w64d2'], *size, 320))['n_nonembed']
    return 1 + 20 * n ** -.3 * (1 + .002 * seed)


NAN = 'step 7: loss nan, gradient norm nan; lower the learning rate'


def test_seeds_that_were_packed_otherwise_are_one_number_of_tokens(tmp_path):
    s = study(tmp_path, [(size, seed, 1e-3, loss_of(size, seed), 14)
                         for size in SIZES for seed in range(3)])
    found = study_laws.losses_by_size(s)['text']
    assert found['fit'].form == study_laws.POWER.name and found['tokens'] == 14 * 8 * 128
    assert [point['runs'] for point in found['points']] == [3] * len(SIZES)
    # all seeds of the largest size are held out, none of them is in the fit
    assert found['holdout'].held == 3
    assert [point['held'] for point in found['points']] == [False] * 5 + [True]
    assert found['diverged'] == []


def test_a_run_that_diverged_is_named_and_left_out_of_the_law(tmp_path):
    runs = [(size, 0, 1e-3, loss_of(size, 0), 14) for size in SIZES]
    s = study(tmp_path, [*runs, ((32, 2), 1, 1e-3, NAN, 14),
                         ((32, 2), 2, 1e-3, 'no space left', 14)])
    found = study_laws.losses_by_size(s)['text']
    assert found['diverged'] == ['w32d2-s1-6'] and found['fit'].n == 6


def test_a_rate_at_which_a_seed_diverged_is_not_chosen_and_no_seed_is_lost(tmp_path):
    losses = {1e-3: 3., 2e-3: 2.5, 4e-3: 2.}
    runs = [((32, 2), seed, rate, NAN if (rate, seed) == (4e-3, 1) else loss, 14)
            for rate, loss in losses.items() for seed in range(3)]
    found = study_laws.rates(study(tmp_path, runs))
    choice = found['choices']['w32d2']
    assert choice.lr == 2e-3 and dict(choice.grid)[4e-3] == np.inf
    assert found['seeds'] == {'w32d2': 3}


def test_a_size_that_diverged_at_every_rate_is_an_alarm(tmp_path):
    gone = [((32, 1), 0, rate, NAN, 14) for rate in (1e-3, 2e-3)]
    with pytest.raises(Missing, match='w32d1: every rate .* diverged'):
        study_laws.rates(study(tmp_path / 'all', gone))
    kept = [((32, 2), 0, rate, 2 + rate, 14) for rate in (1e-3, 2e-3)]
    found = study_laws.rates(study(tmp_path / 'one', gone + kept))
    assert list(found['choices']) == ['w32d2'] and found['alarms'][0].startswith('w32d1: every')
