"""A pod as a process of this machine, with what its manifest says and nothing else.

A pod has a folder that stands for the root of its container (`machines/container.py`).
"""
import contextlib
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downscale.launch.rehearsal.machines.container import (
    Image,
    PodEnd,
    Root,
    chips_here,
    joined,
    stands_for,
)
from downscale.launch.rehearsal.rules import CHIPS, asked


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
        root = Root(self.root, self.image.folder, self.image.copied)
        self._mount(root, main)
        argv = [root.mapped(word) for word in (*main.get('command', ()), *main.get('args', ()))]
        manifested = {variable['name']: root.mapped(variable.get('value', ''))
                      for variable in main.get('env', [])}
        environment = {**root.environment(self.name), **given, **manifested}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        with self.log.open('a') as log:
            try:
                self.process = subprocess.Popen(
                    argv, cwd=root.folder, env=environment, stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, process_group=0)
            except OSError as error:  # as where the runtime finds no such program
                log.write(f'error: {argv[0]}: {error.strerror}\n')
                self.process = subprocess.Popen(['/bin/sh', '-c', 'exit 128'], process_group=0)

    def _mount(self, root, main):
        """Link what is mounted into the root."""
        volumes = {volume['name']: volume for volume in self.template['spec'].get('volumes', [])}
        for mount in main.get('volumeMounts', []):
            volume = volumes[mount['name']]
            target = mount['mountPath']
            root.mount(target, _source(volume, target, self.root), _bucket_of(volume))

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

    def lose(self) -> None:
        """Lose the machine at once, without a word."""
        self.evicted = True
        self.kill()

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
        values |= chips_here(int(asked(main).get(CHIPS, 0)))
    return values | joined(rank[0] * shape[1] + rank[1], math.prod(shape), port)


def _source(volume, target, root):
    """Return what stands on this machine for a volume; ValueError in one line for none."""
    if 'emptyDir' in volume:
        folder = root / 'volumes' / volume['name']
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    # A bucket is filled from the folder of the same name, which a person has copied there.
    if 'csi' not in volume:
        kind = next(iter(volume.keys() - {'name'}), 'nothing')
        raise ValueError(f'volume {volume["name"]}: a rehearsal has no {kind}')
    folder = stands_for(Path(target).name)
    if folder is None:
        raise ValueError(f'volume {volume["name"]}: there is no folder {Path(target).name} here '
                         f'that stands for {_bucket_of(volume)}')
    return folder


def _bucket_of(volume):
    """Return gs://BUCKET/PREFIX of a volume of Cloud Storage FUSE, None of another."""
    attributes = volume.get('csi', {}).get('volumeAttributes', {})
    if 'bucketName' not in attributes:
        return None
    prefix = re.search(r'only-dir[:=]([^,]+)', attributes.get('mountOptions', ''))
    return '/'.join(['gs:/', attributes['bucketName'], *([prefix[1]] if prefix else [])])
