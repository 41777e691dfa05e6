"""The list of items as HTML; all text that comes from a run is escaped."""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import numpy as np

from downscale.runtime.copies import obtainable
from downscale.view.board import LOSSES, TAGS, Board, corner_cells, picture_path, seeing_cells
from downscale.view.columns import Column, View, first_chosen
from downscale.view.query import DISAGREE, PAGE, SORTS, UNITS, Query
from downscale.view.runs import Run
from downscale.view.select import sort_value, values
from downscale.view.style import CSS, SCRIPT, policy

CUT = 90   # characters of an answer in the list
QUESTION = 220
MADE_BY = '<meta name="generator" content="downscale view">'


class Links(Protocol):
    """Where the parts of the explorer are, seen from one of its pages."""
    pictures: str   # what a content security policy calls their source

    def items(self, query: Query) -> str:
        """Return the address of a list of items."""

    def item(self, number: int, query: Query) -> str:
        """Return the address of the page of an item, which may know the query it came from."""

    def picture(self, run: int, cluster: str, place: int) -> str:
        """Return the address of a picture of the run of this place."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What every page is made of: the items, what can stand side by side, and where things are.

    `note` stands above every list.
    """
    board: Board
    views: Mapping[str, View]
    links: Links
    note: str = ''

    def columns(self, query: Query) -> tuple[Column, ...]:
        """Return the columns that a query shows, those that it filters by before all others."""
        return first_chosen(self.view(query), query.right, query.wrong)

    def view(self, query: Query) -> View:
        """Return the view that a query names, by default the first."""
        return self.views[query.columns] if query.columns else next(iter(self.views.values()))

    @property
    def title(self) -> str:
        """The names of the runs."""
        return ' and '.join(run.name for run in self.board.runs)


def frame(title: str, body: str, pictures: str, script: str = SCRIPT) -> str:
    """Return a whole page that loads nothing but its pictures."""
    rule = escape(policy(script, pictures))
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">{MADE_BY}'
            f'<meta http-equiv="Content-Security-Policy" content="{rule}">'
            '<meta name="referrer" content="no-referrer">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<title>{escape(title)}</title><style>{CSS}</style></head>'
            f'<body><main>{body}</main><script>{script}</script></body></html>\n')


def fault(message: str, pictures: str) -> str:
    """Return a page that says what was wrong with an address."""
    body = f'<p class="fault">{escape(message)}</p><p><a href="?">All items</a></p>'
    return frame('Not found', body, pictures)


def items_page(desk: Desk, query: Query, items: np.ndarray) -> str:
    """Return one page of the items that a query has selected."""
    pages = max(1, -(-len(items) // PAGE))
    number = min(max(1, query.number), pages)
    shown = items[(number - 1) * PAGE:number * PAGE].tolist()
    count = f'{len(items):,} of {len(desk.board):,} items, page {number:,} of {pages:,}'
    rows = list_rows(desk, query, shown)
    body = (heading(desk) + form(desk, query) + _pager(desk, query, number, pages, count)
            + table(desk, query, rows, items) + _pager(desk, query, number, pages, ''))
    return frame(f'Items of {desk.title}', body, desk.links.pictures)


def heading(desk: Desk) -> str:
    """Return the title above a list."""
    told = [text for run in desk.board.runs if (text := _told_by(run))]
    return (f'<h1>Items of {escape(desk.title)}</h1><p class="soft">A row is an item, a column who '
            'answered. ✓ is right, ✗ wrong; a click on an item shows all that was written. '
            f'{escape(" ".join(dict.fromkeys(told)))}</p>'
            + (f'<p>{escape(desk.note)}</p>' if desk.note else ''))


def _told_by(run):
    """Return by whose answers the class of loss of an item is told, as a sentence."""
    pairs = corner_cells(run, None)
    if pairs:
        large, *_, small = pairs
        mode = 'thinking' if large.thinking else 'at once'
        return (f'Classes of loss compare {small.p_run} with {large.p_run} as perception, and '
                f'{small.r_run} with {large.r_run} as reasoner (of the {large.text_kind}, {mode}).')
    cells = seeing_cells(run, None)
    if len(cells) < 2:
        return ''
    return f'Lost: right with {cells[-1].p_run}, wrong with {cells[0].p_run}.'


def _pager(desk, query, number, pages, count):
    links = [f'<b id="count">{escape(count)}</b>'] if count else []
    for name, page in (('previous', number - 1), ('next', number + 1)):
        if 1 <= page <= pages:
            address = desk.links.items(query.but(page=str(page)))
            links.append(f'<a href="{escape(address)}" rel="{name}">{name}</a>')
    return f'<nav>{"".join(links)}</nav>'


# --- the form ---------------------------------------------------------------------------------

def form(desk: Desk, query: Query, items: np.ndarray | None = None) -> str:
    """Return the filters, each with what it is set to.

    A static page has some `items` only, and those of one seed.
    """
    view = desk.view(query)
    _, families = desk.board.coded('task')
    labels = [(column.label, column.label) for column in view.columns]
    fields = [
        _choice('columns', 'Side by side', [(name, of.title) for name, of in desk.views.items()],
                view.name, ''),
        _choice('family', 'Family', [(name, name) for name in sorted(families)], query.family),
        _choice('loss', 'Class of loss', _classes(desk, query, items), query.loss),
        _choice('disagree', 'Disagreement', DISAGREE.items(), query.disagree),
        _choice('right', 'Right in', labels, query.right),
        _choice('wrong', 'Wrong in', labels, query.wrong)]
    seeds = sorted({seed for column in view.columns for seed in column.cells})
    if len(seeds) > 1 and items is None:
        fields.append(_choice('seed', 'Seed', [(str(seed), str(seed)) for seed in seeds],
                              query.seed, 'lowest'))
    fields.append(_choice('sort', 'Order', SORTS.items(), query.sort, 'by name'))
    fields.append('<label>Text<input type="search" name="text" maxlength="200" '
                  f'value="{escape(query.text)}" placeholder="question, answer, text"></label>')
    return f'<form>{"".join(fields)}<button>Show</button></form>'


def _choice(name, label, options, value, nothing='all'):
    """Return a labelled choice; `nothing` stands for no value, '' where there is always one."""
    parts = [f'<option value="">{nothing}</option>'] if nothing else []
    for key, text in options:
        mark = ' selected' if key == value else ''
        parts.append(f'<option value="{escape(key)}"{mark}>{escape(text)}</option>')
    return f'<label>{label}<select name="{name}">{"".join(parts)}</select></label>'


def _classes(desk, query, items):
    """Return the classes that any item has, with how many of `items`, by default all, have it."""
    places = [desk.board.losses(run, query.only_seed) for run in desk.board.runs]
    if items is not None:
        places = [of_run[items] for of_run in places]
    counts = np.zeros(len(LOSSES), dtype=int)
    for of_run in places:
        counts += np.bincount(of_run[of_run >= 0], minlength=len(LOSSES))
    return [(name, f'{name} ({count:,})')
            for name, count in zip(LOSSES, counts.tolist(), strict=True) if count]


# --- the table --------------------------------------------------------------------------------

def table(desk: Desk, query: Query, rows: Iterable[str], items: np.ndarray | None = None) -> str:
    """Return rows under their headings, with the share of `items` that each column has right."""
    heads = ['<th class="q">item', '<th>gold']
    for column in desk.columns(query):
        share = '' if items is None else _share(desk.board, column, query.only_seed, items)
        heads.append(f'<th data-l="{escape(column.label)}">{escape(column.label)}{share}')
    if query.sort:
        heads.append(f'<th>{UNITS[query.sort]}')
    body = ''.join(rows) or '<tr><td class="q">No item is left by these filters.'
    return (f'<div class="scroll"><table class="cards"><thead><tr>{"".join(heads)}</thead>'
            f'<tbody>{body}</tbody></table></div>')


def _share(board, column, seed, items):
    """Return the share of some items that a column has right, of those that it was asked."""
    scores = values(board, column, seed, 'score')[items]
    scores = scores[np.isfinite(scores)]
    return f'<small>{100 * scores.mean():.0f} % of {len(scores):,}</small>' if len(scores) else ''


def list_rows(desk: Desk, query: Query, items: Sequence[int],
              data: Sequence[str] | None = None) -> list[str]:
    """Return the rows of some items; `data` is what the script of a static page reads of each."""
    board = desk.board
    names = board.ids.take(items).to_pylist() if len(items) else []
    tasks, clusters, gold = (board.facts(name, items) for name in ('task', 'cluster_id', 'gold'))
    questions = board.questions(items)
    answers = [_answers(board, column, query.only_seed, items)
               for column in desk.columns(query)]
    losses = [board.losses(run, query.only_seed) for run in board.runs]
    worst = sort_value(board, desk.view(query), query) if query.sort else None
    rows = []
    for k, item in enumerate(items):
        tags = dict.fromkeys([tasks[k], *(TAGS[of[item]] for of in losses if of[item] >= 0)])
        marks = ''.join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
        question = escape(_cut(questions[k], QUESTION)) or escape(names[k])
        address = escape(desk.links.item(item, query))
        cells = [f'<td class="q">{thumbnail(desk, clusters[k])}'
                 f'<a href="{address}">{question}</a><small>{escape(names[k])}</small>{marks}',
                 f'<td class="a" data-h="gold">{escape(_cut(gold[k], CUT))}']
        cells += [of_column[k] for of_column in answers]
        if worst is not None:
            cells.append(f'<td class="n" data-h="{UNITS[query.sort]}">{_number(worst[item])}')
        mark = f" data-f='{escape(data[k])}'" if data else ''
        rows.append(f'<tr{mark}>{"".join(cells)}</tr>')
    return rows


def _number(value):
    return '–' if np.isnan(value) else f'{value:.2f}'


def _answers(board, column: Column, seed, items):
    """Return the cells of one column for some items."""
    cell = column.cell(seed)
    empty = f'<td class="a" data-h="{escape(column.label)}">–'
    if cell is None:
        return [empty] * len(items)
    asked, row_of = board.asked(column.run, cell)
    rows = row_of[list(items)]
    there = np.flatnonzero(rows >= 0)
    cells = [empty] * len(items)
    scores = asked.take('score', rows[there])
    preds = asked.take('pred', rows[there])
    for k, score, pred in zip(there, scores, preds, strict=True):
        kind, mark = verdict(score)
        cells[k] = (f'<td data-h="{escape(column.label)}" class="a {kind}"><span>{mark} '
                    f'{escape(_cut(pred, CUT)) or "<i>(empty)</i>"}</span>')
    return cells


def verdict(score: float) -> tuple[str, str]:
    """Return (class of style, mark) of a score; without a score nobody could judge."""
    if np.isnan(score):
        return 'soft', '?'
    return ('good', '✓') if score > .5 else ('bad', '✗')


def thumbnail(desk: Desk, cluster: str) -> str:
    """Return the first picture of a cluster, which is loaded when it comes into sight."""
    for place, run in enumerate(desk.board.runs):
        if obtainable(picture_path(run, cluster, 0)):
            address = escape(desk.links.picture(place, cluster, 0))
            return f'<img loading="lazy" width="52" height="52" alt="" src="{address}">'
    return '<small>no picture</small>'


def pictures(run: Run, cluster: str) -> int:
    """Return how many pictures of a cluster a run has saved."""
    count = 0
    while obtainable(picture_path(run, cluster, count)):
        count += 1
    return count


def _cut(text, most):
    return text if len(text) <= most else text[:most] + ' …'
