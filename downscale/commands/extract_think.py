"""`downscale extract-think`: its arguments, and the `Chain` that they ask for."""
import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from downscale.commands.machine import prepare_for_models
from downscale.commands.parsing import any_path, new_folder

if TYPE_CHECKING:
    from downscale.evaluate.asked import Questions
    from downscale.evaluate.extract_think import Chain
    from downscale.evaluate.plan import ChainPlan
    from downscale.evaluate.prompts import Prompts
    from downscale.runtime.progress import Bars

EXAMPLE = ('downscale extract-think --perception runs/smoke/cells/w64d4-s0/extract --reasoner '
           'runs/smoke/cells/w64d4-s0/reason --data runs/smoke --out runs/chain --describe '
           'extract --reason think direct')


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `chain_of` reads.

    What is not given is left to `ChainPlan` and, for limits, to the prompts.
    """
    runs = {'nargs': '+', 'type': any_path, 'required': True, 'metavar': 'RUN'}
    sub.add_argument('--perception', help='run folders of models that describe pictures; as '
                     'all that is read, of this machine or of a bucket (gs://BUCKET/...)', **runs)
    sub.add_argument('--reasoner', help='run folders of models that answer from texts', **runs)
    sub.add_argument('--data', type=any_path, required=True,
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
    """Add to `sub` what extract-think and benchmark share: how to ask, to write and to work."""
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
    """Add the arguments that decide the questions to both kinds of model."""
    group.add_argument('--describe', choices=('caption', 'extract'), help='describe everything '
                       '(default), or what the question needs')
    group.add_argument('--information', type=any_path, metavar='FILE',
                       help='what to look at, instead '
                       'of that in the data: JSON, question id or number to text')
    group.add_argument('--informer', type=any_path, metavar='RUN',
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
    """Add the arguments that decide how a reasoner's tokens are chosen."""
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


def chain_of(args: argparse.Namespace, bars: 'Bars') -> 'Chain':
    """Return the `Chain` of the command line, everything that it names checked."""
    from downscale.evaluate.asked import open_questions
    return assembled(args, bars, lambda: open_questions(args.data, args.split, args.limit))


def assembled(args: argparse.Namespace, bars: 'Bars', open_data: 'Callable[[], Questions]',
              numbers: bool = True, sighted: Sequence[Path] = (), tail: str = '') -> 'Chain':
    """Return the `Chain` of arguments with `perception` and `reasoner`, over `open_data()`.

    `numbers` says that an information file may go by numbers in the data; `sighted` are folders of
    models that answer themselves, with `tail` behind their question.
    """
    from downscale.evaluate import prompts
    from downscale.evaluate.asked import informed
    from downscale.evaluate.extract_think import Chain
    from downscale.evaluate.runs import open_runs, prompts_for
    from downscale.runtime.copies import local_copy
    from downscale.stages.loading import local_run
    # 1. The arguments by themselves, then the prompts, which need no data either.
    _refuse(args)
    perceiving = [*map(local_run, args.perception)]
    reasoning = [*map(local_run, args.reasoner)]
    informers = [local_run(args.informer)] if args.informer else []
    # All models have a say in the prompts; one that both sees and describes has one.
    folders = [*dict.fromkeys((*sighted, *perceiving)), *reasoning, *informers]
    worded = prompts.load(args.prompts or prompts_for(folders))
    args.reason = tuple(args.reason) if args.reason else None
    plan = _plan_of(args, worded)
    # 2. The questions, whose pictures decide what the models must see.
    questions = open_data()
    if args.information:
        questions = informed(questions, local_copy(args.information), numbers)
    sees = any(asked.pictures for asked in questions.asked)
    # 3. The models.
    informer = open_runs(informers, 'informer')
    perceptions = open_runs(perceiving, 'perception', sees=sees)
    reasoners = open_runs(reasoning, 'reasoner', ban=plan.ban_reflexive)
    answering = open_runs(sighted, '', sees=sees)
    return Chain(
        out=args.out,
        plan=plan,
        prompts=worded,
        questions=questions,
        perceptions=perceptions,
        reasoners=reasoners,
        informer=informer[0] if informer else None,
        sighted=answering,
        tail=tail,
        process=args.process,
        processes=args.processes,
        slots=args.slots,
        report=bars,
        note=bars.note,
    )


def _plan_of(args, worded: 'Prompts') -> 'ChainPlan':
    """Return the plan: limits of the prompts, and what the command line says instead."""
    import dataclasses

    from downscale.evaluate.plan import ChainPlan
    from downscale.evaluate.prompts import LIMITS
    # The prompts know how long their answers are; a person who says otherwise is right.
    values = {name: vars(worded)[name] for name in LIMITS}
    for field in dataclasses.fields(ChainPlan):
        value = vars(args)[field.name]
        if value is not None:
            values[field.name] = value
    return ChainPlan(**values)


def _refuse(args):
    """Raise ValueError in one line for arguments that do not go together."""
    if min(args.slots, args.processes) < 1:
        raise ValueError(f'--slots {args.slots} and --processes {args.processes} must be at least '
                         '1')
    if not 0 <= args.process < args.processes:
        raise ValueError(f'--process {args.process} must be a number from 0 to '
                         f'{args.processes - 1}, below --processes')
    if args.information and args.informer:
        raise ValueError('--information and --informer both say what to look at; give one')
    # Here and not in argparse: `benchmark` sets 'extract' by itself.
    if args.describe != 'extract' and (args.information or args.informer):
        raise ValueError('a caption looks at everything; give --describe extract with '
                         '--information or --informer')


def run(args: argparse.Namespace) -> None:
    """Let perception models describe, reasoners answer.

    Every pair of them is asked. The same command continues after an interruption, also with other
    --slots and --processes.
    """
    prepare_for_models()
    from downscale.evaluate.cells import table
    from downscale.runtime.progress import progress_bars
    with progress_bars(args.quiet) as bars:
        summary = chain_of(args, bars).run()
    if summary is not None:
        print(*table(summary), sep='\n')
        print(f'summary: {args.out / "summary.json"}')
    else:
        print(f'process {args.process} of {args.processes} is done; process 0 joins the files')
