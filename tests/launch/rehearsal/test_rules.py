"""What a cluster decides by itself, of manifests as they are and with something wrong."""
import argparse
import copy

import pytest
import yaml
from roots import ROOT

from downscale.experiment import file
from downscale.launch import state
from downscale.launch.backends import gke
from downscale.launch.backends.gke import GkeOptions
from downscale.launch.rehearsal import findings, rehearse, rules, twin
from downscale.launch.rehearsal.findings import Judge
from downscale.launch.rehearsal.injections import parse
from downscale.launch.rehearsal.rules import PodEnd
from downscale.launch.spec import Spec

IMAGE = f'europe-docker.pkg.dev/p/downscale/downscale@sha256:{"a" * 64}'


def queues():
    kept = {'localqueues': {}, 'clusterqueues': {}, 'resourceflavors': {}}
    for made in yaml.safe_load_all((ROOT / 'launch' / 'clusters' / 'kueue.yaml').read_text()):
        kept[f'{made["kind"].lower()}s'][made['metadata']['name']] = made
    return kept


def manifest(place='v5e:4x4', **options):
    spec = Spec(sweep='extraction', cell='0.6b-s0', part='train', overrides=(), needs=(), steps=9,
                config='experiments/extraction_tuning.py', experiment='e' * 10,
                tasks=('0.6b-s0/align',), topology=place, image=IMAGE, commit='c' * 40,
                run='gs://bucket/extraction')
    return copy.deepcopy(gke.manifest(spec, GkeOptions(**options)))


def node(found, path):
    for part in path.split():
        found = found[int(part) if part.isdigit() else part]
    return found


POD = 'spec replicatedJobs 0 template spec template spec'
RULES = 'spec replicatedJobs 0 template spec podFailurePolicy rules'


@pytest.mark.parametrize('place', ['v5e:2x2', 'v5e:4x4', '2xv5e:16x16', 'v6e:2x4', 'v5p:2x2x2'])
@pytest.mark.parametrize('spot', [True, False])
def test_what_is_submitted_is_accepted_has_nodes_and_does_what_the_table_says(place, spot):
    found = manifest(place, spot=spot)
    assert rules.refusals(found) == [] and findings.drill(found) == []
    assert rules.unschedulable(found, {IMAGE}) is None


def test_kueue_admits_one_slice_and_lets_the_next_wait():
    found = manifest(queue='tpu')
    flavor, why = rules.admit(found, queues(), {})
    assert (flavor, why) == ('v5e-4x4-spot', '')
    used = {flavor: rules.demand(found)}
    assert used[flavor]['google.com/tpu'] == 16
    assert rules.admit(found, queues(), used) == (
        None, 'insufficient quota for google.com/tpu in flavor v5e-4x4-spot')
    assert rules.admit(manifest(queue='tpu', spot=False), queues(), used)[0] == 'v5e-4x4'
    assert 'LocalQueue other does not exist' in rules.admit(manifest(queue='other'), queues(), {})


@pytest.mark.parametrize(('path', 'value', 'message'), [
    (f'{POD} restartPolicy', 'OnFailure', 'only Never goes with'),
    (f'{POD} containers 0 volumeMounts', [{'name': 'data', 'mountPath': '/data'}], "no volume 'd"),
    (f'{RULES} 1 onExitCodes containerName', 'mian', "no container 'mian'"),
    (f'{RULES} 1 onExitCodes values', [0], '0 is no exit code'),
    ('spec failurePolicy rules 0 onJobFailureMessagePatterns', ['.*('], 'no regular expression')])
def test_what_the_schema_lets_pass_and_a_webhook_refuses(path, value, message):
    found = manifest()
    parent, _, key = path.rpartition(' ')
    node(found, parent)[key] = value
    assert message in rules.refusals(found)[0]


@pytest.mark.parametrize(('end', 'action'), [
    (PodEnd('p', 143, evicted=True), rules.FREE), (PodEnd('p', 42), rules.FREE),
    (PodEnd('p', 137), rules.COUNTED), (PodEnd('p', 64), rules.FAIL)])
def test_an_end_of_a_pod_leads_to_what_the_rules_say(end, action):
    found = manifest()
    assert rules.action_of(found, *rules.job_failure(found, end)) == action
    del found['spec']['failurePolicy']
    assert rules.action_of(found, *rules.job_failure(found, end)) == rules.FAIL


@pytest.mark.parametrize('change', ['no eviction', 'other code', 'no rules', 'no restarts'])
def test_a_policy_that_is_not_the_table_is_found_without_a_pod(change):
    found = manifest()
    if change == 'no eviction':
        del node(found, RULES)[0]
    elif change == 'other code':
        node(found, RULES)[1]['onExitCodes']['values'] = [43]
    elif change == 'no rules':
        del found['spec']['failurePolicy']['rules']
    else:
        found['spec']['failurePolicy']['maxRestarts'] = 0
    assert findings.drill(found)


def test_quantities_are_read_and_what_is_none_is_refused():
    assert [rules.quantity(text) for text in (4, '1Gi', '500M', '1.5')] == [4, 2 ** 30, 5e8, 1.5]
    with pytest.raises(ValueError, match="'4x' is no quantity"):
        rules.quantity('4x')


def test_injections_are_read_by_name():
    assert parse('evict:2,sigkill:1,quota') == ('evict', 'evict', 'sigkill', 'quota')
    for text, message in (('evct', "'evct'.*evict"), ('evict:0', 'from 1 to 999'),
                          ('evict:', 'from 1 to 999')):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_a_twin_may_differ_in_sizes_and_steps_only():
    sizes = ['name', 'stages.align.steps', 'language.D', 'vision.W', 'stages.x.batch',
             'evaluation.scenes', 'stages.text.buckets.0.batch']
    assert twin.beyond_size(sizes) == []
    other = ['stages.align.rates.connector', 'chat', 'optimizer.b2', 'stages.align.stepsize']
    assert twin.beyond_size(other) == other


def test_pods_that_stand_still_end_a_rehearsal_with_their_names():
    clock = [0.]
    moved = state.Stamps(lambda: clock[0])
    judge = Judge({})

    def look(step, name='running'):
        rehearse.note_still([state.Job(key='w/train', name='x', state=name, step=step)], moved,
                            judge)
    look(1)
    clock[0] = rehearse.STILL_SECONDS + 1.
    look(2)   # it got on
    clock[0] += rehearse.STILL_SECONDS
    look(2)
    assert not judge.findings
    clock[0] += 1
    with pytest.raises(rehearse.Halted):
        look(2)
    assert judge.findings == ['w/train: runs, and no job has got on for 15 minutes']
    # What waits for machines does not run.
    clock[0] += 10 * rehearse.STILL_SECONDS
    look(2, 'missing')


def test_a_twin_has_as_many_forks_as_its_study(tmp_path):
    study = tmp_path / 'forked.py'
    study.write_text((ROOT / 'tests/data/three_sizes.py').read_text().replace(
        'align=dict(steps=15,', 'align=dict(steps=1500, forks=(200, 500, 1000), decay=0.5,'))
    args = argparse.Namespace(config=str(study), set=[], topology=None, folder=None)
    cells, tiny = (file.open_cells(str(study), overrides)[1]
                   for overrides in ([], twin.arguments(args).set))
    assert len(cells) == len(tiny) == 1 + 3 * 4
    assert [len(cell.stage('align').forks) for cell in tiny if cell.name.endswith('s0')
            and not cell.is_shared] == [3] * 3
    assert twin.beyond_size(twin.of_cells(cells, tiny)) == []
    args.set = ['stages.align.forks=(100, 200, 300, 400, 500)']
    with pytest.raises(ValueError, match='stage align has 5 forks, and a rehearsal takes 6 steps'):
        twin.arguments(args)
