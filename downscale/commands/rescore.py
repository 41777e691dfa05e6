"""`downscale rescore`: stored replies judged again, and what is printed of them."""
import argparse
import json

from downscale.commands.parsing import any_path

EXAMPLE = 'downscale rescore runs/chain/answer-r-from-p-think.jsonl'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('file', type=any_path,
                     help='on this machine or in a bucket (gs://BUCKET/...): list of {"text", '
                     '"gold"}, or a samples file of downscale, lm-eval or '
                     'lmms-eval; as .json, .jsonl, .ndjson, .csv or .tsv. gold is a text, a list '
                     'of accepted texts (of ten: the votes of ten people) or a box of four '
                     'numbers. A row of a list may have "choices" ({letter: text}; without them '
                     'those of the published comparison of scorers: A one cat, B two dogs, C three '
                     'birds, D no animals), "share" (of people who took B), "cluster", "family", '
                     '"filter", and "width" and "height" of the picture of a box. Each filter of a '
                     'samples file is scored by itself, several replies to a question (repeats) '
                     'count as one with their mean score, and a record that stands again counts '
                     'once. The text of a list is scored as it stands; of a samples file a scorer '
                     'gets what its harness leaves of it')
    sub.add_argument('--json', action='store_true', help='one JSON list, a row each with every '
                     "scorer's own value")
    sub.add_argument('--scorers', nargs='+', metavar='NAME', help='only these (default: all that '
                     'can judge a row)')


def rescore_lines(args: argparse.Namespace) -> list[str]:
    """Return the lines that `downscale rescore` prints."""
    from downscale.evaluate.scoring import rescore, table
    from downscale.evaluate.scoring.stored_replies import read_rows
    from downscale.runtime.copies import local_copy
    rows, notes = read_rows(local_copy(args.file))
    # An empty list as JSON is a valid answer, unless something was left out to make it empty.
    if not rows and (notes or not args.json):
        raise ValueError(f'{args.file} holds no row with a right answer')
    judged = rescore.judged(rows, args.scorers)
    # A scorer that was asked for and judges nothing must say why, or its column is just missing.
    used = set().union(*judged)
    for name in args.scorers or ():
        if name not in used:
            notes.append(f'{name} judges no row: {table.unfit(name, rows[0].target)}')
    if args.json:
        return [json.dumps(rescore.as_json(rows, judged))]
    lines = []
    # Each filter of a harness is a reading of its own of the same replies.
    filters = dict.fromkeys(row.filter for row in rows)
    for name in filters:
        places = [k for k, row in enumerate(rows) if row.filter == name]
        rows_of_filter = [rows[k] for k in places]
        judged_of_filter = [judged[k] for k in places]
        if len(filters) > 1:
            lines.append(f'filter {name or "(none)"}:')
        lines += rescore.table(rescore.summary(rows_of_filter, judged_of_filter), rows_of_filter,
                               judged_of_filter)
    return [*lines, *notes]


def run(args: argparse.Namespace) -> None:
    """Judge stored replies again, by every named scorer.

    Nothing is generated.
    """
    print(*rescore_lines(args), sep='\n')
