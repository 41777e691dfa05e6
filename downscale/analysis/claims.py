"""Claims as data: what is claimed, by which number it is judged, and what the study says of it.

An experiment file may declare its own list before the run (`claims` of its config); it is kept in
`study.json`. The claims of the paper (arXiv 2511.17487) with thresholds of ours are the default.
"""
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from downscale.analysis import contrasts, floors, repairs
from downscale.analysis.contrasts import families_of, over
from downscale.analysis.gate import gate
from downscale.analysis.measures import Missing, Scored, answering_sizes, joint_cells, means_of
from downscale.results.items import TableError
from downscale.statistics import bootstrap, inference
from downscale.statistics.two_way import FEW_SEEDS
from downscale.values import from_dict, unknown

CONTRASTS = {run.__name__: run for run in (
    contrasts.visual_minus_knowledge, contrasts.drop_by_reliance,
    contrasts.perception_minus_reasoning, contrasts.extraction_minus_caption,
    contrasts.extraction_minus_caption_equal_tokens, contrasts.thinking,
    contrasts.chain_minus_joint, repairs.chain_minus_joint_equal_flops,
    repairs.explained_minus_joint, repairs.chain_minus_explained,
    repairs.grpo_minus_extraction, repairs.rejection_minus_extraction,
    repairs.distil_minus_extraction)}
TESTS = ('greater', 'equivalent')
GATES = ('reasoner', 'joint', 'none')
MODES = ('', 'direct', 'think')
VERDICTS = ('supported', 'contradicted', 'inconclusive', 'not interpretable')


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim and how it is judged, all of it said before the run.

    `contrast` names one of `CONTRASTS`. 'greater': supported when the whole 95 % interval
    is above `threshold`, contradicted when it is below. 'equivalent': supported when it is within
    +-threshold, contradicted when it is outside. Else inconclusive, as with fewer than `seeds`
    seeds. `gate`: what must hold for the number to mean anything: the largest reasoner beats every
    guess on gold texts ('reasoner'), or the largest joint model does with the picture ('joint').
    `mode` is how reasoners answer; '' takes the one whose gate passes, thinking first.
    `seeds_by_size`: seeds of one size have nothing in common with those of another; then their
    variances are added up, with the degrees of all, in every number of the study. `seed_sd` is the
    standard deviation of the contrast between seeds that is assumed for its power.
    """
    id: str
    text: str
    contrast: str
    test: str = 'greater'
    threshold: float = 0.
    gate: str = 'reasoner'
    mode: str = ''
    seeds: int = FEW_SEEDS
    seeds_by_size: bool = False
    seed_sd: float = 0.05

    def __post_init__(self):
        self._check('contrast', self.contrast, CONTRASTS)
        self._check('test', self.test, TESTS)
        self._check('gate', self.gate, GATES)
        self._check('mode', self.mode, MODES)
        if not 0 <= self.seed_sd < 1:
            raise ValueError(f'claim {self.id}: seed_sd {self.seed_sd:g} must lie in 0 .. 1')
        # Within +-0 no interval could ever be.
        if self.test == 'equivalent' and not self.threshold > 0:
            raise ValueError(f'claim {self.id}: the threshold of an equivalence must be above 0')

    def _check(self, what, name, known):
        if name not in known:
            raise ValueError(f'claim {self.id}: {unknown(what, name, list(known))}')


# Thresholds are ours: the paper states its claims without. 0.05 is a twentieth of all questions.
CLAIMS = (
    Claim(
        id='a',
        text='Downscaling hurts visual tasks more than knowledge',
        contrast='visual_minus_knowledge',
        gate='joint',
    ),
    Claim(
        id='b',
        text='The drop tracks reliance on the picture',
        contrast='drop_by_reliance',
        gate='joint',
    ),
    Claim(
        id='c',
        text='Perception falls as much as reasoning',
        contrast='perception_minus_reasoning',
        test='equivalent',
        threshold=0.05,
    ),
    Claim(
        id='d1',
        text='Extraction tuning beats captioning at equal examples',
        contrast='extraction_minus_caption',
    ),
    Claim(
        id='d2',
        text='Extraction tuning beats captioning at equal tokens',
        contrast='extraction_minus_caption_equal_tokens',
    ),
    Claim(id='e', text='Step-by-step answers help', contrast='thinking', mode='think'),
    Claim(
        id='f', text='Extract+Think beats end-to-end', contrast='chain_minus_joint', mode='think'
    ),
)


def read(values: Any) -> tuple[Claim, ...]:
    """Return the `Claim`s of a list of dicts.

    ValueError names the nearest key to one that is unknown, or an id that is given twice.
    """
    if not isinstance(values, (list, tuple)):
        raise ValueError(f'claims must be a list of mappings, not {values!r}')
    claims = tuple(from_dict(Claim, value, f'claims[{place}]')
                   for place, value in enumerate(values))
    ids = [claim.id for claim in claims]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise ValueError(f'claims: id {repeated[0]!r} is given twice')
    return claims


def judge(s: Scored) -> list[dict[str, Any]]:
    """Return a verdict, a dict, for each claim of the study, or of `CLAIMS` if it declared none.

    Keys: id, text, verdict, reason, effect, low, high, n, clusters, seeds, method, gate (passed or
    failed, with the reason), contrast, test, threshold, where, by_size and registered. `p` is of a
    t test that the effect lies at the threshold, `p_holm` adjusted for all claims that are judged.
    Verdicts follow the interval alone; both are NaN without a t interval.
    """
    declared = s.study.meta.get('claims')
    # A study without a reasoner that can be read still answers the claims about joint models.
    try:
        reasoner = gate(s)
    except TableError as reason:
        reasoner = {'modes': {}, 'line': f'Not interpretable on the reasoning side: {reason}'}
    rows = [{**_judge(s, claim, reasoner), 'registered': declared is not None}
            for claim in (CLAIMS if declared is None else read(declared))]
    # What cannot be judged is no test, and makes the others no harder.
    tested = [row['p'] if row['verdict'] != 'not interpretable' else np.nan for row in rows]
    for row, p_holm in zip(rows, inference.holm(tested), strict=True):
        row['p_holm'] = float(p_holm)
    return rows


def p_value(claim: Claim, x: bootstrap.Interval) -> float:
    """Return the two-sided p that an effect lies just where its claim turns."""
    at = claim.threshold
    # An equivalence turns at both ends of its band: the nearer one decides.
    if claim.test == 'equivalent':
        at = float(np.copysign(at, x.value))
    return inference.p_of(x, at)


def _judge(s, claim, reasoner):
    mode = claim.mode or _mode(reasoner)
    passed, gate_says = _gate(s, claim, mode, reasoner)
    row = {'id': claim.id, 'text': claim.text, 'contrast': claim.contrast, 'test': claim.test,
           'threshold': claim.threshold, 'gate': gate_says, 'needs_seeds': claim.seeds}
    try:
        contrast = CONTRASTS[claim.contrast](s, mode)
    except (Missing, TableError) as reason:
        # A claim that cannot be judged is listed all the same, with the reason.
        blank = dict.fromkeys(('effect', 'low', 'high'))
        return {**row, **blank, 'n': 0, 'clusters': 0, 'seeds': 0, 'method': '', 'where': '',
                'by_size': {}, 'verdict': 'not interpretable', 'reason': str(reason),
                'p': np.nan}
    x = contrast.effect
    verdict, reason = verdict_of(claim, x, contrast.doubt, contrast.one_sided)
    # The effect is shown all the same, with what a failed gate says instead of a verdict.
    if not passed:
        verdict = 'not interpretable'
        reason = gate_says
    by_size = {size: asdict(interval) for size, interval in contrast.by_size.items()}
    return {**row, 'effect': x.value, 'low': x.low, 'high': x.high, 'n': x.n,
            'clusters': x.clusters, 'seeds': x.seeds, 'method': x.method, 'where': contrast.where,
            'by_size': by_size, 'verdict': verdict, 'reason': reason, 'p': p_value(claim, x)}


def verdict_of(claim: Claim, x: bootstrap.Interval, doubt: str = '',
               one_sided: bool = False) -> tuple[str, str]:
    """Return (verdict, reason) of a claim whose effect is the interval `x`, its gate aside."""
    at = claim.threshold
    if claim.test == 'greater':
        holds = x.low > at
        fails = x.high < at
    else:
        holds = x.low > -at and x.high < at
        fails = x.low > at or x.high < -at
    # 1. Doubt comes first, but for one that can only have made a supported effect smaller.
    if doubt and not (one_sided and holds):
        return 'not interpretable', doubt
    # 2. An interval on both sides of the threshold, or on none for want of numbers.
    if not holds and not fails:
        if np.isnan(x.low):
            return 'inconclusive', 'there is no interval'
        if claim.test == 'greater':
            return 'inconclusive', f'the interval includes {at:g}'
        return 'inconclusive', f'the interval lies partly within +-{at:g}'
    # 3. One that covers too few seeds might move with the next seed.
    if x.seeds < claim.seeds:
        return 'inconclusive', f'seeds are missing: {x.seeds} of at least {claim.seeds}; the ' \
                               'interval covers no more'
    return ('supported' if holds else 'contradicted'), (f'although {doubt}' if doubt else '')


def _mode(reasoner):
    """Return the mode in which pairs are read: thinking, unless only answering directly passes."""
    # Where both pass it is thinking, as in the chain of the paper.
    good = [mode for mode, facts in reasoner['modes'].items() if facts['interpretable']]
    return 'direct' if good == ['direct'] else 'think'


def _gate(s, claim, mode, reasoner):
    """Return whether the claim's gate passes, and the sentence that says so."""
    if claim.gate == 'none':
        return True, 'none'
    if claim.gate == 'joint':
        return _joint_gate(s)
    passed = reasoner['modes'].get(mode, {}).get('interpretable', False)
    return passed, f'passed ({mode})' if passed else f'failed ({mode}): {reasoner["line"]}'


def _joint_gate(s):
    """Return whether the largest joint model beats every guess in both kinds of family, and why.

    It has to in the mean over visual families, and in that over knowledge families.
    """
    sizes = answering_sizes(s)
    if not sizes:
        return False, 'failed: no model was asked with the picture'
    largest = sizes[-1]
    cells = joint_cells(s, largest, 'image')
    guess = floors.floor(s, means_of(s, [cells])[0]).means
    for kind, tasks in zip(('visual', 'knowledge'), families_of(s), strict=True):
        columns = [column for column, name in enumerate(guess.groups) if name in tasks]
        if columns:
            # The mean over families, as contrasts take it: one hard family alone fails nothing.
            score = over(s, [cells], ((1,), tasks))
            floor = guess.value[0, columns].mean()
            if not score.low > floor:
                return False, (f'failed: {largest.name} has {score.value:.2f} [{score.low:.2f}, '
                               f'{score.high:.2f}] in {kind} families, the best guess {floor:.2f}')
    return True, f'passed ({largest.name} is above every guess)'
