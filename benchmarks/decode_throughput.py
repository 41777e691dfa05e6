"""Tokens per second of greedy decoding on CPU against transformers, as ratios from one run.

The same float32 weights (SmolLM2-135M's shape with random values, or `--model` with real ones) on
both sides, two threads each, interleaved, every side in a process of its own. Fixed batches: 64
prompt tokens and 32 new ones. Ragged: 64 requests with prompts of 16 to 256 and replies of 8 to 128
tokens; transformers pads them to batches of 16, or takes them one at a time (measured once). Beside
each figure stand two bounds: memory (a step reads all weights and the cache once) and products (of
prompts and steps, nothing else, in the faster of XLA and torch). At batch 1 the latter is a bare
loop that reads each weight and multiplies it with a vector: what of the memory bound is reachable.
Then: does a step get slower by cache that is allocated and not used? Compiling is not timed.
"""
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from begin import begin, parser

FIXED, PROMPT, NEW, REQUESTS, SLOTS = (1, 8, 32), 64, 32, 64, 16
UNUSED, READ = (96, 4000), 1024  # prompt tokens that are multiplied at once where they are ragged
GOALS = {'batch 1': 1.5, 'batch 8': 2.0, 'batch 32': 2.0, 'ragged': 4.0, 'ragged, one by one': 8.0}


def arguments():
    made = parser(__doc__, 'decode_throughput.py --repeats 5')
    made.add_argument('--model', type=Path, help='Hugging Face folder of a Llama or Qwen model')
    made.add_argument('--repeats', type=int, default=3, help='timed rounds (default 3)')
    return begin(made, '15 minutes', {'repeats': 1})


def random_model(folder):
    """A Hugging Face folder of SmolLM2-135M's shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        rope_theta=100000.0, initializer_range=0.05))
    model.save_pretrained(folder)


def tasks(vocabulary):
    """{task: [(prompt ids, new tokens)]}."""
    import numpy as np
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(0, vocabulary, n).tolist()
    found = {f'batch {rows}': [(ids(PROMPT), NEW) for _ in range(rows)] for rows in FIXED}
    found['ragged'] = [(ids(rng.integers(16, 257)), int(rng.integers(8, 129)))
                       for _ in range(REQUESTS)]
    return found


class NoText:
    """As much of an encoder as the engine needs where only ids count and nothing ends a row but,
    where it is asked to, a number of tokens."""
    stops, context, thought, most = frozenset(), 0, (-1, -1, -1), 0

    def text(self, ids):
        return 'enough' if 0 < self.most <= len(ids) else ''


def make_ours(folder):
    """A function (task name, requests) -> ids of each reply."""
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    import numpy as np

    import downscale
    from downscale.convert.exchange import import_model
    from downscale.generate.engine import Engine, Prompt, Request
    with tempfile.TemporaryDirectory() as run:
        import_model(folder, Path(run) / 'run')
        model, params, _, _ = downscale.load(Path(run) / 'run', dtype=np.float32)
    engines = {}

    def run(name, asked):
        if name == 'unused cache':
            return step_seconds(model, params, *asked), {}
        if name == 'products':
            return xla_products(*asked), {}
        slots = min(SLOTS, len(asked)) if name == 'ragged' else len(asked)
        if slots not in engines:
            engines[slots] = Engine(model, params, NoText(), slots)
        asked = [
            Request(
                Prompt(tokens=np.asarray(ids, np.int32), image_index=np.full((len(ids), 1), -1)),
                limit=new,
            )
            for ids, new in asked
        ]
        replies = [list(reply.ids) for reply in engines[slots].write(asked)]
        return replies, engines[slots].stats.summary()
    return run


def step_seconds(model, params, *limits):
    """Seconds of a decode step of 8 rows that have come 64 to 160 tokens far, for each number of
    tokens that they might have written: the slope between 32 and 96 tokens."""
    import numpy as np

    from downscale.generate.engine import Decoding, Engine, Prompt, Request
    found, encoder = [], NoText()
    engine = Engine(model, params, encoder, 8)
    prompt = Prompt(tokens=np.arange(PROMPT, dtype=np.int32), image_index=np.full((PROMPT, 1), -1))
    for limit in limits:
        times = {32: [], 96: []}
        for _ in range(4):
            for encoder.most in times:
                begin = time.perf_counter()
                engine.write([Request(prompt, limit=limit)] * 8, Decoding(stop_strings=('enough',)))
                times[encoder.most].append(time.perf_counter() - begin)
        found.append((min(times[96]) - min(times[32])) / 64)
    return found


def matrices(config):
    """(inputs, outputs) of each product that a token takes through the layers, then of the head."""
    width, inner, heads, groups, head = sizes(config)
    layer = [(width, heads * head), (width, groups * head), (width, groups * head),
             (heads * head, width), (width, inner), (width, inner), (inner, width)]
    return config['num_hidden_layers'] * layer, [(width, config['vocab_size'])]


def xla_products(config, rows):
    """{number of rows: seconds of the layers' products, of the head's} under jit."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def multiply(x, weights):
        return [x[len(weight)] @ weight for weight in weights]

    def seconds(shapes, n):
        x = {width: jnp.ones((n, width)) for width, _ in shapes}
        weights = [jnp.ones(shape) for shape in shapes]
        return fastest(lambda: jax.block_until_ready(multiply(x, weights)))
    return {n: [seconds(shapes, n) for shapes in matrices(config)] for n in rows}


def torch_products(config, rows):
    """The same in torch."""
    import torch
    from torch.nn.functional import linear

    def seconds(shapes, n):
        x = {width: torch.ones(n, width) for width, _ in shapes}
        weights = [torch.ones(outputs, inputs) for inputs, outputs in shapes]
        return fastest(lambda: [linear(x[weight.shape[1]], weight) for weight in weights])
    return {n: [seconds(shapes, n) for shapes in matrices(config)] for n in rows}


def fastest(run):
    """Seconds of the best of five, after one that is not timed."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def make_theirs(folder):
    """The same for transformers; 'one by one' in a name takes requests singly."""
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(asked):
        longest, new = max(len(ids) for ids, _ in asked), max(new for _, new in asked)
        tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in asked])
        seen = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in asked])
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=seen, do_sample=False, pad_token_id=0,
                                 max_new_tokens=new, min_new_tokens=new, eos_token_id=None)
        return [row[longest:longest + n].tolist() for row, (_, n) in zip(out, asked)]

    def run(name, asked):
        if name == 'products':
            return torch_products(*asked), {}
        size = 1 if 'one by one' in name else SLOTS if name == 'ragged' else len(asked)
        parts = (generate(asked[at:at + size]) for at in range(0, len(asked), size))
        return [ids for part in parts for ids in part], {}
    return run


def serve(pipe, make, folder):
    """In a process of its own: answer (name, requests) with (seconds, replies, counters)."""
    run = make(folder)
    while task := pipe.recv():
        begin = time.perf_counter()
        replies, counters = run(*task)
        pipe.send((time.perf_counter() - begin, replies, counters))


def bandwidth():
    """Bytes per second that two threads read from memory, the best of ten."""
    import numpy as np
    halves = np.ones((2, 1 << 27), np.float32)
    best = 0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            begin = time.perf_counter()
            list(pool.map(np.max, halves))
            best = max(best, halves.nbytes / (time.perf_counter() - begin))
    return best


def sizes(config):
    """(width, MLP width, heads, key heads, width of a head) of a Hugging Face config."""
    width, heads = config['hidden_size'], config['num_attention_heads']
    return (width, config['intermediate_size'], heads, config['num_key_value_heads'],
            config.get('head_dim') or width // heads)


def memory_bound(config, asked, slots, rate):
    """Tokens per second if a step did nothing but read the weights and the live cache, with all
    `slots` busy; reading prompts is left out."""
    _, _, _, groups, head = sizes(config)
    weights = 4 * sum(a * b for shapes in matrices(config) for a, b in shapes)
    live = statistics.mean(len(ids) + new / 2 for ids, new in asked)
    cache = 8 * config['num_hidden_layers'] * groups * head * live
    return slots / ((weights + slots * cache) / rate)


def product_bound(asked, slots, read, products):
    """Tokens per second if prompts, `read` tokens at once, and steps of `slots` rows were products
    alone, no slot ever idle; `products` are those of `xla_products`."""
    prompts, new = sum(len(ids) for ids, _ in asked), sum(new for _, new in asked)
    return new / (prompts / read * products[read][0] + new / slots * sum(products[slots]))


def at_once(name, asked):
    """(slots, prompt tokens that are read at once) of a task."""
    return (SLOTS, READ) if 'ragged' in name else (len(asked), PROMPT * len(asked))


def measure(folder, repeats):
    """{task: {'ours', 'theirs': seconds}, ...} of interleaved rounds; the first is not timed."""
    config = json.loads((folder / 'config.json').read_text())
    work = tasks(config['vocab_size'])
    rounds = [(name, name, asked) for name, asked in work.items()]
    rounds.append(('ragged, one by one', 'ragged', work['ragged']))
    context, pipes = multiprocessing.get_context('spawn'), {}
    for side, make in (('ours', make_ours), ('theirs', make_theirs)):
        pipes[side], far = context.Pipe()
        context.Process(target=serve, args=(far, make, folder), daemon=True).start()
    found = {name: {'ours': [], 'theirs': []} for name, _, _ in rounds}
    for turn in range(repeats + 1):
        for name, ours, asked in rounds:
            if ours != name and turn < repeats:
                continue  # minutes long: once, at the end, when both sides are warm
            replies = {}
            for side, task in (('ours', ours), ('theirs', name)):
                if side == 'ours' and ours != name:
                    found[name][side].append(found[ours][side][-1])
                    continue
                pipes[side].send((task, asked))
                seconds, replies[side], counters = pipes[side].recv()
                if turn:
                    found[name][side].append(seconds)
                if side == 'ours':
                    found[name]['counters'] = counters
            if len(replies) == 2:
                pairs = [(a, b) for x, y in zip(*replies.values()) for a, b in zip(x, y)]
                found[name]['same'] = sum(a == b for a, b in pairs) / len(pairs)
            print(f'  round {turn} of {repeats}: {name}', flush=True)
    pipes['ours'].send(('unused cache', UNUSED))
    _, steps, _ = pipes['ours'].recv()
    products, rows = [], {n for name, _, asked in rounds for n in at_once(name, asked)}
    for pipe in pipes.values():
        pipe.send(('products', (config, sorted(rows))))
        products.append(pipe.recv()[1])
    best = {n: [min(pair) for pair in zip(*(side[n] for side in products))] for n in rows}
    for pipe in pipes.values():
        pipe.send(None)
    return config, work, found, steps, best


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    with tempfile.TemporaryDirectory() as made:
        if args.model is None:
            random_model(made)
        rate = bandwidth()
        print(f'memory: {rate / 1e9:.1f} GB/s read by two threads')
        config, work, found, steps, products = measure(args.model or Path(made), args.repeats)
    for name, row in found.items():
        asked = work['ragged' if 'ragged' in name else name]
        tokens = sum(new for _, new in asked)
        ours, theirs = (tokens / statistics.median(row[side]) for side in ('ours', 'theirs'))
        ratios = [b / a for a, b in zip(row['ours'], row['theirs'])]
        row['ratio'], row['tokens'] = statistics.median(ratios), tokens
        slots, read = at_once(name, asked)
        row['memory bound'] = memory_bound(config, asked, slots, rate)
        row['product bound'] = product_bound(asked, slots, read, products)
        bounds = ', '.join(f'{kind} {row[kind]:.0f} tok/s ({ours / row[kind]:.0%} of it; that is '
                           f'{row[kind] / theirs:.2f} x theirs)'
                           for kind in ('memory bound', 'product bound'))
        agree = f', {row["same"]:.1%} of tokens equal' if 'same' in row else ''
        reachable = row['product bound'] / row['memory bound']
        print(f'{name:20s}{ours:8.1f} tok/s against {theirs:7.1f}: {row["ratio"]:.2f} '
              f'({min(ratios):.2f} to {max(ratios):.2f}; goal {GOALS[name]}){agree}\n{"":20s}'
              f'{bounds}; the products reach {reachable:.0%} of the memory bound', flush=True)
        if 'counters' in row:
            c = row['counters']
            print(f'{"":20s}slot occupancy {c["slot_occupancy"]:.0%}, padding of prompts '
                  f'{c["padding_waste"]:.0%}, {c["compiles"]} compilations in '
                  f'{c["compile_seconds"]:.0f} s')
    print('decode step of 8 rows, at most 160 tokens far, by the tokens they may write: '
          + ', '.join(f'{limit}: {1e3 * s:.1f} ms' for limit, s in zip(UNUSED, steps)))
    if args.json:
        found |= {'bandwidth': rate, 'step_seconds': dict(zip(UNUSED, steps))}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
