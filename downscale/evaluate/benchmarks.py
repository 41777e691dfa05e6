"""Public benchmarks as data: how each is read, asked and scored, and where it comes from.

The first scorer of a benchmark is its headline, chosen so that it reads both a bare answer and the
'Answer: X' that reasoners are asked for; the others are its other published rules. Prompt tails are
those of lmms-eval, without which scores cannot be compared. Licences: see the card of each set;
what is known is noted.
"""
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from downscale.evaluate.asked import Asked, Questions, digest
from downscale.evaluate.benchmark_files import (
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
from downscale.evaluate.scoring.table import DEFAULT, LETTERS, SCORERS, Target, unfit
from downscale.values import hash_of, unknown

OPTION = "Answer with the option's letter from the given choices directly"
SHORT = '\nAnswer the question using a single word or phrase.'
LETTER = (DEFAULT, 'lmms_v04', 'lmms_v07_letter', 'lmms_v07_mmstar', 'vlmevalkit')
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


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How one is read (data path, picture folder -> entries), asked (its tail) and scored.

    `blind` says that questions without a picture belong to it.
    """
    name: str
    read: Callable
    tail: str
    scorers: tuple[str, ...]
    source: str
    blind: bool = False


def questions_of(benchmark, path, images=None, limit=None, scorer=''):
    """Return the first `limit` `Questions` of a benchmark's data; `images` is the folder of picture
    files, `scorer` judges in the place of the benchmark's own.

    FileNotFoundError or ValueError in one line, with counts, for ids that are there twice and for
    pictures that are missing.
    """
    if limit is not None and limit < 1:
        raise ValueError(f'--limit {limit} must be at least 1')
    path = Path(path)
    entries = list(islice(benchmark.read(path, Path(images or path.parent)), limit))
    if not entries:
        raise ValueError(f'{path} holds no question')
    names = Counter(one.id for one in entries)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f'{path}: {len(entries) - len(names)} of {len(entries)} questions have '
                         f'the id of another (first {twice[0]!r})')
    asked = []
    gone = []
    for one in entries:
        data = [picture() for picture in one.pictures]
        if not all(data) and not benchmark.blind:
            gone.append(one.id)
        pictures = tuple(digest(each) for each in data if each)
        asked.append(
            Asked(
                doc_id=one.row,
                id=one.id,
                text=one.question,
                pictures=pictures,
                answer=one.target and one.target.gold,
                information=None,
                family=one.family,
                cluster=hash_of(pictures) if pictures else one.id,
                target=one.target,
                strata=one.strata,
            )
        )
    headline = scorer or benchmark.scorers[0]
    if headline not in SCORERS:
        raise ValueError(unknown('scorer', headline, list(SCORERS)))
    odd = [one for one in asked if one.target and unfit(headline, one.target)]
    if odd:
        raise ValueError(f'{path}: {len(odd)} of {len(names)} answers do not fit {benchmark.name} '
                         f'(first {odd[0].id!r}: {unfit(headline, odd[0].target)}); is this its '
                         'file?')
    if gone:
        raise FileNotFoundError(f'{path}: {len(gone)} of {len(names)} questions lack a picture '
                                f'(first {gone[0]!r}); give the folder of the pictures with '
                                '--images, or the complete data')
    calls = {one.row: one.pictures for one in entries}
    return Questions(tuple(asked), lambda one: tuple(
        data for data in (picture() for picture in calls[one.doc_id]) if data),
        headline)


def listed(options):
    """Return the options as lines 'A. text'."""
    return '\n'.join(f'{letter}. {text}' for letter, text in options)


def inline_options(question):
    """Return the (letter, text) options inside a question, () where they do not read as such."""
    marks = list(_MARKED.finditer(question))
    if not marks:
        return ()
    _, *parts = _LETTERED.split(question[marks[-1].end():])
    letters = parts[::2]
    texts = [text.strip(' \n,;') for text in parts[1::2]]
    return tuple(zip(letters, texts)) if ''.join(letters) == LETTERS[:len(letters)] else ()


def _people(answers):
    """Return the target of several people's answers, texts or objects with an "answer"."""
    answers = [answer['answer'] if isinstance(answer, dict) else answer for answer in answers or ()]
    return Target(answers=tuple(map(str, answers))) if answers else None


# --- readers ------------------------------------------------------------------------------------

def _mmstar(path, images):
    needed = ('index', 'question', 'answer', 'category', 'l2_category')
    inside = path.suffix == '.tsv'
    rows = tsv_rows(path, (*needed, *'ABCD')) if inside else parquet_rows(path, needed)
    for number, row, picture in rows:
        options = tuple((letter, row[letter]) for letter in 'ABCD' if row[letter]) if inside \
            else inline_options(row['question'])
        question = f'{row["question"]}\nOptions:\n{listed(options)}' if inside else row['question']
        strata = (row['category'], row['l2_category'])
        target = Target(answers=(row['answer'],), choices=options)
        yield entry(number, row['index'], question, [picture], target, strata[0], strata)


def _vmcbench(path, images, only=None):
    needed = ('index', 'question', *'ABCD', 'answer', 'category')
    for number, row, picture in parquet_rows(path, needed):
        if only is None or row['category'] in only:
            options = tuple((letter, str(row[letter])) for letter in 'ABCD')
            question = f'Question: {row["question"]}\nOptions:\n{listed(options)}'
            yield entry(
                number,
                row['index'],
                question,
                [picture],
                None
                if row['answer'] is None
                else Target(answers=(str(row['answer']),), choices=options),
                row['category'],
                (row['category'],),
            )


def _six(path, images):
    return _vmcbench(path, images, SIX)


def _scienceqa(path, images):
    needed = ('question', 'choices', 'answer', 'hint', 'subject')
    for number, row, picture in parquet_rows(path, needed):
        options = tuple(zip(LETTERS, map(str, row['choices'])))
        context = f'Context: {row["hint"]}\n' if row['hint'] else ''
        yield entry(number, number, f'{context}{row["question"]}\n{listed(options)}', [picture],
                    Target(answers=(LETTERS[row['answer']],), choices=options), row['subject'])


def _gqa(path, images):
    for number, row, picture in joined_rows(
            path, ('id', 'imageId', 'question', 'answer'), '_instructions', '_images'):
        yield entry(number, row['id'], row['question'], [picture],
                    Target(answers=(str(row['answer']),)))


def _textvqa(path, images):
    for number, row, picture in parquet_rows(path, ('question_id', 'question', 'answers')):
        yield entry(number, row['question_id'], row['question'].capitalize(), [picture],
                    _people(row['answers']))


def _vqav2(path, images):
    needed = ('question_id', 'question', 'answers', 'answer_type')
    for number, row, picture in parquet_rows(path, needed):
        yield entry(number, row['question_id'], row['question'], [picture],
                    _people(row['answers']), row['answer_type'])


def _pope(path, images):
    needed = ('question_id', 'question', 'answer', 'category')
    for number, row, picture in parquet_rows(path, needed):
        yield entry(number, f'{row["category"]}-{row["question_id"]}', row['question'], [picture],
                    Target(answers=(str(row['answer']),)), row['category'])


def _coin(path, images, people=None):
    """Yield CoIN's test files: `answer` is a text, `answer_bbox` four numbers; `people` maps
    question ids to the answers of several, where the file has none.
    """
    for number, row in json_list(path, ('question_id', 'text')):
        answer = row.get('answer_bbox', row.get('answer'))
        if people is not None and not isinstance(answer, list):
            answer = people.get(str(row['question_id']))
        elif 'answer_bbox' in row and isinstance(answer, list):
            answer = json.dumps(answer)
        target = (
            _people(answer)
            if isinstance(answer, list)
            else None
            if answer is None
            else Target(answers=(str(answer),), choices=inline_options(row['text']))
        )
        shown = beside(images, [row['image']] if row.get('image') else [])
        yield entry(number, row['question_id'], row['text'], shown, target)


def _coin_textvqa(path, images):
    """Return the answers of ten people stand in TextVQA's own file, beside CoIN's."""
    own = path.with_name('TextVQA_0.5.1_val.json')
    return _coin(path, images, textvqa_answers(own) if own.is_file() else {})


def _nights(path, images):
    """Yield dreamsim's data.csv, by place: 0 id, 2 whether right won, 4 to 6 reference, left,
    right.
    """
    for number, row, line in csv_rows(path, ('votes', 'split')):
        where = f'{path}, entry {number}'
        if row['split'] == 'test' and number_of(row['votes'], where) >= VOTES:
            kind = 'imagenet' if row.get('is_imagenet') == 'True' else 'other'
            yield entry(number, line[0], PREFERENCE, beside(images, line[4:7]),
                        _shared(line[2], where), kind)


def _pieapp(path, images):
    """Yield a CSV with the columns reference, left, right (picture files) and share (who took
    right).
    """
    for number, row, _ in csv_rows(path, ('reference', 'left', 'right', 'share')):
        names = [row[name] for name in ('reference', 'left', 'right')]
        yield entry(number, number, PREFERENCE, beside(images, names),
                    _shared(row['share'], f'{path}, entry {number}'), names[0])


def _shared(text, where):
    share = number_of(text, where)
    if not 0 <= share <= 1:
        raise ValueError(f'{where}: a share of people must be from 0 to 1, not {share}')
    options = (('A', 'the second picture'), ('B', 'the third picture'))
    return Target(answers=('B' if share > 0.5 else 'A',), choices=options, share=share)


def _interleave(path, images):
    """Yield multi-image tasks in LLaVA-Interleave's JSON; only first turns, pictures in front."""
    groups = {name: group for group, names in GROUPS.items() for name in names}
    for number, row in json_list(path, ('sample_id', 'conversations', 'image', 'metadata')):
        asked, told, *_ = row['conversations']
        name = row['metadata']['dataset']
        kind = row['metadata']['question_type']
        names = row['image'] if isinstance(row['image'], list) else [row['image']]
        yield entry(number, f'{name}-{row["sample_id"]}', asked['value'],
                    beside(images, names),
                    Target(answers=(told['value'],), free=kind == 'open-ended'), kind,
                    (groups.get(name, name), name))


def _table():
    two = ('preferred', DEFAULT, 'lmms_v04', 'vlmevalkit')
    coin = 'CoIN (github.com/zackschen/CoIN): test.json, its pictures below --images'
    yield Benchmark(
        name='mmstar',
        read=_mmstar,
        tail=f'\n{OPTION}',
        scorers=('ref_stage2', *LETTER),
        source='hub Lin-Chen/MMStar, mmstar.parquet; or MMStar.tsv of VLMEvalKit',
    )
    yield Benchmark(
        name='vmcbench',
        read=_vmcbench,
        tail=f'\n{OPTION}.\n',
        scorers=('vmcbench', *LETTER),
        source='hub suyc21/VMCBench, one split',
    )
    yield Benchmark(
        name='vmcbench-six',
        read=_six,
        tail=f'\n{OPTION}.\n',
        scorers=('vmcbench', *LETTER),
        source=f'hub suyc21/VMCBench; only {", ".join(SIX)}',
    )
    yield Benchmark(name='scienceqa', read=_scienceqa, tail=f'\n{OPTION}.',
                    scorers=('coin_scienceqa', 'lmms_scienceqa', *LETTER),
                    source='hub lmms-lab/ScienceQA (CC BY-NC-SA 4.0)', blind=True)
    yield Benchmark(
        name='gqa',
        read=_gqa,
        tail=SHORT,
        scorers=('lmms_exact', DEFAULT, 'coin_equal'),
        source='hub lmms-lab/GQA, a folder with testdev_balanced_instructions and '
        'testdev_balanced_images (CC BY 4.0)',
    )
    yield Benchmark(name='textvqa', read=_textvqa, tail=SHORT, scorers=('vqa', DEFAULT),
                    source='hub lmms-lab/textvqa, validation (CC BY 4.0)')
    yield Benchmark(
        name='vizwiz',
        read=_textvqa,
        tail='\nWhen the provided information is insufficient, respond '
        f"with 'Unanswerable'.{SHORT}",
        scorers=('vqa', DEFAULT),
        source='hub lmms-lab/VizWiz-VQA, val (CC BY 4.0)',
    )
    yield Benchmark(
        name='vqav2',
        read=_vqav2,
        tail=SHORT,
        scorers=('vqav2', 'vqav2_v04', 'vqa', DEFAULT),
        source='hub lmms-lab/VQAv2, validation (questions CC BY 4.0; pictures of COCO)',
    )
    yield Benchmark(name='pope', read=_pope, tail=SHORT, scorers=('pope', 'yes_no', DEFAULT),
                    source='hub lmms-lab/POPE, test (pictures of COCO)')
    for name, scorers in (
            ('scienceqa', ('coin_scienceqa', 'lmms_scienceqa', *LETTER)),
            ('textvqa', ('vqa', DEFAULT)), ('gqa', ('lmms_exact', 'coin_equal', DEFAULT)),
            ('vqav2', ('coin_equal', DEFAULT)), ('vizwiz', ('coin_equal', DEFAULT)),
            ('ocrvqa', ('coin_ocrvqa', 'coin_equal', DEFAULT)),
            ('imagenet', ('coin_imagenet', 'coin_equal', DEFAULT)),
            ('grounding', ('coin', 'coin_compat', 'refcoco', DEFAULT))):
        read, source = (_coin_textvqa, f'{coin}, TextVQA_0.5.1_val.json beside it') \
            if name == 'textvqa' else (_coin, coin)
        yield Benchmark(
            name=f'coin-{name}',
            read=read,
            tail='',
            scorers=scorers,
            source=source,
            blind=name == 'scienceqa',
        )
    yield Benchmark(name='nights', read=_nights, tail=f'\n{OPTION}.', scorers=two,
                    source='dreamsim (github.com/ssundaram21/dreamsim), data.csv; votes >= 6, test')
    yield Benchmark(name='pieapp', read=_pieapp, tail=f'\n{OPTION}.', scorers=two,
                    source='PieAPP, as a CSV with the columns reference, left, right, share')
    yield Benchmark(
        name='interleave',
        read=_interleave,
        tail='',
        scorers=('interleave', 'rouge_l', 'lmms_interleave'),
        source='hub lmms-lab/LLaVA-NeXT-Interleave-Bench, its JSON; pictures below --images',
    )


BENCHMARKS = {benchmark.name: benchmark for benchmark in _table()}
