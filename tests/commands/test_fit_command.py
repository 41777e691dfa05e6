"""`analyze fit` and `analyze isoflop` from a table to what is printed."""
import argparse
import json

import numpy as np
import pyarrow as pa
import pytest
from law_points import LOSS, TRUE, X, planted
from pyarrow import csv, parquet

from downscale.commands import analyze_fit


@pytest.fixture
def table(tmp_path):
    """The planted surface as a Parquet file, two rows per run."""
    columns = {'n_nonembed': X[:, 0], 'tokens': X[:, 1], 'loss': LOSS,
               'flops': 6 * X[:, 0] * X[:, 1], 'run_id': [f'r{i // 2}' for i in range(len(X))]}
    parquet.write_table(pa.table(columns), tmp_path / 'table.parquet')
    return tmp_path / 'table.parquet'


def analyze(add, run, *argv):
    parser = argparse.ArgumentParser()
    add(parser)
    return run(parser.parse_args([str(one) for one in argv]))


def fit(*argv):
    return analyze(analyze_fit.add_fit_arguments, analyze_fit.run, *argv)


def test_a_table_is_fitted_from_the_command_line(table, capsys):
    fit(table, '--tokens', 'tokens', '--run', 'run_id', '--draws', 60, '--budget', 1e21,
        '--compute', 'flops', '--below', 1e21, '--worst', 2, '--json')
    found = json.loads(capsys.readouterr().out)
    assert {name: one['value'] for name, one in found['parameters'].items()} == pytest.approx(
        TRUE, rel=1e-6)
    assert found['runs'] == 15 and found['holdout']['error'] < 1e-6
    assert found['optimum']['N*']['value'] > 1e9 and len(found['without']['rows']) == 2
    fit(table, '--tokens', 'tokens', '--draws', 60, '--compute', 'flops', '--below', 1e21)
    said = capsys.readouterr().out
    assert 'delta 0.001' in said and 'held out' in said and 'alarm' not in said


def test_a_table_of_budgets_is_read_as_csv(tmp_path, capsys):
    x, y, budget = planted()
    names = [f'{one:.0e}'.replace('+', '') for one in budget]
    csv.write_csv(pa.table({'n_nonembed': x, 'loss': y, 'budget': names}), tmp_path / 't.csv')
    args = (analyze_fit.add_isoflop_arguments, analyze_fit.run_isoflop, tmp_path / 't.csv',
            '--budget', 'budget', '--draws', 60)
    analyze(*args, '--json')
    found = json.loads(capsys.readouterr().out)
    assert found['exponent']['value'] == pytest.approx(0.5)
    assert [one['budget'] for one in found['minima']] == ['1e18', '3e18', '1e19', '3e19', '1e20']
    analyze(*args)
    assert capsys.readouterr().out.count('kept') == 5


def test_results_and_figures_are_written_where_asked(table, tmp_path, capsys):
    fit(table, '--tokens', 'tokens', '--draws', 60, '--compute', 'flops', '--below', 1e21, '--json',
        '--out', tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'fit.json').read_text()) == json.loads(
        capsys.readouterr().out)
    rows = (tmp_path / 'out' / 'fit.csv').read_text()
    at = X[:, 1] == max(set(X[:, 1]), key=lambda d: (list(X[:, 1]).count(d), -d))
    assert rows.count(',point,') + rows.count(',held out,') == at.sum()
    assert rows.count(',extrapolation,') > 5
    x, y, budget = planted()
    csv.write_csv(pa.table({'n_nonembed': x, 'loss': y, 'budget': budget}), tmp_path / 't.csv')
    analyze(analyze_fit.add_isoflop_arguments, analyze_fit.run_isoflop, tmp_path / 't.csv',
            '--budget', 'budget', '--draws', 60, '--out', tmp_path / 'out')
    assert (tmp_path / 'out' / 'isoflop.csv').read_text().count('kept') == 5
    assert all((tmp_path / 'out' / f'{name}.png').stat().st_size > 2000
               for name in ('fit', 'isoflop'))


def test_what_cannot_be_fitted_is_said_in_one_line(table, tmp_path):
    for argv, said in (((table, '--y', 'lost'), "no column 'lost'"),
                       ((table, '--y', 'run_id'), "'run_id' is not all numbers"),
                       ((table, '--form', 'chinchilla'), '--tokens'),
                       ((table, '--form', 'power', '--tokens', 'tokens'), 'leave --tokens out'),
                       ((table, '--below', 1e20), 'go together'),
                       ((tmp_path / 'none.csv',), 'does not exist')):
        with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
            fit(*argv)
        assert '\n' not in str(error.value)


def test_an_accuracy_column_is_fitted_above_chance(tmp_path, capsys):
    x = np.geomspace(1e6, 1e10, 12)
    accuracy = 0.25 + 0.75 / (1 + (3e8 / x) ** 0.8)
    csv.write_csv(pa.table({'n_total': x, 'accuracy': accuracy}), tmp_path / 't.csv')
    fit(tmp_path / 't.csv', '--x', 'n_total', '--y', 'accuracy', '--form', 'saturating',
        '--chance', 0.25, '--draws', 60, '--json')
    found = json.loads(capsys.readouterr().out)
    assert found['parameters']['slope']['value'] == pytest.approx(0.8)
