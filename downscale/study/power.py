"""What each declared claim can show, before anything is trained: one line a claim."""
from collections.abc import Iterator, Mapping
from typing import Any

from downscale.analysis.claims import Claim, read
from downscale.statistics import power

OVER_FAMILIES = 'drop_by_reliance'   # the contrast whose interval is over families


def lines(meta: Mapping[str, Any]) -> list[str]:
    """Return how sure each claim of a `study.json` can be told; [] where it declares none.

    Its `data` count questions (`asked`) and `pictures`. Seeds are those of every size. The spread
    between seeds is the `seed_sd` of the claim, an assumption.
    """
    claims = read(meta.get('claims') or ())
    data = meta.get('data', {})
    questions = data.get('asked', 0)
    if not claims or not questions:
        return []
    seeds_of = {}
    for run in meta['runs']:
        seeds_of.setdefault(run['size'], set()).add(run['seed'])
    seeds = min(map(len, seeds_of.values()))
    pictures = data.get('pictures', questions)
    asked = f'{questions} questions on {_count(pictures, "picture")}'
    head = f'what {_count(seeds, "seed")} and {asked} show with 80 % power'
    families = len(data.get('baselines', {}))
    return [head, *_told(claims, seeds, questions, pictures, families)]


def _count(number, noun):
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _told(claims, seeds, questions, pictures, families) -> Iterator[str]:
    """Yield a line for each claim."""
    for claim in claims:
        few = f'; {claim.seeds} seeds are needed, so it stays inconclusive' \
            if seeds < claim.seeds else ''
        if claim.contrast == OVER_FAMILIES:
            rank = power.smallest_rank_correlation(families)
            what = (f'a rank correlation of {rank:.2f} over {families} families' if rank < 1 else
                    f'no rank correlation: {families} families are too few')
            # Its interval is over families, however many seeds there are.
            few = f'; it covers no seeds, and {claim.seeds} are needed' if claim.seeds > 1 else ''
            yield f'{claim.id}: {what}{few}'
            continue
        error = power.error(seeds, claim.seed_sd, questions, pictures)
        assumed = f'if seeds differ by {claim.seed_sd:g}' if seeds > 1 else 'over pictures only'
        yield f'{claim.id}: {_of_test(claim, error)}, {assumed}{few}'


def _of_test(claim: Claim, error: tuple[float, float]) -> str:
    """Return what the test of a claim shows with this (standard error, degrees)."""
    smallest = power.smallest_effect(*error)
    if claim.test == 'greater':
        return f'an effect above {claim.threshold + smallest:.3f}'
    shown = power.equivalence(*error, claim.threshold)
    hardly = ', so it can hardly be supported' if shown < .1 else ''
    return (f'where there is no difference, {shown:.0%} of studies can say that it is within '
            f'+-{claim.threshold:g}{hardly}; one above {claim.threshold + smallest:.3f} is told to '
            'be outside')
