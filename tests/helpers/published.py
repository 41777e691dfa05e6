"""Tiny copies of published sets in exactly their formats, made from rendered scenes.

`everything(root)` writes what the mixtures of `experiments/mixtures` read, below one root.
"""
import io
import json
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import small
from PIL import Image

from downscale.data.scenes.drawing import render
from downscale.data.scenes.world import sample

SIZES = ((64, 64), (120, 80), (90, 150), (200, 100))
COIN = ('OCRVQA', 'ImageNet', 'VQAv2', 'GQA', 'Grounding', 'TextVQA', 'VizWiz', 'ScienceQA')
M4 = {'HQ-Edit': 2, 'MagicBrush': 2, 'IEdit': 2, 'AESOP': 4, 'FlintstonesSV': 3, 'PororoSV': 3,
      'VIST': 5, 'nights': 3, 'RAVEN': 8, 'Spot-the-Diff': 2, 'Birds-to-Words': 2,
      'CLEVR-Change': 2, 'MIT-States_StateCoherence': 2, 'MIT-States_PropertyCoherence': 2,
      'RecipeQA_ImageCoherence': 4, 'VISION': 2, 'WebQA': 1, 'TQA': 1, 'OCR-VQA': 1, 'DocVQA': 1}


@cache
def picture(index, kind='PNG'):
    """The encoded picture of a rendered scene, of one of several sizes."""
    png = render(small.WORLD, sample(small.WORLD, 'train', index))
    image = Image.open(io.BytesIO(png)).convert('RGB').resize(SIZES[index % len(SIZES)])
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def put(root, name, index, kind='PNG'):
    """The picture is at `root`/`name`; returns the name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(index, kind))
    return name


def write_rows(path, rows):
    """`path` holds the rows as JSON, or as JSON lines after its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def turns(*pairs):
    return [{'from': who, 'value': text} for pair in pairs
            for who, text in zip(('human', 'gpt'), pair, strict=True)]


def llava(root, count=6, folder='llava_pretrain', file='blip_laion_cc_sbu_558k.json'):
    """BLIP558K: a picture and its caption a row."""
    rows = [{'id': f'{k:09d}', 'image': put(root / folder, f'{k % 7:05d}/{k:09d}.jpg', k, 'JPEG'),
             'conversations': turns(('Write a terse summary of the image.\n<image>',
                                     f'a scene of shapes number {k}'))} for k in range(count)]
    return write_rows(root / folder / file, rows)


def coin(root, name, count=6):
    """One set of CoIN: several questions a row; ScienceQA has rows without a picture."""
    rows = []
    for k in range(count):
        row = {'id': f'{name}-{k}', 'conversations': turns(
            ('<image>\nwhat is shown?\nAnswer the question using a single word or phrase.',
             'shapes'), ('how many?', str(k)))}
        if name == 'ScienceQA' and k % 3 == 2:
            row['conversations'][0]['value'] = 'What is a force?\nA. a push\nB. a color'
        else:
            row['image'] = './' + put(root / 'coin/pictures', f'{name}/{k}.jpg', k, 'JPEG')
        rows.append(row)
    return write_rows(root / f'coin/{name}/train.json', rows)


def m4(root, each=2):
    """M4-Instruct: `image` is a list, marks stand anywhere, the set is in `metadata.dataset`."""
    rows = []
    for dataset, pictures in M4.items():
        for k in range(each):
            names = [put(root / 'm4_instruct', f'{dataset}/{k}_{i}.png', k + i)
                     for i in range(pictures)]
            marks = ' '.join(f'Image {i}: <image>' for i in range(pictures))
            rows.append({'sample_id': len(rows), 'image': names, 'choice_list': None,
                         'conversations': turns((f'Look. {marks} What changed?', 'a shape moved')),
                         'metadata': {'dataset': dataset, 'split': 'train', 'num_sample': each}})
    return write_rows(root / 'm4_instruct/m4_instruct_annotations.json', rows)


def pieapp(root, count=3):
    rows = [{'id': k, 'image': [put(root / 'pieapp', f'{k}_{i}.png', k + i) for i in range(3)],
             'conversations': turns(('<image><image><image>\nWhich is more like the first?\n'
                                     'A. the second\nB. the third', 'A'))} for k in range(count)]
    return write_rows(root / 'pieapp/train.json', rows)


def allava(root, count=4):
    for part in ('LAION', 'VFLAN'):
        rows = [{'id': f'allava_{part.lower()}_caption_{k}', 'url': None,
                 'image': put(root / 'allava', f'{part.lower()}/images/{k}.jpeg', k, 'JPEG'),
                 'conversations': turns(('<image>\nPlease describe.',
                                         'A long caption of shapes. ' * 4))}
                for k in range(count)]
        write_rows(root / f'allava/ALLaVA-Caption-{part}-4V.json', rows)


def extraction(root, count=4):
    """The released extraction set: pictures are those of CoIN."""
    for name in COIN[:1] + COIN[2:4] + COIN[5:]:
        shown = [k for k in range(count) if name != 'ScienceQA' or k % 3 != 2]
        write_rows(root / f'extraction/{name}.json', [
            {'id': f'{name}-{k}', 'image': f'{name}/{k}.jpg', 'conversations': turns(
                ('<image>\nDescribe the image. Look at the shapes.', 'There are shapes.'))}
            for k in shown])


def parquet(path, count=5, rows_a_group=2):
    """LLaVA-OneVision-Data: conversations beside {bytes, path}; the last row has no picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{'id': f'p{k}', 'data_source': 'even' if k % 2 == 0 else 'odd',
             'image': None if k == count - 1 else {'bytes': picture(k), 'path': f'{k}.png'},
             'conversations': turns(('what is this?' if k == count - 1 else
                                     '<image>\nwhat is this?', f'scene {k}'))}
            for k in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path


def everything(root):
    llava(root)
    for name in COIN:
        coin(root, name)
    m4(root)
    pieapp(root)
    allava(root)
    extraction(root)
    return root


# --- benchmarks -------------------------------------------------------------------------------

def coin_tests(root, count=3):
    """The test files of CoIN: one question a row, `answer` or `answer_bbox`."""
    for name in COIN:
        rows = []
        for k in range(count):
            row = {'question_id': f'{name}-{k}', 'text': 'what is shown?\nAnswer shortly.',
                   'image': put(root / 'coin/pictures', f'{name}/test{k}.jpg', k, 'JPEG')}
            row |= {'answer_bbox': '[0.10,0.20,0.50,0.60]', 'size': [120, 80]} \
                if name == 'Grounding' else {'answer': ['shapes'] * 10} \
                if name == 'TextVQA' else {'answer': 'A' if name == 'ScienceQA' else 'shapes'}
            rows.append(row)
        write_rows(root / f'coin/{name}/test.json', rows)


def mmstar(root, count=6):
    rows = [{'index': 7 * k, 'question': 'what is it?\nOptions: A: red, B: blue, C: green, D: no',
             'image': {'bytes': picture(k), 'path': f'{k}.png'}, 'answer': 'ABCD'[k % 4],
             'category': ('math', 'logical reasoning')[k % 2], 'l2_category': f'axis {k % 3}',
             'meta_info': {'source': 's', 'split': 'val', 'image_path': 'p'}}
            for k in range(count)]
    _benchmark(root / 'mmstar', 'mmstar.parquet', rows)


def vmcbench(root, count=6):
    sets = ('VQAv2', 'GQA', 'VizWiz', 'TextVQA', 'OCRVQA', 'ScienceQA')
    rows = [{'index': k, 'question': 'what is it?', 'A': 'red', 'B': 'blue', 'C': 'green',
             'D': 'none', 'answer': 'ABCD'[k % 4], 'category': sets[k % 6],
             'image': {'bytes': picture(k), 'path': None}} for k in range(count)]
    _benchmark(root / 'vmcbench', 'test.parquet', rows)


def _benchmark(folder, name, rows):
    """A Parquet file, and the file that says what to look at, by the data's own index."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    write_rows(folder / 'information.json', {
        str(row['index']): 'The shapes in the middle' for row in rows})
