"""The self-check that users run on their hardware finds what it is for."""
import json

import jax
import jax.numpy as jnp
import pytest

from downscale import sizes
from downscale.generate import programs, selfcheck
from downscale.generate.sampling import choose

pytestmark = pytest.mark.usefixtures('optimised')
SMALL = ['--prompts', '3', '--tokens', '4', '--slots', '1,2']  # both in programs of two rows


def one_device(monkeypatch):
    """Less to compile: one device, one layer."""
    monkeypatch.setattr(selfcheck, 'meshes', lambda: {'one device': None})
    plainly = sizes.scale
    monkeypatch.setattr(sizes, 'scale', lambda base, width, depth, vocabulary: plainly(
        base, width, 1, vocabulary))


def test_every_mesh_of_these_devices_is_tried():
    assert jax.device_count() == 4
    found = selfcheck.meshes()
    assert list(found) == ['one device', 'data 4 x tensor 1', 'data 2 x tensor 2']
    assert found.pop('one device') is None
    assert [tuple(mesh.shape.values()) for mesh in found.values()] == [
        (4, 1, 1, 1), (2, 1, 1, 2)]


def test_prompts_are_ragged_share_pictures_and_some_think():
    model, _, _ = selfcheck.tiny(0, 'float32')
    found = selfcheck.ragged(model, 30, 24, 0)
    assert len({len(request.prompt.tokens) for request in found}) > 15
    assert len({request.sample for request in found}) == 30
    pictures = [request.prompt.prefix_hash for request in found if request.prompt.prefix]
    assert len(pictures) == 10 and len(set(pictures)) == 5
    assert sum(request.think is not None for request in found) == 10
    assert len({request.limit for request in found}) > 10
    again = selfcheck.ragged(model, 30, 24, 0)
    assert [a.prompt.tokens.tolist() for a in again] == [b.prompt.tokens.tolist() for b in found]


def test_a_sound_engine_is_identical_in_every_setting(monkeypatch, capsys):
    one_device(monkeypatch)
    assert selfcheck.main([*SMALL, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['identical'] is True and found['difference'] is None
    assert (found['settings'], found['rows'], found['rows_that_differ']) == (8, 21, 0)
    assert found['tokens'] > 3 and found['temperature'] == 0.6 and found['dtype'] == 'float32'
    assert selfcheck.main(SMALL) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('identical: 8 settings, 0 of 21 rows differ')


def test_randomness_that_hangs_on_the_slot_is_found(monkeypatch, capsys):
    one_device(monkeypatch)

    def by_slot(sampling, logits_BV, seed, sample_B, step_B):
        return choose(sampling, logits_BV, seed, jnp.arange(len(sample_B), dtype='uint32'), step_B)
    monkeypatch.setattr(programs, 'choose', by_slot)
    # A temperature that no other test has, so that nothing is compiled yet and nothing stays.
    broken = [*SMALL, '--temperature', '0.77']
    assert selfcheck.main([*broken, '--json']) == 1
    found = json.loads(capsys.readouterr().out)
    assert found['identical'] is False and 0 < found['rows_that_differ'] <= 21
    assert set(found['difference']) == {'prompt', 'token', 'mesh', 'slots', 'reversed', 'refill'}
    assert selfcheck.main(broken) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith('NOT identical: 8 settings')


def test_in_half_precision_the_share_of_rows_that_differ_is_reported(monkeypatch, capsys):
    """It need not be 0: two orders of a bfloat16 sum are two sums."""
    one_device(monkeypatch)
    code = selfcheck.main([*SMALL, '--dtype', 'bfloat16', '--json'])
    found = json.loads(capsys.readouterr().out)
    assert found['dtype'] == 'bfloat16' and code == (not found['identical'])
    assert found['flip_rate'] == found['rows_that_differ'] / found['rows']
    assert (found['flip_rate'] == 0) == found['identical']


@pytest.mark.parametrize('bad', [['--slots', '0,1'], ['--slots', 'a'], ['--prompts', '0'],
                                 ['--tokens', '0'], ['--dtype', 'float16']])
def test_bad_usage_ends_in_two(bad, capsys):
    with pytest.raises(SystemExit) as ended:
        selfcheck.main(bad)
    assert ended.value.code == 2
    assert bad[0] in capsys.readouterr().err
