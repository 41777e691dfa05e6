"""What a stage trains on: one example of a library and a random generator -> one conversation.

Adding a stage means adding a function here and a row to `MIXTURES`. Every function is pure given
its generator, so position n of a stage's stream is the same on any host and after any restart.
`gap` stands between the pictures that open a conversation and its first question, as the chat
format has it.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np

from downscale.data.records import IMAGE, THINK, Conversation, Example, Question, Turn
from downscale.data.scenes.questions import facts, restatement
from downscale.data.scenes.world import World
from downscale.data.scenes.world import caption as describe_scene
from downscale.values import Choice, Range, check

if TYPE_CHECKING:  # a sampler draws from these mixtures
    from downscale.data.scenes.sampler import Library

DESCRIBE = 'describe'
# Of a reasoner's conversations. A thought teaches at every word, an answer without one hardly at
# all until look-ups are learnt; and captions hold what has to be searched.
THINKING = 0.8
EXTRACTED = 0.2


def describe_prompt(question: Question | None = None) -> str:
    """Return what a perception model is asked to write: everything, or what `question` needs."""
    return DESCRIBE if question is None else question.extraction.information


def reasoner_prompt(description: str, question: Question) -> str:
    """Return what a text-only reasoner reads: the description and the question."""
    return f'{description} {question.text}' if description else question.text


def answer_text(question: Question, thought: str = '') -> str:
    """Return what a reasoner learns to write: its thought, where it has one, then the answer."""
    return f'{thought} {THINK[1]} {question.answer}' if thought else question.answer


def pictures(number: int) -> str:
    """Return the image marks that open a conversation about `number` pictures."""
    return ' '.join([IMAGE] * number)


def ask(text: str, reply: str, thinking: bool | None = None) -> tuple[Turn, Turn]:
    """Return the two turns of a question and its reply."""
    question = Turn(role='user', text=text, supervised=False)
    return question, Turn(role='assistant', text=reply, supervised=True, thinking=thinking)


def some(rng: np.random.Generator, items: Sequence, most: int) -> list:
    """Return up to `most` of `items`, in a random order."""
    return [items[i] for i in rng.permutation(len(items))[:most]]


def text(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
         gap: str) -> Conversation:
    """Return language pretraining: restated scenes, facts, and questions about written scenes."""
    kind = rng.random()
    if kind < 0.5:
        scene = library.scenes(index)[0]
        prompt, target = restatement(scene, rng)
        return Conversation((), ask(prompt, target))
    if kind < 0.65:
        recalled = []
        for fact in some(rng, facts(world), turns):
            recalled += ask(fact.question, fact.value)
        return Conversation((), tuple(recalled))
    return reason(library, index, rng, world, turns, gap)


def tower(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
          gap: str) -> Conversation:
    """Return tower pretraining: one picture and its caption."""
    scene, *_ = library.scenes(index)
    return Conversation(library.example(index).images[:1], ask(IMAGE, describe_scene(scene)))


def align(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
          gap: str) -> Conversation:
    """Return connector training: a picture and its caption, nothing asked."""
    example = library.example(index)
    return Conversation(example.images, ask(pictures(example.count), example.caption))


def instruct(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
             gap: str) -> Conversation:
    """Return visual question answering: several questions about the same picture."""
    example = library.example(index)
    pairs = [(question.text, question.answer)
             for question in some(rng, example.questions, turns)]
    return about_pictures(example, pairs, gap)


def about_pictures(example: Example, pairs: Sequence[tuple[str, str]],
                   gap: str, thinking: bool | None = None) -> Conversation:
    """Return the conversation of (prompt, reply) pairs, pictures in front of the first prompt."""
    asked = []
    for k, (prompt, reply) in enumerate(pairs):
        mark = pictures(example.count) + gap if k == 0 else ''
        asked += ask(mark + prompt, reply, thinking)
    return Conversation(example.images, tuple(asked))


def without_pictures(talk: Conversation, gap: str) -> Conversation:
    """Return a conversation that asks the same and expects the same, but shows nothing.

    So a question without its picture is nothing new to the model, and what it learns to answer is
    what is best to guess.
    """
    first, *rest = talk.turns
    text = first.text.removeprefix(pictures(len(talk.images)) + gap)
    return Conversation((), (replace(first, text=text), *rest))


def caption(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
            gap: str) -> Conversation:
    """Return the exhaustive description of a picture."""
    example = library.example(index)
    return about_pictures(example, [(describe_prompt(), example.caption)], gap)


def extract(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
            gap: str) -> Conversation:
    """Return visual extraction tuning: what each question needs, given only what to look at."""
    example = library.example(index)
    pairs = [(describe_prompt(question), question.extraction.text)
             for question in some(rng, example.questions, turns)]
    return about_pictures(example, pairs, gap)


def explain(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
            gap: str) -> Conversation:
    """Return visual question answering in which what is seen and thought is written first.

    Extraction and reasoning of one model: it is given the question itself, and its reply is the
    extraction of the question, the steps from there, and the answer.
    """
    example = library.example(index)
    return explained(example, some(rng, example.questions, turns), gap)


def explained(example: Example, questions: Sequence[Question], gap: str) -> Conversation:
    """Return the conversation in which these questions are answered behind what they need."""
    pairs = []
    for question in questions:
        thought = f'{question.extraction.text} {question.trace.text}'.strip()
        pairs.append((question.text, answer_text(question, thought)))
    return about_pictures(example, pairs, gap, thinking=True)


def reason(library: 'Library', index: int, rng: np.random.Generator, world: World, turns: int,
           gap: str) -> Conversation:
    """Return text-only reasoning: description and question in, answer out, most of it step by step.

    Descriptions are captions or extractions, so that it can read what either perception writes.
    Whether it thinks is given, not learnt: else it would be a coin toss after each `<think>`.
    """
    example = library.example(index)
    think = rng.random() < THINKING
    if rng.random() < EXTRACTED:
        question, = some(rng, example.questions, 1)
        prompt = reasoner_prompt(question.extraction.text, question)
        reply = answer_text(question, question.trace.text if think else '')
        return Conversation((), ask(prompt, reply, think))
    # Thoughts about a caption are long: fewer of them fit a row.
    asked = []
    for k, question in enumerate(some(rng, example.questions, min(2, turns) if think else turns)):
        prompt = reasoner_prompt(example.caption, question) if k == 0 else question.text
        thought = question.trace.scan if think else ''
        asked += ask(prompt, answer_text(question, thought), think)
    return Conversation((), tuple(asked))


MIXTURES = {'text': text, 'align': align, 'instruct': instruct, 'interleave': instruct,
            'caption': caption, 'extract': extract, 'reason': reason, 'tower': tower,
            'explain': explain, 'shrink': instruct, 'heal': instruct}


# The types of a recipe's fields; a stage declares the same.
STAGE = Annotated[str, Choice(tuple(MIXTURES), 'stage')]
SHARE = Annotated[float, Range(0, 1, 'the share of conversations that are of another stage',
                               without=(1,))]
LOSS_NORM = Annotated[str, Choice(('token', 'example'), 'loss_norm')]
TURNS = Annotated[int, Range(1, 10_000, 'the most questions of one conversation')]
BLIND = Annotated[float, Range(0, 1, 'the share of conversations whose pictures are left out',
                               without=(1,))]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a stage samples: its mixture, replayed stages with their shares, and the loss norm.

    `loss_norm` 'token' weighs supervised tokens equally, 'example' conversations equally, both
    within a batch. Every step counts alike: where buckets have batches of several sizes, a token
    (or conversation) of a batch with fewer of them weighs more than one of a batch with many. Give
    all buckets one `batch` to weigh conversations about equally over a whole run.
    `turns` is the most questions of one conversation, `blind` the share of the stage's own that
    are asked without their pictures.
    """
    stage: STAGE
    replay: tuple[tuple[STAGE, SHARE], ...] = ()
    loss_norm: LOSS_NORM = 'token'
    turns: TURNS = 6
    blind: BLIND = 0.0

    def __post_init__(self):
        check(self)
        if not 0 <= sum(dict(self.replay).values()) < 1:
            raise ValueError(f'replay shares {dict(self.replay)} must sum to less than 1')

    def draw(self, rng: np.random.Generator) -> str:
        """Return the stage whose mixture makes the next conversation."""
        point = rng.random()
        for stage, share in self.replay:
            point -= share
            if point < 0:
                return stage
        return self.stage
