"""Groups of TPU machines through the real gcloud, against a Compute Engine of this process."""
import dataclasses
import shutil
import time
from functools import partial

import pytest

from downscale.launch import state, supervise
from downscale.launch.backends import gcloud, mig
from downscale.launch.spec import Spec
from downscale.launch.watch import Policy
from downscale.planner.topologies import SHAPES, topology
from downscale.runtime.files import write_json

ZONES = ('us-east5-a', 'us-central1-ai1a')
needs_gcloud = pytest.mark.skipif(
    not shutil.which('gcloud'), reason='NOT TESTED: gcloud is missing, so groups of machines are '
    'not')


def spec_of(folder, place='v6e:4x4', **fields):
    spec = Spec(sweep='My Sweep', cell='w64d2-s0', part='train', config='x.py', overrides=(),
                experiment='h', tasks=(), needs=(), steps=1, topology=place, image=None,
                commit='none', run=str(folder / 'run'))
    return dataclasses.replace(spec, **fields)


def options_of(folder, **fields):
    script = folder / 'startup.sh'
    script.write_text('#!/bin/bash\n')
    return mig.MigOptions(zones=ZONES, script=str(script), **fields)


def backend_of(folder, **fields):
    return mig.MigBackend(options_of(folder, **fields))


def finish(spec):
    write_json(state.folder_of(spec.run, spec) / 'DONE.json', {'spec': spec.hash})


def everything(compute):
    return [compute.names(kind) for kind in (
        'instanceTemplates', 'resourcePolicies', 'instanceGroupManagers')]


# --- without a cloud --------------------------------------------------------------------------

@pytest.mark.parametrize('name', [f'{generation}:{shape}' for generation in ('v5p', 'v6e', 'tpu7x')
                                  for shape in SHAPES[generation] if shape != '1x1x1'])
def test_every_slice_is_asked_for_as_it_is(tmp_path, name):
    place = topology(name)
    commands = mig.create_commands(spec_of(tmp_path, name), options_of(tmp_path), ZONES[0])
    chips = {place.machine.types[str(place.chips // place.hosts)]: place.chips // place.hosts}
    template, *policy, group = commands
    machine, = (word.partition('=')[2] for word in template if word.startswith('--machine-type='))
    assert chips[machine] * place.hosts == place.chips and f'--size={place.hosts}' in group
    assert f'--image-family={place.machine.image}' in template
    # A slice of several machines has a topology, and all of them at once.
    assert bool(policy) == (place.hosts > 1) == ('--target-size-policy-mode=bulk' in group)
    for argv in policy:
        assert {f'--accelerator-topology={place.shape}', '--region=us-east5'} <= set(argv)


@pytest.mark.parametrize(('capacity', 'flags', 'others'), [
    ('spot', {'--provisioning-model=SPOT', '--instance-termination-action=DELETE'},
     ('--max-run', '--reservation')),
    ('on-demand', {'--provisioning-model=STANDARD'},
     ('--max-run', '--reservation', '--instance-termination')),
    ('flex-start', {'--provisioning-model=FLEX_START', '--instance-termination-action=DELETE',
                    '--max-run-duration=12h', '--reservation-affinity=none'}, ('--reservation=',)),
    ('reserved', {'--provisioning-model=RESERVATION_BOUND', '--reservation=mine',
                  '--reservation-affinity=specific'}, ('--max-run',))])
def test_a_template_says_what_kind_of_machines(tmp_path, capacity, flags, others):
    options = options_of(tmp_path, capacity=capacity, max_run_duration='12h', internal_ips=True,
                         reservation='mine' if capacity == 'reserved' else None,
                         service_account='me@p.iam')
    argv = mig.template_command(spec_of(tmp_path), options, ZONES[0])
    assert flags | {'--maintenance-policy=TERMINATE', '--scopes=cloud-platform', '--no-address',
                    '--service-account=me@p.iam'} <= set(argv)
    assert not [word for word in argv if word.startswith(others)]
    # Only flex-start may be waited for by a machine alone.
    alone = mig.create_commands(spec_of(tmp_path, 'v6e:2x2'), options, ZONES[0])[-1]
    assert ('--target-size-policy-mode=bulk' in alone) == (capacity == 'flex-start')


@pytest.mark.parametrize(('name', 'message'), [
    ('v5e:4x4', 'v5e not by mig: use gke, or tpuvm .legacy. where you have quota'),
    ('2xv6e:4x4', 'is one slice; use --backend gke'), ('cpu:2x1', 'use --backend local'),
    ('v5p:1x1x1', 'no machine of 1 v5p chip'), ('v6e:3x3', 'known of v6e are v6e:1x1, v6e:2x2')])
def test_what_no_group_can_be_is_refused_in_one_line(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        mig.template_command(spec_of(tmp_path, name), options_of(tmp_path), ZONES[0])
    assert '\n' not in str(error.value) and len(str(error.value)) <= 300


@pytest.mark.parametrize(('text', 'expected'), [
    ('7d', 604800), ('1d12h', 129600), ('90m', 5400), ('10s', 10)])
def test_durations_are_those_of_gcloud(text, expected):
    assert mig.seconds(text) == expected


@pytest.mark.parametrize('text', ['', '7', 'd', '7 d', '7w', '-7d', '7d soon', '1.5h'])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match='is no duration; write 7d'):
        mig.seconds(text)


GROUP = {'name': 'g', 'targetSize': 2, 'creationTimestamp': '2026-11-01T00:00:00+00:00',
         'currentActions': {'none': 2}}


def machines(*statuses):
    return [{'name': f'g-{index}', 'status': status, 'lastStartTimestamp':
             f'2026-11-0{index + 2}T00:00:00+00:00'} for index, status in enumerate(statuses)]


@pytest.mark.parametrize(('statuses', 'actions', 'expected'), [
    (['RUNNING', 'RUNNING'], {'none': 2}, 'running'),
    (['RUNNING', 'STOPPING'], {'none': 2}, 'running'),  # its program is saving
    (['RUNNING', 'STAGING'], {'none': 1, 'creating': 1}, 'pending'),
    (['RUNNING', 'REPAIRING'], {'none': 2}, 'pending'),
    ([], {'creating': 2}, 'pending'), (['PENDING', 'PENDING'], {'creating': 2}, 'pending'),
    (['RUNNING', 'TERMINATED'], {'none': 2}, 'suspended'), (['RUNNING'], {'none': 2}, 'suspended'),
    ([], {}, 'suspended'), (['RUNNING', 'RUNNING'], {'deleting': 2}, 'deleting')])
def test_the_state_of_a_group_is_that_of_its_worst_machine(statuses, actions, expected):
    shown, since, _ = mig._state(GROUP | {'currentActions': actions}, machines(*statuses))
    assert shown == expected
    # A slice runs since its last machine does; what waits has its age from the request.
    assert since == ('2026-11-03T00:00:00+00:00' if shown == 'running' else
                     GROUP['creationTimestamp'])


# --- through gcloud ---------------------------------------------------------------------------

@pytest.mark.slow
@needs_gcloud
def test_submitting_twice_asks_once_and_cancelling_leaves_nothing(compute, tmp_path):
    backend, spec = backend_of(tmp_path, capacity='flex-start'), spec_of(tmp_path)
    step = partial(supervise.step, backend, [spec], Policy(max_parallel=1, zones=ZONES), [].append)
    step()
    step()
    assert compute.made() == [(spec.name, 'us-east5-a')]
    backend.create(spec, 'us-east5-a')  # as one that had not yet seen it would
    assert everything(compute) == [[spec.name]] * 3
    template = compute.template(spec.name)
    metadata = {item['key']: item['value'] for item in template['metadata']['items']}
    assert metadata['downscale-spec'] == str(state.folder_of(spec.run, spec) / 'spec.json')
    assert metadata['startup-script'] == '#!/bin/bash\n'
    assert gcloud.labels(spec).items() <= template['labels'].items()
    scheduling = template['scheduling']
    assert (scheduling['provisioningModel'], scheduling['maxRunDuration']) == (
        'FLEX_START', {'seconds': '604800'})
    template['labels']['downscale-spec'] = 'other'
    with pytest.raises(ValueError, match='is there for spec other'):
        backend.create(spec, 'us-east5-a')
    template['labels']['downscale-spec'] = spec.hash
    with pytest.raises(RuntimeError, match='is left over in us-east5-a'):
        backend.create(spec, ZONES[1])
    state.cancel(spec, time.time())
    step()
    assert everything(compute) == [[], [], []]
    backend.delete(spec.name, 'us-east5-a')  # gone is what was wanted


@needs_gcloud
def test_what_a_call_that_was_cut_short_has_left_is_found_and_deleted(compute, tmp_path):
    backend, spec = backend_of(tmp_path), spec_of(tmp_path)
    for argv in mig.create_commands(spec, backend.options, ZONES[1])[:2]:
        gcloud.call(argv)
    there, = backend.observe([spec])
    assert (there.name, there.zone, there.state) == (spec.name, ZONES[1], 'failed')
    finish(spec)  # what is left of a job that is done goes as well
    supervise.run(backend, [spec], Policy(max_parallel=1, zones=ZONES), [].append)
    assert everything(compute) == [[], [], []]


@needs_gcloud
def test_other_studies_of_the_project_are_left_alone(compute, tmp_path):
    spec = spec_of(tmp_path)
    other = dataclasses.replace(spec, run=str(tmp_path / 'other'))
    backend = backend_of(tmp_path)
    backend.create(other, ZONES[0])
    assert backend.observe([spec]) == [] and len(backend.observe([other])) == 1


@pytest.mark.slow
@needs_gcloud
def test_the_loop_moves_on_from_lost_machines_and_tells_why(compute, tmp_path):
    spec, said = spec_of(tmp_path, 'v6e:2x4'), []
    fates = iter(['refused', 'quota', 'lost', 'runs'])

    class Fated(mig.MigBackend):
        def create(self, spec, zone):
            fate = next(fates)
            compute.refuse = 'Quota A exceeded' if fate == 'refused' else None
            super().create(spec, zone)
            if fate == 'quota':
                compute.fail(spec.name, 'QUOTA_EXCEEDED', 'Quota B exceeded')
            else:
                compute.start(spec.name)
            if fate == 'lost':
                compute.lose(spec.name)
            if fate == 'runs':
                finish(spec)
    supervise.run(Fated(options_of(tmp_path)), [spec],
                  Policy(max_parallel=1, base=0.1, zones=ZONES, grace=0), said.append)
    assert everything(compute) == [[], [], []]
    told = [line.partition(': ')[2] for line in said if 'again at' not in line]
    # A refused group leaves its template, which is deleted before the next try.
    assert told[0] == 'started in us-east5-a' and 'Quota A exceeded' in told[1]
    assert told[2] == 'failed: there is a template without its group'
    assert told[3:] == [
        'started in us-central1-ai1a', 'failed: QUOTA_EXCEEDED: Quota B exceeded',
        'started in us-east5-a', 'suspended: 1 of its 2 machines are gone',
        'started in us-central1-ai1a', 'done']


@needs_gcloud
@pytest.mark.parametrize('place', ['v6e:2x4', 'v6e:2x2'])
def test_a_group_that_waits_for_machines_goes_on_waiting_until_its_time_is_over(
        compute, tmp_path, place):
    spec = spec_of(tmp_path, place)
    backend = backend_of(tmp_path, valid_for='6h')
    backend.create(spec, ZONES[0])
    compute.fail(spec.name, 'ZONE_RESOURCE_POOL_EXHAUSTED', 'no v6e here')
    there, = backend.observe([spec])
    assert (there.state, there.message) == (
        'pending', 'ZONE_RESOURCE_POOL_EXHAUSTED: no v6e here')
    compute.group(spec.name)['creationTimestamp'] = '2026-01-01T00:00:00+00:00'
    there, = backend.observe([spec])
    assert there.state == 'failed' and there.message == (
        'no machines in 6h ZONE_RESOURCE_POOL_EXHAUSTED: no v6e here')
    compute.start(spec.name)
    there, = backend.observe([spec])
    # It began when its machines did, not when they were asked for.
    assert there.state == 'running' and time.time() - there.since < 300


@needs_gcloud
def test_a_gcloud_that_is_too_old_says_so_in_one_line(compute, tmp_path, monkeypatch):
    folder = tmp_path / 'old'
    folder.mkdir()
    (folder / 'gcloud').write_text('#!/bin/bash\necho "ERROR: (gcloud.compute) unrecognized '
                                   'arguments: --target-size-policy-mode=bulk" >&2\nexit 2\n')
    (folder / 'gcloud').chmod(0o755)
    monkeypatch.setenv('PATH', str(folder), prepend=':')
    with pytest.raises(ValueError, match='too old for --backend mig: gcloud components update'):
        backend_of(tmp_path).create(spec_of(tmp_path), ZONES[0])
