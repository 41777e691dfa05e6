"""The decoupled test: a perception model writes, a text-only reasoner reads and answers.

`describe` runs once per perception model; `answer` reads those texts for every pair, so the whole
perception x reasoner grid costs one description per picture and model.
"""
from downscale.evaluate.answers import SCENE, gold_ids, prompt_of, row, write
from downscale.generate.engine import Request
from downscale.values import hash_of

GOLD = ''  # the perception run of the gold-scene control


def describe(engine, experiment, items, kind, report=lambda done, total: None, wording=SCENE):
    """Return rows of the texts table: what the perception model writes for each item.

    A 'caption' is written once per picture and shared by its questions; an 'extraction' is
    written per question, given only what to look at.
    """
    plan = experiment.evaluation
    encoder = engine.encoder
    asked = {}
    for item in items:
        prompt = wording.describe(item, kind)
        asked.setdefault((item.example.scene_id, prompt), item)
    written = write(
        engine,
        (
            Request(prompt_of(encoder, prompt, item.example.images), limit=plan.write)
            for (_, prompt), item in asked.items()
        ),
        len(asked),
        report,
    )
    replies = dict(zip(asked, written, strict=True))
    rows = []
    for item in items:
        prompt = wording.describe(item, kind)
        reply = replies[item.example.scene_id, prompt]
        rows.append({'item_id': item.question.item_id, 'p_run': experiment.name,
                     'text_kind': kind, 'question': item.question.text, 'prompt': prompt,
                     'text': reply.text, 'n_tokens': len(reply.ids),
                     'truncated': reply.truncated})
    return rows


def gold_texts(items, kind):
    """Return what a faultless perception model would have written, as (item_id -> text)."""
    return {item.question.item_id: item.example.caption if kind == 'caption'
            else item.question.extraction.text for item in items}


def brief_texts(captions, extractions, encoder):
    """Return captions cut to as many tokens as the extraction of the same item has, as (item_id ->
    text).

    What they leave out is what is written last: with equal tokens, is it better to be asked for?
    """
    return {item: encoder.text(encoder.ids(text)[:len(encoder.ids(extractions[item]))])
            for item, text in captions.items()}


def answer(engine, experiment, items, texts, data_hash, report=lambda done, total: None,
           wording=SCENE):
    """Return rows of the items table: this reasoner on every text, directly and thinking.

    `texts` maps (perception run or GOLD, kind) to {item_id: text}.
    """
    plan = experiment.evaluation
    encoder = engine.encoder
    cells = [(run, kind, think) for think in plan.thinking for run, kind in texts]
    asked = []
    for run, kind, think in cells:
        for item in items:
            prompt = wording.reason(item, texts[run, kind][item.question.item_id], think)
            # The likelihood of an answer without its thought says nothing about thinking.
            asked.append(Request(prompt_of(encoder, prompt, thinking=think), limit=plan.answer,
                                 think=plan.think if think else None,
                                 target=None if think else gold_ids(encoder, item.question)))
    replies = iter(engine.write(asked, report=report))
    rows = []
    for run, kind, think in cells:
        mode = 'think' if think else 'direct'
        eval_id = f'answer-{experiment.name}-{run or "gold"}-{kind}-{mode}'
        prompt_hash = hash_of(['decoupled', kind, think, encoder.chat.hash,
                               *[wording.name] * bool(wording.name)])
        rows += [row(item, next(replies), eval_id=eval_id, data_hash=data_hash,
                     condition='image' if run else 'gold_text', prompt_hash=prompt_hash,
                     p_run=run, r_run=experiment.name, text_kind=kind, thinking=think)
                 for item in items]
    return rows
