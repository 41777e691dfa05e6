"""The paper's studies from mixture to report, dry: all is real but size, through the console."""
import json
from pathlib import Path

import numpy as np
import published
import pyarrow.parquet as pq
import pytest
import small_bpe

from downscale import cli, recipe, study_files
from downscale import experiment as experiments
from downscale import stages as stages_
from downscale.model.init import init_params
from downscale.places import write_json
from downscale.train.checkpoint import save_leaves

EXPERIMENTS = Path(__file__).parents[1] / 'experiments'
BUILT = {'align': 'align_blip558k.py', 'single': 'instruct_single574k.py',
         'multi': 'instruct_multi459k.py:16', 'caption': 'caption_allava950k.py',
         'extraction': 'extraction382k.py'}


def console(*argv):
    assert cli.main([str(part) for part in argv]) == 0


def import_tiny(cell, tokenizer):
    """The run folders that a dry cell imports, with random values."""
    for group, chat in (('language', 'qwen3'), ('tower', 'chatml')):
        folder = Path(cell.imports[group])
        if folder.is_dir():
            continue
        one = experiments.Experiment(
            folder.name, cell.size, 0, cell.language if group == 'language' else None,
            cell.vision if group == 'tower' else None, chat=chat)
        params = init_params(cell.model(), 0, (group,))
        save_leaves(folder, {group: _leaves(params[group])}, {'source': 'made here'})
        experiments.save(one, folder)
        write_json(folder / 'DONE.json', {'hash': one.hash, 'steps': 0})
        tokenizer.save(str(folder / 'tokenizer.json'))


class _Leaf:
    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunk = array.shape

    def read(self, index=()):
        return self.array[index]


def _leaves(tree):
    return {name: _leaves(value) if isinstance(value, dict) else _Leaf(np.asarray(value))
            for name, value in tree.items()}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with data, built mixtures and models where the study files look for them."""
    root = tmp_path_factory.mktemp('place')
    data = root / 'data'
    published.everything(data)
    published.coin_tests(data)
    published.mmstar(data)
    published.vmcbench(data)
    tokenizer = small_bpe.tokenizer()
    tokenizer.save(str(data / 'tokenizer.json'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, file in BUILT.items():
            console('data', 'build', EXPERIMENTS / 'mixtures' / file, '--to', f'data/built/{name}',
                    '--tokenizer', 'data/tokenizer.json', '--jobs', 1, '--quiet')
        config, sweep = study_files.load_study(EXPERIMENTS / 'extract_think.py:dry', ())
        with config.unlocked():
            del config['platform']
        for cell in experiments.cells(config, sweep):
            import_tiny(cell, tokenizer)
        yield root


@pytest.mark.slow
@pytest.mark.parametrize('name', ['llm_downscale', 'decoupled_grid', 'extraction_tuning',
                                  'extract_think'])
def test_a_study_of_the_paper_runs_from_mixture_to_report(place, capfd, name):
    console('study', f'{EXPERIMENTS / name}.py:dry', '--jobs', 2, '--quiet')
    folder = place / 'runs' / ('llm_downscale_dry' if name == 'llm_downscale' else name)
    report = json.loads((folder / 'report' / 'report.json').read_text())
    assert report and (folder / 'report' / 'report.html').stat().st_size > 10_000
    config, sweep = study_files.load_study(f'{EXPERIMENTS / name}.py:dry', ())
    with config.unlocked():
        del config['platform']
    for cell in experiments.cells(config, sweep):
        for stage in cell.stages:
            told = json.loads((folder / 'cells' / cell.name / stage.name / 'mixture.json'
                               ).read_text())
            manifest = json.loads((place / stage.mixture / 'manifest.json').read_text())
            assert told['epoch'] == manifest['epoch']['sources'] and told['hash'] \
                == manifest['hash'] and set(told['left_out'].values()) == {0}
            assert sum(told['seen'].values()) >= 2 * 4  # steps, and rows of a batch
    rows = [row for path in folder.glob('evaluations/*/items.parquet')
            for row in pq.read_table(path).to_pylist()]
    asked = {row['task'] for row in rows}
    assert asked == ({f'coin-{task}' for task in recipe.COIN.values()} if name == 'llm_downscale'
                     else {'mmstar', 'vmcbench-six'})
    pairs = {(row['p_run'], row['r_run']) for row in rows if row['r_run']}
    assert len(pairs) == (0 if name == 'llm_downscale' else 4)
    console('study', f'{EXPERIMENTS / name}.py:dry', '--jobs', 1, '--quiet')  # nothing left to do
    assert 'report' in capfd.readouterr().out


def test_the_large_studies_are_the_dry_ones_but_for_size(place):
    def stages(arg):
        config, _ = study_files.load_study(f'{EXPERIMENTS / "extract_think.py"}{arg}', ())
        return config.stages.to_dict()
    large, dry = stages(''), stages(':dry')
    assert list(large) == list(dry)
    for name in large:
        differ = {key for key in large[name] if large[name][key] != dry[name][key]}
        assert differ == {'steps', 'batch', 'length', 'tiles'}
    config, sweep = study_files.load_study(EXPERIMENTS / 'llm_downscale.py:qwen3', ())
    with config.unlocked():
        del config['platform']
    cell = experiments.cells(config, sweep)[0]
    own = place / cell.imports['language'] / 'tokenizer.json'
    own.parent.mkdir(parents=True)
    own.write_bytes((place / 'data/tokenizer.json').read_bytes())
    assert stages_.tokenizer_path('runs/x', cell).samefile(own)
    assert large['align']['rates'] == {'connector': 1e-3}
    assert all(large[name]['rates'] == {'language': 1e-5, 'connector': 1e-5, 'tower': 2e-6}
               and (large[name]['warmup'], large[name]['final']) == (0.03, 0.0)
               for name in large if name != 'align')
    assert large['extract']['parents'] == dict.fromkeys((*recipe.ALL, 'image_newline_D'),
                                                        'caption')


@pytest.mark.parametrize('key, message', [
    ('stages.extract.mixture=data/built/nowhere', 'no manifest.json in data/built/nowhere'),
    ('evaluation.benchmarks.mmstar=data/no.parquet', 'no.parquet'),
    ('stages.extract.length=40', 'raise `length` and `tiles`'),
])
def test_what_a_study_lacks_is_one_line_before_any_work(place, capsys, key, message):
    assert cli.main(['study', f'{EXPERIMENTS / "extraction_tuning.py"}:dry', '--out', 'runs/bad',
                     '--set', key, '--jobs', '1', '--quiet']) == 1
    line = capsys.readouterr().err
    assert message in line and line.count('\n') == 1


def test_a_mixture_that_was_built_anew_does_not_continue_a_stage(place, capsys):
    console('data', 'build', EXPERIMENTS / 'mixtures' / 'own.py:extraction/GQA.json,coin/pictures',
            '--to', 'data/built/own', '--tokenizer', 'data/tokenizer.json', '--jobs', 1, '--quiet')
    study = ('train', f'{EXPERIMENTS / "extraction_tuning.py"}:dry', '--out', 'runs/anew', '--cell',
             'w32d2-s0', '--stage', 'align', '--set', 'stages.align.mixture=data/built/own',
             '--quiet')
    console(*study)
    manifest = place / 'data/built/own/manifest.json'
    manifest.write_text(manifest.read_text().replace('"hash": "', '"hash": "0', 1))
    stages_.corpus.cache_clear()
    assert cli.main(list(map(str, study))) == 64
    assert 'was begun on other records' in capsys.readouterr().err


def test_readers_alone_have_no_stage_and_answer_untrained():
    config, sweep = study_files.load_study(EXPERIMENTS / 'extract_think.py', ())
    with config.unlocked():
        del config['platform']
    cells = {cell.size: cell for cell in experiments.cells(config, sweep)}
    assert set(cells) == {'0.6b', '1.7b', '4b'} and cells['4b'].stages == ()
    from downscale.study import tasks_of
    names = {task.name for task in tasks_of(tuple(cells.values()))}
    assert 'evaluate reason 4b-s0' in names and 'evaluate joint 4b-s0' not in names
    assert {f'evaluate extraction {size}-s0' for size in ('0.6b', '1.7b')} <= names
