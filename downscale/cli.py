"""The console script `downscale`. JAX is imported only by the command that needs it."""
import argparse
import ast
import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from downscale import exits
from downscale.launch.arguments import add_arguments
from downscale.memory import keep_freed_memory

EXAMPLES = {
    'study': 'downscale study experiments/smoke.py --out runs/smoke --set stages.text.steps=50',
    'train': 'downscale train experiments/smoke.py --out runs/smoke --cell w64d2-s0 --stage text',
    'evaluate': 'downscale evaluate experiments/smoke.py --out runs/smoke --cell w64d2-s0 '
                '--only joint',
    'report': 'downscale report runs/smoke',
    'data': 'downscale data experiments/smoke.py --out runs/smoke --show 4',
    'plan': 'downscale plan experiments/extraction_tuning.py --topology v5e:16x16 v6e:16x16',
    'extract-think': 'downscale extract-think --perception runs/smoke/cells/w64d4-s0/extract '
                     '--reasoner runs/smoke/cells/w64d4-s0/reason --data runs/smoke --out '
                     'runs/chain --describe extract --reason think direct',
    'import': 'downscale import Qwen3-0.6B --to models/qwen3-0.6b',
    'export': 'downscale export models/qwen3-0.6b --to Qwen3-0.6B-copy --format qwen3',
    'parity': 'downscale parity tests/data/llava_qwen3_tiny --json',
}


def load_study(config_file, overrides):
    """(ConfigDict, sweep) of `FILE.py` or `FILE.py:ARG`, with `key.path=value` overrides set.

    ValueError in one line for a missing file, a file without `get_config` and `sweep`, or an
    unknown key (with the nearest one).
    """
    import importlib.util
    path, _, arg = str(config_file).partition(':')
    if not Path(path).is_file():
        raise ValueError(f'no study file {path}; there are {studies_nearby()}')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ('get_config', 'sweep'):
        if not hasattr(module, name):
            raise ValueError(f'{path} has no function {name}()')
    config = module.get_config(arg)
    for override in overrides:
        set_key(config, override)
    return config.lock(), module.sweep(arg)


def studies_nearby():
    """Names of the study files below `experiments/`, for error messages."""
    found = sorted(str(path) for path in Path('experiments').glob('*.py'))
    return ', '.join(found) or 'none in ./experiments'


def set_key(config, override):
    """Set one `key.path=value`; the value is a Python literal, or else a string."""
    from downscale.experiment import unknown
    key, equals, text = override.partition('=')
    if not equals:
        raise ValueError(f'--set {override!r} must look like key.path=value')
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    path, node = tuple(key.split('.')), config
    for depth, name in enumerate(path):
        written = set(node.keys()) if hasattr(node, 'keys') else set()
        known = sorted(written | _fields(path[:depth]))
        if name not in known:
            raise ValueError(f'--set {key}: {unknown("key", name, known)}')
        if depth == len(path) - 1:
            break
        if name not in written:  # a group whose defaults the study file left alone
            node[name] = {}
        node = node[name]
    try:
        node[path[-1]] = value
    except TypeError:
        raise ValueError(f'--set {key}: {text!r} must be of type '
                         f'{type(node[path[-1]]).__name__}') from None


def _fields(group):
    """The names that an `Experiment` has in `group` (a path), also those left at their default."""
    from dataclasses import fields, is_dataclass
    from typing import get_type_hints

    from downscale.experiment import Experiment, Stage
    if not group:
        given_elsewhere = {'name', 'size', 'seed', 'language', 'stages'}  # sweep and stage table
        return {field.name for field in fields(Experiment)} - given_elsewhere
    if group[0] == 'stages':
        return {field.name for field in fields(Stage)} - {'name'} if len(group) == 2 else set()
    kind = get_type_hints(Experiment).get(group[0])
    return {field.name for field in fields(kind)} if len(group) == 1 and is_dataclass(kind) \
        else set()


def open_study(args):
    """(config, experiments, folder) of the command line; the platform is chosen here, before JAX
    is imported."""
    config, sweep = load_study(args.config, args.set)
    if config.platform:
        os.environ.setdefault('JAX_PLATFORMS', config.platform)
    if on_cpu():
        keep_freed_memory()
    from downscale.experiment import cells
    with config.unlocked():
        del config['platform']
    return config, cells(config, sweep), Path(args.out or Path('runs') / config.study)


def on_cpu():
    """Whether JAX will compute on the CPU only."""
    return os.environ.get('JAX_PLATFORMS') == 'cpu'


def refuse_many():
    """Raise ValueError where the environment names several processes, which only train knows."""
    from downscale.distributed import given
    if given():
        raise ValueError('only `downscale train` runs over several processes; unset '
                         'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for this')


def find_cell(experiments, name):
    """The experiment called `name`; ValueError with the nearest."""
    from downscale.experiment import unknown
    for cell in experiments:
        if cell.name == name:
            return cell
    raise ValueError(unknown('cell', name, [cell.name for cell in experiments]))


def cache_folder():
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    default = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'downscale' / 'xla'
    return Path(os.environ.get('JAX_COMPILATION_CACHE_DIR', default))


def study(args):
    """Train, evaluate and compare every cell; then write the report."""
    config, experiments, folder = open_study(args)
    refuse_many()
    from downscale.study import run
    jobs = args.jobs
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
        jobs = min(cores, len(experiments)) if on_cpu() else 1
    seconds = run(folder, config.study, experiments, jobs, cache_folder(), args.quiet)
    print(f'study done in {seconds:.0f} s')
    print(f'report: {write(folder)}')


def write(folder):
    """The report of a study folder; returns its path."""
    from downscale.analysis.report import write_report
    return write_report(folder)


def report(args):
    """Write the report of a finished or unfinished study."""
    print(f'report: {write(args.study)}')


def train(args):
    """Train one stage of one cell; its parents must be finished.

    SIGTERM saves a step and ends with exit code 42; the same command continues.

    Over several processes: start the same command in each, on a folder that all can reach, with
    JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; a TPU slice needs
    none of them.
    """
    _, experiments, folder = open_study(args)
    cell = find_cell(experiments, args.cell)
    from downscale import distributed, stages
    from downscale.console import progress_bars
    from downscale.study import use_cache
    total = cell.stage(args.stage).steps
    with distributed.joined():
        stages.grid_of(cell)
        use_cache(cache_folder())
        distributed.once(lambda: str(stages.prepare(folder, cell)))
        with progress_bars(args.quiet or not distributed.first()) as bars:
            stages.train_stage(folder, cell, args.stage, lambda step, row: bars(
                f'{cell.name}/{args.stage}', step, total, f'loss {row["loss"]:.3f}'))
        if distributed.first():
            print(f'checkpoints: {stages.folder_of(folder, cell, args.stage)}')


def evaluate(args):
    """Run one evaluation of one cell: joint, caption, extraction or reason."""
    _, experiments, folder = open_study(args)
    refuse_many()
    cell = find_cell(experiments, args.cell)
    from downscale.console import progress_bars
    from downscale.evaluate.run import evaluate as run_evaluation
    from downscale.study import use_cache, writers_of
    use_cache(cache_folder())
    with progress_bars(args.quiet) as bars:
        run_evaluation(folder, cell, args.only, writers_of(cell, experiments),
                       lambda done, total: bars(f'{args.only} {cell.name}', done, total))
    print(f'items: {folder / "evaluations" / f"{args.only}-{cell.name}"}')


def data(args):
    """Build the data set of a study, and show some of it."""
    _, experiments, folder = open_study(args)
    from downscale import stages
    from downscale.console import progress_bars
    with progress_bars(args.quiet) as bars:
        built = stages.prepare(folder, experiments[0],
                               lambda done, total: bars('scenes', done, total))
    print(f'data: {built}')
    if args.padding:
        print(*stages.padding_lines(folder, experiments[-1]), sep='\n')
    test = stages.library(str(folder), 'test')
    for index in range(min(args.show, len(test))):
        example = test.example(index)
        print(f'\n{example.scene_id}: {example.caption}')
        for question in example.questions:
            print(f'  {question.text}? {question.answer}  [{question.family}, '
                  f'guess {question.chance:.2f}]')


def plan(args):
    """Compile every program of a study for TPUs, on this machine: what fits, takes and costs what.

    No TPU is needed. The same command continues after an interruption.
    """
    from downscale.console import progress_bars
    from downscale.launch import table
    from downscale.launch.plan import Plan
    from downscale.launch.pool import ENVIRONMENT
    os.environ.update(ENVIRONMENT)
    _, experiments, folder = open_study(args)
    said = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    from downscale.launch.programs import Wish
    from downscale.launch.worker import refuse
    wish = Wish(tuple(args.only), args.per_chip_batch, args.seq, args.text_only)
    with contextlib.redirect_stdout(said), progress_bars(args.quiet) as bars:
        found = Plan(experiments, args.topology, wish, refuse, args.out or folder / 'plan',
                     args.jobs, args.limit, bars).run()
    print(json.dumps(found) if args.json else '\n'.join(table.lines(found)))
    return int(any(row['error'] for row in found['cells']))


def extract_think(args):
    """Let perception models describe and reasoners answer, every pair of them.

    The same command continues after an interruption, also with other --slots and --processes.
    """
    if on_cpu():
        keep_freed_memory()
    from downscale.console import progress_bars
    from downscale.evaluate.cells import table
    from downscale.study import use_cache
    use_cache(cache_folder())
    with progress_bars(args.quiet) as bars:
        found = chain_of(args, bars).run()
    if found is not None:
        print(*table(found), sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')


def chain_of(args, bars):
    """The `Chain` of the command line, everything that it names checked."""
    import dataclasses

    from downscale.evaluate import prompts
    from downscale.evaluate.asked import informed, open_questions
    from downscale.evaluate.extract_think import Chain
    from downscale.evaluate.plan import Plan
    from downscale.evaluate.runs import open_runs, prompts_for
    if min(args.slots, args.processes) < 1:
        raise ValueError(f'--slots {args.slots} and --processes {args.processes} must be at least '
                         '1')
    if not 0 <= args.process < args.processes:
        raise ValueError(f'--process {args.process} must be a number from 0 to '
                         f'{args.processes - 1}, below --processes')
    if args.information and args.informer:
        raise ValueError('--information and --informer both say what to look at; give one')
    if args.describe != 'extract' and (args.information or args.informer):
        raise ValueError('a caption looks at everything; give --describe extract with '
                         '--information or --informer')
    folders = [*args.perception, *args.reasoner, *[args.informer] * bool(args.informer)]
    worded = prompts.load(args.prompts or prompts_for(folders))
    args.reason = tuple(args.reason) if args.reason else None
    limits = {name: vars(worded)[name] for name in prompts.LIMITS}
    plan = Plan(**limits | {field.name: value for field in dataclasses.fields(Plan)
                            if (value := vars(args)[field.name]) is not None})
    questions = open_questions(args.data, args.split, args.limit)
    if args.information:
        questions = informed(questions, args.information)
    sees = any(asked.pictures for asked in questions.asked)
    informer = open_runs([args.informer] if args.informer else [], 'informer')
    return Chain(
        args.out, plan, worded, questions, open_runs(args.perception, 'perception', sees=sees),
        open_runs(args.reasoner, 'reasoner', ban=plan.ban_reflexive), *informer,
        process=args.process, processes=args.processes, slots=args.slots, report=bars,
        note=bars.note)


def import_(args):
    """Bring a Hugging Face folder or a GGUF file into a run folder."""
    from downscale.console import progress_bars
    from downscale.exchange import import_model
    with progress_bars(args.quiet) as bars:
        notes = import_model(args.source, args.to, lambda done, total: bars(
            'MB', done // 10**6, total // 10**6))
    for note in notes:
        print(f'note: {note}')
    print(f'model: {args.to}')


def export(args):
    """Write a run's newest checkpoint as a Hugging Face folder."""
    from downscale.exchange import export_model
    export_model(args.run_folder, args.to, args.format)
    print(f'exported: {args.to}')


def parity(args):
    """Recompute what a checkpoint's original gave (expected.npz); exit with 1 if it differs."""
    from downscale.parity import parity as compare
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
    sub.add_argument('source', type=Path, help='Hugging Face folder, or a .gguf file')
    sub.add_argument('--to', type=Path, required=True, help='new run folder')
    sub.add_argument('--quiet', action='store_true', help='no progress bar')
    sub = _command(commands, export)
    sub.add_argument('run_folder', metavar='run', type=Path,
                     help='imported model, or STUDY/cells/CELL/STAGE')
    sub.add_argument('--to', type=Path, required=True, help='new Hugging Face folder')
    sub.add_argument('--format', required=True, choices=(
        'qwen3', 'qwen2', 'llama', 'llava_qwen_3', 'llava_onevision'))
    sub = _command(commands, parity)
    sub.add_argument('folder', type=Path, help='config.json, safetensors, image.png, expected.npz')
    sub.add_argument('--json', action='store_true', help='one JSON object')


def _add_extract_think(commands):
    """The parser of extract-think; what is not given is left to `Plan` and, for limits, to the
    prompts."""
    sub = _command(commands, extract_think)
    runs = {'nargs': '+', 'type': Path, 'required': True, 'metavar': 'RUN'}
    sub.add_argument('--perception', help='run folders of models that describe pictures', **runs)
    sub.add_argument('--reasoner', help='run folders of models that answer from texts', **runs)
    sub.add_argument('--data', type=Path, required=True,
                     help='folder of a study, or .jsonl file of questions with "id", "question", '
                     '"images" (paths beside the file) and, if known, "answer", "information", '
                     '"family"')
    sub.add_argument('--out', type=Path, required=True, help='folder of the results')
    sub.add_argument('--split', default='test', help='split of a study (default: test)')
    sub.add_argument('--limit', type=int, metavar='N', help='only the first N questions')
    _add_wording(sub.add_argument_group('what is asked'))
    _add_writing(sub.add_argument_group('how the reasoner writes (descriptions are greedy)'))
    group = sub.add_argument_group('how the work is done; no result depends on it')
    group.add_argument('--slots', type=int, default=16, metavar='N',
                       help='rows that decode at once (default 16)')
    group.add_argument('--processes', type=int, default=1, metavar='N', help='start the command N '
                       'times, on a folder that all can reach (default 1)')
    group.add_argument('--process', type=int, default=0, metavar='I',
                       help='with number I, from 0 to N - 1; 0 joins the files (default 0)')
    group.add_argument('--quiet', action='store_true', help='no progress bars')


def _add_wording(group):
    """The arguments of extract-think that decide the questions to both kinds of model."""
    group.add_argument('--describe', choices=('caption', 'extract'), help='describe everything '
                       '(default), or what the question needs')
    group.add_argument('--information', type=Path, metavar='FILE', help='what to look at, instead '
                       'of that in the data: JSON, question id or number to text')
    group.add_argument('--informer', type=Path, metavar='RUN', help='model that writes what to '
                       'look at, instead of that in the data')
    group.add_argument('--reason', nargs='+', choices=('think', 'direct'), help='default: think')
    group.add_argument('--prompts', metavar='NAME', help='micro, paper or a JSON file (default: '
                       'what the models are used to); released checkpoints want their own exact '
                       'strings')
    for name, text in (('describe', 'of a description'), ('answer', 'of an answer'),
                       ('think', 'of a thought, counted from <think>')):
        group.add_argument(f'--{name}-tokens', type=int, metavar='N',
                           help=f'most tokens {text} (default: that of the prompts)')


def _add_writing(group):
    """The arguments of extract-think that decide how a reasoner's tokens are chosen."""
    group.add_argument('--temperature', type=float, metavar='X', help='default 0: greedy')
    group.add_argument('--top-k', type=int, metavar='N',
                       help='likeliest tokens to choose from (default: all)')
    group.add_argument('--top-p', type=float, metavar='X',
                       help='mass of likeliest tokens (default 1)')
    group.add_argument('--seed', type=int, metavar='N', help='default 0')
    group.add_argument('--repeats', type=int, metavar='N', help='answers per question (default 1)')
    group.add_argument('--ban-reflexive', action='store_true',
                       help='no "wait", "however" and the like while thinking')
    group.add_argument('--nudge', type=float, metavar='X', help='added to </think> and newline '
                       'after 95 %% of the budget (default 0)')
    group.add_argument('--reference-compat', action='store_true',
                       help='keep the thinking budget as the code of arXiv 2511.17487 does, '
                       'defects included')


def _command(commands, run):
    """The parser of one command, which runs `run`."""
    name = run.__name__.rstrip('_').replace('_', '-')
    sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__,
                              epilog=f'example: {EXAMPLES[name]}')
    sub.set_defaults(run=run)
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return sub


def parser():
    """The argument parser of every command."""
    top = argparse.ArgumentParser(
        prog='downscale', description='What breaks first when the language model inside a '
        'multimodal model gets small, and how to repair it.',
        epilog=f'example: {EXAMPLES["study"]}')
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for run in (study, train, evaluate, report, data):
        name, sub = run.__name__, _command(commands, run)
        if name == 'report':
            sub.add_argument('study', type=Path, help='folder of a study')
            continue
        sub.add_argument('config', help='study file, FILE.py or FILE.py:ARG')
        sub.add_argument('--out', type=Path, help='folder of the study (default: runs/NAME)')
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
        if name == 'study':
            sub.add_argument('--jobs', type=int, help='tasks run at once (default: one per core '
                             'on CPU, at most one per cell; else 1)')
        if name == 'data':
            sub.add_argument('--show', type=int, default=2, help='examples to print')
            sub.add_argument('--padding', action='store_true', help='count what the batches of '
                             'each stage waste, and propose buckets that waste less')
    add_arguments(_command(commands, plan))
    _add_extract_think(commands)
    _add_exchange(commands)
    return top


def main(argv=None):
    """Run one command; errors are one line on stderr and exit code 1 (2 for bad usage).

    That of `train` is after `exits.TABLE`.
    """
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print('stopped; the same command continues', file=sys.stderr)
        return 130
    except (ValueError, KeyError, ImportError, RuntimeError, FloatingPointError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        text = ' '.join(str(error).split()) or type(error).__name__
        print(f'error: {text}', file=sys.stderr)
        return exits.code_of(error) if args.run is train else 1
    except exits.Preempted as error:
        print(f'{error}; the same command continues', file=sys.stderr)
        return error.code


if __name__ == '__main__':
    sys.exit(main())
