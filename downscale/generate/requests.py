"""What is asked of the engine, and what comes back."""
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np

from downscale.data import tiling
from downscale.generate.sampling import Sampling
from downscale.sizes import VisionConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """What a row is written behind: text, and pictures in places of it.

    Token ids [L], for each the image index [L, C] (-1: text) into the features of the tiles uint8
    [I, P, Q], and where C > 1 the weights [L, C] of these features.
    """
    tokens: np.ndarray
    image_index: np.ndarray
    tiles: np.ndarray | None = None
    image_weight: np.ndarray | None = None

    @cached_property
    def prefix(self) -> int:
        """Tokens up to the last image token, itself included: what questions about it share."""
        shown = np.flatnonzero((self.image_index >= 0).any(axis=1))
        return int(shown[-1]) + 1 if len(shown) else 0

    @cached_property
    def prefix_hash(self) -> str:
        """A name of the prefix and its pictures; '' without pictures."""
        if not self.prefix:
            return ''
        # Tokens and places too: the same picture behind other words is another prefix.
        digest = hashlib.sha256()
        for array in (self.tokens, self.image_index, self.image_weight):
            if array is not None:
                # pyrefly: ignore[bad-argument-type]
                digest.update(np.ascontiguousarray(array[:self.prefix]))
        # pyrefly: ignore[bad-argument-type]
        digest.update(np.ascontiguousarray(self.tiles))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Request:
    """One row to write behind `prompt`.

    `sample` (uint32) names its randomness. At most `limit` tokens of answer are written, behind a
    thought of at most `think` tokens (None: no thought). `target` is a reply whose nats are
    wanted; it is scored behind the prompt, never read.
    """
    prompt: Prompt
    _: KW_ONLY
    limit: int
    sample: int = 0
    think: int | None = None
    target: tuple[int, ...] | None = None

    @property
    def room(self) -> int:
        """Cache positions that the row may need; a thought has two marks beside its tokens."""
        return len(self.prompt.tokens) + self.limit + (0 if self.think is None else self.think + 2)


@dataclass(frozen=True)
class Decoding:
    """How rows are written: everything that, with a request and the weights, decides a reply.

    `stops` are further ids that end a row, `stop_strings` texts that do, wherever tokens cut them
    (the text of a reply has no space around it: a stop that is only spaces needs something behind).
    `min_new` tokens come before any stop id. `forbidden` ids are never written, `banned_thinking`
    ones not in a thought. `nudge` and `reference_compat` are those of `thinking.Thinking`.
    `costs` asks for the nats of every token, before top-k and top-p.
    """
    sampling: Sampling = Sampling()
    _: KW_ONLY
    seed: int = 0
    stops: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_new: int = 0
    forbidden: tuple[int, ...] = ()
    banned_thinking: tuple[int, ...] = ()
    nudge: float = 0.0
    reference_compat: bool = False
    costs: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Generated ids (stop token excluded) and their text (stop string excluded).

    `finish` is 'stop', 'string' or 'length'; `nll` the nats of the target (NaN without one).
    `close` says how the thought ended: '' (none was asked for), 'natural', 'forced', 'open';
    `thought` and `answered` count its tokens and those of the answer; `spelled` counts the
    `</think>` that the thought writes in other tokens than the one that closes it. `stop` is
    the token that ended the row, -1 where none did; `costs` are the nats of the tokens, `stop`
    among them, empty unless they were asked for.
    """
    ids: tuple[int, ...]
    text: str
    finish: str
    nll: float
    close: str
    thought: int
    answered: int
    spelled: int = 0
    stop: int = -1
    costs: tuple[float, ...] = ()

    @property
    def truncated(self) -> bool:
        return self.finish == 'length'


def check(requests: Sequence[Request], decoding: Decoding, vocabulary: int, marks: Sequence[int],
          patches: int, context: int = 0) -> None:
    """Raise ValueError, in one line, for the first request that cannot be answered.

    `marks` are the ids of <think> and </think>, -1 where the tokenizer lacks them; `patches` those
    of a tile, 0 for a model that cannot see; `context` the positions that the model was trained on,
    0 where they are not limited.
    """
    if not 0 <= decoding.seed < 2**32:
        raise ValueError(f'seed {decoding.seed} is no uint32')
    if set(range(vocabulary)) <= set(decoding.forbidden):
        raise ValueError('every token is forbidden; leave some that may be written')
    for k, request in enumerate(requests):
        n = len(request.prompt.tokens)
        target = () if request.target is None else request.target
        # Decode begins with the last token of a prompt, whose embedding it looks up as text.
        if n == 0 or request.prompt.prefix == n:
            raise ValueError(f'request {k}: a prompt must end with a token of text')
        if request.prompt.prefix and request.prompt.tiles is None:
            raise ValueError(f'request {k}: image tokens without tiles; give the pictures as tiles')
        if request.limit < 1 or (request.think is not None and request.think < 0):
            raise ValueError(f'request {k}: limit {request.limit} must be at least 1, and think '
                             f'{request.think} at least 0 or None')
        if request.think is not None and min(marks) < 0:
            raise ValueError(f'request {k} thinks, but the tokenizer has no <think> and </think>')
        if not 0 <= request.sample < 2**32:
            raise ValueError(f'request {k}: sample {request.sample} is no uint32')
        if context and max(request.room, n + len(target)) > context:
            thought = '' if request.think is None else f', {request.think} of thought'
            raise ValueError(f'request {k} needs up to {max(request.room, n + len(target))} tokens '
                             f'({n} of prompt{thought}, {request.limit} of answer), the model was '
                             f'trained on {context} (max_position_embeddings); allow fewer tokens '
                             'or shorten the prompt')
        if request.prompt.prefix:
            _check_pictures(request.prompt, patches, k)
        ids = np.asarray([*request.prompt.tokens, *target])
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f'request {k}: token ids {ids.min()} to {ids.max()} are not all below '
                             f'the {vocabulary} rows of the embedding')
    if any(not text for text in decoding.stop_strings):
        raise ValueError('a stop string is empty; leave it out')


def _check_pictures(prompt, patches, k):
    """Raise ValueError when image tokens of request `k` show what is not there."""
    if not patches:
        raise ValueError(f'request {k} shows a picture, but the model has no vision tower')
    shown = prompt.image_index[prompt.image_index != tiling.NEWLINE]
    features = patches * (0 if prompt.tiles is None else len(prompt.tiles))
    if shown.max(initial=-1) >= features:
        raise ValueError(f'request {k}: image_index reaches {shown.max()}, but its tiles have '
                         f'{features} features')


def first_stop(ids: Sequence[int], text_of: Callable[[Sequence[int]], str],
               stop_strings: Sequence[str]) -> tuple[int, str] | None:
    """Return (tokens to keep, text before the stop string) where one first appears, else None.

    The earliest token with which the text holds a stop string ends the row, wherever tokens cut
    the string and however often its beginning is repeated.
    """
    def place(n):
        text = text_of(ids[:n])
        starts = [text.find(stop) for stop in stop_strings if stop in text]
        return (min(starts), text) if starts else None

    if not place(len(ids)):
        return None
    # Bisection: the text of `low` tokens holds no stop string, that of `high` does.
    low = 0
    high = len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        if place(middle):
            high = middle
        else:
            low = middle
    at, text = place(high)
    return high, text[:at]


def prompt_arrays(prompts: Sequence[Prompt | None], length: int, vision: VisionConfig | None,
                  tiles: int,
                  whole: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return (tokens [B, L], image_index [B, L, C], image_weight or None), one prompt a row.

    They hold the prefixes of prompts, or the `whole` ones, padded to `length`; None is a row of
    padding. The index of a newline is the one behind the features of `tiles` tiles. Where C is 1
    there are no weights.
    """
    # Corners of one call are equally many: pictures are cut in one way for all of it.
    C = next(prompt.image_index.shape[1] for prompt in prompts if prompt is not None)
    tokens = np.zeros((len(prompts), length), np.int32)
    index = np.full((len(prompts), length, C), -1, np.int32)
    weight = np.zeros(index.shape, np.float32)
    for row, prompt in enumerate(prompts):
        if prompt is None:
            continue
        n = len(prompt.tokens) if whole else prompt.prefix
        shown = prompt.image_index[:n]
        tokens[row, :n] = prompt.tokens[:n]
        # Prompts have fewer tiles than there is room for, and the newline stands behind that room.
        index[row, :n] = np.where(shown == tiling.NEWLINE, vision.P * tiles, shown)
        if C > 1:
            weight[row, :n] = prompt.image_weight[:n]
    return tokens, index, weight if C > 1 else None
