"""Study files and what the command line changes in them."""
import ast
import os
import sys
from pathlib import Path

from downscale.memory import keep_freed_memory


def load_study(config_file, overrides):
    """(ConfigDict, sweep) of `FILE.py` or `FILE.py:ARG`, with `key.path=value` overrides set.

    ValueError in one line for a missing file, a file without `get_config` and `sweep`, or an
    unknown key (with the nearest one).
    """
    from downscale.sweeps import copied
    module, arg = _load('study', config_file, ('get_config', 'sweep'), 'experiments')
    config = module.get_config(arg)
    config = type(config)(copied(config.to_dict()))
    for override in overrides:
        set_key(config, override)
    return config.lock(), module.sweep(arg)


def load_mixture(mixture_file):
    """The `Mixture` of `FILE.py` or `FILE.py:ARG`; ValueError in one line for a missing file or one
    without `get_mixture`."""
    module, arg = _load('mixture', mixture_file, ('get_mixture',), 'experiments/mixtures')
    return module.get_mixture(arg)


def _load(what, file, functions, folder):
    """(module, argument) of `FILE.py` or `FILE.py:ARG`, which must have these functions."""
    import importlib.util
    path, _, arg = str(file).partition(':')
    if not Path(path).is_file():
        raise ValueError(f'no {what} file {path}; there are {files_nearby(folder)}')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in functions:
        if not hasattr(module, name):
            raise ValueError(f'{path} has no function {name}()')
    return module, arg


def files_nearby(folder):
    """Names of the Python files in `folder`, for error messages."""
    found = sorted(str(path) for path in Path(folder).glob('*.py'))
    return ', '.join(found) or f'none in ./{folder}'


def set_key(config, override):
    """Set one `key.path=value`; the value is a Python literal, or else a string."""
    from downscale.sweeps import set_value
    key, equals, text = override.partition('=')
    if not equals:
        raise ValueError(f'--set {override!r} must look like key.path=value')
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    set_value(config, key, value, '--set')


def open_cells(config_file, overrides):
    """(config, experiments) of a study file; the platform is chosen here, before JAX looks for one.
    """
    config, sweep = load_study(config_file, overrides)
    if config.platform:
        platform = os.environ.setdefault('JAX_PLATFORMS', config.platform)
        if platform and 'jax' in sys.modules:  # by a study file, or by --set
            sys.modules['jax'].config.update('jax_platforms', platform)
    if on_cpu():
        keep_freed_memory()
    from downscale.experiment import cells
    with config.unlocked():
        del config['platform']
    found = cells(config, sweep)
    if claims_of(config) is not None:
        from downscale.analysis.claims import read
        read(claims_of(config))   # for its own checks, before work starts
    return config, found


def claims_of(config):
    """The claims that a study file declares (`claims` of its config), or None."""
    return config.to_dict().get('claims')


def open_study(args):
    """(config, experiments, folder) of the command line."""
    config, experiments = open_cells(args.config, args.set)
    return config, experiments, Path(args.out or Path('runs') / config.study)


def on_cpu():
    """Whether JAX will compute on the CPU only."""
    return os.environ.get('JAX_PLATFORMS') == 'cpu'


def find_cell(experiments, name):
    """The experiment called `name`; ValueError with the nearest."""
    from downscale.strict import unknown
    for cell in experiments:
        if cell.name == name:
            return cell
    raise ValueError(unknown('cell', name, [cell.name for cell in experiments]))
