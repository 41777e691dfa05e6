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
from itertools import chain

import numpy as np
from scipy import stats

from downscale.analysis.measures import Row
from downscale.config import Experiment
from downscale.data.scenes.pairs import CHANGES, ScenePair, fields_of, pair
from downscale.probe.interchange import Moved, interchange, matched, read, things
from downscale.probe.linear import (
    Probed,
    answer_sites,
    find_all,
    fit_all,
    items_at,
    most_frequent,
    own_sites,
    score_all,
)
from downscale.probe.passes import Looker
from downscale.probe.readout import Site
from downscale.results.probes import NO_DEPTH
from downscale.results.text_kinds import CAPTION
from downscale.runtime.files import PathLike
from downscale.stage_table import WRITER
from downscale.statistics import bootstrap
from downscale.statistics.bootstrap import Column
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
    training = {field: _look(looker, cell, stage, _pairs(cell, field, SPARE, plan.scenes))
                for field in fields}
    probes, fewer = _of_patches(list(training.values()), plan.seed)
    each = len(changes) * plan.pairs
    rows = []
    for number, (field, seen) in enumerate(training.items()):
        of_answers = fit_all(seen.answers, seen.wanted(field), plan.seed)
        rows += _of_field(looker, cell, stage, field, changes, plan, probes | of_answers, fewer,
                          lambda n, number=number: report(number * each + n, len(fields) * each))
    return [*rows, *summary(cell.name, rows)]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Scenes with what a run holds of them: `patches` of every object, and `answers` of each."""
    pairs: list[ScenePair]
    patches: dict[Site, np.ndarray]
    answers: dict[Site, np.ndarray]

    def wanted(self, field: str) -> dict[str, Column]:
        """Return {field: that of each asked object}."""
        return _labels([scene.asked for scene in self.pairs], [field])


def _pairs(cell, field, start, count, change='asked'):
    """Return some `ScenePair`s of a field."""
    return [pair(cell.world, 'test', start + n, field, change) for n in range(count)]


def _look(looker, cell, stage, pairs):
    """Return pairs and what a run holds of the first scene of each."""
    seen = read(looker, [matched(scene, cell, stage) for scene in pairs],
                [things(scene, cell, stage) for scene in pairs])
    return _Seen(pairs=pairs, patches=own_sites(seen), answers=answer_sites(seen))


def _labels(objects, names):
    """Return {name: that field of each object}."""
    labels = {}
    for name in names:
        labels[name] = np.array([getattr(thing, name) for thing in objects])
    return labels


def _of_patches(training, seed):
    """Return (probes of patches, those of the tower from half the scenes).

    They learn from all objects of all scenes: what patches hold hangs on no question.
    """
    pairs = list(chain.from_iterable(seen.pairs for seen in training))
    names = {scene.field for scene in pairs}.union(*(scene.named for scene in pairs)) - {PLACE}
    labels = _labels(list(chain.from_iterable(scene.objects for scene in pairs)), sorted(names))
    sites = {}
    for site in training[0].patches:
        sites[site] = np.concatenate([seen.patches[site] for seen in training])
    half = slice(None, None, 2)
    return (fit_all(sites, labels, seed),
            fit_all({TOWER: sites[TOWER][half]}, items_at(labels, half), seed))


def _of_field(looker, cell, stage, field, changes, plan, probes, fewer, report):
    """Return the rows of one field; `fewer` are probes of the tower from half the scenes."""
    start = cell.data.test
    by_change = {}
    for k, change in enumerate(changes):
        scenes = _pairs(cell, field, start, plan.pairs, change)
        by_change[change], _ = interchange(
            looker, [matched(scene, cell, stage) for scene in scenes],
            lambda n, k=k: report(k * plan.pairs + n))
    seen = _look(looker, cell, stage, _pairs(cell, field, start, plan.pairs))
    scored = _scored(probes, seen, seen.patches, field)
    scored |= score_all(probes, seen.answers, seen.wanted(field))
    examples = [scene.base for scene in seen.pairs]
    left = level_rows(cell.name, field, levels(scored, by_change['asked'].right, most_frequent(
        [example.questions[0].answer for example in examples])), len(examples))
    # What the tower holds is the same for all that share it, and so is what a probe misses of it.
    rising = _rising(_scored(fewer, seen, {TOWER: seen.patches[TOWER]}, field), scored)
    left = [replace(row, note=rising) if row.setting == 'encode' else row for row in left]
    return [*probe_rows(cell.name, field, scored, [each.scene_id for each in examples], plan),
            *moved_rows(cell.name, field, by_change, plan), *left]


def _scored(probes, seen, sites, field):
    """Return {(site, depth, label): `Probed`} of the `field` of the asked objects, and of which
    object is named, where its place does not say so."""
    counts = [len(scene.objects) for scene in seen.pairs]
    asked = [scene.objects.index(scene.asked) for scene in seen.pairs]
    # The rows of the asked objects, among those of all.
    scored = score_all(probes, items_at(sites, np.cumsum([0, *counts])[:-1] + asked),
                       seen.wanted(field))
    if seen.pairs[0].named == (PLACE,):
        return scored
    words = [{name: getattr(scene.asked, name) for name in scene.named} for scene in seen.pairs]
    return scored | find_all(probes, sites, counts, asked, words)


def _rising(fewer, scored):
    """Return which probes have too few scenes, in words; '' where none has.

    `fewer` {place: `Probed` of a probe from half of the scenes}, `scored` the same from all.
    """
    told = []
    for key, few in fewer.items():
        half, whole = few.hits.mean(), scored[key].hits.mean()
        if whole - half > RISES:
            told.append(f'{key[2]} ({half:.2f} from half of the scenes, {whole:.2f} from all)')
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
