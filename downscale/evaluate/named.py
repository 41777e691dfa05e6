"""Every scorer by name and version, and what it needs to know beside the reply.

A verdict is the value in the scorer's own form (a letter, a number, None), the score that it means
(None where the data cannot be scored) and whether an answer was found. Raw replies are kept, so
each scorer can be asked again: a score without the name of its scorer means little.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

from downscale.evaluate import boxes, scorers, vqa, words
from downscale.evaluate.reading import answer_of, lmms_without_thoughts, plain, without_thought

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
SAME = 1e-9


@dataclass(frozen=True)
class Target:
    """What is right: one answer or those of several people, and what some rules ask for.

    `choices` are (letter, text) pairs; `share` is how many people took B of A and B; a `free`
    answer is a description, which no reply will equal.
    """
    answers: tuple[str, ...]
    choices: tuple[tuple[str, str], ...] = ()
    share: float | None = None
    free: bool = False

    @property
    def gold(self):
        """The one answer, or what most people said (the first of several)."""
        return max(self.answers, key=self.answers.count)

    @property
    def options(self):
        """The texts by letter; without any, four letters of which nothing more is known."""
        return dict(self.choices) or dict.fromkeys('ABCD', '')

    @property
    def forms(self):
        """What the answers can be taken for: letter, box, people, share, yes, text or free."""
        gold = self.gold.strip()
        if self.free:
            return {'free'}
        if self.share is not None:
            return {'share', 'letter'}
        if len(self.answers) > 1:
            return {'people'}
        if gold.upper() in tuple(LETTERS):  # without options a letter may be what was read
            return {'letter'} if self.choices else {'letter', 'text'}
        if _is_box(gold):
            return {'box'}
        return {'text', 'yes'} if gold.lower() in ('yes', 'no') else {'text'}


def _is_box(gold):
    try:
        return gold.startswith('[') and bool(boxes.box_of(gold))
    except ValueError:
        return False


@dataclass(frozen=True)
class Verdict:
    """A scorer's own value, the score that it means, whether an answer was found, and, from rules
    for yes and no, which of the two was `said`."""
    value: str | float | None
    score: float | None
    parsed: bool
    said: str = ''


@dataclass(frozen=True)
class Scorer:
    """A named rule: `read` makes a `Verdict` of (text, `Target`) where the target has such a form.

    `strip` is what its harness does to a stored reply before the rule sees it.
    """
    name: str
    version: str
    forms: tuple[str, ...]
    read: Callable
    strip: Callable = str


def _accepting(rule):
    """A rule (text, gold) -> 1.0 or 0.0; an answer was found where some option is accepted."""
    def read(text, target):
        value = rule(text, target.gold)
        letters = [letter for letter, _ in target.choices] or LETTERS
        return Verdict(value, value, value > 0 or any(rule(text, one) for one in letters))
    return read


def _letter(rule):
    """A rule (text, target) -> letter, '' or None; 'Z' is a refusal, not an answer."""
    def read(text, target):
        found = rule(text, target)
        gold = target.gold.strip().upper()
        return Verdict(found, float(found == gold), bool(found) and (found != 'Z' or gold == 'Z'))
    return read


def _number(rule):
    """A rule (text, gold) -> score, None where it found no answer; an empty reply holds none."""
    def read(text, target):
        value = rule(text, target.gold)
        return Verdict(value, 0.0 if value is None else value, value is not None and bool(text))
    return read


def _people(rule):
    def read(text, target):
        value = rule(text, target.answers)
        return Verdict(value, value, bool(text.strip()))
    return read


def _rouge(text, target):
    value = words.rouge_l(text, target.gold)
    return Verdict(value, value, bool(text.strip()))


def _interleave(text, target):
    if target.free:
        return _rouge(text, target)
    rule = words.interleave_choice
    return _accepting(rule)(text, target) if 'letter' in target.forms else \
        _number(rule)(text, target)


def _own(text, target):
    found = answer_of(without_thought(text), True, target.gold)
    score = max(float(plain(found) == plain(answer)) for answer in target.answers)
    return Verdict(found, score, bool(found))


def _yes(text, target):
    found = words.yes_or_no(answer_of(without_thought(text), True))
    return Verdict(found, float(found == target.gold.strip().lower()), bool(found), found)


def _pope(text, target):
    value, said = words.pope(text, target.gold), text.lower().strip()
    return Verdict(value, value, said in ('yes', 'no'), said)


def _preferred(text, target):
    found = answer_of(without_thought(text), True, 'A')
    found = found if found in ('A', 'B') else ''
    return Verdict(found, words.preferred(found, target.share), bool(found))


SCORERS = {scorer.name: scorer for scorer in (
    Scorer('lmms_v04', 'lmms-eval 0.4, MMStar', ('letter',), _accepting(scorers.lmms_v04)),
    Scorer('ref_stage2', 'arXiv 2511.17487, second stage', ('letter',),
           _accepting(scorers.ref_stage2)),
    Scorer('lmms_v07_letter', 'lmms-eval 0.7, letters A-H', ('letter',),
           _letter(lambda text, target: scorers.lmms_v07_letter(text)), lmms_without_thoughts),
    Scorer('lmms_v07_mmstar', 'lmms-eval 0.7, MMStar (letters A-D)', ('letter',),
           _letter(lambda text, target: scorers.lmms_v07_letter(text, 'ABCD')),
           lmms_without_thoughts),
    Scorer('vlmevalkit', 'VLMEvalKit, can_infer without a judge', ('letter',),
           _letter(lambda text, target: scorers.vlmevalkit(text, target.options))),
    Scorer('vmcbench', 'lmms-eval 0.4, VMCBench, never drawn at random', ('letter',),
           _letter(lambda text, target: scorers.vmcbench(text, target.options))),
    Scorer('coin_scienceqa', 'CoIN, ScienceQA', ('letter',), _letter(
        lambda text, target: words.coin_scienceqa(text, len(target.choices) or 5))),
    Scorer('lmms_scienceqa', 'lmms-eval 0.4, ScienceQA', ('letter',),
           _accepting(words.lmms_scienceqa)),
    Scorer('lmms_interleave', 'lmms-eval 0.4, LLaVA-Interleave', ('letter',),
           _accepting(words.lmms_interleave)),
    Scorer('preferred', 'downscale 1, share of people', ('share',), _preferred),
    Scorer('lmms_exact', 'lmms-eval 0.4, GQA', ('text',), _number(words.same_words)),
    Scorer('coin_equal', 'CoIN, VQAv2 and VizWiz', ('text',), _number(words.coin_equal)),
    Scorer('coin_ocrvqa', 'CoIN, OCR-VQA', ('text',), _number(words.coin_ocrvqa)),
    Scorer('coin_imagenet', 'CoIN, ImageNet; an empty reply is wrong', ('text',),
           _number(words.coin_imagenet)),
    Scorer('interleave', 'LLaVA-NeXT, evaluate_interleave', ('letter', 'text', 'free'),
           _interleave),
    Scorer('rouge_l', 'LLaVA-NeXT, evaluate_interleave (rouge 1.0.1)', ('text', 'free'), _rouge),
    Scorer('pope', 'lmms-eval 0.4, POPE', ('yes',), _pope),
    Scorer('yes_no', 'downscale 1', ('yes',), _yes),
    Scorer('vqa', 'EvalAI: TextVQA, VizWiz, M4C', ('people',), _people(vqa.soft)),
    Scorer('vqav2', 'lmms-eval 0.7, VQAv2', ('people',), _people(vqa.soft_vqav2)),
    Scorer('vqav2_v04', 'lmms-eval 0.4, VQAv2', ('people',), _people(vqa.soft_vqav2_v04)),
    Scorer('coin', 'CoIN, Grounding, its parsing mended', ('box',), _number(boxes.coin)),
    Scorer('coin_compat', 'CoIN, Grounding as published', ('box',), _number(boxes.coin_compat)),
    Scorer('refcoco', 'lmms-eval 0.4, RefCOCO ACC@0.5', ('box',), _number(boxes.refcoco)),
    Scorer('exact-1', 'downscale 1', ('letter', 'text', 'people'), _own),
)}


def applying(target, names=None):
    """The `Scorer`s that can judge replies to `target`, of all or of `names`, in that order."""
    forms = target.forms
    return [SCORERS[name] for name in names or SCORERS if forms.intersection(SCORERS[name].forms)]


def verdicts(text, target, names=None, stored=False, marked=False):
    """{name: `Verdict`} of every scorer that can judge `text`.

    `stored` is a reply as a harness keeps it; the harness's own stripping comes before its rule.
    `marked` is the reply of a model that was asked to end in 'Answer: X'; rules for anything but
    options know no such mark and get what stands behind it.
    """
    said = answer_of(text, True) if marked and 'letter' not in target.forms else text
    return {scorer.name: scorer.read(scorer.strip(said) if stored else said, target)
            for scorer in applying(target, names)}


def disagree(found):
    """Whether the scores of some `Verdict`s differ."""
    scores = [verdict.score for verdict in found if verdict.score is not None]
    return bool(scores) and not math.isclose(max(scores), min(scores), abs_tol=SAME)
