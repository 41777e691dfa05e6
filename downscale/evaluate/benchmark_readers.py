"""Readers of published benchmarks: the data of each, as `Entry`s.

Where harnesses write a question in their own way, with its options or a hint, it is written so
here: scores can be compared only between equal prompts.
"""
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from downscale.evaluate.benchmark_files import (
    Entry,
    beside,
    csv_rows,
    entry,
    joined_rows,
    json_list,
    number_of,
    parquet_rows,
    textvqa_answers,
    tsv_rows,
)
from downscale.evaluate.scoring.choices import LETTERS
from downscale.evaluate.scoring.targets import Target

# The six sets of VMCBench that arXiv 2511.17487 trains on (its in-domain tasks).
SIX = ('VQAv2', 'GQA', 'VizWiz', 'TextVQA', 'OCRVQA', 'ScienceQA')
# The groups of tasks with several pictures (LLaVA-NeXT, evaluate_interleave; the paper's names).
GROUPS = {
    'Spot-Diff': ('Spot-the-Diff', 'Birds-to-Words', 'CLEVR-Change'),
    'IEI': ('IEdit', 'HQ-Edit', 'MagicBrush'),
    'VST': ('AESOP', 'FlintstonesSV', 'PororoSV', 'VIST'),
    'TR-VQA': ('WebQA', 'TQA', 'OCR-VQA', 'DocVQA'),
    'MI-VQA': ('MIT-States_StateCoherence', 'MIT-States_PropertyCoherence', 'VISION',
               'RecipeQA_ImageCoherence'),
    'Puzzle': ('RAVEN',)}
PREFERENCE = ('The first picture is a reference. Which of the other two looks more like it?\n'
              'A. the second picture\nB. the third picture')
VOTES = 6  # triplets on which fewer people agreed are left out (dreamsim)

_MARKED = re.compile(r'(?:Options|Choices)\s*:', re.IGNORECASE)
_LETTERED = re.compile(r'(?:^|[\s,;])\(?([A-Z])[:.)]\s+')


def listed(options: Iterable[tuple[str, str]]) -> str:
    """Return the options as lines 'A. text'."""
    return '\n'.join(f'{letter}. {text}' for letter, text in options)


def inline_options(question: str) -> tuple[tuple[str, str], ...]:
    """Return the (letter, text) options inside a question, () where they do not read as such."""
    # The last mark: the question itself may speak of options.
    marks = list(_MARKED.finditer(question))
    if not marks:
        return ()
    _, *parts = _LETTERED.split(question[marks[-1].end():])
    # Letters that are not A, B, C ... in order were words of the text, not options.
    letters = parts[::2]
    texts = [text.strip(' \n,;') for text in parts[1::2]]
    return tuple(zip(letters, texts)) if ''.join(letters) == LETTERS[:len(letters)] else ()


def _people(answers):
    """Return the target of several people's answers, texts or objects with an "answer"."""
    texts = [answer['answer'] if isinstance(answer, dict) else answer for answer in answers or ()]
    return Target(answers=tuple(map(str, texts))) if texts else None


# --- readers ------------------------------------------------------------------------------------

def mmstar(path: Path, images: Path) -> Iterator[Entry]:
    """Yield MMStar, from its parquet file or from VLMEvalKit's TSV."""
    needed = ('index', 'question', 'answer', 'category', 'l2_category')
    inside = path.suffix == '.tsv'
    rows = tsv_rows(path, (*needed, *'ABCD')) if inside else parquet_rows(path, needed)
    for number, row, picture in rows:
        # The parquet file has the options inside the question, the TSV in columns.
        question = row['question']
        if inside:
            options = tuple((letter, row[letter]) for letter in 'ABCD' if row[letter])
            question = f'{question}\nOptions:\n{listed(options)}'
        else:
            options = inline_options(question)
        strata = (row['category'], row['l2_category'])
        target = Target(answers=(row['answer'],), choices=options)
        yield entry(number, row['index'], question, [picture], target, strata[0], strata)


def vmcbench(path: Path, images: Path, only: Sequence[str] | None = None) -> Iterator[Entry]:
    """Yield VMCBench, of all its sets or of `only` some; a split without answers has no targets."""
    needed = ('index', 'question', *'ABCD', 'answer', 'category')
    for number, row, picture in parquet_rows(path, needed):
        if only is None or row['category'] in only:
            options = tuple((letter, str(row[letter])) for letter in 'ABCD')
            question = f'Question: {row["question"]}\nOptions:\n{listed(options)}'
            target = None
            if row['answer'] is not None:
                target = Target(answers=(str(row['answer']),), choices=options)
            category = row['category']
            yield entry(number, row['index'], question, [picture], target, category, (category,))


def vmcbench_six(path: Path, images: Path) -> Iterator[Entry]:
    """Yield the sets of VMCBench that the paper trains on."""
    return vmcbench(path, images, SIX)


def scienceqa(path: Path, images: Path) -> Iterator[Entry]:
    """Yield ScienceQA, its hint as context; questions without a picture too."""
    needed = ('question', 'choices', 'answer', 'hint', 'subject')
    for number, row, picture in parquet_rows(path, needed):
        options = tuple(zip(LETTERS, map(str, row['choices'])))
        context = f'Context: {row["hint"]}\n' if row['hint'] else ''
        yield entry(number, number, f'{context}{row["question"]}\n{listed(options)}', [picture],
                    Target(answers=(LETTERS[row['answer']],), choices=options), row['subject'])


def gqa(path: Path, images: Path) -> Iterator[Entry]:
    """Yield GQA from its two folders of questions and of pictures."""
    for number, row, picture in joined_rows(
            path, ('id', 'imageId', 'question', 'answer'), '_instructions', '_images'):
        yield entry(number, row['id'], row['question'], [picture],
                    Target(answers=(str(row['answer']),)))


def textvqa(path: Path, images: Path) -> Iterator[Entry]:
    """Yield TextVQA or VizWiz; questions begin with a capital, as lmms-eval writes them."""
    for number, row, picture in parquet_rows(path, ('question_id', 'question', 'answers')):
        yield entry(number, row['question_id'], row['question'].capitalize(), [picture],
                    _people(row['answers']))


def vqav2(path: Path, images: Path) -> Iterator[Entry]:
    """Yield VQAv2; the kind of answer is the family."""
    needed = ('question_id', 'question', 'answers', 'answer_type')
    for number, row, picture in parquet_rows(path, needed):
        yield entry(number, row['question_id'], row['question'], [picture],
                    _people(row['answers']), row['answer_type'])


def pope(path: Path, images: Path) -> Iterator[Entry]:
    """Yield POPE, whose three categories number their questions alike."""
    needed = ('question_id', 'question', 'answer', 'category')
    for number, row, picture in parquet_rows(path, needed):
        yield entry(number, f'{row["category"]}-{row["question_id"]}', row['question'], [picture],
                    Target(answers=(str(row['answer']),)), row['category'])


def coin(path: Path, images: Path,
         people: Mapping[str, list[str]] | None = None) -> Iterator[Entry]:
    """Yield CoIN's test files: `answer` is a text, `answer_bbox` four numbers.

    `people` maps question ids to the answers of several, where the file has none.
    """
    for number, row in json_list(path, ('question_id', 'text')):
        answer = row.get('answer_bbox', row.get('answer'))
        if people is not None and not isinstance(answer, list):
            answer = people.get(str(row['question_id']))
        elif 'answer_bbox' in row and isinstance(answer, list):
            answer = json.dumps(answer)
        target = None
        if isinstance(answer, list):
            target = _people(answer)
        elif answer is not None:
            target = Target(answers=(str(answer),), choices=inline_options(row['text']))
        shown = beside(images, [row['image']] if row.get('image') else [])
        yield entry(number, row['question_id'], row['text'], shown, target)


def coin_textvqa(path: Path, images: Path) -> Iterator[Entry]:
    """Yield CoIN's TextVQA, whose answers stand in TextVQA's own file beside it."""
    annotations = path.with_name('TextVQA_0.5.1_val.json')
    people = textvqa_answers(annotations) if annotations.is_file() else {}
    return coin(path, images, people)


def nights(path: Path, images: Path) -> Iterator[Entry]:
    """Yield the test triplets of dreamsim's data.csv on which at least `VOTES` people agreed.

    Columns by place: 0 id, 2 whether right won, 4 to 6 reference, left, right.
    """
    for number, row, line in csv_rows(path, ('votes', 'split')):
        where = f'{path}, entry {number}'
        if row['split'] == 'test' and number_of(row['votes'], where) >= VOTES:
            kind = 'imagenet' if row.get('is_imagenet') == 'True' else 'other'
            yield entry(number, line[0], PREFERENCE, beside(images, line[4:7]),
                        _shared(line[2], where), kind)


def pieapp(path: Path, images: Path) -> Iterator[Entry]:
    """Yield a CSV with the columns reference, left, right (picture files) and share.

    `share` is that of the people who took right.
    """
    for number, row, _ in csv_rows(path, ('reference', 'left', 'right', 'share')):
        names = [row[name] for name in ('reference', 'left', 'right')]
        yield entry(number, number, PREFERENCE, beside(images, names),
                    _shared(row['share'], f'{path}, entry {number}'), names[0])


def _shared(text, where):
    """Return the target of a share of people who took the second of two pictures."""
    share = number_of(text, where)
    if not 0 <= share <= 1:
        raise ValueError(f'{where}: a share of people must be from 0 to 1, not {share}')
    options = (('A', 'the second picture'), ('B', 'the third picture'))
    return Target(answers=('B' if share > 0.5 else 'A',), choices=options, share=share)


def interleave(path: Path, images: Path) -> Iterator[Entry]:
    """Yield multi-image tasks in LLaVA-Interleave's JSON; only first turns, pictures in front."""
    groups = {}
    for group, names in GROUPS.items():
        groups |= dict.fromkeys(names, group)
    for number, row in json_list(path, ('sample_id', 'conversations', 'image', 'metadata')):
        asked, answered, *_ = row['conversations']
        name = row['metadata']['dataset']
        kind = row['metadata']['question_type']
        names = row['image'] if isinstance(row['image'], list) else [row['image']]
        yield entry(number, f'{name}-{row["sample_id"]}', asked['value'],
                    beside(images, names),
                    Target(answers=(answered['value'],), free=kind == 'open-ended'), kind,
                    (groups.get(name, name), name))
