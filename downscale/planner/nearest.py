"""What to change when a program does not fit: the least change first, told from what did not fit.

Order for training: rematerialise; more micro-batches, as many as the excess needs (the global batch
stays); weights split over more devices. For serving: fewer rows, or weights split over more chips
where they are most of what is held.
"""
import math
from collections.abc import Callable
from dataclasses import replace

from downscale.accounting import trainable
from downscale.planner.formulas import (
    configs,
    parameters,
    teacher_bytes,
    with_accumulation,
)
from downscale.planner.programs import ProgramRequest, Use

TRIES = 4  # compilations that are spent on finding a fit
GIB = 2 ** 30

Divides = Callable[[ProgramRequest], bool]  # whether a request's mesh divides every parameter


def smaller(use: Use, used_gib: float | None, limit_gib: float,
            divides: Divides) -> ProgramRequest | None:
    """Return the next request to try after that of `use`; None where nothing is left to change.

    It needed `used_gib` (None: unknown) of `limit_gib`, what is held beside it included.
    """
    used = used_gib or 2 * limit_gib  # the compiler did not say by how much
    if use.request.kind == 'train':
        return _smaller_step(use.request, used, limit_gib, divides)
    return _smaller_engine(use, used, limit_gib, divides)


def _smaller_step(request, used, limit, divides):
    """Return the next train program to try, None where nothing is left to change."""
    # 1. Compute activations again: some speed, and nothing else changes.
    if request.cell['remat'] != 'full':
        return replace(request, cell={**request.cell, 'remat': 'full'})
    # 2. More micro-batches, each with fewer activations.
    data, fsdp, tensor = request.mesh
    micro = request.rows // (request.accumulate * data * fsdp)
    if micro > 1:
        language, vision = configs(request)
        trained = trainable(language, vision, request.stage['trainable'])
        # Parameters, moments and gradients, in float32, stay when there are more micro-batches, and
        # so does a teacher.
        fixed = (4 * parameters(request) + 12 * trained + teacher_bytes(request)) / (
            fsdp * tensor) / GIB
        # Only what is above `fixed` shrinks with the micro-batch.
        factor = (used - fixed) / (limit - fixed) if fixed < limit else micro
        divisors = [times for times in range(2, micro + 1) if micro % times == 0]
        times = min((times for times in divisors if times >= factor), default=micro)
        return with_accumulation(request, request.accumulate * times)
    # 3. Weights over more devices; heads only where no width can be split further, since that adds
    # an exchange of activations to each block.
    wider = replace(request, mesh=(data // 2, fsdp * 2, tensor))
    if data % 2 == 0 and divides(wider):
        return wider
    split = replace(request, mesh=(data, fsdp // 2, tensor * 2))
    if fsdp % 2 == 0 and divides(split):
        return with_accumulation(split, 2 * request.accumulate)
    return None


def _smaller_engine(use, used, limit, divides):
    """Return the next served program to try, None where nothing is left to change."""
    request = use.request
    ways = request.mesh[2]
    width = 2 if request.cell['dtype'] == 'bfloat16' else 4
    weights = (width * parameters(request) + use.beside) / ways / GIB
    # A quarter of the memory for caches is the least that makes a useful batch.
    if request.slots > 1 and weights < 0.75 * limit:
        # 5 % below the share that should fit: the caches are most of the rest, not all of it.
        share = (limit - weights) / max(used - weights, limit - weights)
        slots = max(1, min(math.floor(0.95 * share * request.slots), request.slots - 1))
        rows = slots if request.kind == 'decode' else request.rows
        return replace(request, rows=rows, slots=slots)
    split = replace(request, mesh=(*request.mesh[:2], 2 * ways))
    return split if divides(split) else None


def change(before: ProgramRequest, after: ProgramRequest) -> str:
    """Return in words what `after` has otherwise than `before`."""
    words = []
    if after.cell['remat'] != before.cell['remat']:
        words.append(f'remat={after.cell["remat"]}')
    if after.mesh != before.mesh:
        words.append('mesh ' + ' x '.join(
            f'{name}={size}' for name, size in zip(('data', 'fsdp', 'tensor'), after.mesh)))
    if after.accumulate != before.accumulate:
        words.append(f'optimizer.accumulate={after.accumulate}')
    if after.slots != before.slots:
        words.append(f'{after.slots} rows')
    return ', '.join(words)
