"""Does an imported checkpoint compute what its original computed? A folder that says so itself.

The folder holds a checkpoint (`config.json`, safetensors) that `convert/` reads, `image.png`, and
`expected.npz` with what the original code gave in float32 (I tiles, -200 marks the picture):
`pixel_values` [I, 3, size, size]; `vision_features_head`, `projected_head` (the first patches of
every tile); `input_ids`, `inputs_embeds_shape`, `inputs_embeds_head`, `inputs_embeds_tail`,
`logits_last` (last positions) and `greedy_ids` of a prompt with the picture;
`single_tile_embeds_shape` of the same prompt in the connector stage; `text_ids`, `text_logits`.
What is absent is not checked.
"""
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from downscale.config import Experiment
from downscale.convert.source import open_source
from downscale.data import images
from downscale.generate.engine import Engine, Prompt, Request
from downscale.generate.requests import prompt_arrays
from downscale.model.connector import Connector
from downscale.model.vision import Tower, scaled
from downscale.model.vlm import splice
from downscale.stages.models import model_of

PICTURE = -200
TOLERANCE = 1e-4  # of the largest magnitude of each array, float32
LEVEL = 1 / 255  # of a pixel value: the expected ones may be stored in half precision
_WITH_TILES = ('pixel_values', 'vision_features_head', 'projected_head')
# Array -> which part of ours is compared with it: of every tile, or of the prompt, as many from the
# beginning ('head') or from the end ('tail') as it has.
_PARTS = {
    'pixel_values': 'whole',
    'vision_features_head': 'head of tiles',
    'projected_head': 'head of tiles',
    'inputs_embeds_head': 'head',
    'inputs_embeds_tail': 'tail',
    'logits_last': 'tail',
    'text_logits': 'whole',
}


def parity(folder: Path) -> dict[str, Any]:
    """Return {'passed', 'relative_error': {array: value}, 'greedy_equal', 'token_count_equal'}.

    `relative_error` is the largest difference as a share of the largest expected magnitude, for
    `pixel_values` the largest difference itself; infinite where shapes differ. The two other
    entries are None where nothing was expected of them. FileNotFoundError and ValueError in one
    line when the folder lacks something or its checkpoint cannot be imported.
    """
    folder = Path(folder)
    expected = _expected(folder)
    source = open_source(folder)
    if source.language is None or source.vision is None:
        raise ValueError(f'{folder} holds a {source.architecture}; parity needs a tower and a '
                         'language model')
    cell = Experiment(
        name='parity',
        size=source.architecture,
        seed=0,
        language=source.language,
        vision=source.vision,
        # pyrefly: ignore[bad-argument-type]
        pictures=source.pictures,
    )
    params = jax.tree.map(lambda leaf: leaf.read().astype(np.float32), source.leaves)
    # pyrefly: ignore[bad-argument-type]
    placed, tiles = images.cut((folder / 'image.png').read_bytes(), cell.vision, cell.pictures)
    prompt = _prompt(expected['input_ids'].reshape(-1), placed, tiles)
    errors = _errors(_computed(cell, params, prompt, expected), expected, cell.vision)
    # In the connector stage the same picture is one tile of P tokens.
    counts = {'inputs_embeds_shape': len(prompt.tokens),
              'single_tile_embeds_shape': len(prompt.tokens) - placed.tokens + cell.vision.P}
    right = [int(expected[name][1]) == count for name, count in counts.items() if name in expected]
    greedy = None
    if 'greedy_ids' in expected:
        greedy = _greedy(cell, params, prompt, expected['greedy_ids'])
    close = all(error <= (LEVEL if name == 'pixel_values' else TOLERANCE)
                for name, error in errors.items())
    return {'passed': close and greedy is not False and all(right), 'relative_error': errors,
            'greedy_equal': greedy, 'token_count_equal': all(right) if right else None}


def _expected(folder):
    """Return the arrays of `expected.npz`, once everything that the folder needs is there."""
    for name in ('expected.npz', 'image.png'):
        if not (folder / name).is_file():
            raise FileNotFoundError(f'no {name} in {folder}; a parity folder has config.json, '
                                    'safetensors, image.png and expected.npz')
    with np.load(folder / 'expected.npz', allow_pickle=False) as arrays:
        expected = dict(arrays)
    if 'input_ids' not in expected or (expected['input_ids'] == PICTURE).sum() != 1:
        raise ValueError(f'{folder / "expected.npz"} needs input_ids with one {PICTURE}, the place '
                         'of the picture')
    return expected


def _prompt(ids, placed, tiles):
    """Return the `Prompt` of token ids whose one PICTURE gives way to the tokens of the picture."""
    at = int(np.flatnonzero(ids == PICTURE)[0])
    tokens = np.concatenate([ids[:at], np.zeros(placed.tokens, ids.dtype), ids[at + 1:]])
    around = ((at, len(ids) - at - 1), (0, 0))
    return Prompt(
        tokens=tokens.astype(np.int32),
        image_index=np.pad(placed.index_LC, around, constant_values=-1),
        tiles=tiles,
        image_weight=np.pad(placed.weight_LC, around),
    )


def _computed(cell, params, prompt, expected):
    """Return {name: our whole array} of everything of which the expected arrays show a part."""
    model = model_of(cell)
    tiles_IPQ = prompt.tiles
    tokens_BL, index_BLC, weight_BLC = prompt_arrays(
        [prompt], len(prompt.tokens), cell.vision, len(prompt.tiles), whole=True)
    features_IPW = Tower(cell.vision).apply({'params': params['tower']}, tiles_IPQ)
    projected_IPD = Connector(cell.language.D).apply({'params': params['connector']}, features_IPW)
    features_LD = projected_IPD.reshape(-1, cell.language.D)
    if model.newline:
        features_LD = jnp.concatenate([features_LD, params['image_newline_D'][None]])
    image_BLD = splice(features_LD[None], index_BLC, weight_BLC)
    embedded_BLD = jnp.asarray(params['language']['embedding_VD'])[tokens_BL]
    embedded_BLD = jnp.where(index_BLC[:, :, :1] >= 0, image_BLD, embedded_BLD)
    ours = {'pixel_values': scaled(tiles_IPQ), 'vision_features_head': features_IPW,
            'projected_head': projected_IPD, 'inputs_embeds_head': embedded_BLD[0],
            'inputs_embeds_tail': embedded_BLD[0]}
    if 'logits_last' in expected:
        ours['logits_last'] = _logits(model, params, tokens_BL, tiles_IPQ[None], index_BLC,
                                      weight_BLC)[0]
    if 'text_logits' in expected:
        alone = {'language': params['language']}
        ids_BL = expected['text_ids'].reshape(1, -1).astype(np.int32)
        ours['text_logits'] = _logits(model, alone, ids_BL)[0]
    return ours


def _logits(model, params, tokens_BL, *pictures):
    """Return logits [B, L, V] of whole rows."""
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    return jax.jit(model.apply)({'params': params}, tokens_BL, positions_BL,
                                jnp.ones_like(positions_BL), *pictures)


def _errors(ours, expected, vision):
    """Return {name: largest difference} of the arrays that both have, relative but for pixels."""
    errors = {}
    for name in ours.keys() & expected.keys():
        theirs = np.asarray(expected[name], np.float64)
        if name == 'pixel_values':  # pixels beyond the last whole patch are not used
            theirs = np.stack([images.patchify(tile.transpose(1, 2, 0), vision.patch)
                               for tile in theirs])
        theirs = theirs.reshape(theirs.shape[-3:] if name in _WITH_TILES else theirs.shape[-2:])
        part = np.asarray(_part(name, ours[name], theirs.shape), np.float64)
        worst = np.abs(part - theirs).max() if part.shape == theirs.shape else np.inf
        scale = 1 if name == 'pixel_values' else max(np.abs(theirs).max(), 1e-30)
        errors[name] = float(worst / scale)
    return dict(sorted(errors.items()))


def _part(name, array, shape):
    """Return the part of our `array` that is compared with the expected one of this `shape`."""
    part = _PARTS[name]
    if part == 'head of tiles':
        return array[:, :shape[1]]
    if part == 'head':
        return array[:shape[0]]
    return array[-shape[0]:] if part == 'tail' else array


class _Ids:
    """As much of an encoder as the engine needs: no id ends a reply, the original had a length."""
    stops = frozenset()
    context = 0
    thought = (-1, -1, -1)

    def text(self, ids):
        """Return no text: ids are compared."""
        return ''


def _greedy(cell, params, prompt, expected):
    """Return whether greedy decoding behind the prompt gives these ids."""
    wanted = np.asarray(expected).reshape(-1).tolist()
    reply, = Engine(model_of(cell), params, _Ids(), 1).write([Request(prompt, limit=len(wanted))])
    return list(reply.ids) == wanted
