"""The diffs of `CONTRIBUTING.md` apply to the tree as it is, and what they add works."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from roots import ROOT

PAGE = (ROOT / 'CONTRIBUTING.md').read_text()
DIFFS = {title: diff for title, diff in re.findall(
    r'^## ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)}
ADDED = ('A stage', 'A question family', 'A scorer', 'A benchmark', 'A launch backend',
         'A verb of the console')


def applied(diff, folder, *options):
    """What git says of applying `diff` in `folder`, which may lie inside another repository."""
    return subprocess.run(
        ['git', 'apply', *options], input=diff, cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, 'GIT_CEILING_DIRECTORIES': str(folder.parent)})


def test_each_thing_to_add_has_a_diff():
    assert tuple(DIFFS) == ADDED
    assert PAGE.count('```diff\n') == len(ADDED)


@pytest.mark.parametrize('title', DIFFS)
def test_a_diff_applies_to_the_tree(title):
    done = applied(DIFFS[title], ROOT, '--check')
    assert not done.returncode, done.stderr


def test_a_diff_of_other_code_is_refused():
    drifted = DIFFS['A scorer'].replace(' def _option_scorers():', ' def _letter_scorers():', 1)
    assert drifted != DIFFS['A scorer']
    assert applied(drifted, ROOT, '--check').returncode


@pytest.fixture(scope='module')
def changed(tmp_path_factory):
    """A copy of the package with every diff applied, and what runs a module or a line in it."""
    folder = tmp_path_factory.mktemp('changed')
    shutil.copytree(ROOT / 'downscale', folder / 'downscale',
                    ignore=shutil.ignore_patterns('__pycache__'))
    for diff in DIFFS.values():
        done = applied(diff, folder)
        assert not done.returncode, done.stderr

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, 'PYTHONPATH': str(folder), 'JAX_PLATFORMS': 'cpu'})
        assert not done.returncode, done.stderr
        return done.stdout
    return run


def test_what_is_added_names_nothing_that_is_not_there(changed):
    changed('-m', 'ruff', 'check', '--select', 'F', 'downscale')


def test_the_added_verb_runs(changed):
    lines = changed('-m', 'downscale.commands.main', 'sizes', 'qwen3').splitlines()
    assert [line.split()[0] for line in lines] == ['0.6b', '1.7b', '4b', '8b']
    assert '596,049,920' in lines[0]


def test_the_added_scorer_judges(changed, tmp_path):
    replies = ('I see two dogs there.', 'two dogs'), ('three dogs', '')
    path = tmp_path / 'replies.json'
    path.write_text(json.dumps([{'text': text, 'gold': 'two dogs'} for text, _ in replies]))
    rows = json.loads(changed('-m', 'downscale.commands.main', 'rescore', str(path), '--json',
                              '--scorers', 'holds'))
    assert [row['holds'] for row in rows] == [found for _, found in replies]


def test_the_added_stage_and_family_are_known(changed):
    told = changed('-c', '\n'.join((
        'import numpy',
        'from downscale.stage_table import STAGES',
        'from downscale.data.scenes.conversations import MIXTURES, Recipe, recall',
        'from downscale.data.scenes.questions import baselines, questions_for',
        'from downscale.data.scenes.world import World, sample',
        'world, rng = World(), numpy.random.default_rng(0)',
        'assert set(MIXTURES) == {name for name in STAGES if STAGES[name].rows != "written"}',
        'assert Recipe(stage="recall").stage == "recall"',
        'assert len(recall(None, 0, rng, world, 3, "").turns) == 6',
        'asked = questions_for(world, sample(world, "train", 0), rng)',
        'print(*[question.text for question in asked if question.family == "hue"])')))
    assert told.startswith('what color is at ')


def test_the_added_backend_sends_a_job(changed, tmp_path):
    study = ROOT / 'experiments' / 'smoke.py'
    changed('-m', 'downscale.commands.main', 'launch', 'plan', str(study), '--backend', 'slurm',
            '--dry-run', '--out', str(tmp_path), '--cell', 'tower-s0')
    written, = tmp_path.glob('*-train-*.sh')
    assert written.read_text().startswith(f'sbatch --job-name={written.stem} ')
