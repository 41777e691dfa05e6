"""The console script `downscale`. JAX is imported only by the command that needs it."""
import contextlib
import json
import os
import sys
import traceback

from downscale import analyze_command
from downscale.analyze_command import ANALYZE_EXAMPLES
from downscale.data_command import DATA_EXAMPLES, add_data_arguments, with_verb
from downscale.evaluate import benchmark_command, scoring_command
from downscale.evaluate import command as chain_command
from downscale.experiment.file import claims_of, find_cell, on_cpu, open_study
from downscale.launch.arguments import LAUNCH_EXAMPLES, add_arguments, add_launch_arguments
from downscale.parsing import Parser, count, local_path, new_folder
from downscale.runtime import exits, setup
from downscale.runtime.memory import keep_freed_memory
from downscale.runtime.setup import cache_folder
from downscale.runtime.streams import LONGEST_ERROR, cause_of, keep_streams, shortened

EXAMPLES = {
    'study': 'downscale study experiments/smoke.py --out runs/smoke --set stages.text.steps=50',
    'train': 'downscale train experiments/smoke.py --out runs/smoke --cell w64d2-s0 --stage text',
    'evaluate': 'downscale evaluate experiments/smoke.py --out runs/smoke --cell w64d2-s0 '
                '--only joint',
    'report': 'downscale report runs/smoke',
    'data': DATA_EXAMPLES['world'],
    'plan': 'downscale plan experiments/extraction_tuning.py --topology v5e:16x16 v6e:16x16',
    'launch': LAUNCH_EXAMPLES['submit'],
    'extract-think': 'downscale extract-think --perception runs/smoke/cells/w64d4-s0/extract '
                     '--reasoner runs/smoke/cells/w64d4-s0/reason --data runs/smoke --out '
                     'runs/chain --describe extract --reason think direct',
    'benchmark': 'downscale benchmark models/vlm --on mmstar --data mmstar.parquet --reasoner '
                 'models/qwen3-1.7b --information information.json',
    'analyze': ANALYZE_EXAMPLES['drop'],
    'rescore': 'downscale rescore runs/chain/answer-r-from-p-think.jsonl',
    'import': 'downscale import Qwen3-0.6B --to models/qwen3-0.6b',
    'export': 'downscale export models/qwen3-0.6b --to Qwen3-0.6B-copy --format qwen3',
    'parity': 'downscale parity tests/data/llava_qwen3_tiny --json',
}


# What is raised on purpose, about input, settings or the machine; all else is a fault of ours.
EXPECTED = (ValueError, ImportError, RuntimeError, FloatingPointError, OSError, MemoryError)


def refuse_many():
    """Raise ValueError where the environment names several processes, which only train knows."""
    from downscale.runtime.processes import given
    if given():
        raise ValueError('only `downscale train` runs over several processes; unset '
                         'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for this')


def study(args):
    """Train, evaluate and compare every cell; then write the report."""
    config, experiments, folder = open_study(args)
    refuse_many()
    from downscale.report.figures import plotting
    plotting()  # of the report, hours later
    from downscale.study.workers import run
    from downscale.train.trackers import require
    require(args.tracker)
    jobs = args.jobs
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
        jobs = min(cores, len(experiments)) if on_cpu() else 1
    seconds = run(folder, config.study, experiments, jobs, cache_folder(), args.quiet,
                  claims_of(config), args.together, args.tracker)
    print(f'study done in {seconds:.0f} s')
    from downscale.report.report import write_report
    print(f'report: {write_report(folder)}')


def report(args):
    """Write the report of a finished or unfinished study (the same as `analyze report`)."""
    analyze_command.report(args)


def train(args):
    """Train one stage of one cell; its parents must be finished.

    SIGTERM saves a step and ends with exit code 42; the same command continues.

    Over several processes: start the same command in each, on a folder that all can reach, with
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; a TPU slice needs
    none of them.
    """
    _, experiments, folder = open_study(args)
    cell = find_cell(experiments, args.cell)
    from downscale.runtime import processes
    from downscale.runtime.progress import progress_bars
    from downscale.stages import training
    from downscale.stages.folders import folder_of
    from downscale.stages.inputs import prepare
    from downscale.stages.start import grid_of
    from downscale.study.workers import use_cache
    from downscale.train.trackers import require
    require(args.tracker)
    total = cell.stage(args.stage).steps
    with processes.joined():
        grid_of(cell)
        use_cache(cache_folder())
        processes.once(lambda: str(prepare(folder, cell)))
        with progress_bars(args.quiet or not processes.first()) as bars:
            training.train_stage(folder, cell, args.stage, lambda step, row: bars(
                f'{cell.name}/{args.stage}', step, total, f'loss {row["loss"]:.3f}'), args.tracker)
        if processes.first():
            print(f'checkpoints: {folder_of(folder, cell, args.stage)}')


def evaluate(args):
    """Run one evaluation of one cell: joint, caption, extraction or reason."""
    _, experiments, folder = open_study(args)
    refuse_many()
    cell = find_cell(experiments, args.cell)
    from downscale.evaluate.run import evaluate as run_evaluation
    from downscale.runtime.progress import progress_bars
    from downscale.study.tasks import writers_of
    from downscale.study.workers import use_cache
    use_cache(cache_folder())
    with progress_bars(args.quiet) as bars:
        run_evaluation(folder, cell, args.only, writers_of(cell, experiments),
                       lambda done, total: bars(f'{args.only} {cell.name}', done, total))
    print(f'items: {folder / "evaluations" / f"{args.only}-{cell.name}"}')


def data(args):
    """Data: the scene world of a study, and mixtures of published sets."""
    from downscale.data_command import VERBS
    return VERBS[args.verb](args)


def plan(args):
    """Compile every program of a study for TPUs, on this machine: what fits, takes and costs what.

    No TPU is needed. The same command continues after an interruption.
    """
    from downscale.planner import table
    from downscale.planner.plan import Plan
    from downscale.planner.pool import ENVIRONMENT
    from downscale.runtime.progress import progress_bars
    os.environ.update(ENVIRONMENT)
    _, experiments, folder = open_study(args)
    said = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    from downscale.planner.programs import Wish
    from downscale.planner.worker import refuse
    from downscale.runtime.files import write_json
    wish = Wish(tuple(args.only), args.per_chip_batch, args.seq, args.text_only)
    out = args.out or folder / 'plan'
    with contextlib.redirect_stdout(said), progress_bars(args.quiet) as bars:
        found = Plan(experiments, args.topology, wish, refuse, out, args.jobs, args.limit,
                     bars).run()
    write_json(out / 'plan.json', found)
    print(json.dumps(found) if args.json else '\n'.join(table.lines(found)))
    return int(any(row['error'] for row in found['cells']))


def launch(args):
    """Run a study's jobs on Cloud TPU or here: submit, watch, see, stop and continue them."""
    from downscale.launch.command import VERBS
    return VERBS[args.verb](args)


def extract_think(args):
    """Let perception models describe and reasoners answer, every pair of them.

    The same command continues after an interruption, also with other --slots and --processes.
    """
    if on_cpu():
        keep_freed_memory()
    from downscale.evaluate.cells import table
    from downscale.runtime.progress import progress_bars
    from downscale.study.workers import use_cache
    use_cache(cache_folder())
    with progress_bars(args.quiet) as bars:
        found = chain_command.chain_of(args, bars).run()
    if found is not None:
        print(*table(found), sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')


def benchmark(args):
    """Let models answer a public benchmark with its pictures, and reasoners from descriptions.

    Every scorer that fits is reported. The same command continues after an interruption.
    """
    if args.list:
        print(*benchmark_command.listing(), sep='\n')
        return
    if on_cpu():
        keep_freed_memory()
    from downscale.runtime.progress import progress_bars
    from downscale.study.workers import use_cache
    use_cache(cache_folder())
    with progress_bars(args.quiet) as bars:
        chain, asked = benchmark_command.chain_of(args, bars)
        found = chain.run()
    if found is not None:
        print(*benchmark_command.scored(chain, asked)[1], sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')


def analyze(args):
    """Laws of size from tables; drops, shares, probes, costs and report of a study."""
    if args.verb == 'probe':  # the only one that runs models
        if on_cpu():
            keep_freed_memory()
        from downscale.study.workers import use_cache
        use_cache(cache_folder())
    return analyze_command.run(args)


def rescore(args):
    """Judge stored replies again by every named scorer, without generating anything."""
    print(*scoring_command.rescore_lines(args), sep='\n')


def import_(args):
    """Bring a Hugging Face folder or a GGUF file into a run folder."""
    from downscale.convert.exchange import import_model
    from downscale.runtime.progress import progress_bars
    with progress_bars(args.quiet) as bars:
        notes = import_model(args.source, args.to, lambda done, total: bars(
            'MB', done // 10**6, total // 10**6), args.layers)
    for note in notes:
        print(f'note: {note}')
    print(f'model: {args.to}')


def export(args):
    """Write a run's newest checkpoint as a Hugging Face folder."""
    from downscale.convert.exchange import export_model
    export_model(args.run_folder, args.to, args.format)
    print(f'exported: {args.to}')


def parity(args):
    """Recompute what a checkpoint's original gave (expected.npz); exit with 1 if it differs."""
    from downscale.convert.parity import parity as compare
    result = compare(args.folder)
    if args.json:
        print(json.dumps(result))
    else:
        for name, error in result['relative_error'].items():
            print(f'{name:24} {error:.2e}')
        print(f'greedy ids equal: {result["greedy_equal"]}\n'
              f'token counts equal: {result["token_count_equal"]}\n'
              f'{"passed" if result["passed"] else "FAILED"}')
    return 0 if result['passed'] else 1


def _add_exchange(commands):
    """The parsers of import, export and parity."""
    sub = _command(commands, import_)
    sub.add_argument('source', type=local_path, help='Hugging Face folder, or a .gguf file')
    sub.add_argument('--to', type=new_folder, required=True, help='new run folder')
    sub.add_argument('--layers', default='', help='keep a part of the language model\'s layers: '
                     'how many, evenly spaced from the first to the last, or which, as 0,2,5')
    sub.add_argument('--quiet', action='store_true', help='no progress bar')
    sub = _command(commands, export)
    sub.add_argument('run_folder', metavar='run', type=local_path,
                     help='imported model, or STUDY/cells/CELL/STAGE')
    sub.add_argument('--to', type=new_folder, required=True, help='new Hugging Face folder')
    sub.add_argument('--format', required=True, choices=(
        'qwen3', 'qwen2', 'llama', 'llava_qwen_3', 'llava_onevision'))
    sub = _command(commands, parity)
    sub.add_argument('folder', type=local_path,
                     help='config.json, safetensors, image.png, expected.npz')
    sub.add_argument('--json', action='store_true', help='one JSON object')


def _command(commands, run):
    """The parser of one command, which runs `run`."""
    name = run.__name__.rstrip('_').replace('_', '-')
    sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__,
                              epilog=f'example: {EXAMPLES[name]}')
    sub.set_defaults(run=run)
    return sub


def parser():
    """The argument parser of every command."""
    top = Parser(
        prog='downscale', description='What breaks first when the language model inside a '
        'multimodal model gets small, and how to repair it.',
        epilog=f'example: {EXAMPLES["study"]}')
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for run in (study, train, evaluate, report):
        name, sub = run.__name__, _command(commands, run)
        if name == 'report':
            analyze_command.add_report_arguments(sub)
            continue
        sub.add_argument('config', help='study file, FILE.py or FILE.py:ARG')
        sub.add_argument('--out', type=new_folder,
                         help='folder of the study (default: runs/NAME)')
        sub.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                         help='override a configuration value; may be repeated')
        sub.add_argument('--quiet', action='store_true', help='no progress bars')
        if name in ('train', 'evaluate'):
            sub.add_argument('--cell', required=True, help='name of a cell, as w64d2-s0')
        if name == 'train':
            sub.add_argument('--stage', required=True, help='name of a stage, as text')
        if name == 'evaluate':
            sub.add_argument('--only', required=True,
                             choices=('joint', 'caption', 'extraction', 'reason'))
        if name in ('study', 'train'):
            sub.add_argument('--tracker', choices=('tensorboard', 'wandb', 'none'),
                             default='tensorboard', help='curves to look at (default: tensorboard)')
        if name == 'study':
            sub.add_argument('--together', type=count, default=1, metavar='N', help='train up to N '
                             'cells that differ in seed and rates only in one program (default: 1)')
            sub.add_argument('--jobs', type=count, help='tasks run at once (default: one per core '
                             'on CPU, at most one per cell; else 1)')
    add_data_arguments(_command(commands, data))
    add_arguments(_command(commands, plan))
    add_launch_arguments(_command(commands, launch))
    chain_command.add_arguments(_command(commands, extract_think))
    benchmark_command.add_benchmark_arguments(_command(commands, benchmark))
    scoring_command.add_rescore_arguments(_command(commands, rescore))
    analyze_command.add_analyze_arguments(_command(commands, analyze))
    _add_exchange(commands)
    return top


def main(argv=None):
    """Run one command; errors are one line on stderr and exit code 1 (2 for bad usage).

    A fault of this program itself ends with `exits.BUG`, and `train` after `exits.TABLE`.
    """
    console = argv is None  # the whole program: its streams and interrupts are ours
    argv, args = with_verb(argv), None
    keep_streams()
    try:
        args = parser().parse_args(argv)
        setup.begin(console)
        code = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is told here, not when Python ends
        return code
    except KeyboardInterrupt:
        return setup.stopped(console)
    except exits.Preempted as error:
        return _ended(f'{error}; the same command continues', error.code)
    except Exception as error:
        if '--debug' in argv:
            traceback.print_exc()
        if not isinstance(error, EXPECTED):
            return _ended(f'internal error: {type(error).__name__}: {error}', exits.BUG)
        return _ended(f'error: {cause_of(error)}',
                      exits.code_of(error) if args and args.run is train else exits.CRASHED)


def _ended(text, code):
    """Print why a command ends, in one line, and return its exit code."""
    hint = '; --debug shows the traceback' if code == exits.BUG else ''
    print(shortened(text, LONGEST_ERROR - len(hint)) + hint, file=sys.stderr)
    return code


if __name__ == '__main__':
    sys.exit(main())
