"""What to change when a program does not fit: the least change first, told from what did not fit.

Order for training: rematerialise; more micro-batches, as many as the excess needs (the global batch
stays); weights split over more devices. For serving: fewer rows, or weights split over more chips
where they are most of what is held.
"""
import math
from dataclasses import replace

from downscale.accounting import trainable
from downscale.planner.programs import configs, parameters, with_accumulation

TRIES = 4  # compilations that are spent on finding a fit
GIB = 2 ** 30


def smaller(use, used_gib, limit_gib, divides):
    """Return the next `ProgramRequest` to try after that of `use` needed `used_gib` (None: unknown)
    of `limit_gib`, what is held beside it included.

    None where nothing is left to change. `divides(request)` says whether a mesh divides every
    parameter.
    """
    used = used_gib or 2 * limit_gib
    if use.request.kind == 'train':
        return _smaller_step(use.request, used, limit_gib, divides)
    return _smaller_engine(use, used, limit_gib, divides)


def _smaller_step(request, used, limit, divides):
    if request.cell['remat'] != 'full':
        return replace(request, cell={**request.cell, 'remat': 'full'})
    data, fsdp, tensor = request.mesh
    micro = request.rows // (request.accumulate * data * fsdp)
    if micro > 1:
        language, vision = configs(request)
        trained = trainable(language, vision, request.stage['trainable'])
        # Parameters, moments and gradients, in float32, stay when there are more micro-batches.
        fixed = (4 * parameters(request) + 12 * trained) / (fsdp * tensor) / GIB
        factor = (used - fixed) / (limit - fixed) if fixed < limit else micro
        times = min((d for d in range(2, micro + 1) if micro % d == 0 and d >= factor),
                    default=micro)
        return with_accumulation(request, request.accumulate * times)
    # Weights over more devices; heads only where no width can be split further, since that adds
    # an exchange of activations to each block.
    wider = replace(request, mesh=(data // 2, fsdp * 2, tensor))
    if data % 2 == 0 and divides(wider):
        return wider
    split = replace(request, mesh=(data, fsdp // 2, tensor * 2))
    if fsdp % 2 == 0 and divides(split):
        return with_accumulation(split, 2 * request.accumulate)
    return None


def _smaller_engine(use, used, limit, divides):
    request, ways = use.request, use.request.mesh[2]
    width = 2 if request.cell['dtype'] == 'bfloat16' else 4
    weights = (width * parameters(request) + use.beside) / ways / GIB
    # A quarter of the memory for caches is the least that makes a useful batch.
    if request.slots > 1 and weights < 0.75 * limit:
        share = (limit - weights) / max(used - weights, limit - weights)
        slots = max(1, min(math.floor(0.95 * share * request.slots), request.slots - 1))
        rows = slots if request.kind == 'decode' else request.rows
        return replace(request, rows=rows, slots=slots)
    split = replace(request, mesh=(*request.mesh[:2], 2 * ways))
    return split if divides(split) else None


def change(before, after):
    """In words, what `after` has otherwise than `before`."""
    said = []
    if after.cell['remat'] != before.cell['remat']:
        said.append(f'remat={after.cell["remat"]}')
    if after.mesh != before.mesh:
        said.append('mesh ' + ' x '.join(
            f'{name}={size}' for name, size in zip(('data', 'fsdp', 'tensor'), after.mesh)))
    if after.accumulate != before.accumulate:
        said.append(f'optimizer.accumulate={after.accumulate}')
    if after.slots != before.slots:
        said.append(f'{after.slots} rows')
    return ', '.join(said)
