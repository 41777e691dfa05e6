"""Tokenisers: text to ids, with a loss mask by turn and places for image features.

Any Hugging Face `tokenizer.json` is read by the `tokenizers` library. The micro tokeniser is
word-level, trained on the scene world's vocabulary and saved in that same format.
"""
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from downscale.data import images, tiling
from downscale.data.chat import Chat, render
from downscale.data.records import IMAGE, THINK, Turn
from downscale.data.templates import Template
from downscale.data.tiling import Placed
from downscale.runtime.files import whole
from downscale.sizes import Pictures, VisionConfig

SPECIAL = ('<pad>', '<unk>', '<|im_start|>', '<|im_end|>', '<think>', '</think>', IMAGE)


@dataclass(frozen=True)
class Layout:
    """How the pictures of a conversation become tiles and tokens; `vision` None is text only."""
    vision: VisionConfig | None
    pictures: Pictures = Pictures()

    @property
    def newline(self) -> bool:
        """Whether `image_newline` occurs."""
        return self.pictures.mode != 'flat'

    def cut(self, pngs: Sequence[bytes],
            where: str = 'image') -> tuple[tuple[Placed, ...], np.ndarray | None]:
        """Return (the `Placed` of each picture, their tiles uint8 [I, P, Q]) of one conversation.

        `pngs` are encoded pictures, in the order of their marks; without any the tiles are None.
        ValueError when one is unreadable, or when there is no tower to see it.
        """
        if not pngs:
            return (), None
        if self.vision is None:
            raise ValueError(f'{where}: the model has no vision tower; ask it without pictures')
        cuts = [images.cut(png, self.vision, self.pictures, len(pngs) == 1, f'{where}, picture {k}')
                for k, png in enumerate(pngs)]
        # A lone picture's tiles are shared with the cache, not copied: they may be 16 MB.
        tiles = cuts[0][1] if len(cuts) == 1 else np.concatenate([tiles for _, tiles in cuts])
        return tuple(placed for placed, _ in cuts), tiles


def train_tokenizer(words: Iterable[str], path: Path) -> Path:
    """Write a word-level `tokenizer.json` over `words` to `path`, whole or not at all.

    The same words give the same bytes.
    """
    # In order, so that ids do not follow that of a set; once, as an iterator would then be empty.
    words = sorted(set(words))
    tokenizer = Tokenizer(models.WordLevel(unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False,
                                        vocab_size=len(SPECIAL) + len(words))
    tokenizer.train_from_iterator(words, trainer)
    path = Path(path)
    with whole(path) as partial:
        tokenizer.save(str(partial))
    return path


def load_tokenizer(path: Path, rows: int | None = None) -> Tokenizer:
    """Return the tokeniser of a `tokenizer.json`.

    It neither cuts nor pads, whatever the file asks for: prompts have their own lengths. Raises
    FileNotFoundError or ValueError in one line when the file is missing, is no tokeniser, or has
    ids beyond the `rows` of the embedding.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no tokenizer at {path}; give a Hugging Face tokenizer.json')
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The library raises bare Exception for a malformed file.
    except Exception as error:
        raise ValueError(f'{path} is not a readable tokenizer.json: {str(error)[:120]}') from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if rows is not None:
        # Ids may have holes: what counts is the highest, not how many there are.
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        highest = max(vocab.values(), default=-1)
        if highest >= rows:
            raise ValueError(f'{path} has {len(vocab)} tokens with ids up to {highest}, the '
                             f'embedding only {rows} rows; set vocabulary to at least '
                             f'{highest + 1}')
    return tokenizer


def hash_of(tokenizer: Tokenizer) -> str:
    """Return a short hash of all that decides how text becomes ids."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token; ValueError when the tokeniser lacks it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f'the tokenizer has no token {token!r}, which the chat format needs')
    return number


def structural_ids(tokenizer: Tokenizer, chat: Chat | Template) -> frozenset[int]:
    """Return the ids that a legacy structural loss learns in every turn; none without that loss.

    They are looked up by their text; ValueError when one is not a single token.
    """
    structure = []
    for text in chat.structure if chat.legacy_structural_loss else ():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f'legacy_structural_loss needs {text!r} to be one token of the '
                             f'tokenizer, not {len(ids)}; switch it off or change the tokenizer')
        structure += ids
    return frozenset(structure)


def thought_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of <think>, </think> and a line break, -1 for each that is not one token."""
    tokens = [tokenizer.token_to_id(text) for text in THINK]
    breaks = tokenizer.encode('\n', add_special_tokens=False).ids
    tokens.append(breaks[0] if len(breaks) == 1 else None)
    return tuple(-1 if token is None else token for token in tokens)


class Encoder:
    """Turns -> arrays, for one tokeniser, chat format and image layout.

    `stop` is the id that ends a reply in this chat, `stops` all that do: the published model may
    have more `ends`. `context` is how many positions that was trained on (0: any number).
    """

    def __init__(self, tokenizer: Tokenizer, chat: Chat | Template, layout: Layout,
                 ends: Sequence[int] = (), context: int = 0) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.layout = layout
        self.stop = special_id(tokenizer, chat.stop)
        self.stops = frozenset((self.stop, *ends))
        self.context = context
        # Any id does: nothing attends to padding, and images replace what they cover.
        self.pad = 0
        self.structure = structural_ids(tokenizer, chat)
        self.thought = thought_ids(tokenizer)
        self.known = {}

    def ids(self, text: str) -> list[int]:
        """Return the token ids of plain text, remembered: questions and words repeat."""
        ids = self.known.get(text)
        if ids is None:
            # Cleared as a whole: another thread may be here as well.
            if len(self.known) > 200_000:
                self.known.clear()
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            self.known[text] = ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without the first stop token and what follows it."""
        ids = list(takewhile(lambda token: token not in self.stops, ids))
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def encode(self, turns: Sequence[Turn], reply: bool = False, thinking: bool | None = None,
               pictures: Sequence[Placed] = ()) -> dict[str, np.ndarray]:
        """Return the arrays of a conversation.

        They are tokens int32 [L], weights float32 [L] and image_index int32 [L, C]. `weights[i]`
        is 1 where token i is a target of the loss: the text of a supervised turn and
        the stop token behind it. With `reply` the header of an assistant turn is appended, so that
        a model may continue, and with `thinking` True or False what begins a reply with or without
        a thought. `pictures` holds the `Placed` of every image mark; `image_index` counts features
        from the first tile of this conversation and is -1 for text. Where a token may mix features
        (C > 1) there is image_weight, float32 [L, C]. ValueError when marks and pictures differ in
        number.
        """
        marks = sum(turn.text.count(IMAGE) for turn in turns)
        if marks != len(pictures):
            raise ValueError(f'{marks} image marks {IMAGE} in the text for {len(pictures)} '
                             'pictures; give each picture one mark')
        tokens = []
        index = []
        weights = []
        image = 0
        for text, weight in render(self.chat, turns, reply, thinking):
            for k, part in enumerate(text.split(IMAGE)):
                if k:
                    self._image(tokens, index, weights, pictures[:image + 1])
                    image += 1
                self._extend(tokens, index, weights, self.ids(part), weight)
        return {'tokens': np.asarray(tokens, np.int32),
                'weights': np.asarray(weights, np.float32),
                **self._features(np.asarray(index, np.int32), pictures)}

    def _extend(self, tokens, index, weights, ids, weight):
        """Append text to the lists of `encode`."""
        tokens += ids
        index += [-1] * len(ids)
        weights += [float(weight or i in self.structure) for i in ids]

    def _image(self, tokens, index, weights, shown):
        """Append the last picture of `shown`; its tokens count on from those of the others."""
        *before, placed = shown
        first = sum(earlier.tokens for earlier in before)
        tokens += [self.pad] * placed.tokens
        index += range(first, first + placed.tokens)
        weights += [0.0] * placed.tokens

    def _features(self, index, pictures):
        """Return image_index and image_weight; `index` [L] numbers image tokens, -1 for text."""
        C = tiling.corners(self.layout.pictures)
        indices = []
        mixes = []
        tile = 0
        for placed in pictures:
            # Features count on from tile to tile, but the newline is one for all.
            shifted = placed.index_LC + tile * self.layout.vision.P
            indices.append(np.where(placed.index_LC == tiling.NEWLINE, tiling.NEWLINE, shifted))
            mixes.append(placed.weight_LC)
            tile += placed.tiles
        # The last row is that of text, so that -1 finds it.
        indices.append(np.full((1, C), -1))
        mixes.append(np.zeros((1, C)))
        arrays = {'image_index': np.concatenate(indices).astype(np.int32)[index]}
        if C > 1:
            arrays['image_weight'] = np.concatenate(mixes).astype(np.float32)[index]
        return arrays
