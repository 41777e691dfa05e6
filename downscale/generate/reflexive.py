"""Reflexive tokens ("wait", "however", ...), which may be banned while a model thinks.

For the vocabulary of Qwen3 they are the published list of Extract+Think, as data with its origin:
189 ids that no simple rule yields. For any other vocabulary a rule finds them.
"""
import json
import re
from importlib.resources import files
from typing import Any

from tokenizers import Tokenizer

KEYWORDS = ('wait', 'alternatively', 'hmm', 'but', 'however', 'alternative', 'another', 'check',
            'double-check', 'oh', 'maybe', 'verify', 'other', 'again', 'now', 'ah', 'anyway',
            'anyhow')


def reflexive_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the reflexive tokens of a tokenizer: a dict from id to text, in order of id.

    The published list where each of its ids means the text that it has in Qwen3 (so for Qwen2 as
    well, whose words have the same ids), else `matching`. ValueError when there is none.
    """
    # Compared by text and not by name: a vocabulary may be that of Qwen under any name.
    published = {int(i): text for i, text in published_list()['tokens'].items()}
    if list(published.values()) == _texts(tokenizer, list(published)):
        return published
    return matching(tokenizer)


def published_list() -> dict[str, Any]:
    """Return the data file: `vocabulary`, `origin`, `what`, `tokens` (id as text: decoded text)."""
    path = files('downscale.generate').joinpath('reflexive_qwen3.json')
    return json.loads(path.read_text(encoding='utf-8'))


def matching(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the tokens that are a keyword, as a dict from id to text.

    The rule: the decoded token, without case and without what is neither letter nor digit at its
    two ends, is one of KEYWORDS, written with its hyphen or without. Special tokens do not count.
    A piece that also occurs inside longer words is found too ("but" of "attribute"). ValueError
    when no token matches, because a ban of nothing would go unseen.
    """
    keywords = {*KEYWORDS, *(word.replace('-', '') for word in KEYWORDS)}
    ids = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values())
                 - set(tokenizer.get_added_tokens_decoder()))
    tokens = {i: text for i, text in zip(ids, _texts(tokenizer, ids))
              if re.sub(r'^[\W_]+|[\W_]+$', '', text).casefold() in keywords}
    if not tokens:
        raise ValueError(f'none of the {len(ids)} tokens of this vocabulary is a reflexive word '
                         f'({", ".join(KEYWORDS[:4])}, ...); think without the ban')
    return tokens


def listing(tokens: dict[int, str]) -> str:
    """Return what is banned, for people: a line with id and quoted text for each token."""
    return '\n'.join(f'{i:>8}  {text!r}' for i, text in tokens.items())


def _texts(tokenizer, ids):
    """Return each id decoded alone."""
    return tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
