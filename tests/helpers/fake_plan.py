"""A small cell to plan, and plans of it with a compiler that only pretends."""
import importlib.metadata

from downscale.config import Evaluation, Experiment, MeshSize
from downscale.planner import pool
from downscale.planner.plan import Plan
from downscale.planner.programs import Wish
from downscale.runtime.progress import progress_bars
from downscale.sizes import MICRO, VisionConfig
from downscale.stage_config import Stage

TOWER = VisionConfig(layers=2, W=64, H=4, F=192, patch=20, image=80)
RATES = {'language': 1e-3, 'tower': 1e-3, 'connector': 1e-3}


def stage(name='extract', batch=64, length=1024, tiles=3, steps=100):
    groups = {'tower': ('tower',), 'align': ('connector',)}.get(name, tuple(RATES))
    return Stage(
        name=name,
        steps=steps,
        batch=batch,
        length=length,
        tiles=tiles,
        rates=RATES,
        trainable=groups,
        parents={},
    )


EXTRACT = stage()


def cell(seed=0, size='w64d2', vision=TOWER, stages=(EXTRACT,), **more):
    return Experiment(
        name=f'{size}-s{seed}',
        size=size,
        seed=seed,
        language=MICRO[size],
        vision=vision,
        stages=stages,
        **{
            'mesh': MeshSize(1, -1, 1),
            'remat': 'full',
            'dtype': 'bfloat16',
            'evaluation': Evaluation(batch=8),
            **more,
        },
    )


def planner(tmp_path, monkeypatch):
    """A function that makes a plan by the compiler that only pretends: it gives the plan, and what
    was compiled for it."""
    monkeypatch.setattr(pool, 'WORKER', 'tests.helpers.fake_compiler')
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1')
    log = tmp_path / 'compiled'
    monkeypatch.setenv('COMPILED', str(log))

    def make(cells, places=('v5e:4x4',), limit=20.0, jobs=2, refuse=lambda request: None,
             **wish):
        log.write_text('')
        with progress_bars(quiet=True) as bars:
            plan = Plan(cells, places, Wish(**wish), refuse, tmp_path / 'plan', jobs, limit,
                        bars).run()
        return plan, sorted(log.read_text().splitlines())
    return make
