"""Commands that read gs:// paths write and print what they do for the same folder here."""
import json
import os
import re
import shutil
import threading
import urllib.request

import jax
import numpy as np
import probed_study
import published
import pytest
import small
from bucket_proxy import BucketProxy
from fake_chain import Fake, save_run, study
from fake_study import fake_study

import downscale
from downscale.commands.main import main
from downscale.data.corpora import build as build_module
from downscale.data.corpora.build import build
from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source
from downscale.data.tokens import load_tokenizer
from downscale.evaluate.extract_think import Chain
from downscale.launch import attempt
from downscale.results.study import READ, load_study
from downscale.runtime import copies
from downscale.view import server

UNFINISHED = {'run_id': 'w32d4-s0', 'stage': 'reason', 'reason': 'no DONE.json'}
STEP = 'cells/w16d2-s0/instruct/checkpoints/8/params/d/0'  # what no analysis reads


@pytest.fixture(scope='module')
def proxied(bucket, tmp_path_factory):
    """A proxy before a bucket with a study, a study with models, and a built mixture."""
    server = BucketProxy(os.environ['STORAGE_EMULATOR_HOST'].removeprefix('http://'))
    root = tmp_path_factory.mktemp('local')
    folder = fake_study(root / 'fake', pictures=12)
    (folder / 'cells/w32d4-s0/reason/DONE.json').unlink()
    (folder / STEP).parent.mkdir(parents=True)
    (folder / STEP).write_bytes(bytes(300_000))
    models = root / 'models'
    shutil.copytree(study(), models)
    shutil.copytree(small.data(), models / 'data' / 'world' / 'x' / '1.2.0')
    (models / 'data.json').write_text(json.dumps({'folder': 'data/world/x/1.2.0', 'hash': 'h'}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('STORAGE_EMULATOR_HOST', server.url)
        server.root = root
        for name in ('fake', 'models'):
            server.upload(root / name, name)
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(proxied, monkeypatch, tmp_path):
    """The proxy, with an empty folder of copies, in an empty working folder."""
    monkeypatch.setenv('DOWNSCALE_COPIES', str(tmp_path / 'copies'))
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    copies._known.clear()
    proxied.reset()
    return proxied


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def size_of(folder, *patterns):
    """The bytes of the files of a local folder that match."""
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern)
               if path.is_file())


def read_by(proxy):
    return sum(size for _, size in proxy.read)


def printed(capsys, *argv, code=0):
    assert main([str(word) for word in argv]) == code
    return capsys.readouterr()


@pytest.mark.slow
def test_the_report_of_a_bucket_is_that_of_the_folder(proxy, tmp_path, capsys):
    local = proxy.root / 'fake'
    printed(capsys, 'report', local, '--bootstraps', 100, '--out', tmp_path / 'there')
    out = printed(capsys, 'report', 'gs://runs/fake', '--bootstraps', 100).out
    assert out == 'report: fake/report/report.html\n'
    made = bytes_of(tmp_path / 'work' / 'fake' / 'report')
    assert made == bytes_of(tmp_path / 'there')
    assert read_by(proxy) == size_of(local, *READ) <= size_of(local, '**/*') - 300_000
    # What is missing is told as of a folder here.
    assert UNFINISHED in json.loads(made['report.json'])['unfinished']
    assert not list(proxy.root.glob('fake/report*')), 'nothing is written into the study'


def test_what_goes_while_it_is_read_is_in_the_notes(proxy, capsys):
    for name, data in bytes_of(proxy.root / 'fake').items():
        if not name.startswith('pictures/') and name != STEP:
            proxy.put(f'part/{name}', data)
    lost = 'evaluations/w16d2-s0-blind/items.parquet'

    def delete_once(path, number):
        if path.startswith('/download') and lost in path:
            proxy.trouble = lambda path, number: None
            return lambda: proxy.delete(f'part/{lost}')
    proxy.trouble = delete_once
    out = printed(capsys, 'analyze', 'validate', 'gs://runs/part').out
    assert f'note: 1 objects of the bucket went while they were read, first {lost}' in out
    assert 'note: w32d4-s0/reason: no DONE.json' in out
    assert 'note: missing: w16d2-s0, joint, blind: not there' in out
    notes = load_study('gs://runs/part').notes
    assert not any('went while' in note for note in notes), 'of this look nothing went'


@pytest.mark.parametrize('verb', ['drop', 'grid', 'attribute', 'compare', 'validate'])
def test_analyze_prints_the_same(proxy, capsys, verb):
    more = [] if verb == 'validate' else ['--bootstraps', 100]
    here = printed(capsys, 'analyze', verb, proxy.root / 'fake', *more, '--json').out
    assert printed(capsys, 'analyze', verb, 'gs://runs/fake', *more, '--json').out == here
    assert read_by(proxy) == size_of(proxy.root / 'fake', *READ)
    proxy.reset()
    assert printed(capsys, 'analyze', verb, 'gs://runs/fake', *more, '--json').out == here
    assert proxy.read == []


def test_analyze_fits_a_table_of_a_bucket(proxy, capsys, tmp_path):
    (tmp_path / 'runs.csv').write_text('n_nonembed,loss\n' + ''.join(
        f'{10 ** k},{1 + 10 ** (-k / 4)}\n' for k in range(4, 10)))
    proxy.put('tables/runs.csv', (tmp_path / 'runs.csv').read_bytes())
    here = printed(capsys, 'analyze', 'fit', tmp_path / 'runs.csv', '--draws', 100).out
    again = printed(capsys, 'analyze', 'fit', 'gs://runs/tables/runs.csv', '--draws', 100)
    assert again.out == here and proxy.names == ['tables/runs.csv']


def test_probes_are_made_beside_their_study(proxy, capsys):
    with pytest.raises(SystemExit):
        main(['analyze', 'probe', 'gs://runs/fake'])
    assert 'gs://runs/fake is no path of this machine' in capsys.readouterr().err


def test_a_bundle_brings_the_pictures_of_its_items_alone(proxy, tmp_path, capsys):
    argv = ['--query', 'family=count&wrong=w16d2', '--bundle']
    printed(capsys, 'view', proxy.root / 'fake', *argv, tmp_path / 'there')
    printed(capsys, 'view', 'gs://runs/fake', *argv, tmp_path / 'here')
    assert bytes_of(tmp_path / 'here') == bytes_of(tmp_path / 'there')
    pictures = [name for name in proxy.names if name.startswith('fake/pictures/')]
    assert len(pictures) == len(list((tmp_path / 'here').glob('pictures/*'))) < 12
    assert read_by(proxy) == size_of(tmp_path / 'here', 'pictures/*') + size_of(
        proxy.root / 'fake', 'study.json', 'evaluations/*/*.parquet')


def test_the_explorer_fetches_a_picture_when_it_is_looked_at(proxy, capsys, monkeypatch):
    seen = {}

    def look(explorer):
        threading.Thread(target=super(server.Explorer, explorer).serve_forever, daemon=True).start()
        seen['list'] = urllib.request.urlopen(explorer.address).read().decode()
        seen['before'] = list(proxy.names)
        picture = re.search(r'src="(picture[^"]*)"', seen['list'])[1].replace('&amp;', '&')
        seen['picture'] = urllib.request.urlopen(explorer.address + picture).read()
        explorer.shutdown()
    monkeypatch.setattr(server.Explorer, 'serve_forever', look)
    printed(capsys, 'view', 'gs://runs/fake')
    assert not any('pictures/' in name for name in seen['before'])
    picture, = (name for name in proxy.names if 'pictures/' in name)
    assert seen['picture'] == (proxy.root / picture).read_bytes()


# --- models -----------------------------------------------------------------------------------

NEEDED = ('experiment.json', 'checkpoints/1/*', 'checkpoints/1/params/**/*')


def test_load_brings_the_newest_complete_step_and_the_tokenizer(proxy):
    cell = 'cells/w32d1-s0/extract'
    # Steps that are not all there, and one before: none of them is needed.
    for step in ('7', '0'):
        proxy.put(f'models/{cell}/checkpoints/{step}/params/d/0', bytes(1000))
    proxy.put(f'models/{cell}/checkpoints/0/commit_success.txt', b'done')
    local = proxy.root / 'models' / cell
    model, params, tokenizer, experiment = downscale.load(f'gs://runs/models/{cell}')
    there = downscale.load(local)
    assert (model, experiment) == (there[0], there[3])
    jax.tree.map(np.testing.assert_array_equal, params, there[1])
    assert tokenizer.to_str() == there[2].to_str()
    assert read_by(proxy) == size_of(local, *NEEDED) + size_of(proxy.root / 'models',
                                                               'tokenizer.json')
    proxy.reset()
    downscale.load(f'gs://runs/models/{cell}/')
    assert proxy.read == []


def test_load_reads_a_step_that_was_saved_into_the_bucket(proxy, bucket, tmp_path):
    groups = ('language', 'tower', 'connector', 'image_newline_D')
    save_run(f'{bucket}/saved/cells/c/extract', groups, 1)
    save_run(tmp_path / 'here', groups, 1)
    _, params, _, _ = downscale.load(f'{bucket}/saved/cells/c/extract')
    jax.tree.map(np.testing.assert_array_equal, params, downscale.load(tmp_path / 'here')[1])
    assert 'saved/cells/c/extract/checkpoints/1/commit_success.txt' in proxy.names
    assert not any('/checkpoints/1/meta/' in name for name in proxy.names)


def test_a_launched_job_leaves_its_tokenizer_in_the_bucket(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('DOWNSCALE_SCRATCH', str(tmp_path / 'scratch'))
    cell = probed_study.cell('w32d2')
    attempt._prepare(f'{bucket}/launched', 'planted', [cell], None)
    folder = f'{bucket}/launched/cells/{cell.name}/instruct'
    save_run(folder, ('language',), 1)
    _, _, tokenizer, _ = downscale.load(folder)
    assert tokenizer.to_str() == load_tokenizer(
        tmp_path / 'scratch/runs/launched/tokenizer.json', small.ROWS).to_str()


def test_load_says_in_a_line_what_is_not_there(proxy):
    proxy.put('half/experiment.json', bytes_of(proxy.root / 'models')[
        'cells/w32d1-s0/extract/experiment.json'])
    proxy.put('half/checkpoints/7/params/d/0', bytes(10))
    with pytest.raises(FileNotFoundError, match='no complete checkpoint in .*/half/checkpoints'):
        downscale.load('gs://runs/half')
    with pytest.raises(FileNotFoundError, match='no gs://runs/nowhere: the bucket has no such'):
        downscale.load('gs://runs/nowhere')


def chain_argv(root, out):
    cells = [f'{root}/cells/w32d{depth}-s0' for depth in (1, 2)]
    return ['extract-think', '--data', root, '--out', out, '--limit', 6, '--describe', 'extract',
            '--reason', 'think', 'direct', '--think-tokens', 30, '--answer-tokens', 8,
            '--describe-tokens', 20, '--quiet',
            '--perception', *(f'{cell}/extract' for cell in cells),
            '--reasoner', *(f'{cell}/reason' for cell in cells)]


@pytest.fixture
def quick_chain(monkeypatch, tmp_path):
    """Chains whose engine invents text, which hangs on the model and all that it is given."""
    monkeypatch.setattr('downscale.commands.machine.cache_folder', lambda: tmp_path / 'cache')
    monkeypatch.setattr('downscale.study.workers.use_cache', lambda folder: None)
    begin = Chain.__init__
    monkeypatch.setattr(Chain, '__init__',
                        lambda self, *args, **more: begin(self, *args, **{**more, 'engine': Fake}))


def without_times(folder):
    return {name: data for name, data in bytes_of(folder).items()
            if not name.startswith('throughput')}


def test_extract_think_reads_models_and_questions_of_a_bucket(proxy, tmp_path, capsys, quick_chain):
    local = proxy.root / 'models'
    printed(capsys, *chain_argv(local, tmp_path / 'there'))
    printed(capsys, *chain_argv('gs://runs/models', tmp_path / 'here'))
    assert without_times(tmp_path / 'here') == without_times(tmp_path / 'there')
    needed = sum(size_of(local / 'cells' / f'w32d{depth}-s0' / stage, *NEEDED)
                 for depth in (1, 2) for stage in ('extract', 'reason'))
    data = 'data/world/x/1.2.0'
    assert read_by(proxy) == needed + size_of(
        local, 'tokenizer.json', 'data.json', f'{data}/dataset_info.json', f'{data}/features.json',
        f'{data}/*-test.array_record*')
    proxy.reset()
    printed(capsys, *chain_argv('gs://runs/models', tmp_path / 'again'))
    assert proxy.read == []
    # What was written can be looked at and scored from a bucket as well.
    proxy.upload(tmp_path / 'here', 'chain')
    name = min(path.name for path in (tmp_path / 'here').glob('answer-*.jsonl'))
    here = printed(capsys, 'rescore', tmp_path / 'here' / name, '--json').out
    assert printed(capsys, 'rescore', f'gs://runs/chain/{name}', '--json').out == here
    assert proxy.names == [f'chain/{name}']
    os.rename(tmp_path / 'here', tmp_path / 'chain')
    printed(capsys, 'view', tmp_path / 'chain', '--bundle', 'a')
    printed(capsys, 'view', 'gs://runs/chain', '--bundle', 'b')
    assert bytes_of(tmp_path / 'work' / 'a') == bytes_of(tmp_path / 'work' / 'b')


def test_questions_of_a_file_bring_the_pictures_they_name(proxy, tmp_path, capsys, quick_chain):
    pictures = sorted((proxy.root / 'fake' / 'pictures').glob('*.png'))[:3]
    folder = tmp_path / 'mine'
    (folder / 'img').mkdir(parents=True)
    for path in pictures:
        shutil.copy(path, folder / 'img')
    rows = [{'id': str(k), 'question': 'which shape?', 'images': [f'img/{path.name}'],
             'answer': 'circle', 'information': 'the shape'} for k, path in enumerate(pictures[:2])]
    (folder / 'q.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    proxy.upload(folder, 'mine')

    def argv(data, out):
        words = chain_argv(proxy.root / 'models', tmp_path / out)
        words[2] = data
        return words
    printed(capsys, *argv(folder / 'q.jsonl', 'there'))
    printed(capsys, *argv('gs://runs/mine/q.jsonl', 'here'))
    assert without_times(tmp_path / 'here') == without_times(tmp_path / 'there')
    assert proxy.names == [f'mine/img/{path.name}' for path in pictures[:2]] + ['mine/q.jsonl']


def test_rescore_reads_an_object_and_no_folder(proxy, capsys):
    rows = [{'text': 'A', 'gold': 'A'}, {'text': 'no', 'gold': 'B'}]
    proxy.put('replies/list.json', json.dumps(rows).encode())
    assert 'A' in printed(capsys, 'rescore', 'gs://runs/replies/list.json').out
    assert len(proxy.read) == 1
    assert 'gs://runs/replies' in printed(capsys, 'rescore', 'gs://runs/replies', code=1).err
    assert len(proxy.read) == 1


# --- mixtures ---------------------------------------------------------------------------------

def test_data_show_brings_the_shards_of_its_samples_alone(proxy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build_module, 'CHUNK', 3)
    published.coin(tmp_path / 'data', 'ScienceQA', 12)
    built = tmp_path / 'built'
    source = Source('ScienceQA', 'coin/ScienceQA/train.json', images='coin/pictures',
                    licence='ours', obtain='make it')
    build(Mixture('mine', (source,)), built, Settings(root=tmp_path / 'data'))
    manifest = json.loads((built / 'manifest.json').read_text())
    shards = [shard['file'] for shard in manifest['shards']]
    proxy.upload(built, 'built')
    here = printed(capsys, 'data', 'show', built, '--samples', 2, '--page', 'here.html').out
    out = printed(capsys, 'data', 'show', 'gs://runs/built', '--samples', 2).out
    assert out == here.replace('here.html', 'built/show.html')
    page = (tmp_path / 'work' / 'built' / 'show.html').read_bytes()
    assert page == (tmp_path / 'work' / 'here.html').read_bytes()
    read = [name for name in proxy.names if name != 'built/manifest.json']
    assert len(shards) == 4 and 1 <= len(read) <= 2 and {name[6:] for name in read} < set(shards)


# --- what stops them --------------------------------------------------------------------------

@pytest.mark.parametrize('argv', [
    'report gs://runs/none', 'analyze drop gs://runs/none', 'view gs://runs/none',
    'rescore gs://runs/none.json', 'data show gs://runs/none',
    'extract-think --perception gs://runs/none --reasoner gs://runs/none --data x --out o'])
def test_what_is_not_there_or_not_allowed_is_one_line(proxy, capsys, argv, quick_chain):
    name = 'none.json' if 'json' in argv else 'none'
    err = printed(capsys, *argv.split(), code=1).err
    assert err == f'error: no gs://runs/{name}: the bucket has no such folder or object\n'
    proxy.trouble = lambda path, number: 403
    err = printed(capsys, *argv.split(), code=1).err
    assert re.fullmatch(rf'error: gs://runs/{name}: the bucket answered 403; .*\n', err)


def test_an_outage_is_waited_out_by_a_command(proxy, tmp_path, capsys):
    printed(capsys, 'analyze', 'drop', proxy.root / 'fake', '--bootstraps', 100)
    proxy.trouble = lambda path, number: 503 if number in (1, 5, 9) else 0.02
    printed(capsys, 'analyze', 'drop', 'gs://runs/fake', '--bootstraps', 100)
    assert read_by(proxy) == size_of(proxy.root / 'fake', *READ)


def test_errors_name_the_address_and_not_the_copy(proxy, capsys):
    proxy.put('wrong/study.json', b'[]')
    err = printed(capsys, 'report', 'gs://runs/wrong', code=1).err
    assert err.splitlines()[-1] == 'error: gs://runs/wrong/study.json: holds [], not a JSON object'
