"""Two kinds of world through one seam, and the first is what it was before there was a second."""
import hashlib

import pytest
from ml_collections import ConfigDict

from downscale import config
from downscale.config import Data, Experiment
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.dataset import scene_example, triple_example
from downscale.data.scenes.facts import vocabulary
from downscale.data.scenes.kinds import KINDS, kind_of
from downscale.data.scenes.world import SPLITS, World
from downscale.experiment import sweeps
from downscale.values import from_dict

NONE = Data(similarity_share=0.0)


def cell(**changes):
    return Experiment(name='x', size='x', seed=0, language=None, vision=None, **changes)


def test_the_first_world_makes_the_bytes_that_it_made_before_there_was_a_second():
    content = hashlib.sha256()
    small = World(grid=3, n_shapes=4, max_objects=3, families=('position', 'fact'))
    for world in (World(), small):
        for split in SPLITS:
            for i in range(3):
                for make in (scene_example, triple_example):
                    example, scenes = make(world, split, i)
                    content.update(repr(example).encode())
                    content.update(repr(scenes).encode())
        content.update(repr(vocabulary(world)).encode())
    assert content.hexdigest() == (
        'ce1c90cd5cb684d5b414d809691f56d7c23ec2e3db37caf6cb0e4907ad7ef14d')


def test_a_study_chooses_its_world_by_kind_and_without_one_it_is_the_first():
    hint = World | Clutter
    assert from_dict(hint, {'grid': 3}, 'world') == World(grid=3)
    assert from_dict(hint, {'kind': 'clutter', 'grid': 5}, 'world') == Clutter(grid=5)
    assert from_dict(hint, Clutter(), 'world') == Clutter()
    with pytest.raises(ValueError, match="world.kind: unknown kind 'cluter'; did you mean 'clut"):
        from_dict(hint, {'kind': 'cluter'}, 'world')
    with pytest.raises(ValueError, match="unknown key 'cell_px'"):
        from_dict(hint, {'kind': 'clutter', 'cell_px': 3}, 'world')
    with pytest.raises(ValueError, match='world must be a mapping'):
        from_dict(hint, 3, 'world')


def test_a_cell_of_either_world_is_read_as_it_was_saved(tmp_path):
    for world in (World(grid=3), Clutter(n_facts=8, budgets=())):
        saved = cell(world=world, data=NONE)
        config.save(saved, tmp_path / type(world).__name__)
        read = config.load(tmp_path / type(world).__name__)
        assert read == saved and read.hash == saved.hash
    assert cell(world=Clutter(), data=NONE).hash != cell(data=NONE).hash
    assert cell(world=Clutter(), data=NONE).hash != cell(world=Clutter(seed=1), data=NONE).hash


def test_triples_are_refused_where_the_world_has_none():
    with pytest.raises(ValueError, match='data.similarity_share = 0.1 must be 0') as error:
        cell(world=Clutter())
    assert '\n' not in str(error.value)


def test_settings_of_either_world_can_be_changed_by_path():
    settings = ConfigDict({'world': {'kind': 'clutter'}})
    with settings.unlocked():
        sweeps.set_value(settings, 'world.occlusion', 0.1, 'set')
    assert settings.world.occlusion == 0.1
    with pytest.raises(ValueError, match="did you mean 'occlusion'"):
        sweeps.set_value(settings, 'world.oclusion', 0.1, 'set')


def test_every_kind_answers_everything_that_is_asked_of_it():
    assert set(KINDS) == {World, Clutter}
    for world in (World(), Clutter()):
        kind = kind_of(world)
        scene = kind.sample(world, 'train', 0)
        assert kind.render(world, scene).startswith(b'\x89PNG')
        example, _ = scene_example(world, 'train', 0)
        words = set(kind.vocabulary(world))
        assert set(example.caption.split()) <= words
        assert set(kind.baselines(world, [example])) == {q.family for q in example.questions}
        assert kind.count(world, 'align', 5, 2) == 5
