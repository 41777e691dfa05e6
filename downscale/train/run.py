"""What one stage trains, and how: the record that loops and compiled steps are made from."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from downscale.runtime import processes
from downscale.train.loss import Distillation

if TYPE_CHECKING:
    from downscale.config import Optimizer
    from downscale.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A frozen `Vlm` that a stage learns from, and how.

    Of every shape of a batch there is `attention` (tokens of a row, its program), as of a
    `StageRun`; without any it is that of the model.
    """
    model: Any
    distil: Distillation
    attention: tuple[tuple[int, str], ...] = ()

    def for_rows(self, length: int) -> 'TeacherModel':
        """Return the teacher with the attention of rows of `length` tokens."""
        if not self.attention:
            return self
        return replace(self, model=self.model.clone(attention=dict(self.attention)[length]))


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """The model of a stage, its loss and optimiser, and how long and where it is trained.

    `loss` is a key of `step.LOSSES`; `trainable` are groups of parameters, and `rates` the peak
    learning rate of each. `shapes` are the ShapeDtypeStructs of the parameters, with which a
    restart reads nothing of the parents. `kept` are steps that are saved as well and stay.
    `stop(step)` says whether to save and end behind a step. `tracker` is a key of
    `trackers.WRITERS`. `teacher_params()` gives those of the `teacher`, on their devices; they are
    in no checkpoint of the run. Of every shape of a batch there is `attention` {tokens of a row:
    its program}, and where it is known `ideal` {(tokens, tiles of a row): seconds of a step with
    all devices at their peak}. `rollouts` is the stream itself where it writes with the parameters
    that are trained (`policy/rollouts.py`).
    """
    model: Any
    loss: str
    optimizer: 'Optimizer'
    trainable: tuple[str, ...]
    rates: dict[str, float]
    schedule: 'Schedule'
    mesh: Mesh
    save_every: int
    kept: tuple[int, ...] = ()
    # None lets a restart ask `params` for the shapes, which reads the parents once more.
    shapes: dict[str, Any] | None = None
    stop: Callable[[int], bool] = processes.stop
    tracker: str = 'none'
    teacher: TeacherModel | None = None
    teacher_params: Callable[[], dict[str, Any]] = dict
    attention: dict[int, str] = field(default_factory=dict)
    ideal: dict[tuple[int, int], float] = field(default_factory=dict)
    rollouts: Any = None

    def fed(self, stream: Any, params: dict[str, Any]) -> Any:
        """Return the stream; one that writes has the parameters of the step, before they go."""
        if self.rollouts:
            self.rollouts.take(params)
        return stream

    @property
    def told(self) -> dict[str, float]:
        """What the rollouts of the last batch tell of it; nothing without any."""
        return self.rollouts.metrics if self.rollouts else {}

    @property
    def shares(self) -> Callable[[float], dict[str, float]] | None:
        """Tells what rollouts have taken of some seconds; None without any."""
        return self.rollouts.shares if self.rollouts else None

    def saves(self, step: int) -> bool:
        """Return whether `step` is one of those that are saved on the way."""
        return step % self.save_every == 0 or step in self.kept
