"""What stages see of the cluttered world: budgets, exposures of facts, pictures left out."""
from collections import Counter

import numpy as np
import pytest
import small

from downscale.data.buckets import Shape
from downscale.data.chat import CHATS
from downscale.data.pipeline import captioned_batch, encoded
from downscale.data.records import IMAGE, THINK, Conversation
from downscale.data.scenes.clutter_conversations import MIXTURES, REMINDED, UNTOLD
from downscale.data.scenes.clutter_facts import knowledge, vocabulary
from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.conversations import Recipe, ask
from downscale.data.scenes.dataset import build, scene_example, source
from downscale.data.scenes.sampler import Library, Sampler
from downscale.data.scenes.world import records
from downscale.data.tokens import Encoder, Layout, load_tokenizer, train_tokenizer
from downscale.sizes import Pictures, VisionConfig

WORLD = Clutter(n_facts=16, exposures=20)
VISION = VisionConfig(layers=1, W=32, H=2, F=64, patch=12, image=96)


class Scenes:
    """A library of the first scenes of the training split, made as they are asked for."""

    def __init__(self, world, n):
        self.made = [scene_example(world, 'train', i) for i in range(n)]

    def __len__(self):
        return len(self.made)

    def example(self, index):
        return self.made[index][0]

    def scenes(self, index):
        return self.made[index][1]


LIBRARY = Scenes(WORLD, 24)


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp('words') / 'tokenizer.json'
    return Encoder(load_tokenizer(train_tokenizer(vocabulary(WORLD), path)), CHATS['micro'],
                   Layout(VISION, Pictures()))


def sampler(encoder, stage, world=WORLD, library=LIBRARY, turns=4, **recipe):
    return Sampler(recipe=Recipe(stage=stage, turns=turns, **recipe), library=library,
                   encoder=encoder, world=world, shape=Shape(1, 1000, 1))


def talks(encoder, stage, count=None, **settings):
    drawn = sampler(encoder, stage, **settings)
    sequence = drawn.sequence(3)
    return [sequence[i].talk for i in range(count or drawn.count)]


def asked(talk):
    """(question, reply) pairs of a conversation, marks of pictures left out."""
    texts = [turn.text.replace(IMAGE, '').strip() for turn in talk.turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


# --- the tower --------------------------------------------------------------------------------

def test_each_word_of_a_tower_has_the_patches_of_its_thing(encoder):
    """A patch of 12 pixels belongs to a thing when its middle lies in the box."""
    drawn = sampler(encoder, 'tower')
    for index in range(len(LIBRARY)):
        scene, = LIBRARY.scenes(index)
        made = drawn(index, np.random.default_rng(0))
        words = captioned_batch([[made]], Shape(1, 120, 1), encoder.layout)
        for k, obj in enumerate(scene.objects):
            x0, y0, x1, y1 = obj.box
            inside = [x0 <= x < x1 and y0 <= y < y1 for y in range(6, 96, 12)
                      for x in range(6, 96, 12)]
            told = words['patches'][0, 7 * k:7 * k + 7]
            assert (told == inside).all() and any(inside)
            assert encoder.text(words['tokens'][0, 7 * k:7 * k + 7]) == records([obj])
        assert not words['patches'][0, 7 * len(scene.objects):].any()


def test_a_thing_smaller_than_a_patch_has_the_nearest_one(encoder):
    talk = Conversation(LIBRARY.example(0).images[:1], ask(IMAGE, 'red'),
                        (('red', (.49, .01, .51, .03)),))
    drawn = sampler(encoder, 'tower').measured(talk, 'here')
    patches = encoded(drawn, encoder, 'token')['patches']
    assert patches.sum(1).tolist() == [1, 0] and patches[0, 3] | patches[0, 4]


def test_a_tokenizer_that_joins_words_of_two_things_is_named(encoder):
    talk = Conversation(LIBRARY.example(0).images[:1], ask(IMAGE, 'red'),
                        (('red blue', (0, 0, 1, 1)), (' red', (0, 0, 1, 1))))
    with pytest.raises(ValueError, match='here: the tokenizer makes 2 tokens of a caption and 3'):
        encoded(sampler(encoder, 'tower').measured(talk, 'here'), encoder, 'token')


# --- budgets ------------------------------------------------------------------------------------

def test_what_a_writer_learns_never_exceeds_the_budget_that_its_prompt_names(encoder):
    seen = Counter()
    for stage in ('caption', 'extract'):
        for talk in talks(encoder, stage, 200):
            for prompt, reply in asked(talk):
                *_, word, last = ['', *prompt.split()]
                if word == 'in':
                    seen[stage, int(last)] += 1
                    assert 0 < len(encoder.ids(reply)) <= int(last)
                    assert len(encoder.ids(reply)) == len(reply.split())  # a word is a token
                else:
                    seen[stage, None] += 1
    assert set(seen) == {(stage, budget) for stage in ('caption', 'extract')
                         for budget in (None, 8, 16, 32, 64)}
    assert min(seen.values()) > 20


def test_every_text_of_every_stage_is_known_to_the_tokenizer(encoder):
    unknown = encoder.tokenizer.token_to_id('<unk>')
    for stage in MIXTURES:
        for talk in talks(encoder, stage, 60):
            for prompt, reply in asked(talk):
                assert unknown not in encoder.ids(prompt) + encoder.ids(reply), (stage, prompt)


def test_a_thought_over_a_text_that_was_cut_too_short_says_so(encoder):
    cut = whole = 0
    for talk in talks(encoder, 'reason', 400, library=Scenes(WORLD, 24)):
        pairs = asked(talk)
        if not talk.turns[1].thinking:
            continue
        for prompt, reply in pairs[:1]:
            thought, _, answer = reply.partition(f' {THINK[1]} ')
            assert answer
            cut += thought == UNTOLD
            whole += thought != UNTOLD
            if ' read' in prompt and thought != UNTOLD:
                assert thought.split(' ;')[0] in prompt
    assert cut > 20 and whole > 20


# --- exposures ----------------------------------------------------------------------------------

@pytest.mark.parametrize('n_facts', [4, 16, 50])
@pytest.mark.parametrize('stage', ['text', 'instruct', 'reason'])
def test_each_fact_is_told_exactly_so_often_however_many_there_are(encoder, n_facts, stage):
    world = Clutter(n_facts=n_facts, exposures=20)
    questions = {known.fact.question for known in knowledge(world).told + knowledge(world).asked}
    counts = Counter()
    for talk in talks(encoder, stage, world=world):
        told = []
        for prompt, reply in asked(talk):
            question = prompt[max(prompt.find('what is the'), 0):]
            if question in questions:
                told.append((question, reply.rpartition(f'{THINK[1]} ')[2]))
        assert len(set(told)) == len(told)  # none could be copied from before it
        counts.update(told)
    share = REMINDED[stage]
    for known in knowledge(world).told:
        wanted = {'rare': 2}.get(known.family, 20) // share
        assert known.times == wanted * share or known.family == 'rare'
        assert counts[known.fact.question, known.fact.value] == wanted, known
    # What is kept back is never told.
    kept = [known for known in knowledge(world).asked if known.family in ('twohop', 'rule')]
    assert kept and not any(counts[known.fact.question, known.fact.value] for known in kept)


def test_stages_that_tell_no_facts_have_one_conversation_a_scene(encoder):
    for stage in ('align', 'caption', 'extract', 'tower'):
        assert sampler(encoder, stage).count == len(LIBRARY)
    assert sampler(encoder, 'text').count > 2 * len(LIBRARY)


def test_no_replay_takes_the_place_of_a_fact(encoder):
    with_replay = talks(encoder, 'instruct', replay=(('align', 0.5),))
    facts = {known.fact.question for known in knowledge(WORLD).told}

    def told(some):
        return sorted(q for talk in some for q, _ in asked(talk) if q in facts)

    assert told(with_replay) == told(talks(encoder, 'instruct')) != []


# --- pictures that are left out -------------------------------------------------------------------

def test_a_share_of_conversations_asks_the_same_without_its_picture(encoder):
    n = 400
    plain, blind = (talks(encoder, 'instruct', n, blind=share) for share in (0.0, 0.25))
    assert all(len(talk.images) == 1 for talk in plain)
    missing = sum(not talk.images for talk in blind)
    assert abs(missing - n / 4) < 35  # four standard deviations
    for talk in blind:
        marks = sum(turn.text.count(IMAGE) for turn in talk.turns)
        assert marks == len(talk.images) and talk.turns[0].text
    assert [asked(talk) for talk in plain] == [asked(talk) for talk in blind]


def test_the_first_world_leaves_pictures_out_as_well_and_replays_keep_theirs(encoder):
    drawn = small.sampler('instruct', blind=0.5, replay=(('align', 0.3),), tiles=3)
    sequence = drawn.sequence(0)
    talk = [sequence[i].talk for i in range(200)]
    for each in talk:
        only_caption = len(each.turns) == 2 and each.turns[0].text.replace(IMAGE, '').strip() == ''
        assert each.images or not only_caption
    assert 40 < sum(not each.images for each in talk) < 100


# --- on disk --------------------------------------------------------------------------------------

def test_a_data_set_on_disk_is_what_was_made_with_its_floors(tmp_path):
    folder = build(WORLD, tmp_path, {'train': 5, 'test': 3}, similarity_share=0.0)
    read = source(folder, 'test')
    for i in range(3):
        made = scene_example(WORLD, 'test', i)
        at = [read[k].scene_id for k in range(3)].index(made[0].scene_id)
        assert (read[at], read.scenes(at)) == made
    assert (folder / 'baselines.json').is_file()
    again = build(WORLD, tmp_path / 'again', {'train': 5, 'test': 3}, similarity_share=0.0)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with pytest.raises(ValueError, match='similarity_share = 0.1 must be 0'):
        build(WORLD, tmp_path, {'train': 5}, similarity_share=0.1)
    assert isinstance(Library(read).example(0).images[0], bytes)


def test_a_position_of_a_stream_is_the_same_every_time(encoder):
    for stage in MIXTURES:
        one, again = talks(encoder, stage, 12), talks(encoder, stage, 12)
        assert one == again
