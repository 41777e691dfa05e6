"""What the data set and the stages ask of a made-up world, whichever kind it is.

A kind is a frozen record of settings (`world.World`, `clutter_world.Clutter`) and the row below. A
study chooses by `world=dict(kind='clutter', ...)`; without `kind` it is the first. Both have scenes
of the same records (`world.Scene`) and questions of the same (`records.Question`), judged by the
same rule (`questions.correct`).
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downscale.data.records import Conversation, Question
from downscale.data.scenes import (
    clutter_conversations,
    clutter_drawing,
    clutter_facts,
    clutter_questions,
    clutter_world,
    conversations,
    drawing,
    facts,
    questions,
    world,
)
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.world import Scene, World

if TYPE_CHECKING:  # it draws by these rows
    from downscale.data.scenes.sampler import Library

AnyWorld = World | Clutter


@dataclass(frozen=True, kw_only=True)
class WorldKind:
    """A kind of world; each entry takes the settings first, but `conversation`.

    sample: the scene of a split and an index.
    render: a scene -> its PNG bytes.
    questions_for: a scene, a generator and families -> one question of each that it allows.
    vocabulary: every word that its texts can contain.
    baselines: examples -> what guessing earns, by family.
    conversation: what a stage trains on, as the mixtures of `conversations.py`, stage first.
    count: a stage, its scenes and its turns -> the conversations of an epoch.
    shows: whether a tower is told which patches show what a word tells of.
    """
    sample: Callable[..., Scene]
    render: Callable[..., bytes]
    questions_for: Callable[..., tuple[Question, ...]]
    vocabulary: Callable[..., tuple[str, ...]]
    baselines: Callable[..., dict[str, dict[str, float]]]
    conversation: Callable[..., Conversation]
    count: Callable[..., int]
    shows: bool = False


def _conversation(stage: str, library: 'Library', index: int, rng: np.random.Generator,
                  settings: World, turns: int, gap: str) -> Conversation:
    """Return the conversation of a stage in the first world."""
    return conversations.MIXTURES[stage](library, index, rng, settings, turns, gap)


_FIRST = WorldKind(
    sample=world.sample,
    render=drawing.render,
    questions_for=questions.questions_for,
    vocabulary=facts.vocabulary,
    baselines=questions.baselines,
    conversation=_conversation,
    count=lambda settings, stage, scenes, turns: scenes,
)
_CLUTTERED = WorldKind(
    sample=clutter_world.sample,
    render=clutter_drawing.render,
    questions_for=clutter_questions.questions_for,
    vocabulary=clutter_facts.vocabulary,
    baselines=clutter_questions.baselines,
    conversation=clutter_conversations.conversation,
    count=clutter_conversations.count,
    shows=True,
)
KINDS: dict[type, WorldKind] = {World: _FIRST, Clutter: _CLUTTERED}


def render(settings: AnyWorld, scene: Scene) -> bytes:
    """Return a scene of any kind of world as PNG bytes."""
    return KINDS[type(settings)].render(settings, scene)


def kind_of(settings: AnyWorld) -> WorldKind:
    """Return the `WorldKind` of a world."""
    return KINDS[type(settings)]
