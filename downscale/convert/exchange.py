"""Models into run folders and out of them: Hugging Face folders and GGUF files.

An imported folder holds `experiment.json`, `checkpoints/0`, `DONE.json` and the side files of its
source: `config.json`, tokenizer, chat template, generation and preprocessor config. A study starts
from it by `imports`, `load` opens it, `export_model` turns it back into what it was.
"""
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from downscale.config import Experiment, load, save
from downscale.convert.gguf import read_gguf
from downscale.convert.preprocessor import check_pictures
from downscale.convert.read_config import MODEL_TYPES
from downscale.convert.side_files import SIDE_FILES, origin_of, read_side_files, write_files
from downscale.convert.source import arrange, open_source
from downscale.convert.vocabulary import open_tokenizer
from downscale.convert.write import export_folder
from downscale.convert.write_config import describe
from downscale.data.templates import Origin
from downscale.runtime.files import whole, write_json
from downscale.runtime.outputs import require_room
from downscale.shrink.depth import kept_layers
from downscale.sizes import BASE, Pictures
from downscale.stages.loading import tokenizer_path
from downscale.train.lazy_leaves import open_leaves, save_leaves

CONFIG = 'config.json'
# The chat format of each architecture; perception models speak ChatML (arXiv 2511.17487).
_CHATS = {'Qwen3ForCausalLM': 'qwen3', 'LlamaForCausalLM': 'smollm2'}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A source that passed every check: its leaves, its cell, and what it says of itself.

    `files` are copied, then `written` {name: JSON object} is, and `tokenizer` where it is given.
    """
    leaves: dict
    experiment: Experiment
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    written: dict
    tokenizer: object = None


def open_model(source: Path, name: str) -> Opened:
    """Return the `Opened` model of a Hugging Face folder or a GGUF file.

    No weight is read but a head beside the embedding that it is tied to (`source.arrange`).
    FileNotFoundError, ImportError and ValueError say in one line why it cannot be imported.
    """
    source = Path(source)
    if source.suffix == '.gguf':
        return _open_gguf(source, name)
    return _open_folder(source, name)


def _open_gguf(source, name):
    """Return the `Opened` model of a GGUF file, with the files that Hugging Face would have."""
    model = read_gguf(source)
    leaves, notes = arrange(model.architecture, model.tensors, model.language, None, None, source)
    generation = model.files['generation_config.json']
    form = next(form for form, known in MODEL_TYPES.items() if known == model.architecture)
    # A GGUF file has no config.json, and an export reads one: it is written.
    config = describe(form, model.language, None, None, 'float32') | generation
    if model.context:
        config['max_position_embeddings'] = model.context
    cell, more = _cell(name, model, (None, None), model.files, config, model.tokenizer)
    return Opened(
        leaves=leaves,
        experiment=cell,
        files=(),
        notes=(*notes, *more),
        written={CONFIG: config, **model.files},
        tokenizer=model.tokenizer,
    )


def _open_folder(source, name):
    """Return the `Opened` model of a Hugging Face folder."""
    model = open_source(source)
    tokenizer = None
    remade = False
    more = []
    if model.language:
        tokenizer, remade, more = open_tokenizer(source, model.language.V)
    if model.vision:
        more += check_pictures(source, model.vision, model.pictures)
    cell, others = _cell(name, model, (model.vision, model.pictures), read_side_files(source),
                         model.config, tokenizer)
    return Opened(
        leaves=model.leaves,
        experiment=cell,
        files=(source / CONFIG, *model.files),
        notes=(*model.notes, *more, *others),
        written={},
        tokenizer=tokenizer if remade else None,
    )


def _cell(name, model, sight, files, config, tokenizer):
    """Return (the experiment of an imported model, notes).

    It computes in float32, whatever is stored. `sight` is (vision, pictures), `files` what stands
    beside the weights.
    """
    vision, pictures = sight
    architecture = model.architecture
    origin = None
    chat = None
    notes = []
    if model.language:
        # The code of LlavaQwen3 speaks ChatML, whatever template its tokenizer carries.
        templated = architecture != 'LlavaQwen3ForCausalLM'
        origin, chat, notes = origin_of(files, config, tokenizer, model.language.V, bool(vision),
                                        templated)
        if tokenizer is not None and chat is None:
            notes.append(f'no chat template is used; asked as {_CHATS.get(architecture, "chatml")}')
    experiment = Experiment(
        name=name,
        size=architecture,
        seed=0,
        language=model.language,
        vision=vision,
        pictures=pictures or Pictures(),
        chat=chat or _CHATS.get(architecture, 'chatml'),
        origin=None if origin == Origin() else origin,
    )
    return experiment, notes


def pruned(opened: Opened, text: str) -> Opened:
    """Return the `Opened` model with those layers of its decoder that `text` asks for.

    See `kept_layers`. ValueError when it has no language model, or not these layers.
    """
    language = opened.experiment.language
    if language is None:
        raise ValueError('--layers is for language models, and this is a tower alone')
    layers = kept_layers(text, language.N)
    blocks = jax.tree.map(lambda leaf: leaf.of_layers(layers), opened.leaves['language']['blocks'])
    leaves = {**opened.leaves, 'language': {**opened.leaves['language'], 'blocks': blocks}}
    cell = replace(opened.experiment, language=replace(language, N=len(layers)))
    note = (f'kept {len(layers)} of {language.N} layers of the language model: '
            f'{", ".join(map(str, layers))}')
    return replace(opened, leaves=leaves, experiment=cell, notes=(*opened.notes, note))


def import_model(source: Path, to: Path,
                 report: Callable[[int, int], object] = lambda done, total: None,
                 layers: str = '') -> tuple[str, ...]:
    """Write the model of `source` into the folder `to` and return sentences on what was left out.

    The folder appears whole or not at all. Leaves keep their dtype and are written a part at a
    time. `report` gets bytes done and in total. `layers` keeps a part of the language model's
    layers (see `kept_layers`; '': all). FileExistsError when `to` holds something; see `open_model`
    for what is wrong with a source.
    """
    # 1. Check everything before anything is written.
    to = Path(to).absolute()
    opened = open_model(source, to.name)
    if layers:
        opened = pruned(opened, layers)
    if to.is_file() or to.is_dir() and any(to.iterdir()):
        raise FileExistsError(f'{to} is there already; give another folder or remove it')
    require_room(to, _bytes(opened.leaves))
    # 2. Write into a folder beside it, weights first: they are what a disk is too small for.
    with whole(to) as partial:
        save_leaves(partial, _counted(opened.leaves, report), {'source': str(source)})
        for path in opened.files:
            shutil.copyfile(path, partial / path.name)
        write_files(partial, opened.written)
        if opened.tokenizer is not None:
            opened.tokenizer.save(str(partial / 'tokenizer.json'))
        save(opened.experiment, partial)
        write_json(partial / 'DONE.json', {'hash': opened.experiment.hash, 'steps': 0})
    return opened.notes


class _Counted:
    """A leaf that tells how many bytes have been read."""

    def __init__(self, leaf, tell):
        self.leaf = leaf
        self.tell = tell
        self.shape = leaf.shape
        self.dtype = leaf.dtype
        self.chunk = leaf.chunk

    def read(self, index=()):
        """Return the part `index` of the leaf, and tell its bytes."""
        array = self.leaf.read(index)
        self.tell(array.nbytes)
        return array


def _bytes(leaves):
    """Return the bytes of the values of a tree of leaves."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
               for leaf in jax.tree.leaves(leaves))


def _counted(leaves, report):
    """Return `leaves` that call `report` with bytes done and in total as they are read."""
    total = _bytes(leaves)
    done = [0]

    def tell(count):
        done[0] += count
        report(done[0], total)

    return jax.tree.map(lambda leaf: _Counted(leaf, tell), leaves)


def imported_from(run: Path) -> Path:
    """Return the folder of the import that a run is, or that its language model came from."""
    imports = load(run).imports
    if (run / CONFIG).is_file() or 'language' not in imports:
        return run
    return imported_from(Path(imports['language']))


def export_model(run: Path, to: Path, form: str) -> None:
    """Write the newest parameters of a run folder as the Hugging Face folder `to` of format `form`.

    Values keep their dtype; tokenizer, chat template, generation and preprocessor config go along
    from the run, or from the imported language model that it started from. ValueError when the
    format does not fit the model.
    """
    run = Path(run)
    experiment = load(run)
    if experiment.language and experiment.parametrisation.growth(experiment.language) != BASE:
        raise ValueError(f'{run}: parametrisation mup multiplies branches and logits, which no '
                         'format can say; train it as standard, or at the base size')
    # The config of an import, and its side files, say what our sizes do not.
    origin = imported_from(run)
    base = json.loads((origin / CONFIG).read_text()) if (origin / CONFIG).is_file() else None
    files = {name: origin / name for name in SIDE_FILES if (origin / name).is_file()}
    if experiment.language and (path := tokenizer_path(run, experiment)).is_file():
        files['tokenizer.json'] = path
    pictures = experiment.layout(run.name).pictures
    # Leaves are opened, not read: a large model is never whole in memory.
    leaves = open_leaves(run)
    require_room(Path(to), _bytes(leaves))
    export_folder(to, form, leaves, experiment.language, experiment.vision, pictures,
                  base, tuple(files.values()))
