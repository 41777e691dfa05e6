"""A mixture becomes one folder, whole, the same for any number of processes and kills."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import published
import pytest
import small_bpe
from PIL import Image
from roots import ROOT

from downscale.commands import main
from downscale.data.corpora import build as building
from downscale.data.corpora.build import Build, build
from downscale.data.corpora.build_settings import Settings
from downscale.data.corpora.mixture import Corpus, Mixture
from downscale.data.corpora.sources import Source
from downscale.experiment.file import load_mixture

MIXTURES = [path for path in sorted((ROOT / 'experiments' / 'mixtures').glob('*.py'))
            if path.stem != 'easy_vqa']  # see test_smollm_easyvqa.py


def coin_source(name='ScienceQA', **more):
    return Source(name, f'coin/{name}/train.json', images='coin/pictures', licence='ours',
                  obtain='make it', **more)


def mixture(*sources, **more):
    return Mixture('mine', sources or (coin_source(),), **more)


def bytes_of(folder):
    """{name: digest} of every file of a folder but its lock."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir()) if path.name != '.lock'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return published.everything(tmp_path_factory.mktemp('published'))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    small_bpe.tokenizer().save(str(path))
    return path


@pytest.mark.parametrize('path', MIXTURES, ids=lambda path: path.stem)
def test_every_mixture_of_the_paper_builds_from_files_in_the_published_formats(root, tmp_path,
                                                                               path):
    arg = {'instruct_multi459k': ':16',
           'own': ':extraction/GQA.json,coin/pictures'}.get(path.stem, '')
    manifest = build(load_mixture(f'{path}{arg}'), tmp_path, Settings(root=root))
    corpus = Corpus(tmp_path)
    assert len(corpus) == sum(one['accepted'] for one in manifest['sources'].values()) > 0
    assert all(one['licence'] and one['obtain'] and not one['rejected']
               for one in manifest['sources'].values())
    assert Counter(corpus.record(k).source for k in range(len(corpus))) == corpus.counts


def test_the_mixtures_take_what_table_1_of_the_paper_lists():
    single = load_mixture(ROOT / 'experiments/mixtures/instruct_single574k.py')
    assert len(single.sources) == 8 and all(source.take is None for source in single.sources)
    multi = load_mixture(ROOT / 'experiments/mixtures/instruct_multi459k.py')
    again = [source.take for source in multi.sources if source.take]
    assert len(again) == 8 and abs(sum(again) - 150_000) < 8
    assert sum(len(source.only) for source in multi.sources) == len(published.M4)


def test_any_number_of_processes_gives_the_same_bytes(root, tmp_path, monkeypatch):
    monkeypatch.setattr(building, 'CHUNK', 2)
    mine = mixture(coin_source(), coin_source('GQA'))
    seen = []
    build(mine, tmp_path / 'one', Settings(root=root), 1, lambda *told: seen.append(told))
    build(mine, tmp_path / 'two', Settings(root=root), 2)
    assert bytes_of(tmp_path / 'one') == bytes_of(tmp_path / 'two')
    assert len(list((tmp_path / 'one').glob('*.arrayrecord'))) == 6
    assert [told for told in seen if told[0] == 'GQA'] == [('GQA', n, 6) for n in (2, 4, 6)]


KILLED = '''
import sys, time
from pathlib import Path
from downscale.data.corpora import build as building, shards
from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source
building.CHUNK = 2
slowly = shards.pack
shards.pack = lambda record: (time.sleep(0.15), slowly(record))[1]
root, to = map(Path, sys.argv[1:])
building.build(Mixture('mine', tuple(Source(name, f'coin/{name}/train.json', licence='ours',
    images='coin/pictures', obtain='make it') for name in ('ScienceQA', 'GQA'))), to,
    shards.Settings(root=root))
'''


def test_kills_at_any_moment_leave_no_trace(root, tmp_path, monkeypatch):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    rng, kills = np.random.default_rng(0), 0
    while True:
        process = subprocess.Popen([sys.executable, '-c', KILLED, root, tmp_path / 'killed'],
                                   env=environment)
        begun = len(list((tmp_path / 'killed').glob('*.json')))
        while process.poll() is None and len(list((tmp_path / 'killed').glob('*.json'))) == begun:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0 and kills >= 3
    monkeypatch.setattr(building, 'CHUNK', 2)
    build(mixture(coin_source(), coin_source('GQA')), tmp_path / 'whole', Settings(root=root))
    left = {name: found for name, found in bytes_of(tmp_path / 'killed').items()
            if not name.endswith('.partial') and not name.endswith('.partial.npy')}
    assert left == bytes_of(tmp_path / 'whole')


def test_the_manifest_tells_what_was_taken_from_where_and_counts_its_tokens(root, tmp_path,
                                                                            tokenizer):
    manifest = build(mixture(), tmp_path, Settings(root=root, tokenizer=tokenizer))
    one = manifest['sources']['ScienceQA']
    assert (one['rows'], one['accepted'], one['pictures'], one['subset']) == (6, 6, 4, 'all rows')
    # Pictures 0, 1, 3 and 4 of 64 x 64, 120 x 80, 200 x 100 and 64 x 64: the tower's own 729 and
    # what AnyRes adds in one, two or three tiles of 384.
    sizes = [published.SIZES[k % 4] for k in (0, 1, 3, 4)]
    from downscale.data.tiling import token_count
    from downscale.sizes import SIGLIP, Pictures
    shown = [token_count(*size, SIGLIP['so400m-patch14-384'], Pictures('anyres'))
             for size in sizes]
    assert one['tokens']['image']['sum'] == sum(shown)
    learnt = [len(small_bpe.tokenizer().encode(f'{text}<|im_end|>').ids)
              for k in range(6) for text in ('shapes', str(k))]
    assert one['tokens']['supervised']['sum'] == sum(learnt)
    costs = np.concatenate([np.load(tmp_path / shard['costs']) for shard in manifest['shards']])
    assert one['tokens']['all']['sum'] == costs[:, 0].sum() > sum(shown) + sum(learnt)


@pytest.mark.parametrize('size, tokens', [((384, 384), 1485), ((500, 375), 1728),
                                          ((640, 480), 2929), ((1920, 1080), 7269)])
def test_pictures_count_as_the_paper_counts_them_before_packing(tmp_path, tokenizer, size, tokens):
    Image.new('RGB', size, (9, 99, 199)).save(tmp_path / 'a.png')
    published.write_rows(tmp_path / 'rows.json', [
        {'id': 1, 'image': 'a.png', 'conversations': published.turns(('<image>\nq', 'a'))}])
    one = Source('one', 'rows.json', licence='ours', obtain='make it')
    manifest = build(mixture(one), tmp_path / 'to', Settings(root=tmp_path, tokenizer=tokenizer))
    assert manifest['sources']['one']['tokens']['image']['sum'] == tokens


def test_a_subset_is_a_function_of_its_seed_and_rejected_rows_are_replaced(tmp_path):
    published.coin(tmp_path, 'GQA', 12)
    (tmp_path / 'coin/pictures/GQA/3.jpg').unlink()
    (tmp_path / 'coin/pictures/GQA/7.jpg').write_bytes(b'torn')

    def ids(name, **more):
        settings = Settings(root=tmp_path, most_rejected=0.5)
        manifest = build(mixture(coin_source('GQA', **more)), tmp_path / name, settings)
        corpus = Corpus(tmp_path / name)
        return {corpus.record(k).id for k in range(len(corpus))}, manifest['sources']['GQA']
    found = [ids(f'seed{seed}', take=8, seed=seed) for seed in range(4)]
    assert all(len(rows) == 8 == one['accepted'] for rows, one in found)
    assert len({frozenset(rows) for rows, _ in found}) > 1
    assert ids('again', take=8, seed=2)[0] == found[2][0]
    assert any(one['rejected'] for _, one in found)  # some subset met a bad row and still has 8
    assert len(ids('all')[0]) == 10


def test_pictures_mended_between_two_runs_leave_no_trace_in_a_subset(tmp_path, monkeypatch):
    """Which rows replace rejected ones follows from what is rejected now, not at an earlier run."""
    monkeypatch.setattr(building, 'CHUNK', 5)
    published.coin(tmp_path, 'GQA', 30)
    published.coin(tmp_path, 'VizWiz', 4)
    lost = [tmp_path / f'coin/pictures/GQA/{k}.jpg' for k in range(10)]
    last = tmp_path / 'coin/pictures/VizWiz/0.jpg'
    for path in (*lost, last):
        path.unlink()
    mine = mixture(coin_source('GQA', take=15), coin_source('VizWiz'))
    settings = Settings(root=tmp_path, most_rejected=0.9)
    build_first(mine, tmp_path / 'to', settings)
    for k, path in enumerate((*lost[:7], last)):
        path.write_bytes(published.picture(k, 'JPEG'))
    resumed = build(mine, tmp_path / 'to', settings)
    fresh = build(mine, tmp_path / 'fresh', settings)
    assert resumed['sources']['GQA']['accepted'] == 15 and resumed == fresh


def build_first(mine, to, settings):
    """The first source of a mixture is built, as by a run that was stopped then."""
    made = Build(mine, to, settings)
    handle = building.lock(to)
    made._begin()
    with made._workers():
        made._source(mine.sources[0])
    os.close(handle)


def test_rows_of_one_id_are_each_hashed_once(tmp_path):
    rows = [{'id': 7, 'conversations': published.turns((str(k % 500), 'a'))} for k in range(3000)]
    published.write_rows(tmp_path / 'rows.json', rows)
    one = Source('one', 'rows.json', licence='ours', obtain='make it')
    made, calls = Build(mixture(one), tmp_path / 'to', Settings(root=tmp_path)), []
    table = made.tables['one']
    whole = table.digests
    table.digests = lambda indices: calls.append(len(indices)) or whole(indices)
    assert made.run()['sources']['one']['accepted'] == 500 and calls == [3000]


@pytest.mark.parametrize('name, text', [
    ('rows.csv', 'file_name,text\n,' + 'x' * 200_000 + '\n'),
    ('rows.jsonl', '{"id": 2, "x\\ud83d": 1}\n')])
def test_odd_cells_and_keys_are_counted(tmp_path, name, text):
    (tmp_path / name).write_text(text + ('ok,b\n' if name.endswith('csv') else json.dumps(
        {'id': 1, 'conversations': published.turns(('q', 'a'))}) + '\n'))
    one = Source('one', name, licence='ours', obtain='make it')
    if name.endswith('csv'):
        assert len(Build(mixture(one), tmp_path / 'to', Settings(root=tmp_path)).tables['one']) == 2
        return
    told = build(mixture(one), tmp_path / 'to', Settings(root=tmp_path, most_rejected=0.9))
    assert told['sources']['one']['rejected'] == {'bad text': 1}


def test_equal_rows_count_as_duplicates_and_others_of_the_same_id_are_kept(tmp_path):
    rows = [{'id': 7, 'conversations': published.turns((text, 'a'))} for text in 'ppqp']
    published.write_rows(tmp_path / 'rows.json', rows)
    one = Source('one', 'rows.json', licence='ours', obtain='make it')
    manifest = build(mixture(one), tmp_path / 'to', Settings(root=tmp_path))
    corpus = Corpus(tmp_path / 'to')
    assert [corpus.record(k).id for k in range(len(corpus))] == ['7', '7#2']
    assert manifest['sources']['one']['rejected'] == {'duplicate': 2}


def test_too_many_bad_rows_stop_the_build_and_mending_them_lets_it_end(tmp_path):
    published.coin(tmp_path, 'GQA', 6)
    lost = tmp_path / 'coin/pictures/GQA/4.jpg'
    lost.unlink()
    mine, to = mixture(coin_source('GQA')), tmp_path / 'to'
    with pytest.raises(ValueError, match=r'1 of 6 rows so far are rejected \(missing image 1\), '
                       r"more than 1.0%; first 'GQA-4': .*--most-rejected") as caught:
        build(mine, to, Settings(root=tmp_path))
    assert '\n' not in str(caught.value) and not (to / 'manifest.json').exists()
    manifest = build(mine, tmp_path / 'other', Settings(root=tmp_path, most_rejected=0.2))
    assert manifest['sources']['GQA']['rejected'] == {'missing image': 1}
    line, = (tmp_path / 'other' / 'rejected.jsonl').read_text().splitlines()
    assert json.loads(line)['id'] == 'GQA-4'
    lost.write_bytes(published.picture(4, 'JPEG'))
    assert build(mine, to, Settings(root=tmp_path))['sources']['GQA']['accepted'] == 6


def test_a_text_of_a_hundred_thousand_tokens_is_counted_not_stored(tmp_path, tokenizer):
    rows = [{'id': k, 'conversations': published.turns(('q', 'x ' * (100_000 if k == 3 else 5)))}
            for k in range(5)]
    published.write_rows(tmp_path / 'rows.jsonl', rows)
    one = Source('one', 'rows.jsonl', licence='ours', obtain='make it')
    manifest = build(mixture(one), tmp_path / 'to',
                     Settings(root=tmp_path, tokenizer=tokenizer, most_rejected=0.3))
    assert manifest['sources']['one']['rejected'] == {'too long': 1}


@pytest.mark.parametrize('source, message', [
    (Source('one', 'no.json', licence='', obtain='ask for it'), 'To obtain it: ask for it'),
    (Source('one', 'coin/GQA/train.json', images='no', licence='', obtain='ask'), 'no no in'),
    (Source('one', 'coin/GQA/train.json', images='coin/pictures', take=7, licence='', obtain=''),
     'take 7 is more than its 6 rows'),
    (Source('one', 'm4_instruct/m4_instruct_annotations.json', only=('Vist',), licence='',
            obtain=''), 'no row is from Vist; there are AESOP'),
])
def test_a_source_that_is_not_there_stops_before_any_work(root, tmp_path, source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(mixture(coin_source('TextVQA'), source), tmp_path, Settings(root=root))


def test_a_folder_of_another_build_is_refused_and_a_finished_one_left_alone(root, tmp_path):
    first = build(mixture(), tmp_path, Settings(root=root))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('*.arrayrecord')}
    assert build(mixture(), tmp_path, Settings(root=root)) == first
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob('*.arrayrecord')}
    with pytest.raises(ValueError, match='was begun with another mixture'):
        build(mixture(seed=5), tmp_path, Settings(root=root))
    with pytest.raises(ValueError, match='was begun with another length'):
        build(mixture(), tmp_path, Settings(root=root, length=5))
    next(tmp_path.glob('*.arrayrecord')).unlink()
    with pytest.raises(FileNotFoundError, match='lacks 1 shards'):
        Corpus(tmp_path)
    assert build(mixture(), tmp_path, Settings(root=root)) == first and len(Corpus(tmp_path)) == 6


def test_two_builds_of_one_folder_do_not_meet(root, tmp_path):
    other = Build(mixture(), tmp_path, Settings(root=root))
    handle = building.lock(tmp_path)
    with pytest.raises(RuntimeError, match='in use by another process'):
        other.run()
    os.close(handle)


def test_the_console_builds_and_shows_a_mixture(root, tmp_path, tokenizer, capsys):
    file = ROOT / 'experiments/mixtures/extraction382k.py'
    assert not main.main(['data', 'build', str(file), '--root', str(root), '--to', str(tmp_path),
                          '--tokenizer', str(tokenizer), '--jobs', '1', '--quiet'])
    told = capsys.readouterr().out
    assert 'extraction382k: 23 conversations an epoch' in told and 'supervised' in told
    assert not main.main(['data', 'show', str(tmp_path), '--samples', '6'])
    page = (tmp_path / 'show.html').read_text()
    assert page.count('<img') == 6 and '&lt;image&gt;' in page and 'src="http' not in page
    assert main.main(['data', 'show', str(root)]) == 1
    assert 'build the mixture there' in capsys.readouterr().err
    assert main.main(['data', 'build', 'mixtures/no.py', '--to', str(tmp_path)]) == 1
    assert 'no mixture file' in capsys.readouterr().err


def test_a_page_of_samples_escapes_what_the_data_holds(tmp_path):
    published.write_rows(tmp_path / 'rows.json', [
        {'id': '<b>', 'conversations': published.turns(('<script>alert(1)</script>', 'a'))}])
    one = Source('one', 'rows.json', licence='<i>', obtain='make it')
    build(mixture(one), tmp_path / 'to', Settings(root=tmp_path))
    assert not main.main(['data', 'show', str(tmp_path / 'to')])
    page = (tmp_path / 'to' / 'show.html').read_text()
    assert '<script>alert' not in page and '<b>' not in page.partition('<main>')[2]


def test_rows_that_lack_the_picture_of_others_are_rejected_unless_text_is_meant(tmp_path):
    published.put(tmp_path, 'a.png', 0)
    published.write_rows(tmp_path / 'rows.json', [
        {'id': k, 'image': 'a.png' if k else None, 'question': f'q{k}', 'answer': 'a',
         'lecture': 'l', 'source': None} for k in range(4)])

    def made(to, most=0.5, **more):
        one = Source('one', 'rows.json', licence='ours', obtain='make it', **more)
        return build(mixture(one), tmp_path / to, Settings(root=tmp_path, most_rejected=most))[
            'sources']['one']
    told = made('strict')
    assert (told['accepted'], told['rejected']) == (3, {'no picture': 1})
    assert told['left_out'] == {'lecture': 3, 'source': 0} and told['without_picture'] == 0
    assert made('strict') == told == made('again')
    told = made('text', text_rows=True)
    assert (told['accepted'], told['without_picture'], told['rejected']) == (4, 1, {})
    assert told['left_out'] == {'image': 0, 'lecture': 4, 'source': 0}
    with pytest.raises(ValueError, match=r'1 of 4 rows so far are rejected \(no picture 1\)') as e:
        made('few', most=0.1)
    assert len(str(e.value)) <= 300
    assert Corpus(tmp_path / 'text').mixture.sources[0].text_rows
