"""Questions of the cluttered world: gold follows from gold texts, and every step is needed."""
import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from downscale.data.records import Example
from downscale.data.scenes import clutter_questions
from downscale.data.scenes.clutter_facts import knowledge, vocabulary
from downscale.data.scenes.clutter_families import ASKS
from downscale.data.scenes.clutter_table import CHAINS, FAMILIES, KNOWLEDGE, NAMES
from downscale.data.scenes.clutter_world import Clutter, sample
from downscale.data.scenes.dataset import scene_example
from downscale.data.scenes.questions import correct
from downscale.data.scenes.world import caption, stream

WORLD = Clutter()
SCENES = [sample(WORLD, 'train', i) for i in range(40)]
ALL = 10**6  # more questions per family than any scene has
SIDE, GRID, UNIT = 96, 9, 6


def asked(scene, families=NAMES, per_family=1):
    rng = stream(WORLD, 'test', scene.scene_id)
    return clutter_questions.questions_for(WORLD, scene, rng, families, per_family)


# --- a solver that reads texts alone, without the module under test -----------------------------

def rows_of(text):
    """Records of a caption or an extraction -> dicts."""
    rows = []
    for part in text.split(' ;'):
        words = part.split()
        if not words or words[0] in ('no', 'box'):
            continue
        row = {'shape': words[0], 'column': ord(words[1]) - 96, 'row': int(words[2])}
        names = ('color',) if len(words) == 4 else ('size', 'color', 'char')
        rows.append(row | dict(zip(names, words[3:], strict=True)))
    return rows


def named(rows, words):
    """The only row that words like 'small red star' name."""
    like = [row for row in rows if set(words) <= {row.get('size'), row.get('color'),
                                                  row['shape']}]
    assert len(like) == 1, (words, like)
    return like[0]


def stepped(rows, row, direction):
    """The next row in a direction, None where there is none or two are as near."""
    axis, sign = {'left': ('column', -1), 'right': ('column', 1), 'above': ('row', -1),
                  'below': ('row', 1)}[direction]
    gaps = {id(other): sign * (other[axis] - row[axis]) for other in rows}
    ahead = sorted((other for other in rows if gaps[id(other)] > 0), key=lambda o: gaps[id(o)])
    if not ahead or len(ahead) > 1 and gaps[id(ahead[0])] == gaps[id(ahead[1])]:
        return None
    return ahead[0]


def way_of(text):
    """(words of the name, directions in the order of steps) of a chain's text."""
    words = text.removeprefix('what color is the thing ').split(' the ')
    return words[-1].split(), [words[k].replace('thing ', '').split()[0]
                               for k in range(len(words) - 2, -1, -1)]


def box_of(row):
    """A box inferred from place and size, in sixteenths."""
    half = {'large': 11, 'small': 8}[row['size']]
    edges = []
    for at in (row['column'], row['row']):
        middle = min(max((at - .5) * SIDE / GRID, half), SIDE - half)
        edges.append((round(middle - half), round(middle + half)))
    (x0, x1), (y0, y1) = edges
    return f'{x0 // UNIT} {y0 // UNIT} {-(-x1 // UNIT) - 1} {-(-y1 // UNIT) - 1}'


def solved(question, text):
    """The answer to a visual question or a chain, from a text."""
    rows, words = rows_of(text), question.text.split()
    match question.family:
        case 'color' | 'size':
            return named(rows, words[4:])[question.family]
        case 'read':
            return named(rows, words[3:-1])['char']
        case 'position':
            row = named(rows, words[3:])
            return f'{chr(96 + row["column"])} {row["row"]}'
        case 'content':
            place = ord(words[3]) - 96, int(words[4])
            row, = [row for row in rows if (row['column'], row['row']) == place]
            return row['shape']
        case 'ground':
            if text.startswith('box'):
                return text.removeprefix('box ').removesuffix(' ;')
            return box_of(named(rows, words[3:]))
        case 'count_color':
            return str(sum(row['color'] == words[-1] for row in rows))
        case 'count_shape':
            return str(sum(row['shape'] == words[2] for row in rows))
        case 'compare':
            at = words.index('or')
            two = [named(rows, words[4:at]), named(rows, words[at + 2:])]
            size = {'larger': 'large', 'smaller': 'small'}[words[2]]
            row, = [row for row in two if row['size'] == size]
            return row['shape']
        case 'relation':
            at = max(words.index(word) for word in ('left', 'right', 'above', 'below')
                     if word in words)
            skip = 3 if words[at] in ('left', 'right') else 2
            one, other = named(rows, words[2:at]), named(rows, words[at + skip:])
            return 'yes' if {'left': one['column'] < other['column'],
                             'right': one['column'] > other['column'],
                             'above': one['row'] < other['row'],
                             'below': one['row'] > other['row']}[words[at]] else 'no'
        case 'nearest':
            row = named(rows, words[5:])
            far = [((o['column'] - row['column']) ** 2 + (o['row'] - row['row']) ** 2, o)
                   for o in rows if o is not row]
            least = [o for d, o in far if d == min(d for d, _ in far)]
            assert len(least) == 1
            return least[0]['shape']
        case 'exists':
            both = words[3], words[4]
            return 'yes' if both in [(row['color'], row['shape']) for row in rows] else 'no'
    name, way = way_of(question.text)
    return walked(rows, name, way)


def walked(rows, name, way):
    """The colour of what a way leads to; None where it ends early."""
    row = named(rows, name)
    for direction in way:
        row = row and stepped(rows, row, direction)
    return row and row['color']


# --- answers ------------------------------------------------------------------------------------

def test_the_table_has_at_least_sixteen_families_of_three_kinds():
    kinds = Counter(family.kind for family in FAMILIES)
    assert len(FAMILIES) >= 16 and set(kinds) == {'knowledge', 'visual', 'reasoning'}
    assert [family.dose for family in FAMILIES if family.kind == 'reasoning'] == [1, 2, 3, 4]
    assert set(ASKS) | set(KNOWLEDGE) == set(NAMES) and not set(ASKS) & set(KNOWLEDGE)


@pytest.mark.parametrize('family', [name for name in NAMES if name not in KNOWLEDGE])
def test_gold_follows_from_the_gold_extraction_and_from_the_whole_caption(family):
    seen = 0
    for scene in SCENES:
        for question in asked(scene, (family,), 12):
            seen += 1
            # A name of `nearest` may need a field that its extraction lacks: the caption has it.
            for text in (question.extraction.text, caption(scene)):
                answer = solved(question, text)
                assert correct(family, answer, question.answer), (question, text)
            assert question.kind == 'visual'
    assert seen > 100


def test_every_family_is_askable_in_most_scenes():
    counts = Counter(question.family for scene in SCENES for question in asked(scene))
    for family in NAMES:
        assert counts[family] >= (20 if family in ('chain3', 'chain4') else 36), family


def test_what_is_asked_of_knowledge_follows_from_what_is_told():
    known = knowledge(WORLD)
    told = {(k.fact.entity, k.fact.relation): k.fact.value for k in known.told}
    assert len(told) == len(known.told) == 4 * 64 + 32
    by_last = defaultdict(set)
    for (entity, relation), value in told.items():
        if relation == 'noise':
            by_last[entity.split()[1]].add(value)
    for k in known.asked:
        fact = k.fact
        if k.family in ('held', 'rare'):
            assert told[fact.entity, fact.relation] == fact.value
            continue
        assert (fact.entity, fact.relation) not in told  # never told, yet it follows
        if k.family == 'twohop':
            friend = told[fact.entity.split()[-1], 'friend']
            assert told[friend, fact.relation] == fact.value
        else:
            assert by_last[fact.entity.split()[1]] == {fact.value}
    assert Counter(k.family for k in known.asked) == {'held': 64, 'rare': 64, 'twohop': 32,
                                                      'rule': 16}


# --- chains -------------------------------------------------------------------------------------

@pytest.mark.parametrize('family', CHAINS)
def test_a_chain_needs_every_one_of_its_steps(family):
    seen = 0
    for scene in SCENES:
        rows = rows_of(caption(scene))
        for question in asked(scene, (family,), 20):
            name, way = way_of(question.text)
            assert len(way) == CHAINS[family]
            seen += 1
            # Stopped early, or with any one step left out, it does not lead to the answer.
            for k in range(len(way)):
                assert walked(rows, name, way[:k]) != question.answer
                assert walked(rows, name, way[:k] + way[k + 1:]) != question.answer
    assert seen > 100


def test_steps_are_the_only_difference_between_chains_of_a_scene():
    for scene in SCENES:
        texts = {(q.extraction.information, q.extraction.text) for q in asked(scene, tuple(CHAINS))}
        assert len(texts) <= 1
        for q in asked(scene, tuple(CHAINS), 5):
            assert q.answer in WORLD.colors and q.text.startswith('what color is')
            assert q.trace.text.split()[-1] == q.answer


def test_a_thought_about_a_chain_reads_every_thing_and_keeps_the_nearest():
    steps = 0
    for scene in SCENES:
        cells = [obj.cell.split() for obj in scene.objects]
        for q in asked(scene, tuple(CHAINS), 5):
            start, *searches, color = re.split(r' (?=left |right |above |below )| ; color ',
                                               q.trace.text)
            at = start.split()[1:]
            for search in searches:
                (direction, *words), (_, *there) = (part.split() for part in search.split(' ; '))
                axis = int(direction in ('above', 'below'))
                sign = 1 if direction in ('right', 'below') else -1
                # In the order of the text, so that the next is always the next of it.
                assert words[::2] == [cell[axis] for cell in cells]
                for k, said in enumerate(words[1::2]):
                    gaps = {sign * (number(cell[axis]) - number(at[axis])): cell[axis]
                            for cell in cells[:k + 1]}
                    ahead = [gap for gap in gaps if gap > 0]
                    assert said == (gaps[min(ahead)] if ahead else 'no')
                assert words[-1] == there[axis]
                at = there
                steps += 1
            assert color == q.answer
    assert steps > 200


def test_a_thought_about_a_caption_reads_what_it_tells_in_its_order():
    """To look for a thing by what is told behind its beginning was not learnt."""
    counted = {'yes': 0, 'no': 0}
    for scene in SCENES:
        things = [(obj.color, obj.shape) for obj in scene.objects]
        for q in asked(scene, ('exists',), ALL):
            *_, color, shape = q.text.split()
            *words, _, total = q.trace.scan.replace(' ;', '').split()
            assert list(zip(words[1::3], words[::3])) == things
            so_far = [str(things[:k + 1].count((color, shape))) for k in range(len(things))]
            assert words[2::3] == so_far and total == so_far[-1]
            assert (total != '0') == (q.answer == 'yes')
            counted[q.answer] += 1
        for q in asked(scene, ('content',), ALL):
            read, found = q.trace.scan.split(' ; ')
            words = read.split()
            told = [(f'{column} {row}', shape)
                    for column, row, shape in zip(words[::3], words[1::3], words[2::3])]
            assert told == [(obj.cell, obj.shape) for obj in scene.objects[:len(told)]]
            # It ends at the place that is asked about.
            assert q.text == f'what is at {told[-1][0]}' and told[-1][1] == found == q.answer
    assert min(counted.values()) > 20


def number(word):
    """A column or a row as a number."""
    return int(word) if word.isdigit() else ord(word) - 96


# --- names, texts, guesses ----------------------------------------------------------------------

def test_the_information_never_holds_the_answer():
    for scene in SCENES:
        for q in asked(scene, tuple(ASKS), 5):
            if q.family not in ('exists', 'relation', 'compare', 'count_shape', 'count_color'):
                words = f' {q.extraction.information} '
                assert f' {q.answer} ' not in words or q.family == 'nearest', q


def test_every_word_is_in_the_vocabulary():
    words = set(vocabulary(WORLD))
    for scene in SCENES:
        for q in asked(scene, NAMES, 6):
            for text in (q.text, q.answer, q.extraction.information, q.extraction.text,
                         q.trace.text, q.trace.scan, *q.distractors):
                assert set(text.split()) <= words, set(text.split()) - words


def test_the_chance_is_that_of_the_best_answer_to_all_such_questions():
    for scene in SCENES[:15]:
        for q in asked(scene):
            if q.family in KNOWLEDGE:
                relation = q.text.split()[3]
                values = [k.fact.value for k in knowledge(WORLD).asked
                          if k.family == q.family and k.fact.relation == relation]
            else:
                values = [other.answer for other in asked(scene, (q.family,), ALL)]
            best = max(sum(correct(q.family, guess, value) for value in values)
                       for guess in set(values)) / len(values)
            wanted = max(best, 0.5) if q.family == 'compare' else best
            assert q.chance == pytest.approx(wanted, abs=1e-6), q.family


def test_the_floors_of_a_split_are_those_of_its_questions():
    examples = [Example(scene_id=scene.scene_id, images=(), caption='', questions=asked(scene))
                for scene in SCENES]
    floors = clutter_questions.baselines(WORLD, examples)
    assert set(floors) == set(NAMES)
    for family, floor in floors.items():
        questions = [q for example in examples for q in example.questions if q.family == family]
        golds = [q.answer for q in questions]
        assert floor['n'] == len(golds)
        assert floor['informed'] == pytest.approx(np.mean([q.chance for q in questions]))
        hits = max(sum(correct(family, guess, gold) for gold in golds) for guess in golds)
        assert floor['constant'] == pytest.approx(hits / len(golds))
        groups = defaultdict(list)
        for q in questions:
            groups[q.text.split()[3] if family in ('held', 'rare', 'twohop') else ''].append(
                q.answer)
        hits = sum(max(sum(correct(family, guess, gold) for gold in golds) for guess in golds)
                   for golds in groups.values())
        assert floor['majority'] == pytest.approx(hits / len(questions))
    assert floors['relation']['uniform'] == floors['compare']['uniform'] == 0.5
    assert floors['chain4']['uniform'] == floors['color']['uniform'] == 1 / 8


def test_yes_and_no_are_asked_equally_often():
    for family in ('relation', 'exists'):
        for scene in SCENES:
            answers = Counter(q.answer for q in asked(scene, (family,), ALL))
            assert answers['yes'] == answers['no'] > 0


def test_distractors_are_wrong_and_different():
    for scene in SCENES[:15]:
        for q in asked(scene):
            assert len(set(q.distractors)) == len(q.distractors) >= 1
            assert not any(correct(q.family, wrong, q.answer) for wrong in q.distractors)
            possible = clutter_questions.possible_answers(WORLD, q.family, q.text)
            assert q.answer in possible or q.family == 'ground'


def test_items_are_told_apart_and_facts_are_their_own_clusters():
    for i, j in itertools.product((0, 1), repeat=2):
        one, _ = scene_example(WORLD, 'test', i)
        assert len({q.item_id for q in one.questions}) == len(one.questions)
        for q in one.questions:
            assert (q.cluster_id == one.scene_id) == (q.kind == 'visual')
        assert (one == scene_example(WORLD, 'test', j)[0]) == (i == j)
