"""L(N, D) by family: planted exponents are found, and their difference has an interval."""
import json

import numpy as np
import pytest

from downscale.analysis import measures
from downscale.analysis.measures import Missing
from downscale.analysis.planted.study import synth
from downscale.analysis.varied import data_laws
from downscale.report import law_sections
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json

SIZES, STEPS, SEEDS = (1e4, 4e4, 1.6e5, 6.4e5), (250, 500, 1000, 2000), 4
PLANTED = {'see': (.45, .30), 'know': (.20, .55)}   # alpha and beta


def rows(noise=.01, seeds=SEEDS):
    rng = np.random.default_rng(0)
    found = []
    for n in SIZES:
        for seed in range(seeds):
            luck = rng.normal(0, noise)   # of a trunk, and so of all its forks
            for steps in STEPS:
                tokens = steps * 1000
                loss = {family: float((.3 + (n / 1e4) ** -alpha + (tokens / 2.5e5) ** -beta)
                                      * np.exp(luck + rng.normal(0, noise / 4)))
                        for family, (alpha, beta) in PLANTED.items()}
                found.append({'trunk': f'{n:g}-s{seed}', 'n': n, 'tokens': tokens, 'loss': loss})
    return found


@pytest.fixture(scope='module')
def laws():
    return {family: data_laws._law(rows(), {family}, 200) for family in PLANTED}


def test_planted_exponents_are_within_their_intervals_and_trunks_are_what_is_drawn(laws):
    for family, wanted in PLANTED.items():
        fitted = laws[family]
        assert (fitted.n, fitted.runs) == (len(SIZES) * len(STEPS) * SEEDS, len(SIZES) * SEEDS)
        for name, value in zip(data_laws.EXPONENTS, wanted, strict=True):
            x = fitted.parameters[name]
            assert x.low < value < x.high and x.high - x.low < .25


def test_exponents_of_two_kinds_differ_as_planted_and_paired_draws_are_closer(laws):
    found = data_laws.compared(laws['see'], laws['know'])
    assert found['alpha'].low < .25 < found['alpha'].high and found['alpha'].low > 0
    assert found['beta'].low < -.25 < found['beta'].high and found['beta'].high < 0
    same = data_laws.compared(laws['see'], laws['see'])
    assert {(x.value, x.low, x.high) for x in same.values()} == {(0, 0, 0)}


def test_with_few_trunks_or_unlike_points_there_is_no_interval(laws):
    few = data_laws._law(rows(seeds=1), {'see'}, 200)
    assert few.runs == 4 and np.isnan(few.parameters['alpha'].low)
    assert np.isnan(data_laws.compared(laws['see'], few)['alpha'].low)


def test_a_family_without_likelihoods_has_no_law():
    with pytest.raises(ValueError, match='its answers have no likelihood'):
        data_laws._law(rows(), {'see', 'other'}, 10)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A planted study whose three seeds stand for one of three numbers of steps."""
    root = tmp_path_factory.mktemp('steps')
    synth(4, root, sizes=2, seeds=3, items=64)
    whole = read_json(root / 'study.json')
    of = {}
    for run in whole['runs']:
        of[run['run_id']] = 100 * 2 ** run['seed']
        run['changes'] = f'steps{of[run["run_id"]]}' if run['seed'] < 2 else ''
        path = root / 'cells' / run['run_id'] / 'instruct' / 'experiment.json'
        value = json.loads(path.read_text())
        for stage in value['stages']:
            if stage['name'] == 'instruct':
                stage['steps'] = of[run['run_id']]
                run['tokens'] = stage['steps'] * stage['batch'] * stage['length']
        write_json(path, value)
    tokens = {run['run_id']: run.pop('tokens') for run in whole['runs']}
    write_json(root / 'study.json', {**whole, 'factors': {'stages.instruct.steps': of}})
    return root, tokens


def test_a_point_is_a_run_at_a_level_with_the_mean_loss_of_its_answers(root):
    folder, tokens = root
    s = measures.scored(load_study(folder), 50)
    stage, found = data_laws.points(s)
    assert stage == 'instruct' and len(found) == 6
    assert sorted(row['tokens'] for row in found) == sorted(tokens.values())
    items = load_study(folder).items
    chosen = (items['p_run'] == 'w32d2-s0') & (items['r_run'] == '')
    chosen &= items['condition'] == 'image'
    first = next(row for row in found if row['trunk'] == 'w32d2-s0')
    for family, loss in first['loss'].items():
        assert loss == pytest.approx(items['nll_gold'][chosen & (items['task'] == family)].mean())
    with pytest.raises(Missing, match='visual: '):   # two sizes carry no exponent
        data_laws.by_family(s)


def test_a_study_whose_steps_did_not_vary_has_no_such_law(root):
    study = load_study(root[0])
    study.meta['factors'] = {'world.n_facts': study.meta['factors']['stages.instruct.steps']}
    with pytest.raises(Missing, match='the steps of no stage were varied'):
        data_laws.points(measures.scored(study, 50))


def test_the_section_tells_every_exponent_and_their_differences(laws, tmp_path):
    result = {'stage': 'instruct', 'laws': laws, 'missing': {'other': 'too few'},
              'differences': data_laws.compared(laws['see'], laws['know'])}
    html = law_sections.families(result, tmp_path)
    assert 'Exponent of parameters (alpha), visual minus knowledge' in html
    assert 'other has no law: too few' in html
    assert len((tmp_path / 'laws_families.csv').read_text().splitlines()) == 1 + 2 * 5
