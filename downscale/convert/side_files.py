"""What the files beside the weights say: how a model is asked, and what ends a reply.

Every file is used, or listed in a note as left out, or refused by name; see `SIDE_FILES`.
"""
import itertools
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from downscale.convert.shards import read_object
from downscale.data.chat import CHATS, render
from downscale.data.records import IMAGE, Turn
from downscale.data.templates import Origin, Template

# Files that go along with the weights, never code.
SIDE_FILES = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'vocab.json', 'merges.txt', 'chat_template.jinja', 'chat_template.json',
    'generation_config.json', 'preprocessor_config.json', 'processor_config.json',
    'video_preprocessor_config.json')
_SPECIAL = ('bos_token', 'eos_token', 'pad_token', 'unk_token', 'sep_token', 'cls_token',
            'mask_token', 'image_token')
# Keys of generation_config.json that are read here, or that do not change what a model writes.
_GENERATION = {'eos_token_id', 'bos_token_id', 'pad_token_id', 'transformers_version',
               '_from_model_config', 'use_cache', 'output_attentions', 'output_hidden_states',
               'output_scores', 'return_dict_in_generate', 'max_length', 'max_new_tokens'}
MOST_NAMED = 6


def read_side_files(folder: Path) -> dict[str, Any]:
    """Return {file name: JSON object, or text for Jinja} of what decides how a model is asked."""
    folder = Path(folder)
    files = {name: read_object(folder / name) for name in (
        'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.json',
        'generation_config.json', 'processor_config.json')}
    if (folder / 'chat_template.jinja').is_file():
        try:
            files['chat_template.jinja'] = (folder / 'chat_template.jinja').read_text('utf-8-sig')
        except UnicodeDecodeError as error:
            raise ValueError(f'{folder / "chat_template.jinja"} is no UTF-8 ({error.reason} at '
                             f'byte {error.start}); download it again') from None
    return files


def named(names: Collection[str]) -> str:
    """Return a few of many names, in one line."""
    names = sorted(map(str, names))
    more = f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''
    return ', '.join(repr(name)[1:-1][:30] for name in names[:MOST_NAMED]) + more


def origin_of(files: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer | None, rows: int,
              sees: bool, templated: bool = True) -> tuple[Origin, str | None, list[str]]:
    """Return (`Origin`, name of the chat or None, notes) of a language model.

    `files` are those of `read_side_files`, `config` the parsed config.json, `tokenizer` may be
    None, `rows` is the height of the embedding and `sees` whether there is a tower; without
    `templated` no chat template counts. ValueError where a file contradicts itself or cannot be
    honoured.
    """
    # 1. What ends a reply, and how long a text may be.
    tokens = _tokens(files)
    text = config.get('text_config') or config
    ends, notes = _ends(files, (text, config), tokens, tokenizer, rows)
    context = text.get('max_position_embeddings') or 0
    if isinstance(context, bool) or not isinstance(context, int) or context < 0:
        raise ValueError(f'config.json: max_position_embeddings {short(context)} is no whole '
                         'number')
    end_tokens = () if tokenizer is None else tuple(
        token for token in map(tokenizer.id_to_token, ends) if token)
    origin = Origin(tokens=tokens, ends=ends, end_tokens=end_tokens, context=context)
    # 2. The chat template, if it can be used at all.
    template, more = _template(files) if templated else (None, [])
    notes += more
    # What ends a reply stays in any case; a template goes only with all that it needs.
    bare = replace(origin, template='', tokens={})
    if template is None or tokenizer is None:
        return bare, None, notes
    placeholder = _image_token(config, tokens, tokenizer)
    form = _form(template, tokens, end_tokens, placeholder, sees)
    if not form.stop:
        notes.append('left out the chat template: no file says which token ends a reply')
        return bare, None, notes
    if tokenizer.token_to_id(form.stop) is None:
        raise ValueError(f'the chat template ends replies with {form.stop!r}, which is no token of '
                         'the tokenizer; give the tokenizer that belongs to it')
    if not form.closing:
        notes.append('the chat template ends replies with no end token of this model, so it can '
                     'answer with it, but not be trained with it')
    if 'strftime_now' in template:
        notes.append('the chat template asks for the date; it always gets 26 July 2024')
    # 3. A chat that is built in needs no template; another one is kept with the tokens it writes.
    same = _builtin(form)
    if same:
        return bare, same, notes
    origin = replace(origin, template=template, parts=form.parts, image=form.image)
    return origin, 'template', notes


def short(value: Any) -> str:
    """Return the beginning of a value's `repr`, for an error."""
    return repr(value)[:60]


def _tokens(files):
    """Return {'bos_token': text, ...} of the special tokens that are named."""
    tokens = {}
    # The later file wins.
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        for key in _SPECIAL:
            value = files.get(name, {}).get(key)
            value = value.get('content') if isinstance(value, dict) else value
            if value is not None and not isinstance(value, str):
                raise ValueError(f'{name}: {key} {short(value)} is no text')
            if value:
                tokens[key] = value
    return tokens


def _ends(files, configs, tokens, tokenizer, rows):
    """Return (ids that end a reply, notes).

    Those of generation_config.json, of config.json and the tokenizer's `eos_token` all count.
    """
    ends = set()
    notes = []
    generation = files.get('generation_config.json', {})
    sources = [('generation_config.json', generation),
               *(('config.json', config) for config in configs)]
    for where, values in sources:
        ids = values.get('eos_token_id')
        if ids is None:
            continue
        for end in ids if isinstance(ids, list) else [ids]:
            if isinstance(end, bool) or not isinstance(end, int):
                raise ValueError(f'{where}: eos_token_id {short(ids)} is no token id, nor a list '
                                 'of them')
            if 0 <= end < rows:
                ends.add(end)
            else:
                notes.append(f'left out end token {end} of {where}: the embedding has {rows} rows')
    if tokenizer is not None and 'eos_token' in tokens:
        end = tokenizer.token_to_id(tokens['eos_token'])
        if end is None:
            notes.append(f'left out eos_token {short(tokens["eos_token"])}: no such token')
        else:
            ends.add(end)
    unused = generation.keys() - _GENERATION
    if unused:
        notes.append(f'generation_config.json: not used (each command says how it decodes): '
                     f'{named(unused)}')
    return tuple(sorted(ends)), list(dict.fromkeys(notes))


def _template(files):
    """Return (the chat template that counts or None, notes).

    A file of its own goes before the others, as in transformers.
    """
    texts = {}
    notes = []
    for name in ('chat_template.jinja', 'chat_template.json', 'processor_config.json',
                 'tokenizer_config.json'):
        value = files.get(name)
        value = value.get('chat_template') if isinstance(value, dict) else value
        if isinstance(value, list):
            value, others = _default(value, name)
            if others:
                notes.append(f'left out chat templates of {name}: {named(others)}')
        if value is not None and not isinstance(value, str):
            raise ValueError(f'{name}: chat_template {short(value)} is no text')
        if value:
            texts[name] = value
    if not texts:
        return None, notes
    first, *rest = texts
    notes += [f'left out the chat template of {name}: that of {first} goes before it'
              for name in rest if texts[name] != texts[first]]
    return texts[first], notes


def _default(templates, where):
    """Return (the template called default, names of the others) of a list of named ones."""
    try:
        of_name = {entry['name']: entry['template'] for entry in templates}
    except (TypeError, KeyError):
        raise ValueError(f'{where}: chat_template is a list, but not of names and templates'
                         ) from None
    if 'default' not in of_name:
        raise ValueError(f'{where}: none of its chat templates ({named(of_name)}) is called '
                         'default; keep the one to use as chat_template.jinja')
    return of_name.pop('default'), list(of_name)


def _image_token(config, tokens, tokenizer):
    """Return what a template writes for a picture."""
    number = config.get('image_token_index', config.get('image_token_id'))
    whole = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2 ** 31
    return (tokenizer.id_to_token(number) if whole else None) or tokens.get('image_token') or IMAGE


def _form(text, tokens, ends, image, sees):
    """Return the `Template` with the kind of content that its text takes.

    That is strings, or lists of texts and pictures; nothing but a try shows which.
    """
    words = 'a text to look for'
    problem = None
    # Models that see mostly want lists, others strings; whichever works first counts.
    kinds = (True, False) if sees else (False, True)
    for parts, shown in itertools.product(kinds, dict.fromkeys((image, IMAGE))):
        form = Template(text=text, tokens=tokens, ends=ends, parts=parts, image=shown)
        asked = f'{IMAGE}{words}' if sees else words
        try:
            if words in form.rendered((Turn(role='user', text=asked, supervised=False),), True):
                form.closing  # noqa: B018  a template that fails with a reply fails now
                return form
        except ValueError as error:
            # It may work with the other kind of content; else the first error is the one to tell.
            problem = problem or error
    raise problem or ValueError('the chat template leaves out what a user says; keep another as '
                                'chat_template.jinja')


def _merged(pieces):
    """Return [text, weight] with neighbours of one weight joined."""
    # Where a chat cuts its text is its own affair: what counts is which text is taught.
    runs = []
    for text, weight in pieces:
        if runs and runs[-1][1] == weight:
            runs[-1][0] += text
        else:
            runs.append([text, weight])
    return runs


def _probes():
    """Yield the arguments of `render`, (turns, reply, thinking), that tell chats apart."""
    # A text that ends with a newline, a system turn, a talk of several turns, thoughts in the last
    # reply and in one before it, a picture: what templates are known to treat in different ways.
    user = Turn(role='user', text='Two\n', supervised=False)
    system = Turn(role='system', text='Be brief.', supervised=False)
    thought = '<think>\nOne.\n</think>\n\nfive'
    talk = (
        user,
        Turn(role='assistant', text='three', supervised=True),
        Turn(role='user', text='and', supervised=False),
    )
    for thinking in (None, True, False):
        yield (user,), True, thinking
        yield (system, user), True, thinking
        yield talk, True, thinking
    plain = Turn(role='assistant', text='five', supervised=True)
    thoughtful = Turn(role='assistant', text=thought, supervised=True)
    picture = Turn(role='user', text=f'is {IMAGE} it', supervised=False)
    yield (*talk, plain), False, None
    yield (*talk, thoughtful), False, None
    yield (user, thoughtful, user, thoughtful), False, None
    yield (picture, Turn(role='assistant', text='x', supervised=True)), False, None


def _builtin(form):
    """Return the name of the built-in chat that writes and teaches the same as `form`, or None."""
    for name, chat in CHATS.items():
        try:
            if chat.stop == form.stop and all(_alike(chat, form, probe) for probe in _probes()):
                return name
        except ValueError:  # the template refuses what the chat does not
            continue
    return None


def _alike(chat, form, probe):
    """Return whether two chats write the same text with the same weights."""
    return _merged(render(chat, *probe)) == _merged(render(form, *probe))


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Write {file name: JSON object} into a folder."""
    for name, value in files.items():
        (Path(folder) / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')
