"""`downscale extract-think`: its arguments, and the `Chain` that they ask for."""
import argparse

from downscale.commands.parsing import local_path, new_folder
from downscale.experiment.file import on_cpu
from downscale.runtime.memory import keep_freed_memory
from downscale.runtime.setup import cache_folder

EXAMPLE = ('downscale extract-think --perception runs/smoke/cells/w64d4-s0/extract --reasoner '
           'runs/smoke/cells/w64d4-s0/reason --data runs/smoke --out runs/chain --describe '
           'extract --reason think direct')


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """`sub` (an argparse parser) takes what `chain_of` reads; what is not given is left to
    `ChainPlan` and, for limits, to the prompts."""
    runs = {'nargs': '+', 'type': local_path, 'required': True, 'metavar': 'RUN'}
    sub.add_argument('--perception', help='run folders of models that describe pictures', **runs)
    sub.add_argument('--reasoner', help='run folders of models that answer from texts', **runs)
    sub.add_argument('--data', type=local_path, required=True,
                     help='folder of a study, or file of own questions (.json, .jsonl, .ndjson, '
                     '.csv, .tsv, .parquet), a row each: "id", "question", "images" (or "image", '
                     '"image_1", ...: paths beside the file, bytes or base64; [] for none) and, if '
                     'known, "answer" or "answers" (a text, a whole number, a list of accepted '
                     'texts, a box of four numbers, or with "options", "choices" or columns A, B, '
                     '... one of them by letter, text or number from 0), "information" (what to '
                     'look at), "family", "scorer". Any other column is refused')
    sub.add_argument('--out', type=new_folder, required=True, help='folder of the results')
    sub.add_argument('--split', default='test', help='split of a study (default: test)')
    sub.add_argument('--limit', type=int, metavar='N', help='only the first N questions')
    add_manner(sub)


def add_manner(sub: argparse.ArgumentParser) -> None:
    """`sub` takes how is asked, written and worked: what extract-think and benchmark share."""
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
    group.add_argument('--information', type=local_path, metavar='FILE',
                       help='what to look at, instead '
                       'of that in the data: JSON, question id or number to text')
    group.add_argument('--informer', type=local_path, metavar='RUN',
                       help='model that writes what to '
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


def chain_of(args, bars):
    """Return the `Chain` of the command line, everything that it names checked."""
    from downscale.evaluate.asked import open_questions
    return assembled(args, bars, lambda: open_questions(args.data, args.split, args.limit))


def assembled(args, bars, open_data, numbers=True, sighted=(), tail=''):
    """Return the `Chain` of arguments with `perception` and `reasoner`, over what `open_data`
    returns.

    `numbers` says that an information file may go by numbers in the data; `sighted` are folders of
    models that answer themselves, with `tail` behind their question.
    """
    import dataclasses

    from downscale.evaluate import prompts
    from downscale.evaluate.asked import informed
    from downscale.evaluate.extract_think import Chain
    from downscale.evaluate.plan import ChainPlan
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
    folders = [*dict.fromkeys((*sighted, *args.perception)), *args.reasoner,
               *[args.informer] * bool(args.informer)]
    worded = prompts.load(args.prompts or prompts_for(folders))
    args.reason = tuple(args.reason) if args.reason else None
    limits = {name: vars(worded)[name] for name in prompts.LIMITS}
    plan = ChainPlan(**limits | {field.name: value for field in dataclasses.fields(ChainPlan)
                                 if (value := vars(args)[field.name]) is not None})
    questions = open_data()
    if args.information:
        questions = informed(questions, args.information, numbers)
    sees = any(asked.pictures for asked in questions.asked)
    informers = open_runs([args.informer] if args.informer else [], 'informer')
    return Chain(
        out=args.out,
        plan=plan,
        prompts=worded,
        questions=questions,
        perceptions=open_runs(args.perception, 'perception', sees=sees),
        reasoners=open_runs(args.reasoner, 'reasoner', ban=plan.ban_reflexive),
        informer=informers[0] if informers else None,
        sighted=open_runs(sighted, 'run', sees=sees),
        tail=tail,
        process=args.process,
        processes=args.processes,
        slots=args.slots,
        report=bars,
        note=bars.note,
    )


def run(args: argparse.Namespace) -> None:
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
        found = chain_of(args, bars).run()
    if found is not None:
        print(*table(found), sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')
