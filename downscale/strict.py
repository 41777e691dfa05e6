"""Plain values to frozen dataclasses, strictly; messages with the nearest valid key; one hash."""
import dataclasses
import difflib
import hashlib
import json
import types
import typing


def unknown(what, name, known):
    """The one-line message for a name that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], 1, 0.4)
    hint = f'; did you mean {near[0]!r}?' if near else f'; known are {", ".join(map(str, known))}'
    return f'unknown {what} {name!r}{hint}'


def from_dict(kind, value, where='experiment'):
    """`value` (dicts, lists, scalars) as the frozen dataclass or type `kind`, strictly.

    ValueError for an unknown key (with the nearest one), a missing key or a wrong type.
    """
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # only `X | None` occurs
        return None if value is None else from_dict(typing.get_args(kind)[0], value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f'{where} must be a mapping, not {value!r}')
        fields = {f.name: f for f in dataclasses.fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in fields:
                raise ValueError(f'{where}: {unknown("key", key, list(fields))}')
        missing = [name for name, f in fields.items() if name not in value
                   and f.default is dataclasses.MISSING
                   and f.default_factory is dataclasses.MISSING]
        if missing:
            raise ValueError(f'{where}: missing key {", ".join(map(repr, missing))}')
        return kind(**{key: from_dict(hints[key], part, f'{where}.{key}')
                       for key, part in value.items()})
    if origin is tuple:
        inner, *rest = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'{where} must be a list, not {value!r}')
        if rest != [...] and len(value) != 1 + len(rest):
            raise ValueError(f'{where} must have {1 + len(rest)} entries, not {len(value)}')
        return tuple(from_dict(inner, part, f'{where}[{i}]') for i, part in enumerate(value))
    if origin is dict:
        inner = typing.get_args(kind)[1]
        if not isinstance(value, dict):
            raise ValueError(f'{where} must be a mapping, not {value!r}')
        return {str(key): from_dict(inner, part, f'{where}.{key}') for key, part in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        name = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f'{where} = {value!r} must be of type {name}')
    return value


def hash_of(value):
    """A short hash of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
