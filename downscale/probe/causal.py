"""The causal ledger of a run: at which place a small model loses what it is asked to see.

Four places lie between a picture and an answer: the tower ENCODES the asked object, the connector
and the layers CARRY it in the object's own patches, the answer's place ADDRESSES it there, and the
head READS it out. A probe of the object's own patches says what is carried (its key, by which it is
asked for, and its value apart), a probe of the answer's place whether it has arrived there, and
interchanges between matched scenes (`interchange.py`) what the answer really hangs on.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from downscale.analysis.measures import Row
from downscale.config import Experiment
from downscale.data.scenes.pairs import CHANGES, fields_of, key_of, pair
from downscale.evaluate.answers import items_of
from downscale.probe.interchange import (
    Matched,
    Moved,
    Read,
    interchange,
    matched,
    read,
)
from downscale.probe.passes import Looker
from downscale.results.probes import NO_DEPTH
from downscale.runtime.files import PathLike
from downscale.statistics import bootstrap
from downscale.statistics.two_way import FEW_SEEDS

STAGES = ('encode', 'carry', 'address', 'read')
CLEAR = 0.1     # a run that has lost less than this share of its answers has lost them nowhere
RIDGE = 1e-3
SPARE = 100_000  # scenes from here on train probes, and nothing else


@dataclass(frozen=True, kw_only=True)
class CausalPlan:
    """How much is looked at: `pairs` of scenes a field and change, `scenes` a field for probes."""
    pairs: int = 96
    scenes: int = 320
    bootstraps: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One probe: `hits` [items] of it and of one trained on `shuffled` labels; `chance` is what the
    most frequent label earns."""
    hits: np.ndarray
    shuffled: np.ndarray
    chance: float


# --- probes -----------------------------------------------------------------------------------

def probe(train_x: np.ndarray, train_y: Sequence[str], test_x: np.ndarray,
          test_y: Sequence[str], seed: int) -> Probed:
    """Return how a ridge probe [items, width] -> label does on other items, and its control."""
    names, place = np.unique(np.asarray(train_y), return_inverse=True)
    mean, spread = train_x.mean(axis=0), train_x.std(axis=0) + 1e-6

    def features(x):
        return np.column_stack([(x - mean) / spread, np.ones(len(x))]).astype(np.float64)
    train, test = features(train_x), features(test_x)
    gram = train.T @ train + RIDGE * len(train) * np.eye(train.shape[1])
    order = np.random.default_rng(seed).permutation(len(place))
    right = []
    for labels in (place, place[order]):
        weights = np.linalg.solve(gram, train.T @ np.eye(len(names))[labels])
        right.append(names[(test @ weights).argmax(axis=1)] == np.asarray(test_y))
    _, counts = np.unique(np.asarray(test_y), return_counts=True)
    return Probed(hits=right[0].astype(float), shuffled=right[1].astype(float),
                  chance=counts.max() / counts.sum())


def _own(x_MPD, pairs):
    """Return the mean [M, D] over the own patches of each item."""
    own_MP = np.stack([scenes.own_P for scenes in pairs]).astype(np.float32)
    return np.einsum('MPD,MP->MD', x_MPD, own_MP) / own_MP.sum(axis=1, keepdims=True)


def probes_of(trained: Read, tested: Read, spare: Sequence[Matched], asked: Sequence[Matched],
              labels: tuple[list[dict[str, str]], list[dict[str, str]]],
              seed: int) -> dict[tuple[str, float, str], Probed]:
    """Return {(site, depth, field): `Probed`} of all items of one field.

    `labels` are the fields of the asked object of each item, of `spare` and of `asked`. Sites:
    'tower', 'connector', 'own patches' and, of the value alone, 'answer'.
    """
    field = asked[0].field
    train_labels, test_labels = labels
    sites = {(site, NO_DEPTH): (_own(trained.taps[name], spare), _own(tested.taps[name], asked))
             for site, name in (('tower', 'patches'), ('connector', 'connected'))}
    count = len(tested.taps['spots'])
    for k in range(count):
        depth = k / max(1, count - 1)
        sites['own patches', depth] = (_own(trained.taps['spots'][k], spare),
                                       _own(tested.taps['spots'][k], asked))
        sites['answer', depth] = trained.taps['answer'][k], tested.taps['answer'][k]
    probes = {}
    for (site, depth), (train_x, test_x) in sites.items():
        for name in (field,) if site == 'answer' else (key_of(field), field):
            probes[site, depth, name] = probe(
                train_x, [labels[name] for labels in train_labels], test_x,
                [labels[name] for labels in test_labels], seed)
    return probes


# --- levels -----------------------------------------------------------------------------------

def level(accuracy: float, chance: float) -> float:
    """Return an accuracy as a share of what there is above chance, between 0 and 1."""
    return float(np.clip((accuracy - chance) / max(1e-9, 1 - chance), 0, 1))


def levels(probes: dict[tuple[str, float, str], Probed], right: np.ndarray,
           chance: float) -> dict[str, float]:
    """Return {stage: what is left there, 0 to 1}, which never rises from stage to stage.

    What is carried is what the connector gives: later layers may move it to the answer's place.
    """
    def of(site, *names):
        return min(max(level(probed.hits.mean(), probed.chance)
                       for (at, _, name), probed in probes.items() if (at, name) == (site, wanted))
                   for wanted in names)
    field = next(name for site, _, name in probes if site == 'answer')
    # Where a patch lies is said by the place of its token, whatever it holds.
    both = (field,) if key_of(field) == 'cell' else (key_of(field), field)
    measured = {'encode': of('tower', *both), 'carry': of('connector', *both),
                'address': of('answer', field), 'read': level(right.mean(), chance)}
    # What is answered has got through all that lies before, whatever a linear probe makes of it.
    least = 0.0
    for stage in reversed(STAGES):
        least = measured[stage] = max(measured[stage], least)
    return measured


def losses(found: dict[str, float]) -> dict[str, float]:
    """Return {stage: what is lost there}; with what is read they sum to 1."""
    before = 1.0
    lost = {}
    for stage in STAGES:
        lost[stage] = before - found[stage]
        before = found[stage]
    return lost


def place(lost: dict[str, float]) -> str:
    """Return the stage that loses most, or 'nowhere'."""
    worst = max(STAGES, key=lambda stage: lost[stage])
    return worst if sum(lost.values()) > CLEAR else 'nowhere'


# --- a run ------------------------------------------------------------------------------------

def causal_ledger(study: PathLike, cell: Experiment, plan: CausalPlan,
                  report: Callable[[int, int], object] = lambda done, total: None) -> list[Row]:
    """Return the rows of the causal ledger of a run.

    ValueError in one line for a run that cannot be looked at in this way.
    """
    if cell.evaluation.benchmarks or not fields_of(cell.world):
        raise ValueError(f'{cell.name}: no family of its questions asks for a field of one object '
                         'of a made-up world, of which the ledger makes matched scenes')
    looker = Looker(study, cell)
    fields = fields_of(cell.world)
    total = len(fields) * len(CHANGES) * plan.pairs
    rows = []
    for number, field in enumerate(fields):
        done = number * len(CHANGES) * plan.pairs
        rows += _of_field(looker, cell, field, plan, lambda n, done=done: report(done + n, total))
    return [*rows, *_summary(cell.name, rows)]


def _of_field(looker, cell, field, plan, report):
    """Return the rows of one field."""
    start = cell.data.test
    by_change = {}
    for k, change in enumerate(CHANGES):
        scenes = [matched(pair(cell.world, 'test', start + n, field, change), cell)
                  for n in range(plan.pairs)]
        by_change[change], _ = interchange(looker, scenes,
                                           lambda n, k=k: report(k * plan.pairs + n))
    spare, asked = ([pair(cell.world, 'test', first + n, field) for n in range(count)]
                    for first, count in ((SPARE, plan.scenes), (start, plan.pairs)))
    trained, tested = (read(looker, items_of([scenes.base for scenes in side], len(side)))
                       for side in (spare, asked))
    labels = tuple([vars(scenes.asked) for scenes in side] for side in (spare, asked))
    probes = probes_of(trained, tested, [matched(scenes, cell) for scenes in spare],
                       [matched(scenes, cell) for scenes in asked], labels, plan.seed)
    return [*_probe_rows(cell.name, field, probes, asked, plan),
            *moved_rows(cell.name, field, by_change, plan),
            *_level_rows(cell.name, field, probes, by_change['asked'], asked)]


def _mean(values, clusters, plan, bounds=(-np.inf, np.inf)):
    return bootstrap.mean_ci(values, clusters, plan.bootstraps, plan.seed, bounds)


def _row(run, setting, field, what, x, note=''):
    return Row(table=run, setting=setting, family=field, what=what, value=x.value, low=x.low,
               high=x.high, n=x.n, clusters=x.clusters, method=x.method, note=note)


def named(site: str, depth: float) -> str:
    """Return a place in words."""
    return site if np.isnan(depth) else f'{site} {depth:.2g}'


def _probe_rows(run, field, probes, asked, plan):
    clusters = [scenes.base.scene_id for scenes in asked]
    rows = []
    for (site, depth, name), probed in probes.items():
        for what, hits in ((f'probe of {name}', probed.hits),
                           (f'probe of {name}, shuffled labels', probed.shuffled)):
            rows.append(_row(run, named(site, depth), field, what,
                             _mean(hits, clusters, plan, (0, 1)),
                             f'most frequent: {probed.chance:.2f}'))
    return rows


def moved_rows(run: str, field: str, by_change: dict[str, Moved], plan: CausalPlan) -> list[Row]:
    """Return the rows of interchanges: nats of the full swap, shares of it by place, controls."""
    rows = []
    for change, moved in by_change.items():
        clusters = [scenes.cluster for scenes in moved.pairs]
        rows.append(_row(run, f'full swap, {change}', field, 'nats',
                         _mean(moved.full, clusters, plan)))
        if change not in ('asked', 'question'):
            continue
        # A share of nothing would be one of noise.
        if not rows[-1].low > 0:
            continue
        resamples = bootstrap.resample(clusters, plan.bootstraps, plan.seed)
        for (site, depth), effect in moved.effects.items():
            value, draws = bootstrap.ratio(effect, moved.full, clusters, resamples)
            draws = draws[np.isfinite(draws)]
            low, high = np.quantile(draws, (.025, .975)) if len(draws) else (np.nan, np.nan)
            rows.append(Row(table=run, setting=f'{named(site, depth)}, {change}', family=field,
                            what='share of the full swap', value=value, low=low, high=high,
                            n=len(effect), clusters=len(set(clusters)),
                            method='bootstrap over scenes'))
    return rows


def _level_rows(run, field, probes, moved, asked):
    _, counts = np.unique([scenes.base.questions[0].answer for scenes in asked],
                          return_counts=True)
    found = levels(probes, moved.right, counts.max() / counts.sum())
    lost = losses(found)
    return [Row(table=run, setting=stage, family=field, what=what, value=values[stage],
                n=len(asked))
            for what, values in (('left', found), ('lost', lost)) for stage in STAGES]


def _summary(run, rows):
    """Return the mean over fields of what is left and lost, and the place where most is lost."""
    found: list[Row] = []
    lost: dict[str, float] = {}
    for what in ('left', 'lost'):
        for stage in STAGES:
            values = [row.value for row in rows if (row.setting, row.what) == (stage, what)]
            if what == 'lost':
                lost[stage] = float(np.mean(values))
            found.append(Row(table=run, setting=stage, family='macro', what=what,
                             value=float(np.mean(values)), n=len(values)))
    worst = place(lost)
    return [*found, Row(table=run, setting=worst, family='macro', what='place',
                        value=lost.get(worst, 0.0), n=len(rows))]


def over_seeds(cells: Sequence[Experiment], rows: Sequence[Row]) -> list[Row]:
    """Return the mean over seeds of what each size loses at each stage.

    From three seeds on it has an interval (t over seeds): another seed is another model.
    """
    seeds = {}
    for cell in cells:
        seeds.setdefault(cell.size, []).append(cell.name)
    means = []
    for size, names in seeds.items():
        for stage in STAGES:
            values = [row.value for row in rows if row.table in names and row.family == 'macro'
                      and (row.setting, row.what) == (stage, 'lost')]
            low = high = np.nan
            if len(values) >= FEW_SEEDS:
                half = (stats.t.ppf(.975, len(values) - 1) * np.std(values, ddof=1)
                        / np.sqrt(len(values)))
                low, high = np.mean(values) - half, np.mean(values) + half
            means.append(Row(table=f'{size}, mean over seeds', setting=stage, family='macro',
                             what='lost', value=float(np.mean(values)), low=low, high=high,
                             n=len(values), clusters=len(values), method='t over seeds',
                             seeds=len(values)))
    return means
