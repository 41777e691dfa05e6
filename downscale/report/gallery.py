"""Samples to look at: picture, question, gold, what each size wrote and answered."""
import base64
import hashlib
from html import escape
from typing import Any

from downscale.analysis import grids, measures
from downscale.analysis.flips import PREFERRED
from downscale.analysis.measures import Missing, Scored, joint_cells
from downscale.statistics.shapley import CLASSES, class_of

PICTURE_BYTES = 150_000
TOTAL_BYTES = 3_000_000
PER_CLASS = 4
TEXT_LENGTH = 400
# By the four pairs of smallest and largest sizes (attribution.CLASSES), or without pairs by the
# models that see and answer.
TITLES = {
    'perception loss': 'Perception loss: wrong as soon as the small model looks',
    'reasoning loss': 'Reasoning loss: wrong as soon as the small model reasons',
    'both': 'Both: wrong when either model is small',
    'lost only when both are small': 'Wrong only when both models are small',
    'recovered': 'Recovered: right with small models, wrong with large ones',
    'right everywhere': 'Right with every pair',
    'right only in a mixed pair': 'Right only with one small and one large model',
    'wrong everywhere': 'Wrong with every pair',
    'lost': 'Right at the largest size, wrong at the smallest',
    'wrong': 'Wrong at every size', 'right': 'Right at every size'}
JOINT = ('lost', 'wrong', 'right')


def samples(s: Scored) -> dict[str, Any]:
    """Return {class: up to `PER_CLASS` samples}, spread over families; equal for equal studies."""
    answers = _answers(s)
    pairs = _pairs(s)
    if not answers and not pairs:
        raise Missing('no model was asked with the picture, so there are no answers to show')
    study = s.study
    picked = {name: [] for name in (CLASSES if pairs else JOINT)}
    shared = set.intersection(*(set(found) for found in (pairs or answers).values()))

    def order(item):
        row = next(iter((pairs or answers).values()))[item]
        return (not _path(study.root, study.items['cluster_id'][row], 0).is_file(),
                hashlib.sha256(item.encode()).hexdigest())
    for item in sorted(shared, key=order):
        rows = {name: found[item] for name, found in (pairs or answers).items()}
        right = [bool(study.items['score'][row] > .5) for row in rows.values()]
        kind = class_of(*right) if pairs else 'right' if all(right) else 'wrong' \
            if not any(right) else 'lost' if right[-1] and not right[0] else None
        if kind:
            picked[kind].append((study.items['task'][next(iter(rows.values()))], item))
    budget = [TOTAL_BYTES]
    written = _written(s)
    return {kind: [_sample(study, task, item, {**answers, **pairs}, written, budget)
                   for task, item in _spread(found)] for kind, found in picked.items()}


def _pairs(s):
    """Answer rows of the four pairs of ends: {name: item -> row}, as `class_of` takes them.

    Of the lowest seed, and of the first of `PREFERRED` that has all four; empty without.
    """
    for kind, mode in PREFERRED:
        try:
            found = grids.corners(s, measures.pair_groups(s, kind, measures.MODES[mode]))
        except Missing:
            continue
        cells = next(iter(found.seeds.values()))
        p = found.perception
        r = found.reasoner
        return {f'{p[a]} → {r[b]} ({kind}, {mode})': _first_rows(s, cells[a, b])
                for a, b in ((1, 1), (0, 1), (1, 0), (0, 0))}
    return {}


def _first_rows(s, cell):
    """Return item -> row of the first repeat of a cell."""
    index = s.study.cells[cell]
    repeat = s.study.items['repeat'][index]
    index = index[repeat == repeat.min()]
    return dict(zip(s.study.items['item_id'][index], index, strict=True))


def _answers(s):
    """Return first-repeat answer rows of the lowest-seed run of each size: size -> item -> row."""
    groups = {size.name: joint_cells(s, size, 'image') for size in s.sizes}
    return {name: _first_rows(s, cells[0]) for name, cells in groups.items() if cells}


def _written(s):
    """Return what each size wrote about an item: item -> [(size, kind, text)], extractions
    first.
    """
    home = {run: (place, size.name) for place, size in enumerate(s.sizes) for run in size.runs}
    texts = s.study.texts
    found = {}
    columns = (texts[name] for name in ('item_id', 'p_run', 'text_kind', 'text', 'question'))
    for item, run, kind, text, question in sorted(zip(*columns, strict=True)):
        if run in home:
            by_size = found.setdefault(item, {'question': question, 'texts': {}})['texts']
            # sorted rows put 'caption' before 'extraction' within a run: the later one stays
            if by_size.get(home[run], (run,))[0] == run:
                by_size[home[run]] = (run, kind, text)
    return found


def _spread(found):
    """Return one of each family in turn until there are enough."""
    by_family = {}
    for entry in found:
        by_family.setdefault(entry[0], []).append(entry)
    chosen = []
    while by_family and len(chosen) < PER_CLASS:
        for family in sorted(by_family):
            if len(chosen) < PER_CLASS:
                chosen.append(by_family[family].pop(0))
        by_family = {family: rest for family, rest in by_family.items() if rest}
    return chosen


def _sample(study, task, item, answers, written, budget):
    items = study.items
    about = written.get(item, {'question': '', 'texts': {}})
    rows = {name: found[item] for name, found in answers.items() if item in found}
    one = next(iter(rows.values()))
    pictures, note = _pictures(study.root, items['cluster_id'][one], budget)
    return {
        'item_id': item, 'family': task, 'gold': items['gold'][one],
        'question': about['question'], 'pictures': pictures, 'picture_note': note,
        'texts': [{'size': size, 'kind': kind, 'text': text}
                  for (_, size), (_, kind, text) in sorted(about['texts'].items())],
        'answers': [{'size': name, 'pred': items['pred'][row],
                     'right': bool(items['score'][row] > .5)} for name, row in rows.items()]}


def _path(root, cluster, k):
    """Return the picture `k` of a cluster, as `evaluate.run.save_pictures` names it."""
    return root / 'pictures' / f'{cluster.replace("/", "_")}-{k}.png'


def _pictures(root, cluster, budget):
    """Return pictures of a cluster as data addresses, within the size caps, and why any is left
    out.
    """
    found = []
    k = 0
    while (path := _path(root, cluster, k)).is_file():
        size = path.stat().st_size
        if size > PICTURE_BYTES or size > budget[0]:
            return found, 'picture left out (size cap)'
        budget[0] -= size
        found.append('data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode())
        k += 1
    return found, '' if found else 'no picture saved'


def cards(result: Any) -> str:
    """Return the samples as HTML, all text escaped; right and wrong have marks as well as
    colours.
    """
    parts = []
    for kind, found in result.items():
        parts.append(f'<h3>{TITLES[kind]}</h3>')
        if not found:
            parts.append('<p class="soft">No such question.</p>')
        parts.append('<div class="cards">' + ''.join(map(_card, found)) + '</div>')
    return ''.join(parts)


def _card(sample):
    images = ''.join(f'<img src="{escape(address)}" alt="picture {k}">'
                     for k, address in enumerate(sample['pictures']))
    note = f'<div class="soft">{escape(sample["picture_note"])}</div>'
    question = escape(sample['question']) or '<span class="soft">question not saved</span>'
    answers = ''.join(
        f'<dt>{escape(a["size"])}<dd class="{"good" if a["right"] else "bad"}">'
        f'{"✓" if a["right"] else "✗"} {_short(a["pred"])}' for a in sample['answers'])
    texts = ''.join(f'<dt>{escape(t["size"])}<dd>{_short(t["text"])}' for t in sample['texts'])
    if texts:
        kinds = '/'.join(sorted({t['kind'] for t in sample['texts']}))
        texts = f'<details><summary>{escape(kinds)} by size</summary><dl>{texts}</dl></details>'
    return (f'<div class="card">{images}{note if sample["picture_note"] else ""}'
            f'<div class="soft">{escape(sample["family"])}</div><div class="q">{question}</div>'
            f'<dl><dt>gold<dd>{_short(sample["gold"])}{answers}</dl>{texts}</div>')


def _short(text):
    cut = text if len(text) <= TEXT_LENGTH else text[:TEXT_LENGTH] + ' …'
    return escape(cut) or '<span class="soft">(empty)</span>'
