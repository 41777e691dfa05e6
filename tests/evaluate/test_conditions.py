"""What each joint condition shows: the own pictures, none, or those of another example."""
import pytest

from downscale.data.records import Example
from downscale.evaluate.answers import Item, following, shown

ITEMS = [
    Item(
        question=None,
        example=Example(scene_id=name, images=pictures, caption='', questions=()),
        judge=None,
        scorer='',
    )
    for name, pictures in (
        ('one', (b'1',)),
        ('two', (b'2',)),
        ('three', (b'3',)),
        ('triple', (b'a', b'b', b'c')),
        ('other triple', (b'd', b'e', b'f')),
    )
]


@pytest.mark.parametrize('item', ITEMS)
def test_shuffled_shows_as_many_pictures_and_never_the_own_ones(item):
    pictures = shown(item, 'shuffled', following(ITEMS))
    assert len(pictures) == len(item.example.images)
    assert not set(pictures) & set(item.example.images)


def test_an_example_without_another_like_it_cannot_be_shuffled():
    with pytest.raises(ValueError, match='there is only triple; raise evaluation.scenes'):
        following(ITEMS[:4])


def test_blind_shows_nothing_and_image_the_own_pictures():
    assert shown(ITEMS[3], 'blind', ITEMS) == ()
    assert shown(ITEMS[3], 'image', ITEMS) == ITEMS[3].example.images


class Counting(Example):
    """An example that counts how often its number of pictures is asked for."""
    asked = 0

    @property
    def count(self):
        Counting.asked += 1
        return len(self.images)


def test_the_cost_of_shuffling_grows_with_the_questions_not_with_their_square():
    def calls(n):
        items = [
            Item(
                question=None,
                example=Counting(scene_id=str(k % (n // 2)), images=(b'%d' % k,), caption='',
                                 questions=()),
                judge=None,
                scorer='',
            )
            for k in range(n)
        ]
        Counting.asked = 0
        others = following(items)
        assert all(shown(item, 'shuffled', others) for item in items)
        return Counting.asked

    assert calls(400) <= 4.5 * calls(100)
