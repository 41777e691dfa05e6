"""The yardstick of the engine: the whole text through the model for every token, row by row.

No cache, no batch, no slots; the rules of decoding are written out once more in plain Python.
"""
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import small

from downscale.data.records import IMAGE, Turn
from downscale.data.tiling import NEWLINE
from downscale.generate.engine import Decoding, Engine, Prompt, Reply, Request
from downscale.generate.sampling import choose
from downscale.model.init import init_params
from downscale.model.vlm import Vlm
from downscale.sizes import Pictures

# Two layers, two key heads of two query heads each: what a tensor axis of 2 can share out.
MODEL, P = Vlm(replace(small.language(2), H=4, K=2, E=8), small.VISION), small.VISION.P
LENGTH = 320  # tokens of the longest text
TEXTS = (1, 16, 17, 40, 58, 65, 93, 124, 129, 188, 193, 254)  # lengths of prompts without pictures
# (words before the pictures, pictures, words behind them); the first five show the same picture.
PICTURED = ((0, 1, 2), (0, 1, 17), (0, 1, 55), (0, 1, 110), (0, 1, 140), (20, 1, 3), (40, 3, 60),
            (100, 1, 9), (0, 3, 30))
SHOWN = range(len(TEXTS), len(TEXTS) + len(PICTURED))
ALL = (*range(len(TEXTS)), *SHOWN)
FEW = (0, 2, 3, 12, 13, 20)  # short: three without pictures, two about one, one about three
SHORT = (0, 1, 2, 3, 4)  # without pictures


class Letters:
    """As much of an encoder as the engine needs. A token is one to three letters."""

    def __init__(self, stop=-1, thought=(2, 3, 4)):
        self.stops, self.context, self.thought = frozenset((stop,)), 0, thought

    def text(self, ids):
        return ''.join('</think>' if i == self.thought[1] else f'{i:x}' for i in ids)


GREEDY, LETTERS = Decoding(), Letters()


@cache
def params():
    """Fresh values with louder kernels: else a reply repeats its first token, whatever it read."""
    fresh = init_params(MODEL, 1)
    loud = jax.tree.map(lambda leaf: 3 * leaf, fresh['language']['blocks'])
    return {**fresh, 'language': {**fresh['language'], 'blocks': loud}}


@cache
def prompts():
    """One prompt for each entry of TEXTS and of PICTURED."""
    rng, encoder, words = np.random.default_rng(0), small.encoder(), ('red', 'blue', 'ring', 'a1')
    found = [
        Prompt(
            tokens=rng.integers(7, small.ROWS, n).astype(np.int32),
            image_index=np.full((n, 1), -1, np.int32),
        )
        for n in TEXTS
    ]
    examples = [small.library().example(index) for index in range(24)]
    for before, count, after in PICTURED:
        pngs = next(e.images for e in examples if len(e.images) == count)
        said = [' '.join(rng.choice(words, n)) for n in (before, after)]
        talk = Turn(
            role='user', text=' '.join([said[0], *[IMAGE] * count, said[1]]), supervised=False
        )
        placed, tiles = encoder.layout.cut(pngs)
        arrays = encoder.encode([talk], reply=True, pictures=placed)
        found.append(
            Prompt(tokens=arrays['tokens'], image_index=arrays['image_index'], tiles=tiles)
        )
    return found


@cache
def tiled():
    """Prompts about one picture of five tiles whose tokens are reduced, three pictures, none."""
    encoder, found = small.encoder(Pictures('anyres', 1, ((2, 2),))), []
    examples = [small.library().example(index) for index in range(24)]
    for count in (1, 3, 0):
        pngs = next((e.images for e in examples if len(e.images) == count), ())
        placed, tiles = encoder.layout.cut(pngs)
        talk = Turn(role='user', text=' '.join([*[IMAGE] * count, 'red']), supervised=False)
        arrays = encoder.encode([talk], reply=True, pictures=placed)
        found.append(
            Prompt(
                tokens=arrays['tokens'],
                image_index=arrays['image_index'],
                tiles=tiles,
                image_weight=arrays['image_weight'],
            )
        )
    assert [0 if p.tiles is None else len(p.tiles) for p in found] == [5, 3, 0]
    assert (found[0].image_weight[:, 1:] > 0).any()
    return found


@small.quick
def forward(params, tokens_BL, segments_BL, tiles, index_BLC, weight_BLC):
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    return MODEL.apply({'params': params}, tokens_BL, positions_BL, segments_BL, tiles, index_BLC,
                       weight_BLC)


def arrays_of(prompt, more):
    """The whole row as the model takes it: LENGTH tokens and five tiles, corners always four."""
    n, C, tiles = len(prompt.tokens), prompt.image_index.shape[1], 5
    ids, segments = np.zeros((2, 1, LENGTH), np.int32)
    ids[0, :n + len(more)] = [*prompt.tokens, *more]
    segments[0, :n + len(more)] = 1
    index, weight = np.full((1, LENGTH, 4), -1, np.int32), np.zeros((1, LENGTH, 4), np.float32)
    index[0, :n, :C] = np.where(prompt.image_index == NEWLINE, P * tiles, prompt.image_index)
    weight[0, :n, :C] = 1 if prompt.image_weight is None else prompt.image_weight
    seen = np.zeros((1, tiles, P, small.VISION.Q), np.uint8)
    if prompt.tiles is not None:
        seen[0, :len(prompt.tiles)] = prompt.tiles
    return ids, segments, seen, index, weight


_known = {}


def logits_of(prompt, more):
    """float32 [n, V]: what stands behind the prompt and behind each of `more`."""
    key = id(prompt), tuple(more)
    if key not in _known:
        n, found = len(prompt.tokens), forward(params(), *arrays_of(prompt, more))
        _known[key] = np.asarray(found[0, n - 1:n + len(more)])
    return _known[key]


drawn = jax.jit(choose, static_argnums=0)


def plain(request, decoding=GREEDY, encoder=LETTERS):
    """The `Reply` to one request."""
    (opened, closed, newline), stops = encoder.thought, {*encoder.stops, *decoding.stops} - {-1}
    ids, thought, answered, finish = [], 0, 0, ''
    close = '' if request.think is None else 'open'
    while not finish:
        logits_V = logits_of(request.prompt, ids)[-1].copy()
        logits_V[list(decoding.forbidden)] = -np.inf
        if len(ids) < decoding.min_new:
            logits_V[list(stops)] = -np.inf
        forced = None
        if close == 'open':
            logits_V[list(decoding.banned_thinking)] = -np.inf
            forced = (closed if thought >= request.think else
                      newline if thought == request.think - 1 and newline >= 0 else None)
        elif close:
            logits_V[closed] = -np.inf
        token = int(logits_V.argmax()) if forced is None else forced
        if forced is None and decoding.sampling.temperature > 0:
            token = int(drawn(decoding.sampling, logits_V[None], np.uint32(decoding.seed),
                              np.uint32([request.sample]), np.int32([len(ids)]))[0])
        if token in stops:
            finish = 'stop'
            break
        ids.append(token)
        if close != 'open':
            answered += 1
        elif token == closed:
            close = 'natural' if forced is None else 'forced'
        else:
            thought += not (token == opened and len(ids) == 1)
        text = encoder.text(ids)
        if any(stop in text for stop in decoding.stop_strings):
            finish = 'string'
        elif close != 'open' and answered >= request.limit:
            finish = 'length'
    text = encoder.text(ids)
    if finish == 'string':
        text = text[:min(text.find(s) for s in decoding.stop_strings if s in text)]
    return Reply(
        ids=tuple(ids),
        text=text,
        finish=finish,
        nll=nats(request),
        close=close,
        thought=thought,
        answered=answered,
    )


def nats(request):
    """Nats of the target behind the prompt, NaN without one."""
    if request.target is None:
        return float('nan')
    logits = logits_of(request.prompt, request.target)[:-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    rows = np.arange(len(request.target))
    return float((np.log(np.exp(logits).sum(-1)) - logits[rows, list(request.target)]).sum())


def asked(which=ALL, limit=None, **changes):
    """Requests about prompts `which`, of many lengths of reply."""
    return [
        Request(prompts()[k], limit=limit or 3 + 5 * k % 13, sample=7 * k, **changes) for k in which
    ]


def engine(slots=3, encoder=LETTERS, **settings):
    return Engine(MODEL, params(), encoder, slots, **settings)


def same(replies, wanted):
    """Replies are equal field by field; nats but for rounding."""
    for k, (reply, other) in enumerate(zip(replies, wanted, strict=True)):
        pairs = ((name, getattr(reply, name), getattr(other, name)) for name in (
            'ids', 'text', 'finish', 'close', 'thought', 'answered'))
        assert not [pair for pair in pairs if pair[1] != pair[2]], k
        np.testing.assert_allclose(reply.nll, other.nll, rtol=1e-4, atol=1e-5, err_msg=str(k))
    return True
