"""Our leaves to a folder that transformers, or the reference's code, loads."""
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from downscale.convert.leaves import published
from downscale.convert.names import FILLERS, FORMATS, entries
from downscale.convert.read_config import MODEL_TYPES
from downscale.convert.shards import DTYPES, INDEX, SINGLE, size_of, write_tensors
from downscale.convert.write_config import check_format, describe
from downscale.runtime.files import whole
from downscale.sizes import LanguageConfig, Pictures, VisionConfig

MOST_SHARD_BYTES = 5 * 10 ** 9


def export_folder(to: Path, form: str, leaves: dict[str, Any], language: LanguageConfig | None,
                  vision: VisionConfig | None = None, pictures: Pictures | None = None,
                  base: dict[str, Any] | None = None, files: Collection[Path] = (),
                  image_token: int | None = None) -> None:
    """Write these leaves, in their own dtypes, as a Hugging Face folder `to` of format `form`.

    `leaves` is our nested tree; each leaf has `shape`, `dtype` and `read()` and is read once, one
    at a time. `base` (a parsed config.json) and `files` (tokenizer and such, copied) come from an
    import. The folder appears whole or not at all. Raises ValueError before anything is read when
    the format does not fit or leaves are missing, and FileExistsError when `to` is not empty.
    """
    to = Path(to).absolute()
    check_format(form, language, vision, pictures)
    if to.is_file() or to.is_dir() and any(to.iterdir()):
        raise FileExistsError(f'{to} is there already; give another folder or remove it')
    # Everything is planned and checked first: an error must not come after gigabytes.
    plan = _plan(form, leaves, language, vision, pictures)
    dtypes = [np.dtype(leaf.dtype) for _, leaf, _ in plan if leaf is not None]
    # transformers casts everything to the one dtype of the config: the widest keeps all values.
    config = describe(form, language, vision, pictures, max(dtypes, key=lambda d: d.itemsize),
                      base, image_token)
    with whole(to) as partial:
        partial.mkdir()
        _write_shards(partial, plan)
        (partial / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
        for path in files:
            shutil.copyfile(path, partial / Path(path).name)


def _leaf_at(leaves, path):
    """Return the leaf of a nested dict at 'a/b/c', or None."""
    for key in path.split('/'):
        leaves = leaves.get(key) if isinstance(leaves, dict) else None
    return leaves


def _plan(form, leaves, language, vision, pictures):
    """Return [(entry, leaf, rows)] in the order of writing.

    A row is (name, dtype, shape) of a published tensor. Where the format wants a constant that the
    model does not have, it is (value, None, [row]).
    """
    sections = FORMATS[MODEL_TYPES[form]]
    # The first prefix is the one that is written. Flat pictures have no newline.
    prefixes = {section: candidates[0] for section, candidates in sections.items()
                if not (section == 'newline' and pictures.mode == 'flat')}
    plan = []
    problems = []
    for entry in entries(prefixes, language, vision):
        leaf = _leaf_at(leaves, entry.leaf)
        if leaf is None or tuple(leaf.shape) != entry.shape:
            problems.append(f'{entry.leaf}: {leaf.shape if leaf else "missing"}, sizes say '
                            f'{entry.shape}')
            continue
        dtype = np.dtype(leaf.dtype)
        if dtype not in DTYPES.values():
            problems.append(f'{entry.leaf}: dtype {dtype} is not one of {", ".join(DTYPES)}')
        plan.append((entry, leaf, [(name, dtype, entry.theirs) for name in entry.names]))
    # All that is wrong is told at once, before a weight is read.
    if problems:
        raise ValueError(f'cannot export: {"; ".join(problems[:10])}; {len(problems)} leaves do '
                         'not fit the sizes')
    for section, fillers in FILLERS.items():
        if section in prefixes:
            dtype = np.dtype(leaves['tower']['patch_QW'].dtype)
            plan += [(value, None, [(prefixes[section] + name, dtype, (vision.W,))])
                     for name, value in fillers]
    return plan


def _shards(plan):
    """Return the rows of `plan` as lists, one for each shard of at most `MOST_SHARD_BYTES`."""
    shards = [[]]
    filled = 0
    for _, _, rows in plan:
        for row in rows:
            size = size_of(row)
            if shards[-1] and filled + size > MOST_SHARD_BYTES:
                shards.append([])
                filled = 0
            shards[-1].append(row)
            filled += size
    return shards


def _arrays(plan):
    """Yield the published tensors of `plan`, in its order; one leaf at a time is in memory."""
    for entry, leaf, rows in plan:
        if leaf is None:
            _, dtype, shape = rows[0]
            yield np.full(shape, entry, dtype)
        else:
            # A function of its own, whose names let go of a leaf before the next is read.
            yield from _turned(entry, leaf.read())


def _turned(entry, whole):
    """Yield the published tensors of one leaf, layer by layer."""
    for layer in whole if entry.stacked else [whole]:
        yield published(entry, layer)


def _write_shards(folder, plan):
    """Write the safetensors files of `plan`, and their index when there are several."""
    shards = _shards(plan)
    # One iterator for all files: each takes its own tensors and leaves the rest.
    arrays = _arrays(plan)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f'model-{k + 1:05d}-of-{len(shards):05d}.safetensors' for k in range(len(shards))]
    weight_map = {}
    for name, rows in zip(names, shards):
        write_tensors(folder / name, rows, arrays)
        weight_map |= {row[0]: name for row in rows}
    if len(shards) > 1:
        index = {'metadata': {'total_size': sum(map(size_of, sum(shards, [])))},
                 'weight_map': weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
