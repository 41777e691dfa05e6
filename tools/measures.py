"""What the source looks like in numbers, and how far each may go.

`LIMITS` holds, for each measure that the house has a rule for, the rule and a ratchet: the value
that the tree may not pass today. A ratchet only ever moves towards its rule.
"""
import argparse
import ast
import io
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACEHOLDERS = {'found', 'one', 'told', 'said', 'here', 'held', 'mine', 'own'}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Where a docstring may stand.
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The rule of a measure, and the ratchet: the value that it may not pass today."""
    rule: float
    ratchet: float
    at_least: bool = False  # the value may not fall below the ratchet; else not rise above it

    def holds(self, value):
        """Whether `value` is on the right side of the ratchet."""
        return value >= self.ratchet if self.at_least else value <= self.ratchet


LIMITS = {
    'lines of a file, most': Limit(rule=350, ratchet=350),
    'lines of a function, most': Limit(rule=60, ratchet=60),
    'files in a folder, most': Limit(rule=16, ratchet=19),
    'own-line comments, % of lines': Limit(rule=4, ratchet=4, at_least=True),
    'annotated public functions, %': Limit(rule=100, ratchet=99, at_least=True),
    'nested comprehensions / 1,000 lines': Limit(rule=1, ratchet=1),
    'tuple packing / 1,000 lines': Limit(rule=4, ratchet=4),
    'statements of 70+ nodes / 1,000 lines': Limit(rule=1, ratchet=1),
    'nested conditionals / 1,000 lines': Limit(rule=0, ratchet=0),
    'placeholder names': Limit(rule=0, ratchet=0),
    'functions of 10+ parameters': Limit(rule=0, ratchet=0),
    'dataclasses of 4+ fields without kw_only': Limit(rule=0, ratchet=0),
    'public classes that share a name': Limit(rule=0, ratchet=0),
    'import aliases of our modules': Limit(rule=0, ratchet=0),
    'modules in import cycles': Limit(rule=0, ratchet=0),
    'folders in import cycles': Limit(rule=0, ratchet=0),
    'open import levels': Limit(rule=0, ratchet=0),
}


class Module:
    """One source file: its text, syntax tree and the name that it is imported by."""

    def __init__(self, text, name='module', package=False):
        self.text = text
        self.name = name        # dotted, as imports say it
        self.package = package  # whether the file is an `__init__.py`
        self.tree = ast.parse(text)
        self.lines = text.splitlines()

    @cached_property
    def nodes(self):
        """Every node of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def functions(self):
        """Every function and method, those inside functions as well."""
        return [node for node in self.nodes if isinstance(node, FUNCTIONS)]

    @cached_property
    def comments(self):
        """The tokens of all comments."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [token for token in tokens if token.type == tokenize.COMMENT]


def read(root, folder='downscale'):
    """The modules under `root/folder`, in the order of their paths."""
    modules = []
    for path in sorted((Path(root) / folder).rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        package = parts[-1] == '__init__'
        name = '.'.join(parts[:-1] if package else parts)
        modules.append(Module(path.read_text(), name, package))
    return modules


# Places: each function gives the line numbers of what it counts in one module.

def length(function):
    """Lines from `def` to the end of the body."""
    return function.end_lineno - function.lineno + 1


def children(node, kind):
    """The nodes of `kind` inside `node`, without `node` itself."""
    return [child for child in ast.walk(node) if child is not node and isinstance(child, kind)]


def nested_comprehensions(module):
    """Comprehensions that hold another one or have two `for`s."""
    return [node.lineno for node in module.nodes if isinstance(node, COMPREHENSIONS)
            and (len(node.generators) > 1 or children(node, COMPREHENSIONS))]


def nested_conditionals(module):
    """Conditional expressions that hold another one."""
    return [node.lineno for node in module.nodes
            if isinstance(node, ast.IfExp) and children(node, ast.IfExp)]


def tuple_packing(module):
    """Statements such as `a, b = x, y`."""
    return [node.lineno for node in module.nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
            and any(isinstance(target, ast.Tuple) for target in node.targets)]


def big_statements(module):
    """Simple statements of 70 and more syntax nodes."""
    simple = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return, ast.Raise,
              ast.Assert, ast.Delete)
    return [node.lineno for node in module.nodes
            if isinstance(node, simple) and len(list(ast.walk(node))) >= 70]


def placeholder_names(module):
    """Assignments to a name that says nothing, in functions over 15 lines."""
    assigned = set()
    for function in module.functions:
        if length(function) > 15:
            assigned.update(name for name in children(function, ast.Name)
                            if isinstance(name.ctx, ast.Store) and name.id in PLACEHOLDERS)
    return [name.lineno for name in assigned]


def parameters(function):
    """The parameters of a function, without `self` and `cls`, `*args` and `**kwargs` included."""
    arguments = function.args
    rest = [arguments.vararg, arguments.kwarg]
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in [*named, *rest]
            if argument and argument.arg not in ('self', 'cls')]


def many_parameters(module):
    """Functions of ten and more parameters."""
    return [function.lineno for function in module.functions if len(parameters(function)) >= 10]


def dataclass_decorator(node):
    """The decorator that makes a class a dataclass, None when there is none."""
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called) in ('dataclass', 'dataclasses.dataclass', 'struct.dataclass'):
            return decorator
    return None


def is_keyword_only(node, decorator):
    """Return whether fields of a dataclass are named where one is made.

    A class that people write in files of their own may have a few before a field `_: KW_ONLY`.
    """
    keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
    if any(isinstance(statement, ast.AnnAssign) and ast.unparse(statement.annotation) == 'KW_ONLY'
           for statement in node.body):
        return True
    return any(keyword.arg == 'kw_only' and ast.unparse(keyword.value) == 'True'
               for keyword in keywords)


def dataclasses_of(module):
    """(class, decorator) of every dataclass."""
    pairs = ((node, dataclass_decorator(node)) for node in module.nodes
             if isinstance(node, ast.ClassDef))
    return [(node, decorator) for node, decorator in pairs if decorator]


def positional_dataclasses(module):
    """Dataclasses of four fields and more without `kw_only=True`."""
    lines = []
    for node, decorator in dataclasses_of(module):
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        if len(fields) >= 4 and not is_keyword_only(node, decorator):
            lines.append(node.lineno)
    return lines


def is_annotated(function):
    """Whether every parameter and the result have a type."""
    return function.returns is not None and all(
        argument.annotation for argument in parameters(function))


def public_functions(node):
    """The functions of a module and the methods of its public classes, without underscore.

    `__init__` counts, as callers pass its parameters; other special methods do not.
    """
    functions = []
    for inner in node.body:
        if isinstance(inner, FUNCTIONS):
            if not inner.name.startswith('_') or inner.name == '__init__':
                functions.append(inner)
        elif isinstance(inner, ast.ClassDef) and not inner.name.startswith('_'):
            functions += public_functions(inner)
    return functions


# Over all modules.

def module_aliases(modules):
    """{module name: lines of the imports that give a module of ours another name}."""
    names = {module.name for module in modules}
    lines = defaultdict(list)
    for module in modules:
        for node in module.nodes:
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            parent = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
            lines[module.name] += [node.lineno for alias in node.names
                                   if alias.asname and parent + alias.name in names]
    return lines


def repeated_classes(modules):
    """{module name: lines of the public classes whose name another class has too}."""
    classes = [(module.name, node) for module in modules for node in module.nodes
               if isinstance(node, ast.ClassDef) and not node.name.startswith('_')]
    count = Counter(node.name for _, node in classes)
    lines = defaultdict(list)
    for name, node in classes:
        if count[node.name] > 1:
            lines[name].append(node.lineno)
    return lines


def imports(modules):
    """{module name: the modules of ours that it imports, late imports included}."""
    names = {module.name for module in modules}
    arrows = {}
    for module in modules:
        targets = set()
        # What only a checker of types reads is imported by no program.
        typing = {child for node in module.nodes if isinstance(node, ast.If)
                  and ast.unparse(node.test) == 'TYPE_CHECKING' for child in node.body}
        for node in module.nodes:
            if node in typing:
                continue
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                inner = {f'{node.module}.{alias.name}' for alias in node.names}
                # `from package import module` leans on the module, not on the package's file.
                targets.update(inner & names or {node.module})
        arrows[module.name] = targets & names - {module.name}
    return arrows


def reached(arrows, start):
    """Everything that can be reached from `start` by at least one arrow."""
    seen = set()
    queue = list(arrows.get(start, ()))
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += arrows.get(name, ())
    return seen


def in_cycles(arrows):
    """The names that can be reached from themselves."""
    return sorted(name for name in arrows if name in reached(arrows, name))


def room(module):
    """The folder of a module, the module itself at the top."""
    if module.package:
        return module.name
    parent = module.name.rpartition('.')[0]
    return parent if '.' in parent else module.name


def room_imports(modules):
    """{room: the other rooms that it imports}."""
    rooms = {module.name: room(module) for module in modules}
    arrows = defaultdict(set)
    for name, targets in imports(modules).items():
        arrows[rooms[name]].update(rooms[target] for target in targets)
    return {name: targets - {name} for name, targets in arrows.items()}


def open_levels(root):
    """How many levels the import lint of `root` leaves open (`OPEN_LEVELS` of an older one)."""
    path = next(iter(sorted((Path(root) / 'tests').rglob('test_house.py'))), Path(root))
    for node in ast.parse(path.read_text()).body if path.is_file() else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'OPEN_LEVELS':
            return len(ast.literal_eval(node.value))
    return 0


def public_names(module):
    """Functions, classes and constants of a module without an underscore."""
    names = set()
    for node in module.tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names.update(name.id for name in ast.walk(target) if isinstance(name, ast.Name))
    return {name for name in names if not name.startswith('_')}


def docstring_lines(module):
    """How many lines docstrings take."""
    total = 0
    for node in module.nodes:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            total += length(node.body[0])
    return total


def percentile(values, percent):
    """The nearest-rank percentile of `values`, 0 when there are none."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1] if ordered else 0


def share(count, total):
    """`count` as a percentage of `total`."""
    return 100 * count / total if total else 0


# What is counted by place, so that a lint can say where.
PLACES = {
    'nested comprehensions / 1,000 lines': nested_comprehensions,
    'tuple packing / 1,000 lines': tuple_packing,
    'statements of 70+ nodes / 1,000 lines': big_statements,
    'nested conditionals / 1,000 lines': nested_conditionals,
    'placeholder names': placeholder_names,
    'functions of 10+ parameters': many_parameters,
    'dataclasses of 4+ fields without kw_only': positional_dataclasses,
}
RATE = ' / 1,000 lines'


def places(modules):
    """{measure: `module:line` of everything that it counts}."""
    listed = {name: [f'{module.name}:{line}' for module in modules
                     for line in sorted(lines_of(module))]
              for name, lines_of in PLACES.items()}
    for name, lines in (('public classes that share a name', repeated_classes(modules)),
                        ('import aliases of our modules', module_aliases(modules))):
        listed[name] = [f'{module}:{line}' for module in lines for line in lines[module]]
    listed['modules in import cycles'] = in_cycles(imports(modules))
    listed['folders in import cycles'] = in_cycles(room_imports(modules))
    return listed


def sizes(root, modules):
    """Measures of files, folders and functions."""
    lines = [len(module.lines) for module in modules]
    lengths = [length(function) for module in modules for function in module.functions]
    tests = read(root, 'tests')
    folders = Counter(module.name.rpartition('.')[0] for module in modules if not module.package)
    # One file a verb: that folder grows with the console, and nobody searches it.
    folders.pop('downscale.commands', None)
    names = [len(public_names(module)) for module in modules if not module.package]
    return {
        'source files': len(lines),
        'source lines': sum(lines),
        'tests / source lines': sum(len(test.lines) for test in tests) / sum(lines),
        'lines of a file, median': statistics.median(lines),
        'lines of a file, most': max(lines),
        'lines of a function, median': statistics.median(lengths),
        'lines of a function, 95 %': percentile(lengths, 95),
        'lines of a function, most': max(lengths),
        'files in a folder, median': statistics.median(folders.values()),
        'files in a folder, most': max(folders.values()),
        'public names a module, mean': statistics.mean(names),
        'public names a module, 95 %': percentile(names, 95),
    }


def writing(modules):
    """Measures of comments, docstrings, annotations and records."""
    written = sum(bool(line.strip()) for module in modules for line in module.lines)
    comments = [token for module in modules for token in module.comments]
    own_line = [token for token in comments if token.line.strip() == token.string]
    functions = [function for module in modules for function in module.functions]
    public = [function for module in modules for function in public_functions(module.tree)]
    records = [pair for module in modules for pair in dataclasses_of(module)]
    by_name = [is_keyword_only(*record) for record in records]
    return {
        'own-line comments, % of lines': share(len(own_line), written),
        'trailing comments, % of lines': share(len(comments) - len(own_line), written),
        'docstrings, % of lines': share(sum(map(docstring_lines, modules)), written),
        'annotated functions, %': share(sum(map(is_annotated, functions)), len(functions)),
        'annotated public functions, %': share(sum(map(is_annotated, public)), len(public)),
        'kw_only dataclasses, %': share(sum(by_name), len(records)),
    }


def measure(root):
    """{measure: value} of the checkout `root`."""
    modules = read(root)
    values = sizes(root, modules) | writing(modules)
    for name, lines in places(modules).items():
        per = values['source lines'] / 1000 if name.endswith(RATE) else 1
        values[name] = len(lines) / per
    values['open import levels'] = open_levels(root)
    return values


def passed(values):
    """The names of the measures that are on the wrong side of their ratchet."""
    return [name for name, limit in LIMITS.items() if not limit.holds(values[name])]


def shown(value):
    """A number for the table: whole numbers without decimals, others with two."""
    return f'{value:,.0f}' if value == int(value) else f'{value:,.2f}'


def table(now, before=None):
    """The lines of the table: a measure, its values, its ratchet and its rule."""
    rows = [['measure', *(['before'] if before else []), 'now', 'may be', 'rule']]
    for name, value in now.items():
        row = [name, *([shown(before[name])] if before else []), shown(value)]
        if name in LIMITS:
            limit = LIMITS[name]
            sign = '>=' if limit.at_least else '<='
            row += [f'{sign} {shown(limit.ratchet)}', f'{sign} {shown(limit.rule)}']
        rows.append(row + [''] * (len(rows[0]) - len(row)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        yield '  '.join([row[0].ljust(widths[0]), *cells]).rstrip()


def main(argv=None):
    """Print the table; return 1 when `--limits` is given and a ratchet is passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python tools/measures.py --where "placeholder names"')
    parser.add_argument('--against', metavar='FOLDER', help='show another checkout beside this one')
    parser.add_argument('--limits', action='store_true', help='exit 1 when a ratchet is passed')
    parser.add_argument('--where', metavar='MEASURE', help='list the places of one measure instead')
    arguments = parser.parse_args(argv)
    if arguments.where:
        listed = places(read(ROOT))
        if arguments.where not in listed:
            parser.error(f'--where takes one of: {", ".join(listed)}')
        print('\n'.join(listed[arguments.where]))
        return 0
    now = measure(ROOT)
    print('\n'.join(table(now, measure(arguments.against) if arguments.against else None)))
    wrong = passed(now) if arguments.limits else []
    for name in wrong:
        where = f'; see --where "{name}"' if name in places([]) else ''
        print(f'{name}: {shown(now[name])} passes {shown(LIMITS[name].ratchet)}{where}',
              file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
