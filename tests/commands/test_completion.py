"""Completion in the shells themselves: what a person types, and what the tab key makes of it."""
import os
import shutil
import subprocess
import sys

import pytest
from roots import ROOT
from terminal import opened

from downscale.commands import completion, main

shtab = pytest.importorskip('shtab', reason='NOT TESTED: shtab is missing')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a program `downscale`, a file, and what each shell is given."""
    folder = tmp_path_factory.mktemp('completion')
    (folder / 'study_file.py').write_text('')
    (folder / 'study_folder').mkdir()
    for shell in completion.SHELLS:
        done = subprocess.run(
            [sys.executable, '-m', 'downscale.commands.main', 'completion', shell], cwd=ROOT,
            capture_output=True, text=True, check=True)
        (folder / shell).mkdir()
        (folder / shell / '_downscale').write_text(done.stdout)
    return folder


def needed(shell):
    """The path of a shell; a test that needs one that is missing is left out."""
    return shutil.which(shell) or pytest.skip(f'NOT TESTED: {shell} is missing')


CASES = [
    ('extr', {'extract-think'}),
    ('', set(main.COMMANDS)),
    ('analyze dr', {'drop'}),
    ('--debug launch st', {'status'}),
    ('study --tracker ', {'tensorboard', 'wandb', 'none'}),
    ('study study_file.py --tr', {'--tracker'}),
    ('data build x --most', {'--most-rejected'}),
    ('study study_f', {'study_file.py', 'study_folder'}),
    ('study x --out study_f', {'study_folder'}),
    ('analyze isoflop --b', {'--budget'})]
BASH = '''
source bash/_downscale
read -ra typed <<< "$1"
[[ $1 == *' ' || -z $1 ]] && typed+=('')
COMP_WORDS=(downscale "${typed[@]}") COMP_CWORD=${#typed[@]}
[[ $(complete -p downscale) =~ -F\\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" downscale "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
'''
FISH = 'source fish/_downscale; complete -C "downscale $argv[1]"'


def words_of(folder, *argv):
    """The first words of the lines that a program prints."""
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.stderr
    return {line.split('\t')[0].strip().rstrip('/') for line in done.stdout.splitlines()}


@pytest.mark.parametrize('typed, wanted', CASES)
def test_bash_offers_what_may_come_next(folder, typed, wanted):
    assert words_of(folder, needed('bash'), '-c', BASH, 'bash', typed) - {''} == wanted


@pytest.mark.parametrize('typed, wanted', CASES)
def test_fish_offers_what_may_come_next(folder, typed, wanted):
    assert wanted <= words_of(folder, needed('fish'), '-N', '-c', FISH, '--', typed)


@pytest.mark.parametrize('shell, options, ready', [
    ('bash', ('--norc', '--noprofile'), 'source bash/_downscale'),
    ('zsh', ('-f',), 'fpath=(zsh $fpath); autoload -Uz compinit; compinit -u -D')])
def test_the_tab_key_completes_a_command_an_option_and_a_file(folder, shell, options, ready):
    env = {'PATH': f'{folder}:{os.environ["PATH"]}', 'PS1': '', 'HOME': str(folder)}
    with opened([needed(shell), *options, '-i'], cwd=folder, **env) as terminal:
        terminal.type(f'{ready}; echo re""ady\r')
        terminal.read('ready\r\n')
        for typed, completed in (('downscale stu\t', 'downscale study '),
                                 ('--tog\t', '--together '), ('2 study_fi\t', '2 study_file.py')):
            terminal.type(typed)
            terminal.read(completed)


def test_every_argument_that_is_a_path_completes_paths():
    """All that reads a file or a folder is told by its type or stands in `FILES`."""
    parsers = [main.parser()]
    completion._mark_paths(parsers[0], shtab)
    while parsers:
        parser = parsers.pop()
        parsers += parser.verbs().choices.values() if parser.verbs() else []
        for action in parser._actions:
            words = (action.metavar or '', *action.option_strings)
            if {'FILE', 'DIR', '--out', '--to'} & set(words):
                assert hasattr(action, 'complete'), f'{parser.prog} {words}'


def test_without_the_library_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert main.main(['completion', 'bash']) == 1
    assert capsys.readouterr().err == "error: no shtab; pip install 'downscale[completion]'\n"
