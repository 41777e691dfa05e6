"""Size and compute as explicit columns: a slope per decade moves by up to 1.3x with the choice.

Embeddings are a quarter of a 0.6B model and a tenth of a 4B one, and the tower is the same in all,
so no table has a column that is just called size.
"""
from collections.abc import Sequence

import numpy as np

from downscale.accounting import STAGE_GROUPS, forward_flops, parameters, totals, train_flops
from downscale.sizes import LanguageConfig, VisionConfig

COUNTS = ('n_total', 'n_nonembed', 'n_active', 'n_vision')
TRAINED, PASSED, BEFORE = 6, 4, 2  # FLOPs per parameter and token


def count_columns(
        models: Sequence[tuple[LanguageConfig, VisionConfig | None]]) -> dict[str, np.ndarray]:
    """The four counts [models] by name, of pairs (language, vision or None).

    n_total: every parameter; n_nonembed: language model without embedding and head; n_active: the
    same with the head once, tied or not; n_vision: tower and connector.
    """
    counts = [totals(*model) for model in models]
    return {name: np.array([one[name] for one in counts]) for name in COUNTS}


def rule_flops(language: LanguageConfig, vision: VisionConfig | None = None, *, tokens: float,
               patches: float = 0, groups: tuple[str, ...] = STAGE_GROUPS) -> float:
    """Training FLOPs by the rule of thumb, for `tokens` of the decoder and `patches` of the tower.

    A trained part costs 6 per parameter and token, a frozen one between a trained part and the
    loss 4, a frozen one before every trained part 2 (the frozen tower is forward only). Attention
    scores are left out. Language parameters are n_active, as every token meets the head once.
    Source: Kaplan et al., arXiv 2001.08361, section 2.1.
    """
    parts, counts = parameters(language, vision), totals(language, vision)
    tower, connector, decoder = (group in groups for group in STAGE_GROUPS)
    tower, connector = tower and patches > 0, connector and patches > 0
    factor = {'tower': TRAINED if tower else BEFORE,
              'connector': TRAINED if connector else PASSED if tower else BEFORE,
              'language': TRAINED if decoder else PASSED if tower or connector else BEFORE}
    return (factor['language'] * counts['n_active'] * tokens
            + patches * sum(factor[part] * parts[part] for part in ('tower', 'connector')))


def train_columns(models: Sequence[tuple[LanguageConfig, VisionConfig | None]], *, steps: int,
                  rows: int, length: int, tiles: int = 0,
                  groups: tuple[str, ...] = STAGE_GROUPS) -> dict[str, np.ndarray]:
    """Training cost [models] of one stage by name, for `steps` of rows x length tokens and tiles.

    tokens: of the decoder, pictures included; flops_formula: the matrix products that a program
    computes without rematerialisation; flops_rule: `rule_flops`; flops_forward: one pass over the
    same data. Floats, since a budget exceeds what integers of an array hold.
    """
    found = {'tokens': [], 'flops_formula': [], 'flops_rule': [], 'flops_forward': []}
    for language, vision in models:
        shape = {'rows': rows, 'length': length, 'tiles': tiles}
        patches = tiles * vision.P if tiles else 0
        found['tokens'].append(steps * rows * length)
        found['flops_formula'].append(
            steps * train_flops(language, vision, **shape, groups=groups)['total'])
        found['flops_rule'].append(steps * rule_flops(
            language, vision, tokens=rows * length, patches=patches, groups=groups))
        found['flops_forward'].append(steps * forward_flops(language, vision, **shape)['total'])
    return {name: np.array(column, dtype=float) for name, column in found.items()}
