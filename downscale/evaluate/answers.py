"""From a question to a prompt, and from generated text to a scored row."""
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from downscale.data.records import THINK, Example, Question, Turn
from downscale.data.scenes.conversations import describe_prompt, pictures, reasoner_prompt
from downscale.data.scenes.questions import correct
from downscale.generate.requests import Prompt

WINDOW = 2 ** 30  # bytes of image tiles that are held at once


@dataclass(frozen=True)
class Item:
    """One question and the pictures that it may be asked with.

    `judge` (reply without its thought, whether 'Answer: X' was asked for) -> (answer, whether one
    was found, its score).
    """
    question: Question
    example: Example
    judge: Callable = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How items are asked: `joint(item)` of a model that sees, `describe(item, kind)` for a
    'caption' or an 'extraction', `reason(item, text, thinking)` of a reader; `name` for results."""
    name: str
    joint: Callable
    describe: Callable
    reason: Callable


SCENE = Wording(
    name='', joint=lambda item: item.question.text,
    describe=lambda item, kind: describe_prompt(item.question if kind == 'extraction' else None),
    reason=lambda item, text, thinking: reasoner_prompt(text, item.question))


def items_of(source, scenes):
    """Return every question about the first `scenes` examples of a source, in order."""
    return [Item(question, example, partial(_judge, question))
            for example in (source[i] for i in range(scenes)) for question in example.questions]


def _judge(question, text, marked):
    """Return the scene world's own verdict: all of the reply is the answer."""
    return text, bool(text), float(correct(question.family, text, question.answer))


def shown(item, condition, others):
    """Return the encoded pictures that `item` is asked with under `condition`; 'shuffled' takes
    those that `others` (see `following`) holds for its example.
    """
    if condition == 'blind' or not item.example.count:
        return ()
    if condition == 'image':
        return item.example.images
    return others[item.example.scene_id].images


def following(items):
    """Return {scene: the next example that has as many pictures and is another one} of all that
    have any; ValueError where one is the only of its number.
    """
    by_count = {}
    found = {}
    for item in items:
        by_count.setdefault(item.example.count, {}).setdefault(item.example.scene_id, item.example)
    for count, examples in by_count.items():
        names = list(examples)
        if count and len(names) < 2:
            raise ValueError(f"condition 'shuffled' needs two examples with {count} pictures, "
                             f'there is only {names[0]}; raise evaluation.scenes or leave the '
                             'condition out')
        found |= {name: examples[names[(k + 1) % len(names)]] for k, name in enumerate(names)}
    return found


def prompt_of(encoder, text, pngs=(), thinking=None):
    """Return the `Prompt` of one user turn, its pictures in front, the reply begun as `thinking`
    says.
    """
    placed, tiles = encoder.layout.cut(pngs)
    arrays = encoder.encode([asked_turn(encoder, text, len(pngs))], True, thinking, placed)
    return Prompt(
        tokens=arrays['tokens'],
        image_index=arrays['image_index'],
        tiles=tiles,
        image_weight=arrays.get('image_weight'),
    )


def asked_turn(encoder, text, count):
    """Return the user turn that asks `text` behind the marks of `count` pictures."""
    mark = pictures(count) + encoder.chat.after_pictures if count else ''
    return Turn(role='user', text=mark + text, supervised=False)


def write(engine, requests, total, report=lambda done, total: None):
    """Return a `Reply` for each of `total` requests, in order.

    They are made in windows: the tiles of one picture are up to 16 MB, of thousands too many.
    """
    replies = []
    window = []
    held = 0
    for request in requests:
        window.append(request)
        held += request.prompt.tiles.nbytes if request.prompt.tiles is not None else 0
        if held > WINDOW:
            replies += _window(engine, window, len(replies), total, report)
            window = []
            held = 0
    return replies + _window(engine, window, len(replies), total, report)


def _window(engine, window, before, total, report):
    return engine.write(window, report=lambda done, _: report(before + done, total))


def gold_ids(encoder, question):
    """Return the tokens of the right answer and the stop token."""
    return (*encoder.ids(question.answer), encoder.stop)


def answer_in(text, thinking, spelled=0):
    """Return (answer, whether one was found): what follows the thought; an open thought has no
    answer.

    `spelled` marks of its end stand in the thought as letters, before the token that closed it
    (`Reply.spelled`); one in the answer belongs to the answer.
    """
    if thinking:
        parts = text.split(THINK[1], spelled + 1)
        if len(parts) < spelled + 2:
            return '', False
        text = parts[-1]
    text = text.strip()
    return text, bool(text)


def row(item, reply, *, eval_id, condition, data_hash, prompt_hash, p_run='',
        r_run='', text_kind='', thinking=False):
    """Return one row of the items table (schema: `items.py`)."""
    question = item.question
    text, answered = answer_in(reply.text, thinking, reply.spelled)
    found, parsed, score = item.judge(text, bool(r_run)) if answered else ('', False, 0.0)
    return {'eval_id': eval_id, 'task': question.family, 'category': question.kind,
            'item_id': question.item_id, 'cluster_id': question.cluster_id, 'p_run': p_run,
            'r_run': r_run, 'text_kind': text_kind, 'thinking': thinking, 'condition': condition,
            'repeat': 0, 'score': score,
            'nll_gold': reply.nll, 'chance': question.chance, 'pred': found,
            'gold': question.answer, 'parse_ok': parsed, 'n_gen_tokens': len(reply.ids),
            'truncated': reply.finish == 'length', 'finish': reply.finish, 'close': reply.close,
            'n_think_tokens': reply.thought, 'prompt_hash': prompt_hash, 'data_hash': data_hash}
