"""The decoupled test: a perception model writes, a text-only reasoner reads and answers.

`describe` runs once per perception model; `answer` reads those texts for every pair, so the whole
perception x reasoner grid costs one description per picture and model. What hands the answer over
is found twice: by a rule, and by readers from whom the question is hidden.
"""
import re
from collections.abc import Sequence
from typing import Any

from downscale.config import Experiment
from downscale.data.scenes.clutter_conversations import budgeted
from downscale.data.scenes.clutter_telling import within
from downscale.data.tokens import Encoder
from downscale.evaluate.answers import (
    NOT_SHOWN,
    Asking,
    Item,
    gold_ids,
    prompt_of,
    row,
    windows,
    wording_of,
)
from downscale.generate.replies import Replies, Report
from downscale.generate.requests import Request
from downscale.results.items import HIDDEN
from downscale.values import hash_of

GOLD = ''  # the perception run of the gold-scene control
# Where nobody has said what a faultless description holds, these words say the answer outright.
_VERDICT = re.compile(
    r'\b(?:the|correct|right|final) (?:answer|option|choice)\b|\banswer ?(?:is|:)', re.IGNORECASE)
Texts = dict[str, str]  # item_id: what is read in the place of the pictures


def describe(replies: Replies, experiment: Experiment, items: Sequence[Item], kind: str,
             report: Report = lambda done, total: None) -> list[dict[str, Any]]:
    """Return rows of the texts table: what the perception model writes for each item.

    A 'caption' is written once per picture and shared by its questions; an 'extraction' is
    written per question, given only what to look at. Either keeps to `evaluation.budget`.
    """
    plan = experiment.evaluation
    encoder = replies.engine.encoder
    budget = plan.budget or None
    prompts = [budgeted(wording_of(experiment).describe(item, kind), budget) for item in items]
    # Equal pictures and prompts are asked once, with the pictures of the first such item.
    asked = {}
    for item, prompt in zip(items, prompts):
        asked.setdefault((item.example.scene_id, prompt), item)
    order = list(asked)

    def request(k):
        item = asked[order[k]]
        return Request(prompt_of(encoder, order[k][1], item.example.images), limit=plan.write)

    written = dict(zip(order, replies.write(kind, order, request, windows, report), strict=True))
    rows = []
    for item, prompt in zip(items, prompts):
        reply = written[item.example.scene_id, prompt]
        rows.append({'item_id': item.question.item_id, 'p_run': experiment.name,
                     'text_kind': kind, 'question': item.question.text, 'prompt': prompt,
                     'text': within(reply.text, budget), 'n_tokens': len(reply.ids),
                     'truncated': reply.truncated})
    return rows


def gold_texts(items: Sequence[Item], kind: str, budget: int | None = None) -> Texts:
    """Return what a faultless perception model would have written, as {item_id: text}."""
    return {item.question.item_id: within(item.example.caption if kind == 'caption'
                                          else item.question.extraction.text, budget)
            for item in items}


def brief_texts(captions: Texts, extractions: Texts, encoder: Encoder) -> Texts:
    """Return {item_id: its caption, cut to as many tokens as its extraction has}.

    What they leave out is what is written last: with equal tokens, is it better to be asked for?
    """
    brief = {}
    for item_id, caption in captions.items():
        tokens = len(encoder.ids(extractions[item_id]))
        brief[item_id] = encoder.text(encoder.ids(caption)[:tokens])
    return brief


def answer(replies: Replies, experiment: Experiment, items: Sequence[Item],
           texts: dict[tuple[str, str], Texts], data_hash: str,
           report: Report = lambda done, total: None) -> list[dict[str, Any]]:
    """Return rows of the items table: this reasoner on every text, directly and thinking.

    With `evaluation.question_hidden` it also answers directly without having been told the
    question. `texts` maps (perception run or GOLD, kind) to {item_id: text}.
    """
    plan = experiment.evaluation
    encoder = replies.engine.encoder
    wording = wording_of(experiment)
    modes = ['think' if think else 'direct' for think in plan.thinking]
    modes += [HIDDEN] * plan.question_hidden
    cells = []
    for mode in modes:
        cells += [(run, kind, mode) for run, kind in texts]
    asked = []
    for run, kind, mode in cells:
        for item in items:
            text = texts[run, kind][item.question.item_id]
            prompt = wording.reason(item, text, mode == 'think')
            if mode == HIDDEN:
                prompt = wording.reason_hidden(text)
            asked.append((item, mode == 'think', prompt))

    def request(k):
        item, think, prompt = asked[k]
        # The likelihood of an answer without its thought says nothing about thinking.
        return Request(prompt_of(encoder, prompt, thinking=think), limit=plan.answer,
                       think=plan.think if think else None,
                       target=None if think else gold_ids(encoder, item.question))

    # One call for all cells: no slot waits for a cell to end. Texts have no tiles to hold.
    prompts = [(k, prompt) for k, (_, _, prompt) in enumerate(asked)]  # nothing is seen twice
    written = iter(replies.write('reason', prompts, request, windows, report))
    rows = []
    for run, kind, mode in cells:
        condition = 'image' if run else 'gold_text'
        parts = ['decoupled', kind, mode == 'think', encoder.chat.hash, *wording.hash_parts()]
        if mode == HIDDEN:
            condition = HIDDEN
            parts += [HIDDEN, NOT_SHOWN]
        asking = Asking(
            eval_id=f'answer-{experiment.name}-{run or "gold"}-{kind}-{mode}',
            condition=condition,
            data_hash=data_hash,
            prompt_hash=hash_of(parts),
            p_run=run,
            r_run=experiment.name,
            text_kind=kind,
            thinking=mode == 'think',
        )
        rows += [row(item, next(written), asking) for item in items]
    return rows


# --- texts that hand the answer over ------------------------------------------------------------

def hands_over(item: Item, text: str) -> bool:
    """Return whether a description gives the answer itself, in the place of what is seen.

    Of a scene: a word of the answer that its true extraction does not hold. Of other questions: a
    phrase such as 'the answer is'.
    """
    true = item.question.extraction.text
    if not true:
        return bool(_VERDICT.search(text))
    # Most answers are seen, and so part of any good description.
    held = set(true.split())
    return any(word in text.split() for word in item.question.answer.split() if word not in held)


def handed_over(items: Sequence[Item], rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many of the texts about pictures hand the answer over, and how many there are.

    `rows` are those of `describe` for `items`.
    """
    found = [hands_over(item, row['text']) for item, row in zip(items, rows, strict=True)
             if item.question.kind == 'visual']
    return {'handed_over': sum(found), 'texts': len(found)}
