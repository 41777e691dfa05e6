"""The console script `downscale`. JAX is imported only by the command that needs it."""
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from downscale.commands import (
    analyze,
    benchmark,
    completion,
    data,
    doctor,
    evaluate,
    export,
    extract_think,
    import_,
    launch,
    overview,
    parity,
    plan,
    report,
    rescore,
    shrink,
    study,
    train,
    view,
)
from downscale.commands.parsing import Parser
from downscale.runtime import copies, exits, setup
from downscale.runtime.streams import LONGEST_ERROR, cause_of, keep_streams, shortened

# What a person wants to do, and the commands for it: the first screen of --help.
GROUPS = {
    'Run a study': {'study': study, 'train': train, 'evaluate': evaluate},
    'Read results': {'report': report, 'view': view, 'analyze': analyze, 'rescore': rescore},
    'Ask models': {'extract-think': extract_think, 'benchmark': benchmark},
    'Make data': {'data': data},
    'Move models': {'import': import_, 'shrink': shrink, 'export': export, 'parity': parity},
    'Use TPUs': {'plan': plan, 'launch': launch},
    'This machine': {'doctor': doctor, 'completion': completion}}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

# What is raised on purpose, about input, settings or the machine; all else is a fault of ours.
EXPECTED = (ValueError, ImportError, RuntimeError, FloatingPointError, OSError, MemoryError)


def parser() -> Parser:
    """Return the argument parser of every command."""
    top = overview.Top(
        {title: list(group) for title, group in GROUPS.items()}, prog='downscale',
        description='What breaks first in a multimodal model that gets small; how to repair it.',
        epilog=f'example: {overview.EXAMPLE}')
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND',
                                  parser_class=Parser)
    top.set_defaults(top=top)  # for a command that tells of all the others
    for name, command in COMMANDS.items():
        # The first line is the help of the command, the whole its description.
        about = command.run.__doc__
        sub = commands.add_parser(name, help=about.splitlines()[0], description=about,
                                  epilog=f'example: {command.EXAMPLE}')
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr and exit code 1 (2 for bad usage).

    Without any words it says what to try next, which is no error.
    A fault of this program itself ends with `exits.BUG`, and `train` after `exits.TABLE`.
    """
    console = argv is None  # the whole program: its streams and interrupts are ours
    # `data STUDY.py` needs no verb.
    argv = data.with_verb(argv)
    args = None
    keep_streams()
    try:
        if argv:
            args = parser().parse_args(argv)
            setup.begin(console)
            code = args.run(args) or 0
        else:
            print(*overview.next_steps(Path()), sep='\n')
            code = exits.DONE
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk is told here, not when Python ends
        return code
    except KeyboardInterrupt as interrupt:
        return setup.stopped(interrupt, console)
    except exits.Preempted as error:
        return _ended(f'{error}; the same command continues', error.code)
    except Exception as error:
        if '--debug' in argv:
            traceback.print_exc()
        # What no one has raised on purpose is a fault of ours, and must not pass for bad input.
        if not isinstance(error, EXPECTED):
            return _ended(f'internal error: {type(error).__name__}: {error}', exits.BUG)
        # Only `train` runs under schedulers, which read the table of exit codes.
        return _ended(f'error: {cause_of(error)}',
                      exits.code_of(error) if args and args.command == 'train' else exits.CRASHED)


def _ended(text, code):
    """Print why a command ends, in one line, and return its exit code."""
    hint = '; --debug shows the traceback' if code == exits.BUG else ''
    print(shortened(copies.named(text), LONGEST_ERROR - len(hint)) + hint, file=sys.stderr)
    return code


if __name__ == '__main__':
    sys.exit(main())
