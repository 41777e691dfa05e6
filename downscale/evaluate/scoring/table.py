"""Every scorer by name and version, and which of them can judge what.

Raw replies are kept, so each scorer can be asked again: a score without the name of its scorer
means little.
"""
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from downscale.data.row_files import shown
from downscale.evaluate.scoring import boxes, option_letters, short_answers, vqa, yes_no
from downscale.evaluate.scoring.choices import LETTERS
from downscale.evaluate.scoring.reading import (
    answer_of,
    bare,
    lmms_without_thoughts,
    plain,
    without_thought,
)
from downscale.evaluate.scoring.statements import behind_thought, same_answer, short_answer
from downscale.evaluate.scoring.targets import PEOPLE, Target, Verdict

DEFAULT = 'exact-2'  # the rule of data that names no other
SAME = 1e-6  # scores as far apart are equal: ROUGE-L of two equal texts is 1 - 5e-9


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A named rule: `read` makes a `Verdict` of (text, `Target`) where the target has such a form.

    `strip` is what its harness does to a stored reply before the rule sees it. A `whole` rule is
    ours and gets all that stands behind the thought; it finds 'Answer: X' itself.
    """
    name: str
    version: str
    forms: tuple[str, ...]
    read: Callable[[str, Target], Verdict]
    strip: Callable[[str], str] = str
    whole: bool = False


def _accepting(rule):
    """Return the reader of a rule (text, letter) -> 1.0 or 0.0.

    Such a rule names no letter: it found an answer where it accepts some option.
    """
    def read(text, target):
        value = rule(text, target.letter)
        letters = [letter for letter, _ in target.choices] or LETTERS
        parsed = value > 0 or any(rule(text, letter) for letter in letters)
        return Verdict(value=value, score=value, parsed=parsed)

    return read


def _letter(rule):
    """Return the reader of a rule (text, target) -> letter, '' or None.

    'Z' is a refusal of VLMEvalKit, not an answer.
    """
    def read(text, target):
        letter = rule(text, target)
        gold = target.letter.strip().upper()
        return Verdict(
            value=letter,
            score=float(letter == gold),
            parsed=bool(letter) and (letter != 'Z' or gold == 'Z'),
        )

    return read


def _number(rule):
    """Return the reader of a rule (text, gold) -> score, None where it found no answer.

    An empty reply holds no answer.
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
    """Return the reader of a rule about boxes, which notes whether a reply has another scale."""
    judge = _number(rule)

    def read(text, target):
        return replace(judge(text, target), other_scale=boxes.other_scale(text, target.gold))
    return read


def _people(rule):
    """Return the reader of a rule (text, answers of several people) -> agreement."""
    def read(text, target):
        value = rule(text, target.answers)
        return Verdict(value=value, score=value, parsed=bool(text.strip()))
    return read


def _rouge(text, target):
    value = short_answers.rouge_l(text, target.gold)
    return Verdict(value=value, score=value, parsed=bool(text.strip()))


def _interleave(text, target):
    if target.free:
        return _rouge(text, target)
    rule = short_answers.interleave_choice
    return _accepting(rule)(text, target) if target.bare else _number(rule)(text, target)


def _exact_1(text, target):
    answer = answer_of(without_thought(text), True, target.gold)
    score = max(float(plain(answer) == plain(gold)) for gold in target.answers)
    return Verdict(value=answer, score=score, parsed=bool(answer))


def _exact_2(text, target):
    """Judge an option, a box, yes or no, else words, each as usual replies write them."""
    # The order decides: 'A' among options is a letter, and elsewhere a word.
    if target.letters:
        key = target.reader.chosen(text)
        return Verdict(value=key, score=float(key in target.letters), parsed=bool(key))
    if 'box' in target.forms:
        box, score = boxes.judge(text, target.gold, target.size)
        return Verdict(value=box, score=score, parsed=box not in ('', boxes.OTHER_SCALE),
                       other_scale=box == boxes.OTHER_SCALE)
    if target.yes:
        return _yes(text, target)
    answer = short_answer(text)
    score = float(any(same_answer(answer, gold) for gold in target.answers))
    return Verdict(value=bare(answer), score=score, parsed=bool(answer))


def _yes(text, target):
    word = yes_no.yes_or_no(text)
    return Verdict(value=word, score=float(word == target.yes), parsed=bool(word), said=word)


def _pope(text, target):
    value = yes_no.pope(text, target.yes)
    word = text.lower().strip()
    return Verdict(value=value, score=value, parsed=word in ('yes', 'no'), said=word)


def _preferred(text, target):
    key = target.reader.chosen(text)
    key = key if key in ('A', 'B') else ''
    return Verdict(value=key, score=short_answers.preferred(key, target.share), parsed=bool(key))


def _option_scorers():
    """Yield the published rules that read an option's letter."""
    def letters_a_to_h(text, target):
        return option_letters.lmms_v07_letter(text)

    def letters_a_to_d(text, target):
        return option_letters.lmms_v07_letter(text, 'ABCD')

    def inferred(text, target):
        return option_letters.vlmevalkit(text, target.options)

    def parsed(text, target):
        return option_letters.vmcbench(text, target.options)

    def of_as_many(text, target):
        return short_answers.coin_scienceqa(text, len(target.choices) or 5)

    letter = {'forms': ('letter',)}
    yield Scorer(name='lmms_v04', version='lmms-eval 0.4, MMStar',
                 read=_accepting(option_letters.lmms_v04), **letter)
    yield Scorer(name='ref_stage2', version='arXiv 2511.17487, second stage',
                 read=_accepting(option_letters.ref_stage2), **letter)
    yield Scorer(name='lmms_v07_letter', version='lmms-eval 0.7, letters A-H',
                 read=_letter(letters_a_to_h), strip=lmms_without_thoughts, **letter)
    yield Scorer(name='lmms_v07_mmstar', version='lmms-eval 0.7, MMStar (letters A-D)',
                 read=_letter(letters_a_to_d), strip=lmms_without_thoughts, **letter)
    yield Scorer(name='vlmevalkit', version='VLMEvalKit, can_infer without a judge',
                 read=_letter(inferred), **letter)
    yield Scorer(name='vmcbench', version='lmms-eval 0.4, VMCBench, never drawn at random',
                 read=_letter(parsed), **letter)
    yield Scorer(name='coin_scienceqa', version='CoIN, ScienceQA',
                 read=_letter(of_as_many), **letter)
    yield Scorer(name='lmms_scienceqa', version='lmms-eval 0.4, ScienceQA',
                 read=_accepting(short_answers.lmms_scienceqa), **letter)
    yield Scorer(name='lmms_interleave', version='lmms-eval 0.4, LLaVA-Interleave',
                 read=_accepting(short_answers.lmms_interleave), **letter)
    yield Scorer(name='preferred', version='downscale 2, share of people', forms=('share',),
                 read=_preferred, whole=True)


def _word_scorers():
    """Yield the rules for short answers, descriptions, and yes and no."""
    text = {'forms': ('text',)}
    yield Scorer(name='lmms_exact', version='lmms-eval 0.4, GQA',
                 read=_number(short_answers.same_words), **text)
    yield Scorer(name='coin_equal', version='CoIN, VQAv2 and VizWiz',
                 read=_number(short_answers.coin_equal), **text)
    yield Scorer(name='coin_ocrvqa', version='CoIN, OCR-VQA',
                 read=_number(short_answers.coin_ocrvqa), **text)
    yield Scorer(name='coin_imagenet', version='CoIN, ImageNet; an empty reply is wrong',
                 read=_number(short_answers.coin_imagenet), **text)
    yield Scorer(name='interleave', version='LLaVA-NeXT, evaluate_interleave',
                 forms=('letter', 'text', 'free'), read=_interleave)
    yield Scorer(name='rouge_l', version='LLaVA-NeXT, evaluate_interleave (rouge 1.0.1)',
                 forms=('text', 'free'), read=_rouge)
    yield Scorer(name='pope', version='lmms-eval 0.4, POPE', forms=('yes',), read=_pope)
    yield Scorer(name='yes_no', version='downscale 2', forms=('yes',), read=_yes, whole=True)


def _people_and_box_scorers():
    """Yield the rules that count people's answers, and those for boxes."""
    yield Scorer(name='vqa', version='EvalAI: TextVQA, VizWiz, M4C', forms=('people',),
                 read=_people(vqa.soft))
    yield Scorer(name='vqav2', version='lmms-eval 0.7, VQAv2', forms=('people',),
                 read=_people(vqa.soft_vqav2))
    yield Scorer(name='vqav2_v04', version='lmms-eval 0.4, VQAv2', forms=('people',),
                 read=_people(vqa.soft_vqav2_v04))
    yield Scorer(name='coin', version='CoIN, Grounding, its parsing mended', forms=('box',),
                 read=_box(boxes.coin))
    yield Scorer(name='coin_compat', version='CoIN, Grounding as published', forms=('box',),
                 read=_box(boxes.coin_compat))
    yield Scorer(name='refcoco', version='lmms-eval 0.4, RefCOCO ACC@0.5', forms=('box',),
                 read=_box(boxes.refcoco))


# In the order in which they are printed: the default first, the rule that it replaced last.
_EVERY = (
    Scorer(name=DEFAULT, version='downscale 2', forms=('letter', 'text', 'several', 'box'),
           read=_exact_2, whole=True),
    *_option_scorers(),
    *_word_scorers(),
    *_people_and_box_scorers(),
    Scorer(name='exact-1', version='downscale 1', forms=('letter', 'text', 'several'),
           read=_exact_1),
)
SCORERS = {scorer.name: scorer for scorer in _EVERY}


def applying(target: Target, names: Iterable[str] | None = None) -> list[Scorer]:
    """Return the `Scorer`s that can judge replies to `target`, of all or of `names`, in order."""
    forms = target.forms
    return [SCORERS[name] for name in names or SCORERS if forms.intersection(SCORERS[name].forms)]


def unfit(name: str, target: Target) -> str:
    """Return why the scorer `name` cannot judge `target`, and which can; '' where it can."""
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
    judged = {}
    for scorer in applying(target, names):
        given = text
        # Ours find the mark themselves, and a thought is cut off as an engine would.
        if scorer.whole:
            given = text if behind else behind_thought(text)
        else:
            if marked and not _about_options(scorer, target):
                given = answer_of(text, True)
            if stored:
                given = scorer.strip(given)
        judged[scorer.name] = scorer.read(given, target)
    return judged


def _about_options(scorer, target):
    """Return whether a published rule reads an option out of replies to `target`."""
    # 'interleave' judges letters and words: what is right decides what it looks for.
    if 'text' in scorer.forms:
        return target.share is not None or target.bare and len(target.answers) == 1
    return 'letter' in target.forms


def disagree(found: Iterable[Verdict]) -> bool:
    """Return whether the scores of some `Verdict`s differ by more than rounding."""
    scores = [verdict.score for verdict in found if verdict.score is not None]
    return bool(scores) and not math.isclose(max(scores), min(scores), abs_tol=SAME)
