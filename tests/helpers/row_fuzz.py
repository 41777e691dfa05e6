"""Files of rows as strangers write them, right and damaged, and whether a reading was silent."""
import base64
import codecs
import csv
import io
import json

import published
from hypothesis import strategies as st

INSIDE = base64.b64encode(published.picture(0)).decode()
PICTURES = ('a.png', ['a.png'], ['a.png', 'b/c.png'], 'b\\c.png', f'data:image/png;base64,{INSIDE}',
            INSIDE, {'path': 'a.png'}, '', None, [], 'no.png', '../a.png', 5, 'http://x/a.png')
PICTURE_NAMES = ('image', 'images', 'img', 'image_path', 'file_name', 'image_1', 'image_2',
                 'picture', 'photo', 'Image', 'bild', 'image_id', 'video')
EXTRA_NAMES = ('lecture', 'source', 'hint', 'category', 'label', 'width', 'notes', 'Question',
               'caption', 'text', 'system', 'options', 'choices', 'A', 'B', 'answers', 'id', '')
VALUES = st.one_of(
    st.none(), st.just(''), st.integers(0, 3), st.floats(), st.text(max_size=4),
    st.sampled_from(['A', '["cat", "dog"]', ['cat', 'dog'], {'A': 'cat', 'B': 'dog'}, '\ud83d',
                     '<image>', '<image 1>', '<|im_end|>', 'a\nb', 'x;y', '"', True]))
MARKS = ('', '', '<image>\n', '<image 1> ', '<image><image>')


@st.composite
def rows(draw, count=3):
    """Rows of one file: what the text is, where the pictures are, and more columns."""
    kind = draw(st.sampled_from(['conversations', 'messages', 'texts', 'question', 'caption']))
    place = draw(st.lists(st.sampled_from(PICTURE_NAMES), max_size=2, unique=True))
    extra = draw(st.lists(st.sampled_from(EXTRA_NAMES), max_size=2, unique=True))
    result = []
    for number in range(draw(st.integers(1, count))):
        question = draw(st.sampled_from(MARKS)) + f'question{number}'
        row = {'conversations': {'conversations': published.turns((question, f'reply{number}'))},
               'messages': {'messages': [{'role': 'user', 'content': question},
                                         {'role': 'assistant', 'content': f'reply{number}'}]},
               'texts': {'texts': [{'user': question, 'assistant': f'reply{number}'}]},
               'question': {'question': question, 'answer': f'reply{number}'},
               'caption': {'caption': f'reply{number}'}}[kind]
        if draw(st.booleans()):
            row['id'] = draw(st.sampled_from([number, str(number), float(number), 'same', None]))
        row |= {name: draw(st.sampled_from(PICTURES)) for name in place}
        row |= {name: draw(st.one_of(st.just(f'extra {name} {number}'), VALUES)) for name in extra}
        if draw(st.integers(0, 5)) == 0:
            row[draw(st.sampled_from(list(row)))] = draw(VALUES)
        result.append(row)
    return result


def sheet(result, cut):
    """The text of rows as a sheet; lists and dicts are written as Python or pandas would."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in result for name in row))
    writer = csv.writer(out, delimiter=cut)
    writer.writerow(names)
    for row in result:
        writer.writerow(['' if row.get(name) is None else row[name] for name in names])
    return out.getvalue()


@st.composite
def documents(draw, form):
    """(rows, bytes of a file of `form`, whether the bytes were damaged)."""
    result = draw(rows())
    if form == 'json':
        text = json.dumps(result, ensure_ascii=draw(st.booleans()),
                          indent=draw(st.sampled_from([None, 1])))
        text = f'{{"data": {text}}}' if draw(st.integers(0, 4)) == 0 else text
    elif form == 'jsonl':
        text = '\n'.join(json.dumps(row) for row in result)
        text += draw(st.sampled_from(['', '\n', '\n\n', '\nnull', '\n{"torn']))
    else:
        text = sheet(result, '\t' if form == 'tsv' else draw(st.sampled_from(',;')))
    if draw(st.booleans()):
        text = text.replace('\r\n', '\n').replace('\n', '\r\n')
    coding, start = draw(st.sampled_from([
        ('utf-8', b''), ('utf-8', codecs.BOM_UTF8), ('utf-16-le', codecs.BOM_UTF16_LE)]))
    data = start + text.encode(coding, 'surrogatepass')
    cuts = draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([
        b'', b'"', b'\n', b',', b'\x00', b'\xff', b'{', b']', b'\\ud83d', b'[' * 2000, b'null',
        b'9' * 5000, b'NaN'])), max_size=2)) if draw(st.booleans()) else []
    for place, put in cuts:
        at = int(place * len(data))
        data = data[:at] + put + data[at + draw(st.integers(0, 2)):]
    return result, data, bool(cuts)


def filled(value):
    """The texts and numbers of a cell that is not empty, flat."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in filled(part)]
    empty = value is None or value != value or isinstance(value, str) and not value.strip()
    return [] if empty else [value]


def silent(row, record, counted):
    """What a record lost of its row without a word: 'picture', or the names of columns.

    `counted` are the columns that the reading names as left out. Words of the text and of options
    may be joined or replaced by letters, so a column counts as used where the record has its words.
    """
    text = '\n'.join(turn.text for turn in record.talk.turns)
    lost = []
    for name, value in row.items():
        words = [str(leaf).strip().replace('<image 1>', '<image>') for leaf in filled(value)]
        if not words or name in counted or name in ('id', 'question_id', 'sample_id', 'index'):
            continue
        # A picture may be written out in the cell, and be one still when some of that is lost.
        shown_by = any(word in map(str, PATHS) or word.startswith('data:image/') for word in words)
        if shown_by and not record.talk.images:
            lost.append('picture')
        elif not shown_by and name not in ('conversations', 'messages', 'texts') \
                and name not in ('answer', 'answers') \
                and not all(word in text or word.strip('"[]') in text for word in words) \
                and not (name in ('options', 'choices') and 'A. ' in text):
            lost.append(str(name))
    return lost


PATHS = {leaf for value in PICTURES for leaf in filled(value) if isinstance(leaf, str)}
