"""The scene world as a source and as a teacher: pictures whose truth is known, in plain English.

`lay_out` turns a data set of scenes into a source of the factory. `Oracle` reads the default
prompts and answers from the truth, so that every step can be run and checked without a model.
"""
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downscale.data.images import digest
from downscale.data.scenes.dataset import source
from downscale.data.scenes.world import Scene
from downscale.factory.teachers import Ask, TeacherReply
from downscale.runtime.files import read_json, write_bytes, write_json

_PAIRS = re.compile(r'^Question \d+: (.*)\nAnswer \d+: (.*)$', re.MULTILINE)
_QUESTIONS = re.compile(r'^Question \d+: (.*)$', re.MULTILINE)
_STATEMENTS = re.compile(r'^- (.*)$', re.MULTILINE)
_JUDGED = re.compile(r'^Statement (\d+): (.*)$', re.MULTILINE)
_LAST = 'Now for these questions:\n'
# A question of the world -> the sentence that answers it.
_SENTENCES = [(re.compile(pattern), sentence) for pattern, sentence in (
    (r'what (?:color|size) is the (\w+)', 'The {0} is {answer}.'),
    (r'where is the (\w+)', 'The {0} is at {answer}.'),
    (r'what is at (\w+)', 'At {0} there is a {answer}.'),
    (r'box of the (\w+)', 'The box of the {0} is {answer}.'),
    (r'how many things are (\w+)', 'The number of {0} things is {answer}.'),
    (r'what does the (\w+) read', 'The {0} reads {answer}.'))]
_COMPARED = re.compile(r'which is (larger|smaller) (\w+) or (\w+)')
_RELATED = re.compile(r'is the (\w+) (left of|right of|above|below) the (\w+)')


def sentence(question: str, answer: str) -> str:
    """Return the sentence that a question of the world and its answer make.

    ValueError for any other question.
    """
    if match := _COMPARED.fullmatch(question):
        other = next(name for name in match.groups()[1:] if name != answer)
        return f'The {answer} is {match[1]} than the {other}.'
    if match := _RELATED.fullmatch(question):
        return f'The {match[1]} is {"" if answer == "yes" else "not "}{match[2]} the {match[3]}.'
    for pattern, text in _SENTENCES:
        if match := pattern.fullmatch(question):
            return text.format(*match.groups(), answer=answer)
    raise ValueError(f'no question of the scene world: {question!r}')


def description(scene: Scene) -> str:
    """Return one sentence for every object of a scene."""
    return ' '.join(f'The {obj.shape} at {obj.cell} is {obj.size} and {obj.color}, and it shows '
                    f'the character {obj.char}.' for obj in scene.objects)


def lay_out(folder: str | Path, split: str, to: str | Path,
            limit: int | None = None) -> tuple[Path, Path]:
    """Write a data set of scenes as a source of the factory; return its (questions, pictures).

    `to` gets `pictures/`, `questions.json` (LLaVA's form) and `gold.json`, of the first `limit`
    single pictures of what `data/scenes/dataset.py` has built in `folder`.
    """
    examples = source(folder, split)
    records = []
    gold = {}
    for index in range(len(examples)):
        example = examples[index]
        # The factory describes one picture at a time.
        if len(example.images) > 1:
            continue
        name = f'{example.scene_id}.png'
        write_bytes(Path(to) / 'pictures' / name, example.images[0])
        asked = [question for question in example.questions if question.kind == 'visual']
        turns = []
        for question in asked:
            turns += [{'from': 'human', 'value': question.text},
                      {'from': 'gpt', 'value': question.answer}]
        records.append({'id': example.scene_id, 'image': name, 'conversations': turns})
        gold[digest(example.images[0])] = {
            'description': description(examples.scene(index)),
            'answers': {question.text: question.answer for question in asked},
            'information': {question.text: question.extraction.information for question in asked}}
        if len(records) == limit:
            break
    write_json(Path(to) / 'gold.json', gold)
    write_json(Path(to) / 'questions.json', records)  # last: what is there is then complete
    return Path(to) / 'questions.json', Path(to) / 'pictures'


def data_of(folder: str | Path) -> Path:
    """Return the folder of the data set in a study's folder, or `folder` itself when it is one."""
    named = read_json(Path(folder) / 'data.json')
    if named is not None and 'folder' not in named:
        raise ValueError(f"{Path(folder) / 'data.json'} is damaged (it has no key 'folder')")
    return Path(folder) if named is None else Path(folder) / named['folder']


@dataclass(frozen=True)
class Oracle:
    """A teacher that knows the truth: `gold` is {digest of a picture: what `lay_out` writes}."""
    gold: dict[str, dict[str, Any]]
    name: str = 'oracle'

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its text, as JSON."""
        return {'teacher': 'oracle'}

    def write(self, asks: Iterable[Ask]) -> Iterator[tuple[Ask, TeacherReply]]:
        """Yield the right reply to each of `asks`, in order; a word counts as a token."""
        for ask in asks:
            text = self.text(ask.prompt, ask.image)
            yield ask, TeacherReply(text=text, finish='stop', tokens_in=len(ask.prompt.split()),
                                    tokens_out=len(text.split()))

    def text(self, prompt: str, image: bytes | None = None) -> str:
        """Return the right reply to a default prompt of any step; ValueError for another prompt."""
        if image is not None:
            truth = self.gold[digest(image)]['description']
            return f'{truth} {" ".join(_STATEMENTS.findall(prompt))}'
        if _JUDGED.search(prompt):
            judged = prompt.partition('Description: ')[2].partition('\n\nStatement 1:')[0]
            return '\n'.join(f'{number}: {"yes" if text in judged else "no"}'
                             for number, text in _JUDGED.findall(prompt))
        if pairs := _PAIRS.findall(prompt):
            return '\n'.join(sentence(question, answer) for question, answer in pairs)
        asked = _QUESTIONS.findall(prompt.rpartition(_LAST)[2])
        if not asked:
            raise ValueError('the oracle knows only the default prompts; leave --prompts out')
        return '; '.join(dict.fromkeys(map(self._information, asked)))

    def _information(self, question):
        return next(entry['information'][question] for entry in self.gold.values()
                    if question in entry['information'])


def open_oracle(path: str | Path) -> Oracle:
    """Return the `Oracle` of a `gold.json`; FileNotFoundError when there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'no truth at {path}; the oracle knows only pictures of the scene '
                                'world: give the folder of its data set with --from')
    return Oracle(json.loads(Path(path).read_text()))
