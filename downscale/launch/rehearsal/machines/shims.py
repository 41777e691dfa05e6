"""The programs of a machine that reach beyond it: `curl`, `docker`, `gcloud`, `gcsfuse` and others.

`python -m downscale.launch.rehearsal.machines.shims ROOT PROGRAM ...`. Each does what a start-up
script wants of it, with what the request of the machine has (`Surroundings`), and refuses all else.
"""
import argparse
import json
import os
import re
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from downscale.launch.rehearsal.machines.container import Root, stands_for

METADATA = re.compile(r'http://(metadata\.google\.internal|169\.254\.169\.254)'
                      r'/computeMetadata/v1/instance/attributes/([\w.-]+)')
SERVER = 'STORAGE_EMULATOR_HOST'
NO_ACCESS = 'the scopes of this machine hold no access to it'
WORLD = 'world.json'
CONSOLE = 'console'  # what a machine shows
PID = 'container.pid'
MOUNTED = 'mounted.json'
# Where gcsfuse comes from: Ubuntu has it not.
SOURCE = Path('etc/apt/sources.list.d/gcsfuse.list')
STORE = {'docker.io': 'docker', 'gcsfuse': 'gcsfuse', 'google-cloud-cli': 'gcloud'}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a machine finds around it.

    `metadata` is what its request carried. The registry has `images`, whose `folder`, `copied` and
    `entrypoint` are those of `Image`; `places` are the buckets that can be mounted. A container
    gets `given`, and `chips` where it may reach the devices of the machine. `here` is the folder in
    which others stand for buckets.
    """
    metadata: dict[str, str]
    images: list[str]
    folder: str
    copied: dict[str, str]
    entrypoint: list[str]
    places: list[str]
    given: dict[str, str]
    chips: dict[str, str]
    authorised: bool
    alone: bool
    here: str

    def save(self, root: Path) -> None:
        """Write it for the programs of a machine."""
        (root / WORLD).write_text(json.dumps(asdict(self)))


class Refused(Exception):
    """What a program was asked for does not exist, or is not known here; it ends with `code`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Words(argparse.ArgumentParser):
    """Reads the words of a program; what it does not know is `Refused`."""

    def __init__(self, program: str, code: int) -> None:
        super().__init__(prog=program, add_help=False, allow_abbrev=False)
        self.code = code

    def error(self, message: str) -> NoReturn:
        raise Refused(self.code, f'{self.prog}: {message}')

    def flags(self, *names: str) -> None:
        """Know some flags without a value."""
        for name in names:
            self.add_argument(*name.split('|'), action='store_true')

    def values(self, *names: str) -> None:
        """Know some flags with a value."""
        for name in names:
            self.add_argument(*name.split('|'))


# --- metadata and packages ----------------------------------------------------------------------

def curl(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Print an attribute of the metadata, or bring the key by which gcsfuse is installed."""
    known = _Words('curl', 2)
    known.flags('-s|--silent', '-f|--fail', '-L|--location', '-S|--show-error',
                '--retry-connrefused')
    known.values('--retry', '-o|--output', '--retry-delay', '--max-time')
    known.add_argument('-H', '--header', action='append', default=[])
    known.add_argument('url')
    asked = known.parse_args(words)
    attribute = METADATA.fullmatch(asked.url)
    if attribute and 'Metadata-Flavor: Google' not in asked.header:
        raise Refused(22, 'curl: the metadata server wants the header Metadata-Flavor: Google')
    if attribute:
        # A missing attribute is an answer that a script may want, and no fault.
        if attribute[2] not in world.metadata:
            raise SystemExit(22)
        _put(asked.output, world.metadata[attribute[2]])
    elif asked.url.startswith('https://packages.cloud.google.com/'):
        _put(asked.output, 'the key of a rehearsal')
    else:
        raise Refused(6, f'curl: could not resolve {asked.url[:150]}')


def _put(path, text):
    if path:
        Path(path).write_text(text)
    else:
        sys.stdout.write(text)


def packages(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Install programs as apt-get does; `update` and options are taken as they are."""
    names = [word for word in words if not word.startswith('-') and '::' not in word]
    if names[:1] == ['update']:
        return
    if names[:1] != ['install']:
        raise Refused(100, f'apt-get: {" ".join(words)[:150]} is nothing that a rehearsal does')
    for name in names[1:]:
        if name not in ('docker.io', 'gcsfuse') or (
                name == 'gcsfuse' and not (root / SOURCE).exists()):
            raise Refused(100, f'E: Unable to locate package {name}')
        _bring(root, STORE[name])


def snap(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Install gcloud, which is the one snap that there is."""
    if list(words) != ['install', 'google-cloud-cli', '--classic']:
        raise Refused(1, f'snap: {" ".join(words)[:150]} is nothing that a rehearsal does')
    _bring(root, 'gcloud')


def _bring(root, program):
    shutil.copy(root / 'store' / program, root / 'bin' / program)


def release(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Print the name of the machines' Ubuntu."""
    print('jammy')


# --- buckets ------------------------------------------------------------------------------------

def gcloud(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Copy a file into the bucket, or log docker in."""
    names = [word for word in words if word not in ('--quiet', '-q')]
    if names[:2] == ['auth', 'configure-docker'] and len(names) == 3:
        (root / 'registry').write_text(names[2])
        return
    if names[:2] != ['storage', 'cp'] or len(names) != 4 or not names[3].startswith('gs://'):
        raise Refused(2, f'gcloud: {" ".join(words)[:150]} is nothing that a rehearsal does')
    if not world.authorised:
        raise Refused(1, f'gcloud: 403: {NO_ACCESS}')
    source, target = names[2:]
    bucket, _, name = target.removeprefix('gs://').partition('/')
    query = urllib.parse.urlencode({'uploadType': 'media', 'name': name})
    try:
        urllib.request.urlopen(urllib.request.Request(
            f'{world.given[SERVER]}/upload/storage/v1/b/{bucket}/o?{query}',
            data=Path(source).read_bytes())).close()
    except OSError as error:
        raise Refused(1, f'gcloud: {source} cannot be copied to {target}: {error}') from None


def gcsfuse(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Mount a bucket: a link to the folder of the mount's name here."""
    known = _Words('gcsfuse', 2)
    known.flags('--version', '--implicit-dirs', '--file-cache-cache-file-for-range-read',
                '--file-cache-enable-parallel-downloads')
    known.values('-o', '--metadata-cache-ttl-secs', '--stat-cache-max-size-mb',
                 '--type-cache-max-size-mb', '--only-dir', '--cache-dir',
                 '--file-cache-max-size-mb')
    known.add_argument('place', nargs='*')
    asked = known.parse_args(words)
    if asked.version:
        print('gcsfuse version of a rehearsal')
        return
    if len(asked.place) != 2:
        raise Refused(2, 'gcsfuse: a bucket and a folder are wanted')
    bucket, target = asked.place
    place = '/'.join(['gs:/', bucket, *([asked.only_dir] if asked.only_dir else [])])
    source = stands_for_place(root, world, place, target)
    path = Path(target)
    if not path.is_dir() or path.is_symlink():
        raise Refused(1, f'Error: {target} is no folder to mount at')
    path.rmdir()
    path.symlink_to(source)
    mounted = _mounted(root) | {target: place}
    (root / MOUNTED).write_text(json.dumps(mounted))
    for folder in ('sys/class/bdi/0:77', 'sys/fs/fuse/connections/77'):
        (root / folder).mkdir(parents=True, exist_ok=True)


def stands_for_place(root: Path, world: Surroundings, place: str, target: str) -> Path:
    """Return the folder here that stands for a bucket; `Refused` where none may be mounted."""
    if not world.authorised:
        raise Refused(1, f'Error: 403: {NO_ACCESS}')
    if place not in world.places:
        raise Refused(1, f'Error: {place} is none of {", ".join(world.places) or "no bucket"}')
    source = stands_for(os.path.join(world.here, Path(target).name))
    if source is None:
        raise Refused(1, f'Error: there is no folder {Path(target).name} here that stands for '
                         f'{place}')
    return source


def mountpoint(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Say whether something is mounted at a folder, and as which device."""
    known = _Words('mountpoint', 1)
    known.flags('-q|--quiet', '-d|--fs-devno')
    known.add_argument('path')
    asked = known.parse_args(words)
    if asked.path not in _mounted(root):
        raise SystemExit(32)
    if asked.fs_devno:
        print('0:77')


def _mounted(root):
    path = root / MOUNTED
    return json.loads(path.read_text()) if path.exists() else {}


# --- containers ---------------------------------------------------------------------------------

def docker(root: Path, world: Surroundings, words: Sequence[str]) -> None:
    """Run a container: this process becomes its first one."""
    if words[:1] != ['run']:
        raise Refused(1, f'docker: {" ".join(words)[:100]} is nothing that a rehearsal does')
    known = _Words('docker', 125)
    known.flags('--rm', '--privileged')
    known.values('--network', '--name', '--stop-timeout', '--entrypoint')
    known.add_argument('--volume', '-v', action='append', default=[])
    known.add_argument('--env', '-e', action='append', default=[])
    known.add_argument('image')
    known.add_argument('words', nargs=argparse.REMAINDER)
    asked = known.parse_args(words[1:])
    _refuse_image(root, world, asked.image)
    if asked.network != 'host' and not world.alone:
        raise Refused(1, 'docker: without --network=host the processes of several machines cannot '
                         'meet')
    container = Root(root / 'containers' / f'{os.getpid()}', world.folder,
                     {name: Path(path) for name, path in world.copied.items()})
    for volume in asked.volume:
        _mount(root, container, volume)
    environment = container.environment(asked.name or 'container') | world.given
    if asked.privileged:  # else it does not reach the devices of its machine
        environment |= world.chips
    for variable in asked.env:
        name, equals, value = variable.partition('=')
        # Without a value it is that of docker itself, if there is one.
        if equals or name in os.environ:
            environment[name] = container.mapped(value if equals else os.environ[name])
    argv = [asked.entrypoint] if asked.entrypoint else list(world.entrypoint)
    argv += [container.mapped(word) for word in asked.words]
    (root / PID).write_text(str(os.getpid()))
    os.chdir(container.folder)
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        raise Refused(127, f'docker: exec {argv[0]}: {error.strerror}') from None


def _refuse_image(root, world, image):
    """Refuse an image that the registry does not have, or does not give to this machine."""
    login = root / 'registry'
    host = image.partition('/')[0]
    if image not in world.images:
        raise Refused(125, f'docker: there is no image {image[:150]}')
    if not world.authorised:
        raise Refused(125, f'docker: pull of {image[:150]} denied: {NO_ACCESS}')
    if not login.exists() or login.read_text() != host:
        raise Refused(125, f'docker: pull of {image[:150]} denied: nobody has logged in to {host}')


def _mount(root, container, volume):
    """Link a volume SOURCE:TARGET[:ro] into a container."""
    source, _, target = volume.partition(':')
    target, _, mode = target.partition(':')
    if not target.startswith('/') or mode not in ('', 'ro', 'rw') or not source.startswith('/'):
        raise Refused(125, f'docker: invalid volume {volume[:150]}')
    Path(source).mkdir(parents=True, exist_ok=True)  # as docker does for what is not there
    try:
        container.mount(target, Path(source).resolve(), _mounted(root).get(source))
    except ValueError as error:
        raise Refused(125, f'docker: {error}') from None


PROGRAMS: dict[str, Callable[[Path, Surroundings, Sequence[str]], None]] = {
    'curl': curl, 'apt-get': packages, 'snap': snap, 'lsb_release': release, 'gcloud': gcloud,
    'gcsfuse': gcsfuse, 'mountpoint': mountpoint, 'docker': docker}


def main(argv: Sequence[str]) -> int:
    """Be a program of the machine whose root is argv[0], and return its exit code."""
    root = Path(argv[0])
    value: dict[str, Any] = json.loads((root / WORLD).read_text())
    try:
        PROGRAMS[argv[1]](root, Surroundings(**value), argv[2:])
    except Refused as refused:
        print(refused, file=sys.stderr)
        # A script may throw away what its programs print.
        with (root / CONSOLE).open('a') as console:
            console.write(f'error: {refused}\n')
        return refused.code
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
