"""What a plan refuses, in one line and before anything is compiled; and the command itself."""
import importlib.metadata
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import fake_plan
import pytest
from fake_plan import cell, stage
from roots import ROOT

from downscale.commands import main
from downscale.config import MeshSize, Optimizer
from downscale.planner import pool
from downscale.planner.topologies import SHAPES, topology
from downscale.planner.worker import exhausted

STUDY = str(ROOT / 'experiments' / 'extraction_tuning.py')
TPU_COMPILER = find_spec('libtpu') is not None


@pytest.fixture
def planned(tmp_path, monkeypatch):
    return fake_plan.planner(tmp_path, monkeypatch)


def test_known_topologies_count_chips_and_devices():
    assert (topology('v5e:16x16').chips, topology('v5p:4x4x4').chips) == (256, 64)
    assert (topology('2xv5e:16x16').chips, topology('v5p:8x8x8').chips) == (512, 512)
    assert topology('tpu7x:4x4x4').devices == 128 and topology('tpu7x:4x4x4').hbm_gib == 94.75
    assert topology('v6e:1x1').least(3).shape == '2x2' and topology('v5p:4x4x4').least(8).chips == 8
    for generation, shapes in SHAPES.items():
        chips = [topology(f'{generation}:{shape}').chips for shape in shapes]
        assert chips == sorted(set(chips))


@pytest.mark.parametrize(('name', 'known'), [
    ('v5e:3x4', 'v5e:2x2, v5e:2x4'), ('v7:4x4', 'v5e, v5p, v6e, tpu7x'), ('v5e', 'v5e:16x16'),
    ('0xv5e:4x4', 'known of v5e'), ('v5p:16x16', 'v5p:4x4x4')])
def test_an_unknown_topology_lists_the_known_ones(name, known):
    with pytest.raises(ValueError, match='unknown topology') as error:
        topology(name)
    assert known in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('cells', 'place', 'message'), [
    (cell(mesh=MeshSize(-1, 32, 1)), 'v5e:4x4', 'multiples of 32, not its 16 devices'),
    (cell(mesh=MeshSize(2, 2, 1)), 'v5e:4x4', 'mesh data 2 x fsdp 2 x tensor 1'),
    (cell(stages=(stage(batch=24),)), 'v5e:4x4', r'24 % 16 = 8\); the nearest is 32'),
    (cell(mesh=MeshSize(1, -1, 1)), '2xv5e:4x4', r'data 1 % 2 = 1; --set mesh.data=2'),
    (cell(optimizer=Optimizer(accumulate=8)), 'v5e:4x4', r'8 micro-batches .*\(64 % 128 = 64\)'),
])
def test_what_does_not_divide_is_refused_with_the_arithmetic(planned, cells, place, message):
    with pytest.raises(ValueError, match=message):
        planned([cells], (place,))


@pytest.mark.parametrize(('wish', 'message'), [
    ({'per_chip_batch': 0}, '--per-chip-batch 0 must be at least 1'),
    ({'seq': -1}, '--seq -1 must'), ({'jobs': 0}, '--jobs 0'), ({'limit': 0.0}, '--limit 0')])
def test_senseless_numbers_are_refused(planned, wish, message):
    with pytest.raises(ValueError, match=message):
        planned([cell()], **wish)


def test_seeds_that_are_no_numbers_are_refused(monkeypatch, capsys):
    undone(monkeypatch)
    assert main.main(['plan', f'{STUDY}:0.6b/x']) == 1
    assert 'seeds must be numbers' in capsys.readouterr().err


def undone(monkeypatch):
    """What the command sets in the environment ends with the test."""
    for name in pool.ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ''))


def test_the_command_prints_a_table_or_one_json_object(planned, monkeypatch, capsys, tmp_path):
    undone(monkeypatch)
    monkeypatch.setattr('downscale.planner.worker.refuse', lambda request: None)
    argv = ['plan', f'{STUDY}:0.6b,1.7b/0,1', '--only', 'train', '--out', str(tmp_path / 'plan'),
            '--seq', '1024', '--quiet']
    (tmp_path / 'compiled').write_text('')
    assert main.main([*argv, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part['name'] for part in found['cells']] == [
        f'{size}-s{seed}/{stage}' for seed in (0, 1) for size in ('0.6b', '1.7b')
        for stage in ('align', 'extract')]
    assert found == json.loads((tmp_path / 'plan' / 'plan.json').read_text())
    assert main.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'v5e:16x16: 256 chips, 15.75 GiB a device, figures per chip' in lines
    assert [line.split()[:2] for line in lines if '/extract +1 ' in line] == [
        ['0.6b-s0/extract', '+1'], ['1.7b-s0/extract', '+1']]
    assert len((tmp_path / 'compiled').read_text().splitlines()) == 4
    assert main.main([*argv, '--seq', '9', '--topology', 'v5p:4x4x4']) == 1  # the compiler fails


def test_without_a_compiler_the_extra_is_named(monkeypatch, capsys, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, 'version', missing)
    undone(monkeypatch)
    assert main.main(['plan', STUDY, '--out', str(tmp_path)]) == 1
    line = capsys.readouterr().err
    assert "pip install 'downscale[tpu]'" in line and line.count('\n') == 1


@pytest.mark.parametrize(('message', 'used', 'limit'), [
    ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
     '(18.95G) exceeds available HBM (15.75G).', 18.95, 15.75),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.50T of 31.25G hbm. '
     'Exceeded hbm capacity by 3.2G.', 1536, 31.25),
    ('RESOURCE_EXHAUSTED: something else', None, None)])
def test_out_of_memory_messages_are_read(message, used, limit):
    found = exhausted(message)
    assert found == {'hbm_gib': pytest.approx(used) if used else None, 'hbm_limit_gib': limit}


@pytest.mark.slow
@pytest.mark.skipif(not TPU_COMPILER, reason="no TPU compiler: pip install '.[tpu]'")
def test_heads_that_do_not_divide_are_refused_before_anything_is_compiled(tmp_path):
    """In a process of its own, which reads the compiler's environment once."""
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'downscale.commands.main',
            'plan',
            f'{STUDY}:0.6b',
            '--set',
            'mesh.fsdp=16',
            '--set',
            'mesh.tensor=16',
            '--out',
            str(tmp_path / 'plan'),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and '8 % 16 = 8' in done.stderr, done.stderr
    assert not (tmp_path / 'plan').exists()
