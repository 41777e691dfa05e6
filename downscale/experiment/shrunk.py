"""Cells that begin as another one made smaller: what their size, stages and sources say.

A size names what was done to a base: 'w64d4-d2' has two layers of w64d4, 'w64d4-f96' 96 hidden
units, 'w64d4-h2' two query heads, 'w64d4-int4' weights of 4 bits; together in that order. A cell of
such a size whose point names the stage 'shrink' is cut from a cell of the base before anything of
its own is trained; 'w64d4-d2-int4' is quantised from w64d4-d2 as that was healed.
"""
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from downscale.config import Experiment
from downscale.experiment.references import reference_of
from downscale.sizes import LanguageConfig, cut
from downscale.stage_table import STAGES
from downscale.values import shown

# Numbers without leading zeros, so that a size has one name.
_NUMBER = '([1-9][0-9]{0,5})'
_SIZE = re.compile(f'(.+?)(?:-d{_NUMBER})?(?:-f{_NUMBER})?(?:-h{_NUMBER})?(?:-int([48]))?')


def base_of(size: str) -> str:
    """Return the size that a size is cut from: itself where nothing is cut."""
    return _parts(size)[0]


def bits_of(size: str) -> int:
    """Return the bits of a weight that a size names; 0 for floats."""
    return int(_parts(size)[4] or 0)


def _parts(size):
    """Return (base, layers, hidden units, heads, bits) of a size, as texts or None."""
    parts = _SIZE.fullmatch(size)
    return parts.groups() if parts else (size, None, None, None, None)


def cut_to(base: LanguageConfig, size: str) -> LanguageConfig:
    """Return what is left of the sizes of a base; ValueError where `size` has no whole heads."""
    layers, hidden, heads = (int(part) if part else None for part in _parts(size)[1:4])
    try:
        return cut(base, layers, hidden, heads)
    except ValueError as error:
        raise ValueError(f'size {shown(size)}: {error}') from None


def label(size: str, before: LanguageConfig, after: LanguageConfig, bits: int) -> str:
    """Return the name of what is cut from `size`, as above."""
    parts = [size]
    for letter, name in (('d', 'N'), ('f', 'F'), ('h', 'H')):
        if vars(before)[name] != vars(after)[name]:
            parts.append(f'{letter}{vars(after)[name]}')
    return '-'.join([*parts, *([f'int{bits}'] if bits else [])])


def with_sources(stages: Sequence[dict[str, Any]], size: str, name: str) -> list[dict[str, Any]]:
    """Return the stages (plain values) of the cell called `name`, a shrunk one with its sources.

    'shrink' has the bits of the size; a later stage that would start from what the cell does not
    have starts from 'heal' or 'shrink', whichever came last. ValueError for
    a size of few bits that nothing makes, or that would be trained away from them.
    """
    there = [stage['name'] for stage in stages]
    bits = bits_of(size)
    if 'shrink' not in there:
        if bits:
            raise ValueError(f'{name}: size {size} is made by the stage shrink; name it in the '
                             "`stages` of its point, as ('shrink',)")
        return list(stages)
    made = []
    last = ''
    for stage in stages:
        if not isinstance(stage['parents'], Mapping):  # the strict reading says what is wrong
            return list(stages)
        if stage['name'] == 'shrink':
            stage = _shrinking(stage, size, name)
        elif bits and 'language' in stage['trainable']:
            raise ValueError(f'{name}: stage {stage["name"]} would train weights of {bits} bits '
                             'away from them; heal first, and shrink what was healed')
        else:
            stage = {**stage, 'parents': _parents(stage, there, last)}
        if stage['name'] in ('shrink', 'heal'):
            last = stage['name']
        made.append(stage)
    return made


def _shrinking(stage, size, name):
    """Return the stage 'shrink' of a size, with the stage of another size that it starts from."""
    if 'bits' in stage:
        raise ValueError(f'{name}: stages.shrink.bits is of the size, as w64d4-int8; leave it out')
    # What is quantised has been cut and healed before, where its size says so.
    bits = bits_of(size)
    source = size.removesuffix(f'-int{bits}') if bits else base_of(size)
    parents = stage['parents']
    if source != base_of(size) and parents == STAGES['shrink'].parents:
        parents = dict.fromkeys(parents, 'heal')
    parents = {group: parent if '/' in str(parent) else f'{source}/{parent}'
               for group, parent in parents.items()}
    return {'rates': {}, **stage, 'parents': parents, 'bits': bits}


def _parents(stage, there, last):
    """Return the parents of a stage of a cell that has the stages `there`, or else `last`."""
    parents = {group: parent if parent in there or '/' in str(parent) else last
               for group, parent in stage['parents'].items()}
    # Text starts from random values in other cells, and here from what is left.
    if not parents:
        return {'language': last}
    # The newline of a stage that sees all at once: other cells draw it there.
    if STAGES[stage['name']].answers and set(parents.values()) == {last}:
        return dict.fromkeys(STAGES['heal'].parents, last)
    return parents


def source_of(cell: Experiment, by_name: Mapping[str, Experiment]) -> Experiment | None:
    """Return the cell that a shrunk one is cut from; None for one that is not shrunk."""
    for stage in cell.stages:
        if stage.kind.loss == 'none' and 'language' in stage.parents:
            return by_name[reference_of(cell, stage.parents['language']).partition('/')[0]]
    return None


def check_sources(cells: Sequence[Experiment]) -> None:
    """Raise ValueError where a cell cannot be cut from the one that it names."""
    by_name = {cell.name: cell for cell in cells}
    for cell in cells:
        source = source_of(cell, by_name)
        if source is None:
            continue
        assert cell.language is not None and source.language is not None
        kept = {letter: vars(cell.language)[letter] for letter in 'NFHK'}
        more = [letter for letter in 'NFH' if kept[letter] > vars(source.language)[letter]]
        if more or dataclasses.replace(source.language, **kept) != cell.language:
            raise ValueError(f'{cell.name} cannot be cut from {source.name}: its size {cell.size} '
                             f'must be {source.size} with fewer layers, hidden units or heads')


def way_of(cell: Experiment, by_name: Mapping[str, Experiment]) -> str:
    """Return how a cell came to its size: 'trained', 'distilled' where a teacher of what it answers
    with was followed, or what was done after that, with ' + '.
    """
    source = source_of(cell, by_name)
    if source is None:
        # Others may be taught that start from the model that answers, and are not it.
        taught = any(stage.teacher and stage.distil and not (
            stage.kind.writes or stage.kind.reads or stage.kind.explains) for stage in cell.stages)
        return 'distilled' if taught else 'trained'
    before = way_of(source, by_name)
    done = [before] if before != 'trained' else []
    if source.language != cell.language:
        done.append('pruned')
    if any('language' in stage.trainable for stage in cell.stages):
        done.append('healed')
    if any(stage.bits for stage in cell.stages):
        done.append('quantised')
    return ' + '.join(done) or 'copied'
