"""Files that people wrote with the import paths of before keep working, with a warning."""
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from test_house import MODULES, imports

from downscale.experiment.expansion import cells_of
from downscale.experiment.file import load_study
from downscale.moved import MOVED, RENAMED, attribute
from downscale.stages.models import model_of

PACKAGE = Path(__file__).parents[1] / 'downscale'


@pytest.mark.parametrize('old', MOVED)
def test_an_old_path_leads_to_modules_that_exist(old):
    for place in MOVED[old].split():
        assert PACKAGE.joinpath(*place.split('.')).with_suffix('.py').is_file()
    assert not PACKAGE.joinpath(*old.split('.')).with_suffix('.py').exists()


def test_a_study_file_of_before_works_and_is_told_the_new_path():
    with pytest.warns(DeprecationWarning, match='downscale.sweeps is now downscale.experiment.swe'):
        from downscale.sweeps import axis
    from downscale.experiment import sweeps
    assert axis is sweeps.axis
    with warnings.catch_warnings(record=True):
        warnings.simplefilter('always')
        places = importlib.import_module('downscale.places')
        from downscale import experiment
        assert places.BUCKET == 'gs://' and experiment.cells is experiment.cells_of
        for old, name in RENAMED:
            assert attribute(old, name).__name__ == RENAMED[old, name]


@pytest.mark.parametrize('line', ['from downscale.places import BUCKET',
                                  'from downscale.experiment import cells',
                                  'import downscale.sweeps; downscale.sweeps.axis'])
def test_an_old_path_is_an_error_in_the_package_and_its_tests_alone(line):
    """As setup.cfg and conftest.py say, by the module that a warning's stacklevel points at."""
    for module in ('downscale', 'downscale.planted', 'downscale.data.planted', 'test_moved',
                   'small', 'conftest'):
        with pytest.raises(DeprecationWarning, match='is now downscale'):
            exec(line, {'__name__': module})
    for module in ('my_study', 'downscaled', 'smaller'):
        with warnings.catch_warnings(record=True) as said:
            exec(line, {'__name__': module})
        assert {warning.category for warning in said} == {DeprecationWarning}


def test_a_name_that_never_was_is_no_module_and_no_attribute():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('downscale.nowhere')
    with pytest.raises(AttributeError, match='downscale.places has no attribute'):
        attribute('places', 'nothing')
    assert not hasattr(importlib.import_module('downscale.places'), '__file__')  # nor a warning
    with pytest.raises(ImportError):
        from downscale.places import nothing  # noqa: F401


def test_nothing_of_ours_uses_an_old_path():
    for name, tree in MODULES.items():
        used = {dotted.partition('.')[2] for dotted, _ in imports(tree)
                if dotted.startswith('downscale.')}
        rooms = {'experiment', 'study', 'stages', 'data.scenes'}  # packages now
        assert not used & set(MOVED) - rooms, name


@pytest.mark.parametrize('name', ['stages.inputs', 'study.tasks', 'experiment.sweeps',
                                  'data.scenes.dataset'])
def test_a_file_of_a_room_that_was_a_module_is_imported_first(name):
    """In a process of its own: nothing else is there yet, and no old path is looked up."""
    code = f'import sys, downscale.{name}; print("downscale.stages.training" in sys.modules)'
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'False\n'


def test_a_cell_still_gives_its_model():
    config, sweep = load_study(PACKAGE.parent / 'experiments' / 'smoke.py', ())
    with config.unlocked():
        del config['platform']
    cell = cells_of(config, sweep)[-1]
    with pytest.warns(DeprecationWarning, match='is now downscale.stages.models'):
        assert cell.model() == model_of(cell)
    with pytest.warns(DeprecationWarning):
        assert cell.model('tower') == model_of(cell, 'tower') != cell.model()
