"""Accuracy in which all right answers of a family count alike: what a constant answer cannot earn.

Who always says what is most often right has the share of that answer, which may be above what a
weak model reads; here it has one part of as many as there are answers. So a gain that is gone here
is one of guessing. Families whose every question has an answer of its own are as they were.
"""
from collections import Counter
from dataclasses import replace

import numpy as np

from downscale.analysis.measures import Scored


def balanced(s: Scored) -> Scored:
    """Return the study with every score weighed, so that means over a family are balanced ones."""
    study = s.whole or s.study
    items = study.items
    _, first, place = np.unique(items['item_id'].astype(str), return_index=True,
                                return_inverse=True)
    # Questions, not replies: a question that was asked more often is no other one.
    keys = list(zip(items['task'][first], items['gold'][first], strict=True))
    asked = Counter(keys)
    questions = Counter(task for task, _ in keys)
    answers = Counter(task for task, _ in asked)
    weight = np.array([questions[task] / (answers[task] * asked[task, gold])
                       for task, gold in keys])
    scores = items['score'] * weight[place]
    return replace(s, study=replace(study, items={**items, 'score': scores}, averaged={}),
                   whole=None, made={})
