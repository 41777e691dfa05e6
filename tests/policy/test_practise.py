"""Practise: a reasoner writes its own thoughts, and is paid for what it answers behind them."""
import json

import jax
import numpy as np
import pytest
from roots import ROOT

from downscale.data.records import THINK
from downscale.evaluate import decoupled
from downscale.evaluate import run as evaluating
from downscale.evaluate.answers import wording_of
from downscale.evaluate.run import engine_of
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.generate.requests import Reply
from downscale.policy import descriptions, reward, rollouts
from downscale.policy import training as policy_training
from downscale.sharding import mesh
from downscale.stage_config import reader_of
from downscale.stages import training
from downscale.stages.folders import folder_of
from downscale.stages.inputs import encoder_of, library_of, prepare
from downscale.study.tasks import tasks_of

PRACTISE = dict(batch=16, length=112, tiles=0, parents={'language': '{size}/reason'}, steps=3,
                rates=dict(language=1e-2), warmup=0.0, save_every=3,
                policy=dict(group=4, write=6, kl=0.1))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(rollouts, 'own_mesh', lambda: None)
    monkeypatch.setattr(training, 'grid_of', lambda _: mesh(devices=jax.devices()[:1]))


def cells(**changes):
    """(plain cell, one that practises) of a study; both start from random values."""
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), (
        'data.similarity_share=0.0', 'data.train=64', 'data.validation=1', 'data.test=1'))
    with study_config.unlocked():
        del study_config['platform']
        study_config.parametrisation = {}
        policy = PRACTISE['policy'] | changes.pop('policy', {})
        reason = study_config.stages['reason'].to_dict()
        study_config.stages = {'reason': reason | {'parents': {}},
                               'practise': PRACTISE | changes | {'policy': policy}}
    return cells_of(study_config, [
        {'size': 'w32d2', 'seed': 0},
        {'size': 'w32d2', 'seed': 0, 'stages': ('practise',),
         'stages.practise.policy.temperature': 1.5}])


def run(folder, **changes):
    """(folder of a practised stage, its metrics), from random values."""
    _, cell = cells(parents={}, **changes)
    prepare(folder, cell)
    policy_training.train_stage(folder, cell, 'practise', tracker='none')
    place = folder_of(folder, cell, 'practise')
    return place, [json.loads(line) for line in (place / 'metrics.jsonl').read_text().splitlines()]


def test_it_reads_true_captions_and_extractions_and_is_asked_to_think(tmp_path):
    plain, cell = cells()
    prepare(tmp_path, cell)
    stage = cell.stage('practise')
    encoder = encoder_of(tmp_path, cell, 'practise')
    asked = descriptions.questions_of(tmp_path, cell, stage, 7)
    library = library_of(tmp_path, cell, 'train')
    examples = {example.scene_id: example for example in map(library.example, range(len(library)))}
    seen = set()
    for item in (asked[k] for k in range(40)):
        example = examples[item.example.scene_id]
        question = next(each for each in example.questions
                        if each.item_id == item.question.item_id)
        texts = {kind: decoupled.gold_texts([item], kind)[question.item_id]
                 for kind in ('caption', 'extraction')}
        plainly = descriptions.item_of(example, question)
        prompts = {kind: wording_of(cell).reason(plainly, text, True)
                   for kind, text in texts.items()}
        seen |= {kind for kind, prompt in prompts.items() if prompt == item.question.text}
        assert item.question.text in prompts.values() and item.question.kind == 'visual'
        # Judged as ever: the right answer is right behind a thought, and only there.
        for text, score in ((f'so {THINK[1]} {question.answer}', 1), (question.answer, 0)):
            reply = Reply(ids=(), text=text, finish='stop', nll=0., close='natural', thought=0,
                          answered=1)
            assert reward.own_answers([item], [reply])[0] == score
        prompt = descriptions.prompt_for(stage, encoder, wording_of(cell), item)
        assert prompt.tiles is None and (prompt.image_index < 0).all()
        assert encoder.text(prompt.tokens.tolist()).endswith(THINK[0])
    assert seen == {'caption', 'extraction'}


@pytest.mark.parametrize('method', ['grpo', 'rejection', 'dpo'])
def test_what_is_answered_rightly_is_learnt(tmp_path, monkeypatch, method):
    # Right is what has few letters: a random model never answers.
    monkeypatch.setattr(reward, 'own_answers', lambda items, replies: np.array(
        [float(len(reply.text) < 24) for reply in replies]))
    folder, rows = run(tmp_path, policy=dict(method=method))
    assert all(row['accuracy'] == row['reward'] and row['leaks'] == 0 for row in rows)
    assert any(row['grad_norm'] > 0 for row in rows) and rows[-1]['kl'] > 0
    assert all(row['sampling_gap'] < 1e-4 for row in rows)
    shown = json.loads(next((folder / 'written').iterdir()).read_text())
    assert len(shown) == 16 and all(row['question'] and 'text' in row for row in shown)


def test_a_larger_reasoner_is_learnt_from_on_own_thoughts(tmp_path, monkeypatch):
    monkeypatch.setattr(reward, 'own_answers', lambda items, replies: np.array(
        [float(len(reply.text) < 24) for reply in replies]))
    teacher, _ = run(tmp_path / 'a', rates=dict(language=3e-2))
    _, rows = run(tmp_path / 'b', teacher=str(teacher), steps=12, save_every=12,
                  rates=dict(language=3e-2), policy=dict(method='distil'))
    assert np.mean([row['kl'] for row in rows[-3:]]) < rows[0]['kl'] / 2
    assert all('reward' not in row and row['loss'] == row['kl'] for row in rows)


def test_the_cell_is_read_by_what_it_practised(tmp_path, monkeypatch):
    plain, cell = cells()
    assert (reader_of(plain.stages), reader_of(cell.stages)) == ('reason', 'practise')
    assert [stage.name for stage in plain.stages] == ['reason']  # only where a point names it
    needs = {task.name: task.needs for task in tasks_of((plain, cell))}
    assert needs[f'{cell.name}/practise'] == (f'{plain.name}/reason',)
    assert needs[f'evaluate reason {cell.name}'] == (f'{cell.name}/practise',)
    assert needs[f'evaluate reason {plain.name}'] == (f'{plain.name}/reason',)
    folder, _ = run(tmp_path, steps=1, save_every=1, policy=dict(method='rejection'))
    _, one = cells(parents={}, steps=1, save_every=1, policy=dict(method='rejection'))
    opened = []
    monkeypatch.setattr(evaluating, 'test_items', lambda *_: [])

    def opens(study, cell, stage):
        opened.append(engine_of(study, cell, stage)[1])
        raise KeyboardInterrupt
    monkeypatch.setattr(evaluating, 'engine_of', opens)
    with pytest.raises(KeyboardInterrupt):
        evaluating.evaluate(tmp_path, one, 'reason')
    assert opened == [folder]


@pytest.mark.parametrize(('changes', 'line'), [
    (dict(policy=dict(reasoners=('reason',), answer=4)), 'policy.answer is about descriptions'),
    (dict(policy=dict(leak_price=.5, think=3)), 'policy.think, leak_price is about'),
    (dict(policy=dict(questions='own.jsonl')), 'policy.questions is about'),
    (dict(mixture='data/built/a'), 'writes its rows itself'),
    (dict(policy=dict(method='distil')), 'learns from a `teacher`')])
def test_what_is_for_descriptions_is_refused_by_name(changes, line):
    with pytest.raises(ValueError, match=line) as caught:
        cells(**changes)
    assert len(str(caught.value)) <= 300


def test_a_thought_that_no_row_holds_is_refused_before_the_study(tmp_path):
    _, cell = cells(policy=dict(write=200))
    prepare(tmp_path, cell)
    with pytest.raises(ValueError, match='200 of them written.*row of 112 tokens'):
        descriptions.check_room(tmp_path, cell, cell.stage('practise'))
