"""What is doubtful in the log of a stage: lost rows, weights and rates that stand still."""
import json

import pytest

from downscale.results import curves
from downscale.runtime.files import write_json

WHOLE = [{'step': step, 'lr_factor': min(1, step / 2), 'loss': 2.0} for step in range(1, 6)]


def written(folder, rows, done=5):
    place = folder / 'cells' / 'w32d2-s0' / 'text'
    place.mkdir(parents=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (place / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    if done:
        (place / 'DONE.json').write_text(json.dumps({'hash': 'x', 'steps': done}))
    return list(curves.doubts(folder))


@pytest.mark.parametrize('rows, message', [
    (WHOLE[:2] + WHOLE[3:], 'lacks 1 of 5 rows, the first of step 3'),
    (WHOLE[1:], 'lacks 1 of 5 rows, the first of step 1'),
    (WHOLE[:3], 'lacks 2 of 5 rows, the first of step 4'),
    ([*WHOLE[:2], '{"step": 3, "lr_fa', *WHOLE[3:]], 'lacks 1 of 5 rows, the first of step 3'),
    ([*WHOLE[:2], 'null', *WHOLE[3:]], 'lacks 1 of 5 rows'),
    ([*WHOLE, WHOLE[4]], 'has 1 rows twice'),
    ([*WHOLE[:4], WHOLE[4] | {'unmoved': ['tower']}], 'training moved no weight of tower'),
    ([*WHOLE[:4], WHOLE[4] | {'loss': float('nan')}], 'the loss is no number from step 5 on'),
    ([row | {'lr_factor': 0.05} for row in WHOLE], 'never reached its peak, only 5.0% of it')])
def test_what_is_doubtful_is_named_with_its_file(tmp_path, rows, message):
    line, = written(tmp_path, rows)
    assert line.startswith('cells/w32d2-s0/text/metrics.jsonl: ') and message in line
    assert len(line) <= 300


@pytest.mark.parametrize('rows, done', [
    (WHOLE, 5), (WHOLE[:3], None), ([*WHOLE[:3], '{"step'], None), ([], None),
    ([{'step': step, 'loss': 1.0} for step in (10, 20, 30)], 30)])
def test_a_sound_log_an_unfinished_one_and_one_that_was_thinned_out_raise_no_doubt(
        tmp_path, rows, done):
    assert written(tmp_path, rows, done) == []


def test_the_study_tells_which_attention_its_stages_had(tmp_path):
    def done(cell, stage, **facts):
        write_json(tmp_path / 'cells' / cell / stage / 'DONE.json', {'hash': 'x', **facts})
    done('w64-s0', 'text', attention={'512': 'cudnn', '511': 'xla'}, device='NVIDIA H200')
    done('w64-s0', 'align', attention={'512': 'cudnn'}, device='NVIDIA H200')
    done('w64-s0', 'tower', attention={}, device='NVIDIA H200')
    done('w32-s0', 'text')  # of before there was a choice
    assert list(curves.attention(tmp_path)) == [
        'Attention was computed by cudnn on NVIDIA H200 in 2 stages.',
        'Attention was computed by xla on NVIDIA H200 in 1 stage.']
