"""The JSON files of a study folder, read and checked: a fault is one line with file and field."""
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from downscale.results.items import TableError, one_line
from downscale.results.study_json import RunRow, StudyFile
from downscale.values import from_dict

CURVES = ('step', 'tokens', 'loss', 'reward')  # columns of `metrics.jsonl`

NUMBER = (int, float)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`; None without the file, `TableError` for another value."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise TableError(f'{short(path)}: not readable as JSON: {one_line(error)}') from None
    if not isinstance(value, dict):
        raise TableError(f'{short(path)}: holds {shown(value)}, not a JSON object')
    return value


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return (the JSON objects of the lines of `path`, how many torn lines are left out).

    A killed process leaves half a line, and one that goes on after it writes behind that.
    `TableError` where a line is whole and another value.
    """
    rows = []
    torn = 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            torn += bool(line.strip())
            continue
        if not isinstance(value, dict):
            raise TableError(f'{short(path)}, line {number}: {shown(value)} is no JSON object')
        rows.append(value)
    return rows, torn


def check(value: dict[str, Any], fields: dict[str, Any], where: str) -> None:
    """Raise `TableError` unless the dict `value` has all `fields` {name: type or types}."""
    if not isinstance(value, dict):
        raise TableError(f'{where}: {shown(value)} is no JSON object')
    for name, kinds in fields.items():
        if name not in value:
            raise TableError(f'{where}: field {name!r} is missing')
        if not fits(value[name], kinds):
            raise TableError(f'{where}: field {name!r} is {shown(value[name])}')


def fits(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether a JSON value is of one of the types; truth values and NaN are no numbers."""
    # Python counts True as an int, JSON does not.
    if isinstance(value, bool):
        return kinds is bool
    return isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))


def shown(value: Any) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'


def short(path: Path) -> str:
    """Return a path as an error shows it: its end is what tells files apart."""
    text = str(path)
    return text if len(text) <= 120 else '...' + text[-117:]


def read_study(root: Path) -> dict[str, Any]:
    """Return the content of `root`/study.json; `TableError` where it is missing or wrong."""
    meta = read_object(root / 'study.json')
    if meta is None:
        raise TableError(f'{root}: no study.json, so this is no study folder')
    for error in study_errors(root / 'study.json', meta):
        raise TableError(error)
    return meta


def study_errors(path: Path, meta: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the content of a `study.json`, as lines."""
    runs = meta.get('runs')
    where = short(path)
    if not isinstance(runs, list):
        yield f'{where}: field \'runs\' is {shown(runs)}, not a list of runs'
        return
    faults = list(filter(None, (_fault(run, place) for place, run in enumerate(runs))))
    if faults:
        yield f'{where}: {len(faults)} runs are wrong, first {faults[0]}'
    names = [str(run['run_id']) for run in runs if isinstance(run, dict) and 'run_id' in run]
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        yield f'{where}: {len(again)} run_ids are given twice, first {shown(again[0])}'
    try:
        # Without the runs, whose faults are counted above.
        rest = from_dict(StudyFile, {**meta, 'runs': []}, where)
    except ValueError as error:  # a key of a newer version, or another type
        yield str(error)
    else:
        yield from _baseline_errors(rest.data.get('baselines', {}), where)


def _fault(run, place):
    """Return what is wrong with a run of `study.json`, the one at `place`; None if nothing is."""
    name = run.get('run_id', place) if isinstance(run, dict) else place
    try:
        from_dict(RunRow, run, f'run {shown(name)}')
    except ValueError as error:
        return str(error)
    return None


def _baseline_errors(baselines, where):
    """Yield what is wrong with the baselines of `study.json`, as lines."""
    if not isinstance(baselines, dict):
        yield f'{where}: data.baselines is {shown(baselines)}, not a JSON object'
        return
    for task, of in baselines.items():
        if not isinstance(of, dict):
            yield f'{where}: data.baselines of {shown(task)} is {shown(of)}, not a JSON object'
            continue
        for name in ('majority', 'constant'):
            # A study may have been written without: `analysis/floors.py` then finds its own.
            value = of.get(name, 0)
            if not fits(value, NUMBER) or not 0 <= value <= 1:
                yield (f'{where}: data.baselines of {shown(task)}: {name!r} is {shown(value)}, '
                       'not a share in 0..1')


def read_metrics(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Return (columns step, tokens and loss of the rows that have a loss, how many lines are torn).

    Other rows are evaluations. A loss that is no finite number stays as it is: a run diverged. That
    of a stage with a teacher is its cross-entropy. 'reward' is there where a stage learns from one.
    """
    written, torn = read_lines(path)
    rows = []
    for number, row in enumerate((row for row in written if row.get('loss') is not None), 1):
        values = (row.get('step', number), row.get('tokens', np.nan),
                  row.get('cross_entropy', row['loss']), row.get('reward', np.nan))
        for name, value in zip(CURVES, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) \
                    or name == 'step' and not np.isfinite(value):
                raise TableError(f'{short(path)}: field {name!r} of the {number}th row with a loss '
                                 f'is {shown(value)}, not a number')
        rows.append(values)
    curves = dict(zip(CURVES, np.array(rows, float).reshape(-1, len(CURVES)).T, strict=True))
    if np.isnan(curves['reward']).all():
        del curves['reward']
    return curves, torn


def input_hash(root: Path, patterns: Iterable[str]) -> str:
    """Return SHA-256 over every file that matches one of the patterns, with its path."""
    digest = hashlib.sha256()
    paths = set()
    for pattern in patterns:
        paths.update(path for path in root.glob(pattern) if path.is_file())
    for path in sorted(paths):
        # Path, zero byte, digest of fixed length: what moves to another file changes the hash.
        digest.update(path.relative_to(root).as_posix().encode() + b'\0')
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
