"""Chat formats as data: how turns become text, which part of it is learnt, how a reply begins."""
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from downscale.data.records import IMAGE, Turn
from downscale.data.templates import Template

ROLES = ('system', 'user', 'assistant')


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How turns become text.

    `user`, `assistant` and `system` hold the text before and after a turn; `stop` ends a reply.
    `default_system` is the system turn of a conversation that begins without one. `after_image`
    follows a lone image, which then moves to the front of its user turn ('': it stays where it is).
    `after_pictures` stands between the pictures that open a conversation and its first question,
    where we write them: a line break, as in published data.
    `thought` is the text around the thought of a reply to the last question; earlier replies lose
    theirs (('', ''): thoughts stay as written). `thinking` and `direct` begin a reply with and
    without a thought. `captions` keeps only the images of what is not an assistant's text.
    `legacy_structural_loss` also learns the headers of supervised turns and, in every turn, the
    tokens in `structure`, as the code released with arXiv 2511.17487 does.
    """
    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str]
    stop: str = '<|im_end|>'
    default_system: str = ''
    after_image: str = ''
    after_pictures: str = '\n'
    thought: tuple[str, str] = ('', '')
    thinking: str = ''
    direct: str = ''
    captions: bool = False
    structure: tuple[str, ...] = ('<|im_start|>', '<|im_end|>', '\n')
    legacy_structural_loss: bool = False

    @property
    def hash(self) -> str:
        """A short hash that names this format in results; how the loss is masked is no part."""
        same = replace(self, legacy_structural_loss=False)
        return hashlib.sha256(repr(same).encode()).hexdigest()[:12]


_CHATML = Chat(user=('<|im_start|>user\n', '<|im_end|>\n'),
               assistant=('<|im_start|>assistant\n', '<|im_end|>\n'),
               system=('<|im_start|>system\n', '<|im_end|>\n'))
CHATS = {
    # What perception models are trained on, as in the code of arXiv 2511.17487: a fixed system turn
    # and no thoughts, instead of Qwen's own template.
    'chatml': replace(_CHATML, default_system='You are a helpful assistant.', after_image='\n'),
    # The connector learns captions and the line break behind them; nothing is asked.
    'plain': Chat(user=('', ''), assistant=('', '\n'), system=('', ''), captions=True,
                  structure=()),
    # The template in Qwen3's tokenizer_config.json, for conversations without tools. A model that
    # may think opens its thought itself; one that may not is given an empty one.
    'qwen3': replace(_CHATML, thought=('<think>\n', '\n</think>\n\n'),
                     direct='<think>\n\n</think>\n\n'),
    'smollm2': replace(_CHATML, default_system='You are a helpful AI assistant named SmolLM, '
                                               'trained by Hugging Face'),
    # One token per border: what a border costs, a small model pays in every turn.
    'micro': Chat(user=('', ''), assistant=('<|im_start|>', '<|im_end|>'), system=('', ''),
                  after_pictures=' ', thinking='<think>', direct='<think> </think>',
                  structure=('<|im_start|>', '<|im_end|>')),
}


def render(chat: Chat | Template, turns: Sequence[Turn], reply: bool = False,
           thinking: bool | None = None) -> list[tuple[str, int]]:
    """Return a conversation as pieces [(text, weight)]; weight 1 marks what the loss is taken on.

    Learnt are the text of a supervised turn and the stop token behind it (see `Chat` for the legacy
    loss, whose `structure` is found among the tokens). With `reply` the header of an assistant turn
    is appended, begun with or without a thought where `thinking` says so. Text is tokenised piece
    by piece: inside a piece tokens may span a turn's borders, as in the whole text. `chat` may be
    a `templates.Template` as well. ValueError for a role that no chat has.
    """
    unknown = sorted({turn.role for turn in turns} - set(ROLES))
    if unknown:
        raise ValueError(f'unknown role {unknown[0]!r} of a turn; known are {", ".join(ROLES)}')
    if isinstance(chat, Template):
        return chat.pieces(tuple(turns), reply, thinking)
    if chat.default_system and (not turns or turns[0].role != 'system'):
        turns = (Turn(role='system', text=chat.default_system, supervised=False), *turns)
    last = len(turns) - 1
    asked = max((k for k, turn in enumerate(turns) if turn.role == 'user'), default=last)
    pieces = []
    for k, turn in enumerate(turns):
        pieces += _pieces(chat, turn, k > asked, k == last)
    if reply:
        pieces.append((chat.assistant[0] + _begun(chat, thinking), 0))
    return [piece for piece in pieces if piece[0]]


def _pieces(chat, turn, current, last):
    """Return the pieces of a turn.

    `current` marks a reply to the last question, `last` the last turn.
    """
    before, after = {'system': chat.system, 'user': chat.user,
                     'assistant': chat.assistant}[turn.role]
    text = turn.text
    if turn.role == 'assistant':
        given, text = _thought(chat, turn, current, last)
        before += given
    elif chat.captions:
        text = IMAGE * text.count(IMAGE)
    elif turn.role == 'user':
        text = _image_first(chat, text)
    if not turn.supervised:
        return [(before + text + after, 0)]
    if chat.legacy_structural_loss:
        return [(before + text + after, 1)]
    # The stop token is learnt, the line break behind it is not; a caption ends with its own.
    end = chat.stop if after.startswith(chat.stop) else after
    return [(before, 0), (text + end, 1), (after.removeprefix(end), 0)]


def _image_first(chat, text):
    """Return a lone image in front of its turn, on a line of its own."""
    front = IMAGE + chat.after_image
    if not chat.after_image or text.count(IMAGE) != 1 or text.startswith(front):
        return text
    return front + text.replace(IMAGE, '').strip()


def _begun(chat, thinking):
    """Return how a reply begins that is asked to think, or not to, or neither."""
    return {None: '', True: chat.thinking, False: chat.direct}[thinking]


def _thought(chat, turn, current, last):
    """Return (what is given to an assistant to begin with, its text).

    The text keeps a thought only in a reply to the last question.
    """
    opened, closed = chat.thought
    text = turn.text
    if not opened:
        return _begun(chat, turn.thinking), text
    thought = ''
    if closed.strip() in text:
        first, *_, text = text.split(closed.strip())
        thought = first.split(opened.strip())[-1].strip('\n')
        text = text.lstrip('\n')
    if current and thought:
        return '', opened + thought + closed + text
    # As if it had been asked not to think.
    if current and last:
        return chat.direct, text.lstrip('\n')
    return '', text
