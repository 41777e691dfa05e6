"""The factors of a study as `study.json` holds them: which runs are at which level."""
from typing import Any


def levels_of(meta: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return {factor: {level, as text: its runs}}, numbers in their order, others as declared.

    Factors that always change together are one, of the name 'A, B' and levels 'a, b'.
    """
    alike = {}   # how the runs are divided: [factors]
    for factor, values in meta.get('factors', {}).items():
        first = {}
        for value in values.values():
            first.setdefault(repr(value), len(first))
        parts = tuple((run, first[repr(value)]) for run, value in values.items())
        alike.setdefault(parts, []).append(factor)
    factors = {}
    for names in alike.values():
        together = [meta['factors'][name] for name in names]
        runs = sorted(together[0], key=lambda run: _order(together[0][run]))
        by_level = factors[', '.join(names)] = {}
        for run in runs:
            level = ', '.join(text_of(values[run]) for values in together)
            by_level.setdefault(level, []).append(run)
    return factors


def text_of(value: Any) -> str:
    """Return a level as the report shows it."""
    if isinstance(value, list):
        return '+'.join(map(text_of, value)) or 'none'
    return f'{value:g}' if isinstance(value, float) else str(value)


def _order(value):
    """Return what numbers are sorted by; all else stays as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else 0.


def usual(meta: dict[str, Any]) -> dict[str, str]:
    """Return {factor: the level of the plain runs, or where there are none the last}."""
    unchanged = [run for run in meta['runs'] if not run.get('changes')]
    # What was made smaller afterwards is compared with what was trained, not the reverse.
    trained = [run for run in unchanged if run.get('way', '') in ('', 'trained')]
    plain = {run['run_id'] for run in trained or unchanged}
    levels = {}
    for factor, by_level in levels_of(meta).items():
        of_plain = [level for level, runs in by_level.items() if not plain.isdisjoint(runs)]
        levels[factor] = of_plain[0] if of_plain else list(by_level)[-1]
    return levels


def apart(meta: dict[str, Any]) -> set[str]:
    """Return the runs to leave out of comparisons of sizes.

    Those are the runs that are not at the usual level of all factors; and where a size was trained
    under several settings that are no factors, such as rates, those that change any of them.
    """
    return _elsewhere(meta, usual(meta))


def at(meta: dict[str, Any], factor: str, level: str) -> set[str]:
    """Return the runs at a level of a factor, and at the usual level of every other."""
    others = _elsewhere(meta, {**usual(meta), factor: level})
    return set(levels_of(meta)[factor][level]) - others


def _elsewhere(meta, wanted):
    """Return the runs that are not at the `wanted` {factor: level}, or change what is no factor."""
    out = set()
    for factor, by_level in levels_of(meta).items():
        out.update(run for level, runs in by_level.items() if level != wanted[factor]
                   for run in runs)
    settings = {}
    rest = [run for run in meta['runs'] if run['run_id'] not in out]
    for run in rest:
        settings.setdefault(run['size'], set()).add(run.get('changes', ''))
    return out | {run['run_id'] for run in rest
                  if run.get('changes') and len(settings[run['size']]) > 1}
