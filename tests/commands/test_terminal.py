"""What a person meets at a terminal: one screen of help, next steps, bars, links, colours."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from console_lines import ROOT
from terminal import COLOURS, shown

from downscale.commands import main, overview
from downscale.commands.study import verdicts
from downscale.output.text import linked

CONSOLE = [sys.executable, '-m', 'downscale.commands.main']
BARS = '''
from downscale.runtime.progress import progress_bars
with progress_bars() as bars:
    bars('scenes', 5, 5)
    bars('w64/text', 1, 3)
    bars.finished('w64/text')
    bars('gone', 1, 3)
    bars.remove('gone')
'''
ENDED = r' +\d+\.\d s  (\S+)'


# --- help -------------------------------------------------------------------------------------

def test_the_help_is_one_screen_with_every_command_once():
    lines = main.parser().format_help().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    named = [re.match(r'(.{13}) ([a-z-]+) +\S', line) for line in lines[4:]]
    assert [match[2] for match in named if match] == list(main.COMMANDS)
    titles = [match[1].strip() for match in named if match]
    assert [title for title in titles if title] == list(main.GROUPS)


def test_help_waits_for_no_library_that_only_a_command_needs():
    code = ('import sys; from downscale.commands import main; main.parser().format_help(); '
            'print(*sys.modules)')
    loaded = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                            check=True).stdout.split()
    assert 'downscale.commands.doctor' in loaded
    assert not {'subprocess', 'packaging', 'importlib.metadata', 'shtab', 'rich'} & set(loaded)


# --- no words at all --------------------------------------------------------------------------

def steps(folder, monkeypatch, capsys):
    """The commands that `downscale` alone proposes in a folder, each of them parsed."""
    monkeypatch.chdir(folder)
    assert main.main([]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err and len(lines) <= 10 and max(map(len, lines)) <= 100
    commands = [line.strip().split('  ')[0] for line in lines if line.startswith('  ')]
    for command in commands:
        words = command.split()[1:]
        assert words == ['--help'] or main.parser().parse_args(words).run
    return commands


def test_downscale_alone_proposes_a_first_study(monkeypatch, capsys, tmp_path):
    assert 'FILE.py' in steps(tmp_path, monkeypatch, capsys)[1]
    # As in a checkout in which no study was run yet.
    (tmp_path / 'experiments').symlink_to(ROOT / 'experiments')
    assert steps(tmp_path, monkeypatch, capsys)[:2] == ['downscale doctor', overview.EXAMPLE]


def test_downscale_alone_knows_the_newest_study(monkeypatch, capsys, tmp_path):
    for name, age in (('old', 50), ('new', 5), ('older', 500)):
        path = tmp_path / 'runs' / name / 'study.json'
        path.parent.mkdir(parents=True)
        path.write_text('{}')
        os.utime(path, (1e9 - age, 1e9 - age))
    assert steps(tmp_path, monkeypatch, capsys)[0] == 'downscale report runs/new'


def test_a_full_disk_is_told_to_one_who_typed_nothing_more():
    with open('/dev/full', 'w') as full:
        done = subprocess.run(CONSOLE, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False)
    assert done.returncode == 1 and 'No space left' in done.stderr


# --- bars, colours and links ------------------------------------------------------------------

def in_a_pipe(code, **env):
    """What a program prints into a pipe."""
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=True, env=os.environ | {'TERM': 'xterm'} | env).stdout


def test_a_bar_ends_in_a_line_with_the_time():
    text = shown([sys.executable, '-c', BARS], cwd=ROOT)
    assert '━' in text
    left = text.split('\x1b[2K')[-1]  # what was shown since a line was last cleared
    assert '━' not in left and 'scenes' not in left
    assert re.findall(rf'{ENDED}\r\n', text) == ['w64/text', 'scenes']


@pytest.mark.parametrize('env', [{}, {'FORCE_COLOR': '1'}, {'TTY_COMPATIBLE': '1'}])
def test_a_pipe_gets_those_lines_alone(env):
    lines = in_a_pipe(BARS, **env).splitlines()
    assert [re.fullmatch(ENDED, line)[1] for line in lines] == ['w64/text', 'scenes']


LONG = '''
from downscale.runtime import progress
progress.QUIET_SECONDS = -1
with progress.progress_bars(quiet=ASKED) as bars:
    bars.tasks = 2
    bars('w64/text', 1, 3000, 'loss 2.000')
    bars.finished('w64/text')
'''


def test_a_pipe_is_told_how_far_what_takes_long_has_got():
    lines = in_a_pipe(LONG.replace('ASKED', 'False')).splitlines()
    assert [line.lstrip(' .0123456789s') for line in lines] == [
        'w64/text: 1 of 3,000 loss 2.000', 'w64/text (1 of 2)']
    assert in_a_pipe(LONG.replace('ASKED', 'True')).count('\n') == 1


def test_a_study_ends_with_what_became_of_its_claims():
    claim = {'id': 'a', 'text': 'It hurts', 'verdict': 'supported', 'effect': .6016, 'low': .5104,
             'high': .6928}
    unknown = {'id': 'b', 'text': 'It heals', 'verdict': 'not interpretable', 'effect': None,
               'low': None, 'high': None}
    assert verdicts({'claims': [claim, unknown]}) == [
        'claim a: It hurts: supported, +0.60 [0.51, 0.69]', 'claim b: It heals: not interpretable']
    assert verdicts({}) == []


def test_quiet_bars_end_without_a_line():
    assert in_a_pipe(BARS.replace('bars()', 'bars(quiet=True)')).count('\n') == 1


def test_an_error_leaves_no_line_that_says_it_ended():
    failing = f'{BARS}    raise SystemExit(0)\n'
    assert 'scenes' not in in_a_pipe(failing)


def test_colours_are_for_terminals_that_want_them():
    assert COLOURS.search(shown([sys.executable, '-c', BARS], cwd=ROOT, NO_COLOR=''))
    assert not COLOURS.search(shown([sys.executable, '-c', BARS], cwd=ROOT, NO_COLOR='1'))
    assert '\x1b' not in shown([sys.executable, '-c', BARS], cwd=ROOT, TERM='dumb')


@pytest.mark.parametrize('words', [[], ['--help'], ['study', '--help'], ['doctor']])
def test_what_is_piped_has_no_colours(words):
    done = subprocess.run([*CONSOLE, *words], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=os.environ | {'TERM': 'xterm'})
    assert done.stdout and '\x1b' not in done.stdout + done.stderr


LINK = '''
from pathlib import Path
from downscale.output.text import linked
print('report:', linked(Path('runs/a b/report.html')))
'''


def test_a_terminal_gets_a_link_and_a_pipe_the_path(capsys):
    address = f'{ROOT.as_uri()}/runs/a%20b/report.html'
    link = shown([sys.executable, '-c', LINK], cwd=ROOT)
    assert link == (f'report: \x1b]8;;{address}\x1b\\runs/a b/report.html\x1b]8;;\x1b\\\r\n')
    plain = 'report: runs/a b/report.html'
    assert shown([sys.executable, '-c', LINK], cwd=ROOT, TERM='dumb') == plain + '\r\n'
    assert in_a_pipe(LINK, FORCE_COLOR='1') == plain + '\n'
    assert linked(Path('x')) == 'x'
