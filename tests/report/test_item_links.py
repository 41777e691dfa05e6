"""Links of the report lead to the items behind its numbers, in the folder beside it."""
import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import FAMILIES, fake_study
from waiting import LIMIT

from downscale.report import item_links, report
from downscale.results.study import Cell, load_study
from downscale.view.board import LOSSES, Board
from downscale.view.columns import views_of
from downscale.view.query import read_query
from downscale.view.runs import open_runs
from downscale.view.select import select

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
PICTURES = 12
# Does something on a page, and shows the page that this leads to.
ACT = '''<!doctype html><body><iframe src="PAGE"></iframe><script>
var frame=document.querySelector('iframe'),loads=0;
frame.onload=function(){var page=frame.contentDocument;loads+=1;if(loads===1){ACTION}
else document.body.textContent=page.documentElement.outerHTML}</script>'''
CLICK = '''Array.from(page.querySelectorAll('a')).find(function(a){
return(a.getAttribute('href')||a.getAttribute('xlink:href'))===LINK}).dispatchEvent(
new MouseEvent('click',{bubbles:true,cancelable:true}))'''
CHOOSE = '''var form=page.querySelector('form');form.elements.right.value='w64d4';
form.requestSubmit()'''


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp('links') / 'study', pictures=PICTURES)


@pytest.fixture(scope='module')
def page(root):
    """The folder of a report."""
    return report.write_report(root, bootstraps=20).parent


@pytest.fixture(scope='module')
def board(root):
    return Board(open_runs([root]))


def links_of(folder):
    """All addresses in `items/` that a report leads to."""
    text = (folder / 'report.html').read_text()
    return list(dict.fromkeys(html.unescape(link) for link in
                              re.findall(r'(?:xlink:)?href="(items/[^"]*)"', text)))


def selected(board, link):
    """The names of the items that a list shows which a link leads to."""
    parts = urlsplit(link)
    views = views_of(board.runs)
    view = views[Path(parts.path).stem]
    query = read_query(f'columns={view.name}&{parts.query}', views, board.coded('task')[1])
    return board.ids.take(select(board, view, query)).to_pylist()


def test_every_link_leads_to_a_page_that_knows_what_it_asks_for(page, board):
    links = links_of(page)
    for link in links:
        assert (page / unquote(urlsplit(link).path)).is_file(), link
    lists = [link for link in links if '?' in link and 'index' not in link]
    assert len(lists) > 60
    for link in lists:
        selected(board, link)   # refuses what it does not know
    asked = ' '.join(map(unquote, lists))
    assert all(f'family={family}' in asked for family in FAMILIES)
    assert 'loss=perception+loss' in asked and 'right=w64d4+→+w64d4' in asked


def test_a_cell_of_a_grid_leads_to_what_its_pair_has_wrong(root, page, board):
    """Of all families together and of each, in every kind of text and mode."""
    study = load_study(root)
    known = item_links.write_items(root, page, (), {})
    for p, r in (('w16d2', 'w64d4'), ('w64d4', 'w64d4'), ('gold', 'w16d2')):
        for family in ('', 'count'):
            link = known.pair('caption, think', p, r, family)
            assert link in links_of(page) or family
            gold = p == 'gold'
            rows = study.cells[Cell('' if gold else f'{p}-s0', f'{r}-s0', 'caption', True,
                                    'gold_text' if gold else 'image')]
            wrong = [study.items['item_id'][row] for row in rows
                     if study.items['score'][row] <= .5
                     and family in ('', study.items['task'][row])]
            assert sorted(selected(board, link)) == sorted(wrong) != []


def test_a_bar_leads_to_what_is_lost_and_a_class_to_its_items(root, page, board):
    known = item_links.write_items(root, page, (), {'extraction, think': (
        ('w16d2', 'w32d4', 'w64d4'), ('w16d2', 'w32d4', 'w64d4'))})
    scores = {}
    for size in ('w16d2', 'w64d4'):
        column, = [column for column in views_of(board.runs)['sizes-image'].columns
                   if column.label == size]
        scores[size] = board.column(board.runs[0], column.cells[0], 'score')
    lost = np.flatnonzero((scores['w64d4'] > .5) & (scores['w16d2'] <= .5))
    names = selected(board, known.lost('w64d4', 'w16d2'))
    assert names == board.ids.take(lost).to_pylist() != []
    assert known.shrunk('extraction, think', 'perception') in links_of(page)
    classes = board.losses(board.runs[0], None)
    loss = selected(board, known.of_class('perception loss'))
    assert loss == board.ids.take(np.flatnonzero(
        classes == LOSSES.index('perception loss'))).to_pylist() != []
    assert set(loss) <= set(selected(board, known.shrunk('extraction, think', 'perception')))
    assert known.pair('brief, think', 'w16d2', 'w64d4') == known.wrong('w9d9') == ''


def test_the_six_cards_lead_to_their_items(root, page, board):
    text = (page / 'report.html').read_text()
    look = re.search('<section id="look">.*?</section>', text, re.DOTALL)[0]
    cards = look.split('<div class="card">')[1:]
    assert len(cards) == 6
    for card in cards:
        number, question = re.search(r'<a href="items/items/(\d+).html">(.*?)</a>', card).groups()
        item = (page / 'items' / 'items' / f'{number}.html').read_text()
        assert f'<h1>{board.ids[int(number)].as_py()}</h1>' in item
        assert f'<p class="question">{question}</p>' in item
        cluster, = board.facts('cluster_id', [int(number)])
        picture = (root / 'pictures' / f'{cluster}-0.png').read_bytes()
        assert base64.b64encode(picture).decode() in card


def test_a_large_study_has_some_items_and_says_so(root, tmp_path, monkeypatch):
    monkeypatch.setattr(item_links, 'ITEMS', 20)
    monkeypatch.setattr(report.gallery, 'PER_CLASS', 1)
    folder = report.write_report(root, tmp_path, bootstraps=20).parent
    rows = (folder / 'items' / 'index.html').read_text().split('<tr')[2:]
    names = [re.search(r'<small>(\w+)</small>', row)[1] for row in rows]
    counts = [sum(name.startswith(family) for name in names) for family in FAMILIES]
    assert len(names) == 20 and min(counts) >= 3
    shown = json.loads((folder / 'report.json').read_text())['gallery']
    assert {name for of_class in shown.values() for name in of_class} <= set(names)
    note = f'20 of the {4 * PICTURES} items of the study'
    for name in ('report.html', 'items/index.html', 'items/extraction-think.html'):
        assert note in (folder / name).read_text()


def test_items_are_written_again_and_nothing_else_is_replaced(root, page, tmp_path):
    shutil.copytree(page / 'items', tmp_path / 'items')
    stale = tmp_path / 'items' / 'items' / '999.html'
    stale.write_text('of an earlier study')
    item_links.write_items(root, tmp_path, (), {})
    assert not stale.exists() and (tmp_path / 'items' / 'items' / '0.html').is_file()
    shutil.rmtree(tmp_path / 'items')
    (tmp_path / 'items').mkdir()
    (tmp_path / 'items' / 'index.html').write_text('mine')
    folder = report.write_report(root, tmp_path, bootstraps=20).parent
    assert (folder / 'items' / 'index.html').read_text() == 'mine'
    assert links_of(folder) == [] and 'href="#completed"' in (folder / 'report.html').read_text()
    skipped = json.loads((folder / 'report.json').read_text())['skipped']
    assert 'holds other files than items' in skipped['items']


def test_tables_that_do_not_fit_leave_a_report_without_links(root, tmp_path):
    copy = tmp_path / 'study'
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns('report'))
    path = copy / 'evaluations' / 'w16d2-s0-blind' / 'items.parquet'
    table = pq.read_table(path)
    column = table.schema.get_field_index('data_hash')
    other = pa.array(['other'] * table.num_rows)
    pq.write_table(table.set_column(column, table.schema.field(column), other), path)
    skipped = {}
    links = report._links(copy, copy / 'report', {}, skipped)
    assert links.items() == links.of_claim('thinking') == '' and not (copy / 'report').exists()
    assert 'have other data' in skipped['items']


def after(page, start, action, folder):
    """What a browser shows after an action on the page `start`."""
    frame = page / 'frame.html'
    frame.write_text(ACT.replace('PAGE', start).replace('ACTION', action))
    done = subprocess.run(
        [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}',
         '--allow-file-access-from-files', '--virtual-time-budget=8000', '--dump-dom',
         frame.as_uri()], capture_output=True, text=True, check=True, timeout=LIMIT)
    return html.unescape(re.search('<body>(.*)</body>', done.stdout, re.DOTALL)[1])


@pytest.mark.skipif(not BROWSER, reason='needs Chromium')
def test_a_click_on_a_cell_opens_the_items_with_the_filter_set(page, board, tmp_path):
    link = next(link for link in links_of(page) if link.startswith('items/extraction-think')
                and 'family=count&wrong=w32d4' in link)
    shown = after(page, 'report.html', CLICK.replace('LINK', json.dumps(link)), tmp_path)
    wanted = selected(board, link)
    rows = re.findall(r'<tr([^>]*)>(.*?)</tr>', shown, re.DOTALL)
    visible = [re.search(r'<small>(\w+)</small>', row)[1] for head, row in rows
               if 'hidden' not in head and '<td class="q"' in row]
    assert visible == wanted != [] and f'{len(wanted)} of {4 * PICTURES} items' in shown
    # The column of the filter is the first behind the gold answer.
    heads = re.findall(r'<th(?: [^>]*)?>([^<]*)', shown)
    assert heads[:2] == ['item', 'gold'] and f'wrong={heads[2]}' in unquote(link).replace('+', ' ')


@pytest.mark.skipif(not BROWSER, reason='needs Chromium')
def test_a_filter_of_the_first_page_is_kept_on_the_page_of_its_columns(page, board, tmp_path):
    shown = after(page, 'items/index.html', CHOOSE, tmp_path)
    wanted = selected(board, 'items/sizes-image.html?right=w64d4')
    assert f'{len(wanted)} of {4 * PICTURES} items' in shown and len(wanted) < 4 * PICTURES
