"""Every line that the documents, study files and help texts tell a user to type, as they stand."""
import argparse
import ast
import re
from dataclasses import dataclass

from roots import ROOT

from downscale.commands import main

SHELL = ('downscale ', 'python ', 'pip ', 'make ', 'gcloud ', 'docker ', 'kubectl ')
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


def of_markdown(name):
    """The lines of the code blocks of a document; neighbouring lines of Python are one `Line`."""
    code = [line[4:] if line.startswith('    ') else '' for line in (
        ROOT / name).read_text().splitlines()]
    found = []
    for text in joined(code):
        kind = kind_of(text)
        if not text.strip():
            found.append(None)
        elif kind == 'code' and found and found[-1] and found[-1].kind == 'code':
            found[-1] = Line(name, 'code', f'{found[-1].text}\n{text}')
        else:
            shell = kind not in ('code', 'json')
            found.append(Line(name, kind, re.sub(r'\s+#.*', '', text) if shell else text))
    return [line for line in found if line]


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
    found = [*of_markdown('README.md'), *of_markdown('launch/README.md')]
    for folder in ('experiments', 'experiments/mixtures', 'benchmarks'):
        for path in sorted((ROOT / folder).glob('*.py')):
            found += of_docstring(path)
    return [*found, *of_help()]


def spans(name):
    """What a document's running text sets as code and begins with `downscale`."""
    text = (ROOT / name).read_text()
    return [span for span in re.findall(r'`([^`]+)`', text) if span.startswith('downscale ')]
