"""`synth`: a study that nobody trained, with effects that are known, to check the analysis with.

Answers are right with a probability that is chance plus a share of the rest, and the share is a
logistic function of a logit. The logit adds what is planted for sizes, texts and thinking, and
normal draws for pictures (questions of one picture move together), questions and training seeds.
"""
import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import expit

from downscale.accounting import totals
from downscale.analysis.planted.files import write_folder
from downscale.results.items import ITEMS, TEXTS
from downscale.results.study import Cell, study_of
from downscale.results.text_kinds import CAPTION, EXTRACTION
from downscale.sizes import MICRO, SIGLIP, scale

# (width, depth), by ascending parameters.
SIZES = ((32, 2), (64, 2), (64, 4), (96, 4), (128, 4), (160, 6), (192, 6), (256, 8))
# How much of a family the picture decides; 0 is a knowledge family.
RELIANCE = {'attribute': 1., 'position': .85, 'relation': .7, 'read': .55, 'count': .4,
            'compare': .25, 'fact': 0., 'origin': 0.}
# The logit of a family before anything is lost or gained.
EASE = {'attribute': 2.2, 'position': 2., 'relation': 1.6, 'read': 2.2, 'count': 1.8,
        'compare': 1.5, 'fact': 2., 'origin': 1.7}
CHANCE = .25
KINDS = (CAPTION, EXTRACTION)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What is planted; effects are in log-odds, and a size is `down` from 0 (largest) to 1.

    perception: lost with the smallest perception, by a family that relies on the picture
    alone. reasoner: lost in all families with the smallest reasoner. interaction: lost
    beyond both. extraction: gained over captions. thinking: gained by the largest reasoner, and
    nothing by the smallest. joint: gained by one model that sees and answers. blind: lost without
    the picture, times reliance. tokens: length of extractions over that of captions. picture, item
    and seed are standard deviations. The loss law is E + A / N^alpha + B / tokens^beta, with log
    standard deviation `noise` between runs.
    """
    perception: float = 2.
    reasoner: float = 1.
    interaction: float = .6
    extraction: float = .5
    thinking: float = .8
    joint: float = -.6
    blind: float = 2.5
    tokens: float = 1.
    picture: float = .8
    item: float = .6
    seed: float = .1
    E: float = 1.2
    A: float = 30.
    alpha: float = .35
    B: float = 300.
    beta: float = .4
    noise: float = .003


NOTHING = Planted(perception=0., reasoner=0., interaction=0., extraction=0., thinking=0., joint=0.)


@dataclass(frozen=True)
class Synthetic:
    """A study (its `folder`, or None) and the truth behind it.

    `truth` holds 'accuracy' {Cell of sizes: {family: expected share}}, 'drop' and 'shares' (of the
    macro mean), 'claims' {name of a contrast: effect} and 'law' {parameter: value}.
    """
    study: object
    folder: Path | None
    truth: dict


@dataclass(frozen=True, kw_only=True)
class Design:
    """Who answers what: sizes and seeds, and questions as columns.

    `ladder` maps all `SIZES` to their models, `models` those that answer.
    """
    ladder: dict
    models: dict
    seeds: int
    items: dict
    planted: Planted

    @property
    def down(self) -> dict[str, float]:
        """How far below the largest each size is, in shares of the log of all sizes."""
        logs = np.log([totals(language, SIGLIP['micro'])['n_nonembed']
                       for language in self.models.values()])
        return dict(zip(self.models, (logs[-1] - logs) / (logs[-1] - logs[0]), strict=True))


def synth(seed: int = 0, to: Path | str | bool | None = None, *, sizes: int = 4, seeds: int = 3,
          items: int = 800, planted: Planted | None = None, full: bool | None = None) -> Synthetic:
    """Return a `Synthetic` study: `sizes` x `seeds` runs that answer `items` questions on pictures.

    With `to`, the folder holds the files of a real study folder; True makes a temporary one.
    Without, the study is in memory only, without curves and stages. `full` pairs all sizes of
    perception and reasoner (default: with a folder), else only the ends and equal sizes.
    """
    if not 2 <= sizes <= len(SIZES) or seeds < 1 or items < 2 * len(RELIANCE):
        raise ValueError(f'synth needs 2 to {len(SIZES)} sizes, a seed and {2 * len(RELIANCE)} '
                         f'items, not {sizes}, {seeds} and {items}')
    rng = np.random.default_rng(seed)
    planted = planted or Planted()
    # The ends are always among them, the others evenly between.
    places = np.linspace(0, len(SIZES) - 1, sizes).round().astype(int)
    ladder = {f'w{width}d{depth}': scale(MICRO['w64d2'], width, depth, 320)
              for width, depth in SIZES}
    names = list(ladder)
    models = {names[place]: ladder[names[place]] for place in places}
    design = Design(ladder=ladder, models=models, seeds=seeds, items=_items(rng, items, planted),
                    planted=planted)
    # Items, answers, texts, files: a seed means the same study as long as this order stays.
    evaluations = _answer(rng, design, to is not None if full is None else full)
    texts = _texts(rng, design)
    meta = _meta(design, seed)
    truth = _truth(design)
    if to is None:
        study = study_of(Path(), meta, list(evaluations.values()), list(texts.values()), {}, (), {},
                         f'synthetic {seed}')
        return Synthetic(study, None, truth)
    # pyrefly: ignore[bad-argument-type]
    folder = Path(tempfile.mkdtemp(prefix='synth-') if to is True else to)
    study = write_folder(folder, rng, design, meta, evaluations, texts)
    return Synthetic(study, folder, truth)


def _items(rng, count, planted):
    """Return the questions as columns: one of every family about each picture in turn."""
    place = np.arange(count) % len(RELIANCE)
    task = np.array(list(RELIANCE))[place]
    picture = np.arange(count) // len(RELIANCE)
    reliance = np.array(list(RELIANCE.values()))[place]
    # One draw a picture, for all of its questions: they move together.
    luck = (planted.picture * rng.standard_normal(picture.max() + 1)[picture]
            + planted.item * rng.standard_normal(count))
    words = np.array(['red', 'blue', 'left', 'two'])
    return {'task': task, 'luck': luck, 'reliance': reliance,
            'ease': np.array(list(EASE.values()))[place],
            'category': np.where(reliance > 0, 'visual', 'knowledge'),
            'item_id': np.array([f'{name}-{k:05d}' for name, k in zip(task, picture)]),
            'cluster_id': np.array([f'scene{k:05d}' for k in picture]),
            'gold': words[rng.integers(len(words), size=count)]}


def logit(planted: Planted, down: Mapping[str, float], cell: Cell, reliance: np.ndarray,
          ease: np.ndarray) -> np.ndarray:
    """Return the planted logit of a `Cell` of sizes, without luck and seeds."""
    p = down.get(cell.p_run, 0)
    r = down.get(cell.r_run, 0)
    # A joint model is small on both sides at once.
    if not cell.r_run:
        lost = planted.perception * reliance * p + planted.reasoner * p
        lost = lost + planted.interaction * reliance * p * p - planted.joint
        return ease - lost - (planted.blind * reliance if cell.condition == 'blind' else 0)
    lost = planted.perception * reliance * p + planted.reasoner * r
    lost = lost + planted.interaction * reliance * p * r
    thought = ease - lost + planted.thinking * (1 - r) * cell.thinking
    if not cell.p_run:
        return thought + .5   # a gold text loses nothing, and says more than a caption
    return thought + planted.extraction * (cell.text_kind == 'extraction')


def _cells(sizes, full):
    """Return cells with sizes in place of runs; pairs are `full`, or the ends and equal sizes."""
    cells = [Cell(p, '', '', False, condition)
             for p, condition in itertools.product(sizes, ('image', 'blind'))]
    ends = {sizes[0], sizes[-1]}
    pairs = [(p, r) for p, r in itertools.product(sizes, sizes)
             if full or p == r or sizes[-1] in (p, r) or {p, r} <= ends]
    for kind in KINDS:
        for thinking in (False, True):
            cells += [Cell('', r, kind, thinking, 'gold_text') for r in sizes]
            cells += [Cell(p, r, kind, thinking, 'image') for p, r in pairs]
    return cells


def _answer(rng, design, full):
    """Return {name of an evaluation: its items table}, as a study names them."""
    items = design.items
    tables = {}
    cells = _cells(list(design.models), full)
    for seed in range(design.seeds):
        # Each trained stage has its own draw: joint, two writers, two ways of answering.
        stages = itertools.product(design.models, ('', *KINDS, False, True))
        drawn = {stage: design.planted.seed * rng.standard_normal() for stage in stages}
        for cell in cells:
            odds = logit(design.planted, design.down, cell, items['reliance'], items['ease'])
            odds = odds + items['luck']
            if cell.p_run:
                odds = odds + drawn[cell.p_run, cell.text_kind]
            if cell.r_run:
                odds = odds + drawn[cell.r_run, cell.thinking]
            share = CHANCE + (1 - CHANCE) * expit(odds)
            name = f'{"reason" if cell.r_run else "joint"}-{cell.r_run or cell.p_run}-s{seed}'
            tables.setdefault(name, []).append(_table(rng, cell, seed, name, items, share))
    return {name: pa.concat_tables(parts) for name, parts in tables.items()}


def _table(rng, cell, seed, name, items, share):
    """Return the items table of one cell, whose answers are right with probability `share`."""
    count = len(share)
    right = rng.random(count) < share
    thought = rng.integers(20, 40, count) if cell.thinking else np.zeros(count, int)
    # '' stays '': nobody has written a gold text, and no reasoner reads for a joint model.
    p_run = cell.p_run and f'{cell.p_run}-s{seed}'
    same = {'eval_id': '/'.join((name, p_run, cell.text_kind, str(cell.thinking), cell.condition)),
            'p_run': p_run, 'r_run': cell.r_run and f'{cell.r_run}-s{seed}',
            'text_kind': cell.text_kind, 'condition': cell.condition, 'thinking': cell.thinking,
            'close': 'natural' if cell.thinking else '', 'finish': 'stop', 'truncated': False,
            'parse_ok': True, 'repeat': 0, 'chance': CHANCE, 'prompt_hash': 'synthetic',
            'data_hash': 'synthetic'}
    columns = {key: np.full(count, value) for key, value in same.items()}
    columns |= {key: items[key] for key in ('task', 'category', 'item_id', 'cluster_id', 'gold')}
    columns |= {'score': right.astype(float), 'nll_gold': -np.log(share),
                # A wrong reply is the gold of no question: no constant answer gains by it.
                'pred': np.where(right, items['gold'], 'other'), 'n_think_tokens': thought,
                'n_gen_tokens': thought + 3}
    return pa.table({key: pa.array(columns[key], ITEMS.field(key).type) for key in ITEMS.names},
                    schema=ITEMS)


def _texts(rng, design):
    """Return {name of an evaluation: its texts table}: what every perception run wrote."""
    tables = {}
    for size in design.models:
        for seed in range(design.seeds):
            for kind in KINDS:
                tables[f'{kind}-{size}-s{seed}'] = _texts_table(rng, design, size, seed, kind)
    return tables


def _texts_table(rng, design, size, seed, kind):
    """Return the texts of one kind of one run: a line about each question."""
    tasks = design.items['task']
    count = len(tasks)
    factor = design.planted.tokens if kind == 'extraction' else 1
    return pa.table({
        'item_id': design.items['item_id'],
        'p_run': [f'{size}-s{seed}'] * count,
        'text_kind': [kind] * count,
        'question': [f'What {task} is it?' for task in tasks],
        'prompt': ['describe'] * count,
        'text': [f'{size} writes a {kind} about {task}' for task in tasks],
        'n_tokens': (factor * rng.integers(30, 50, count)).astype(int),
        'truncated': [False] * count}, schema=TEXTS)


def _meta(design, seed):
    runs = []
    for size, language in design.models.items():
        facts = {'size': size, 'width': language.D, 'depth': language.N}
        runs += [{'run_id': f'{size}-s{k}', **facts, 'seed': k,
                  **totals(language, SIGLIP['micro'])} for k in range(design.seeds)]
    informed = {'informed': CHANCE, 'majority': CHANCE, 'uniform': CHANCE}
    return {'name': 'synthetic', 'seed': seed, 'config_hash': f'synthetic {seed}', 'runs': runs,
            'data': {'baselines': dict.fromkeys(RELIANCE, informed), 'image_px': 80}}


def _truth(design):
    """Return expected shares of every cell of sizes, and the effects that follow from them."""
    sizes = list(design.models)
    accuracy = {cell: _expected(design, cell) for cell in _cells(sizes, True)}
    largest, smallest = (accuracy[Cell(size, '', '', False, 'image')]
                         for size in (sizes[-1], sizes[0]))
    drop = {task: largest[task] - smallest[task] for task in RELIANCE}
    law = {name: getattr(design.planted, name) for name in ('E', 'A', 'alpha', 'B', 'beta')}
    return {'accuracy': accuracy, 'drop': drop, 'shares': _true_shares(accuracy, sizes),
            'claims': _true_claims(accuracy, sizes, drop), 'law': law}


def _expected(design, cell):
    """Return {family: expected share} of a cell: the mean over luck and seeds, which are normal."""
    planted = design.planted
    # The mean of a logistic function of a normal variable has no closed form: Gauss-Hermite.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    # As in `_answer`: every stage that takes part brings a draw of its own.
    stages = bool(cell.p_run) + bool(cell.r_run)
    sd = np.sqrt(planted.picture ** 2 + planted.item ** 2 + stages * planted.seed ** 2)
    expected = {}
    for task in RELIANCE:
        centre = logit(planted, design.down, cell, RELIANCE[task], EASE[task])
        mean = float(expit(centre + sd * nodes) @ weights / weights.sum())
        expected[task] = CHANCE + (1 - CHANCE) * mean
    return expected


def _mean(accuracy, cell, tasks):
    return float(np.mean([accuracy[cell][task] for task in tasks]))


def _true_shares(accuracy, sizes):
    """Return the Shapley shares of thinking pairs on extractions, of the mean over families."""
    corner = {}
    for p in (0, -1):
        for r in (0, -1):
            cell = Cell(sizes[p], sizes[r], 'extraction', True, 'image')
            corner[p, r] = _mean(accuracy, cell, RELIANCE)
    # Of two factors a share is the mean of what each adds as the first and as the last.
    straight = corner[-1, -1] - corner[0, 0]
    p_alone = corner[-1, 0] - corner[0, 0]
    r_alone = corner[0, -1] - corner[0, 0]
    return {'perception': (straight - (corner[0, -1] - corner[-1, 0])) / 2,
            'reasoner': (straight - (corner[-1, 0] - corner[0, -1])) / 2,
            'interaction': straight - p_alone - r_alone}


def _true_claims(accuracy, sizes, drop):
    """Return {name of a contrast: effect}, over the families that rely on the picture."""
    visual = [task for task, share in RELIANCE.items() if share > 0]
    knowledge = [task for task in drop if task not in visual]

    def joint(size):
        return _mean(accuracy, Cell(size, '', '', False, 'image'), visual)

    def pair(p, r, kind='extraction', thinking=True):
        return _mean(accuracy, Cell(p, r, kind, thinking, 'image'), visual)
    small = sizes[0]
    large = sizes[-1]
    gains = [pair(size, large) - pair(size, large, 'caption') for size in sizes]
    chains = [pair(size, size) - joint(size) for size in sizes]
    visual_drop = np.mean([drop[task] for task in visual])
    knowledge_drop = np.mean([drop[task] for task in knowledge])
    perception = pair(large, small) - pair(small, large)
    thinking = pair(large, large) - pair(large, large, thinking=False)
    return {'visual_minus_knowledge': float(visual_drop - knowledge_drop),
            'perception_minus_reasoning': perception,
            'extraction_minus_caption': float(np.mean(gains)), 'thinking': thinking,
            'chain_minus_joint': float(np.mean(chains))}
