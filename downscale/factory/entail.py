"""Whether a description says what a statement says, says otherwise, or says nothing about it."""
import math
from dataclasses import dataclass

from downscale.factory.words import KINDS, Relation, bindings, content, relations, sentences

ENOUGH = 0.75  # share of a statement's words that one sentence must hold, of four or more


@dataclass(frozen=True)
class Entailment:
    """`entailed`: a sentence says it. `against`: the sentence that contradicts it, or ''."""
    entailed: bool
    against: str


def judge(statement, answer, description):
    """Return the `Entailment` on one statement; `answer` is what it asserts ('' for yes and no)."""
    claims = [words for words in sentences(statement) if any(word.content for word in words)]
    told = sentences(description)
    if not claims:
        return Entailment(False, '')
    verdicts = [_judge(claim, content(answer), told) for claim in claims]
    return Entailment(all(verdict.entailed for verdict in verdicts),
                      next((verdict.against for verdict in verdicts if verdict.against), ''))


def _judge(claim, answer, told):
    if related := relations(claim):
        seen = [(sentence, relation) for sentence in told for relation in relations(sentence)]
        entailed = all(any(_says(one, other) for _, other in seen) for one in related)
        against = next((sentence for sentence, other in seen for one in related
                        if _denies(one, other)), None)
        return Entailment(entailed, _text(against))
    entailed = any(_holds(claim, answer, sentence) for sentence in told)
    against = next((sentence for sentence in told
                    if _contradicts(claim, answer, sentence, entailed)), None)
    return Entailment(entailed, _text(against))


def _text(words):
    return ' '.join(word.raw for word in words) if words else ''


# --- relations --------------------------------------------------------------------------------

def _turned(relation):
    return Relation(
        name=relation.name, one=relation.other, other=relation.one, denied=relation.denied
    )


def _within(one, other):
    """Return whether `other` is about the same two sides as `one`, in the same order."""
    return one.name == other.name and one.one <= other.one and one.other <= other.other


def _says(one, other):
    """Return whether relation `other` makes `one` true: the same, or for a denied one the
    opposite.
    """
    if _within(one, other):
        return one.denied == other.denied
    return one.denied and not other.denied and _within(one, _turned(other))


def _denies(one, other):
    if _within(one, other):
        return one.denied != other.denied
    return not one.denied and not other.denied and _within(one, _turned(other))


# --- other claims -----------------------------------------------------------------------------

def _stems(words):
    return [word.stem for word in words if word.content and word.raw not in KINDS]


def _holds(claim, answer, sentence):
    """Return whether one sentence has the words of a claim, none denied that is not, and gives its
    values to the same things.
    """
    wanted = _stems(claim)
    there = set(_stems(sentence))
    found = [stem for stem in wanted if stem in there]
    needed = len(wanted) if len(wanted) < 4 else math.ceil(ENOUGH * len(wanted))
    exact = {word.stem for word in claim if word.kind == 'number'} | (set(answer) & set(wanted))
    if len(found) < needed or not exact <= there or _flipped(claim, answer, sentence):
        return False
    given = bindings(sentence)
    return all(any(_same(one, other) for other in given) for one in bindings(claim)
               if any(other.kind == one.kind for other in given))


def _same(one, other):
    return one.kind == other.kind and one.value == other.value and one.denied == other.denied \
        and bool(one.heads & other.heads if one.kind != 'number' else one.heads <= other.heads)


def _flipped(claim, answer, sentence):
    """Return whether a sentence denies a word that the claim asserts, or asserts one that it
    denies.
    """
    mine = _denied(claim)
    other = _denied(sentence)
    asserted = set(_stems(claim))
    weighty = set(answer) & asserted or asserted
    plain = {word.stem for word in sentence if word.content and not word.denied}
    return any(stem in other and stem not in mine and stem not in plain
               or stem in mine and stem not in other and stem in plain for stem in weighty)


def _denied(words):
    return {word.stem for word in words if word.denied}


def _contradicts(claim, answer, sentence, entailed):
    wanted = set(_stems(claim))
    there = set(_stems(sentence))
    if wanted <= there and len(there) <= len(wanted) + 3 and _flipped(claim, answer, sentence):
        return True
    return _other_value(claim, answer, sentence, entailed) \
        or _other_word(claim, answer, sentence, entailed)


def _other_value(claim, answer, sentence, entailed):
    """Return whether a sentence gives the claim's thing another value of the same class.

    'A red car' and 'a blue car' may be two cars: that counts only where the claim is not said.
    """
    mine = bindings(claim)
    given = bindings(sentence)
    for one in mine:
        values = {b.value for b in mine if b.kind == one.kind and b.heads == one.heads}
        rivals = [b for b in given if b.kind == one.kind and b.heads == one.heads and not b.denied]
        asserted = one.said or one.value in answer
        if one.denied or not asserted or any(b.value in values for b in rivals):
            continue
        if any(b.said or not entailed for b in rivals):
            return True
    return False


def _other_word(claim, answer, sentence, entailed):
    """Return whether a sentence is the claim with something else in the place of its answer.

    Where the claim is said too, both may be true ('a hat', 'a coat') unless the answers are
    numbers, letters or codes.
    """
    mine = _stems(claim)
    other = _stems(sentence)
    at = next((k for k in range(len(mine) - len(answer) + 1)
               if answer and mine[k:k + len(answer)] == answer), None)
    if at is None or len(mine) == len(answer):
        return False
    tail = len(mine) - at - len(answer)
    middle = other[at:len(other) - tail]
    if not middle or middle == answer or len(middle) > len(answer) + 1 \
            or other[:at] != mine[:at] or tail and other[-tail:] != mine[-tail:]:
        return False
    exact = all(len(stem) == 1 or any(letter.isdigit() for letter in stem)
                for stem in [*answer, *middle])
    return exact or not entailed
