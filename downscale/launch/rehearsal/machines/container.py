"""The root of a container as a folder: what its image and its mounts bring, and nothing else.

Where an absolute path of the container stands in its command or environment, that of the folder
takes its place, so that no rights are needed for a real root. Paths of a study are relative.
"""
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DOCKERFILE = Path('launch') / 'Dockerfile'
PACKAGES = Path(__file__).parents[4]  # where `downscale` is imported from
# Chips of this machine: programs are compiled quickly, and where all share few cores they wait for
# one another longer than the 40 s after which XLA would end the process.
CPU_FLAGS = ('--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
             '--xla_cpu_collective_call_terminate_timeout_seconds=3600')
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'


@dataclass(frozen=True)
class PodEnd:
    """How a pod or a machine's script ended: its exit code, and whether its machine was taken."""
    pod: str
    code: int
    evicted: bool = False


class Image:
    """What the image of a job holds: `folder` is where it works, `copied` is {name: path here}.

    Read off the COPY lines of launch/Dockerfile, so that what is not in the image is not there.
    `entrypoint` is what it runs where nobody says otherwise.
    """

    def __init__(self, dockerfile: Path = DOCKERFILE) -> None:
        if not dockerfile.is_file():
            raise ValueError(f'no {dockerfile}, which says what jobs find in their image; start at '
                             'the root of a clone')
        self.folder = '/'
        self.copied = {}
        self.entrypoint = []
        for line in dockerfile.read_text().splitlines():
            words = line.split()
            if words[:1] == ['WORKDIR']:
                self.folder = self._inside(words[1])
            elif words[:1] == ['ENTRYPOINT']:
                self.entrypoint = _words(line.partition('ENTRYPOINT')[2].strip())
            elif words[:1] == ['COPY']:
                if words[1].startswith(('-', '[')):
                    raise ValueError(f'{dockerfile}: a rehearsal reads COPY SOURCE ... TARGET '
                                     f'alone, not: {line[:100]}')
                self._copy(dockerfile, words[1:-1], words[-1])

    def _inside(self, path):
        """Return a path of the container from its root, which nothing leads out of."""
        return os.path.normpath(os.path.join('/', self.folder, path))

    def _copy(self, dockerfile, sources, target):
        for source in sources:
            path = Path(source).absolute()
            if not path.exists():
                raise ValueError(f'{dockerfile} copies {source}, and there is none here')
            # Of a folder Docker copies what is in it, and a file into a target that is a folder.
            if path.is_dir() and self._inside(target) == self.folder:
                self.copied |= {self._inside(child.name): child for child in path.iterdir()}
                continue
            into = path.is_file() and (len(sources) > 1 or target.endswith('/'))
            self.copied[self._inside(os.path.join(target, path.name) if into else target)] = path


def _words(text):
    """Return the argv of an ENTRYPOINT: a list in JSON, or else a line for a shell."""
    try:
        return json.loads(text)
    except ValueError:
        return ['/bin/sh', '-c', text]


class Root:
    """The root of a container at `path` here; it works in `folder` and holds links to `copied`.

    `paths` is {path in the container: path here} of what its words may name.
    """

    def __init__(self, path: Path, folder: str, copied: Mapping[str, Path]) -> None:
        self.path = path
        self.folder = self._place(folder)
        self.folder.mkdir(parents=True)
        for name, target in copied.items():
            self._link(name, target)
        self.paths = {folder: str(self.folder)}

    def mount(self, target: str, source: Path, origin: str | None = None) -> None:
        """Link `source` to `target`; `origin` is the bucket, gs://..., that it stands for.

        ValueError where the target lies in what is a link already.
        """
        link = str(self._link(target, source))
        self.paths[target] = link
        if origin:
            self.paths[origin] = link

    def _place(self, path):
        """Return where a path of the container lies here."""
        return self.path / os.path.normpath(f'/{path}').lstrip('/')

    def _link(self, path, target):
        """Put a link into the root; ValueError where its folder is a link that leads out of it."""
        link = self._place(path)
        if not link.parent.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f'{path} lies in what the image or another mount brings')
        link.parent.mkdir(parents=True, exist_ok=True)
        # What is mounted hides what the image has there.
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        return link

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of the image: this interpreter is its Python."""
        folder = self.path / 'bin'
        folder.mkdir()
        (self.path / 'tmp').mkdir()
        for program in ('python', 'python3'):
            # A link would lead past the packages of a virtual environment.
            (folder / program).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            (folder / program).chmod(0o755)
        return {'PATH': f'{folder}:{PATH}', 'HOME': str(self.path), 'LANG': 'C.UTF-8',
                'TMPDIR': str(self.path / 'tmp'), 'PYTHONPATH': str(PACKAGES), 'HOSTNAME': name}

    def mapped(self, text: str) -> str:
        """Return a word with the container's paths replaced by those here, the longest first."""
        for path in sorted(self.paths, key=len, reverse=True):
            if path != '/':
                # A word's own beginning, or behind what parts a list.
                words = rf'(?<![\w./-]){re.escape(path)}(?=[/:,\s]|$)'
                text = self.paths[path].join(re.split(words, text))
        return text


def chips_here(chips: int) -> dict[str, str]:
    """Return the environment in which JAX finds so many devices on the CPU."""
    # XLA's threads, by default one a core: where devices wait for one another in a collective and
    # all threads are taken, none is left for the device that they wait for.
    return {'JAX_PLATFORMS': 'cpu', 'NPROC': str(8 * chips),
            'XLA_FLAGS': f'{CPU_FLAGS} --xla_force_host_platform_device_count={chips}'}


def joined(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the environment by which `count` processes of this machine meet, {} for a lone one."""
    if count == 1:
        return {}
    return {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(count),
            'JAX_PROCESS_ID': str(rank)}


def stands_for(folder: str) -> Path | None:
    """Return the folder of this name here, which stands for a mounted bucket; None without one."""
    path = Path(folder).absolute()
    return path if path.is_dir() else None
