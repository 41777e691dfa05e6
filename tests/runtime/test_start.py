"""What a command inherits: folders, variables, encodings, pipes and Ctrl-C."""
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from roots import ROOT
from waiting import LIMIT

from downscale.commands.main import main
from downscale.runtime import setup


@pytest.mark.parametrize('argv', [
    'train x.py --cell a --stage b --out', 'study x.py --out', 'report', 'analyze drop',
    'evaluate x.py --cell a --only joint --out', 'import m --to', 'export m --format qwen3 --to',
    'data world x.py --out', 'plan x.py --out', 'launch status x.py --run'])
@pytest.mark.parametrize('address', ['s3://b/x', 'http://h/x', 'file:///x', 'GS://b/x', 'gs://b/x'])
def test_an_address_is_refused_before_anything_is_written(argv, address, tmp_path, monkeypatch,
                                                          capsys):
    monkeypatch.chdir(tmp_path)
    if argv in ('launch status x.py --run', 'report', 'analyze drop') and address == 'gs://b/x':
        return
    with pytest.raises(SystemExit) as ended:
        main([*argv.split(), address])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and 'error: ' in line and len(line) <= 300
    assert f'{address} is no path of this machine' in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, value, refused', [
    ('JAX_ENABLE_X64', '1', True), ('JAX_ENABLE_X64', 'True', True), ('JAX_ENABLE_X64', '0', False),
    ('JAX_DEFAULT_PRNG_IMPL', 'rbg', True), ('JAX_THREEFRY_PARTITIONABLE', '0', True),
    ('JAX_THREEFRY_PARTITIONABLE', '', False), ('JAX_NUMPY_DTYPE_PROMOTION', 'strict', True)])
def test_what_changes_every_number_is_refused(monkeypatch, capsys, name, value, refused):
    monkeypatch.setenv(name, value)
    assert main(['report', 'nowhere']) == 1
    assert (f'{name}={value} changes' in capsys.readouterr().err) == refused


def test_a_locale_that_reads_other_text_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(setup.locale, 'getpreferredencoding', lambda _: 'ISO-8859-1')
    assert main(['report', 'nowhere']) == 1
    assert 'reads them as ISO-8859-1; set PYTHONUTF8=1' in capsys.readouterr().err


def test_programs_are_kept_where_the_user_may_write(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(setup.tempfile, 'gettempdir', lambda: str(tmp_path / 'tmp'))
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
    usual = tmp_path / 'home' / '.cache' / 'downscale' / 'xla'
    assert setup.cache_folder() == usual
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    assert setup.cache_folder() == usual
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert setup.cache_folder() == tmp_path / 'xdg' / 'downscale' / 'xla'

    def nobody():
        raise RuntimeError('Could not determine home directory.')
    monkeypatch.setattr(Path, 'home', nobody)
    monkeypatch.delenv('XDG_CACHE_HOME')
    own = tmp_path / 'tmp' / f'downscale-{os.getuid()}'
    assert setup.cache_folder() == own / 'downscale' / 'xla' and not capfd.readouterr().err
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'file' / 'cache'))
    assert setup.cache_folder() == own / 'xla'
    assert re.fullmatch('note: the cache .*/file/cache cannot be written; .*\n',
                        capfd.readouterr().err)


def python(program, **options):
    return subprocess.Popen([sys.executable, '-c', program], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


PRINTER = """
import sys
from downscale.runtime import streams
streams.keep_streams()
for k in range(20000):
    print('line', k)
print('\u00fc', flush=True)
print('all done', file=sys.stderr)
"""


def test_work_goes_on_when_nobody_reads_its_output_any_more():
    child = python(PRINTER)
    assert child.stdout.readline() == 'line 0\n'
    child.stdout.close()
    assert child.stderr.read() == 'all done\n' and child.wait(LIMIT) == 0


def test_output_that_an_encoding_lacks_is_escaped():
    child = python(PRINTER, env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    out, error = child.communicate(timeout=LIMIT)
    assert out.endswith('\\xfc\n') and error == 'all done\n' and child.returncode == 0


WORKER = """
import argparse, sys, time
from downscale.commands import data, main
def slow_to_end(args):
    try:
        print('ready', flush=True)
        time.sleep(3600)
    finally:
        time.sleep(3600)
class Callback:
    def __del__(self):  # what is raised in here is never seen
        print('ready', flush=True)
        time.sleep(3)
def swallowed(args):
    Callback()
    time.sleep(3600)
run = {'slow': slow_to_end, 'swallowed': swallowed}[sys.argv[1]]
args = argparse.Namespace(run=run, debug=False, command='x')
main.parser = lambda: argparse.Namespace(parse_args=lambda argv: args)
data.with_verb = lambda argv: ['x']
sys.exit(main.main())
"""


@pytest.mark.parametrize('number, code, said', [
    (signal.SIGINT, 130, 'stopped; the same command continues\n'),
    (signal.SIGTERM, 143, 'stopped by SIGTERM; the same command continues\n')])
@pytest.mark.parametrize('what, presses', [('slow', 2), ('swallowed', 1)])
def test_a_command_that_is_stopped_ends_with_a_line_however_it_hangs(what, presses, number, code,
                                                                     said):
    child = subprocess.Popen([sys.executable, '-c', WORKER, what], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline() == 'ready\n'
    for _ in range(presses):
        child.send_signal(number)
        setup.threading.Event().wait(0.3)
    out, error = child.communicate(timeout=LIMIT)
    assert (child.returncode, error) == (code, said)


@pytest.mark.parametrize('asked, given, flags', [
    ('1', '--xla_a=1 --xla_gpu_autotune_level=4', '--xla_a=1 --xla_gpu_autotune_level=4 {ours}'),
    ('true', '', '{ours}'), ('1', '{ours}', '{ours}'), ('0', '--xla_a=1', '--xla_a=1'),
    ('', '--xla_a=1', '--xla_a=1')])
def test_a_gpu_repeats_itself_where_that_is_asked_for(monkeypatch, asked, given, flags):
    ours = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
    monkeypatch.setenv('DOWNSCALE_DETERMINISTIC', asked)
    monkeypatch.setenv('XLA_FLAGS', given.format(ours=ours))
    setup.begin(console=False)
    assert setup.os.environ['XLA_FLAGS'] == flags.format(ours=ours)
    monkeypatch.setenv('DOWNSCALE_DETERMINISTIC', 'perhaps')
    with pytest.raises(ValueError, match='DOWNSCALE_DETERMINISTIC=perhaps must be 1 or 0'):
        setup.begin(console=False)


def test_xla_knows_the_flags_by_which_a_gpu_repeats_itself():
    """An unknown flag ends the process, and every later command with it."""
    code = 'from downscale.runtime import setup; setup.be_deterministic(); ' \
           'import jax; print(jax.numpy.ones(3).sum())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}, check=False)
    assert done.stdout == '3.0\n', done.stderr
