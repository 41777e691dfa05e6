"""What a fork takes from its trunk: the checkpoint at which it leaves, and the rows before it.

From there it is an ordinary run that was interrupted: restored, trained to its end and resumed.
"""
from pathlib import Path

from downscale.config import Experiment
from downscale.runtime.files import PathLike, in_bucket, place, write_bytes
from downscale.stage_config import Stage
from downscale.train import checksums
from downscale.train.checkpoint import committed, steps

MARK = 'commit_success.txt'  # orbax writes it into a bucket when all files of a step are there


def leave_trunk(study: PathLike, experiment: Experiment, stage: Stage, folder: Path) -> None:
    """Copy into `folder` what a fork starts from, unless it has begun; nothing for other stages.

    FileNotFoundError where the trunk has no such checkpoint, `Damaged` where it is damaged.
    """
    if not stage.trunk or committed(folder) is not None:
        return
    trunk = place(study) / 'cells' / stage.trunk / stage.name
    begin = stage.first_step
    source = steps(trunk).get(begin)
    if source is None:
        raise FileNotFoundError(f'no complete checkpoint {begin} in {trunk}/checkpoints, at which '
                                f'{experiment.name} leaves it; was it trained with this fork?')
    checksums.check(source)
    # 1. The rows: the log cuts what the trunk has added behind the step.
    write_bytes(place(folder) / 'metrics.jsonl', (trunk / 'metrics.jsonl').read_bytes())
    # 2. The step, under a name that no reader takes for one until all of it is there. A bucket
    # renames nothing: there the mark of orbax comes last.
    target = place(folder) / 'checkpoints' / str(begin)
    partial = target if in_bucket(folder) else target.with_name(f'{begin}.fork')
    files = [path for path in place(source).rglob('*') if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MARK):
        write_bytes(partial / path.relative_to(source), path.read_bytes())
    if partial != target:
        partial.rename(target)
