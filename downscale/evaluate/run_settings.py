"""What decides the rows of a folder: its settings, which must not change, and a row's own seed."""
import json
import zlib
from pathlib import Path
from typing import Any

from downscale.runtime.files import PathLike, read_json, write_json


def sample_of(*parts: str) -> int:
    """Return the uint32 that a row's randomness hangs on: what is asked, never where it stands."""
    return zlib.crc32(json.dumps(parts).encode())


def begin(out: PathLike, settings: dict[str, Any], alone: bool = True) -> None:
    """Write the settings of folder `out`; ValueError naming what differs from earlier ones.

    Earlier settings are replaced if nothing was written under them and this process is `alone`.
    """
    path = Path(out) / 'settings.json'
    there = set()
    if Path(out).is_dir():
        # A name with a dot in front is a file that a killed process did not finish.
        there = {file.name for file in Path(out).iterdir() if not file.name.startswith('.')}
    if path.name not in there:
        if there:
            raise ValueError(f'{out} holds something else; give an empty or new folder')
        write_json(path, settings)
        return
    before = _flat(read_json(path))
    now = _flat(settings)
    changed = sorted(name for name in before.keys() | now.keys()
                     if before.get(name) != now.get(name))
    # As after a first try that did not fit in memory. Other processes may be about to write.
    if changed and alone and there == {path.name}:
        write_json(path, settings)
    elif changed:
        changes = '; '.join(f'{name} was {before.get(name, "not there")}, now '
                            f'{now.get(name, "not there")}' for name in changed)
        raise ValueError(f'{out} was begun with other settings ({changes}); give another folder '
                         'with --out, or those settings')


def _flat(value, above=''):
    """Return {dotted name: leaf} of nested dicts."""
    if not isinstance(value, dict):
        return {above: value}
    leaves = {}
    for key, part in value.items():
        leaves |= _flat(part, f'{above}.{key}' if above else key)
    return leaves
