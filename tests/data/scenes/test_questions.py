"""Questions: answers follow from the scene alone, evidence holds the answer, guessing is priced."""
from collections import Counter, defaultdict

import numpy as np
import pytest

from downscale.data.records import Example
from downscale.data.scenes import facts, questions
from downscale.data.scenes.dataset import scene_example, triple_example
from downscale.data.scenes.question_families import ASKS
from downscale.data.scenes.world import (
    FAMILIES,
    FIELDS,
    SIZES,
    World,
    box_text,
    caption,
    record,
    sample,
    stream,
    triple,
)

WORLD = World()
SCENES = [sample(WORLD, 'train', i) for i in range(300)]
ALL = 10**6  # more questions per family than any scene has


def asked(scene, families=FAMILIES, per_family=1):
    rng = stream(WORLD, 'test', scene.scene_id)
    return questions.questions_for(WORLD, scene, rng, families, per_family)


def rows_of(text):
    words = text.split()
    return [dict(zip(FIELDS, words[i:i + 5], strict=True)) for i in range(0, len(words), 6)]


def recomputed(question, text):
    """The answer from the caption and the wording, without the module under test."""
    rows, words = rows_of(text), question.text.split()
    by_shape = {row['shape']: row for row in rows}
    by_cell = {row['cell']: row for row in rows}
    match question.family:
        case 'attribute':
            return by_shape[words[-1]][words[1]]
        case 'position':
            return by_shape[words[-1]]['cell']
        case 'content':
            return by_cell[words[-1]]['shape']
        case 'read':
            return by_shape[words[3]]['char']
        case 'count':
            return str(sum(words[-1] in (row['color'], row['size']) for row in rows))
        case 'compare':
            wanted = {'larger': 'large', 'smaller': 'small'}[words[2]]
            (answer,) = [s for s in (words[3], words[5]) if by_shape[s]['size'] == wanted]
            return answer
        case 'relation':
            one, other = by_shape[words[2]]['cell'], by_shape[words[-1]]['cell']
            holds = {'left': one[0] < other[0], 'right': one[0] > other[0],
                     'above': one[1] < other[1], 'below': one[1] > other[1]}[words[3]]
            return 'yes' if holds else 'no'


def test_every_answer_follows_from_the_caption():
    seen = Counter()
    for scene in SCENES[:60]:
        for question in asked(scene, tuple(questions.ASKS), ALL):
            seen[question.family] += 1
            if question.family != 'ground':
                assert question.answer == recomputed(question, caption(scene)), question.text
                continue
            (obj,) = [o for o in scene.objects if o.shape == question.text.split()[-1]]
            assert question.answer == box_text(WORLD, obj.box)
    assert set(seen) == set(questions.ASKS) and min(seen.values()) >= 100


def test_a_box_can_be_inferred_from_cell_and_size():
    for scene in SCENES[:100]:
        for obj in scene.objects:
            x = (ord(obj.cell[0]) - ord('a')) * 4
            y = (int(obj.cell[1]) - 1) * 4
            shrink = obj.size == 'small'
            guess = f'{x} {y} {x + 3 - shrink} {y + 3 - shrink}'
            whole = f'{x} {y} {x + 3} {y + 3}'
            gold = box_text(WORLD, obj.box)
            assert questions.correct('ground', whole, gold)
            assert obj.size == 'small' or questions.correct('ground', guess, gold)


def test_the_extraction_holds_the_evidence_and_the_information_does_not():
    for scene in SCENES:
        for q in asked(scene):
            text, words = q.extraction.text, q.extraction.text.split()
            if q.family in ('attribute', 'position', 'content', 'read', 'ground'):
                assert q.answer not in q.extraction.information
                assert f' {q.answer} ' in f' {text} '
                key = q.text.split()[3 if q.family == 'read' else -1]
                assert words[0] == key
            elif q.family == 'count':
                value = q.text.split()[-1]
                assert words.count(value) == words.count(';') == max(1, int(q.answer))
                assert (words[0] == 'no') == (q.answer == '0')
            elif q.family in ('compare', 'relation'):
                named = [w for w in q.text.split() if w in WORLD.shapes]
                assert [words[0], words[6]] == named
            else:
                assert (q.extraction.information, text) == ('nothing to look at', 'nothing')


def test_every_extracted_record_is_a_record_of_the_scene():
    for scene in SCENES[:100]:
        known = {record(obj, first) for obj in scene.objects for first in FIELDS}
        for q in asked(scene, tuple(questions.ASKS)):
            for part in q.extraction.text.split(' ;'):
                part = ' '.join(part.split()[:5])
                assert not part or part in known or part.startswith('no ')


def test_a_trace_repeats_the_evidence_and_ends_with_what_decides():
    for scene in SCENES[:100]:
        row = {obj.shape: obj for obj in scene.objects}
        for q in asked(scene):
            steps, _, end = q.trace.text.rpartition(' ; ')
            named = [word for word in q.text.split() if word in WORLD.shapes]
            if q.family == 'fact':
                assert q.trace.text in {fact.statement for fact in questions.facts(WORLD)}
            elif q.family in ('attribute', 'position', 'ground', 'read'):
                assert steps == record(row[named[0]]) and end.split(' ', 1)[1] == q.answer
            elif q.family == 'content':
                assert steps == record(row[q.answer], 'cell') and end == f'shape {q.answer}'
            elif q.family == 'relation':
                assert steps == ' '.join(f'{shape} {row[shape].cell}' for shape in named)
                low, order, high = end.split()
                assert order == ('before' if low < high else 'after') and low != high
            elif q.family == 'compare':
                assert steps == ' '.join(' '.join(record(row[shape]).split()[:3])
                                         for shape in named)
                wanted = {'larger': 'large', 'smaller': 'small'}[q.text.split()[2]]
                assert end == f'{wanted} {q.answer}' and row[q.answer].size == wanted
            else:
                assert q.trace.text.endswith(f'; total {q.answer}')


def test_a_scan_tells_thing_after_thing_of_the_caption():
    """To find one by what is not its first field, or to count; elsewhere it is the trace itself."""
    for scene in SCENES[:100]:
        for q in asked(scene):
            key = q.text.split()[-1]
            field = 'cell' if q.family == 'content' else 'size' if key in SIZES else 'color'
            hits = [vars(obj)[field] == key for obj in scene.objects]
            rows = [f'{obj.shape} {vars(obj)[field]}' for obj in scene.objects]
            if q.family == 'content':
                rows = rows[:hits.index(True) + 1]
                assert q.trace.scan == ' '.join([*rows, f'; shape {q.answer}'])
            elif q.family == 'count':
                rows = [f'{row} {sum(hits[:k + 1])}' for k, row in enumerate(rows)]
                assert q.trace.scan == ' '.join([*rows, f'; total {q.answer}'])
                kept = [row for row, hit in zip(rows, hits, strict=True) if hit]
                assert q.trace.text == ' '.join([*kept, f'; total {q.answer}'])
            else:
                assert q.trace.scan == q.trace.text


def told(first, other, name):
    """What a trace says of two pictures' rows by shape: fields in turn, and differences so far."""
    count = 0
    for shape in first:
        yield f'first {" ".join(first[shape].values())} {name} {shape}'
        for field in FIELDS[1:]:
            count += first[shape][field] != other[shape][field]
            yield f'{other[shape][field]} {count}'


def test_similarity_follows_from_the_three_captions():
    answers = Counter()
    for i in range(60):
        example, _ = triple_example(WORLD, 'train', i)
        (question,) = example.questions
        assert len(example.images) == 3
        graphs = {name: {} for name in ('first', 'second', 'third')}
        for part in example.caption.removesuffix(' ;').split(' ; '):
            name, _, row = part.partition(' ')
            (row,) = rows_of(f'{row} ;')
            graphs[name][row['shape']] = row
        first, *others = graphs.values()
        counts = [sum(first[shape][field] != other[shape][field]
                      for shape in other for field in FIELDS) for other in others]
        assert question.answer == ('second' if counts[0] < counts[1] else 'third')
        steps = [step for name in ('second', 'third') for step in told(first, graphs[name], name)]
        assert question.trace.text == ' '.join(
            [*steps, f'; second {counts[0]} third {counts[1]}'])
        assert question.chance == 0.5 and question.distractors != (question.answer,)
        answers[question.answer] += 1
    assert min(answers.values()) > 15


def test_distractors_are_wrong_different_and_three_where_three_exist():
    for scene in SCENES[:100]:
        for q in asked(scene):
            assert len(set(q.distractors)) == len(q.distractors)
            assert not any(questions.correct(q.family, d, q.answer) for d in q.distractors)
            possible = questions.possible_answers(WORLD, q.family, q.text)
            assert q.family == 'ground' or set(q.distractors) | {q.answer} <= set(possible)
            assert len(q.distractors) == min(3, len(possible) - 1)


def test_zero_is_counted_sometimes_but_not_often():
    golds = [asked(scene, ('count',))[0].answer for scene in SCENES]
    assert 0.05 < golds.count('0') / len(golds) < 0.3


def test_chance_is_at_least_uniform_and_below_one_where_objects_differ():
    for scene in SCENES:
        for q in asked(scene):
            assert q.chance >= 1 / len(questions.possible_answers(WORLD, q.family, q.text)) - 1e-6
            assert q.chance <= 1
            if q.family in ('position', 'content', 'ground'):
                assert q.chance == pytest.approx(1 / len(scene.objects), abs=1e-6)
            if q.family in ('count', 'compare', 'relation', 'fact'):
                assert q.chance < 1


def wording(family, text):
    return text.split()[1] if family == 'attribute' else ''


def test_an_informed_guesser_earns_its_chance_and_no_more():
    earned, priced = defaultdict(list), defaultdict(list)
    for scene in SCENES:
        everything = defaultdict(Counter)
        for family, asks in questions.ASKS.items():
            for ask in asks(WORLD, scene):
                everything[family, wording(family, ask.text)][ask.answer] += 1
        rng = stream(WORLD, 'guesser', scene.scene_id)
        for q in questions.questions_for(WORLD, scene, rng, tuple(questions.ASKS)):
            guess = everything[q.family, wording(q.family, q.text)].most_common(1)[0][0]
            earned[q.family].append(questions.correct(q.family, guess, q.answer))
            priced[q.family].append(q.chance)
    for family in questions.ASKS:
        noise = 3 * np.sqrt(np.mean(np.array(priced[family]) * (1 - np.array(priced[family])))
                            / len(SCENES))
        gain = np.mean(earned[family]) - np.mean(priced[family])
        assert gain <= noise + 1e-9, f'{family}: guessing earns {gain:.3f} more than chance'
        if family != 'compare':  # there the price is 1/2 because the question names two candidates
            assert gain >= -noise - 1e-9, f'{family}: chance is overstated by {-gain:.3f}'


def test_baselines_order_the_guessers():
    examples = [
        Example(scene_id=scene.scene_id, images=(), caption='', questions=asked(scene))
        for scene in SCENES
    ]
    table = questions.baselines(WORLD, examples)
    assert set(table) == set(FAMILIES)
    for family, row in table.items():
        assert row['n'] == 300
        assert row['uniform'] <= row['informed'] + 1e-6
        if family != 'compare':
            assert row['majority'] >= row['uniform'] - 0.05
    assert table['position']['majority'] < table['position']['informed']


@pytest.mark.parametrize('pred, right', [
    ('4 8 7 11', True), (' 4 8 7 11\n', True), ('4 8 6 11', True), ('4 8 5 10', False),
    ('0 0 3 3', False), ('7 11 4 8', False), ('', False), ('4 8 7', False),
    ('4 8 7 11 11', False), ('a b c d', False), ('-4 8 7 11', False), ('4 8 7 ²', False),
    ('4 8 7 ' + '9' * 10_000, False), ('4.0 8 7 11', False)])
def test_a_box_is_right_from_half_overlap_and_nonsense_is_wrong(pred, right):
    assert questions.correct('ground', pred, '4 8 7 11') is right


def test_a_box_of_one_unit_overlaps_itself():
    assert questions.correct('ground', '3 3 3 3', '3 3 3 3')
    assert not questions.correct('ground', '3 3 3 3', '')


def test_text_answers_must_match_exactly_up_to_outer_space():
    assert questions.correct('read', ' K ', 'K')
    assert not questions.correct('read', 'k', 'K')


def test_facts_are_deterministic_and_about_names_that_mean_nothing_else():
    world = World(n_facts=402)
    known = questions.facts(world)
    assert known == questions.facts(World(n_facts=402)) and len(known) == 402
    assert known != questions.facts(World(n_facts=402, seed=1))
    assert len({(fact.entity, fact.relation) for fact in known}) == 402
    entities = {fact.entity for fact in known}
    assert len(entities) == 101 and not entities & set(facts._plain_words(world))
    for fact in known:
        assert fact.entity.isalpha() and fact.value in questions.FACT_VALUES[fact.relation]
        assert fact.statement == f'the {fact.relation} of {fact.entity} is {fact.value}'
        assert fact.question == f'what is the {fact.relation} of {fact.entity}'


def test_a_fact_is_knowledge_clustered_by_fact_and_the_rest_is_visual():
    for scene in SCENES[:20]:
        for q in asked(scene, per_family=2):
            assert (q.kind == 'knowledge') == (q.family == 'fact')
            assert q.cluster_id == scene.scene_id or q.cluster_id.startswith('fact-')


def test_item_ids_are_unique_and_stable():
    items = [q.item_id for scene in SCENES[:50] for q in asked(scene, per_family=3)]
    assert len(set(items)) == len(items)
    assert items == [q.item_id for scene in SCENES[:50] for q in asked(scene, per_family=3)]


def test_a_restatement_holds_the_same_records_in_another_order_and_other_rotations():
    rng, moved, keys = np.random.default_rng(0), 0, Counter()
    for scene in SCENES[:100]:
        prompt, target = questions.restatement(scene, rng)
        parts = [[p.strip() for p in text.split(';')[:-1]] for text in (prompt, target)]
        assert target.endswith(' ;') and prompt.endswith(' ;')
        for obj in scene.objects:
            here = [i for i, part in enumerate(parts[0]) if part == record(obj)]
            there = [i for i, part in enumerate(parts[1]) if part in
                     {record(obj, 'shape'), record(obj, 'cell')}]
            assert len(here) == len(there) == 1
            moved += here != there
        keys.update(next(f for f in FIELDS if part.split()[0] in _values(f)) for part in parts[1])
    assert moved > 100 and set(keys) == {'shape', 'cell'} and min(keys.values()) > 100


def _values(field):
    return {'cell': WORLD.cells, 'size': ('small', 'large'), 'color': WORLD.colors,
            'shape': WORLD.shapes, 'char': WORLD.chars}[field]


@pytest.mark.parametrize('world', [WORLD, World(grid=5, n_shapes=10, n_colors=10, n_chars=16,
                                                max_objects=10, n_facts=90)])
def test_the_vocabulary_covers_every_text(world):
    vocabulary, rng = facts.vocabulary(world), np.random.default_rng(0)
    assert list(vocabulary) == sorted(set(vocabulary))
    texts = [text for fact in questions.facts(world) for text in (fact.statement, fact.question)]
    examples = [scene_example(world, 'train', i)[0] for i in range(150)]
    examples += [triple_example(world, 'train', i)[0] for i in range(40)]
    for i in range(150):
        texts += questions.restatement(sample(world, 'train', i), rng)
    for example in examples:
        texts.append(example.caption)
        for q in example.questions:
            texts += [q.text, q.answer, *q.distractors, q.extraction.information,
                      q.extraction.text, q.trace.text, q.trace.scan]
    for text in texts:
        assert text == ' '.join(text.split()) and text
        assert set(text.split()) <= set(vocabulary), set(text.split()) - set(vocabulary)


def test_a_triple_is_asked_in_three_pictures():
    scenes = triple(WORLD, 'test', 3)
    text = questions.caption_of(scenes)
    assert [text.split().count(name) for name in ('first', 'second', 'third')] == [
        len(scene.objects) for scene in scenes]


def test_a_world_names_what_is_asked_and_keeps_its_old_name_with_all_of_it():
    some = World(families=('count', 'fact'))
    asked_now = {question.family for i in range(20)
                 for question in scene_example(some, 'train', i)[0].questions}
    assert asked_now == {'count', 'fact'}
    assert 'families' not in WORLD.declared() and some.declared()['families'] == some.families
    assert (*ASKS, 'fact') == FAMILIES
    with pytest.raises(ValueError, match="unknown family 'fakt'; did you mean 'fact'"):
        World(families=('fakt',))
