"""What the back ends of virtual machines share: gcloud as a process, and what a machine is told."""
import json
import subprocess
from dataclasses import dataclass
from typing import Any

from downscale.experiment.names import GOOGLE, label
from downscale.launch import state
from downscale.launch.spec import Spec, on_cpu
from downscale.runtime.mounts import as_variable, read_mounts
from downscale.values import shown

TIMEOUT_SECONDS = 300
SEPARATORS = ',|;~#%@!'  # that may stand between pairs


@dataclass(frozen=True, kw_only=True)
class VmOptions:
    """Where machines are asked for, and what they are.

    A request that has waited for `valid_for` (as '6h') is given up. `script` is the path of the
    start-up script, which mounts `mounts` (NAME=gs://...) and gives `data` a file cache of
    `cache_gib`.
    """
    zones: tuple[str, ...]
    script: str
    valid_for: str | None = None
    service_account: str | None = None
    internal_ips: bool = False
    mounts: tuple[str, ...] = ()
    cache_gib: int | None = None


def labels(spec: Spec) -> dict[str, str]:
    """Return the labels by which the resources of a job are found."""
    return {'downscale-run': spec.group, 'downscale-sweep': label(spec.sweep, GOOGLE),
            'downscale-cell': label(spec.cell, GOOGLE), 'downscale-part': spec.part,
            'downscale-spec': spec.hash}


def startup_flags(spec: Spec, options: VmOptions) -> list[str]:
    """Return the flags by which a machine gets the start-up script and what it reads.

    The script is the same for all jobs; what differs is in the metadata of the machine.
    """
    metadata = {'downscale-spec': str(state.spec_file(spec)),
                'downscale-image': spec.image or ''}
    if options.mounts:
        metadata['downscale-mounts'] = as_variable(read_mounts(options.mounts))
        metadata['downscale-cache-gib'] = str(options.cache_gib or 0)
    return [f'--metadata={pairs(metadata)}',
            f'--metadata-from-file={pairs({"startup-script": options.script})}']


def refuse_this_machine(spec: Spec) -> None:
    """Raise ValueError in one line for a job whose topology is that of this machine."""
    if on_cpu(spec.topology):
        raise ValueError(f'{spec.key} is for {spec.topology}, which is this machine; use --backend '
                         'local, or a TPU topology such as v6e:4x4')


def pairs(values: dict[str, str]) -> str:
    """Return NAME=VALUE pairs as gcloud takes them.

    Where a value holds a comma, another sign stands between pairs, which '^SIGN^' declares (`gcloud
    topic escaping`). ValueError where the values hold every such sign.
    """
    texts = [f'{name}={value}' for name, value in values.items()]
    for sign in SEPARATORS:
        if not any(sign in text for text in texts):
            return sign.join(texts) if sign == ',' else f'^{sign}^{sign.join(texts)}'
    raise ValueError(f'{shown(texts)} holds all of {SEPARATORS}, so that gcloud could not part it; '
                     'give --run another name')


def command(*words: str) -> list[str]:
    """Return the argv of a verb of `gcloud compute`, which asks nothing and answers in JSON."""
    return ['gcloud', 'compute', *words, '--quiet', '--format=json']


def call(argv: list[str]) -> Any:
    """Return what gcloud answers, from JSON; RuntimeError in one line when it fails."""
    verb = ' '.join(argv[2:argv.index('--quiet')])
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
                              stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ValueError('there is no gcloud; install the Google Cloud CLI and log in') from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'gcloud {verb} gave no answer in {TIMEOUT_SECONDS} s') from None
    if done.returncode:
        # gcloud prints progress and hints before the line that says why.
        text = ' '.join(done.stderr.split()).rpartition('ERROR: ')[2]
        raise RuntimeError(f'gcloud {verb}: {text[:400]}')
    return json.loads(done.stdout) if done.stdout.strip() else None
