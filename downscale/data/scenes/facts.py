"""Made-up facts, which no picture shows, and every word that the made-up world can utter."""
import functools
from dataclasses import dataclass

import numpy as np

from downscale.data.scenes.world import SIZES, UNITS, World, stream

FACT_VALUES = {relation: tuple(values.split()) for relation, values in {
    'home': 'delta harbor meadow canyon forest island valley desert tundra lagoon marsh prairie '
            'glacier village castle tower',
    'food': 'bread rice honey soup cheese apple plum bean corn fish cake nuts salt pear melon fig',
    'owner': 'anna bruno carla david elena felix greta hugo irene jonas klara lukas maria nils '
             'olga peter',
    'tool': 'hammer rope lamp needle spoon brush ladder shovel wheel chisel bucket basket saw '
            'broom knife kettle',
}.items()}
_TEMPLATE_WORDS = (
    'what is the of at where box how many things are which larger smaller or left right above '
    'below yes no does read more like first second third look all and pictures nothing to total '
    'cell size color shape char before after differs ; :')
_ONSETS = 'b bl br d dr f fl g gl gr k kr l m n p pl r s sk st t tr v w z'
_VOWELS = 'a e i o u'
_CODAS = 'b f k l m n p rb rk ss t x'


@dataclass(frozen=True)
class Fact:
    """One made-up fact; the entity exists nowhere but in `facts(world)`."""
    entity: str
    relation: str
    value: str

    @property
    def question(self) -> str:
        """What is asked for."""
        return f'what is the {self.relation} of {self.entity}'

    @property
    def statement(self) -> str:
        """The fact as a sentence."""
        return f'the {self.relation} of {self.entity} is {self.value}'


@functools.cache
def facts(world: World) -> tuple[Fact, ...]:
    """Return the `n_facts` facts of a world: entities x relations, values drawn uniformly.

    Entities are pronounceable, equal to no other word of the world, and in order: all relations
    of one entity follow each other.
    """
    rng = stream(world, 'facts')
    taken = set(_plain_words(world))
    relations = tuple(FACT_VALUES)
    drawn = []
    entity = ''
    for i in range(world.n_facts):
        relation = relations[i % len(relations)]
        # A new entity at the first of its relations.
        if relation == relations[0]:
            entity = new_word(rng, taken)
        values = FACT_VALUES[relation]
        drawn.append(Fact(entity, relation, values[int(rng.integers(len(values)))]))
    return tuple(drawn)


def new_word(rng: np.random.Generator, taken: set[str]) -> str:
    """Return a pronounceable word that is not `taken`, and put it there."""
    parts = [part.split() for part in (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS)]
    word = ''
    while not word or word in taken:
        word = ''.join(part[int(rng.integers(len(part)))] for part in parts)
    taken.add(word)
    return word


@functools.cache
def vocabulary(world: World) -> tuple[str, ...]:
    """Return every word that any text about this world can contain, sorted."""
    return tuple(sorted(_plain_words(world) | {fact.entity for fact in facts(world)}))


def _plain_words(world):
    """Return all words except entity names."""
    # Of boxes, counts and rows of cells.
    numbers = {str(n) for n in range(max(UNITS, world.max_objects, world.grid) + 1)}
    values = set().union(*FACT_VALUES.values())
    columns = {cell[0] for cell in world.cells}
    return {*_TEMPLATE_WORDS.split(), *FACT_VALUES, *values, *numbers, *columns, *world.cells,
            *SIZES, *world.shapes, *world.colors, *world.chars}
