"""A published checkpoint, opened and checked before anything is read: sizes and lazy leaves."""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downscale.convert.leaves import Leaf
from downscale.convert.names import entries, present_prefixes, unused
from downscale.convert.read_config import (
    MODEL_TYPES,
    architecture_of,
    config_notes,
    language_config,
    llava_onevision,
    llava_qwen3,
    object_of,
    vision_config,
)
from downscale.convert.shards import BUFFERS, DTYPES, INDEX, SINGLE, Tensor, open_tensors, read_json
from downscale.convert.side_files import SIDE_FILES, named
from downscale.sizes import LanguageConfig, Pictures, VisionConfig

MOST_SHOWN = 3  # problems in one line
MOST_LETTERS = 190  # of these problems together
COMPARE_ROWS = 2048  # that are in memory at once, of two tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class PublishedCheckpoint:
    """A checkpoint in our terms: sizes, how pictures are cut, and a nested dict of `Leaf`.

    `language`, `vision` and `pictures` are None where the checkpoint has none. `notes` says in
    sentences what was left out, `files` are the side files that travel along.
    """
    folder: Path
    architecture: str
    config: dict
    language: LanguageConfig | None
    vision: VisionConfig | None
    pictures: Pictures | None
    leaves: dict
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def open_source(folder: Path) -> PublishedCheckpoint:
    """Return the `PublishedCheckpoint` of a local Hugging Face folder.

    Only headers and JSON are read, and a head that is stored beside the embedding it is tied to.
    Raises FileNotFoundError for missing files and ValueError, in one line, for an unsupported or
    inconsistent checkpoint: listing missing, unexpected and mis-shaped tensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; give the local folder of a Hugging Face '
                                'model (config.json and *.safetensors)')
    where = folder / 'config.json'
    config = read_json(where)
    if not isinstance(config, dict):
        raise ValueError(f'{where} holds no JSON object; download it again')
    architecture = architecture_of(config, where)
    language, vision, pictures = _sizes(architecture, config, where)
    tensors = open_tensors(folder)
    files = tuple(folder / name for name in SIDE_FILES if (folder / name).is_file())
    # Values are compared for one thing alone: a head that is stored beside what it is tied to.
    leaves, notes = arrange(architecture, tensors, language, vision, pictures, folder)
    notes += config_notes(config, architecture)
    if (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        notes += (f'left out {INDEX}: {SINGLE} is whole',)
    return PublishedCheckpoint(
        folder=folder,
        architecture=architecture,
        config=config,
        language=language,
        vision=vision,
        pictures=pictures,
        leaves=leaves,
        notes=notes,
        files=files,
    )


def _sizes(architecture, config, where):
    """Return (language, vision, pictures) of a config, each None where it has none."""
    if architecture == 'LlavaQwen3ForCausalLM':
        return llava_qwen3(config, where)
    if architecture == 'LlavaOnevisionForConditionalGeneration':
        return llava_onevision(config, where)
    if architecture.startswith('Siglip'):
        # A SiglipModel has a text model beside the tower.
        tower = config
        if architecture == 'SiglipModel':
            tower = object_of(config, 'vision_config', where)
        # Used as a tower, SigLIP runs without its last block (arXiv 2511.17487).
        return None, vision_config(tower, where, 1), None
    kind = next(kind for kind, name in MODEL_TYPES.items() if name == architecture)
    return language_config(config, kind, where), None, None


def _sections(language, vision, pictures):
    """Return the sections of names that a model of these sizes has."""
    sections = []
    if language:
        sections += ['decoder', 'head']
    if vision:
        sections.append('tower')
    if language and vision:
        sections += ['first', 'second']
    # The connector stage of the reference has no newline yet.
    if pictures and pictures.mode != 'flat':
        sections.append('newline')
    return sections


def arrange(architecture: str, tensors: Mapping[str, Tensor], language: LanguageConfig | None,
            vision: VisionConfig | None, pictures: Pictures | None,
            where: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (nested dict of `Leaf`, notes) of the published `tensors` {name: Tensor}.

    Any object with the `shape`, `dtype` and `read` of a `Tensor` works. Raises ValueError listing
    what is missing, unexpected or mis-shaped.
    """
    # 1. Which sections there are, and what their names begin with.
    prefixes = present_prefixes(architecture, tensors, _sections(language, vision, pictures))
    layers = max(language.N if language else 0, vision.layers if vision else 0)
    # First of all, before lists are made as long as a stranger's file says.
    if len(tensors) < layers:
        raise ValueError(f'{where}: {layers} layers in config.json, {len(tensors)} tensors in the '
                         'weights; config and weights must be of one model')
    # 2. Which tensors are wanted, and which are left out on purpose.
    tensors = _with_embedding(tensors, prefixes, language)
    plan = entries(prefixes, language, vision)
    spare, notes = _spare(architecture, prefixes, tensors, language, vision, where)
    wanted = {}
    for entry in plan:
        wanted |= dict.fromkeys(entry.names, entry.theirs)
    unexpected = tensors.keys() - wanted.keys() - spare
    # Weights are never whole numbers, but for quantised ones, which the names above then lack.
    buffers = {name for name in unexpected if tensors[name].dtype in BUFFERS}
    if buffers:
        notes += (f'left out buffers that are no weights: {named(buffers)}',)
    # 3. Everything else is wrong, and all of it is told at once.
    problems = _problems(tensors, wanted, unexpected - buffers) + _mixed(plan, tensors)
    if problems:
        raise ValueError(f'{where}: {len(problems)} tensors do not match config.json: '
                         f'{_first_of(problems)}. Config and weights must be of one model')
    return _nested(plan, tensors), notes


def _problems(tensors, wanted, unexpected):
    """Return what is wrong with each tensor, missing ones first; `wanted` is {name: shape}."""
    tie = ' (or is it the embedding? then set "tie_word_embeddings" to true)'
    problems = [f'missing {name} {wanted[name]}{tie if name.endswith("lm_head.weight") else ""}'
                for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f'unexpected {name} {tensors[name].shape}' for name in sorted(unexpected)]
    both = sorted(wanted.keys() & tensors.keys())
    problems += [f'{name} has dtype {tensors[name].dtype}, not one of {", ".join(DTYPES)} (save '
                 'the model unquantised)' for name in both if isinstance(tensors[name].dtype, str)]
    problems += [f'{name}: stored {tensors[name].shape}, config {wanted[name]}'
                 for name in both if tuple(tensors[name].shape) != wanted[name]]
    return problems


def _mixed(plan, tensors):
    """Return which leaves are of several dtypes in different layers."""
    problems = []
    for entry in plan:
        kinds = {tensors[name].dtype for name in entry.names if name in tensors}
        if len(kinds) > 1:
            listed = ' and '.join(sorted(map(str, kinds)))
            problems.append(f'{entry.leaf}: {listed} in different layers')
    return problems


def _first_of(problems):
    """Return the first few of many problems, in one line, and how many more there are."""
    shown = [problems[0][:100]]
    for problem in problems[1:MOST_SHOWN]:
        if len('; '.join(shown)) + len(problem) < MOST_LETTERS:
            shown.append(problem)
    rest = len(problems) - len(shown)
    more = f'; and {rest} more' if rest else ''
    return '; '.join(shown) + more


def _nested(plan, tensors):
    """Return the nested dict of the `Leaf` of each entry."""
    leaves = {}
    for entry in plan:
        parts = tuple(tensors[name] for name in entry.names)
        node = leaves
        *path, last = entry.leaf.split('/')
        for key in path:
            node = node.setdefault(key, {})
        node[last] = Leaf(
            name=entry.leaf,
            shape=entry.shape,
            dtype=parts[0].dtype,  # pyrefly: ignore[bad-argument-type]
            kind=entry.kind,
            stacked=entry.stacked,
            tensors=parts,
        )
    return leaves


def _with_embedding(tensors, prefixes, language):
    """Return `tensors` with the embedding, also where only the head that it is tied to is stored.

    safetensors keeps one name of values that are shared, and not always the embedding's.
    """
    if not language or not language.tie:
        return tensors
    head = prefixes['head'] + 'weight'
    embedding = prefixes['decoder'] + 'embed_tokens.weight'
    if embedding in tensors or head not in tensors:
        return tensors
    return {name if name != head else embedding: tensor for name, tensor in tensors.items()}


def _spare(architecture, prefixes, tensors, language, vision, where):
    """Return (names that are left out on purpose, sentences that say so)."""
    by_design = unused(architecture, prefixes, tensors)
    spare = set(by_design)
    notes = []
    if 'tower' in prefixes:
        block = re.compile(re.escape(prefixes['tower']) + r'encoder\.layers\.(\d+)\..+')
        matches = {name: block.fullmatch(name) for name in tensors}
        layers = {name: int(match[1]) for name, match in matches.items() if match}
        # Blocks behind the feature that is used (`VisionConfig.layers`).
        deep = {name: layer for name, layer in layers.items() if layer >= vision.layers}
        spare |= deep.keys()
        notes += [f'left out vision block {layer}, which the tower does not run'
                  for layer in sorted(set(deep.values()))]
    tower = prefixes.get('tower', '')
    groups = sorted({name.removeprefix(tower).partition('.')[0] for name in by_design})
    if groups:
        notes.append(f'left out, unused by design: {", ".join(groups)}')
    if language and language.tie:
        head = prefixes['head'] + 'weight'
        embedding = prefixes['decoder'] + 'embed_tokens.weight'
        if head in tensors and embedding in tensors:
            _same(tensors[head], tensors[embedding], head, where)
            spare.add(head)
            notes.append(f'left out {head}, which equals the embedding it is tied to')
    return spare, tuple(notes)


def _same(head, embedding, name, where):
    """Raise ValueError unless two tensors hold the same values: tied, the head would be lost."""
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    for start in range(0, head.shape[0] if same else 0, COMPARE_ROWS):
        stop = min(start + COMPARE_ROWS, head.shape[0])
        same = same and np.array_equal(head.read(start, stop).view(np.uint8),
                                       embedding.read(start, stop).view(np.uint8))
    if not same:
        raise ValueError(f'{where}: {name} differs from the embedding, though config.json ties '
                         'them; set "tie_word_embeddings" to false there to keep both')
