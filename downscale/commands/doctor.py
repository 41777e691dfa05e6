"""`downscale doctor`: what this machine has for a study, and what stands in the way of one."""
import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from downscale.commands.machine import cores
from downscale.runtime import copies
from downscale.runtime.files import BUCKET, in_bucket, scratch
from downscale.runtime.outputs import existing, require_folder
from downscale.runtime.setup import wanted_cache

EXAMPLE = 'downscale doctor --json'
# Those whose versions a report of a fault must name; the others are named where they do not fit.
NAMED = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'grain')
# In a process of its own: a library that is broken, or a TPU that another process has, may abort.
DEVICES = '''
import json, jax
devices = jax.devices()
stats = devices[0].memory_stats() or {}
print(json.dumps([devices[0].platform, [device.device_kind for device in devices],
                  stats.get('bytes_limit')]))
'''
PREALLOCATE = 'XLA_PYTHON_CLIENT_PREALLOCATE'
FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
LONGEST_START = 120  # seconds until devices are given up; TPUs take up to a minute
LEAST_FREE = 2**30   # bytes; the checkpoints and programs of even a small study come near


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('--json', action='store_true', help='one JSON object instead of text')


def run(args: argparse.Namespace) -> int:
    """Show versions, devices, extras, disk and caches.

    The exit code is 1 where something stands in the way of a study. An extra that is not installed
    does not.
    """
    value = examine()
    print(json.dumps(value, indent=1) if args.json else '\n'.join(lines(value)))
    return 1 if value['problems'] else 0


def examine() -> dict[str, Any]:
    """Return everything that `downscale doctor` shows, as JSON values."""
    from downscale.runtime import installed
    needed = installed.libraries()
    value = {
        'python': {'version': platform.python_version(), 'path': sys.executable},
        'downscale': installed.version_of(installed.NAME),
        'versions': {name: installed.version_of(name) for name in NAMED},
        'libraries': len(needed),
        'cores': {'usable': cores(), 'all': os.cpu_count()},
        'devices': _devices(),
        'extras': {name: _extra(installed.libraries(name)) for name in installed.extras()},
        'places': _places()}
    value['problems'] = [
        *(f'{library.name} {library.version or "is missing"}; {library.name}{library.wanted} is '
          'needed' for library in needed if not library.fits),
        *_problems(value)]
    return value


def _extra(libraries):
    """Return {there: whether all of them fit, adds: {name: version or None}}."""
    return {'there': all(library.fits for library in libraries),
            'adds': {library.name: library.version for library in libraries}}


def _devices():
    """Return the platform and devices that JAX finds, or why it finds none.

    `memory_bytes` are those of a device that JAX may use, None where it does not say.
    """
    import subprocess  # only here, so that --help need not wait for it
    value = {'platform': None, 'kinds': [], 'memory_bytes': None, 'error': None}
    try:
        done = subprocess.run([sys.executable, '-c', DEVICES], capture_output=True, text=True,
                              timeout=LONGEST_START, check=False,
                              # To look is not to take: else a GPU in use would have no room.
                              env=os.environ | {PREALLOCATE: 'false'})
    except subprocess.TimeoutExpired:
        return value | {'error': f'no answer in {LONGEST_START} s'}
    if done.returncode:
        text = done.stderr.strip().splitlines() or [f'ended with {done.returncode}']
        return value | {'error': text[-1][:200]}
    # Libraries may print before the last line.
    value['platform'], value['kinds'], value['memory_bytes'] = json.loads(
        done.stdout.splitlines()[-1])
    return value


def _places():
    """Return the folders that commands write to: path, free bytes, and why one cannot be written.
    """
    folders = {
        'this folder': (Path.cwd(), ''),
        'compiled programs': (wanted_cache(), 'JAX_COMPILATION_CACHE_DIR'),
        'temporary files': (Path(os.environ.get('TMPDIR') or tempfile.gettempdir()), 'TMPDIR'),
        'scratch of buckets': (scratch(BUCKET), 'DOWNSCALE_SCRATCH'),
        'copies of buckets': (copies.top(), 'DOWNSCALE_COPIES')}
    places = {}
    for what, (folder, variable) in folders.items():
        row = {'path': str(folder), 'set_by': variable if os.environ.get(variable) else None,
               'free_bytes': None, 'fault': None}
        # Whether a bucket can be written is known to its own commands, and costs a request.
        if not in_bucket(folder):
            try:
                if variable == 'TMPDIR' and not folder.is_dir():
                    raise NotADirectoryError('no such folder')  # nobody makes this one
                require_folder(folder)
                row['free_bytes'] = shutil.disk_usage(existing(folder)).free
            except OSError as error:
                row['fault'] = str(error)
        places[what] = row
    return places


def _problems(value: dict[str, Any]) -> Iterator[str]:
    """Yield what stands in the way of a study, a line each."""
    if value['devices']['error']:
        yield f'JAX finds no devices: {value["devices"]["error"]}'
    for what, row in value['places'].items():
        if row['fault']:
            yield f'{what}: {row["path"]}: {row["fault"]}'
        elif row['free_bytes'] is not None and row['free_bytes'] < LEAST_FREE:
            yield f'{what}: {row["path"]}: {row["free_bytes"] / 2**30:.2f} GiB are free'


# --- as text ----------------------------------------------------------------------------------

def lines(value: dict[str, Any]) -> Iterator[str]:
    """Yield what `examine` has returned as lines of text."""
    from downscale.output.text import aligned
    yield f'downscale {value["downscale"]}, python {value["python"]["version"]}'
    yield f'           {value["python"]["path"]}'
    yield from aligned([['', name, version or 'missing']
                        for name, version in value['versions'].items()], left=(0, 1, 2))
    yield ''
    yield f'cores      {value["cores"]["usable"]} of {value["cores"]["all"]}'
    yield f'devices    {_device_text(value["devices"])}'
    if value['devices']['platform'] == 'gpu':
        yield (f'           JAX takes 75 % of a GPU\'s memory when it starts; {FRACTION} sets '
               f'the\n           share, {PREALLOCATE}=false takes it as it is needed')
    yield ''
    yield 'extras     pip install \'downscale[NAME]\''
    for line in aligned([['', name, 'there' if row['there'] else '-', _added(row['adds'])]
                         for name, row in value['extras'].items()], left=(0, 1, 2, 3)):
        yield from textwrap.wrap(line, 80, subsequent_indent=21 * ' ', drop_whitespace=True,
                                 break_long_words=False, break_on_hyphens=False)
    yield ''
    yield 'places'
    yield from aligned([['', what, _state(row), row['path'] + _by(row)]
                        for what, row in value['places'].items()], left=(0, 1, 2, 3))
    yield ''
    yield from [f'problem: {text}' for text in value['problems']] or [
        f'All {value["libraries"]} libraries fit, and nothing stands in the way of a study.']


def _device_text(devices):
    """Return the devices as text."""
    if devices['error']:
        return 'none'
    counts = {kind: devices['kinds'].count(kind) for kind in devices['kinds']}
    text = ', '.join(f'{count} x {kind}' for kind, count in counts.items())
    if devices['memory_bytes']:
        text += f', of each {devices["memory_bytes"] / 2**30:.1f} GiB for JAX'
    return text


def _added(adds):
    """Return the libraries of an extra, with the versions that are installed."""
    return ', '.join(f'{name} {version or "(missing)"}' for name, version in adds.items())


def _state(row):
    """Return whether a place can be written, and its free space."""
    if row['fault']:
        return 'not writable'
    if row['free_bytes'] is None:
        return 'in a bucket'
    return f'{row["free_bytes"] / 2**30:.1f} GiB free'


def _by(row):
    """Return the variable that a place was set by, in brackets."""
    return f' ({row["set_by"]})' if row['set_by'] else ''
