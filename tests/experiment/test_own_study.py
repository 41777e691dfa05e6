"""A study on one's own data: trained on a mixture, asked questions of one's own, or nothing."""
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_bpe
from PIL import Image
from roots import ROOT

from downscale.commands import main
from downscale.config import Evaluation
from downscale.evaluate import guessers, public
from downscale.evaluate.asked import of_file
from downscale.experiment import file
from downscale.stages.inputs import prepare

STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    stage = dict(steps=2, batch=4, length=160, tiles=4, mixture='built', parents={},
                 rates=dict(language=1e-3, connector=1e-3, tower=1e-3))
    return ConfigDict(dict(
        study='own', platform='cpu', family='micro', vocabulary=400, tokenizer='tokenizer.json',
        chat='chatml', vision=dict(layers=1, W=32, H=2, F=64, patch=14, image=28),
        pictures=dict(mode='padded'), stages=dict(instruct=stage),
        evaluation=dict(batch=8, answer=4, pictures=2, texts=(), benchmarks=dict(
            mine='questions.jsonl'))))

def sweep(arg=''):
    return [dict(size='w32d2', seed=0)]
'''
MIXTURE = '''
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source
def get_mixture(arg=''):
    return Mixture('mine', (Source('mine', 'train.json', licence='own', obtain='own',
                                   images='pictures'),))
'''
COLOURS = {'red': (200, 20, 20), 'blue': (20, 20, 200), 'green': (20, 200, 20)}


def questions():
    """Twelve questions about three pictures, in families of their own, of every form of answer."""
    rows = []
    for k, colour in enumerate(COLOURS):
        images = [f'pictures/{colour}.png']
        rows += [
            {'id': f'c{k}', 'question': 'what colour is it?', 'images': images, 'answer': colour,
             'family': 'colour'},
            {'id': f'l{k}', 'question': 'which one?', 'images': images, 'answer': 'ABC'[k],
             'options': list(COLOURS), 'family': 'choice'},
            {'id': f'y{k}', 'question': 'is it red?', 'images': images, 'family': 'yes',
             'answer': 'yes' if colour == 'red' else 'no', 'scorer': 'yes_no'},
            {'id': f'k{k}', 'question': f'what is {k} and {k}?', 'images': [],
             'answer': [str(2 * k), f'it is {2 * k}']}]
    return rows


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with pictures, a built mixture, a tokenizer and a study file."""
    root = tmp_path_factory.mktemp('own')
    (root / 'pictures').mkdir()
    rows = []
    for name, colour in COLOURS.items():
        Image.new('RGB', (40, 40), colour).save(root / 'pictures' / f'{name}.png')
        rows += [{'id': f'{name}{k}', 'image': f'{name}.png', 'question': 'what colour is it?',
                  'answer': name} for k in range(4)]
    (root / 'train.json').write_text(json.dumps(rows))
    (root / 'mixture.py').write_text(MIXTURE)
    (root / 'study.py').write_text(STUDY)
    small_bpe.tokenizer().save(str(root / 'tokenizer.json'))
    write(root / 'questions.jsonl', questions())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        console('data', 'build', 'mixture.py', '--to', 'built', '--root', '.', '--tokenizer',
                'tokenizer.json', '--jobs', 1, '--quiet')
        yield root


def write(path, rows):
    Path(path).write_text(''.join(json.dumps(row) + '\n' for row in rows))


def console(*argv):
    assert main.main([str(part) for part in argv]) == 0


def run(*more):
    return main.main(['study', 'study.py', '--jobs', '1', '--quiet', *more])


def test_own_questions_are_reported_like_any_others(place):
    assert run('--out', 'runs/own') == 0
    folder = place / 'runs' / 'own'
    rows = pq.read_table(folder / 'evaluations/joint-w32d2-s0/items.parquet').to_pylist()
    assert len(rows) == 3 * 12 and {row['condition'] for row in rows} == {'image', 'blind',
                                                                         'shuffled'}
    assert {row['task']: row['category'] for row in rows} == {
        'colour': 'visual', 'choice': 'visual', 'yes': 'visual', 'mine': 'knowledge'}
    floors = json.loads((folder / 'study.json').read_text())['data']['baselines']
    assert {name: (round(row['constant'], 3), row['n']) for name, row in floors.items()} == {
        'colour': (0.333, 3), 'choice': (0.333, 3), 'yes': (0.667, 3), 'mine': (0.333, 3)}
    assert floors['yes']['majority'] == floors['yes']['informed'] == pytest.approx(2 / 3)
    report = json.loads((folder / 'report' / 'report.json').read_text())
    assert set(report['accuracy']['families']) == {'colour', 'choice', 'yes', 'mine'}
    assert not (folder / 'data').exists() and not (folder / 'tokenizer.json').exists()
    assert len(list((folder / 'pictures').iterdir())) == 2


def test_a_study_that_asks_nothing_says_so(place, capsys):
    assert run('--out', 'runs/none', '--set', 'evaluation.benchmarks={}') == 0
    report = json.loads((place / 'runs/none/report/report.json').read_text())
    assert any('asks nothing' in line for line in report['summary']['sentences'])
    assert not (place / 'runs/none/evaluations').exists()
    assert 'asks nothing' in capsys.readouterr().out


def test_what_is_wrong_is_one_line_before_any_work(place, capsys):
    assert run('--out', 'runs/wrong', '--set', 'evaluation.benchmarks={"mine": "no.jsonl"}') == 1
    line = capsys.readouterr().err
    assert 'no file of questions no.jsonl' in line and line.count('\n') == 1
    assert not (place / 'runs/wrong/cells').exists()


def fails(told, **changes):
    """The items of an evaluation with `changes` are refused in one line."""
    with pytest.raises(ValueError) as caught:
        public.items(Evaluation(**{'texts': (), 'benchmarks': {'mine': 'wrong.jsonl'}} | changes))
    line = str(caught.value)
    assert told in line and '\n' not in line and len(line) <= 300, line


@pytest.mark.parametrize('change, told', [
    ({'answer': None}, "wrong.jsonl: 1 of 12 questions have no answer (first 'c0')"),
    ({'answr': 'x'}, "line 1: unknown field: 'answr'; did you mean 'answer'"),
    ({'scorer': 'exact'}, "line 1: unknown scorer: 'exact'; did you mean 'exact-2'"),
    ({'scorer': 'vqa'}, "vqa cannot judge the answer 'red'; these can: "),
    ({'scorer': 'vqav2', 'answer': ['red', 'crimson']}, 'vqav2 counts the answers of 10 people, '
     'and here are 2; of accepted spellings exact-2 takes each'),
    ({'images': ['pictures/none.png']}, "no picture 'pictures/none.png'"),
    ({'options': ['red']}, 'line 1: unclear answer: 1 options'),
    ({'options': ['blue', 'green']}, "unclear answer: answer 'red' names none of 2 options"),
    ({'answer': 3.5}, 'line 1: wrong type: answer must be a text'),
    ({'answer': [0.1, 0.2, 'x', 0.3]}, 'wrong type: answer must be a text, a whole')])
def test_a_wrong_question_is_refused_by_its_line(place, change, told):
    first, *rest = questions()
    write(place / 'wrong.jsonl', [first | change, *rest])
    fails(told)


@pytest.mark.parametrize('told, changes', [
    ("unknown benchmark 'mien'; did you mean 'mine'", {'scorers': {'mien': 'exact-1'}}),
    ("unknown scorer 'exat-1'; did you mean 'exact-1'", {'scorers': {'mine': 'exat-1'}}),
    ("did you mean 'mmstar'", {'benchmarks': {'mmstarr': 'questions.xls'}}),
    ('12 of 12 questions of mine do not say what to look at', {'texts': ('extraction',)})])
def test_wrong_settings_of_own_questions_name_the_right_ones(place, told, changes):
    write(place / 'wrong.jsonl', questions())
    fails(told, **changes)


def items(rows, **changes):
    write('made.jsonl', rows)
    return public.items(Evaluation(benchmarks={'mine': 'made.jsonl'}, texts=(), **changes))


def test_a_guesser_who_knows_the_wording_is_a_floor_but_not_of_a_single_question(place):
    rows = [{'id': f'{kind}{k}', 'question': text, 'answer': answer, 'family': 'all'}
            for kind, text, answers in (('a', 'is it?', ['yes'] * 9 + ['no'] * 3),
                                        ('b', 'how many?', ['2'] * 6 + ['3'] * 6))
            for k, answer in enumerate(answers)]
    rows += [{'id': f'own{k}', 'question': f'what is {k}?', 'answer': str(100 + k), 'family': 'all'}
             for k in range(8)]
    chance = [item.question.chance for item in items(rows)]
    assert chance == [.75] * 12 + [.5] * 12 + [1 / 8] * 8
    floor = guessers.baselines(items(rows))['all']
    assert floor['majority'] == floor['informed'] == pytest.approx((9 + 6 + 1) / 32)
    assert floor['constant'] == pytest.approx(9 / 32)


def test_a_box_has_a_scorer_of_boxes_and_a_floor_that_overlaps(place):
    rows = [{'id': k, 'question': f'where is {k}?', 'answer': [.1, .1, .5 + k / 100, .5]}
            for k in range(4)]
    made = items(rows)
    assert made[0].judge('[0.1, 0.1, 0.5, 0.5]', False)[2] == 1.0
    assert made[0].judge('[0.6, 0.6, 0.9, 0.9]', False)[2] == 0.0
    assert guessers.baselines(made)['mine']['constant'] == 1.0  # one box overlaps with all four
    rows[0]['answer'] = '[0.1, 0.1, 0.5, 0.5]'
    assert items(rows)[0].judge('[0.1, 0.1, 0.5, 0.5]', False)[2] == 1.0


def test_json_and_parquet_hold_the_same_questions(place):
    wanted = of_file(place / 'questions.jsonl')
    rows = [row for row in questions() if isinstance(row['answer'], str)]
    (place / 'same.json').write_text(json.dumps(rows))

    def inside(row):
        data = [(place / name).read_bytes() for name in row['images']]
        return dict.fromkeys(('options', 'scorer')) | row | {
            'images': [{'bytes': one, 'path': None} for one in data]}

    pq.write_table(pa.Table.from_pylist(list(map(inside, rows))), place / 'same.parquet')
    texts = [asked for asked in wanted.asked if not asked.id.startswith('k')]
    for name in ('same.json', 'same.parquet'):
        found = of_file(place / name)
        assert [(a.id, a.text, a.pictures, a.right, a.scorer) for a in found.asked] == [
            (a.id, a.text, a.pictures, a.right, a.scorer) for a in texts]
        data, = found.images(found.asked[0])
        assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == COLOURS['red']


def scenes(**changes):
    """The first cell of the smoke study, small and with changes of its settings."""
    smoke = ROOT / 'experiments' / 'smoke.py'
    told = {'data.train': 6, 'data.validation': 0, 'data.test': 0, 'evaluation.scenes': 0} | changes
    _, cells = file.open_cells(smoke, [f'{key}={value}' for key, value in told.items()])
    return cells[0]


def test_scenes_that_nobody_is_asked_about_need_not_be_made(tmp_path):
    folder = prepare(tmp_path, scenes())
    assert set(json.loads((folder / 'baselines.json').read_text())) == {'train'}
    for changes, told in (({'evaluation.scenes': 2}, 'data.validation must be at least 1'),
                          ({'data.train': 0}, 'data.train must be at least 1')):
        with pytest.raises(ValueError, match=told):
            prepare(tmp_path / 'other', scenes(**changes))
