"""Benchmarks in their published forms: reading, asking with and without pictures, and numbers."""
import base64
import csv
import io
import json

import fake_chain
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from question_file import fails

from downscale.commands.benchmark import chain_of, listing, scored
from downscale.commands.main import main, parser
from downscale.evaluate.asked import informed
from downscale.evaluate.benchmark_readers import inline_options
from downscale.evaluate.benchmarks import BENCHMARKS, questions_of
from downscale.evaluate.plan import ChainPlan
from downscale.evaluate.run_settings import begin
from downscale.evaluate.scoring import rescore
from downscale.evaluate.scoring.stored_replies import StoredReply
from downscale.evaluate.scoring.targets import Target
from downscale.generate.engine import Reply

# (index, axes, right answer): axes of three, one and two questions; the index is no row number.
STAR = [(12, 'math', 'geometry', 'A'), (9, 'math', 'geometry', 'B'), (5, 'math', 'geometry', 'A'),
        (3, 'math', 'statistical reasoning', 'D'), (8, 'logical reasoning', 'common', 'C'),
        (0, 'logical reasoning', 'common', 'A')]
SAID = {12: 'A', 9: 'B. blue', 5: 'C', 3: 'Answer: D', 8: 'no idea', 0: 'A'}


def png(k):
    data = io.BytesIO()
    Image.new('RGB', (20 + k, 16), (9 * k, 80, 40)).save(data, 'png')
    return data.getvalue()


def picture(k):
    return {'bytes': png(k), 'path': f'{k}.png'}


def parquet(path, rows, group=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def star_rows():
    return [{'index': index,
             'question': f'what is {index} ?\nOptions: A: red, B: blue, C: a, b, D: x',
             'image': picture(k), 'answer': answer, 'category': category, 'l2_category': axis,
             'meta_info': {'source': 's', 'split': 'val', 'image_path': 'p'}}
            for k, (index, category, axis, answer) in enumerate(STAR)]


def star(folder):
    return parquet(folder / 'mmstar.parquet', star_rows())


class Scripted(fake_chain.Fake):
    """An engine that says what `SAID` has for the index in the question, else describes."""

    def reply(self, request, decoding):
        text = self.encoder.text(request.prompt.tokens)
        Scripted.asked.append((text, request.prompt.tiles is not None))
        found = [index for index in SAID if f'what is {index} ' in text]
        said = SAID[found[0]] if len(found) == 1 else 'a picture'
        return Reply(
            ids=(1, 2),
            text=said,
            finish='length' if found == [0] else 'stop',
            nll=float('nan'),
            close='',
            thought=0,
            answered=2,
        )


def chain(out, name, questions, **changes):
    benchmark = BENCHMARKS[name]
    limits = {'think_tokens': 8, 'answer_tokens': 8, 'describe_tokens': 8}
    given = {'plan': ChainPlan(**limits), 'questions': questions,
             'perceptions': (), 'reasoners': (),
             'sighted': fake_chain.runs('perception', 1), 'tail': benchmark.tail,
             'engine': Scripted, **changes}
    return fake_chain.chain(out, **given), benchmark


# --- reading ----------------------------------------------------------------------------------

def test_mmstar_is_read_alike_from_parquet_and_tsv(tmp_path):
    found = questions_of(BENCHMARKS['mmstar'], star(tmp_path))
    assert [asked.id for asked in found.asked] == [str(row[0]) for row in STAR]
    assert [asked.doc_id for asked in found.asked] == list(range(6))
    assert found.asked[3].strata == ('math', 'statistical reasoning')
    assert found.asked[0].target.choices == (('A', 'red'), ('B', 'blue'), ('C', 'a, b'), ('D', 'x'))
    assert found.images(found.asked[5]) == (png(5),) and found.images(found.asked[0]) == (png(0),)
    path = tmp_path / 'MMStar.tsv'
    with open(path, 'w', newline='') as file:
        names = ['index', 'question', *'ABCD', 'answer', 'category', 'l2_category', 'image']
        lines = csv.writer(file, delimiter='\t', lineterminator='\n')
        lines.writerow(names)
        for k, (index, category, axis, answer) in enumerate(STAR):
            # the last row's picture stands in the row of index 12
            data = '12' if k == 5 else base64.b64encode(png(k)).decode()
            lines.writerow([index, f'what\n"is" {index}', 'red', 'blue', 'a, b', 'NA', answer,
                            category, axis, data])
    again = questions_of(BENCHMARKS['mmstar'], path)
    assert [asked.id for asked in again.asked] == [asked.id for asked in found.asked]
    assert again.asked[0].text == 'what\n"is" 12\nOptions:\nA. red\nB. blue\nC. a, b\nD. NA'
    assert again.asked[0].pictures == found.asked[0].pictures == again.asked[5].pictures
    assert again.asked[0].cluster == again.asked[5].cluster != again.asked[1].cluster


def test_options_inside_a_question_are_read_or_left_alone():
    assert inline_options('x\nChoices:\n(A) 3\n(B) 4 cm') == (('A', '3'), ('B', '4 cm'))
    assert inline_options('x') == () == inline_options('Options: B: x, A: y')


ANSWERS = ['red'] * 8 + ['blue'] * 2
PARQUETS = {
    'vmcbench': {'index': 4, 'question': 'q', 'A': 'a', 'B': 'b', 'C': 'c', 'D': 'd', 'answer': 'B',
                 'category': 'GQA'},
    'vmcbench-six': {'index': 4, 'question': 'q', 'A': 'a', 'B': 'b', 'C': 'c', 'D': 'd',
                     'answer': 'B', 'category': 'GQA'},
    'scienceqa': {'question': 'q', 'choices': ['a', 'b'], 'answer': 1, 'hint': 'h', 'task': 't',
                  'subject': 's'},
    'textvqa': {'question_id': 3, 'question': 'wHat', 'answers': ANSWERS, 'ocr_tokens': ['x']},
    'vizwiz': {'question_id': 'VizWiz_val_3.jpg', 'question': 'what', 'answers': ANSWERS},
    'vqav2': {'question_id': 3, 'question': 'what', 'answer_type': 'other', 'answers': [
        {'answer': answer, 'answer_confidence': 'yes', 'answer_id': k}
        for k, answer in enumerate(ANSWERS)]},
    'pope': {'question_id': '1', 'question': 'Is there a cat?', 'answer': 'yes',
             'category': 'popular'}}


@pytest.mark.parametrize('name', PARQUETS)
def test_parquet_benchmarks_have_a_question_a_picture_and_their_right_answers(tmp_path, name):
    path = parquet(tmp_path / 'x.parquet', [{**PARQUETS[name], 'image': picture(1)}])
    found = questions_of(BENCHMARKS[name], path)
    asked, = found.asked
    assert found.images(asked) == (png(1),)
    right = 'red' if 'people' in asked.target.forms else {'pope': 'yes'}.get(name, 'B')
    pred, parsed, score = found.judge(asked, right, False)
    assert (parsed, score) == (True, 1.0) and found.judge(asked, 'zebra', False)[2] == 0.0
    row = StoredReply(text=right, gold=right, target=asked.target, cluster='', question='')
    assert set(rescore.judged([row], BENCHMARKS[name].scorers)[0]) == set(BENCHMARKS[name].scorers)


def test_texts_are_those_that_the_harness_asks(tmp_path):
    def text(name):
        path = parquet(tmp_path / f'{name}.parquet', [{**PARQUETS[name], 'image': picture(1)}])
        benchmark = BENCHMARKS[name]
        return questions_of(benchmark, path).asked[0].text + benchmark.tail

    letter = "Answer with the option's letter from the given choices directly"
    assert text('vmcbench') == f'Question: q\nOptions:\nA. a\nB. b\nC. c\nD. d\n{letter}.\n'
    assert text('scienceqa') == f'Context: h\nq\nA. a\nB. b\n{letter}.'
    assert text('textvqa') == 'What\nAnswer the question using a single word or phrase.'


def test_gqa_joins_pictures_by_their_id_and_misses_none(tmp_path):
    row = {'id': '7', 'imageId': 'n2', 'question': 'who', 'answer': 'man'}
    parquet(tmp_path / 'testdev_balanced_instructions' / 'testdev-0.parquet', [row])
    images = tmp_path / 'testdev_balanced_images' / 'testdev-0.parquet'
    parquet(images, [{'id': f'n{k}', 'image': picture(k)} for k in (1, 2)])
    found = questions_of(BENCHMARKS['gqa'], tmp_path)
    assert found.images(found.asked[0]) == (png(2),)
    assert found.judge(found.asked[0], 'so\nAnswer: Man')[2] == 1.0  # what a reasoner writes
    assert found.judge(found.asked[0], 'Answer: man', False)[2] == 0.0
    parquet(images, [{'id': 'n1', 'image': picture(1)}])
    fails(lambda: questions_of(BENCHMARKS['gqa'], tmp_path), '1 of 1 questions lack a picture',
          error=FileNotFoundError)


@pytest.mark.parametrize('name, row, right', [
    ('coin-ocrvqa', {'answer': 'The Cat'}, 'the cat'),
    ('coin-imagenet', {'answer': 'tabby'}, 'a tabby'),
    ('coin-textvqa', {'answer': ANSWERS}, 'red'), ('coin-scienceqa', {'answer': 'B'}, 'B'),
    ('coin-grounding', {'answer_bbox': '[0.1, 0.1, 0.9, 0.9]', 'size': [20, 16]},
     '[0.1,0.1,0.9,0.9]')])
def test_coin_files_are_read_with_their_own_rules(tmp_path, name, row, right):
    (tmp_path / 'a.png').write_bytes(png(1))
    path = tmp_path / 'test.json'
    path.write_text(json.dumps([{'question_id': 'q', 'image': './a.png', 'text': 'what', **row}]))
    found = questions_of(BENCHMARKS[name], path)
    assert found.images(found.asked[0]) == (png(1),)
    assert found.judge(found.asked[0], right, False)[1:] == (True, 1.0)


@pytest.mark.parametrize('name, row, said', [
    ('coin-vqav2', {'answer': 'C'}, 'c'), ('coin-ocrvqa', {'answer': 'X'}, 'x'),
    ('coin-gqa', {'answer': 'b'}, 'B'), ('coin-scienceqa', {'answer': 'B'}, 'B'),
    ('coin-grounding', {'answer_bbox': [.1, .2, .5, .6], 'size': [9, 9]}, '[0.10,0.20,0.50,0.60]')])
def test_an_answer_of_one_letter_and_a_box_as_a_list_are_judged(tmp_path, name, row, said):
    rows = [{'question_id': 1, 'text': 'which letter?', 'image': 'a.png', **row}]
    (tmp_path / 'a.png').write_bytes(png(1))
    (tmp_path / 'test.json').write_text(json.dumps(rows))
    questions = questions_of(BENCHMARKS[name], tmp_path / 'test.json')
    assert questions.judge(questions.asked[0], said, False)[2] == 1.0


def test_an_answer_that_the_headline_cannot_judge_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(1))
    row = {'question_id': 7, 'text': 'what is it?', 'image': 'a.png', 'answer': 'a long story'}
    (tmp_path / 'test.json').write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="1 of 1 answers do not fit .*coin cannot judge .*'a "
                       "long story'"):
        questions_of(BENCHMARKS['coin-grounding'], tmp_path / 'test.json')


def test_the_answers_of_ten_people_stand_in_the_file_of_textvqa(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(1))
    (tmp_path / 'test.json').write_text(json.dumps([
        {'question_id': 7, 'text': 'brand?', 'image': 'a.png', 'answer': 'nokia'}]))
    alone = questions_of(BENCHMARKS['coin-textvqa'], tmp_path / 'test.json')
    assert alone.asked[0].right is None  # one answer is not what ten people said
    (tmp_path / 'TextVQA_0.5.1_val.json').write_text(json.dumps({'data': [
        {'question_id': 7, 'answers': ['nokia'] * 6 + ['samsung'] * 4}]}))
    questions = questions_of(BENCHMARKS['coin-textvqa'], tmp_path / 'test.json')
    assert questions.judge(questions.asked[0], 'nokia', False)[2] == 1.0


def test_preferences_are_worth_their_votes(tmp_path):
    for k in range(3):
        (tmp_path / f'{k}.png').write_bytes(png(k))
    head = 'id,votes,right_vote,left_vote,ref_path,left_path,right_path,split,is_imagenet\n'
    files = '0.png,1.png,2.png,test,True\n'
    (tmp_path / 'data.csv').write_text(f'{head}1,6,1,0,{files}2,5,0,1,{files}3,7,0,1,{files}')
    nights = questions_of(BENCHMARKS['nights'], tmp_path / 'data.csv')
    assert [asked.id for asked in nights.asked] == ['1', '3']
    assert nights.images(nights.asked[0]) == (png(0), png(1), png(2))
    assert [nights.judge(asked, 'B')[2] for asked in nights.asked] == [1.0, 0.0]
    (tmp_path / 'p.csv').write_text('reference,left,right,share\n0.png,1.png,2.png,0.25\n')
    pieapp = questions_of(BENCHMARKS['pieapp'], tmp_path / 'p.csv')
    assert [pieapp.judge(pieapp.asked[0], said)[2] for said in 'AB'] == [0.75, 0.25]
    for share, told in (('x', "'x' is no number"), ('2', 'from 0 to 1')):
        (tmp_path / 'p.csv').write_text(f'reference,left,right,share\n0.png,1.png,2.png,{share}\n')
        fails(lambda: questions_of(BENCHMARKS['pieapp'], tmp_path / 'p.csv'), 'entry 0', told)


def test_tasks_with_several_pictures_have_their_own_rule_and_group(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(1))

    def row(name, kind, told):
        return {'sample_id': 1, 'image': ['a.png', 'a.png'],
                'metadata': {'dataset': name, 'question_type': kind},
                'conversations': [{'from': 'human', 'value': '<image>\n<image>\nwhat changed'},
                                  {'from': 'gpt', 'value': told}]}
    path = tmp_path / 'x.json'
    path.write_text(json.dumps([row('Spot-the-Diff', 'open-ended', 'the cat left'),
                                row('RAVEN', 'multi-choice', 'B')]))
    found = questions_of(BENCHMARKS['interleave'], path)
    free, choice = found.asked
    assert free.text == 'what changed' and len(found.images(free)) == 2
    assert free.strata == ('Spot-Diff', 'Spot-the-Diff') and choice.strata == ('Puzzle', 'RAVEN')
    assert found.judge(free, 'the cat came')[2] == pytest.approx(2 / 3, abs=1e-6)
    assert found.judge(choice, 'Answer: B')[2] == 1.0
    assert found.judge(free, 'so\nAnswer: the cat left')[2] == pytest.approx(1.0)


def test_damaged_data_is_refused_in_one_line_with_counts(tmp_path):
    rows, mmstar = star_rows(), BENCHMARKS['mmstar']

    def with_rows(rows):
        path = parquet(tmp_path / f'{len(list(tmp_path.iterdir()))}.parquet', rows)
        return lambda: questions_of(mmstar, path)
    fails(with_rows([*rows, rows[0]]), "1 of 7 questions have the id of another (first '12')")
    gone = [{**row, 'image': {'bytes': None, 'path': 'x'}} if k in (1, 2) else row
            for k, row in enumerate(rows)]
    fails(with_rows(gone), "2 of 6 questions lack a picture (first '9')", error=FileNotFoundError)
    fails(with_rows([{'index': 1, 'image': picture(1)}]), "has no 'question'")
    fails(lambda: questions_of(mmstar, tmp_path / 'no'), 'no parquet file', error=FileNotFoundError)
    (tmp_path / 'y.parquet').write_bytes(b'no')
    fails(lambda: questions_of(mmstar, tmp_path / 'y.parquet'), 'no readable parquet')
    fails(lambda: questions_of(mmstar, tmp_path), 'several splits')
    (tmp_path / 'c.json').write_text(json.dumps([{'question_id': 1, 'text': 't', 'answer': 'x',
                                                  'image': '../../etc/passwd'}]))
    fails(lambda: questions_of(BENCHMARKS['coin-ocrvqa'], tmp_path / 'c.json'), 'leaves its folder')


# --- asking and scoring -------------------------------------------------------------------------

def test_the_average_of_mmstar_is_the_mean_over_axes_computed_by_hand(tmp_path):
    out = tmp_path / 'out'
    asked, benchmark = chain(out, 'mmstar', questions_of(BENCHMARKS['mmstar'], star(tmp_path)))
    Scripted.asked = []
    asked.run()
    assert all(seen for _, seen in Scripted.asked) and len(Scripted.asked) == 6
    found, lines = scored(asked, benchmark)
    one = found['answer-w32d1-s0-extract-joint']['ref_stage2']
    # geometry 2 of 3, statistical reasoning 1 of 1, common 1 of 2: not 4 of 6
    assert one['value'] == pytest.approx(4 / 6)
    assert one['average']['value'] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert one['categories']['math']['value'] == pytest.approx((2 / 3 + 1) / 2)
    v04 = found['answer-w32d1-s0-extract-joint']['lmms_v04']  # does not see 'Answer: D'
    assert v04['average']['value'] == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert one['truncated'] == pytest.approx(1 / 6)
    own = found['answer-w32d1-s0-extract-joint']['exact-2']
    assert own['unparsed'] == pytest.approx(1 / 6) and own['completed'] == 4
    assert own['accuracy_completed'] == pytest.approx(3 / 4)
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['headline'] == 'ref_stage2' and summary['scores'] == found
    assert any(line.startswith('ref_stage2') and '0.7222' in line for line in lines)


def test_our_files_feed_a_reader_of_filtered_resps(tmp_path):
    out = tmp_path / 'out'
    asked, _ = chain(out, 'mmstar', questions_of(BENCHMARKS['mmstar'], star(tmp_path)))
    asked.run()
    with open(out / 'answer-w32d1-s0-extract-joint.jsonl', encoding='utf-8') as file:
        samples = {row['doc_id']: row for row in map(json.loads, file)}
    texts = [samples[k]['filtered_resps'][0] for k in range(6)]
    tail = BENCHMARKS['mmstar'].tail
    assert all(samples[k]['input'].endswith(tail) for k in range(6)) and len(tail) > 20
    assert texts == [SAID[index] for index, *_ in STAR]
    assert [samples[k]['score'] for k in range(6)] == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_decoupled_rows_and_joint_rows_stand_beside_each_other_and_resume(tmp_path):
    questions = questions_of(BENCHMARKS['mmstar'], star(tmp_path))
    both = {'perceptions': fake_chain.runs('perception', 1),
            'reasoners': fake_chain.runs('reasoner', 1)}
    asked, benchmark = chain(tmp_path / 'out', 'mmstar', questions, **both)
    Scripted.asked = []
    asked.run()
    found, _ = scored(asked, benchmark)
    assert found.keys() == {'answer-w32d1-s0-extract-joint',
                            'answer-w32d1-s0-reason-from-w32d1-s0-extract-think'}
    first, count = fake_chain.files(tmp_path / 'out'), len(Scripted.asked)
    asked.run()
    scored(asked, benchmark)
    assert fake_chain.files(tmp_path / 'out') == first and len(Scripted.asked) == count
    other, _ = chain(tmp_path / 'out', 'mmstar', questions, **both, tail='?')
    fails(lambda: begin(tmp_path / 'out', other.settings()), 'begun with other settings')


def test_the_command_asks_a_model_and_continues_without_asking_again(tmp_path, capsys):
    run, = fake_chain.runs('perception', 1)
    words = ['benchmark', str(run.folder), '--on', 'mmstar', '--data', str(star(tmp_path)),
             '--out', str(tmp_path / 'out'), '--answer-tokens', '4', '--limit', '3', '--quiet']
    assert main(words) == 0
    first = fake_chain.files(tmp_path / 'out')
    assert first.keys() == {'settings.json', 'summary.json', f'answer-{run.name}-joint.jsonl'}
    assert main(words) == 0 and fake_chain.files(tmp_path / 'out') == first
    assert 'ref_stage2' in capsys.readouterr().out
    assert main(['rescore', str(tmp_path / 'out' / f'answer-{run.name}-joint.jsonl')]) == 0


def test_information_goes_by_the_index_and_never_by_the_row(tmp_path):
    questions = questions_of(BENCHMARKS['mmstar'], star(tmp_path))
    path = tmp_path / 'look.json'
    path.write_text(json.dumps({str(index): f'see {index}' for index, *_ in STAR}))
    found = informed(questions, path, numbers=False)
    assert [asked.information for asked in found.asked] == [f'see {row[0]}' for row in STAR]
    path.write_text(json.dumps({str(k): 'row' for k in range(6)}))
    fails(lambda: informed(questions, path, numbers=False), 'lacks 3 of 6 questions')


def test_yes_and_no_have_precision_and_recall():
    def row(text, gold):
        return StoredReply(
            text=text,
            gold=gold,
            target=Target(answers=(gold,)),
            cluster=text + gold,
            question=text + gold,
        )

    rows = [row('yes', 'yes'), row('Yes.', 'yes'), row('no', 'yes'), row('yes', 'no'),
            row('maybe', 'no')]
    found = rescore.summary(rows, rescore.judged(rows, ['pope', 'yes_no']))
    assert (found['pope']['precision'], found['pope']['recall']) == (0.5, 0.5)
    own = found['yes_no']
    assert own['precision'] == own['recall'] == own['f1'] == pytest.approx(2 / 3)
    assert own['yes'] == 0.6 and own['unparsed'] == 0.2


@pytest.mark.parametrize('words, told', [
    (['RUN', '--on', 'mmstr', '--data', 'x'], "did you mean 'mmstar'"),
    (['--on', 'mmstar', '--data', 'x'], 'give at least one RUN'),
    (['RUN', '--on', 'mmstar', '--data', 'x', '--information', 'y'], 'give --reasoner'),
    (['RUN', '--on', 'mmstar', '--data', 'x', '--slots', '0'], '--slots 0')])
def test_wrong_commands_are_refused_before_any_work(words, told):
    args = parser().parse_args(['benchmark', *words])
    fails(lambda: chain_of(args, None), told)


def test_every_benchmark_tells_its_scorers_and_its_source():
    lines = '\n'.join(listing())
    assert all(name in lines for name in BENCHMARKS)
    assert all(benchmark.source and len(set(benchmark.scorers)) == len(benchmark.scorers)
               for benchmark in BENCHMARKS.values())
