"""A small model that answers, and the same broken at each of three known places.

`tests/data/smoke_cell/w64d2.npz` is w64d2-s0 of the smoke study behind `instruct`, in half
precision: what stands in a cell it reads in 98 of 100 scenes.
"""
import copy

import jax
import numpy as np
from probed_study import save
from roots import ROOT

from downscale.data.scenes import pairs
from downscale.experiment import file
from downscale.experiment.expansion import cells_of
from downscale.probe import interchange
from downscale.probe.passes import Looker
from downscale.stages.folders import folder_of
from downscale.study.preparation import prepare

# Where each model loses what it is asked to see.
PLACES = {'whole': 'nowhere', 'connector': 'carry', 'blind': 'address', 'head': 'read'}


def whole():
    """The parameters of the small model that answers."""
    tree = {}
    with np.load(ROOT / 'tests' / 'data' / 'smoke_cell' / 'w64d2.npz') as leaves:
        for name in leaves.files:
            *path, last = name.split('/')
            at = tree
            for part in path:
                at = at.setdefault(part, {})
            at[last] = leaves[name].astype(np.float32)
    return tree


def without_shapes(tree, looker, cell):
    """A connector that drops what tells shapes apart, as far as a linear probe can tell."""
    spare = [pairs.pair(cell.world, 'test', 5000 + n, 'shape') for n in range(480)]
    x = interchange.read(looker, [interchange.matched(one, cell) for one in spare])[
        'own connected']
    hot = np.eye(4)[np.unique([one.asked.shape for one in spare], return_inverse=True)[1]]
    # After it no linear probe does better than the mean (LEACE, arXiv 2306.03819).
    mean = x.mean(axis=0)
    sizes, axes = np.linalg.eigh(np.cov(x.T) + 1e-3 * np.eye(len(mean)))
    whiten, colour = (axes * sizes ** power @ axes.T for power in (-.5, .5))
    across, _, _ = np.linalg.svd(whiten @ (x - mean).T @ (hot - hot.mean(axis=0)),
                                 full_matrices=False)
    drop = colour @ across[:, :3] @ across[:, :3].T @ whiten
    connector = tree['connector']
    connector['second_bias_D'] = (connector['second_bias_D'] - drop @ (
        connector['second_bias_D'] - mean)).astype(np.float32)
    connector['second_DD'] = (connector['second_DD'] @ (
        np.eye(len(mean)) - drop.T)).astype(np.float32)
    return tree


def blind(tree):
    """A decoder in which nothing travels from token to token."""
    attention = tree['language']['blocks']['attention']
    attention['o_HED'] = np.zeros_like(attention['o_HED'])
    return tree


def scrambled(tree):
    """A head that reads in directions that the decoder does not write in."""
    scale_D = tree['language']['final_norm']['scale_D']
    signs = np.random.default_rng(1).choice([-1, 1], len(scale_D))
    tree['language']['final_norm']['scale_D'] = scale_D * signs.astype(np.float32)
    return tree


def build(folder):
    """{name: cell} of a study in `folder`: the whole model and the three broken ones."""
    config, sweep = file.load_study(ROOT / 'experiments' / 'smoke.py', ['data.train=4'])
    with config.unlocked():
        del config['platform']
    cells = {}
    for seed, name in enumerate(PLACES):
        cells[name] = cells_of(config, [{'size': 'w64d2', 'seed': seed}])[1]
    prepare(folder, 'smoke', list(cells.values()), True)
    params = whole()
    save(folder_of(folder, cells['whole'], 'instruct'), params, cells['whole'])
    looker = Looker(folder, cells['whole'])
    for name, harm in (('connector', lambda tree: without_shapes(tree, looker, cells['whole'])),
                       ('blind', blind), ('head', scrambled)):
        broken = harm(copy.deepcopy(jax.tree.map(np.asarray, params)))
        save(folder_of(folder, cells[name], 'instruct'), broken, cells[name])
    return cells
