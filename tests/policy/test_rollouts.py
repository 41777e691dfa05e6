"""Rollouts: what is written, what it is worth, and a run that is stopped anywhere and goes on."""
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from roots import ROOT

from downscale.data.pipeline import Share
from downscale.evaluate import decoupled
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.policy import descriptions, reward, rollouts, slopes
from downscale.policy import training as policy_training
from downscale.sharding import mesh
from downscale.stages import training
from downscale.stages.folders import folder_of
from downscale.stages.inputs import encoder_of, prepare
from downscale.stages.loading import load
from downscale.train import checkpoint

PERCEIVE = dict(batch=64, length=40, tiles=1, parents={}, trainable=('language',),
                rates=dict(language=1e-2), warmup=0.0, save_every=2, steps=6,
                policy=dict(group=16, write=1, kl=0.0, reasoners=('reason',)))

HASH = '4661560b6481'  # of `cell_of()`, from before there were scrambled rewards
LEARNS = dict(steps=50, save_every=50, batch=128, rates=dict(language=5e-3))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """On one device: there it is quicker, and the same (`test_more_devices_...`)."""
    monkeypatch.setattr(rollouts, 'own_mesh', lambda: None)
    monkeypatch.setattr(training, 'grid_of', lambda _: mesh(devices=jax.devices()[:1]))


def cell_of(**changes):
    """A cell that begins with 'perceive', from random values; nothing else is trained."""
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), (
        'data.similarity_share=0.0', 'data.train=64', 'data.validation=1', 'data.test=1'))
    with study_config.unlocked():
        del study_config['platform']
        study_config.parametrisation = {}  # whose start is loud: it would write one word
        policy = PERCEIVE['policy'] | changes.pop('policy', {})
        reason = study_config.stages['reason'].to_dict()
        study_config.stages = {'reason': reason | {'parents': {}},
                               'perceive': PERCEIVE | changes | {'policy': policy}}
    cell, = cells_of(study_config, [{'size': 'w32d2', 'seed': 0}])
    return cell


class Planted:
    """A reasoner that is right where the first word is odd for two things, and even for one."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.right = []
        self.wanted = []

    @property
    def constant(self):
        """How often the better of the two constant policies is right."""
        share = np.mean(self.wanted)
        return max(share, 1 - share)

    def solved(self, items, texts, policy):
        del policy
        wanted = [' and ' in item.question.extraction.information for item in items]
        self.wanted += wanted
        ids = [(self.encoder.ids(text) or [0])[0] for text in texts]
        right = np.array([i % 2 == c for i, c in zip(ids, wanted)], float)
        self.right.append(right.mean())
        return right


def run(folder, cell, reasoner, monkeypatch):
    """Train the stage with one planted reasoner."""
    prepare(folder, cell)
    monkeypatch.setattr(policy_training, 'open_reasoners', lambda *_: [reasoner])
    # The extraction of a scene never holds such words.
    monkeypatch.setattr(decoupled, 'hands_over', lambda item, text: False)
    policy_training.train_stage(folder, cell, 'perceive', tracker='none')
    return folder_of(folder, cell, 'perceive')


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
def test_the_right_policy_of_a_planted_world_is_found(tmp_path, monkeypatch):
    cell = cell_of(**LEARNS)
    prepare(tmp_path, cell)
    planted = Planted(encoder_of(tmp_path, cell, 'perceive'))
    folder = run(tmp_path, cell, planted, monkeypatch)
    assert planted.right[0] < .8 and planted.constant < .9
    assert np.mean(planted.right[-5:]) >= .95  # the best is 1
    assert rows_of(folder)[-1]['accuracy'] == pytest.approx(planted.right[-1])


@pytest.mark.parametrize('method', ['rejection', 'dpo'])
def test_other_methods_learn_in_the_same_loop(tmp_path, monkeypatch, method):
    cell = cell_of(steps=3, policy=dict(method=method, kl=.5))
    prepare(tmp_path, cell)
    folder = run(tmp_path, cell, Planted(encoder_of(tmp_path, cell, 'perceive')), monkeypatch)
    rows = rows_of(folder)
    assert all(row['grad_norm'] > 0 for row in rows)
    assert rows[0]['kl'] == pytest.approx(0, abs=1e-9) and rows[-1]['kl'] > 0
    assert rows[0]['loss'] == pytest.approx(np.log(2)) if method == 'dpo' else rows[0]['loss'] > 1


def test_a_teacher_is_learnt_from_on_what_the_student_writes(tmp_path, monkeypatch):
    taught = cell_of(steps=4, rates=dict(language=3e-2))
    prepare(tmp_path / 'a', taught)
    reasoner = Planted(encoder_of(tmp_path / 'a', taught, 'perceive'))
    teacher = run(tmp_path / 'a', taught, reasoner, monkeypatch)
    cell = cell_of(steps=12, teacher=str(teacher), policy=dict(method='distil', write=4))
    prepare(tmp_path / 'b', cell)
    policy_training.train_stage(tmp_path / 'b', cell, 'perceive', tracker='none')
    rows = rows_of(folder_of(tmp_path / 'b', cell, 'perceive'))
    assert np.mean([row['kl'] for row in rows[-3:]]) < rows[0]['kl'] / 2
    assert all('reward' not in row and row['loss'] == row['kl'] for row in rows)
    assert json.loads((folder_of(tmp_path / 'b', cell, 'perceive') / 'teacher.json').read_text())[
        'divergence'] == 'reverse'


@pytest.mark.parametrize(('changes', 'line'), [
    (dict(policy=dict(method='distil')), 'learns from a `teacher`'),
    (dict(teacher='reason'), 'learns from a `teacher`'),
    (dict(batch=40), r'whole number of groups of 16 \(40 % 16 = 8\)'),
    (dict(steps=7, policy=dict(updates=2)), 'steps 7 must be a multiple of policy.updates 2'),
    (dict(policy=dict(reasoners=('w64d4/reasn',))), None),
    (dict(policy=dict(reasoners=('w64d4/reason',))), "'w64d4-s0/reason'.*w32d2-s0/reason"),
    (dict(policy=dict(methd='grpo')), "methd.*method"),
    (dict(policy=dict(method='dpo', kl=0.0)), 'beta'),
    (dict(policy=dict(clip=(1.5, .2))), 'policy.clip'),
    (dict(mixture='data/built/a'), 'writes its rows itself'),
    (dict(policy=dict(scrambled=True, group=64)), 'batch of 64 rows is one group of 64; raise'),
    (dict(teacher='reason', policy=dict(scrambled=True, method='distil')),
     "mixes up rewards, and 'distil' has none")])
def test_what_cannot_be_is_refused_by_name(changes, line):
    if line is None:  # a folder, which need not be there yet
        assert cell_of(**changes)
        return
    with pytest.raises(ValueError, match=line) as caught:
        cell_of(**changes)
    assert len(str(caught.value)) <= 300 and '\n' not in str(caught.value)


@pytest.mark.slow
def test_a_scrambled_reward_teaches_nothing(tmp_path, monkeypatch):
    cell = cell_of(**LEARNS, policy=dict(scrambled=True))
    prepare(tmp_path, cell)
    planted = Planted(encoder_of(tmp_path, cell, 'perceive'))
    folder = run(tmp_path, cell, planted, monkeypatch)
    assert np.mean(planted.right[-5:]) < .6
    rows = rows_of(folder)
    assert [row['accuracy'] for row in rows] == pytest.approx(planted.right)  # the true one
    assert all(row['grad_norm'] > 0 for row in rows)  # and yet something was learnt


@pytest.mark.parametrize('method', ['grpo', 'rejection', 'dpo'])
def test_a_scrambled_group_is_paid_what_the_next_of_its_batch_earned(tmp_path, monkeypatch, method):
    cell = cell_of(steps=4, batch=16, save_every=2, policy=dict(
        method=method, scrambled=True, group=4, tries=3, updates=2, length_price=.1, kl=.1))
    prepare(tmp_path, cell)
    batches = []
    real = rollouts.Rollouts._note
    monkeypatch.setattr(rollouts.Rollouts, '_note', lambda self, rows, written, *rest: (
        batches.append((rows, written)), real(self, rows, written, *rest)))
    folder = run(tmp_path, cell, Planted(encoder_of(tmp_path, cell, 'perceive')), monkeypatch)
    assert len(batches) == 4
    moved = 0
    for (rows, written), row in zip(batches, rows_of(folder), strict=True):
        own = np.array([(row.reward, row.solved) for row in rows]).reshape(4, 4, 2)
        paid = np.stack([written.reward_B, written.solved_B], 1).reshape(4, 4, 2)
        np.testing.assert_array_equal(paid, own[[1, 2, 3, 0]])
        moved += (paid != own).any()
        # As many groups disagree as with their own rewards: those that were chosen for it.
        assert slopes.mixed(paid[..., 0], 4).sum() == slopes.mixed(own[..., 0], 4).sum()
        assert row['accuracy'] == own[..., 1].mean()
    assert moved
    shown = json.loads(sorted((folder / 'written').iterdir())[0].read_text())
    paid = [each['paid'] for each in shown if 'paid' in each]
    assert paid and paid != [each['reward'] for each in shown if 'paid' in each]


def test_a_process_with_a_single_group_cannot_scramble():
    stage = cell_of(policy=dict(scrambled=True, group=32)).stage('perceive')
    half = SimpleNamespace(policy=stage.policy, stage=stage, share=Share(2, (0,)))
    with pytest.raises(ValueError, match='another of this process.*one group of 32 rows'):
        rollouts.Rollouts._groups(half)
    half.share = Share(1, (0,))
    assert rollouts.Rollouts._groups(half) == 2


def test_a_policy_that_is_not_scrambled_is_stored_as_before():
    plain = cell_of()
    assert plain.hash == HASH
    assert cell_of(policy=dict(scrambled=True)).hash != HASH


class Killed(BaseException):
    """What no handler of errors takes for one."""


@pytest.mark.parametrize('where', ['rollout', 'update', 'save'])
@pytest.mark.parametrize('updates', [1, 2])
def test_a_run_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, where,
                                                                     updates):
    cell = cell_of(steps=8, policy=dict(updates=updates, kl=.1, temperature=.8))
    whole, torn = tmp_path / 'whole', tmp_path / 'torn'
    prepare(whole, cell)
    planted = Planted(encoder_of(whole, cell, 'perceive'))
    one = run(whole, cell, planted, monkeypatch)
    what, name = {'rollout': (planted, 'solved'), 'update': (slopes, 'slopes_of'),
                  'save': (checkpoint, 'save')}[where]
    real = getattr(what, name)
    calls = []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return real(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(what, name, dies)
        with pytest.raises(Killed):
            run(torn, cell, planted, monkeypatch)
    two = run(torn, cell, planted, monkeypatch)
    assert (one / 'metrics.jsonl').read_bytes() == (two / 'metrics.jsonl').read_bytes()
    for leaf, other in zip(jax.tree.leaves(load(one)[1]), jax.tree.leaves(load(two)[1]),
                           strict=True):
        np.testing.assert_array_equal(leaf, other)
    written = sorted(path.name for path in (one / 'written').iterdir())
    assert len(written) > 1
    for name in written:
        assert (one / 'written' / name).read_bytes() == (two / 'written' / name).read_bytes()


def test_sampling_and_training_agree(tmp_path, monkeypatch):
    cell = cell_of(steps=3, batch=16, policy=dict(write=8, group=4, temperature=.7))
    prepare(tmp_path, cell)
    folder = run(tmp_path, cell, Planted(encoder_of(tmp_path, cell, 'perceive')), monkeypatch)
    rows = rows_of(folder)
    assert all(0 < row['sampling_gap'] < 1e-4 for row in rows)
    assert all(1 <= row['written_tokens'] <= 8 for row in rows)
    assert all(row['clipped'] == 0 for row in rows)  # what was written now is written so again


def test_more_devices_write_and_learn_the_same(tmp_path, monkeypatch):
    found = []
    for axes in (dict(data=1, fsdp=1, tensor=1), dict(data=2, fsdp=2, tensor=1)):
        cell = cell_of(steps=2, batch=16, policy=dict(group=4, write=4, kl=.1))
        folder = tmp_path / str(axes['data'])
        prepare(folder, cell)
        devices = jax.devices()[:int(np.prod(list(axes.values())))]
        monkeypatch.setattr(training, 'grid_of',
                            lambda _, axes=axes, devices=devices: mesh(**axes, devices=devices))
        monkeypatch.setattr(rollouts, 'own_mesh',
                            lambda devices=devices: mesh(devices=devices))
        found.append(rows_of(run(folder, cell, Planted(encoder_of(folder, cell, 'perceive')),
                                 monkeypatch)))
    for one, two in zip(*found, strict=True):
        assert one['reward'] == two['reward'] and one['written_tokens'] == two['written_tokens']
        assert one['loss'] == pytest.approx(two['loss'], abs=1e-5)
        assert one['grad_norm'] == pytest.approx(two['grad_norm'], rel=1e-3)


def test_questions_that_are_tried_leave_those_whose_group_disagrees(tmp_path, monkeypatch):
    cell = cell_of(steps=2, batch=16, policy=dict(group=4, write=1, tries=4))
    prepare(tmp_path, cell)
    encoder = encoder_of(tmp_path, cell, 'perceive')
    folder = run(tmp_path, cell, Planted(encoder), monkeypatch)
    assert [row['mixed_groups'] for row in rows_of(folder)] == [1, 1]
    assert load_state(folder)['position'] == 2 * 4 * 4


def load_state(folder):
    return json.loads((checkpoint.latest(folder) / 'data' / 'metadata').read_text())


def test_a_description_that_no_row_holds_is_refused_before_the_study(tmp_path):
    cell = cell_of(policy=dict(write=64))
    prepare(tmp_path, cell)
    with pytest.raises(ValueError, match=r'64 of them written.*row of 40 tokens.*policy.write'):
        descriptions.check_room(tmp_path, cell, cell.stage('perceive'))


def test_an_answer_is_handed_over_where_what_is_seen_does_not_hold_it():
    class Extraction:
        text, information = 'the ring is red', 'look at the ring'

    class Question:
        extraction, answer = Extraction, 'red'

    class Item:
        question = Question
    assert not decoupled.hands_over(Item, 'red ring')
    Question.answer = 'yes'
    assert decoupled.hands_over(Item, 'the ring is red yes')
    assert not decoupled.hands_over(Item, 'the ring is red')
    Extraction.text = ''
    assert decoupled.hands_over(Item, 'A ring. The answer is B.')
    assert not decoupled.hands_over(Item, 'A ring answers to a square')


def test_worth_is_what_is_solved_less_length_and_leaks():
    policy = cell_of(policy=dict(write=10, length_price=.5, leak_price=.3)).stage('perceive').policy
    found = reward.worth(policy, np.array([1, 1, 0]), np.array([0, 1, 0]), np.array([2, 10, 0]))
    np.testing.assert_allclose(found, [.9, .2, 0])
