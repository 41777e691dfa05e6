"""The console: quick help without JAX, and one line for every mistake."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from downscale import cli, experiment, study_files

ROOT = Path(__file__).parents[1]
SMOKE = str(ROOT / 'experiments' / 'smoke.py')
COMMANDS = ('study', 'train', 'evaluate', 'report', 'data')
HELP = '''
import contextlib, io, json, sys
from downscale import cli
found = {}
for command in ('', *cli.EXAMPLES):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            cli.main([*[command] * bool(command), '--help'])
        except SystemExit as error:
            code = error.code
    found[command] = [code, ' '.join(out.getvalue().split())]
heavy = [name for name in ('jax', 'flax', 'tensorflow', 'grain', 'numpy', 'matplotlib')
         if name in sys.modules]
print(json.dumps([found, heavy]))
'''


@pytest.fixture(scope='module')
def helped():
    done = subprocess.run([sys.executable, '-c', HELP], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(helped):
    assert helped[1] == []


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_every_help_text_ends_with_an_example_that_parses(helped, command):
    code, text = helped[0][command]
    assert code == 0
    example = text.partition('example: ')[2].split()
    assert example[0] == 'downscale' and example[1] == (command or 'study')
    args = cli.parser().parse_args(example[1:])
    assert args.run is vars(cli)[example[1]]
    if not command:
        assert all(f' {name} ' in text for name in COMMANDS)
    for path in example:
        assert not path.endswith('.py') or (ROOT / path).is_file()


def fails(capsys, *argv):
    """The one line that a failing command prints; exit code 1."""
    code = cli.main([str(part) for part in argv])
    out, err = capsys.readouterr()
    assert code == (64 if argv[0] == 'train' else 1)
    assert err.startswith('error: ') and err.count('\n') == 1 and 'Traceback' not in err
    return err


@pytest.mark.parametrize('override, message', [
    ('stages.txt.steps=5', "unknown key 'txt'; did you mean 'text'"),
    ('stages.text.step=5', "unknown key 'step'; did you mean 'steps'"),
    ('seeds=5', 'unknown key'), ('study.name=5', "unknown key 'name'"),
    ('stages.text.steps', 'must look like key.path=value'),
    ('stages.text.steps=many', "'many' must be of type int"),
    ('stages.text.steps=1.5', "'1.5' must be of type int"),
    ('stages.text.steps=True', 'must be of type int'),
    ('stages.text.rates.language=fast', "'fast' must be of type float"),
    ('stages.text.steps=0', 'must be at least 1'),
    ('vision.H=5', r'64 % 5 = 4'), ('world.max_objects=9', 'max_objects=9 > n_shapes=8'),
    ('family=micr', "unknown family 'micr'; did you mean 'micro'"),
])
def test_a_wrong_override_is_one_line_and_starts_nothing(capsys, tmp_path, override, message):
    line = fails(capsys, 'study', SMOKE, '--out', tmp_path / 'out', '--set', override)
    assert message in line
    assert not (tmp_path / 'out').exists()


def test_overrides_reach_the_cells(tmp_path):
    args = cli.parser().parse_args([
        'study', SMOKE, '--out', str(tmp_path), '--set', 'stages.text.steps=7', '--set',
        'stages.text.rates.language=1e-4', '--set', 'study=other'])
    config, cells, folder = cli.open_study(args)
    text = next(cell for cell in cells if cell.name == 'w64d2-s0').stage('text')
    assert (text.steps, text.rates['language']) == (7, 1e-4)
    others = [stage for cell in cells for stage in cell.stages if stage.name != 'text']
    assert not any(stage.rates.get('language') == 1e-4 or stage.steps == 7 for stage in others)
    assert (config.study, folder) == ('other', tmp_path)
    assert 'platform' not in config


def test_a_study_goes_below_runs_when_no_folder_is_given():
    *_, folder = cli.open_study(cli.parser().parse_args(['study', SMOKE]))
    assert folder == Path('runs/smoke')


@pytest.mark.parametrize('command', ['study', 'data'])
def test_a_missing_study_file_names_those_there_are(capsys, tmp_path, monkeypatch, command):
    monkeypatch.chdir(ROOT)
    line = fails(capsys, command, 'experiments/smok.py', '--out', tmp_path)
    assert 'no study file experiments/smok.py' in line and 'experiments/smoke.py' in line
    monkeypatch.chdir(tmp_path)
    assert 'none in ./experiments' in fails(capsys, command, 'smoke.py')


def test_a_file_that_is_no_study_says_what_it_lacks(capsys, tmp_path):
    (tmp_path / 'empty.py').write_text('def get_config(arg): return 1')
    assert 'has no function sweep()' in fails(capsys, 'study', tmp_path / 'empty.py')


def test_a_senseless_argument_of_a_study_is_one_line(capsys):
    study = ROOT / 'experiments' / 'llm_downscale.py'
    assert 'the argument must be micro, qwen3 or dry' in fails(capsys, 'study', f'{study}:qwen')


@pytest.mark.parametrize('argv, message', [
    (('train', SMOKE, '--cell', 'w64d2', '--stage', 'text'), "did you mean 'w64d2-s0'"),
    (('train', SMOKE, '--cell', 'w64d2-s0', '--stage', 'txt'), "did you mean 'text'"),
    (('train', SMOKE, '--cell', 'w64d2-s0', '--stage', 'tower'), "unknown stage 'tower'"),
    (('evaluate', SMOKE, '--cell', 'w64d3-s0', '--only', 'joint'), "unknown cell 'w64d3-s0'"),
    (('evaluate', SMOKE, '--cell', 'w64d2-s0', '--only', 'joint'), 'run `downscale data`'),
])
def test_an_unknown_cell_or_stage_is_refused_before_any_work(capsys, tmp_path, argv, message):
    out = tmp_path / 'out'
    assert message in fails(capsys, *argv, '--out', out)
    assert not list(out.glob('**/*.array_record*'))


def test_a_report_of_nothing_says_so(capsys, tmp_path):
    assert str(tmp_path / 'nowhere') in fails(capsys, 'report', tmp_path / 'nowhere')


@pytest.mark.parametrize('argv', [(), ('studdy',), ('study',), ('train', SMOKE),
                                  ('evaluate', SMOKE, '--cell', 'c', '--only', 'all')])
def test_bad_usage_ends_with_code_two(capsys, argv):
    with pytest.raises(SystemExit) as error:
        cli.main(list(argv))
    assert error.value.code == 2 and 'usage: downscale' in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'open_study', interrupted)
    assert cli.main(['study', SMOKE]) == 130
    assert capsys.readouterr().err == 'stopped; the same command continues\n'


def test_the_traceback_of_an_error_is_shown_on_request(capsys, tmp_path):
    assert cli.main(['report', str(tmp_path / 'nowhere'), '--debug']) == 1
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize('override', ['optimizer.accumulate=2', 'stages.text.save_every=5',
                                      'evaluation.answer=9', 'chat=chatml'])
def test_a_key_that_the_study_file_leaves_at_its_default_can_be_set(override):
    config, sweep = study_files.load_study(ROOT / 'experiments' / 'smoke.py', [override])
    with config.unlocked():
        del config['platform']
    cell = experiment.cells(config, sweep)[1]
    found = {'optimizer.accumulate=2': cell.optimizer.accumulate,
             'stages.text.save_every=5': cell.stage('text').save_every,
             'evaluation.answer=9': cell.evaluation.answer, 'chat=chatml': cell.chat}[override]
    assert str(found) == override.partition('=')[2]


@pytest.mark.parametrize('override', ['optimizer.acumulate=2', 'stages.text.save_evry=5',
                                      'stages.txt.steps=5', 'seed=3', 'optimizer.b1.c=1'])
def test_an_unknown_or_foreign_key_is_still_refused(override):
    with pytest.raises(ValueError, match='unknown key'):
        study_files.load_study(ROOT / 'experiments' / 'smoke.py', [override])
