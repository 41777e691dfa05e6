"""Pages: links inside go somewhere, all are listed, generated parts name all that there is."""
import dataclasses
import re
import sys
from pathlib import Path

import pytest
from console_lines import ROOT, documents, parsers

sys.path.insert(0, str(ROOT / 'docs'))

import generated

from downscale import config
from downscale.evaluate.scoring.table import SCORERS
from downscale.stage_table import STAGES

DOCS = ROOT / 'docs'
LINK = re.compile(r'\]\(([^)\s]+)\)')
PAGES = [name for name in documents() if name.startswith('docs/')]
READ = [*documents(), 'CONTRIBUTING.md', 'CHANGELOG.md']


def text_of(path: Path) -> str:
    """A page with its generated parts, without what is fenced or set as code."""
    text = generated.filled(path.read_text())
    return re.sub(r'^```.*?^```$|`[^`\n]*`', '', text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The names by which the headings of a page can be linked."""
    headings = re.findall(r'^#+ (.*)$', generated.filled(path.read_text()), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def broken(path: Path, link: str) -> bool:
    """Whether a link of a page goes nowhere; addresses of other places are not asked."""
    if re.match(r'https?://', link):
        return False
    file, _, anchor = link.partition('#')
    target = path.parent / file if file else path
    return not target.exists() or bool(anchor) and anchor not in anchors(target)


@pytest.mark.parametrize('name', READ)
def test_links_inside_go_somewhere(name):
    path = ROOT / name
    assert [link for link in LINK.findall(text_of(path)) if broken(path, link)] == []


def test_a_link_to_nowhere_is_seen():
    page = DOCS / 'tutorials' / 'smoke.md'
    assert broken(page, 'gone.md') and broken(page, 'own_study.md#gone')
    assert not broken(page, '../reference/study_fields.md#evaluation')


def listed(path: Path) -> list[Path]:
    """The pages that the tables of contents of a page list."""
    trees = re.findall(r'^```\{toctree\}\n(.*?)^```$', path.read_text(), re.M | re.S)
    names = [name for tree in trees for name in tree.split('\n') if name and name[0] != ':']
    return [path.parent / f'{name}.md' for name in names]


def test_every_page_is_listed_once():
    pages = [page for name in PAGES for page in listed(ROOT / name)]
    assert sorted([DOCS / 'index.md', *pages]) == sorted(ROOT / name for name in PAGES)


def test_the_readme_fits_a_page():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= 150
    assert {'docs/pictures/accuracy.png', 'docs/pictures/report.png'} <= set(
        LINK.findall('\n'.join(lines)))


def test_rooms_are_those_that_there_are():
    page = (DOCS / 'development' / 'rooms.md').read_text()
    readme = (ROOT / 'README.md').read_text()
    folders = {path.parent.relative_to(ROOT).as_posix()
               for path in (ROOT / 'downscale').rglob('__init__.py')} - {'downscale'}
    for folder in folders:
        assert f'`{folder}/`' in page or f'`{folder.split("/")[-1]}/`' in page, folder
    for folder in {name for name in folders if name.count('/') == 1}:
        assert f'{folder.split("/")[1]}/' in readme, folder


def test_every_generated_part_is_on_a_page_and_fills_it():
    named = [name for page in PAGES for name in generated.BLOCK.findall((ROOT / page).read_text())]
    assert sorted(named) == sorted(generated.PARTS)
    for page in PAGES:
        assert '{generated}' not in generated.filled((ROOT / page).read_text()) or (
            page == 'docs/development/documents.md')


def test_the_console_page_has_every_command_and_argument():
    text = generated.console()
    for parser in list(parsers())[1:]:
        section = text.partition(f'# `{parser.prog}`\n')[2].partition('\n## ')[0]
        options = [option for action in parser._actions for option in action.option_strings
                   if option.startswith('--') and option not in ('--help', '--debug')]
        assert all(re.search(rf'\| `[^`]*{option}\b', section) for option in options), parser.prog
        assert parser.epilog.removeprefix('example: ') in section


def test_the_page_of_fields_has_every_field_and_what_it_may_hold():
    text = generated.study_fields()
    for kind in generated.records(config.Experiment):
        section = text.partition(f'## {kind.__name__}\n')[2].partition('\n## ')[0]
        for field in dataclasses.fields(kind):
            skipped = kind is config.Experiment and field.name in generated.NOT_IN_CONFIG
            assert (f'| `{field.name}` |' in section) != skipped, (kind, field.name)
    stage = text.partition('## Stage\n')[2]
    assert ('| `warmup` | `float` | `0.05` | the share of the steps in which the rate climbs, 0.03 '
            'for 3 per cent; not a number of steps: from 0 below 1 |') in stage
    assert '| `dtype` | `str` | `\'float32\'` | `float32`, `bfloat16` |' in text


def test_tables_have_a_row_for_all_that_there_is():
    for part, names in (('scorers', SCORERS), ('stages', STAGES)):
        rows = generated.PARTS[part]().splitlines()[2:]
        assert [row.split('`')[1] for row in rows] == list(names)
    for judged in {form for scorer in SCORERS.values() for form in scorer.forms}:
        assert f'| {judged} |' in (DOCS / 'reference' / 'scorers.md').read_text()
