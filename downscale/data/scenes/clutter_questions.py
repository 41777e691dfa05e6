"""Questions about the cluttered world, the answers that are possible, and what guessing earns."""
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from downscale.data.records import Example, Question
from downscale.data.scenes.clutter_facts import NOISES, NOTHING, knowledge
from downscale.data.scenes.clutter_families import ASKS
from downscale.data.scenes.clutter_table import CHAINS, KNOWLEDGE, NAMES
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.facts import FACT_VALUES
from downscale.data.scenes.question_families import Draft
from downscale.data.scenes.questions import best_constant, distractors, guessers, question_of
from downscale.data.scenes.world import SIZES, Scene, box_text


def questions_for(world: Clutter, scene: Scene, rng: np.random.Generator,
                  families: Sequence[str] = NAMES, per_family: int = 1) -> tuple[Question, ...]:
    """Return up to `per_family` different questions of each family, of some perhaps none."""
    questions = []
    for family in families:
        make = _fact_questions if family in KNOWLEDGE else _scene_questions
        questions += make(world, scene, family, rng, per_family)
    return tuple(questions)


def _scene_questions(world, scene, family, rng, per_family):
    """Return up to `per_family` questions of a family that the picture answers."""
    questions = []
    asks = ASKS[family](world, scene)
    # A guesser that knows the scene cannot tell these from one another.
    peers = [ask.answer for ask in asks]
    for k, i in enumerate(rng.permutation(len(asks))[:per_family]):
        chance = best_constant(family, peers) / len(peers)
        near = sorted(set(peers))
        # A question that names its two candidates offers no more.
        if family == 'compare':
            chance = max(chance, 0.5)
            near = []
        questions.append(question_of(
            asks[i], scene.scene_id, family, k, chance=chance,
            distractors=_distractors(world, family, asks[i], rng, near)))
    return questions


def _fact_questions(world, scene, family, rng, per_family):
    """Return up to `per_family` questions of a family that no picture answers."""
    questions = []
    asked = [known for known in knowledge(world).asked if known.family == family]
    for k, i in enumerate(rng.permutation(len(asked))[:per_family]):
        fact = asked[i].fact
        ask = Draft(text=fact.question, answer=fact.value, information='nothing to look at',
                    extraction=NOTHING, trace=asked[i].trace)
        # The cluster is the fact, not the picture, which has no part in the answer.
        cluster = f'{family}-{fact.entity.replace(" ", "-")}-{fact.relation}'
        chance = _chance(world)[family, fact.relation]
        questions.append(question_of(
            ask, scene.scene_id, family, k, chance=chance, cluster_id=cluster, kind='knowledge',
            distractors=_distractors(world, family, ask, rng, [])))
    return questions


@functools.cache
def _chance(world):
    """Return {(family, relation): share of the most frequent value among what is asked}."""
    values = defaultdict(Counter)
    for known in knowledge(world).asked:
        values[known.family, known.fact.relation][known.fact.value] += 1
    return {name: max(n.values()) / n.total() for name, n in values.items()}


def _distractors(world, family, ask, rng, near):
    """Return up to three wrong options of a question."""
    return distractors(family, ask.answer, possible_answers(world, family, ask.text), near, rng)


def possible_answers(world: Clutter, family: str, text: str) -> tuple[str, ...]:
    """Return every answer that a question admits; for boxes, a large thing at each place."""
    words = text.split()
    if family in KNOWLEDGE:
        return NOISES if words[3] == 'noise' else FACT_VALUES[words[3]]
    if family == 'compare':
        # 'which is larger the NAME or the NAME': a name ends in its shape.
        return words[words.index('or') - 1], words[-1]
    if family == 'ground':
        width = world.large_px
        edges = range(0, world.side - width + 1, world.side // world.grid)
        return tuple(box_text(world, (x, y, x + width, y + width))
                     for y, x in product(edges, edges))
    if family in CHAINS:
        return world.colors
    if family.startswith('count'):
        return tuple(str(n) for n in range(world.max_objects + 1))
    return {'color': world.colors, 'size': SIZES, 'read': world.chars, 'position': world.cells,
            'content': world.shapes, 'nearest': world.shapes}.get(family, ('yes', 'no'))


def baselines(world: Clutter, examples: Iterable[Example]) -> dict[str, dict[str, float]]:
    """Return `questions.guessers` of the questions of these examples."""
    return guessers(examples, _wording, functools.partial(possible_answers, world))


def _wording(family, text):
    """Return what a question gives away without the thing asked about: a fact's relation."""
    return text.split()[3] if family in KNOWLEDGE else ''
