"""Every scorer by name and version, and what it needs to know beside the reply.

A verdict is the value in the scorer's own form (a letter, a number, None), the score that it means
(None where the data cannot be scored) and whether an answer was found. Raw replies are kept, so
each scorer can be asked again: a score without the name of its scorer means little.
"""
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from downscale.data.files import shown
from downscale.evaluate.scoring import boxes, option_letters, vqa, words
from downscale.evaluate.scoring.choices import LETTERS, Options
from downscale.evaluate.scoring.reading import (
    answer_of,
    bare,
    lmms_without_thoughts,
    plain,
    without_thought,
)
from downscale.evaluate.scoring.statements import behind_thought, same_answer, short_answer

DEFAULT = 'exact-2'  # the rule of data that names no other
PEOPLE = 10  # who answered each question of VQA, TextVQA and VizWiz; their rules count these votes
SAME = 1e-6  # scores as far apart are equal: ROUGE-L of two equal texts is 1 - 5e-9


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is right: one answer, several of which each is accepted (of `PEOPLE`, those that each of
    so many people gave), and what some rules ask for.

    `choices` are (letter, text) pairs; `share` is how many people took B of A and B; a `free`
    answer is a description, which no reply will equal. `size` is the width and height in pixels of
    the picture that a box is in, where the data names them.
    """
    answers: tuple[str, ...]
    choices: tuple[tuple[str, str], ...] = ()
    share: float | None = None
    free: bool = False
    size: tuple[float, float] | None = None

    @property
    def gold(self) -> str:
        """The one answer, or what most people said (the first of several)."""
        return max(self.answers, key=self.answers.count) if len(self.answers) > 1 \
            else self.answers[0]

    @property
    def bare(self) -> bool:
        """Whether the answer is one letter and nothing else."""
        return self.gold.strip().upper() in tuple(LETTERS)

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """The options that the answers name in any dress, by text or by number from 0; () where an
        answer names none, as one of several people."""
        if len(self.answers) > 1 and not self.choices:
            return ()
        if len(self.answers) == 1 and self.bare:
            return (self.reader.keys.key[self.gold.strip().upper()],)
        found = [self.reader.gold(answer) for answer in self.answers]
        # pyrefly: ignore[bad-return]
        return () if None in found else tuple(found)

    @cached_property
    def reader(self) -> Options:
        """The `Options` that replies choose from: all letters where the data has none."""
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
        """What the answers can be taken for: letter, box, several, people, share, yes, text, free.
        """
        gold = self.gold.strip()
        if self.free:
            return {'free'}
        if self.share is not None:
            return {'share', 'letter'}
        if len(self.answers) > 1:
            return {'several', 'people'} if len(self.answers) == PEOPLE else {'several'}
        if self.bare:  # without options a letter may be what was read
            return {'letter'} if self.choices else {'letter', 'text'}
        if _is_box(gold):
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


def _is_box(gold):
    try:
        return gold.startswith('[') and bool(boxes.box_of(gold))
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A scorer's own value, the score that it means, whether an answer was found, and, from rules
    for yes and no, which of the two was `said`. A box in `other_scale` than the right one was
    read, but says nothing about how well the model points."""
    value: str | float | None
    score: float | None
    parsed: bool
    said: str = ''
    other_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A named rule: `read` makes a `Verdict` of (text, `Target`) where the target has such a form.

    `strip` is what its harness does to a stored reply before the rule sees it. A `whole` rule is
    ours and gets all that stands behind the thought; it finds 'Answer: X' itself.
    """
    name: str
    version: str
    forms: tuple[str, ...]
    read: Callable
    strip: Callable = str
    whole: bool = False


def _accepting(rule):
    """Return a rule (text, gold) -> 1.0 or 0.0; an answer was found where some option is
    accepted.
    """
    def read(text, target):
        value = rule(text, target.letter)
        letters = [letter for letter, _ in target.choices] or LETTERS
        return Verdict(
            value=value, score=value, parsed=value > 0 or any(rule(text, one) for one in letters)
        )

    return read


def _letter(rule):
    """Return a rule (text, target) -> letter, '' or None; 'Z' is a refusal, not an answer."""
    def read(text, target):
        found = rule(text, target)
        gold = target.letter.strip().upper()
        return Verdict(
            value=found,
            score=float(found == gold),
            parsed=bool(found) and (found != 'Z' or gold == 'Z'),
        )

    return read


def _number(rule):
    """Return a rule (text, gold) -> score, None where it found no answer; an empty reply holds
    none.
    """
    def read(text, target):
        value = rule(text, target.gold)
        return Verdict(
            value=value,
            score=0.0 if value is None else value,
            parsed=value is not None and bool(text),
        )

    return read


def _box(rule):
    """As `_number`, for boxes: whether the reply counts in another scale is noted."""
    judge = _number(rule)

    def read(text, target):
        return replace(judge(text, target), other_scale=boxes.other_scale(text, target.gold))
    return read


def _people(rule):
    def read(text, target):
        value = rule(text, target.answers)
        return Verdict(value=value, score=value, parsed=bool(text.strip()))
    return read


def _rouge(text, target):
    value = words.rouge_l(text, target.gold)
    return Verdict(value=value, score=value, parsed=bool(text.strip()))


def _interleave(text, target):
    if target.free:
        return _rouge(text, target)
    rule = words.interleave_choice
    return _accepting(rule)(text, target) if target.bare else _number(rule)(text, target)


def _own(text, target):
    found = answer_of(without_thought(text), True, target.gold)
    score = max(float(plain(found) == plain(answer)) for answer in target.answers)
    return Verdict(value=found, score=score, parsed=bool(found))


def _exact(text, target):
    """Return exact-2: an option, a box, yes or no, else words; each as usual replies write them."""
    if target.letters:
        found = target.reader.chosen(text)
        return Verdict(value=found, score=float(found in target.letters), parsed=bool(found))
    if 'box' in target.forms:
        found, score = boxes.judge(text, target.gold, target.size)
        return Verdict(value=found, score=score, parsed=found not in ('', boxes.OTHER_SCALE),
                       other_scale=found == boxes.OTHER_SCALE)
    if target.yes:
        return _yes(text, target)
    found = short_answer(text)
    score = float(any(same_answer(found, answer) for answer in target.answers))
    return Verdict(value=bare(found), score=score, parsed=bool(found))


def _yes(text, target):
    found = words.yes_or_no(text)
    return Verdict(value=found, score=float(found == target.yes), parsed=bool(found), said=found)


def _pope(text, target):
    value = words.pope(text, target.yes)
    said = text.lower().strip()
    return Verdict(value=value, score=value, parsed=said in ('yes', 'no'), said=said)


def _preferred(text, target):
    found = target.reader.chosen(text)
    found = found if found in ('A', 'B') else ''
    return Verdict(value=found, score=words.preferred(found, target.share), parsed=bool(found))


SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer(
            name=DEFAULT,
            version='downscale 2',
            forms=('letter', 'text', 'several', 'box'),
            read=_exact,
            whole=True,
        ),
        Scorer(
            name='lmms_v04',
            version='lmms-eval 0.4, MMStar',
            forms=('letter',),
            read=_accepting(option_letters.lmms_v04),
        ),
        Scorer(
            name='ref_stage2',
            version='arXiv 2511.17487, second stage',
            forms=('letter',),
            read=_accepting(option_letters.ref_stage2),
        ),
        Scorer(
            name='lmms_v07_letter',
            version='lmms-eval 0.7, letters A-H',
            forms=('letter',),
            read=_letter(lambda text, target: option_letters.lmms_v07_letter(text)),
            strip=lmms_without_thoughts,
        ),
        Scorer(
            name='lmms_v07_mmstar',
            version='lmms-eval 0.7, MMStar (letters A-D)',
            forms=('letter',),
            read=_letter(lambda text, target: option_letters.lmms_v07_letter(text, 'ABCD')),
            strip=lmms_without_thoughts,
        ),
        Scorer(
            name='vlmevalkit',
            version='VLMEvalKit, can_infer without a judge',
            forms=('letter',),
            read=_letter(lambda text, target: option_letters.vlmevalkit(text, target.options)),
        ),
        Scorer(
            name='vmcbench',
            version='lmms-eval 0.4, VMCBench, never drawn at random',
            forms=('letter',),
            read=_letter(lambda text, target: option_letters.vmcbench(text, target.options)),
        ),
        Scorer(
            name='coin_scienceqa',
            version='CoIN, ScienceQA',
            forms=('letter',),
            read=_letter(lambda text, target: words.coin_scienceqa(text, len(target.choices) or 5)),
        ),
        Scorer(
            name='lmms_scienceqa',
            version='lmms-eval 0.4, ScienceQA',
            forms=('letter',),
            read=_accepting(words.lmms_scienceqa),
        ),
        Scorer(
            name='lmms_interleave',
            version='lmms-eval 0.4, LLaVA-Interleave',
            forms=('letter',),
            read=_accepting(words.lmms_interleave),
        ),
        Scorer(
            name='preferred',
            version='downscale 2, share of people',
            forms=('share',),
            read=_preferred,
            whole=True,
        ),
        Scorer(
            name='lmms_exact',
            version='lmms-eval 0.4, GQA',
            forms=('text',),
            read=_number(words.same_words),
        ),
        Scorer(
            name='coin_equal',
            version='CoIN, VQAv2 and VizWiz',
            forms=('text',),
            read=_number(words.coin_equal),
        ),
        Scorer(
            name='coin_ocrvqa',
            version='CoIN, OCR-VQA',
            forms=('text',),
            read=_number(words.coin_ocrvqa),
        ),
        Scorer(
            name='coin_imagenet',
            version='CoIN, ImageNet; an empty reply is wrong',
            forms=('text',),
            read=_number(words.coin_imagenet),
        ),
        Scorer(
            name='interleave',
            version='LLaVA-NeXT, evaluate_interleave',
            forms=('letter', 'text', 'free'),
            read=_interleave,
        ),
        Scorer(
            name='rouge_l',
            version='LLaVA-NeXT, evaluate_interleave (rouge 1.0.1)',
            forms=('text', 'free'),
            read=_rouge,
        ),
        Scorer(name='pope', version='lmms-eval 0.4, POPE', forms=('yes',), read=_pope),
        Scorer(name='yes_no', version='downscale 2', forms=('yes',), read=_yes, whole=True),
        Scorer(
            name='vqa',
            version='EvalAI: TextVQA, VizWiz, M4C',
            forms=('people',),
            read=_people(vqa.soft),
        ),
        Scorer(
            name='vqav2',
            version='lmms-eval 0.7, VQAv2',
            forms=('people',),
            read=_people(vqa.soft_vqav2),
        ),
        Scorer(
            name='vqav2_v04',
            version='lmms-eval 0.4, VQAv2',
            forms=('people',),
            read=_people(vqa.soft_vqav2_v04),
        ),
        Scorer(
            name='coin',
            version='CoIN, Grounding, its parsing mended',
            forms=('box',),
            read=_box(boxes.coin),
        ),
        Scorer(
            name='coin_compat',
            version='CoIN, Grounding as published',
            forms=('box',),
            read=_box(boxes.coin_compat),
        ),
        Scorer(
            name='refcoco',
            version='lmms-eval 0.4, RefCOCO ACC@0.5',
            forms=('box',),
            read=_box(boxes.refcoco),
        ),
        Scorer(
            name='exact-1', version='downscale 1', forms=('letter', 'text', 'several'), read=_own
        ),
    )
}


def applying(target: Target, names: Iterable[str] | None = None) -> list[Scorer]:
    """Return the `Scorer`s that can judge replies to `target`, of all or of `names`, in that
    order.
    """
    forms = target.forms
    return [SCORERS[name] for name in names or SCORERS if forms.intersection(SCORERS[name].forms)]


def unfit(name: str, target: Target) -> str:
    """Why the scorer `name` cannot judge `target`, and which can; '' where it can."""
    if applying(target, [name]):
        return ''
    count = len(target.answers)
    if 'people' in SCORERS[name].forms and count > 1:
        return (f'{name} counts the answers of {PEOPLE} people, and here are {count}; of accepted '
                f'spellings {DEFAULT} takes each')
    return (f'{name} cannot judge the answer {shown(repr(target.gold))}; these can: '
            f'{", ".join(scorer.name for scorer in applying(target))}')


def verdicts(text: str, target: Target, names: Iterable[str] | None = None, stored: bool = False,
             marked: bool = False, behind: bool = False) -> dict[str, Verdict]:
    """Return {name: `Verdict`} of every scorer that can judge `text`.

    `stored` is a reply as a harness keeps it; the harness's own stripping comes before its rule.
    `marked` is the reply of a model that was asked to end in 'Answer: X'; published rules for
    anything but options know no such mark and get what stands behind it. `behind` says that `text`
    stands behind its thought, as where an engine closed it: marks of thoughts in it are its own.
    """
    found = {}
    for scorer in applying(target, names):
        if scorer.whole:
            given = text if behind else behind_thought(text)
        else:
            given = answer_of(text, True) if marked and not _about_options(scorer, target) else text
            given = scorer.strip(given) if stored else given
        found[scorer.name] = scorer.read(given, target)
    return found


def _about_options(scorer, target):
    """Return whether a published rule reads an option out of replies to `target`."""
    if 'text' in scorer.forms:
        return target.share is not None or target.bare and len(target.answers) == 1
    return 'letter' in target.forms


def disagree(found: Iterable[Verdict]) -> bool:
    """Return whether the scores of some `Verdict`s differ by more than rounding."""
    scores = [verdict.score for verdict in found if verdict.score is not None]
    return bool(scores) and not math.isclose(max(scores), min(scores), abs_tol=SAME)
