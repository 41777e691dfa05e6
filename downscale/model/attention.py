"""Which program computes the attention of the language model, and the one that cuDNN has.

'xla' is `layers.attend`: it writes the scores out, and takes every shape on every device. 'splash'
(`splash.py`) and 'cudnn' never hold the scores of a row; one is for TPUs, the other for NVIDIA GPUs
from Ampere on.
"""
import re

import jax
from jax.typing import DTypeLike

from downscale.model import splash
from downscale.sharding import own_heads

AMPERE = (8, 0)  # compute capabilities
HOPPER = (9, 0)
KERNELS = {'gpu': 'cudnn', 'tpu': 'splash'}


def attend_fused(q_BLHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, mask_BLS: jax.Array,
                 implementation: str = 'cudnn') -> jax.Array:
    """Return softmax attention [B, L, H, E] as `layers.attend` does, by the program of cuDNN.

    Every query must see a key: `causal_mask` of segments above 0. Runs per device, on its rows and
    heads. 'xla' as `implementation` computes the same on any device, for tests.
    """
    def local(q_BLHE, k_BSKE, v_BSKE, mask_BLS):
        # The mask and not lengths: of a packed row lengths would hide its end, and nothing else.
        return jax.nn.dot_product_attention(q_BLHE, k_BSKE, v_BSKE, mask=mask_BLS[:, None],
                                            implementation=implementation)
    return own_heads(local, 2)(q_BLHE, k_BSKE, v_BSKE, mask_BLS)


# --- the choice -------------------------------------------------------------------------------

def choose(asked: str, device: jax.Device, dtype: DTypeLike, length: int, width: int,
           stacked: bool = False) -> tuple[str, str]:
    """Return (program, why) for rows of `length` tokens and heads of `width`: never 'auto'.

    `asked` is a value of `config.ATTENTION`; `stacked` says that several cells share the step.
    ValueError where what is asked for, other than 'auto', cannot be.
    """
    if asked == 'xla':
        return 'xla', 'asked for'
    if asked != 'auto':
        fault = _fault(asked, device, dtype, length, width, stacked)
        if fault:
            raise ValueError(f'attention {asked!r} cannot be: {fault}; ask for \'auto\' or \'xla\'')
        return asked, 'asked for'
    kernel = KERNELS.get(device.platform)
    if kernel is None:
        return 'xla', f'there is no kernel for a {device.platform.upper()}'
    fault = _fault(kernel, device, dtype, length, width, stacked)
    return ('xla', f'not {kernel}: {fault}') if fault else (kernel, f'fits {device.device_kind}')


def _fault(kernel, device, dtype, length, width, stacked):
    """Return why a kernel cannot compute this, '' where it can."""
    if KERNELS.get(device.platform) != kernel:
        made_for = {'cudnn': 'NVIDIA GPUs', 'splash': 'TPUs'}[kernel]
        return f'{kernel} is for {made_for}, and this is a {device.platform.upper()}'
    if stacked:
        return 'cells that are trained together are stacked, which it does not take'
    if kernel == 'splash':
        return _splash_fault(length, width)
    return _cudnn_fault(_capability(device), device.device_kind, str(dtype), length, width)


def _splash_fault(length, width):
    if splash.fits(length, width):
        return ''
    return (f'rows of {length} tokens and heads of width {width} must be multiples of '
            f'{splash.LANES}')


def _cudnn_fault(capability, kind, dtype, length, width):
    # As `jax._src.cudnn.fused_attention_stablehlo` checks it, and NVIDIA's table of support.
    if capability is None or capability < AMPERE:
        return f'cuDNN needs an NVIDIA GPU from Ampere (8.0) on, and this is {kind}'
    if dtype != 'bfloat16':
        return f'cuDNN needs dtype bfloat16, not {dtype}'
    widest = 256 if capability >= HOPPER else 128
    if width % 8 or width > widest:
        return f'heads of width {width} must be a multiple of 8 up to {widest} on {kind}'
    # With a mask, of both lengths, and only where gradients are asked for: here they always are.
    return f'cuDNN trains rows of even length, not of {length} tokens' if length % 2 else ''


def _capability(device):
    """Return the CUDA compute capability of a GPU, as (9, 0); None for those of others."""
    match = re.fullmatch(r'(\d+)\.(\d+)', str(device.compute_capability))
    return match and (int(match[1]), int(match[2]))
