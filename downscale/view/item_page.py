"""The page of one item: its picture, its question, and all that anyone wrote about it."""
from html import escape

import numpy as np

from downscale.data.scenes.questions import SCORER
from downscale.evaluate.scoring.table import SCORERS, disagree
from downscale.results.text_kinds import TEXT_KINDS
from downscale.view.board import TAGS
from downscale.view.pages import Desk, frame, pictures, verdict
from downscale.view.query import Query
from downscale.view.runs import Run
from downscale.view.select import judged
from downscale.view.words import neighbours

RULES = {SCORER: 'the scene world: the same text, or a box that overlaps by half'}


def item_page(desk: Desk, query: Query, item: int, selected: np.ndarray) -> str:
    """Return the page of an item; `selected` are those of the list that it was reached from."""
    board = desk.board
    name = board.ids[item].as_py()
    task, = board.facts('task', [item])
    cluster, = board.facts('cluster_id', [item])
    gold, = board.facts('gold', [item])
    chance, = board.facts('chance', [item])
    question, = board.questions([item])
    tags = [task]
    tags += [TAGS[place] for run in board.runs
             if (place := board.losses(run, query.only_seed)[item]) >= 0]
    body = [_steps(desk, query, item, selected), f'<h1>{escape(name)}</h1>',
            ''.join(f'<span class="tag">{escape(tag)}</span>' for tag in dict.fromkeys(tags)),
            '<div class="shown">', _pictures(desk, cluster),
            f'<div><p class="question">{escape(question) or "Question not saved"}</p>'
            f'<p>gold <b class="good">{escape(gold)}</b></p>'
            f'<p class="soft">{_guess(chance)}</p></div></div>']
    for run in board.runs:
        if len(board.runs) > 1:
            body.append(f'<h2>{escape(run.name)}</h2>')
        body += [_texts(desk, run, item), _answers(desk, query, run, item)]
    return frame(f'{name} of {desk.title}', ''.join(body), desk.links.pictures)


def _guess(chance):
    """Return how often a guess is right, as a sentence; '' where the data does not say."""
    return f'a guess is right with probability {chance:.3g}' if chance > 0 else ''


def _steps(desk, query, item, selected):
    """Return links to the list and to the items before and after this one."""
    links = [f'<a href="{escape(desk.links.items(query.but(item="")))}">all items</a>']
    place = np.flatnonzero(selected == item)
    if len(place):
        k = int(place[0])
        for name, other in (('previous', k - 1), ('next', k + 1)):
            if 0 <= other < len(selected):
                address = desk.links.item(int(selected[other]), query)
                links.append(f'<a rel="{name}" href="{escape(address)}">{name}</a>')
        links.append(f'<span class="soft">{k + 1:,} of {len(selected):,}</span>')
    return f'<nav>{"".join(links)}</nav>'


def _pictures(desk, cluster):
    parts = []
    for place, run in enumerate(desk.board.runs):
        for k in range(pictures(run, cluster)):
            address = escape(desk.links.picture(place, cluster, k))
            parts.append(f'<img loading="lazy" alt="picture {k + 1}" src="{address}">')
        if parts:
            break
    return ''.join(parts) or '<p class="soft">no picture saved</p>'


# --- what perception wrote --------------------------------------------------------------------

def _texts(desk, run: Run, item):
    """Return what every perception run wrote, each text against that of the next smaller size."""
    written = desk.board.texts(run, item)
    order = _order(run)
    parts = []
    for kind in TEXT_KINDS:
        rows = [row for row in written if row['text_kind'] == kind and row['p_run'] in order]
        seeds = sorted({order[row['p_run']][1] for row in rows})
        for seed in seeds:
            of_seed = [row for row in rows if order[row['p_run']][1] == seed]
            of_seed.sort(key=lambda row: order[row['p_run']])
            heading = f'{kind}, asked “{escape(of_seed[0]["prompt"])}”'
            heading += f', seed {seed}' if len(seeds) > 1 else ''
            parts.append(f'<h3>{heading}</h3>{_compared(of_seed)}')
    if not parts:
        return ''
    return ('<h2>What perception wrote</h2><p class="soft">Each text is compared with that of the '
            'size above it: <ins>words it adds</ins>, <del>words it drops</del>.</p>'
            + ''.join(parts))


def _order(run):
    """Return {run: (place of its size, seed)}, small to large."""
    seeds = {row['run_id']: row['seed'] for row in run.scored.study.meta['runs']}
    order = {}
    for place, size in enumerate(run.scored.sizes):
        for name in size.runs:
            order[name] = place, seeds[name]
    return order


def _compared(rows):
    shown = neighbours(row['text'] for row in rows)
    lines = []
    for row, text in zip(rows, shown, strict=True):
        cut = ', cut off' if row['truncated'] else ''
        lines.append(f'<tr><td class="q">{escape(row["p_run"])}<small>{row["n_tokens"]} tokens'
                     f'{cut}</small><td class="t">{text or "<i>(empty)</i>"}')
    return f'<div class="scroll"><table class="texts">{"".join(lines)}</table></div>'


# --- what was answered ------------------------------------------------------------------------

def _answers(desk, query, run: Run, item):
    """Return every answer of a run, grouped as the views are, with thoughts and verdicts."""
    parts = []
    for view in desk.views.values():
        columns = [column for column in view.columns if column.run is run]
        # Conditions of one size are those of all sizes again.
        if columns and not view.name.startswith('size-'):
            rows = []
            for column in columns:
                cell = column.cell(query.only_seed)
                if cell is not None:
                    rows += [(column.label, row) for row in desk.board.answers(run, cell, item)]
            if rows:
                parts.append(f'<h3>{escape(view.title)}</h3>{_table(rows)}')
    return f'<h2>What was answered</h2>{"".join(parts)}' if parts else ''


def _table(rows):
    thoughts = neighbours(row.get('thought') or '' for _, row in rows)
    lines = ['<thead><tr><th class="q">who<th>answer<th>score<th>scorers<th>written</thead><tbody>']
    for (label, row), thought in zip(rows, thoughts, strict=True):
        kind, mark = verdict(row['score'])
        again = f'<small>repeat {row["repeat"]}</small>' if row['repeat'] else ''
        who = _judge(row.get('scorer'))
        score = '–' if np.isnan(row['score']) else f'{row["score"]:.3g}'
        lines.append(
            f'<tr><td class="q">{escape(label)}{again}<td class="t" data-h="answer">'
            f'{_thought(row, thought)}{escape(row["pred"]) or "<i>(empty)</i>"}'
            f'<td class="a {kind}" data-h="score">{mark} {score}<small>{who}</small>'
            f'<td class="a" data-h="scorers">{_scorers(row)}<td class="a" data-h="written">'
            f'{_ending(row)}</tr>')
    return f'<div class="scroll"><table class="cards">{"".join(lines)}</tbody></table></div>'


def _thought(row, thought):
    if not row.get('thought'):
        return ''
    return f'<details open><summary>thought</summary><pre>{thought}</pre></details>'


def _judge(name):
    """Return which rule made a score, with its version; rows of earlier tables do not say."""
    if not name:
        return 'as the data scores'
    version = SCORERS[name].version if name in SCORERS else RULES.get(name, '')
    return f'{escape(name)} <span class="soft">{escape(version)}</span>'


def _scorers(row):
    """Return the verdict of every scorer with its version, folded where they agree."""
    by_name = judged(row)
    lines = []
    for name, given in by_name.items():
        mark = '?' if given.score is None else f'{given.score:.3g}'
        lines.append(f'{escape(name)} <b>{mark}</b> '
                     f'<span class="soft">{escape(SCORERS[name].version)}</span>')
    apart = disagree(by_name.values())
    state = f'{len(lines)} disagree' if apart else f'{len(lines)} agree'
    return (f'<details><summary{" class=bad" if apart else ""}>{state}</summary>'
            f'<small>{"<br>".join(lines)}</small></details>')


def _ending(row):
    """Return how long an answer was and how it ended."""
    parts = [f'{row["n_gen_tokens"]} tokens']
    if row['thinking']:
        parts.append(f'{row["n_think_tokens"]} of thought, {row["close"]} close')
    if row['truncated']:
        parts.append('cut off')
    if not row['parse_ok']:
        parts.append('no answer found')
    if not np.isnan(row['nll_gold']):
        parts.append(f'right answer {row["nll_gold"]:.2f} nats')
    return '<br>'.join(map(escape, parts))
