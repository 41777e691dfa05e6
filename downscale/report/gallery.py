"""Samples to look at: picture, question, gold, what each size wrote and answered."""
import hashlib
from typing import Any

from downscale.analysis import grids, measures
from downscale.analysis.flips import PREFERRED
from downscale.analysis.measures import Missing, Scored, joint_cells
from downscale.output import page
from downscale.report.item_links import NO_ITEMS, ItemLinks
from downscale.statistics.shapley import CLASSES, class_of

PICTURE_BYTES = 150_000
TOTAL_BYTES = 3_000_000
PER_CLASS = 4
TEXT_LENGTH = 400
SHORT = 120        # letters of a text on a small card
PAIR = ' → '       # between the sizes of a pair, where a name is that of a pair
# By the four pairs of smallest and largest sizes (`shapley.CLASSES`), or without pairs by the
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
    first = pairs or answers  # {name: item -> row}; classes are told by pairs, where there are any
    picked = {name: [] for name in (CLASSES if pairs else JOINT)}
    shared = set.intersection(*map(set, first.values()))
    rows_of = next(iter(first.values()))

    def order(item):
        # Items with a picture first, then as their hash falls: no family or size is preferred.
        cluster = study.items['cluster_id'][rows_of[item]]
        return (not _path(study.root, cluster, 0).is_file(),
                hashlib.sha256(item.encode()).hexdigest())
    for item in sorted(shared, key=order):
        right = [bool(study.items['score'][rows[item]] > .5) for rows in first.values()]
        kind = class_of(*right) if pairs else _joint_class(right)
        if kind:
            picked[kind].append((study.items['task'][rows_of[item]], item))
    budget = [TOTAL_BYTES]
    written = _written(s)
    shown = {}
    for kind, items in picked.items():
        shown[kind] = [_sample(study, task, item, {**answers, **pairs}, written, budget)
                       for task, item in _spread(items)]
    return shown


def _joint_class(right):
    """Return the class of an item by who had it `right`, smallest size first; None of a mixture."""
    if all(right):
        return 'right'
    if not any(right):
        return 'wrong'
    return 'lost' if right[-1] and not right[0] else None


def _pairs(s):
    """Return {name: item -> answer row} of the four pairs of ends, in the order of `class_of`.

    They are of the lowest seed, and of the first of `PREFERRED` that has all four; empty without.
    """
    for kind, mode in PREFERRED:
        try:
            corners = grids.corners(s, measures.pair_groups(s, kind, measures.MODES[mode]))
        except Missing:
            continue
        cells = next(iter(corners.seeds.values()))
        p = corners.perception
        r = corners.reasoner
        return {f'{p[a]}{PAIR}{r[b]} ({kind}, {mode})': _first_rows(s, cells[a, b])
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
    """Return what each size wrote: item -> {'question', 'texts': {size: (run, kind, text)}}."""
    home = {}  # run: (place of its size, name of its size)
    for place, size in enumerate(s.sizes):
        home |= dict.fromkeys(size.runs, (place, size.name))
    texts = s.study.texts
    written = {}
    columns = (texts[name] for name in ('item_id', 'p_run', 'text_kind', 'text', 'question'))
    for item, run, kind, text, question in sorted(zip(*columns, strict=True)):
        if run in home:
            by_size = written.setdefault(item, {'question': question, 'texts': {}})['texts']
            # sorted rows put 'caption' before 'extraction' within a run: the later one stays
            if by_size.get(home[run], (run,))[0] == run:
                by_size[home[run]] = (run, kind, text)
    return written


def _spread(entries):
    """Return some of (family, item): one of each family in turn until there are enough."""
    by_family = {}
    for entry in entries:
        by_family.setdefault(entry[0], []).append(entry)
    chosen = []
    while by_family and len(chosen) < PER_CLASS:
        for family in sorted(by_family):
            if len(chosen) < PER_CLASS:
                chosen.append(by_family[family].pop(0))
        by_family = {family: rest for family, rest in by_family.items() if rest}
    return chosen


def _sample(study, task, item, answers, written, budget):
    """Return what a card shows of one item; `budget` are the bytes of pictures that are left."""
    items = study.items
    about = written.get(item, {'question': '', 'texts': {}})
    rows = {name: index[item] for name, index in answers.items() if item in index}
    first = next(iter(rows.values()))
    pictures, note = _pictures(study.root, items['cluster_id'][first], budget)
    texts = [{'size': size, 'kind': kind, 'text': text}
             for (_, size), (_, kind, text) in sorted(about['texts'].items())]
    replies = [{'size': name, 'pred': items['pred'][row], 'right': bool(items['score'][row] > .5)}
               for name, row in rows.items()]
    return {'item_id': item, 'family': task, 'gold': items['gold'][first],
            'question': about['question'], 'pictures': pictures, 'picture_note': note,
            'texts': texts, 'answers': replies}


def _path(root, cluster, k):
    """Return the picture `k` of a cluster, as `evaluate.run.save_pictures` names it."""
    return root / 'pictures' / f'{cluster.replace("/", "_")}-{k}.png'


def _pictures(root, cluster, budget):
    """Return (pictures of a cluster as data addresses, within the size caps, why any is left out).
    """
    addresses = []
    while (path := _path(root, cluster, len(addresses))).is_file():
        size = path.stat().st_size
        if size > PICTURE_BYTES or size > budget[0]:
            return addresses, 'picture left out (size cap)'
        budget[0] -= size
        addresses.append(page.picture_address(path.read_bytes()))
    return addresses, '' if addresses else 'no picture saved'


def cards(result: Any, links: ItemLinks = NO_ITEMS) -> str:
    """Return the samples as HTML, all text escaped; classes and questions lead to their items."""
    parts = []
    for kind, found in result.items():
        address = links.of_class(kind) if found else ''
        parts.append(f'<h3>{page.link(address, TITLES[kind])}</h3>')
        if not found:
            parts.append('<p class="soft">No such question.</p>')
        parts.append(page.cards(_card(sample, links) for sample in found))
    return ''.join(parts)


def choose(result: dict[str, Any], most: int) -> list[tuple[str, dict[str, Any]]]:
    """Return up to `most` (class, sample): of every class in turn, with a picture and a question.
    """
    queues = {}
    for kind in TITLES:
        good = [sample for sample in result.get(kind, ()) if sample['pictures']]
        asked = [sample for sample in good if sample['question']]
        if good:
            queues[kind] = list(asked or good)
    chosen = []
    families = set()
    while len(chosen) < most and any(queues.values()):
        for kind in [kind for kind, queue in queues.items() if queue]:
            # A family that no card is of comes first.
            sample = min(queues[kind], key=lambda sample: sample['family'] in families)
            queues[kind].remove(sample)
            families.add(sample['family'])
            chosen.append((kind, sample))
    return chosen[:most]


def small_cards(chosen: list[tuple[str, dict[str, Any]]], links: ItemLinks = NO_ITEMS) -> str:
    """Return samples as cards with what every size answered by itself and wrote for a reasoner.

    A class of pairs stands on no card: with the answers of single models beside it, it would seem
    to contradict them.
    """
    return page.cards(_small_card(TITLES[kind] if kind in JOINT else '', sample, links)
                      for kind, sample in chosen)


def _small_card(title, sample, links):
    """Return one sample as HTML: picture, question, gold, then a row a size."""
    texts = {text['size']: text['text'] for text in sample['texts']}
    rows = ''
    for answer in sample['answers']:
        if PAIR not in answer['size']:
            rows += _answer(answer)
            text = texts.get(answer['size'])
            if text:
                rows += f'<div class="soft">wrote “{page.cut(text, SHORT)}”</div>'
    gold = page.terms([('gold', _short(sample['gold']))])
    body = f'{_question(sample, links)}<dl>{gold}{rows}</dl>'
    if title:
        body += f'<div class="soft">{page.escape(title)}</div>'
    return page.card(_images(sample), sample['family'], body)


def _card(sample, links):
    """Return one sample as HTML: what was asked, what is right, what each size answered and wrote.
    """
    answers = page.terms([('gold', _short(sample['gold']))]) + ''.join(map(_answer,
                                                                           sample['answers']))
    texts = page.terms((text['size'], _short(text['text'])) for text in sample['texts'])
    if texts:
        kinds = '/'.join(sorted({text['kind'] for text in sample['texts']}))
        texts = page.details(f'{kinds} by size', f'<dl>{texts}</dl>')
    return page.card(_images(sample), sample['family'],
                     f'{_question(sample, links)}<dl>{answers}</dl>{texts}')


def _images(sample):
    """Return the pictures of a sample as HTML, or why there is none."""
    images = ''.join(f'<img src="{page.escape(address)}" alt="picture {k}">'
                     for k, address in enumerate(sample['pictures']))
    if sample['picture_note']:
        images += f'<div class="soft">{page.escape(sample["picture_note"])}</div>'
    return images


def _question(sample, links):
    """Return the question of a sample as HTML, which leads to all that was written about it."""
    question = page.escape(sample['question']) or '<span class="soft">question not saved</span>'
    return f'<div class="q">{page.link(links.item(sample["item_id"]), question)}</div>'


def _answer(answer):
    """Return one answer as HTML; right and wrong have marks as well as colours."""
    kind, mark = ('good', '✓') if answer['right'] else ('bad', '✗')
    return (f'<dt>{page.escape(answer["size"])}<dd class="{kind}">{mark} '
            f'{_short(answer["pred"])}')


def _short(text):
    """Return escaped text, cut, and something to see where there is none."""
    return page.cut(text, TEXT_LENGTH) or '<span class="soft">(empty)</span>'
