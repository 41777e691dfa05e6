"""Chat templates that come with published models: Jinja, rendered as Hugging Face renders it.

A template is text from strangers: it runs in Jinja's sandbox, on strings and lists alone. Which
part of the rendered text a model learns is found by rendering again with that part replaced.
"""
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from downscale.data.records import IMAGE, THINK, Turn

# Stands for a text while its place is looked for; of the private use area, so that no data has it.
_PLACE = '\ue000text\ue000'
# A prompt must be the same tomorrow: templates that ask for the date get the one that Llama 3's
# falls back to.
TODAY = datetime(2024, 7, 26)
MOST_REPEATED = 10 ** 6  # characters of a text that a template may repeat


class _Generation(Extension):
    """`{% generation %}` marks what an assistant says and renders what it holds."""
    tags = {'generation'}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(['name:endgeneration'], drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no product is larger than a template needs."""
    intercepted_binops = frozenset(['*', '**'])

    def call_binop(self, context, operator, left, right):
        # A text or list counts as long as it is: 'x' * 10 ** 9 is a gigabyte.
        size, times = (len(part) if isinstance(part, (str, list, tuple)) else abs(part)
                       for part in (left, right))
        if size * times > MOST_REPEATED or operator == '**':
            raise TemplateError('it multiplies beyond what a prompt needs')
        return super().call_binop(context, operator, left, right)


def _refuse(message):
    raise TemplateError(message)


def _tojson(value, indent=None, separators=None, sort_keys=False, ensure_ascii=False):
    return json.dumps(value, indent=indent, separators=separators, sort_keys=sort_keys,
                      ensure_ascii=ensure_ascii)


@cache
def _compiled(text):
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True,
                       extensions=[_Generation, 'jinja2.ext.loopcontrols'])
    sandbox.filters['tojson'] = _tojson
    sandbox.globals |= {'raise_exception': _refuse, 'strftime_now': TODAY.strftime}
    return sandbox.from_string(text)


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat format that is a Jinja template; `chat.render` takes it where it takes a `Chat`.

    `tokens` are the special tokens that it may name ('bos_token': '<s>'), `ends` the tokens that
    may end a reply. With `parts` a turn's content is a list of texts and pictures, else a string
    with `IMAGE` in it; `image` is what the template writes for a picture.
    """
    text: str
    tokens: dict[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()
    parts: bool = False
    image: str = IMAGE
    after_pictures = '\n'  # as in a `Chat`
    # Headers cannot be told from the rest of a rendered text, so the legacy loss does not fit.
    structure = ()
    legacy_structural_loss = False

    @property
    def hash(self) -> str:
        """A short hash that names this format in results."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    @cached_property
    def closing(self) -> str:
        """The longest of `ends` that follows an assistant's text, '' where none does."""
        turns = (
            Turn(role='user', text='a', supervised=False),
            Turn(role='assistant', text=_PLACE, supervised=False),
        )
        after = self.rendered(turns).rpartition(_PLACE)[2].lstrip()
        return max((end for end in self.ends if after.startswith(end)), key=len, default='')

    @property
    def stop(self) -> str:
        """The token that ends a reply; where the template writes none, the first of `ends`."""
        return self.closing or next(iter(self.ends), '')

    def rendered(self, turns: Sequence[Turn], reply: bool = False,
                 thinking: bool | None = None) -> str:
        """Return the text of a conversation; with `reply` a model may continue it.

        `thinking` is the template's `enable_thinking`. Where it does not know that and opens a
        thought all the same, False closes it at once. ValueError in one line where the template
        refuses the conversation.
        """
        messages = [{'role': turn.role, 'content': self._content(turn.text)} for turn in turns]
        known = {} if thinking is None else {'enable_thinking': thinking}
        try:
            text = _compiled(self.text).render(
                **self.tokens, messages=messages, tools=None, documents=None,
                add_generation_prompt=reply, **known)
        except Exception as error:  # a stranger's code may raise anything
            words = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(f'the chat template refuses a conversation: {words[:160]}') from None
        if self.image != IMAGE:
            text = text.replace(self.image, IMAGE)
        marks = sum(turn.text.count(IMAGE) for turn in turns)
        if text.count(IMAGE) != marks:
            raise ValueError(f'the chat template writes {text.count(IMAGE)} pictures where the '
                             f'conversation has {marks}')
        opened, closed = THINK
        if reply and thinking is False and text.rstrip().endswith(opened):
            text = text.rstrip() + f'\n\n{closed}\n\n'
        return text

    def _content(self, text):
        """Return the content of a message; space around a picture is the template's to write."""
        if not self.parts:
            return text
        content = []
        for k, words in enumerate(text.split(IMAGE)):
            if k > 0:
                content.append({'type': 'image'})
            if IMAGE in text:
                words = words.strip()
            if words:
                content.append({'type': 'text', 'text': words})
        return content

    def pieces(self, turns: Sequence[Turn], reply: bool = False,
               thinking: bool | None = None) -> list[tuple[str, int]]:
        """Return the pieces [(text, weight)] of a conversation, as `chat.render` gives them."""
        whole = self.rendered(turns, reply, thinking)
        pieces = []
        at = 0
        for k, turn in enumerate(turns):
            if turn.supervised:
                start, stop = self._span(turns, k, whole, reply, thinking)
                pieces += [(whole[at:start], 0), (whole[start:stop], 1)]
                at = stop
        return [piece for piece in (*pieces, (whole[at:], 0)) if piece[0]]

    def _span(self, turns, k, whole, reply, thinking):
        """Return [start, stop) of what turn `k` teaches in the text `whole`.

        That is its text behind the prompt that a model would be given, and the stop token.
        ValueError where the template does not tell them apart.
        """
        turn = turns[k]
        # 1. What stands around the turn: the same conversation with a mark in its place.
        marked = Turn(role=turn.role, text=_PLACE, supervised=False)
        others = (*turns[:k], marked, *turns[k + 1:])
        before, place, after = self.rendered(others, reply, thinking).partition(_PLACE)
        # 2. Where it begins: behind the longest prompt that a model may be given. A thought that
        # the prompt opens, or leaves empty, is not learnt.
        prompts = [before]
        if turn.role == 'assistant':
            prompts += [self.rendered(turns[:k], True, mode) for mode in (None, True, False)]
        starts = [len(text) for text in prompts if whole.startswith(text)]
        if not place or not starts or not whole.endswith(after):
            raise ValueError('the chat template changes a conversation with the text of a reply, '
                             'so what a model learns cannot be told; train with a built-in chat')
        # 3. Where it ends: behind the stop token, which blanks may part from a reply.
        blank = len(after) - len(after.lstrip())
        if turn.role == 'assistant' and not after[blank:].startswith(self.stop or '\0'):
            raise ValueError('the chat template ends no reply with an end token of the model, so '
                             'it would never learn to stop; train with a built-in chat')
        stop = len(whole) - len(after)
        if turn.role == 'assistant':
            stop += blank + len(self.stop)
        return max(starts), stop


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the folder of a published language model says of how it is asked.

    `template` is its chat template, '' where that equals the built-in chat of the cell, or there is
    none; `tokens` are the special tokens by the name that the template may use. With `parts` the
    template takes lists of texts and pictures, and writes `image` for a picture. `ends` are the ids
    that end a reply, `end_tokens` their texts; `context` is how many positions the model was
    trained on, 0 where nothing says so.
    """
    template: str = ''
    tokens: dict[str, str] = field(default_factory=dict)
    parts: bool = False
    image: str = IMAGE
    ends: tuple[int, ...] = ()
    end_tokens: tuple[str, ...] = ()
    context: int = 0

    @property
    def chat(self) -> Template:
        """The `Template` that `text`, tokens and ends make."""
        return Template(
            text=self.template,
            tokens=self.tokens,
            ends=self.end_tokens,
            parts=self.parts,
            image=self.image,
        )
