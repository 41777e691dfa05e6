"""Tokens per second of our training step on CPU, as ratios from one run on one machine.

Absolute numbers of a shared machine mean little, so everything is interleaved (A B C A B C ...) and
reported as a ratio: against a 2048^3 float32 matrix product, and, where torch and transformers are
installed, against `Qwen3ForCausalLM` of the same shape, torch's AdamW, same batch, all cores.
"""
import argparse
import json
import os
import statistics
import time

ROWS, LENGTH, SIZE = 64, 160, 2048
SHAPES = ((64, 3), (128, 4))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/train_throughput.py --repeats 7 --json out.json')
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds (default 5)')
    parser.add_argument('--devices', type=int, default=2,
                        help='host devices to split the batch over; 1 leaves threading to XLA')
    parser.add_argument('--xla-flags', default='', help='further XLA_FLAGS, for experiments')
    parser.add_argument('--json', metavar='FILE', help='also write every time to FILE')
    return parser.parse_args()


def make_step(width, depth):
    """(a function that runs one step of ours and waits for it, the shape, its parameter counts).

    The step is the one that `downscale` trains with, on its own mesh over all host devices.
    """
    import jax
    import numpy as np

    from downscale.accounting import totals
    from downscale.model.init import init_params
    from downscale.model.vlm import Vlm
    from downscale.sharding import batch_sharding, mesh
    from downscale.sizes import MICRO, SIGLIP, scale
    from downscale.train.optimizer import Optimizer
    from downscale.train.state import new_state, state_shardings
    from downscale.train.step import compiled_step

    shape = scale(MICRO['w64d3'], width, depth)
    model, optimizer, target = Vlm(shape, SIGLIP['micro'], unroll=depth), Optimizer(), mesh()
    draw = np.random.default_rng(0)
    batch = {'tokens': draw.integers(0, shape.V, (ROWS, LENGTH), np.int32),
             'positions': np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
             'segments': np.ones((ROWS, LENGTH), np.int32),
             'weights': np.ones((ROWS, LENGTH), np.float32)}
    with jax.set_mesh(target):
        state = new_state(init_params(model, 0, ('language',)), optimizer, ('language',))
        state = jax.device_put(state, state_shardings(state, target, model.rules))
        batch = jax.device_put(batch, batch_sharding(target, model.rules))
    step = compiled_step(model, 'tokens', optimizer, ('language',), target)
    held = [state]

    def run():
        with jax.set_mesh(target):
            held[0], metrics = step(held[0], batch, {'language': 1e-3})
            return float(metrics['loss'])
    return run, shape, totals(shape)


def make_torch_step(shape):
    """The same for transformers, or None where it is not installed."""
    try:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count())
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=shape.V, hidden_size=shape.D, intermediate_size=shape.F,
        num_hidden_layers=shape.N, num_attention_heads=shape.H, num_key_value_heads=shape.K,
        head_dim=shape.E, tie_word_embeddings=shape.tie, use_cache=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens_BL = torch.randint(0, shape.V, (ROWS, LENGTH))

    def run():
        loss = model(input_ids=tokens_BL, labels=tokens_BL).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return run


def make_matmul():
    """One float32 matrix product of 2048 x 2048 by 2048 x 2048 on one device, all threads."""
    import jax
    import jax.numpy as jnp
    x = jnp.ones((SIZE, SIZE))
    product = jax.jit(lambda a: a @ a)
    return lambda: product(x).block_until_ready()


def interleaved(runs, repeats):
    """Seconds of every repeat of every run; one untimed round warms all of them up."""
    times = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return times


def spread(values):
    """Half the distance between the fastest and the slowest, as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def measure(width, depth, repeats):
    """Times of one shape and the numbers that are printed of them."""
    ours, shape, counts = make_step(width, depth)
    runs = {'downscale': ours, 'transformers': make_torch_step(shape), 'matmul': make_matmul()}
    times = interleaved({name: run for name, run in runs.items() if run}, repeats)
    tokens, flops = ROWS * LENGTH, 6 * counts['n_active'] * ROWS * LENGTH
    peak = 2 * SIZE ** 3 / statistics.median(times['matmul'])
    result = {'width': width, 'depth': depth, 'parameters': counts['n_total'],
              'matmul_gflops': peak / 1e9, 'seconds': times}
    for name in times.keys() - {'matmul'}:
        seconds = statistics.median(times[name])
        result[name] = {'tokens_per_second': tokens / seconds, 'gflops_6nd': flops / seconds / 1e9,
                        'share_of_matmul': flops / seconds / peak, 'spread': spread(times[name])}
    if 'transformers' in times:
        ratios = [theirs / ours for ours, theirs in zip(times['downscale'], times['transformers'])]
        result['ratio'], result['ratio_spread'] = statistics.median(ratios), spread(ratios)
    return result


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} {args.xla_flags} '
                               f'--xla_force_host_platform_device_count={args.devices}')
    results = []
    for width, depth in SHAPES:
        result = measure(width, depth, args.repeats)
        results.append(result)
        print(f'width {width}, {depth} layers, {result["parameters"]:,} parameters, {ROWS} x '
              f'{LENGTH} tokens; matmul {result["matmul_gflops"]:.0f} GFLOP/s', flush=True)
        for name in ('downscale', 'transformers'):
            if name in result:
                r = result[name]
                print(f'  {name:13s}{r["tokens_per_second"]:8,.0f} tok/s +-{r["spread"]:.0%}'
                      f'{r["gflops_6nd"]:7.1f} GFLOP/s (6ND), {r["share_of_matmul"]:.0%} of matmul')
        if 'ratio' in result:
            print(f'  downscale / transformers: {result["ratio"]:.2f} +-'
                  f'{result["ratio_spread"]:.0%}', flush=True)
        else:
            print('  transformers is not installed: pip install "downscale[bench]"', flush=True)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump({'devices': args.devices, 'shapes': results}, file, indent=1)


if __name__ == '__main__':
    main()
