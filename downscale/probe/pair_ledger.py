"""The causal ledger of matched pictures of one's own, for any model that sees.

Its numbers are those of `causal.py`. There is no other scene to train probes on: they are trained
on the pairs themselves, on the pictures before and after, and tested on pairs that were left out.
"""
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from downscale.analysis.measures import Row
from downscale.data.records import Example, Extraction, Question, Trace
from downscale.data.row_files import shown
from downscale.data.tiling import touched
from downscale.evaluate.answers import prompt_of
from downscale.probe import causal, linear
from downscale.probe.causal import CausalPlan
from downscale.probe.interchange import Matched, interchange, read
from downscale.probe.linear import items_at
from downscale.probe.pair_files import PicturePair
from downscale.probe.passes import Looker
from downscale.probe.readout import split

EACH = 24   # pictures that must have a label for probes to learn it
FOLDS = 5


def pair_ledger(looker: Looker, run: str, pairs: Sequence[PicturePair], plan: CausalPlan,
                report: Callable[[int, int], object] = lambda done, total: None
                ) -> tuple[list[Row], list[str]]:
    """Return (rows of the causal ledger of a model called `run`, what was left out of it and why).

    Of `plan` only resamples and seed are read. ValueError in one line for the first pair that this
    model cannot be asked.
    """
    matches = [matched(looker, pair) for pair in pairs]
    rows = []
    notes = []
    done = 0
    for field in dict.fromkeys(pair.field for pair in pairs):
        chosen = [k for k, pair in enumerate(pairs) if pair.field == field]
        part = [matches[k] for k in chosen]
        more, left_out = _of_field(looker, run, part, [pairs[k].key for k in chosen], plan,
                                   lambda n, done=done: report(done + n, len(pairs)))
        rows += more
        notes += [f'{run}, {field}: {note}' for note in left_out]
        done += len(part)
    return [*rows, *causal.summary(run, rows)], notes


# --- a pair as a model sees it ----------------------------------------------------------------

def matched(looker: Looker, pair: PicturePair) -> Matched:
    """Return a pair as a `Matched`; ValueError in one line where this model cannot be asked it."""
    layout = looker.encoder.layout
    assert layout.vision is not None  # only models that see are looked at
    own_J = touched(pair.boxes, pair.size, layout.vision, layout.pictures)
    if not own_J.any():
        raise ValueError(f'{pair.where}: the box lies at a border that the model does not see; '
                         f'its tiles are {layout.vision.image} pixels in patches of '
                         f'{layout.vision.patch}')
    base, source = (Example(scene_id=pair.cluster, images=(picture,), caption='',
                            questions=(_question(pair, answer),))
                    for picture, answer in zip(pair.pictures, pair.answers))
    _check_tokens(looker, pair)
    return Matched(field=pair.field, change=pair.change, base=base, source=source, own_J=own_J,
                   cluster=pair.cluster)


def _question(pair, answer):
    """Return the question of a pair with one of its answers."""
    return Question(item_id=pair.where, cluster_id=pair.cluster, family=pair.field, kind='visual',
                    text=pair.question, answer=answer, distractors=(), chance=0.0,
                    extraction=Extraction('', ''), trace=Trace('', ''))


def _check_tokens(looker, pair):
    """Raise ValueError where a model's tokenizer or context does not hold what a pair says."""
    encoder = looker.encoder
    texts = {'question': pair.question, 'answer_before': pair.answers[0],
             'answer_after': pair.answers[1]}
    ids = {name: encoder.ids(text) for name, text in texts.items()}
    # A tokenizer of words has one token for all that it does not know; of bytes it has none.
    unknown = getattr(encoder.tokenizer.model, 'unk_token', None)
    for name, tokens in ids.items():
        if unknown is not None and encoder.tokenizer.token_to_id(unknown) in tokens:
            raise ValueError(f'{pair.where}: {name} holds words that the tokenizer of this model '
                             'does not know')
    before, after = ids['answer_before'], ids['answer_after']
    if before == after and pair.answers[0] != pair.answers[1]:
        raise ValueError(f'{pair.where}: the two answers are the same tokens to this model')
    if encoder.stops & {*before, *after}:
        raise ValueError(f'{pair.where}: an answer holds a token that ends replies of this model')
    prompt = prompt_of(encoder, pair.question, pair.pictures[:1])
    needed = len(prompt.tokens) + max(len(before), len(after)) + 1
    if encoder.context and needed > encoder.context:
        raise ValueError(f'{pair.where}: needs {needed:,} tokens, the model was trained on '
                         f'{encoder.context:,} (max_position_embeddings); make the picture smaller '
                         'or the question shorter')


# --- one field --------------------------------------------------------------------------------

def _of_field(looker, run, pairs, keys, plan, report):
    """Return (rows of one field, what was left out of it and why)."""
    field = pairs[0].field
    # 1. What the answers hang on. Prompts of a pair are alike, so that none is left out.
    by_change = {}
    done = 0
    for change in dict.fromkeys(pair.change for pair in pairs):
        part = [pair for pair in pairs if pair.change == change]
        by_change[change], _ = interchange(looker, part, lambda n, done=done: report(done + n),
                                           pairs)
        done += len(part)
    moved = causal.moved_rows(run, field, by_change, plan)
    notes = _missing(by_change, moved)
    # 2. What a linear probe reads of either picture of a pair.
    asked = [pair for pair in pairs if pair.change == 'asked']
    examples = [*(pair.base for pair in asked), *(pair.source for pair in asked)]
    answers = [example.questions[0].answer for example in examples]
    clusters = [pair.cluster for pair in asked] * 2
    named = [key for key, pair in zip(keys, pairs) if pair.change == 'asked'] * 2
    labels, left_out = _labels(field, answers, named, clusters)
    right = np.concatenate([by_change['asked'].right, by_change['asked'].right_source])
    chance = linear.most_frequent(answers)
    probes = {}
    if labels:
        turned = [replace(pair, base=pair.source, source=pair.base) for pair in asked]
        seen = read(looker, [*asked, *turned])
        probes = _probed(seen, labels, field, clusters, plan.seed)
        left = causal.levels(probes, right, chance)
    else:
        left = {'read': causal.level(right.mean(), chance)}
    return [*causal.probe_rows(run, field, probes, clusters, plan), *moved,
            *causal.level_rows(run, field, left, len(answers))], [*notes, *left_out]


def _missing(by_change, moved):
    """Return what an interchange cannot tell of these pairs, in words."""
    notes = []
    full = next(row for row in moved if row.setting == 'full swap, asked')
    if not any(row.what == 'share of the full swap' for row in moved):
        notes.append(f'no shares by place: the full swap moves {full.value:.2f} nats, not clearly '
                     f'above {causal.STIRS} over {full.clusters} different pictures (fewer than 6 '
                     'never are)')
    if len(by_change) == 1:
        notes.append("no controls: pairs of change 'other' and 'nothing' say what moves where "
                     'nothing should')
    return notes


def _labels(field, answers, keys, clusters):
    """Return ({name: label of each picture} that probes can learn, what was left out and why).

    It is empty where there are too few pictures for probes of the answers.
    """
    few = _few(answers, clusters)
    if few:
        return {}, [f'no probes, so that nothing is told of encode, carry and address: {few}']
    if not any(keys):
        return {field: answers}, []
    few = 'some pairs have no key' if not all(keys) else _few(keys, clusters)
    if few:
        return {field: answers}, [f'no probes of the key: {few}']
    return {f'{field}, key': keys, field: answers}, []


def _few(labels, clusters):
    """Return why a probe cannot learn these labels, '' where it can."""
    counts = Counter(label for label, _ in set(zip(labels, clusters)))
    rarest = min(counts, key=lambda label: (counts[label], label))
    if counts[rarest] < EACH:
        return (f'{shown(rarest)!r} stands with {counts[rarest]} different pictures, of each label '
                f'{EACH} are needed')
    return '' if len(counts) > 1 else f'{shown(rarest)!r} is the only one'


def _probed(seen, labels, field, clusters, seed):
    """Return {(site, depth, label): `Probed`} of all pictures: each is tested by probes that have
    seen no pair of its own."""
    fold = split(np.array(clusters), FOLDS, seed)
    patches, answers = linear.own_sites(seen), linear.answer_sites(seen)
    wanted = {field: labels[field]}
    folds = []
    for k in np.unique(fold):
        # 1. Learn from all other folds, and 2. be asked about this one.
        train, test = fold != k, fold == k
        probes = (linear.fit_all(items_at(patches, train), items_at(labels, train), seed)
                  | linear.fit_all(items_at(answers, train), items_at(wanted, train), seed))
        folds.append(linear.score_all(probes, items_at(patches, test), items_at(labels, test))
                     | linear.score_all(probes, items_at(answers, test), items_at(wanted, test)))
    # Fold by fold stand the items that each has tested.
    order = np.argsort(np.argsort(fold, kind='stable'))
    return {key: linear.Probed(
        hits=np.concatenate([scored[key].hits for scored in folds])[order],
        shuffled=np.concatenate([scored[key].shuffled for scored in folds])[order],
        chance=linear.most_frequent(labels[key[2]])) for key in folds[0]}
