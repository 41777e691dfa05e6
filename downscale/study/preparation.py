"""What stands in a study's folder before its first task: data, pictures and `study.json`."""
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from downscale.accounting import stored_bytes, totals
from downscale.config import Experiment, load
from downscale.experiment.expansion import changes_of
from downscale.experiment.factors import factors_of
from downscale.experiment.shrunk import way_of
from downscale.experiment.teachers import needs_of
from downscale.runtime.files import place, read_json, scratch, write_json
from downscale.runtime.progress import progress_bars
from downscale.stages.folders import folder_of
from downscale.study.tasks import names
from downscale.values import hash_of

FIRST_TEXTS = 64  # of each stage that are measured before anything is trained


def prepare(study: Path, name: str, experiments: Sequence[Experiment], quiet: bool,
            claims: Any = None) -> None:
    """Make the data set, some pictures and `study.json`, also where they are there already.

    `claims` are those that the study file declares; ValueError where they differ from what was
    written before an evaluation that is finished. What an earlier command on the same study has
    begun stays part of it (see `begun_before`): one may be run in pieces, such as seed by seed.
    """
    from downscale.stages import inputs
    # Before anything is made: claims and settings that changed are refused at once.
    claims = registered(study, claims)
    earlier = begun_before(study, name, experiments)
    from downscale.evaluate import guessers
    from downscale.evaluate.run import save_pictures, test_items
    cell = experiments[0]
    with progress_bars(quiet) as bars:
        # The first cell's data last: they are those of the study, for whoever opens its folder.
        different = {}
        for other in experiments:
            different.setdefault(repr((other.world, other.data)), other)
        for other in reversed(different.values()):
            inputs.prepare(study, other, lambda done, total: bars('scenes', done, total),
                           experiments)
        check_room(study, experiments)
        if not cell.asks:
            bars.note('this study asks nothing: evaluation.scenes is 0 and there are no benchmarks')
    items = test_items(study, cell)
    save_pictures(study, cell, items)
    # A data set holds the baselines of its own test questions; those of others are computed.
    if cell.evaluation.benchmarks or not items:
        baselines = guessers.baselines(items)
    else:
        data = read_json(scratch(study) / 'data.json')
        baselines = read_json(scratch(study) / data['folder'] / 'baselines.json')['test']
    if earlier:
        with progress_bars(quiet) as bars:
            bars.note(f'{len(earlier)} cells of earlier commands stay part of this study: '
                      f'{", ".join(cell.name for cell in earlier[:3])}'
                      f'{", ..." if len(earlier) > 3 else ""}')
    # Of what this command asks for: jobs of `launch` know by it whether theirs was prepared.
    config_hash = hash_of([cell.hash for cell in experiments])
    experiments = [*earlier, *experiments]
    by_name = {cell.name: cell for cell in experiments}
    runs = [_run_row(cell, by_name) for cell in experiments if not cell.is_shared]
    data = {'hash': inputs.data_hash(cell), 'baselines': baselines,
            'image_px': cell.world.side, 'asked': len(items),
            'pictures': len({item.question.cluster_id for item in items})}
    # Last, for its presence says that the rest is there.
    write_json(place(study) / 'study.json', {
        'name': name, 'seed': cell.seed, 'runs': runs,
        'config_hash': config_hash,
        'stages': {cell.name: [] if cell.trained_as else names(cell)
                   for cell in experiments},
        'budgets': budgets_of(experiments),
        'factors': {**ways_of(runs), **factors_of(experiments)},
        'data': data, **claims})


def begun_before(study: Path, name: str, experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return the cells of this study that have begun in its folder and are not in `experiments`.

    Of another study, or of one that asked about other data, there are none. ValueError for one that
    would stand beside another seed of other settings, or that lacks the cell that it goes on from.
    """
    from downscale.stages.inputs import data_hash
    before = read_json(place(study) / 'study.json') or {}
    # Files of questions are opened for the hash: where none is needed, others say what they lack.
    if before.get('name') != name or before.get('data', {}).get(
            'hash') != data_hash(experiments[0]):
        return []
    named = {cell.name for cell in experiments}
    earlier = {}
    for cell in before.get('stages', {}):
        # A cell that never began has no file, and nothing to show.
        folders = sorted(place(study).glob(f'cells/{cell}/*/experiment.json'))
        if cell not in named and folders:
            earlier[cell] = load(folders[0].parent)
    asked = {_of_any_seed(cell, cell.name): cell for cell in experiments}
    called = {run['run_id']: run.get('changes', '') for run in before.get('runs', ())}
    for cell in earlier.values():
        now = asked.get(_of_any_seed(cell, cell.name), cell)
        if _settings(cell) != _settings(now):
            raise ValueError(f'{cell.name} in {study} was begun under other settings than '
                             f'{now.name} has now; put them back, or give another folder')
        for gone in sorted({*needs_of(cell)} - {*named, *earlier}):
            raise ValueError(f'{cell.name} in {study} goes on from {gone}, whose folder is gone; '
                             f'delete that of {cell.name} too')
        # Seeds of one setting are called alike, whatever it was called when they began.
        earlier[cell.name] = replace(cell, label=called.get(
            cell.name, cell.label) if now is cell else now.label)
    return list(earlier.values())


def _of_any_seed(cell, text):
    """Return a text about a cell without its seed."""
    return text.replace(f'-s{cell.seed}', '-s')


def _settings(cell):
    """Return what the seeds of a cell have in common."""
    # By sorted keys: a cell that was read has its parents in another order than one just declared.
    return _of_any_seed(cell, json.dumps(asdict(replace(cell, name='', seed=0, label='')),
                                          sort_keys=True))


def check_room(study: Path, experiments: Iterable[Experiment]) -> None:
    """Raise ValueError where a stage that has not begun has no room for some of its first texts.

    It would fail as soon as it begins, when others have trained for it.
    """
    from downscale.policy import descriptions
    from downscale.stages import inputs
    seen = set()
    for cell in experiments:
        for stage in () if cell.trained_as else cell.stages:
            # Sizes of a study have the same texts: one stands for all.
            decides = stage.policy if stage.kind.rows == 'written' else stage.recipe
            same = (stage.name, hash_of(asdict(decides)), stage.shape, cell.chat,
                    repr((cell.world, cell.data)))
            if stage.mixture or same in seen or folder_of(study, cell, stage.name).exists():
                continue
            seen.add(same)
            if stage.kind.rows == 'written':
                descriptions.check_room(study, cell, stage)
                continue
            sampler, seed = inputs.sampler_of(study, cell, stage)
            order = sampler.sequence(seed)
            try:
                for number in range(FIRST_TEXTS):
                    order[number]
            except ValueError as error:
                raise ValueError(f'stage {stage.name}: {error}') from None


def budgets_of(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Return {name of a cell: the budget that its point declares}, where one is declared."""
    return {cell.name: cell.budget for cell in experiments if cell.budget}


def registered(study: Path, claims: Any) -> dict[str, Any]:
    """Return {'claims': the claims with all their defaults}, or {} without; see `prepare`."""
    from downscale.analysis.claims import read
    declared = {} if claims is None else {'claims': [asdict(claim) for claim in read(claims)]}
    before = read_json(place(study) / 'study.json')
    # Those of an older study may lack what claims say by now: they have its defaults.
    earlier = before.get('claims') if before else None
    if earlier is not None:
        earlier = [asdict(claim) for claim in read(earlier)]
    if before and earlier != declared.get('claims') \
            and any(place(study).glob('evaluations/*/DONE.json')):
        raise ValueError(f'the claims differ from those in {study}/study.json, which were declared '
                         'before the evaluations that are finished; put them back, or give the '
                         'study another folder')
    return declared


def ways_of(runs: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the factor {'way': {cell: how it came to its size}} where there are several ways."""
    ways = {run['run_id']: run['way'] for run in runs}
    return {'way': ways} if len(set(ways.values())) > 1 else {}


def _run_row(cell, by_name):
    """Return the entry of a cell in the `runs` of study.json."""
    return {'run_id': cell.name, 'size': cell.size, 'width': cell.language.D,
            'depth': cell.language.N, 'seed': cell.seed, 'changes': changes_of(cell),
            'way': way_of(cell, by_name), 'bytes': _bytes(cell),
            **totals(cell.language, cell.vision)}


def _bytes(cell):
    """Return what storing the language model of a cell takes, as it is when it is asked."""
    bits, group = next(((stage.bits, stage.group) for stage in cell.stages if stage.bits), (0, 1))
    return stored_bytes(cell.language, bits, group)
