"""Files of jobs in a bucket are read all at once, and say the same as one by one."""
import json

import pytest

from downscale.launch.job_files import Listed, OneByOne, files_of
from downscale.runtime.files import MOST, place, read_json, write_json

LONG = {'reason': 'x' * MOST}


@pytest.fixture
def requests(monkeypatch):
    """The names of the calls to the bucket, in their order."""
    import gcsfs
    called = []
    plain = gcsfs.GCSFileSystem._call

    async def counted(self, method, path, *args, **options):
        called.append((method, path.format(*args) if args else path))
        return await plain(self, method, path, *args, **options)
    monkeypatch.setattr(gcsfs.GCSFileSystem, '_call', counted)
    return called


@pytest.fixture
def run(bucket, request):
    """A run in a bucket: a short file, a long one, one that another program wrote, and others."""
    folder = place(f'{bucket}/{request.node.name}') / 'launch' / 'w32d1-s0' / 'train'
    write_json(folder / 'DONE.json', {'spec': 'abc', 'umlaut': 'ä\n'})
    write_json(folder / 'attempts' / '001.json', {'attempt': 1})
    write_json(folder / 'attempts' / '002.json', LONG)
    (folder / 'attempts' / '003.json').write_bytes(b'{"attempt": 3}')
    (folder / 'logs' / '001-0.json').write_bytes(b'{"no": "interest"}')
    (folder / 'note.txt').write_bytes(b'none')
    return folder.parent.parent.parent


def folder_of(run):
    return place(run) / 'launch' / 'w32d1-s0' / 'train'


def test_a_list_says_what_the_files_say(run):
    listed = files_of(run)
    assert isinstance(listed, Listed)
    folder = folder_of(run)
    direct = OneByOne()
    for name in ('DONE.json', 'attempts/001.json', 'attempts/002.json', 'attempts/003.json',
                 'FATAL.json'):
        assert listed.json(folder / name) == direct.json(folder / name), name
    assert listed.names(folder / 'attempts') == ['001.json', '002.json', '003.json']
    assert listed.names(folder / 'logs') == [] and listed.names(folder / 'nothing') == []


def test_only_what_the_list_does_not_hold_is_fetched_and_only_once(run, requests):
    listed = files_of(run)
    fetched = [path.rpartition('%2F')[2].partition('?')[0] for _, path in requests
               if '/download/' in path]
    assert sorted(fetched) == ['002.json', '003.json']
    requests.clear()
    listed.refresh()
    assert [method for method, _ in requests] == ['GET']   # the list


def test_what_changes_and_goes_is_seen_at_the_next_look(run):
    listed = files_of(run)
    folder = folder_of(run)
    write_json(folder / 'attempts' / '001.json', {'attempt': 7})
    write_json(folder / 'attempts' / '002.json', LONG | {'again': True})
    (folder / 'attempts' / '003.json').unlink()
    assert listed.json(folder / 'attempts' / '001.json') == {'attempt': 1}
    listed.refresh()
    assert listed.json(folder / 'attempts' / '001.json') == {'attempt': 7}
    assert listed.json(folder / 'attempts' / '002.json')['again']
    assert listed.names(folder / 'attempts') == ['001.json', '002.json']


def test_a_damaged_file_is_named_and_a_run_without_jobs_has_none(run, bucket):
    folder = folder_of(run)
    (folder / 'progress.json').write_bytes(b'{"job_step": 1')
    listed = files_of(run)
    with pytest.raises(ValueError, match=r'progress\.json is damaged'):
        listed.json(folder / 'progress.json')
    assert files_of(f'{bucket}/never').names(place(f'{bucket}/never') / 'launch') == []


def test_a_value_in_a_bucket_is_the_file_as_well(bucket):
    path = f'{bucket}/settings.json'
    write_json(path, {'b': 1, 'a': [None, 'ä']})
    assert read_json(path) == {'b': 1, 'a': [None, 'ä']}
    assert place(path).read_text() == json.dumps({'a': [None, 'ä'], 'b': 1}, indent=1) + '\n'
