"""`downscale import`: a published checkpoint becomes a run folder."""
import argparse

from downscale.commands.parsing import local_path, new_folder

EXAMPLE = 'downscale import Qwen3-0.6B --to models/qwen3-0.6b'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('source', type=local_path, help='Hugging Face folder, or a .gguf file')
    sub.add_argument('--to', type=new_folder, required=True, help='new run folder')
    sub.add_argument('--layers', default='', help='keep a part of the language model\'s layers: '
                     'how many, evenly spaced from the first to the last, or which, as 0,2,5')
    sub.add_argument('--quiet', action='store_true', help='no progress bar')


def run(args: argparse.Namespace) -> None:
    """Bring a Hugging Face folder or GGUF file in."""
    from downscale.convert.exchange import import_model
    from downscale.runtime.progress import progress_bars
    with progress_bars(args.quiet) as bars:
        notes = import_model(args.source, args.to, lambda done, total: bars(
            'MB', done // 10**6, total // 10**6), args.layers)
    for note in notes:
        print(f'note: {note}')
    print(f'model: {args.to}')
