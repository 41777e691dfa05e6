"""The paper's studies from mixture to report, dry: all is real but size, through the console."""
import json
import shutil
from pathlib import Path

import numpy as np
import published
import pyarrow.parquet as pq
import pytest
import small_bpe
from compiling import xla_flags
from roots import ROOT

import downscale
from downscale.commands import main
from downscale.config import Experiment, save
from downscale.convert.write import export_folder
from downscale.data.tokens import train_tokenizer
from downscale.experiment import file, recipe
from downscale.experiment.expansion import cells_of
from downscale.model.init import init_params
from downscale.runtime.files import write_json
from downscale.stages.inputs import corpus, encoder_of
from downscale.stages.models import model_of
from downscale.train.lazy_leaves import save_leaves

EXPERIMENTS = ROOT / 'experiments'
BUILT = {'align': 'align_blip558k.py', 'single': 'instruct_single574k.py',
         'multi': 'instruct_multi459k.py:16', 'caption': 'caption_allava950k.py',
         'extraction': 'extraction382k.py'}


def console(*argv):
    assert main.main([str(part) for part in argv]) == 0


def import_tiny(cell, tokenizer):
    """The run folders that a dry cell imports, with random values: the language model from a
    published folder, through the console; the tower, which no command exports, is saved here."""
    params = init_params(model_of(cell), 0, ('language', 'tower'))
    language, tower = (Path(cell.imports[group]) for group in ('language', 'tower'))
    if not language.is_dir():
        hub = Path('hub') / language.name
        hub.parent.mkdir(exist_ok=True)
        export_folder(hub, 'qwen3', {'language': _leaves(params['language'])}, cell.language)
        tokenizer.save(str(hub / 'tokenizer.json'))
        console('import', hub, '--to', language, '--quiet')
    if not tower.is_dir():
        imported = Experiment(
            name=tower.name, size=cell.size, seed=0, language=None, vision=cell.vision
        )
        save_leaves(tower, {'tower': _leaves(params['tower'])}, {'source': 'made here'})
        save(imported, tower)
        write_json(tower / 'DONE.json', {'hash': imported.hash, 'steps': 0})


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
        # One device a worker: on a single core XLA's collectives of several wait for one another.
        patch.setenv('XLA_FLAGS', xla_flags())
        for name, mixture in BUILT.items():
            console('data', 'build', EXPERIMENTS / 'mixtures' / mixture, '--to',
                    f'data/built/{name}', '--tokenizer', 'data/tokenizer.json', '--jobs', 1,
                    '--quiet')
        config, sweep = file.load_study(EXPERIMENTS / 'extract_think.py:dry', ())
        with config.unlocked():
            del config['platform']
        for cell in cells_of(config, sweep):
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
    config, sweep = file.load_study(f'{EXPERIMENTS / name}.py:dry', ())
    with config.unlocked():
        del config['platform']
    for cell in cells_of(config, sweep):
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
    if name == 'extract_think':
        opens(folder / 'cells' / 'w32d2-s0' / 'extract')


@pytest.mark.slow
def test_a_model_learns_from_an_imported_reasoner(place):
    pictures = sorted((place / 'data/coin/pictures').rglob('*.*g'))[:3]
    questions = place / 'data/virl39k/train.jsonl'
    questions.parent.mkdir()
    pictures = [shutil.copy(picture, questions.parent / f'{k}{picture.suffix}')
                for k, picture in enumerate(pictures)]
    questions.write_text(''.join(json.dumps({
        'id': f'q{k}', 'question': 'What is it?', 'images': [picture.name], 'answer': 'red',
        'information': 'Look at its color.'}) + '\n' for k, picture in enumerate(pictures)))
    console('study', f'{EXPERIMENTS / "repair.py"}:dry', '--jobs', 1, '--quiet')
    folder = place / 'runs' / 'repair'
    stage = folder / 'cells' / 'w32d2-s0' / 'perceive'
    rows = [json.loads(line) for line in (stage / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2]
    assert all(row['sampling_gap'] < 1e-4 and 0 < row['written_tokens'] <= 8 for row in rows)
    written = json.loads((stage / 'written' / '0.json').read_text())
    assert {row['question'] for row in written} == {'What is it?'} and len(written) == 4
    texts = [row for path in folder.glob('evaluations/perceived-*/texts.parquet')
             for row in pq.read_table(path).to_pylist()]
    assert texts and {row['text_kind'] for row in texts} == {'perceived'}


def opens(run):
    """What a user does with a trained model: open it, let it describe, write it out."""
    assert downscale.load(run)[2].to_str() == small_bpe.tokenizer().to_str()
    picture = next(Path('data/coin/pictures').rglob('*.*g'))
    Path('own.jsonl').write_text(json.dumps({
        'id': 'q', 'question': 'What is it?', 'images': [str(picture)], 'answer': 'red'}) + '\n')
    console('extract-think', '--perception', run, '--reasoner', 'models/qwen3-w32d2', '--data',
            'own.jsonl', '--out', 'opened', '--describe-tokens', 4, '--answer-tokens', 4,
            '--think-tokens', 4, '--quiet')
    console('benchmark', run, '--on', 'mmstar', '--data', 'data/mmstar/mmstar.parquet', '--out',
            'opened-benchmark', '--limit', 2, '--answer-tokens', 4, '--quiet')
    console('export', run, '--to', 'opened-whole', '--format', 'llava_onevision')


# Numbers are of a smaller machine as well: where it runs, and in which precision.
SIZES = {'family', 'vocabulary', 'platform', 'dtype', 'study', 'vision', *(
    f'stages.{stage}.{key}' for stage in recipe.STAGES
    for key in ('steps', 'batch', 'length', 'tiles')), *(
    f'evaluation.{key}' for key in ('batch', 'answer', 'write', 'think', 'pictures'))}


def flat(value, prefix=''):
    """{dotted key: value} of nested dicts; the tower is one value."""
    if not isinstance(value, dict) or prefix == 'vision.':
        return {prefix[:-1]: value}
    leaves = {}
    for key, part in value.items():
        leaves |= flat(part, f'{prefix}{key}.')
    return leaves


def differing(real, dry):
    """The keys that two studies do not share, or whose values differ in more than size."""
    keys = {key for key in real.keys() ^ dry.keys() if not key.startswith('imports.')}
    return keys | {key for key in real.keys() & dry.keys() - SIZES if real[key] != dry[key]}


@pytest.mark.parametrize('name, arg', [('llm_downscale', ':qwen3'), ('decoupled_grid', ''),
                                       ('extraction_tuning', ''), ('extract_think', '')])
def test_a_real_study_and_its_dry_twin_differ_in_sizes_and_steps_only(name, arg):
    real, dry = (file.load_study(f'{EXPERIMENTS / name}.py{which}', ())
                 for which in (arg, ':dry'))
    large, small = flat(real[0].to_dict()), flat(dry[0].to_dict())
    assert not differing(large, small) and set(large['vision']) == set(small['vision'])
    assert 'tokenizer' not in small  # it comes with the imported language model, as in the real one
    points = [{key: list(value) if isinstance(value, dict) else None for key, value in point.items()
               if key != 'stages'} for _, sweep in (real, dry) for point in sweep]
    assert points and all(point == points[0] for point in points)
    assert differing(large | {'stages.align.clip': 1.0}, small) == {'stages.align.clip'}
    assert differing(large, small | {'tokenizer': 'x.json'}) == {'tokenizer'}
    assert differing(large | {'chat': 'qwen3'}, small) == {'chat'}


def test_the_settings_are_those_of_the_paper(place):
    config, sweep = file.load_study(EXPERIMENTS / 'extract_think.py', ())
    large = config.stages.to_dict()
    assert large['align']['rates'] == {'connector': 1e-3}
    assert all(large[name]['rates'] == {'language': 1e-5, 'connector': 1e-5, 'tower': 2e-6}
               and (large[name]['warmup'], large[name]['final']) == (0.03, 0.0)
               for name in large if name != 'align')
    assert large['extract']['parents'] == dict.fromkeys((*recipe.ALL, 'image_newline_D'),
                                                        'caption')


def test_a_model_trained_from_imports_opens_as_it_was_trained(place, capsys):
    """Also where a word tokenizer of the scene world lies in the study's folder."""
    console('train', f'{EXPERIMENTS / "extraction_tuning.py"}:dry', '--out', 'runs/opens', '--cell',
            'w32d2-s0', '--stage', 'align', '--quiet')
    train_tokenizer(['red', 'blue'], 'runs/opens/tokenizer.json')
    run = place / 'runs/opens/cells/w32d2-s0/align'
    _, params, tokenizer, cell = downscale.load(run)
    assert tokenizer.to_str() == small_bpe.tokenizer().to_str() and cell.tokenizer == ''
    assert set(params) == {'language', 'tower', 'connector'}
    trained = encoder_of('runs/opens', cell, 'align').tokenizer
    assert trained.to_str() == tokenizer.to_str()
    console('export', run, '--to', 'opened-hf', '--format', 'llava_qwen_3')
    assert (place / 'opened-hf' / 'tokenizer.json').read_bytes() == (
        place / 'models/qwen3-w32d2/tokenizer.json').read_bytes()
    shutil.rmtree('opened-hf')
    (place / 'models/qwen3-w32d2').rename('models/away')
    capsys.readouterr()
    assert main.main(['export', str(run), '--to', 'opened-hf', '--format', 'llava_qwen_3']) == 1
    line = capsys.readouterr().err
    assert 'models/qwen3-w32d2' in line and line.count('\n') == 1
    (place / 'models/away').rename('models/qwen3-w32d2')


@pytest.mark.parametrize('key, message', [
    ('stages.extract.mixture=data/built/nowhere', 'no manifest.json in data/built/nowhere'),
    ('evaluation.benchmarks.mmstar=data/no.parquet', 'no.parquet'),
    ('stages.extract.length=40', 'raise `length` and `tiles`'),
])
def test_what_a_study_lacks_is_one_line_before_any_work(place, capsys, key, message):
    assert main.main(['study', f'{EXPERIMENTS / "extraction_tuning.py"}:dry', '--out', 'runs/bad',
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
    corpus.cache_clear()
    assert main.main(list(map(str, study))) == 64
    assert 'was begun on other records' in capsys.readouterr().err


def test_readers_alone_have_no_stage_and_answer_untrained():
    config, sweep = file.load_study(EXPERIMENTS / 'extract_think.py', ())
    with config.unlocked():
        del config['platform']
    cells = {cell.size: cell for cell in cells_of(config, sweep)}
    assert set(cells) == {'0.6b', '1.7b', '4b'} and cells['4b'].stages == ()
    from downscale.study.tasks import tasks_of
    names = {task.name for task in tasks_of(tuple(cells.values()))}
    assert 'evaluate reason 4b-s0' in names and 'evaluate joint 4b-s0' not in names
    assert {f'evaluate extraction {size}-s0' for size in ('0.6b', '1.7b')} <= names
