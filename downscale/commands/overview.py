"""The first screen: what a person may want to do, and what to try next."""
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from downscale.commands.parsing import Parser
from downscale.runtime.streams import printable

EXAMPLE = 'downscale study experiments/smoke.py --out runs/smoke'
WIDTH = 80


class Top(Parser):
    """The parser of the commands; its help is one screen, grouped by what a person wants to do."""

    def __init__(self, groups: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(**settings)
        self.groups = groups  # {title: names of commands}

    def format_help(self) -> str:
        """Return the screen: a line a command, with the title of its group before the first."""
        verbs = self.verbs()
        about = {name: sub.description.splitlines()[0] for name, sub in verbs.choices.items()}
        lines = [f'{self.format_usage().strip()}   (COMMAND --help: its options)', '',
                 *textwrap.wrap(self.description or '', WIDTH), '']
        wide = max(map(len, about)) + 1
        for title, names in self.groups.items():
            for name in names:
                shown = title if name == names[0] else ''
                lines.append(f'{shown:13} {name:{wide}} {about[name]}')
        return '\n'.join([*lines, '', self.epilog]) + '\n'


def next_steps(folder: Path) -> Iterator[str]:
    """Yield what to try next in `folder`, a line each: commands, and what they are for."""
    steps = dict(_steps(folder))
    wide = max(map(len, steps))
    yield 'downscale: what breaks first when the language model of a multimodal model gets'
    yield 'small, and how to repair it.'
    yield ''
    yield 'Try next:'
    for command, meaning in steps.items():
        yield f'  {command:{wide}}  {meaning}'


def _steps(folder):
    """Yield (command, what it is for)."""
    import shlex  # only here, so that --help need not wait for it
    studies = sorted(folder.glob('runs/*/study.json'), key=lambda path: path.stat().st_mtime)
    if studies:
        newest = printable(shlex.quote(str(studies[-1].parent)))
        yield f'downscale report {newest}', 'the report of the newest study here'
        yield f'downscale view {newest}', 'its items one by one, in a browser'
        yield f'downscale analyze drop {newest}', 'what its small sizes lose, in numbers'
    elif (folder / EXAMPLE.split()[2]).is_file():
        yield 'downscale doctor', 'is this machine ready?'
        yield EXAMPLE, 'a first study, of small models'
    else:
        yield 'downscale doctor', 'is this machine ready?'
        yield 'downscale study FILE.py', "a study; the repository's are in experiments/"
    yield 'downscale --help', 'every command'
