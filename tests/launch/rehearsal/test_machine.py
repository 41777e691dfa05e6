"""A machine runs its start-up script with what its request carried, and reaches no further."""
import sys

import pytest
from waiting import wait_until

from downscale.launch.rehearsal.machines import machine
from downscale.launch.rehearsal.machines.request import MachineRequest
from downscale.launch.rehearsal.machines.shims import Surroundings

IMAGE = 'registry/image@sha256:1'
CURL = ("curl --silent --fail --header 'Metadata-Flavor: Google' "
        'http://metadata.google.internal/computeMetadata/v1/instance/attributes/')
RUN = f'docker run --rm --privileged --network=host --entrypoint=python3 {IMAGE}'


@pytest.fixture
def boot(tmp_path, monkeypatch):
    """A function that boots a machine with a script; all are killed in the end."""
    monkeypatch.setenv('SECRET', 'of this process')
    (tmp_path / 'sets').mkdir()
    (tmp_path / 'sets' / 'one.txt').write_text('one')
    linked = machine.programs(tmp_path / 'programs')
    machines = []

    def start(*lines, installed=('docker', 'gcloud'), authorised=True, **metadata):
        request = MachineRequest(
            name='m', slices=1, hosts=1, chips=4, installed=installed, authorised=authorised,
            metadata={**metadata, machine.SCRIPT: '\n'.join(lines)})
        name = f'm{len(machines)}'
        machines.append(machine.VirtualMachine(name, request, 0, tmp_path / 'roots' / name,
                                               tmp_path / 'logs' / f'{name}.log'))
        machines[-1].start(Surroundings(
            metadata=request.metadata, images=[IMAGE], folder='/image', copied={},
            entrypoint=['python3', '-c', 'print("by itself")'], places=['gs://b/sets'],
            given={'GIVEN': 'yes'}, chips={'CHIPS': '4'}, authorised=authorised, alone=True,
            here=str(tmp_path)), linked)
        return machines[-1]
    yield start
    for booted in machines:
        booted.kill()


def ended(booted):
    wait_until(booted.poll)
    return booted.poll().code, booted.log.read_text()


def test_a_script_has_its_metadata_and_nothing_of_this_process(boot):
    code, text = ended(boot(f'{CURL}word; echo', f'{CURL}other || echo none', 'env', 'exit 7',
                            word='carried'))
    assert code == 7 and text.startswith('carried\nnone\n')
    assert 'SECRET' not in text and 'error' not in text


@pytest.mark.parametrize('program', ['kubectl', 'sudo', 'wget', 'shutdown', 'gcsfuse'])
def test_what_leads_out_of_a_machine_is_not_on_it(boot, program):
    assert ended(boot(f'{program} --version'))[0] == 127


def test_folders_of_the_system_are_those_of_its_root(boot):
    booted = boot('echo mine > /etc/apt/sources.list.d/mine.list', 'place=${X:-/mnt}/place',
                  'mkdir "$place"', 'cat /etc/hostname', 'cat </dev/null && /usr/bin/env true')
    code, text = ended(booted)
    assert code == 0 and 'No such file' in text  # the hostname of this machine is not its own
    assert (booted.root / 'etc/apt/sources.list.d/mine.list').read_text() == 'mine\n'
    assert (booted.root / 'mnt' / 'place').is_dir()


def test_programs_come_from_where_they_are_to_be_had(boot):
    wanted = 'snap install google-cloud-cli --classic && apt-get -qq install -y docker.io'
    source = 'echo deb > /etc/apt/sources.list.d/gcsfuse.list'
    install = 'apt-get install --yes gcsfuse'
    code, text = ended(boot('command -v docker gcloud gcsfuse || echo nothing', wanted, install,
                            source, f'{install} && command -v docker gcloud gcsfuse',
                            installed=()))
    assert code == 0 and text.startswith('nothing\nE: Unable to locate package gcsfuse\n')
    assert [line.rpartition('/')[2] for line in text.splitlines()[-3:]] == [
        'docker', 'gcloud', 'gcsfuse']
    assert ended(boot('apt-get install --yes nginx'))[0] == 100


def in_container(*words):
    return f'gcloud auth configure-docker --quiet registry; {RUN} {" ".join(words)}'


def test_a_container_has_what_docker_was_told(boot):
    show = "-c 'import os; print(os.getcwd()); print(sorted(os.environ.items()))'"
    code, text = ended(boot('export OWN=1 OTHER=2', in_container(show).replace(
        '--rm', '--rm --env=OWN --env=NEW=3 --env=MISSING')))
    assert code == 0 and text.splitlines()[0].endswith('/image')
    for pair in ("('GIVEN', 'yes')", "('CHIPS', '4')", "('OWN', '1')", "('NEW', '3')"):
        assert pair in text
    assert 'OTHER' not in text and 'MISSING' not in text and 'SECRET' not in text
    assert 'CHIPS' not in ended(boot(in_container(show).replace('--privileged', '')))[1]
    assert ended(boot(in_container().replace('--entrypoint=python3', '')))[1] == 'by itself\n'


@pytest.mark.parametrize(('script', 'code', 'message'), [
    (in_container().replace(IMAGE, 'other'), 125, 'there is no image other'),
    (RUN, 125, 'nobody has logged in to registry'),
    (in_container().replace('--rm', '--gpus=all'), 125, 'unrecognized arguments: --gpus=all'),
    (in_container().replace('--rm', '--volume=here:there'), 125, 'invalid volume here:there'),
    (in_container().replace('=python3', '=nothing'), 127, 'exec nothing: No such file'),
    ('docker build .', 1, 'nothing that a rehearsal does'),
    ('gcloud compute instances list', 2, 'nothing that a rehearsal does'),
    (CURL.replace('Google', 'Other'), 22, 'wants the header'),
    ('curl --insecure x', 2, 'unrecognized arguments: --insecure'),
    ('snap install something', 1, 'nothing that a rehearsal does')])
def test_what_is_unknown_or_wrong_is_refused(boot, script, code, message):
    refused, text = ended(boot(script.replace('attributes/', 'attributes/word')))
    assert refused == code and f'error: {text.splitlines()[0]}' in text and message in text


def test_without_scopes_it_reads_no_image_and_no_bucket(boot):
    for script in (in_container(), 'touch x; gcloud storage cp x gs://b/x'):
        assert 'the scopes of this machine hold no access' in ended(
            boot(script, authorised=False))[1]


MOUNT = ('echo deb > /etc/apt/sources.list.d/gcsfuse.list; apt-get install gcsfuse; '
         'mkdir -p "$PWD/mnt/sets"; gcsfuse -o ro --only-dir=sets b "$PWD/mnt/sets"')


def test_a_mount_is_the_folder_of_its_name_in_machine_and_container(boot):
    code, text = ended(boot(
        'mountpoint --quiet "$PWD/mnt/sets" || echo empty', MOUNT, 'cat mnt/sets/one.txt; echo',
        'mountpoint --fs-devno "$PWD/mnt/sets"', 'export FROM=sets=gs://b/sets/x', in_container(
            "-c 'import os; print(open(\"sets/one.txt\").read(), os.environ[\"FROM\"])'").replace(
            '--rm', '--volume="$PWD/mnt/sets":/image/sets:ro --env=FROM')))
    lines = text.splitlines()
    assert code == 0 and lines[:3] == ['empty', 'one', '0:77']
    # Whoever reads past the mount finds the same files, and no bucket.
    assert lines[3].startswith('one sets=/') and lines[3].endswith('/image/sets/x')
    assert 'none of gs://b/sets' in ended(boot(MOUNT.replace('=sets b', '=other b')))[1]


def test_a_signal_reaches_the_script_alone_and_time_ends_all(boot):
    wait = 'touch began; while true; do sleep 0.05; done'
    saves = boot('trap "exit 42" TERM', wait)
    deaf = boot('trap "" TERM', wait)
    for booted in (saves, deaf):
        wait_until((booted.root / 'began').exists)
        assert booted.status == 'RUNNING'
    saves.take(60)
    assert ended(saves)[0] == 42 and saves.poll().evicted and saves.status == 'TERMINATED'
    assert not saves.killed
    deaf.take(0.2)
    assert deaf.status == 'STOPPING'
    assert ended(deaf)[0] == 137 and deaf.killed


def test_a_machine_that_is_deleted_knows_that_its_script_still_ran(boot):
    runs = boot('touch began; sleep 1000')
    over = boot('exit 0')
    wait_until((runs.root / 'began').exists)
    ended(over)
    for booted in (runs, over):
        booted.dismiss(60)
        ended(booted)
        booted.dismiss(60)  # as in each round in which others of its group have not ended
    assert runs.dismissed and not over.dismissed and runs.poll().code == 143


def test_the_program_alone_can_be_killed(boot):
    booted = boot(in_container("-c 'open(\"began\", \"w\"); import time; time.sleep(1000)'"),
                  'echo "ended: $?"', 'exit 9')
    assert not boot('sleep 1000').kill_program()
    wait_until(lambda: any(booted.root.glob('containers/*/image/began')))
    assert booted.kill_program()
    code, text = ended(booted)
    assert code == 9 and 'ended: 137' in text
    assert booted.status == 'RUNNING'  # the machine stays, as a real one does


def test_a_container_s_python_is_this_one(boot):
    assert ended(boot(in_container("-c 'import sys; print(sys.executable)'")))[1].strip() == \
        sys.executable
