"""How close does reading pictures on a TPU come to its matrix products alone, by the compiler?

The program that reads the image tokens of one prompt (`prefix` of the engine) is compiled for a
chip that nobody has, at eight layers. The compiler's estimate in cycles, which is no time, is held
against the products' FLOPs by `accounting.py` at the chip's peak.
"""
import dataclasses
import json
import os
import time

from begin import begin, parser

LAYERS = 8
LIMIT = 1.15


def arguments():
    made = parser(__doc__, 'prefill_bound.py --quick')
    made.add_argument('--models', nargs='+', choices=('0.6b', '1.7b'), default=['0.6b', '1.7b'])
    made.add_argument('--tokens', nargs='+', type=int, default=[729, 2916])
    made.add_argument('--chips', nargs='+', choices=('v5e', 'v6e'), default=['v5e'])
    return begin(made, 'two minutes a case', {'models': ['0.6b'], 'tokens': [729]})


def measured(name, tokens, generation):
    """What one case gives, as values for JSON."""
    from downscale.planner import formulas, hlo, worker
    from downscale.planner.hardware import chip
    from downscale.planner.programs import ProgramRequest
    from downscale.sizes import QWEN3, SIGLIP
    began = time.perf_counter()
    vision = SIGLIP['so400m-patch14-384']
    cell = {'language': dataclasses.asdict(dataclasses.replace(QWEN3[name], N=LAYERS)),
            'vision': dataclasses.asdict(vision), 'dtype': 'bfloat16'}
    request = ProgramRequest(
        kind='prefix', topology=f'{generation}:1x1', mesh=(1, 1, 1), rows=1, length=tokens,
        tiles=-(-tokens // vision.P), cell=cell, slots=1)
    facts = hlo.facts(worker.lowered(request).compile().as_text())
    figures = chip(generation)
    bound = formulas.formula(request)['total'] / figures.flops * figures.clock
    return {'chip': generation, 'model': name, 'tokens': tokens,
            'estimate': facts['estimated_cycles'], 'bound': bound,
            'ratio': facts['estimated_cycles'] / bound, 'flops': facts['flops'],
            'seconds': time.perf_counter() - began}


def main():
    args = arguments()
    from downscale.planner.pool import ENVIRONMENT
    os.environ.update(ENVIRONMENT)
    print('chip model tokens  Mcycles  bound  ratio', flush=True)
    found = []
    for generation in args.chips:
        for name in args.models:
            for tokens in args.tokens:
                row = measured(name, tokens, generation)
                found.append(row)
                print(f'{generation:4} {name:5} {tokens:6}  {row["estimate"] / 1e6:7.2f}  '
                      f'{row["bound"] / 1e6:5.2f}  {row["ratio"]:5.2f}'
                      f'{"  over the goal" if row["ratio"] > LIMIT else ""}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
