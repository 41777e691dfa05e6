"""What a model of a given size costs: parameters, FLOPs and bytes, as plain integers.

Nothing here imports JAX, so the planner and the analysis price a run without building it.
FLOPs are those of the matrix products as the program computes them (one multiply and one add are
two FLOPs; the causal half of attention is not left out); norms, softmax, activations and the
embedding look-up are free. `tests/test_accounting.py` ties them to the compiled program.
"""
from collections.abc import Iterable
from dataclasses import dataclass

from downscale.sizes import LanguageConfig, VisionConfig
from downscale.stage_table import GROUPS

# A stage trains `language` together with the vector that ends a row of image tokens.
_PARTS_OF = {'tower': ('tower',), 'connector': ('connector',),
             'language': ('embedding', 'decoder', 'head', 'newline')}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: FLOP/s of dense bf16 products with float32 sums, bytes/s and GB of its memory."""
    flops: float
    bandwidth: float
    memory_gb: int


FLOAT_BYTES = 2  # of a stored value: bfloat16 or float16

# By `device_kind`, the name that the driver gives. Dense figures: data sheets print those of sparse
# products, twice as many. Sources: docs/reference/hardware.md.
_H100 = 989.4e12
GPUS = {
    'NVIDIA A100-SXM4-40GB': Gpu(flops=312e12, bandwidth=1555e9, memory_gb=40),
    'NVIDIA A100-PCIE-40GB': Gpu(flops=312e12, bandwidth=1555e9, memory_gb=40),
    'NVIDIA A100-SXM4-80GB': Gpu(flops=312e12, bandwidth=2039e9, memory_gb=80),
    'NVIDIA A100 80GB PCIe': Gpu(flops=312e12, bandwidth=1935e9, memory_gb=80),
    'NVIDIA L4': Gpu(flops=121e12, bandwidth=300e9, memory_gb=24),
    'NVIDIA GeForce RTX 4090': Gpu(flops=165.2e12, bandwidth=1008e9, memory_gb=24),
    'NVIDIA H100 80GB HBM3': Gpu(flops=_H100, bandwidth=3350e9, memory_gb=80),
    'NVIDIA H200': Gpu(flops=_H100, bandwidth=4800e9, memory_gb=141),
    'NVIDIA B200': Gpu(flops=2250e12, bandwidth=8000e9, memory_gb=180)}


def _check_groups(groups):
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown or isinstance(groups, str):
        raise ValueError(f'unknown groups {unknown or groups!r}; '
                         f'a tuple of {GROUPS} is meant')


def parameters(language: LanguageConfig, vision: VisionConfig | None = None) -> dict[str, int]:
    """Return the number of parameters of every part; `vision` None gives the text-only model.

    Parts: embedding, decoder (blocks and final norm), head (0 when tied to the embedding), tower,
    connector, newline (the learned `image_newline`). Their sum is the parameter tree's size.
    """
    c = language
    # Two norms; queries and output; keys and values; gate, up and down of the MLP.
    block = 2 * c.D + 2 * c.D * c.H * c.E + 2 * c.D * c.K * c.E + 3 * c.D * c.F
    # One gain for all query heads and one for all key heads.
    block += 2 * c.E if c.qk_norm else 0
    block += (c.H + 2 * c.K) * c.E if c.qkv_bias else 0
    parts = {'embedding': c.V * c.D, 'decoder': c.N * block + c.D,
             'head': 0 if c.tie else c.V * c.D, 'tower': 0, 'connector': 0, 'newline': 0}
    if vision is not None:
        v = vision
        # Two norms and, with biases, four projections of attention and two of the MLP.
        tower_block = 4 * v.W + 4 * (v.W * v.W + v.W) + 2 * v.W * v.F + v.F + v.W
        # No final norm: the feature is what the last block gives (see `model/vision.py`).
        parts['tower'] = v.Q * v.W + v.W + v.P * v.W + v.layers * tower_block
        parts['connector'] = v.W * c.D + c.D + c.D * c.D + c.D
        parts['newline'] = c.D
    return parts


def totals(language: LanguageConfig, vision: VisionConfig | None = None) -> dict[str, int]:
    """Return the four counts that are quoted of a model, from the parts of `parameters()`.

    n_total: every parameter. n_nonembed: the language model without embedding and head, the N of
    scaling laws (Kaplan et al., arXiv 2001.08361, section 2.1). n_active: language parameters
    that touch a token, which is n_nonembed and one [V, D] head matrix whether tied or not.
    n_vision: tower and connector.
    """
    parts = parameters(language, vision)
    return {'n_total': sum(parts.values()), 'n_nonembed': parts['decoder'],
            'n_active': parts['decoder'] + language.V * language.D,
            'n_vision': parts['tower'] + parts['connector']}


def stored_bytes(language: LanguageConfig, bits: int = 0, group: int = 0) -> int:
    """Return the bytes in which a language model is stored; floats take 2, as they are published.

    With `bits` its matrices, embedding and head among them, take so many a value, and a scale of 2
    bytes for each `group` of inputs; gains and biases stay floats.
    """
    total = FLOAT_BYTES * sum(parameters(language).values())
    if not bits:
        return total
    c = language
    # Every matrix of a block reads or writes the width.
    block = 2 * c.D * c.H * c.E + 2 * c.D * c.K * c.E + 3 * c.D * c.F
    matrices = c.N * block + (1 if c.tie else 2) * c.V * c.D
    scales = matrices // group
    return total - FLOAT_BYTES * (matrices - scales) + -(-matrices * bits // 8)


def trainable(language: LanguageConfig, vision: VisionConfig | None = None,
              groups: Iterable[str] = GROUPS) -> int:
    """Return how many parameters a stage trains; `groups` is a tuple out of `GROUPS`.

    `image_newline` counts with 'language', whose learning rate it shares.
    """
    _check_groups(groups)
    parts = parameters(language, vision)
    trained = [part for group in set(groups) for part in _PARTS_OF[group]]
    return sum(parts[part] for part in trained)


def _products(language, vision, rows, length, tiles, head_positions):
    """Return {role: multiply-adds of the forward pass}; a role decides what the backward costs.

    'weights' are products with a weight, 'last' the last one of each block, which remat does not
    repeat, 'mixing' the scores and values of attention, which have two inputs and no weight.
    """
    c = language
    tokens = rows * length
    projection = c.D * (2 * c.H + 2 * c.K) * c.E
    work = {}
    work['language_weights'] = tokens * c.N * (projection + 2 * c.D * c.F)
    work['language_last'] = tokens * c.N * c.D * c.F
    # Scores and values over all `length` keys: those that the mask hides are computed as well.
    work['language_mixing'] = tokens * length * c.N * 2 * c.H * c.E
    work['head'] = head_positions * c.V * c.D
    if tiles:
        v = vision
        patches = tiles * v.P
        work['patches'] = patches * v.Q * v.W
        work['tower_weights'] = patches * v.layers * (4 * v.W * v.W + v.W * v.F)
        work['tower_last'] = patches * v.layers * v.W * v.F
        # Attention stays within a tile: P keys for each of its patches.
        work['tower_mixing'] = patches * v.P * v.layers * 2 * v.W
        work['connector_first'] = patches * v.W * c.D
        work['connector_second'] = patches * c.D * c.D
    return work


def forward_flops(language: LanguageConfig, vision: VisionConfig | None = None, *, rows: int,
                  length: int, tiles: int = 0, head_positions: int | None = None) -> dict[str, int]:
    """Return {part: FLOPs} of one forward pass over `rows` x `length` tokens and `tiles` tiles.

    `tiles` counts all tiles of the batch, the unused ones too: they are computed. `head_positions`
    is the number of positions with logits; all by default, `rows` for a prefill. The familiar
    2 * n_active * tokens is this without attention scores and values, and without the tower.
    """
    heads = rows * length if head_positions is None else head_positions
    work = _products(language, vision, rows, length, tiles, heads)
    by_part = dict.fromkeys(('tower', 'connector', 'language', 'head'), 0)
    for role, products in work.items():
        # The name of a role begins with its part, but for the product that makes patches.
        part = 'tower' if role == 'patches' else role.partition('_')[0]
        by_part[part] += 2 * products
    return by_part | {'total': 2 * sum(work.values())}


def train_flops(language: LanguageConfig, vision: VisionConfig | None = None, *, rows: int,
                length: int, tiles: int = 0, groups: tuple[str, ...] = GROUPS,
                remat: bool = False, head_positions: int | None = None) -> dict[str, int]:
    """Return FLOPs of one training step on `rows` x `length` tokens and `tiles` tiles, by pass.

    A trained weight costs its forward product three times (forward, gradient of its input, of
    itself: 6ND); a frozen one between a trained part and the loss twice (4ND: in the alignment
    stage the decoder); a frozen one before every trained part once (2ND: the frozen tower). The
    first trained product needs no gradient of its input. `remat` computes once more every block
    that is differentiated, except its last product, whose output no gradient needs. Passes:
    forward, backward, recompute, total. Source: Kaplan et al., arXiv 2001.08361, section 2.1.
    """
    _check_groups(groups)
    heads = rows * length if head_positions is None else head_positions
    work = _products(language, vision, rows, length, tiles, heads)
    tower = 'tower' in groups and tiles > 0
    connector = 'connector' in groups and tiles > 0
    decoder = 'language' in groups
    reached = tower or connector or decoder          # a gradient flows through the decoder
    # How often the product of each role is done once more: for the gradient of its input where one
    # flows on, and of its weight where that is trained. Attention has two inputs and no weight.
    times = dict.fromkeys(('language_weights', 'language_last', 'head'), reached + decoder)
    times['language_mixing'] = 2 * reached
    times['connector_second'] = (tower or connector) + connector
    times['connector_first'] = tower + connector
    times['patches'] = tower  # pictures need no gradient
    times |= dict.fromkeys(('tower_weights', 'tower_last', 'tower_mixing'), 2 * tower)
    again = {}
    if remat:
        again = {'language_weights': reached, 'language_mixing': reached,
                 'tower_weights': tower, 'tower_mixing': tower}
    forward = 2 * sum(work.values())
    backward = 2 * sum(times[role] * products for role, products in work.items())
    recompute = 2 * sum(again.get(role, 0) * products for role, products in work.items())
    return {'forward': forward, 'backward': backward, 'recompute': recompute,
            'total': forward + backward + recompute}


def decode_flops(language: LanguageConfig, live: int) -> int:
    """Return FLOPs of decoding one token of a row whose cache then holds `live` tokens.

    2 per matrix parameter (head included) and 4 * N * H * E per live token. A program that
    attends over a whole cache of fixed room pays for the room: give that as `live`.
    """
    work = _products(language, None, rows=1, length=1, tiles=0, head_positions=1)
    # `work` holds attention over the token itself; each further live token costs as much again.
    return 2 * (sum(work.values()) + work['language_mixing'] * (live - 1))


def kv_bytes(language: LanguageConfig, value_bytes: int = 2) -> int:
    """Return cache bytes per token of one row: keys and values, N layers, K heads of width E."""
    return 2 * language.N * language.K * language.E * value_bytes


def logit_bytes(language: LanguageConfig, positions: int, value_bytes: int = 4) -> int:
    """Return bytes of one copy of the logits of `positions` positions; a loss may hold several."""
    return positions * language.V * value_bytes
