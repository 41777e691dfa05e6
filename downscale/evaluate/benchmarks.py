"""Public benchmarks as data: how each is read, asked and scored, and where it comes from.

The first scorer of a benchmark is its headline, chosen so that it reads both a bare answer and the
'Answer: X' that reasoners are asked for; the others are its other published rules. Prompt tails are
those of lmms-eval, without which scores cannot be compared. Licences: see the card of each set;
what is known is noted.
"""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from downscale.data.images import digest
from downscale.evaluate import benchmark_readers
from downscale.evaluate.asked import Asked, Questions
from downscale.evaluate.benchmark_files import Entry
from downscale.evaluate.scoring.table import DEFAULT, SCORERS, unfit
from downscale.runtime.files import PathLike
from downscale.values import hash_of, unknown

OPTION = "Answer with the option's letter from the given choices directly"
SHORT = '\nAnswer the question using a single word or phrase.'
LETTER = (DEFAULT, 'lmms_v04', 'lmms_v07_letter', 'lmms_v07_mmstar', 'vlmevalkit')


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How one is read (data path, picture folder -> entries), asked (its tail) and scored.

    `blind` says that questions without a picture belong to it.
    """
    name: str
    read: Callable[[Path, Path], Iterator[Entry]]
    tail: str
    scorers: tuple[str, ...]
    source: str
    blind: bool = False


def questions_of(benchmark: Benchmark, path: PathLike, images: PathLike | None = None,
                 limit: int | None = None, scorer: str = '') -> Questions:
    """Return the first `limit` `Questions` of a benchmark's data.

    `images` is the folder of picture files, `scorer` judges in the place of the benchmark's own.
    FileNotFoundError or ValueError in one line, with counts, for ids that are there twice and for
    pictures that are missing.
    """
    if limit is not None and limit < 1:
        raise ValueError(f'--limit {limit} must be at least 1')
    path = Path(path)
    entries = list(islice(benchmark.read(path, Path(images or path.parent)), limit))
    if not entries:
        raise ValueError(f'{path} holds no question')
    names = Counter(entry.id for entry in entries)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f'{path}: {len(entries) - len(names)} of {len(entries)} questions have '
                         f'the id of another (first {twice[0]!r})')
    asked = []
    gone = []
    for entry in entries:
        # Every picture is read once now, for its digest, and again when it is shown.
        data = [picture() for picture in entry.pictures]
        if not all(data) and not benchmark.blind:
            gone.append(entry.id)
        asked.append(_asked(entry, [png for png in data if png]))
    headline = scorer or benchmark.scorers[0]
    if headline not in SCORERS:
        raise ValueError(unknown('scorer', headline, list(SCORERS)))
    reasons = {entry.id: unfit(headline, entry.target) for entry in entries if entry.target}
    odd = [name for name, reason in reasons.items() if reason]
    if odd:
        raise ValueError(f'{path}: {len(odd)} of {len(names)} answers do not fit {benchmark.name} '
                         f'(first {odd[0]!r}: {reasons[odd[0]]}); is this its file?')
    if gone:
        raise FileNotFoundError(f'{path}: {len(gone)} of {len(names)} questions lack a picture '
                                f'(first {gone[0]!r}); give the folder of the pictures with '
                                '--images, or the complete data')
    calls = {entry.row: entry.pictures for entry in entries}

    def pictures_of(question):
        pngs = [picture() for picture in calls[question.doc_id]]
        return tuple(png for png in pngs if png)

    return Questions(tuple(asked), pictures_of, headline)


def _asked(entry: Entry, pngs: Sequence[bytes]) -> Asked:
    pictures = tuple(map(digest, pngs))
    return Asked(
        doc_id=entry.row,
        id=entry.id,
        text=entry.question,
        pictures=pictures,
        answer=entry.target.gold if entry.target else None,
        information=None,
        family=entry.family,
        cluster=hash_of(pictures) if pictures else entry.id,
        target=entry.target,
        strata=entry.strata,
    )


def _options():
    """Yield the benchmarks whose questions have options."""
    yield Benchmark(
        name='mmstar',
        read=benchmark_readers.mmstar,
        tail=f'\n{OPTION}',
        scorers=('ref_stage2', *LETTER),
        source='hub Lin-Chen/MMStar, mmstar.parquet; or MMStar.tsv of VLMEvalKit',
    )
    yield Benchmark(
        name='vmcbench',
        read=benchmark_readers.vmcbench,
        tail=f'\n{OPTION}.\n',
        scorers=('vmcbench', *LETTER),
        source='hub suyc21/VMCBench, one split',
    )
    yield Benchmark(
        name='vmcbench-six',
        read=benchmark_readers.vmcbench_six,
        tail=f'\n{OPTION}.\n',
        scorers=('vmcbench', *LETTER),
        source=f'hub suyc21/VMCBench; only {", ".join(benchmark_readers.SIX)}',
    )
    yield Benchmark(
        name='scienceqa',
        read=benchmark_readers.scienceqa,
        tail=f'\n{OPTION}.',
        scorers=('coin_scienceqa', 'lmms_scienceqa', *LETTER),
        source='hub lmms-lab/ScienceQA (CC BY-NC-SA 4.0)',
        blind=True,
    )


def _short_answers():
    """Yield the benchmarks that are answered in a word or phrase."""
    yield Benchmark(
        name='gqa',
        read=benchmark_readers.gqa,
        tail=SHORT,
        scorers=('lmms_exact', DEFAULT, 'coin_equal'),
        source='hub lmms-lab/GQA, a folder with testdev_balanced_instructions and '
        'testdev_balanced_images (CC BY 4.0)',
    )
    yield Benchmark(
        name='textvqa',
        read=benchmark_readers.textvqa,
        tail=SHORT,
        scorers=('vqa', DEFAULT),
        source='hub lmms-lab/textvqa, validation (CC BY 4.0)',
    )
    yield Benchmark(
        name='vizwiz',
        read=benchmark_readers.textvqa,
        tail='\nWhen the provided information is insufficient, respond '
        f"with 'Unanswerable'.{SHORT}",
        scorers=('vqa', DEFAULT),
        source='hub lmms-lab/VizWiz-VQA, val (CC BY 4.0)',
    )
    yield Benchmark(
        name='vqav2',
        read=benchmark_readers.vqav2,
        tail=SHORT,
        scorers=('vqav2', 'vqav2_v04', 'vqa', DEFAULT),
        source='hub lmms-lab/VQAv2, validation (questions CC BY 4.0; pictures of COCO)',
    )
    yield Benchmark(
        name='pope',
        read=benchmark_readers.pope,
        tail=SHORT,
        scorers=('pope', 'yes_no', DEFAULT),
        source='hub lmms-lab/POPE, test (pictures of COCO)',
    )


COIN_SCORERS = {
    'scienceqa': ('coin_scienceqa', 'lmms_scienceqa', *LETTER),
    'textvqa': ('vqa', DEFAULT),
    'gqa': ('lmms_exact', 'coin_equal', DEFAULT),
    'vqav2': ('coin_equal', DEFAULT),
    'vizwiz': ('coin_equal', DEFAULT),
    'ocrvqa': ('coin_ocrvqa', 'coin_equal', DEFAULT),
    'imagenet': ('coin_imagenet', 'coin_equal', DEFAULT),
    'grounding': ('coin', 'coin_compat', 'refcoco', DEFAULT),
}


def _coin():
    """Yield the tasks of CoIN, whose questions hold their own tails."""
    for name, scorers in COIN_SCORERS.items():
        read = benchmark_readers.coin
        source = 'CoIN (github.com/zackschen/CoIN): test.json, its pictures below --images'
        if name == 'textvqa':
            read = benchmark_readers.coin_textvqa
            source += ', TextVQA_0.5.1_val.json beside it'
        yield Benchmark(
            name=f'coin-{name}',
            read=read,
            tail='',
            scorers=scorers,
            source=source,
            blind=name == 'scienceqa',
        )


def _several_pictures():
    """Yield the benchmarks about two and more pictures."""
    two = ('preferred', DEFAULT, 'lmms_v04', 'vlmevalkit')
    yield Benchmark(
        name='nights',
        read=benchmark_readers.nights,
        tail=f'\n{OPTION}.',
        scorers=two,
        source='dreamsim (github.com/ssundaram21/dreamsim), data.csv; votes >= 6, test',
    )
    yield Benchmark(
        name='pieapp',
        read=benchmark_readers.pieapp,
        tail=f'\n{OPTION}.',
        scorers=two,
        source='PieAPP, as a CSV with the columns reference, left, right, share',
    )
    yield Benchmark(
        name='interleave',
        read=benchmark_readers.interleave,
        tail='',
        scorers=('interleave', 'rouge_l', 'lmms_interleave'),
        source='hub lmms-lab/LLaVA-NeXT-Interleave-Bench, its JSON; pictures below --images',
    )


BENCHMARKS = {benchmark.name: benchmark for benchmark in (
    *_options(), *_short_answers(), *_coin(), *_several_pictures())}
