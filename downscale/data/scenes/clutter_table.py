"""The families of questions of the cluttered world, in one table: name, kind and dose.

It stands below the world, whose settings choose among them. `clutter_families.py` asks the visual
ones and the chains, `clutter_facts.py` knows the others.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family: `dose` counts the steps from what is named to what is asked for."""
    name: str
    kind: str
    dose: int = 0


# Kinds: 'knowledge' needs no picture, 'visual' one look, 'reasoning' as many steps as its dose. The
# rows of items know two: chains are about a picture, so they are 'visual' there.
FAMILIES = (
    Family('held', 'knowledge', 1),
    Family('rare', 'knowledge', 1),
    Family('twohop', 'knowledge', 2),
    Family('rule', 'knowledge', 1),
    Family('color', 'visual'),
    Family('size', 'visual'),
    Family('read', 'visual'),
    Family('content', 'visual'),
    Family('position', 'visual'),
    Family('ground', 'visual'),
    Family('count_color', 'visual'),
    Family('count_shape', 'visual'),
    Family('compare', 'visual'),
    Family('relation', 'visual'),
    Family('nearest', 'visual'),
    Family('exists', 'visual'),
    # 'color' is their dose of 0: the same field is asked of what is named itself.
    Family('chain1', 'reasoning', 1),
    Family('chain2', 'reasoning', 2),
    Family('chain3', 'reasoning', 3),
    Family('chain4', 'reasoning', 4),
)
NAMES = tuple(family.name for family in FAMILIES)
KNOWLEDGE = tuple(family.name for family in FAMILIES if family.kind == 'knowledge')
CHAINS = {family.name: family.dose for family in FAMILIES if family.kind == 'reasoning'}
