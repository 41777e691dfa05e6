"""Files of matched pairs: what a row may say; every fault is refused with its line and name."""
import base64
import json

import pytest
from pair_file import drawn, picture, write_rows
from PIL import Image
from question_file import fails

from downscale.probe import pair_files
from downscale.probe.pair_files import read_pairs


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_read_as_it_stands(tmp_path):
    pair, = read_pairs(drawn(tmp_path, field='color', key='mug', answer_after=7))
    assert (pair.field, pair.change, pair.key) == ('color', 'asked', 'mug')
    assert pair.answers == ('red', '7') and pair.question == 'what color is the mug'
    assert pair.size == (40, 30) and pair.boxes == ((4, 6, 16, 20),) and pair.outside == 0
    assert pair.pictures[0] == (tmp_path / 'before0.png').read_bytes() != pair.pictures[1]
    assert pair.where == 'pairs.jsonl, line 1'


def test_what_may_be_left_out_has_a_meaning(tmp_path):
    path = drawn(tmp_path, id=None, key='', box=[[4, 6, 16, 20], [20.5, 1, 30, 9]])
    one, = read_pairs(path)
    assert (one.field, one.change, one.key) == ('all', 'asked', '')
    assert one.boxes == ((4, 6, 16, 20), (20.5, 1, 30, 9))
    # A JSON list is read as well, and pictures that stand in the file itself.
    row, = rows_of(path)
    data = (tmp_path / 'before0.png').read_bytes()
    row['before'] = 'data:image/png;base64,' + base64.b64encode(data).decode()
    listed = tmp_path / 'pairs.json'
    listed.write_text(json.dumps([row]))
    assert read_pairs(listed)[0].pictures == one.pictures


def test_sizes_and_boxes_are_those_of_the_upright_picture(tmp_path):
    path = drawn(tmp_path, box=[4, 25, 16, 39])
    for side, colour in (('before', (220, 40, 40)), ('after', (40, 200, 40))):
        picture(tmp_path / f'{side}0.png', (30, 40), (4, 25, 16, 39), colour)
        with Image.open(tmp_path / f'{side}0.png') as upright:
            turned = upright.transpose(Image.Transpose.ROTATE_90)
            tag = turned.getexif()
            tag[0x0112] = 6  # turn by 90 degrees to the right
            turned.save(tmp_path / f'{side}0.png', exif=tag)
    pair, = read_pairs(path)
    assert pair.size == (30, 40) and pair.outside == 0


def test_pairs_of_one_picture_are_one_cluster(tmp_path):
    path = drawn(tmp_path, count=3)
    first, other, again = rows_of(path)
    again |= {'before': first['before'], 'box': first['box']}
    pairs = read_pairs(write_rows(tmp_path, [first, other, again]))
    assert pairs[0].cluster == pairs[2].cluster != pairs[1].cluster


def test_what_differs_outside_the_box_is_told(tmp_path):
    path = drawn(tmp_path, count=2)
    assert pair_files.remarks(read_pairs(path)) == []
    first, second = rows_of(path)
    second['box'] = [4, 6, 7, 9]
    note, = pair_files.remarks(read_pairs(write_rows(tmp_path, [first, second])))
    assert '1 of 2 pairs differ more outside their box' in note and 'line 2' in note


def test_what_a_pair_says_decides_its_hash(tmp_path):
    def hashed(**changes):
        return pair_files.hash_of_pairs(read_pairs(drawn(tmp_path, **changes)))
    whole = hashed()
    assert hashed() == hashed(id='other') == whole
    others = [hashed(box=[4, 6, 16, 21]), hashed(question='which color'), hashed(field='color'),
              hashed(answer_after='blue'), hashed(key='mug')]
    assert len({whole, *others}) == 6


CONTROL = {'change': 'other', 'answer_after': 'red'}
REFUSED = {
    'no such column': ({'answer': 'red'}, "line 1", "'answer'; did you mean 'answer_after'"),
    'a near column': ({'boxes': [1, 2, 3, 4]}, "'boxes'; did you mean 'box'"),
    'a column in capitals': ({'Before': 'x'}, "'Before'; did you mean 'before'"),
    'no picture': ({'after': None}, "missing column: 'after'"),
    'an empty question': ({'question': ' '}, "missing column: 'question' is empty"),
    'no answer': ({'answer_before': None}, "missing column: 'answer_before'"),
    'no box': ({'box': []}, "missing column: 'box' is empty"),
    'a missing picture': ({'after': 'nowhere.png'}, 'missing image', 'nowhere.png'),
    'a path that leaves': ({'after': '../x.png'}, 'image path', 'leaves its folder'),
    'an address': ({'after': 'https://a/b.png'}, 'is not fetched'),
    'no readable picture': ({'after': 'pairs.jsonl'}, 'unreadable image', 'after'),
    'two sizes': ({'after': 'wide.png'}, 'before has 40 x 30 pixels, after 41 x 30'),
    'one picture twice': ({'after': 'before0.png'}, 'before and after are the same picture'),
    'a list of pictures': ({'after': ['before0.png']}, 'after must be a text'),
    'a number for a question': ({'question': 5}, 'question must be a text, not 5'),
    'a number for a key': ({'key': 5}, 'key must be a text, not 5'),
    'a list of answers': ({'answer_after': ['green']}, 'answer_after must be a text or a whole'),
    'a broken number': ({'answer_after': 1.5}, 'answer_after must be a text or a whole number'),
    'true': ({'answer_after': True}, 'answer_after must be a text or a whole number, not True'),
    'equal answers': ({'answer_after': 'red'}, "'red' is the answer to both pictures"),
    'a control whose answers differ': ({'change': 'other'}, "'other' is a control",
                                       "not 'red' and 'green'"),
    'a control of nothing': ({**CONTROL, 'after': 'before0.png'}, 'such a control is 0 whatever'),
    'no such change': ({'change': 'ask'}, "'ask'; did you mean 'asked'"),
    'controls alone': (CONTROL, "no pair of the field 'all' has the change 'asked'"),
    'the name of the mean': ({'field': 'macro'}, 'is what the mean over fields is called'),
    'a mark of a picture': ({'question': 'what <image>'}, 'question holds <image>'),
    'a token of the chat': ({'answer_after': '<|im_end|>'}, 'chat token: <|im_end|>'),
    'half a letter': ({'question': 'what \ud83d'}, 'line 1'),
    'a control character': ({'question': 'a\x00b'}, 'bad text', 'control character'),
    'a space in front': ({'answer_after': ' green'}, 'answer_after begins or ends with a space'),
    'a box that leaves': ({'box': [4, 6, 41, 20]}, '[4, 6, 41, 20] leaves the picture of 40 x 30'),
    'a box before the picture': ({'box': [-1, 6, 4, 20]}, 'leaves the picture'),
    'a box of no number': ({'box': [float('nan'), 6, 4, 20]}, 'leaves the picture'),
    'an endless box': ({'box': [0, 0, float('inf'), 20]}, 'leaves the picture'),
    'width and height': ({'box': [14, 10, 12, 14]}, 'holds no pixel', 'not width and height'),
    'shares': ({'box': [.1, .2, .4, .7]}, 'holds no pixel', 'nor shares'),
    'three numbers': ({'box': [1, 2, 3]}, 'box must be [left, top, right, bottom]'),
    'texts': ({'box': ['1', '2', '3', '4']}, 'box must be [left, top, right, bottom]'),
    'a box by name': ({'box': {'x': 1}}, 'box must be [left, top, right, bottom]'),
    'one box that is none': ({'box': [[4, 6, 16, 20], [1, 2]]}, 'box must be'),
    'a box elsewhere': ({'box': [25, 1, 39, 5]}, 'the pictures differ outside the box alone'),
    'a long fault': ({'question': 5, 'x' * 400: 1}, 'unknown column'),
}


@pytest.mark.parametrize('changes, words', [(case[0], case[1:]) for case in REFUSED.values()],
                         ids=list(REFUSED))
def test_what_cannot_be_used_is_refused_by_name(tmp_path, changes, words):
    picture(tmp_path / 'wide.png', (41, 30))
    path = drawn(tmp_path, **changes)
    fails(lambda: read_pairs(path), 'pairs.jsonl', *words)
    with pytest.raises(ValueError) as caught:
        read_pairs(path)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize('text, words', [
    ('', 'holds no pair'), ('\n\n', 'holds no pair'), ('[1]\n', 'entry 1'), ('{"a": 1', 'line 1'),
    ('{"id": "x", "id": "y"}\n', 'line 1'), ('"a"\n', 'line 1')])
def test_a_file_that_holds_no_rows_is_refused(tmp_path, text, words):
    path = tmp_path / 'pairs.jsonl'
    path.write_text(text)
    fails(lambda: read_pairs(path), words)


def test_a_row_is_named_by_its_line_and_an_id_stands_once(tmp_path):
    path = drawn(tmp_path, count=3)
    rows = rows_of(path)
    rows[2]['id'] = 'p0'
    fails(lambda: read_pairs(write_rows(tmp_path, rows)),
          "line 3: duplicate: id 'p0' stands in line 1 already")


@pytest.mark.parametrize('name', ['pairs.csv', 'pairs.parquet', 'pairs'])
def test_other_forms_are_refused_with_those_that_are_read(tmp_path, name):
    fails(lambda: read_pairs(tmp_path / name), 'are read from .json, .jsonl, .ndjson')


def test_a_missing_file_is_told(tmp_path):
    fails(lambda: read_pairs(tmp_path / 'none.jsonl'), 'no file', error=FileNotFoundError)
