"""What `metrics.jsonl` of a stage holds: one row a step, from 1 on; and what of it is lost."""
import json


def row_of(line):
    """The row of a line; None where it is torn or no row of a step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get('step')) is int else None


def lost_rows(steps, last):
    """What is missing of the rows of `steps` 1 to `last`, as text; '' where each is there once."""
    missing = sorted(set(range(1, last + 1)).difference(steps))
    doubled = len(steps) - len(set(steps))
    words = []
    if missing:
        words.append(f'lacks {len(missing)} of {last} rows, the first of step {missing[0]}')
    if doubled:
        words.append(f'has {doubled} rows twice')
    return ' and '.join(words)
