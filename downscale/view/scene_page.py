"""A page of made-up scenes: each with its picture, its caption and what is asked about it."""
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from downscale.data.records import Example
from downscale.output.page import card, cards, page, picture_address, terms
from downscale.runtime.files import write_bytes


def write_page(path: Path, name: str, examples: Iterable[Example]) -> None:
    """Write an offline HTML page about `examples` of the data set called `name` to `path`."""
    samples = [_card(example) for example in examples]
    body = f'<h1>{escape(name)}</h1>{cards(samples)}'
    write_bytes(path, page(name, f'{len(samples):,} scenes', True, body).encode())


def _card(example):
    """Return the card of an example: pictures, its id, its caption and its questions."""
    pictures = ''.join(f'<img alt="" src="{picture_address(png)}">' for png in example.images)
    asked = terms([('caption', escape(example.caption)), *_asked(example)])
    return card(pictures, example.scene_id, f'<dl>{asked}</dl>')


def _asked(example) -> Iterator[tuple[str, str]]:
    """Yield (family, question and answer) of each question."""
    for question in example.questions:
        text = f'{question.text}? {question.answer} (guess {question.chance:.2f})'
        yield question.family, escape(text)
