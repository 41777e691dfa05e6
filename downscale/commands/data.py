"""The verbs of `downscale data`: world of a study, mixtures of published sets, extraction data."""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from downscale.commands import data_extract
from downscale.commands.machine import cores
from downscale.commands.parsing import (
    any_path,
    count,
    local_path,
    natural,
    new_file,
    new_folder,
    share,
)
from downscale.output.text import linked

# A line for each verb that works as it stands, shown under its help.
DATA_EXAMPLES = {
    'world': 'downscale data world experiments/smoke.py --out runs/smoke --show 4',
    'build': 'downscale data build experiments/mixtures/align_blip558k.py --root data --to '
             'data/built/align --tokenizer models/qwen3-0.6b/tokenizer.json',
    'show': 'downscale data show data/built/align',
    'extract': data_extract.EXAMPLE,
}
EXAMPLE = DATA_EXAMPLES['world']


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` a verb and what that verb reads."""
    verbs = sub.add_subparsers(dest='verb', required=True, metavar='VERB')
    for name, run in VERBS.items():
        # The docstring of a verb is its help: one text cannot contradict the other.
        about = run.__doc__ or ''
        verb = verbs.add_parser(name, help=about.splitlines()[0], description=about,
                                epilog=f'example: {DATA_EXAMPLES[name]}')
        ADD[name](verb)


def _add_world(sub):
    sub.add_argument('config', help='study file, FILE.py or FILE.py:ARG')
    sub.add_argument('--out', type=new_folder, help='folder of the study (default: runs/NAME)')
    sub.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                     help='override a configuration value; may be repeated')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')
    sub.add_argument('--show', type=natural, default=2, help='examples to print')
    sub.add_argument('--page', type=new_file, metavar='FILE', help='an HTML page of the examples '
                     'that --show prints, with their pictures')
    sub.add_argument('--padding', action='store_true', help='count what the batches of each stage '
                     'waste, and propose buckets that waste less')


def _add_build(sub):
    sub.add_argument('mixture', help='mixture file, FILE.py or FILE.py:ARG')
    sub.add_argument('--to', type=new_folder, required=True, metavar='DIR',
                     help='folder of the result')
    sub.add_argument('--root', type=local_path, default=Path('data'), metavar='DIR',
                     help='folder below which all sources lie (default: data)')
    sub.add_argument('--tokenizer', type=local_path, metavar='FILE',
                     help='tokenizer.json that counts '
                     'tokens; training with the same need not count again')
    sub.add_argument('--length', type=count, metavar='N', help='reject records of more tokens '
                     '(default 32768; needs --tokenizer)')
    sub.add_argument('--most-rejected', type=share, metavar='X', help='share of the rows of a '
                     'source that may be rejected (default 0.01)')
    sub.add_argument('--jobs', type=count, help='processes (default: one a core)')
    sub.add_argument('--quiet', action='store_true', help='no progress bars')


def _add_show(sub):
    sub.add_argument('folder', type=any_path, help='folder of `downscale data build`, of this '
                     'machine or of a bucket (gs://BUCKET/...)')
    sub.add_argument('--page', type=new_file, metavar='FILE', help='where the page goes (default: '
                     'show.html in the folder; of gs://.../NAME here, NAME/show.html)')
    sub.add_argument('--samples', type=count, default=24, metavar='N',
                     help='samples on the page (default 24)')


def world(args: argparse.Namespace) -> None:
    """Build the scene world of a study, and show some of it."""
    from downscale.experiment.file import open_study
    # Cells share the data set of the first, but for levels of a study that varies its world.
    _, experiments, folder = open_study(args)
    from downscale.runtime.progress import progress_bars
    from downscale.stages import training
    from downscale.stages.inputs import library, prepare
    with progress_bars(args.quiet) as bars:
        built = prepare(folder, experiments[0],
                        lambda done, total: bars('scenes', done, total), experiments)
    print(f'data: {built}')
    if args.padding:
        # The last cell, for the first may be the tower alone, whose rows are not packed.
        print(*training.padding_lines(folder, experiments[-1]), sep='\n')
    # Nothing to show: a study of published sets, or one that asks about no scene.
    if built is None or not experiments[0].data.test:
        if args.page:
            raise ValueError('--page: this study has no scenes to ask about; leave it out')
        return
    test = library(str(folder), 'test')
    examples = [test.example(index) for index in range(min(args.show, len(test)))]
    if args.page:
        from downscale.view.scene_page import write_page
        write_page(args.page, built.parent.name, examples)
        print(f'page: {linked(args.page)}')
    for example in examples:
        print(f'\n{example.scene_id}: {example.caption}')
        for question in example.questions:
            print(f'  {question.text}? {question.answer}  [{question.family}, '
                  f'guess {question.chance:.2f}]')


def build(args: argparse.Namespace) -> None:
    """Bring the sources of a mixture into one folder of records with a manifest.

    What cannot be used is rejected with a reason and counted. The same command continues after an
    interruption.
    """
    from downscale.data.corpora.build import build as build_mixture
    from downscale.data.corpora.build_settings import Settings
    from downscale.data.corpora.page import lines
    from downscale.experiment.file import load_mixture
    from downscale.runtime.progress import progress_bars
    # What is not given is left to the defaults of `Settings`, which stand there once.
    given = {name: value for name in ('tokenizer', 'length', 'most_rejected')
             if (value := vars(args)[name]) is not None}
    if args.length and not args.tokenizer:
        raise ValueError('--length counts tokens; give --tokenizer tokenizer.json with it')
    with progress_bars(args.quiet) as bars:
        manifest = build_mixture(
            load_mixture(args.mixture),
            args.to,
            Settings(root=args.root, **given),
            args.jobs or cores(),
            bars,
        )
    print(*lines(manifest), sep='\n')
    print(f'manifest: {args.to / "manifest.json"}')


def show(args: argparse.Namespace) -> None:
    """Print the manifest of a built mixture, and write a page of samples."""
    from downscale.data.corpora.mixture import Corpus
    from downscale.data.corpora.page import lines, write_page
    from downscale.runtime import copies
    folder = copies.local_copy(args.folder, copies.matching('manifest.json'))
    print(*lines(Corpus(folder).manifest), sep='\n')
    path = args.page or copies.results_beside(args.folder) / 'show.html'
    write_page(folder, path, args.samples)
    print(f'page: {linked(path)}')


def extract(args: argparse.Namespace) -> None:
    """Make data for visual extraction tuning from questions with answers about pictures.

    Teachers write statements, what to look at and descriptions; rules, and a judge if one is named,
    check them. The same command continues after an interruption.
    """
    data_extract.run(args)


VERBS = {'world': world, 'build': build, 'show': show, 'extract': extract}
ADD = {'world': _add_world, 'build': _add_build, 'show': _add_show,
       'extract': data_extract.add_arguments}


def run(args: argparse.Namespace) -> int | None:
    """Make scenes, mixtures of sets or extraction data."""
    return VERBS[args.verb](args)


def with_verb(argv: Sequence[str] | None) -> list[str]:
    """Return `argv` with the verb 'world' where a study file follows `data` directly."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Short for `data world STUDY.py`: no verb ends in .py.
    if argv[:1] == ['data'] and len(argv) > 1 and argv[1].partition(':')[0].endswith('.py'):
        argv.insert(1, 'world')
    return argv
