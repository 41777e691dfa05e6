"""Budgets of texts: writers are told of one, and what is read keeps to it."""
import dataclasses
from types import SimpleNamespace

import pytest

from downscale.config import Data, Evaluation, Experiment
from downscale.data.scenes.clutter_conversations import budgeted
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.dataset import scene_example
from downscale.data.scenes.world import World
from downscale.evaluate import decoupled
from downscale.evaluate.answers import Item

WORLD = Clutter(n_facts=16, exposures=20)
EXAMPLE = scene_example(WORLD, 'test', 0)[0]
ITEMS = [Item(question=question, example=EXAMPLE, judge=lambda text, marked: (text, True, 0.),
              scorer='') for question in EXAMPLE.questions]


def told(monkeypatch, kind, written, **evaluation):
    """What a writer is asked for and the rows of what it wrote, always `written`."""
    cell = SimpleNamespace(evaluation=Evaluation(**evaluation), name='w32d1-s0')
    prompts = []
    monkeypatch.setattr(decoupled, 'prompt_of', lambda encoder, text, images: prompts.append(text))
    replies = SimpleNamespace(engine=SimpleNamespace(encoder=None))
    reply = SimpleNamespace(text=written, ids=(0,) * len(written.split()), truncated=False)

    def write(name, order, request, windows, report):
        for k in range(len(order)):
            request(k)
        return [reply] * len(order)
    replies.write = write
    return prompts, decoupled.describe(replies, cell, ITEMS, kind)


@pytest.mark.parametrize('kind', ['caption', 'extraction'])
@pytest.mark.parametrize('budget', [8, 32])
def test_a_writer_is_asked_as_it_was_trained_and_its_text_is_cut_at_a_record(
        monkeypatch, kind, budget):
    prompts, rows = told(monkeypatch, kind, EXAMPLE.caption, budget=budget)
    free, _ = told(monkeypatch, kind, EXAMPLE.caption)
    assert prompts == [budgeted(prompt, budget) for prompt in free]
    for row in rows:
        assert len(row['text'].split()) <= budget < len(EXAMPLE.caption.split())
        assert EXAMPLE.caption.startswith(row['text']) and row['text'].endswith(';')
        assert row['n_tokens'] == len(EXAMPLE.caption.split())  # what was written is what it costs


def test_true_texts_keep_to_the_budget_as_well():
    whole = decoupled.gold_texts(ITEMS, 'caption')
    short = decoupled.gold_texts(ITEMS, 'caption', 16)
    assert {text for text in whole.values()} == {EXAMPLE.caption}
    for text in short.values():
        assert 0 < len(text.split()) <= 16 and EXAMPLE.caption.startswith(text)


def cell(world, **evaluation):
    return Experiment(name='x', size='x', seed=0, language=None, vision=None, world=world,
                      data=Data(similarity_share=0.0), evaluation=Evaluation(**evaluation))


@pytest.mark.parametrize('world, evaluation, message', [
    (WORLD, {'budget': 12}, r'budget 12 is none of the budgets .*: \[8, 16, 32, 64\]'),
    (World(), {'budget': 8}, 'budget 8 is none of the budgets .*: it has none'),
    (Clutter(budgets=()), {'budget': 8}, 'it has none'),
    (WORLD, {'budget': 8, 'benchmarks': {'a': 'b'}}, 'budget 8 is none of the budgets')])
def test_a_budget_that_no_writer_was_trained_under_is_refused(world, evaluation, message):
    with pytest.raises(ValueError, match=message) as error:
        cell(world, **evaluation)
    assert len(str(error.value)) <= 300


def test_without_a_budget_a_cell_has_the_hash_that_it_had():
    # As it was before there were budgets, in a world of that version: evaluations that are finished
    # are found by it.
    world = dataclasses.replace(WORLD, version='1.1.0')
    assert cell(world).hash == '3e85546bab92' != cell(world, budget=8).hash
    assert cell(WORLD).hash != cell(world).hash
