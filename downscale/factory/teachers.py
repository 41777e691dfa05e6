"""Who writes: one small interface, and the teacher that is a model of ours.

A teacher has `name`, `settings` (JSON, all that decides its text) and `write(asks)`, an iterator of
(`Ask`, `TeacherReply` or `Failure`) as they end. Asks are taken as room comes free: their pictures
are never all in memory.
"""
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

WINDOW = 64  # asks that the engine is given at once; as many pictures are held


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one row needs from a teacher.

    `image` is an encoded picture or None, `limit` in tokens, `seed` the uint32 of its randomness.
    """
    key: str
    prompt: str
    image: bytes | None
    limit: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TeacherReply:
    """What came back; `finish` is 'stop', 'length' or whatever else a server says.

    Tokens are those that the teacher counted, None where it did not.
    """
    text: str
    finish: str
    tokens_in: int | None
    tokens_out: int | None
    attempts: int = 1


@dataclass(frozen=True)
class Failure:
    """Why there is no reply; the next run asks again."""
    reason: str
    attempts: int = 1


class Teacher(Protocol):
    """Whoever writes: see the head of this page."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its text, as JSON."""

    def write(self, asks: Iterable[Ask]) -> Iterator[tuple[Ask, TeacherReply | Failure]]:
        """Yield what came of each of `asks`, as they end."""


@dataclass(frozen=True, kw_only=True)
class FolderTeacher:
    """The model of a run folder, which must see; `open` opens it (folder, slots) when needed."""
    folder: Path
    name: str
    fingerprint: str
    temperature: float
    top_p: float
    slots: int
    open: Callable

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its text, as JSON."""
        return {'teacher': 'engine', 'model': self.name, 'checkpoint': self.fingerprint,
                'temperature': self.temperature, 'top_p': self.top_p}

    def write(self, asks: Iterable[Ask]) -> Iterator[tuple[Ask, TeacherReply | Failure]]:
        """Yield what came of each of `asks`, as rows end; a prompt that is too long is a failure.

        The model is opened with the first of them.
        """
        # Late, as they bring JAX, which a factory that asks a server does not need.
        from downscale.evaluate.answers import prompt_of
        from downscale.generate.engine import Decoding, Request
        from downscale.generate.sampling import Sampling
        decoding = Decoding(sampling=Sampling(self.temperature, top_p=self.top_p))
        asks = iter(asks)
        engine = None
        while window := list(islice(asks, WINDOW)):
            # A run that asks for nothing more must not load a model.
            engine = engine or self.open(self.folder, self.slots)
            given = []
            requests = []
            for ask in window:
                try:
                    prompt = prompt_of(engine.encoder, ask.prompt,
                                       () if ask.image is None else (ask.image,), False)
                except ValueError as error:
                    yield ask, Failure(f'prompt: {error}')
                    continue
                given.append(ask)
                requests.append(Request(prompt, limit=ask.limit, sample=ask.seed))
            for index, reply in engine.stream(requests, decoding):
                yield given[index], TeacherReply(
                    text=reply.text,
                    finish='length' if reply.finish == 'length' else 'stop',
                    tokens_in=len(requests[index].prompt.tokens),
                    tokens_out=len(reply.ids),
                )


def open_engine(folder: Path, role: str, temperature: float, top_p: float,
                slots: int) -> FolderTeacher:
    """Return the `FolderTeacher` of a run folder, which is opened when it is asked.

    `role` is what errors call it. ValueError or FileNotFoundError in one line when it is no run
    folder, or its model does not see.
    """
    from downscale.evaluate import runs
    run, = runs.open_runs([folder], role, sees=True)
    return FolderTeacher(
        folder=run.folder,
        name=run.name,
        fingerprint=run.fingerprint,
        temperature=temperature,
        top_p=top_p,
        slots=slots,
        open=runs.open_engine,
    )
