"""What a text is worth: whether reasoners that do not see answer rightly from a description, or
whether the answer behind a thought is right."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from downscale.config import Experiment
from downscale.evaluate.answers import Item, Wording, answer_in, prompt_of
from downscale.evaluate.runs import open_engine
from downscale.experiment.references import parent_folder
from downscale.generate.engine import Engine
from downscale.generate.requests import Reply, Request
from downscale.runtime.files import PathLike
from downscale.stage_config import PolicySettings, Stage, is_stage
from downscale.train.checkpoint import latest


@dataclass(frozen=True)
class Reasoner:
    """A frozen model that answers from texts."""
    engine: Engine
    wording: Wording

    def solved(self, items: Sequence[Item], texts: Sequence[str],
               policy: PolicySettings) -> np.ndarray:
        """Return the score of its answer to each item from its text, float64 [n]."""
        # A group often writes the same: what is equal is asked once.
        asked = dict.fromkeys(zip([item.question.item_id for item in items], texts))
        of = {item.question.item_id: item for item in items}
        think = bool(policy.think)
        requests = []
        for name, text in asked:
            prompt = self.wording.reason(of[name], text, think)
            requests.append(Request(prompt_of(self.engine.encoder, prompt, thinking=think),
                                    limit=policy.answer, think=policy.think or None))
        for key, reply in zip(list(asked), self.engine.write(requests), strict=True):
            answer, there = answer_in(reply.text, think, reply.spelled)
            asked[key] = of[key[0]].judge(answer, True)[2] if there else 0.0
        return np.array([asked[item.question.item_id, text] for item, text in zip(items, texts)])


def own_answers(items: Sequence[Item], replies: Sequence[Reply]) -> np.ndarray:
    """Return the score of each reply's own answer behind its thought, float64 [n]."""
    answers = [answer_in(reply.text, True, reply.spelled) for reply in replies]
    return np.array([item.judge(answer, True)[2] if there else 0.0
                     for item, (answer, there) in zip(items, answers, strict=True)])


def open_reasoners(study: PathLike, experiment: Experiment, stage: Stage,
                   wording: Wording) -> list[Reasoner]:
    """Return the reasoners that a stage asks, over the devices of this process.

    FileNotFoundError where one is not trained or not there.
    """
    folders = [parent_folder(study, experiment, name) if is_stage(name) else Path(name)
               for name in stage.judges]
    for folder in folders:
        latest(folder)  # all of them, before the first is read
    return [Reasoner(open_engine(folder, stage.batch), wording) for folder in folders]


def worth(policy: PolicySettings, solved_B: np.ndarray, leaks_B: np.ndarray,
          tokens_B: np.ndarray) -> np.ndarray:
    """Return the reward of descriptions, float64 [B], from who solved what and their length."""
    # In shares of the longest description, so that a price means the same for any limit.
    return (solved_B - policy.leak_price * leaks_B
            - policy.length_price * tokens_B / policy.write)
