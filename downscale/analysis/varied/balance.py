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
    scores = np.array(items['score'], float)
    made = {}
    # Cells of a study may be asked different questions under the same names of families.
    for rows in study.cells.values():
        ids, first, place = np.unique(study.codes['item_id'][rows], return_index=True,
                                      return_inverse=True)
        if ids.tobytes() not in made:
            made[ids.tobytes()] = _weights(items['task'][rows][first], items['gold'][rows][first])
        scores[rows] *= made[ids.tobytes()][place]
    return replace(s, study=replace(study, items={**items, 'score': scores}, averaged={}),
                   whole=None, made={})


def _weights(tasks, golds):
    """Return the weight of each question, whose mean over a family is 1."""
    keys = list(zip(tasks, golds, strict=True))
    asked = Counter(keys)
    questions = Counter(tasks)
    answers = Counter(task for task, _ in asked)
    return np.array([questions[task] / (answers[task] * asked[task, gold]) for task, gold in keys])
