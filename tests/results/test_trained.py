"""What the files of a stage say of its training."""
import json

from downscale.results import trained


def test_seconds_of_several_sessions_and_chips_add_up(tmp_path):
    (tmp_path / 'timing.jsonl').write_text(''.join(
        json.dumps({'step': step, 'seconds': seconds}) + '\n'
        for step, seconds in ((10, 5.), (20, 9.), (30, 4.), (40, 6.))) + '{"step": 5')
    assert trained._chip_seconds(tmp_path, {'data': 4, 'fsdp': -1, 'tensor': 2}) == 15 * 8
    assert trained._chip_seconds(tmp_path / 'nowhere', {}) is None
    (tmp_path / 'timing.jsonl').write_text(''.join(
        json.dumps({'began': began, 'seconds': seconds, 'cells': cells}) + '\n{"torn\n'
        for began, seconds, cells in ((1., 4., 4), (1., 8., 2), (5., 9., 1))))
    assert trained._chip_seconds(tmp_path, {}) == 1 + 2 + 9   # the last is a session of its own
    (tmp_path / 'timing.jsonl').write_text('')   # fewer steps than are timed
    assert trained._chip_seconds(tmp_path, {}) is None


def test_planned_tokens_of_buckets_are_the_mean_over_shapes():
    stage = {'steps': 10, 'batch': 8, 'length': 100}
    assert trained.planned_tokens(stage) == 8000
    assert trained.planned_tokens({**stage, 'buckets': [{'batch': 8, 'length': 50}]}) == 6000
