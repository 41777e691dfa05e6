"""The console: quick help without JAX, and one line for every mistake."""
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_study import fake_study
from roots import ROOT

from downscale.commands import main
from downscale.data import row_files
from downscale.data.corpora import columns
from downscale.evaluate import question_files
from downscale.evaluate.scoring import stored_replies
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.experiment.file import open_study
from downscale.policy import training
from downscale.runtime import exits, outputs, streams
from downscale.stages import inputs
from downscale.study import workers
from downscale.train import trackers

SMOKE = str(ROOT / 'experiments' / 'smoke.py')
COMMANDS = ('study', 'train', 'evaluate', 'report', 'data')
HELP = '''
import contextlib, io, json, sys
from downscale.commands import main
found = {}
for command in ('', *main.COMMANDS):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main.main([*[command] * bool(command), '--help'])
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


def help_of(words, argument):
    """The help of an argument of a command, as a user reads it."""
    parser = main.parser()
    for word in words.split():
        parser = parser.verbs().choices[word]
    action, = [action for action in parser._actions
               if argument in (action.dest, *action.option_strings)]
    return action.help


ROWS = ('conversations', 'messages', 'texts', 'question', 'answer', 'answers', 'options', 'choices')


@pytest.mark.parametrize('command, argument, forms, fields', [
    ('extract-think', '--data', question_files.SUFFIXES, question_files.FIELDS),
    ('rescore', 'file', row_files.FORMS, (*stored_replies.FIELDS, 'filter')),
    ('data extract', '--from', row_files.FORMS, (*ROWS, 'image'))])
def test_a_help_text_names_every_form_and_column_that_is_read(command, argument, forms, fields):
    text = help_of(command, argument)
    assert set(re.findall(r'\.[a-z]+', text)) == set(forms)
    assert not [name for name in fields if not re.search(rf'(^|\W){name}\W', text)]
    if command == 'extract-think':
        page = (ROOT / 'docs' / 'tutorials' / 'extract_think.md').read_text()
        assert f'({", ".join(forms[:-1])} or {forms[-1]})' in page


def test_the_columns_that_a_help_text_names_are_those_of_the_reader():
    assert set(ROWS) < set(columns.KNOWN) and 'image' in columns.PICTURES
    kinds = help_of('benchmark', '--data')
    assert all(kind in kinds for kind in ('Parquet', 'TSV', 'JSON', 'CSV', '--list'))
    assert all(word in help_of('rescore', 'file') for word in ('lm-eval', 'repeats', 'ten people'))


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_every_help_text_ends_with_an_example_that_parses(helped, command):
    code, text = helped[0][command]
    assert code == 0
    example = text.partition('example: ')[2].split()
    assert example[0] == 'downscale' and example[1] == (command or 'study')
    args = main.parser().parse_args(example[1:])
    assert args.run is main.COMMANDS[example[1]].run
    if not command:
        assert all(f' {name} ' in text for name in COMMANDS)
    for path in example:
        assert not path.endswith('.py') or (ROOT / path).is_file()


def fails(capsys, *argv):
    """The one line that a failing command prints; exit code 1."""
    code = main.main([str(part) for part in argv])
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
    ('stages.text.steps=1.5', '1.5 must be of type int'),
    ('stages.text.steps=True', 'must be of type int'),
    ('stages.text.rates.language=fast', "'fast' must be of type float"),
    ('stages.text.steps=0', 'must be at least 1'),
    ('vision.H=5', r'64 % 5 = 4'), ('world.max_objects=9', 'max_objects=9 > n_shapes=4'),
    ('family=micr', "unknown family 'micr'; did you mean 'micro'"),
])
def test_a_wrong_override_is_one_line_and_starts_nothing(capsys, tmp_path, override, message):
    line = fails(capsys, 'study', SMOKE, '--out', tmp_path / 'out', '--set', override)
    assert message in line
    assert not (tmp_path / 'out').exists()


def test_overrides_reach_the_cells(tmp_path):
    args = main.parser().parse_args([
        'study', SMOKE, '--out', str(tmp_path), '--set', 'stages.text.steps=7', '--set',
        'stages.text.rates.language=1e-4', '--set', 'study=other'])
    study_config, cells, folder = open_study(args)
    text = next(cell for cell in cells if cell.name == 'w64d2-s0').stage('text')
    assert (text.steps, text.rates['language']) == (7, 1e-4)
    others = [stage for cell in cells for stage in cell.stages if stage.name != 'text']
    assert not any(stage.rates.get('language') == 1e-4 or stage.steps == 7 for stage in others)
    assert (study_config.study, folder) == ('other', tmp_path)
    assert 'platform' not in study_config


def test_a_dry_run_checks_a_study_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = ROOT / 'experiments/smoke.py'
    assert main.main(['study', str(study), '--dry-run', '--set', 'stages.text.steps=7']) == 0
    *cells, last = capsys.readouterr().out.splitlines()
    assert cells[0] == 'tower-s0: steps of tower 300'
    assert cells[1].startswith('w32d1-s0 (12,416 non-embedding parameters): steps of text 7, align')
    assert len(cells) == 4 and last == '4 cells, 4,971 steps; nothing was trained'
    wrong = tmp_path / 'wrong.py'
    wrong.write_text(study.read_text().replace('steps=800', 'stps=800'))
    assert main.main(['study', str(wrong), '--dry-run']) != 0
    assert "'stps'; did you mean 'steps'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [wrong]


def test_a_study_goes_below_runs_when_no_folder_is_given():
    *_, folder = open_study(main.parser().parse_args(['study', SMOKE]))
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


@pytest.mark.parametrize('argv', [('--debug',), ('studdy',), ('study',), ('train', SMOKE),
                                  ('evaluate', SMOKE, '--cell', 'c', '--only', 'all')])
def test_bad_usage_ends_with_code_two(capsys, argv):
    with pytest.raises(SystemExit) as error:
        main.main(list(argv))
    assert error.value.code == 2 and 'usage: downscale' in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(capfd, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr('downscale.commands.study.open_study', interrupted)
    assert main.main(['study', SMOKE]) == 130
    assert capfd.readouterr().err == 'stopped; the same command continues\n'


def test_the_traceback_of_an_error_is_shown_on_request(capsys, tmp_path):
    assert main.main(['report', str(tmp_path / 'nowhere'), '--debug']) == 1
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize('override', ['optimizer.accumulate=2', 'stages.text.save_every=5',
                                      'evaluation.answer=9', 'chat=chatml'])
def test_a_key_that_the_study_file_leaves_at_its_default_can_be_set(override):
    study_config, sweep = file.load_study(ROOT / 'experiments' / 'smoke.py', [override])
    with study_config.unlocked():
        del study_config['platform']
    cell = cells_of(study_config, sweep)[1]
    found = {'optimizer.accumulate=2': cell.optimizer.accumulate,
             'stages.text.save_every=5': cell.stage('text').save_every,
             'evaluation.answer=9': cell.evaluation.answer, 'chat=chatml': cell.chat}[override]
    assert str(found) == override.partition('=')[2]


@pytest.mark.parametrize('override', ['optimizer.acumulate=2', 'stages.text.save_evry=5',
                                      'stages.txt.steps=5', 'seed=3', 'optimizer.b1.c=1'])
def test_an_unknown_or_foreign_key_is_still_refused(override):
    with pytest.raises(ValueError, match='unknown key'):
        file.load_study(ROOT / 'experiments' / 'smoke.py', [override])


# --- asked for at the start, and told in one line ---------------------------------------------

CONSOLE = [sys.executable, '-m', 'downscale.commands.main']


@pytest.mark.parametrize('argv', [
    ('study', SMOKE), ('report', 'runs'), ('analyze', 'report', 'runs'),
    ('analyze', 'drop', 'runs', '--out', 'out'), ('analyze', 'pareto', 'runs', '--out', 'out'),
    ('analyze', 'fit', 'runs.csv', '--out', 'out'), ('analyze', 'probe', 'runs'),
    ('analyze', 'isoflop', 'runs.csv', '--budget', 'b', '--out', 'out'),
    ('analyze', 'losses', 'runs'), ('analyze', 'ledger', 'runs')])
def test_figures_are_asked_for_before_any_number(capsys, monkeypatch, argv):
    """Nothing is there but the missing library, and nothing else is looked for."""
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert "pip install 'downscale[report]'" in fails(capsys, *argv)


def test_a_tracker_that_knows_nobody_is_refused_before_any_work(monkeypatch):
    def login():
        raise RuntimeError('No API key configured.')
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(login=login))
    monkeypatch.delenv('WANDB_MODE', raising=False)
    with pytest.raises(RuntimeError, match='No API key .*WANDB_MODE=offline'):
        trackers.choose('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    assert trackers.choose('wandb') == 'wandb'


@pytest.mark.parametrize('command', [
    ('study',), ('train', '--cell', 'w64d2-s0', '--stage', 'text')])
def test_a_tracker_may_be_missing_only_where_nobody_asked_for_it(capfd, tmp_path, monkeypatch,
                                                                 command):
    """Training itself is left out: what it is told of its tracker is kept, and 7 is its end."""
    begun = []

    def begin(*values):
        begun.append(values[-1])
        sys.exit(7)
    monkeypatch.setattr(workers, 'run', begin)
    monkeypatch.setattr(training, 'train_stage', begin)
    monkeypatch.setattr(workers, 'use_cache', lambda folder: None)
    monkeypatch.setattr(inputs, 'prepare', lambda folder, cell, among: None)
    argv = [command[0], SMOKE, '--out', str(tmp_path / 'run'), '--quiet', *command[1:]]

    def code(*more):
        with pytest.raises(SystemExit) as error:
            main.main([*argv, *more])
        return error.value.code
    assert code() == 7 and begun.pop() == 'tensorboard'
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    capfd.readouterr()
    assert code() == 7 and begun.pop() == 'none'
    assert capfd.readouterr().err == (
        "no tensorboard, so no curves but in metrics.jsonl; pip install 'downscale[tensorboard]', "
        'or --tracker none\n')
    assert main.main([*argv, '--tracker', 'tensorboard']) and not begun
    assert "no tensorboard; pip install 'downscale[tensorboard]'" in capfd.readouterr().err
    assert code('--tracker', 'none') == 7 and begun.pop() == 'none'
    assert not capfd.readouterr().err


@pytest.mark.parametrize('option', ['--out', '--to', '--csv', '--page'])
def test_what_cannot_be_written_is_refused_with_the_arguments(capsys, tmp_path, option):
    argv = {'--out': ['report', 'runs'], '--to': ['import', 'model'],
            '--csv': ['analyze', 'drop', 'runs'], '--page': ['data', 'show', 'runs']}[option]
    (tmp_path / 'file').write_text('')
    for place in (tmp_path / 'file' / 'below', '', 'gs://bucket/run', '/proc/none/here'):
        with pytest.raises(SystemExit):
            main.main([*argv, option, str(place)])
        line = capsys.readouterr().err.splitlines()[-1]
        assert f'error: argument {option}: ' in line and str(place) in line


def test_a_default_folder_is_checked_as_a_given_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs').write_text('')
    assert 'runs is a file, not a folder' in fails(capsys, 'study', SMOKE)
    line = fails(capsys, 'extract-think', '--perception', 'a', '--reasoner', 'b', '--data', 'q',
                 '--out', 'o')
    assert 'experiment.json' in line


def test_a_disk_without_room_is_told_before_it_is_full(capsys, tmp_path, monkeypatch):
    model = ROOT / 'tests' / 'data' / 'hub' / 'qwen3'
    assert main.main(['import', str(model), '--to', str(tmp_path / 'run'), '--quiet']) == 0
    monkeypatch.setattr(outputs.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=5))
    for argv in (('import', model), ('export', tmp_path / 'run', '--format', 'qwen3')):
        line = fails(capsys, *argv, '--to', tmp_path / 'new' / 'model')
        assert 'GiB are to be written, and the disk has 0.00 GiB left' in line
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('argv, hint', [
    (('studdy', SMOKE), "did you mean 'study'"), (('fit', 'x.csv'), "did you mean 'analyze fit'"),
    (('study', SMOKE, '--outt', 'x'), "did you mean '--out'"),
    (('train', SMOKE, '--cel', 'x'), "did you mean '--cell'"),
    (('analyze', 'dropp', 'runs'), "did you mean 'drop'"),
    (('launch', 'status', SMOKE, '--onli', 'failed'), "did you mean '--only'"),
    (('--quiet', 'study', SMOKE), '--quiet belongs behind the COMMAND'),
    (('--debug',), 'COMMAND is missing: study, train'),
    (('data',), 'VERB is missing: world, build')])
def test_a_wrong_word_is_answered_with_the_nearest(capsys, argv, hint):
    with pytest.raises(SystemExit) as error:
        main.main(list(argv))
    assert error.value.code == 2 and hint in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('argv', [('--debug', 'report', 'nowhere'),
                                  ('report', '--debug', 'nowhere'),
                                  ('analyze', '--debug', 'drop', 'nowhere'),
                                  ('analyze', 'drop', 'nowhere', '--debug')])
def test_debug_stands_anywhere(capsys, argv):
    assert main.main(list(argv)) == 1
    assert 'Traceback' in capsys.readouterr().err


def test_a_fault_of_our_own_is_told_apart(capsys, monkeypatch):
    def broken(*args):
        raise TypeError('x' * 5000)
    monkeypatch.setattr('downscale.commands.study.open_study', broken)
    assert main.main(['study', SMOKE]) == exits.BUG
    line = capsys.readouterr().err
    assert line.startswith('internal error: TypeError: xxx') and len(line) == 301
    assert line.endswith('; --debug shows the traceback\n')
    assert exits.BUG not in (exits.CRASHED, 2) and exits.ending(exits.BUG).restart == 'counted'


def test_a_long_error_keeps_its_path_and_its_cause(capsys, tmp_path):
    line = fails(capsys, 'report', f'{tmp_path}/{"9" * 5000}')
    assert len(line) == 301 and line.startswith(f'error: {tmp_path}'[:60]) and ' ... ' in line
    line = fails(capsys, 'study', SMOKE, '--out', tmp_path, '--set',
                 f'stages.text.steps={"9" * 5000}')
    assert len(line) <= 301 and line.endswith('must be of type int\n')
    assert streams.shortened('a\x1b[31m\nb\ud800') == 'a\\x1b[31m b\\ud800'


def test_a_reader_that_goes_away_ends_no_work(tmp_path):
    """Both streams are closed by the reader, and the work behind them is done all the same."""
    code = ('import sys\nfrom downscale.commands import main, report\n'
            'def work(args):\n    """Print."""\n'
            '    for _ in range(9):\n'
            '        print("line", flush=True); print("line", file=sys.stderr, flush=True)\n'
            f'    open({str(tmp_path / "done")!r}, "w").close()\n'
            'report.run = work\n'
            'sys.exit(main.main(["report", "x"]))')
    pipe, end = os.pipe()
    os.close(pipe)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=end, stderr=end,
                          check=False)
    assert done.returncode == 0 and (tmp_path / 'done').is_file()


def test_a_full_disk_behind_stdout_is_one_line():
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*CONSOLE, 'benchmark', '--list'], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, 'error: [Errno 28] No space left on device\n')


def test_a_terminal_without_unicode_gets_escapes(tmp_path):
    done = subprocess.run([*CONSOLE, 'report', 'nö/☃'], cwd=ROOT, capture_output=True, text=True,
                          check=False, env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert done.stderr == ('error: n\\xf6/\\u2603: no study.json, so this is no study folder\n')


@pytest.mark.parametrize('text, message', [
    ('import nothing_like_this', "line 1: ModuleNotFoundError: No module named 'nothing_like"),
    ('def get_config(:', 'line 1: invalid syntax'),
    ('def get_config(arg):\n    return {}["x"]\ndef sweep(arg): return []',
     "line 2: KeyError: 'x'"),
    ('def get_config(arg): return 3\ndef sweep(arg): return []',
     'get_config() must return a ConfigDict, not int'),
    ('from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict()\n'
     'def sweep(arg): return []', "get_config() has no key 'study'"),
    ('import sys\nsys.exit(3)', 'line 2: SystemExit: 3')])
def test_a_study_file_that_breaks_says_where(capsys, tmp_path, text, message):
    (tmp_path / 'mine.py').write_text(text)
    assert f'{tmp_path / "mine.py"}' in (line := fails(capsys, 'study', tmp_path / 'mine.py'))
    assert message in line


@pytest.mark.parametrize('change, message', [
    (lambda meta: {**meta, 'newer': 1}, "unknown key 'newer'"),
    (lambda meta: {key: meta[key] for key in meta if key != 'runs'},
     "field 'runs' is None"),
    (lambda meta: {**meta, 'runs': [{**meta['runs'][0], 'seed': 'x'}]},
     "seed = 'x' must be of type int"),
    (lambda meta: [], 'holds [], not a JSON object'),
    (lambda meta: None, 'not readable as JSON')])
def test_a_study_json_that_is_cut_older_or_newer_is_one_line(capsys, tmp_path, change, message):
    fake_study(tmp_path, pictures=2, decoupled=False)
    path = tmp_path / 'study.json'
    changed = change(json.loads(path.read_text()))
    path.write_text(json.dumps(changed) if changed is not None else path.read_text()[:40])
    for argv in (('analyze', 'drop'), ('report',)):
        line = fails(capsys, *argv, tmp_path)
        assert str(path) in line and message in line
