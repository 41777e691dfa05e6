"""The data set on disk: complete, reproducible, without TensorFlow, and plain about damage."""
import itertools
import json
import pickle
import subprocess
import sys

import pytest
from waiting import LIMIT

from downscale.data.scenes import dataset
from downscale.data.scenes.dataset import build, scene_example, source, triple_example
from downscale.data.scenes.world import World, caption, graph_key, sample
from downscale.runtime.files import held

WORLD = World(grid=3, max_objects=4)
COUNTS = {'train': 24, 'validation': 8, 'test': 8}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return build(WORLD, tmp_path_factory.mktemp('data'), COUNTS, similarity_share=0.25)


def test_what_is_read_equals_what_was_made(folder):
    for split, n in COUNTS.items():
        examples = source(folder, split)
        assert len(examples) == n
        read = {examples[i].scene_id: (examples[i], examples.scenes(i)) for i in range(n)}
        made = [triple_example(WORLD, split, i) for i in range(n // 4)]
        made += [scene_example(WORLD, split, i) for i in range(n - n // 4)]
        assert read == {example.scene_id: (example, graphs) for example, graphs in made}


BUILDER = """
import sys
from downscale.data.scenes.world import World
from downscale.data.scenes.dataset import build
print(build(World(grid=3, max_objects=4), sys.argv[1], {'train': 20, 'test': 8}))
"""


def test_of_two_commands_on_a_fresh_folder_one_builds_and_the_other_waits(tmp_path):
    with held(tmp_path):  # as the first does
        child = subprocess.Popen([sys.executable, '-c', BUILDER, str(tmp_path)], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stderr.readline() == f'waiting for another process that prepares {tmp_path}\n'
        assert not list(tmp_path.rglob('*.array_record*'))
    folder, error = child.communicate(timeout=LIMIT)
    assert child.returncode == 0 and not error
    assert len(source(folder.strip(), 'train')) == 20


def test_a_finished_data_set_that_cannot_be_written_is_read(folder, monkeypatch):
    def refuse(path):
        raise OSError(30, 'Read-only file system', str(path))
    monkeypatch.setattr(dataset, 'held', refuse)
    assert build(WORLD, folder.parents[2], COUNTS, similarity_share=0.25) == folder


def test_the_scene_of_a_record_is_the_first_picture(folder):
    examples = source(folder, 'train')
    for i in range(len(examples)):
        if 'triple' not in examples[i].scene_id:
            assert examples.scene(i) == sample(WORLD, 'train', int(examples[i].scene_id[-6:]))
            assert caption(examples.scene(i)) == examples[i].caption


def test_an_index_outside_the_split_is_refused_so_iteration_ends(folder):
    examples = source(folder, 'test')
    assert examples[-1] == examples[7]
    assert len(list(itertools.islice(examples, 20))) == 8
    with pytest.raises(IndexError, match='example 8 of 8'):
        examples[8]


def test_a_source_can_be_sliced_by_tfds_and_sent_to_a_worker(folder):
    half = source(folder, 'train[:50%]')
    assert len(half) == 12
    assert pickle.loads(pickle.dumps(half))[3] == source(folder, 'train')[3]


def test_no_scene_graph_is_in_two_splits(folder):
    keys = {split: {graph_key(scene) for i in range(n)
                    for scene in source(folder, split).scenes(i)} for split, n in COUNTS.items()}
    for one in COUNTS:
        for other in COUNTS:
            assert one == other or not keys[one] & keys[other]


def test_a_plain_tfds_reader_gets_decoded_pictures(folder):
    import tensorflow_datasets as tfds
    record = tfds.builder_from_directory(str(folder)).as_data_source('test')[0]
    assert record['images'][0].shape == (WORLD.side, WORLD.side, 3)
    assert set(record['objects']) >= {'shape', 'color', 'size', 'char', 'cell', 'box'}


def test_building_twice_gives_the_same_bytes(folder, tmp_path):
    again = build(WORLD, tmp_path, COUNTS, similarity_share=0.25)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert any('array_record' in name for name in names)
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_another_world_gets_another_folder_and_the_same_world_is_not_rebuilt(folder):
    root, calls = folder.parents[2], []
    stamp = (folder / 'baselines.json').stat().st_mtime_ns
    assert build(WORLD, root, COUNTS, 0.25, lambda *at: calls.append(at)) == folder
    assert not calls and (folder / 'baselines.json').stat().st_mtime_ns == stamp
    other = build(World(grid=3, max_objects=4, seed=1), root, COUNTS, 0.25,
                  lambda *at: calls.append(at))
    assert other != folder and calls == [(i + 1, 40) for i in range(40)]


def test_the_baselines_stand_beside_the_records(folder):
    baselines = json.loads((folder / 'baselines.json').read_text())
    assert set(baselines) == set(COUNTS)
    similarity = baselines['test']['similarity']
    assert (similarity['informed'], similarity['uniform'], similarity['n']) == (0.5, 0.5, 2)
    world = json.loads((folder / 'world.json').read_text())
    assert World(**world['world']) == WORLD and world['counts'] == COUNTS


def test_a_missing_data_set_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match='no data set in .*build') as error:
        source(tmp_path / 'nowhere', 'train')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('harm', [lambda png: png[:len(png) // 2], lambda png: b'',
                                  lambda png: png[:60] + bytes([png[60] ^ 255]) + png[61:]])
def test_a_damaged_picture_names_its_scene_and_what_to_do(tmp_path, monkeypatch, harm):
    whole = dataset.render
    monkeypatch.setattr(dataset, 'render', lambda *scene: harm(whole(*scene)))
    with pytest.raises(ValueError, match='damaged picture of test-.*build it again') as error:
        build(WORLD, tmp_path, {'test': 2}, 0.0)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('counts, share', [({}, 0.1), ({'train': 0}, 0.1), ({'train': 2}, 1.5),
                                           ({'dev': 2}, 0.0)])
def test_senseless_sizes_are_refused(tmp_path, counts, share):
    with pytest.raises(ValueError):
        build(WORLD, tmp_path, counts, share)


KILLED = '''
import os, sys
from downscale.data.scenes.world import World
from downscale.data.scenes.dataset import build
build(World(grid=3, max_objects=4), sys.argv[1], {'test': 6}, 0.0,
      lambda done, total: os._exit(7) if done == 4 else None)
'''
WHOLE = '''
import sys
from downscale.data.scenes.world import World
from downscale.data.scenes.dataset import build, source
folder = build(World(grid=3, max_objects=4), sys.argv[1], {'test': 6}, 0.0)
assert [len(example.images) for example in source(folder, 'test')] == [1] * 6
assert 'tensorflow' not in sys.modules
'''


def test_a_killed_build_is_redone_quietly_and_tensorflow_is_never_imported(tmp_path):
    killed = subprocess.run([sys.executable, '-c', KILLED, tmp_path], check=False,
                            capture_output=True)
    assert killed.returncode == 7
    whole = subprocess.run([sys.executable, '-c', WHOLE, tmp_path], check=False,
                           capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == ''
