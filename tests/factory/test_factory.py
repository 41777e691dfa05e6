"""The factory: what it reads, what it keeps, and that kills leave no trace."""
import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import published
import pytest
import small
from fake_chain import study
from openai_stub import RATES, OpenAiStub
from roots import HELPERS, ROOT

from downscale.commands import data_extract
from downscale.data.images import open_under
from downscale.factory import factory, oracle, source, steps
from downscale.factory.source import Skipped
from downscale.results.samples import lines

UNTIMED = ('statements.jsonl', 'information.jsonl', 'descriptions.jsonl', 'quality.jsonl',
           'failures.json', 'skipped.json', 'training.json', 'settings.json', 'report.json',
           'report.html')


@pytest.fixture(scope='module')
def laid(tmp_path_factory):
    """(questions, pictures, gold) of the small world."""
    to = tmp_path_factory.mktemp('laid')
    questions, pictures = oracle.lay_out(small.data(), 'train', to)
    return questions, pictures, json.loads((to / 'gold.json').read_text())


def arguments(laid, to, *more):
    return ['--from', str(laid[0]), '--images', str(laid[1]), '--to', str(to), '--quiet',
            *map(str, more)]


def run(laid, to, *more):
    """What the command makes, by file name; `to` may be begun already."""
    parser = argparse.ArgumentParser()
    data_extract.add_arguments(parser)
    data_extract.run(parser.parse_args(arguments(laid, to, *more)))
    return {path.name: path.read_bytes() for path in Path(to).iterdir()
            if not path.name.startswith('.')}


def of_stub(stub, *more):
    return ('--teacher', f'openai:{stub.url}', '--model', 'stub', '--timeout', 1, *more)


def read(data):
    return [json.loads(line) for line in data.splitlines()]


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def talk(name, image, *pairs):
    turns = [turn for asked, said in pairs for turn in (
        {'from': 'human', 'value': f'<image>\n{asked}'}, {'from': 'gpt', 'value': said})]
    return {'id': name, 'conversations': turns} | ({'image': image} if image else {})


def test_the_truth_passes_every_check(laid, tmp_path):
    made = run(laid, tmp_path / 'a', '--teacher', 'oracle', '--judge', 'oracle', '--price', 1, 2)
    rows, report = read(made['quality.jsonl']), json.loads(made['report.json'])
    assert len(rows) == 18 and all(row['accepted'] for row in rows), \
        [row['checks'] for row in rows if not row['accepted']]
    assert report['accepted']['passed'] == 18 and report['checks']['judge']['n'] == 18
    read_tokens, written = (sum(row[name] for row in read(made['statements.jsonl']))
                            for name in ('tokens_in', 'tokens_out'))
    assert report['tokens']['statements']['dollars'] == pytest.approx(
        (read_tokens + 2 * written) / 1e6)
    assert report['tokens']['judgements']['dollars'] is None


def test_training_data_asks_what_to_look_at_and_says_where_it_is_from(laid, tmp_path):
    made = run(laid, tmp_path / 'a', '--teacher', 'oracle')
    rows = {row['key']: row for name in ('statements', 'information', 'descriptions')
            for row in read(made[f'{name}.jsonl'])}
    told = json.loads(made['training.json'])
    assert len(told) == 18
    for record in told:
        human, reply = record['conversations']
        parts = {step: rows[key] for step, key in record['provenance']['rows'].items()}
        assert human['value'].startswith('<image>\n')
        assert human['value'].endswith(parts['information']['text'] + '.')
        assert reply['value'] == parts['descriptions']['text']
        assert open_under(laid[1], record['image'])
        assert {part['doc_id'] for part in parts.values()} == {record['image']}
        assert record['provenance']['ids'] == [record['id']]


def test_the_page_is_one_offline_file(laid, tmp_path):
    stub = OpenAiStub(laid[2], {'html': .2, 'leak': .4, 'swap': .4})
    page = run(laid, tmp_path / 'a', *of_stub(stub))['report.html'].decode()
    assert '<div class="answer">' not in page and '&lt;div class=' in page
    assert page.count('data:image/png;base64,') > 2
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert 'Rejected: leak' in page and 'Rejected: contradiction' in page


def test_answers_never_reach_the_question_what_to_look_at(laid, tmp_path):
    made = run(laid, tmp_path / 'a', '--teacher', 'oracle')
    for row in read(made['information.jsonl']):
        assert 'Answer' not in row['prompt'] and row['picture'] is None


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bytes_of_a_quiet_one(laid, tmp_path):
    rates = RATES | {'500': .1, 'dead': .02}
    quiet = run(laid, tmp_path / 'quiet', *of_stub(OpenAiStub(laid[2], rates), '--attempts', 3))
    stub, chance, kills = OpenAiStub(laid[2], rates, delay=.15), random.Random(1), 0
    program = [sys.executable, str(HELPERS / 'run_factory.py'),
               *arguments(laid, tmp_path / 'killed', *of_stub(stub, '--attempts', 3),
                          '--concurrency', 3)]
    for goal in (2, 25, 40):
        running = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        while running.poll() is None and sum(stub.calls.values()) < goal:
            time.sleep(.02)
        time.sleep(chance.random() * .1)
        kills += running.poll() is None
        running.kill()
        running.wait()
        for part in (tmp_path / 'killed').glob('*.p0.jsonl'):  # and as if the power had gone
            part.write_bytes(part.read_bytes()[:-7])
    assert kills == 3
    asked = sum(stub.calls.values())
    killed = run(laid, tmp_path / 'killed', *of_stub(stub, '--attempts', 3))
    assert sum(stub.calls.values()) - asked < sum(stub.calls.values()) * .75  # some were kept
    assert set(killed) == set(quiet) == {*UNTIMED, 'usage.jsonl'}
    assert {name: killed[name] == quiet[name] for name in UNTIMED} == dict.fromkeys(UNTIMED, True)
    assert read(quiet['quality.jsonl']) != [] and 0 < len(json.loads(quiet['training.json'])) < 18


def test_a_finished_run_asks_nothing_again_and_failures_are_tried_again(laid, tmp_path,
                                                                        monkeypatch):
    stub, trying = OpenAiStub(laid[2], {'dead': .1}), ('--attempts', 1, '--most-failures', .3)
    first = run(laid, tmp_path / 'a', *of_stub(stub, *trying))
    monkeypatch.setattr(factory, 'FEW', 1)
    again = run(laid, tmp_path / 'a', *of_stub(stub, *trying))  # only what failed, and all fails
    assert {name: first[name] == again[name] for name in UNTIMED} == dict.fromkeys(UNTIMED, True)
    failed = json.loads(first['failures.json'])
    assert failed and set(failed.values()) == {'HTTP 500'}
    rejected = [row for row in read(first['quality.jsonl']) if row['checks']['reply']]
    assert {row['doc_id'] for row in rejected} == {name.split()[1] for name in failed}
    stub.rates, before = {}, stub.calls.total()
    second = run(laid, tmp_path / 'a', *of_stub(stub))
    assert json.loads(second['failures.json']) == {}
    assert all(row['accepted'] for row in read(second['quality.jsonl']))
    assert 0 < stub.calls.total() - before <= 2 * len(failed)
    before = stub.calls.total()
    assert run(laid, tmp_path / 'a', *of_stub(stub))['report.html'] == second['report.html']
    assert stub.calls.total() == before


def test_a_dead_server_stops_the_work_in_one_line(laid, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, 'FEW', 10)
    stub = OpenAiStub(laid[2], {'dead': 1.0})
    words = 'statements: .* replies failed .first: HTTP 500'
    with pytest.raises(RuntimeError, match=words) as info:
        run(laid, tmp_path / 'a', *of_stub(stub, '--attempts', 1, '--concurrency', 2))
    assert stub.calls.total() < 18 and '\n' not in str(info.value)
    assert not (tmp_path / 'a/training.json').exists()
    stub.rates = {}
    assert len(json.loads(run(laid, tmp_path / 'a', *of_stub(stub))['training.json'])) == 18


def test_other_settings_and_a_second_process_are_refused(laid, tmp_path):
    run(laid, tmp_path / 'a', '--teacher', 'oracle')
    with pytest.raises(ValueError, match='begun with other settings .seed was 0, now 1'):
        run(laid, tmp_path / 'a', '--teacher', 'oracle', '--seed', 1)
    from downscale.runtime.files import lock
    handle = lock(tmp_path / 'a')
    with pytest.raises(RuntimeError, match='in use by another process'):
        run(laid, tmp_path / 'a', '--teacher', 'oracle')
    assert handle


def test_more_pictures_reuse_what_is_there(laid, tmp_path):
    stub = OpenAiStub(laid[2], {})
    run(laid, tmp_path / 'a', *of_stub(stub, '--limit', 5))
    assert stub.calls.total() == 15
    grown = run(laid, tmp_path / 'a', *of_stub(stub))
    assert stub.calls.total() == 3 * 18
    assert len(json.loads(grown['training.json'])) == 18


def test_nobody_is_asked_to_describe_with_spoilt_statements(laid, tmp_path):
    stub = OpenAiStub(laid[2], {'refusal': .4})
    made = run(laid, tmp_path / 'a', *of_stub(stub))
    refused = {row['doc_id'] for row in read(made['statements.jsonl'])
               if 'sorry' in row['text']}
    assert refused and not refused & {row['doc_id'] for row in read(made['descriptions.jsonl'])}


def test_records_of_one_picture_are_joined_and_what_is_no_work_is_counted(laid, tmp_path):
    name = sorted(path.name for path in laid[1].iterdir())[0]
    (tmp_path / 'x.png').write_bytes((laid[1] / name).read_bytes())
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    path = write(tmp_path / 'q.json', [
        talk('1', 'x.png', ('Where is it?', 'here')),
        talk(2, 'x.png', ('Where is it?', 'here'), ('Is it\nAnswer with the option letter.', 'A')),
        talk('3', None, ('Why?', 'because')), talk('4', 'x.png', ('Why?', ' ')),
        talk('5', 'broken.png', ('Why?', 'so')), talk('6', 'gone.png', ('Why?', 'so')),
        talk('7', '../x.png', ('Why?', 'so'))])
    items, skipped = source.read(path, tmp_path)
    item, = items
    assert item.ids == ('1', '2') and item.pairs == (('Where is it?', 'here'), ('Is it', 'A'))
    assert sorted(skipped, key=lambda one: one.id) == [
        Skipped('3', 'no picture: the record shows none'),
        Skipped('4', 'no answer: no reply that could be learnt'),
        Skipped('5', 'picture: unreadable'), Skipped('6', 'picture: there is none'),
        Skipped('7', 'picture: leaves its folder')]


def test_a_picture_that_breaks_off_rejects_its_row_alone(laid, tmp_path):
    pictures = tmp_path / 'pictures'
    shutil.copytree(laid[1], pictures)
    broken = sorted(pictures.iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-150])
    made = run((laid[0], pictures), tmp_path / 'a', *of_stub(OpenAiStub(laid[2], {})))
    rejected, = (row for row in read(made['quality.jsonl']) if not row['accepted'])
    assert rejected['doc_id'] == broken.name
    assert rejected['checks']['reply'] == ['descriptions: unreadable picture']


def test_fewer_pictures_in_between_cost_no_reply(laid, tmp_path):
    stub = OpenAiStub(laid[2], rates={})
    whole = run(laid, tmp_path / 'a', *of_stub(stub))
    asked = sum(stub.calls.values())
    few = run(laid, tmp_path / 'a', *of_stub(stub, '--limit', 2))
    again = run(laid, tmp_path / 'a', *of_stub(stub))
    assert sum(stub.calls.values()) == asked > 6
    assert len(json.loads(few['training.json'])) <= 2
    assert all(again[name] == whole[name] for name in UNTIMED)


def test_a_record_of_another_form_is_counted_and_a_file_that_is_no_list_refused(tmp_path):
    path = tmp_path / 'q.jsonl'
    good = json.dumps(talk('1', 'x.png', ('a', 'b')))
    for bad, name, words in (
            ('{"id": 5}', '5', 'no answer: none of'), ('[]', 'line 2', 'wrong type: line 2'),
            ('{"id": "6", "conversations": [{"from": "me", "value": "x"}]}', '6', 'unknown role'),
            ('{"conversations": [{"from": "gpt", "value": "\\ud800"}]}', 'line 2',
             'bad text: line 2: half a surrogate pair'),
            ('{"id": null, "conversations": []}', 'row1', 'no answer'),
            ('{"id": 9, "ima', 'line 2', 'unreadable row: line 2: no readable JSON'),
            ('{"id": 7, "bild": "x.png", "question": "q", "answer": "a"}', '7',
             "unknown column: 'bild'")):
        path.write_text(f'{good}\n{bad}\n')
        _, skipped = source.read(path, tmp_path)
        assert [one.id for one in skipped] == [name, '1'] and words in skipped[0].reason
    path.write_text('[{"torn')
    with pytest.raises(ValueError, match='the file ends inside it') as info:
        source.read(path, tmp_path)
    assert '\n' not in str(info.value)
    with pytest.raises(FileNotFoundError, match='no file'):
        source.read(tmp_path / 'none.json', tmp_path)


@pytest.mark.parametrize(('more', 'words'), [
    (('--teacher', 'me'), 'must be engine:RUN, openai:URL'),
    (('--teacher', 'openai:ftp://x', '--model', 'm'), 'must be engine:RUN'),
    (('--teacher', 'openai:http://x'), 'say with --model'),
    (('--teacher', 'oracle', '--concurrency', 0), '--concurrency 0 must be above 0'),
    (('--teacher', 'oracle', '--limit', -1), '--limit -1 must be above 0')])
def test_what_cannot_be_done_is_refused_before_work(laid, tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        run(laid, tmp_path / 'a', *more)
    assert not (tmp_path / 'a').exists()


def test_a_data_set_of_scenes_is_a_source(tmp_path):
    parser = argparse.ArgumentParser()
    data_extract.add_arguments(parser)
    data_extract.run(parser.parse_args(['--from', str(small.data()), '--to', str(tmp_path / 'a'),
                                        '--teacher', 'oracle', '--limit', '3', '--quiet']))
    assert len(list((tmp_path / 'a-source/pictures').iterdir())) == 3
    assert sum(1 for _ in lines(tmp_path / 'a/quality.jsonl')) == 3


@pytest.mark.slow
def test_a_model_of_ours_goes_the_whole_way(laid, tmp_path):
    """Untrained, it writes nothing that passes; what it writes does not depend on its slots."""
    limits = dict.fromkeys(steps.LIMITS, 12)
    worded = write(tmp_path / 'p.json', json.loads(steps.DEFAULT.read_text()) | limits)
    folder = study() / 'cells/w32d1-s0/extract'
    made = [run(laid, tmp_path / str(slots), '--teacher', f'engine:{folder}', '--prompts', worded,
                '--limit', 3, '--slots', slots) for slots in (1, 3)]
    assert all(made[0][name] == made[1][name] for name in UNTIMED)
    rows = read(made[0]['quality.jsonl'])
    assert len(rows) == 3 and not any(row['accepted'] for row in rows)
    assert all(row['teacher']['model'] == 'w32d1-s0-extract' and row['tokens_out'] <= 12
               for row in read(made[0]['statements.jsonl']))


def test_a_server_is_asked_without_jax(tmp_path):
    """The program begins, asks (nobody is there) and says so; no library of models was needed."""
    published.put(tmp_path, 'x.png', 0)
    write(tmp_path / 'q.json', [talk('1', 'x.png', ('Where is it?', 'here'))])
    program = ('import sys\nfrom downscale.commands import main\n'
               'from downscale.factory import report\n'
               'code = main.main(sys.argv[1:])\n'
               'print(code, {"jax", "flax", "optax", "orbax"} & {*sys.modules})')
    done = subprocess.run([sys.executable, '-c', program, 'data', 'extract', '--from', 'q.json',
                           '--to', 'x', '--teacher', 'openai:http://127.0.0.1:9/v1', '--model', 'm',
                           '--attempts', '1', '--most-failures', '0', '--quiet'], cwd=tmp_path,
                          env=os.environ | {'PYTHONPATH': str(ROOT)},
                          capture_output=True, text=True)
    assert done.stdout == '1 set()\n' and 'replies failed (first: connection' in done.stderr
