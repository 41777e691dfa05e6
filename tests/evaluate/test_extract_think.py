"""The chain and its grid with an engine that invents text: shared, resumed, refused, counted."""
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small
from fake_chain import LIMIT, PLAN, Fake, chain, files, plain_run, runs, save_run, study
from question_file import PICTURE, fails, question_file

from downscale.data.scenes.conversations import describe_prompt, reasoner_prompt
from downscale.evaluate import prompts
from downscale.evaluate.answers import items_of
from downscale.evaluate.asked import open_questions
from downscale.evaluate.cells import measured, table
from downscale.evaluate.runs import open_runs
from downscale.evaluate.scoring.sample_files import read_samples


@pytest.fixture(autouse=True)
def fresh():
    Fake.asked, Fake.after = [], None


# --- what is asked ------------------------------------------------------------------------------

def test_every_text_is_written_once_and_read_by_every_reasoner():
    out, cells, asked = plain_run()
    questions = [item.question for item in items_of(small.library('test').source, 8)][:LIMIT]
    read = set()
    for run in runs('perception'):
        rows = [row for row in asked if row[0] == run.folder]
        wanted = {(q.item_id.split('/')[0], describe_prompt(q)) for q in questions}
        assert len(rows) == len(wanted) < LIMIT and all(shown for _, _, shown, _ in rows)
        assert {text.split('>')[-1].strip() for _, text, *_ in rows} <= {w for _, w in wanted}
        told = read_samples(out / f'describe-{run.name}.jsonl')
        assert [row['doc_id'] for row in told] == list(range(LIMIT))
        assert [row['doc']['id'] for row in told] == [q.item_id for q in questions]
        for reasoner in runs('reasoner'):
            for mode in ('think', 'direct'):
                rows = read_samples(
                    out / f'answer-{reasoner.name}-from-{run.name}-{mode}.jsonl')
                assert len(rows) == 2 * LIMIT
                for row in rows:
                    read.add((reasoner.name, mode, row['repeat'], row['doc_id'], row['input']))
                    k = row['doc_id']
                    assert row['description'] == told[k]['key']
                    assert row['input'] == reasoner_prompt(told[k]['filtered_resps'][0],
                                                           questions[k])
                    assert row['target'] == questions[k].answer
    reasoned = [row for row in asked if row[0] in [run.folder for run in runs('reasoner')]]
    assert not any(shown for _, _, shown, _ in reasoned)
    # Where two perception models write the same, one answer stands for both.
    assert 8 * LIMIT < len(reasoned) == len(read) <= 16 * LIMIT and len(cells) == 8
    assert {(request.think, request.limit) for *_, request in reasoned} == {(30, 8), (None, 8)}


def test_randomness_hangs_on_the_question_and_the_repeat_alone():
    out, _, asked = plain_run()
    reasoned = [row for row in asked if row[0].name == 'reason']
    samples = [request.sample for *_, request in reasoned]
    assert len(set(samples)) == 2 * LIMIT and all(0 <= sample < 2 ** 32 for sample in samples)
    assert all(4 <= samples.count(sample) <= 8 for sample in set(samples))
    few = Path(small._folder.name) / 'few'
    chain(few, questions=open_questions(study(), limit=5)).run()
    for path in few.glob('*-*.jsonl'):  # a shorter run writes the same rows
        assert (out / path.name).read_bytes().startswith(path.read_bytes())


def test_the_summary_counts_what_the_samples_hold():
    out, cells, _ = plain_run()
    saved = json.loads((out / 'summary.json').read_text())
    assert saved['cells'] == cells and saved['scorer'] == 'scene-1'
    for cell in cells:
        rows = read_samples(out / f'answer-{cell["reasoner"]}-from-{cell["perception"]}-'
                            f'{cell["mode"]}.jsonl')
        right = [row['score'] for row in rows]
        assert cell['accuracy'] == pytest.approx(np.mean(right)) and cell['n'] == 20
        assert cell['replies'] == len(rows) == 40
        assert cell['clusters'] == len({row['doc']['cluster'] for row in rows}) < LIMIT
        assert cell['truncated'] == np.mean([row['finish_reason'] == 'length' for row in rows])
        assert cell['unclosed'] == np.mean([row['close'] == 'open' for row in rows])
        assert (cell['unclosed'] > 0) == (cell['mode'] == 'think')
        assert all(row['pred'] == '' and not row['parse_ok'] for row in rows
                   if row['close'] == 'open')
    kept = json.loads((out / 'throughput.json').read_text())
    assert set(kept) == {f'{step} {run.name}' for step, role in (
        ('describe', 'perception'), ('answer', 'reasoner')) for run in runs(role)}
    assert not any(word in path.read_text() for path in out.glob('*-*.jsonl')
                   for word in ('tokens_per', 'seconds', 'slots', 'process'))


def test_planted_rates_come_out_as_planted():
    def row(k, **changes):
        return {'doc_id': k, 'doc': {'cluster': str(k), 'family': 'odd' if k % 2 else 'even'},
                'score': 1.0, 'truncated': False, 'parse_ok': True, 'close': 'natural', **changes}

    rows = [*(row(k) for k in range(6)), row(6, score=0.0),
            row(7, truncated=True, score=0.0), row(8, parse_ok=False, score=0.0),
            row(9, close='open', score=0.0)]
    found = measured(rows)
    assert [found[name] for name in ('truncated', 'unparsed', 'unclosed')] == [0.1, 0.1, 0.1]
    assert (found['accuracy'], found['accuracy_completed']) == (0.6, pytest.approx(6 / 7))
    assert (found['n'], found['completed'], found['clusters']) == (10, 7, 10)
    assert 0 <= found['low'] < 0.6 < found['high'] <= 1
    assert found['families'] == {'even': {'n': 5, 'accuracy': 0.6}, 'odd': {'n': 5,
                                                                            'accuracy': 0.6}}
    blank = measured([{**one, 'score': None} for one in rows])
    assert blank['accuracy'] is blank['accuracy_completed'] is blank['low'] is None
    assert (blank['scored'], blank['truncated'], blank['families']) == (0, 0.1, {})
    cell = {'perception': 'p', 'reasoner': 'r', 'mode': 'think', 'descriptions_truncated': 0.0}
    lines = list(table([{**cell, **found}, {**cell, **blank, 'mode': 'direct'}]))
    assert len(lines) == 5 and '0.600' in lines[1] and '10.0 %' in lines[2] and '-' in lines[2]
    assert '   10  ' in lines[1] and ' 0 of 10  ' in lines[2] and lines[3].startswith('n: ')
    assert len({len(line) for line in lines[:3]}) == 1
    *_, last = table([{**cell, **found, 'descriptions_truncated': 0.25}])
    assert last == '25.0 % of the descriptions of p were cut off; give more --describe-tokens'


# --- kills, slots and processes -----------------------------------------------------------------

@pytest.mark.parametrize('rows, torn', [(3, 0), (30, 7), (47, 1), (150, 40)])
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, rows, torn):
    """Killed after some rows, its last line torn, continued with other slots and processes."""
    out, asked = tmp_path / 'out', len(plain_run()[2])
    Fake.asked, Fake.after = [], rows
    with pytest.raises(KeyboardInterrupt):
        chain(out, slots=3).run()
    parts = sorted(out.glob('*.p0.jsonl'), key=lambda path: path.stat().st_mtime_ns)
    for part in parts[-1:]:
        part.write_bytes(part.read_bytes()[:-torn] if torn else part.read_bytes())
    Fake.after = None
    for process in (2, 1, 0):  # process 0 last: it waits for nobody here
        found = chain(out, slots=5, process=process, processes=3).run()
    assert files(out) == files(plain_run()[0]) and found == plain_run()[1]
    finished = {'describe w32d1-s0-extract', 'answer w32d1-s0-reason', 'answer w32d2-s0-reason'}
    assert finished <= set(json.loads((out / 'throughput.json').read_text()))
    assert len(Fake.asked) == asked + (torn > 0)  # nothing is made twice but the torn row


@pytest.mark.parametrize('processes, slots', [(1, 1), (2, 16), (4, 7)])
def test_files_do_not_depend_on_slots_or_processes(tmp_path, processes, slots):
    for process in reversed(range(processes)):
        found = chain(tmp_path, slots=slots, process=process, processes=processes).run()
        assert (found is None) == (process > 0)
    assert files(tmp_path) == files(plain_run()[0])
    assert len(Fake.asked) == len(plain_run()[2])  # pictures are shared out, not questions


def test_a_finished_run_loads_no_model_and_changes_nothing(tmp_path):
    out = tmp_path / 'copy'
    shutil.copytree(plain_run()[0], out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert chain(out, engine=None).run() == plain_run()[1]
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_the_first_process_says_what_it_waits_for(tmp_path):
    said = []
    with pytest.raises(RuntimeError, match='rows of describe-w32d1-s0-extract are missing'):
        chain(tmp_path, processes=2, note=said.append).run()
    assert 'waiting for' in said[-1] and 'waiting for' not in said[-2]
    chain(tmp_path, process=1, processes=2).run()
    assert chain(tmp_path, processes=2).run() == plain_run()[1]


def test_pictures_are_shown_in_windows_that_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('downscale.evaluate.answers.WINDOW', 3000)
    monkeypatch.setattr('downscale.evaluate.extract_think.ROWS', 9)
    held = []

    class Counting(Fake):
        def stream(self, requests, decoding):
            held.append(len(requests))
            return super().stream(requests, decoding)

    chain(tmp_path, engine=Counting).run()
    assert max(held) <= 9 and len(held) > 20
    assert files(tmp_path) == files(plain_run()[0])


# --- what is refused ----------------------------------------------------------------------------

def test_a_folder_that_was_begun_otherwise_is_refused_by_name(tmp_path):
    out = tmp_path / 'copy'
    shutil.copytree(plain_run()[0], out)
    for changes, *told in (
            ({'plan': dataclasses.replace(PLAN, seed=1)}, '(plan.seed was 0, now 1)'),
            ({'plan': dataclasses.replace(PLAN, reason=('think',))},
             "(plan.reason was ['think', 'direct'], now ['think'])"),
            ({'prompts': dataclasses.replace(prompts.load('micro'), question_start='Q ')},
             '(prompts was '),
            ({'reasoners': runs('reasoner', 1)}, '(reasoner.w32d2-s0-reason was ',
             'now not there)'),
            ({'questions': open_questions(study(), limit=7)}, '(data.hash was ',
             '; data.questions was 20, now 7)')):
        fails(chain(out, **changes).run, 'begun with other settings', *told)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('x')
    fails(chain(tmp_path / 'full').run, 'holds something else')
    assert not Fake.asked


def test_settings_under_which_nothing_was_written_give_way(tmp_path):
    """As after a first try that did not fit in memory; but others may be about to write."""
    out = tmp_path / 'out'
    Fake.after = 0
    with pytest.raises(KeyboardInterrupt):
        chain(out, plan=dataclasses.replace(PLAN, describe_tokens=10 ** 6)).run()
    fails(chain(out, processes=2).run, 'plan.describe_tokens was 1000000, now 20')
    Fake.after = None
    chain(out).run()
    assert files(out) == files(plain_run()[0])


def test_a_further_trained_model_is_another_one(tmp_path):
    folder = tmp_path / 'study' / 'cells' / 'w32d1-s0' / 'reason'
    shutil.copytree(runs('reasoner')[0].folder, folder)
    shutil.copy(study() / 'tokenizer.json', tmp_path / 'study')
    moved, = open_runs([folder], 'reasoner')
    assert moved.fingerprint == runs('reasoner')[0].fingerprint
    shutil.rmtree(folder / 'checkpoints')
    save_run(folder, ('language',), 3)
    trained, = open_runs([folder], 'reasoner')
    out = tmp_path / 'copy'
    shutil.copytree(plain_run()[0], out)
    fails(chain(out, reasoners=(trained, runs('reasoner')[1])).run,
          '(reasoner.w32d1-s0-reason was ')


def test_a_model_that_cannot_do_its_part_is_refused_before_any_work(tmp_path):
    cell = study() / 'cells' / 'w32d1-s0'
    fails(lambda: open_runs([cell / 'reason'], 'perception', sees=True),
          '--perception', 'has no connector and no tower')
    fails(lambda: open_runs([cell / 'reason'] * 2, 'reasoner'), 'is given twice')
    fails(lambda: open_runs([cell / 'caption'], 'reasoner'), 'is', 'a run folder',
          error=FileNotFoundError)
    lone = tmp_path / 'lone'
    shutil.copytree(cell / 'reason', lone)
    fails(lambda: open_runs([lone], 'reasoner'), 'no tokenizer.json', error=FileNotFoundError)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = []
    for k, cell in enumerate(('w32d1-s0', 'w32d2-s0')):
        folders.append(tmp_path / str(k) / 'my model')
        shutil.copytree(study() / 'cells' / cell / 'reason', folders[-1])
        shutil.copy(study() / 'tokenizer.json', folders[-1])
    one, other = open_runs(folders, 'reasoner')
    assert one.name != other.name and one.name.startswith('my_model-')
    assert one.name.endswith(one.fingerprint[:6])


def test_a_key_covers_all_that_decides_a_text(tmp_path, monkeypatch):
    path = question_file(tmp_path, *((k, {'information': 'look'}) for k in range(3)))
    questions, micro = open_questions(path), prompts.load('micro')
    described = {'filtered_resps': ['a red circle'], 'key': 'k'}

    def keys(**changes):
        """(keys of the first question's description, of its answers) of a chain."""
        grid = chain(tmp_path, **{'questions': questions, **changes})
        written = {f'describe-{run.name}': {0: described} for run in grid.perceptions}
        steps = {step.run.name: step for step in grid.steps()}
        found = []
        for run in (grid.perceptions[0], grid.reasoners[0]):
            files = steps[run.name].files_of(grid.questions.asked[:1], written)
            found.append({job.record['key'] for jobs in files.values() for job in jobs})
        return found

    told, answers = keys()
    assert keys() == [told, answers] == keys(slots=1, process=1, processes=2)
    longer = dataclasses.replace(runs('reasoner')[0], fingerprint='trained')
    blind = dataclasses.replace(runs('perception')[0], fingerprint='trained')
    another = tmp_path / 'another'
    another.mkdir()
    question_file(another, *((k, {'information': 'look'}) for k in range(3)))
    (another / 'picture.png').write_bytes(PICTURE.read_bytes() + b'more')
    for changes in ({'seed': 1}, {'temperature': 0.7}, {'top_k': 5}, {'top_p': 0.9},
                    {'think_tokens': 31}, {'answer_tokens': 9}, {'nudge': 1.0},
                    {'reference_compat': True}):
        plan = dataclasses.replace(PLAN, **changes)
        assert not keys(plan=plan)[1] & answers or changes == {'think_tokens': 31}
        assert keys(plan=plan)[1] != answers
    assert not keys(plan=dataclasses.replace(PLAN, describe_tokens=21))[0] & told
    assert not keys(prompts=dataclasses.replace(micro, caption='say'))[0] & told  # another file
    assert not keys(reasoners=(longer,))[1] & answers
    assert not keys(reasoners=(dataclasses.replace(runs('reasoner')[0], reflexive=(3,)),))[1] \
        & answers
    assert not keys(perceptions=(blind,))[0] & told
    assert not keys(questions=open_questions(another / 'questions.jsonl'))[0] & told
    monkeypatch.setattr('downscale.evaluate.chain_steps.sample_of', lambda *parts: 0)
    assert not keys(questions=open_questions(another / 'questions.jsonl'))[0] & keys()[0]
    (another / 'renamed.jsonl').write_text(path.read_text().replace('q0', 'q9'))
    shutil.copy(PICTURE, another)
    assert not keys(questions=open_questions(another / 'renamed.jsonl'))[1] & keys()[1]


def test_an_extraction_needs_something_to_look_at(tmp_path):
    questions = open_questions(question_file(tmp_path))
    fails(chain(tmp_path / 'out', questions=questions).run, '3 of 3 questions do not say')


@pytest.mark.parametrize('changes, told', [
    ({'describe': 'captoin'}, "did you mean 'caption'"), ({'reason': ('thnk',)}, "'think'"),
    ({'reason': ()}, 'each mode once'), ({'reason': ('think', 'think')}, 'each mode once'),
    ({'think_tokens': -1}, 'think_tokens -1 must be at least 0'),
    ({'answer_tokens': 0}, 'must be at least 1'), ({'repeats': 0, 'temperature': 1.0}, 'repeats 0'),
    ({'repeats': 2, 'temperature': 0.0}, 'greedy repeats would be equal')])
def test_a_senseless_plan_is_refused(changes, told):
    fails(lambda: dataclasses.replace(PLAN, **changes), told)


# --- other data -------------------------------------------------------------------------------

def test_a_file_of_questions_goes_through_the_chain(tmp_path):
    path = question_file(tmp_path, (0, {'id': 7}), (1, {'answer': None, 'family': 'f'}),
                         (2, {'images': []}))
    questions = open_questions(path)
    assert [asked.id for asked in questions.asked] == ['7', 'q1', 'q2']
    assert [len(questions.images(asked)) for asked in questions.asked] == [1, 1, 0]
    assert [asked.cluster for asked in questions.asked][2] == 'q2'
    plan = dataclasses.replace(PLAN, describe='caption', reason=('direct',), repeats=1)
    found, = chain(tmp_path / 'out', plan=plan, questions=questions,
                   perceptions=runs('perception', 1), reasoners=runs('reasoner', 1)).run()
    assert (found['n'], found['scored']) == (3, 2)
    told = [row for row in Fake.asked if row[0].name == 'extract']
    assert sorted(shown for _, _, shown, _ in told) == [False, True]  # one picture, one caption
    rows = read_samples(next((tmp_path / 'out').glob('answer-*.jsonl')))
    assert [row['score'] is None for row in rows] == [False, True, False]
    assert len(open_questions(path, limit=2).asked) == 2
    first = questions.hash
    question_file(tmp_path, (0, {'answer': 'blue'}))
    assert open_questions(path).hash != first


def test_an_informer_says_what_to_look_at_and_is_recorded(tmp_path):
    """Its text and nothing else is what the perception model is asked."""
    questions = open_questions(question_file(tmp_path, *(
        (k, {'information': f'gold {k}'}) for k in range(3))))
    informer, = runs('reasoner', 1)
    out = tmp_path / 'out'
    given = {'questions': questions, 'informer': informer, 'perceptions': runs('perception', 1),
             'reasoners': (runs('reasoner')[1],)}
    for process in (1, 0):
        chain(out, process=process, processes=2, **given).run()
    told = read_samples(out / f'information-{informer.name}.jsonl')
    assert [row['task'] for row in told] == ['information'] * 3
    asked = read_samples(out / f'describe-{runs("perception")[0].name}.jsonl')
    assert [row['input'] for row in asked] == [row['filtered_resps'][0] for row in told]
    assert not any('gold' in row['input'] for row in asked)
    chain(tmp_path / 'alone', **given).run()
    assert files(out) == files(tmp_path / 'alone')


def test_texts_with_braces_and_marks_reach_the_reasoner(tmp_path):
    """What a model writes may hold anything; the chain must not stumble over it at row 900."""
    questions = open_questions(question_file(tmp_path, (0, {'question': 'what {description} {0}'})))

    class Odd(Fake):
        def reply(self, request, decoding):
            reply = super().reply(request, decoding)
            return dataclasses.replace(reply, text='{question} <image> \u2028 {') \
                if self.folder.name == 'extract' else reply

    plan = dataclasses.replace(PLAN, describe='caption', reason=('direct',), repeats=1)
    chain(tmp_path / 'out', plan=plan, questions=questions, engine=Odd).run()
    for path in (tmp_path / 'out').glob('answer-*.jsonl'):
        first = read_samples(path)[0]['input']
        assert first == '{question} < image> \u2028 { what {description} {0}'


def test_the_world_judges_its_own_questions():
    world = open_questions(study(), limit=LIMIT)
    for asked in world.asked:
        assert world.judge(asked, f' {asked.answer} ')[2] == 1.0
        assert world.judge(asked, 'Answer: ' + asked.answer)[2] == 1.0
        assert world.judge(asked, 'nonsense')[1:] == (True, 0.0)
