"""Records of generated rows: kept through kills, found by content, read from others, joined."""
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small

from downscale import config
from downscale.config import Experiment
from downscale.data.tokens import train_tokenizer
from downscale.evaluate.scoring.sample_files import read_samples
from downscale.model.init import init_params
from downscale.results.samples import Samples, join, key_of, line_of
from downscale.stages.fingerprint import fingerprint
from downscale.train import checkpoint, lazy_leaves


def record(k, **changes):
    return {'key': key_of({'k': k}), 'doc_id': k, 'resps': [[f'tëxt\u2028 {k}']], **changes}


KEYS = [record(k)['key'] for k in range(9)]


def write(folder, ks, process=0):
    samples = Samples.open(folder, 'describe-m', process)
    for k in ks:
        samples.add(record(k))
    samples.close()


def test_the_key_is_the_content_and_not_its_order():
    parts = {'prompt': 'a', 'seed': 0, 'sampling': {'temperature': 0.6}}
    assert key_of(parts) == key_of(dict(reversed(parts.items())))
    others = [{**parts, 'prompt': 'b'}, {**parts, 'seed': 1}, {**parts, 'seed': '0'},
              {**parts, 'sampling': {'temperature': 0.7}}, {**parts, 'more': None}]
    assert len({key_of(other) for other in [parts, *others]}) == 6


def test_equal_rows_give_equal_files_whatever_wrote_them(tmp_path):
    """Any order, any number of processes, rows there twice, kills in between."""
    write(tmp_path / 'plain', range(9))
    Samples.open(tmp_path / 'plain', 'describe-m').finalise(KEYS)
    wanted = (tmp_path / 'plain' / 'describe-m.jsonl').read_bytes()
    assert wanted == b''.join(line_of(record(k)) for k in range(9))
    for processes in (1, 2, 5):
        folder = tmp_path / str(processes)
        order = random.Random(processes).sample(range(9), 9)
        for process in range(processes):
            write(folder, order[process::processes], process)
        shutil.copy(folder / 'describe-m.p0.jsonl', folder / 'describe-m.p11.jsonl')
        (folder / '.describe-m.jsonl.partial').write_bytes(wanted * 2)  # killed while joining
        Samples.open(folder, 'describe-m').finalise(random.Random(0).sample(KEYS, 9))
        assert (folder / 'describe-m.jsonl').read_bytes() == wanted
        assert [path.name for path in folder.iterdir()] == ['describe-m.jsonl']


@pytest.mark.parametrize('cut', [1, 9, 30, -1])
def test_a_torn_line_is_left_out_and_never_continued(tmp_path, cut):
    write(tmp_path, range(3))
    part = tmp_path / 'describe-m.p0.jsonl'
    whole = part.read_bytes()
    end = whole.index(b'\n') + 1
    part.write_bytes(whole[:end] + whole[end:2 * end][:cut])
    samples = Samples.open(tmp_path, 'describe-m')
    assert samples.missing(KEYS[:3]) == KEYS[1:3]
    assert part.stat().st_size > end  # reading changes nothing: another process may be writing
    for k in (1, 2):
        samples.add(record(k))
    samples.close()
    assert part.read_bytes() == whole
    # the part of a process that is gone: nobody mends it, and it is still read
    part.rename(tmp_path / 'describe-m.p7.jsonl')
    (tmp_path / 'describe-m.p7.jsonl').write_bytes(whole[:-3])
    assert Samples.open(tmp_path, 'describe-m').missing(KEYS[:3]) == KEYS[2:3]


def test_a_row_reaches_the_file_before_the_next_one_is_made(tmp_path):
    samples = Samples.open(tmp_path, 'describe-m')
    for k in range(3):
        samples.add(record(k))
        assert Samples.open(tmp_path, 'describe-m', 1).missing(KEYS) == KEYS[k + 1:]
    with pytest.raises(ValueError, match='is there already'):
        samples.add(record(1))
    with pytest.raises(RuntimeError, match='is being written by another process'):
        Samples.open(tmp_path, 'describe-m').add(record(4))
    samples.close()
    assert Samples.open(tmp_path, 'other').missing(KEYS) == KEYS
    assert Samples.open(tmp_path / 'nowhere', 'describe-m').missing([KEYS[0]] * 2) == KEYS[:1]


def fails(call, *told):
    with pytest.raises(ValueError) as error:
        call()
    line = str(error.value)
    assert '\n' not in line and all(part in line for part in told), line


def test_a_damaged_line_names_its_file_and_number(tmp_path):
    write(tmp_path, range(3))
    part = tmp_path / 'describe-m.p0.jsonl'
    whole = part.read_bytes().split(b'\n')
    for bad in (b'{"key": ', b'\xff\xfe', b'[1]', b'{"doc_id": 1}'):
        part.write_bytes(b'\n'.join([whole[0], bad, *whole[2:]]))
        fails(lambda: Samples.open(tmp_path, 'describe-m'), 'describe-m.p0.jsonl: line 2: ')


def test_rows_that_contradict_each_other_are_told_apart(tmp_path):
    write(tmp_path, range(3))
    Samples.open(tmp_path, 'describe-m').finalise(KEYS[:3])
    other = record(1, resps=[['another']])
    (tmp_path / 'describe-m.p2.jsonl').write_bytes(line_of(record(0)) + line_of(other))
    fails(lambda: Samples.open(tmp_path, 'describe-m'), 'describe-m.p2.jsonl: line 2: ',
          'describe-m.jsonl, line 2', '(resps)')


def test_a_file_is_finished_with_all_its_rows_and_with_no_other(tmp_path):
    write(tmp_path, range(5))
    samples = Samples.open(tmp_path, 'describe-m')
    fails(lambda: samples.finalise(KEYS[:7]), '2 of 7 rows are missing')
    assert not samples.path.exists() and len(samples.parts()) == 1
    rows = samples.finalise(KEYS[:4])
    assert rows == [record(k) for k in range(4)] == read_ours(samples.path)
    assert Samples.open(tmp_path, 'describe-m').finalise(KEYS[:4]) == rows  # once more is the same


def read_ours(path):
    return [json.loads(line) for line in path.read_text().split('\n')[:-1]]


# --- records of others ------------------------------------------------------------------------

OLD = {'doc_id': 7, 'target': 'B', 'filtered_resps': ['A cat'], 'resps': [['A cat ']],
       'doc_hash': 'x', 'coarse perception': {'question_id': 7, 'score': 1.0},
       'average': {'question_id': 7, 'score': 1.0}}
NEW = {'doc_id': 7, 'target': 'B', 'filtered_resps': 'A cat', 'token_counts': [None],
       'vqa_score': 0.3}


@pytest.mark.parametrize('written, text, raw, score', [
    (OLD, 'A cat', 'A cat ', 1.0), (NEW, 'A cat', 'A cat', 0.3),
    ({**OLD, 'filtered_resps': [['A cat']]}, 'A cat', 'A cat ', 1.0),
    ({**NEW, 'filtered_resps': []}, None, None, None),
    ({**NEW, 'filtered_resps': [], 'resps': [['so']]}, 'so', 'so', 0.3),
    ({'doc_id': 1, 'filtered_resps': '', 'target': None}, '', '', None),
    ({'doc_id': 1, 'filtered_resps': 'x', 'doc': {'score': 5}}, 'x', 'x', None),
    ({'doc_id': 1, 'filtered_resps': 'x', 'a_score': 0.2, 'score': True}, 'x', 'x', 1.0)])
def test_both_forms_of_the_field_are_read(tmp_path, written, text, raw, score):
    path = tmp_path / 'x_samples_mmstar.jsonl'
    path.write_text(json.dumps(written))  # the field does not always end with a line break
    if text is None:
        return fails(lambda: read_samples(path), 'line 1', 'neither filtered_resps nor resps')
    found, = read_samples(path)
    assert found['filtered_resps'] == [text] and found['resps'] == [[raw]]
    assert found['score'] == score and isinstance(found['target'], str)
    assert found['key'] is found['checkpoint'] is None and found['doc_id'] == written['doc_id']


def test_rows_of_several_hosts_are_read_in_the_order_of_the_data(tmp_path):
    path = tmp_path / 'samples.jsonl'
    path.write_text(''.join(json.dumps({**OLD, 'doc_id': k}) + '\n' for k in (4, 10, 1, 'a', 3)))
    assert [found['doc_id'] for found in read_samples(path)] == [1, 3, 4, 10, 'a']
    path.write_text(path.read_text()[:-9])
    fails(lambda: read_samples(path), 'line 5: no readable JSON')
    path.write_text('{"doc": 1}\n')
    fails(lambda: read_samples(path), 'line 1: no doc_id')


def test_a_record_of_ours_comes_back_as_it_was(tmp_path):
    mine = record(3, filtered_resps=['b'], target='x', score=1.0, task='t', checkpoint='c',
                  prompt_hash='p')
    (tmp_path / 'a.jsonl').write_bytes(line_of(mine))
    assert read_samples(tmp_path / 'a.jsonl') == [mine]


# --- joining ----------------------------------------------------------------------------------

def described(k, **changes):
    return {'doc_id': k, 'task': 'extract', 'checkpoint': 'c', 'prompt_hash': f'p{k}', **changes}


def test_a_description_is_joined_only_where_all_of_it_agrees():
    wanted = [described(k) for k in range(4)]
    texts = [described(k, text=f't{k}') for k in (3, 1, 5, 0, 2)]
    assert {k: found['text'] for k, found in join(texts, wanted).items()} == {
        k: f't{k}' for k in range(4)}
    for name in ('task', 'checkpoint', 'prompt_hash'):
        wrong = [*texts[:3], *(described(k, **{name: 'else'}) for k in (0, 2))]
        fails(lambda: join(wrong, wanted), f'2 of 4 descriptions have another {name}', 'doc_id 0',
              "'else'", 'describe again')
        foreign = [{'doc_id': k, 'text': 'x'} for k in range(4)]
        fails(lambda: join(foreign, wanted), '4 of 4 descriptions have another task', 'None')
    fails(lambda: join(texts[:-2], wanted), '2 of 4 questions have no description', 'doc_id 0')
    fails(lambda: join([*texts, texts[0]], wanted), '1 of 6 descriptions have the doc_id')


# --- the identity of a checkpoint ---------------------------------------------------------------

def saved(folder, params, step=3, **cell):
    """A run folder with one step, written as training does."""
    manager = checkpoint.open_manager(folder, every=1)
    manager.save(step, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params),
                                               meta=ocp.args.JsonSave({})))
    manager.close()
    config.save(
        Experiment(
            name='w32d1-s0',
            size='w32d1',
            seed=0,
            language=small.language(),
            vision=small.VISION,
            **cell,
        ),
        folder,
    )
    train_tokenizer(['a', 'b'], folder / 'tokenizer.json')
    return folder


@pytest.mark.parametrize('whole', [2 ** 22, 2 ** 12])
def test_a_fingerprint_names_the_content_and_not_the_place(tmp_path, monkeypatch, whole):
    """Also where leaves are too large to be read whole."""
    monkeypatch.setattr('downscale.stages.fingerprint.WHOLE', whole)
    params = jax.device_get(init_params(small.model(), 1))
    folder = saved(tmp_path / 'one', params)
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / 'deep' / 'other')
    assert fingerprint(tmp_path / 'deep' / 'other') == fingerprint(Path(folder)) == first
    seen = {first}
    louder = jax.tree.map(np.copy, params)
    louder['language']['blocks']['mlp']['up_DF'][0, 3, 5] += 1
    seen.add(fingerprint(saved(tmp_path / 'louder', louder)))
    seen.add(fingerprint(saved(tmp_path / 'bf16', params, dtype='bfloat16')))
    seen.add(fingerprint(saved(folder, params, step=4)))  # trained further
    train_tokenizer(['a', 'c'], folder / 'tokenizer.json')
    seen.add(fingerprint(folder))
    assert len(seen) == 5
    if whole == 2 ** 22:  # two equal runs, not two copies
        assert fingerprint(saved(tmp_path / 'again', params)) == first


def test_large_leaves_are_told_apart_by_the_parts_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr('downscale.stages.fingerprint.WHOLE', 2 ** 12)
    params = jax.device_get(init_params(small.model(), 1))
    louder = jax.tree.map(np.copy, params)
    louder['tower']['patch_QW'] += 0.1
    folders = [tmp_path / 'a', tmp_path / 'b']
    for folder, tree in zip(folders, (params, louder)):
        leaves = jax.tree.map(lambda leaf: _Leaf(leaf), tree)
        lazy_leaves.save_leaves(folder, leaves, {})
        config.save(
            Experiment(name='m', size='m', seed=0, language=small.language(), vision=small.VISION),
            folder,
        )
    again = tmp_path / 'again'
    lazy_leaves.save_leaves(again, jax.tree.map(lambda leaf: _Leaf(leaf), params), {})
    shutil.copy(folders[0] / 'experiment.json', again)
    found = [fingerprint(folder) for folder in [*folders, again]]
    assert found[0] != found[1] and found[0] == found[2]


class _Leaf:
    """A leaf as an import gives it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.chunk = array, array.shape, array.dtype, \
            array.shape

    def read(self, index=()):
        return self.array[index]
