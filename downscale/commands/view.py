"""`downscale view`: the items of runs one by one, in the browser or as a static folder."""
import argparse

from downscale.commands.parsing import any_path, natural, new_folder

EXAMPLE = 'downscale view runs/smoke'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('runs', nargs='+', metavar='RUN', type=any_path,
                     help='folder of a study, or of `downscale extract-think`, of this machine or '
                     'of a bucket (gs://BUCKET/...); several are shown side by side, item by item')
    sub.add_argument('--query', default='', metavar='QUERY',
                     help="what to show, as behind the '?' of an address: "
                     '"family=position&sort=loss"; with --bundle, which items to write')
    sub.add_argument('--port', type=natural, default=0, help='port (default: a free one)')
    sub.add_argument('--bundle', type=new_folder, metavar='DIR',
                     help='write a static folder instead, which opens without a server')


def run(args: argparse.Namespace) -> None:
    """Look at items one by one, in a browser."""
    from downscale.view.board import Board
    from downscale.view.bundle import write_bundle
    from downscale.view.columns import views_of
    from downscale.view.query import read_query
    from downscale.view.runs import open_runs
    from downscale.view.server import Explorer
    board = Board(open_runs(args.runs))
    views = views_of(board.runs)
    if not views:
        raise ValueError(f'{args.runs[0]} holds no answers to look at yet')
    asked = read_query(args.query, views, board.coded('task')[1])
    if args.bundle:
        print(f'items: {write_bundle(board, asked, args.bundle)}')
        return
    with Explorer(board, args.port) as server:
        print(f'items: {server.address}{asked.address()}  (Ctrl-C ends it)', flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
