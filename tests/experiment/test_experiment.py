"""A cell: read strictly, saved whole, named by what it holds; and every study file is sound."""
import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cells import plain, resolve, smoke
from ml_collections import ConfigDict
from roots import ROOT

from downscale import config
from downscale.config import Experiment
from downscale.data.chat import CHATS
from downscale.data.scenes.conversations import Recipe
from downscale.data.scenes.dataset import scene_example, triple_example
from downscale.data.scenes.facts import vocabulary
from downscale.data.scenes.sampler import Sampler
from downscale.data.tokens import Encoder, load_tokenizer, train_tokenizer
from downscale.experiment import file
from downscale.experiment.expansion import cells_of, language_of
from downscale.experiment.references import parent_folder
from downscale.stage_config import OF_SHRINKING, PolicySettings
from downscale.stage_table import STAGES
from downscale.stages.models import model_of
from downscale.values import from_dict

STUDIES = [*sorted(str(path) for path in (ROOT / 'experiments').glob('*.py')),
           str(ROOT / 'experiments' / 'llm_downscale.py:qwen3')]
SCENES = [str(ROOT / 'experiments' / name) for name in ('smoke.py', 'lookup.py',
                                                        'llm_downscale.py', 'micro_study.py')]


# --- reading ----------------------------------------------------------------------------------

def test_a_cell_survives_its_own_file(tmp_path):
    for cell in smoke():
        config.save(cell, tmp_path / cell.name)
        found = config.load(tmp_path / cell.name)
        assert found == cell and found.hash == cell.hash
        assert isinstance(found.stages[0].rates['tower' if 'tower' in cell.name else 'language'],
                          float)


def damaged(path, value=None, drop=False):
    """`plain()` with the entry at `path` replaced, added or dropped."""
    found = plain()
    *parents, last = path
    node = found
    for name in parents:
        node = node[name]
    if drop:
        del node[last]
    else:
        node[last] = value
    return found


@pytest.mark.parametrize('path, value, message', [
    (('sede',), 1, "experiment: unknown key 'sede'; did you mean 'seed'"),
    (('vision', 'layer'), 1, "experiment.vision: unknown key 'layer'; did you mean 'layers'"),
    (('stages', 1, 'step'), 1, r"experiment.stages\[1\]: unknown key 'step'; did you mean 'steps'"),
    (('seed',), '0', "experiment.seed = '0' must be of type int"),
    (('seed',), 1.5, 'experiment.seed = 1.5 must be of type int'),
    (('seed',), True, 'experiment.seed = True must be of type int'),
    (('seed',), None, 'experiment.seed = None must be of type int'),
    (('remat',), 1, 'experiment.remat = 1 must be of type str'),
    (('remat',), 'ful', "unknown remat 'ful'; did you mean 'full'"),
    (('legacy_structural_loss',), 1, 'legacy_structural_loss = 1 must be of type bool'),
    (('stages', 0, 'rates', 'language'), True, 'rates.language = True must be of type float'),
    (('stages', 0, 'rates', 'language'), '3e-3', "rates.language = '3e-3' must be of type float"),
    (('stages', 0, 'rates'), [1], r'rates must be a mapping, not \[1\]'),
    (('evaluation', 'texts'), 'caption', "evaluation.texts must be a list, not 'caption'"),
    (('evaluation', 'texts'), [1], r'evaluation.texts\[0\] = 1 must be of type str'),
    (('evaluation', 'texts'), ['capton'], "unknown kind 'capton'; did you mean 'caption'"),
    (('evaluation', 'texts'), ['caption', 'brief'], "'brief' is cut from a caption"),
    (('vision',), 3, 'experiment.vision must be a mapping, not 3'),
    (('chat',), 'chatl', "unknown chat 'chatl'"),
    (('dtype',), 'float16', "unknown dtype 'float16'"),
    (('stages', 0, 'name'), 'txt', "unknown stage 'txt'"),
    (('stages', 0, 'rates'), {}, r"trains \['language'\] without a rate"),
    (('stages', 0, 'steps'), 0, r'stages\[0\].steps = 0 must be at least 1'),
    (('stages', 0, 'replay'), {'align': .5, 'text': .5}, 'must sum to less than 1'),
    (('stages', 0, 'loss_norm'), 'tokens', "'tokens'; did you mean 'token'"),
    (('stages', 0, 'batch'), 0, r'stages\[0\].batch = 0 must be at least 1 .*rows'),
    (('optimizer', 'accumulate'), 3, r'batch 16 does not divide .*\(16 % 3 = 1\)'),
])
def test_a_wrong_entry_is_refused_in_one_line_that_names_it(path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        from_dict(Experiment, damaged(path, value))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('path', [('seed',), ('vision', 'patch'), ('stages', 0, 'length')])
def test_a_missing_entry_is_named_and_a_default_may_be_left_out(path):
    with pytest.raises(ValueError, match=f'missing key {path[-1]!r}'):
        from_dict(Experiment, damaged(path, drop=True))
    assert from_dict(Experiment, damaged(('chat',), drop=True)).chat == 'micro'


def test_a_whole_number_will_do_for_a_rate_and_becomes_one():
    found = from_dict(Experiment, damaged(('stages', 0, 'rates', 'language'), 1))
    assert isinstance(found.stages[0].rates['language'], float)


@pytest.mark.parametrize('content, kind, message', [
    (None, FileNotFoundError, 'is .* a run folder'), ('{"name": "w6', ValueError, 'is damaged'),
    ('{}', ValueError, "missing key 'name'")])
def test_a_lost_or_damaged_file_is_named_in_one_line(tmp_path, content, kind, message):
    if content is not None:
        (tmp_path / 'experiment.json').write_text(content)
    with pytest.raises(kind, match=message) as error:
        config.load(tmp_path)
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


# --- the hash ---------------------------------------------------------------------------------

def leaves(node, path=()):
    if isinstance(node, dict):
        for key, part in node.items():
            yield from leaves(part, (*path, key))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for key, part in enumerate(node):
            yield from leaves(part, (*path, key))
    else:
        yield path, node


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 if value > 0 else value + 0.5 if isinstance(value, float) else value + 1
    return value + 'x' if isinstance(value, str) else value[:-1]


def test_the_hash_changes_with_every_entry():
    whole = from_dict(Experiment, plain())
    assert whole.hash == from_dict(Experiment, plain()).hash
    seen, impossible = {whole.hash}, []
    for path, value in leaves(plain()):
        if value in ([], None) or path in (('budget',), ('label',)):  # labels; nothing was imported
            continue
        try:
            found = from_dict(Experiment, damaged(path, other(value)))
        except ValueError:  # an entry that has one possible value here
            impossible.append(path)
            continue
        assert found.hash not in seen, path
        seen.add(found.hash)
    assert len(seen) > 100
    # Of the stages, one answers here, and has questions without their pictures; texts of a budget
    # are written in the cluttered world alone; a share of the loss wants a teacher.
    assert sum(path[-1] == 'blind' for path in impossible) == len(whole.stages) - 1
    assert {path[-1] for path in impossible} <= {
        # Of a stage that cuts, writes its own rows, or has a teacher: none does here.
        *OF_SHRINKING, *(field.name for field in dataclasses.fields(PolicySettings)), 0, 1,
        'teacher', 'distil', 'blind', 'budget',
        'K', 'name', 'chat', 'dtype', 'loss_norm', 'accumulate', 'max_objects', 'n_objects',
        'min_objects', 'n_shapes', 'n_colors', 'n_chars', 'grid', 'jitter_px', 'mode', 'trainable',
        'remat', 'attention', 'first_moment', 'kind', 'b1', 'b2', 'data', 'conditions', 'texts'}


def test_attention_that_is_left_to_the_device_changes_no_hash_and_no_file(tmp_path):
    value = plain()
    assert value.pop('attention') == 'auto'
    cell = from_dict(Experiment, value)  # as files of before there was a choice
    assert cell == from_dict(Experiment, plain()) and cell.hash == from_dict(
        Experiment, plain()).hash
    config.save(cell, tmp_path)
    assert 'attention' not in (tmp_path / 'experiment.json').read_text()
    hashes = {cell.hash}
    for program in ('xla', 'cudnn', 'splash'):
        asked = dataclasses.replace(cell, attention=program)
        config.save(asked, tmp_path)
        assert config.load(tmp_path) == asked
        hashes.add(asked.hash)
    assert len(hashes) == 4
    with pytest.raises(ValueError, match="unknown attention 'cudn'; did you mean 'cudnn'"):
        from_dict(Experiment, value | {'attention': 'cudn'})


# --- cells ------------------------------------------------------------------------------------

def test_every_size_has_a_cell_per_seed_and_the_tower_is_shared_by_the_sizes():
    study_config, _ = file.load_study(str(ROOT / 'tests/data/three_sizes.py'), [])
    with study_config.unlocked():
        del study_config['platform']
    found = cells_of(study_config, [dict(size=size, seed=seed) for seed in (0, 3)
                           for size in ('w32d2', 'w64d2')])
    assert [cell.name for cell in found] == ['tower-s0', 'w32d2-s0', 'w64d2-s0',
                                             'tower-s3', 'w32d2-s3', 'w64d2-s3']
    for cell in found:
        stages = [stage.name for stage in cell.stages]
        assert stages == (['tower'] if cell.name.startswith('tower') else
                          [name for name in STAGES if name not in (
                              'tower', 'interleave', 'explain', 'shrink', 'heal', 'practise',
                              'perceive')])
        assert cell.name.endswith(f'-s{cell.seed}')
    small, large = found[1], found[2]
    assert (small.language.D, small.language.N, large.language.D) == (32, 2, 64)
    assert small.language.V == large.language.V == 320
    for name in ('vision', 'world', 'data', 'stages', 'evaluation', 'optimizer'):
        assert vars(small)[name] == vars(large)[name], name
    align = small.stage('align').parents['tower']
    assert parent_folder('s', small, align) == Path('s/cells/tower-s0/tower')
    assert parent_folder('s', small, 'text') == Path('s/cells/w32d2-s0/text')


def test_a_stage_only_differs_by_what_the_table_and_the_file_say():
    for stage in smoke()[1].stages:
        assert stage.parents == STAGES[stage.name].parents
        assert stage.trainable == STAGES[stage.name].trainable
        assert set(stage.trainable) <= set(stage.rates)


@pytest.mark.parametrize('mode', ['flat', 'padded', 'anyres'])
def test_connector_and_tower_see_squashed_pictures_and_later_stages_as_the_cell_says(mode):
    cell = smoke(f'pictures.mode={mode}')[1]
    for stage in STAGES:
        layout = cell.layout(stage)
        assert layout.vision == cell.vision
        assert layout.pictures.mode == ('flat' if stage in ('align', 'tower') else mode)
        assert layout.pictures.grids == cell.pictures.grids
        if stage != 'tower':
            assert model_of(cell, stage).newline == (layout.pictures.mode != 'flat')


def language(size, family='micro'):
    return language_of(family, size, 320)


def test_a_size_outside_the_table_is_built_by_width_and_depth():
    assert dataclasses.replace(language('w96d5'), N=2, D=64, H=4, K=2, F=192) == language('w64d2')
    found = language('w96d5')
    assert (found.N, found.D, found.H, found.K, found.F, found.E) == (5, 96, 6, 3, 288, 16)


@pytest.mark.parametrize('size, family, message', [
    ('w40d2', 'micro', r'width 40: H \(query heads\) = 4 \* 40 / 64 = 2.5 is not whole; '
                       'nearest width is 32'),
    ('w0d2', 'micro', 'width 0 and depth 2 must be at least 1'),
    ('0.6', 'qwen3', "unknown qwen3 size '0.6'; did you mean '0.6b'"),
    ('large', 'micro', "unknown micro size 'large'; known are w32d2, "),
    ('w64', 'micro', "unknown micro size 'w64'; did you mean 'w64d"),
    ('0.6b', 'qwen', "unknown family 'qwen'; did you mean 'qwen"),
])
def test_an_impossible_size_is_refused_with_the_nearest(size, family, message):
    with pytest.raises(ValueError, match=message) as error:
        language(size, family)
    assert '\n' not in str(error.value)


def test_an_unknown_stage_is_refused_with_the_nearest():
    study_config, sweep = file.load_study(str(ROOT / 'experiments' / 'lookup.py'), [])
    study_config = ConfigDict(study_config.to_dict())
    del study_config['platform']
    study_config.stages['reasn'] = study_config.stages['reason']
    with pytest.raises(ValueError, match="stages: unknown stage 'reasn'; did you mean 'reason'"):
        cells_of(study_config, sweep)
    with pytest.raises(ValueError, match="unknown stage 'instrct'; did you mean 'instruct'"):
        smoke()[1].stage('instrct')


# --- the study files --------------------------------------------------------------------------

@pytest.mark.parametrize('study', STUDIES, ids=lambda path: Path(path).stem + path[-6:])
def test_every_study_file_becomes_cells_with_parents_before_children(study):
    found = resolve(study)
    assert len({cell.name for cell in found}) == len({cell.hash for cell in found}) == len(found)
    places = {f'{cell.name}/{stage.name}': (i, k) for i, cell in enumerate(found)
              for k, stage in enumerate(cell.stages)}
    for cell in found:
        for stage in cell.stages:
            for parent in stage.parents.values():
                path = parent_folder('.', cell, parent)
                place = places[f'{path.parent.name}/{path.name}']
                assert place < places[f'{cell.name}/{stage.name}']


class Made:
    """Examples of a world, made as they are asked for; every fifth is a triple of pictures, where
    the study has any."""

    def __init__(self, world, share):
        self.world, self.share, self.made = world, share, {}

    def __len__(self):
        return 100

    def _make(self, index):
        if index not in self.made:
            make = scene_example if index % 5 or not self.share else triple_example
            self.made[index] = make(self.world, 'train', index)
        return self.made[index]

    def example(self, index):
        return self._make(index)[0]

    def scenes(self, index):
        return self._make(index)[1]


@cache
def library(world, share):
    return Made(world, share)


@pytest.fixture(scope='module')
def tokenizer_of(tmp_path_factory):
    @cache
    def made(world):
        path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
        return load_tokenizer(train_tokenizer(vocabulary(world), path))
    return made


@pytest.mark.parametrize('study', SCENES, ids=lambda path: Path(path).stem)
def test_every_stage_of_a_study_file_has_room_for_its_conversations(study, tokenizer_of):
    """A conversation that does not fit would end the run hours in."""
    seen = set()
    for cell in resolve(study):
        for stage in cell.stages:
            encoder = Encoder(tokenizer_of(cell.world), CHATS[cell.chat], cell.layout(stage.name))
            for name in (stage.name, *stage.replay):  # rare in a mixture is certain in a long run
                recipe = Recipe(stage=name, replay=(), loss_norm=stage.loss_norm, turns=stage.turns)
                if (recipe, stage.shape) in seen:
                    continue
                seen.add((recipe, stage.shape))
                sampler = Sampler(
                    recipe=recipe,
                    library=library(cell.world, cell.data.similarity_share),
                    encoder=encoder,
                    world=cell.world,
                    shape=stage.shape,
                )
                for index in range(100):
                    arrays = sampler(index, np.random.default_rng(index))
                    assert arrays['tokens'].max() < cell.language.V
    assert seen


@pytest.mark.parametrize('study', SCENES, ids=lambda path: Path(path).stem)
def test_the_limits_of_a_study_file_cut_no_right_reply(study, tokenizer_of):
    cell = resolve(study)[-1]
    plan, encoder = cell.evaluation, Encoder(tokenizer_of(cell.world), CHATS[cell.chat],
                                             cell.layout('instruct'))

    def longest(texts):  # with the token that ends each
        return max(len(encoder.ids(text)) + 1 for text in texts)
    made = library(cell.world, cell.data.similarity_share)
    for example in (made.example(index) for index in range(100)):
        for question in example.questions:
            assert longest([question.answer]) <= plan.answer
            assert longest([example.caption, question.extraction.text]) <= plan.write
            assert longest([question.trace.text, question.trace.scan]) <= plan.think
    assert plan.scenes <= cell.data.test
