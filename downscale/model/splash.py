"""Causal attention within segments by the TPU kernel "splash" of `jax.experimental.pallas`.

The kernel never holds the scores of a whole row and skips blocks of the future. Elsewhere, and for
shapes that it does not take, `layers.attend` computes the same.
"""
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from downscale.sharding import own_heads

# The last axis of a TPU register, which L and E must fill; then sizes of blocks, largest first.
LANES = 128
BLOCKS = (512, 384, 256, 128)


def fits(L: int, E: int) -> bool:
    """Return whether the kernel takes rows of `L` tokens and heads of width `E`."""
    return L % LANES == 0 and E % LANES == 0


def _kernel(heads, L, interpret):
    """Return the kernel for one row of `L` tokens, a multiple of 128."""
    block = next(size for size in BLOCKS if L % size == 0)
    # Two backward kernels: the fused one leaves a sum over blocks outside, a tenth of a step more.
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block,
        block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)
    return kernels.make_splash_mha(
        mask=masks.MultiHeadMask([masks.CausalMask((L, L))] * heads), block_sizes=sizes,
        head_shards=1, q_seq_shards=1, interpret=interpret)


def attend_packed(q_BLHE: jax.Array, k_BLKE: jax.Array, v_BLKE: jax.Array, segments_BL: jax.Array,
                  interpret: bool = False) -> jax.Array:
    """Return softmax attention [B, L, H, E] of each token over its segment up to itself.

    Padding (segment 0) sees padding. The kernel runs per device, on its rows and heads.
    """
    def local(q_BHLE, k_BKLE, v_BKLE, segments_BL):
        H, L, E = q_BHLE.shape[1:]
        kernel = _kernel(H, L, interpret)
        return jax.vmap(lambda q_HLE, k_KLE, v_KLE, segments_L: kernel(
            q_HLE * E ** -0.5, k_KLE, v_KLE,
            segment_ids=kernels.SegmentIds(segments_L, segments_L)))(
                q_BHLE, k_BKLE, v_BKLE, segments_BL)

    q_BHLE, k_BKLE, v_BKLE = (x.swapaxes(1, 2) for x in (q_BLHE, k_BLKE, v_BLKE))
    return own_heads(local, 1)(q_BHLE, k_BKLE, v_BKLE, segments_BL).swapaxes(1, 2)
