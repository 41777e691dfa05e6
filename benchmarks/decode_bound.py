"""How close does a decode step on a TPU come to reading weights and cache once, by the compiler?

The step is compiled for chips that nobody has. Its estimate in cycles is held against the bound:
bytes of the weights that a step reads and of the keys and values of all live tokens, in bfloat16,
at the chip's bandwidth. All layers are alike, so two depths are compiled and the rest follows from
their difference; --whole compiles the whole model as well. The estimate is no time: it takes no
account of how steps overlap, and counts plain reads of weights below the bound.

Rows: as many as fit beside the weights, at most 50. 8B is shared by the four chips of a host.
"""
import dataclasses
import json
import time

from begin import begin, parser

MODELS = {'0.6b': 1, '1.7b': 1, '4b': 1, '8b': 4}   # chips that share a model
LIVE = (512, 2048, 8192)
LIMIT = 1.35
ROOM = 14 * 2 ** 30   # bytes of weights and cache on a chip of 15.75 GiB


def arguments():
    made = parser(__doc__, 'decode_bound.py --quick')
    made.add_argument('--models', nargs='+', choices=tuple(MODELS), default=list(MODELS))
    made.add_argument('--live', nargs='+', type=int, default=list(LIVE), help='live tokens a row')
    made.add_argument('--chips', nargs='+', choices=('v5e', 'v6e'), default=['v5e'])
    made.add_argument('--drawn', action='store_true', help='sampled, not greedy')
    made.add_argument('--whole', action='store_true', help='compile all layers too: minutes each')
    return begin(made, 'a minute a case', {'models': ['0.6b'], 'live': [512]})


def bound(language, live, chip, shared):
    """(rows, cycles of the bound) on each of `shared` chips, for `live` tokens a row."""
    from downscale import accounting
    parts = accounting.parameters(language)
    # Of an embedding that is not the head too a step reads one row a token.
    weights = 2 * (parts['decoder'] + (parts['head'] or parts['embedding'])) / shared
    a_row = 2 * 2 * language.N * language.K * language.E * live / shared
    stored = weights + (2 * parts['embedding'] / shared if parts['head'] else 0)
    rows = int(min(50, (ROOM - stored) // a_row))
    return rows, (weights + rows * a_row) / chip.hbm_bandwidth * chip.clock


def cycles(name, layers, live, rows, generation, shared, drawn):
    """The compiler's estimate of one step with so many layers."""
    from downscale.planner import hlo, worker
    from downscale.planner.programs import ProgramRequest
    from downscale.sizes import QWEN3
    language = dataclasses.replace(QWEN3[name], N=layers)
    shape = '2x2' if shared == 4 else '1x1'
    cell = {'language': dataclasses.asdict(language), 'vision': None, 'dtype': 'bfloat16'}
    request = ProgramRequest(
        kind='decode', topology=f'{generation}:{shape}', mesh=(1, 1, shared), rows=rows,
        length=live, tiles=0, cell=cell, slots=rows, drawn=drawn)
    return hlo.facts(worker.lowered(request).compile().as_text())['endless_cycles']


def main():
    args = arguments()
    from downscale.planner.hardware import chip
    from downscale.sizes import QWEN3
    cases = [(generation, name, live) for generation in args.chips for name in args.models
             for live in args.live]
    print(f'{len(cases)} cases, about {len(cases) * 60} s of one core\n'
          'chip model live rows  estimate  bound Mcycles  ratio', flush=True)
    found = []
    for generation, name, live in cases:
        began = time.perf_counter()
        shared = MODELS[name]
        language = QWEN3[name]
        rows, least = bound(language, live, chip(generation), shared)
        two, four = (cycles(name, layers, live, rows, generation, shared, args.drawn)
                     for layers in (2, 4))
        estimate = two + (language.N - 2) * (four - two) / 2
        row = {'chip': generation, 'model': name, 'live': live, 'rows': rows, 'drawn': args.drawn,
               'estimate': estimate, 'bound': least, 'ratio': estimate / least}
        if args.whole:
            row['whole'] = cycles(name, language.N, live, rows, generation, shared, args.drawn)
        found.append(row | {'seconds': time.perf_counter() - began})
        whole = f'  (whole model: {row["whole"] / 1e6:.1f})' if args.whole else ''
        print(f'{generation:4} {name:5} {live:4} {rows:4}  {estimate / 1e6:8.1f}  '
              f'{least / 1e6:12.1f}  {row["ratio"]:6.2f}'
              f'{"  MISSED" if row["ratio"] > LIMIT else ""}{whole}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
