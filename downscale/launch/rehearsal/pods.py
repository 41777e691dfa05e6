"""A pod as a process of this machine, with what its manifest says and nothing else.

A pod has a folder that stands for the root of its container. Where an absolute path of the
container (its working folder, a mount) stands in the command or the environment, that of the folder
takes its place, so that no rights are needed for a real root. Paths of a study are relative.
"""
import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downscale.launch.backends.local import PACKAGE
from downscale.launch.rehearsal.rules import CHIPS, PodEnd, asked

DOCKERFILE = Path('launch') / 'Dockerfile'
# Chips of this machine: programs are compiled quickly, and where all share few cores they wait for
# one another longer than the 40 s after which XLA would end the process.
CPU_FLAGS = ('--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
             '--xla_cpu_collective_call_terminate_timeout_seconds=3600')
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'


class Image:
    """What the image of a job holds: `folder` is where it works, `copied` is {name: path here}.

    Read off the COPY lines of launch/Dockerfile, so that what is not in the image is not there.
    """

    def __init__(self, dockerfile: Path = DOCKERFILE) -> None:
        if not dockerfile.is_file():
            raise ValueError(f'no {dockerfile}, which says what jobs find in their image; start at '
                             'the root of a clone')
        self.folder = '/'
        self.copied = {}
        for line in dockerfile.read_text().splitlines():
            words = line.split()
            if words[:1] == ['WORKDIR']:
                self.folder = self._inside(words[1])
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


class Pod:
    """One container, as a process with a group of its own."""

    def __init__(self, name: str, template: dict[str, Any], root: Path, image: Image) -> None:
        self.name = name
        self.template = template
        self.root = root
        self.image = image
        self.log = root.parents[1] / 'logs' / f'{name}.log'
        self.evicted = False
        self.deadline = None
        self.process = None
        self.began = None
        self.ended = None

    def start(self, given: Mapping[str, str]) -> None:
        """Start the process; `given` is what the cluster puts into its environment.

        ValueError in one line for a volume that nothing stands for.
        """
        main = self.template['spec']['containers'][0]
        folder = self._place(self.image.folder)
        folder.mkdir(parents=True)
        for name, path in self.image.copied.items():
            self._link(name, path)
        paths = {self.image.folder: str(folder), **self._mount(main)}
        argv = [_mapped(word, paths) for word in (*main.get('command', ()), *main.get('args', ()))]
        manifested = {variable['name']: _mapped(variable.get('value', ''), paths)
               for variable in main.get('env', [])}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        with self.log.open('a') as log:
            try:
                self.process = subprocess.Popen(
                    argv, cwd=folder, env={**self._base(), **given, **manifested}, stdout=log,
                    stderr=log, stdin=subprocess.DEVNULL, process_group=0)
            except OSError as error:  # as where the runtime finds no such program
                log.write(f'error: {argv[0]}: {error.strerror}\n')
                self.process = subprocess.Popen(['/bin/sh', '-c', 'exit 128'], process_group=0)

    def _base(self):
        """Return the environment of the image: this interpreter is its Python."""
        folder = self.root / 'bin'
        folder.mkdir()
        (self.root / 'tmp').mkdir()
        for name in ('python', 'python3'):
            # A link would lead past the packages of a virtual environment.
            (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
            (folder / name).chmod(0o755)
        return {'PATH': f'{folder}:{PATH}', 'HOME': str(self.root), 'LANG': 'C.UTF-8',
                'TMPDIR': str(self.root / 'tmp'), 'PYTHONPATH': str(PACKAGE.parent),
                'HOSTNAME': self.name}

    def _mount(self, main):
        """Link what is mounted into the root, and return {path in the container: path here}."""
        volumes = {volume['name']: volume for volume in self.template['spec'].get('volumes', [])}
        paths = {}
        for mount in main.get('volumeMounts', []):
            target = mount['mountPath']
            link = self._link(target, _source(volumes[mount['name']], target, self.root))
            paths[target] = str(link)
            bucket = _bucket_of(volumes[mount['name']])
            if bucket:
                paths[bucket] = str(link)
        return paths

    def _place(self, path):
        """Return where a path of the container lies here."""
        return self.root / os.path.normpath(f'/{path}').lstrip('/')

    def _link(self, path, target):
        """Put a link into the root; ValueError where its folder is a link that leads out of it."""
        link = self._place(path)
        if not link.parent.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f'{path} lies in what the image or another mount brings')
        link.parent.mkdir(parents=True, exist_ok=True)
        # What is mounted hides what the image has there.
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        return link

    def terminate(self, grace: float) -> None:
        """Ask the program to save and end; after `grace` seconds it is killed."""
        if self.deadline is None and self.poll() is None:
            self.deadline = time.monotonic() + grace
            # Its first process alone: what that started hears of it only if it passes it on.
            self.process.send_signal(signal.SIGTERM if grace else signal.SIGKILL)

    def evict(self, grace: float) -> None:
        """Take the machine away, which is a SIGTERM as well."""
        self.evicted = True
        self.terminate(grace)

    def kill(self) -> None:
        """End the pod at once, without a word."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def poll(self) -> PodEnd | None:
        """Return how the pod ended, None while it runs."""
        if self.ended:
            return self.ended
        code = self.process.poll()
        if code is None:
            if self.deadline and time.monotonic() > self.deadline:
                self.kill()
            return None
        # A container ends with its first process, whatever that has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended = PodEnd(self.name, code if code >= 0 else 128 - code, self.evicted)
        return self.ended


def environment(template: dict[str, Any], rank: tuple[int, int], shape: tuple[int, int],
                hosts: list[str], port: int) -> dict[str, str]:
    """Return what JobSet and GKE put into a pod, and what stands here for its chips.

    `rank` is (slice, machine of it), `shape` (slices, machines of each); `hosts` are names of the
    machines of its slice.
    """
    main = template['spec']['containers'][0]
    values = {'JOB_COMPLETION_INDEX': str(rank[1]), 'TPU_WORKER_ID': str(rank[1]),
              'TPU_WORKER_HOSTNAMES': ','.join(hosts), 'TF_CPP_MIN_LOG_LEVEL': '3'}
    if shape[0] > 1:
        values |= {'MEGASCALE_NUM_SLICES': str(shape[0]), 'MEGASCALE_SLICE_ID': str(rank[0]),
                   'MEGASCALE_COORDINATOR_ADDRESS': f'{hosts[0]}:8080'}
    manifested = {variable['name']: variable.get('value', '')
                  for variable in main.get('env', [])}
    # A program that was told to look elsewhere sees no chips.
    if manifested.get('JAX_PLATFORMS', 'tpu').startswith('tpu'):
        chips = int(asked(main).get(CHIPS, 0))
        # XLA's threads, by default one a core: where devices wait for one another in a collective
        # and all threads are taken, none is left for the device that they wait for.
        values |= {'JAX_PLATFORMS': 'cpu', 'NPROC': str(8 * chips),
                   'XLA_FLAGS': f'{CPU_FLAGS} --xla_force_host_platform_device_count={chips}'}
    if math.prod(shape) > 1:
        values |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
                   'JAX_NUM_PROCESSES': str(math.prod(shape)),
                   'JAX_PROCESS_ID': str(rank[0] * shape[1] + rank[1])}
    return values


def _source(volume, target, root):
    """Return what stands on this machine for a volume; ValueError in one line for none."""
    if 'emptyDir' in volume:
        folder = root / 'volumes' / volume['name']
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    # A bucket is filled from the folder of the same name, which a person has copied there.
    folder = Path(Path(target).name).absolute()
    if 'csi' not in volume:
        kind = next(iter(volume.keys() - {'name'}), 'nothing')
        raise ValueError(f'volume {volume["name"]}: a rehearsal has no {kind}')
    if not folder.is_dir():
        raise ValueError(f'volume {volume["name"]}: there is no folder {folder.name} here that '
                         f'stands for {_bucket_of(volume)}')
    return folder


def _bucket_of(volume):
    """Return gs://BUCKET/PREFIX of a volume of Cloud Storage FUSE, None of another."""
    attributes = volume.get('csi', {}).get('volumeAttributes', {})
    if 'bucketName' not in attributes:
        return None
    prefix = re.search(r'only-dir[:=]([^,]+)', attributes.get('mountOptions', ''))
    return '/'.join(['gs:/', attributes['bucketName'], *([prefix[1]] if prefix else [])])


def _mapped(text, paths):
    """Return a word with the container's paths replaced by those here, the longest first."""
    for path in sorted(paths, key=len, reverse=True):
        if path != '/':
            # A word's own beginning, or behind what parts a list.
            words = rf'(?<![\w./-]){re.escape(path)}(?=[/:,\s]|$)'
            text = paths[path].join(re.split(words, text))
    return text
