"""docs/tutorials/cloud_tpu.md: its shortest path, what that costs, what a user asks at night."""
import json
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from console_lines import joined
from roots import ROOT

from downscale.commands import main
from downscale.launch import board, state
from downscale.launch.backends import gke
from downscale.planner.hardware import chip, machine, table

GUIDE = (ROOT / 'docs/tutorials/cloud_tpu.md').read_text()
PATH = GUIDE.partition('## The shortest path')[2].partition('## How it works')[0]
LINES = list(joined(re.search(r'```sh\n(.*?)```', PATH, re.S)[1].splitlines()))
NIGHT = GUIDE.partition('### At night\n')[2].partition('\n## ')[0]


def words_of(program, text=PATH):
    """The words behind `program` of each of its lines."""
    lines = list(joined(re.search(r'```sh\n(.*?)```', text, re.S)[1].splitlines()))
    return [shlex.split(line)[1:] for line in lines if line.startswith(f'{program} ')]


def test_the_shortest_path_has_at_most_twelve_commands_and_ends_in_a_report():
    assert len(LINES) <= 12 and all(LINES)
    assert LINES[-1].startswith('downscale report ')
    assert {line.split()[0] for line in LINES} == {'gcloud', 'docker', 'kubectl', 'downscale'}


@pytest.fixture(scope='module')
def gcloud_tree():
    """The commands and flags of the gcloud that is installed, as it keeps them for completion."""
    program = shutil.which('gcloud')
    if not program:
        pytest.skip('NOT TESTED: gcloud is missing')
    root = Path(program).resolve().parent.parent
    return runpy.run_path(str(root / 'data/cli/gcloud_completions.py'))[
        'STATIC_COMPLETION_CLI_TREE']


def lacking(tree, words):
    """The first of `words` that names neither a command nor a flag of it, None where all do."""
    flags = dict(tree['flags'])
    for word in words:
        if word.startswith('-'):
            if word.partition('=')[0] not in flags:
                return word
        elif word in tree.get('commands', {}):
            tree = tree['commands'][word]
            flags |= tree['flags']
        elif tree.get('commands'):
            return word
    return 'no command' if tree.get('commands') else None


def test_gcloud_knows_every_command_and_flag_of_the_shortest_path(gcloud_tree):
    lines = words_of('gcloud')
    assert len(lines) == 7
    for words in lines:
        assert lacking(gcloud_tree, words) is None, words
    create = ['container', 'clusters', 'create', 'x', '--zones=a']
    assert lacking(gcloud_tree, create) == '--zones=a'
    assert lacking(gcloud_tree, ['container', 'cluster', 'create']) == 'cluster'


def test_kubectl_knows_the_flags_and_takes_a_file_of_such_a_release(cluster, tmp_path):
    if not shutil.which('kubectl'):
        pytest.skip('NOT TESTED: kubectl is missing')
    (words,) = words_of('kubectl')
    file = tmp_path / 'manifests.yaml'
    file.write_text('apiVersion: v1\nkind: Namespace\nmetadata:\n  name: jobset-system\n')
    assert words[-1] == 'JOBSET_RELEASE/manifests.yaml'
    known = subprocess.run(['kubectl', *words[:1], '--help'], capture_output=True, text=True).stdout
    for word in words[1:-1]:
        assert re.search(rf'^ +(-\w, )?{word}\b|^ +{word},', known, re.M), word


def test_the_shortest_path_trains_four_cells_on_nodes_that_its_pool_has(tmp_path, capsys):
    submit, watch, report = words_of('downscale')
    for words in (submit, watch, report):
        assert main.parser().parse_args(words)
    plan = ['launch', 'plan', *submit[2:submit.index('--image')], '--dry-run', '--no-fit', '--json',
            '--out', str(tmp_path)]
    assert main.main(plan) == 0
    jobs = json.loads(capsys.readouterr().out)['jobs']
    assert len({job['job'].split('/')[0] for job in jobs}) == 4 and len(jobs) == 10
    assert 'four cells' in PATH and 'ten jobs' in PATH
    (pool,) = [words for words in words_of('gcloud') if 'node-pools' in words]
    assert f'--machine-type={machine("v5e").types["1"]}' in pool and '--spot' in pool
    manifest = next(tmp_path.glob('*train*.yaml')).read_text()
    assert "cloud.google.com/gke-spot: 'true'" in manifest
    assert 'serviceAccountName' not in manifest   # so that it is default/default, which may write
    assert 'subject/ns/default/sa/default' in PATH and gke.CRASHES == 3


def test_what_the_shortest_path_costs_follows_from_the_table_of_prices():
    hours = 10 * 10 / 60
    v5e = chip('v5e')
    low, high = v5e.usd_spot
    text = ' '.join(PATH.split())
    demand, least, most = (f'{hours * usd:.2f}' for usd in (v5e.usd, low, high))
    assert (f'{hours:.1f} chip-hours: {demand} dollars on demand, {least} to {most} as spot '
            f'(list prices of {table()["as_of"]}') in text


def test_what_the_answers_at_night_point_at_is_there():
    rows = [line.split(' | ') for line in NIGHT.splitlines() if line.startswith('| ')][1:]
    assert len(rows) == 10 and all(row[0].endswith('?') for row in rows)
    states = {'waiting', 'missing', 'running', 'stale', 'failed', 'cancelled', 'fatal', 'done'}
    for name in re.findall(r'(?<!\*)\*([^*]+)\*(?!\*)', NIGHT):
        assert name in (*board.STATUS, *states), name
    for span in re.findall(r'`downscale ([^`]+)`', NIGHT):
        launch, verb, *more = span.split()
        assert main.parser().parse_args([launch, verb, 'experiments/smoke.py', *more]), span
    assert f'{state.STALE_SECONDS // 60} minutes' in NIGHT.replace('five', '5')
