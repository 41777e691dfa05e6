"""Files of strangers, mutated at random: right, or refused in one line; nothing is lost unseen."""
import io
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from downscale.data.corpora import columns
from downscale.evaluate import prompts
from downscale.evaluate.asked import informed, open_questions
from downscale.evaluate.scoring.stored_replies import read_rows

LONGEST = 300
MANY = settings(max_examples=300, deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\n\r'), max_size=12)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), TEXT,
                 st.sampled_from(['B', '(B)', 'red', 'p.png', '', ' ', "['a', 'b']", '<image>']))
VALUE = st.one_of(LEAF, st.lists(LEAF, max_size=5), st.dictionaries(TEXT, LEAF, max_size=3),
                  st.sampled_from([['red', 'blue'], ['red'], [.1, .1, .5, .5], [['p.png']]]))
NAMES = ('image', 'img', 'image_path', 'image_1', 'images', 'picture', 'answer', 'answers', 'anser',
         'choices', 'options', 'option', 'Question', 'question', 'id', 'idx', 'family', 'scorer',
         'information', 'infomation', 'video', 'A', 'B', 'target', 'doc', 'doc_id', 'resps', 'gold',
         'filtered_resps', 'filtered_resp', 'filter', 'share', 'cluster', 'choises', 'text')
CODINGS = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'latin-1')
_folder = TemporaryDirectory(prefix='downscale-borders-')
PLACE = Path(_folder.name)


@cache
def picture():
    out = io.BytesIO()
    Image.new('RGB', (4, 4), 'red').save(out, 'PNG')
    (PLACE / 'p.png').write_bytes(out.getvalue())


def asked_row(k):
    return {'id': f'q{k}', 'question': f'what is {k}?', 'images': ['p.png'], 'answer': 'red',
            'information': 'the colour', 'family': 'f'}


def sample_row(k):
    return {'doc_id': k, 'doc': {'question': f'q{k}'}, 'target': 'B', 'resps': [['so B']],
            'filtered_resps': ['B']}


@st.composite
def mutated(draw, row):
    """Rows of which some have a key renamed, added, removed, or another value."""
    rows = [row(k) for k in range(draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(0, 2))):
        one = draw(st.sampled_from(rows))
        how = draw(st.sampled_from(['rename', 'add', 'remove', 'change', 'repeat']))
        name = draw(st.sampled_from(sorted(one))) if one else 'id'
        if how == 'repeat':
            rows.append(dict(one))
        elif how == 'rename' and name in one:
            one[draw(st.one_of(st.sampled_from(NAMES), TEXT))] = one.pop(name)
        elif how == 'remove':
            one.pop(name, None)
        else:
            one[name if how == 'change' else draw(st.sampled_from(NAMES))] = draw(VALUE)
    return rows


@st.composite
def dressed(draw, rows):
    """The bytes of JSON lines in some coding, with some bytes changed now and then."""
    text = draw(st.sampled_from(['\n', '\r\n', '\n\n'])).join(map(json.dumps, rows))
    data = text.encode(draw(st.sampled_from(CODINGS)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 40)):]
    return data


def outcome(call):
    """What `call` returns, or None where it refuses in one line."""
    try:
        return call()
    except (ValueError, OSError) as error:
        line = str(error)
        assert line and '\n' not in line and len(line) <= LONGEST, line
        return None


def put(name, data):
    picture()
    path = PLACE / name
    path.write_bytes(data if isinstance(data, bytes) else
                     '\n'.join(map(json.dumps, data)).encode())
    return path


def empty(value):
    """Whether a cell holds nothing."""
    if isinstance(value, (list, dict)):
        return all(map(empty, value.values() if isinstance(value, dict) else value))
    return value is None or value != value or isinstance(value, str) and not value.strip()


def facts(rows):
    """What is asked of `rows`; None where they are refused."""
    found = outcome(lambda: open_questions(put('q.jsonl', rows)))
    return found and [(a.id, a.text, a.pictures, a.right, a.information, a.family, a.scorer)
                      for a in found.asked]


def lost_in_questions(rows):
    """The keys of accepted rows that hold something and change nothing. Two that agree, as `image`
    beside `images`, are both read."""
    whole = facts(rows)
    if whole is None:
        return []
    assert len(whole) == len(rows)
    lost = []
    for k, row in enumerate(rows):
        filled = [name for name in row if not empty(row[name])]
        kinds = [kind_of(name) for name in filled]
        for name, kind in zip(filled, kinds):
            less = {key: row[key] for key in row if key != name}
            if kinds.count(kind) == 1 and facts([*rows[:k], less, *rows[k + 1:]]) == whole:
                lost.append(name)
    return lost


def kind_of(name):
    """What a key is about: names of one kind may say the same thing."""
    if name in columns.PICTURES or columns.NUMBERED.fullmatch(name):
        return 'images'
    return 'answer' if name == 'answers' else name


def lost_in_samples(rows):
    """What an accepted samples file says that `read_rows` does not: questions counted more than
    once, targets whose structure is gone, replies that nobody told of."""
    found = outcome(lambda: read_rows(put('s.jsonl', rows)))
    if found is None:
        return []
    read, _ = found
    wanted = {str(row['doc_id']) for row in rows if 'doc_id' in row
              and row.get('target') not in (None, '', [])}
    keys = [(row.filter, row.question) for row in read]
    lost = ['target'] * any(row.get('target') == ['red', 'blue'] and not any(
        one.target.answers == ('red', 'blue') for one in read) for row in rows)
    replies = {(str(row.get('filter') or ''), str(row['doc_id'])): row.get('filtered_resps')
               for row in rows if 'doc_id' in row}
    for key in set(keys):
        value = replies.get(key)
        several = isinstance(value, list) and all(isinstance(one, str) for one in value)
        lost += ['n'] * (keys.count(key) > (len(value) if several and value else 1))
    return lost + ['question'] * bool({name for _, name in keys} - wanted - {''} if wanted else ())


@MANY
@given(mutated(asked_row))
def test_no_key_of_a_question_is_dropped_unseen(rows):
    assert not lost_in_questions(rows)


@MANY
@given(mutated(asked_row).flatmap(dressed))
def test_any_bytes_are_questions_or_one_line(data):
    found = outcome(lambda: open_questions(put('b.jsonl', data)))
    if found is not None and data.isascii():
        # Of UTF-16, too, which holds zeros between the characters of its line ends.
        lines = data.replace(b'\0', b'').splitlines()
        assert len(found.asked) == sum(bool(line.strip()) for line in lines)


@MANY
@given(mutated(sample_row))
def test_one_question_of_a_samples_file_is_one(rows):
    assert not lost_in_samples(rows)


@MANY
@given(mutated(sample_row).flatmap(dressed))
def test_any_bytes_are_samples_or_one_line(data):
    outcome(lambda: read_rows(put('t.jsonl', data)))


@MANY
@given(st.dictionaries(st.one_of(st.sampled_from(['q0', 'q1', '0', '1']), TEXT), LEAF, max_size=6),
       st.sampled_from(CODINGS), st.integers(0, 30))
def test_information_is_that_of_the_file_or_one_line(told, coding, cut):
    questions = open_questions(put('i.jsonl', [asked_row(0), asked_row(1)]))
    data = json.dumps(told).encode(coding)
    path = put('i.json', data if cut else data[:-cut - 1])
    found = outcome(lambda: informed(questions, path))
    if found is not None:
        for asked in found.asked:
            assert asked.information in (told.get(asked.id), told.get(str(asked.doc_id)))
            assert asked.information.strip()


@MANY
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(json.loads(
    (prompts.FOLDER / 'paper.json').read_text()))), TEXT), st.one_of(VALUE, st.just(None)),
    max_size=2), st.booleans(), st.sampled_from(CODINGS))
def test_prompts_are_those_of_the_file_or_one_line(changes, remove, coding):
    whole = json.loads((prompts.FOLDER / 'paper.json').read_text())
    value = {name: text for name, text in whole.items() if name not in changes} if remove \
        else whole | changes
    path = put('p.json', json.dumps(value, ensure_ascii=False).encode(coding, 'replace'))
    found = outcome(lambda: prompts.load(path))
    if found is not None:
        assert set(value) == set(vars(found))
        assert all(vars(found)[name] == text for name, text in value.items()
                   if isinstance(text, (str, int)) and coding != 'latin-1')


@pytest.mark.parametrize('rows', [[{'doc_id': 1, 'target': 'B', 'filtered_resps': ['A', 'B']}]])
def test_what_the_count_of_losses_can_see(rows):
    assert not lost_in_samples(rows)
    read, notes = read_rows(put('s.jsonl', rows))
    assert len(read) == 2 and notes
