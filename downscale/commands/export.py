"""`downscale export`: a run becomes a folder of a published form."""
import argparse

from downscale.commands.parsing import local_path, new_folder

EXAMPLE = 'downscale export models/qwen3-0.6b --to Qwen3-0.6B-copy --format qwen3'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('run_folder', metavar='run', type=local_path,
                     help='imported model, or STUDY/cells/CELL/STAGE')
    sub.add_argument('--to', type=new_folder, required=True, help='new Hugging Face folder')
    # No default: an export that fits several formats must not be a guess.
    sub.add_argument('--format', required=True, choices=(
        'qwen3', 'qwen2', 'llama', 'llava_qwen_3', 'llava_onevision'))


def run(args: argparse.Namespace) -> None:
    """Write a checkpoint as a Hugging Face folder.

    It is the newest one of the run.
    """
    from downscale.convert.exchange import export_model
    export_model(args.run_folder, args.to, args.format)
    print(f'exported: {args.to}')
