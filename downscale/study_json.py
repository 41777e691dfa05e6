"""What `study.json` may say: read strictly, so that an older, newer or cut file is told by name."""
import dataclasses
from dataclasses import dataclass

from downscale.places import place, read_json
from downscale.strict import from_dict


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A cell of the study: its size, seed and parameters (see `accounting.totals`)."""
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


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The whole file; `claims` are checked where they are read."""
    runs: tuple[RunRow, ...]
    name: str = ''
    seed: int = 0
    config_hash: str = ''
    stages: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    budgets: dict[str, str] = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    claims: list = dataclasses.field(default_factory=list)


def read_study(folder):
    """The value of `folder`/study.json; ValueError in one line that names the file and the field
    when it is cut, lacks one, or holds one that this version does not know."""
    path = place(folder) / 'study.json'
    value = read_json(path)
    if value is None:
        raise ValueError(f'{folder}: no study.json, so this is no study folder')
    from_dict(StudyFile, value, str(path))
    return value
