"""`downscale analyze ledger`: where runs lose what they are asked to see."""
import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from downscale.commands.parsing import count, local_path, new_folder

if TYPE_CHECKING:
    from downscale.analysis.measures import Row
    from downscale.config import Experiment
    from downscale.runtime.progress import Bars


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.usage = '%(prog)s STUDY [STUDY ...] [options]'  # in full it takes a quarter of a screen
    sub.set_defaults(verb='ledger')
    sub.add_argument('study', nargs='+', type=local_path, metavar='STUDY', help='folder of a '
                     'study; with --data also of a model or stage')
    sub.add_argument('--data', type=local_path, metavar='FILE', help='ask about pictures of your '
                     'own: .jsonl of "before", "after", "question", "answer_before", '
                     '"answer_after", "box", "change"?, "field"?, "key"?, "id"?')
    sub.add_argument('--cell', nargs='+', metavar='C', help='these cells (default: all)')
    sub.add_argument('--stage', metavar='S', help='behind this one (default: the one that answers)')
    sub.add_argument('--pairs', type=count, metavar='N',
                     help='matched scenes of each field (default 96)')
    sub.add_argument('--scenes', type=count, metavar='N',
                     help='scenes to train probes on, of each field (320)')
    sub.add_argument('--out', type=new_folder, metavar='DIR',
                     help='JSON, CSV and figure (default: STUDY/analysis)')
    sub.add_argument('--json', action='store_true', help='one JSON object instead of tables')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')


def run(args: argparse.Namespace) -> None:
    """Print the causal ledger of the runs of a study or of models, and leave it in --out."""
    from downscale.commands import analyze_probes
    from downscale.commands.analyze_measures import check_resamples
    check_resamples(args.bootstraps)
    from downscale.probe.causal import over_seeds
    from downscale.report.probe_figures import ledger_lines
    from downscale.runtime.progress import progress_bars
    studies = [folder for folder in args.study if (folder / 'study.json').is_file()]
    _refuse(args, studies)
    shown_on = sys.stderr if args.json else sys.stdout  # stdout is then one JSON object
    with contextlib.redirect_stdout(shown_on), progress_bars(args.quiet) as bars:
        if args.data:
            cells, rows, notes, input_hash = _of_pictures(args, studies, bars)
        else:
            args.study, = args.study
            cells, rows, notes = _of_scenes(args, bars)
            input_hash = ''
    notes = [*notes, "left: behind the tower (encode) and the connector (carry), in objects' own "
             'patches: which of them is named, and its value, the lesser of both; its value at the '
             'place of the answer (address); right answers (read); each above guessing, 0 to 1',
             'nats: what the log-odds of two answers move by when the scene is exchanged for one '
             'that differs in the asked field; for other fields, and for nothing, this must be 0']
    notes += [f'{row.table}: most is lost where it should {row.setting} ({row.value:.2f})'
              if row.setting != 'nowhere' else f'{row.table}: little is lost'
              for row in rows if row.what == 'place']
    notes += [f'{row.table}, {row.family}, encode: {row.note}' for row in rows
              if row.note and (row.setting, row.what) == ('encode', 'lost')]
    runs = list(rows)
    shown = [row for row in rows if row.what in ('left', 'lost', 'nats')]
    if len({cell.size for cell in cells}) < len(cells):
        means = over_seeds(cells, rows)
        rows, shown = [*means, *rows], [*means, *shown]
    analyze_probes.leave(args, 'ledger', rows, shown, notes, ledger_lines, runs, input_hash)


def _refuse(args, studies: list[Path]) -> None:
    """Raise ValueError in one line for arguments that do not go together."""
    if args.data and not args.out:
        raise ValueError('--data needs --out, the folder of its ledger')
    for option in ('pairs', 'scenes', 'stage'):
        if args.data and vars(args)[option]:
            raise ValueError(f'--{option} is about made-up scenes; leave it out with --data')
    if args.stage:
        _check_stage(args.stage)
    if args.cell and not studies:
        raise ValueError('--cell chooses among the cells of a study; leave it out for models')
    if len(args.study) > 1 and (studies or not args.data):
        raise ValueError(f'{len(args.study)} folders are given; give one study, or with --data '
                         'folders of models')
    if not args.data and not studies and (args.study[0] / 'experiment.json').is_file():
        raise ValueError(f'{args.study[0]} is the folder of a model; give --data, pairs of your '
                         'own pictures, or the folder of its study')


def _check_stage(stage: str) -> None:
    """Raise ValueError for a stage that neither answers with the picture nor writes."""
    from downscale.stage_table import STAGES
    from downscale.values import unknown
    known = [name for name, kind in STAGES.items()
             if kind.writes or kind.answers and not kind.explains]
    if stage not in known:
        raise ValueError(f'--stage: {unknown("stage", stage, known)}')


def _cells(args, study: Path) -> 'tuple[list[Experiment], list[str]]':
    """Return (the cells of a study that are looked at, why others are left out)."""
    from downscale.probe.probe import probed_cells
    from downscale.results.study_file import read_study
    from downscale.runtime.files import place
    from downscale.values import unknown
    cells, notes = probed_cells(study, read_study(place(study)), args.stage or '')
    names = [cell.name for cell in cells]
    for name in args.cell or ():
        if name not in names:
            raise ValueError(f'--cell: {unknown("cell", name, names)}')
    cells = [cell for cell in cells if not args.cell or cell.name in args.cell]
    if not cells:
        raise ValueError(f'{study}: nothing to look at: {"; ".join(notes) or "no runs"}')
    return cells, notes


def _of_scenes(args, bars: 'Bars') -> 'tuple[list[Experiment], list[Row], list[str]]':
    """Return (cells, rows, notes) of a study and the scenes of its made-up world."""
    from downscale.probe.causal import CausalPlan, causal_ledger
    cells, notes = _cells(args, args.study)
    plan = CausalPlan(pairs=args.pairs or 96, scenes=args.scenes or 320,
                      bootstraps=args.bootstraps, seed=args.seed)
    rows = []
    for cell in cells:
        rows += causal_ledger(args.study, cell, plan,
                              lambda done, total, name=cell.name: bars(name, done, total),
                              args.stage or '')
        bars.finished(cell.name)
    return cells, rows, notes


def _of_pictures(args, studies: list[Path],
                 bars: 'Bars') -> 'tuple[list[Experiment], list[Row], list[str], str]':
    """Return (cells, rows, notes, hash of what was read) of pictures of one's own."""
    from downscale.evaluate.runs import open_runs
    from downscale.probe.causal import CausalPlan
    from downscale.probe.pair_files import hash_of_pairs, read_pairs, remarks
    from downscale.probe.pair_ledger import pair_ledger
    from downscale.probe.passes import Looker
    from downscale.stages.fingerprint import fingerprint
    from downscale.stages.folders import folder_of
    from downscale.values import hash_of
    # The file first: it is read in seconds, and models are large.
    pairs = read_pairs(args.data)
    notes = remarks(pairs)
    cells = []
    if studies:
        cells, more = _cells(args, studies[0])
        notes += more
        models = {cell.name: (studies[0], cell) for cell in cells}
        prints = []
        for cell in cells:
            assert cell.joint_stage is not None  # `probed_cells` gives no others
            prints.append(fingerprint(folder_of(studies[0], cell, cell.joint_stage)))
    else:
        opened = open_runs(args.study, '', sees=True)
        models = {model.name: (model.folder, None) for model in opened}
        prints = [model.fingerprint for model in opened]
    plan = CausalPlan(bootstraps=args.bootstraps, seed=args.seed)
    rows = []
    for name, (folder, cell) in models.items():
        more, left_out = pair_ledger(Looker(folder, cell), name, pairs, plan,
                                     lambda done, total, name=name: bars(name, done, total))
        rows += more
        notes += left_out
        bars.finished(name)
    if any(row.what == 'share of the full swap' for row in rows):
        notes.append('shares of the full swap by place stand in ledger.csv and ledger.png')
    return cells, rows, notes, hash_of([hash_of_pairs(pairs), prints])
