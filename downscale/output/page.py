"""The offline page around the report: escaping, tables that sort, styles and the small script."""
import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from downscale.analysis.completeness import LIMIT, Completion, FaultShare
from downscale.statistics.bootstrap import Interval

# Nothing is loaded from elsewhere, fonts included, so that the page reads the same offline.
CSS = '''
:root{color-scheme:light dark;--ink:#1d232b;--soft:#5d6773;--line:#d9dee4;--paper:#fbfbfa;
--card:#fff;--good:#1f7a4d;--bad:#b3372b;--goodbg:#e3f3ea;--badbg:#fae6e3;--accent:#2f6fae}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#9aa4af;--line:#353c45;
--paper:#15181c;--card:#1c2026;--good:#6cc79a;--bad:#ee8d80;--goodbg:#17332a;--badbg:#3c2220;
--accent:#7db2e6}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:0 16px 60px}
.gate{padding:12px 16px;font-weight:600;border-bottom:1px solid var(--line)}
.gate div{max-width:1028px;margin:0 auto}
.gate.yes{background:var(--goodbg);color:var(--good)}.gate.no{background:var(--badbg);color:var(--bad)}
h1{font-size:25px;margin:26px 0 2px}h2{font-size:19px;margin:40px 0 6px;padding-top:10px;
border-top:1px solid var(--line)}h3{font-size:15px;margin:22px 0 4px}
p{margin:6px 0 10px;max-width:76ch}.soft,small,figcaption{color:var(--soft)}
small{font-size:11.5px;display:block;white-space:nowrap}
ul{padding-left:20px;max-width:76ch}
figure{margin:12px 0;padding:14px;background:var(--card);border:1px solid var(--line);
border-radius:8px}figure>div,.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto;color:var(--ink)}figcaption{font-size:12.5px;margin-top:8px}
table{border-collapse:collapse;font-size:13.5px;margin:6px 0}
th,td{padding:5px 12px 5px 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top;font-variant-numeric:tabular-nums;white-space:nowrap}
th{color:var(--soft);font-weight:600;cursor:pointer}th:first-child,td:first-child{text-align:left}
th.text,td.text{text-align:left;white-space:normal;min-width:80px}
th[data-d="1"]:after{content:" \\2191"}th[data-d="-1"]:after{content:" \\2193"}
.skip{border-left:3px solid var(--bad);padding:4px 12px;color:var(--soft)}
.warn{border-left:3px solid var(--bad);background:var(--badbg);padding:6px 12px;border-radius:4px}
p.warn{max-width:none}.warn p,.warn ul{margin:2px 0;max-width:none}
a{text-decoration:none}
.good{color:var(--good)}.bad{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;
font-size:13.5px;overflow-wrap:anywhere}
.card img{width:112px;height:112px;object-fit:contain;image-rendering:pixelated;margin:0 6px 6px 0;
border:1px solid var(--line);border-radius:4px}
.card .q{font-weight:600;margin:2px 0}.card dl{margin:6px 0 0;display:grid;
grid-template-columns:auto 1fr;gap:2px 10px}.card dt{color:var(--soft)}.card dd{margin:0}
details summary{cursor:pointer;color:var(--accent);margin:8px 0}
'''
# A cell sorts by its `data-v`, else by its text; empty ones stay last in both directions, and
# the first click puts the largest on top.
SCRIPT = '''
document.querySelectorAll('th').forEach(function(th){th.addEventListener('click',function(){
 var table=th.closest('table'),body=table.tBodies[0],column=th.cellIndex;
 var direction=th.dataset.d==='-1'?1:-1;
 table.querySelectorAll('th').forEach(function(o){delete o.dataset.d});th.dataset.d=direction;
 function key(row){var cell=row.cells[column];return 'v' in cell.dataset?cell.dataset.v:
  cell.textContent}
 Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b);
  if(x===''||y==='')return (x==='')-(y==='');
  var order=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;return direction*order})
  .forEach(function(row){body.appendChild(row)})})});
'''
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


def figure(svg: str, caption: str) -> str:
    """Return a figure with its caption."""
    return f'<figure><div>{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def paragraph(text: str, kind: str = '') -> str:
    """Return escaped text in a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>'


def bullets(lines: Iterable[str]) -> str:
    """Return escaped lines as a list."""
    return '<ul>' + ''.join(f'<li>{escape(line)}' for line in lines) + '</ul>'


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


def page(title: str, gate_line: str, passed: bool, body: str) -> str:
    """Return the whole document; the gate stands above the title."""
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<style>{CSS}</style><body><div class="gate {"yes" if passed else "no"}"><div>'
            f'{escape(gate_line)}</div></div><main>{body}</main><script>{SCRIPT}</script></html>\n')
