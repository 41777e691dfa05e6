"""Samples to look at: picture, question, gold, what each size wrote and answered."""
import base64
import hashlib
from html import escape

from downscale.analysis.measures import Missing, joint_cells

PICTURE_BYTES, TOTAL_BYTES = 150_000, 3_000_000
PER_CLASS = 6
TEXT_LENGTH = 400
CLASSES = {'lost': 'Right at the largest size, wrong at the smallest',
           'wrong': 'Wrong at every size', 'right': 'Right at every size'}


def samples(s):
    """Up to `PER_CLASS` samples of each class, spread over families; equal for equal studies."""
    study, answers = s.study, _answers(s)
    if not answers:
        raise Missing('no model was asked with the picture, so there are no answers to show')
    sizes = list(answers)
    shared = set.intersection(*(set(found) for found in answers.values()))
    written = _written(s)
    picked = {name: [] for name in CLASSES}
    for item in sorted(shared, key=lambda item: hashlib.sha256(item.encode()).hexdigest()):
        rows = [answers[size][item] for size in sizes]
        right = [bool(study.items['score'][row] > .5) for row in rows]
        kind = 'right' if all(right) else 'wrong' if not any(right) else \
            'lost' if right[-1] and not right[0] else None
        if kind:
            picked[kind].append((study.items['task'][rows[0]], item, rows, right))
    budget, result = [TOTAL_BYTES], {}
    for kind, found in picked.items():
        chosen = _spread(found)
        result[kind] = [_sample(study, task, item, sizes, rows, right, written, budget)
                        for task, item, rows, right in chosen]
    return result


def _answers(s):
    """First-repeat answer rows of the lowest-seed run of each size: size -> item -> row."""
    answers = {}
    for size in s.sizes:
        cells = joint_cells(s, size, 'image')
        if cells:
            index = s.study.cells[cells[0]]
            repeat = s.study.items['repeat'][index]
            index = index[repeat == repeat.min()]
            answers[size.name] = dict(zip(s.study.items['item_id'][index], index, strict=True))
    return answers


def _written(s):
    """What each size wrote about an item: item -> [(size, kind, text)], extractions first."""
    home = {run: (place, size.name) for place, size in enumerate(s.sizes) for run in size.runs}
    texts, found = s.study.texts, {}
    columns = (texts[name] for name in ('item_id', 'p_run', 'text_kind', 'text', 'question'))
    for item, run, kind, text, question in sorted(zip(*columns, strict=True)):
        if run in home:
            by_size = found.setdefault(item, {'question': question, 'texts': {}})['texts']
            # sorted rows put 'caption' before 'extraction' within a run: the later one stays
            if by_size.get(home[run], (run,))[0] == run:
                by_size[home[run]] = (run, kind, text)
    return found


def _spread(found):
    """One of each family in turn until there are enough."""
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


def _sample(study, task, item, sizes, rows, right, written, budget):
    items, about = study.items, written.get(item, {'question': '', 'texts': {}})
    pictures, note = _pictures(study.root, items['cluster_id'][rows[0]], budget)
    return {
        'item_id': item, 'family': task, 'gold': items['gold'][rows[0]],
        'question': about['question'], 'pictures': pictures, 'picture_note': note,
        'texts': [{'size': size, 'kind': kind, 'text': text}
                  for (_, size), (_, kind, text) in sorted(about['texts'].items())],
        'answers': [{'size': size, 'pred': items['pred'][row], 'right': fine}
                    for size, row, fine in zip(sizes, rows, right, strict=True)]}


def _pictures(root, cluster, budget):
    """Pictures of a cluster as data addresses, within the size caps, and why any is left out."""
    found, k = [], 0
    folder = (root / 'pictures').resolve()
    while (path := folder / f'{cluster}-{k}.png').is_file() and path.resolve().parent == folder:
        size = path.stat().st_size
        if size > PICTURE_BYTES or size > budget[0]:
            return found, 'picture left out (size cap)'
        budget[0] -= size
        found.append('data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode())
        k += 1
    return found, '' if found else 'no picture saved'


def cards(result):
    """The samples as HTML, all text escaped; right and wrong have marks as well as colours."""
    parts = []
    for kind, title in CLASSES.items():
        parts.append(f'<h3>{title}</h3>')
        if not result[kind]:
            parts.append('<p class="soft">No such question.</p>')
        parts.append('<div class="cards">' + ''.join(map(_card, result[kind])) + '</div>')
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
