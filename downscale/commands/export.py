"""`downscale export`: a run becomes a folder of a published form, or its items a data set."""
import argparse

from downscale.commands.parsing import local_path, new_folder

EXAMPLE = 'downscale export models/qwen3-0.6b --to Qwen3-0.6B-copy --format qwen3'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('run_folder', metavar='run', type=local_path,
                     help='imported model, or STUDY/cells/CELL/STAGE; with --items the folder of a '
                     'study, or of `downscale extract-think`')
    sub.add_argument('--to', type=new_folder, required=True, help='new Hugging Face folder')
    form = sub.add_mutually_exclusive_group(required=True)
    # No default: an export that fits several formats must not be a guess.
    form.add_argument('--format', choices=(
        'qwen3', 'qwen2', 'llama', 'llava_qwen_3', 'llava_onevision'))
    form.add_argument('--items', choices=('parquet',), help='items with pictures and all answers, '
                      'as a data set of Hugging Face')


def run(args: argparse.Namespace) -> None:
    """Write a Hugging Face folder, or items as Parquet.

    A checkpoint is the newest one of the run.
    """
    if args.items:
        from downscale.view.parquet import export_items
        from downscale.view.runs import open_run
        print(f'exported: {export_items(open_run(args.run_folder), args.to)}')
        return
    from downscale.convert.exchange import export_model
    export_model(args.run_folder, args.to, args.format)
    print(f'exported: {args.to}')
