"""Reasoners side by side: what was planted in one that was trained otherwise is found."""
import shutil
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from downscale.analysis import measures, synth
from downscale.analysis.measures import Missing
from downscale.analysis.varied.balance import balanced
from downscale.analysis.varied.reader_table import by_reader, has_readers
from downscale.commands import main
from downscale.results.study import load_study
from downscale.runtime.files import read_json, write_json

GAINS = {'caption': .1, 'extraction': .05}


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    """A study of two sizes, of which the smaller has reasoners that answer more from true texts."""
    folder = tmp_path_factory.mktemp('readers') / 'study'
    synth(3, folder, sizes=2, seeds=3, items=320, full=False)
    meta = read_json(folder / 'study.json')
    small = min(run['n_total'] for run in meta['runs'])
    of_small = [run for run in meta['runs'] if run['n_total'] == small]
    changes = 'methodgrpo'
    meta['runs'] += [{**run, 'run_id': f'{run["run_id"]}-{changes}', 'changes': changes}
                     for run in of_small]
    meta['factors'] = {'stages.practise.policy.method': {
        run['run_id']: 'grpo' if run.get('changes') else 'none' for run in meta['runs']}}
    write_json(folder / 'study.json', meta)
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob('evaluations/*/items.parquet')):
        table = pq.read_table(path)
        rows = [row for row in table.to_pylist() if row['condition'] == 'gold_text'
                and row['r_run'] in [run['run_id'] for run in of_small]]
        groups = {}
        for row in rows:
            row.update(eval_id=f'{row["eval_id"]}-practised', r_run=f'{row["r_run"]}-{changes}')
            groups.setdefault((row['text_kind'], row['thinking']), []).append(row)
        for (kind, thinking), own in groups.items():
            gain = GAINS[kind] * thinking
            visual = [row for row in own if row['category'] == 'visual']
            wrong = [row for row in visual if not row['score']]
            for k in rng.permutation(len(wrong))[:round(gain * len(visual))]:
                wrong[k]['score'] = 1.0
        if rows:
            out = folder / 'evaluations' / f'{path.parent.name}-practised'
            out.mkdir()
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), out / 'items.parquet')
    return folder


def rewritten(planted, folder, change):
    """The planted study with other rows: `change(row, practised)` gives those in a row's place."""
    shutil.copytree(planted, folder)
    for path in folder.glob('evaluations/*/items.parquet'):
        table = pq.read_table(path)
        rows = []
        for row in table.to_pylist():
            rows += change(row, 'practised' in path.parent.name)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return load_study(folder)


def test_what_is_perceived_has_the_true_text_of_an_extraction(planted, tmp_path):
    def twice(row, practised):
        if (row['condition'], row['text_kind']) != ('gold_text', 'extraction'):
            return [row]
        return [row, row | {'text_kind': 'perceived', 'eval_id': f'{row["eval_id"]}-perceived'}]
    result = by_reader(measures.scored(rewritten(planted, tmp_path / 'study', twice), 200))
    assert set(result['kinds']) == set(GAINS)


def with_golds(planted, folder, gold_of, score=lambda practised, row: row['score']):
    """The table of the planted study with other right answers, and other scores from true texts."""
    def change(row, practised):
        row = row | {'gold': gold_of(row['item_id'])}
        if row['condition'] == 'gold_text':
            row['score'] = score(practised, row)
        return [row]
    return by_reader(measures.scored(rewritten(planted, folder, change), 200))


def gains(result, what):
    practised, = (row for row in result['rows'] if row['reader'] == 'methodgrpo')
    return practised[what]


def test_a_gain_of_guessing_is_gone_where_right_answers_count_alike(planted, tmp_path):
    """The plain reasoner always says what is rarely right, the practised one what often is."""
    result = with_golds(
        planted, tmp_path / 'study',
        lambda item: 'rare' if zlib.crc32(item.encode()) % 4 == 0 else 'often',
        lambda practised, row: float((row['gold'] == 'often') == practised))
    for kind in GAINS:
        assert gains(result, 'over_plain')[kind].value == pytest.approx(.5, abs=.08)
        assert gains(result, 'balanced')[kind].value == pytest.approx(0)


def test_questions_with_an_answer_each_are_balanced_as_they_are(planted, tmp_path):
    result = with_golds(planted, tmp_path / 'study', lambda item: item)
    for kind, plain in gains(result, 'over_plain').items():
        assert gains(result, 'balanced')[kind] == plain and plain.low > 0


def test_cells_that_were_asked_different_questions_are_balanced_apart(planted, tmp_path):
    def change(row, practised):
        # Of practised readers other questions, of which the rarer answer is the frequent one.
        rare = zlib.crc32(row['item_id'].encode()) % 4 == 0
        return [row | {'item_id': row['item_id'] + '-other' * practised, 'score': 1.,
                       'gold': 'a' if rare != practised else 'b'}]
    s = balanced(measures.scored(rewritten(planted, tmp_path / 'study', change), 20))
    for rows in s.study.cells.values():
        task, score = (s.study.items[name][rows] for name in ('task', 'score'))
        for name in set(task):
            assert np.mean(score[task == name]) == pytest.approx(1)


def test_what_was_planted_in_a_reasoner_is_found(planted):
    result = by_reader(measures.scored(load_study(planted), 200))
    assert set(result['kinds']) == set(GAINS) and result['mode'] == 'think'
    rows = {(row['size'], row['reader']): row for row in result['rows']}
    (small, _), (again, changed), (large, _) = rows
    assert small == again != large and changed == 'methodgrpo'
    plain, practised = rows[small, 'plain'], rows[small, 'methodgrpo']
    for kind in result['kinds']:
        gain = practised['over_plain'][kind]
        assert gain.value == pytest.approx(GAINS[kind], abs=.01)
        assert gain.low > 0 and gain.seeds == 3
        assert gain.value == pytest.approx(practised['true'][kind].value
                                           - plain['true'][kind].value)
    assert not plain['over_plain'] and not rows[large, 'plain']['over_plain']


def test_the_report_shows_them(planted, tmp_path):
    out = tmp_path / 'report'
    assert main.main(['report', str(planted), '--out', str(out), '--bootstraps', '100']) == 0
    html = (out / 'report.html').read_text()
    assert 'Reasoners side by side' in html and 'caption: minus plain' in html
    kinds = read_json(out / 'report.json')['readers']['kinds']
    assert kinds and 'methodgrpo' in html
    # Sizes are compared by their plain reasoners alone.
    assert 'methodgrpo' not in str(read_json(out / 'report.json')['grid'])


def test_a_study_of_plain_reasoners_has_no_such_section(tmp_path):
    s = measures.scored(synth(3, tmp_path / 'study', sizes=2, seeds=1, items=160,
                              full=False).study, 20)
    assert not has_readers(s)
    with pytest.raises(Missing, match='more than one way'):
        by_reader(s)
