"""JobSets and objects of Kueue: what a cluster would refuse is refused here, without one."""
import copy
import re

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from roots import ROOT

from downscale.launch.backends import gke, kueue, mounting, validate
from downscale.launch.backends.gke import GkeOptions
from downscale.launch.spec import Spec
from downscale.planner.topologies import SHAPES, topology
from downscale.runtime import exits

IMAGE = f'europe-docker.pkg.dev/p/downscale/downscale@sha256:{"a" * 64}'
PLACES = [f'{name}:{shape}' for name in SHAPES for shape in SHAPES[name]
          if f'{name}:{shape}' not in ('v5p:1x1x1', 'tpu7x:1x1x1')]
KINDS = {'spot': GkeOptions(), 'flex-start': GkeOptions(spot=False, flex_start=True),
         'queued': GkeOptions(spot=False, queue='tpu', priority='high'),
         'reserved': GkeOptions(spot=False, reservation='mine', service_account='downscale'),
         'mounted': GkeOptions(mounts=('data=gs://bucket/some/prefix', 'models=gs://other'),
                               cache_gib=3, service_account='downscale')}
GOLDEN = ROOT / 'tests' / 'data' / 'jobset_v5e_4x4.yaml'


SEVERAL = [name for name in PLACES if topology(name).hosts > 1]  # GKE joins such slices


def spec_of(topology='v5e:4x4', **fields):
    return Spec(**{
        'sweep': 'extraction', 'cell': '0.6b-s0', 'part': 'train',
        'config': 'experiments/extraction_tuning.py', 'overrides': (), 'experiment': 'e' * 10,
        'tasks': ('0.6b-s0/align',), 'needs': (), 'steps': 9, 'topology': topology, 'image': IMAGE,
        'commit': 'c' * 40, 'run': 'gs://bucket/extraction', **fields})


def empties(value, path=''):
    """Paths of nulls, empty maps and empty lists."""
    if value is None or value in ({}, []):
        yield path
    parts = value.items() if isinstance(value, dict) else \
        enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from empties(part, f'{path}/{key}')


# --- schemas ----------------------------------------------------------------------------------

@pytest.mark.parametrize('options', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('place', [*PLACES, '2xv5e:16x16', '3xv6e:2x4'])
def test_every_slice_passes_both_schemas_and_its_job_the_strict_one(place, options):
    found = yaml.safe_load(gke.text(gke.manifest(spec_of(place), options)))
    assert not list(empties(found))
    assert validate.problems(found) == []
    job, = found['spec']['replicatedJobs']
    where = topology(place)
    assert job['replicas'] == where.slices
    inner = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'},
             **job['template']}
    kubernetes_validate.validate(inner, kubernetes_validate.latest_version(), strict=True)
    containers = job['template']['spec']['template']['spec']['containers']
    chips = sum(one['resources']['limits']['google.com/tpu'] for one in containers)
    assert chips * job['template']['spec']['completions'] * where.slices == where.chips


@pytest.mark.parametrize(('path', 'key', 'value'), [
    ('failurePolicy', 'maxRestart', 3), ('failurePolicy', 'maxRestarts', 'three'),
    ('failurePolicy rules 0', 'action', 'Retry'), ('replicatedJobs 0', 'replicas', 'two'),
    ('replicatedJobs 0 template spec', 'paralelism', 4),
    ('replicatedJobs 0 template spec template spec containers 0', 'image', None),
    ('replicatedJobs 0 template spec template spec', 'restartPolicys', 'Never')])
def test_a_typo_or_a_null_is_caught_in_both_versions(path, key, value):
    found = gke.manifest(spec_of(), GkeOptions())
    node = found['spec']
    for part in path.split():
        node = node[int(part) if part.isdigit() else part]
    node[key] = value
    said = validate.problems(found)
    assert all(any(name in line for line in said) for name in validate.JOBSETS), said


def test_what_only_the_webhook_would_refuse_is_caught_too():
    found = gke.manifest(spec_of(), GkeOptions())
    found['metadata']['name'] = 'x' * 60
    found['spec']['failurePolicy']['rules'][0]['name'] = 'not-this'
    found['metadata']['labels']['downscale.dev/cell'] = '-s0'
    assert [line.partition(' ')[0] for line in validate.problems(found)] == [
        f'{"x" * 60}-slice-0-3-abcde', "'not-this'", 'downscale.dev/cell:']
    found['metadata']['name'] = '0x'
    assert "'0x' is no DNS-1035 label" in validate.problems(found)


def test_queues_pass_and_typos_in_them_do_not():
    found = kueue.objects(kueue.default_places())
    for one in found:
        assert validate.problems(one) == [] and not [
            path for path in empties(one) if not path.endswith('namespaceSelector')]
    queue = copy.deepcopy(found[-2])
    queue['spec']['resourceGroups'][0]['flavors'][0]['resources'][0]['nominalQuota'] = 'many'
    assert 'nominalQuota' in validate.problems(queue)[0]
    assert validate.problems({**found[-1], 'spec': {'clusterQueues': 'tpu'}})
    assert validate.problems({**found[0], 'spec': {'nodeLabel': {}}})


def test_the_queues_of_the_repository_are_those_of_the_code():
    made = list(yaml.safe_load_all((ROOT / 'launch' / 'clusters' / 'kueue.yaml').read_text()))
    assert made == kueue.objects(kueue.default_places())
    quotas = made[-2]['spec']['resourceGroups'][0]['flavors']
    flavors = {one['metadata']['name']: one['spec'] for one in made if one['kind'] ==
               'ResourceFlavor'}
    assert [quota['name'] for quota in quotas] == list(flavors)
    for place in kueue.default_places():  # one slice of each is admitted, with what its pods ask
        spot = place.replace(':', '-') + '-spot'
        found = gke.manifest(spec_of(place), GkeOptions(queue='tpu'))
        job, = found['spec']['replicatedJobs']
        pod = job['template']['spec']['template']['spec']
        assert flavors[spot]['nodeLabels'] == pod['nodeSelector']
        tpus, memory = (one['nominalQuota'] for quota in quotas if quota['name'] == spot
                        for one in quota['resources'])
        asked = [one['resources'] for one in pod['containers']]
        count = job['template']['spec']['completions']
        assert sum(one['limits']['google.com/tpu'] for one in asked) * count <= tpus
        assert sum(int(one['requests']['memory'][:-2]) for one in asked) * count <= int(
            memory[:-2])


def test_pods_of_flex_start_go_to_its_machines_and_no_others_do():
    key = 'cloud.google.com/gke-flex-start'
    for name, options in KINDS.items():
        job, = gke.manifest(spec_of(), options)['spec']['replicatedJobs']
        pod = job['template']['spec']['template']['spec']
        assert (pod['nodeSelector'].get(key) == 'true') == (name == 'flex-start')
        assert (key in {one['key'] for one in pod['tolerations']}) == (name == 'flex-start')
        assert ('cloud.google.com/gke-spot' in pod['nodeSelector']) == options.spot


def test_training_on_machines_of_two_numa_nodes_is_a_container_for_each():
    def pod_of(topology, part):
        spec = spec_of(topology, part=part)
        job, = gke.manifest(spec, GkeOptions())['spec']['replicatedJobs']
        return job['template']['spec']
    job = pod_of('tpu7x:2x2x2', 'train')
    first, second = job['template']['spec']['containers']
    assert (first['name'], second['name']) == ('main', 'main-1')
    assert {**first, 'name': 'main-1'} == second
    assert first['resources'] == {'limits': {'google.com/tpu': 2}, 'requests': {'memory': '384Gi'}}
    # A code of either decides, and that of a preemption before one that is fatal.
    rules = [(rule['onExitCodes']['values'], rule['onExitCodes']['containerName'])
             for rule in job['podFailurePolicy']['rules'] if 'onExitCodes' in rule]
    assert rules == [([42], 'main'), ([42], 'main-1'), ([64], 'main'), ([64], 'main-1')]
    # What writes answers is one process, and no other machine has two halves.
    for place, part in (('tpu7x:2x2x1', 'write'), ('tpu7x:2x2x1', 'reason'),
                           ('v5p:2x2x2', 'train'), ('v6e:4x4', 'train')):
        container, = pod_of(place, part)['template']['spec']['containers']
        assert container['resources']['limits']['google.com/tpu'] == 4


# --- names ------------------------------------------------------------------------------------

NAMES = st.text('abcXYZ019-_. /é', min_size=1, max_size=90)


@settings(max_examples=200, deadline=None)
@given(NAMES, NAMES, st.sampled_from(SEVERAL), st.integers(1, 64), NAMES)
def test_names_and_labels_are_legal_whatever_a_study_is_called(sweep, cell, place, slices, other):
    spec = spec_of(f'{slices}x{place}', sweep=sweep, cell=cell)
    found = gke.manifest(spec, GkeOptions())
    assert gke.check_names(found) == []
    if other != cell:
        assert spec_of(f'{slices}x{place}', sweep=sweep, cell=other).name != spec.name


def test_a_thousand_cells_with_one_beginning_have_names_of_their_own():
    specs = [spec_of(cell=f'w32d2-s0-language{k}e-05', part=part) for k in range(1000, 2000)
             for part in ('train', 'write', 'reason')]
    assert len({spec.name for spec in specs}) == 3000
    assert max(len(spec.name) for spec in specs) <= 35


# --- endings ----------------------------------------------------------------------------------

def decided(message):
    """(action, rule) of the first failure rule that a Job's message meets, as JobSet finds it."""
    for rule in gke.failure_rules():
        if any(re.search(pattern, message) for pattern in rule['onJobFailureMessagePatterns']):
            return rule['action']
    return 'RestartJobSet'


@pytest.mark.parametrize('code', [1, 2, 42, 64, 69, 70, 130, 137, 142, 164, 242])
def test_a_job_set_does_what_the_table_of_exit_codes_says(code):
    said = (f'Container main for pod ns/a-42-64 failed with exit code {code} matching FailJob rule '
            'at index 1')
    expected = {'free': 'RestartJobSetAndIgnoreMaxRestarts', 'never': 'FailJobSet',
                'counted': 'RestartJobSet'}[exits.ending(code).restart]
    assert decided(said) == expected
    rules = gke.manifest(spec_of(), GkeOptions())['spec']['replicatedJobs'][0]['template'][
        'spec']['podFailurePolicy']['rules']
    named = [rule['onExitCodes']['values'] for rule in rules if 'onExitCodes' in rule]
    assert ([code] in named) == (exits.ending(code).restart in ('free', 'never'))


@pytest.mark.parametrize('slices', [2, 4])
def test_slices_are_jobs_of_one_set_that_fails_and_begins_again_as_a_whole(slices):
    one, several = (gke.manifest(spec_of(name), GkeOptions()) for name in (
        'v5e:4x4', f'{slices}xv5e:4x4'))
    (job,), (jobs,) = (found['spec']['replicatedJobs'] for found in (one, several))
    for found in (job, jobs):
        del found['template']['spec']['template']['metadata']  # has the hash of the spec
    assert jobs == job | {'replicas': slices}  # four pods each, a Job that fails with any of them
    assert several['spec']['failurePolicy'] == one['spec']['failurePolicy']
    # Rules without a target are for the Job of every slice, and restart the set.
    rules = several['spec']['failurePolicy']['rules']
    assert not any('targetReplicatedJobs' in rule for rule in rules)
    assert {rule['action'] for rule in rules} == {'RestartJobSetAndIgnoreMaxRestarts', 'FailJobSet'}
    assert several['metadata']['annotations'][
        'alpha.jobset.sigs.k8s.io/exclusive-topology'] == 'cloud.google.com/gke-nodepool'
    # What GKE's webhook gives to pods is not for a manifest to say.
    container, = jobs['template']['spec']['template']['spec']['containers']
    assert not [item for item in container['env'] if item['name'].startswith(('MEGA', 'TPU_W'))]


def test_an_eviction_is_free_and_a_crash_is_counted():
    assert decided('Pod ns/a-64 has condition DisruptionTarget matching FailJob rule at index 0') \
        == 'RestartJobSetAndIgnoreMaxRestarts'
    assert decided('Job has reached the specified backoff limit') == 'RestartJobSet'
    assert gke.manifest(spec_of(), GkeOptions())['spec']['failurePolicy']['maxRestarts'] == 3


# --- content ----------------------------------------------------------------------------------

def test_the_manifest_is_the_golden_one():
    found = gke.text(gke.manifest(spec_of(), KINDS['queued']))
    assert found == GOLDEN.read_text()


def test_pods_of_a_slice_stay_together_and_those_of_one_machine_need_not():
    key = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
    for place, several in (('v5e:2x2', False), ('v5e:2x4', True)):
        notes = gke.manifest(spec_of(place), GkeOptions())['metadata']['annotations']
        assert (key in notes) == several
        assert notes['downscale.dev/commit'] == 'c' * 40


def test_mounts_are_read_only_volumes_with_an_annotation_and_a_cache_for_records():
    template = gke.manifest(spec_of(), KINDS['mounted'])['spec']['replicatedJobs'][0]['template'][
        'spec']['template']
    notes = template['metadata']['annotations']
    assert notes['gke-gcsfuse/volumes'] == 'true'
    assert notes['gke-gcsfuse/ephemeral-storage-request'] == '8Gi'  # 5 of its own
    pod = template['spec']
    assert pod['serviceAccountName'] == 'downscale'
    data, models = (volume['csi'] for volume in pod['volumes'])
    assert data['readOnly'] and models['readOnly']
    options = data['volumeAttributes']['mountOptions'].split(',')
    assert data['volumeAttributes']['bucketName'] == 'bucket'
    assert {'only-dir:some/prefix', 'implicit-dirs', 'file-cache:max-size-mb:3072',
            'file-cache:cache-file-for-range-read:true', 'read_ahead_kb=1024'} <= set(options)
    # Weights are read once, and a whole bucket has no prefix.
    assert models['volumeAttributes']['bucketName'] == 'other'
    assert not re.search('cache:max-size|only-dir', models['volumeAttributes']['mountOptions'])
    main, = pod['containers']
    assert [(mount['name'], mount['mountPath'], mount['readOnly']) for mount in
            main['volumeMounts']] == [('data', '/downscale/data', True),
                                      ('models', '/downscale/models', True)]
    assert {'name': 'DOWNSCALE_MOUNTS',
            'value': 'data=gs://bucket/some/prefix models=gs://other'} in main['env']
    # The place in the image that paths count from.
    assert f'WORKDIR {mounting.WORKDIR}\n' in (ROOT / 'launch' / 'Dockerfile').read_text()


def test_mounts_without_a_service_account_are_refused():
    with pytest.raises(ValueError, match='give --service-account NAME'):
        gke.manifest(spec_of(), GkeOptions(mounts=('data=gs://bucket/x',)))


@pytest.mark.parametrize(('fields', 'message'), [
    ({'topology': 'cpu:2x1'}, 'which is this machine; use --backend local'),
    ({'topology': 'v5p:1x1x1'}, 'GKE has no machine of 1 v5p chip'),
    ({'topology': '2xv5e:2x2'}, 'slices of several machines only, and v5e:2x2 is one'),
    ({'image': 'name:latest'}, '--image must be a digest'), ({'image': None}, 'must be a digest'),
    ({'run': 'runs/x'}, 'pods share no disk; give --run gs://')])
def test_what_gke_cannot_run_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        gke.manifest(spec_of(**fields), GkeOptions())
