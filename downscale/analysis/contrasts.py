"""The contrasts that claims are about: each one number of a study, with its interval.

Every contrast compares the same questions, with one resampling of pictures and, from three seeds
on, of seeds. Visual families are those of which a question is marked 'visual'.
"""
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from downscale.analysis import costs, dropoff, grids, measures
from downscale.analysis.measures import MODES, Missing, Scored
from downscale.statistics import bootstrap

EQUAL = .1   # budgets that differ by no more count as equal


@dataclass(frozen=True)
class Found:
    """What a contrast is in a study: `effect`, where it is from, and by size where it has one.

    `doubt` says why the effect would not answer the claim ('' if it would): a verdict that the
    doubt works against still stands when `one_sided`.
    """
    effect: bootstrap.Interval
    where: str
    by_size: dict = field(default_factory=dict)
    doubt: str = ''
    one_sided: bool = False


def families_of(s: Scored) -> tuple[set[str], set[str]]:
    """Return (visual families, knowledge families)."""
    items = s.study.items
    visual = set(items['task'][items['category'] == 'visual'])
    return visual, set(items['task']) - visual


def over(s: Scored, groups: Sequence,
         *parts: tuple[Sequence[float] | np.ndarray, Collection[str]]) -> bootstrap.Interval:
    """Return the interval of a weighted sum of the accuracies of groups of cells.

    Each of `parts` is (weights [groups], tasks over which the mean is taken); they are added up.
    """
    _, means, _ = measures.means_of(s, groups)
    value = 0.
    draws = 0.
    shares = np.zeros(len(means.groups))
    for part, names in parts:
        here = [column for column, name in enumerate(means.groups) if name in names]
        part = np.asarray(part, dtype=float)
        value = value + part @ means.value[:, here].mean(axis=1)
        draws = draws + means.draws[:, :, here].mean(axis=2) @ part
        shares[here] += np.abs(part).max() / len(here)
    columns = shares > 0
    weights = np.concatenate([np.asarray(part, dtype=float) for part, _ in parts])
    bounds = float(np.minimum(weights, 0).sum()), float(np.maximum(weights, 0).sum())
    # pyrefly: ignore[bad-argument-type]
    return bootstrap.interval(value, draws, means.n[columns].sum(),
                              bootstrap.effective(means.clusters[columns], shares[columns]),
                              bounds=bounds, seeds=means.seeds, planned=means.planned)


def _ends(s):
    have = [size for size in s.sizes if measures.joint_cells(s, size, 'image')]
    if len(have) < 2:
        raise Missing(f'needs two sizes that answered with the picture, found {len(have)}')
    return have[0], have[-1]


def visual_minus_knowledge(s: Scored, mode: str) -> Found:
    """Drop of visual families minus that of knowledge families, each the mean over families."""
    small, large = _ends(s)
    visual, knowledge = families_of(s)
    if not visual or not knowledge:
        raise Missing('needs visual and knowledge families')
    groups = [measures.joint_cells(s, size, 'image') for size in (large, small)]
    return Found(over(s, groups, ((1, -1), visual), ((-1, 1), knowledge)),
                 f'{large.name} - {small.name}, with the picture')


def drop_by_reliance(s: Scored, mode: str) -> Found:
    """Return spearman of drop and reliance on the picture (image - blind), axes from split halves.

    Its interval is over families, of all seeds averaged; no seeds are redrawn, so that it counts
    as that of one.
    """
    found = dropoff.reliance(s)
    if 'blind' not in found['relation']:
        raise Missing(f'needs the blind condition in {dropoff.FEW_TASKS} families')
    x = found['relation']['blind']['split halves'].spearman
    return Found(x, f'{x.clusters} families, image - blind, split halves; the interval covers '
                    'families, not seeds')


def _pairs(s, mode, kinds=('extraction', 'caption')):
    """Return (kind, pairs) of the first kind of text that was answered in this mode."""
    for kind in kinds:
        groups = measures.pair_groups(s, kind, MODES[mode])
        if any(p != grids.GOLD for p, _ in groups):
            return kind, groups
    raise Missing(f'no {" or ".join(kinds)} was answered in mode {mode}')


def _need(groups, keys):
    lacking = [f'{p} -> {r}' for p, r in keys if (p, r) not in groups]
    if lacking:
        raise Missing(f'{len(lacking)} of {len(keys)} pairs are absent, first {lacking[0]}')
    return [groups[key] for key in keys]


def _sizes(s, groups, side):
    found = [size.name for size in s.sizes if any(key[side] == size.name for key in groups)]
    if not found:
        raise Missing('no perception model wrote what a reasoner read')
    return found


def perception_minus_reasoning(s: Scored, mode: str) -> Found:
    """Return what shrinking perception alone costs, minus what shrinking the reasoner alone does.

    It is also the difference of their Shapley shares. In doubt unless both sides together lose.
    """
    kind, groups = _pairs(s, mode)
    p = _sizes(s, groups, 0)
    r = _sizes(s, groups, 1)
    if len(p) < 2 or len(r) < 2:
        raise Missing('needs two sizes on both sides')
    cells = _need(groups, [(p[-1], r[0]), (p[0], r[-1]), (p[-1], r[-1])])
    visual, _ = families_of(s)
    lost = over(s, cells, ((-.5, -.5, 1), visual))
    return Found(over(s, cells, ((1, -1, 0), visual)), f'{kind}, {mode}, {p[-1]} to {p[0]}',
                 doubt='' if lost.low > 0 else 'no side loses clearly, so nothing is compared')


def _writers(s, mode, other):
    """Return (pairs that read extractions, that read the `other` kind, sizes of perception) at the
    largest R.
    """
    both = [_pairs(s, mode, (kind,))[1] for kind in ('extraction', other)]
    p = [size for size in _sizes(s, both[0], 0) if size in _sizes(s, both[1], 0)]
    r = _sizes(s, both[0], 1)[-1]
    return *(_need(groups, [(size, r) for size in p]) for groups in both), p, r


def _tuned_difference(s, mode, other='caption'):
    extracted, captioned, p, r = _writers(s, mode, other)
    visual, _ = families_of(s)
    weights = [1 / len(p)] * len(p) + [-1 / len(p)] * len(p)
    each = {size: over(s, pair, ((1, -1), visual))
            for size, pair in zip(p, zip(extracted, captioned, strict=True), strict=True)}
    return over(s, [*extracted, *captioned], (weights, visual)), each, p, r


def extraction_minus_caption(s: Scored, mode: str) -> Found:
    """Return what the largest reasoner gains from extractions over captions, the mean over P sizes.

    In doubt unless both writers were tuned on as many examples behind the model that answers.
    """
    effect, each, p, r = _tuned_difference(s, mode)
    counts = {kind: costs.tuned_examples(s, p, kind) for kind in ('caption', 'extraction')}
    return Found(effect, f'reasoner {r}, {mode}, {len(p)} sizes', each,
                 *_budget('examples', counts))


def extraction_minus_caption_equal_tokens(s: Scored, mode: str) -> Found:
    """Return the same over captions cut to the length of the extraction, or whole ones without
    such.

    In doubt unless both are as long, in tokens: a caption may be shorter than it may be.
    """
    brief = any(cell.text_kind == 'brief' for cell in s.study.cells)
    effect, each, p, r = _tuned_difference(s, mode, 'brief' if brief else 'caption')
    return Found(effect, f'{"brief captions, " * brief}reasoner {r}, {mode}, {len(p)} sizes', each,
                 *_budget('tokens a text', _lengths(s, p, brief)))


def _lengths(s, sizes, cut):
    """Return {kind: mean tokens of what these sizes wrote}, None without texts.

    `cut`: captions count as no longer than the extraction of the same item by the same run.
    """
    runs = {run for size in s.sizes if size.name in sizes for run in size.runs}
    texts = s.study.texts
    found = {}
    for kind in ('caption', 'extraction'):
        here = (texts['text_kind'] == kind) & np.isin(texts['p_run'], list(runs))
        found[kind] = dict(zip(zip(texts['item_id'][here], texts['p_run'][here], strict=True),
                               texts['n_tokens'][here].tolist(), strict=True))
    if cut:
        found['caption'] = {key: min(count, found['extraction'][key])
                            for key, count in found['caption'].items()
                            if key in found['extraction']}
    return {kind: float(np.mean(list(counts.values()))) if counts else None
            for kind, counts in found.items()}


def _budget(what, counts):
    """Return (doubt, whether it is one-sided) about a comparison at equal budgets."""
    caption = counts['caption']
    extraction = counts['extraction']
    if not caption or not extraction:
        return f'{what} are not recorded', False
    if abs(extraction / caption - 1) <= EQUAL:
        return '', False
    return (f'extraction has {extraction:.4g} {what}, captioning {caption:.4g}',
            extraction < caption)


def thinking(s: Scored, mode: str) -> Found:
    """Return thinking minus answering directly, for every reasoner, on what the largest P has
    written.

    The effect is that of the largest reasoner. `where` says from which size on it is clear: sizes
    are tested from the largest down, and testing stops at the first that is not.
    """
    kind, groups = _pairs(s, 'think')
    _, direct = _pairs(s, 'direct', (kind,))
    top = _sizes(s, groups, 0)[-1]
    visual, _ = families_of(s)
    names = [r for r in _sizes(s, groups, 1) if (top, r) in groups and (top, r) in direct]
    if not names:
        raise Missing('no reasoner answered both directly and thinking')
    each = {r: over(s, [groups[top, r], direct[top, r]], ((1, -1), visual)) for r in names}
    first = None
    for r in reversed(names):
        if not each[r].low > 0:
            break
        first = r
    return Found(each[names[-1]], f'{kind} by {top}; ' + (
        f'clear from {first} on' if first else 'clear at no size'), each)


def chain_minus_joint(s: Scored, mode: str) -> Found:
    """Return a pair of one size, thinking over its extraction, minus the joint model of that size.

    The mean over the sizes that have both.
    """
    kind, groups = _pairs(s, mode)
    sizes = [size for size in s.sizes if (size.name, size.name) in groups
             and measures.joint_cells(s, size, 'image')]
    if not sizes:
        raise Missing('no size answered both as a pair and by itself')
    visual, _ = families_of(s)
    cells = [[groups[size.name, size.name], measures.joint_cells(s, size, 'image')]
             for size in sizes]
    each = {size.name: over(s, pair, ((1, -1), visual))
            for size, pair in zip(sizes, cells, strict=True)}
    flat = [group for pair in cells for group in pair]
    effect = over(s, flat, (np.tile([1, -1], len(sizes)) / len(sizes), visual))
    return Found(effect, f'{kind}, {mode}, {len(sizes)} sizes', each)


CONTRASTS = {run.__name__: run for run in (
    visual_minus_knowledge, drop_by_reliance, perception_minus_reasoning,
    extraction_minus_caption, extraction_minus_caption_equal_tokens, thinking,
    chain_minus_joint)}

