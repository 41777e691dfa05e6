"""The parts of benchmarks/gpu.py: each yields figures as dicts with a name, as it measures them.

`refused` says why a program cannot be, `wrong` is true where a figure proves a fault.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

WRONG = 2 ** -5  # of the largest number: more than bfloat16 (8 bits) rounds in one attention
ROOT = Path(__file__).resolve().parents[1]
# Rows, tokens, tiles of a row; (B, L) of attention alone.
SHAPES = {'full': {'text': (8, 2048, 0), 'extraction': (2, 9216, 37)},
          'quick': {'text': (8, 2048, 0)}, 'dry': {'text': (2, 64, 0), 'extraction': (2, 96, 2)}}
ATTENTION = {'full': ((8, 2048), (2, 9216)), 'quick': ((8, 2048),), 'dry': ((2, 64),)}
ROWS = {'full': (1, 8, 64), 'quick': (1, 64), 'dry': (1, 3)}
STEPS = {'tower': 30, 'text': 20, 'align': 25, 'instruct': 80, 'caption': 10, 'extract': 10,
         'reason': 30}


def device():
    """The first device, and its `accounting.Gpu` or None."""
    import jax

    from downscale.accounting import GPUS
    first = jax.devices()[0]
    return first, GPUS.get(first.device_kind)


def fastest(run, repeats):
    """Fewest seconds of `run`, which waits for its result; twice before that it is not timed."""
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[2:])


def machine(size):
    """GPU, memory and versions."""
    import jax
    import jaxlib
    first, gpu = device()
    stats = first.memory_stats() or {}
    yield {'name': first.device_kind, 'devices': jax.device_count(), 'jax': jax.__version__,
           'jaxlib': jaxlib.__version__, 'platform': first.client.platform_version.splitlines()[0],
           'gib_for_jax': round(stats.get('bytes_limit', 0) / 2**30, 1),
           'peak_known': gpu is not None, 'xla_flags': os.environ.get('XLA_FLAGS', '')}


def model_of(size):
    """The 0.6B with SigLIP so400m in bfloat16, or tiny ones."""
    from downscale.model.vlm import Vlm
    from downscale.sizes import LANGUAGE, SIGLIP, VisionConfig, scale
    if size == 'dry':
        return Vlm(scale(LANGUAGE['micro']['w64d2'], 64, 2, vocabulary=256),
                   VisionConfig(layers=1, W=32, H=2, F=64, patch=4, image=16), dtype='bfloat16')
    return Vlm(LANGUAGE['qwen3']['0.6b'], SIGLIP['so400m-patch14-384'], dtype='bfloat16',
               remat='full')


def segments(B, L):
    """Three conversations in each row and some padding behind them."""
    import numpy as np
    segments_BL = np.ones((B, L), np.int32)
    segments_BL[:, L // 3:], segments_BL[:, L // 2:] = 2, 3
    segments_BL[:, L - L // 16:] = 0
    return segments_BL


def programs_for(length, width):
    """(program, why not) of both that a GPU may run."""
    from downscale.model.attention import choose
    for asked in ('xla', 'cudnn'):
        try:
            choose(asked, device()[0], 'bfloat16', length, width)
            yield asked, None
        except ValueError as error:
            yield asked, str(error)


def attention(size):
    """Milliseconds, and the error against float32, of each program on the heads of the 0.6B."""
    c = model_of(size).language
    for B, L in ATTENTION[size]:
        exact = None
        for program, refused in programs_for(L, c.E):
            figure = {'name': f'{program} {B} x {L}', 'refused': refused}
            if not refused:
                exact = attention_of(c, B, L, 'exact')[0] if exact is None else exact
                found, seconds = attention_of(c, B, L, program)
                figure |= {'ms': 1e3 * seconds, 'error': worst(found, exact)}
                figure['wrong'] = not figure['error'] <= WRONG  # NaN is wrong as well
            yield figure


def attention_of(c, B, L, program):
    """((values, gradients of queries, keys and values) without padding, seconds)."""
    import jax
    import jax.numpy as jnp

    from downscale.model.attention import attend_fused
    from downscale.model.language import causal_mask
    from downscale.model.layers import attend
    segments_BL = jnp.asarray(segments(B, L))
    live = (segments_BL > 0)[:, :, None, None]
    keys = jax.random.split(jax.random.key(0), 4)
    heads = {'q': c.H, 'k': c.K, 'v': c.K, 'towards': c.H}
    drawn = {name: jax.random.normal(key, (B, L, count, c.E), jnp.bfloat16)
             for key, (name, count) in zip(keys, heads.items())}
    if program == 'exact':
        drawn = {name: x.astype(jnp.float32) for name, x in drawn.items()}

    @jax.jit
    def both(q, k, v, towards):
        def out(q, k, v):
            if program == 'cudnn':
                return attend_fused(q, k, v, causal_mask(segments_BL + 1)) * live
            return attend(q, k, v, causal_mask(segments_BL)) * live
        value, backward = jax.vjp(out, q, k, v)
        return value, *backward(towards)
    with jax.default_matmul_precision('highest' if program == 'exact' else 'default'):
        seconds = fastest(lambda: jax.block_until_ready(both(**drawn)),
                                 1 if program == 'exact' else 5)
        return both(**drawn), seconds


def worst(found, exact):
    """The largest difference of any array, as a share of its largest number."""
    import jax.numpy as jnp
    return max(float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
               for a, b in zip(found, exact, strict=True))


def train(size):
    """Milliseconds, tokens/s and MFU of each shape and program."""
    model = model_of(size)
    for name, (B, L, tiles) in SHAPES[size].items():
        for program, refused in programs_for(L, model.language.E):
            figure = {'name': f'{name} {B} x {L}, {tiles} tiles, {program}', 'refused': refused}
            yield figure if refused else figure | step_figures(model, B, L, tiles, program)


@cache
def start(model, sees):
    """Random parameters on the host; to draw them takes longer than all steps."""
    from downscale.model.init import init_params
    from downscale.stages.models import groups_of
    return init_params(model, 0, groups_of(model, sees=sees))


def step_figures(model, B, L, tiles, program):
    """The figures of one train step of all groups that the rows need."""
    import jax
    import numpy as np

    from downscale.accounting import train_flops
    from downscale.config import Optimizer
    from downscale.sharding import mesh, shardings
    from downscale.train.state import new_state
    from downscale.train.step import compiled_step
    # The newline of pictures is trained with the language model.
    groups = ('language', 'tower', 'connector') if tiles else ('language',)
    grid, optimizer = mesh(1, devices=jax.devices()[:1]), Optimizer(first_moment='bfloat16')
    draw = np.random.default_rng(0)
    ids_BL = draw.integers(0, model.language.V, (B, L), np.int32)
    segments_BL = segments(B, L)
    batch = {'tokens': ids_BL, 'segments': segments_BL,
             'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
             'weights': (segments_BL > 0).astype(np.float32)}
    if tiles:
        P, Q = model.vision.P, model.vision.Q
        index_BLC = np.full((B, L, 1), -1, np.int32)
        seen = min(tiles * P, L - 8)
        index_BLC[:, 4:4 + seen, 0] = np.arange(seen)
        batch |= {'image_index': index_BLC,
                  'tiles': draw.integers(0, 256, (B, tiles, P, Q), np.uint8)}
    with jax.set_mesh(grid):
        state = new_state(start(model, bool(tiles)), optimizer, groups)
        held = [jax.device_put(state, shardings(state, grid, model.rules))]
        batch = jax.device_put(batch)
        step = compiled_step(model, 'tokens', optimizer, groups, grid, ((L, program),))

        def run():
            held[0], metrics = step(held[0], batch, dict.fromkeys(groups, 1e-5))
            return float(metrics['loss'])
        seconds = fastest(run, 5)
        loss = run()
    flops = train_flops(model.language, model.vision, rows=B, length=L, tiles=B * tiles,
                        groups=groups)['total']
    gpu = device()[1]
    used = jax.devices()[0].memory_stats() or {}
    return {'ms': 1e3 * seconds, 'tokens_per_s': B * L / seconds, 'loss': loss,
            'wrong': not np.isfinite(loss), 'gib': used.get('peak_bytes_in_use', 0) / 2**30,
            'mfu': gpu and flops / seconds / gpu.flops}


class NoText:
    """As much of an encoder as the engine needs where only ids count and nothing ends a row."""
    stops, context, thought = frozenset(), 0, (-1, -1, -1)

    def text(self, ids):
        return ''


def decode(size):
    """Seconds of a step, the slope between 32 and 96 new tokens, against the bound of memory."""
    import numpy as np

    from downscale.accounting import kv_bytes, totals
    from downscale.generate.engine import Engine, Prompt, Request
    from downscale.model.init import init_params
    model, gpu = model_of(size), device()[1]
    params = init_params(model, 0, ('language',))
    prompt = Prompt(tokens=np.arange(64, dtype=np.int32), image_index=np.full((64, 1), -1))
    few, many = (8, 64) if size == 'dry' else (32, 96)
    for rows in ROWS[size]:
        engine = Engine(model, params, NoText(), rows)
        seconds = {}
        for limit in (few, many):
            asked = [Request(prompt, limit=limit)] * rows
            seconds[limit] = fastest(lambda asked=asked: engine.write(asked), 3)
        step = (seconds[many] - seconds[few]) / (many - few)
        moved = 2 * totals(model.language)['n_active'] \
            + rows * kv_bytes(model.language) * (64 + (few + many) // 2)
        yield {'name': f'{rows} rows', 'ms': 1e3 * step, 'tokens_per_s': rows / step,
               'of_bound': gpu and moved / gpu.bandwidth / step, 'wrong': step <= 0}


def selfcheck(size):
    """Rows that differ between settings, and whether they may."""
    few = ['--prompts', '3', '--tokens', '4', '--slots', '1,2', '--width', '64']
    usual = ['--prompts', '16', '--slots', '1,13']
    kinds = [('float32', ['--deterministic']), ('bfloat16', ['--deterministic']), ('float32', [])]
    for dtype, extra in kinds if size == 'full' else kinds[:1]:
        argv = [sys.executable, '-m', 'downscale.generate.selfcheck', '--json', '--dtype', dtype,
                *(few if size == 'dry' else usual), *extra]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout.strip():
            raise RuntimeError(f'selfcheck: {(done.stderr.strip() or "no word")[-300:]}')
        found = json.loads(done.stdout.splitlines()[-1])
        yield {'name': ' '.join([dtype, *(word.lstrip('-') for word in extra)]),
               'identical': found['identical'], 'differ': found['rows_that_differ'],
               'rows': found['rows']}


def study(size):
    """Seconds of the whole study with its report."""
    steps = dict.fromkeys(STEPS, 2) if size != 'full' else STEPS
    sets = [f'stages.{stage}.steps={count}' for stage, count in steps.items()]
    sets += ['dtype=bfloat16', 'data.train=200', 'data.test=16', 'data.validation=4',
             'evaluation.scenes=8', *(['unroll=1'] if size == 'dry' else [])]  # compiles sooner
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, '-m', 'downscale.commands.main', 'study',
                str(ROOT / 'experiments' / 'smoke.py'), '--out', f'{folder}/smoke', '--quiet']
        for value in sets:
            argv += ['--set', value]
        begin = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f'study: {(done.stderr.strip() or "no word")[-300:]}')
        told = [line.removeprefix('attention: ') for line in done.stdout.splitlines()
                if line.startswith('attention: ')]
        yield {'name': 'smoke', 'seconds': time.perf_counter() - begin,
               'attention': '; '.join(told),
               'wrong': not (Path(folder) / 'smoke' / 'report' / 'report.html').is_file()}
