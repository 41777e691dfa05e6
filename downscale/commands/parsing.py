"""Arguments of the console: a parser that names the nearest valid word, and types with ranges.

What a command will write to is checked as it is parsed, which may be hours before it is written.
"""
import argparse
import itertools
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from downscale.runtime.files import in_bucket
from downscale.runtime.outputs import require_folder
from downscale.runtime.streams import shortened
from downscale.values import unknown

ADDRESS = re.compile('[A-Za-z][A-Za-z0-9+.-]+://')  # a single letter would be a drive
NOT_IN_BUCKET = re.compile(r'[\x00-\x1f\x7f*?#\[\]]')
MOST_IN_BUCKET = 700


class Parser(argparse.ArgumentParser):
    """An argparse parser that takes `--debug` anywhere and answers a wrong word with the nearest.

    Options are not abbreviated: what a short one means would change when options are added.
    """

    def __init__(self, **settings: Any) -> None:
        # In every parser: argparse lets a subcommand see its own options alone.
        super().__init__(allow_abbrev=False, **settings)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse an option that does not exist before anything else.

        That is done by the parser for which the option was meant.
        """
        # 1. The words of this parser: those before the command or verb, if it has any.
        args = list(sys.argv[1:] if args is None else args)
        verbs = self.verbs()
        words = args if verbs is None else _until(args, lambda word: not word.startswith('-'))
        options = [word.partition('=')[0] for word in _until(words, lambda word: word == '--')
                   if word.startswith('--') and ' ' not in word]
        # 2. Options that it does not know.
        for option in options:
            if option not in self._option_string_actions:
                if verbs and any(option in sub._option_string_actions
                                 for sub in verbs.choices.values()):
                    self.error(f'{option} belongs behind the {verbs.metavar}')
                self.error(unknown('option', option, self._option_string_actions))
        # 3. No verb at all, then whatever argparse refuses by itself.
        if verbs and words == args and not {'-h', '--help'} & set(words):
            self.error(f'{verbs.metavar} is missing: {", ".join(verbs.choices)}')
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f'unrecognized arguments: {" ".join(rest)}')
        return namespace, rest

    def arguments(self) -> list[argparse.Action]:
        """Return the arguments of this command, options and positional ones."""
        return self._actions

    def verbs(self) -> argparse.Action | None:
        """Return the argparse action whose choices are commands or verbs, if there is one."""
        return next((action for action in self.arguments()
                     if isinstance(action, argparse._SubParsersAction)), None)

    def _check_value(self, action, value):
        """Name the nearest of the choices, or the command that has such a verb."""
        # argparse would list all choices, dozens of them, and leave the comparing to the reader.
        if action.choices is None or value in action.choices:
            return
        nested = [f'{name} {value}' for name, sub in action.choices.items()
                  if sub.verbs() and value in sub.verbs().choices] if action is self.verbs() else []
        raise argparse.ArgumentError(action, f'{value!r} is the verb of a command; did you mean '
                                     f'{nested[0]!r}' if nested else
                                     unknown('word', value, action.choices))

    def error(self, message: str) -> NoReturn:
        """Print usage and one short line; exit with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, shortened(f'{self.prog}: error: {message}') + '\n')


def _until(words, ends):
    """Return the words before the first one that `ends` is true of."""
    return list(itertools.takewhile(lambda word: not ends(word), words))


# --- numbers ----------------------------------------------------------------------------------

def _number(kind, holds, meaning):
    """Return the type of an argument that is an int or float within a range."""
    # A factory of types: argparse shows the text of ArgumentTypeError, and no traceback.
    def read(text):
        # NaN is within no range, so what is no number gets the same message.
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f'{text!r} must be {meaning}')
        return value
    return read


count = _number(int, lambda value: 1 <= value < 2**31, 'a whole number above 0')
natural = _number(int, lambda value: 0 <= value < 2**31, 'a whole number of at least 0')
resamples = _number(int, lambda value: 1 <= value <= 10**6, 'a whole number from 1 to 1000000')
positive = _number(float, lambda value: 0 < value < math.inf, 'a number above 0')
amount = _number(float, lambda value: 0 <= value < math.inf, 'a number of at least 0')
share = _number(float, lambda value: 0 <= value <= 1, 'a number from 0 to 1')


# --- places -----------------------------------------------------------------------------------

def local_path(text: str) -> Path:
    """Return the path of a file or folder of this machine, which need not exist."""
    if not text or '\0' in text:
        raise argparse.ArgumentTypeError(f'{text!r} is no path')
    if ADDRESS.match(text):
        raise argparse.ArgumentTypeError(
            f'{text} is no path of this machine; report, view, analyze, rescore, extract-think and '
            'data show read a bucket (gs://), and `launch --run` writes it; for the rest copy it '
            'here: gcloud storage cp --recursive')
    return Path(text)


def any_path(text: str) -> str:
    """Return a path as text: one of this machine, or gs://BUCKET/..."""
    if not in_bucket(text):
        return str(local_path(text))
    if not text.removeprefix('gs://').partition('/')[0]:
        raise argparse.ArgumentTypeError(f'{text} names no bucket; as gs://BUCKET/runs/NAME')
    parts = text.removeprefix('gs://').removesuffix('/').split('/')
    # gcloud storage reads *?[] as wildcards and # as a generation, quoted or not.
    if NOT_IN_BUCKET.search(text) or {'', '.', '..'} & set(parts):
        raise argparse.ArgumentTypeError(f'{text[:100]!r}: a path in a bucket has no line break, '
                                         'none of *?[]#, and no empty part, . or ..')
    if len(text.encode()) > MOST_IN_BUCKET:
        raise argparse.ArgumentTypeError(f'{text[:60]}...: longer than {MOST_IN_BUCKET} bytes; '
                                         'objects have 1024, of which a run needs the rest')
    return text


def new_folder(text: str) -> Path:
    """Return the path of a folder that can be made, and written to."""
    path = local_path(text)
    _require(path, path)
    return path


def new_file(text: str) -> Path:
    """Return the path of a file that can be written, or replaced."""
    path = local_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{path} is a folder; give a file')
    _require(path.parent, path)
    return path


def _require(folder, path):
    try:
        require_folder(folder)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{path}: {error}') from None


def add_study_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` a study file, its folder, overrides and `--quiet`."""
    sub.add_argument('config', help='study file, FILE.py or FILE.py:ARG')
    sub.add_argument('--out', type=new_folder, help='folder of the study (default: runs/NAME)')
    sub.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                     help='override a configuration value; may be repeated')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')


def refuse_many() -> None:
    """Raise ValueError where the environment names several processes."""
    from downscale.runtime.processes import given
    if given():
        raise ValueError('only `downscale train` and `downscale evaluate` run over several '
                         'processes; unset JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and '
                         'JAX_PROCESS_ID')
