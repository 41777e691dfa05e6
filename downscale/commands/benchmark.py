"""`downscale benchmark`: its arguments, its chain, and every fitting score of what was written."""
import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downscale.commands.extract_think import add_manner, assembled
from downscale.commands.machine import prepare_for_models
from downscale.commands.parsing import local_path, new_folder

if TYPE_CHECKING:
    from downscale.evaluate.benchmarks import Benchmark
    from downscale.evaluate.extract_think import Chain
    from downscale.runtime.progress import Bars

EXAMPLE = ('downscale benchmark models/vlm --on mmstar --data mmstar.parquet --reasoner '
           'models/qwen3-1.7b --information information.json')


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('runs', nargs='*', type=local_path, metavar='RUN',
                     help='run folders of models that see the pictures and answer')
    sub.add_argument('--on', metavar='NAME', help='the benchmark (see --list)')
    sub.add_argument('--list', action='store_true', help='name every benchmark, its scorers and '
                     'where its data comes from')
    sub.add_argument('--data', type=local_path, help='its file or folder in the form and with the '
                     'columns that its source in --list publishes: Parquet, TSV, JSON or CSV; own '
                     'questions are for extract-think')
    sub.add_argument('--images', type=local_path, metavar='FOLDER',
                     help='where picture files lie that '
                     'the data names (default: beside it)')
    sub.add_argument('--reasoner', nargs='+', type=local_path, default=[], metavar='RUN',
                     help='models '
                     'that answer from what each RUN describes, too')
    sub.add_argument('--out', type=new_folder, help='folder of the results (default: '
                     'runs/benchmark-NAME)')
    sub.add_argument('--limit', type=int, metavar='N', help='only the first N questions')
    add_manner(sub)


def chain_of(args: argparse.Namespace, bars: 'Bars') -> tuple['Chain', 'Benchmark']:
    """Return (`Chain`, `Benchmark`) of the command line, everything that it names checked."""
    from downscale.evaluate.benchmarks import BENCHMARKS, questions_of
    from downscale.values import unknown
    if not args.runs or args.on is None or args.data is None:
        raise ValueError('give at least one RUN, --on NAME and --data PATH; --list names all')
    if args.on not in BENCHMARKS:
        raise ValueError(unknown('benchmark', args.on, list(BENCHMARKS)))
    if (args.information or args.informer or args.describe) and not args.reasoner:
        raise ValueError('--describe, --information and --informer are for reasoners; give '
                         '--reasoner')
    # What to look at only makes sense for a description by need, so it need not be said twice.
    if (args.information or args.informer) and args.describe is None:
        args.describe = 'extract'
    benchmark = BENCHMARKS[args.on]
    # The models answer with their own eyes; where there are reasoners they describe as well.
    args.perception = args.runs if args.reasoner else []
    args.out = args.out or Path('runs') / f'benchmark-{benchmark.name}'
    # A data set's own ids, as MMStar's index, decide: its rows may stand in another order.
    chain = assembled(args, bars,
                      lambda: questions_of(benchmark, args.data, args.images, args.limit),
                      numbers=False, sighted=args.runs, tail=benchmark.tail)
    return chain, benchmark


def scored(chain: 'Chain', benchmark: 'Benchmark') -> tuple[dict[str, Any], list[str]]:
    """Return ({samples name: summary of every scorer}, lines to print) of a finished chain.

    The summaries are added to `summary.json`.
    """
    from downscale.evaluate import cells
    from downscale.evaluate.scoring import rescore
    from downscale.evaluate.scoring.stored_replies import read_rows
    from downscale.runtime.files import write_json
    # Every reply on disk, by its samples file: those of the models, then those of each pair.
    names = [cells.joint_name(run) for run in chain.sighted]
    grid = itertools.product(chain.perceptions, chain.reasoners, chain.plan.reason)
    names += [cells.file_name(perception, reasoner, mode) for perception, reasoner, mode in grid]
    summaries = {}
    lines = []
    for name in names:
        rows, notes = read_rows(chain.out / f'{name}.jsonl')
        judged = rescore.judged(rows, benchmark.scorers)
        summaries[name] = rescore.summary(rows, judged)
        lines += [name, *rescore.table(summaries[name], rows, judged, notes), '']
    path = chain.out / 'summary.json'
    # Added to what the chain wrote: the headline scorer of the benchmark, and all that fit.
    write_json(path, json.loads(path.read_text()) | {
        'benchmark': benchmark.name, 'headline': benchmark.scorers[0], 'source': benchmark.source,
        'scores': summaries})
    return summaries, lines


def listing() -> Iterator[str]:
    """Yield the lines of --list."""
    from downscale.evaluate.benchmarks import BENCHMARKS
    for benchmark in BENCHMARKS.values():
        yield f'{benchmark.name}: {benchmark.source}\n    scorers: {", ".join(benchmark.scorers)}'


def run(args: argparse.Namespace) -> None:
    """Answer a public benchmark, also from descriptions.

    Models see its pictures; reasoners read what models wrote of them. Every scorer that fits is
    reported. The same command continues after an interruption.
    """
    if args.list:
        print(*listing(), sep='\n')
        return
    prepare_for_models()
    from downscale.runtime.progress import progress_bars
    with progress_bars(args.quiet) as bars:
        chain, benchmark = chain_of(args, bars)
        summary = chain.run()
    # Only the process that joins the files has a summary to score.
    if summary is not None:
        print(*scored(chain, benchmark)[1], sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')
