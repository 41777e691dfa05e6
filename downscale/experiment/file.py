"""Study files and what the command line changes in them."""
import argparse
import ast
import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downscale.runtime.files import PathLike
from downscale.runtime.memory import keep_freed_memory
from downscale.runtime.outputs import require_folder
from downscale.values import shown, unknown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from downscale.config import Experiment

# What every `get_config()` gives, beside its stages.
REQUIRED = {'study': str, 'platform': str, 'family': str, 'vocabulary': int}


def load_study(config_file: PathLike,
               overrides: Iterable[str]) -> tuple['ConfigDict', Sequence[dict[str, Any]]]:
    """Return (ConfigDict, sweep) of `FILE.py` or `FILE.py:ARG`.

    `overrides` are 'key.path=value', set in the ConfigDict. ValueError in one line for a missing
    file, a file without `get_config` and `sweep`, or an unknown key (with the nearest one).
    """
    from downscale.experiment.sweeps import copied
    module, path, arg = _load('study', config_file, ('get_config', 'sweep'), 'experiments')
    with _explained(path):
        config = module.get_config(arg)
        points = module.sweep(arg)
    config = _checked(path, config, points)
    # Two stages may have been given one dict: an override of one must not change the other.
    config = type(config)(copied(config.to_dict()))
    for override in overrides:
        set_key(config, override)
    return config.lock(), points


def _checked(path, config, points):
    """Return `config`; ValueError unless it and the `points` are of the types of a study file."""
    from ml_collections import ConfigDict
    if not isinstance(config, ConfigDict):
        raise ValueError(f'{path}: get_config() must return a ConfigDict, not '
                         f'{type(config).__name__}')
    for key, kind in (*REQUIRED.items(), ('stages', ConfigDict)):
        if key not in config:
            raise ValueError(f'{path}: get_config() has no key {key!r}')
        if not isinstance(config[key], kind):
            raise ValueError(f'{path}: {key} must be of type {kind.__name__}')
    for name, stage in config.stages.items():
        if not isinstance(stage, ConfigDict):
            raise ValueError(f'{path}: stages.{name} must be a ConfigDict, not {shown(stage)}')
    if not isinstance(points, (list, tuple)) or not all(isinstance(p, dict) for p in points):
        raise ValueError(f'{path}: sweep() must return a list of points (dicts)')
    return config


def twin_of(config_file: PathLike) -> str | None:
    """Return the argument of the tiny twin of `FILE.py:ARG`, None where the file declares none.

    A study too large for this machine has a function `twin(arg)` beside its other two.
    """
    module, path, arg = _load('study', config_file, ('get_config', 'sweep'), 'experiments')
    if not hasattr(module, 'twin'):
        return None
    with _explained(path):
        twin = module.twin(arg)
    if not isinstance(twin, str):
        raise ValueError(f'{path}: twin() must return text, not {shown(twin)}')
    return twin


def load_mixture(mixture_file: PathLike) -> Any:
    """Return the `Mixture` of `FILE.py` or `FILE.py:ARG`.

    ValueError in one line for a missing file or one without `get_mixture`.
    """
    module, path, arg = _load('mixture', mixture_file, ('get_mixture',), 'experiments/mixtures')
    with _explained(path):
        return module.get_mixture(arg)


def _load(what, file, functions, folder):
    """Return (module, path, argument) of `FILE.py` or `FILE.py:ARG`.

    ValueError unless the module has all `functions`.
    """
    import importlib.util
    path, _, arg = str(file).partition(':')
    if not Path(path).is_file():
        raise ValueError(f'no {what} file {path}; there are {files_nearby(folder)}')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise ValueError(f'{path} is no Python file; there are {files_nearby(folder)}')
    module = importlib.util.module_from_spec(spec)
    with _explained(path):
        spec.loader.exec_module(module)
    for name in functions:
        if not hasattr(module, name):
            raise ValueError(f'{path} has no function {name}()')
    return module, path, arg


@contextlib.contextmanager
def _explained(path):
    """Turn what the user's file at `path` raises into a ValueError that names file and line."""
    try:
        yield
    except ValueError as error:  # what it refuses itself
        raise ValueError(f'{path}: {error}') from error
    except SyntaxError as error:
        raise ValueError(f'{path}, line {error.lineno}: {error.msg}') from error
    # SystemExit too: a file that calls exit() is named like any other that fails.
    except (Exception, SystemExit) as error:
        # The last line of the user's file; what it called further down is not theirs to mend.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == os.path.abspath(path)]
        where = f'{path}, line {lines[-1]}' if lines else str(path)
        raise ValueError(f'{where}: {type(error).__name__}: {error}') from error


def files_nearby(folder: PathLike) -> str:
    """Return names of the Python files in `folder`, for error messages."""
    found = sorted(str(path) for path in Path(folder).glob('*.py'))
    return ', '.join(found) or f'none in ./{folder}'


def set_key(config: 'ConfigDict', override: str) -> None:
    """Set one `key.path=value`; the value is a Python literal, or else a string."""
    from downscale.experiment.sweeps import set_value
    key, equals, text = override.partition('=')
    if not equals:
        raise ValueError(f'--set {override!r} must look like key.path=value')
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # No literal, so a word: `--set dtype=bfloat16` needs no quotes.
        value = text
    set_value(config, key, value, '--set')


def open_cells(config_file: PathLike,
               overrides: Iterable[str]) -> tuple['ConfigDict', tuple['Experiment', ...]]:
    """Return (config, experiments) of a study file, and choose the platform before JAX does."""
    config, sweep = load_study(config_file, overrides)
    if config.platform:
        # 1. The platform, where what the environment says wins over the file.
        platform = os.environ.setdefault('JAX_PLATFORMS', config.platform)
        if platform and 'jax' in sys.modules:  # by a study file, or by --set
            sys.modules['jax'].config.update('jax_platforms', platform)
    if on_cpu():
        keep_freed_memory()
    # 2. The cells. The platform is of the machine: no cell has it, and no hash depends on it.
    from downscale.experiment.expansion import cells_of
    with config.unlocked():
        del config['platform']
    cells = cells_of(config, sweep)
    if claims_of(config) is not None:
        from downscale.analysis.claims import read
        read(claims_of(config))   # for its own checks, before work starts
    return config, cells


def claims_of(config: 'ConfigDict') -> Any:
    """Return the claims that a study file declares (`claims` of its config), or None."""
    return config.to_dict().get('claims')


def open_study(args: argparse.Namespace) -> tuple['ConfigDict', tuple['Experiment', ...], Path]:
    """Return (config, experiments, folder) of the command line."""
    config, experiments = open_cells(args.config, args.set)
    return config, experiments, args.out or require_folder(Path('runs') / config.study)


def on_cpu() -> bool:
    """Return whether JAX will compute on the CPU only."""
    return os.environ.get('JAX_PLATFORMS') == 'cpu'


def find_cell(experiments: Iterable['Experiment'], name: str) -> 'Experiment':
    """Return the experiment called `name`; ValueError with the nearest."""
    for cell in experiments:
        if cell.name == name:
            return cell
    raise ValueError(unknown('cell', name, [cell.name for cell in experiments]))
