"""Every line that the documents, study files and help texts tell a user to type, as they stand."""
import argparse
import ast
import re
from dataclasses import dataclass

from roots import ROOT

from downscale.commands import main

SHELL = ('downscale ', 'python ', 'pip ', 'make ', 'gcloud ', 'docker ', 'kubectl ')
WALKS = 'docs/development/walks.md'  # its commands begin a story in the middle: they only parse
ENVIRONMENT = re.compile(r'([A-Z_]+=\S+ )+')


@dataclass(frozen=True)
class Line:
    """One line of `place`, with the lines that it goes on in; `kind` is its first word, 'json' or
    'code' (Python)."""
    place: str
    kind: str
    text: str

    def __str__(self):
        return f'{self.place}: {self.text}'


def joined(lines):
    """The lines, those that end in a backslash together with the next; comments are cut off."""
    whole = ''
    for line in lines:
        whole += line.strip() if whole else line.rstrip()
        if whole.endswith('\\'):
            whole = whole[:-1].rstrip() + ' '
            continue
        yield whole
        whole = ''


def kind_of(text):
    """The first word of a line for a shell, 'json', or 'code' for all else."""
    bare = ENVIRONMENT.sub('', text, count=1) if ENVIRONMENT.match(text) else text
    if bare.startswith(SHELL):
        return bare.split()[0]
    return 'json' if text.startswith('{') else 'code'


def blocks(text):
    """Yield (language, lines) of every block of code of a document: 'sh', 'python', 'json'.

    Python is also what a notebook's cells hold. A block without a fence is indented and for a
    shell. What is fenced under any other name is not to be typed.
    """
    fence, lines, plain = None, [], []
    for line in [*text.splitlines(), '']:
        start = re.fullmatch(r'```(.*)', line)
        if start and fence is None:
            fence, lines = start[1].removeprefix('{code-cell} '), []
        elif start:
            yield fence, lines
            fence = None
        elif fence is not None:
            lines.append(line)
        elif line.startswith('    '):
            plain.append(line[4:])
        elif plain:
            yield 'sh', plain
            plain = []


def of_markdown(name):
    """The lines of the code blocks of a document; a block of Python is one `Line`."""
    for language, lines in blocks((ROOT / name).read_text()):
        if language == 'python':
            yield Line(name, 'code', '\n'.join(lines))
        elif language in ('sh', 'json'):
            for text in filter(None, joined(lines)):
                kind = kind_of(text)
                yield Line(name, kind, re.sub(r'\s+#.*', '', text) if language == 'sh' else text)


def documents():
    """Every document that tells a user what to type, in the order in which one would read them."""
    pages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').rglob('*.md'))
    return ['README.md', 'launch/README.md', *pages]


def of_docstring(path):
    """The commands in the docstring of a file: after 'Command:' or 'Build:' and below."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ''
    text = re.sub(r'^(Command|Build):', lambda match: ' ' * len(match.group()), text, flags=re.M)
    lines = [re.sub(r'\s+\(.*\)$', '', line) for line in joined(text.splitlines())]
    return [Line(path.relative_to(ROOT).as_posix(), kind_of(line.strip()), line.strip())
            for line in lines if line.startswith('  ') and kind_of(line.strip()) in
            ('downscale', 'python', 'make')]


def parsers(parser=None):
    """Every parser of the console, the top one first."""
    parser = parser or main.parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def of_help():
    """The example of every --help."""
    return [Line(f'{parser.prog} --help', 'downscale', parser.epilog.removeprefix('example: '))
            for parser in parsers()]


def every_line():
    """All of them, in the order in which a reader would meet them."""
    found = [line for name in documents() if name != WALKS for line in of_markdown(name)]
    for folder in ('experiments', 'experiments/mixtures', 'benchmarks'):
        for path in sorted((ROOT / folder).glob('*.py')):
            found += of_docstring(path)
    return [*found, *of_help()]


def spans(name):
    """What a document's running text sets as code and begins with `downscale`."""
    text = re.sub(r'^```.*?^```$', '', (ROOT / name).read_text(), flags=re.M | re.S)
    return [span for span in re.findall(r'`([^`]+)`', text) if span.startswith('downscale ')]
