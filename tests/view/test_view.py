"""The item explorer: what it selects, what it shows, and that nothing leaves its pages."""
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import fake_study, item_row
from waiting import LIMIT

from downscale.analysis import grids, measures
from downscale.analysis.flips import PREFERRED
from downscale.commands.main import main
from downscale.evaluate.scoring.table import SCORERS
from downscale.report import gallery
from downscale.results.items import ITEMS, TableError
from downscale.results.lazy_table import LazyTable, cells_of, rows_of
from downscale.results.study import load_study
from downscale.view import style
from downscale.view.board import LOSSES, Board
from downscale.view.bundle import MOST, write_bundle
from downscale.view.columns import views_of
from downscale.view.pages import frame
from downscale.view.query import Query, read_query
from downscale.view.runs import open_runs
from downscale.view.select import select
from downscale.view.server import Explorer
from downscale.view.words import compared

ARCHIVE = Path(__file__).parents[1] / 'data' / 'earlier_run.tar.xz'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
BROWSER = pytest.mark.skipif(not CHROMIUM, reason='no Chromium: apt-get install chromium')
PICTURES = 16   # of four questions each


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A study whose wrong answers are 'Red.', which some scorers take for red."""
    return fake_study(tmp_path_factory.mktemp('view') / 'study', pictures=PICTURES, pred='Red.')


@pytest.fixture(scope='module')
def study(folder):
    return load_study(folder)


@pytest.fixture(scope='module')
def board(folder):
    return Board(open_runs([folder]))


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    """A server with items full of markup, and the requests that reach a server beside it."""
    reached = []

    class Wire(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            reached.append(self.path)
            self.send_error(404)

        def log_message(self, format, *args):
            pass

    wire = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Wire)
    threading.Thread(target=wire.serve_forever, daemon=True).start()
    bait = bait_of(wire.server_port)
    place = fake_study(tmp_path_factory.mktemp('hostile') / 'study', pictures=4, pred=bait)
    server = Explorer(Board(open_runs([place])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, wire.server_port, reached
    server.shutdown()
    wire.shutdown()


def bait_of(port):
    """Markup that would ask the server at `port`, were it not text."""
    return (f'</td><img src=http://127.0.0.1:{port}/img><script>fetch("http://127.0.0.1:{port}/js")'
            f'</script><iframe src=http://127.0.0.1:{port}/frame></iframe><style>@import "http://127.0.0.1:{port}/css";</style>\'"')


def asked(board, text=''):
    """The names of the items that a query selects, in its order."""
    views = views_of(board.runs)
    query = read_query(text, views, board.coded('task')[1])
    view = views[query.columns] if query.columns else next(iter(views.values()))
    return board.ids.take(select(board, view, query)).to_pylist()


def get(address, **headers):
    """(status, text, headers) of an address."""
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as reply:
            return reply.status, reply.read().decode(errors='replace'), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors='replace'), error.headers


def answers(study, **wanted):
    """{item: row} of the rows of `study.items` with these values."""
    items = study.items
    hit = np.all([items[name] == value for name, value in wanted.items()], axis=0)
    return {items['item_id'][row]: row for row in np.flatnonzero(hit)}


def seen(study, size):
    """{item: row} of what a size answered with the picture by itself."""
    return answers(study, p_run=f'{size}-s0', r_run='', condition='image')


# --- what is read -----------------------------------------------------------------------------

def test_every_cell_has_the_answers_that_the_checked_reader_gives_it(board, study):
    run, = board.runs
    assert set(run.cells) == set(study.cells)
    for cell, rows in study.cells.items():
        table, stretches = run.cells[cell]
        scores = dict(zip(study.items['item_id'][rows], study.items['score'][rows], strict=True))
        taken = rows_of(stretches)
        names = board.ids.take(board.numbers(table)[taken]).to_pylist()
        assert dict(zip(names, table.values('score')[taken].tolist(), strict=True)) == scores


def test_a_cell_may_stand_in_several_stretches_of_a_table():
    rows = [item_row(item_id=f'i{k}', condition=condition)
            for k, condition in enumerate(('image', 'blind', 'image', 'image'))]
    cells = cells_of(LazyTable(ITEMS, pa.Table.from_pylist(rows, schema=ITEMS)))
    assert {cell.condition: rows_of(stretches).tolist() for cell, stretches in cells.items()} == {
        'image': [0, 2, 3], 'blind': [1]}


def test_a_table_without_a_column_is_refused_in_a_line(folder, tmp_path):
    copy = tmp_path / 'study'
    shutil.copytree(folder, copy)
    path = sorted(copy.glob('evaluations/*/items.parquet'))[3]
    pq.write_table(pq.read_table(path).drop_columns(['pred']), path)
    with pytest.raises(TableError, match="1 columns missing or of another type .'pred'"):
        open_runs([copy])


def test_classes_of_loss_are_those_of_the_analysis_and_of_the_gallery(board, study):
    run, = board.runs
    classes = board.losses(run, None)
    s = measures.scored(study, bootstraps=2)
    kind, mode = PREFERRED[0]
    ends = grids.corners(s, measures.pair_groups(s, kind, measures.MODES[mode]))
    for name, count in grids.items(s, ends).items.items():
        assert np.sum(classes == LOSSES.index(name)) == round(count)
    shown = gallery.samples(s)
    assert sum(map(len, shown.values())) > 8
    for name, samples in shown.items():
        for sample in samples:
            assert LOSSES[classes[board.number_of(sample['item_id'])]] == name


def test_a_study_without_pairs_tells_classes_by_the_sizes_that_see(tmp_path):
    place = fake_study(tmp_path / 'study', pictures=12, decoupled=False)
    study = load_study(place)
    small = seen(study, 'w16d2')
    large = seen(study, 'w64d4')
    lost = {item for item in small
            if study.items['score'][large[item]] > study.items['score'][small[item]]}
    assert lost and set(asked(Board(open_runs([place])), 'loss=lost')) == lost


# --- what is selected -------------------------------------------------------------------------

def test_filters_select_what_the_items_say(board, study):
    score = study.items['score']
    small = seen(study, 'w16d2')
    large = seen(study, 'w64d4')
    middle = seen(study, 'w32d4')
    flipped = {item for item in small if score[large[item]] > .5 >= score[small[item]]}
    assert set(asked(board, 'right=w64d4&wrong=w16d2')) == flipped != set()
    apart = {item for item in small
             if len({score[rows[item]] for rows in (small, middle, large)}) > 1}
    assert set(asked(board, 'disagree=sizes')) == apart != set(small)
    counts = {item for item, row in small.items() if study.items['task'][row] == 'count'}
    assert set(asked(board, 'family=count&disagree=sizes')) == apart & counts


def test_scorers_disagree_where_one_reads_more_kindly_than_another(board, study):
    """'Red.' is right for some rules where red is, and wrong for all where it is not."""
    cells = [seen(study, size) for size in ('w16d2', 'w32d4', 'w64d4')]
    pred = study.items['pred']
    gold = study.items['gold']
    unsure = {item for rows in cells for item, row in rows.items()
              if pred[row] == 'Red.' and gold[row] == 'red'}
    assert set(asked(board, 'disagree=scorers')) == unsure != set()


def test_text_is_searched_in_questions_answers_and_descriptions(board):
    everything = asked(board)
    assert len(everything) == 4 * PICTURES
    assert asked(board, 'text=ANIMAL+is+%3Cb%3E') == [name for name in everything
                                                     if name.startswith('animal')]
    assert asked(board, 'text=w16d2+sees+a+red+count') == [name for name in everything
                                                          if name.startswith('count')]
    assert asked(board, 'text=count3') == ['count3']
    assert asked(board, 'text=%28') == []   # no pattern, a letter


def test_the_longest_answers_come_first(board, study):
    cells = [seen(study, size) for size in ('w16d2', 'w32d4', 'w64d4')]
    length = {item: np.mean([study.items['n_gen_tokens'][rows[item]] for rows in cells])
              for item in cells[0]}
    lengths = [length[item] for item in asked(board, 'sort=length')]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


def test_a_query_survives_its_address(board):
    views = views_of(board.runs)
    query = Query(columns='extraction-think', family='count', loss='recovered',
                  right='w16d2 → w64d4', text='a&b=<c>', sort='loss', page='2', item='count1')
    assert read_query(query.address(), views, board.coded('task')[1]) == query
    assert query.but(family='color').page == '' and query.but(page='3').family == 'count'


@pytest.mark.parametrize('text, message', [
    ('familly=count', "did you mean 'family'"), ('family=coun', "did you mean 'count'"),
    ('loss=perception', "did you mean 'perception loss'"), ('sort=lenght', "mean 'length'"),
    ('columns=sizes-imag', "did you mean 'sizes-image'"), ('right=w64d', "did you mean 'w64d4'"),
    ('page=-1', 'no whole number'), ('seed=7', "unknown seed '7'")])
def test_a_wrong_query_is_one_line_with_the_nearest_word(board, text, message):
    with pytest.raises(ValueError, match=message) as error:
        asked(board, text)
    assert len(str(error.value)) <= 300 and '\n' not in str(error.value)


def test_two_runs_stand_side_by_side_when_their_questions_are_the_same(folder, board, tmp_path):
    other = fake_study(tmp_path / 'other', pictures=PICTURES, seed=1)
    both = Board(open_runs([folder, other]))
    assert len(both) == len(board)
    labels = [column.label for column in views_of(both.runs)['sizes-image'].columns]
    assert labels == [f'{place}: {size}' for place in (folder, other)
                      for size in ('w16d2', 'w32d4', 'w64d4')]
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter='data')
    with pytest.raises(TableError, match="of 'count' have other data"):
        Board(open_runs([folder, tmp_path / 'run']))
    with pytest.raises(ValueError, match='given twice'):
        open_runs([folder, folder])
    with pytest.raises(ValueError, match='neither study.json'):
        open_runs([tmp_path])


# --- what is shown ----------------------------------------------------------------------------

def test_words_are_compared_and_escaped():
    assert compared('a red <b> ring', 'a blue <b> ring now') == (
        'a <del>red</del> <ins>blue</ins> &lt;b&gt; ring <ins>now</ins>')


def test_pages_hold_fifty_items_and_lead_on(board):
    with Explorer(board) as server:
        pages = [server.page(f'page={number}') for number in (1, 2, 3)]
    rows = [re.findall(r'<small>(\w+)</small>', page) for page in pages]
    assert [len(names) for names in rows] == [50, 14, 14]   # beyond the last is the last
    assert rows[0] + rows[1] == asked(board)
    assert '?page=2" rel="next"' in pages[0] and 'rel="next"' not in pages[1]
    assert all(mark in pages[0] for mark in ('loading="lazy"', '✓ red', '✗ Red.'))


def test_a_row_whose_picture_was_not_saved_says_so(board, tmp_path):
    root = fake_study(tmp_path / 'study', pictures=2, decoupled=False)
    shutil.rmtree(root / 'pictures')
    bare = Board(open_runs([root]))
    with Explorer(board) as server, Explorer(bare) as without:
        assert 'no picture' not in server.page('')
        assert without.page('').count('<small>no picture</small>') == len(bare)


def test_an_item_page_shows_every_answer_text_and_verdict(board, study):
    with Explorer(board) as server:
        page = server.page('family=count&item=count3')
    assert 'What count is &lt;b&gt;left&lt;/b&gt;' in page
    assert 'src="picture?run=0&amp;cluster=c3&amp;place=0"' in page
    assert page.count('as the data scores') == len(study.cells)
    assert '<del>w16d2</del> <ins>w32d4</ins> sees a red count' in page
    assert SCORERS['exact-2'].version in page
    counts = asked(board, 'family=count')
    place = counts.index('count3')
    assert f'{place + 1} of {len(counts)}' in page
    assert f'<a rel="next" href="?family=count&amp;item={counts[place + 1]}"' in page


def test_a_chain_shows_thoughts_and_the_version_of_its_scorer(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter='data')
    with Explorer(Board(open_runs([tmp_path / 'chain']))) as server:
        page = server.page('item=b')
    record = json.loads(next(tmp_path.glob('chain/answer-*')).read_text().splitlines()[1])
    thought = record['resps'][0][0].partition('</think>')[0]
    assert record['doc']['id'] == 'b' and thought.strip()
    assert f'<pre>{thought}' in page
    assert f'exact-2 <span class="soft">{SCORERS["exact-2"].version}' in page
    assert 'how many things are large' in page and '12 of thought, forced close' in page


# --- the server -------------------------------------------------------------------------------

def test_nothing_is_answered_without_the_token_or_under_another_name(hostile):
    server, _, _ = hostile
    address = server.address
    status, page, headers = get(address)
    assert status == 200 and 'Items of fake' in page
    assert "default-src 'none'" in headers['Content-Security-Policy']
    base = address.removesuffix(f'{server.token}/')
    for wrong in (base, f'{base}x/', f'{base}{server.token[:-1]}/', f'{base}{server.token}x/'):
        assert get(wrong)[0] == 403
    assert get(address, Host='evil.example')[0] == 403   # a name that resolves to this machine
    assert get(f'{base}{server.token}')[0] == 200        # sent on to the slash
    assert server.server_address[0] == '127.0.0.1'


def test_pictures_come_from_their_folder_alone(hostile):
    server, _, _ = hostile
    status, data, headers = get(f'{server.address}picture?run=0&cluster=c1&place=0')
    assert status == 200 and headers['Content-Type'] == 'image/png' and data[1:4] == 'PNG'
    outside = server.desk.board.runs[0].root / 'secret-0.png'
    outside.write_bytes(b'x')
    for query in ('run=0&cluster=../secret&place=0', 'run=9&cluster=c1&place=0', 'run=0',
                  'run=0&cluster=c1&place=x', 'run=0&cluster=%00&place=0'):
        assert get(f'{server.address}picture?{query}')[0] == 404


def test_a_wrong_address_is_a_page_with_one_line(hostile):
    server, _, _ = hostile
    status, page, _ = get(f'{server.address}?family=%3Cscript%3E')
    assert status == 400 and '&lt;script&gt;' in page and '<script>alert' not in page
    assert get(f'{server.address}?item=none')[0] == 400
    assert get(f'{server.address}secret')[0] == 404


def test_the_command_prints_an_address_and_ends_when_it_is_told(folder):
    command = [sys.executable, '-m', 'downscale.commands.main', 'view', str(folder), '--query',
               'family=count']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        address = re.search(r'http://\S+', process.stdout.readline())[0]
        assert '16 of 64 items' in get(address)[1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0 and not errors


def test_the_command_refuses_in_one_line(folder, capsys, tmp_path):
    for words, message in (
            (['view', str(tmp_path / 'none')], 'no folder'),
            (['view', str(folder), '--query', 'famly=count'], "did you mean 'family'"),
            (['view', str(folder), '--bundle', str(folder)], 'is not empty')):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1 and len(error) <= 301


# --- the static folder ------------------------------------------------------------------------

@pytest.fixture(scope='module')
def bundle(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp('bundle') / 'items'
    assert main(['view', str(folder), '--bundle', str(place)]) == 0
    return place


def test_a_bundle_holds_all_that_its_pages_point_to(bundle, board):
    pages = [*bundle.glob('*.html'), *bundle.glob('items/*.html')]
    assert len(pages) == len(board) + len(views_of(board.runs)) + 1
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"]*)"', page.read_text()):
            assert (page.parent / unquote(target)).is_file(), f'{page}: {target}'
    assert len(list(bundle.glob('pictures/*.png'))) == PICTURES


def test_a_bundle_takes_what_a_query_selects_and_not_too_much(board, tmp_path, monkeypatch):
    write_bundle(board, Query(family='count'), tmp_path / 'some')
    assert len(list((tmp_path / 'some' / 'items').iterdir())) == PICTURES
    monkeypatch.setattr('downscale.view.bundle.MOST', 10)
    with pytest.raises(ValueError, match='at most 10; choose some with --query'):
        write_bundle(board, Query(), tmp_path / 'all')
    assert MOST > 1000 and not (tmp_path / 'all').exists()


# --- in a browser -----------------------------------------------------------------------------

def dom(address, tmp_path):
    """What Chromium makes of a page once its script has run."""
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=4000',
         '--no-first-run', '--disable-background-networking', '--allow-file-access-from-files',
         f'--user-data-dir={tmp_path}/user', '--dump-dom', address],
        capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout


def framed(addresses, tmp_path):
    """What Chromium makes of several files, each in a frame of one page: it starts only once."""
    frames = ''.join(f'<iframe src="{escape(address)}"></iframe>' for address in addresses)
    page = tmp_path / 'frames.html'
    page.write_text(f"""<!doctype html><body>{frames}<script>window.onload = function() {{
        document.body.textContent = JSON.stringify(Array.from(window.frames).map(
            function(frame) {{ return frame.document.documentElement.outerHTML }})) }}</script>""")
    body = re.search('<body>(.*)</body>', dom(f'file://{page}', tmp_path), re.S)[1]
    return json.loads(unescape(body))


def visible(page):
    """The names of the items in the rows that are not hidden."""
    rows = re.findall(r'<tr([^>]*)>(.*?)</tr>', page, re.S)
    return [re.search(r'<small>(\w+)</small>', row)[1] for head, row in rows
            if 'hidden' not in head and '<td class="q"' in row]


@BROWSER
def test_no_item_makes_the_browser_ask_for_anything(hostile, tmp_path):
    server, port, reached = hostile
    reached.clear()
    page = dom(f'{server.address}?item=count1', tmp_path)
    assert f'&lt;img src=http://127.0.0.1:{port}/img&gt;' in page
    assert not reached


@BROWSER
def test_the_policy_holds_even_where_markup_is_not_escaped(hostile, tmp_path):
    """The same bait as markup: refused under the policy, and followed without it."""
    _, port, reached = hostile
    reached.clear()
    closed = frame('bait', bait_of(port), "'self'")
    free = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', '', closed)
    (tmp_path / 'closed.html').write_text(closed)
    (tmp_path / 'free.html').write_text(re.sub('/(img|js|css|frame)', r'/free-\1', free))
    framed(['closed.html', 'free.html'], tmp_path)
    assert set(reached) == {'/free-img', '/free-js', '/free-css', '/free-frame'}


@BROWSER
def test_a_static_page_selects_as_the_server_does(bundle, board, tmp_path):
    queries = ['', 'family=count&disagree=sizes', 'right=w64d4&wrong=w16d2', 'sort=length',
               'text=COLOR3', 'loss=perception+loss', 'disagree=scorers', 'page=2']
    pages = framed([f'{bundle}/index.html?{query}' for query in queries], tmp_path)
    for query, page in zip(queries, pages, strict=True):
        wanted = asked(board, query)
        assert visible(page) == (wanted[50:] if 'page' in query else wanted[:50]), query
        assert f'{len(wanted)} of 64 items' in page


@BROWSER
def test_a_list_that_goes_on_to_the_right_says_so(bundle, tmp_path):
    for name, wide in (('extraction-think', True), ('sizes-image', False)):
        page = dom(f'file://{bundle}/{name}.html', tmp_path)
        assert ('class="scroll wide"' in page) == wide


def test_scripts_and_styles_load_nothing():
    assert not re.search(r'url\(|@import|fetch|XMLHttp|src=|innerHTML', style.CSS + style.SCRIPT
                         + style.STATIC)


# --- as a data set ----------------------------------------------------------------------------

def test_items_are_exported_with_pictures_and_every_answer(folder, study, board, tmp_path):
    assert main(['export', str(folder), '--items', 'parquet', '--to', str(tmp_path / 'set')]) == 0
    table = pq.read_table(tmp_path / 'set' / 'items.parquet')
    about = json.loads(table.schema.metadata[b'huggingface'])
    assert about['info']['features']['image'] == {'_type': 'Image'}
    rows = {row['item_id']: row for row in table.to_pylist()}
    assert list(rows) == asked(board)
    row = rows['count3']
    assert row['image'] == {'path': 'c3-0.png',
                            'bytes': (folder / 'pictures' / 'c3-0.png').read_bytes()}
    wanted = answers(study, item_id='count3')
    assert wanted and row['gold'] == study.items['gold'][wanted['count3']]
    given = {(answer['p_run'], answer['r_run'], answer['text_kind'], answer['thinking'],
              answer['condition']): answer for answer in row['answers']}
    assert len(given) == len(row['answers']) == len(study.cells)
    for cell, places in study.cells.items():
        place, = [place for place in places if study.items['item_id'][place] == 'count3']
        assert given[tuple(cell)]['pred'] == study.items['pred'][place]
    assert {(text['p_run'], text['text']) for text in row['texts']} == {
        (f'{size}-s0', f'{size} sees a red count') for size in ('w16d2', 'w32d4', 'w64d4')}
    assert main(['export', str(folder), '--items', 'parquet', '--to', str(tmp_path / 'set')]) == 1
