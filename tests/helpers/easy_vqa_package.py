"""A folder as the package `easy-vqa` has it: `data/SPLIT/questions.json` and `images/N.png`."""
import io
import json

from PIL import Image

QUESTIONS = (('what color is the shape?', 'red'), ('what shape is present?', 'circle'),
             ('is there a blue shape?', 'no'), ('is there not a blue shape?', 'yes'))


def write_package(to, train=4, test=3):
    """`to`/easy_vqa/data with `train` and `test` pictures, each asked all of `QUESTIONS`."""
    for split, count in (('train', train), ('test', test)):
        folder = to / 'easy_vqa' / 'data' / split
        (folder / 'images').mkdir(parents=True)
        for number in range(count):
            png = io.BytesIO()
            Image.new('RGB', (64, 64), (200, 10 * number, 9)).save(png, 'PNG')
            (folder / 'images' / f'{number}.png').write_bytes(png.getvalue())
        (folder / 'questions.json').write_text(json.dumps(
            [[question, answer, number] for number in range(count)
             for question, answer in QUESTIONS]))
