"""Did our compiled programs get worse? Small ones for v5e:4x4, against the table that is committed.

Exact figures are gated: the program of no row may need over 5 % more memory, matmul FLOPs, bytes
moved between devices or a larger all-reduce than the table says (exit code 1), and no step of
decode more bytes moved to and from HBM (`downscale/planner/traffic.py`). The compiler's cycle
estimate is shown and never gated.
Compilers differ more than that (a tenth of the memory), so versions that the table lacks are shown
beside the newest that it has, and gated once their figures are added.
"""
import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).with_suffix('.json')
PLACE, GROWTH = 'v5e:4x4', 1.05
GATED = ('hbm_bytes', 'flops', 'collective_bytes', 'largest_all_reduce', 'moved_bytes')


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python benchmarks/compiled_programs.py')
    parser.add_argument('--write', action='store_true', help='put the new figures into the table')
    parser.add_argument('--jobs', type=int, default=2, help='programs compiled at once (default 2)')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to FILE')
    return parser.parse_args()


def cells():
    """Qwen3's block and SigLIP's at two layers and small widths, sharded 16 ways."""
    from downscale.config import Evaluation, Experiment, MeshSize
    from downscale.sizes import QWEN3, Pictures, VisionConfig, scale
    from downscale.stage_config import Stage
    rates = {'language': 1e-3, 'connector': 1e-3, 'tower': 1e-3}
    stages = (
        Stage(
            name='text',
            steps=1,
            batch=32,
            length=512,
            tiles=0,
            rates=rates,
            trainable=('language',),
            parents={},
        ),
        Stage(
            name='extract',
            steps=1,
            batch=16,
            length=512,
            tiles=5,
            rates=rates,
            trainable=tuple(rates),
            parents={},
        ),
    )
    return [Experiment(
        name='small', size='small', seed=0, language=scale(QWEN3['0.6b'], 256, 2, 8192),
        vision=VisionConfig(layers=2, W=128, H=2, F=512, patch=14, image=112), stages=stages,
        pictures=Pictures('anyres'), evaluation=Evaluation(batch=8), mesh=MeshSize(1, -1, 1),
        dtype='bfloat16', remat='full')]


def wide_decode():
    """Decode of three layers of Qwen3-0.6B: unlike those of the small cell, their weights and cache
    do not fit into on-chip memory, so that what is moved twice shows."""
    from downscale.planner.programs import ProgramRequest
    from downscale.sizes import QWEN3
    language = dataclasses.replace(QWEN3['0.6b'], N=3)
    cell = {'language': dataclasses.asdict(language), 'vision': None, 'dtype': 'bfloat16'}
    return ProgramRequest(kind='decode', topology=PLACE, mesh=(1, 1, 1), rows=16, length=2048,
                          tiles=0, cell=cell, slots=16)


def figures(jobs):
    """{program: its figures}, compiled anew."""
    from downscale.planner import pool
    from downscale.planner.programs import Wish, uses
    from downscale.planner.topologies import topology
    from downscale.runtime.progress import progress_bars
    found = {}
    with tempfile.TemporaryDirectory() as folder, progress_bars() as bars:
        wanted = {f'{use.name} {use.request.length}': use.request
                  for use in uses(cells(), topology(PLACE), Wish(seq=512))}
        wanted['0.6b, 3 layers/decode 2048'] = wide_decode()
        facts = pool.Pool(folder, jobs, 900.0, bars).facts(list(wanted.items()))
        for name, request in wanted.items():
            fact = facts[pool.key_of(request)]
            if 'error' in fact:
                raise RuntimeError(f'{name}: {fact["error"]}')
            found[name] = {
                'hbm_bytes': round(fact['hbm_gib'] * 2 ** 30), 'flops': fact['flops'],
                'collective_bytes': sum(kind['bytes'] for kind in fact['collectives'].values()),
                'estimated_cycles': fact['estimated_cycles'],
                'largest_all_reduce': fact['largest_all_reduce']['bytes'],
                'kernels': fact['kernels']}
            if 'moved_bytes' in fact:
                found[name]['moved_bytes'] = fact['moved_bytes']
    return found


def compared(before, now):
    """(lines of a table, names of what grew too much); a program that the table lacks is new."""
    lines, grown = [f'{"program":24}{"":18}{"table":>14}{"now":>14}{"ratio":>8}'], []
    for name, row in now.items():
        for key in (*GATED, 'estimated_cycles'):
            if key == 'moved_bytes' and key not in row:
                continue   # only steps of decode have it
            old = before.get(name, {}).get(key)
            ratio = row[key] / old if old else float(old is not None and row[key] > 0) or 1.0
            bad = key in GATED and old is not None and row[key] > GROWTH * old
            grown += [f'{name} {key}'] * bad
            lines.append(f'{name:24}{key:18}{"new" if old is None else old:>14}{row[key]:>14}'
                         f'{ratio:>8.3f}' + '  GREW' * bad)
    return lines, grown


def main():
    args = arguments()
    from downscale.planner.pool import ENVIRONMENT, versions
    os.environ.update(ENVIRONMENT)
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    compiler = ', '.join(f'{name} {version}' for name, version in versions().items())
    now = figures(args.jobs)
    known = compiler if compiler in table else max(table, default=None)
    print(f'{PLACE}, {compiler}' + f'; for information beside {known}, not gated; --write adds it'
          * (known != compiler))
    lines, grown = compared(table.get(known, {}), now)
    print(*lines, sep='\n')
    if args.json:
        Path(args.json).write_text(json.dumps(now, indent=1) + '\n')
    if args.write:
        TABLE.write_text(json.dumps({**table, compiler: now}, indent=1, sort_keys=True) + '\n')
        print(f'written to {TABLE.name}')
    elif grown and known == compiler:
        print(f'error: more than {GROWTH - 1:.0%} above the table: {", ".join(grown)}; if that is '
              'meant, commit new figures with --write', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
