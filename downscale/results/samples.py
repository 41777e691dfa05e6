"""Generated rows on disk: appended as they finish, found again by what they were made from.

One line is one JSON object in the form that lmms-eval writes per sample (`doc_id`, `target`, `doc`,
`arguments`, `resps`, `filtered_resps`, `score`) with our fields beside it. Its `key` is a hash of
everything that decides the text, so a row is reused whatever the batch size or process count was,
and never where anything else differs. No record holds what depends on time or on the batch.

    <name>.p3.jsonl   rows of process 3, in the order in which they finished
    <name>.jsonl      all rows, sorted; the parts are gone then
"""
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from downscale.data.row_files import fault
from downscale.runtime.files import whole

SYNC_EVERY = 64  # rows between two fsyncs: a power cut costs at most as many
# What must agree, beside `doc_id`, before a text stands for the description that was wanted.
JOINED = ('task', 'checkpoint', 'prompt_hash')


def key_of(parts: dict[str, Any]) -> str:
    """Return the content hash of a dict of JSON values: 32 hexadecimal digits."""
    # Rows on disk are found by this hash: another spelling of the same parts would lose them.
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def line_of(record: dict[str, Any]) -> bytes:
    """Return the bytes of a record: equal records, equal bytes. ValueError for NaN."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b'\n'


class Samples:
    """The records of one stage and model: `records` maps keys to rows, `add` appends one.

    Open with `Samples.open`; `process` is the only one that writes the part of that number.
    """

    def __init__(self, folder: Path, name: str, process: int) -> None:
        self.folder = Path(folder)
        self.name = name
        self.process = process
        self.records = {}
        self._file = None
        self._unsynced = 0

    @classmethod
    def open(cls, folder: Path, name: str, process: int = 0) -> 'Samples':
        """Return the samples `name` below `folder`, with what any earlier run has left there.

        ValueError names file and line of a damaged record and of two that contradict each other.
        """
        samples = cls(folder, name, process)
        samples.reload()
        return samples

    @property
    def path(self) -> Path:
        """Where `finalise` puts all rows."""
        return self.folder / f'{self.name}.jsonl'

    def _part(self, process):
        """Return the path of the part that a process writes."""
        return self.folder / f'{self.name}.p{process}.jsonl'

    def parts(self) -> list[Path]:
        """Return the parts there are, by process number."""
        form = re.compile(re.escape(self.name) + r'\.p(\d+)\.jsonl')
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        numbered = [(int(match[1]), path) for path in there
                    if (match := form.fullmatch(path.name))]
        return [path for _, path in sorted(numbered)]

    def reload(self) -> None:
        """Read into `records` what every process has written so far."""
        parts = self.parts()  # before the file is looked for: process 0 may just turn them into it
        try:
            whole = [self.path] if self.path.is_file() else []
            self.records = merged([*whole, *parts])
        # A part went between listing and reading: process 0 has put all rows in the file.
        except FileNotFoundError:
            self.records = merged([self.path])

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without a row, in order and each once."""
        return [key for key in dict.fromkeys(keys) if key not in self.records]

    def add(self, record: dict[str, Any]) -> None:
        """Write `record`; the operating system has it when this returns."""
        if record['key'] in self.records:
            raise ValueError(f'{self.path}: key {record["key"]} is there already')
        if self._file is None:
            self._file = self._opened()
        self._file.write(line_of(record))
        # Row by row: a killed process loses nothing, and a power cut `SYNC_EVERY` rows at most.
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self._sync()
        self.records[record['key']] = record

    def _opened(self):
        """Return the part of this process, open to append; a torn last line is cut off."""
        path = self._part(self.process)
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            # Locked before the cut below: another process may be in the middle of that last line.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise RuntimeError(f'{path} is being written by another process; wait for it or stop '
                               'it, or give each process its own number') from None
        os.ftruncate(handle, path.read_bytes().rfind(b'\n') + 1)
        return os.fdopen(handle, 'ab')

    def _sync(self):
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Put what was added on disk, and free the part for another process."""
        if self._file is not None:
            self._sync()
            self._file.close()
            self._file = None

    def finalise(self, keys: Collection[str]) -> list[dict[str, Any]]:
        """Write one file with exactly the rows of `keys`, remove the parts, and return the rows.

        They are sorted by doc_id and key: equal rows give equal bytes, however they were made.
        ValueError when a row is missing.
        """
        self.close()
        # The other processes have written since this one last looked.
        self.reload()
        lacking = self.missing(keys)
        if lacking:
            raise ValueError(f'{self.path}: {len(lacking)} of {len(set(keys))} rows are missing; '
                             'run the same command again, with every process')
        rows = sorted((self.records[key] for key in set(keys)),
                      key=lambda record: (record['doc_id'], record['key']))
        with whole(self.path, alone=True) as partial, partial.open('wb') as file:
            file.writelines(map(line_of, rows))
            file.flush()
            os.fsync(file.fileno())
        # Only now: killed before, it leaves rows in both places, which `merged` takes as one.
        for path in self.parts():
            path.unlink()
        return rows


def merged(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return {key: record} of several files of ours; ValueError where two contradict each other."""
    records = {}
    places = {}
    for path in paths:
        for number, record in lines(path):
            key = record.get('key')
            if not isinstance(key, str):
                raise fault(path, f'line {number}: a record without a key')
            # The same row may lie in a part and in the finished file.
            first = records.get(key, record)
            if first != record:
                names = sorted(name for name in first.keys() | record.keys()
                               if first.get(name) != record.get(name))
                raise fault(path, f'line {number}: contradicts {places[key]} under the same key '
                            f'({", ".join(names)}); delete the wrong one')
            records[key] = record
            places.setdefault(key, f'{Path(path).name}, line {number}')
    return records


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSONL file of ours.

    A part may end in a torn line, which is left out. ValueError, in one line, for any other line
    that is not a JSON object.
    """
    *whole, last = Path(path).read_bytes().split(b'\n')
    if last.strip() and not re.search(r'\.p\d+\.jsonl$', str(path)):
        whole.append(last)  # a finished file need not end with a line break, but its rows must read
    for number, line in enumerate(whole, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise fault(path, f'line {number}: damaged ({error}); delete that line, and its row is '
                        'made again') from None
        if not isinstance(record, dict):
            raise fault(path, f'line {number}: a record must be a JSON object, not '
                        f'{type(record).__name__}')
        yield number, record


# --- joining the stages -----------------------------------------------------------------------

def join(descriptions: Sequence[dict[str, Any]],
         questions: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {doc_id: description record} for every question, each made as the question wants it.

    `questions` are dicts with `doc_id` and what is wanted: `task`, `checkpoint`, `prompt_hash`.
    Descriptions without a question are left out. ValueError, with counts, where one is missing,
    is there twice or was made otherwise: an equal doc_id alone proves nothing.
    """
    by_id = {}
    twice = 0
    for record in descriptions:
        twice += record['doc_id'] in by_id
        by_id[record['doc_id']] = record
    if twice:
        raise ValueError(f'{twice} of {len(descriptions)} descriptions have the doc_id of another; '
                         'give the file of one model, task and filter')
    # What is missing or there twice comes first: no other fault could be told of these.
    lacking = [question['doc_id'] for question in questions if question['doc_id'] not in by_id]
    if lacking:
        raise ValueError(f'{len(lacking)} of {len(questions)} questions have no description (first '
                         f'doc_id {lacking[0]}); describe them first, with the same data')
    for name in JOINED:
        wrong = [question for question in questions
                 if by_id[question['doc_id']].get(name) != question[name]]
        if wrong:
            first = wrong[0]
            raise ValueError(
                f'{len(wrong)} of {len(questions)} descriptions have another {name} (doc_id '
                f'{first["doc_id"]}: {by_id[first["doc_id"]].get(name)!r}, wanted '
                f'{first[name]!r}); describe again with this model, task and prompt, or give those '
                'that were used')
    return {question['doc_id']: by_id[question['doc_id']] for question in questions}
