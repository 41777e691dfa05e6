"""Links from the report to the items behind its numbers, which are pages of the explorer beside it.
"""
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from downscale.analysis.flips import PREFERRED
from downscale.runtime.copies import obtainable
from downscale.view.board import Board, picture_path
from downscale.view.bundle import replace_bundle
from downscale.view.columns import View, views_of
from downscale.view.query import Query
from downscale.view.runs import open_runs

FOLDER = 'items'
ITEMS = 200   # of a large study as many are written: an item is a page of some 100 kB
SEEN = 'sizes-image'   # the view of what each size answers with the picture
# Claims about answers with the picture; all others are about pairs.
OF_SIZES = ('visual_minus_knowledge', 'drop_by_reliance')


@dataclass(frozen=True, kw_only=True)
class ItemLinks:
    """Addresses, seen from the report, of lists and items in the folder beside it.

    An address is '' where the folder does not have what is asked for. `ends` maps the setting of
    a grid to its sizes of perception and of reasoners, small to large; `note` says which items of
    the study are there, '' for all.
    """
    views: Mapping[str, View] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    ends: Mapping[str, tuple[Sequence[str], Sequence[str]]] = field(default_factory=dict)
    note: str = ''

    def items(self, view: str = '', **filters: str) -> str:
        """Return the address of a list, by default in its first view, with its filters set."""
        if not self.views or view and view not in self.views:
            return ''
        labels = [column.label for column in self.views[view].columns] if view else []
        if not {filters[side] for side in ('right', 'wrong') if side in filters} <= set(labels):
            return ''
        return f'{FOLDER}/{view or "index"}.html{Query(**filters).address()}'

    def item(self, name: str) -> str:
        """Return the address of the page of an item."""
        return f'{FOLDER}/items/{self.numbers[name]}.html' if name in self.numbers else ''

    def wrong(self, size: str, family: str = '') -> str:
        """Return the list of what a size answers wrong with the picture."""
        return self.items(SEEN, wrong=size, family=family)

    def lost(self, large: str, small: str, family: str = '') -> str:
        """Return the list of what a large size has right with the picture, and a small one wrong.
        """
        return self.items(SEEN, right=large, wrong=small, family=family)

    def pair(self, setting: str, p: str, r: str, family: str = '') -> str:
        """Return the list of what a pair of perception and reasoner has wrong in a setting."""
        return self.items(_view(setting), wrong=f'{p} → {r}', family=family)

    def shrunk(self, setting: str, side: str, family: str = '') -> str:
        """Return the list of what is lost when one side alone, or else both, are the smallest.

        `side` is 'perception', 'reasoner' or 'total'.
        """
        p, r = self.ends.get(setting, ((), ()))
        if not p or not r:
            return ''
        small_p = p[-1] if side == 'reasoner' else p[0]
        small_r = r[-1] if side == 'perception' else r[0]
        return self.items(_view(setting), right=f'{p[-1]} → {r[-1]}',
                          wrong=f'{small_p} → {small_r}', family=family)

    def of_class(self, loss: str) -> str:
        """Return the list of a class of loss, as the pairs answered that tell the classes."""
        return self.items(self.of_pairs, loss=loss)

    def of_claim(self, contrast: str) -> str:
        """Return the list of what a claim is about."""
        if contrast in OF_SIZES and SEEN in self.views:
            labels = [column.label for column in self.views[SEEN].columns]
            return self.lost(labels[-1], labels[0])
        if contrast == 'perception_minus_reasoning':
            return self.of_class('perception loss')
        return self.items(self.of_pairs) if self.of_pairs else ''

    @property
    def of_pairs(self) -> str:
        """The first view of pairs in the order of the report, '' without pairs."""
        names = ['-'.join(setting) for setting in PREFERRED]
        return next((name for name in names if name in self.views), '')


NO_ITEMS = ItemLinks()


def _view(setting):
    """Return the view of the setting of a grid, as in 'extraction, think'."""
    return setting.replace(', ', '-')


def write_items(root: Path, out: Path, first: Collection[str],
                ends: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> ItemLinks:
    """Write the items of a study beside its report, and return the links to them.

    Of more than `ITEMS` these are the items named `first` and as many of each family as of others.
    ValueError where the tables do not fit together, or the place is taken.
    """
    run, = open_runs([root])
    if not run.cells:
        return NO_ITEMS
    board = Board([run])
    views = views_of(board.runs)
    chosen = np.arange(len(board))
    notes = []
    if len(board) > ITEMS:
        chosen = _chosen(board, first)
        notes.append(f'{len(chosen):,} of the {len(board):,} items of the study, spread over its '
                     'families, those with a saved picture first.')
    if any(len(column.cells) > 1 for view in views.values() for column in view.columns):
        notes.append('Answers are of the lowest seed.')
    if notes:
        notes.append('“downscale view” shows all.')
    note = ' '.join(notes)
    replace_bundle(board, chosen, note, out / FOLDER)
    names = board.ids.take(chosen).to_pylist()
    return ItemLinks(views=views, ends=ends, note=note,
                     numbers=dict(zip(names, chosen.tolist(), strict=True)))


def _chosen(board, first):
    """Return the numbers of the items named `first` and of one of each family in turn."""
    run, = board.runs
    names = board.ids.to_pylist()
    everything = range(len(board))
    clusters = board.facts('cluster_id', everything)
    pictured = {cluster: obtainable(picture_path(run, cluster, 0)) for cluster in set(clusters)}

    def order(item):
        # As the hash of its name falls, so that no answer decides.
        digest = hashlib.sha256(names[item].encode()).digest()
        return names[item] not in first, not pictured[clusters[item]], digest
    codes, _ = board.coded('task')
    place = {}   # of an item within its family
    counts = {}
    for item in sorted(everything, key=order):
        place[item] = counts.get(codes[item], 0)
        counts[codes[item]] = place[item] + 1
    chosen = sorted(everything, key=lambda item: (names[item] not in first, place[item]))
    return np.sort(chosen[:ITEMS])
