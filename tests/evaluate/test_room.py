"""What cannot fit the context of a model is refused before a chain writes its first row."""
import dataclasses
import shutil

import pytest
import small
from fake_chain import PLAN, Fake, chain, runs, study
from question_file import PICTURE, fails

from downscale import config
from downscale.commands import main
from downscale.data.templates import Origin
from downscale.evaluate.answers import prompt_of
from downscale.evaluate.extract_think import Chain
from downscale.evaluate.room import Demand, check_room, check_thinks, prompt_length
from downscale.evaluate.runs import open_encoder, open_runs
from downscale.sizes import Pictures


@pytest.fixture(autouse=True)
def fresh():
    Fake.asked, Fake.after = [], None


def limited(folder, role, context):
    """The run of a `role`, of a model that was trained on `context` positions."""
    run, = runs(role, 1)
    path = folder / f'{role}{context}' / 'cells' / run.folder.parent.name / run.folder.name
    shutil.copytree(run.folder, path)
    shutil.copy(study() / 'tokenizer.json', path.parents[2])
    cell = config.load(path)
    config.save(dataclasses.replace(cell, origin=Origin(context=context)), path)
    return open_runs([path], role)


@pytest.mark.parametrize('mode', ['flat', 'padded', 'anyres'])
@pytest.mark.parametrize('count', [0, 1, 2])
@pytest.mark.parametrize('thinking', [None, True, False])
def test_the_length_of_a_prompt_is_known_without_its_pixels(mode, count, thinking):
    encoder, pngs = small.encoder(Pictures(mode)), [PICTURE.read_bytes()] * count
    length = prompt_length(encoder, 'what color is the circle', pngs, thinking)
    assert length == len(prompt_of(encoder, 'what color is the circle', pngs, thinking).tokens) > 5


def longest(run, thinking):
    """The tokens of the longest prompt of a reasoner, without a description."""
    encoder, words = open_encoder(run.folder), chain('unused').prompts
    mode = 'think' if thinking else 'direct'
    return max(prompt_length(encoder, words.reason(mode, '', asked.text), (), thinking)
               for asked in chain('unused').questions.asked)


def test_a_reasoner_is_refused_by_one_token_and_before_anything_is_written(tmp_path):
    prompt = longest(runs('reasoner', 1)[0], True)
    need = prompt + PLAN.describe_tokens + PLAN.think_tokens + 2 + PLAN.answer_tokens
    chain(tmp_path / 'fits', reasoners=limited(tmp_path, 'reasoner', need)).run()
    Fake.asked, out = [], tmp_path / 'out'
    for beyond in (1, 9):
        short = limited(tmp_path, 'reasoner', need - beyond)
        for process in (0, 1):
            fails(chain(out, reasoners=short, process=process, processes=2).run,
                  f'holds {need - beyond} tokens (max_position_embeddings)', f' {need} (',
                  f'{prompt} of prompt + 20 of description + 32 of thought + 8 of answer',
                  f'lower --describe-, --think- or --answer-tokens by {beyond} in all')
    assert not Fake.asked and not out.exists()
    least = limited(tmp_path, 'reasoner', prompt)
    fails(chain(out, reasoners=least).run, 'shorten the question')


def test_models_that_see_and_informers_are_weighed_too(tmp_path):
    out, plain = tmp_path / 'out', runs('perception', 1)
    encoder = open_encoder(plain[0].folder)
    questions = chain(out).questions
    prompt = max(prompt_length(encoder, asked.information, questions.images(asked))
                 for asked in questions.asked)
    seeing = limited(tmp_path, 'perception', prompt + 19)
    fails(chain(out, perceptions=seeing).run, f' {prompt + 20} ({prompt} of prompt + 20 of reply)',
          'lower --describe-tokens by 1')
    fails(chain(out, perceptions=(), reasoners=(), sighted=seeing, tail=' yes' * 15).run,
          '8 of answer', 'lower --answer-tokens by ')
    plan = dataclasses.replace(PLAN, describe_tokens=150)
    fails(chain(out, plan=plan, perceptions=seeing, informer=runs('reasoner', 1)[0]).run,
          '150 of information + 150 of reply', 'lower --describe-tokens by ')
    informer, = limited(tmp_path, 'reasoner', 40)
    fails(chain(out, informer=informer).run, '20 of reply', 'holds 40 tokens')
    assert not Fake.asked and not out.exists()


def test_the_console_says_it_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('downscale.study.workers.use_cache', lambda folder: None)
    monkeypatch.setattr(Chain, '_generate', None)
    argv = ['extract-think', '--data', str(study()), '--out', str(tmp_path / 'out'), '--quiet',
            '--perception', str(runs('perception', 1)[0].folder), '--reasoner',
            str(limited(tmp_path, 'reasoner', 100)[0].folder)]
    assert main.main(argv) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1 and len(line) <= 300
    assert '64 of description + 66 of thought + 8 of answer' in line
    assert not (tmp_path / 'out').exists()


def test_the_longest_line_is_whole():
    encoder = dataclasses.make_dataclass('Limited', ['context'])(131072)
    parts = (('description', 'describe', 65536), ('thought', 'think', 131072),
             ('answer', 'answer', 65536))
    demand = Demand(id='i' * 99, prompt=10 ** 5, parts=parts)
    with pytest.raises(ValueError, match='by 231072 in all') as caught:
        check_room('n' * 255, encoder, [demand] * 12345)
    assert len(str(caught.value)) <= 300 - len('error: ')


def test_a_tokenizer_without_marks_of_a_thought_is_told_at_once():
    encoder = small.encoder()
    check_thinks('small', encoder)
    encoder.thought = (-1, -1, 3)
    fails(lambda: check_thinks('small', encoder), 'no <think> and </think>', '--reason direct')
