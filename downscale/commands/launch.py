"""`downscale launch`: the verbs and what each reads; `launch_verbs.py` holds what they do."""
import argparse

from downscale.commands.parsing import any_path, count, local_path, natural, new_folder

WATCH = 'downscale launch watch experiments/extraction_tuning.py --run gs://BUCKET/extraction'
LAUNCH_EXAMPLES = {
    'plan': 'downscale launch plan experiments/extraction_tuning.py --topology v5e:16x16 --dry-run',
    'validate': 'downscale launch validate experiments/extraction_tuning.py --backend mig '
                '--topology v6e:4x4 --capacity flex-start',
    'rehearse': 'downscale launch rehearse experiments/micro_study.py:facts32 --topology v5e:2x2 '
                '--inject evict:2,sigkill',
    'submit': 'downscale launch submit experiments/smoke.py --topology cpu:2x1 --max-parallel 1',
    'status': 'downscale launch status experiments/smoke.py --only failed,running',
    'logs': 'downscale launch logs experiments/smoke.py --cell w64d2-s0 --lines 100',
    'cancel': 'downscale launch cancel experiments/smoke.py --cell w64d2-s0',
    'resume': 'downscale launch resume experiments/smoke.py --only failed,fatal',
    'cost': WATCH.replace('watch', 'cost'),
    'watch': f'{WATCH} --max-usd 500',
    'gc': f'{WATCH.replace("watch", "gc")} --dry-run'}
SUMMARY = {
    'plan': 'write the manifest or commands of every job, and check that each cell fits',
    'validate': 'check what would be sent for every job, without a network',
    'rehearse': 'run here what the cloud would be sent, on a tiny twin of the study, disturbed',
    'submit': 'start every job that may start; what is there already is left alone',
    'status': 'show what the run folder says of every job',
    'logs': 'show the end of the newest log of every job',
    'cancel': 'stop jobs: each saves and ends, and does not start until resume',
    'resume': 'start again what failed, was cancelled or ended as fatal',
    'cost': 'show chip-hours and dollars of every cell so far (an estimate)',
    'watch': 'keep a sweep in the cloud going until nothing more can be done',
    'gc': 'delete what runs for this run folder and belongs to no job of it'}
# Verbs that may start jobs, and those that first compile whether a cell fits.
STARTING = ('submit', 'resume', 'watch')
FITTING = ('plan', 'submit', 'resume')
EXAMPLE = LAUNCH_EXAMPLES['submit']


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` everything that `commands/launch_verbs.py` reads."""
    verbs = sub.add_subparsers(dest='verb', required=True, metavar='VERB')
    for name, text in SUMMARY.items():
        verb = verbs.add_parser(name, help=text, description=f'{text[0].upper()}{text[1:]}.',
                                epilog=f'example: {LAUNCH_EXAMPLES[name]}')
        verb.add_argument('config', metavar='EXPERIMENT',
                          help='study file, FILE.py or FILE.py:ARG')
        # Text and no path: `pathlib` would make one slash of the two in gs://.
        verb.add_argument('--run', type=any_path, dest='folder', metavar='FOLDER',
                          help='run folder: local, or '
                          'gs://BUCKET/... for the cloud (default: runs/STUDY)')
        verb.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                          help='override a configuration value; may be repeated')
        verb.add_argument('--json', action='store_true', help='one JSON object, no table')
        _add_choice(verb, name)
        _add_backend(verb.add_argument_group(
            'where it runs', 'What is not given is as in the last submit or resume.'), name)


def _add_choice(sub, verb):
    """Add which jobs a verb means, and how it goes about them."""
    # Those three are for the whole sweep: a watcher of some cells would leave others alone.
    if verb not in ('validate', 'rehearse', 'watch', 'gc'):
        cells = 'only these cells, and what they need' if verb in FITTING else 'only these cells'
        sub.add_argument('--cell', nargs='+', metavar='CELL', help=cells)
        sub.add_argument('--only', nargs='+', metavar='STATE', help='only jobs in these states: '
                         'waiting, missing, running, stale, failed, cancelled, fatal, done')
    if verb in ('plan', 'cancel', 'gc', *STARTING):
        effect = 'show what would be done, and do nothing'
        if verb == 'plan':
            effect = 'read no run folder: no network is needed'
        sub.add_argument('--dry-run', action='store_true', help=effect)
    if verb in FITTING:
        sub.add_argument('--no-fit', action='store_true',
                         help='do not compile for TPUs whether each cell fits')
    if verb == 'rehearse':
        sub.add_argument('--inject', metavar='NAME:N,...', help='what goes wrong, and how often: '
                         'evict, sigkill, quota (gke: of its --queue), restart; all jobs then run '
                         'twice, first undisturbed, and their results must be the same')
        sub.add_argument('--manifests', type=local_path, metavar='FOLDER', help='rehearse '
                         'the manifests or commands that plan wrote there, as they are now')
        sub.add_argument('--out', type=new_folder, metavar='FOLDER',
                         help='folder of manifests, logs and rehearsal.json (default: '
                         'runs/STUDY/rehearsal)')
    if verb in (*FITTING, 'rehearse', 'watch'):
        sub.add_argument('--quiet', action='store_true', help='no progress bars')
    if verb in ('submit', 'resume'):
        sub.add_argument('--allow-dirty', action='store_true',
                         help='launch although files differ from the commit')
    if verb == 'plan':
        sub.add_argument('--out', type=new_folder, metavar='FOLDER',
                         help='folder of the manifests or commands and '
                         'of plan.json (default: runs/STUDY/launch-plan)')
    if verb == 'logs':
        sub.add_argument('--process', type=natural, default=0, metavar='N',
                         help='process of the job (default 0)')
        sub.add_argument('--lines', type=count, default=40, metavar='N',
                         help='lines of each log (default 40)')


def _add_backend(group, verb):
    """Add the fields of `settings.LaunchSettings`."""
    group.add_argument('--backend', choices=('gke', 'mig', 'tpuvm', 'local'), help='default: gke '
                       'for a TPU topology, else local; mig: groups of machines on Compute Engine; '
                       'tpuvm: queued resources (legacy, for the quota that you have)')
    group.add_argument('--topology', metavar='NAME', help='v5e:4x4 or, for two slices, '
                       '2xv5e:16x16; on this machine cpu:PxD, P processes of D devices '
                       '(default cpu:1x1), or 2xcpu:PxD')
    group.add_argument('--image', help='container image by its digest, NAME@sha256:...')
    group.add_argument('--capacity', choices=('spot', 'on-demand', 'flex-start', 'reserved'),
                       help='what kind of machines (default spot); those of flex-start (gke, mig) '
                       'are waited for, and run for at most seven days')
    group.add_argument('--max-run-duration', metavar='TIME', help='mig: with --capacity '
                       'flex-start, how long machines run, as 12h (default 7d, the most)')
    group.add_argument('--service-account', metavar='NAME', help='who the machines are')
    if verb in (*STARTING, 'plan', 'validate', 'rehearse'):
        group.add_argument('--max-parallel', type=int, metavar='N', help='jobs at once (default: '
                           '4 in the cloud, and as many as this machine has cores for)')
        group.add_argument('--max-chips', type=int, metavar='N', help='chips held at once')
        group.add_argument('--max-usd', type=float, metavar='X', help='when an estimated X dollars '
                           'are spent, what runs is stopped and nothing more is started')
    group.add_argument('--mount', dest='mounts', action='append', metavar='NAME=PLACE',
                       help="the study's data or models in a bucket, as data=gs://BUCKET/PREFIX, "
                       'or on this machine in another folder; may be repeated')
    group.add_argument('--zone', dest='zones', nargs='+', metavar='ZONE',
                       help='mig, tpuvm: zones to try, in turn')
    group.add_argument('--valid-for', metavar='TIME',
                       help='mig, tpuvm: how long to wait for machines, as 6h')
    # None, not False: what is not given is as in the last submit.
    group.add_argument('--internal-ips', action='store_true', default=None,
                       help='mig, tpuvm: no external addresses')
    group.add_argument('--namespace', help='gke: default "default"')
    group.add_argument('--queue', metavar='NAME', help='gke: LocalQueue of Kueue')
    group.add_argument('--priority', metavar='NAME', help='gke: WorkloadPriorityClass of Kueue')
    group.add_argument('--reservation', metavar='NAME', help='gke, mig: with --capacity reserved')
    group.add_argument('--context', metavar='NAME', help='gke: context of kubectl')


def run(args: argparse.Namespace) -> int:
    """Submit, watch, stop and continue jobs of a study.

    They run on Cloud TPU or on this machine.
    """
    from downscale.commands.launch_verbs import VERBS
    return VERBS[args.verb](args)
