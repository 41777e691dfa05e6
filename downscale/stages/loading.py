"""Open a trained or imported model from its run folder alone.

    model, params, tokenizer, experiment = downscale.load('runs/smoke/cells/w64d4-s0/instruct')
    logits = model.apply({'params': params}, tokens_BL, positions_BL, segments_BL)
"""
import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from downscale import config
from downscale.config import Experiment
from downscale.data.tokens import Encoder, load_tokenizer
from downscale.model.init import PARTS, abstract_params
from downscale.model.tower_words import WordModel, abstract_word_params
from downscale.model.vision import Tower
from downscale.runtime import copies
from downscale.runtime.files import PathLike, in_bucket
from downscale.sharding import Rules, shardings
from downscale.stages.models import Model, model_of
from downscale.train import checksums
from downscale.train.checkpoint import STEP, latest, load_params, stored_leaves


def load(folder: PathLike, mesh: Mesh | None = None, dtype: DTypeLike | None = None
         ) -> tuple[Model, dict[str, Any], Tokenizer | None, Experiment]:
    """Return (model, params, tokenizer, experiment) of a stage, or of an imported model.

    `params` are numpy arrays, or jax arrays sharded over `mesh` (see `sharding.mesh`) when one is
    given, whatever mesh they were trained on; `dtype` casts them, by default they keep the stored
    one. Only the groups that were stored come back: `language` alone for a text-only model.
    `folder` may be in a bucket (gs://): `local_run` then says what of it is copied here.
    `tokenizer` is a `tokenizers.Tokenizer`, None where the run has none. FileNotFoundError and
    ValueError say in one line what is wrong with `folder`.
    """
    folder = local_run(folder)
    experiment = config.load(folder)
    model = model_of(experiment, folder.name)
    # The stored leaves decide which groups there are, and in which dtype, before any is read.
    target = abstract_of(model, stored_leaves(latest(folder)), dtype)
    if mesh is not None:
        target = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            target, shardings(target, mesh, Rules()))
    return model, load_params(folder, target), tokenizer_of(folder, experiment), experiment


def local_run(folder: PathLike) -> Path:
    """Return the local folder of a run or an imported model.

    Of one in a bucket it is a copy of what `load` reads: its experiment, the parameters of its
    newest complete step and its tokenizer, or else that of its study. Errors are those of
    `copies.local_copy`.
    """
    if not in_bucket(folder):
        return Path(folder)
    study, cells, *_ = str(folder).rstrip('/').rsplit('/', 3)
    if cells == 'cells':
        # A tower alone has no tokenizer.
        with contextlib.suppress(FileNotFoundError):
            copies.local_copy(f'{study}/tokenizer.json')
    return copies.local_copy(folder, _needed)


def _needed(names):
    """Return those of the names of a run folder that `load` reads."""
    steps = {}
    for name in names:
        parts = name.split('/')
        # Either is written when all files of a step are there: the first by orbax into a bucket,
        # the other by us everywhere, as into a folder that was copied to the bucket later.
        if len(parts) == 3 and parts[0] == 'checkpoints' and STEP.fullmatch(parts[1]) \
                and parts[2] in ('commit_success.txt', checksums.NAME):
            steps[int(parts[1])] = f'checkpoints/{parts[1]}'
    needed = ['experiment.json', 'tokenizer.json']
    if steps:
        newest = steps[max(steps)]
        needed += [f'{newest}/*', f'{newest}/params/**']
    return copies.matching(*needed)(names)


def abstract_of(model: Model, stored: dict[str, tuple[tuple[int, ...], str]],
                dtype: DTypeLike | None = None) -> dict[str, Any]:
    """Return ShapeDtypeStructs of the groups that were stored, in `dtype` or as stored."""
    if isinstance(model, Tower):
        patches = np.zeros((1, model.cfg.P, model.cfg.Q), np.float32)
        # A tower alone is its own module: its tree lacks the name of the group.
        tree = {'tower': jax.eval_shape(model.init, jax.random.key(0), patches)['params']}
    elif isinstance(model, WordModel):
        tree = abstract_word_params(model)
    else:
        groups = {name.split('/')[0] for name in stored}  # a foreign one is told later
        # pyrefly: ignore[bad-argument-type]
        tree = abstract_params(model, tuple(sorted(groups & set(PARTS))))

    def typed(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        kept = stored[name][1] if name in stored else leaf.dtype  # a missing leaf is told later
        return jax.ShapeDtypeStruct(leaf.shape, dtype or kept)

    return jax.tree_util.tree_map_with_path(typed, tree)


def tokenizer_path(folder: PathLike, experiment: Experiment) -> Path:
    """Return the tokenizer.json of a study, of a stage in it, or of an imported model.

    It is the configured one; else that of the imported language model; else the run folder's own
    or, for STUDY/cells/CELL/STAGE, the study's. The file may be missing, as for a tower alone;
    FileNotFoundError when the imported folder is.
    """
    if experiment.tokenizer:
        return Path(experiment.tokenizer)
    if 'language' in experiment.imports:
        # The import may itself be a cell that was trained from another import: ask it the same.
        source = Path(experiment.imports['language'])
        imported = tokenizer_path(source, config.load(source))
        if imported.is_file():
            return imported
    # A run folder that was copied out of its study has its tokenizer beside it.
    folder = Path(folder).absolute()
    beside = folder / 'tokenizer.json'
    if beside.is_file() or folder.parent.parent.name != 'cells':
        return beside
    return folder.parents[2] / 'tokenizer.json'


def encoder_of(folder: PathLike, experiment: Experiment, stage: str) -> Encoder:
    """Return the `Encoder` of a stage of a study, or of a run folder whose name is `stage`."""
    published = experiment.published
    tokenizer = load_tokenizer(tokenizer_path(folder, experiment), experiment.language.V)
    return Encoder(tokenizer, experiment.chat_of(stage), experiment.layout(stage), published.ends,
                   published.context)


def tokenizer_of(folder: PathLike, experiment: Experiment) -> Tokenizer | None:
    """Return the tokenizer of a run folder; None where there is none, as for a tower alone."""
    path = tokenizer_path(folder, experiment)
    if experiment.language is None or not (experiment.tokenizer or path.is_file()):
        return None
    return load_tokenizer(path, experiment.language.V)
