"""Size and compute columns against the published counts and the accounting of the program."""
import numpy as np
import pytest

from downscale.accounting import parameters, train_flops
from downscale.analysis.counting import count_columns, rule_flops, train_columns
from downscale.sizes import MICRO, QWEN3, SIGLIP

TOWER = SIGLIP['so400m-patch14-384']
GROUPS = [('connector',), ('connector', 'language'), ('tower', 'connector', 'language'),
          ('language',), ('tower',)]


def test_the_ratio_of_two_sizes_depends_on_what_is_counted():
    columns = count_columns([(QWEN3['0.6b'], TOWER), (QWEN3['8b'], TOWER)])
    ratio = {name: values[1] / values[0] for name, values in columns.items()}
    assert ratio['n_nonembed'] == pytest.approx(15.8, abs=0.05)
    assert ratio['n_active'] == pytest.approx(12.7, abs=0.05)
    assert ratio['n_total'] == pytest.approx(8.4, abs=0.3)  # 8.4 with the tower's last block
    text = count_columns([(QWEN3['0.6b'], None), (QWEN3['8b'], None)])
    assert text['n_total'].tolist() == [596_049_920, 8_190_735_360]
    assert text['n_vision'].tolist() == [0, 0]


@pytest.mark.parametrize('groups', GROUPS)
def test_the_rule_agrees_with_the_formula_within_a_band(groups):
    shape = {'rows': 4, 'length': 1024, 'tiles': 4}
    rule = rule_flops(QWEN3['1.7b'], TOWER, tokens=4 * 1024, patches=4 * TOWER.P, groups=groups)
    formula = train_flops(QWEN3['1.7b'], TOWER, **shape, groups=groups)['total']
    assert 0.85 < rule / formula < 1.01  # the formula has attention scores as well


def test_a_frozen_tower_is_forward_only():
    def extra(groups):
        shape = {'tokens': 1000, 'groups': groups}
        return (rule_flops(QWEN3['0.6b'], TOWER, patches=729, **shape)
                - rule_flops(QWEN3['0.6b'], TOWER, patches=0, **shape))

    parts = parameters(QWEN3['0.6b'], TOWER)
    assert extra(('connector', 'language')) == 729 * (2 * parts['tower'] + 6 * parts['connector'])
    assert extra(('tower', 'connector', 'language')) == 729 * 6 * (
        parts['tower'] + parts['connector'])


def test_training_columns_grow_with_the_model_and_name_their_tokens():
    models = [(MICRO[name], None) for name in ('w32d2', 'w64d2', 'w128d2')]
    found = train_columns(models, steps=10, rows=8, length=64, groups=('language',))
    assert found['tokens'].tolist() == [5120.0] * 3
    for name in ('flops_formula', 'flops_rule', 'flops_forward'):
        assert np.all(np.diff(found[name]) > 0)
    exact = 10 * train_flops(MICRO['w64d2'], rows=8, length=64, groups=('language',))['total']
    assert found['flops_formula'][1] == exact
