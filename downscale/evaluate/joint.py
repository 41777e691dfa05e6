"""The joint test: one model sees the picture and answers; and the same without, or with another."""
from collections.abc import Sequence
from typing import Any

from downscale.config import Experiment
from downscale.evaluate.answers import (
    Asking,
    Item,
    Report,
    following,
    gold_ids,
    prompt_of,
    row,
    shown,
    wording_of,
    write,
)
from downscale.generate.engine import Engine
from downscale.generate.requests import Request
from downscale.values import hash_of


def joint(engine: Engine, experiment: Experiment, items: Sequence[Item], data_hash: str,
          report: Report = lambda done, total: None) -> list[dict[str, Any]]:
    """Return rows of the items table for every question under every condition of the experiment."""
    plan = experiment.evaluation
    encoder = engine.encoder
    wording = wording_of(experiment)
    rows = []
    # Found once: looking for another example per question would be quadratic.
    others = following(items) if 'shuffled' in plan.conditions else {}
    for k, condition in enumerate(plan.conditions):

        def sofar(done, total, k=k):
            report(k * total + done, len(plan.conditions) * total)

        # A generator: the tiles of a window are cut when it is written, not all at once.
        requests = (
            Request(
                prompt_of(encoder, item.question.text, shown(item, condition, others)),
                limit=plan.answer,
                target=gold_ids(encoder, item.question),
            )
            for item in items
        )
        replies = write(engine, requests, len(items), sofar)
        asking = Asking(
            eval_id=f'joint-{experiment.name}-{condition}',
            condition=condition,
            data_hash=data_hash,
            prompt_hash=hash_of(['joint', encoder.chat.hash, *wording.hash_parts()]),
            p_run=experiment.name,
        )
        rows += [row(item, reply, asking) for item, reply in zip(items, replies, strict=True)]
    return rows
