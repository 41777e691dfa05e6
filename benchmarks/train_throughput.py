"""Tokens per second of our training step on CPU, as ratios from one run on one machine.

Absolute numbers of a shared machine mean little, so everything is interleaved (A B C A B C ...) and
reported as a ratio: against a 2048^3 float32 matrix product, and, where torch and transformers are
installed, against `Qwen3ForCausalLM` of the same shape, torch's AdamW, same batch, all cores, as it
comes and with the memory setting of our console (`downscale/runtime/memory.py`).
"""
import importlib.util
import json
import multiprocessing
import os
import statistics
import time

from begin import begin, parser

ROWS, LENGTH, SIZE = 64, 160, 2048
SHAPES = ((64, 3), (128, 4))
KEPT = 'transformers, our malloc'


def arguments():
    made = parser(__doc__, 'train_throughput.py --repeats 7 --json out.json')
    made.add_argument('--repeats', type=int, default=5, help='timed rounds (default 5)')
    made.add_argument('--devices', type=int, default=2,
                        help='host devices to split the batch over; 1 leaves threading to XLA')
    made.add_argument('--xla-flags', default='', help='further XLA_FLAGS, for experiments')
    return begin(made, '3 minutes', {'repeats': 2})


def shape_of(width, depth):
    """The LanguageConfig of one shape."""
    from downscale.sizes import MICRO, scale
    return scale(MICRO['w64d3'], width, depth)


def make_step(shape):
    """A function that runs one step of ours and waits for it.

    The step is the one that `downscale` trains with, on its own mesh over all host devices, and
    with the memory setting of its console.
    """
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    import jax
    import numpy as np

    from downscale.config import Optimizer
    from downscale.model.init import init_params
    from downscale.model.vlm import Vlm
    from downscale.sharding import batch_sharding, mesh, shardings
    from downscale.sizes import SIGLIP
    from downscale.train.state import new_state
    from downscale.train.step import compiled_step

    model = Vlm(shape, SIGLIP['micro'], unroll=shape.N)
    optimizer, target = Optimizer(), mesh()
    draw = np.random.default_rng(0)
    batch = {'tokens': draw.integers(0, shape.V, (ROWS, LENGTH), np.int32),
             'positions': np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
             'segments': np.ones((ROWS, LENGTH), np.int32),
             'weights': np.ones((ROWS, LENGTH), np.float32)}
    with jax.set_mesh(target):
        state = new_state(init_params(model, 0, ('language',)), optimizer, ('language',))
        state = jax.device_put(state, shardings(state, target, model.rules))
        batch = jax.device_put(batch, batch_sharding(target, model.rules))
    step = compiled_step(model, 'tokens', optimizer, ('language',), target)
    held = [state]

    def run():
        with jax.set_mesh(target):
            held[0], metrics = step(held[0], batch, {'language': 1e-3})
            return float(metrics['loss'])
    return run


def make_torch_step(shape):
    """The same for transformers."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
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


def make_kept_torch_step(shape):
    """`make_torch_step` with our memory setting, to tell how much of a ratio that setting is."""
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    return make_torch_step(shape)


def make_matmul(_):
    """One float32 matrix product of 2048 x 2048 by 2048 x 2048 on one device, all threads."""
    import jax
    import jax.numpy as jnp
    x = jnp.ones((SIZE, SIZE))
    product = jax.jit(lambda a: a @ a)
    return lambda: product(x).block_until_ready()


def serve(pipe, make, shape):
    """In a process of its own: run whenever asked, and send the seconds."""
    run = make(shape)
    while pipe.recv():
        begin = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - begin)


def interleaved(makers, shape, repeats):
    """Seconds of every repeat of every run; two untimed rounds warm all of them up.

    Each has a process of its own, so that none lives in another's allocator or thread pool; only
    one of them works at a time.
    """
    context, pipes, workers = multiprocessing.get_context('spawn'), {}, []
    for name, make in makers.items():
        pipes[name], theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(theirs, make, shape), daemon=True))
        workers[-1].start()
    times = {name: [] for name in makers}
    for turn in range(repeats + 2):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if turn > 1:
                times[name].append(seconds)
    for pipe, worker in zip(pipes.values(), workers):
        pipe.send(False)
        worker.join()
    return times


def spread(values):
    """Half the distance between the fastest and the slowest, as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def measure(width, depth, repeats):
    """Times of one shape and the numbers that are printed of them."""
    from downscale.accounting import totals
    shape = shape_of(width, depth)
    makers = {'downscale': make_step, 'matmul': make_matmul}
    if importlib.util.find_spec('transformers') and importlib.util.find_spec('torch'):
        makers |= {'transformers': make_torch_step, KEPT: make_kept_torch_step}
    times, counts = interleaved(makers, shape, repeats), totals(shape)
    tokens, flops = ROWS * LENGTH, 6 * counts['n_active'] * ROWS * LENGTH
    peak = 2 * SIZE ** 3 / statistics.median(times['matmul'])
    result = {'width': width, 'depth': depth, 'parameters': counts['n_total'],
              'matmul_gflops': peak / 1e9, 'seconds': times, 'ratios': {}}
    for name in makers.keys() - {'matmul'}:
        seconds = statistics.median(times[name])
        result[name] = {'tokens_per_second': tokens / seconds, 'gflops_6nd': flops / seconds / 1e9,
                        'share_of_matmul': flops / seconds / peak, 'spread': spread(times[name])}
        ratios = [theirs / ours for ours, theirs in zip(times['downscale'], times[name])]
        if name != 'downscale':
            result['ratios'][name] = (statistics.median(ratios), spread(ratios))
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
        for name in ('downscale', 'transformers', KEPT):
            if name in result:
                r = result[name]
                print(f'  {name:26s}{r["tokens_per_second"]:8,.0f} tok/s +-{r["spread"]:.0%}'
                      f'{r["gflops_6nd"]:7.1f} GFLOP/s (6ND), {r["share_of_matmul"]:.0%} of matmul')
        for name, (ratio, around) in sorted(result['ratios'].items(), reverse=True):
            print(f'  downscale / {name}: {ratio:.2f} +-{around:.0%}', flush=True)
        if not result['ratios']:
            print('  transformers is not installed: pip install "downscale[bench]"', flush=True)
    if args.json:
        args.json.write_text(json.dumps({'devices': args.devices, 'shapes': results}, indent=1))


if __name__ == '__main__':
    main()
