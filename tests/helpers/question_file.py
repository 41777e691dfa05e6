"""Files of questions about one picture, and what a refusal of one says."""
import json
import shutil

import pytest
from roots import DATA

PICTURE = DATA / 'picture.png'


def question_file(folder, *changes, count=3):
    """A file of questions about the test picture, with changes to its lines (None drops a key)."""
    shutil.copy(PICTURE, folder)
    rows = [{'id': f'q{k}', 'question': f'what color {k}', 'images': ['picture.png'],
             'answer': 'red'} for k in range(count)]
    for k, change in changes:
        rows[k] = {name: value for name, value in {**rows[k], **change}.items()
                   if value is not None}
    path = folder / 'questions.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def fails(call, *told, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert '\n' not in line and all(part in line for part in told), line
