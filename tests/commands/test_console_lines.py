"""Every line that a document, study file or help text tells a user to type runs as it stands.

Each goes through the console's `main`, verbatim but for `SUBSTITUTIONS` and `APPENDED`, in a folder
that holds what the lines speak of as tiny files. What cannot run in a test stands in `NOT_RUN` with
the reason, and goes as far as its arguments, its study file and what is checked before work.
"""
import configparser
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pair_file
import probed_study
import published
import pyarrow as pa
import pytest
import small
import small_bpe
from bucket_proxy import upload
from compiling import xla_flags
from console_lines import ENVIRONMENT, ROOT, WALKS, documents, every_line, of_markdown, spans
from easy_vqa_package import write_package
from law_points import LOSS, X, planted
from openai_stub import OpenAiStub
from pyarrow import csv

from downscale.analysis import claims, synth
from downscale.commands import main
from downscale.config import Experiment
from downscale.convert import exchange
from downscale.factory import oracle
from downscale.generate import selfcheck
from downscale.model.init import init_params
from downscale.planner import pool
from downscale.runtime import processes, setup
from downscale.schedule import Schedule
from downscale.sizes import LANGUAGE, VisionConfig, scale
from downscale.stages.models import model_of
from downscale.study import workers

LINES = every_line()
# One cell, seconds a stage, with the stages and the texts that the lines speak of.
STUDY = '''
from ml_collections import ConfigDict

rates = dict(language=3e-3, connector=3e-3, tower=3e-3)
text = dict(steps=2, batch=4, length=176, tiles=0, rates=rates)
see = dict(steps=2, batch=4, length=128, tiles=3, rates=rates)
tower = dict(steps=2, batch=4, length=48, tiles=1, rates=rates)

def get_config(arg=''):
    return ConfigDict(dict(
        study='NAME', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6),
        evaluation=dict(scenes=2, batch=16, answer=4, write=8, think=8, pictures=2,
                        conditions=['image', 'blind'], texts=['extraction'], thinking=[False]),
        stages=dict(STAGES)))

def sweep(arg=''):
    return [dict(size='w32d1', seed=seed) for seed in SEEDS]
'''
SMOKE = STUDY.replace('NAME', 'smoke').replace('SEEDS', '[0]').replace(
    'STAGES', 'tower=tower, text=text, align=see, instruct=see, caption=see, extract=see, '
    'reason=text').replace("texts=['extraction']", "texts=['caption', 'extraction']")
TOGETHER = STUDY.replace('NAME', 'together').replace('SEEDS', '[0, 1]').replace(
    'STAGES', 'text=text')
IMAGE = f'europe-docker.pkg.dev/p/d/d@sha256:{"a" * 64}'
SUBSTITUTIONS = (  # in this order
    ('FILE.py', 'experiments/together.py'), ('--layers 14', '--layers 2'),
    ('--layers 20 --hidden 2048', '--layers 0,1 --hidden 48'),
    ('stages.text.steps=800', 'stages.text.steps=2'),
    ('stages.text.steps=50', 'stages.text.steps=2'),
    ('w64d4-s0/', 'w32d1-s0/'), ('w64d2-s0/extract', 'w32d1-s0/caption'),
    ('w64d2-s0', 'w32d1-s0'),
    # Effects and several sizes are planted: trained ones would take hours.
    *((f'analyze {verb} runs/smoke', f'analyze {verb} runs/planted')
      for verb in ('drop', 'grid', 'attribute', 'compare', 'pareto')),
    ('--sizes w32d1 w64d4', '--sizes w32d2 w256d8'),
    ('runs/chain/answer-r-from-p-think', 'runs/chain/answer-w32d1-s0-reason-from-w32d1-s0-extract-'
     'think'), ('report runs/extraction', 'report runs/planted'),
    ('analyze isoflop runs.csv', 'analyze isoflop budgets.csv'),
    ('instruct_multi459k.py', 'instruct_multi459k.py:16'),
    ('http://localhost:8000/v1', 'SERVER'), ('gs://BUCKET', 'gs://runs'),
    ('IMAGE@sha256:...', IMAGE))
# Sizes, and what keeps a line from starting what would not end here.
SHORT = '--describe-tokens 8 --think-tokens 8 --answer-tokens 4 --slots 4'
APPENDED = (
    (r'extract-think|benchmark', SHORT),
    (r'extract-think --perception runs/\S+ --r', '--out runs/one'),
    (r'launch (submit experiments/smoke(?!.* gs:)|watch)', '--dry-run'),
    # 16 rows a chip do not fit on so small a slice, as the real compiler says as well.
    (r'launch (plan|submit).* (v5e|v6e):4x4', '--no-fit'))
HOURS = 'takes hours, or wants published data; test_real_studies.py runs `:dry` of the real ones'
NOT_RUN = {  # pattern: (what is left out, reason)
    r'study experiments/(?!smoke)': ('downscale.study.workers.run', HOURS),
    r'downscale view (?!.*--bundle)': ('downscale.view.server.Explorer',
                                       'serves until it is stopped; see test_view.py'),
    r'analyze probe': ('downscale.probe.probe.probe_study', 'a minute; see test_probe.py'),
    r'launch rehearse': ('downscale.commands.launch_rehearse._run',
                         'minutes; see launch/rehearsal/test_rehearse.py'),
    r'analyze losses': ('downscale.commands.analyze_probes.show_losses', 'see test_probe.py'),
    r'analyze ledger runs/': ('downscale.probe.causal.causal_ledger', 'see test_causal.py')}
REFUSED = {  # pattern: the one line that is right where nothing has been launched
    r'launch logs': 'no such job has begun', r'launch resume': 'no job is meant',
    r'launch submit .* --mount': 'copy the built mixture there'}
TPU_COMPILER = find_spec('libtpu') is not None
ELSEWHERE = ('gcloud', 'docker', 'kubectl')  # lines for a cloud that no test has


# --- the folder that the lines are typed in ---------------------------------------------------

def model(folder, groups, vision=None, chat='qwen3', seed=0):
    """`folder` holds a tiny model of random values with these groups, and a tokenizer."""
    language = scale(LANGUAGE['micro']['w64d2'], 32, 2, 384)
    cell = Experiment(
        name=folder.name, size='micro', seed=0, language=language, vision=vision, chat=chat
    )
    probed_study.save(folder, init_params(model_of(cell), seed, groups), cell)
    words = (*small_bpe.TEXT, *['wait but wait'] * 9)  # something to ban
    small_bpe.tokenizer(text=words).save(str(folder / 'tokenizer.json'))
    return folder


def tables():
    """The tables that laws are fitted to."""
    runs = {'n_nonembed': X[:, 0], 'tokens': X[:, 1], 'loss': LOSS,
            'run_id': [f'r{place}' for place in range(len(X))]}
    csv.write_csv(pa.table(runs), 'runs.csv')
    x, y, budget = planted()
    names = [f'{value:.0e}'.replace('+', '') for value in budget]
    csv.write_csv(pa.table({'n_nonembed': x, 'loss': y, 'budget': names}), 'budgets.csv')


def write_pair(folder, row):
    """A file of one matched pair as a document shows it, and its pictures."""
    for side, colour in (('before', (220, 40, 40)), ('after', (40, 200, 40))):
        pair_file.picture(folder / row[side], (120, 90), row['box'], colour)
    pair_file.write_rows(folder, [row])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The current folder, with all that the lines name; `make smoke` has run in it."""
    root = tmp_path_factory.mktemp('console')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(workers, 'use_cache', lambda folder: None)  # in this process
        for name in ('JAX_PLATFORMS', *pool.ENVIRONMENT):       # a command may set them
            patch.setenv(name, os.environ.get(name, ''))
        shutil.copytree(ROOT / 'experiments', root / 'experiments')
        (root / 'tests').symlink_to(ROOT / 'tests')
        (root / 'experiments' / 'smoke.py').write_text(SMOKE)
        (root / 'experiments' / 'together.py').write_text(TOGETHER)
        subprocess.run('git init -q && git add experiments && git -c user.name=a -c user.email=a '
                       'commit -qm a', shell=True, check=True)
        (root / '.git/info/exclude').write_text('*\n')
        tables()
        synth(0, root / 'runs/planted', sizes=2, seeds=1, items=64)
        published.everything(root / 'data')
        published.mmstar(root / 'data')
        for name in ('mmstar.parquet', 'information.json'):
            shutil.copy(root / 'data/mmstar' / name, root / name)
        exchange.export_model(model(root / 'made', ('language',)), root / 'Qwen3-0.6B', 'qwen3')
        model(root / 'models/qwen3-1.7b', ('language',), seed=1)
        vision = VisionConfig(layers=1, W=32, H=2, F=64, patch=20, image=40)
        model(root / 'models/vlm', ('language', 'tower', 'connector', 'image_newline_D'), vision,
              'chatml')
        questions, pictures = oracle.lay_out(small.data(), 'train', root / 'laid', 3)
        shutil.copy(questions, root / 'train.json')
        shutil.copytree(pictures, root / 'pictures')
        (root / 'a.png').write_bytes(published.picture(0))
        model(root / 'models/smollm2-135m-d8', ('language',))
        write_package(root / 'packages')
        written = [sys.executable, 'experiments/smollm_easyvqa.py', 'packages']
        subprocess.run(written, check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
        rows = {line.place: line.text for line in LINES if line.kind == 'json'}
        (root / 'q.jsonl').write_text(rows.pop('docs/tutorials/extract_think.md') + '\n')
        write_pair(root, json.loads(rows.pop('docs/tutorials/analysis.md')))
        assert not rows
        (root / 'texts.txt').write_text('what is there\n')
        with patch.context() as one_device:  # so that compiling is short
            one_device.setenv('XLA_FLAGS', xla_flags())
            assert main.main(shlex.split(made_by('smoke'))[1:]) == 0
        shutil.copytree(root / 'runs/smoke', root / 'runs/mine')
        yield root


def made_by(target):
    """The line of the Makefile that a target runs."""
    text = (ROOT / 'Makefile').read_text()
    return re.search(rf'^{target}:.*\n\t\$\(BIN\)/(.*)', text, re.M)[1]


@pytest.fixture
def server(folder):
    """The address of a server that knows the pictures of train.json."""
    gold = json.loads((folder / 'laid/gold.json').read_text())
    stub = OpenAiStub(gold, {})
    yield stub.url
    stub.shutdown()


# --- the lines --------------------------------------------------------------------------------

def unique(kind):
    """The lines of one kind, each text once, named by the first place where it stands."""
    first = {line.text: line for line in reversed(LINES) if line.kind == kind}
    return [line for line in LINES if first.get(line.text) is line]


def typed(text, server):
    """The words of a line after `downscale`, with tiny files and short texts in place of its own.
    """
    for old, new in (*SUBSTITUTIONS, ('SERVER', server)):
        text = text.replace(old, new)
    words = shlex.split(text)[1:]
    for pattern, more in APPENDED:
        if re.match(pattern, ' '.join(words)):
            words += shlex.split(more)
    return words


@pytest.fixture
def cloud(request, monkeypatch, tmp_path):
    """Call with a line: what it asks of a cloud is answered by fakes on this machine."""
    def fake(text):
        monkeypatch.setattr(pool, 'WORKER', 'tests.helpers.fake_compiler')
        monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1')
        monkeypatch.setenv('COMPILED', str(tmp_path / 'compiled'))
        if 'gs://' in text:
            for program in ('kubectl', 'gcloud'):
                if not shutil.which(program):
                    pytest.skip(f'NOT TESTED: {program} is missing')
            # All of them: a line without --backend means the last one that was submitted to.
            for name in ('bucket', 'cluster', 'compute', 'api'):
                request.getfixturevalue(name)
    return fake


def compiles(words):
    """Whether a line asks whether programs fit on TPUs."""
    asks = words[0] == 'plan' or words[:2] in (['launch', 'plan'], ['launch', 'submit'])
    return asks and '--no-fit' not in words and '--topology cpu:' not in ' '.join(words)


def run(words, capfd):
    """(exit code, stdout, stderr) of the console."""
    capfd.readouterr()
    try:
        code = main.main(words)
    except SystemExit as error:
        code = error.code
    return code, *capfd.readouterr()


@pytest.mark.parametrize('line', unique('downscale'), ids=str)
def test_a_line_of_the_console_runs(line, folder, server, cloud, capfd, monkeypatch, request):
    text = line.text
    if match := ENVIRONMENT.match(text):
        names = [word.partition('=')[0] for word in match.group().split()]
        rest = shlex.split(text[match.end():])
        if names == list(processes.VARIABLES):  # several machines: test_processes.py starts them
            assert rest == ['downscale', 'train', '...']
        else:  # on a GPU
            assert set(names) <= {'JAX_PLATFORMS', setup.DETERMINISTIC}
            more = ['FILE.py'] if rest[-1] == '...' else rest[2:]
            assert main.parser().parse_args([rest[1], *more])
        return
    words = typed(text, server)
    if compiles(words) and not TPU_COMPILER:
        pytest.skip("no TPU compiler: pip install '.[tpu]'")
    if words[:2] == ['launch', 'watch'] and not run_of(words) & SUBMITTED:
        pytest.skip('NOT TESTED: the submit of this run was left out')
    if words[0] in ('launch', 'plan'):
        cloud(text)
    elif 'gs://' in text:
        request.getfixturevalue('bucket')
        upload(os.environ['STORAGE_EMULATOR_HOST'], Path('runs/planted'),
               re.search(r'gs://BUCKET/(\w+)', text)[1])
    if words[0] == 'study':
        monkeypatch.setenv('XLA_FLAGS', xla_flags())  # one device
    wanted = [message for pattern, message in REFUSED.items() if re.search(pattern, text)]
    for pattern, (target, _) in NOT_RUN.items():
        if re.search(pattern, text):
            monkeypatch.setattr(target, not_run)
            wanted.append('all was checked')
    code, out, err = run(words, capfd)
    assert code == bool(wanted) and 'Traceback' not in err, f'{line}\n{out}\n{err}'
    assert all(message in err for message in wanted)
    if words[:2] == ['launch', 'submit']:
        SUBMITTED.update(run_of(words))


SUBMITTED = set()  # run folders, which a later line watches


def run_of(words):
    """The run folder that a line names."""
    return {folder for name, folder in itertools.pairwise(words) if name == '--run'}


def not_run(*args, **more):
    """In place of the work of a line in `NOT_RUN`."""
    raise RuntimeError('all was checked')


@pytest.mark.parametrize('line', list(of_markdown(WALKS)), ids=str)
def test_a_line_that_begins_a_walk_parses(line):
    assert line.kind == 'downscale' and main.parser().parse_args(shlex.split(line.text)[1:])


@pytest.mark.parametrize('line', unique('python'), ids=str)
def test_a_program_beside_the_console_takes_these_arguments(line, capsys):
    words = shlex.split(line.text)[1:]
    if words[:2] == ['-m', 'downscale.generate.selfcheck']:  # see test_selfcheck.py
        assert selfcheck.parser().parse_args(words[2:]).prompts == 40
        return
    assert (ROOT / words[0]).is_file()
    done = subprocess.run([sys.executable, words[0], '--help'], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    own, _, passed_on = line.text.partition(' -- ')
    options = re.findall(r' (--[a-z-]+)', own)
    assert all(option in done.stdout for option in options)
    if passed_on:
        main.parser().parse_args(['extract-think', *shlex.split(passed_on), '--out', 'out'])


@pytest.mark.parametrize('line', unique('pip'), ids=str)
def test_an_extra_that_is_to_be_installed_exists(line):
    names = re.search(r"^pip install -e '\.\[([\w,]+)\]'", line.text)[1].split(',')
    file = configparser.ConfigParser()
    file.read(ROOT / 'setup.cfg')
    assert set(names) <= set(file['options.extras_require'])
    more = line.text.partition(' && ')[2]
    assert not more or (ROOT / more.split()[1]).is_file()


@pytest.mark.parametrize('line', unique('make'), ids=str)
def test_a_target_of_make_exists(line):
    assert re.search(rf'^{line.text.split()[1]}:', (ROOT / 'Makefile').read_text(), re.M)


def test_every_line_is_of_a_kind_that_is_tested():
    kinds = {'downscale', 'python', 'pip', 'make', 'json', 'code', *ELSEWHERE}
    assert not [str(line) for line in LINES if line.kind not in kinds]
    places = {line.place for line in LINES if line.kind in ELSEWHERE}
    assert places == {'docs/tutorials/cloud_tpu.md'}
    for files in re.findall(r' (launch/[\w./]+)', '\n'.join(line.text for line in LINES)):
        assert (ROOT / files).exists()


# What the Python of a page has made when it has run, by page.
MADE = {
    'README.md': lambda made: made['logits'].shape[:2] == made['ids'].shape and np.isfinite(
        made['logits']).all(),
    'docs/concepts/axes.md': lambda made: len(made['sweep']()) == 6 + 12 + 12 and Schedule(
        steps=1000, decay=made['instruct']['decay']).constant_until == 800,
    'docs/concepts/batch.md': lambda made: made['replies'][0].finish in ('stop', 'length'),
    'docs/concepts/distillation.md': lambda made: len(made['sweep']()) == 4 + 2,
    'docs/tutorials/analysis.md': lambda made: made['made'].truth and Path(
        'runs/synthetic/study.json').is_file(),
    'docs/tutorials/load_and_analyse.md': lambda made: falls(made['table']['macro']['sizes']),
    'docs/tutorials/shrink.md': lambda made: len(made['sweep']) == 4,
    'docs/tutorials/own_study.md': lambda made: len(made['sweep']()) == 16 and [
        claim.id for claim in claims.read(made['claims'])] == ['a', 'c']}


def falls(sizes):
    """Whether the smallest of some sizes is below the largest, beyond both intervals."""
    smallest, *_, largest = sizes.values()
    return smallest.high < largest.low


@pytest.mark.parametrize('name', sorted({line.place for line in LINES if line.kind == 'code'}))
def test_the_python_of_a_page_runs(name, folder, capsys):
    values = {}
    for line in LINES:
        if line.kind == 'code' and line.place == name:
            text = line.text
            for old, new in SUBSTITUTIONS:
                text = text.replace(old, new)
            exec(compile(text, name, 'exec'), values)
    assert MADE[name](values)


@pytest.mark.parametrize('name', list(filter(spans, documents())))
def test_commands_in_the_running_text_exist(name):
    for span in spans(name):
        words = [word for word in span.split()[1:] if re.fullmatch('[a-z-]+', word)]
        parser = main.parser()
        while words and parser.verbs():
            assert words[0] in parser.verbs().choices, span
            parser = parser.verbs().choices[words.pop(0)]
