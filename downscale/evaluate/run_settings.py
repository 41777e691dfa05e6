"""What decides the rows of a folder: its settings, which must not change, and a row's own seed."""
import json
import zlib
from pathlib import Path

from downscale.runtime.files import read_json, write_json


def sample_of(*parts):
    """Return the uint32 that a row's randomness hangs on: what is asked, never where it stands."""
    return zlib.crc32(json.dumps(parts).encode())


def begin(out, settings, alone=True):
    """`out` is a folder with these settings; ValueError naming what differs from earlier ones.

    Earlier ones under which nothing was written give way, unless other processes may be about to.
    """
    path = Path(out) / 'settings.json'
    there = {file.name for file in Path(out).iterdir() if not file.name.startswith('.')} \
        if Path(out).is_dir() else set()
    if path.name not in there:
        if there:
            raise ValueError(f'{out} holds something else; give an empty or new folder')
        write_json(path, settings)
        return
    before = _flat(read_json(path))
    now = _flat(settings)
    changed = sorted(name for name in before.keys() | now.keys()
                     if before.get(name) != now.get(name))
    if changed and alone and there == {path.name}:
        write_json(path, settings)
    elif changed:
        told = '; '.join(f'{name} was {before.get(name, "not there")}, now '
                         f'{now.get(name, "not there")}' for name in changed)
        raise ValueError(f'{out} was begun with other settings ({told}); give another folder with '
                         '--out, or those settings')


def _flat(value, above=''):
    """Return {dotted name: leaf} of nested dicts."""
    if not isinstance(value, dict):
        return {above: value}
    return {name: leaf for key, part in value.items()
            for name, leaf in _flat(part, f'{above}.{key}' if above else key).items()}
