"""What is to be known in the cluttered world, how often it is told, and every word of that world.

Four kinds: a relation that is told ('held'), one that is told seldom ('rare'), a relation of what
another relation leads to ('twohop'), and a rule. Of the last two, what is asked is never told: half
of the compositions, and some names, are kept back.
"""
import functools
from dataclasses import dataclass

import numpy as np

from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.facts import FACT_VALUES, Fact, new_word
from downscale.data.scenes.world import SIZES, UNITS, stream

RARE = 10  # a rare fact is told this many times less often
NOISES = ('hum', 'buzz', 'roar', 'hiss', 'chirp', 'growl', 'squeak', 'bark')
NOTHING = 'nothing'  # what there is to see of a fact
_TEMPLATE_WORDS = (
    'what is the of at where box how many things thing are which larger smaller or left right '
    'above below yes no does read look all and nothing to total size color shape char before after '
    'it their there a nearest friend noise describe in not told cell ;')


@dataclass(frozen=True, kw_only=True)
class Known:
    """A fact of a family, the thought that leads to it, and its tellings in an epoch of text."""
    family: str
    fact: Fact
    trace: str
    times: int = 0


@dataclass(frozen=True)
class Knowledge:
    """All that is told, and all that is asked."""
    told: tuple[Known, ...]
    asked: tuple[Known, ...]


@functools.cache
def knowledge(world: Clutter) -> Knowledge:
    """Return what a world's facts are; `n_facts` of each kind are told."""
    rng = stream(world, 'clutter-facts')
    taken = _plain_words(world)
    held = _told(rng, taken, 'held', world.n_facts, world.exposures)
    rare = _told(rng, taken, 'rare', world.n_facts, max(1, world.exposures // RARE))
    links, composed, kept = _two_hops(rng, taken, held, world)
    rule, asked = _rule(rng, taken, world)
    return Knowledge((*held, *rare, *links, *composed, *rule), (*held, *rare, *kept, *asked))


def _told(rng, taken, family, n, times):
    """Return `n` facts: entities x relations, values drawn uniformly."""
    relations = tuple(FACT_VALUES)
    known = []
    entity = ''
    for i in range(n):
        relation = relations[i % len(relations)]
        if relation == relations[0]:
            entity = new_word(rng, taken)
        values = FACT_VALUES[relation]
        fact = Fact(entity, relation, values[int(rng.integers(len(values)))])
        known.append(Known(family=family, fact=fact, trace=fact.statement, times=times))
    return known


def _two_hops(rng, taken, held, world):
    """Return (links to the entities of `held`, compositions that are told, those that are asked).

    Every link is told alone; of every second one the composition is kept back.
    """
    links, composed, kept = [], [], []
    for i in range(world.n_facts):
        end = held[int(rng.integers(len(held)))].fact
        link = Fact(new_word(rng, taken), 'friend', end.entity)
        both = Fact(f'the friend of {link.entity}', end.relation, end.value)
        trace = f'{link.statement} ; {end.statement}'
        links.append(Known(family='twohop', fact=link, trace=link.statement,
                           times=world.exposures))
        if i % 2:
            kept.append(Known(family='twohop', fact=both, trace=trace))
        else:
            composed.append(Known(family='twohop', fact=both, trace=trace, times=world.exposures))
    return links, composed, kept


def _rule(rng, taken, world):
    """Return (names whose noise is told, names whose noise is asked): the last name decides it."""
    asked = max(4, world.n_facts // 4)
    count = max(2, -(-(world.n_facts + asked) // len(NOISES)))
    firsts = [new_word(rng, taken) for _ in range(count)]
    lasts = [new_word(rng, taken) for _ in NOISES]
    noises = [NOISES[i] for i in rng.permutation(len(NOISES))]
    names = [(first, k) for first in firsts for k in range(len(lasts))]
    names = [names[i] for i in rng.permutation(len(names))]
    facts = [Fact(f'{first} {lasts[k]}', 'noise', noises[k]) for first, k in names]
    first = facts[:world.n_facts]
    # A rule that nothing told shows cannot be known.
    shown = {fact.value for fact in first}
    rest = [fact for fact in facts[world.n_facts:] if fact.value in shown][:asked]
    return ([Known(family='rule', fact=fact, trace=fact.statement, times=world.exposures)
             for fact in first],
            [Known(family='rule', fact=fact, trace=fact.statement) for fact in rest])


@functools.cache
def tellings(world: Clutter, turns: int, share: int = 1) -> tuple[tuple[Known, ...], ...]:
    """Return the conversations of facts of one epoch, each of at most `turns` different facts.

    Each fact is told exactly `times // share` times, however many facts there are: more facts make
    more conversations.
    """
    talks = []
    facts = knowledge(world).told
    for number in range(max(known.times for known in facts) // share):
        rng = np.random.default_rng([world.seed, number, share])
        # A round tells all that is still to be told, each once: no fact meets itself in a talk.
        due = [known for known in facts if known.times // share > number]
        order = rng.permutation(len(due))
        talks += [tuple(due[i] for i in order[start:start + turns])
                  for start in range(0, len(due), turns)]
    return tuple(talks)


@functools.cache
def vocabulary(world: Clutter) -> tuple[str, ...]:
    """Return every word that any text about this world can contain, sorted."""
    words = _plain_words(world)
    for known in (*knowledge(world).told, *knowledge(world).asked):
        words |= {*known.fact.statement.split(), *known.trace.split()}
    return tuple(sorted(words))


def _plain_words(world):
    """Return all words except made-up names."""
    values = set().union(*FACT_VALUES.values())
    # Of boxes, counts, rows and budgets.
    numbers = {str(n) for n in range(max(UNITS, world.max_objects, world.grid) + 1)}
    numbers |= {str(budget) for budget in world.budgets}
    columns = {cell.split()[0] for cell in world.cells}
    return {*_TEMPLATE_WORDS.split(), *FACT_VALUES, *values, *NOISES, *numbers, *columns, *SIZES,
            *world.shapes, *world.colors, *world.chars}
