"""The table of records: every benchmark with a peer or a limit, run one after another.

Writes docs/results/records.json and the table in docs/results/speed.md: what was measured, against
what, the figure, its spread, the goal, machine, date and commit. A benchmark that was not run keeps
its older rows, and --json writes another table. Exit code 1 when one failed; a goal that is missed
is a row like others.
"""
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from begin import begin, parser

ROOT = Path(__file__).parents[1]
TABLE = ROOT / 'docs' / 'results' / 'records.json'
PAGE = TABLE.with_name('speed.md')
MARKS = '<!-- made by make records -->', '<!-- end -->'


@dataclass(frozen=True, kw_only=True)
class Record:
    """One figure: `what` was measured `against` what; at least `goal`, or at most where `less`."""
    what: str
    against: str
    value: float
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    less: bool = False


def over(one: list[float], other: list[float]) -> dict[str, float]:
    """Return median and range of the ratios of two sides, round by round."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {'value': statistics.median(ratios), 'low': min(ratios), 'high': max(ratios)}


# --- what is read off each benchmark ------------------------------------------------------------

def train_throughput(found: Any) -> list[Record]:
    """Tokens per second against transformers."""
    rows = []
    for shape in found['shapes']:
        ratio, spread = shape['ratios']['transformers']
        rows.append(Record(what=f'CPU train step, width {shape["width"]}, {shape["depth"]} layers',
                           against='transformers, tokens/s', value=ratio,
                           low=ratio * (1 - spread), high=ratio * (1 + spread), goal=1.3))
    return rows


def decode_throughput(found: Any) -> list[Record]:
    """Tokens per second against transformers, and against what the products alone allow.

    Those of one row are a bare loop that reads each weight and multiplies it with a vector.
    """
    goals = {'batch 1': .85, 'batch 8': .9, 'batch 32': .9, 'ragged': .75}
    rows = []
    for name, row in found.items():
        if not isinstance(row, dict) or 'ours' not in row:
            continue
        rows.append(Record(what=f'CPU decoding, {name}', against='transformers, tokens/s',
                           **over(row['theirs'], row['ours'])))
        if name in goals:
            shares = [row['tokens'] / seconds / row['product bound'] for seconds in row['ours']]
            rows.append(Record(
                what=f'CPU decoding, {name}', against='a bare loop of reads and products, tokens/s'
                if name == 'batch 1' else 'products alone, tokens/s',
                value=statistics.median(shares), low=min(shares), high=max(shares),
                goal=goals[name]))
    return rows


def cells_together(found: Any) -> list[Record]:
    """Time of eight cells one after another, over their time together."""
    goals = {32: 2.0, 96: 1.5}
    return [Record(what=f'8 cells together, width {case["width"]}, {case["batch"]} rows, '
                        f'{case["seeds"]} seeds', against='one after another, time',
                   goal=goals.get(case['width']),
                   **over(*[[side[0] for side in sides] for sides in
                            zip(*case['seconds'], strict=True)]))
            for case in found['cases']]


def checkpoint(found: Any) -> list[Record]:
    """What a save stalls, what a restore takes."""
    def side(name):
        return [row[name] for row in found['rounds']]
    return [Record(what='stall of a train step by a checkpoint', against='a save, waited for',
                   goal=.1, less=True, **over(side('stall'), side('blocking'))),
            Record(what='restore of a checkpoint', against='a plain read', less=True,
                   **over(side('restore'), side('read')))]


def import_speed(found: Any) -> list[Record]:
    """Speed and memory of an import."""
    return [Record(what='import of a Qwen3 checkpoint', against='cp and sync, speed', goal=.6,
                   **over(found['copy'], found['process'])),
            Record(what='peak memory of an import', against='3 x largest tensor + 0.5 GiB',
                   value=max(found['peak']) / found['limit'], goal=1, less=True)]


def input_pipeline(found: Any) -> list[Record]:
    """Rates of the stream against the step that it feeds."""
    return [Record(what=f'input stream, stage {stage}', against='train step, batches/s',
                   value=row['stream_over_step'], goal=1)
            for stage, row in zip(('text', 'instruct', 'extract'), found['stages'], strict=True)]


def record_pipeline(found: Any) -> list[Record]:
    """Records a second against torch's DataLoader."""
    return [Record(what='records of JPEGs, packed', against="torch's DataLoader, unpacked",
                   goal=1, **over(found['ours_per_second'], found['torch_per_second']))]


def mounted_input(found: Any) -> list[Record]:
    """Steps that wait for a bucket after the first ten."""
    return [Record(what='steps that wait for a bucket of 30 ms', against='steps after the first 10',
                   value=statistics.mean(wait > .005 for wait in found['waits']['mount'][10:]),
                   goal=0, less=True)]


def report_speed(found: Any) -> list[Record]:
    """Seconds of a large report."""
    return [Record(what=f'report of {found["runs"]} runs x {found["items"]:,} items',
                   against=f'{found["limit"]} s of a core',
                   value=found['processor seconds'] / found['limit'], goal=1, less=True)]


def view_speed(found: Any) -> list[Record]:
    """Seconds to the first page of the explorer."""
    starts = [seconds / found['limit'] for seconds in found['seconds to the first page']]
    return [Record(what=f'first page of {found["items"]:,} items', against=f'{found["limit"]:g} s',
                   value=min(starts), low=min(starts), high=max(starts), goal=1, less=True)]


def many_cells(found: Any) -> list[Record]:
    """Seconds of `launch status` in a bucket of 30 ms."""
    cells, row = list(found['rows'].items())[-1]
    return [Record(what=f'launch status of {int(cells):,} cells', against=f'{found["limit"]:g} s',
                   value=row['status'][0] / found['limit'], goal=1, less=True)]


def policy_throughput(found: Any) -> list[Record]:
    """What the parts of `perceive` need alone, over the time of the stage."""
    rows = []
    for place, name, what in ((0, 'clock', 'by the clock'), (1, 'core', 'processor time')):
        parts = [sum(each[name].values()) for each in found['rounds']]
        stage = [each['stage'][place] for each in found['rounds']]
        rows.append(Record(what=f'parts of perceive alone, {found["size"]}',
                           against=f'the stage, {what}', goal=.85, **over(parts, stage)))
    return rows


def decode_bound(found: Any) -> list[Record]:
    """Estimated cycles and bytes of a TPU decode step against reading weights and cache once."""
    goals = {'estimate': ('HBM bound, estimated cycles', 1.35), 'moved': ('bytes to be read', 1.2)}
    return [Record(what=f'{row["chip"]} decode step, {row["model"]}, {row["live"]:,} live tokens'
                        + ', sampled' * row['drawn'],
                   against=against, value=row['ratio'][name], goal=goal, less=True)
            for row in found for name, (against, goal) in goals.items()]


# In the order in which they run: the longest last.
BENCHMARKS: dict[str, Callable[[Any], list[Record]]] = {
    'view_speed': view_speed, 'many_cells': many_cells, 'report_speed': report_speed,
    'mounted_input': mounted_input, 'import_speed': import_speed, 'checkpoint': checkpoint,
    'record_pipeline': record_pipeline, 'train_throughput': train_throughput,
    'input_pipeline': input_pipeline, 'cells_together': cells_together,
    'policy_throughput': policy_throughput, 'decode_bound': decode_bound,
    'decode_throughput': decode_throughput}


# --- running them -------------------------------------------------------------------------------

def machine() -> str:
    """Return what ran them, in words."""
    model = platform.processor() or platform.machine()
    cpus = Path('/proc/cpuinfo')
    if cpus.is_file():
        named = [line.partition(':')[2].strip() for line in cpus.read_text().splitlines()
                 if line.startswith('model name')]
        model = named[0] if named else model
    return f'{len(os.sched_getaffinity(0))} cores of {model}'


def commit() -> str:
    """Return the commit of this tree, with a plus where files differ from it."""
    def git(*words):
        return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True,
                              check=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + '+' * bool(git('status', '--short', '-uno'))


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of the page, in Markdown."""
    found = ['| measured | against | ratio | range | goal | date, commit | machine |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        spread = '' if row['low'] is None else f'{row["low"]:.2f} to {row["high"]:.2f}'
        goal = ''
        if row['goal'] is not None:
            reached = row['value'] <= row['goal'] if row['less'] else row['value'] >= row['goal']
            goal = f'{"at most" if row["less"] else "at least"} {row["goal"]:g}' + (
                '' if reached else ', **missed**')
        made = f'{row["date"]}, {row["commit"]}' + ', quick' * row['quick']
        found.append(f'| {row["what"]} | {row["against"]} | {row["value"]:.2f} | {spread} | {goal} '
                     f'| {made} | {row["machine"]} |')
    return found


def write_page(rows: list[dict[str, Any]], page: Path) -> None:
    """Put the table between its marks in a page."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(before + '\n'.join([MARKS[0], '', *lines(rows), '', MARKS[1]]) + after)


def measured(name: str, quick: bool) -> list[Record]:
    """Run one benchmark; RuntimeError where it gives no figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'figures.json'
        argv = [sys.executable, str(ROOT / 'benchmarks' / f'{name}.py'), '--json', str(path)]
        done = subprocess.run(argv + ['--quick'] * quick, cwd=ROOT, check=False)
        # Some end with 1 where a limit is missed, which is a figure as well.
        if not path.is_file():
            raise RuntimeError(f'{name} gave no figures, exit code {done.returncode}')
        return BENCHMARKS[name](json.loads(path.read_text()))


def main() -> int:
    """Run the benchmarks that were asked for, and write the table after each."""
    made = parser(__doc__, 'records.py view_speed many_cells --quick')
    made.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)} '
                      '(default: all)')
    args = begin(made, 'an hour', {})
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        made.error(f'unknown benchmarks {", ".join(unknown)}; known are {", ".join(BENCHMARKS)}')
    table = args.json or TABLE
    rows = json.loads(table.read_text()) if table.is_file() else []
    about = {'machine': machine(), 'commit': commit(), 'quick': args.quick,
             'date': datetime.date.today().isoformat()}
    failed = []
    for name in args.names or BENCHMARKS:
        print(f'\n--- {name}', flush=True)
        began = time.monotonic()
        try:
            records = measured(name, args.quick)
        except (RuntimeError, KeyError, ValueError) as error:
            print(f'error: {name}: {error}', file=sys.stderr)
            failed.append(name)
            continue
        seconds = round(time.monotonic() - began)
        rows = [row for row in rows if row['benchmark'] != name]
        rows += [{'benchmark': name, **asdict(record), 'seconds': seconds, **about}
                 for record in records]
        rows.sort(key=lambda row: list(BENCHMARKS).index(row['benchmark']))
        table.write_text(json.dumps(rows, indent=1) + '\n')
        if table == TABLE:
            write_page(rows, PAGE)
    print(f'\n{table}: {len(rows)} records' + f'; failed: {", ".join(failed)}' * bool(failed))
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
