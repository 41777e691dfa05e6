"""What is right, and what a scorer says of a reply.

A verdict is the value in the scorer's own form (a letter, a number, None), the score that it means
(None where the data cannot be scored) and whether an answer was found.
"""
from dataclasses import dataclass
from functools import cached_property

from downscale.evaluate.scoring import boxes
from downscale.evaluate.scoring.choices import LETTERS, Options
from downscale.evaluate.scoring.reading import plain

PEOPLE = 10  # who answered each question of VQA, TextVQA and VizWiz; their rules count these votes


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is right: one answer or several, and what some rules ask for.

    Of several each is accepted; as many as `PEOPLE` are what so many people answered. `choices`
    are (letter, text) pairs; `share` is how many people took B of A and B; a `free` answer is a
    description, which no reply will equal. `size` is the width and height in pixels of the picture
    that a box is in, where the data names them.
    """
    answers: tuple[str, ...]
    choices: tuple[tuple[str, str], ...] = ()
    share: float | None = None
    free: bool = False
    size: tuple[float, float] | None = None

    @property
    def gold(self) -> str:
        """The one answer, or what most people said (the first of several)."""
        return max(self.answers, key=self.answers.count)

    @property
    def bare(self) -> bool:
        """Whether the answer is one letter and nothing else."""
        return self.gold.strip().upper() in tuple(LETTERS)

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options that the answers name; () where an answer names none.

        An answer may be a letter in any dress, a text, or a number from 0.
        """
        if len(self.answers) > 1 and not self.choices:
            return ()
        if len(self.answers) == 1 and self.bare:
            return (self.reader.keys.key[self.gold.strip().upper()],)
        letters = [self.reader.gold(answer) for answer in self.answers]
        known = [letter for letter in letters if letter is not None]
        return tuple(known) if len(known) == len(letters) else ()

    @cached_property
    def reader(self) -> Options:
        """The `Options` that replies choose from: all letters where the data has none."""
        # A right letter that none of the options has is read among all letters.
        known = self.gold.strip().upper() in {letter for letter, _ in self.choices} \
            or self.choices and not self.bare
        return Options(self.choices) if known else EVERY_LETTER

    @property
    def letter(self) -> str:
        """The letter for rules about options; without one, the answer as it stands."""
        return self.gold if self.bare or len(self.letters) != 1 else self.letters[0]

    @property
    def options(self) -> dict[str, str]:
        """The texts by letter; without any, four letters of which nothing more is known."""
        return dict(self.choices) or dict.fromkeys('ABCD', '')

    @property
    def forms(self) -> set[str]:
        """What the answers can be taken for: the `forms` that a scorer asks for.

        They are letter, box, several, people, share, yes, text and free.
        """
        gold = self.gold.strip()
        if self.free:
            return {'free'}
        if self.share is not None:
            return {'share', 'letter'}
        if len(self.answers) > 1:
            return {'several', 'people'} if len(self.answers) == PEOPLE else {'several'}
        if self.bare:
            # Without options a letter may be a word that stands in the picture.
            return {'letter'} if self.choices else {'letter', 'text'}
        if boxes.is_box_text(gold):
            return {'box'}
        if self.letters:
            return {'letter', 'text'}
        return {'text', 'yes'} if self.yes else {'text'}

    @property
    def yes(self) -> str:
        """'yes' or 'no' where that is the answer, else ''."""
        word = plain(self.gold)
        return word if word in ('yes', 'no') else ''


EVERY_LETTER = Options(tuple((letter, '') for letter in LETTERS))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A scorer's own value, the score that it means, and whether an answer was found.

    Rules for yes and no tell which of the two was `said`. A box in `other_scale` than the right
    one was read, but says nothing about how well the model points.
    """
    value: str | float | None
    score: float | None
    parsed: bool
    said: str = ''
    other_scale: bool = False
