"""Does the best learning rate stay where it is when the model gets wider?

Models of three widths over a factor 4 learn a random Markov chain at each rate of a grid of
factors 2 and from two seeds. Under muP the best rate has to move by at most one step of the grid
and the widest model, at the rate tuned for the narrowest, must not be worse than it. Exit code 1
otherwise. Standard parametrisation is trained for comparison and judges nothing.

Command:   python benchmarks/lr_transfer.py
Hardware:  2 CPU cores
Time:      3 minutes of processor time for each kind
"""
import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from downscale.config import Optimizer
from downscale.laws.learning_rates import RateRun, choose_all, moved
from downscale.model.init import init_params
from downscale.model.vlm import Vlm
from downscale.schedule import Schedule
from downscale.sharding import mesh
from downscale.sizes import KINDS, MICRO, Parametrisation, scale
from downscale.train.state import new_state
from downscale.train.step import compiled_step

WIDTHS, DEPTH, VOCABULARY, SEEDS, STEPS = (32, 64, 128), 2, 64, (0, 1), 100
RATES = tuple(2.0 ** -power for power in range(11, 3, -1))
ROWS, LENGTH, LAST, NOISE = 16, 32, 10, 1e-2


def batches(seed):
    """`STEPS` batches of one Markov chain over the vocabulary, whose rows are drawn by `seed`."""
    chain_VV = np.random.default_rng(0).standard_normal((VOCABULARY, VOCABULARY)) * 2
    draw = np.random.default_rng([1, seed])
    for _ in range(STEPS):
        tokens_BL = np.zeros((ROWS, LENGTH), np.int32)
        tokens_BL[:, 0] = draw.integers(0, VOCABULARY, ROWS)
        for place in range(1, LENGTH):
            # The largest of scores with Gumbel noise is a draw from their softmax.
            noise_BV = draw.gumbel(size=(ROWS, VOCABULARY))
            tokens_BL[:, place] = (chain_VV[tokens_BL[:, place - 1]] + noise_BV).argmax(1)
        yield {'tokens': tokens_BL, 'segments': np.ones_like(tokens_BL),
               'positions': np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
               'weights': np.ones((ROWS, LENGTH), np.float32)}


def model_of(kind, width):
    """A text model of this width, whose base is the narrowest."""
    language = scale(MICRO['w64d2'], width, DEPTH, VOCABULARY)
    return Vlm(
        language,
        None,
        growth=Parametrisation(kind=kind, base_width=WIDTHS[0], base_depth=DEPTH).growth(language),
    )


def final_loss(model, seed, rate, data):
    """The mean loss of the last steps of a run; infinite where it diverged."""
    devices, losses = mesh(devices=jax.devices()[:1]), []
    schedule = Schedule(steps=STEPS, warmup=0.1)
    step = compiled_step(model, 'tokens', Optimizer(), ('language',), devices)
    with jax.set_mesh(devices):
        params = init_params(model, seed, ('language',))
        state = jax.device_put(new_state(params, Optimizer(), ('language',)))
        for number, batch in enumerate(data):
            now = {'language': jnp.float32(rate * schedule.factor(number))}
            state, metrics = step(state, batch, now)
            losses.append(metrics['loss'])
    return float(np.mean(jax.device_get(losses[-LAST:])))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog='example: python benchmarks/lr_transfer.py --kind mup')
    parser.add_argument('--kind', choices=KINDS, nargs='*', default=KINDS)
    parser.add_argument('--json', metavar='FILE', help='also write the figures to FILE')
    asked = parser.parse_args()
    data, figures, wrong = {seed: list(batches(seed)) for seed in SEEDS}, {}, []
    for kind in asked.kind:
        runs = {}
        for width in WIDTHS:
            model = model_of(kind, width)
            runs[width] = [RateRun(rate, seed, final_loss(model, seed, rate, data[seed]))
                           for rate in RATES for seed in SEEDS]
        choices, alarms = choose_all(runs)
        figures[kind] = {width: choice.grid for width, choice in choices.items()}
        for width, choice in choices.items():
            print(f'{kind:9} width {width:4}  best {choice.lr:.2e}  ',
                  ' '.join(f'{loss:.3f}' for _, loss in choice.grid), flush=True)
        print('\n'.join([*alarms, f'{kind}: the best rate moves by {moved(choices)} steps']))
        tuned = choices[WIDTHS[0]]
        wide = dict(choices[WIDTHS[-1]].grid)[tuned.lr]
        if kind == 'mup' and moved(choices) > 1:
            wrong.append(f'mup: the best rate moves by {moved(choices)} steps of the grid')
        if kind == 'mup' and wide > tuned.loss + NOISE:
            wrong.append(f'mup: at lr {tuned.lr:g} the widest model is worse ({wide:.3f}) than the '
                         f'narrowest ({tuned.loss:.3f})')
    if asked.json:
        with open(asked.json, 'w') as file:
            json.dump(figures, file, indent=1)
    print('\n'.join(wrong) or 'as it should be')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
