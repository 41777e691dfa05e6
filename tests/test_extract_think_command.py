"""`downscale extract-think` as it is called: its output, its files, and the real engine below."""
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_chain import LIMIT, PLAN, Fake, files, plain_run, runs, study
from question_file import fails

from downscale import config
from downscale.commands import extract_think, main
from downscale.evaluate import prompts
from downscale.evaluate.answers import prompt_of
from downscale.evaluate.extract_think import Chain
from downscale.evaluate.prompts import PLACES
from downscale.evaluate.run_settings import sample_of
from downscale.evaluate.runs import open_engine, prompts_for
from downscale.evaluate.scoring.sample_files import read_samples
from downscale.generate.engine import Request

ROOT = Path(__file__).parents[1]


def test_one_command_runs_the_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('downscale.commands.machine.cache_folder', lambda: tmp_path / 'cache')
    monkeypatch.setattr('downscale.study.workers.use_cache', lambda folder: None)
    monkeypatch.setattr('downscale.evaluate.extract_think.open_engine', Fake)
    monkeypatch.setattr(Chain, '__init__', _with_fake(Chain.__init__))
    argv = ['extract-think', '--data', str(study()), '--out', str(tmp_path / 'out'), '--limit',
            str(LIMIT), '--describe', 'extract', '--reason', 'think', 'direct', '--think-tokens',
            '30', '--answer-tokens', '8', '--describe-tokens', '20', '--temperature', '0.6',
            '--repeats', '2', '--slots', '4', '--quiet', '--perception',
            *(str(run.folder) for run in runs('perception')), '--reasoner',
            *(str(run.folder) for run in runs('reasoner'))]
    assert main.main(argv) == 0
    assert files(tmp_path / 'out') == files(plain_run()[0])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4 + 11 + 2 + 1  # models, table, cut descriptions, summary
    told = {json.loads(line)['key'] for path in (tmp_path / 'out').glob('answer-w32d2-*')
            for line in path.read_text().splitlines()}
    assert len(told) > 150  # of 160: what two models describe alike is read once
    assert f'answer w32d2-s0-reason: {len(told)} rows, ' in out and 'summary: ' in out
    for more, told in ((['--seed', '1'], 'plan.seed'), (['--limit', '0'], '--limit 0'),
                       (['--prompts', 'micr'], "did you mean 'micro'"),
                       (['--processes', '2', '--process', '2'], 'a number from 0 to 1'),
                       (['--slots', '0'], 'must be at least 1'),
                       (['--information', 'x', '--informer', 'y'], 'give one'),
                       (['--describe', 'caption', '--informer', 'y'], 'a caption looks at')):
        assert main.main([*argv, *more]) == 1
        line = capsys.readouterr().err
        assert line.startswith('error: ') and line.count('\n') == 1 and told in line


def _with_fake(begin):
    def init(self, *args, **more):
        begin(self, *args, **{**more, 'engine': Fake})
    return init


def test_the_help_needs_no_jax():
    code = ('import sys; from downscale.commands import main; main.parser(); '
            'sys.exit("jax" in sys.modules or "numpy" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
    example = extract_think.EXAMPLE.split()
    args = main.parser().parse_args(example[1:])
    assert args.run is extract_think.run and args.describe == 'extract'


def test_prompt_files_are_part_of_the_package():
    import configparser
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    assert 'prompts/*.json' in setup['options.package_data']['downscale.evaluate']
    assert set(PLACES) <= set(vars(prompts.load('paper')))


# --- the real engine ----------------------------------------------------------------------------

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """The folders of two real runs, by one process and by two, of a model that is not trained."""
    folder, cell = tmp_path_factory.mktemp('real'), study() / 'cells' / 'w32d1-s0'
    argv = ['extract-think', '--perception', str(cell / 'extract'), '--reasoner',
            str(cell / 'reason'), '--data', str(study()), '--limit', '10', '--describe', 'extract',
            '--reason', 'think', 'direct', '--temperature', '0.6', '--quiet', '--describe-tokens',
            '12', '--think-tokens', '12']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('downscale.study.workers.use_cache', lambda folder: None)
        patch.setattr('downscale.commands.machine.keep_freed_memory', lambda: None)
        assert main.main([*argv, '--out', str(folder / 'one'), '--slots', '2']) == 0
        for process in ('1', '0'):
            assert main.main([*argv, '--out', str(folder / 'two'), '--slots', '1', '--processes',
                              '2', '--process', process]) == 0
    return folder / 'one', folder / 'two'


def test_the_real_engine_writes_the_same_files_by_one_process_and_by_two(real):
    one, two = map(files, real)
    assert one == two and len(one) == 5
    kept = [json.loads((real[1] / f'throughput{part}.json').read_text()) for part in ('', '.p1')]
    assert all(found[name]['rows'] > 0 for found in kept
               for name in ('describe w32d1-s0-extract', 'answer w32d1-s0-reason'))
    settings = json.loads((real[0] / 'settings.json').read_text())
    assert settings['plan']['answer_tokens'] == prompts.load('micro').answer_tokens == 8


def test_the_files_of_the_real_engine_hold_what_it_writes_alone(real):
    """Each row again, from its own record: the text, how its thought ended and what was counted."""
    engine = open_engine(runs('reasoner', 1)[0].folder, 2)
    for mode in ('think', 'direct'):
        rows = read_samples(next(real[0].glob(f'answer-*-{mode}.jsonl')))
        assert len({row['resps'][0][0] for row in rows}) > 2
        for row in rows[:3]:
            request = Request(
                prompt_of(engine.encoder, row['input'], (), mode == 'think'),
                limit=8,
                sample=sample_of(row['doc']['id'], '0'),
                think=12 if mode == 'think' else None,
            )
            reply, = engine.write([request], PLAN.decoding(()))
            assert row['resps'] == [[reply.text]] and row['close'] == reply.close
            assert (row['n_think'], row['n_answer']) == (reply.thought, reply.answered)
            assert row['finish_reason'] == reply.finish
            assert row['close'] in (('natural', 'forced', 'open') if mode == 'think' else ('',))
            assert row['n_think'] <= (12 if mode == 'think' else 0) and row['n_answer'] <= 8


def test_the_models_decide_the_prompts_when_nobody_does(tmp_path):
    micro = [run.folder for run in runs('reasoner')]
    assert prompts_for(micro) == 'micro'
    other = tmp_path / 'other'
    config.save(dataclasses.replace(config.load(micro[0]), chat='qwen3'), other)
    assert prompts_for([other]) == 'paper'
    fails(lambda: prompts_for([*micro, other]), str(micro[0]), str(other), '--prompts')
