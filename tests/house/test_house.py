"""The rules of the house, read off the syntax tree: who imports whom, sizes, and axis letters."""
import ast
import re

import pytest
from roots import ROOT

from downscale.letters import axes_of

PACKAGE = ROOT / 'downscale'
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
           for path in sorted(PACKAGE.rglob('*.py'))}
FILES = [*MODULES.items(), *((path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()))
                             for folder in ('tests', 'experiments', 'benchmarks', 'tools')
                             for path in sorted((ROOT / folder).rglob('*.py')))]
# The rooms from the ground up: a module imports from its own room and from those of lower lines.
# Nothing is open, and no file has a line of its own but those that all others stand on.
LEVELS = (
    ('moved.py', 'letters.py', 'values.py', 'runtime/', 'statistics/'),
    ('sizes.py', 'stage_table.py', 'sharding.py', 'laws/'),
    ('accounting.py', 'mup.py', 'schedule.py'),
    ('model/', 'data/'),
    ('data/scenes/', 'results/', 'generate/'),
    ('train/', 'shrink/', 'stage_config.py', 'evaluate/scoring/', 'analysis/planted/'),
    ('analysis/', 'config.py'),
    ('experiment/', 'output/', 'analysis/varied/'),
    ('view/',),
    ('data/corpora/', 'report/'),
    ('stages/',),
    ('convert/', 'evaluate/', 'planner/'),
    ('policy/',),
    ('probe/', 'study/', 'factory/'),
    ('launch/',),
    ('launch/backends/',),
    ('launch/rehearsal/machines/',),
    ('launch/rehearsal/',),
    ('commands/',))


def room(name):
    """The room of a module path: `model/` of `model/vlm.py`, a file at the top itself."""
    return name.rpartition('/')[0] + '/' if '/' in name else name


def level(name):
    """The level of a module path such as `data/records.py`; KeyError when the table has none."""
    if name == '__init__.py':
        return len(LEVELS)
    found = [k for k, rooms in enumerate(LEVELS) if room(name) in rooms]
    if not found:
        raise KeyError(f'{name}: no level names the room {room(name)}')
    return found[0]


def path_of(dotted):
    """`downscale.model.vlm` -> `model/vlm.py`, a package -> its `__init__.py`, else None."""
    inner = dotted.split('.')[1:]
    for candidate in ('/'.join(inner) + '.py', '/'.join([*inner, '__init__.py'])):
        if candidate in MODULES:
            return candidate
    return None


def imports(tree):
    """(dotted name, line) of everything imported, `from a import b` giving both a and a.b.

    What is imported for a type checker alone is never run.
    """
    typing_only = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) \
                and node.test.id == 'TYPE_CHECKING':
            typing_only |= set(node.body)
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'line {node.lineno}: relative import'
            yield node.module, node.lineno
            yield from ((f'{node.module}.{alias.name}', node.lineno) for alias in node.names)


def own_imports(tree):
    """(module path, line) of the imports that are files of this package."""
    found = ((path_of(name), line) for name, line in imports(tree)
             if name.split('.')[0] == 'downscale')
    return [(path, line) for path, line in found if path]


def importers(library):
    """The module paths that import `library`, lazily or not."""
    return {name for name, tree in MODULES.items()
            if any(dotted.split('.')[0] == library for dotted, _ in imports(tree))}


def upward(name, tree):
    """Lines of `name` that import a module they may not."""
    for other, line in own_imports(tree):
        if other == '__init__.py' or other.endswith('/__init__.py'):
            continue  # holds nothing
        if level(other) >= level(name) and room(other) != room(name):
            yield f'{name}:{line} (level {level(name)}) imports {other} (level {level(other)})'


@pytest.mark.parametrize('name', [name for name in MODULES if not name.endswith('__init__.py')])
def test_imports_go_downward(name):
    assert not list(upward(name, MODULES[name]))


def test_the_import_lint_sees_what_it_should():
    assert level('model/anything.py') == 3
    with pytest.raises(KeyError):
        level('helpers.py')
    bad = 'from downscale.train import loop\nfrom downscale.commands import main'
    assert len(list(upward('model/vlm.py', ast.parse(bad)))) == 2
    assert not list(upward('model/vlm.py', ast.parse('from downscale.model import layers')))
    assert list(upward('model/vlm.py', ast.parse('def f():\n import downscale.data.images')))


def test_package_files_hold_nothing_of_their_own():
    """But for what is looked up when it is asked for: `load`, `analysis.synth`, moved names."""
    for name, tree in MODULES.items():
        if name.endswith('__init__.py'):
            kinds = {type(node) for node in tree.body}
            assert kinds <= {ast.Expr, ast.FunctionDef, ast.Import, ast.ImportFrom}, name
            assert name == '__init__.py' or not kinds & {ast.Import, ast.ImportFrom}, name
            assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] in (
                [], ['__getattr__']), name


def test_files_and_functions_stay_short():
    for name, tree in FILES:
        last = max((node.end_lineno for node in ast.walk(tree) if hasattr(node, 'end_lineno')),
                   default=0)
        assert last <= 500, f'{name}: {last} lines'
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 80, f'{name}:{node.lineno} {node.name} has {lines} lines'


def test_libraries_stay_behind_their_doors():
    assert {name for name in importers('flax') if not name.startswith('model/')} == set()
    assert importers('orbax') == {'train/checkpoint.py', 'train/lazy_leaves.py'}
    assert importers('grain') <= {'data/pipeline.py', 'train/checkpoint.py'}
    assert not importers('pickle') | importers('cloudpickle') | importers('dill')


def test_letters_that_do_not_print_are_escaped_and_lines_measured_in_one_place():
    for text, homes in (
        ('ascii(letter)', ['runtime/streams.py']),
        ('LONGEST_ERROR = 300', ['runtime/exits.py']),
    ):
        assert [name for name, tree in MODULES.items() if text in ast.unparse(tree)] == homes


# Rooms that must import without JAX: they price runs, read folders and write jobs. In a job, one
# process a program compiles, and one trains; batches come from grain.
LIGHT_ROOMS = ('runtime/', 'statistics/', 'laws/', 'results/', 'evaluate/scoring/', 'analysis/',
               'analysis/planted/', 'analysis/varied/', 'experiment/', 'output/', 'report/',
               'view/', 'data/', 'data/scenes/', 'data/corpora/', 'launch/', 'launch/backends/')
HEAVY = ('data/pipeline.py', 'data/scenes/sampler.py', 'data/corpora/sampler.py',
         'runtime/peers.py', 'runtime/processes.py',
         'launch/attempt.py', 'launch/entry.py', 'launch/record.py')
LIGHT = [name for name in MODULES if room(name) in LIGHT_ROOMS and name not in HEAVY] + [
    'letters.py', 'sizes.py', 'stage_table.py', 'values.py', 'accounting.py', 'stage_config.py',
    'config.py']


@pytest.mark.parametrize('name', LIGHT)
def test_light_modules_reach_no_jax(name):
    seen, queue = set(), [name]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            heavy = [f'{current}:{line} {dotted}' for dotted, line in imports(MODULES[current])
                     if dotted.split('.')[0] in ('jax', 'flax', 'optax', 'orbax', 'grain')]
            assert not heavy, f'{name} reaches {heavy}'
            queue += [other for other, _ in own_imports(MODULES[current])]


def test_nothing_is_called_utils_and_configs_are_not_probed():
    assert not [name for name, _ in FILES if name.rpartition('/')[2] in ('utils.py', 'helpers.py')]
    for name, tree in FILES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) \
                    and node.func.id in ('getattr', 'hasattr') and node.args:
                probed = ast.unparse(node.args[0]).rpartition('.')[2]
                assert probed not in ('cfg', 'config', 'c'), f'{name}:{node.lineno}'


MACHINE_PATH = re.compile(r'^(file://)?(/(home|root|work|tmp|mnt|data|Users|scratch)(/|$)|[A-Z]:\\)')


def test_no_string_names_a_place_on_one_machine():
    assert MACHINE_PATH.match('/home/me/x') and not MACHINE_PATH.match('work/x')
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not MACHINE_PATH.match(node.value), f'{name}:{node.lineno} {node.value}'


def suffix(name):
    """The axis letters that end a name, '' without; unlike `axes_of`, one unknown letter passes."""
    tail = name.rpartition('_')[2]
    return tail if '_' in name and tail.isupper() else ''


def einsum_faults(tree):
    """einsum operands (and assigned results) whose names disagree with the letters.

    Those of `layers.product` as well, which hands its `subscripts` on.
    """
    for node in ast.walk(tree):
        call = node.value if isinstance(node, (ast.Assign, ast.Return)) else node
        if not (isinstance(call, ast.Call)
                and re.search(r'einsum$|^product$', ast.unparse(call.func)) and call.args):
            continue
        spec = call.args[0]
        if ast.unparse(call.func) == 'product' and '->' not in ast.unparse(spec):
            continue   # of itertools
        if ast.unparse(spec) == 'subscripts':
            continue
        for text in (spec.body, spec.orelse) if isinstance(spec, ast.IfExp) else (spec,):
            letters, _, result = text.value.partition('->')
            letters = letters.split(',')
            settings = len(letters) + 1 if ast.unparse(call.func) == 'product' else None
            pairs = list(zip(letters, call.args[1:settings], strict=True))
            if isinstance(node, ast.Assign):
                pairs.append((result, node.targets[0]))
            for expected, operand in pairs:
                if isinstance(operand, ast.Name) and suffix(operand.id) not in ('', expected):
                    yield f'line {call.lineno}: {operand.id} stands for {expected}'


def rank_faults(tree):
    """`self.param` calls whose literal shape has another rank than the name's letters."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == 'self.param'):
            continue
        name, shape = node.args[0], node.args[2]
        name = name.values[-1] if isinstance(name, ast.JoinedStr) else name
        axes = axes_of(name.value)
        if isinstance(shape, ast.Tuple) and len(axes) != len(shape.elts):
            yield f'line {node.lineno}: {name.value} has shape {ast.unparse(shape)}'
        # A size that is written as a letter must be that letter (c.W, or W itself).
        for letter, size in zip(axes, shape.elts if isinstance(shape, ast.Tuple) else ()):
            written = ast.unparse(size).rpartition('.')[2]
            if len(written) == 1 and written.isupper() and written != letter:
                yield f'line {node.lineno}: {name.value} has {written} at its axis {letter}'


def test_einsum_letters_are_those_of_the_operands():
    for name, tree in FILES:
        if name != 'tests/house/test_house.py':
            assert not list(einsum_faults(tree)), name
    bad = "y_BLF = jnp.einsum('BLD,FD->BLF', x_BLD, up_DF)\nz_BL = jnp.einsum('BLD->BD', x_BLD)"
    assert len(set(einsum_faults(ast.parse(bad)))) == 2
    ours = "product('BD,DF->BF', x_BD, up_FD, True)\nproduct(x_BD, up_FD)"
    assert len(list(einsum_faults(ast.parse(ours)))) == 1
    either = "y_BLV = jnp.einsum('BLD,VD->BLV' if tied else 'BLD,DV->BVL', x_BLD, table)"
    assert len(list(einsum_faults(ast.parse(either)))) == 1


def test_parameter_names_tell_their_rank():
    for name, tree in MODULES.items():
        assert not list(rank_faults(tree)), name
    bad = "self.param('up_DF', one, (c.D,))\nself.param('up_DF', one, (c.F, c.D))"
    assert len(list(rank_faults(ast.parse(bad)))) == 3


# The share of public functions, methods and properties whose signatures are fully annotated.
ANNOTATED = 0.74


def public_functions(body, owner=False):
    """(function, whether it has `self`) of what a module or a class shows; `__init__` included."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if not node.name.startswith('_') or node.name in ('__init__', '__call__'):
                yield node, owner
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            yield from public_functions(node.body, owner=True)


def is_annotated(function, owner):
    """Whether every argument but `self` or `cls`, and what is returned, has a type."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs,
             *filter(None, (given.vararg, given.kwarg))]
    bound = owner and 'staticmethod' not in map(ast.unparse, function.decorator_list)
    return function.returns is not None and all(arg.annotation for arg in named[bound:])


def test_public_signatures_stay_annotated():
    """Raise `ANNOTATED` when more are; it never goes down."""
    shown = [is_annotated(*pair) for tree in MODULES.values()
             for pair in public_functions(tree.body)]
    assert sum(shown) / len(shown) >= ANNOTATED, f'{sum(shown)} of {len(shown)}'
    bad = 'class A:\n def f(self, x): ...\n def g(self) -> int: ...\ndef h(x: int): ...'
    assert [is_annotated(*pair) for pair in public_functions(ast.parse(bad).body)] == [
        False, True, False]
