"""The joint test: one model sees the picture and answers; and the same without, or with another."""
from downscale.evaluate.answers import gold_ids, hash_of, most_tiles, prompt_of, row, shown


def joint(engine, experiment, items, data_hash, report=lambda done, total: None):
    """Rows of the items table for every question under every condition of the experiment."""
    plan = experiment.evaluation
    encoder, rows = engine.encoder, []
    asked = {condition: [prompt_of(encoder, item.question.text, shown(item, condition, items))
                         for item in items] for condition in plan.conditions}
    # One shape for all conditions: they differ in what is shown, not in the program.
    tiles = max((most_tiles(prompts) for prompts in asked.values()), default=0)
    for k, (condition, prompts) in enumerate(asked.items()):

        def sofar(done, total, k=k):
            report(k * total + done, len(plan.conditions) * total)

        replies = engine.write(prompts, plan.length, tiles, plan.answer, plan.write,
                               [gold_ids(encoder, item.question) for item in items], sofar)
        eval_id = f'joint-{experiment.name}-{condition}'
        prompt_hash = hash_of(['joint', encoder.chat.hash])
        rows += [row(item, reply, encoder, eval_id=eval_id, condition=condition,
                     data_hash=data_hash, prompt_hash=prompt_hash, p_run=experiment.name)
                 for item, reply in zip(items, replies, strict=True)]
    return rows
