"""`--mount`: data and models that lie elsewhere reach a job, and what is missing there is fatal."""
import errno
import json
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_bpe
from etils import epath
from local_jobs import SILENCE
from PIL import Image

from downscale.commands import main
from downscale.config import Experiment, save
from downscale.data.corpora import mixture
from downscale.data.corpora.mixture import Corpus
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.launch import state, supervise
from downscale.launch.backends import local, mounting
from downscale.launch.backends import sweep as launch_sweep
from downscale.launch.spec import Spec
from downscale.model.init import init_params
from downscale.runtime import exits
from downscale.runtime.files import read_json
from downscale.runtime.mounts import FAILURE, VARIABLE, as_variable, origin_of, read_mounts
from downscale.sharding import mesh
from downscale.stages import preflight
from downscale.stages.inputs import corpus
from downscale.stages.models import model_of
from downscale.stages.start import start_params
from downscale.train.lazy_leaves import save_leaves

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    stage = dict(steps=2, batch=4, length=1600, tiles=4, mixture='data/built/own', parents={},
                 rates=dict(connector=1e-3))
    return ConfigDict(dict(
        study='own', platform='cpu', family='micro', vocabulary=400, chat='chatml',
        tokenizer='data/tokenizer.json', vision=dict(layers=1, W=32, H=2, F=64, patch=14, image=28),
        pictures=dict(mode='padded'), stages=dict(align=stage),
        imports=dict(language='models/tiny', tower='models/tiny'), evaluation=dict()))

def sweep(arg=''):
    return [dict(size='w32d2', seed=0)]
'''
MIXTURE = '''
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source
def get_mixture(arg=''):
    return Mixture('mine', (Source('mine', 'train.json', licence='own', obtain='own'),))
'''


class Leaf:
    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunk = array.shape

    def read(self, index=()):
        return self.array[index]


def leaves(tree):
    return {name: leaves(value) if isinstance(value, dict) else Leaf(value)
            for name, value in tree.items()}


def cell_of(study):
    config, sweep = file.load_study(study, ())
    with config.unlocked():
        del config['platform']
    return cells_of(config, sweep)[0]


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    """A folder that stands for a bucket, with data and models, and a study beside neither."""
    root = tmp_path_factory.mktemp('elsewhere')
    data, here = root / 'bucket' / 'data', root / 'here'
    data.mkdir(parents=True)
    (here / 'experiments').mkdir(parents=True)
    (here / 'experiments' / 'own.py').write_text(STUDY)
    rows = []
    for k, colour in enumerate(('red', 'blue', 'green') * 3):
        Image.new('RGB', (40, 40), colour).save(data / f'{k}.png')
        rows.append({'id': k, 'image': f'{k}.png', 'question': 'what colour?', 'answer': colour})
    (data / 'train.json').write_text(json.dumps(rows))
    (data / 'mixture.py').write_text(MIXTURE)
    small_bpe.tokenizer().save(str(data / 'tokenizer.json'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        assert main.main(['data', 'build', 'mixture.py', '--to', 'built/own', '--root', '.',
                          '--jobs', '1', '--quiet']) == 0
        patch.chdir(here)
        cell = cell_of('experiments/own.py')
        imported = Experiment(name='tiny', size=cell.size, seed=0, language=cell.language,
                              vision=cell.vision, tokenizer='data/tokenizer.json')
        params = init_params(model_of(cell), 3, ('language', 'tower'))
        save_leaves(root / 'bucket/models/tiny', leaves(params), {'source': 'made here'})
        save(imported, root / 'bucket/models/tiny')
    return root


@pytest.fixture
def place(elsewhere, monkeypatch):
    """`elsewhere`, with the study's folder as the current one."""
    monkeypatch.chdir(elsewhere / 'here')
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)
    corpus.cache_clear()
    return elsewhere


def mounts_of(root):
    return tuple(f'{name}={root}/bucket/{name}' for name in ('data', 'models'))


def spec_of(root, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / 'here')
        cell = cell_of('experiments/own.py')
    return Spec(sweep='own', cell=cell.name, part='train', config='experiments/own.py',
                overrides=(), experiment=cell.hash, tasks=(f'{cell.name}/align',), needs=(),
                steps=2, topology='cpu:1x1', image=None, commit='none', run=str(run))


def run(spec, mounts):
    """The exit code of an attempt on this machine, and the last line that it said."""
    group = local.Group(spec, mounts)
    code = group.wait(200)
    return code, local.logs(spec).read_text().splitlines()[-1:]


# --- what a person says -----------------------------------------------------------------------

@pytest.mark.parametrize('text, wrong', [
    ('data', 'must be NAME=PLACE'), ('data=', 'must be NAME=PLACE'),
    ('dat=gs://bucket/x', 'a study has data and models'), ('data=gs://B/x', 'of letters, digits'),
    ('data=gs://bucket/a//b', 'of letters'), ('data=gs://bucket/../x', 'of letters'),
    ('data=gs://bucket/a,b', 'of letters'), ('data=gs://bucket/a b', 'of letters'),
    ('data=gs://bucket/$(id)', 'of letters'), ('data=gs://', 'of letters')])
def test_what_is_no_mount_is_refused_in_one_line(text, wrong):
    with pytest.raises(ValueError, match=wrong) as error:
        read_mounts([text])
    assert len(str(error.value)) <= 300 and '\n' not in str(error.value)


def test_a_mount_is_of_a_bucket_in_the_cloud_and_of_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'd').mkdir()
    assert mounting.checked(['data=gs://bucket/x/'], 'gke') == ('data=gs://bucket/x',)
    assert mounting.checked(['data=d'], 'local') == (f'data={tmp_path}/d',)
    for text, backend, wrong in (
            ('data=d', 'tpuvm', 'cannot reach'), ('data=e', 'local', 'no such folder'),
            ('data=gs://bucket/x', 'local', 'mounts no bucket')):
        with pytest.raises(ValueError, match=wrong):
            mounting.checked([text], backend)
    with pytest.raises(ValueError, match='given twice'):
        mounting.checked(['data=gs://bucket/x', 'data=gs://bucket/y'], 'gke')


def test_a_path_of_a_mounted_folder_has_an_origin_and_no_other_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, as_variable({'models': 'gs://bucket/x', 'data': '/a place'}))
    assert origin_of('models/m/0') == 'gs://bucket/x/m/0' == origin_of(Path.cwd() / 'models/m/0')
    assert origin_of('data') == '/a place'
    for other in ('runs/models/m', 'models/../x', '/models/m', 'gs://bucket/models', '.'):
        assert origin_of(other) == other
    monkeypatch.delenv(VARIABLE)
    assert origin_of('models/m/0') == 'models/m/0'


# --- the size of the cache --------------------------------------------------------------------

def test_the_cache_holds_the_mixture_of_the_largest_cell(place, monkeypatch, tmp_path):
    cell = cell_of('experiments/own.py')
    asked = []

    def read(path):
        asked.append(str(path))
        return manifests.get(str(path))
    monkeypatch.setattr(mounting, 'read_json', read)
    monkeypatch.setattr(mounting, 'place', str)
    data = 'data=gs://bucket/x'
    path = 'gs://bucket/x/built/own/manifest.json'
    manifests = {path: {'shards': [{'bytes': 3 * 2 ** 30}, {'bytes': 2 ** 30}]}}
    assert mounting.cache_gib([cell, cell], [data]) == math.ceil(4 * mounting.BESIDE_RECORDS) == 5
    assert asked == [path]  # once, for any number of cells
    assert mounting.cache_gib([cell], ['models=gs://bucket/y']) is None
    assert mounting.cache_gib([cell], [f'data={tmp_path}']) is None and asked == [path]
    # Too large for a disk: records are read one by one.
    manifests[path]['shards'] *= 20
    assert mounting.cache_gib([cell], [data]) is None
    # A dry run asks no bucket.
    assert mounting.cache_gib([cell], [data], asked=False) is None
    assert asked[-1] == 'data/built/own/manifest.json'
    manifests[path] = {'something': 'else'}
    with pytest.raises(ValueError, match=f'{path} is no manifest'):
        mounting.cache_gib([cell], [data])
    del manifests[path]
    with pytest.raises(FileNotFoundError, match=f'no {path}; copy the built mixture there'):
        mounting.cache_gib([cell], [data])


# --- jobs -------------------------------------------------------------------------------------

@pytest.mark.slow
def test_a_job_finds_mounted_folders_at_their_names_and_starts_from_their_weights(place, tmp_path):
    spec = spec_of(place, tmp_path / 'run')
    code, said = run(spec, mounts_of(place))
    assert code == exits.DONE, said
    assert state.ended(spec.run, spec, 'DONE.json')
    folder = mounting.folder_of(spec, mounts_of(place))
    assert os.readlink(folder / 'data') == f'{place}/bucket/data'
    assert sorted(path.name for path in (place / 'here').iterdir()) == ['experiments']
    # The same links once more, and another place.
    assert mounting.linked(spec, mounts_of(place)) == folder
    mounting.linked(spec, ['data=/elsewhere'])
    assert os.readlink(folder / 'data') == '/elsewhere'


@pytest.mark.parametrize('lost, wrong', [
    ('data', 'nothing is in data/, where {}/bucket/data should be mounted'),
    ('data/built/own/manifest.json', 'no manifest.json in data/built/own'),
    ('data/built/own/mine-00000.arrayrecord', 'lacks 1 shards (first mine-00000.arrayrecord)'),
    ('models/tiny/checkpoints', 'no complete checkpoint in {}/bucket/models/tiny'),
    ('models/tiny/experiment.json', 'no models/tiny/experiment.json'),
    ('data/tokenizer.json', 'no data/tokenizer.json')])
def test_what_is_missing_in_a_mount_is_fatal_in_one_line(place, tmp_path, monkeypatch, lost, wrong):
    (tmp_path / 'cwd').mkdir()
    for name in ('data', 'models'):
        (tmp_path / 'cwd' / name).symlink_to(place / 'bucket' / name)
    away = place / 'away'
    if lost == 'data':
        (tmp_path / 'cwd/data').unlink()
        (tmp_path / 'cwd/data').mkdir()
    else:
        (place / 'bucket' / lost).rename(away)
    monkeypatch.setenv(VARIABLE, as_variable(read_mounts(mounts_of(place))))
    cell = cell_of('experiments/own.py')
    monkeypatch.chdir(tmp_path / 'cwd')
    try:
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            preflight.check_mounts()
            preflight.check(cell)
    finally:
        if away.exists():
            away.rename(place / 'bucket' / lost)
    line = exits.line_of(error.value)
    assert wrong.format(place) in line and '\n' not in line
    assert exits.code_of(error.value) == exits.FATAL
    if lost != 'data':
        assert f'is mounted from {place}/bucket/' in line


@pytest.mark.slow
def test_a_missing_model_ends_a_job_as_fatal_before_it_trains(place, tmp_path):
    spec = spec_of(place, tmp_path / 'run')
    (place / 'bucket/models/tiny').rename(place / 'away')
    try:
        code, (line,) = run(spec, mounts_of(place))
    finally:
        (place / 'away').rename(place / 'bucket/models/tiny')
    assert code == exits.FATAL and line.startswith('error: ') and 'models/' in line
    marker = json.loads((state.folder_of(spec.run, spec) / 'FATAL.json').read_text())
    assert marker['reason'] == line.removeprefix('error: ')


def test_what_the_start_up_script_could_not_mount_is_fatal(monkeypatch):
    monkeypatch.setenv(FAILURE, 'gcsfuse cannot be installed')
    with pytest.raises(ValueError, match='could not mount: gcsfuse cannot be installed'):
        preflight.check_mounts()


# --- records ----------------------------------------------------------------------------------

def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep] if keep >= 0 else bytes(len(data)))
    return data


@pytest.mark.parametrize('keep', [0, 70_000, -1], ids=['empty', 'cut', 'zeros'])
def test_a_damaged_shard_is_fatal_and_named(place, keep):
    folder = place / 'bucket/data/built/own'
    path = folder / 'mine-00000.arrayrecord'
    data = cut(path, keep)
    try:
        with pytest.raises(ValueError, match='mine-00000.arrayrecord is damaged') as error:
            Corpus(folder).record(0)
    finally:
        path.write_bytes(data)
    assert exits.code_of(error.value) == exits.FATAL
    assert Corpus(folder).record(0).source == 'mine'


def test_a_mount_that_does_not_answer_is_no_fatal_end(place, monkeypatch):
    def refuse(paths):
        raise RuntimeError('pread() failed: Transport endpoint is not connected')

    def lost(path, mode):
        raise OSError(errno.ENOTCONN, 'Transport endpoint is not connected', path)
    monkeypatch.setattr(mixture, 'ArrayRecordDataSource', refuse)
    monkeypatch.setattr(mixture, 'open', lost, raising=False)
    with pytest.raises(OSError, match='Transport endpoint') as error:
        Corpus(place / 'bucket/data/built/own').record(0)
    assert exits.code_of(error.value) == exits.CRASHED


def test_a_read_only_folder_keeps_no_costs_and_says_so(place, monkeypatch, capsys):
    import small
    written = Corpus(place / 'bucket/data/built/own')

    def refuse(path):
        raise OSError(errno.EROFS, 'Read-only file system', str(path))
    monkeypatch.setattr(mixture, 'whole', refuse)
    costs = written.costs(small.encoder())
    assert costs.shape == (9, 4) and (costs[:, 0] > 0).all()
    assert 'is read-only and was built for another encoder' in capsys.readouterr().err
    monkeypatch.setattr(Corpus, '_count', None)
    assert written.costs(small.encoder()) is costs and not capsys.readouterr().err


# --- a bucket ---------------------------------------------------------------------------------

def upload(folder, to):
    for path in Path(folder).rglob('*'):
        if path.is_file():
            epath.Path(f'{to}/{path.relative_to(folder)}').write_bytes(path.read_bytes())


def test_weights_come_straight_from_the_bucket_each_device_its_share(
        place, bucket, tmp_path, monkeypatch):
    upload(place / 'bucket/models', f'{bucket}/study/models')
    cell = cell_of('experiments/own.py')
    stage = cell.stages[0]
    monkeypatch.chdir(place / 'bucket')
    wanted = start_params('unused', cell, stage)
    # The mount shows all but the weights, which nobody reads through it.
    shutil.copytree('models', tmp_path / 'models', ignore=shutil.ignore_patterns('checkpoints'))
    (tmp_path / 'data').symlink_to(place / 'bucket/data')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, as_variable({'models': f'{bucket}/study/models'}))
    preflight.check_mounts()
    preflight.check(cell)
    grid = mesh(fsdp=4)
    found = start_params('unused', cell, stage, grid)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    leaf = found['language']['embedding_VD']
    assert leaf.sharding.mesh == grid
    assert leaf.addressable_shards[0].data.size * 4 == leaf.size
    # What has no checkpoint is drawn as ever.
    assert isinstance(found['connector']['first_WD'], np.ndarray)
    gone = epath.Path(f'{bucket}/study/models/tiny/checkpoints')
    gone.rmtree()
    with pytest.raises(FileNotFoundError, match=f'mounted from {bucket}/study/models/tiny'):
        preflight.check(cell)


def test_a_mount_and_its_cache_are_remembered(place, bucket, monkeypatch, capsys):
    """A submit reads the manifest in the bucket; what it was told holds for the next."""
    monkeypatch.setattr(supervise, 'step', lambda *rest: None)
    monkeypatch.setattr(launch_sweep, 'changed', lambda: [])
    argv = ['launch', 'submit', 'experiments/own.py', '--run', f'{bucket}/own', '--no-fit']
    image = f'europe-docker.pkg.dev/p/d/d@sha256:{"a" * 64}'
    first = ['--backend', 'gke', '--topology', 'v5e:2x2', '--image', image, '--mount',
             f'data={bucket}/study/data/']
    assert main.main([*argv, *first]) == 1
    assert f'no {bucket}/study/data/built/own/manifest.json' in capsys.readouterr().err
    upload(place / 'bucket/data/built', f'{bucket}/study/data/built')
    assert main.main([*argv, *first]) == 1
    assert 'give --service-account NAME' in capsys.readouterr().err
    first += ['--service-account', 'downscale']
    assert main.main([*argv, *first]) == 0
    assert main.main(argv) == 0
    settings = read_json(launch_sweep.settings_path(f'{bucket}/own'))
    assert settings['mounts'] == [f'data={bucket}/study/data'] and settings['cache_gib'] == 1
    capsys.readouterr()
    assert main.main([*argv, '--mount', 'data=here']) == 1
    assert 'is on this machine' in capsys.readouterr().err
