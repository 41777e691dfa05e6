"""Which attention a model trains with: what fits where, and that cuDNN's gets the right mask."""
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from downscale.config import Optimizer
from downscale.model import language
from downscale.model.attention import attend_fused, choose
from downscale.model.init import abstract_params, init_params
from downscale.model.language import causal_mask
from downscale.model.layers import attend
from downscale.model.vlm import Vlm
from downscale.sharding import batch_sharding, mesh, shardings
from downscale.sizes import LANGUAGE, VisionConfig, scale
from downscale.train.state import abstract, new_state
from downscale.train.step import compiled_step, token_loss

H, K, E = 4, 2, 64


def gpu(capability, kind='NVIDIA H200'):
    return SimpleNamespace(platform='gpu', device_kind=kind, compute_capability=capability)


CPU = SimpleNamespace(platform='cpu', device_kind='cpu')
TPU = SimpleNamespace(platform='tpu', device_kind='TPU v5 lite')


# --- the choice -------------------------------------------------------------------------------

@pytest.mark.parametrize('device, dtype, L, E, program, why', [
    (gpu('9.0'), 'bfloat16', 1024, 128, 'cudnn', 'fits NVIDIA H200'),
    (gpu('8.0', 'NVIDIA A100-SXM4-40GB'), 'bfloat16', 1024, 128, 'cudnn', 'fits NVIDIA A100'),
    (gpu('9.0'), 'bfloat16', 1024, 256, 'cudnn', 'fits'),
    (gpu('12.0', 'NVIDIA GeForce RTX 5090'), 'bfloat16', 2, 8, 'cudnn', 'fits'),
    (gpu('8.9', 'NVIDIA L4'), 'bfloat16', 1024, 136, 'xla', 'heads of width 136 .* up to 128'),
    (gpu('9.0'), 'bfloat16', 1024, 264, 'xla', 'heads of width 264 .* up to 256'),
    (gpu('9.0'), 'bfloat16', 1024, 60, 'xla', 'heads of width 60 must be a multiple of 8'),
    (gpu('9.0'), 'bfloat16', 1023, 64, 'xla', 'rows of even length, not of 1023'),
    (gpu('9.0'), 'float32', 1024, 128, 'xla', 'dtype bfloat16, not float32'),
    (gpu('7.5', 'Tesla T4'), 'bfloat16', 1024, 128, 'xla', 'from Ampere .* this is Tesla T4'),
    (gpu('gfx90a', 'AMD Instinct MI250X'), 'bfloat16', 1024, 128, 'xla', 'this is AMD Instinct'),
    (TPU, 'bfloat16', 1024, 128, 'splash', 'fits TPU v5 lite'),
    (TPU, 'float32', 1024, 128, 'splash', 'fits'),
    (TPU, 'bfloat16', 1000, 128, 'xla', 'rows of 1000 tokens .* multiples of 128'),
    (TPU, 'bfloat16', 1024, 64, 'xla', 'heads of width 64 .* multiples of 128'),
    (CPU, 'bfloat16', 1024, 128, 'xla', 'no kernel for a CPU')])
def test_auto_takes_the_kernel_that_fits_and_says_why_not(device, dtype, L, E, program, why):
    chosen, told = choose('auto', device, dtype, L, E)
    assert chosen == program and re.search(why, told)
    assert choose('xla', device, dtype, L, E) == ('xla', 'asked for')
    for asked in ('cudnn', 'splash'):
        if asked == program:
            assert choose(asked, device, dtype, L, E) == (asked, 'asked for')
            continue
        # What is asked for is never replaced.
        with pytest.raises(ValueError, match=f"^attention '{asked}' cannot be: ") as error:
            choose(asked, device, dtype, L, E)
        line = str(error.value)
        assert len(line) <= 300 and '\n' not in line
        if asked == 'cudnn' and device.platform == 'gpu':
            assert re.search(why, line)


def test_stacked_cells_take_no_kernel():
    assert choose('auto', gpu('9.0'), 'bfloat16', 128, 128, stacked=True)[0] == 'xla'
    with pytest.raises(ValueError, match='trained together are stacked'):
        choose('cudnn', gpu('9.0'), 'bfloat16', 128, 128, stacked=True)


# --- what it computes -------------------------------------------------------------------------

def packed_rows(dtype, L=128):
    """Queries, keys, values and segments; each row has a picture first and several texts behind it.

    The last tokens are padding, and of the third row all but one.
    """
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.standard_normal((3, L, heads, E), np.float32), dtype)
               for heads in (H, K, K))
    segments_BL = np.ones((3, L), np.int32)
    segments_BL[0, 70:], segments_BL[0, 90:], segments_BL[1, 31:] = 2, 3, 2
    segments_BL[:2, 120:], segments_BL[2, 1:] = 0, 0
    return q, k, v, segments_BL


def gradients(how, q, k, v, live):
    """Values, and gradients towards a random direction, of what is no padding."""
    towards = np.random.default_rng(1).standard_normal(q.shape, np.float32) * live

    def total(q, k, v):
        return (how(q, k, v).astype(jnp.float32) * towards).sum()
    return [how(q, k, v) * live, *jax.grad(total, (0, 1, 2))(q, k, v)]


# What bfloat16 rounds: 8 bits of the largest number, some times over.
@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-5), ('bfloat16', 2 ** -6)])
def test_the_mask_that_cudnn_gets_gives_values_and_gradients_of_plain_attention(dtype, tolerance):
    q, k, v, segments_BL = packed_rows(dtype)
    live = (segments_BL > 0)[:, :, None, None]
    module = language.Language(scale(LANGUAGE['micro']['w64d2'], 64, 2), attention='cudnn')
    attend_by, mask_BLS = module._attention(segments_BL, None)
    assert attend_by is attend_fused
    # A query that sees nothing is what cuDNN does not promise to survive.
    assert mask_BLS.any(2).all()
    plain = gradients(lambda *qkv: attend(*qkv, causal_mask(segments_BL)), q, k, v, live)
    fused = gradients(lambda *qkv: attend_fused(*qkv, mask_BLS, implementation='xla'),
                      q, k, v, live)
    for name, found, expected in zip(('out', 'q', 'k', 'v'), fused, plain, strict=True):
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(),
                                   err_msg=name)


def test_rows_and_heads_may_be_split_over_devices():
    q, k, v, segments_BL = (x[:2] for x in packed_rows('float32'))
    mask_BLS = causal_mask(segments_BL + 1)
    alone = attend_fused(q, k, v, mask_BLS, implementation='xla')
    with jax.set_mesh(mesh(data=2, tensor=2, devices=jax.devices()[:4])):
        split = jax.jit(lambda *x: attend_fused(*x, implementation='xla'))(q, k, v, mask_BLS)
    np.testing.assert_allclose(split, alone, atol=1e-6)


def test_a_program_that_cannot_be_is_refused_by_the_model():
    model = language.Language(scale(LANGUAGE['micro']['w64d2'], 64, 2), attention='splash')
    tokens_BL = jax.ShapeDtypeStruct((1, 100), 'int32')
    with pytest.raises(ValueError, match="attention 'splash' cannot be for rows of 100 tokens"):
        jax.eval_shape(model.init, jax.random.key(0), *[tokens_BL] * 3)


# --- the program of a train step, lowered for a GPU that is not there -------------------------

@pytest.fixture
def cudnn_found(monkeypatch):
    """Without a GPU the library stops at the version of cuDNN, and at nothing else."""
    with pytest.raises(RuntimeError, match='cuDNN is not detected'):
        cudnn.check_cudnn_version()
    monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)


def lowered(attention, grid, B=4, L=128, tiles=2):
    """StableHLO for CUDA of the train step of a small model with pictures, in bfloat16."""
    config = scale(LANGUAGE['micro']['w64d2'], 256, 2, vocabulary=512)
    model = Vlm(config, VisionConfig(layers=1, W=32, H=2, F=64, patch=4, image=16),
                dtype='bfloat16', remat='full')
    groups = 'language', 'connector'
    params = abstract_params(model, ('language', 'tower', 'connector', 'image_newline_D'))
    state = jax.eval_shape(lambda: new_state(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params), Optimizer(), groups))
    where = batch_sharding(grid, model.rules)
    P, Q = model.vision.P, model.vision.Q
    shapes = {name: ((B, L), 'int32') for name in ('tokens', 'segments', 'positions')}
    shapes |= {'weights': ((B, L), 'float32'), 'tiles': ((B, tiles, P, Q), 'uint8'),
               'image_index': ((B, L, 1), 'int32')}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=where) for name, shape in shapes.items()}
    rates = dict.fromkeys(groups, jax.ShapeDtypeStruct((), 'float32'))
    with jax.set_mesh(grid):
        step = compiled_step(model, 'tokens', Optimizer(), groups, grid, ((L, attention),))
        state = abstract(state, shardings(state, grid, model.rules))
        program = step.trace(state, batch, rates).lower(lowering_platforms=('cuda',))
    return program.as_text()


def scores(text, L=128):
    """The shapes of numbers that hold an [L, L] for each row and head, flattened or not.

    [rows, 1, L, L] is none: the mask, the same for all heads.
    """
    shapes = {tuple(map(int, found.split('x'))) for found in re.findall(
        r'tensor<((?:\d+x)+\d+)x(?:f32|bf16)>', text)}
    return {shape for shape in shapes if len(shape) > 3 and shape[-1] == L
            and shape[-2] % L == 0 and shape[1:] != (1, L, L)}


@pytest.mark.parametrize('sizes', [(1, 1), (2, 2)])
def test_a_train_step_for_cuda_calls_cudnn_both_ways_and_holds_no_scores(cudnn_found, sizes):
    data, tensor = sizes
    grid = mesh(data, 1, tensor, jax.devices()[:data * tensor])
    text = lowered('cudnn', grid)
    calls = re.findall(r'custom_call @(__cudnn\$fmha\w+)', text)
    # Once as the layer runs, once as remat runs it again, and once backwards.
    assert calls.count('__cudnn$fmhaScaleBiasSoftmaxBackward') == 1
    assert calls.count('__cudnn$fmhaScaleBiasSoftmax') == len(calls) - 1 >= 2
    assert not scores(text)
    # Each call is told the mask, [rows, 1, L, L]: without it packed rows would see one another.
    for line in re.findall(r'.*custom_call @__cudnn\$fmha.*', text):
        operands = line.rpartition(' : (')[2].partition(') -> ')[0]
        assert f'tensor<{4 // data}x1x128x128xbf16>' in operands, line[-400:]


def test_plain_attention_for_cuda_calls_no_kernel_and_writes_scores_out():
    text = lowered('xla', mesh(1, devices=jax.devices()[:1]))
    assert '__cudnn' not in text and scores(text)


def test_a_model_with_pictures_learns_the_same_by_either(monkeypatch):
    """The loss and every gradient of packed rows, each with a picture at its head."""
    config = scale(LANGUAGE['micro']['w64d2'], 64, 2, vocabulary=128)
    model = Vlm(config, VisionConfig(layers=1, W=32, H=2, F=64, patch=4, image=16))
    P, Q = model.vision.P, model.vision.Q
    draw = np.random.default_rng(0)
    segments_BL = np.ones((2, 96), np.int32)
    segments_BL[0, 40:], segments_BL[1, 60:], segments_BL[:, 90:] = 2, 2, 0
    index_BLC = np.full((2, 96, 1), -1, np.int32)
    index_BLC[:, 1:1 + P, 0] = np.arange(P)
    batch = {'tokens': draw.integers(0, 128, (2, 96)), 'segments': segments_BL,
             'positions': np.tile(np.arange(96), (2, 1)), 'image_index': index_BLC,
             'weights': (segments_BL > 0).astype(np.float32),
             'tiles': draw.integers(0, 256, (2, 1, P, Q), dtype=np.uint8)}
    params = init_params(model, 0)
    monkeypatch.setattr(language, 'attend_fused', partial(attend_fused, implementation='xla'))

    def learnt(attention):
        chosen = model.clone(attention=attention)
        return jax.value_and_grad(lambda params: token_loss(chosen, params, batch)[0])(params)
    plain, fused = learnt('xla'), learnt('cudnn')
    for (path, expected), found in zip(jax.tree_util.tree_leaves_with_path(plain),
                                       jax.tree.leaves(fused), strict=True):
        # A bias of keys moves all scores of a query alike: its gradient is rounding alone.
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-6,
                                   err_msg=jax.tree_util.keystr(path))
    assert np.abs(fused[1]['connector']['first_WD']).max() > 0
