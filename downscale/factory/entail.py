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


def judge(statement: str, answer: str, description: str) -> Entailment:
    """Return the `Entailment` on one statement; `answer` is what it asserts ('' for yes and no)."""
    claims = sentences(statement)
    told = sentences(description)
    if not claims:
        return Entailment(False, '')
    wanted = content(answer)
    verdicts = [_judge(claim, wanted, told) for claim in claims]
    against = [verdict.against for verdict in verdicts if verdict.against]
    return Entailment(all(verdict.entailed for verdict in verdicts), against[0] if against else '')


def _judge(claim, answer, told):
    # A claim about where things stand or which is larger is settled by such relations alone:
    # their words are the same when the two sides change places.
    if related := relations(claim):
        return _judge_relations(related, told)
    entailed = any(_holds(claim, answer, sentence) for sentence in told)
    against = next((sentence for sentence in told
                    if _contradicts(claim, answer, sentence, entailed)), None)
    return Entailment(entailed, _text(against))


def _judge_relations(related, told):
    """Return the `Entailment` of a claim that states the relations `related`."""
    seen = []
    for sentence in told:
        seen += [(sentence, relation) for relation in relations(sentence)]
    entailed = True
    for claimed in related:
        entailed &= any(_says(claimed, other) for _, other in seen)
    for sentence, other in seen:
        if any(_denies(claimed, other) for claimed in related):
            return Entailment(entailed, _text(sentence))
    return Entailment(entailed, '')


def _text(words):
    return ' '.join(word.raw for word in words) if words else ''


# --- relations --------------------------------------------------------------------------------

def _turned(relation):
    return Relation(
        name=relation.name, one=relation.other, other=relation.one, denied=relation.denied
    )


def _within(claimed, other):
    """Return whether `other` is about the same two sides as `claimed`, in the same order."""
    return claimed.name == other.name and claimed.one <= other.one and claimed.other <= other.other


def _says(claimed, other):
    """Return whether relation `other` makes `claimed` true.

    That is the same relation or, where `claimed` is denied, its opposite.
    """
    if _within(claimed, other):
        return claimed.denied == other.denied
    return claimed.denied and not other.denied and _within(claimed, _turned(other))


def _denies(claimed, other):
    if _within(claimed, other):
        return claimed.denied != other.denied
    return not claimed.denied and not other.denied and _within(claimed, _turned(other))


# --- other claims -----------------------------------------------------------------------------

def _stems(words):
    return [word.stem for word in words if word.content and word.raw not in KINDS]


def _holds(claim, answer, sentence):
    """Return whether one sentence says a claim.

    It must have enough of the claim's words, all of its numbers and answer words, deny the same
    words, and give the claim's values to the same things.
    """
    wanted = _stems(claim)
    there = set(_stems(sentence))
    # 1. Enough words. A claim of up to three words must be there in full.
    shared = [stem for stem in wanted if stem in there]
    needed = len(wanted) if len(wanted) < 4 else math.ceil(ENOUGH * len(wanted))
    # 2. The words that no other word can stand for.
    numbers = {word.stem for word in claim if word.kind == 'number'}
    exact = numbers | (set(answer) & set(wanted))
    if len(shared) < needed or not exact <= there or _flipped(claim, answer, sentence):
        return False
    # 3. The same values of the same things, where the sentence gives any of that kind.
    given = bindings(sentence)
    for binding in bindings(claim):
        rivals = [other for other in given if other.kind == binding.kind]
        if rivals and not any(_same(binding, other) for other in rivals):
            return False
    return True


def _same(claimed, other):
    if (claimed.kind, claimed.value, claimed.denied) != (other.kind, other.value, other.denied):
        return False
    # A count is of exactly what it names ('two red cars'); a color may name the thing in part.
    if claimed.kind == 'number':
        return claimed.heads <= other.heads
    return bool(claimed.heads & other.heads)


def _flipped(claim, answer, sentence):
    """Return whether claim and sentence differ in what they deny.

    The answer's words decide where the claim has any; else all of its words do.
    """
    denied_in_claim = _denied(claim)
    denied_in_sentence = _denied(sentence)
    asserted = set(_stems(claim))
    plain = {word.stem for word in sentence if word.content and not word.denied}
    for stem in set(answer) & asserted or asserted:
        in_claim = stem in denied_in_claim
        in_sentence = stem in denied_in_sentence
        # Denied by the sentence alone, or by the claim alone while the sentence asserts it.
        if in_claim != in_sentence and in_claim == (stem in plain):
            return True
    return False


def _denied(words):
    return {word.stem for word in words if word.denied}


def _contradicts(claim, answer, sentence, entailed):
    wanted = set(_stems(claim))
    there = set(_stems(sentence))
    # A sentence of many more words may well deny them of something else.
    if wanted <= there and len(there) <= len(wanted) + 3 and _flipped(claim, answer, sentence):
        return True
    return _other_value(claim, answer, sentence, entailed) \
        or _other_word(claim, answer, sentence, entailed)


def _other_value(claim, answer, sentence, entailed):
    """Return whether a sentence gives the claim's thing another value of the same class.

    'A red car' and 'a blue car' may be two cars: that counts only where the claim is not said.
    """
    claimed = bindings(claim)
    given = bindings(sentence)
    for binding in claimed:
        values = {other.value for other in claimed
                  if other.kind == binding.kind and other.heads == binding.heads}
        rivals = [other for other in given if other.kind == binding.kind
                  and other.heads == binding.heads and not other.denied]
        asserted = binding.said or binding.value in answer
        if binding.denied or not asserted or any(other.value in values for other in rivals):
            continue
        if any(other.said or not entailed for other in rivals):
            return True
    return False


def _other_word(claim, answer, sentence, entailed):
    """Return whether a sentence is the claim with something else in the place of its answer.

    Where the claim is said too, both may be true ('a hat', 'a coat') unless the answers are
    numbers, letters or codes.
    """
    claimed = _stems(claim)
    other = _stems(sentence)
    # 1. Where the answer stands in the claim; a claim that is nothing else has no place for it.
    places = range(len(claimed) - len(answer) + 1) if answer else ()
    at = next((k for k in places if claimed[k:k + len(answer)] == answer), None)
    if at is None or len(claimed) == len(answer):
        return False
    # 2. What the sentence has there, between the same words.
    tail = len(claimed) - at - len(answer)
    middle = other[at:len(other) - tail]
    if not middle or middle == answer or len(middle) > len(answer) + 1:
        return False
    if other[:at] != claimed[:at] or tail and other[-tail:] != claimed[-tail:]:
        return False
    # 3. Whether both could be true.
    exact = all(len(stem) == 1 or any(map(str.isdigit, stem)) for stem in [*answer, *middle])
    return exact or not entailed
