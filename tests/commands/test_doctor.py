"""What `downscale doctor` says of a machine, and of one that lacks something."""
import json
import types

import pytest

from downscale.commands import doctor, main
from downscale.runtime import installed

METADATA = '''Metadata-Version: 2.4
Name: {name}
Version: 9.5
{more}'''
OURS = '''Requires-Dist: here-it-is>=9
Requires-Dist: too-old>=10
Requires-Dist: not-there[fast]>=1
Requires-Dist: elsewhere>=1; sys_platform == "plan9"
Provides-Extra: ready
Requires-Dist: here-it-is>=9.1; extra == "ready"
Provides-Extra: lacking
Requires-Dist: here-it-is[more]; extra == "lacking"
Provides-Extra: wrong
Requires-Dist: too-old>9.5; extra == "wrong"
'''


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Devices without the seconds that JAX takes to start, where they are not the subject."""
    if 'this_machine' not in request.node.name:
        monkeypatch.setattr(doctor, 'DEVICES', """print('["cpu", ["cpu"], null]')""")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Metadata of packages, as pip leaves it, before those of this environment."""
    texts = {'downscale': OURS, 'too-old': '',
             'here-it-is': 'Provides-Extra: more\nRequires-Dist: absent>2; extra == "more"\n'}
    for name, more in texts.items():
        folder = tmp_path / f'{name.replace("-", "_")}-9.5.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(METADATA.format(name=name, more=more))
    monkeypatch.syspath_prepend(tmp_path)


def examined(capsys, code=0):
    """The JSON that `downscale doctor` prints, which ends with this exit code."""
    assert main.main(['doctor', '--json']) == code
    return json.loads(capsys.readouterr().out)


def test_this_machine_is_ready_and_said_to_be(capsys):
    value = examined(capsys)
    assert value['problems'] == [] and all(value['versions'].values())
    assert value['devices']['platform'] == 'cpu' and value['cores']['usable'] >= 1
    assert {'report', 'gguf', 'launch', 'tpu'} <= set(value['extras'])
    assert value['extras']['report'] == {
        'there': True, 'adds': {'matplotlib': installed.version_of('matplotlib')}}
    assert all(row['free_bytes'] > 0 for row in value['places'].values())


def test_the_text_says_what_the_json_says(capsys):
    value = examined(capsys)
    text = '\n'.join(doctor.lines(value))
    for name, version in value['versions'].items():
        assert name in text and version in text
    for row in value['places'].values():
        assert row['path'] in text
    assert all(f'  {name} ' in text for name in value['extras'])
    assert 'nothing stands in the way' in text and 'problem' not in text
    value['problems'] = ['of some kind']
    assert list(doctor.lines(value))[-1] == 'problem: of some kind'


def test_libraries_are_compared_with_the_metadata(packages, capsys):
    fits = {library.name: library.fits for library in installed.libraries()}
    assert fits == {'here-it-is': True, 'too-old': False, 'not-there': False}
    value = examined(capsys, code=1)
    assert value['downscale'] == '9.5' and value['libraries'] == 3
    assert value['problems'] == ['too-old 9.5; too-old>=10 is needed',
                                 'not-there is missing; not-there>=1 is needed']


def test_an_extra_is_there_when_all_that_it_adds_fits(packages, capsys):
    assert examined(capsys, code=1)['extras'] == {
        'ready': {'there': True, 'adds': {'here-it-is': '9.5'}},
        'lacking': {'there': False, 'adds': {'here-it-is': '9.5', 'absent': None}},
        'wrong': {'there': False, 'adds': {'too-old': '9.5'}}}


def test_an_extra_that_is_missing_is_no_problem(capsys, monkeypatch):
    monkeypatch.setattr(installed, 'extras', lambda: ['nothing-like-this'])
    monkeypatch.setattr(doctor, '_extra', lambda libraries: {'there': False, 'adds': {'x': None}})
    assert 'x (missing)' in '\n'.join(doctor.lines(examined(capsys)))


@pytest.mark.parametrize('variable, what', [
    ('JAX_COMPILATION_CACHE_DIR', 'compiled programs'), ('TMPDIR', 'temporary files'),
    ('DOWNSCALE_SCRATCH', 'scratch of buckets'), ('DOWNSCALE_COPIES', 'copies of buckets')])
def test_a_folder_that_cannot_be_written_is_a_problem(capsys, monkeypatch, tmp_path, variable,
                                                      what):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv(variable, str(tmp_path / 'file' / 'below'))
    value = examined(capsys, code=1)
    problem, = value['problems']
    assert problem.startswith(f'{what}: {tmp_path}')
    assert value['places'][what]['set_by'] == variable
    assert f'not writable   {tmp_path}' in '\n'.join(doctor.lines(value))


def test_nothing_is_made_in_a_cache_that_is_only_looked_at(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache' / 'xla'))
    assert examined(capsys)['places']['compiled programs']['fault'] is None
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/cache')
    value = examined(capsys)
    assert 'in a bucket' in '\n'.join(doctor.lines(value))


def test_a_disk_that_is_nearly_full_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=5e8))
    assert 'GiB are free' in examined(capsys, code=1)['problems'][0]


@pytest.mark.parametrize('program, error', [
    ('import sys; print("page\\nlast line", file=sys.stderr); sys.exit(1)', 'last line'),
    ('import os; os.abort()', 'ended with -6'), ('import time; time.sleep(60)', 'no answer in')])
def test_a_jax_that_does_not_start_is_a_problem(capsys, monkeypatch, program, error):
    monkeypatch.setattr(doctor, 'DEVICES', program)
    monkeypatch.setattr(doctor, 'LONGEST_START', 2)
    value = examined(capsys, code=1)
    assert error in value['devices']['error']
    assert value['problems'] == [f'JAX finds no devices: {value["devices"]["error"]}']
    assert 'devices    none' in '\n'.join(doctor.lines(value))


def test_a_gpu_has_its_memory_and_what_jax_takes_of_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, 'DEVICES', '''
import json, os
assert os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'
print(json.dumps(['gpu', ['NVIDIA H200'] * 2, 105 * 2**30]))
''')
    value = examined(capsys)
    assert value['devices']['memory_bytes'] == 105 * 2**30
    text = '\n'.join(doctor.lines(value))
    assert '2 x NVIDIA H200, of each 105.0 GiB for JAX' in text
    assert 'JAX takes 75 % of a GPU\'s memory when it starts' in text
    monkeypatch.setattr(doctor, 'DEVICES', """print('["cpu", ["cpu"], null]')""")
    assert '75 %' not in '\n'.join(doctor.lines(examined(capsys)))
