"""What pages show of an answer: its thought, who judged it, its column first where asked for."""
import re
import shutil

import pyarrow.parquet as pq
import pytest
from fake_study import fake_study

from downscale.commands.main import main
from downscale.results.items import write_items
from downscale.view.board import Board
from downscale.view.columns import views_of
from downscale.view.runs import open_runs
from downscale.view.server import Explorer


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp('shown') / 'study', pictures=8)


def test_a_study_shows_thoughts_and_scorers_where_its_tables_have_them(folder, tmp_path):
    copy = tmp_path / 'study'
    shutil.copytree(folder, copy)
    path, = copy.glob('evaluations/w64d4-s0-caption-True-w16d2-s0-image/items.parquet')
    rows = pq.read_table(path).to_pylist()
    write_items(path, [{**row, 'thought': f'hm <{row["item_id"]}>', 'scorer': 'scene-1'}
                       for row in rows])
    with Explorer(Board(open_runs([copy]))) as server:
        page = server.page('item=count3')
    thought, = re.findall('<pre>(.*?)</pre>', page)
    assert re.sub('</?ins>', '', thought) == 'hm &lt;count3&gt;'
    assert page.count('scene-1 <span class="soft">the scene world') == 1
    assert main(['export', str(copy), '--items', 'parquet', '--to', str(tmp_path / 'set')]) == 0
    row = pq.read_table(tmp_path / 'set' / 'items.parquet').to_pylist()[0]
    thoughts = sorted(answer['thought'] for answer in row['answers'])
    assert thoughts[-1] == f'hm <{row["item_id"]}>' and set(thoughts[:-1]) == {''}


def test_columns_of_a_filter_come_first(folder):
    with Explorer(Board(open_runs([folder]))) as server:
        page = server.page('right=w64d4&wrong=w32d4')
    assert re.findall('<th data-l="([^"]*)"', page) == ['w32d4', 'w64d4', 'w16d2']
    row = page.split('<tr')[2]
    assert re.findall('data-h="(w[^"]*)"', row) == ['w32d4', 'w64d4', 'w16d2']


def test_answers_without_the_question_are_a_view_of_their_own(folder, tmp_path):
    copy = tmp_path / 'study'
    shutil.copytree(folder, copy)
    path, = copy.glob('evaluations/w64d4-s0-caption-False-w16d2-s0-image/items.parquet')
    rows = pq.read_table(path).to_pylist()
    write_items(copy / 'evaluations' / 'hidden' / 'items.parquet', [
        {**row, 'condition': 'question_hidden', 'eval_id': 'hidden', 'pred': 'unasked'}
        for row in rows])
    run, = open_runs([copy])
    views = views_of([run])
    column, = views['caption-question_hidden'].columns
    assert column.label == 'w16d2 → w64d4' and 'the question hidden' in (
        views['caption-question_hidden'].title)
    # Nothing that compares answers to a question holds them.
    assert {cell.condition for cell in run.scored.study.hidden.cells} == {'question_hidden'}
    assert 'question_hidden' not in {cell.condition for cell in run.scored.study.cells}
    before = views_of(open_runs([folder]))
    assert {name: [(column.label, column.cells) for column in view.columns]
            for name, view in views.items() if name != 'caption-question_hidden'} == {
        name: [(column.label, column.cells) for column in view.columns]
        for name, view in before.items()}
    with Explorer(Board([run])) as server:
        assert 'unasked' in server.page('item=count3')
        assert 'unasked' not in server.page('')
        assert 'unasked' in server.page('columns=caption-question_hidden')
