"""The train step and its loop: what learns, what stays, and what a crash may not change."""
import itertools
import json
import math
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from waiting import wait_until

from downscale.config import Optimizer
from downscale.model.init import init_params
from downscale.runtime import exits
from downscale.schedule import Schedule
from downscale.sharding import batch_sharding, mesh, shardings
from downscale.stage_table import GROUPS
from downscale.train import checkpoint, loop
from downscale.train.run import StageRun
from downscale.train.state import abstract, new_state, split
from downscale.train.step import compiled_step, gradients, token_loss

RATES = {'language': 3e-3, 'connector': 3e-3, 'tower': 1e-3}
PLAIN = Optimizer()


def one_device():
    return mesh(devices=jax.devices()[:1])


@cache
def picture_batch():
    return next(small.batches('instruct', seed=2))


def text_params():
    return init_params(small.model(), 0, ('language',))


def flat(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def train(folder, steps=6, save_every=2, params=text_params, stream=None, report=None):
    """The loop on the text stage. Every call shares one compiled step."""
    return loop.train(folder, text_run(steps, save_every=save_every), params,
                      stream or small.batches('text', tiles=0),
                      report or (lambda step, row: None))


def text_run(steps, **changes):
    """A `StageRun` of the text stage on one device."""
    values = {'model': small.model(), 'loss': 'tokens', 'optimizer': PLAIN,
              'trainable': ('language',), 'rates': RATES, 'schedule': Schedule(steps=steps),
              'mesh': one_device(), 'save_every': 1}
    return StageRun(**values | changes)


def rows(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def stored(folder):
    """Every leaf of the newest checkpoint: parameters, optimiser and step."""
    manager = checkpoint.open_manager(folder)
    state = new_state(text_params(), PLAIN, ('language',))
    shards = shardings(state, one_device(), small.model().rules)
    found, meta = checkpoint.restore(manager, abstract(state, shards),
                                     small.batches('text', tiles=0))
    manager.close()
    return {**flat(found), 'tokens': np.asarray(meta['tokens'])}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    return folder, flat(train(folder))


# --- the schedule -----------------------------------------------------------------------------

@pytest.mark.parametrize('steps, warmup, final', [(100, 0.1, 0.1), (7, 0.3, 0.0), (1, 0.05, 0.1),
                                                  (20, 1.0, 0.0)])
def test_the_rate_rises_to_its_peak_and_then_only_falls(steps, warmup, final):
    schedule = Schedule(steps=steps, warmup=warmup, final=final)
    factors = [schedule.factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = max(1, round(warmup * steps)) - 1
    assert factors[peak] == 1 == max(factors)
    rise, fall = np.diff(factors[:peak + 1]), np.diff(factors[peak + 1:])
    assert (rise > 0).all() and (fall < 0).all()
    np.testing.assert_allclose(rise, 1 / (peak + 1))  # linear


def test_the_cosine_is_half_way_down_in_its_middle_and_ends_at_the_final_share():
    schedule = Schedule(steps=110, warmup=10 / 110, final=0.2)
    assert schedule.factor(60) == pytest.approx(0.6)
    assert schedule.factor(110) == pytest.approx(0.2)
    assert 0.2 < schedule.factor(109) < 0.201


# --- one step ---------------------------------------------------------------------------------

def step_once(trainable, rates):
    params = init_params(small.model(), 0)
    with jax.set_mesh(one_device()):
        state = new_state(params, PLAIN, trainable)
        before = flat(params)
        step = compiled_step(small.model(), 'tokens', PLAIN, trainable, one_device())
        state, metrics = step(jax.device_put(state), picture_batch(),
                              {name: jnp.float32(rate) for name, rate in rates.items()})
    return before, flat(state['params']), state, metrics


def moved(before, after):
    """Top-level groups of which some leaf differs."""
    return {name.split("'")[1] for name in before if (before[name] != after[name]).any()}


def test_frozen_groups_stay_bit_identical_and_have_no_gradient_and_no_moments():
    before, after, state, _ = step_once(('connector',), RATES)
    assert moved(before, after) == {'connector'}
    assert not any('language' in name or 'tower' in name for name in flat(state['opt_state']))
    moving, frozen = split(state['params'], ('connector',))
    grads = jax.eval_shape(lambda: gradients(small.model(), 'tokens', moving, frozen,
                                             picture_batch(), 1))[0]
    assert set(grads) == {'connector'}


def test_every_group_has_its_own_rate_and_rate_zero_stands_still():
    before, after, _, metrics = step_once(GROUPS, {'language': 0, 'tower': 1e-3, 'connector': 1e-2})
    assert moved(before, after) == {'tower', 'connector'}
    assert set(metrics) == {'loss', 'accuracy', 'grad_norm', 'weight'}
    # Adam's first step is the rate times a sign: its size tells which rate was used.
    for group, rate in (('tower', 1e-3), ('connector', 1e-2)):
        sizes = np.concatenate([np.abs(after[n] - before[n]).ravel() for n in before
                                if f"'{group}'" in n])
        assert np.quantile(sizes, 0.9) == pytest.approx(rate, rel=1e-2)
    # `image_newline` learns with the language model.
    before, after, _, _ = step_once(GROUPS, {'language': 1e-3, 'tower': 0, 'connector': 0})
    assert moved(before, after) == {'language', 'image_newline_D'}


def test_a_group_that_the_parameters_lack_cannot_be_trained():
    with pytest.raises(ValueError, match="trainable groups .'connector'. are not in"):
        new_state(text_params(), PLAIN, ('language', 'connector'))


def quick(function):
    """`function` under jit, optimised little: here compiling costs more than running."""
    return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0,
                                               'xla_llvm_disable_expensive_passes': True})


@cache
def gradient(data=1, fsdp=1, accumulate=1):
    """(gradients of all groups, loss, hits, weight) of the picture batch on a mesh."""
    devices = mesh(data, fsdp, devices=jax.devices()[:data * fsdp])
    model, params = small.model(), init_params(small.model(), 0)
    with jax.set_mesh(devices):
        params = jax.device_put(params, shardings(params, devices, model.rules))
        batch = jax.device_put(picture_batch(), batch_sharding(devices, model.rules))
        run = quick(lambda params, batch: gradients(model, 'tokens', params, {}, batch,
                                                    accumulate))
        return jax.device_get(run(params, batch))


@pytest.mark.parametrize('other', [dict(accumulate=2), dict(data=4), dict(data=2, fsdp=2)])
def test_micro_batches_and_meshes_change_neither_gradient_nor_loss(other):
    """Before Adam, which would hide a wrong scale. The rows differ in weight, so a mean of means
    would show."""
    weights = picture_batch()['weights'][:, 1:].sum(1)
    assert abs(weights[:4].sum() - weights[4:].sum()) > 1
    (one, *numbers), (two, *others) = gradient(), gradient(**other)
    np.testing.assert_allclose(others, numbers, rtol=1e-5)
    assert numbers[2] == weights.sum()
    one, two = flat(one), flat(two)
    largest = {name: np.abs(value).max() for name, value in one.items()}
    for name in one:
        # A bias of all keys cancels in the softmax: its gradient is rounding alone.
        allowed = max(2e-5 * largest[name], 1e-7 * max(largest.values()))
        assert largest[name] > allowed or 'k_bias' in name, name
        np.testing.assert_allclose(two[name], one[name], atol=allowed, rtol=0, err_msg=name)


@cache
def total_loss():
    return quick(lambda params, batch: token_loss(small.model(), params, batch)[0])


def test_the_gradient_is_the_slope_of_the_mean_loss():
    """Clipping and Adam would hide the missing mean; finite differences do not."""
    grads, loss, _, weight = gradient()
    size = math.sqrt(sum(float((leaf ** 2).sum()) for leaf in jax.tree.leaves(grads)))

    def loss_at(step):
        moved = jax.tree.map(lambda p, g: p + step * g / size, init_params(small.model(), 0), grads)
        return float(total_loss()(moved, picture_batch())) / weight
    assert loss_at(0) == pytest.approx(loss, rel=1e-5)
    assert (loss_at(0.002) - loss_at(-0.002)) / 0.004 == pytest.approx(size, rel=0.02)


def test_padding_and_unsupervised_targets_do_not_touch_the_loss():
    batch, changed = picture_batch(), dict(picture_batch())
    where = batch['segments'] == 0
    assert where.any()
    changed['tokens'] = np.where(where, 7, batch['tokens'])
    params = init_params(small.model(), 0)
    assert total_loss()(params, batch) == total_loss()(params, changed)
    supervised = batch['weights'] > 0
    changed['tokens'] = np.where(supervised, 7, batch['tokens'])
    assert total_loss()(params, batch) != total_loss()(params, changed)


# --- the loop ---------------------------------------------------------------------------------

def test_the_loss_falls(tmp_path):
    train(tmp_path, steps=40, save_every=100)
    losses = [row['loss'] for row in rows(tmp_path)]
    assert abs(losses[0] - math.log(small.ROWS)) < 1  # an untrained model knows nothing
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_every_step_has_one_row_with_the_tokens_seen(undisturbed):
    found = rows(undisturbed[0])
    assert [row['step'] for row in found] == [1, 2, 3, 4, 5, 6]
    batches = small.batches('text', tiles=0)
    seen = itertools.accumulate(int((next(batches)['segments'] > 0).sum()) for _ in range(6))
    assert [row['tokens'] for row in found] == list(seen)
    assert [row['lr_factor'] for row in found] == [Schedule(steps=6).factor(k) for k in range(6)]


@pytest.mark.parametrize('rate, still', [(1e-3, None), (1e-30, ['language'])])
def test_a_training_that_moves_nothing_says_so_also_when_it_was_interrupted(
        tmp_path, capfd, rate, still):
    def run(steps, schedule):
        asked = text_run(schedule, optimizer=Optimizer(eps=1.0), rates={'language': rate},
                         stop=lambda step: step == steps)
        loop.train(tmp_path, asked, text_params, small.batches('text', tiles=0))
    with pytest.raises(exits.Preempted):
        run(2, 3)
    run(None, 3)
    found = rows(tmp_path)
    assert [row.get('unmoved') for row in found] == [None, None, still]
    said = capfd.readouterr().err
    assert ('training moved no weight of language; look at its rate' in said) == bool(still)
    assert len(said.splitlines()) == bool(still)


@pytest.mark.parametrize('lost, words', [
    ([1], 'lacks 1 of 4 rows, the first of step 2'),
    ([0, 1, 2, 3], 'lacks 4 of 4 rows, the first of step 1'), ([], '')])
def test_rows_that_are_lost_from_the_log_are_said_on_resume(
        undisturbed, tmp_path, capfd, lost, words):
    folder = shutil.copytree(undisturbed[0], tmp_path / 'run')
    shutil.rmtree(folder / 'checkpoints' / '6')
    lines = (folder / 'metrics.jsonl').read_text().splitlines(True)
    text = [line for at, line in enumerate(lines) if at not in lost]
    (folder / 'metrics.jsonl').write_text(''.join(text))
    train(folder)
    assert [row['step'] for row in rows(folder)] == [at + 1 for at in range(6) if at not in lost]
    said = capfd.readouterr().err
    assert words in said and len(said.splitlines()) == bool(words)


class Stop(Exception):
    """What a test stops a run with."""


def stop_at(folder, step, saved):
    """A report that ends the run at `step`, once checkpoint `saved` is complete."""
    def report(done, row):
        if done == step:
            wait_until((folder / 'checkpoints' / str(saved)).is_dir)
            raise Stop
    return report


def never():
    raise AssertionError('a resumed run must not make fresh parameters')


@pytest.mark.parametrize('step, saved, torn', [(4, 2, ''), (5, 4, '{"step": 6, "tok')])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path, undisturbed, step, saved, torn):
    whole, params = undisturbed
    with pytest.raises(Stop):
        train(tmp_path, report=stop_at(tmp_path, step, saved))
    assert len(rows(tmp_path)) == step
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(torn)
    seen = []

    def params_of_restart():
        return jax.eval_shape(text_params) if seen.append('made') else text_params()
    again = flat(train(tmp_path, params=params_of_restart,
                       report=lambda done, row: seen.append(done)))
    assert [x for x in seen if x != 'made'] == list(range(saved + 1, 7))
    assert_same(again, params)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    assert_same(stored(tmp_path), stored(whole))


def test_a_finished_run_only_restores(tmp_path, undisturbed):
    whole, params = undisturbed
    before = (whole / 'metrics.jsonl').read_bytes()
    assert_same(flat(train(whole, report=lambda *row: never())), params)
    assert (whole / 'metrics.jsonl').read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    def broken():
        params = text_params()
        params['language']['embedding_VD'][:] = np.nan
        return params
    with pytest.raises(FloatingPointError, match='step 0: loss nan.*learning rate'):
        train(tmp_path, params=broken)
    assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))  # a broken state is never kept


def test_a_batch_without_supervised_tokens_ends_the_run_and_names_the_step(tmp_path):
    def blank(batches):
        yield next(batches)
        yield {**next(batches), 'weights': np.zeros((8, 176), np.float32)}
    with pytest.raises(ValueError, match=r'step 1: no token of the batch \(8, 176\)'):
        train(tmp_path, save_every=100, stream=blank(small.batches('text', tiles=0)))


def test_two_processes_cannot_share_a_run_folder(tmp_path):
    with loop.only_process(tmp_path / 'run'):
        with pytest.raises(RuntimeError, match='in use by another process') as error, \
                loop.only_process(tmp_path / 'run'):
            raise AssertionError('two at once')
        assert '\n' not in str(error.value) and str(tmp_path / 'run') in str(error.value)
        with loop.only_process(tmp_path / 'other'):
            pass
    with loop.only_process(tmp_path / 'run'):  # free again
        pass
    with pytest.raises(Stop), loop.only_process(tmp_path / 'run'):
        raise Stop
    with loop.only_process(tmp_path / 'run'):  # free after a failure as well
        pass
