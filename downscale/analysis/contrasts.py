"""The contrasts that claims are about: each one number of a study, with its interval.

Every contrast compares the same questions, with one resampling of pictures and, from three seeds
on, of seeds. Visual families are those of which a question is marked 'visual'.
"""
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from downscale.analysis import costs, drops, measures
from downscale.analysis.measures import GOLD, MODES, Missing, Scored
from downscale.results.study import Cell
from downscale.results.text_kinds import BRIEF, CAPTION, EXTRACTION
from downscale.statistics import bootstrap

EQUAL = .1   # budgets that differ by no more count as equal


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a contrast is in a study: `effect`, where it is from, and by size where it has one.

    `doubt` says why the effect would not answer the claim ('' if it would). With `one_sided` the
    doubt can only have made the effect smaller, so that "supported" still stands.
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
    `Missing` when none of a part's tasks was asked.
    """
    # `parts` are summed within each draw, as in the number itself: their errors go together.
    _, means = measures.means_of(s, groups)
    value = 0.
    draws = 0.
    shares = np.zeros(len(means.groups))
    for part, names in parts:
        columns = [column for column, name in enumerate(means.groups) if name in names]
        if not columns:
            raise Missing(f'needs one of the families {", ".join(sorted(names))}' if names else
                          'needs a family of questions about pictures')
        weights = np.asarray(part, dtype=float)
        value = value + weights @ means.value[:, columns].mean(axis=1)
        draws = draws + means.draws[:, :, columns].mean(axis=2) @ weights
        # What each family adds to the spread of the sum, by which `effective` weighs its clusters.
        shares[columns] += np.abs(weights).max() / len(columns)
    used = shares > 0
    # The sum is at its ends where every accuracy that is added is 0 or 1.
    weights = np.concatenate([np.asarray(part, dtype=float) for part, _ in parts])
    bounds = float(np.minimum(weights, 0).sum()), float(np.maximum(weights, 0).sum())
    # pyrefly: ignore[bad-argument-type]
    return bootstrap.interval(value, draws, means.n[used].sum(),
                              bootstrap.effective(means.clusters[used], shares[used]),
                              bounds=bounds, over=means.over)


def visual_minus_knowledge(s: Scored, mode: str) -> Found:
    """Return the drop of visual families minus that of knowledge ones, each the mean of its own."""
    sizes = measures.answering_sizes(s)
    if len(sizes) < 2:
        raise Missing(f'needs two sizes that answered with the picture, found {len(sizes)}')
    small = sizes[0]
    large = sizes[-1]
    visual, knowledge = families_of(s)
    if not visual or not knowledge:
        raise Missing('needs visual and knowledge families')
    groups = [measures.joint_cells(s, size, 'image') for size in (large, small)]
    return Found(effect=over(s, groups, ((1, -1), visual), ((-1, 1), knowledge)),
                 where=f'{large.name} - {small.name}, with the picture')


def drop_by_reliance(s: Scored, mode: str) -> Found:
    """Return Spearman's correlation of the drop with reliance on the picture (image - blind).

    Axes are from split halves. Its interval is over families, of all seeds averaged; no seeds are
    redrawn, so that it counts as that of one.
    """
    # Split halves: the largest size is on both axes, and its noise alone would make a rising line.
    relations = drops.reliance(s)['relation']
    if 'blind' not in relations:
        raise Missing(f'needs the blind condition in {drops.FEW_TASKS} families')
    x = relations['blind']['split halves'].spearman
    return Found(effect=x, where=f'{x.clusters} families, image - blind, split halves; the '
                                 'interval covers families, not seeds')


def pairs_of(s: Scored, mode: str, kinds: Sequence[str] = (EXTRACTION, CAPTION)
             ) -> tuple[str, dict[tuple[str, str], list[Cell]]]:
    """Return (kind, pairs) of the first kind of text that was answered in this mode."""
    # Extractions before captions, as the claims are about pairs that read extractions.
    for kind in kinds:
        groups = measures.pair_groups(s, kind, MODES[mode])
        if any(p != GOLD for p, _ in groups):
            return kind, groups
    raise Missing(f'no {" or ".join(kinds)} was answered in mode {mode}')


def _need(groups, keys):
    """Return the cells of all these pairs; `Missing` where one is absent."""
    lacking = [f'{p} -> {r}' for p, r in keys if (p, r) not in groups]
    if lacking:
        raise Missing(f'{len(lacking)} of {len(keys)} pairs are absent, first {lacking[0]}')
    return [groups[key] for key in keys]


def _sizes(s, groups, side):
    """Return the sizes on one side of pairs (0 perception, 1 reasoners), small to large."""
    names = {key[side] for key in groups}
    sizes = [size.name for size in s.sizes if size.name in names]
    if not sizes:
        raise Missing('no perception model wrote what a reasoner read')
    return sizes


def perception_minus_reasoning(s: Scored, mode: str) -> Found:
    """Return what shrinking perception alone costs, minus what shrinking the reasoner alone does.

    It is also the difference of their Shapley shares. In doubt unless both sides together lose.
    """
    kind, groups = pairs_of(s, mode)
    p = _sizes(s, groups, 0)
    r = _sizes(s, groups, 1)
    if len(p) < 2 or len(r) < 2:
        raise Missing('needs two sizes on both sides')
    # 1: reasoner small, 2: perception small, 3: both large.
    cells = _need(groups, [(p[-1], r[0]), (p[0], r[-1]), (p[-1], r[-1])])
    visual, _ = families_of(s)
    # Both drops start at (large, large), which cancels: two pairs and no third make the effect.
    lost = over(s, cells, ((-.5, -.5, 1), visual))
    doubt = '' if lost.low > 0 else 'no side loses clearly, so nothing is compared'
    return Found(effect=over(s, cells, ((1, -1, 0), visual)),
                 where=f'{kind}, {mode}, {p[-1]} to {p[0]}', doubt=doubt)


@dataclass(frozen=True, kw_only=True)
class _Tuned:
    """Extractions minus captions of all `sizes` of perception, read by the largest `reasoner`."""
    effect: bootstrap.Interval
    by_size: dict
    sizes: list
    reasoner: str


def _tuned_difference(s, mode, other=CAPTION):
    """Return what the largest reasoner gains from extractions over the `other` kind of text."""
    _, extractions = pairs_of(s, mode, (EXTRACTION,))
    _, others = pairs_of(s, mode, (other,))
    written = _sizes(s, others, 0)
    sizes = [size for size in _sizes(s, extractions, 0) if size in written]
    reasoner = _sizes(s, extractions, 1)[-1]
    keys = [(size, reasoner) for size in sizes]
    extracted = _need(extractions, keys)
    captioned = _need(others, keys)
    visual, _ = families_of(s)
    by_size = {size: over(s, both, ((1, -1), visual))
               for size, both in zip(sizes, zip(extracted, captioned, strict=True), strict=True)}
    # The mean over sizes is one contrast of all cells: its seeds are those that all of them have.
    weights = [1 / len(sizes)] * len(sizes) + [-1 / len(sizes)] * len(sizes)
    effect = over(s, [*extracted, *captioned], (weights, visual))
    return _Tuned(effect=effect, by_size=by_size, sizes=sizes, reasoner=reasoner)


def extraction_minus_caption(s: Scored, mode: str) -> Found:
    """Return what the largest reasoner gains from extractions over captions, the mean over P sizes.

    In doubt unless both writers were tuned on as many examples behind the model that answers.
    """
    tuned = _tuned_difference(s, mode)
    counts = {kind: costs.tuned_examples(s, tuned.sizes, kind) for kind in (CAPTION, EXTRACTION)}
    doubt, one_sided = budget('examples', *_by_kind(counts))
    return Found(effect=tuned.effect, by_size=tuned.by_size, doubt=doubt, one_sided=one_sided,
                 where=f'reasoner {tuned.reasoner}, {mode}, {len(tuned.sizes)} sizes')


def extraction_minus_caption_equal_tokens(s: Scored, mode: str) -> Found:
    """Return what is gained over captions cut to the length of the extraction.

    Whole captions stand in where none were cut. In doubt unless both kinds are as long, in tokens:
    a caption may be shorter than it may be.
    """
    brief = any(cell.text_kind == BRIEF for cell in s.study.cells)
    tuned = _tuned_difference(s, mode, BRIEF if brief else CAPTION)
    doubt, one_sided = budget('tokens a text', *_by_kind(_lengths(s, tuned.sizes, brief)))
    what = 'brief captions, ' if brief else ''
    return Found(effect=tuned.effect, by_size=tuned.by_size, doubt=doubt, one_sided=one_sided,
                 where=f'{what}reasoner {tuned.reasoner}, {mode}, {len(tuned.sizes)} sizes')


def _lengths(s, sizes, cut):
    """Return {kind: mean tokens of what these sizes wrote}, None without texts.

    `cut`: captions count as no longer than the extraction of the same item by the same run.
    """
    runs = [run for run, size in measures.size_of_run(s).items() if size.name in sizes]
    captions = _token_counts(s.study.texts, CAPTION, runs)
    extractions = _token_counts(s.study.texts, EXTRACTION, runs)
    # What is said of brief captions has to count them as they were read, not as they were written.
    if cut:
        captions = {key: min(count, extractions[key])
                    for key, count in captions.items() if key in extractions}
    return {kind: float(np.mean(list(counts.values()))) if counts else None
            for kind, counts in ((CAPTION, captions), (EXTRACTION, extractions))}


def _token_counts(texts, kind, runs):
    """Return {(item, run): tokens} of one kind of text."""
    rows = (texts['text_kind'] == kind) & np.isin(texts['p_run'], runs)
    keys = zip(texts['item_id'][rows], texts['p_run'][rows], strict=True)
    return dict(zip(keys, texts['n_tokens'][rows].tolist(), strict=True))


def _by_kind(counts):
    """Return what `budget` compares where extraction is to beat captioning."""
    return ('extraction', counts[EXTRACTION]), ('captioning', counts[CAPTION])


def budget(what: str, better: tuple[str, float | None],
           other: tuple[str, float | None]) -> tuple[str, bool]:
    """Return (doubt, whether it is one-sided) about a comparison at equal budgets.

    Both sides are (name, what it was given or None); `better` is to win by the claim.
    """
    name, given = better
    other_name, others = other
    if not given or not others:
        return f'{what} are not recorded', False
    if abs(given / others - 1) <= EQUAL:
        return '', False
    # What wins with the smaller budget would win with an equal one.
    return f'{name} has {given:.4g} {what}, {other_name} {others:.4g}', given < others


def thinking(s: Scored, mode: str) -> Found:
    """Return thinking minus answering directly, of the largest reasoner, and by reasoner.

    All read what the largest P has written. `where` says from which size on the effect is clear:
    sizes are tested from the largest down, and testing stops at the first that is not.
    """
    kind, groups = pairs_of(s, 'think')
    _, direct = pairs_of(s, 'direct', (kind,))
    top = _sizes(s, groups, 0)[-1]
    visual, _ = families_of(s)
    names = [r for r in _sizes(s, groups, 1) if (top, r) in groups and (top, r) in direct]
    if not names:
        raise Missing('no reasoner answered both directly and thinking')
    by_size = {r: over(s, [groups[top, r], direct[top, r]], ((1, -1), visual)) for r in names}
    # In a fixed order each test may use the whole 5 %, as long as it stops at the first failure.
    first = None
    for r in reversed(names):
        if not by_size[r].low > 0:
            break
        first = r
    clear = f'clear from {first} on' if first else 'clear at no size'
    return Found(effect=by_size[names[-1]], where=f'{kind} by {top}; {clear}', by_size=by_size)


def chain_minus_joint(s: Scored, mode: str) -> Found:
    """Return a pair of one size, thinking over its extraction, minus the joint model of that size.

    The mean over the sizes that have both.
    """
    kind, groups = pairs_of(s, mode)
    sizes = [size for size in measures.answering_sizes(s) if (size.name, size.name) in groups]
    if not sizes:
        raise Missing('no size answered both as a pair and by itself')
    visual, _ = families_of(s)
    by_size = {}
    cells = []
    for size in sizes:
        both = [groups[size.name, size.name], measures.joint_cells(s, size, 'image')]
        by_size[size.name] = over(s, both, ((1, -1), visual))
        cells += both
    # In `cells` pairs and joint models take turns.
    effect = over(s, cells, (np.tile([1, -1], len(sizes)) / len(sizes), visual))
    return Found(effect=effect, where=f'{kind}, {mode}, {len(sizes)} sizes', by_size=by_size)
