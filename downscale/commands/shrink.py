"""`downscale shrink`: a model folder becomes one with fewer layers, neurons, heads or bits."""
import argparse

from downscale.commands.parsing import count, local_path, new_folder

EXAMPLE = 'downscale shrink runs/smoke/cells/w64d4-s0/instruct --to models/w64d4-int8 --bits 8'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('source', type=local_path,
                     help='imported model, or STUDY/cells/CELL/STAGE')
    sub.add_argument('--to', type=new_folder, required=True, help='new model folder')
    sub.add_argument('--layers', default='', help='how many layers to keep, or which, as 0,2,5')
    sub.add_argument('--by', choices=('influence', 'position'), default='influence',
                     help='which layers a count keeps: those that change most what passes through, '
                     'or evenly spaced ones (default: influence)')
    sub.add_argument('--hidden', type=count,
                     help='hidden units of each MLP to keep, the most active ones')
    sub.add_argument('--heads', type=count,
                     help='query heads to keep, in whole groups that share a key/value head, the '
                     'most active ones')
    sub.add_argument('--bits', type=int, choices=(8, 4), default=0,
                     help='bits of a weight of the language model')
    sub.add_argument('--group', type=count, default=32,
                     help='inputs of a matrix that share a scale (default: 32)')
    sub.add_argument('--data', type=local_path,
                     help='a text a line, to measure influence and activity on (default, for a '
                     'stage of a study: its own conversations)')
    sub.add_argument('--quiet', action='store_true', help='no progress bar')


def run(args: argparse.Namespace) -> None:
    """Make a language model smaller after its training.

    Layers, hidden units and heads are cut, then matrices quantised; tower and connector are carried
    along. The new folder is one as `import` writes it, and `shrink.json` in it says what was done.
    """
    if not (args.layers or args.hidden or args.heads or args.bits):
        raise ValueError('nothing to do: give --layers, --hidden, --heads or --bits')
    from downscale.convert.shrink_model import BATCHES, shrink_model, shrinking_of
    from downscale.runtime.progress import progress_bars
    with progress_bars(args.quiet) as bars:
        done = shrink_model(
            args.source, args.to,
            lambda language: shrinking_of(language, args.layers, args.hidden, args.heads,
                                          by=args.by, bits=args.bits, group=args.group),
            args.data, lambda done: bars('batches', done, BATCHES))
    print(f'layers: {", ".join(map(str, done["layers"]))}')
    if 'tokens' in done:
        print(f'measured on {done["tokens"]:,} tokens')
    print(f'{done["parameters"]:,} parameters, {done["bytes"]:,} bytes')
    print(f'model: {args.to}')
