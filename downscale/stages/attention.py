"""Which attention each stage of a cell trains with, and how fast its devices could be: said once.

Both are worked out before anything is trained, so that what cannot be is refused at once.
"""
from collections.abc import Iterable, Iterator

from jax.sharding import Mesh

from downscale.accounting import GPUS, forward_flops, train_flops
from downscale.config import Experiment
from downscale.model.attention import choose
from downscale.model.vlm import Vlm
from downscale.stage_config import Stage
from downscale.stages.start import grid_of


def choices(experiment: Experiment, stage: Stage, grid: Mesh,
            stacked: bool = False) -> dict[int, tuple[str, str]]:
    """Return {tokens of a row: (program, why)} of every shape of a stage; {} without a decoder.

    `stacked` says that several cells share the step. ValueError in one line where what is asked for
    cannot be.
    """
    if stage.loss in ('words', 'none'):
        return {}
    assert experiment.language is not None
    try:
        return {length: choose(experiment.attention, grid.devices.flat[0], experiment.dtype, length,
                               experiment.language.E, stacked)
                for length in sorted({shape.length for shape in stage.shapes})}
    except ValueError as error:
        raise ValueError(f'{experiment.name}, stage {stage.name}: {error}') from None


def programs(experiment: Experiment, stage: Stage, grid: Mesh,
             stacked: bool = False) -> dict[int, str]:
    """Return {tokens of a row: program} of `choices`."""
    return {length: program for length, (program, _) in choices(
        experiment, stage, grid, stacked).items()}


def ideal_seconds(experiment: Experiment, stage: Stage, grid: Mesh,
                  teacher: Vlm | None = None) -> dict[tuple[int, int], float]:
    """Return {(tokens, tiles of a row): seconds of a step with all devices at their bf16 peak}.

    FLOPs are those of the step and of its `teacher`, without what `remat` computes again. {} where
    no peak is known, and without a decoder.
    """
    gpu = GPUS.get(grid.devices.flat[0].device_kind)
    if gpu is None or stage.loss in ('words', 'none'):
        return {}
    assert experiment.language is not None
    seconds = {}
    for shape in stage.shapes:
        read = {'rows': shape.batch, 'length': shape.length, 'tiles': shape.batch * shape.tiles}
        flops = train_flops(experiment.language, experiment.vision, **read,
                            groups=tuple(stage.trainable))['total']
        if teacher is not None:
            flops += forward_flops(teacher.language, teacher.vision, **read)['total']
        seconds[shape.length, shape.tiles] = flops / (gpu.flops * grid.size)
    return seconds


def lines(experiments: Iterable[Experiment], together: int = 1) -> Iterator[str]:
    """Yield what to say before training: the attention of all stages, a line for each choice.

    A last line names a GPU whose peak is not known. ValueError as `choices`.
    """
    lengths = {}  # of each (program, why)
    device = None
    for experiment in experiments:
        grid = grid_of(experiment)
        device = grid.devices.flat[0]
        for stage in experiment.stages:
            # A stage of several shapes is never stacked (see `training.program_of`).
            stacked = together > 1 and not stage.buckets
            for length, choice in choices(experiment, stage, grid, stacked).items():
                lengths.setdefault(choice, set()).add(length)
    for (program, why), rows in lengths.items():
        shown = ', '.join(map(str, sorted(rows)))
        yield f'attention: {program} for rows of {shown} tokens ({why})'
    if device is not None and device.platform == 'gpu' and device.device_kind not in GPUS:
        yield (f'{device.device_kind} is not among the GPUs whose peak is known '
               '(downscale/accounting.py): timing.jsonl will have no mfu')
