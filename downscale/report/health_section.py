"""The section on health: what did not finish, answers that did not end, and speed, as HTML."""
from typing import Any

from downscale.analysis.completeness import LIMIT, sentence
from downscale.analysis.measures import Scored
from downscale.output import page


def html(s: Scored, results: dict[str, Any], skipped: dict[str, str]) -> str:
    """Return what of a study did not finish, how its answers ended, and how fast they were made."""
    warned = results['warnings']
    unfinished = [list(stage.values()) for stage in s.study.unfinished]
    parts = [_warnings_html(warned), '<h3>Unfinished or failed stages</h3>',
             _table_or_none(('run', 'stage', 'reason'), unfinished,
                            'None: every stage has finished.'),
             '<h3>Missing evaluations</h3>',
             _table_or_none(('evaluation', 'what is missing'),
                            [list(row) for row in results['missing']], 'None.')]
    if 'runs' in results:
        parts.append(page.details('Runs', warning(warned, 'runs') + page.table(
            ('run', 'size', 'seed', 'n_total', 'n_nonembed', 'n_vision', 'macro accuracy',
             'completed answers'), [list(row.values()) for row in results['runs']])))
    if results['health']:
        parts.append(page.details('All answers', warning(warned, 'health')
                                  + _answers_html(results['health'])))
    if results.get('constant'):
        parts.append(page.details('Answers that hardly vary', page.table(
            ('run', 'size', 'family', 'answer', 'share of its answers'),
            [list(row.values()) for row in results['constant']])))
    if results['texts']:
        table = page.table(('run', 'text', 'texts', 'truncated', 'mean tokens'),
                           [list(row.values()) for row in results['texts']])
        parts.append(page.details('Texts written by perception models',
                                  warning(warned, 'texts') + table))
    parts.append(page.details('Speed', _throughput_html(results['throughput'])))
    if s.study.notes or skipped:
        reasons = [f'{name}: {reason}.' for name, reason in skipped.items()]
        parts.append('<h3>Notes, and parts without data</h3>'
                     + page.bullets([*s.study.notes, *reasons]))
    return ''.join(parts)


def _table_or_none(headers, rows, nothing):
    """Return a table, or a paragraph with the text `nothing` where it has no rows."""
    return page.table(headers, rows) if rows else page.paragraph(nothing)


def _answers_html(rows):
    who = ('way', 'condition', 'text', 'mode', 'size')
    ended = []
    for row in rows:
        x = row['completion']
        ended.append([*(row[name] for name in who), row['answers'], x.accuracy, x.completed,
                      x.n_completed, x.truncated, x.unparsed, x.unclosed])
    columns = (*who, 'items', 'pictures', 'mean_tokens', 'mean_think_tokens', 'forced', 'nll_gold')
    lengths = [list(map(row.get, columns)) for row in rows]
    return page.table((*who, 'answers', 'accuracy', 'on completed', 'completed', 'truncated',
                       'unparsed', 'unclosed'), ended) + page.paragraph(
        'Accuracy and shares are means over families. Unclosed: the thought was still open at the '
        'end.', 'soft') + page.details('Lengths and likelihoods', page.table(
            (*who, 'items', 'pictures', 'mean tokens', 'of thought', 'closed at the budget',
             'gold NLL'), lengths))


def _throughput_html(result):
    measured = result['evaluations']
    absent = result['absent']
    names = ('tokens', 'seconds', 'tokens_per_second', 'rows', 'slot_occupancy', 'padding_waste',
             'compiles', 'compile_seconds')
    parts = []
    if measured:
        rows = []
        for key, row in measured.items():
            rows.append([key, *(row[name] for name in names)])
        headers = ('evaluation', *(name.replace('_', ' ') for name in names))
        parts.append(page.table(headers, rows))
        parts.append(page.paragraph(
            'Slot occupancy: the share of decoding slots that held an unfinished row. Padding '
            'waste: the share of what was computed for nothing but padding.', 'soft'))
    if absent or not measured:
        which = f': {", ".join(absent[:5])}' if absent else ''
        more = ', …' if len(absent) > 5 else ''
        parts.append(page.paragraph(
            f'No throughput.json beside {len(absent)} of {len(absent) + len(measured)} evaluations'
            f'{which}{more}.', 'skip'))
    return ''.join(parts)


def _warnings_html(warned):
    """Return the box above the report that names all groups of answers with too many faults."""
    titles = {'gate': 'Gate', 'accuracy': 'Accuracy by family and size',
              'grid': 'Perception × reasoner', 'runs': 'Runs', 'health': 'All answers',
              'texts': 'Texts written by perception models'}
    if not warned:
        return ''
    lead = (f'More than {100 * LIMIT:.0f} % of some answers are truncated, unparsed or unclosed, '
            'so a low accuracy there may be one of finishing, not of seeing or reasoning. Groups '
            'of answers with such a share in some family:')
    return '<div class="warn">' + page.paragraph(lead) + page.bullets(
        [f'{titles[part]}: {sentence(groups)}.' for part, groups in warned.items()]) + '</div>'


def warning(warned: dict[str, Any], part: str) -> str:
    """Return the warning of one section, '' where it needs none."""
    if part not in warned:
        return ''
    return page.paragraph(f'Shares above {100 * LIMIT:.0f} %: {sentence(warned[part])}.', 'warn')
