"""What is asked about the made-up world: questions, extractions, traces and what guessing earns.

Every text is words separated by single spaces, so a word-level tokenizer reads it (`vocabulary`).
A family is a function from a scene to everything it can ask there; informed chance follows.
"""
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from downscale.data.records import Example, Extraction, Question, Trace
from downscale.data.scenes.facts import FACT_VALUES, facts, vocabulary  # noqa: F401 (offered here too)
from downscale.data.scenes.world import (
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

_DIRECTIONS = {'left of': (0, 'before'), 'right of': (0, 'after'),
               'above': (1, 'before'), 'below': (1, 'after')}


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """One askable question before it gets an identity, options and a chance level."""
    text: str
    answer: str
    information: str
    extraction: str
    trace: str
    scan: str | None = None  # None: the same as `trace`


# --- the families: every question that can be asked about one scene ---------------------------

def _attribute(world, scene):
    asks = []
    for obj in scene.objects:
        shown = records([obj], 'shape')
        for field in ('color', 'size'):
            value = vars(obj)[field]
            asks.append(
                _Ask(
                    text=f'what {field} is the {obj.shape}',
                    answer=value,
                    information=f'look at the {obj.shape}',
                    extraction=shown,
                    trace=f'{shown} {field} {value}',
                )
            )
    return asks


def _one_object(text, answer_field, key):
    """Return a family that asks for one field of the object named by its field `key`."""
    def asks(world, scene):
        found = []
        for k, obj in enumerate(scene.objects):
            name = vars(obj)[key]
            answer = vars(obj)[answer_field]
            shown = records([obj], key)
            the = name if key == 'cell' else f'the {name}'
            # A record is found by its first field; for another, things are told until it is met.
            told = ' '.join(f'{one.shape} {vars(one)[key]}' for one in scene.objects[:k + 1])
            decides = f'{answer_field} {answer}'
            found.append(
                _Ask(
                    text=text.format(the),
                    answer=answer,
                    information=f'look at {the}',
                    extraction=shown,
                    trace=f'{shown} {decides}',
                    scan=None if key == FIELDS[0] else f'{told} ; {decides}',
                )
            )
        return found
    return asks


def _ground(world, scene):
    asks = []
    for obj in scene.objects:
        box = box_text(world, obj.box)
        shown = record(obj, 'shape')
        asks.append(
            _Ask(
                text=f'box of the {obj.shape}',
                answer=box,
                information=f'look at the {obj.shape}',
                extraction=f'{shown} box {box} ;',
                trace=f'{shown} ; box {box}',
            )
        )
    return asks


def _count(world, scene):
    """Return every value that occurs, and one that does not, so that 0 is neither absent nor
    common.
    """
    asks = []
    values = [('size', size) for size in SIZES] + [('color', color) for color in world.colors]
    found = {value: [obj for obj in scene.objects if vars(obj)[field] == value]
             for field, value in values}
    absent = [value for _, value in values if not found[value]]
    # Which of the absent values is asked must not depend on the order of the colours.
    spare = absent[sum(map(ord, scene.scene_id)) % len(absent)] if absent else None
    for field, value in values:
        if not found[value] and value != spare:
            continue
        shown = records(found[value], field) or f'no {value} things ;'
        asks.append(_Ask(text=f'how many things are {value}', answer=str(len(found[value])),
                         information=f'look at all {value} things', extraction=shown,
                         trace=_counted(found[value], field, value),
                         scan=_counted(scene.objects, field, value)))
    return asks


def _counted(objects, field, value):
    """Return each object, its `field` and how many have had `value` so far; then how many do."""
    steps = []
    total = 0
    for obj in objects:
        total += vars(obj)[field] == value
        steps.append(f'{obj.shape} {vars(obj)[field]} {total}')
    return ' '.join([*steps, f'; total {total}'])


def _compare(world, scene):
    asks = []
    for one, other in _pairs(scene):
        if one.size == other.size:
            continue
        shown = records([one, other], 'shape')
        steps = ' '.join(f'{obj.shape} {obj.cell} {obj.size}' for obj in (one, other))
        for word, size in (('larger', 'large'), ('smaller', 'small')):
            answer = one.shape if one.size == size else other.shape
            asks.append(
                _Ask(
                    text=f'which is {word} {one.shape} or {other.shape}',
                    answer=answer,
                    information=f'look at the {one.shape} and the {other.shape}',
                    extraction=shown,
                    trace=f'{steps} ; {size} {answer}',
                )
            )
    return asks


def _relation(world, scene):
    asks = []
    for one, other in _pairs(scene):
        shown = records([one, other], 'shape')
        for direction, (axis, wanted) in _DIRECTIONS.items():
            here = one.cell[axis]
            there = other.cell[axis]
            if here == there:
                continue
            order = 'before' if here < there else 'after'
            asks.append(
                _Ask(
                    text=f'is the {one.shape} {direction} the {other.shape}',
                    answer='yes' if order == wanted else 'no',
                    information=f'look at the {one.shape} and the {other.shape}',
                    extraction=shown,
                    trace=f'{one.shape} {one.cell} {other.shape} {other.cell} ; '
                    f'{here} {order} {there}',
                )
            )
    return asks


def _pairs(scene):
    return [(one, other) for one in scene.objects for other in scene.objects if one != other]


ASKS = {
    'attribute': _attribute,
    'position': _one_object('where is {}', 'cell', 'shape'),
    'content': _one_object('what is at {}', 'shape', 'cell'),
    'ground': _ground,
    'count': _count,
    'compare': _compare,
    'relation': _relation,
    'read': _one_object('what does {} read', 'char', 'shape'),
}
SCENE_FAMILIES = (*ASKS, 'fact')
FAMILIES = (*SCENE_FAMILIES, 'similarity')


# --- asking -----------------------------------------------------------------------------------

def questions_for(world: World, scene: Scene, rng: np.random.Generator,
                  families: Sequence[str] = SCENE_FAMILIES, per_family: int = 1
                  ) -> tuple[Question, ...]:
    """Up to `per_family` different questions of each family; a family may have none to ask."""
    questions = []
    for family in families:
        if family == 'fact':
            questions += _fact_questions(world, scene.scene_id, rng, per_family)
            continue
        asks = ASKS[family](world, scene)
        for k, i in enumerate(rng.permutation(len(asks))[:per_family]):
            wording = _template(family, asks[i].text)
            peers = [ask.answer for ask in asks if _template(family, ask.text) == wording]
            questions.append(_question(world, scene.scene_id, family, k, asks[i], rng, peers,
                                       chance=informed_chance(family, peers)))
    return tuple(questions)


_NAMES = ('first', 'second', 'third')


def similarity_question(world: World, scenes: Sequence[Scene],
                        rng: np.random.Generator) -> Question:
    """Return which of two pictures differs less from the first; objects match by shape (see
    `triple`).
    """
    order = [obj.shape for obj in scenes[0].objects]
    first, *others = [sorted(scene.objects, key=lambda obj: order.index(obj.shape))
                      for scene in scenes]
    steps, counts = zip(*(_compared(first, objects, name)
                          for name, objects in zip(_NAMES[1:], others, strict=True)), strict=True)
    ask = _Ask(text='which is more like the first', answer=_NAMES[1 + int(counts[1] < counts[0])],
               information='look at all pictures', extraction=_named_records((first, *others)),
               trace=f'{" ".join(steps)} ; second {counts[0]} third {counts[1]}')
    return _question(world, scenes[0].scene_id, 'similarity', 0, ask, rng, [], chance=0.5)


def _compared(objects, others, name):
    """Return each object in the first picture and in that of this `name`, with how many fields have
    differed so far after each; and how many do."""
    steps = []
    count = 0
    for one, other in zip(objects, others, strict=True):
        steps += ['first', record(one), name, other.shape]
        for field in FIELDS[1:]:
            count += vars(one)[field] != vars(other)[field]
            steps.append(f'{vars(other)[field]} {count}')
    return ' '.join(steps), count


def caption_of(scenes: Sequence[Scene]) -> str:
    """Return the exhaustive caption of one picture, or of three, each record after its picture's
    name.
    """
    if len(scenes) == 1:
        return caption(scenes[0])
    return _named_records([scene.objects for scene in scenes])


def _named_records(pictures):
    return ' '.join(f'{name} {records([obj])}'
                    for name, objects in zip(_NAMES, pictures, strict=True) for obj in objects)


def informed_chance(family: str, peers: Sequence[str]) -> float:
    """Return how often the best single answer is right over `peers`, the answers of all such
    questions.

    The guesser knows the scene and the wording, but not which object is asked about. A question
    that names its two candidates is never below 1/2.
    """
    floor = 0.5 if family in ('compare', 'relation') else 0.0
    return max(_best_constant(family, peers) / len(peers), floor)


def _fact_questions(world, scene_id, rng, per_family):
    questions = []
    known = facts(world)
    for k, i in enumerate(rng.permutation(len(known))[:per_family]):
        fact = known[i]
        ask = _Ask(
            text=fact.question,
            answer=fact.value,
            information='nothing to look at',
            extraction='nothing',
            trace=fact.statement,
        )
        questions.append(_question(world, scene_id, 'fact', k, ask, rng, [],
                                   chance=_fact_chance(world)[fact.relation], kind='knowledge',
                                   cluster_id=f'fact-{fact.entity}-{fact.relation}'))
    return questions


@functools.cache
def _fact_chance(world):
    values = defaultdict(Counter)
    for fact in facts(world):
        values[fact.relation][fact.value] += 1
    return {name: max(n.values()) / n.total() for name, n in values.items()}


def _question(world, scene_id, family, k, ask, rng, peers, *, chance, kind='visual',
              cluster_id=None):
    return Question(
        item_id=f'{scene_id}/{family}/{k}', cluster_id=cluster_id or scene_id, family=family,
        kind=kind, text=ask.text, answer=ask.answer,
        distractors=_distractors(world, family, ask, rng, peers), chance=round(chance, 6),
        extraction=Extraction(ask.information, ask.extraction),
        trace=Trace(ask.trace, ask.trace if ask.scan is None else ask.scan))


def _distractors(world, family, ask, rng, peers):
    """Up to three wrong options: first what the scene itself offers, then whatever is possible."""
    possible = possible_answers(world, family, ask.text)
    near = sorted(set(peers)) if family not in ('compare', 'count') else []
    rest = [possible[i] for i in rng.permutation(len(possible))]
    if family == 'count':
        rest.sort(key=lambda value: abs(int(value) - int(ask.answer)))
    wrong = []
    for option in [near[i] for i in rng.permutation(len(near))] + rest:
        if len(wrong) < 3 and option not in wrong and not correct(family, option, ask.answer):
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
                     for y in edges for x in edges)
    return {'position': world.cells, 'content': world.shapes, 'read': world.chars,
            'count': tuple(str(n) for n in range(world.max_objects + 1)),
            'relation': ('yes', 'no'), 'similarity': ('second', 'third')}[family]


def correct(family: str, pred: str, gold: str) -> bool:
    """Return equal text, or for boxes an intersection over union of at least 1/2; never raises."""
    if family != 'ground':
        return pred.strip() == gold.strip()
    boxes = [_parse_box(pred), _parse_box(gold)]
    return None not in boxes and _iou(*boxes) >= 0.5


@functools.lru_cache(maxsize=100_000)
def _parse_box(text):
    words = text.split()
    if len(words) != 4 or not all(w.isascii() and w.isdigit() and len(w) < 4 for w in words):
        return None
    x0, y0, x1, y1 = map(int, words)
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def _iou(one, other):
    """Return intersection over union of two boxes whose ends are inclusive, so no area is zero."""
    def area(x0, y0, x1, y1):
        return max(0, x1 - x0 + 1) * max(0, y1 - y0 + 1)
    shared = area(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return shared / (area(*one) + area(*other) - shared)


def _template(family, text):
    """Return what a question's wording gives away without naming the thing asked about."""
    words = text.split()
    return {'attribute': words[1], 'fact': words[3]}.get(family, '') if len(words) > 3 else ''


def baselines(world: World, examples: Iterable[Example]) -> dict[str, dict[str, float]]:
    """Return accuracies of four guessers per family, over the questions of these examples.

    informed: mean `Question.chance`. majority: the constant answer, one per wording, that is right
    most often. constant: one answer for the whole family. uniform: 1 / number of possible answers.
    n: number of questions. The highest of the first three is the floor (`analysis/floors.py`).
    """
    asked = defaultdict(list)
    for example in examples:
        for question in example.questions:
            asked[question.family].append(question)
    result = {}
    for family, questions in asked.items():
        groups = defaultdict(list)
        for question in questions:
            groups[_template(family, question.text)].append(question.answer)
        hits = sum(_best_constant(family, golds) for golds in groups.values())
        uniform = [1 / len(possible_answers(world, family, q.text)) for q in questions]
        result[family] = {'informed': float(np.mean([q.chance for q in questions])),
                          'majority': hits / len(questions),
                          'constant': _best_constant(family, [q.answer for q in questions])
                          / len(questions), 'uniform': float(np.mean(uniform)),
                          'n': len(questions)}
    return result


def _best_constant(family, golds):
    """Return how many of these answers the best single answer hits."""
    tally = Counter(golds)
    if family != 'ground':
        return max(tally.values())
    return max(sum(n for gold, n in tally.items() if correct(family, guess, gold))
               for guess in tally)


# --- text without pictures --------------------------------------------------------------------

def restatement(scene: Scene, rng: np.random.Generator,
                keys: Sequence[str] = ('shape', 'cell')) -> tuple[str, str]:
    """Return (prompt, target): the records of a scene in one order, and in another with other
    rotations.

    The prompt's records are written as in a caption; in the target each record begins with one of
    `keys` drawn for itself. Learning it teaches a text-only model to look records up by key.
    """
    def shuffled() -> list[Object]:
        return [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    prompt = records(shuffled())
    target = ' '.join(f'{record(obj, keys[int(rng.integers(len(keys)))])} ;' for obj in shuffled())
    return prompt, target
