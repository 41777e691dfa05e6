"""Does decoding depend on the batch here? A random tiny model answers, on this very hardware.

    python -m downscale.generate.selfcheck --prompts 40 --slots 1,5,13 --seed 0 --temperature 0.6

Ragged prompts with and without pictures, some of which think, are written under every listed
number of slots, in two orders, with and without refill, and on every mesh that the devices allow.
Tokens must be equal everywhere, and whole replies with the nats of their targets on each mesh.
Prints the first difference and exits with 1 if there is one. bfloat16 (`--dtype`) is not expected
to be identical on every device: there the share of rows that differ is what to look at.
"""
import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from downscale.runtime.progress import progress_bars
from downscale.runtime.setup import be_deterministic

if TYPE_CHECKING:  # JAX takes a second, which a wrong flag should not wait for
    from jax.sharding import Mesh

    from downscale.generate.requests import Request
    from downscale.model.vlm import Vlm


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(prog='python -m downscale.generate.selfcheck',
                                  description=__doc__.splitlines()[0])
    top.add_argument('--prompts', type=int, default=40, help='ragged prompts to write behind')
    top.add_argument('--slots', default='1,5,13,40', help='numbers of slots, comma-separated')
    top.add_argument('--seed', type=int, default=0, help='of weights, prompts and sampling')
    top.add_argument('--temperature', type=float, default=0.6, help='0 is greedy')
    top.add_argument('--tokens', type=int, default=24, help='most tokens of an answer')
    top.add_argument('--width', type=int, default=576, help='width of the model, a multiple of 32')
    top.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    top.add_argument('--deterministic', action='store_true', help='with the settings of XLA under '
                     'which a GPU repeats itself (as DOWNSCALE_DETERMINISTIC=1)')
    top.add_argument('--json', action='store_true', help='one JSON object')
    return top


def tiny(seed: int, dtype: str, width: int = 576) -> tuple['Vlm', dict[str, Any], 'Ids']:
    """Return (model, params, encoder) with loud random weights.

    With quiet ones a reply repeats its first token, whatever stands before it.
    """
    import jax

    from downscale.model.init import init_params
    from downscale.model.vlm import Vlm
    from downscale.sizes import LANGUAGE, VisionConfig, scale
    language = scale(LANGUAGE['micro']['w64d2'], width, 2, vocabulary=128)
    vision = VisionConfig(layers=1, W=32, H=2, F=64, patch=4, image=16)
    model = Vlm(language, vision, dtype=dtype)
    params = init_params(model, seed)
    loud = jax.tree.map(lambda leaf: 3 * leaf, params['language']['blocks'])
    return model, {**params, 'language': {**params['language'], 'blocks': loud}}, Ids()


class Ids:
    """As much of an encoder as the engine needs, where a text is its ids."""
    stops = (1,)
    thought = (2, 3, 4)
    context = 0

    def text(self, ids: Sequence[int]) -> str:
        """Return the ids with spaces between them."""
        return ' '.join(map(str, ids))


def ragged(model: 'Vlm', count: int, tokens: int, seed: int) -> list['Request']:
    """Return `count` requests of many lengths.

    A third show a picture, two of them the same one, a third think, half have a target.
    """
    import numpy as np

    from downscale.generate.requests import Prompt, Request
    rng = np.random.default_rng(seed)
    requests = []
    patches = model.vision.P
    pictures = rng.integers(0, 256, (1 + count // 6, 1, patches, model.vision.Q), dtype=np.uint8)
    for k in range(count):
        ids = rng.integers(5, model.language.V, rng.integers(1, 90)).astype(np.int32)
        index = np.full((len(ids), 1), -1, np.int32)
        tiles = None
        if k % 3 == 0:
            # Two requests, k and k + 3, show the same picture: what one has read serves the other.
            tiles = pictures[k // 6]
            ids = np.concatenate([np.zeros(patches, np.int32), ids])
            index = np.concatenate([np.arange(patches, dtype=np.int32)[:, None], index])
        prompt = Prompt(tokens=ids, image_index=index, tiles=tiles)
        # Drawn in this order: the requests of a seed are to stay the same.
        limit = int(rng.integers(1, tokens + 1))
        think = int(rng.integers(0, tokens)) if k % 3 == 1 else None
        target = tuple(range(5, 6 + k % 20)) if k % 2 else None
        requests.append(Request(prompt, limit=limit, sample=k, think=think, target=target))
    return requests


def meshes() -> dict[str, 'Mesh | None']:
    """Return {name: mesh} of the meshes that this machine's devices allow for the tiny model."""
    import jax

    from downscale.sharding import mesh
    devices = jax.local_devices()
    # `tensor` 2 splits sums over heads and MLP; `data` alone only spreads rows.
    of_name = {'one device': None}
    for tensor in (1, 2):
        if len(devices) > 1 and len(devices) % tensor == 0:
            data = len(devices) // tensor
            of_name[f'data {data} x tensor {tensor}'] = mesh(data, 1, tensor, devices)
    return of_name


def selfcheck(prompts: int, slots: Sequence[int], seed: int, temperature: float, tokens: int = 24,
              dtype: str = 'float32', width: int = 576,
              report: Callable[[int, int], object] = lambda done, total: None) -> dict[str, Any]:
    """Return {'identical', 'rows_that_differ', 'difference', ...} over all settings.

    Replies are compared with those of the first setting. `difference` says where the first row that
    differs does, None without one.
    """
    from downscale.generate.engine import Decoding, Engine
    from downscale.generate.sampling import Sampling
    model, params, encoder = tiny(seed, dtype, width)
    asked = ragged(model, prompts, tokens, seed)
    decoding = Decoding(sampling=Sampling(temperature), seed=seed)
    meshes_of_name = meshes()
    # Everything that must not matter: devices, slots, the order of requests, refill.
    settings = list(itertools.product(meshes_of_name, slots, (1, -1), (True, False)))
    first = None
    of_mesh = {}
    differing = 0
    difference = None
    for done, (name, count, order, refill) in enumerate(settings, 1):
        # pyrefly: ignore[bad-argument-type]
        engine = Engine(model, params, encoder, count, meshes_of_name[name], refill)
        replies = engine.write(asked[::order], decoding)[::order]
        first = first or replies
        # Whole replies only on the same mesh: a tensor axis splits sums, and nats may round there.
        alike = of_mesh.setdefault(name, replies)
        wrong = [k for k in range(prompts) if first[k].ids != replies[k].ids
                 or repr(alike[k]) != repr(replies[k])]  # NaN is NaN
        differing += len(wrong)
        if wrong and difference is None:
            at = _parting(first[wrong[0]].ids, replies[wrong[0]].ids)
            difference = {'prompt': wrong[0], 'token': at, 'mesh': name, 'slots': count,
                          'reversed': order < 0, 'refill': refill}
        report(done, len(settings))
    rows = prompts * (len(settings) - 1)
    return {'identical': differing == 0, 'settings': len(settings), 'rows': rows,
            'rows_that_differ': differing, 'flip_rate': differing / max(1, rows),
            'tokens': sum(len(reply.ids) for reply in first), 'temperature': temperature,
            'dtype': dtype, 'difference': difference}


def _parting(a, b):
    """Return the first place where two replies differ, or the length of the shorter one."""
    for place, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return place
    return min(len(a), len(b))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and return its exit code: 1 when a row differs, 2 for bad usage."""
    args = parser().parse_args(argv)
    try:
        slots = [int(text) for text in args.slots.split(',')]
        if min(args.prompts, *slots, args.tokens) < 1 or args.width % 32 or args.temperature < 0 \
                or not 0 <= args.seed < 2**32:
            raise ValueError
    except ValueError:
        parser().error('--prompts, --tokens and every number of --slots must be at least 1, as in '
                       '--slots 1,5,13; --width a multiple of 32, --temperature and --seed at '
                       'least 0')
    if args.deterministic:
        be_deterministic()
    with progress_bars(args.json) as bars:
        result = selfcheck(args.prompts, slots, args.seed, args.temperature, args.tokens,
                           args.dtype, args.width,
                           lambda done, total: bars('settings', done, total))
    if args.json:
        print(json.dumps(result))
    else:
        print(f'{"identical" if result["identical"] else "NOT identical"}: {result["settings"]} '
              f'settings, {result["rows_that_differ"]} of {result["rows"]} rows differ'
              + (f', first {result["difference"]}' if result['difference'] else ''))
    return 0 if result['identical'] else 1


if __name__ == '__main__':
    sys.exit(main())
