"""What tuning to write cost: planted models that say no more what they know, or know it no more."""
import json

import pytest
from roots import ROOT

from downscale.commands import main
from downscale.config import load, save
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.generate.requests import Reply
from downscale.probe import forgetting
from downscale.probe.captions import ALL
from downscale.probe.forgetting import (
    CONSTANT,
    FACTS,
    LIKELIEST,
    TOLD,
    VISUAL,
    WRITTEN,
    forgetting_rows,
)
from downscale.runtime.files import write_json
from downscale.study.preparation import prepare


def able(item, target, encoder):
    """It answers, knows and captions."""
    if target is None:
        return item.question.answer, 0.
    right = (*encoder.ids(item.question.answer), encoder.stop)
    return '', 0. if target == right else 1.


def silent(item, target, encoder):
    """It knows what it knew, and says 'nothing'."""
    return 'nothing', able(item, target, encoder)[1]


def of_facts_alone(item, target, encoder):
    """It has lost what it saw, and what it was likely to say of it."""
    text, nats = able(item, target, encoder)
    return (text, nats) if item.question.kind != 'visual' else ('nothing', -nats)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function of {(size, stage): how it answers, or a function of a seed}; it returns the folder
    of a study of three seeds, and a list of the models that are asked.
    """
    config, _ = file.load_study(ROOT / 'experiments/smoke.py', [
        'data.train=20', 'data.validation=2', 'data.test=8', 'evaluation.scenes=8'])
    with config.unlocked():
        del config['platform']
    cells = cells_of(config, [dict(size=size, seed=seed) for size in ('w32d1', 'w64d2')
                              for seed in (0, 1, 2)])
    prepare(tmp_path, 'tiny', [cell for cell in cells if not cell.is_shared], True)
    asked = []

    def replies(engine, questions, report):
        cell, stage, answer = engine.model
        asked.append(f'{cell.name}/{stage}')
        for item, text, limit, target in questions:
            text, nats = answer(item, target, engine.encoder)
            # Of a caption all that is known of the scene is said or nothing.
            if 'describe' in questions[-1][1] and limit == cell.evaluation.write \
                    and text == item.question.answer:
                text = item.example.caption
            yield Reply(ids=(), text=text, finish='stop', nll=nats, close='', thought=0, answered=1)

    def made(skills):
        def engine_of(folder, cell, stage):
            from types import SimpleNamespace

            from downscale.stages.inputs import encoder_of
            skill = skills[cell.size, stage]
            skill = skill[cell.seed] if isinstance(skill, tuple) else skill
            return SimpleNamespace(encoder=encoder_of(folder, cell, stage),
                                   model=(cell, stage, skill)), folder
        monkeypatch.setattr(forgetting, 'engine_of', engine_of)
        monkeypatch.setattr(forgetting, '_replies', lambda *args: list(replies(*args)))
        monkeypatch.setattr(forgetting, 'fingerprint', lambda folder: (
            folder / 'weights').read_text())
        for cell in cells:
            for size, stage in skills:
                if cell.size == size and not cell.is_shared:
                    folder = tmp_path / 'cells' / cell.name / stage
                    save(cell, folder)
                    write_json(folder / 'DONE.json', {'hash': cell.hash})
                    (folder / 'weights').write_text(str(folder))
        return tmp_path, asked
    return made


def values(folder):
    rows, notes = forgetting_rows(folder, 200)
    return {(row.table, row.setting, row.family, row.what): row for row in rows}, notes


def changes(found, table):
    return {key[1:3]: row.value for key, row in found.items()
            if key[0] == table and key[2] in (VISUAL, FACTS, ALL) and key[3] == 'change'}


def test_what_is_not_said_is_told_from_what_is_not_known(study):
    folder, _ = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent,
                       ('w64d2', 'extract'): of_facts_alone})
    found, notes = values(folder)
    mean = 'w64d2 {}, mean over seeds'.format
    assert changes(found, mean('caption')) == {
        (WRITTEN, VISUAL): -1, (WRITTEN, FACTS): -1, (LIKELIEST, VISUAL): 0,
        (LIKELIEST, FACTS): 0, (TOLD, ALL): -1}
    lost = changes(found, mean('extract'))
    assert lost == {(WRITTEN, VISUAL): -1, (WRITTEN, FACTS): 0, (LIKELIEST, VISUAL): -1,
                    (LIKELIEST, FACTS): 0, (TOLD, ALL): pytest.approx(lost[TOLD, ALL])}
    for what, value in (('before', 1), ('after', 0)):
        assert found['w64d2-s1/extract', WRITTEN, VISUAL, what].value == value
    constant = found[CONSTANT, '', VISUAL, 'right']
    assert 0 < constant.value < 1 and constant.clusters > 1


def test_the_interval_of_a_mean_covers_seeds(study):
    folder, _ = study({('w32d1', 'instruct'): able, ('w32d1', 'caption'): (able, able, silent)})
    found, _ = values(folder)
    mean = found['w32d1 caption, mean over seeds', WRITTEN, VISUAL, 'change']
    assert mean.value == pytest.approx(-1 / 3) and (mean.low, mean.high) == (-1, 1)
    assert mean.seeds == 3 and found['w32d1-s2/caption', WRITTEN, VISUAL, 'change'].value == -1


def test_what_was_asked_is_kept_for_the_same_weights(study):
    folder, asked = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent})
    first, _ = values(folder)
    # What stands before several writers is asked once.
    assert sorted(asked) == sorted(f'w64d2-s{seed}/{stage}' for seed in (0, 1, 2)
                                   for stage in ('instruct', 'caption'))
    again, _ = values(folder)
    assert str(again) == str(first) and len(asked) == 6
    (folder / 'cells/w64d2-s1/caption/weights').write_text('others')
    values(folder)
    assert asked[6:] == ['w64d2-s1/caption']


def test_who_has_nothing_before_it_is_named(study):
    skills = {('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent}
    folder, _ = study(skills)
    for name in ('w64d2-s0/instruct/DONE.json', 'w64d2-s2/caption/DONE.json'):
        (folder / 'cells' / name).unlink()
    write_json(folder / 'cells/w64d2-s1/caption/DONE.json', {'hash': 'of other settings'})
    with pytest.raises(ValueError, match='no finished stage that writes') as caught:
        values(folder)
    assert 'w64d2-s0/caption: left out, since nothing before it answers' in str(caught.value)
    assert 'w64d2-s1/caption: left out, since it is not finished' in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_families_of_too_many_answers_have_no_likeliest_one(study, monkeypatch):
    monkeypatch.setattr(forgetting, 'MOST', 2)
    folder, _ = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): able})
    found, notes = values(folder)
    families = {key[2] for key in found if key[1] == WRITTEN}
    left = {key[2] for key in found if key[1] == LIKELIEST}
    assert left < families
    assert {note.partition(':')[0] for note in notes} == families - left - {VISUAL, FACTS}


def test_the_command_prints_means_and_leaves_files(study, capsys):
    folder, _ = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent})
    command = ['analyze', 'forgetting', str(folder), '--bootstraps', '200', '--quiet']
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    assert 'w64d2 caption, mean over seeds' in printed and 'w64d2-s0' not in printed
    assert {path.name for path in (folder / 'analysis').iterdir()} == {
        'forgetting.json', 'forgetting.csv', 'forgetting.png'}
    assert main.main([*command, '--json']) == 0
    rows = json.loads(capsys.readouterr().out)['rows']
    assert any(row['table'] == 'w64d2-s0/caption' for row in rows)


def test_of_a_single_seed_the_writer_itself_is_shown_and_guesses_once(study, capsys):
    folder, _ = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent,
                       ('w32d1', 'instruct'): able, ('w32d1', 'caption'): silent})
    for seed in (1, 2):
        (folder / f'cells/w32d1-s{seed}/caption/DONE.json').unlink()
    assert main.main(['analyze', 'forgetting', str(folder), '--bootstraps', '200', '--quiet']) == 0
    printed = capsys.readouterr().out
    assert 'w32d1-s0/caption' in printed and 'w64d2-s0/caption' not in printed
    assert printed.count(CONSTANT) == 1 and 'w64d2 caption, mean over seeds' in printed
    with (folder / 'analysis/forgetting.csv').open() as file:
        assert 'w64d2-s0/caption' in file.read()


def test_writers_of_other_data_are_left_out_by_name(study):
    folder, asked = study({('w64d2', 'instruct'): able, ('w64d2', 'caption'): silent})
    path = folder / 'cells/w64d2-s1/caption/experiment.json'
    value = json.loads(path.read_text())
    value['evaluation']['scenes'] = 4
    write_json(path, value)
    write_json(path.with_name('DONE.json'), {'hash': load(path.parent).hash})
    found, notes = values(folder)
    assert not any('w64d2-s1' in model for model in asked)
    note, = notes
    assert note.startswith('w64d2-s1/caption: left out, since its world, data or evaluation')
