"""Do activations change alike at every size, as muP (width) and CompleteP (depth) promise?

Models of 4 widths, and of 4 depths, from 3 seeds are trained for 4 steps at one large rate. The
slope of log2(mean absolute change of an activation) against log2(size) has to lie within +-0.15
under muP, and above 0.3 in standard parametrisation where it is known to grow: at the outputs of
attention and MLP over the width, of attention and of the last block over the depth. Exit code 1
otherwise. Two may fall under muP. Logits over the width: what the blocks change reaches them first
through the random head, whose part of them falls as 1 / sqrt(m). And the last block's output over
the depth: random branches add up to 1 / sqrt(l) of what they are at the base, in its size as in its
change. Norms, which all its readers begin with, see their ratio: `share`, which has to be level.

Command:   python benchmarks/coordinate_check.py
Hardware:  2 CPU cores
Time:      2 minutes of processor time
"""
import argparse
import json
import sys
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from downscale.config import Optimizer
from downscale.generate import forward
from downscale.model.init import init_params
from downscale.model.language import Block, causal_mask
from downscale.model.layers import attend, rotary
from downscale.model.vlm import Vlm
from downscale.sharding import mesh
from downscale.sizes import KINDS, MICRO, Parametrisation, VisionConfig, scale
from downscale.train.state import new_state
from downscale.train.step import compiled_step

BASE_WIDTH, BASE_DEPTH, VOCABULARY, TILE = 32, 2, 64, 4
WIDTHS, DEPTHS, SEEDS, STEPS, RATE = (32, 64, 128, 256), (2, 4, 8, 16), (0, 1, 2), 4, 2 ** -7
TOWER = VisionConfig(layers=1, W=32, H=2, F=64, patch=8, image=16)
TRAINED = ('language', 'connector')
FLAT, STEEP = 0.15, 0.3
GROWS = {'width': ('attention', 'mlp'), 'depth': ('attention', 'stream')}
FALLS = {'width': ('logits',), 'depth': ('stream',)}


def model_of(kind, width, depth):
    """A text and image model of this size, whose base is 32 wide and 2 deep."""
    language = scale(MICRO['w64d2'], width, depth, VOCABULARY)
    growth = Parametrisation(kind=kind, base_width=BASE_WIDTH, base_depth=BASE_DEPTH).growth(
        language
    )
    return Vlm(language, TOWER, growth=growth)


def batch_of(seed, rows=8, length=32):
    """One batch of a picture, the newline and random text in each row."""
    draw = np.random.default_rng(seed)
    index_L = np.full(length, -1)
    index_L[:TILE + 1] = np.arange(TILE + 1)
    weights_BL = np.ones((rows, length), np.float32)
    weights_BL[:, :TILE + 1] = 0
    return {'tokens': draw.integers(0, VOCABULARY, (rows, length), np.int32),
            'positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            'segments': np.ones((rows, length), np.int32), 'weights': weights_BL,
            'tiles': draw.standard_normal((rows, 1, TOWER.P, TOWER.Q), np.float32),
            'image_index': np.tile(index_L.astype(np.int32)[:, None], (rows, 1, 1))}


def activations(model, params, batch):
    """{module: its outputs on `batch`}, those of blocks stacked over layers."""
    positions_BL, mask_BLS = batch['positions'], causal_mask(batch['segments'])
    turn = rotary(positions_BL, model.language.E, model.language.theta)
    block = Block(model.language, model.rules, growth=model.growth)
    seen_BPD = forward.see(model, params, batch['tiles'][:, 0])
    text_BLD = forward.embed(model, params, batch['tokens'])
    x_BLD = forward.show(model, params, text_BLD, seen_BPD, batch['image_index'], None)

    def layer(x_BLD, weights):
        (x_BLD, _), taken = block.apply(
            {'params': weights}, x_BLD, turn, lambda q, k, v: (attend(q, k, v, mask_BLS), None),
            capture_intermediates=True, mutable=['intermediates'])
        taken = taken['intermediates']
        return x_BLD, {'attention': taken['attention']['__call__'][0][0],
                       'mlp': taken['mlp']['__call__'][0], 'stream': x_BLD}

    x_BLD, taken = jax.lax.scan(layer, x_BLD, params['language']['blocks'])
    return taken | {'embedding': text_BLD, 'connector': seen_BPD, 'stream': x_BLD,
                    'logits': forward.logits(model, params, x_BLD)}


def quick(function, *arguments):
    """`function` compiled for `arguments`, optimised little: compiling costs more than running."""
    return function.lower(*arguments).compile(compiler_options={
        'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True})


@lru_cache
def changes(model, seeds=SEEDS, rate=RATE):
    """{module: mean over seeds of the mean absolute change of its outputs after the last step}.

    `share` is that of the stream divided by its mean absolute size at the start.
    """
    devices = mesh(devices=jax.devices()[:1])
    rates, found, look = {group: jnp.float32(rate) for group in TRAINED}, [], None
    for seed in seeds:
        batch = batch_of(seed)
        with jax.set_mesh(devices):
            state = jax.device_put(new_state(init_params(model, seed), Optimizer(), TRAINED))
            if look is None:
                look = quick(jax.jit(partial(activations, model)), state['params'], batch)
                step = quick(compiled_step(model, 'tokens', Optimizer(), TRAINED, devices),
                             state, batch, rates)
            before = jax.device_get(look(state['params'], batch))
            for _ in range(STEPS):
                state, _ = step(state, batch, rates)
            after = jax.device_get(look(state['params'], batch))
        change = {name: np.abs(after[name] - before[name]).mean() for name in before}
        found.append(change | {'share': change['stream'] / np.abs(before['stream']).mean()})
    return {name: float(np.mean([change[name] for change in found])) for name in found[0]}


def slope(sizes, values):
    """The slope of log2(values) against log2(sizes), by least squares."""
    return float(np.polyfit(np.log2(sizes), np.log2(values), 1)[0])


def slopes(kind, axis, sizes, seeds=SEEDS, rate=RATE):
    """({module: slope over the sizes along `axis`}, {module: its change at each size})."""
    points = [(size, BASE_DEPTH) if axis == 'width' else (BASE_WIDTH, size) for size in sizes]
    found = [changes(model_of(kind, *point), seeds, rate) for point in points]
    table = {name: [change[name] for change in found] for name in found[0]}
    return {name: slope(sizes, values) for name, values in table.items()}, table


def faults(kind, axis, slopes):
    """What of a coordinate check's slopes is not as it has to be, one line each."""
    if kind == 'mup':
        return [f'{kind} over {axis}: {name} has slope {value:+.2f}, not within +-{FLAT}'
                for name, value in slopes.items()
                if value > FLAT or value < -FLAT and name not in FALLS[axis]]
    return [f'{kind} over {axis}: {name} has slope {slopes[name]:+.2f}, not above {STEEP}: this '
            'check could not fail' for name in GROWS[axis] if slopes[name] <= STEEP]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='example: python benchmarks/coordinate_check.py')
    parser.add_argument('--rate', type=float, default=RATE, help=f'learning rate ({RATE:g})')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to FILE')
    asked = parser.parse_args()
    wrong, figures = [], {}
    for axis, sizes in (('width', WIDTHS), ('depth', DEPTHS)):
        for kind in KINDS:
            found, table = slopes(kind, axis, sizes, rate=asked.rate)
            figures[f'{kind} {axis}'] = {'sizes': sizes, 'slopes': found, 'changes': table}
            for name, value in found.items():
                print(f'{kind:9} {axis} {name:10} {value:+.2f}  ',
                      ' '.join(f'{change:.2e}' for change in table[name]), flush=True)
            wrong += faults(kind, axis, found)
    if asked.json:
        with open(asked.json, 'w') as file:
            json.dump(figures, file, indent=1)
    print('\n'.join(wrong) or 'as it should be')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
