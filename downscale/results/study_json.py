"""What `study.json` may say; `results/study_file.py` reads it strictly."""
import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A cell of the study: its size, seed and parameters (see `accounting.totals`).

    `way` is how it came to its size ('trained', 'pruned + healed'), `bytes` what its language
    model takes to store;
    '' and 0 in studies of before that was written down.
    """
    run_id: str
    size: str
    seed: int
    n_total: int
    n_nonembed: int
    n_vision: int
    n_active: int = 0
    width: int = 0
    depth: int = 0
    changes: str = ''
    way: str = ''
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The whole file; `claims` are checked where they are read.

    `factors` maps settings in which cells of one size differ to {run_id: its value}.
    """
    runs: tuple[RunRow, ...]
    name: str = ''
    seed: int = 0
    config_hash: str = ''
    stages: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    budgets: dict[str, str] = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    factors: dict[str, dict] = dataclasses.field(default_factory=dict)
    claims: list = dataclasses.field(default_factory=list)
