"""What a model that writes its own rows is asked, and what it wrote: questions, prompts, rows."""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from downscale.config import Evaluation, Experiment
from downscale.data.pipeline import shuffled
from downscale.data.scenes.clutter_conversations import budgeted
from downscale.data.tokens import Encoder
from downscale.evaluate import public
from downscale.evaluate.answers import Item, Wording, item_of, prompt_of, wording_of
from downscale.evaluate.decoupled import gold_texts
from downscale.generate.requests import Prompt, Reply
from downscale.results.text_kinds import CAPTION, EXTRACTION, PERCEIVED
from downscale.runtime.files import PathLike
from downscale.stage_config import Stage
from downscale.stages.inputs import encoder_of, library_of


@dataclass(frozen=True, kw_only=True)
class Description:
    """What was written for `item`: the prompt, the reply, its text, and what came of it.

    `solved` is the share of the reasoners that answered rightly from it, `leaks` whether it hands
    the answer over, and `reward` what it is worth. `paid_as` is the description whose reward it
    gets in the place of its own, where rewards are scrambled.
    """
    item: Item
    prompt: Prompt
    reply: Reply
    text: str
    solved: float
    leaks: bool
    reward: float
    paid_as: 'Description | None' = None

    @property
    def earns(self) -> 'Description':
        """The description whose reward, and what it solved, are learnt from."""
        return self.paid_as or self

    def told(self) -> dict[str, Any]:
        """Return what people look at, as JSON."""
        question = self.item.question
        paid = {} if self.paid_as is None else {'paid': self.paid_as.reward}
        return {'item_id': question.item_id, 'question': question.text, 'answer': question.answer,
                'text': self.text, 'solved': self.solved, 'leaks': self.leaks,
                'reward': self.reward, **paid}


def questions_of(study: PathLike, experiment: Experiment, stage: Stage, seed: int) -> Any:
    """Return the endless sequence of `Item`s, every epoch in another order.

    They have pictures, or where the stage reads the true text of one and its question.
    """
    if stage.policy.questions:
        asked = Evaluation(benchmarks={'questions': stage.policy.questions}, texts=(PERCEIVED,))
        items = [item for item in public.items(asked) if item.example.count]
        if not items:
            raise ValueError(f'{stage.policy.questions} has no question with a picture')
        return shuffled(len(items), lambda index, rng: items[index], seed)
    library = library_of(study, experiment, 'train')
    wording = wording_of(experiment)

    def draw(index, rng):
        example = library.example(index)
        seen = [question for question in example.questions if question.kind == 'visual']
        item = item_of(example, seen[rng.integers(len(seen))])
        # Facts are left out: a text has no part in them, and they are known or are not.
        if not stage.kind.reads:
            return item
        text, = gold_texts([item], (CAPTION, EXTRACTION)[rng.integers(2)]).values()
        # It is asked about the text, and judged as if it had been asked about the picture.
        asked = replace(item.question, text=wording.reason(item, text, True))
        return replace(item, question=asked)
    return shuffled(len(library), draw, seed)


def check_room(study: PathLike, experiment: Experiment, stage: Stage, first: int = 64) -> None:
    """Raise ValueError where a row has no room for one of the `first` questions and its text."""
    questions = questions_of(study, experiment, stage, 0)
    encoder = encoder_of(study, experiment, stage.name)
    wording = wording_of(experiment, bool(stage.policy.questions))
    for number in range(first):
        prompt_for(stage, encoder, wording, questions[number])


def prompt_for(stage: Stage, encoder: Encoder, wording: Wording, item: Item) -> Prompt:
    """Return the prompt behind which a stage writes; ValueError where no row holds both."""
    policy = stage.policy
    if stage.kind.reads:
        prompt = prompt_of(encoder, item.question.text, thinking=True)
    else:
        text = budgeted(wording.describe(item, PERCEIVED), policy.budget or None)
        prompt = prompt_of(encoder, text, item.example.images)
    tokens = len(prompt.tokens) + policy.write + 1  # and the token that ends it
    tiles = 0 if prompt.tiles is None else len(prompt.tiles)
    if not stage.shape.holds(tokens, tiles):
        room = f'a row of {stage.length} tokens and {stage.tiles} tiles'
        raise ValueError(f'stage {stage.name}: {item.question.item_id} takes up to {tokens} tokens '
                         f'({policy.write} of them written) and {tiles} tiles, more than {room}; '
                         'raise length or tiles, or lower policy.write')
    return prompt


def arrays_of(row: Description) -> dict[str, np.ndarray | None]:
    """Return the arrays of a description behind its prompt, as `Encoder.encode` gives them."""
    prompt = row.prompt
    # The token that ended the row was chosen as all others were.
    written = (*row.reply.ids, *((row.reply.stop,) if row.reply.stop >= 0 else ()))
    more = len(written)
    arrays = {
        'tokens': np.concatenate([prompt.tokens, np.array(written, np.int32)]),
        'weights': np.repeat([0, 1], [len(prompt.tokens), more]).astype(np.float32),
        'image_index': np.pad(prompt.image_index, [(0, more), (0, 0)], constant_values=-1),
        'tiles': prompt.tiles}
    if prompt.image_weight is not None:
        arrays['image_weight'] = np.pad(prompt.image_weight, [(0, more), (0, 0)])
    return arrays
