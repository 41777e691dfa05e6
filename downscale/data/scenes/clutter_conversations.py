"""What a stage trains on in the cluttered world: one example and a generator -> a conversation.

As in `conversations.py`, but facts are told in conversations of their own, which come behind the
scenes of an epoch: each is told so often, whatever their number. Writers are asked for texts of
several budgets.
"""
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from downscale.data.records import IMAGE, THINK, Conversation, Question
from downscale.data.scenes import conversations
from downscale.data.scenes.clutter_facts import NOTHING, tellings
from downscale.data.scenes.clutter_telling import END, within
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.conversations import (
    EXTRACTED,
    THINKING,
    about_pictures,
    answer_text,
    ask,
    describe_prompt,
    explained,
    reasoner_prompt,
    some,
)
from downscale.data.scenes.questions import restatement
from downscale.data.scenes.world import records

if TYPE_CHECKING:  # a sampler draws from these mixtures
    from downscale.data.scenes.sampler import Library

# How many times less often than in text a stage tells each fact; the others tell none.
REMINDED = {'text': 1, **dict.fromkeys(
    ('instruct', 'interleave', 'shrink', 'heal', 'explain', 'reason'), 10)}
# What a thought says where a text does not hold what is asked for.
UNTOLD = f'not told {END}'


def count(world: Clutter, stage: str, scenes: int, turns: int) -> int:
    """Return how many conversations an epoch of a stage has, over that many scenes."""
    return scenes + len(_told(world, stage, turns))


def _told(world, stage, turns):
    """Return the conversations of facts of a stage, which come behind those of the scenes."""
    return tellings(world, turns, REMINDED[stage]) if stage in REMINDED else ()


def budgeted(prompt: str, budget: int | None) -> str:
    """Return a prompt that names the budget of what is to be written, where it has one."""
    return prompt if budget is None else f'{prompt} in {budget}'


def conversation(stage: str, library: 'Library', index: int, rng: np.random.Generator,
                 world: Clutter, turns: int, gap: str) -> Conversation:
    """Return the conversation of example `index` of a stage's epoch: of a scene, or of facts."""
    if index < len(library):
        return MIXTURES[stage](library, index, rng, world, turns, gap)
    known = _told(world, stage, turns)[index - len(library)]
    example = library.example(index % len(library))
    if stage in ('text', 'reason'):
        return Conversation((), _about_facts(stage, known, example.caption, rng))
    # A picture that has no part in the answers: such questions are asked with one.
    explains = stage == 'explain'
    pairs = []
    for each in known:
        thought = f'{NOTHING} {each.trace} {THINK[1]} ' if explains else ''
        pairs.append((each.fact.question, thought + each.fact.value))
    return about_pictures(example, pairs, gap, explains or None)


def _about_facts(stage, known, caption, rng):
    """Return the turns of questions about facts, of a reasoner behind a text that has no part."""
    think = None
    before = ''
    if stage == 'reason':
        think = rng.random() < THINKING
        before = f'{NOTHING if rng.random() < 0.5 else caption} '
    talk = ()
    for each in known:
        thought = f'{each.trace} {THINK[1]} ' if think else ''
        talk += ask(before + each.fact.question, thought + each.fact.value, think)
        before = ''
    return talk


# --- scenes -----------------------------------------------------------------------------------

def _shown(example):
    """Return the questions that a picture answers; facts have conversations of their own."""
    return [question for question in example.questions if question.kind == 'visual']


def _budget(rng, world):
    """Return one of a world's budgets, or None, all equally often."""
    return [None, *world.budgets][int(rng.integers(len(world.budgets) + 1))]


def text(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
         gap: str) -> Conversation:
    """Return language pretraining: a scene restated, or questions about a written scene."""
    if rng.random() < 0.5:
        return Conversation((), ask(*restatement(library.scenes(index)[0], rng)))
    return reason(library, index, rng, world, turns, gap)


def tower(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
          gap: str) -> Conversation:
    """Return tower pretraining: one picture, and what is said of each thing at its place."""
    scene, *_ = library.scenes(index)
    parts = [records([obj]) for obj in scene.objects]
    # As they stand in the whole: a tokenizer may take the space before a word into its token.
    parts[1:] = [f' {part}' for part in parts[1:]]
    boxes = np.array([obj.box for obj in scene.objects]) / world.side
    shown = tuple(zip(parts, map(tuple, boxes.tolist()), strict=True))
    return Conversation(library.example(index).images[:1], ask(IMAGE, ''.join(parts)), shown)


def instruct(library: 'Library', index: int, rng: np.random.Generator, world: Clutter,
             turns: int, gap: str) -> Conversation:
    """Return visual question answering: several questions about the same picture."""
    example = library.example(index)
    pairs = [(question.text, question.answer)
             for question in some(rng, _shown(example), turns)]
    return about_pictures(example, pairs, gap)


def explain(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
            gap: str) -> Conversation:
    """Return visual question answering in which what is seen and thought is written first."""
    example = library.example(index)
    return explained(example, some(rng, _shown(example), turns), gap)


def caption(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
            gap: str) -> Conversation:
    """Return a description within a budget: what is said last is left out."""
    example = library.example(index)
    budget = _budget(rng, world)
    pair = budgeted(describe_prompt(), budget), within(example.caption, budget)
    return about_pictures(example, [pair], gap)


def extract(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
            gap: str) -> Conversation:
    """Return extraction tuning: what each question needs, within a budget."""
    example = library.example(index)
    pairs = []
    for question in some(rng, example.questions, turns):
        budget = _budget(rng, world)
        pairs.append((budgeted(describe_prompt(question), budget),
                      within(question.extraction.text, budget)))
    return about_pictures(example, pairs, gap)


def reason(library: 'Library', index: int, rng: np.random.Generator, world: Clutter, turns: int,
           gap: str) -> Conversation:
    """Return text-only reasoning over captions and extractions of any budget.

    Where a text has been cut before what a question needs, the thought says so, and the answer is
    still the right one: what is best to guess is learnt.
    """
    example = library.example(index)
    think = rng.random() < THINKING
    budget = _budget(rng, world)
    if rng.random() < EXTRACTED:
        question, = some(rng, _shown(example), 1)
        read = within(question.extraction.text, budget)
        thought = _thought(question, read, question.extraction.text, question.trace.text)
        return Conversation((), ask(reasoner_prompt(read, question),
                                    answer_text(question, thought if think else ''), think))
    read = within(example.caption, budget)
    talk = []
    # As in the first world: fewer thoughts fit a row.
    for k, question in enumerate(some(rng, _shown(example), min(2, turns) if think else turns)):
        prompt = reasoner_prompt(read, question) if k == 0 else question.text
        thought = _thought(question, read, example.caption, question.trace.scan)
        talk += ask(prompt, answer_text(question, thought if think else ''), think)
    return Conversation((), tuple(talk))


def _thought(question: Question, read: str, whole: str, trace: str) -> str:
    """Return the trace where what is `read`, of the `whole` text, holds what the answer needs."""
    needed = [part.strip() for part in question.extraction.text.split(END) if part.strip()]
    return trace if read == whole or all(part in read for part in needed) else UNTOLD


MIXTURES: dict[str, Callable[..., Conversation]] = {
    'text': text, 'align': conversations.align, 'instruct': instruct, 'interleave': instruct,
    'explain': explain, 'shrink': instruct, 'heal': instruct,
    'caption': caption, 'extract': extract, 'reason': reason, 'tower': tower}
