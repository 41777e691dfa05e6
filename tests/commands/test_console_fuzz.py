"""Whatever is typed, and whatever a study's own files hold, the outcome is right or one line."""
import contextlib
import io
import json
import re
from types import SimpleNamespace

import pytest
from console_lines import parsers
from fake_study import fake_study
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from downscale import config
from downscale.analysis import costs
from downscale.commands import main
from downscale.commands.parsing import Parser
from downscale.experiment.expansion import cells_of
from downscale.experiment.file import load_study
from downscale.runtime import exits
from downscale.runtime.streams import LONGEST_ERROR
from downscale.stages.folders import is_done

FUZZ = settings(deadline=None, database=None, derandomize=True, max_examples=300,
                suppress_health_check=list(HealthCheck))
STUDY = '''
from ml_collections import ConfigDict

def get_config(arg=''):
    rates = dict(language=3e-3)
    return ConfigDict(dict(
        study='tiny', platform='cpu', family='micro', vocabulary=320,
        vision=dict(layers=1, W=32, H=2, F=64, patch=20, image=40),
        world=dict(grid=2, min_objects=2, max_objects=3, n_facts=8),
        data=dict(train=24, validation=4, test=6),
        evaluation=dict(scenes=4, texts=['caption'], thinking=[False, True]),
        optimizer=dict(accumulate=1), mesh=dict(data=1, fsdp=-1, tensor=1),
        claims=[dict(id='a', text='t', contrast='visual_minus_knowledge', gate='joint')],
        stages=dict(text=dict(steps=8, batch=8, length=176, tiles=0, rates=rates))))

def sweep(arg=''):
    return [dict(size='w32d1', seed=0)]
'''
HEAVY = ('study.workers.run', 'stages.training.train_stage', 'stages.inputs.prepare',
         'evaluate.run.evaluate', 'planner.plan.Plan.run', 'planner.fit.check',
         'launch.sweep.backend_of', 'launch.sweep.save', 'evaluate.extract_think.Chain.run',
         'data.corpora.build.build', 'factory.factory.Factory.run', 'probe.probe.probe_study',
         'analysis.measures.scored', 'laws.fits.fit', 'laws.isoflop.isoflop')


def stopped(*args, **more):
    """In place of the work: everything was checked."""
    raise RuntimeError('work would begin')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The current folder, with a few files of each kind; no work is done in it."""
    root = tmp_path_factory.mktemp('fuzz')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv('JAX_PLATFORMS', 'cpu')
        patch.setattr('downscale.study.workers.use_cache', lambda folder: None)
        patch.setattr('downscale.launch.backends.sweep.changed', list)
        for name in HEAVY:
            patch.setattr(f'downscale.{name}', stopped)
        (root / 'study.py').write_text(STUDY)
        (root / 'q.jsonl').write_text('{"id": "q", "question": "what", "answer": "red"}\n')
        (root / 't.csv').write_text('n_nonembed,loss,budget\n1,2,1e9\n2,1,1e9\n')
        (root / 'empty').write_text('')
        (root / 'noise.parquet').write_bytes(bytes(range(256)))
        (root / 'folder').mkdir()
        (root / 'folder' / 'experiment.json').write_text('{"name": ')
        fake_study(root / 'runs', pictures=4, decoupled=False)
        yield root


def console(*argv):
    """(exit code, what stderr holds) of the console in this process; neither may be a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main.main(list(argv))
        except SystemExit as error:
            code = error.code
    text = err.getvalue()
    assert 'Traceback' not in text and code != exits.BUG, text
    lines = text.splitlines()
    usage = [line for line in lines if line.startswith(('usage: ', ' '))]
    assert len(lines) - len(usage) <= 1, text
    assert not lines or len(lines[-1]) <= LONGEST_ERROR, text
    assert code in (0, 1, 2, exits.FATAL) and (code == 0 or lines or out.getvalue()), text
    return code, text


# --- argv -------------------------------------------------------------------------------------

LEAVES = [parser for parser in parsers() if not parser.verbs()]
ODD = st.sampled_from((
    '', ' ', '-', '--', '-1', '0', '1', '3', '1e3', 'nan', 'inf', '-inf', '9' * 400, '0.5', 'ü☃本',
    '\ud800', 'a\nb', 'a\x1b[31mb', 'x' * 5000, '../..', '/proc/none', '/dev/full', 'gs://', 'None',
    'nowhere', 'nowhere/a/b', 'folder', 'folder/experiment.json', 'empty', 'empty/x',
    'study.py', 'study.py:a', 'q.jsonl', 't.csv', 'noise.parquet', 'runs', 'a=b',
    'stages.text.steps=x', 'stages.text.steps=3', 'claims=3', 'platform=5', 'w32d1-s0', 'text',
    'joint', 'v5e:4x4', 'a,b',
    'cpu:1x1', 'openai:http://127.0.0.1:9/v1', 'oracle', 'engine:folder', 'n_nonembed', 'loss'))
VALUE = st.one_of(ODD, st.text(max_size=12))


@st.composite
def lines(draw):
    """Words after `downscale`: a command, what it must have, and some of what it may have."""
    parser = draw(st.sampled_from(LEAVES))
    words = parser.prog.split()[1:]
    for action in parser._actions:
        wanted = action.required or draw(st.integers(0, 5)) == 0
        if not wanted or action.dest in ('help', 'debug') or draw(st.integers(0, 15)) == 0:
            continue
        if action.option_strings:
            option = draw(st.sampled_from(action.option_strings))
            words.append(option if draw(st.integers(0, 15)) else option[:-1])
        if action.nargs == 0:
            continue
        likely = list(map(str, action.choices)) if action.choices else {
            'config': ['study.py'], 'study': ['runs'], 'table': ['t.csv'], 'file': ['q.jsonl'],
            'cell': ['w32d1-s0'], 'stage': ['text'], 'mixture': ['study.py']}.get(action.dest, [])
        for _ in range(draw(st.integers(1, 2)) if action.nargs else 1):
            words.append(draw(st.sampled_from(likely) if likely and draw(st.booleans())
                              else VALUE))
    return words + draw(st.lists(VALUE, max_size=1))


@settings(FUZZ, max_examples=400)
@given(lines())
@example([])
@example(['--', 'study'])
@example(['launch', 'status', 'study.py', '--run', 'gs://'])
def test_any_words_end_in_success_or_in_one_short_line(place, words):
    console(*words)


def test_no_option_takes_a_name_of_the_console_itself():
    for parser in parsers():
        assert isinstance(parser, Parser) and parser.epilog.startswith('example: downscale ')
        verbs = parser.verbs()
        names = {action.dest for action in parser._actions if action is not verbs}
        assert not names & {'run', 'command', 'verb'}, parser.prog


# --- the files of a study ---------------------------------------------------------------------

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=5)


def paths(value, path=()):
    """The path of every value in nested lists and dicts."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, part in inner:
        yield from paths(part, (*path, key))


@st.composite
def harmed(draw, value):
    """The bytes of `value` as JSON with one thing wrong: a value, a key, or the bytes."""
    value = json.loads(json.dumps(value))
    path = draw(st.sampled_from([path for path in paths(value) if path]))
    node = value
    for key in path[:-1]:
        node = node[key]
    kinds = ('value', 'value', 'without', 'key', 'whole', 'cut', 'byte', 'utf-16')
    match draw(st.sampled_from(kinds)):
        case 'value':
            node[path[-1]] = draw(JSON)
        case 'without':
            del node[path[-1]]
        case 'key' if isinstance(node, dict):
            node[draw(st.text(max_size=6))] = draw(JSON)
        case 'whole':
            value = draw(JSON)
        case 'cut':
            data = json.dumps(value).encode()
            return data[:draw(st.integers(0, len(data) - 1))]
        case 'byte':
            data = bytearray(json.dumps(value).encode())
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
            return bytes(data)
        case 'utf-16':
            return json.dumps(value).encode('utf-16')
    return json.dumps(value).encode()


@pytest.fixture(scope='module')
def studied(place):
    return json.loads((place / 'runs' / 'study.json').read_text())


@FUZZ
@given(st.data())
def test_any_study_json_is_read_or_refused_in_one_line(place, studied, data):
    path = place / 'runs' / 'study.json'
    whole = path.read_bytes()
    path.write_bytes(data.draw(harmed(studied)))
    try:
        code, text = console('analyze', 'grid', 'runs')
        assert code == 1 and ('study.json' in text or 'work would begin' in text)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope='module')
def cell(place):
    """The one cell of the study file."""
    study_config, points = load_study('study.py', ())
    with study_config.unlocked():
        del study_config['platform']
    return cells_of(study_config, points)[0]


@FUZZ
@given(st.data())
def test_any_experiment_json_is_read_or_refused_in_one_line(place, cell, data):
    folder = place / 'cells' / 'w32d1-s0' / 'text'
    config.save(cell, folder)
    path = folder / 'experiment.json'
    path.write_bytes(data.draw(harmed(json.loads(path.read_text()))))
    code, text = console('export', str(folder), '--to', 'out', '--format', 'qwen3')
    assert code == 1 and str(folder) in text
    try:  # as the costs of the report read it
        costs.stages_of(SimpleNamespace(made={}, study=SimpleNamespace(root=place)))
    except ValueError as error:
        assert str(folder) in str(error) and '\n' not in str(error)


@FUZZ
@given(st.data())
def test_any_done_json_is_read_or_refused_in_one_line(place, cell, data):
    path = place / 'DONE.json'
    path.write_bytes(data.draw(harmed({'hash': cell.hash, 'steps': 8})))
    try:
        is_done(place, cell)
    except ValueError as error:
        assert str(path) in str(error) and '\n' not in str(error)


@st.composite
def written(draw):
    """The study file with one literal, word or line changed as a hand may change it."""
    lines = STUDY.splitlines()
    place = draw(st.sampled_from([place for place, line in enumerate(lines) if line]))
    kinds = ('literal', 'literal', 'literal', 'word', 'without', 'twice', 'cut')
    match draw(st.sampled_from(kinds)):
        case 'literal':
            literal = r"'[^']*'|\b\d+(\.\d+|e-\d+)?\b|\[[^\[\]]*\]"
            literals = list(re.finditer(literal, lines[place]))
            if literals:
                start, end = draw(st.sampled_from(literals)).span()
                new = repr(draw(JSON | st.sampled_from((-1, 0, 1e30, '', 'micro', (1, 2), 10**30))))
                lines[place] = lines[place][:start] + new + lines[place][end:]
        case 'word':
            words = list(re.finditer(r'\w+', lines[place]))
            start, end = draw(st.sampled_from(words)).span()
            lines[place] = lines[place][:start] + lines[place][start + 1:end] + lines[place][end:]
        case 'without':
            del lines[place]
        case 'twice':
            lines.insert(place, lines[place])
        case 'cut':
            return '\n'.join(lines)[:draw(st.integers(0, len(STUDY)))]
    return '\n'.join(lines)


@FUZZ
@given(written())
def test_any_study_file_is_read_or_refused_in_one_line(place, text):
    (place / 'harmed.py').write_text(f'inf = nan = 1e400\n{text}')
    code, said = console('study', 'harmed.py')
    assert code == 1 and 'internal error' not in said
