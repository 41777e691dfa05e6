"""The joint test: one model sees the picture and answers; and the same without, or with another.

A model of the stage 'explain' first writes what it sees and thinks, as a thought.
"""
from collections.abc import Sequence
from typing import Any

from downscale.config import Experiment
from downscale.evaluate.answers import (
    Asking,
    Item,
    following,
    gold_ids,
    prompt_of,
    row,
    shown,
    windows,
    wording_of,
)
from downscale.generate.replies import Replies, Report
from downscale.generate.requests import Request
from downscale.values import hash_of

# The evaluations of a model that answers by itself: at once, or behind what it wrote.
JOINT, EXPLAINED = 'joint', 'explained'


def joint(replies: Replies, experiment: Experiment, items: Sequence[Item], data_hash: str,
          report: Report = lambda done, total: None, explained: bool = False
          ) -> list[dict[str, Any]]:
    """Return rows of the items table for every question under every condition of the experiment.

    `explained`: every answer stands behind a thought, of `evaluation.think` tokens at most.
    """
    plan = experiment.evaluation
    encoder = replies.engine.encoder
    wording = wording_of(experiment)
    rows = []
    name = EXPLAINED if explained else JOINT
    asked = [(item.example.scene_id, item.question.text) for item in items]
    # Found once: looking for another example per question would be quadratic.
    others = following(items) if 'shuffled' in plan.conditions else {}
    for k, condition in enumerate(plan.conditions):

        def sofar(done, total, k=k):
            report(k * total + done, len(plan.conditions) * total)

        def request(k, condition=condition):
            return Request(
                prompt_of(encoder, items[k].question.text, shown(items[k], condition, others),
                          explained or None),
                limit=plan.answer,
                think=plan.think if explained else None,
                target=None if explained else gold_ids(encoder, items[k].question),
            )

        written = replies.write(condition, asked, request, windows, sofar)
        asking = Asking(
            eval_id=f'{name}-{experiment.name}-{condition}',
            thinking=explained,
            condition=condition,
            data_hash=data_hash,
            prompt_hash=hash_of([name, encoder.chat.hash, *wording.hash_parts()]),
            p_run=experiment.name,
        )
        rows += [row(item, reply, asking) for item, reply in zip(items, written, strict=True)]
    return rows
