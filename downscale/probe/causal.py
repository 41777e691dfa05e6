"""The causal ledger of a run: at which place a small model loses what it is asked to see.

Four places lie between a picture and an answer: the tower ENCODES the asked object, the connector
and the layers CARRY it in the object's own patches, the answer's place ADDRESSES it there, and the
head READS it out. Probes of objects' own patches say what is carried (whether the object that is
named can be told from the others of its scene, and its value apart), a probe of the answer's place
whether it has arrived there, and interchanges between matched scenes (`interchange.py`) what the
answer really hangs on.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from downscale.analysis.measures import Row
from downscale.config import Experiment
from downscale.data.scenes.pairs import CHANGES, fields_of, pair
from downscale.probe.interchange import Moved, interchange, matched, read, things
from downscale.probe.linear import (
    Probed,
    answer_sites,
    find_all,
    fit_all,
    most_frequent,
    own_sites,
    score_all,
)
from downscale.probe.passes import Looker
from downscale.results.probes import NO_DEPTH
from downscale.results.text_kinds import CAPTION
from downscale.runtime.files import PathLike
from downscale.stage_table import WRITER
from downscale.statistics import bootstrap
from downscale.statistics.two_way import FEW_SEEDS

STAGES = ('encode', 'carry', 'address', 'read')
CLEAR = 0.1     # a run that has lost less than this share of its answers has lost them nowhere
SPARE = 100_000  # scenes from here on train probes, and nothing else
PLACE = 'cell'   # where an object lies is said by the places of its patches, whatever they hold
TOWER = ('tower', NO_DEPTH)
STIRS = 0.01    # nats, at least, of a full swap of which places have shares
RISES = 0.05    # of the items: what a probe gains from twice the scenes where it has too few


@dataclass(frozen=True, kw_only=True)
class CausalPlan:
    """How much is looked at: `pairs` of scenes a field and change, `scenes` a field for probes."""
    pairs: int = 96
    scenes: int = 320
    bootstraps: int = 2000
    seed: int = 0


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
    both = {name for site, _, name in probes if site == 'tower'}
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
                  report: Callable[[int, int], object] = lambda done, total: None,
                  stage: str = '') -> list[Row]:
    """Return the rows of the causal ledger of a run behind `stage`: by default what answers.

    Of a stage that writes, what is looked at is the first token of the right text that the asked
    field decides, behind the right tokens before it. ValueError in one line for a run that cannot
    be looked at in this way.
    """
    if cell.evaluation.benchmarks or not fields_of(cell.world):
        raise ValueError(f'{cell.name}: no family of its questions asks for a field of one object '
                         'of a made-up world, of which the ledger makes matched scenes; give it '
                         'pictures of your own with --data')
    looker = Looker(study, cell, stage)
    # All questions about one scene have one caption, so that no other question changes it.
    changes = [change for change in CHANGES if change != 'question' or stage != WRITER[CAPTION]]
    fields = fields_of(cell.world)
    # 1. Probes of patches, from all objects of all scenes: what they hold hangs on no question.
    training = {field: [pair(cell.world, 'test', SPARE + n, field) for n in range(plan.scenes)]
                for field in fields}
    held = {field: _read(looker, cell, stage, scenes) for field, scenes in training.items()}
    scenes = [one for field in fields for one in training[field]]
    names = ({*fields} | {name for one in scenes for name in one.named}) - {PLACE}
    labels = _labels([thing for one in scenes for thing in one.objects], sorted(names))
    parts = [own_sites(seen) for seen in held.values()]
    sites = {site: np.concatenate([part[site] for part in parts]) for site in parts[0]}
    probes = fit_all(sites, labels, plan.seed)
    fewer = fit_all({TOWER: sites[TOWER][::2]},
                    {name: label[::2] for name, label in labels.items()}, plan.seed)
    # 2. Field by field.
    each = len(changes) * plan.pairs
    rows = []
    for number, field in enumerate(fields):
        asked = _labels([one.asked for one in training[field]], [field])
        of_answers = fit_all(answer_sites(held[field]), asked, plan.seed)
        rows += _of_field(looker, cell, stage, field, changes, plan, probes | of_answers, fewer,
                          lambda n, number=number: report(number * each + n, len(fields) * each))
    return [*rows, *summary(cell.name, rows)]


def _read(looker, cell, stage, scenes):
    """Return what all objects of some `ScenePair`s and the places of their answers hold."""
    return read(looker, [matched(one, cell, stage) for one in scenes],
                [things(one, cell, stage) for one in scenes])


def _labels(objects, names):
    """Return {name: that field of each object}."""
    return {name: np.array([vars(thing)[name] for thing in objects]) for name in names}


def _of_field(looker, cell, stage, field, changes, plan, probes, fewer, report):
    """Return the rows of one field; `fewer` are probes of the tower from half the scenes."""
    by_change = {}
    for k, change in enumerate(changes):
        scenes = [pair(cell.world, 'test', cell.data.test + n, field, change)
                  for n in range(plan.pairs)]
        by_change[change], _ = interchange(
            looker, [matched(one, cell, stage) for one in scenes],
            lambda n, k=k: report(k * plan.pairs + n))
    scenes = [pair(cell.world, 'test', cell.data.test + n, field) for n in range(plan.pairs)]
    seen = _read(looker, cell, stage, scenes)
    sites = own_sites(seen)
    wanted = _labels([one.asked for one in scenes], [field])
    tried = _tried(probes, sites, scenes, wanted)
    tried |= score_all(probes, answer_sites(seen), wanted)
    answers = [one.base.questions[0].answer for one in scenes]
    left = level_rows(cell.name, field, levels(tried, by_change['asked'].right,
                                               most_frequent(answers)), len(answers))
    # What the tower holds is the same for all that share it, and so is what a probe misses of it.
    rising = _rising({name: (few, tried[*TOWER, name]) for (*_, name), few in
                      _tried(fewer, {TOWER: sites[TOWER]}, scenes, wanted).items()})
    left = [replace(row, note=rising) if row.setting == 'encode' else row for row in left]
    return [*probe_rows(cell.name, field, tried, [one.base.scene_id for one in scenes], plan),
            *moved_rows(cell.name, field, by_change, plan), *left]


def _tried(probes, sites, scenes, wanted):
    """Return {(site, depth, label): `Probed`} of what is `wanted` of the asked objects, and of
    which object is named, where its place does not say so."""
    counts = [len(one.objects) for one in scenes]
    asked = [one.objects.index(one.asked) for one in scenes]
    own = np.cumsum([0, *counts])[:-1] + asked
    tried = score_all(probes, {site: x[own] for site, x in sites.items()}, wanted)
    if scenes[0].named == (PLACE,):
        return tried
    words = [{name: vars(one.asked)[name] for name in one.named} for one in scenes]
    return tried | find_all(probes, sites, counts, asked, words)


def _rising(tried):
    """Return which probes have too few scenes, in words; '' where none has.

    `tried` {label: (`Probed` of a probe from half of the scenes, and from all)}.
    """
    told = [f'{name} ({few.hits.mean():.2f} from half of the scenes, {whole.hits.mean():.2f} from '
            'all)' for name, (few, whole) in tried.items()
            if whole.hits.mean() - few.hits.mean() > RISES]
    return f'less is lost than told: probes still rise, of {", ".join(told)}' if told else ''


def _mean(values, clusters, plan, bounds=(-np.inf, np.inf)):
    return bootstrap.mean_ci(values, clusters, plan.bootstraps, plan.seed, bounds)


def _row(run, setting, field, what, x, note=''):
    return Row(table=run, setting=setting, family=field, what=what, value=x.value, low=x.low,
               high=x.high, n=x.n, clusters=x.clusters, method=x.method, note=note)


def named(site: str, depth: float) -> str:
    """Return a place in words."""
    return site if np.isnan(depth) else f'{site} {depth:.2g}'


def probe_rows(run: str, field: str, probes: dict[tuple[str, float, str], Probed],
               clusters: Sequence[str], plan: CausalPlan) -> list[Row]:
    """Return the rows of probes and of their controls on shuffled labels."""
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
        # A share of nothing, or of next to nothing, would be one of noise.
        if not rows[-1].low > STIRS:
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


def level_rows(run: str, field: str, found: dict[str, float], count: int) -> list[Row]:
    """Return the rows of what is left and lost at each stage, of `count` items.

    Where not every stage was looked at, nothing is told to be lost anywhere.
    """
    lost = losses(found) if len(found) == len(STAGES) else {}
    return [Row(table=run, setting=stage, family=field, what=what, value=values[stage], n=count)
            for what, values in (('left', found), ('lost', lost)) for stage in values]


def summary(run: str, rows: Sequence[Row]) -> list[Row]:
    """Return the mean over fields of what is left and lost, and the place where most is lost.

    Fields whose probes were left out have a part only where no field has any.
    """
    probed = {row.family for row in rows if row.what == 'lost'}
    means: list[Row] = []
    for what in ('left', 'lost'):
        for stage in STAGES:
            values = [row.value for row in rows if (row.setting, row.what) == (stage, what)
                      and (row.family in probed or not probed)]
            if values:
                means.append(Row(table=run, setting=stage, family='macro', what=what,
                                 value=float(np.mean(values)), n=len(values)))
    lost = {row.setting: row.value for row in means if row.what == 'lost'}
    if not lost:
        return means
    worst = place(lost)
    return [*means, Row(table=run, setting=worst, family='macro', what='place',
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
            if not values:
                continue
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
