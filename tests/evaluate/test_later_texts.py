"""A reasoner that has answered reads what is written later, and nothing else again."""
import json

import pyarrow.parquet as pq
import pytest
import small
from roots import ROOT

from downscale.evaluate import run as evaluating
from downscale.evaluate.decoupled import gold_texts
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.generate.engine import Stats
from downscale.generate.requests import Reply
from downscale.results.items import LATER, write_texts
from downscale.results.throughput import together
from downscale.runtime.files import read_json, write_json
from downscale.study.preparation import prepare


class FirstWord:
    """A reader that answers with the first word that it reads, and counts what it is asked."""

    def __init__(self, encoder):
        self.encoder, self.asked, self.stats = encoder, 0, Stats()

    def stream(self, asked):
        for k, request in enumerate(asked):
            self.asked += 1
            text = self.encoder.text(request.prompt.tokens)
            word = next(word for word in text.split() if '<' not in word)
            yield k, Reply(ids=(1,), text=f'</think> {word}' if request.think else word,
                           finish='stop', nll=1.0, close='natural' if request.think else '',
                           thought=0, answered=1)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(folder of a study that nobody has read, its cells by name, the engines that were opened)."""
    config, _ = file.load_study(ROOT / 'experiments/smoke.py', [
        'data.train=20', 'data.validation=2', 'data.test=4', 'evaluation.scenes=2',
        'evaluation.texts=("extraction","caption","brief")'])
    with config.unlocked():
        del config['platform']
    cells = {cell.name: cell for cell in cells_of(config, [
        dict(size=size, seed=0) for size in ('w32d1', 'w64d2')])}
    prepare(tmp_path, 'tiny', list(cells.values())[1:], True)
    engines = []

    def engine_of(*_):
        engines.append(FirstWord(small.encoder()))
        return engines[-1], tmp_path
    monkeypatch.setattr(evaluating, 'engine_of', engine_of)
    monkeypatch.setattr(evaluating, 'latest', lambda folder: folder)
    return tmp_path, cells, engines


def write(folder, cell, begin):
    """Let a cell have written texts that begin with a word."""
    items = evaluating.test_items(folder, cell)
    for kind in ('extraction', 'caption'):
        path = folder / 'evaluations' / f'{kind}-{cell.name}' / 'texts.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = gold_texts(items, kind)
        write_texts(path, [
            {'item_id': item.question.item_id, 'p_run': cell.name, 'text_kind': kind,
             'question': item.question.text, 'prompt': kind, 'n_tokens': 9, 'truncated': False,
             'text': f'{begin} {texts[item.question.item_id]}'} for item in items])


def read(folder, cell, writers):
    """The rows of a reasoner of `cell`, as text, when it has read those of `writers`."""
    evaluating.evaluate(folder, cell, 'reason', dict.fromkeys(('extraction', 'caption'), writers))
    path = folder / 'evaluations' / f'reason-{cell.name}' / 'items.parquet'
    return sorted(map(str, pq.read_table(path).to_pylist()))


def reads(rows, cell, word):
    """How many rows tell that a text of `cell` was read that begins with `word`."""
    return sum(f"'p_run': '{cell.name}'" in row and f"'pred': '{word}'" in row for row in rows)


def test_a_later_writer_is_read_as_if_it_had_been_there_and_nothing_else_again(study):
    folder, cells, engines = study
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    for cell, word in ((small_one, 'ring'), (large, 'heart')):
        write(folder, cell, word)
    before = read(folder, large, [large])
    grown = read(folder, large, [small_one, large])
    items = len(evaluating.test_items(folder, large))
    # Extractions, captions and captions cut short, at once and with a thought; true ones too.
    assert [engine.asked for engine in engines] == [(3 + 3) * 2 * items, 3 * 2 * items]
    assert set(before) < set(grown) and reads(grown, small_one, 'ring') == 3 * 2 * items
    (folder / 'evaluations' / f'reason-{large.name}' / 'DONE.json').unlink()
    assert read(folder, large, [small_one, large]) == grown


def test_texts_that_are_written_anew_are_read_anew(study):
    folder, cells, engines = study
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    for cell, word in ((small_one, 'ring'), (large, 'heart')):
        write(folder, cell, word)
    before = read(folder, large, [small_one, large])
    write(folder, small_one, 'star')
    after = read(folder, large, [small_one, large])
    assert reads(before, small_one, 'ring') == reads(after, small_one, 'star') > 0
    assert reads(after, small_one, 'ring') == 0 and len(after) == len(before)
    assert reads(after, large, 'heart') == reads(before, large, 'heart') > 0


def test_who_has_read_all_is_left_alone_also_by_a_piece_of_the_study(study):
    folder, cells, engines = study
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    for cell in cells.values():
        write(folder, cell, 'ring')
    before = read(folder, large, [small_one, large])
    for writers in ([small_one, large], [large], [small_one]):
        assert read(folder, large, writers) == before
    assert len(engines) == 1


def test_a_folder_of_before_digests_were_kept_is_read_by_the_names_in_it(study):
    folder, cells, engines = study
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    for cell in cells.values():
        write(folder, cell, 'ring')
    read(folder, large, [large])
    done = folder / 'evaluations' / f'reason-{large.name}' / 'DONE.json'
    done.write_text(json.dumps({'hash': large.hash}))
    read(folder, large, [large])
    assert len(engines) == 1 and json.loads(done.read_text())['read'][large.name]
    rows = read(folder, large, [small_one, large])
    assert len(engines) == 2 and reads(rows, small_one, 'ring') > 0
    # From then on what is written anew is read anew there, too.
    write(folder, large, 'star')
    rows = read(folder, large, [small_one, large])
    assert reads(rows, large, 'star') > 0 == reads(rows, large, 'ring')


def test_a_table_of_before_some_columns_were_kept_gains_rows(study):
    folder, cells, engines = study
    for cell in cells.values():
        write(folder, cell, 'ring')
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    read(folder, large, [large])
    path = folder / 'evaluations' / f'reason-{large.name}' / 'items.parquet'
    pq.write_table(pq.read_table(path).drop_columns(list(LATER.names)), path)
    assert reads(read(folder, large, [small_one, large]), small_one, 'ring') > 0


def test_what_a_reading_cost_is_added_up(study):
    folder, cells, engines = study
    for cell in cells.values():
        write(folder, cell, 'ring')
    small_one, large = cells['w32d1-s0'], cells['w64d2-s0']
    path = folder / 'evaluations' / f'reason-{large.name}' / 'throughput.json'
    read(folder, large, [large])
    write_json(path, FIGURES)
    read(folder, large, [small_one, large])
    assert read_json(path)['tokens'] == FIGURES['tokens']  # this engine counts nothing


FIGURES = {'tokens': 100, 'seconds': 2., 'rows': 10, 'compiles': 1, 'compile_seconds': 1.,
           'tokens_per_second': 50., 'slot_occupancy': .5, 'padding_waste': .2}


def test_figures_of_two_parts_are_those_of_the_whole():
    other = FIGURES | {'tokens': 300, 'seconds': 2., 'rows': 30, 'slot_occupancy': 1.,
                       'padding_waste': .6, 'tokens_per_second': 150.}
    whole = together(FIGURES, other)
    assert whole == {'tokens': 400, 'seconds': 4., 'rows': 40, 'compiles': 2, 'compile_seconds': 2.,
                     'tokens_per_second': 100., 'slot_occupancy': pytest.approx(.875),
                     'padding_waste': pytest.approx(.5)}
    nothing = dict.fromkeys(FIGURES, 0) | {'slot_occupancy': None, 'padding_waste': None}
    assert together(FIGURES, nothing) == FIGURES
