"""Parts of the pages that are made from the code: `PARTS` maps the name of a part to its maker.

A page has ```` ```{generated} NAME ```` where the part stands; `conf.py` fills it in.
"""
import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from downscale import config
from downscale.accounting import GPUS
from downscale.commands import main
from downscale.evaluate.scoring.table import SCORERS
from downscale.experiment.file import REQUIRED
from downscale.letters import AXES
from downscale.planner import hardware
from downscale.results.items import ITEMS, LATER, TEXTS
from downscale.runtime import exits
from downscale.sharding import Rules
from downscale.stage_table import STAGES
from downscale.values import Choice, Range, Several, hints_of

BLOCK = re.compile(r'^```\{generated\} (\w+)\n```$', re.MULTILINE)
# Of an `Experiment`, but named by the sweep or looked up by the size.
NOT_IN_CONFIG = ('name', 'size', 'seed', 'language', 'origin', 'budget',
                 'trained_as')
ABOUT_STUDY = {'study': 'the name of the study, and of its folder below `runs/`',
               'platform': 'where JAX runs: `cpu`, `tpu`, or empty for what is there',
               'family': 'the table of language models that sizes are looked up in',
               'vocabulary': 'rows of the embedding; 0 keeps those of the family'}
# Usage as a help text prints it, whatever the width of the terminal.
WIDTH = 84


def filled(text: str) -> str:
    """Return the text of a page with every generated part in its place."""
    return BLOCK.sub(lambda match: PARTS[match[1]](), text)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(_cell(value) for value in line)} |' for line in lines)


def _cell(value):
    """Return a value as a cell of a Markdown table shows it."""
    return ' '.join(str(value).split()).replace('|', '\\|')


def code(value: object) -> str:
    """Return a value as code, or nothing where it is empty."""
    return f'`{value}`' if str(value) else ''


# --- console ----------------------------------------------------------------------------------

def console() -> str:
    """Return every command, with its verbs, arguments and example."""
    return '\n'.join(_command(parser, depth) for parser, depth in _parsers(main.parser(), 1)
                     if depth > 1)


def _parsers(parser, depth) -> Iterator[tuple[argparse.ArgumentParser, int]]:
    """Yield every parser with its depth, the top one first."""
    yield parser, depth
    verbs = parser.verbs()
    for verb in verbs.choices.values() if verbs else ():
        yield from _parsers(verb, depth + 1)


def _command(parser, depth):
    """Return the section of one command or verb."""
    parser.formatter_class = _Formatter
    usage = parser.format_usage().rstrip()
    parts = [f'{"#" * depth} `{parser.prog}`', _prose(inspect.cleandoc(parser.description or '')),
             f'```text\n{usage}\n```']
    arguments = [action for action in parser._actions
                 if not isinstance(action, argparse._SubParsersAction)
                 and action.dest not in ('help', 'debug')]
    if arguments:
        rows = [(_spelt(action), _prose(_help_of(parser, action))) for action in arguments]
        parts.append(table(('argument', 'meaning'), rows))
    if parser.epilog:
        parts.append(f'Example: `{parser.epilog.removeprefix("example: ")}`')
    return '\n\n'.join(parts) + '\n'


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, width=WIDTH)


def _spelt(action):
    """Return an argument as it is typed."""
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if isinstance(value, tuple):
        value = ' '.join(value)
    if action.choices is not None:
        value = '{' + ','.join(map(str, action.choices)) + '}'
    if action.nargs == 0 or not action.option_strings:
        return code(', '.join(action.option_strings) or value)
    return code(f'{", ".join(action.option_strings)} {value}')


def _help_of(parser, action):
    """Return the help of an argument, with its default filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ''


def _prose(text):
    """Return plain text so that Markdown shows it as it is; what is in backticks stays."""
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(part if part.startswith('`') else re.sub(r'([\\*_<>\[\]{}$])', r'\\\1', part)
                   for part in parts)


# --- study fields -----------------------------------------------------------------------------

def study_keys() -> str:
    """Return the keys that a config has beside the fields of `Experiment`."""
    rows = [(code(key), code(kind.__name__), ABOUT_STUDY[key]) for key, kind in REQUIRED.items()]
    rows.append(('`claims`', '`list`', 'what is claimed before the run, see '
                 '[claims](../concepts/intervals.md)'))
    return table(('key', 'type', 'meaning'), rows)


def study_fields() -> str:
    """Return a section for `Experiment` and for every record that it holds."""
    return '\n'.join(_record(kind) for kind in records(config.Experiment))


def records(kind: type, known: tuple = ()) -> tuple[type, ...]:
    """Return `kind` and the records that its fields hold, each once, in the order of fields."""
    if kind in known:
        return known
    known = (*known, kind)
    for name, hint in hints_of(kind).items():
        if kind is config.Experiment and name in NOT_IN_CONFIG:
            continue
        for inner in _records_in(hint):
            known = records(inner, known)
    return known


def _records_in(hint):
    """Yield the records that a type names."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _records_in(inner)


def _record(kind):
    """Return the section of one record."""
    about = _prose(inspect.cleandoc(kind.__doc__ or ''))
    rows = []
    for field in dataclasses.fields(kind):
        if kind is config.Experiment and field.name in NOT_IN_CONFIG:
            continue
        hint = hints_of(kind)[field.name]
        allowed, meaning = _allowed(hint)
        inner = ', '.join(f'see [{other.__name__}](#{other.__name__.lower()})'
                          for other in _records_in(hint))
        meaning = ': '.join(filter(None, (meaning or inner, allowed)))
        rows.append((code(field.name), code(_plain(hint)), code(_default(field)), meaning))
    head = ('field', 'type', 'default', 'meaning: allowed')
    return f'## {kind.__name__}\n\n{about}\n\n{table(head, rows)}\n'


def _plain(hint):
    """Return a type without what it may hold."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _plain(hint.__origin__)
    if origin in (types.UnionType, typing.Union):
        return ' or '.join(_plain(inner) for inner in typing.get_args(hint))
    inner = ['...' if part is ... else _plain(part) for part in typing.get_args(hint)]
    name = 'None' if hint is type(None) else getattr(hint, '__name__', str(hint))
    return f'{name}[{", ".join(inner)}]' if inner else name


def _default(field):
    """Return the default of a field as it would be typed; '' where it must be given."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return ''
    if dataclasses.is_dataclass(value):
        return ''  # its section has them
    text = repr(value)
    return text if len(text) < 60 else f'{text[:56]} ...'


def _allowed(hint):
    """Return (what a field may hold, what it means), of its rules and those inside."""
    allowed, meanings = [], []
    for rule in _rules(hint):
        if isinstance(rule, Range):
            low = 'above' if rule.low in rule.without else 'from'
            high = 'below' if rule.high in rule.without else 'to'
            others = [f', not {value:g}' for value in rule.without
                      if value not in (rule.low, rule.high)]
            allowed.append(f'{low} {rule.low:.10g} {high} {rule.high:.10g}{"".join(others)}')
            meanings.append(rule.meaning)
        elif isinstance(rule, Choice):
            allowed.append(', '.join(code(value) for value in rule.values))
        elif isinstance(rule, Several):
            allowed.append(f'at least {rule.least}' if rule.least else '')
            meanings.append(rule.meaning)
    return '; '.join(filter(None, allowed)), '; '.join(map(_prose, meanings))


def _rules(hint):
    """Yield the rules of a type and of the types inside it."""
    if dataclasses.is_dataclass(hint):
        return
    if typing.get_origin(hint) is typing.Annotated:
        yield from hint.__metadata__
        yield from _rules(hint.__origin__)
        return
    for inner in typing.get_args(hint):
        yield from _rules(inner)


# --- tables -----------------------------------------------------------------------------------

def stages() -> str:
    """Return the table of stages."""
    rows = []
    for name, kind in STAGES.items():
        groups = defaultdict(list)
        for group, parent in kind.parents.items():
            groups[parent].append(group)
        starts = [f'{", ".join(names)} of {code(parent)}' for parent, names in groups.items()]
        aim = 'a thought, then answers' if kind.explains else \
            'answers' if kind.answers else kind.writes
        rows.append((code(name), '; '.join(starts) or 'random values', ', '.join(kind.trainable),
                     kind.layout, aim))
    return table(('stage', 'starts from', 'trains', 'pictures as', 'is to write'), rows)


def letters() -> str:
    """Return what each axis letter means."""
    return table(('letter', 'axis'), [(code(letter), text) for letter, text in AXES.items()])


def rules() -> str:
    """Return the mesh axes that split each letter, of weights and of activations."""
    def shown(axes):
        if axes is None:
            return 'whole'
        return ', '.join(map(code, (axes,) if isinstance(axes, str) else axes))

    given = Rules()
    weights, activations = dict(given.params), dict(given.activations)
    rows = [(code(letter), shown(weights[letter]) if letter in weights else '-',
             shown(activations[letter]) if letter in activations else '-')
            for letter in AXES if letter in weights or letter in activations]
    return table(('letter', 'in weights', 'in activations'), rows)


def exit_codes() -> str:
    """Return what each exit code means, and what follows in a launched sweep."""
    follows = {'none': 'nothing', 'free': 'starts again, as often as it happens',
               'counted': 'starts again, a few times', 'never': 'does not start again'}
    rows = [(f'`{number}`', ending.meaning, follows[ending.restart])
            for number, ending in exits.TABLE.items()]
    other = exits.ending(exits.CRASHED)
    return table(('code', 'meaning', 'then'), [*rows, ('other', other.meaning,
                                                       follows[other.restart])])


def scorers() -> str:
    """Return every scorer with its version and what it judges."""
    rows = [(code(scorer.name), scorer.version, ', '.join(scorer.forms))
            for scorer in SCORERS.values()]
    return table(('name', 'version', 'judges'), rows)


def hardware_table() -> str:
    """Return what is known of every TPU generation."""
    known = hardware.table()
    rows = []
    for name, generation in known['generations'].items():
        chip, price = generation['chip'], generation['price']
        spot = price['usd_spot']
        rows.append((code(name), f'{chip["flops"] / 1e12:.0f}', f'{chip["hbm_gib"]:g}',
                     f'{chip["hbm_bandwidth"] / 1e9:.0f}', f'{chip["ici_bandwidth"] / 1e9:.0f}',
                     f'{price["usd"]:.2f}' if price['usd'] else '-',
                     f'{spot[0]:.2f} to {spot[1]:.2f}' if spot else '-',
                     generation['machine']['chips'], ', '.join(generation['shapes']),
                     ', '.join(generation['zones'])))
    head = ('', 'bf16 TFLOP/s', 'HBM GiB', 'HBM GB/s', 'ICI GB/s', '$ an hour', 'spot',
            'chips of a host', 'slices', 'zones')
    sources = '\n'.join(f'- {name}: {_prose(text)}' for name, text in known['sources'].items())
    return (f'A chip, as of {known["as_of"]}:\n\n{table(head, rows)}\n\nA slice is written '
            f'`v5e:4x4`, two of them `2xv5e:4x4`.\n\n## Sources\n\n{sources}\n')


def gpus() -> str:
    """Return the GPUs whose peak is known."""
    return table(('', 'bf16 TFLOP/s', 'memory GB', 'memory GB/s'), [
        (code(name), f'{gpu.flops / 1e12:g}', gpu.memory_gb, f'{gpu.bandwidth / 1e9:.0f}')
        for name, gpu in GPUS.items()])


def _columns(schema):
    """Return some columns of Arrow schemas."""
    return table(('column', 'type'), [(code(field.name), field.type) for field in schema])


def items() -> str:
    """Return the columns of `items.parquet`."""
    return _columns([*ITEMS, *LATER])


def texts() -> str:
    """Return the columns of `texts.parquet`."""
    return _columns(TEXTS)


PARTS: dict[str, Callable[[], Any]] = {
    'console': console, 'study_keys': study_keys, 'study_fields': study_fields, 'stages': stages,
    'letters': letters, 'rules': rules, 'exits': exit_codes, 'scorers': scorers,
    'hardware': hardware_table, 'gpus': gpus, 'items': items, 'texts': texts}
