"""A published checkpoint, opened and checked before anything is read: sizes and lazy leaves."""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downscale.convert.config import (
    MODEL_TYPES,
    architecture_of,
    config_notes,
    language_config,
    llava_onevision,
    llava_qwen3,
    object_of,
    vision_config,
)
from downscale.convert.leaves import Leaf
from downscale.convert.names import entries, present_prefixes, unused
from downscale.convert.shards import BUFFERS, DTYPES, INDEX, SINGLE, Tensor, open_tensors, read_json
from downscale.convert.side_files import SIDE_FILES, named
from downscale.sizes import LanguageConfig, Pictures, VisionConfig

# problems in one line, and letters of them
MOST_SHOWN = 3
MOST_LETTERS = 190
COMPARE_ROWS = 2048


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
    """Return the `PublishedCheckpoint` of a local Hugging Face folder; only headers and JSON are
    read.

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
        tower = config if architecture != 'SiglipModel' else \
            object_of(config, 'vision_config', where)
        # Used as a tower, SigLIP runs without its last block (arXiv 2511.17487).
        return None, vision_config(tower, where, 1), None
    kind = next(kind for kind, name in MODEL_TYPES.items() if name == architecture)
    return language_config(config, kind, where), None, None


def _sections(language, vision, pictures):
    """Return the sections of names that a model of these sizes has."""
    found = []
    if language:
        found += ['decoder', 'head']
    if vision:
        found.append('tower')
    if language and vision:
        found += ['first', 'second']
    # The connector stage of the reference has no newline yet.
    return [*found, 'newline'] if pictures and pictures.mode != 'flat' else found


def arrange(architecture: str, tensors: Mapping[str, Tensor], language: LanguageConfig | None,
            vision: VisionConfig | None, pictures: Pictures | None,
            where: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (nested dict of `Leaf`, notes) of the published `tensors` {name: Tensor}.

    Everything that is no `Tensor` but has its `shape`, `dtype` and `read` serves as well. Raises
    ValueError listing what is missing, unexpected or mis-shaped.
    """
    prefixes = present_prefixes(architecture, tensors, _sections(language, vision, pictures))
    layers = max(language.N if language else 0, vision.layers if vision else 0)
    if len(tensors) < layers:  # told before lists are made of a stranger's numbers
        raise ValueError(f'{where}: {layers} layers in config.json, {len(tensors)} tensors in the '
                         'weights; config and weights must be of one model')
    tensors = _with_embedding(tensors, prefixes, language)
    plan = entries(prefixes, language, vision)
    spare, notes = _spare(architecture, prefixes, tensors, language, vision, where)
    wanted = {name: entry.theirs for entry in plan for name in entry.names}
    tie = ' (or is it the embedding? then set "tie_word_embeddings" to true)'
    problems = [f'missing {name} {wanted[name]}{tie if name.endswith("lm_head.weight") else ""}'
                for name in sorted(wanted.keys() - tensors.keys())]
    unexpected = tensors.keys() - wanted.keys() - spare
    # Weights are never whole numbers, but for quantised ones, which the names above then lack.
    buffers = {name for name in unexpected if tensors[name].dtype in BUFFERS}
    if buffers:
        notes += (f'left out buffers that are no weights: {named(buffers)}',)
    problems += [f'unexpected {name} {tensors[name].shape}'
                 for name in sorted(unexpected - buffers)]
    problems += [f'{name} has dtype {tensors[name].dtype}, not one of {", ".join(DTYPES)} (save '
                 'the model unquantised)' for name in sorted(wanted.keys() & tensors.keys())
                 if isinstance(tensors[name].dtype, str)]
    problems += [f'{name}: stored {tensors[name].shape}, config {wanted[name]}'
                 for name in sorted(wanted.keys() & tensors.keys())
                 if tuple(tensors[name].shape) != wanted[name]]
    problems += [f'{entry.leaf}: {" and ".join(sorted(map(str, kinds)))} in different layers'
                 for entry in plan if len(kinds := {tensors[name].dtype for name in entry.names
                                                    if name in tensors}) > 1]
    if problems:
        shown = [problems[0][:100]]
        for problem in problems[1:MOST_SHOWN]:
            if len('; '.join(shown)) + len(problem) < MOST_LETTERS:
                shown.append(problem)
        rest = len(problems) - len(shown)
        more = f'; and {rest} more' if rest else ''
        raise ValueError(f'{where}: {len(problems)} tensors do not match config.json: '
                         f'{"; ".join(shown)}{more}. Config and weights must be of one model')
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
    return leaves, notes


def _with_embedding(tensors, prefixes, language):
    """Return `tensors` with the embedding under its own name where only the head it is tied to is
    stored.

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
    spare = unused(architecture, prefixes, tensors)
    notes = []
    if 'tower' in prefixes:
        block = re.compile(re.escape(prefixes['tower']) + r'encoder\.layers\.(\d+)\..+')
        layers = {name: int(found[1]) for name in tensors if (found := block.fullmatch(name))}
        deep = {name for name, layer in layers.items() if layer >= vision.layers}
        spare |= deep
        notes += [f'left out vision block {layer}, which the tower does not run'
                  for layer in sorted({layers[name] for name in deep})]
    groups = sorted({name.removeprefix(prefixes.get('tower', '')).partition('.')[0]
                     for name in unused(architecture, prefixes, tensors)})
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
