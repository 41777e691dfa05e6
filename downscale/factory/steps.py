"""What teachers are asked, step by step: a JSON file of templates with a hash."""
from dataclasses import dataclass, fields
from pathlib import Path

from downscale.evaluate.prompts import TOKENS, fill, read_templates
from downscale.values import hash_of

DEFAULT = Path(__file__).parent / 'prompts' / 'default.json'  # package data
LIMITS = ('statements_tokens', 'information_tokens', 'description_tokens', 'judge_tokens')
# The placeholders that a template must have, and no other.
PLACES = {
    'pair': ('number', 'question', 'answer'), 'statements': ('pairs',),
    'question': ('number', 'question'), 'information': ('questions',),
    'description': ('statements',), 'statement': ('text',),
    'judge': ('description', 'statements'), 'judged': ('number', 'text'),
    'information_mark': (), 'description_mark': ()}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The templates of the steps, what a reply may begin with, and limits in tokens.

    `pair`, `question`, `statement` and `judged` write one entry of the lists in the others.
    """
    about: str
    pair: str
    statements: str
    question: str
    information: str
    information_mark: str
    description: str
    description_mark: str
    statement: str
    judge: str
    judged: str
    statements_tokens: int
    information_tokens: int
    description_tokens: int
    judge_tokens: int

    @property
    def hash(self):
        """A short hash of everything but `about`."""
        return hash_of({name: value for name, value in vars(self).items() if name != 'about'})

    def ask_statements(self, pairs):
        """Return what is asked so that (question, answer) pairs become sentences."""
        return fill(self.statements, pairs=''.join(
            fill(self.pair, number=str(k), question=question, answer=answer)
            for k, (question, answer) in enumerate(pairs, 1)))

    def ask_information(self, pairs):
        """Return what is asked so that a phrase says what to look at; no answer is in it."""
        return fill(self.information, questions=''.join(
            fill(self.question, number=str(k), question=question)
            for k, (question, _) in enumerate(pairs, 1)))

    def ask_description(self, statements):
        """Return what is asked, with the picture, so that a description holds the statements."""
        return fill(self.description, statements=''.join(
            fill(self.statement, text=text) for text in statements))

    def ask_judge(self, statements, description):
        """Return what is asked so that each statement is said to be in the description or not."""
        return fill(self.judge, description=description, statements=''.join(
            fill(self.judged, number=str(k), text=text) for k, text in enumerate(statements, 1)))


def load(path=DEFAULT):
    """Return the `Steps` in a file; FileNotFoundError or ValueError in one line, naming the
    field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of prompts {path}; leave --prompts out, or copy the '
                                f'default ({DEFAULT.name}) and edit it')
    names = [field.name for field in fields(Steps)]
    return Steps(**read_templates(path, names, PLACES, dict.fromkeys(LIMITS, TOKENS)))
