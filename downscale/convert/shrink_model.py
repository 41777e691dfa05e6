"""A model folder made smaller: an import, or a stage of a trained cell, into a new folder.

What is written is a folder as `import` writes it, with `shrink.json` beside: what was done, to
which source, and how many parameters and bytes are left. A study starts from it by `imports`,
`load` opens it, `export` and whatever asks models take it.
"""
import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from downscale import config
from downscale.convert.exchange import CONFIG, imported_from
from downscale.convert.side_files import SIDE_FILES
from downscale.data.pipeline import stream
from downscale.data.templates import Origin
from downscale.experiment.shrunk import label
from downscale.model.vlm import Vlm
from downscale.runtime.files import whole, write_json
from downscale.runtime.outputs import require_room
from downscale.shrink.depth import kept_layers
from downscale.shrink.transform import Shrinking, shrink
from downscale.sizes import BASE, LanguageConfig, cut
from downscale.stages.inputs import sampler_of
from downscale.stages.loading import load, tokenizer_path
from downscale.stages.shrinking import plain, save_arrays, standard, write_note
from downscale.train.lazy_leaves import open_leaves

ROWS = 8  # of a batch of texts
LENGTH = 512  # tokens of a text that are read
BATCHES = 32  # that are read at most
PAD = 0


def shrinking_of(language: LanguageConfig, layers: str, hidden: int | None,
                 heads: int | None, **rest: Any) -> Shrinking:
    """Return the `Shrinking` of a decoder that a person asks for; `layers` is as `kept_layers`.

    `rest` are the other fields of the record. ValueError in one line for what cannot be.
    """
    kept = kept_layers(layers, language.N) if layers else ()
    after = cut(language, len(kept) or None, hidden, heads)
    # A count leaves the choice to `by`; a list is the choice.
    return Shrinking(after=after, layers=tuple(kept) if ',' in layers else (), **rest)


def shrink_model(source: Path, to: Path, how_of: Callable[[LanguageConfig], Shrinking],
                 texts: Path | None = None,
                 report: Callable[[int], object] = lambda done: None) -> dict[str, Any]:
    """Write the model of `source`, made smaller, into the new folder `to`; return what was done.

    `how_of(language)` says how. Where texts decide what is cut, they are the lines of `texts`, or
    of a stage of a study its own conversations. `report` gets the batches that were read. The
    folder appears whole or not at all; the model is held in memory. FileNotFoundError,
    FileExistsError and ValueError say in one line what cannot be.
    """
    # 1. Everything that can be refused without reading a weight.
    source = Path(source)
    to = Path(to).absolute()
    cell = config.load(source)
    # By what is stored: the cell of a shared tower has the sizes of a decoder, and none.
    if cell.language is None or 'language' not in open_leaves(source):
        raise ValueError(f'{source} is a tower alone; only language models are made smaller')
    how = how_of(cell.language)
    how.check(cell.language)
    if to.is_file() or to.is_dir() and any(to.iterdir()):
        raise FileExistsError(f'{to} is there already; give another folder or remove it')
    # 2. The model, and the texts that it is measured on.
    model, params, tokenizer, _ = load(source)
    assert isinstance(model, Vlm)  # it has a language model
    batches: Any = contextlib.nullcontext(())
    if how.reads(cell.language):
        batches = contextlib.closing(_lines(texts, tokenizer) if texts
                                     else _conversations(source, cell))
    elif texts:
        raise ValueError('--data is read where influence or activity decides what is cut; leave it '
                         'out, or choose by influence')
    # Closed, for the thread that prepares batches would wait for ever to hand over the next.
    with batches as read:
        params, done = shrink(model.clone(growth=BASE), standard(params, cell), how,
                              itertools.islice(read, BATCHES), report)
    # 3. The folder.
    require_room(to, sum(leaf.nbytes for leaf in _leaves(params)))
    with whole(to) as partial:
        save_arrays(partial, params)
        _copy_side_files(source, cell, partial)
        smaller = _alone(source, cell, how, to.name)
        config.save(smaller, partial)
        write_note(partial, {'size': smaller.size, 'by': how.by, **done}, source, str(source))
        write_json(partial / 'DONE.json', {'hash': smaller.hash, 'steps': 0})
    return done


def _leaves(tree):
    """Yield the arrays of nested dicts."""
    for part in tree.values():
        yield from _leaves(part) if isinstance(part, dict) else [part]


def _alone(source, cell, how, name):
    """Return the experiment of the smaller model, which stands alone as that of an import does."""
    published = cell.published
    return plain(
        cell,
        name=name,
        size=label(cell.size, cell.language, how.after, how.bits),
        language=how.after,
        pictures=cell.layout(source.name).pictures,
        origin=None if published == Origin() else published,
    )


def _copy_side_files(source, cell, folder):
    """Copy what stands beside the weights of the source, or of the import that it started from."""
    origin = imported_from(source)
    for name in (CONFIG, *SIDE_FILES):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if (path := tokenizer_path(source, cell)).is_file():
        shutil.copyfile(path, folder / 'tokenizer.json')


def _conversations(source, cell):
    """Return batches of what a stage of a study was trained on."""
    names = [stage.name for stage in cell.stages]
    folder = source.absolute()
    if folder.parent.parent.name != 'cells' or folder.name not in names:
        raise ValueError(f'{source} is no stage of a study, whose conversations would tell what to '
                         'cut; give --data FILE, a text a line')
    return iter(stream(*sampler_of(folder.parents[2], cell, cell.stage(folder.name))))


def _lines(path, tokenizer):
    """Yield batches of the texts that are the lines of a file, each a row of its own."""
    if tokenizer is None:
        raise ValueError('the model has no tokenizer to read --data with')
    try:
        lines = [line for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f'{path} is no text in UTF-8; --data takes a text a line') from None
    if not lines:
        raise ValueError(f'{path} holds no text; --data takes a text a line')
    for start in range(0, len(lines), ROWS):
        rows = tokenizer.encode_batch(lines[start:start + ROWS])
        tokens_BL = np.full((ROWS, LENGTH), PAD, np.int32)
        segments_BL = np.zeros((ROWS, LENGTH), np.int32)
        for row, encoded in enumerate(rows):
            ids = encoded.ids[:LENGTH]
            tokens_BL[row, :len(ids)] = ids
            segments_BL[row, :len(ids)] = 1
        positions_BL = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens_BL.shape)
        yield {'tokens': tokens_BL, 'positions': positions_BL, 'segments': segments_BL}
