"""benchmarks/gpu.sh: its whole path, on a CPU with tiny sizes."""
import json
import os
import subprocess
import sys

import pytest
from compiling import xla_flags
from roots import ROOT


def run(folder, *argv, flags=''):
    """(exit code, output, what was written) of a dry run."""
    file = folder / 'gpu.json'
    done = subprocess.run(
        [ROOT / 'benchmarks' / 'gpu.sh', '--dry', '--json', file, *argv], cwd=folder,
        capture_output=True, text=True, check=False,
        env=os.environ | {'PYTHON': sys.executable, 'XLA_FLAGS': flags})
    return done.returncode, done.stdout, json.loads(file.read_text()) if file.is_file() else None


def test_what_is_measured_is_printed_and_written(tmp_path):
    code, text, value = run(tmp_path, '--parts', 'machine,attention,decode')
    assert code == 0 and value['failed'] == {} and value['size'] == 'dry'
    assert [figure['part'] for figure in value['figures']] == [
        'machine', 'attention', 'attention', 'decode', 'decode']
    machine, plain, fused, one, three = value['figures']
    assert machine['platform'] == 'cpu' and not machine['peak_known']
    assert plain['ms'] > 0 and 0 < plain['error'] < 2 ** -5 and not plain['wrong']
    assert 'cudnn is for NVIDIA GPUs, and this is a CPU' in fused['refused'] and 'ms' not in fused
    # No bound without a GPU that is known.
    assert one['of_bound'] is None and three['ms'] > 0
    assert text.count('decode     3 rows, ms ') == 2  # as it is measured, and in the table


@pytest.mark.slow
def test_training_and_a_study_go_through(tmp_path):
    code, text, value = run(tmp_path, '--parts', 'train,study', flags=xla_flags())
    assert code == 0, text
    assert value['failed'] == {}
    text, _, pictures, _, study = value['figures']
    assert text['name'] == 'text 2 x 64, 0 tiles, xla' and text['ms'] > 0 and text['mfu'] is None
    assert pictures['name'] == 'extraction 2 x 96, 2 tiles, xla'
    assert study['name'] == 'smoke' and 'no kernel for a CPU' in study['attention']


@pytest.mark.slow
def test_the_self_check_goes_through(tmp_path):
    code, text, value = run(tmp_path, '--parts', 'selfcheck')
    check, = value['figures']
    assert code == 0 and check['name'] == 'float32 deterministic' and check['identical'], text


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    # A GPU is asked for and none is there.
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'gpu.py', '--quick', '--parts', 'machine',
         '--json', tmp_path / 'gpu.json'], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads((tmp_path / 'gpu.json').read_text())['failed'] == {
        'machine': 'ended with 1'}
    assert 'machine    FAILED: ended with 1' in done.stdout
    done = subprocess.run([sys.executable, ROOT / 'benchmarks' / 'gpu.py', '--parts', 'training'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'unknown parts training; known are machine' in done.stderr
