"""The explorer as a folder of pages that opens without a server: to send, to host, to keep."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from downscale.runtime import copies
from downscale.runtime.files import whole, write_bytes
from downscale.view import pages
from downscale.view.board import Board, picture_path
from downscale.view.columns import views_of
from downscale.view.item_page import item_page
from downscale.view.pages import MADE_BY, Desk
from downscale.view.query import Query
from downscale.view.select import facets, select
from downscale.view.style import STATIC

MOST = 2000   # items: all rows of a view are in one page
HEAD = 2000   # characters of a page, among which `MADE_BY` stands


class FolderLinks:
    """Addresses within the folder, from its top or from `items/`.

    Item pages stand in the order of the folder and go back to the page of its columns.
    """
    # A page that is opened as a file has no origin of its own; one that is hosted has.
    pictures = "'self' file:"

    def __init__(self, up: str = '') -> None:
        self.up = up

    def items(self, query: Query) -> str:
        """Return the address of a list."""
        return f'{self.up}{query.columns or "index"}.html'

    def item(self, number: int, query: Query) -> str:
        """Return the address of an item."""
        return f'{self.up}items/{number}.html'

    def picture(self, run: int, cluster: str, place: int) -> str:
        """Return the address of a picture."""
        return f'{self.up}pictures/{run}-{_file(cluster)}-{place}.png'


def _file(cluster):
    """Return a cluster as part of a file name that means the same in an address."""
    return ''.join(letter if letter.isascii() and (letter.isalnum() or letter in '-_.')
                   else f'_{ord(letter):x}_' for letter in cluster)


def write_bundle(board: Board, query: Query, folder: Path) -> Path:
    """Write the items that a query selects into a new folder; return its first page.

    ValueError where the folder is not empty, or holds more than `MOST` items.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty; give a new folder')
    desk = Desk(board=board, views=views_of(board.runs), links=FolderLinks())
    items = select(board, desk.view(query), query)
    if len(items) > MOST:
        raise ValueError(f'{len(items)} items, and a static folder holds at most {MOST}; choose '
                         'some with --query, as in --query "disagree=sizes"')
    with whole(folder) as partial:
        _write_pages(desk, query, items, partial)
    return folder / 'index.html'


def replace_bundle(board: Board, items: np.ndarray, note: str, folder: Path) -> None:
    """Write some items into a folder, in the place of a bundle that is there.

    `note` says on every list which items these are. ValueError where anything else is there.
    """
    if folder.is_dir() and any(folder.iterdir()):
        first = folder / 'index.html'
        if not first.is_file() or MADE_BY not in first.read_text(errors='replace')[:HEAD]:
            raise ValueError(f'{folder} holds other files than items; move them away')
    desk = Desk(board=board, views=views_of(board.runs), links=FolderLinks(), note=note)
    with whole(folder) as partial:
        _write_pages(desk, Query(), items, partial)
        shutil.rmtree(folder, ignore_errors=True)


def _write_pages(desk, query, items, folder):
    """Write a list for every view, the first of them as the index, and a page for every item."""
    for name in desk.views:
        page = _list(desk, Query(columns=name, seed=query.seed), items)
        write_bytes(folder / f'{name}.html', page.encode())
        if name == desk.view(query).name:
            write_bytes(folder / 'index.html', page.encode())
    inner = replace(desk, links=FolderLinks('../'))
    for item in items.tolist():
        page = item_page(inner, Query(seed=query.seed), item, items)
        write_bytes(folder / 'items' / f'{item}.html', page.encode())
    _copy_pictures(desk, items, folder)


def _list(desk, query, items: np.ndarray):
    """Return the page of one view, with all rows and what its script filters them by."""
    board = desk.board
    rows = facets(board, desk.view(query), query.only_seed, items)
    texts = _texts(board, items)
    data = [json.dumps({**row, 'text': text}) for row, text in zip(rows, texts, strict=True)]
    body = (pages.heading(desk) + pages.form(desk, query, items)
            + '<nav><b id="count"></b><a id="previous">previous</a><a id="next">next</a></nav>'
            + pages.table(desk, query, pages.list_rows(desk, query, items.tolist(), data)))
    return pages.frame(f'Items of {desk.title}', body, desk.links.pictures, STATIC)


def _texts(board, items):
    """Return all that was written about each item, for the search."""
    texts = {item: [] for item in items.tolist()}
    names = board.ids.take(items).to_pylist() if len(items) else []
    item_of = dict(zip(names, items.tolist(), strict=True))
    for table in (table for run in board.runs for table in run.texts):
        rows = np.arange(table.rows)
        for name, text in zip(table.take('item_id', rows), table.take('text', rows), strict=True):
            if name in item_of:
                texts[item_of[name]].append(text)
    return [' '.join(dict.fromkeys(written)) for written in texts.values()]


def _copy_pictures(desk, items, folder):
    clusters = dict.fromkeys(desk.board.facts('cluster_id', items.tolist()))
    sources = {}
    for place, run in enumerate(desk.board.runs):
        for cluster in clusters:
            for k in range(pages.pictures(run, cluster)):
                target = folder / desk.links.picture(place, cluster, k)
                sources[target] = picture_path(run, cluster, k)
    copies.fetch(sources.values())
    for target, source in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
