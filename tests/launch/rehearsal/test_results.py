"""Results of two runs are compared: what every task has written, and what is missing."""
import pyarrow as pa
import pyarrow.parquet as pq
from roots import ROOT

from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.launch.rehearsal import results


def test_written_texts_are_compared_as_answers_are(tmp_path):
    config, sweep = file.load_study(ROOT / 'experiments/extraction_tuning.py:dry,0.6b/0', ())
    with config.unlocked():
        del config['platform']
    cell, = cells_of(config, sweep)
    found = []
    for text in ('a cat', 'a dog'):
        folder = tmp_path / text / 'evaluations' / f'extraction-{cell.name}'
        folder.mkdir(parents=True)
        pq.write_table(pa.table({'text': [text]}), folder / 'texts.parquet')
        found.append(results.digests(str(tmp_path / text), [cell])[cell.name]['extraction'])
    assert None not in found and found[0] != found[1]
