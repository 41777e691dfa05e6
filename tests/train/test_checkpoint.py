"""Checkpoints: what was saved comes back, elsewhere and in part, and nothing else passes for it."""
import contextlib
import errno
import os
import shutil

import jax
import numpy as np
import pytest
import small

from downscale.config import Optimizer
from downscale.data.pipeline import Share, stream
from downscale.model.init import abstract_params, init_params
from downscale.runtime import exits
from downscale.runtime.files import write_json
from downscale.sharding import mesh, shardings
from downscale.train import checkpoint, checksums, lazy_leaves
from downscale.train.state import abstract, new_state

WHOLE = Share()


def flat(tree):
    return {jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def state_at(step, depth=2):
    """A state whose every leaf depends on `step`."""
    state = new_state(init_params(small.model(depth), step), Optimizer(), ('connector',))
    return {**jax.tree.map(lambda x: x + step, state), 'params': state['params']}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with steps 3 and 5 (2 was thrown away), and the batch that follows step 5."""
    folder = tmp_path_factory.mktemp('run')
    batches = small.batches('text', tiles=0)
    manager = checkpoint.open_manager(folder)
    for step in (2, 3, 5):
        next(batches)
        checkpoint.save(manager, state_at(step), batches, {'tokens': 100 * step}, force=True)
    manager.wait_until_finished()
    manager.close()
    return folder, next(batches)


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written[0], tmp_path / 'run')
    return tmp_path / 'run'


def restored(folder, devices, depth=2, share=WHOLE):
    """(state, meta, next batch) of the newest checkpoint, put on a mesh."""
    batches = iter(stream(small.sampler('text', tiles=0), 0, share))
    state = jax.eval_shape(lambda: state_at(0, depth))
    shards = shardings(state, devices, small.model().rules)
    manager = checkpoint.open_manager(folder)
    try:
        found, meta = checkpoint.restore(manager, abstract(state, shards), batches)
    finally:
        manager.close()
    return found, meta, shards, next(batches)


@pytest.mark.parametrize('sizes', [dict(), dict(fsdp=4, data=1), dict(fsdp=2, data=2)])
def test_a_state_comes_back_equal_on_any_mesh(written, sizes):
    devices = mesh(**sizes, devices=jax.devices() if sizes else jax.devices()[:1])
    found, meta, shards, batch = restored(written[0], devices)
    assert_same(found, state_at(5))
    assert meta == {'tokens': 500}
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shards
    assert_same(batch, written[1])
    if sizes:
        kernel = found['params']['language']['blocks']['mlp']['gate_DF']
        assert kernel.addressable_shards[0].data.size == kernel.size // sizes['fsdp']


@pytest.mark.parametrize('block', [0, 1])
def test_a_process_of_two_continues_with_its_rows_where_a_single_one_stopped(written, block):
    *_, batch = restored(written[0], mesh(devices=jax.devices()[:1]), share=Share(2, (block,)))
    assert_same(batch, {name: array[4 * block:4 * block + 4] for name, array in written[1].items()})


def test_only_the_newest_two_are_kept_and_the_newest_is_read(written):
    steps = sorted(path.name for path in (written[0] / 'checkpoints').iterdir())
    assert steps == ['3', '5']
    assert checkpoint.latest(written[0]).name == '5'


def test_parameters_alone_come_back_as_numpy_and_by_group(written):
    target = abstract_params(small.model(2))
    found = checkpoint.load_params(written[0], target)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert_same(found, init_params(small.model(2), 5))
    part = checkpoint.load_params(written[0], target, ['tower', 'image_newline_D'])
    assert set(part) == {'tower', 'image_newline_D'}
    assert_same(part, {name: found[name] for name in part})


def test_parameters_go_where_their_target_says(written):
    devices = mesh(fsdp=4)
    target = abstract_params(small.model(2), ('language',))
    target = abstract(target, shardings(target, devices, small.model().rules))
    found = checkpoint.load_params(written[0], target)
    assert_same(found, init_params(small.model(2), 5, ('language',)))
    leaf = found['language']['embedding_VD']
    assert leaf.sharding == target['language']['embedding_VD'].sharding
    assert leaf.addressable_shards[0].data.shape == (320, 8)


def test_what_is_missing_unexpected_or_misshapen_is_listed():
    stored = {'a/x_D': ((4,), 'f'), 'a/old_D': ((2,), 'f'), 'a/same_D': ((3,), 'f')}
    leaf = jax.ShapeDtypeStruct
    target = {'a': {'x_D': leaf((5,), 'f'), 'new_D': leaf((2, 2), 'f'), 'same_D': leaf((3,), 'f')}}
    with pytest.raises(ValueError, match='here: 3 leaves') as error:
        checkpoint.compare(stored, target, 'here')
    for part in ('missing a/new_D (2, 2)', 'unexpected a/old_D (2,)',
                 'a/x_D: stored (4,), model (5,)'):
        assert part in str(error.value)
    assert 'same_D' not in str(error.value) and '\n' not in str(error.value)
    checkpoint.compare({'a/same_D': ((3,), 'f')}, {'a': {'same_D': leaf((3,), 'f')}}, 'here')


def test_a_long_list_of_problems_is_cut_and_counted():
    stored = {f'a/x{k}_D': ((4,), 'f') for k in range(25)}
    with pytest.raises(ValueError, match='25 leaves .*; and 15 more') as error:
        checkpoint.compare(stored, {}, 'here')
    assert str(error.value).count('unexpected') == 10


@pytest.mark.parametrize('depth', [1, 3])
def test_a_checkpoint_of_two_layers_does_not_pass_for_another_depth(written, depth):
    message = rf'stored \(2, .*model \({depth}, .*Use the size'
    with pytest.raises(ValueError, match=message):
        checkpoint.load_params(written[0], abstract_params(small.model(depth)), ['language'])
    with pytest.raises(ValueError, match=message):
        restored(written[0], mesh(devices=jax.devices()[:1]), depth)


def test_a_step_that_was_half_written_is_ignored(folder):
    """orbax writes beside the final name and renames at the end; a kill leaves the former."""
    steps = folder / 'checkpoints'
    (steps / '5').rename(steps / '5.orbax-checkpoint-tmp-1a2b')
    shutil.rmtree(steps / '5.orbax-checkpoint-tmp-1a2b' / 'train')
    shutil.copytree(steps / '3', steps / '7.orbax-checkpoint-tmp')
    (steps / '9.orbax-checkpoint-tmp-77').mkdir()
    assert checkpoint.latest(folder).name == '3'
    found, meta, *_ = restored(folder, mesh(devices=jax.devices()[:1]))
    assert_same(found, state_at(3))
    assert meta == {'tokens': 300}
    found = checkpoint.load_params(folder, abstract_params(small.model(2)))
    assert_same(found, init_params(small.model(2), 3))


def test_a_step_that_was_half_deleted_is_ignored(folder):
    """A kill while an old step is thrown away leaves part of it, under its final name."""
    shutil.rmtree(folder / 'checkpoints' / '3' / 'params')
    assert checkpoint.latest(folder).name == '5'
    assert_same(restored(folder, mesh(devices=jax.devices()[:1]))[0], state_at(5))


def test_a_run_without_a_complete_step_starts_afresh_and_its_children_wait(tmp_path):
    steps = tmp_path / 'checkpoints'
    (steps / '4.orbax-checkpoint-tmp-12').mkdir(parents=True)
    found, meta, _, batch = restored(tmp_path, mesh(devices=jax.devices()[:1]))
    assert found is meta is None
    assert_same(batch, next(small.batches('text', tiles=0)))  # the stream was not moved
    for folder in (tmp_path, tmp_path / 'nowhere'):
        with pytest.raises(FileNotFoundError, match='no complete checkpoint in .*run or resume'):
            checkpoint.load_params(folder, abstract_params(small.model()))


def largest(step, item):
    return max((path for path in (step / item).rglob('*') if path.is_file()),
               key=lambda path: path.stat().st_size)


def cut(step):
    path = largest(step, 'params')
    os.truncate(path, path.stat().st_size // 2)
    return path


def flip(step):
    path = largest(step, 'train')
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.stat().st_size == stat.st_size
    return path


def empty(step):
    (step / 'meta' / 'metadata').write_bytes(b'')
    return step / 'meta' / 'metadata'


def lose(step):
    path = largest(step, 'params')
    path.unlink()
    return path


def tear_sums(step):
    (step / 'checksums.json').write_text('{"kind": "crc')
    return step / 'checksums.json'


def copy_half(step):
    shutil.rmtree(step / 'train')
    return step / 'train'


DAMAGE = (cut, flip, empty, lose, tear_sums, copy_half)


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize('old', [False, True])
def test_a_damaged_newest_step_is_named_and_the_one_before_is_read(folder, capfd, damage, old):
    step = folder / 'checkpoints' / '5'
    if old:  # of a version that wrote no checksums, which cannot see all
        for path in (folder / 'checkpoints').glob('*/checksums.json'):
            path.unlink()
        if damage in (flip, tear_sums):
            return
    where = damage(step).relative_to(step).as_posix()
    found, meta, *_ = restored(folder, mesh(devices=jax.devices()[:1]))
    assert_same(found, state_at(3))
    assert meta == {'tokens': 300}
    line, = capfd.readouterr().err.splitlines()
    assert line.startswith(f'checkpoint {step} is damaged: ')
    assert line.endswith('; going on from step 3')
    assert old or where in line
    assert checkpoint.committed(folder) == 3 and (step.parent / '5.damaged').is_dir()
    manager = checkpoint.open_manager(folder)
    checkpoint.save(manager, state_at(5), small.batches('text', tiles=0), {'tokens': 1}, force=True)
    manager.wait_until_finished()
    manager.close()
    assert_same(restored(folder, mesh(devices=jax.devices()[:1]))[0], state_at(5))


def test_a_run_whose_only_steps_are_damaged_is_refused(folder):
    for step in ('3', '5'):
        cut(folder / 'checkpoints' / step)
    with pytest.raises(checksums.Damaged, match='is damaged: .*there is no step before it: delete'):
        restored(folder, mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize('damage', [cut, lose])
def test_a_reader_of_parameters_refuses_a_damaged_step_and_reads_no_other(folder, damage):
    where = damage(folder / 'checkpoints' / '5').name
    for read in (lambda: checkpoint.load_params(folder, abstract_params(small.model(2))),
                 lambda: lazy_leaves.open_leaves(folder)['language']['embedding_VD'].read()):
        with pytest.raises(checksums.Damaged, match=f'checkpoints/5 is damaged: .*{where}'):
            read()
    assert (folder / 'checkpoints' / '5').is_dir()


def test_a_disk_that_refuses_to_be_read_is_no_damage(folder, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("UNKNOWN: Error reading local file \"/x\": Input/output error "
                         "[os_error_code='5']")
    monkeypatch.setattr(checkpoint._Manager, 'restore', refuse)
    with pytest.raises(exits.Failed, match='cannot read checkpoint .*Input/output') as error:
        restored(folder, mesh(devices=jax.devices()[:1]))
    assert exits.code_of(error.value) == exits.CRASHED
    assert checkpoint.committed(folder) == 5


def test_what_lies_beside_the_steps_is_no_step_to_any_reader(folder):
    steps = folder / 'checkpoints'
    for name in ('.ipynb_checkpoints', '8 (copy)', 'tmp', '8.orbax-checkpoint-tmp-123', '08',
                 '9.damaged', 'step_9', '\u0668', '-9', '9e3'):
        shutil.copytree(steps / '3', steps / name)
    (steps / '12').write_text('a file')
    (steps / 'latest').symlink_to('3')
    assert list(checkpoint.steps(folder)) == [3, 5]
    assert checkpoint.latest(folder).name == '5' and checkpoint.committed(folder) == 5
    manager = checkpoint.open_manager(folder)
    assert list(manager.all_steps()) == [3, 5]
    checkpoint.save(manager, state_at(8), small.batches('text', tiles=0), {'tokens': 1}, force=True)
    manager.close()
    assert list(checkpoint.steps(folder)) == [5, 8]
    assert_same(restored(folder, mesh(devices=jax.devices()[:1]))[0], state_at(8))


def test_a_full_disk_while_saving_is_a_crash_of_one_line(folder, monkeypatch, capfd):
    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device', 'd')
    monkeypatch.setattr(checksums, 'write', full)
    manager = checkpoint.open_manager(folder)
    with (pytest.raises(exits.Failed, match='^cannot save checkpoint .*/checkpoints/8: .*No space')
          as error, contextlib.closing(manager)):
        checkpoint.save(manager, state_at(8), small.batches('text', tiles=0), {}, force=True)
        manager.wait_until_finished()
    assert exits.code_of(error.value) == exits.CRASHED and not capfd.readouterr().err
    assert checkpoint.committed(folder) == 5


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'deep' / 'value.json'
    write_json(path, {'b': 1, 'a': [2]})
    text = path.read_text()
    write_json(path, {'a': [2], 'b': 1})
    assert path.read_text() == text  # the order of keys leaves no trace
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert path.read_text() == text and list(path.parent.iterdir()) == [path]
