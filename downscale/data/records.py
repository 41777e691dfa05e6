"""What an example is: frozen records that every source produces and every stage consumes.

The scene world makes `Example`s, of which `scenes/conversations.py` makes a `Conversation` for one
stage; published sets give `Record`s. `pipeline.py` turns conversations into batches. Nothing here
knows about tokens or arrays.
"""
from dataclasses import KW_ONLY, dataclass

IMAGE = '<image>'  # marks, inside a turn's text, the place of the next image
THINK = ('<think>', '</think>')  # stand around a thought


@dataclass(frozen=True)
class Trace:
    """Step-by-step text that leads to an answer: from the extraction, and from the caption.

    `text` repeats the evidence and concludes. `scan` goes through the things of the caption one
    after another to find or count some, where the extraction holds only those; elsewhere it is
    `text`.
    """
    text: str
    scan: str


@dataclass(frozen=True)
class Extraction:
    """What a perception model should write so that a question can be answered without the image.

    `information` names what to look at (no answer in it); `text` is the target.
    """
    information: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with everything needed to ask, answer, guess and explain it.

    `item_id` is unique and stable; `cluster_id` is the picture that several questions share.
    `kind` is 'knowledge' (no image needed) or 'visual'. `distractors` are wrong options of the
    multiple-choice form. `chance` is the accuracy of the best guess that knows the contents of
    the scene and the family of the question, but not which object is asked about.
    """
    item_id: str
    cluster_id: str
    family: str
    kind: str
    text: str
    answer: str
    distractors: tuple[str, ...]
    chance: float
    extraction: Extraction
    trace: Trace


@dataclass(frozen=True, kw_only=True)
class Example:
    """One scene (or one triple of pictures): encoded images, exhaustive caption, questions."""
    scene_id: str
    images: tuple[bytes, ...]
    caption: str
    questions: tuple[Question, ...]

    @property
    def count(self) -> int:
        """How many pictures it has."""
        return len(self.images)


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; the loss is taken on `text` exactly when it is `supervised`.

    `thinking` says whether a reply was asked to think; the chat format then begins it, and what it
    begins with is never supervised. None where thinking is not asked about.
    """
    role: str
    text: str
    supervised: bool
    _: KW_ONLY
    thinking: bool | None = None


@dataclass(frozen=True)
class Conversation:
    """What a model is trained on: turns in order, and the images that `<image>` marks name.

    `shown` is for a tower: the parts of its only reply, as they stand there, each with the box
    (x0, y0, x1, y1) of what it tells of, in shares of the picture.
    """
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...]
    shown: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Record:
    """One example of a published data set; `id` is unique within its `source`."""
    id: str
    source: str
    talk: Conversation
