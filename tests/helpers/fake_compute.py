"""The Compute Engine of a rehearsal without machines: a test says what becomes of a group."""
import functools
import shutil
import subprocess
from pathlib import Path

from downscale.launch.rehearsal.machines.compute import Compute


class FakeCompute(Compute):
    """The API, and what a test does to a group of it."""

    def made(self):
        """(name, zone) of every group that was asked for, refused ones too."""
        return [call[2:] for call in self.calls if call[:2] == ('POST', 'instanceGroupManagers')]

    def start(self, name, status='RUNNING'):
        """All machines of a group are there, in this state."""
        self.show(name, [status] * self.group(name)['targetSize'])

    def lose(self, name):
        """One machine of a group is gone."""
        self.machines[name].popitem()

    def fail(self, name, code, message):
        """A group has no machines yet, for this reason."""
        self.wait(name, message, code)


@functools.cache
def track_of(gcloud):
    """The release track of gcloud that can ask for all machines of a group at once: those of 2025
    could in alpha only."""
    text = subprocess.run([gcloud, 'compute', 'instance-groups', 'managed', 'create', '--help'],
                          capture_output=True, text=True, check=True).stdout
    return [] if 'target-size-policy-mode' in text.replace('\b', '') else ['alpha']


def gcloud_folder(folder):
    """A folder with a `gcloud` that is the real one, with the track that it needs."""
    gcloud = shutil.which('gcloud')
    script = Path(folder) / 'gcloud'
    script.write_text(f'#!/bin/bash\nexec {gcloud} {" ".join(track_of(gcloud))} "$@"\n')
    script.chmod(0o755)
    return str(folder)
