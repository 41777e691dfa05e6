"""Files of matched pairs: pictures of the scene world as PNG, or a few that are drawn here."""
import json

import numpy as np
from PIL import Image

from downscale.data.scenes.pairs import pair

GREY = 200


def write_rows(folder, rows, name='pairs.jsonl'):
    """A file of rows in `folder`."""
    path = folder / name
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def of_world(folder, cell, field, changes, count):
    """A file of the pairs of a cell's world that its own ledger asks, without equal pictures."""
    folder.mkdir(exist_ok=True)
    rows = []
    for change in changes:
        for n in range(count):
            scenes = pair(cell.world, 'test', cell.data.test + n, field, change)
            sides = {'before': scenes.base, 'after': scenes.source}
            row = {'id': f'{change}-{n}', 'change': change, 'field': field,
                   'question': scenes.base.questions[0].text, 'box': scenes.asked.box,
                   'key': vars(scenes.asked)['cell']}
            for side, example in sides.items():
                name = f'{change}-{n}-{side}.png'
                (folder / name).write_bytes(example.images[0])
                row |= {side: name, f'answer_{side}': example.questions[0].answer}
            if scenes.base.images != scenes.source.images:
                rows.append(row)
    return write_rows(folder, rows)


def picture(path, size=(40, 30), box=None, colour=(220, 40, 40), background=GREY):
    """A plain picture with a box of a colour in it."""
    pixels = np.full((size[1], size[0], 3), background, np.uint8)
    if box:
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = colour
    Image.fromarray(pixels).save(path)


def drawn(folder, count=1, **changes):
    """A file of pairs of a box that is red before and green after, with changes to its rows.

    A change of None drops a column.
    """
    rows = []
    for k in range(count):
        box = [4 + k % 8, 6, 16 + k % 8, 20]
        for side, colour in (('before', (220, 40, 40)), ('after', (40, 200, 40))):
            picture(folder / f'{side}{k}.png', box=box, colour=colour, background=GREY - k)
        row = {'id': f'p{k}', 'before': f'before{k}.png', 'after': f'after{k}.png',
               'question': 'what color is the mug', 'answer_before': 'red',
               'answer_after': 'green', 'box': box} | changes
        rows.append({name: value for name, value in row.items() if value is not None})
    return write_rows(folder, rows)
