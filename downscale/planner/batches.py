"""The batch of a stage as shapes, without any data."""
import jax
from jax.sharding import Sharding

from downscale.config import Experiment
from downscale.data.scenes.kinds import kind_of
from downscale.data.tiling import corners
from downscale.stage_config import Stage


def batch_of(cell: Experiment, stage: Stage, where: Sharding) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the leaves that `data/pipeline.py` makes for a stage, as ShapeDtypeStructs."""
    B = stage.batch
    L = stage.length
    I = stage.tiles
    P = cell.vision.P if I else 0
    Q = cell.vision.Q if I else 0
    # What a stage does not read is left out of its batch, not made empty.
    leaves = {'tokens': ((B, L), 'int32'), 'segments': ((B, L), 'int32')}
    if stage.kind.rows == 'captioned':  # one picture a row, and no place in the text for it
        if I:
            leaves['tiles'] = (B, P, Q), 'uint8'
        if kind_of(cell.world).shows:
            leaves['patches'] = (B, L, P), 'bool'
    else:
        leaves |= {'positions': ((B, L), 'int32'), 'weights': ((B, L), 'float32')}
        if I:
            leaves['tiles'] = (B, I, P, Q), 'uint8'
            C = corners(cell.layout(stage.name).pictures)
            leaves['image_index'] = (B, L, C), 'int32'
            if C > 1:
                leaves['image_weight'] = (B, L, C), 'float32'
        if stage.kind.rows == 'written':
            leaves |= {'slopes': ((B, L), 'float32'), 'temperature': ((B,), 'float32')}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for name, (shape, dtype) in leaves.items()}
