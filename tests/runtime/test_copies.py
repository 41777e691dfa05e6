"""Copies of what lies in a bucket: what travels, when, and what stops it."""
import errno
import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest
from bucket_proxy import BucketProxy
from roots import ROOT
from waiting import LIMIT

from downscale.runtime import copies

RUN = {'study.json': b'{}', 'cells/a/text/DONE.json': b'{"steps": 1}',
       'cells/a/text/metrics.jsonl': b'', 'cells/a/text/checkpoints/8/params/d/0': bytes(50_000),
       'evaluations/e/items.parquet': b'rows'}
NEEDS = copies.matching('study.json', 'cells/*/*/DONE.json', 'cells/*/*/metrics.jsonl',
                        'evaluations/*/*.parquet')
NEEDED = sorted(set(RUN) - {'cells/a/text/checkpoints/8/params/d/0'})


@pytest.fixture(scope='module')
def proxied(bucket):
    """A proxy before the server of `bucket`, through which this module asks."""
    server = BucketProxy(os.environ['STORAGE_EMULATOR_HOST'].removeprefix('http://'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('STORAGE_EMULATOR_HOST', server.url)
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(proxied, monkeypatch, tmp_path, request):
    """The proxy, with a run of its own name in the bucket and an empty folder of copies."""
    monkeypatch.setenv('DOWNSCALE_COPIES', str(tmp_path / 'copies'))
    copies._known.clear()
    proxied.reset()
    proxied.run = request.node.name.partition('[')[0]
    for name, data in RUN.items():
        proxied.put(f'{proxied.run}/{name}', data)
    return proxied


def copy_of(proxy):
    return copies.local_copy(f'gs://runs/{proxy.run}', NEEDS)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*')
                  if path.is_file() and path.name != copies.MARK)


def asked(proxy):
    """The names below the run that were downloaded since the last `reset`."""
    return [name.removeprefix(f'{proxy.run}/') for name in proxy.names]


# --- what travels -----------------------------------------------------------------------------

def test_only_what_is_needed_travels_and_no_byte_twice(proxy, capfd):
    folder = copy_of(proxy)
    assert names_in(folder) == NEEDED
    assert all((folder / name).read_bytes() == RUN[name] for name in NEEDED)
    # An empty object needs no request; every other byte comes once.
    assert asked(proxy) == [name for name in NEEDED if RUN[name]]
    assert sum(size for _, size in proxy.read) == sum(len(RUN[name]) for name in NEEDED)
    line, = capfd.readouterr().err.splitlines()
    assert line == (f'gs://runs/{proxy.run}: 4 objects, 0.0 kB read into {folder}, 50.0 kB not '
                    'needed or there already')


def test_the_second_time_nothing_is_fetched_and_nothing_is_said(proxy, capfd):
    copy_of(proxy)
    proxy.reset()
    capfd.readouterr()
    copy_of(proxy)
    assert proxy.read == [] and proxy.looks == 1 and capfd.readouterr().err == ''


def test_an_object_that_changed_is_fetched_again_and_one_that_went_goes(proxy):
    copy_of(proxy)
    proxy.reset()
    proxy.put(f'{proxy.run}/study.json', b'[]')  # as many bytes as before
    proxy.delete(f'{proxy.run}/cells/a/text/DONE.json')
    folder = copy_of(proxy)
    assert asked(proxy) == ['study.json'] and (folder / 'study.json').read_bytes() == b'[]'
    assert names_in(folder) == [name for name in NEEDED if 'DONE' not in name]


def test_what_is_written_again_as_it_was_is_another_generation(proxy):
    copy_of(proxy)
    proxy.reset()
    proxy.put(f'{proxy.run}/study.json', RUN['study.json'])
    copy_of(proxy)
    assert asked(proxy) == ['study.json']


def test_a_copy_that_somebody_changed_is_made_anew(proxy):
    folder = copy_of(proxy)
    (folder / 'study.json').write_bytes(b'??')
    copy_of(proxy)
    assert (folder / 'study.json').read_bytes() == b'{}'


def test_the_mark_says_what_is_missing(proxy):
    folder = copy_of(proxy)
    assert json.loads((folder / copies.MARK).read_text()) == {
        'of': f'gs://runs/{proxy.run}', 'gone': [],
        'not_needed': {'cells/a/text/checkpoints': {'bytes': 50_000, 'objects': 1}}}
    copies.local_copy(f'gs://runs/{proxy.run}', copies.matching('**'))
    assert not (folder / copies.MARK).exists()


def test_what_is_needed_later_comes_when_it_is_asked_for(proxy):
    folder = copies.local_copy(f'gs://runs/{proxy.run}', copies.matching('study.json'))
    later = folder / 'evaluations' / 'e' / 'items.parquet'
    assert copies.obtainable(later) and not later.exists() and asked(proxy) == ['study.json']
    assert not copies.obtainable(folder / 'nothing') and copies.is_copy(later)
    copies.fetch([later, later, folder / 'nothing', folder / '..' / 'x'])
    assert later.read_bytes() == b'rows' and len(proxy.read) == 2
    copies.fetch([later])
    assert len(proxy.read) == 2
    proxy.put(f'{proxy.run}/cells/a/text/DONE.json', b'other')
    with pytest.raises(RuntimeError, match='has changed or gone since the command began'):
        copies.fetch([folder / 'cells' / 'a' / 'text' / 'DONE.json'])


def test_a_large_object_comes_in_parts(proxy, monkeypatch):
    monkeypatch.setattr(copies, 'CHUNK_BYTES', 16_000)
    name = 'cells/a/text/checkpoints/8/params/d/0'
    folder = copies.local_copy(f'gs://runs/{proxy.run}', copies.matching(name))
    assert (folder / name).read_bytes() == RUN[name]
    assert sorted(size for _, size in proxy.read) == [2_000, 16_000, 16_000, 16_000]


def test_a_single_object_is_a_file(proxy):
    address = f'gs://runs/{proxy.run}/evaluations/e/items.parquet'
    path = copies.local_copy(address)
    assert path.read_bytes() == b'rows' and str(path).endswith(address.removeprefix('gs://'))
    proxy.delete(f'{proxy.run}/evaluations/e/items.parquet')
    with pytest.raises(FileNotFoundError, match='no gs://runs/.*items.parquet: the bucket has no'):
        copies.local_copy(address)
    assert not path.exists()


def test_a_local_path_is_itself_and_asks_nobody(proxy, tmp_path):
    assert copies.local_copy(str(tmp_path)) == tmp_path and proxy.requests == 0
    assert copies.gone(tmp_path) == [] and copies.results_beside(tmp_path) == tmp_path
    assert str(copies.results_beside('gs://b/runs/mine/')) == 'mine'


# --- a folder that changes --------------------------------------------------------------------

def test_what_goes_while_it_is_read_is_marked(proxy):
    name = 'cells/a/text/DONE.json'

    def delete_once(path, number):
        if path.startswith('/download') and name in path:
            proxy.trouble = lambda path, number: None
            return lambda: proxy.delete(f'{proxy.run}/{name}')
    proxy.trouble = delete_once
    folder = copy_of(proxy)
    assert copies.gone(folder) == [name] and not (folder / name).exists()
    assert names_in(folder) == [other for other in NEEDED if other != name]


def test_what_changes_while_it_is_read_is_read_as_it_is_then(proxy):
    def change_once(path, number):
        if path.startswith('/download') and 'study.json' in path:
            proxy.trouble = lambda path, number: None
            return lambda: proxy.put(f'{proxy.run}/study.json', b'[]')
    proxy.trouble = change_once
    folder = copy_of(proxy)
    assert (folder / 'study.json').read_bytes() == b'[]' and copies.gone(folder) == []


def test_a_folder_that_never_rests_is_told(proxy):
    count = iter(range(10 ** 6))

    def change(path, number):
        if path.startswith('/download') and 'study.json' in path:
            return lambda: proxy.put(f'{proxy.run}/study.json', b'%d' % next(count))
    proxy.trouble = change
    with pytest.raises(RuntimeError, match='1 objects changed in each of 3 tries .* study.json'):
        copy_of(proxy)


def test_two_commands_do_not_copy_at_once(proxy):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(copy_of(proxy))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1 and len(folders) == 4 and len(proxy.read) == len(NEEDED) - 1


# --- outages ----------------------------------------------------------------------------------

@pytest.mark.parametrize('status', [503, 429])
def test_a_few_refusals_are_waited_out(proxy, status):
    proxy.trouble = lambda path, number: status if number in (1, 3, 4) else None
    assert names_in(copy_of(proxy)) == NEEDED


def test_an_outage_that_lasts_is_one_line(proxy, monkeypatch):
    monkeypatch.setattr('gcsfs.retry.random.random', lambda: -100.)  # no pause between the six
    proxy.trouble = lambda path, number: 503
    with pytest.raises(RuntimeError, match=rf'cannot read gs://runs/{proxy.run} now, and may '
                                           'later: refused by the test, 503'):
        copy_of(proxy)
    assert proxy.requests == 6


def test_a_bucket_out_of_reach_is_one_line(proxy, monkeypatch):
    monkeypatch.setattr('gcsfs.retry.random.random', lambda: -100.)
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
    with pytest.raises(RuntimeError, match=rf'cannot read gs://runs/{proxy.run} now, and may '
                                           'later: Cannot connect to host 127.0.0.1:9'):
        copy_of(proxy)


def test_a_full_disk_is_told_as_that(proxy, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(copies.os, 'utime', full)
    with pytest.raises(OSError, match='No space left on device') as error:
        copy_of(proxy)
    assert error.value.errno == errno.ENOSPC and not list(copies.top().rglob('study.json'))


def test_slow_answers_are_waited_for_and_told_of(proxy, monkeypatch, capfd):
    monkeypatch.setattr(copies, 'PROGRESS_SECONDS', 0.3)
    proxy.trouble = lambda path, number: 1.0
    began = time.monotonic()
    assert names_in(copy_of(proxy)) == NEEDED
    assert time.monotonic() - began < 1 + 3 * 1.0  # one after the other
    assert f'gs://runs/{proxy.run}: 1 of 4 objects, 0.0 kB of 0.0 kB' in capfd.readouterr().err


def test_a_server_that_falls_silent_is_asked_again(proxy, monkeypatch):
    import fsspec
    monkeypatch.setattr(copies, 'SILENCE_SECONDS', 1)
    copies._client.cache_clear()
    try:
        proxy.trouble = lambda path, number: 20.0 if number == 2 else None
        began = time.monotonic()
        assert names_in(copy_of(proxy)) == NEEDED
        assert 1 <= time.monotonic() - began < 15
    finally:
        copies._client.cache_clear()
        fsspec.filesystem('gs').clear_instance_cache()


@pytest.mark.parametrize('status, says', [
    (403, 'the bucket answered 403; whoever runs this needs the role storage.objectViewer'),
    (401, 'the bucket answered 401; whoever runs this needs'),
    (404, 'no bucket gs://runs')])
def test_who_may_not_read_is_told_in_a_line(proxy, status, says):
    proxy.trouble = lambda path, number: status
    with pytest.raises(OSError, match=says) as error:
        copy_of(proxy)
    assert len(str(error.value)) <= 300 and '\n' not in str(error.value) and proxy.requests == 1


def test_an_address_that_is_none_is_refused(proxy):
    for address in ('gs://', 'gs://../x', 'gs://b/../../x', 'gs://b//x', 'gs://B/x', 'gs://b/\0'):
        with pytest.raises(ValueError, match='names no folder of a bucket'):
            copies.local_copy(address)
    assert proxy.requests == 0


@pytest.mark.parametrize('name, facts, says', [
    ('a/../../../x', {}, 'is no name of a file'), ('a//x', {}, 'is no name of a file'),
    ('study.json', {'contentEncoding': 'gzip'}, 'is stored as gzip')])
def test_an_object_that_no_file_can_be_is_refused(monkeypatch, tmp_path, name, facts, says):
    # The fake server keeps objects as files, and so has none of these.
    facts = {'size': 2, 'generation': '1', **facts}
    monkeypatch.setattr(copies, '_client', lambda: types.SimpleNamespace(
        find=lambda key, detail: {f'{key}/{name}': facts}))
    monkeypatch.setenv('DOWNSCALE_COPIES', str(tmp_path / 'copies'))
    with pytest.raises(ValueError, match=f'gs://runs/x/.*{says}'):
        copies.local_copy('gs://runs/x', copies.matching('**'))
    # What is not needed stops nobody, and is not fetched later either.
    folder = copies.local_copy('gs://runs/x', copies.matching('other'))
    if copies.obtainable(folder / name):  # a path knows no double slash
        with pytest.raises(ValueError, match=says):
            copies.fetch([folder / name])
    assert [path.name for path in folder.rglob('*')] == [copies.MARK]


WITHOUT = """
import sys
sys.modules['gcsfs'] = None
from downscale.commands.main import main
sys.exit(main(['report', 'gs://runs/x']))
"""


def test_a_missing_extra_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, 'DOWNSCALE_COPIES': str(tmp_path)}, timeout=LIMIT,
                          check=False)
    assert done.returncode == 1
    assert done.stderr == "error: to read a bucket (gs://): pip install 'downscale[gcs]'\n"
