"""What the files beside the weights say: how a model is asked, what ends a reply, how it sees.

Every file is used, or listed in a note as left out, or refused by name; see `SIDE_FILES`.
"""
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from downscale.convert.shards import read_object
from downscale.data.chat import CHATS, render
from downscale.data.records import IMAGE, Turn
from downscale.data.templates import Origin, Template
from downscale.sizes import Pictures, VisionConfig

# Files that go along with the weights, never code.
SIDE_FILES = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'vocab.json', 'merges.txt', 'chat_template.jinja', 'chat_template.json',
    'generation_config.json', 'preprocessor_config.json', 'processor_config.json',
    'video_preprocessor_config.json')
_SPECIAL = ('bos_token', 'eos_token', 'pad_token', 'unk_token', 'sep_token', 'cls_token',
            'mask_token', 'image_token')
# Of generation_config.json: read here, or of no consequence to what a model writes.
_GENERATION = {'eos_token_id', 'bos_token_id', 'pad_token_id', 'transformers_version',
               '_from_model_config', 'use_cache', 'output_attentions', 'output_hidden_states',
               'output_scores', 'return_dict_in_generate', 'max_length', 'max_new_tokens'}
# Of preprocessor_config.json: what is done to every picture here, with the value that it has here.
_DONE = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'do_center_crop': False}
_READ = {'image_mean', 'image_std', 'rescale_factor', 'resample', 'size', 'crop_size',
         'image_grid_pinpoints', 'do_pad', *_DONE}
_NEUTRAL = {'processor_class', 'image_processor_type', 'feature_extractor_type', 'do_convert_rgb',
            'data_format', 'input_data_format', 'default_to_square', 'device', 'disable_grouping',
            'return_tensors', 'do_pad', 'pad_size', 'image_seq_length', '_valid_processor_keys'}
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
    """Return a few of many names, for a line."""
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
    tokens = _tokens(files)
    text = config.get('text_config') or config
    ends, notes = _ends(files, (text, config), tokens, tokenizer, rows)
    context = text.get('max_position_embeddings') or 0
    if isinstance(context, bool) or not isinstance(context, int) or context < 0:
        raise ValueError(f'config.json: max_position_embeddings {_short(context)} is no whole '
                         'number')
    end_tokens = () if tokenizer is None else tuple(
        token for token in map(tokenizer.id_to_token, ends) if token)
    origin = Origin(tokens=tokens, ends=ends, end_tokens=end_tokens, context=context)
    template, more = _template(files) if templated else (None, [])
    notes += more
    if template is None or tokenizer is None:
        return _bare(origin, '', tokens={}), None, notes
    placeholder = _image_token(config, tokens, tokenizer)
    form = _form(template, tokens, end_tokens, placeholder, sees)
    if not form.stop:
        notes.append('left out the chat template: no file says which token ends a reply')
        return _bare(origin, '', tokens={}), None, notes
    if tokenizer.token_to_id(form.stop) is None:
        raise ValueError(f'the chat template ends replies with {form.stop!r}, which is no token of '
                         'the tokenizer; give the tokenizer that belongs to it')
    if not form.closing:
        notes.append('the chat template ends replies with no end token of this model, so it can '
                     'answer with it, but not be trained with it')
    if 'strftime_now' in template:
        notes.append('the chat template asks for the date; it always gets 26 July 2024')
    same = _builtin(form)
    if same:
        return _bare(origin, '', tokens={}), same, notes
    return _bare(origin, template, tokens=tokens, parts=form.parts, image=form.image), 'template', \
        notes


def _bare(origin, template, **changes):
    """Return `origin` with this template and what it needs."""
    return Origin(**{**vars(origin), 'template': template, **changes})


def _short(value):
    return repr(value)[:60]


def _tokens(files):
    """Return {'bos_token': text, ...} of the special tokens that are named."""
    tokens = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        for key in _SPECIAL:
            value = files.get(name, {}).get(key)
            value = value.get('content') if isinstance(value, dict) else value
            if value is not None and not isinstance(value, str):
                raise ValueError(f'{name}: {key} {_short(value)} is no text')
            if value:
                tokens[key] = value
    return tokens


def _ends(files, configs, tokens, tokenizer, rows):
    """Return (ids that end a reply, notes): those of generation_config.json and config.json
    together with the tokenizer's `eos_token`.
    """
    ends = set()
    notes = []
    generation = files.get('generation_config.json', {})
    for where, values in (('generation_config.json', generation),
                          *(('config.json', config) for config in configs)):
        ids = values.get('eos_token_id')
        for end in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if isinstance(end, bool) or not isinstance(end, int):
                raise ValueError(f'{where}: eos_token_id {_short(ids)} is no token id, nor a list '
                                 'of them')
            if 0 <= end < rows:
                ends.add(end)
            else:
                notes.append(f'left out end token {end} of {where}: the embedding has {rows} rows')
    if tokenizer is not None and 'eos_token' in tokens:
        end = tokenizer.token_to_id(tokens['eos_token'])
        if end is None:
            notes.append(f'left out eos_token {_short(tokens["eos_token"])}: no such token')
        else:
            ends.add(end)
    unused = generation.keys() - _GENERATION
    if unused:
        notes.append(f'generation_config.json: not used (each command says how it decodes): '
                     f'{named(unused)}')
    return tuple(sorted(ends)), list(dict.fromkeys(notes))


def _template(files):
    """Return (the chat template that counts or None, notes); a file of its own goes before the
    others, as in transformers.
    """
    texts = {}
    notes = []
    for name in ('chat_template.jinja', 'chat_template.json', 'processor_config.json',
                 'tokenizer_config.json'):
        value = files.get(name)
        value = value.get('chat_template') if isinstance(value, dict) else value
        if isinstance(value, list):
            value, others = _default(value, name)
            notes += [f'left out chat templates of {name}: {named(others)}'] * bool(others)
        if value is not None and not isinstance(value, str):
            raise ValueError(f'{name}: chat_template {_short(value)} is no text')
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
        named_ones = {entry['name']: entry['template'] for entry in templates}
    except (TypeError, KeyError):
        raise ValueError(f'{where}: chat_template is a list, but not of names and templates'
                         ) from None
    if 'default' not in named_ones:
        raise ValueError(f'{where}: none of its chat templates ({named(named_ones)}) is called '
                         'default; keep the one to use as chat_template.jinja')
    return named_ones.pop('default'), list(named_ones)


def _image_token(config, tokens, tokenizer):
    """Return what a template writes for a picture."""
    number = config.get('image_token_index', config.get('image_token_id'))
    whole = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2 ** 31
    return (tokenizer.id_to_token(number) if whole else None) or tokens.get('image_token') or IMAGE


def _form(text, tokens, ends, image, sees):
    """Return the `Template` with the content that it takes: strings, or lists of texts and
    pictures.
    """
    words = 'a text to look for'
    problem = None
    tries = [(parts, shown) for parts in ((True, False) if sees else (False, True))
             for shown in dict.fromkeys((image, IMAGE))]
    for parts, shown in tries:
        form = Template(text=text, tokens=tokens, ends=ends, parts=parts, image=shown)
        asked = f'{IMAGE}{words}' if sees else words
        try:
            if words in form.rendered((Turn(role='user', text=asked, supervised=False),), True):
                form.closing  # noqa: B018  a template that fails with a reply fails now
                return form
        except ValueError as error:
            problem = problem or error
    raise problem or ValueError('the chat template leaves out what a user says; keep another as '
                                'chat_template.jinja')


def _merged(pieces):
    """Return [text, weight] with neighbours of one weight joined."""
    runs = []
    for text, weight in pieces:
        if runs and runs[-1][1] == weight:
            runs[-1][0] += text
        else:
            runs.append([text, weight])
    return runs


def _probes():
    """Yield (turns, reply, thinking) that tell the built-in chats apart from others."""
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
    yield (*talk, Turn(role='assistant', text='five', supervised=True)), False, None
    yield (*talk, Turn(role='assistant', text=thought, supervised=True)), False, None
    yield (
        (
            user,
            Turn(role='assistant', text=thought, supervised=True),
            user,
            Turn(role='assistant', text=thought, supervised=True),
        ),
        False,
        None,
    )
    yield (
        (
            Turn(role='user', text=f'is {IMAGE} it', supervised=False),
            Turn(role='assistant', text='x', supervised=True),
        ),
        False,
        None,
    )


def _builtin(form):
    """Return the name of the built-in chat that writes, and teaches, what the template does; else
    None.
    """
    for name, chat in CHATS.items():
        try:
            if chat.stop == form.stop and all(
                    _merged(render(chat, *probe)) == _merged(render(form, *probe))
                    for probe in _probes()):
                return name
        except ValueError:  # the template refuses what the chat does not
            continue
    return None


def check_pictures(folder: Path, vision: VisionConfig, pictures: Pictures | None) -> list[str]:
    """Return notes on how the folder wants pictures prepared; ValueError naming what would differ
    here.

    A tower sees pixels from -1 to 1, of its own size, resampled bicubically.
    """
    folder = Path(folder)
    notes = []
    for name in ('preprocessor_config.json', 'processor_config.json'):
        values = read_object(folder / name)
        if name == 'processor_config.json':
            values = values.get('image_processor') or {}
        if values:
            _check_processor(name, values, vision, pictures)
            unused = values.keys() - _READ - _NEUTRAL
            notes += [f'{name}: not used: {named(unused)}'] * bool(unused)
    return notes


def _check_processor(name, values, vision, pictures):
    kind = str(values.get('image_processor_type', ''))
    silent = [0.5] * 3 if kind.startswith('Siglip') or not kind else 'of its class'

    def refuse(key, wanted, value=None):
        value = values.get(key) if value is None else value
        raise ValueError(f'{name}: {key} {_short(value)} is not implemented; here it is {wanted}')

    for key in ('image_mean', 'image_std'):
        given = values.get(key, silent)
        given = [given] * 3 if isinstance(given, (int, float)) else given
        if not _near(given, [0.5] * 3):
            refuse(key, '0.5 for each colour', given)
    if not _near([values.get('rescale_factor', 1 / 255)], [1 / 255]):
        refuse('rescale_factor', '1/255')
    if values.get('resample', 3) not in (3, 'bicubic', None):
        refuse('resample', '3 (bicubic)')
    for key, wanted in _DONE.items():
        if values.get(key) not in (None, wanted):
            refuse(key, wanted)
    size = values.get('size')
    sides = list(size.values()) if isinstance(size, dict) and set(size) == {'height', 'width'} \
        else [size] * 2
    if size is not None and sides != [vision.image] * 2:
        refuse('size', f'{vision.image} by {vision.image}')
    points = values.get('image_grid_pinpoints')
    if pictures and pictures.mode == 'anyres' and points:
        ours = [[y * vision.image, x * vision.image] for x, y in pictures.grids]
        if not isinstance(points, list) or sorted(map(str, points)) != sorted(map(str, ours)):
            refuse('image_grid_pinpoints', 'those of config.json')


def _near(values, wanted):
    """Return whether a list of numbers is `wanted`, but for rounding."""
    return isinstance(values, list) and len(values) == len(wanted) and all(
        isinstance(value, (int, float)) and abs(value - goal) < 1e-6
        for value, goal in zip(values, wanted))


def gguf_side_files(metadata: dict[str, Any], tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return {file name: JSON object}: what a GGUF file says of its tokenizer, as Hugging Face says
    it.
    """
    def token(key):
        number = metadata.get(f'tokenizer.ggml.{key}_token_id')
        text = None if not isinstance(number, int) else tokenizer.id_to_token(number)
        return (number, text) if text else (None, None)

    ids = {'bos': token('bos'), 'eos': token('eos'), 'pad': token('padding'),
           'unk': token('unknown')}
    further = {token(key)[0] for key in ('eot', 'eom')} - {None}
    config = {f'{key}_token': text for key, (_, text) in ids.items() if text}
    config |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False,
               'add_bos_token': bool(metadata.get('tokenizer.ggml.add_bos_token', False))}
    template = metadata.get('tokenizer.chat_template')
    if template:
        config['chat_template'] = template
    ends = sorted(further | {ids['eos'][0]} - {None})
    generation = {f'{key}_token_id': number for key, (number, _) in ids.items()
                  if number is not None and key != 'unk'}
    if len(ends) > 1:
        generation['eos_token_id'] = ends
    return {'tokenizer_config.json': config, 'generation_config.json': generation}


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Write {file name: JSON object} into a folder."""
    for name, value in files.items():
        (Path(folder) / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')
