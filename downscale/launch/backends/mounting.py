"""How `data/` and `models/` of a study get from a bucket to where its jobs look for them.

GKE mounts them as read-only volumes (Cloud Storage FUSE), the start-up script of a TPU machine by
gcsfuse. On this machine a folder stands for the bucket: processes run among links.
"""
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downscale.config import Experiment
from downscale.launch.spec import Spec
from downscale.runtime.files import in_bucket, place, read_json, scratch
from downscale.runtime.mounts import VARIABLE, as_variable, origin_of, parts_of, read_mounts

if TYPE_CHECKING:
    from downscale.launch.backends.gke import GkeOptions

WORKDIR = '/downscale'  # of the image; paths of a study count from it
DRIVER = 'gcsfuse.csi.storage.gke.io'
# A larger mixture is not cached but read record by record: of the 100 GB of a node's disk GKE
# leaves about 47 to pods, and a cache that must evict fetches a whole shard for each record.
CACHE_GIB_MOST = 40
BESIDE_RECORDS = 1.05  # the index of a shard, and the costs
SIDECAR_GIB = 5  # what GKE asks for without a cache
# One request brings a record of up to a megabyte; the kernel's own 128 KiB would take several.
READ_AHEAD_KB = 1024
# Data sets do not change under a job, so what was once asked of the bucket is not asked again.
OPTIONS = ('implicit-dirs', 'metadata-cache:ttl-secs:-1',
           'metadata-cache:stat-cache-max-size-mb:-1', 'metadata-cache:type-cache-max-size-mb:-1',
           f'read_ahead_kb={READ_AHEAD_KB}')


def checked(texts: Iterable[str], backend: str) -> tuple[str, ...]:
    """Return texts NAME=PLACE as they are kept; ValueError in one line where a backend has none."""
    mounts = read_mounts(texts)
    for name, where in mounts.items():
        if backend != 'local' and not in_bucket(where):
            raise ValueError(f'--mount {name}={where} is on this machine, which --backend '
                             f'{backend} cannot reach; give a folder of a bucket, as '
                             f'{name}=gs://BUCKET/PREFIX')
        if backend == 'local':
            if in_bucket(where):
                raise ValueError(f'--mount {name}={where}: --backend local mounts no bucket; give '
                                 'a folder that stands for it, where it is copied to or mounted')
            mounts[name] = os.path.abspath(where)
            if not Path(where).is_dir():
                raise ValueError(f'--mount {name}={where}: there is no such folder')
    return tuple(f'{name}={where}' for name, where in mounts.items())


def cache_gib(cells: Sequence[Experiment], texts: Sequence[str], asked: bool = True) -> int | None:
    """Return the GiB of a file cache that holds the mixtures of any one cell.

    None where nothing of a bucket is to be cached, or more than `CACHE_GIB_MOST`.
    FileNotFoundError where a mixture is not in the bucket; unless `asked` the manifests are those
    of this machine, as far as it has any.
    """
    mounts = {name: where for name, where in read_mounts(texts).items() if in_bucket(where)}
    bytes_of = {}
    largest = 0
    for cell in cells:
        folders = {stage.mixture for stage in cell.stages if stage.mixture}
        mounted = [folder for folder in folders if in_bucket(origin_of(folder, mounts))]
        for folder in mounted:
            if folder not in bytes_of:
                bytes_of[folder] = _bytes_of(folder, origin_of(folder, mounts), asked)
        largest = max(largest, sum(bytes_of[folder] for folder in mounted))
    gib = math.ceil(largest * BESIDE_RECORDS / 2 ** 30)
    return gib if 0 < gib <= CACHE_GIB_MOST else None


def _bytes_of(folder, origin, asked):
    """Return the bytes of the records of a mixture; 0 where a dry run cannot know."""
    path = f'{origin if asked else folder}/manifest.json'
    manifest = read_json(place(path))
    if manifest is None:
        if not asked:
            return 0
        raise FileNotFoundError(f'no {path}; copy the built mixture there: gcloud storage cp '
                                f'--recursive {folder} {str(origin).rpartition("/")[0]}/')
    try:
        return sum(shard['bytes'] for shard in manifest['shards'])
    except (KeyError, TypeError):
        raise ValueError(f'{path} is no manifest of a built mixture') from None


# --- GKE --------------------------------------------------------------------------------------

def annotations(options: 'GkeOptions') -> dict[str, str]:
    """Return the annotations by which GKE adds gcsfuse to a pod, {} where nothing is mounted."""
    if not options.mounts:
        return {}
    # Without limits, and with all the disk that the cache will need: a node that has less is not
    # taken, where a pod that outgrew it would be evicted.
    names = {'volumes': 'true', 'cpu-limit': '0', 'memory-limit': '0',
             'ephemeral-storage-limit': '0',
             'ephemeral-storage-request': f'{SIDECAR_GIB + (options.cache_gib or 0)}Gi'}
    return {f'gke-gcsfuse/{name}': value for name, value in names.items()}


def mounted_pod(pod: dict[str, Any], options: 'GkeOptions') -> dict[str, Any]:
    """Return the spec of a pod with the volumes that `options` names."""
    mounts = read_mounts(options.mounts)
    if not mounts:
        return pod
    # Two containers of one machine read the same volumes.
    added = {'name': VARIABLE, 'value': as_variable(mounts)}
    places = [{'name': name, 'mountPath': f'{WORKDIR}/{name}', 'readOnly': True}
              for name in mounts]
    containers = [container | {'env': [*container['env'], added], 'volumeMounts': places}
                  for container in pod['containers']]
    volumes = [_volume(name, where, options.cache_gib) for name, where in mounts.items()]
    return pod | {'containers': containers, 'volumes': volumes}


def _volume(name, where, gib):
    """Return the volume of gs://BUCKET/PREFIX."""
    bucket, prefix = parts_of(where)
    chosen = [*OPTIONS]
    if prefix:
        chosen.append(f'only-dir:{prefix}')
    # Weights are read once, past the mount: only records come again.
    if name == 'data' and gib:
        chosen += [f'file-cache:max-size-mb:{gib * 1024}',
                   'file-cache:cache-file-for-range-read:true',
                   'file-cache:enable-parallel-downloads:true']
    return {'name': name, 'csi': {'driver': DRIVER, 'readOnly': True, 'volumeAttributes': {
        'bucketName': bucket, 'mountOptions': ','.join(chosen)}}}


# --- this machine -----------------------------------------------------------------------------

def folder_of(spec: Spec, texts: Sequence[str]) -> Path | None:
    """Return the folder in which the processes of a local job run, None for the current one."""
    return scratch(spec.run) / 'launch' / 'mounted' if texts else None


def linked(spec: Spec, texts: Sequence[str]) -> Path | None:
    """Make `folder_of` a job: links to all of the current folder, and to what is mounted.

    So a study's relative paths lead into the mounted folders, as in the cloud.
    """
    folder = folder_of(spec, texts)
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    targets = {path.name: str(path) for path in Path.cwd().iterdir()} | read_mounts(texts)
    for name, target in targets.items():
        link = folder / name
        if link.is_symlink() and os.readlink(link) == target:
            continue
        # Other jobs may be reading: a new link takes the place of the old one in one step.
        fresh = folder / f'.{name}.{os.getpid()}.partial'
        fresh.symlink_to(target)
        fresh.replace(link)
    return folder
