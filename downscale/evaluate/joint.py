"""The joint test: one model sees the picture and answers; and the same without, or with another."""
from downscale.evaluate.answers import (
    SCENE,
    following,
    gold_ids,
    prompt_of,
    row,
    shown,
    write,
)
from downscale.generate.engine import Request
from downscale.values import hash_of


def joint(engine, experiment, items, data_hash, report=lambda done, total: None, wording=SCENE):
    """Return rows of the items table for every question under every condition of the experiment."""
    plan = experiment.evaluation
    encoder = engine.encoder
    rows = []
    others = following(items) if 'shuffled' in plan.conditions else {}
    for k, condition in enumerate(plan.conditions):

        def sofar(done, total, k=k):
            report(k * total + done, len(plan.conditions) * total)

        asked = (
            Request(
                prompt_of(encoder, wording.joint(item), shown(item, condition, others)),
                limit=plan.answer,
                target=gold_ids(encoder, item.question),
            )
            for item in items
        )
        replies = write(engine, asked, len(items), sofar)
        eval_id = f'joint-{experiment.name}-{condition}'
        prompt_hash = hash_of(['joint', encoder.chat.hash, *[wording.name] * bool(wording.name)])
        rows += [row(item, reply, eval_id=eval_id, condition=condition, data_hash=data_hash,
                     prompt_hash=prompt_hash, p_run=experiment.name)
                 for item, reply in zip(items, replies, strict=True)]
    return rows
