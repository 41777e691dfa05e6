"""What a person sees while work goes on: bars with rate and time left, or one line per task."""
import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

QUIET_SECONDS = 30.0  # a log without a terminal says at least this often how far the work is


class _Rate(ProgressColumn):
    """Steps in a second."""

    def render(self, task):
        """Return the text of this column."""
        return Text(f'{task.speed:.1f}/s' if task.speed else '', style='cyan')


class Bars:
    """Call with (name, done, total, text) as work goes on; `finished` and `note` print a line.

    Lines of `finished` count up to `tasks`, where that is given.
    """

    def __init__(self, console: Console, progress: Progress | None, quiet: bool = False) -> None:
        self.console = console
        self.progress = progress
        self.quiet = quiet
        self.tasks = 0
        self.count = 0
        self.ids = {}   # name -> task of rich
        self.ends = {}  # name -> when it was last heard of, for names without a line so far
        self.began = self.said = time.monotonic()

    def __call__(self, name: str, done: int, total: int, text: str = '') -> None:
        now = self.ends[name] = time.monotonic()
        # Lines of a pipe cannot be drawn over: there ends are told, and what takes long.
        if self.progress is None:
            if not self.quiet and now - self.said > QUIET_SECONDS:
                self._line(name, now, f': {done:,} of {total:,} {text}'.rstrip())
            return
        if name not in self.ids:
            self.ids[name] = self.progress.add_task(name, total=total, said='')
        self.progress.update(self.ids[name], completed=done, total=total, said=text)

    def finished(self, name: str) -> None:
        """Print that a task has finished, and when; its bar goes."""
        end = time.monotonic()
        self.remove(name)
        self.count += 1
        self._line(name, end, f' ({self.count} of {self.tasks})' if self.tasks else '')

    def finish_all(self) -> None:
        """Name all that is left, and when each was last heard of."""
        for name, end in list(self.ends.items()):
            self.remove(name)
            self._line(name, end)

    def _line(self, name, when, more=''):
        """Print when a task has ended, or how far it was."""
        self.note(f'{when - self.began:7.1f} s  {name}{more}')

    def remove(self, name: str) -> None:
        """Remove the bar called `name`, if there is one."""
        self.ends.pop(name, None)
        if name in self.ids:
            self.progress.remove_task(self.ids.pop(name))

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self.said = time.monotonic()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Bars]:
    """Show bars on a terminal; elsewhere (CI, a pipe) lines, of `finished` and `note`, and how far
    the work is where nothing was said for half a minute.

    Each bar ends as a line with the time. After an error it stays as it was.
    """
    console = Console(file=sys.stdout)
    if quiet:
        yield Bars(console, None, quiet=True)
        return
    # rich takes FORCE_COLOR for a terminal, which a pipe is not.
    if not console.file.isatty() or console.is_dumb_terminal:
        bars = Bars(console, None)
        yield bars
        bars.finish_all()
        return
    with Progress(TextColumn('{task.description:32}'), BarColumn(), MofNCompleteColumn(), _Rate(),
                  TimeElapsedColumn(), TimeRemainingColumn(), TextColumn('{task.fields[said]}'),
                  console=console, refresh_per_second=4) as progress:
        bars = Bars(console, progress)
        yield bars
        bars.finish_all()
