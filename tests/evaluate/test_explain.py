"""One model that writes what it sees and thinks, then answers: its rows, answers, costs, claims."""
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from roots import ROOT

from downscale.analysis import absent, claims, costs, measures, pareto, synth
from downscale.analysis.measures import Missing
from downscale.commands import main
from downscale.data.chat import CHATS, render
from downscale.data.records import THINK
from downscale.data.scenes import clutter_conversations, conversations
from downscale.data.scenes.clutter_facts import NOTHING, knowledge
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.dataset import scene_example
from downscale.data.templates import Template
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.results.items import read_items
from downscale.results.study import Cell, load_study
from downscale.stages import inputs
from downscale.study.tasks import tasks_of
from downscale.view.columns import views_of
from downscale.view.runs import open_runs

SETTINGS = ('data.train=64', 'data.validation=1', 'data.test=2', 'evaluation.scenes=2',
            'data.similarity_share=0.0')
WORLD = Clutter(n_facts=16, exposures=20)


def cells(explain, **evaluation):
    """The cells of one size whose stage 'explain' has these settings too."""
    config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), SETTINGS)
    with config.unlocked():
        del config['platform']
        picture = config.stages.instruct.to_dict()
        config.stages.explain = {**picture, **explain}
        config.evaluation.update(evaluation)
    return cells_of(config, [{'size': 'w32d2', 'seed': 0}])


# --- what it learns -------------------------------------------------------------------------------

@pytest.mark.parametrize('world', ['first', 'cluttered'])
def test_a_reply_is_the_extraction_the_steps_and_the_answer(world):
    if world == 'first':
        library, mixtures, settings = small.library(), conversations.MIXTURES, small.WORLD
        example = library.example(3)
    else:
        example, settings = scene_example(WORLD, 'train', 3)[0], WORLD
        library, mixtures = None, clutter_conversations.MIXTURES

    class One:
        def example(self, index):
            return example
    talk = mixtures['explain'](library or One(), 3, np.random.default_rng(0), settings, 4, ' ')
    by_text = {question.text: question for question in example.questions}
    assert talk.images == example.images and len(talk.turns) == 8
    for k in range(0, 8, 2):
        asked, reply = talk.turns[k:k + 2]
        question = by_text[asked.text.rpartition('<image> ')[2]]
        thought, _, answer = reply.text.partition(f' {THINK[1]} ')
        assert thought == f'{question.extraction.text} {question.trace.text}'
        assert answer == question.answer and reply.thinking is True and asked.thinking is None


def test_facts_of_the_cluttered_world_are_recalled_behind_nothing_to_see():
    example = scene_example(WORLD, 'train', 0)[0]

    class One:
        def __len__(self):
            return 1

        def example(self, index):
            return example
    values = {known.fact.question: known for known in knowledge(WORLD).told}
    count = clutter_conversations.count(WORLD, 'explain', 1, 4)
    assert count > 2
    for index in range(1, count):
        talk = clutter_conversations.conversation('explain', One(), index,
                                                  np.random.default_rng(0), WORLD, 4, ' ')
        for asked, reply in zip(talk.turns[::2], talk.turns[1::2], strict=True):
            known = values[asked.text.rpartition('<image> ')[2]]
            assert reply.text == f'{NOTHING} {known.trace} {THINK[1]} {known.fact.value}'
            assert reply.thinking is True


@pytest.mark.parametrize('settings, message', [
    (dict(blind=0.1), 'stage explain: `blind` is the share .* a stage that answers at once'),
    (dict(mixture='somewhere'), 'stage explain writes what a question needs .* leave `mixture`')])
def test_what_would_teach_it_to_invent_is_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        cells(settings)
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize('name', ['explain', 'reason', 'text', 'instruct'])
def test_a_chat_that_drops_the_thoughts_of_earlier_replies_is_refused(name):
    """What would be left of them are answers at once, learnt by a stage that is to think."""
    def of_chat(turns):
        config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), (*SETTINGS,
                                                                              'chat=qwen3'))
        with config.unlocked():
            del config['platform']
            config.stages.explain = config.stages.instruct.to_dict()
            if name == 'instruct':  # thinks in what it replays alone
                config.stages.instruct.replay = {'reason': 0.1}
            for stage in ('text', 'reason', 'explain', name):
                config.stages[stage].turns = 1
            config.stages[name].turns = turns
        return cells_of(config, [{'size': 'w32d2', 'seed': 0}])[-1]
    message = f"stage {name}: chat 'qwen3' keeps the thought of the last .* turns to 1"
    with pytest.raises(ValueError, match=message) as error:
        of_chat(5)
    assert len(str(error.value)) <= 300
    # One question a conversation keeps its thought.
    cell = of_chat(1)
    for stage in ('explain', 'reason'):
        for seed in range(9):
            talk = conversations.MIXTURES[stage](small.library(), 3, np.random.default_rng(seed),
                                                 small.WORLD, cell.stage(stage).turns, ' ')
            learnt = [text for text, weight in render(CHATS['qwen3'], talk.turns) if weight]
            thinks = talk.turns[-1].thinking
            assert len(learnt) == 1 and all(mark in learnt[0] for mark in THINK) == bool(thinks)


def test_an_imported_template_that_drops_thoughts_is_refused(tmp_path, monkeypatch):
    text = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content']WHAT }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    cell = cells({})[-1]

    def sampler(what):
        form = Template(text=text.replace('WHAT', what), ends=('<|im_end|>',))
        monkeypatch.setattr(type(cell), 'chat_of', lambda self, stage: form)
        inputs.sampler_of(tmp_path, cell, cell.stage('explain'))
    with pytest.raises(ValueError, match='the chat template drops thoughts') as error:
        sampler(".split('</think>')[-1]")
    assert len(str(error.value)) <= 300
    # What keeps them gets as far as the tokenizer that nobody has trained here.
    with pytest.raises(FileNotFoundError, match='tokenizer'):
        sampler('')


# --- a study of it --------------------------------------------------------------------------------

def test_it_is_asked_beside_the_joint_model_and_waits_for_its_own_stage():
    tasks = {task.name: task for task in tasks_of(cells({}))}
    assert tasks['evaluate explained w32d2-s0'].needs == ('w32d2-s0/explain',)
    assert tasks['evaluate joint w32d2-s0'].needs == ('w32d2-s0/instruct',)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    """A study of one size, through the console."""
    folder = tmp_path_factory.mktemp('explain')
    path = folder / 'study.py'
    text = (ROOT / 'tests/data/three_sizes.py').read_text()
    path.write_text(text.replace("caption=dict(steps=15", "explain=dict(steps=3, rates=rates, "
                                 "**{**picture, 'length': 200}), caption=dict(steps=3")
                    .replace('steps=120', 'steps=3').replace('steps=40', 'steps=3')
                    .replace('steps=15', 'steps=3').replace("('w32d2', 'w64d2', 'w64d4')",
                                                            "('w32d2',)"))
    sets = [word for setting in SETTINGS for word in ('--set', setting)]
    assert main.main(['study', str(path), '--out', str(folder / 'run'), '--jobs', '1', '--quiet',
                      *sets]) == 0
    return folder / 'run'


def test_its_answers_stand_behind_a_thought_and_the_report_tells_them_apart(study):
    rows = read_items(study / 'evaluations/explained-w32d2-s0/items.parquet').to_pylist()
    joint = read_items(study / 'evaluations/joint-w32d2-s0/items.parquet').to_pylist()
    assert len(rows) == len(joint) > 0
    assert {row['condition'] for row in rows} == {'image', 'blind', 'shuffled'}
    for row in rows:
        assert row['thinking'] and row['close'] and not row['r_run'] and not row['text_kind']
        assert row['p_run'] == 'w32d2-s0' and row['n_think_tokens'] <= 104
    s = measures.scored(load_study(study), 50)
    size, = measures.answering_sizes(s)
    # Numbers of the joint model are those of answers at once, as ever.
    assert measures.joint_cells(s, size, 'image') == [Cell('w32d2-s0', '', '', False, 'image')]
    explained = Cell('w32d2-s0', '', '', True, 'image')
    assert measures.explained_cells(s, size, 'image') == [explained]
    assert absent.absent(s) == []
    assert 'joint w32d2, explained' in pareto.ways(s)
    report = json.loads((study / 'report' / 'report.json').read_text())
    ways = {(row['way'], row['mode']) for row in report['health']}
    assert {('joint', 'direct'), ('joint', 'think')} <= ways


def test_the_explorer_shows_its_answers_with_their_thoughts_beside_answers_at_once(study, tmp_path):
    shutil.copytree(study, tmp_path / 'run')
    path = tmp_path / 'run/evaluations/explained-w32d2-s0/items.parquet'
    table = pq.read_table(path)
    # A model this young closes its thoughts at once.
    rows = [{**row, 'thought': 'a ring is seen'} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    out = tmp_path / 'items'
    assert main.main(['view', str(tmp_path / 'run'), '--bundle', str(out)]) == 0
    pages = list((out / 'items').glob('*.html'))
    assert pages
    for page in pages:
        _, _, explained = page.read_text().partition('<h3>Sizes with the picture, explained</h3>')
        assert 'a ring is seen' in explained.partition('</table>')[0]
    views = views_of(open_runs([study]))
    of_views = {name: [column.label for column in view.columns] for name, view in views.items()}
    assert of_views['sizes-image'] == of_views['explained-image'] == ['w32d2']
    assert {'image', 'image, explained'} <= set(of_views['size-w32d2'])
    column, = views['explained-image'].columns
    assert column.cells == {0: Cell('w32d2-s0', '', '', True, 'image')}


def test_it_costs_what_its_own_stage_cost(study):
    s = measures.scored(load_study(study), 50)
    at_once, explained = (Cell('w32d2-s0', '', '', thinking, 'image') for thinking in (False, True))
    assert costs.stage_of_cell(s, explained) == ('w32d2-s0', 'explain')
    flops = [costs.of_cell(s, cell, 'train_flops') for cell in (at_once, explained)]
    own = costs.stages_of(s)['w32d2-s0', 'explain'].flops
    assert flops[1] - flops[0] == own > 0
    found = claims.CONTRASTS['explained_minus_joint'](s, 'think')
    assert found.by_size.keys() == {'w32d2'}
    assert found.doubt.startswith('w32d2: explained has ') and 'training FLOPs' in found.doubt
    assert not found.one_sided


def test_an_explained_answer_that_is_lost_is_missed(study, tmp_path):
    shutil.copytree(study, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run/evaluations/explained-w32d2-s0')
    s = measures.scored(load_study(tmp_path / 'run'), 50)
    assert [name for name, _ in absent.absent(s)] == [
        f'w32d2-s0, joint, think, {condition}' for condition in ('blind', 'image', 'shuffled')]


def test_explained_answers_do_not_pass_for_answers_at_once_that_are_still_to_come(study, tmp_path):
    shutil.copytree(study, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run/evaluations/joint-w32d2-s0')
    s = measures.scored(load_study(tmp_path / 'run'), 50)
    assert measures.answering_sizes(s) == []
    assert [way for way in pareto.ways(s) if '->' not in way] == ['joint w32d2, explained']
    views = views_of(open_runs([tmp_path / 'run']))
    assert 'explained-image' in views and 'sizes-image' not in views


# --- claims ---------------------------------------------------------------------------------------

def planted(folder, gain):
    """A study of two sizes in which to explain adds `gain` to the accuracy of visual families."""
    synth(5, folder, sizes=2, seeds=3, items=320, full=False)
    rng = np.random.default_rng(1)
    for path in sorted(folder.glob('evaluations/*/items.parquet')):
        rows = pq.read_table(path).to_pylist()
        rows = [row for row in rows if not row['r_run'] and row['condition'] == 'image']
        if not rows:
            continue
        wrong = [row for row in rows if row['category'] == 'visual' and not row['score']]
        visual = sum(row['category'] == 'visual' for row in rows)
        mended = rng.permutation(len(wrong))[:round(gain * visual)]
        for k in mended:
            wrong[k]['score'] = 1.0
        for row in rows:
            row.update(eval_id=f'{row["eval_id"]}-explained', thinking=True, close='natural')
        out = folder / 'evaluations' / f'explained-{path.parent.name}'
        out.mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)),
                       out / 'items.parquet')
    return measures.scored(load_study(folder), 200)


@pytest.mark.parametrize('gain', [0.0, 0.12])
def test_what_explaining_adds_is_found(tmp_path, gain):
    s = planted(tmp_path / 'study', gain)
    found = claims.CONTRASTS['explained_minus_joint'](s, 'think')
    assert found.effect.value == pytest.approx(gain, abs=.01) and len(found.by_size) == 2
    assert (found.effect.low > 0) == (gain > 0)
    against = claims.CONTRASTS['chain_minus_explained'](s, 'think').effect
    plain = claims.CONTRASTS['chain_minus_joint'](s, 'think').effect
    assert against.value == pytest.approx(plain.value - gain, abs=.01)


def test_a_study_without_the_stage_says_so(tmp_path):
    s = measures.scored(synth(5, tmp_path / 'study', sizes=2, seeds=1, items=160, full=False).study,
                        50)
    for name in ('explained_minus_joint', 'chain_minus_explained'):
        with pytest.raises(Missing, match="no size has a stage 'explain'"):
            claims.CONTRASTS[name](s, 'think')
    equal = claims.CONTRASTS['chain_minus_joint_equal_flops'](s, 'think')
    assert equal.effect == claims.CONTRASTS['chain_minus_joint'](s, 'think').effect
    assert 'the pair has' in equal.doubt and not equal.one_sided
