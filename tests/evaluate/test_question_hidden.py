"""The question hidden: prompts without it, rows of their own, and what a planted writer gives away.
"""
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import small

from downscale.config import Evaluation
from downscale.evaluate import prompts
from downscale.evaluate.answers import NOT_SHOWN, Wording, items_of
from downscale.evaluate.decoupled import answer, gold_texts, handed_over
from downscale.generate.engine import Stats
from downscale.generate.replies import Replies
from downscale.generate.requests import Reply
from downscale.results.items import HIDDEN, read_items, write_items


@pytest.fixture(scope='module')
def items():
    """Questions with an answer of one word."""
    every = items_of(small.library('test').source, 8)
    return [item for item in every if len(item.question.answer.split()) == 1
            and item.question.kind == 'visual']


class LastWord:
    """A reader that answers with the last word that it reads, whatever it is asked."""

    def __init__(self):
        self.encoder, self.read, self.stats = small.encoder(), [], Stats()

    def stream(self, asked):
        for k, request in enumerate(asked):
            text = self.encoder.text(request.prompt.tokens)
            self.read.append(text)
            words = [word for word in text.split() if '<' not in word]
            yield k, Reply(ids=(1,), text='</think> so' if request.think else words[-1],
                           finish='stop', nll=1.0, close='natural' if request.think else '',
                           thought=0, answered=1)


def rows_of(folder, items, texts, **evaluation):
    """The prompts and the rows of a reasoner on the texts {run: {item_id: text}}."""
    cell = SimpleNamespace(evaluation=Evaluation(answer=3, **evaluation), name='w32d1-s0')
    engine = LastWord()
    by_kind = {(run, 'perceived'): of_run for run, of_run in texts.items()}
    return engine.read, answer(Replies(engine, folder, []), cell, items, by_kind, 'd')


def test_who_writes_the_answer_is_found_by_a_reader_without_the_question(items, tmp_path):
    extractions = gold_texts(items, 'extraction')
    hacked = {item.question.item_id: f'{extractions[item.question.item_id]} {item.question.answer}'
              for item in items}
    _, rows = rows_of(tmp_path, items, {'hacks': hacked, 'sees': extractions, '': extractions},
                      question_hidden=True)
    scores = {}
    for row in rows:
        if row['condition'] == HIDDEN:
            scores.setdefault(row['p_run'], []).append(row['score'])
    assert np.mean(scores['hacks']) == 1
    assert np.mean(scores['sees']) < .6 and scores['sees'] == scores['']


def test_what_a_reader_reads_holds_no_question(items, tmp_path):
    texts = {'w32d1-s0': gold_texts(items, 'caption')}
    read, rows = rows_of(tmp_path, items, texts, question_hidden=True)
    assert Counter(row['condition'] for row in rows) == {
        'image': 2 * len(items), HIDDEN: len(items)}
    for text, row, item in zip(read, rows, 3 * items, strict=True):
        hidden = row['condition'] == HIDDEN
        assert (item.question.text in text) != hidden
        assert item.example.caption in text
        assert not (hidden and row['thinking'])
    assert len({row['eval_id'] for row in rows}) == len({row['prompt_hash'] for row in rows}) == 3
    write_items(tmp_path / 'items.parquet', rows)
    assert len(read_items(tmp_path / 'items.parquet')) == len(rows)


def test_all_other_rows_are_those_of_a_study_without_the_setting(items, tmp_path):
    texts = {'': gold_texts(items, 'extraction'), 'w32d1-s0': gold_texts(items, 'caption')}
    _, plain = rows_of(tmp_path / 'a', items, texts)
    _, more = rows_of(tmp_path / 'b', items, texts, question_hidden=True)
    kept = [row for row in more if row['condition'] != HIDDEN]
    assert len(more) > len(kept) and str(kept) == str(plain)  # as text: NaN equals no NaN


def test_prompts_that_speak_of_a_question_say_that_it_is_not_shown():
    bare, words = (Wording(prompts.load(name), '') for name in ('micro', 'paper'))
    assert bare.reason_hidden('a red ring') == 'a red ring'
    text = words.reason_hidden('A red ring.')
    assert f'Description: A red ring.\nQuestion: {NOT_SHOWN}\n' in text and "'Answer: X'" in text


@pytest.mark.parametrize('changes', [dict(texts=()), dict(thinking=(True,))])
def test_without_texts_or_direct_answers_there_is_nothing_to_hide(changes):
    with pytest.raises(ValueError, match='evaluation.question_hidden.*False among `thinking`'):
        Evaluation(question_hidden=True, **changes)


def test_texts_that_hand_the_answer_over_are_counted(items):
    rows = [{'text': item.question.extraction.text} for item in items]
    assert handed_over(items, rows) == {'handed_over': 0, 'texts': len(items)}
    place = next(k for k, item in enumerate(items)
                 if item.question.answer not in item.question.extraction.text.split())
    rows[place] = {'text': f'{rows[place]["text"]} {items[place].question.answer}'}
    assert handed_over(items, rows)['handed_over'] == 1
