"""Plain values to frozen dataclasses, strictly, messages that name the nearest key, and one hash.

What a field may hold stands beside it: `Annotated[int, Range(1, 9, 'what it means')]`, or `Choice`
and `Several`. `from_dict` reads the annotations, and `check` does so for a record that was built
in Python.
"""
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from functools import cache
from numbers import Real
from typing import Any

SHOWN = 70  # characters of a value, or of a list of names, in a message
COUNT = 2 ** 31 - 1  # the largest count: steps and tokens are 32-bit integers on the device


# --- what a field may hold --------------------------------------------------------------------

@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, but none of `without`; `meaning` says what it stands for."""
    low: float
    high: float
    meaning: str
    _: KW_ONLY
    without: tuple[float, ...] = ()

    def check(self, value: object, where: str) -> None:
        """Raise ValueError where `value` is outside, NaN included; None passes, for the type."""
        # Written as a chain, which is False for NaN.
        if value is None or isinstance(value, Real) and self.low <= value <= self.high \
                and value not in self.without:
            return
        low = 'above' if self.low in self.without else 'at least'
        high = 'below' if self.high in self.without else 'at most'
        others = [f', not {x:g}' for x in self.without if x not in (self.low, self.high)]
        raise ValueError(f'{where} = {shown(value)} must be {low} {self.low:.10g} and {high} '
                         f'{self.high:.10g}{"".join(others)}: {self.meaning}')


@dataclass(frozen=True)
class Choice:
    """One of `values`; `what` is what a message calls it."""
    values: tuple[str, ...]
    what: str

    def check(self, value: object, where: str) -> None:
        """Raise ValueError naming the nearest where `value` is none of them."""
        if value not in self.values:
            raise ValueError(f'{where}: {unknown(self.what, value, self.values)}')


@dataclass(frozen=True)
class Several:
    """At least `least` entries, none of them twice."""
    least: int
    meaning: str

    def check(self, value: tuple, where: str) -> None:
        """Raise ValueError for too few entries and for one that occurs twice."""
        if len(value) < self.least:
            raise ValueError(f'{where} = {shown(value)} must have at least {self.least} '
                             f'entries: {self.meaning}')
        for entry in value:
            if value.count(entry) > 1:
                raise ValueError(f'{where} has {shown(entry)} {value.count(entry)} times; keep one')


# --- reading ----------------------------------------------------------------------------------

def from_dict(kind: Any, value: Any, where: str = 'experiment') -> Any:
    """Return `value` (dicts, lists, scalars) as the frozen dataclass or type `kind`, strictly.

    ValueError for an unknown key (with the nearest one), a missing key, a wrong type or what its
    annotation does not allow.
    """
    # Also a record that was built in Python, which has checked itself.
    if type(value) is kind:
        return value
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        value = from_dict(kind.__origin__, value, where)
        for rule in kind.__metadata__:
            rule.check(value, where)
        return value
    if origin in (types.UnionType, typing.Union):  # `X | None`, or records told apart by `kind`
        inner = typing.get_args(kind)
        if dataclasses.is_dataclass(inner[-1]):
            return from_dict(_named_kind(inner, value, where), value, where)
        return None if value is None else from_dict(inner[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if origin is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'{where} must be a list, not {shown(value)}')
        # tuple[X, ...] takes any length, tuple[X, Y] exactly two.
        if inner[-1] is ...:
            inner = inner[:1] * len(value)
        if len(value) != len(inner):
            raise ValueError(f'{where} must have {len(inner)} entries, not {len(value)}')
        return tuple(from_dict(part, entry, f'{where}[{i}]')
                     for i, (part, entry) in enumerate(zip(inner, value, strict=True)))
    if origin is dict:
        keys, inner = typing.get_args(kind)
        if not isinstance(value, dict):
            raise ValueError(f'{where} must be a mapping, not {shown(value)}')
        # JSON has text alone for keys.
        return {from_dict(keys, str(key), where): from_dict(inner, part, f'{where}.{key}')
                for key, part in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # `float` of an integer of hundreds of digits raises OverflowError, which names no field.
        if abs(value) > COUNT ** 2:
            raise ValueError(f'{where} = {shown(value)} is too large for a number')
        return float(value)
    # In Python True is an int; in a study file it is a mistake.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        name = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f'{where} = {shown(value)} must be of type {name}')
    return value


def _named_kind(records, value, where):
    """Return which of `records` a value is, or is named by its 'kind'; the first has none."""
    if type(value) in records:
        return type(value)
    # A class attribute is the field's default.
    named = {vars(record)['kind']: record for record in records[1:]}
    if not isinstance(value, dict) or 'kind' not in value:
        return records[0]
    if value['kind'] not in named:
        raise ValueError(f'{where}.kind: {unknown("kind", value["kind"], named)}')
    return named[value['kind']]


def _record(kind, value, where):
    """Return a mapping as the dataclass `kind`."""
    if not isinstance(value, dict):
        raise ValueError(f'{where} must be a mapping, not {shown(value)}')
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = hints_of(kind)
    for key in value:
        if key not in fields:
            raise ValueError(f'{where}: {unknown("key", key, list(fields))}')
    missing = [name for name, f in fields.items() if name not in value
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ValueError(f'{where}: missing key {", ".join(map(repr, missing))}')
    return kind(**{key: from_dict(hints[key], part, f'{where}.{key}')
                   for key, part in value.items()})


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return {field: its type, with what it may hold} of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    # A mark such as `_: KW_ONLY` has a type, but is no field.
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check(record: Any) -> None:
    """Raise ValueError where a field of a dataclass holds what its annotation does not allow."""
    for name, hint in hints_of(type(record)).items():
        from_dict(hint, vars(record)[name], f'{type(record).__name__}.{name}')


# --- messages ---------------------------------------------------------------------------------

def shown(value: object, most: int = SHOWN) -> str:
    """Return `value` as a message shows it: on one line, and cut where it is long."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # a number of more digits than Python writes
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= most else f'{text[:most]}...'


def unknown(what: str, name: object, known: Iterable) -> str:
    """Return the one-line message for a name that does not exist, with the nearest that does."""
    known = [str(name) or "''" for name in known]
    near = difflib.get_close_matches(str(name)[:200], known, 1, 0.4)
    if near:
        return f'unknown {what} {shown(name)}; did you mean {shown(near[0], 120)}?'
    listed = ', '.join(known)
    if len(listed) > 2 * SHOWN:
        listed = f'{listed[:2 * SHOWN].rpartition(", ")[0]} and others ({len(known)} in all)'
    return f'unknown {what} {shown(name)}; ' + (f'known are {listed}' if known else
                                                'there is none')


def hash_of(value: Any) -> str:
    """Return a short hash of any JSON value."""
    # 48 bits: of 10,000 cells two agree by accident with a chance of 2 in 10 million.
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
