"""Chips, machines, slices and prices: one dated data file, `hardware.json`, and the user's changes.

DOWNSCALE_HARDWARE names a JSON file of the same form with only what is to be changed, as
{"as_of": "2027-01", "generations": {"v5e": {"price": {"usd": 0.9}}}}. Prices depend on region and
date; every figure made of them is an estimate.
"""
import difflib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = 'DOWNSCALE_HARDWARE'
NO_PRICE = 700  # dollars an hour; catalogues mean "not sold here" by it


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: FLOP/s (bf16), GiB, bytes/s, Hz, dollars per hour (on demand; spot from, to).

    `devices` is how many JAX devices a chip shows; its memory and speed are shared among them.
    """
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float
    devices: int = 1
    usd: float | None = None
    usd_spot: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The virtual machines of a generation: `chips` each in slices of several, of `memory_gib`.

    `accelerator` is GKE's node label, `types` {chips of a machine: its type}. The TPU API calls
    a slice `prefix`-N, where N `counts` 'chips' or 'cores' (two a chip); `runtime` is its software
    version, None where that API lacks the generation. `image` is the image family of Compute
    Engine, None where it has no groups of such machines. Memory is in `numa_nodes` parts.
    """
    accelerator: str
    chips: int
    memory_gib: int
    types: dict[str, str]
    prefix: str
    counts: str
    runtime: str | None
    image: str | None
    numa_nodes: int


@cache
def table() -> dict[str, Any]:
    """Return the data file with the user's changes: {'as_of', 'generations': {name: figures}}.

    ValueError in one line for a change that cannot be read, has an unknown key or a senseless
    price.
    """
    value = json.loads(Path(__file__).with_name('hardware.json').read_text())
    path = os.environ.get(VARIABLE)
    if path:
        try:
            changes = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f'{VARIABLE}={path} cannot be read ({error})') from None
        _merge(value, changes, path)
    for name, generation in value['generations'].items():
        usd = generation['price']['usd']
        if usd is not None and not 0 < usd < NO_PRICE:
            raise ValueError(f'{path or "hardware.json"}: {name} at {usd} dollars a chip-hour is '
                             'no price; give null where there is none')
    return value


def _merge(value, changes, where):
    """Write `changes` into the nested dict `value`; `where` leads error messages."""
    if not isinstance(changes, dict):
        raise ValueError(f'{where} must hold an object, not {changes!r}')
    for key, change in changes.items():
        if key not in value:
            near = difflib.get_close_matches(key, list(value), 1, 0.4)
            hint = f'did you mean {near[0]!r}?' if near else f'known are {", ".join(value)}'
            raise ValueError(f'{where}: unknown key {key!r}; {hint}')
        if isinstance(value[key], dict):
            _merge(value[key], change, f'{where}: {key}')
        else:
            value[key] = change


@cache
def chip(generation: str) -> Chip:
    """Return the `Chip` of a generation."""
    figures = table()['generations'][generation]
    spot = figures['price']['usd_spot']
    return Chip(**figures['chip'], usd=figures['price']['usd'], usd_spot=spot and tuple(spot))


@cache
def machine(generation: str) -> Machine:
    """Return the `Machine` of a generation."""
    return Machine(**table()['generations'][generation]['machine'])
