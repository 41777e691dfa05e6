"""The parts of an offline page: escaping, tables that sort, figures, cards, and what is around."""
import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from downscale.analysis.completeness import LIMIT, Completion, FaultShare
from downscale.output.style import CSS, SCRIPT
from downscale.statistics.bootstrap import Interval

MARKS = {'supported': ' good', 'contradicted': ' bad'}   # of words that are verdicts


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Return a number as the page prints it; None and NaN are an en dash."""
    if value is None or math.isnan(value):
        return '–'
    return f'{value:{"+" if sign else ""}.{digits}f}'


def cell(value: Any, sign: bool = False) -> str:
    """Return one table cell, escaped; it sorts by its value, an interval by its centre."""
    # The order of these tests matters: a FaultShare is a float, and a bool is an int.
    # Cells, rows and list items need no closing tags in HTML, so that there are none here.
    if isinstance(value, Interval):
        ends = f'{number(value.low, 2, sign)} to {number(value.high, 2, sign)}'
        return f'<td data-v="{value.value:.6g}">{number(value.value, 2, sign)}<small>{ends}</small>'
    if isinstance(value, Completion):
        return _completion(value)
    if isinstance(value, FaultShare):
        return f'<td data-v="{value:.6g}">{percent(value)} %'
    if value is None:
        return '<td data-v="">–'
    if isinstance(value, bool):
        return f'<td class="{"good" if value else "bad"}">{"yes" if value else "no"}'
    if isinstance(value, int):
        return f'<td data-v="{value}">{value:,}'
    if isinstance(value, float):
        # A small p value must not read as zero.
        shown = '<0.001' if 0 < value < .0005 else number(value, 3)
        return f'<td data-v="{value:.6g}">{escape(shown)}'
    return f'<td class="text{MARKS.get(value, "")}">{escape(str(value))}'


def percent(share: Any) -> str:
    """Return a share in per cent, marked when it is too large; None is an en dash."""
    if share is None:
        return '–'
    shown = f'{100 * share:.1f}' if share else '0'
    return f'<b class="bad">{shown}</b>' if share.over else shown


def _completion(x):
    """Return the cell of a `Completion`: accuracy on completed answers, on all, and the faults."""
    shares = (x.truncated, x.unparsed, x.unclosed)
    lines = [] if x.completed is None else [
        f'{number(x.completed.low)} to {number(x.completed.high)}']
    lines.append(f'all {number(x.accuracy.value)} · {" / ".join(map(percent, shares))} %')
    # The means over families are below the limit: the families that are above it are named.
    if x.over and not any(share is not None and share.over for share in shares):
        lines.append(f'<b class="bad">over {100 * LIMIT:.0f} % in {", ".join(sorted(x.over)[:2])}'
                     f'{" …" if len(x.over) > 2 else ""}</b>')
    value = ('', 'none') if x.completed is None else (
        f'{x.completed.value:.6g}', number(x.completed.value))
    return f'<td data-v="{value[0]}">{value[1]}' + ''.join(f'<small>{x}</small>' for x in lines)


def table(headers: Sequence[str], rows: Iterable[Sequence], sign: bool = False) -> str:
    """Return a table that sorts when a header is clicked and scrolls sideways on a phone."""
    head = ''
    for column, name in enumerate(headers):
        words = any(isinstance(row[column], str) for row in rows)
        head += f'<th{" class=text" if words else ""}>{escape(str(name))}'
    body = []
    for row in rows:
        body += ['<tr>', *(cell(value, sign) for value in row)]
    return f'<div class="scroll"><table><thead><tr>{head}<tbody>{"".join(body)}</table></div>'


def figure(panels: str, caption: str) -> str:
    """Return a figure, one SVG or more side by side, with its caption."""
    return (f'<figure><div class="panels">{panels}</div><figcaption>{escape(caption)}</figcaption>'
            '</figure>')


def paragraph(text: str, kind: str = '') -> str:
    """Return escaped text in a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>'


def bullets(lines: Iterable[str]) -> str:
    """Return escaped lines as a list."""
    return '<ul>' + ''.join(f'<li>{escape(line)}' for line in lines) + '</ul>'


def link(address: str, body: str) -> str:
    """Return HTML that leads to an address; without one the HTML as it is."""
    return f'<a href="{escape(address)}">{body}</a>' if address else body


def cut(text: str, most: int) -> str:
    """Return escaped text of at most `most` characters, with an ellipsis where it was longer."""
    # Cut first, so that no `&amp;` is cut in half.
    return escape(text if len(text) <= most else text[:most] + ' …')


def terms(pairs: Iterable[tuple[str, str]], mark: str = '') -> str:
    """Return (name, HTML) pairs as entries of a `<dl>`; names are escaped, `mark` is a class."""
    kind = f' class="{mark}"' if mark else ''
    return ''.join(f'<dt{kind}>{escape(name)}<dd{kind}>{text}' for name, text in pairs)


def details(summary: str, body: str) -> str:
    """Return HTML that opens when its summary, which is escaped, is clicked."""
    return f'<details><summary>{escape(summary)}</summary>{body}</details>'


def card(pictures: str, caption: str, body: str) -> str:
    """Return one sample: its pictures above, the escaped `caption` under them, then `body`."""
    return f'<div class="card">{pictures}<div class="soft">{escape(caption)}</div>{body}</div>'


def cards(samples: Iterable[str]) -> str:
    """Return samples, each made by `card`, side by side."""
    return f'<div class="cards">{"".join(samples)}</div>'


def picture_address(data: bytes, kind: str = 'png') -> str:
    """Return an encoded picture as an address that holds it, so that a page needs no file."""
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def section(name: str, title: str, body: str) -> str:
    """Return a section that a link to `name` leads to; `body` is HTML."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{body}</section>'


def contents(groups: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """Return the sidebar: of every group its title, then a link for each (name, title) in it."""
    parts = []
    for group, entries in groups:
        links = ''.join(f'<li><a href="#{escape(name)}">{escape(title)}</a>'
                        for name, title in entries)
        parts.append(f'<strong>{escape(group)}</strong><ul>{links}</ul>')
    return f'<nav><details open><summary>Sections</summary>{"".join(parts)}</details></nav>'


def page(title: str, gate_line: str, passed: bool, body: str) -> str:
    """Return a whole document of one column; a line that says how it went stands above all."""
    line = (f'<div class="gate {"yes" if passed else "no"}"><div>{escape(gate_line)}</div></div>')
    return document(title, f'<body>{line}<main>{body}</main>')


def page_with_sidebar(title: str, sidebar: str, body: str) -> str:
    """Return a whole document with its `contents` beside it, or folded above it on a phone."""
    return document(title, f'<body class="side">{sidebar}<main>{body}</main>')


def document(title: str, body: str) -> str:
    """Return HTML with the styles and the script that every page has; nothing is loaded."""
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<style>{CSS}</style>{body}<script>{SCRIPT}</script></html>\n')
