"""The measures of the source: each counts what it says, and the tree is within its ratchets."""
import sys

import pytest
from roots import ROOT

sys.path.insert(0, str(ROOT / 'tools'))

import measures  # noqa: E402

LONG = ''.join(f'    x{k} = {k}\n' for k in range(15))


def module(text, name='downscale.part'):
    return measures.Module(text, name)


@pytest.fixture(scope='module')
def now():
    return measures.measure(ROOT)


def test_the_tree_is_within_its_ratchets(now):
    assert not measures.passed(now)


def test_every_limit_is_of_a_measure_and_no_ratchet_is_stricter_than_its_rule(now):
    assert set(measures.LIMITS) <= set(now)
    for name, limit in measures.LIMITS.items():
        strict = measures.Limit(rule=limit.rule, ratchet=limit.rule, at_least=limit.at_least)
        assert limit.holds(limit.rule), name
        assert limit.holds(limit.ratchet) and (
            limit.ratchet == limit.rule or not strict.holds(limit.ratchet)), name


@pytest.mark.parametrize('name', measures.LIMITS)
def test_a_value_beyond_its_ratchet_is_reported(now, name):
    limit = measures.LIMITS[name]
    beyond = limit.ratchet + (-0.01 if limit.at_least else 0.01)
    assert measures.passed(now | {name: beyond}) == [name]


@pytest.mark.parametrize('count, text, lines', [
    (measures.nested_comprehensions, 'a = [x for x in y]\nb = [f(x) for x in y]', []),
    (measures.nested_comprehensions, 'a = [[x for x in y] for y in z]', [1]),
    (measures.nested_comprehensions, '\na = {x for y in z for x in y}', [2]),
    (measures.nested_comprehensions, 'a = sum(any(x for x in y) for y in z)', [1]),
    (measures.tuple_packing, 'a = 1, 2\na, b = f()\nfor a, b in c: pass', []),
    (measures.tuple_packing, 'a, b = 1, 2\na = b, c = 1, 2', [1, 2]),
    (measures.big_statements, f'a = [{"x, " * 30}]', []),
    (measures.big_statements, f'a = [{"x, " * 40}]', [1]),
    (measures.big_statements, 'def f():\n' + '    x = y\n' * 40, []),
    (measures.nested_conditionals, 'a = b if c else d\ne = f if g else h', []),
    (measures.nested_conditionals, 'a = b if c else (d if e else f)', [1]),
    (measures.placeholder_names,
     f'def f():\n{LONG}    found = 1\n    for one in x: pass', [17, 18]),
    (measures.placeholder_names, f'def f():\n{LONG}    g(found)\n    x.found = row = 1', []),
    (measures.placeholder_names, 'def f():\n    found = 1', []),
    (measures.many_parameters, 'def f(a, b, c, d, /, e, f, *, g, h, i): pass', []),
    (measures.many_parameters, 'def f(a, b, c, d, /, e, f, *g, h, i, **j): pass', [1]),
    (measures.many_parameters, 'def f(self, a, b, c, d, e, f, g, h, i): pass', []),
    (measures.positional_dataclasses, '@dataclass\nclass A:\n' + '    a: int\n' * 4, [2]),
    (measures.positional_dataclasses, '@dataclass\nclass A:\n' + '    a: int\n' * 3, []),
    (measures.positional_dataclasses, 'class A:\n' + '    a: int\n' * 4, []),
    (measures.positional_dataclasses,
     '@dataclasses.dataclass(frozen=True)\nclass A:\n' + '    a: int\n' * 4, [2]),
    (measures.positional_dataclasses,
     '@dataclass(frozen=True, kw_only=True)\nclass A:\n' + '    a: int\n' * 4, []),
])
def test_what_is_counted_by_place(count, text, lines):
    assert sorted(count(module(text))) == lines


def test_annotated_means_every_parameter_and_the_result():
    tree = module('def f(a: int, *b: int) -> int: pass\ndef g(a: int, b) -> int: pass\n'
                  'class C:\n    def h(self) -> None: pass\n    def i(self): pass\n')
    assert [f.name for f in tree.functions if measures.is_annotated(f)] == ['f', 'h']


def test_public_functions_are_those_that_others_may_call():
    tree = module('def f():\n    def inner(): pass\ndef _g(): pass\nclass C:\n'
                  '    def __init__(self): pass\n    def h(self): pass\n    def _i(self): pass\n'
                  'class _D:\n    def j(self): pass\n').tree
    assert [f.name for f in measures.public_functions(tree)] == ['f', '__init__', 'h']


def test_comments_docstrings_and_names(tmp_path):
    (tmp_path / 'downscale').mkdir()
    (tmp_path / 'downscale' / 'part.py').write_text(
        '"""Doc."""\n# why\nA, _B = f()  # because\n\n\ndef c():\n    """Doc\n    on.\n    """\n'
        '    return "# no comment"\n\n\n@dataclass(kw_only=True)\nclass D:\n    x: int\n')
    values = measures.measure(tmp_path)
    assert values['own-line comments, % of lines'] == pytest.approx(100 / 11)
    assert values['trailing comments, % of lines'] == pytest.approx(100 / 11)
    assert values['docstrings, % of lines'] == pytest.approx(400 / 11)
    assert values['kw_only dataclasses, %'] == 100
    assert values['public names a module, mean'] == 3
    assert values['source lines'] == values['lines of a file, most'] == 15
    assert values['lines of a function, most'] == 5
    assert values['tests / source lines'] == 0


def test_aliases_are_those_of_our_own_modules():
    modules = [module('', 'downscale.a.b'), module(
        'import numpy as np\nfrom downscale.a import b\nfrom downscale.a import b as c\n'
        'from downscale.a.b import f as g\nimport downscale.a.b as d', 'downscale.e')]
    assert measures.module_aliases(modules)['downscale.e'] == [3, 5]


def test_classes_that_share_a_name():
    modules = [module('class A: pass\nclass _B: pass', 'downscale.a'),
               module('class _B: pass\n\nclass A: pass\nclass C: pass', 'downscale.b')]
    assert measures.repeated_classes(modules) == {'downscale.a': [1], 'downscale.b': [3]}


def test_import_cycles_of_modules_and_of_folders():
    modules = [module('from downscale.q import b', 'downscale.p.a'),
               module('def f():\n    from downscale.p.c import g', 'downscale.q.b'),
               module('from downscale import q', 'downscale.p.c')]
    assert measures.in_cycles(measures.imports(modules)) == []
    assert measures.in_cycles(measures.room_imports(modules)) == ['downscale.p', 'downscale.q']
    back = [*modules, module('import downscale.d', 'downscale.d.x'),
            module('from downscale.p.c import g', 'downscale.e'),
            module('import downscale.e', 'downscale.f')]
    back[2] = module('from downscale import f', 'downscale.p.c')
    assert measures.in_cycles(measures.imports(back)) == [
        'downscale.e', 'downscale.f', 'downscale.p.c']


def test_the_command_shows_both_trees_fails_beyond_a_ratchet_and_lists_places(
        monkeypatch, capsys, tmp_path):
    for folder, text in (('old', 'def f(): pass\n'), ('new', 'def f():\n    a, b = 1, 2\n')):
        (tmp_path / folder / 'downscale').mkdir(parents=True)
        (tmp_path / folder / 'downscale' / 'part.py').write_text(text)
    monkeypatch.setattr(measures, 'ROOT', tmp_path / 'new')
    assert measures.main(['--against', str(tmp_path / 'old')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['measure', 'before', 'now', 'may', 'be', 'rule']
    assert lines[2].split() == ['source', 'lines', '1', '2']
    name = 'tuple packing / 1,000 lines'
    assert measures.main(['--limits']) == 1
    assert name in capsys.readouterr().err
    assert measures.main([]) == 0
    capsys.readouterr()
    assert measures.main(['--where', name]) == 0
    assert capsys.readouterr().out == 'downscale.part:2\n'
    with pytest.raises(SystemExit):
        measures.main(['--where', 'nothing'])
    assert name in capsys.readouterr().err
