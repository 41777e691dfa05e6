"""Programs compiled in worker processes, a few at once, each once: facts are kept in a folder.

A fact file is named by a hash of all that decides the program: the request, the versions of the
compiler and the sources that make programs. It is written whole or not at all, so a plan that was
killed continues, and a repeated one only reads.
"""
import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from downscale.planner.programs import ProgramRequest
from downscale.runtime.files import PathLike
from downscale.runtime.progress import Bars

PACKAGE = Path(__file__).parent.parent
WORKER = 'downscale.planner.worker'
# The compiler is asked on a machine without TPUs, several processes of it at once.
ENVIRONMENT = {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
               'TPU_WORKER_HOSTNAMES': 'localhost', 'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
               # Any known type will do: the topology is named by each request.
               'TPU_ACCELERATOR_TYPE': 'v5litepod-16'}


def versions() -> dict[str, str]:
    """Return {'jax', 'libtpu'}: the versions that compile; ValueError saying which extra brings it.
    """
    try:
        return {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}
    except importlib.metadata.PackageNotFoundError:
        raise ValueError('no libtpu, which holds the TPU compiler; it needs no TPU: '
                         "pip install 'downscale[tpu]'") from None


@cache
def source_hash() -> str:
    """Return a hash of the package's files that decide a program or its facts.

    The rest of the package may change without a new compilation.
    """
    digest = hashlib.sha256()
    for file in sources():
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b'\0')
        digest.update(file.read_bytes())
    return digest.hexdigest()


def sources(package: Path = PACKAGE, worker: str = WORKER) -> list[Path]:
    """Return the files that a worker is made of, sorted.

    These are all that it imports, at the top of a file or when it is needed, and the JSON files
    beside them that they name.
    """
    waiting = [worker]
    files = set()
    while waiting:
        module = package.joinpath(*waiting.pop().split('.')[1:])
        file = next((path for path in (module.with_suffix('.py'), module / '__init__.py')
                     if path.is_file()), None)
        if file in files or file is None:   # None: a name inside a module, or another package
            continue
        files.add(file)
        names, data = _leans_on(file)
        files.update(data)
        waiting += [name for name in names if name.split('.')[0] == package.name]
    return sorted(files)


def _leans_on(file):
    """Return (dotted names that a Python file imports, JSON files beside it that it names)."""
    names = []
    data = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` names a module by its last word.
            names += [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        elif isinstance(node, ast.Constant) and str(node.value).endswith('.json') \
                and (file.parent / str(node.value)).is_file():
            data.append(file.parent / str(node.value))
    return names, data


def key_of(request: ProgramRequest) -> str:
    """Return the hash that names the facts of a request."""
    # The cache lies beside the programs that see: its slots change nothing in them.
    if request.kind in ('see', 'prefix'):
        request = dataclasses.replace(request, slots=0)
    value = [dataclasses.asdict(request), versions(), source_hash()]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


class Pool:
    """What compiles requests for `folder`: `jobs` at once, none longer than `limit` seconds."""

    def __init__(self, folder: PathLike, jobs: int, limit: float, bars: Bars) -> None:
        self.folder = Path(folder)
        self.jobs = jobs
        self.limit = limit
        self.bars = bars
        self.known: dict[str, dict[str, Any]] = {}  # key: facts

    def facts(self, wanted: Sequence[tuple[str, ProgramRequest]]) -> dict[str, dict[str, Any]]:
        """Return {request key: facts} of (name, request) pairs, compiled where no file tells.

        Facts of a program that failed or took too long hold 'error', and are not kept: the next
        plan tries again.
        """
        waiting = {}
        running = {}
        for name, request in wanted:
            key = key_of(request)
            # Of equal requests, as seeds of one size make them, the first gives its name.
            if key not in self.known and not self._read(key):
                waiting.setdefault(key, (name, request))
        total = len(waiting)
        done = 0
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    key = next(iter(waiting))
                    running[key] = self._start(key, *waiting.pop(key))
                self.bars('programs', done, total, ', '.join(job.name for job in running.values()))
                time.sleep(0.1)
                ended = [key for key, job in running.items() if job.ended(self.limit)]
                for key in ended:
                    self._finish(key, running.pop(key))
                    done += 1
        finally:
            # An interrupted plan leaves no compiler behind.
            for job in running.values():
                job.process.kill()
                job.process.wait()
        return {key_of(request): self.known[key_of(request)] for _, request in wanted}

    def _path(self, key):
        return self.folder / f'{key}.json'

    def _read(self, key):
        """Return whether the facts of `key` are in a file; they are then known."""
        try:
            self.known[key] = json.loads(self._path(key).read_text())
        except (OSError, ValueError):
            return False
        return True

    def _start(self, key, name, request):
        """Return the `_Job` of a new worker process for `request`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asked = self.folder / f'{key}.request'
        asked.write_text(json.dumps(dataclasses.asdict(request)))
        # The worker imports this package, from wherever it was started.
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])])
        with (self.folder / f'{key}.log').open('w') as log:
            process = subprocess.Popen(
                [sys.executable, '-m', WORKER, str(asked), str(self._path(key))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **ENVIRONMENT, 'PYTHONPATH': path})
        return _Job(name, process)

    def _finish(self, key, job):
        """Read what a worker wrote, or say why there is nothing."""
        if job.late:
            self.known[key] = {'error': f'not compiled within --limit {self.limit:g} s'}
        elif not self._read(key):
            log = (self.folder / f'{key}.log').read_text(errors='replace').strip().splitlines()
            last = log[-1] if log else 'no output'
            self.known[key] = {'error': f'the compiler ended with code {job.process.returncode} '
                                        f'({last[:200]}); out of memory on this machine?'}
        # What failed leaves its request and log behind, to be looked at, but no facts.
        if 'error' in self.known[key]:
            self._path(key).unlink(missing_ok=True)
            self.bars.note(f'failed: {job.name}: {self.known[key]["error"]}')
            return
        for kind in ('request', 'log'):
            (self.folder / f'{key}.{kind}').unlink(missing_ok=True)
        self.bars.finished(job.name)


class _Job:
    """A running worker."""

    def __init__(self, name, process):
        self.name = name
        self.process = process
        self.late = False
        self.began = time.monotonic()

    def ended(self, limit):
        """Return whether the process is gone; kill one that takes longer than `limit` seconds."""
        if self.process.poll() is None and time.monotonic() - self.began > limit:
            self.late = True
            self.process.kill()
            self.process.wait()
        return self.process.poll() is not None
