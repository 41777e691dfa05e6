"""From a question to a prompt, and from generated text to a scored row."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

from downscale.config import Experiment
from downscale.data.records import THINK, Example, Question, Turn
from downscale.data.scenes.conversations import pictures
from downscale.data.scenes.dataset import SceneSource
from downscale.data.scenes.questions import SCORER, correct
from downscale.data.tokens import Encoder
from downscale.evaluate import prompts
from downscale.generate.requests import Prompt, Reply, Request
from downscale.results.items import ITEMS, LATER
from downscale.results.text_kinds import CAPTION

# One large picture in 37 tiles of 384 pixels is 16 MB; of thousands too many to hold.
WINDOW = 2 ** 30  # bytes of image tiles that are held at once
# What stands for a question that is hidden, in prompts that speak of one.
NOT_SHOWN = 'The question is not shown. If the description gives an answer, what is it?'


class ShownExample(Protocol):
    """What an item shows: an `Example`, or pictures of a benchmark that are read when shown."""

    @property
    def scene_id(self) -> str:
        """Names what the questions about the same pictures share."""
        ...

    @property
    def images(self) -> Sequence[bytes]:
        """The encoded pictures."""
        ...

    @property
    def count(self) -> int:
        """How many pictures there are."""
        ...

    @property
    def caption(self) -> str:
        """What a faultless perception model would write; '' where nobody has written it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question and the pictures that it may be asked with.

    `judge` takes a reply without its thought and whether 'Answer: X' was asked for, and returns
    the answer, whether there was one, and its score; `scorer` is its name. `bare` is the question
    as a reader of texts gets it, without the tail of a benchmark's prompt; '' where it has none.
    """
    question: Question
    example: ShownExample
    judge: Callable[[str, bool], tuple[str, bool, float]] = field(compare=False)
    scorer: str
    bare: str = ''


@dataclass(frozen=True)
class Wording:
    """How items are asked, in the words of `worded`; `name` is what results know it by."""
    worded: prompts.Prompts
    name: str

    def describe(self, item: Item, kind: str) -> str:
        """Return what a perception model is asked for a `kind` of text."""
        return self.worded.describe('caption' if kind == CAPTION else 'extract',
                                    item.question.extraction.information)

    def reason(self, item: Item, text: str, thinking: bool) -> str:
        """Return what a reasoner reads: a text in the place of the pictures, and the question."""
        return self.worded.reason('think' if thinking else 'direct', text,
                                  item.bare or item.question.text)

    def reason_hidden(self, text: str) -> str:
        """Return what a reasoner reads that is told neither the question nor its options."""
        # Bare words speak of no question, and a closed vocabulary has no words to do so.
        question = NOT_SHOWN if self.worded.question_start else ''
        return self.worded.reason('direct', text, question).rstrip()

    def hash_parts(self) -> list[str]:
        """Return what a wording adds to the hash of its prompts."""
        return [self.name] if self.name else []


def wording_of(experiment: Experiment, own: bool = False) -> Wording:
    """Return the `Wording` of a cell's evaluations: of scenes or, for benchmarks, of its chat.

    `own` says that what is asked are questions of one's own.
    """
    if not (own or experiment.evaluation.benchmarks):
        # Rows about scenes are older than names of wordings, and their prompt_hash stays.
        return Wording(_loaded('micro'), '')
    worded = _loaded('micro' if experiment.chat == 'micro' else 'paper')
    return Wording(worded, worded.hash)


@cache
def _loaded(name):
    return prompts.load(name)


def items_of(source: SceneSource | Sequence[Example], scenes: int) -> list[Item]:
    """Return every question about the first `scenes` examples of a source, in order."""
    items = []
    for index in range(scenes):
        example = source[index]
        items += [item_of(example, question) for question in example.questions]
    return items


def item_of(example: Example, question: Question) -> Item:
    """Return a question about a scene as an item."""
    return Item(question=question, example=example, judge=partial(_judge, question), scorer=SCORER)


def _judge(question, text, marked):
    """Return the verdict of the scene world itself: all of the reply is the answer."""
    return text, bool(text), float(correct(question.family, text, question.answer))


# --- pictures ---------------------------------------------------------------------------------

def shown(item: Item, condition: str, others: dict[str, ShownExample]) -> Sequence[bytes]:
    """Return the encoded pictures that `item` is asked with under `condition`.

    'shuffled' takes those of the example that `others` (see `following`) holds in its place.
    """
    if condition == 'blind' or not item.example.count:
        return ()
    if condition == 'image':
        return item.example.images
    return others[item.example.scene_id].images


def following(items: Iterable[Item]) -> dict[str, ShownExample]:
    """Return {scene: the next example with as many pictures} of the scenes with pictures.

    ValueError where an example is the only one with its number of pictures.
    """
    by_count = {}
    for item in items:
        by_count.setdefault(item.example.count, {}).setdefault(item.example.scene_id, item.example)
    others = {}
    for count, examples in by_count.items():
        names = list(examples)
        if count and len(names) < 2:
            raise ValueError(f"condition 'shuffled' needs two examples with {count} pictures, "
                             f'there is only {names[0]}; raise evaluation.scenes or leave the '
                             'condition out')
        # A ring: each lends its pictures once, so that the condition shows the same pictures.
        others |= dict(zip(names, [examples[name] for name in (*names[1:], names[0])]))
    return others


# --- prompts ----------------------------------------------------------------------------------

def prompt_of(encoder: Encoder, text: str, pngs: Sequence[bytes] = (),
              thinking: bool | None = None) -> Prompt:
    """Return the `Prompt` of one user turn, its pictures in front.

    `thinking` says how the reply is begun: with a thought, without one, or (None) not at all.
    """
    placed, tiles = encoder.layout.cut(pngs)
    arrays = encoder.encode([asked_turn(encoder, text, len(pngs))], True, thinking, placed)
    return Prompt(
        tokens=arrays['tokens'],
        image_index=arrays['image_index'],
        tiles=tiles,
        image_weight=arrays.get('image_weight'),
    )


def asked_turn(encoder: Encoder, text: str, count: int) -> Turn:
    """Return the user turn that asks `text` behind the marks of `count` pictures."""
    marks = pictures(count) + encoder.chat.after_pictures if count else ''
    return Turn(role='user', text=marks + text, supervised=False)


def windows(requests: Iterable[Request], rows: int | None = None) -> Iterator[list[Request]]:
    """Yield the requests in order, in lists whose tiles fit into `WINDOW` bytes together.

    A list has at most `rows` requests, and one request alone may be larger than a window. No reply
    depends on how requests are cut, only how many of the slots idle at the end of each list.
    """
    window = []
    size = 0
    for request in requests:
        tiles = request.prompt.tiles
        more = 0 if tiles is None else tiles.nbytes
        if window and (size + more > WINDOW or len(window) == rows):
            yield window
            window = []
            size = 0
        window.append(request)
        size += more
    if window:
        yield window


def gold_ids(encoder: Encoder, question: Question) -> tuple[int, ...]:
    """Return the tokens of the right answer and the stop token."""
    return (*encoder.ids(question.answer), encoder.stop)


# --- replies ----------------------------------------------------------------------------------

def answer_in(text: str, thinking: bool | None, spelled: int = 0) -> tuple[str, bool]:
    """Return (answer, whether there is one) of a reply; an open thought has no answer.

    A thought may hold `spelled` marks of its end as letters, before the token that closed it
    (`Reply.spelled`); a mark behind that token belongs to the answer.
    """
    if thinking:
        parts = text.split(THINK[1], spelled + 1)
        if len(parts) < spelled + 2:
            return '', False
        text = parts[-1]
    text = text.strip()
    return text, bool(text)


def thought_in(text: str, thinking: bool | None, spelled: int = 0) -> str:
    """Return the thought of a reply, all of it where it stayed open; '' where none was asked for.

    `spelled` is that of `answer_in`.
    """
    if not thinking:
        return ''
    return THINK[1].join(text.split(THINK[1], spelled + 1)[:spelled + 1])


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the rows of one evaluation were asked: the columns of `results/items.py` they share."""
    eval_id: str
    condition: str
    data_hash: str
    prompt_hash: str
    p_run: str = ''
    r_run: str = ''
    text_kind: str = ''
    thinking: bool = False


def row(item: Item, reply: Reply, asking: Asking) -> dict[str, Any]:
    """Return one row of the items table (schema: `results/items.py`)."""
    question = item.question
    text, answered = answer_in(reply.text, asking.thinking, reply.spelled)
    pred = ''
    parsed = False
    score = 0.0
    if answered:
        # Only readers of texts are asked to end in 'Answer: X'.
        pred, parsed, score = item.judge(text, bool(asking.r_run))
    values = vars(asking) | {
        'task': question.family,
        'category': question.kind,
        'item_id': question.item_id,
        'cluster_id': question.cluster_id,
        'chance': question.chance,
        'gold': question.answer,
    }
    values |= {
        'repeat': 0,
        'score': score,
        'pred': pred,
        'parse_ok': parsed,
        'nll_gold': reply.nll,
        'n_gen_tokens': len(reply.ids),
        'n_think_tokens': reply.thought,
        'truncated': reply.finish == 'length',
        'finish': reply.finish,
        'close': reply.close,
        'thought': thought_in(reply.text, asking.thinking, reply.spelled),
        'scorer': item.scorer,
    }
    return {name: values[name] for name in (*ITEMS.names, *LATER.names)}
