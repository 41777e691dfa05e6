"""How close does a decode step on a TPU come to reading weights and cache once, by the compiler?

The step is compiled for chips that nobody has, with all its layers: what a program of a few layers
fetches ahead says little about one of many. Two figures are held against the bytes of the weights
that a step reads and of the keys and values of all live tokens, in bfloat16:

- The compiler's estimate in cycles, against those bytes at the chip's bandwidth. It is no time: it
  counts what is fetched ahead, and stored back, as free, and a plain product that reads HBM at 0.7
  (v5e) or 0.84 (v6e) of the bandwidth. Collectives are left out.
- The bytes that the program moves to and from HBM (`downscale/planner/traffic.py`), which says what
  the estimate leaves out, and nothing of how well the moves overlap with computing.

Rows: as many as fit beside the weights, at most 50. A model is shared by as few chips as hold it.
"""
import dataclasses
import json
import os
import time

from begin import begin, parser

MODELS = ('0.6b', '1.7b', '4b', '8b')
LIVE = (512, 2048, 8192)
LIMIT = {'estimate': 1.35, 'moved': 1.2}
BESIDE = 1.75   # GiB of a chip that are left for other things than weights and cache


def arguments():
    made = parser(__doc__, 'decode_bound.py --quick')
    made.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    made.add_argument('--live', nargs='+', type=int, default=list(LIVE), help='live tokens a row')
    made.add_argument('--chips', nargs='+', choices=('v5e', 'v6e'), default=['v5e'])
    made.add_argument('--drawn', action='store_true', help='sampled, not greedy')
    return begin(made, 'two minutes a case', {'models': ['0.6b'], 'live': [512]})


def bound(language, live, chip):
    """(chips that share the model, rows, bytes that must be read on each, for `live` tokens)."""
    from downscale import accounting
    parts = accounting.parameters(language)
    room = (chip.hbm_gib - BESIDE) * 2 ** 30
    for shared in (1, 2, 4):
        # Of an embedding that is not the head too a step reads one row a token.
        weights = 2 * (parts['decoder'] + (parts['head'] or parts['embedding'])) / shared
        a_row = 2 * 2 * language.N * language.K * language.E * live / shared
        stored = weights + (2 * parts['embedding'] / shared if parts['head'] else 0)
        rows = int(min(50, (room - stored) // a_row))
        if rows > 0:
            return shared, rows, weights + rows * a_row
    raise ValueError(f'no room for a row of {live} tokens on four chips')


def compiled(name, live, rows, generation, shared, drawn):
    """The optimised text of one call of `decode`."""
    from downscale.planner import worker
    from downscale.planner.programs import ProgramRequest
    from downscale.sizes import QWEN3
    cell = {'language': dataclasses.asdict(QWEN3[name]), 'vision': None, 'dtype': 'bfloat16'}
    request = ProgramRequest(
        kind='decode', topology=f'{generation}:{"1x1" if shared == 1 else "2x2"}',
        mesh=(1, 1, shared), rows=rows, length=live, tiles=0, cell=cell, slots=rows, drawn=drawn)
    return worker.lowered(request).compile().as_text()


def measured(name, live, generation, drawn):
    """What one case gives, as values for JSON."""
    from downscale.planner import hlo, traffic
    from downscale.planner.hardware import chip
    from downscale.sizes import QWEN3
    began = time.perf_counter()
    figures = chip(generation)
    shared, rows, least = bound(QWEN3[name], live, figures)
    text = compiled(name, live, rows, generation, shared, drawn)
    estimate = hlo.facts(text)['endless_cycles']
    cycles = least / figures.hbm_bandwidth * figures.clock
    moved = traffic.moved(text, endless=True)
    return {'chip': generation, 'model': name, 'live': live, 'rows': rows, 'shared': shared,
            'drawn': drawn, 'estimate': estimate, 'bound_cycles': cycles, 'moved': moved,
            'bound_bytes': least, 'ratio': {'estimate': estimate / cycles, 'moved': moved / least},
            'seconds': time.perf_counter() - began}


def main():
    args = arguments()
    from downscale.planner.pool import ENVIRONMENT
    os.environ.update(ENVIRONMENT)
    cases = [(name, live, generation, args.drawn) for generation in args.chips
             for name in args.models for live in args.live]
    print(f'{len(cases)} cases, about {len(cases) * 2} minutes of one core\n'
          'chip model live rows  Mcycles  bound  ratio    GB moved  bound  ratio', flush=True)
    found = []
    for case in cases:
        row = measured(*case)
        found.append(row)
        missed = [name for name, limit in LIMIT.items() if row['ratio'][name] > limit]
        print(f'{row["chip"]:4} {row["model"]:5} {row["live"]:4} {row["rows"]:4}  '
              f'{row["estimate"] / 1e6:7.1f}  {row["bound_cycles"] / 1e6:5.1f}  '
              f'{row["ratio"]["estimate"]:5.2f}  {row["moved"] / 1e9:10.2f}  '
              f'{row["bound_bytes"] / 1e9:5.2f}  {row["ratio"]["moved"]:5.2f}'
              f'{"  over the goal: " + ", ".join(missed) if missed else ""}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
