"""What is asked about the made-up world: questions, extractions, traces and what guessing earns.

A family is a function from a scene to everything it can ask there (`question_families.py`);
what guessing earns follows from that.
"""
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np

from downscale.data.records import Example, Extraction, Question, Trace
from downscale.data.scenes.facts import FACT_VALUES, facts
from downscale.data.scenes.question_families import ASKS, Draft
from downscale.data.scenes.world import (
    FAMILIES,
    FIELDS,
    SIZES,
    Object,
    Scene,
    World,
    box_text,
    caption,
    record,
    records,
)

# --- asking -----------------------------------------------------------------------------------

def questions_for(world: World, scene: Scene, rng: np.random.Generator,
                  families: Sequence[str] = FAMILIES, per_family: int = 1
                  ) -> tuple[Question, ...]:
    """Return up to `per_family` different questions of each family, of some perhaps none."""
    questions = []
    for family in families:
        if family == 'fact':
            questions += _fact_questions(world, scene.scene_id, rng, per_family)
            continue
        asks = ASKS[family](world, scene)
        for k, i in enumerate(rng.permutation(len(asks))[:per_family]):
            ask = asks[i]
            wording = _template(family, ask.text)
            # The answers of all questions that a guesser cannot tell from this one.
            peers = [peer.answer for peer in asks if _template(family, peer.text) == wording]
            near = sorted(set(peers)) if family not in ('compare', 'count') else []
            questions.append(question_of(
                ask, scene.scene_id, family, k, chance=informed_chance(family, peers),
                distractors=_distractors(world, family, ask, rng, near)))
    return tuple(questions)


SCORER = 'scene-1'   # the rule of `correct`, and its version
_NAMES = ('first', 'second', 'third')


def similarity_question(world: World, scenes: Sequence[Scene],
                        rng: np.random.Generator) -> Question:
    """Return which of two pictures differs less from the first.

    Objects match by shape (see `triple`).
    """
    # Edits move objects, so that reading order differs; the order of the first is kept in all.
    order = [obj.shape for obj in scenes[0].objects]
    first, second, third = [sorted(scene.objects, key=lambda obj: order.index(obj.shape))
                            for scene in scenes]
    second_steps, to_second = _compared(first, second, 'second')
    third_steps, to_third = _compared(first, third, 'third')
    ask = Draft(
        text='which is more like the first',
        answer='third' if to_third < to_second else 'second',
        information='look at all pictures',
        extraction=_named_records((first, second, third)),
        trace=f'{second_steps} {third_steps} ; second {to_second} third {to_third}',
    )
    return question_of(ask, scenes[0].scene_id, 'similarity', 0, chance=0.5,
                     distractors=_distractors(world, 'similarity', ask, rng, []))


def _compared(objects, others, name):
    """Return (the trace that compares two pictures, how many fields differ).

    Each object is told in the first picture and in that called `name`, and behind each field of
    `others` how many have differed so far.
    """
    steps = []
    count = 0
    for obj, other in zip(objects, others, strict=True):
        steps += ['first', record(obj), name, other.shape]
        for field in FIELDS[1:]:
            count += vars(obj)[field] != vars(other)[field]
            steps.append(f'{vars(other)[field]} {count}')
    return ' '.join(steps), count


def caption_of(scenes: Sequence[Scene]) -> str:
    """Return the exhaustive caption of one picture, or of three.

    Of three each record stands after its picture's name.
    """
    if len(scenes) == 1:
        return caption(scenes[0])
    return _named_records([scene.objects for scene in scenes])


def _named_records(pictures):
    """Return the records of the objects of three pictures, each after its picture's name."""
    texts = []
    for name, objects in zip(_NAMES, pictures, strict=True):
        texts += [f'{name} {records([obj])}' for obj in objects]
    return ' '.join(texts)


def informed_chance(family: str, peers: Sequence[str]) -> float:
    """Return the accuracy of the best single answer over `peers`, the answers of such questions.

    The guesser knows the scene and the wording, but not which object is asked about. A question
    that names its two candidates is never below 1/2.
    """
    floor = 0.5 if family in ('compare', 'relation') else 0.0
    return max(best_constant(family, peers) / len(peers), floor)


def _fact_questions(world, scene_id, rng, per_family):
    """Return up to `per_family` questions that no picture answers."""
    questions = []
    known = facts(world)
    for k, i in enumerate(rng.permutation(len(known))[:per_family]):
        fact = known[i]
        ask = Draft(text=fact.question, answer=fact.value, information='nothing to look at',
                    extraction='nothing', trace=fact.statement)
        # The cluster is the fact, not the picture, which has no part in the answer.
        questions.append(question_of(
            ask, scene_id, 'fact', k, chance=_fact_chance(world)[fact.relation],
            distractors=_distractors(world, 'fact', ask, rng, []), kind='knowledge',
            cluster_id=f'fact-{fact.entity}-{fact.relation}'))
    return questions


@functools.cache
def _fact_chance(world):
    """Return {relation: share of its most frequent value}."""
    values = defaultdict(Counter)
    for fact in facts(world):
        values[fact.relation][fact.value] += 1
    return {name: max(n.values()) / n.total() for name, n in values.items()}


def question_of(ask: Draft, scene_id: str, family: str, k: int = 0, *, chance: float = 0.0,
                distractors: tuple[str, ...] = (), kind: str = 'visual',
                cluster_id: str | None = None) -> Question:
    """Return the `Question` of a `Draft`, number `k` of its family about a scene."""
    extraction = Extraction(ask.information, ask.extraction)
    trace = Trace(ask.trace, ask.trace if ask.scan is None else ask.scan)
    return Question(
        item_id=f'{scene_id}/{family}/{k}', cluster_id=cluster_id or scene_id, family=family,
        kind=kind, text=ask.text, answer=ask.answer, distractors=distractors,
        chance=round(chance, 6), extraction=extraction, trace=trace)


def _distractors(world, family, ask, rng, near):
    """Return `distractors` of a question, its family's possible answers behind those of `near`."""
    return distractors(family, ask.answer, possible_answers(world, family, ask.text), near, rng)


def distractors(family: str, answer: str, possible: Sequence[str], near: Sequence[str],
                rng: np.random.Generator) -> tuple[str, ...]:
    """Return up to three wrong options: some of `near`, what the scene offers, then of `possible`.

    Of a count they are the nearest numbers.
    """
    # Draws come in this order: `rest` before `near`.
    rest = [possible[i] for i in rng.permutation(len(possible))]
    if family.startswith('count'):
        rest.sort(key=lambda value: abs(int(value) - int(answer)))
    wrong = []
    for option in [near[i] for i in rng.permutation(len(near))] + rest:
        if len(wrong) < 3 and option not in wrong and not correct(family, option, answer):
            wrong.append(option)
    return tuple(wrong)


# --- answers ----------------------------------------------------------------------------------

def possible_answers(world: World, family: str, text: str) -> tuple[str, ...]:
    """Return every answer that the wording of a question admits; for boxes one full cell each."""
    words = text.split()
    if family == 'attribute':
        return SIZES if words[1] == 'size' else world.colors
    if family == 'compare':
        return words[3], words[5]
    if family == 'fact':
        return tuple(FACT_VALUES[words[3]])
    if family == 'ground':
        edges = range(0, world.side, world.cell_px)
        return tuple(box_text(world, (x, y, x + world.cell_px, y + world.cell_px))
                     for y, x in product(edges, edges))
    return {'position': world.cells, 'content': world.shapes, 'read': world.chars,
            'count': tuple(str(n) for n in range(world.max_objects + 1)),
            'relation': ('yes', 'no'), 'similarity': ('second', 'third')}[family]


def correct(family: str, pred: str, gold: str) -> bool:
    """Return whether an answer is right: the same text, or a box that overlaps by at least 1/2.

    The overlap is the intersection over union. No text raises an error.
    """
    if family != 'ground':
        return pred.strip() == gold.strip()
    boxes = [_parse_box(pred), _parse_box(gold)]
    return None not in boxes and _iou(*boxes) >= 0.5


@functools.lru_cache(maxsize=100_000)
def _parse_box(text):
    """Return the four numbers of a written box, None where `text` is none."""
    # Short numbers only: `int` raises an error for thousands of digits.
    words = text.split()
    if len(words) != 4 or not all(w.isascii() and w.isdigit() and len(w) < 4 for w in words):
        return None
    x0, y0, x1, y1 = map(int, words)
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def _iou(box, other):
    """Return intersection over union of two boxes whose ends are inclusive, so no area is zero."""
    def area(x0, y0, x1, y1):
        return max(0, x1 - x0 + 1) * max(0, y1 - y0 + 1)
    shared = area(*map(max, box[:2], other[:2]), *map(min, box[2:], other[2:]))
    return shared / (area(*box) + area(*other) - shared)


def _template(family, text):
    """Return what a question's wording gives away without naming the thing asked about."""
    words = text.split()
    if len(words) <= 3:
        return ''
    return {'attribute': words[1], 'fact': words[3]}.get(family, '')


def baselines(world: World, examples: Iterable[Example]) -> dict[str, dict[str, float]]:
    """Return `guessers` of the questions of these examples."""
    return guessers(examples, _template, functools.partial(possible_answers, world))


def guessers(examples: Iterable[Example], wording: Callable[[str, str], str],
             possible: Callable[[str, str], Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return accuracies of four guessers per family, over the questions of these examples.

    informed: mean `Question.chance`. majority: the constant answer, one per wording, that is right
    most often. constant: one answer for the whole family. uniform: 1 / number of possible answers.
    n: number of questions. The highest of the first three is the floor (`analysis/floors.py`).
    Of a family and a question's text, `wording` tells what gives the thing asked about not away,
    and `possible` all answers that it admits.
    """
    asked = defaultdict(list)
    for example in examples:
        for question in example.questions:
            asked[question.family].append(question)
    return {family: _guessed(family, questions, wording, possible)
            for family, questions in asked.items()}


def _guessed(family, questions, wording, possible):
    """Return the accuracies of the four guessers over questions of one family."""
    groups = defaultdict(list)
    for question in questions:
        groups[wording(family, question.text)].append(question.answer)
    hits = sum(best_constant(family, golds) for golds in groups.values())
    same = best_constant(family, [question.answer for question in questions])
    uniform = [1 / len(possible(family, question.text)) for question in questions]
    informed = [question.chance for question in questions]
    n = len(questions)
    return {'informed': float(np.mean(informed)), 'majority': hits / n, 'constant': same / n,
            'uniform': float(np.mean(uniform)), 'n': n}


def best_constant(family: str, golds: Sequence[str]) -> int:
    """Return how many of these answers the best single answer hits."""
    tally = Counter(golds)
    if family != 'ground':
        return max(tally.values())
    # A box is right for others that overlap with it.
    hits = []
    for guess in tally:
        hits.append(sum(n for gold, n in tally.items() if correct(family, guess, gold)))
    return max(hits)


# --- text without pictures --------------------------------------------------------------------

def restatement(scene: Scene, rng: np.random.Generator,
                keys: Sequence[str] = ('shape', 'cell')) -> tuple[str, str]:
    """Return (prompt, target): the records of a scene in two orders and rotations.

    The prompt's records are written as in a caption; in the target each record begins with one of
    `keys` drawn for itself. Learning it teaches a text-only model to look records up by key.
    """
    def shuffled() -> list[Object]:
        return [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    prompt = records(shuffled())
    target = ' '.join(f'{record(obj, keys[int(rng.integers(len(keys)))])} ;' for obj in shuffled())
    return prompt, target
