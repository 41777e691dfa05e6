"""The walks of `docs/development/walks.md` name code that is there, in an order it can take."""
import ast
import re

import pytest
from test_house import LEVELS, PACKAGE, ROOT, room

PAGE = ROOT / 'docs' / 'development' / 'walks.md'
STAY = re.compile(r'`([\w/]+\.py):([\w.]+)`')
COMMANDS = ('commands/main.py', 'commands/evaluate.py', 'commands/report.py', 'commands/launch.py')


def walks(text):
    """{title: (stays as (file, name), rooms and the three counts as they are written)} of a page.
    """
    found = {}
    for part in text.split('\n## ')[1:]:
        title, _, body = part.partition('\n')
        story, _, told = body.partition('\nRooms: ')
        rooms, _, counts = told.partition('\nCount: ')
        found[title] = (STAY.findall(story), re.findall('`(.+?)`', rooms),
                        tuple(map(int, re.findall(r'\d+', counts)[:3])))
    return found


def level(name):
    """The line of `LEVELS` that has the room `name`, counted from the ground."""
    return next(number for number, rooms in enumerate(LEVELS) if name in rooms)


def rooms_of(stays):
    """The rooms that these stays enter, in order."""
    entered = []
    for file, _ in stays:
        if not entered or entered[-1] != room(file):
            entered.append(room(file))
    return entered


def climbs(rooms):
    """How often a walk goes up into a room that it has left before."""
    return sum(name in rooms[:place] and level(rooms[place - 1]) < level(name)
               for place, name in enumerate(rooms))


def defined(file, name):
    """The syntax tree of `function` or `Class.method` of a file of the package; None without."""
    path = PACKAGE / file
    node = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    for part in name.split('.'):
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        node = next((inner for inner in node.body
                     if isinstance(inner, kinds) and inner.name == part), None)
        if node is None:
            return None
    return node


def mentioned(file):
    """Every name that a file uses or imports, modules included, also those in its texts."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.name.rpartition('.')[2])
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r'downscale(?:\.\w+)+', node.value))
    return names


def unreached(stays):
    """The stays that no file of an earlier one names, where a command does not begin there.

    A function that is in a table of its own file, as `MIXTURES`, is named by who imports from it.
    """
    names, lost = set(), []
    for file, name in stays:
        module = f'downscale.{file[:-3].replace("/", ".")}'
        ways = {part for part in name.split('.') if not part.startswith('__')}
        tabled = module in names and ways & mentioned(file)
        if file not in COMMANDS and not tabled and not ways & names:
            lost.append(f'{file}:{name}')
        names |= mentioned(file)
    return lost


WALKS = walks(PAGE.read_text())


@pytest.mark.parametrize('title', WALKS)
def test_a_walk_names_functions_that_exist(title):
    stays, _, _ = WALKS[title]
    assert len(stays) > 20
    assert not [f'{file}:{name}' for file, name in stays if defined(file, name) is None]


@pytest.mark.parametrize('title', WALKS)
def test_each_stay_of_a_walk_is_named_by_one_before_it(title):
    assert not unreached(WALKS[title][0])


@pytest.mark.parametrize('title', WALKS)
def test_a_walk_counts_its_rooms_and_climbs(title):
    stays, told, counts = WALKS[title]
    rooms = rooms_of(stays)
    assert told == rooms
    assert counts == (len(stays), len(rooms), climbs(rooms))


def test_the_page_has_three_walks_and_its_faults_are_seen():
    assert len(WALKS) == 3
    assert defined('train/loop.py', 'train') and defined('data/buckets.py', 'Packer.add')
    for file, name in (('train/loop.py', 'gone'), ('train/gone.py', 'train'),
                       ('data/buckets.py', 'Packer.gone')):
        assert defined(file, name) is None
    assert unreached([('commands/report.py', 'run'), ('train/loop.py', 'train')])
    assert climbs(['commands/', 'stages/', 'data/', 'stages/', 'commands/', 'stages/']) == 2
    assert climbs(['data/', 'stages/', 'train/']) == 0
