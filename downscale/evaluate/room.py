"""Whether what a chain will ask fits the contexts of its models, before the first token.

A text that is still to be written counts with as many tokens as it may have. Its reader may cut it
into others, so the engine looks again at each prompt once it is whole.
"""
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from downscale.data.chat import render
from downscale.data.measure import picture_cost, picture_size
from downscale.data.records import IMAGE, THINK
from downscale.data.row_files import shown
from downscale.data.tokens import Encoder
from downscale.evaluate.answers import asked_turn
from downscale.evaluate.asked import Asked
from downscale.evaluate.chain_steps import Manner, ReplyJob
from downscale.evaluate.runs import ChainModel, open_encoder


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The tokens that one reply may take: of its prompt, as far as it is known, and of `parts`.

    Each part that comes to the prompt is (what it is, which of the limits 'describe', 'think' and
    'answer' holds for it, most tokens).
    """
    id: str
    prompt: int
    parts: tuple[tuple[str, str, int], ...]

    @property
    def tokens(self) -> int:
        """The tokens of all of it."""
        return self.prompt + sum(most for _, _, most in self.parts)


def weigh(run: ChainModel, jobs: Iterable[ReplyJob], images: Callable[[Asked], Sequence[bytes]],
          longest: int) -> None:
    """Raise ValueError in one line unless every job fits the context of the model.

    Descriptions and information are empty in the prompts and count as `longest` tokens.
    """
    encoder = open_encoder(run.folder)
    demands = {}
    for job in jobs:
        if job.manner.think is not None:
            check_thinks(run.name, encoder)
        content = dataclasses.replace(job, sample=0).content  # repeats are as long
        if encoder.context and content not in demands:
            pngs = images(job.asked) if job.manner.shown else ()
            demands[content] = Demand(
                id=job.asked.id, parts=_parts(job.manner, longest),
                prompt=prompt_length(encoder, job.text, pngs, job.manner.thinking))
    if demands:
        check_room(run.name, encoder, list(demands.values()))


def _parts(manner: Manner, longest: int) -> tuple[tuple[str, str, int], ...]:
    """Return what comes to the prompt of a job: texts of other models, thought and reply."""
    parts = [(text, 'describe', longest) for text in manner.reads]
    if manner.think is not None:
        parts.append(('thought', 'think', manner.think + 2))  # its marks
    if manner.task.startswith('answer'):
        parts.append(('answer', 'answer', manner.limit))
    else:
        parts.append(('reply', 'describe', manner.limit))
    return tuple(parts)


def prompt_length(encoder: Encoder, text: str, pngs: Sequence[bytes] = (),
                  thinking: bool | None = None) -> int:
    """Return the tokens of the `Prompt` that `prompt_of` makes, off the headers of the pictures."""
    # Pixels are not decoded: all pictures of a benchmark are looked at before the first row.
    sizes = [picture_size(png) for png in pngs]
    tokens = sum(picture_cost(width, height, encoder.layout, len(sizes) == 1)[0]
                 for width, height in sizes)
    for piece, _ in render(encoder.chat, [asked_turn(encoder, text, len(sizes))], True, thinking):
        tokens += sum(len(encoder.ids(part)) for part in piece.split(IMAGE))
    return tokens


def check_room(name: str, encoder: Encoder, demands: Sequence[Demand]) -> None:
    """Raise ValueError in one line unless the context of model `name` can hold every demand."""
    most = max(demands, key=lambda demand: demand.tokens)
    beyond = most.tokens - encoder.context
    if beyond <= 0:
        return
    count = sum(demand.tokens > encoder.context for demand in demands)
    sums = ' + '.join(f'{tokens} of {what}' for what, _, tokens in most.parts)
    *options, last = dict.fromkeys(f'--{option}-' for _, option, _ in most.parts)
    # A thought keeps its two marks even with a limit of 0.
    if beyond > sum(tokens - 2 for _, _, tokens in most.parts):
        way = 'shorten the question, or take a model of a longer context'
    elif options:
        way = f'lower {", ".join(options)} or {last}tokens by {beyond} in all'
    else:
        # One option limits all parts, so that each step down counts for each of them.
        way = f'lower {last}tokens by {math.ceil(beyond / len(most.parts))}'
    raise ValueError(
        f'{shown(name, 30)} holds {encoder.context} tokens (max_position_embeddings); {count} of '
        f'{len(demands)} prompts may need more, {shown(most.id, 20)!r} {most.tokens} '
        f'({most.prompt} of prompt + {sums}); {way}')


def check_thinks(name: str, encoder: Encoder) -> None:
    """Raise ValueError in one line unless the tokenizer of model `name` has marks of a thought."""
    if min(encoder.thought[:2]) < 0:
        raise ValueError(f'{shown(name, 40)} is to think, but its tokenizer has no '
                         f'{" and ".join(THINK)}; give --reason direct')
