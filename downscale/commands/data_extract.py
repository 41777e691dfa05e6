"""The arguments of `downscale data extract`, and the work that they ask for."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from downscale.commands.parsing import amount, local_path, natural, new_folder, share
from downscale.output.text import linked

if TYPE_CHECKING:
    from downscale.factory.factory import Factory

EXAMPLE = ('downscale data extract --from train.json --images pictures --to runs/extraction '
           '--teacher openai:http://localhost:8000/v1 --model Qwen3-VL-8B-Instruct')


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('--from', dest='source', type=local_path, required=True, metavar='FILE',
                     help='questions with answers about pictures (.json, .jsonl, .ndjson, .csv or '
                     '.tsv), a row each as data build reads them: "conversations", "messages", '
                     '"texts", or "question" with "answer" or "answers" and perhaps "options" or '
                     '"choices"; "image" is the path of its one picture. Or the folder of a study '
                     'or data set of scenes, which is laid out in DIR-source')
    sub.add_argument('--images', type=local_path, metavar='ROOT', help='folder that the paths of '
                     'pictures start from (default: that of FILE)')
    sub.add_argument('--to', type=new_folder, required=True, metavar='DIR',
                     help='folder of the results')
    sub.add_argument('--limit', type=int, metavar='N', help='only the first N pictures')
    sub.add_argument('--ignore', action='append', default=[], metavar='COLUMN',
                     help='a column of FILE that may be left out; may be repeated')
    sub.add_argument('--split', default='train', help='split of a folder of scenes '
                     '(default: train)')
    group = sub.add_argument_group('who writes')
    group.add_argument('--teacher', required=True, metavar='WHO', help='engine:RUN (a run folder '
                       'of a model that sees), openai:URL (a server, up to /v1), or oracle (knows '
                       'the scenes)')
    group.add_argument('--model', metavar='NAME', help='model of the server')
    group.add_argument('--judge', metavar='WHO', help='a teacher that also judges descriptions')
    group.add_argument('--judge-model', metavar='NAME', help='its model (default: --model)')
    group.add_argument('--key-variable', metavar='VAR', help='environment variable that holds the '
                       "server's key (default: no key)")
    group.add_argument('--temperature', type=amount, default=0.0, metavar='X', help='default 0')
    group.add_argument('--top-p', type=share, default=1.0, metavar='X', help='default 1')
    group.add_argument('--seed', type=natural, default=0, metavar='N', help='default 0')
    group.add_argument('--prompts', type=local_path, metavar='FILE',
                       help='prompts of the steps, in the '
                       'form of downscale/factory/prompts/default.json')
    group.add_argument('--training-prompts', default='paper', metavar='NAME', help='whose '
                       'perception prompt the training data has: micro, paper or a JSON file '
                       '(default: paper)')
    group = sub.add_argument_group('how the work is done; no text depends on it')
    group.add_argument('--concurrency', type=int, default=8, metavar='N',
                       help='calls of a server at once (default 8)')
    group.add_argument('--per-minute', type=float, metavar='N', help='most calls a minute')
    group.add_argument('--timeout', type=float, default=120.0, metavar='S',
                       help='seconds for a whole call (default 120)')
    group.add_argument('--attempts', type=int, default=5, metavar='N',
                       help='of a call that fails in passing (default 5)')
    group.add_argument('--slots', type=int, default=16, metavar='N',
                       help='rows that an engine decodes at once (default 16)')
    group.add_argument('--most-failures', type=share, default=0.1, metavar='X',
                       help='share of failed replies at which to give up (default 0.1)')
    group.add_argument('--price', type=amount, nargs=2, metavar=('IN', 'OUT'),
                       help='dollars for a million tokens read and written by the teacher')
    group.add_argument('--quiet', action='store_true', help='no progress bars')


def run(args: argparse.Namespace) -> None:
    """Make, check and report the data below `args.to`; the same command continues.

    ValueError, FileNotFoundError or RuntimeError in one line.
    """
    import dataclasses
    from collections import Counter

    from downscale.factory.report import write_report
    from downscale.runtime.progress import progress_bars
    factory = factory_of(args)
    with progress_bars(args.quiet) as bars:
        # The bars exist only within the context, the factory was checked before it.
        factory = dataclasses.replace(factory, report=bars)
        rows = factory.run()
    print(f'accepted: {sum(row["accepted"] for row in rows)} of {len(rows)} pictures')
    if factory.skipped:
        reasons = Counter(record.reason.partition(':')[0] for record in factory.skipped)
        # A reason is KIND: DETAILS; counted by kind, thousands of records are one line.
        counts = ', '.join(f'{name} {count:,}' for name, count in reasons.most_common())
        print(f'records left out: {len(factory.skipped):,} ({counts}); see '
              f'{args.to / "skipped.json"}')
    print(f'training data: {args.to / "training.json"}')
    print(f'report: {linked(write_report(factory, args.price))}')


def factory_of(args: argparse.Namespace) -> 'Factory':
    """Return the `Factory` of the command line, everything that it names checked."""
    from downscale.data.row_files import fault
    from downscale.evaluate import prompts
    from downscale.factory import source, steps
    from downscale.factory.factory import Factory
    # 1. Numbers and prompts: what is checked before anything is read.
    for name in ('concurrency', 'attempts', 'slots', 'timeout', 'per_minute', 'limit'):
        value = vars(args)[name]
        if value is not None and value < (1 if isinstance(value, int) else 1e-9):
            raise ValueError(f'--{name.replace("_", "-")} {value} must be above 0')
    worded = steps.load(args.prompts) if args.prompts else steps.load()
    form = prompts.load(args.training_prompts)
    # 2. The questions, and where their pictures are.
    questions = args.source
    root = args.images or args.source.parent
    if args.source.is_dir():
        from downscale.factory import oracle
        if args.images:
            raise ValueError('--images: a folder of scenes has pictures of its own; leave it out')
        questions, root = oracle.lay_out(oracle.data_of(args.source), args.split,
                                         args.to.with_name(f'{args.to.name}-source'), args.limit)
    elif not root.is_dir():
        raise FileNotFoundError(f'no folder {root}; say with --images where pictures are')
    items, skipped = source.read(questions, root, args.limit, args.ignore)
    if not items:
        first = f', first {skipped[0].id}: {skipped[0].reason}' if skipped else ''
        raise fault(questions, 'holds no picture with a question and an answer '
                    f'({len(skipped)} records left out{first})')
    # 3. Who writes; their models are opened when they are asked.
    gold = questions.with_name('gold.json')
    judge = _teacher(args.judge, 'judge', args.judge_model or args.model, args, gold) \
        if args.judge else None
    return Factory(
        to=args.to,
        items=items,
        skipped=skipped,
        root=root,
        teacher=_teacher(args.teacher, 'teacher', args.model, args, gold),
        steps=worded,
        form=form,
        judge=judge,
        seed=args.seed,
        most_failures=args.most_failures,
    )


def _teacher(who, role, model, args, gold):
    """Return the teacher that `--teacher` or `--judge` names."""
    # One grammar for teacher and judge: WHO or WHO:WHERE.
    kind, _, place = who.partition(':')
    if kind == 'oracle' and not place:
        from downscale.factory.oracle import open_oracle
        return open_oracle(gold)
    if kind == 'engine' and place:
        from downscale.factory.teachers import open_engine
        return open_engine(Path(place), role, args.temperature, args.top_p, args.slots)
    if kind != 'openai' or not place.startswith(('http://', 'https://')):
        raise ValueError(f'--{role} {who} must be engine:RUN, openai:URL (http:// or https://) or '
                         'oracle')
    if not model:
        flag = '--judge-model' if role == 'judge' else '--model'
        raise ValueError(f'--{role} {who}: say with {flag} which model of that server')
    from downscale.factory.server import Server, key_in

    return Server(
        url=place,
        model=model,
        key=key_in(args.key_variable),
        temperature=args.temperature,
        top_p=args.top_p,
        concurrency=args.concurrency,
        timeout=args.timeout,
        attempts=args.attempts,
        per_minute=args.per_minute,
    )
