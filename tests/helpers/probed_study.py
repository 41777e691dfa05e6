"""A study folder of two sizes with weights that nobody trained, in which something was planted."""
import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import small

from downscale import config
from downscale.config import Data, Evaluation, Experiment
from downscale.data.scenes.world import World
from downscale.model.init import init_params
from downscale.runtime.files import write_json
from downscale.sizes import LANGUAGE, scale
from downscale.stage_config import Stage
from downscale.stages.folders import folder_of
from downscale.stages.models import model_of
from downscale.study.preparation import prepare
from downscale.train import checkpoint

WORLD = World(grid=2, n_shapes=3, n_colors=3, n_chars=2, min_objects=2, max_objects=3, n_facts=8)
STAGE = Stage(
    name='instruct',
    steps=1,
    batch=8,
    length=112,
    tiles=3,
    rates=dict(language=1e-3),
    trainable=('language',),
    parents={},
)
SIZES = {'w32d2': (32, 2), 'w64d4': (64, 4)}  # small and large


def cell(size):
    """The experiment of one size."""
    width, depth = SIZES[size]
    language = scale(LANGUAGE['micro']['w64d2'], width, depth, small.ROWS)
    return Experiment(
        name=f'{size}-s0',
        size=size,
        seed=0,
        language=language,
        vision=dataclasses.replace(small.VISION, image=40),
        world=WORLD,
        data=Data(train=2, validation=2, test=30, similarity_share=0.1),
        stages=(STAGE,),
        evaluation=Evaluation(scenes=30, texts=(), conditions=('image', 'blind')),
        pictures=small.PADDED,
    )


def save(folder, params, experiment):
    """`folder` holds a finished run of `experiment` with these parameters."""
    manager = checkpoint.open_manager(folder, every=1)
    manager.save(1, args=ocp.args.Composite(params=ocp.args.PyTreeSave(params),
                                            meta=ocp.args.JsonSave({})))
    manager.close()
    config.save(experiment, folder)
    write_json(folder / 'DONE.json', {'hash': experiment.hash})


def build(folder):
    """A study in `folder`: the large connector passes on what it gets, the small one nothing."""
    cells = [cell(size) for size in SIZES]
    prepare(folder, 'planted', cells, True)
    for one in cells:
        params = init_params(model_of(one), 1)
        if one.size == 'w32d2':
            params['connector'] = jax.tree.map(np.zeros_like, params['connector'])
        save(folder_of(folder, one, 'instruct'), params, one)
    return folder, cells
