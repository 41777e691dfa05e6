"""Published config.json to our sizes, refusing what the model does not implement; and back."""
import itertools
import re
from pathlib import Path
from typing import Any

from downscale.sizes import SIGLIP, LanguageConfig, Pictures, VisionConfig

# What transformers assumes where a (nested) config is silent.
_QWEN = {'vocab_size': 151936, 'hidden_size': 4096, 'intermediate_size': 22016,
         'num_hidden_layers': 32, 'num_attention_heads': 32, 'num_key_value_heads': 32}
TEXT_DEFAULTS = {
    'qwen3': {**_QWEN, 'head_dim': 128},
    'qwen2': _QWEN,
    'llama': {'vocab_size': 32000, 'hidden_size': 4096, 'intermediate_size': 11008,
              'num_hidden_layers': 32, 'num_attention_heads': 32},
}
VISION_DEFAULTS = {'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
                   'num_attention_heads': 12, 'image_size': 224, 'patch_size': 16}
# The tower of a LLaVA-OneVision config without `vision_config`.
ONEVISION_TOWER = {'hidden_size': 1152, 'intermediate_size': 4304, 'patch_size': 14,
                   'image_size': 384, 'num_hidden_layers': 26, 'num_attention_heads': 16}
MODEL_TYPES = {
    'qwen3': 'Qwen3ForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'llama': 'LlamaForCausalLM',
    'siglip_vision_model': 'SiglipVisionModel', 'siglip': 'SiglipModel',
    'llava_qwen_3': 'LlavaQwen3ForCausalLM',
    'llava_onevision': 'LlavaOnevisionForConditionalGeneration'}


# Keys that are known: those of `_CHECKED` are read here, those of `_NEUTRAL` compute nothing, those
# of `_SIGHT` are about pictures. All others are named in a note.
_CHECKED = {
    'architectures', 'model_type', 'quantization_config', 'rope_parameters', 'rope_scaling',
    'rope_theta', 'partial_rotary_factor', 'layer_types', 'use_sliding_window', 'sliding_window',
    'max_window_layers', 'hidden_act', 'attention_bias', 'mlp_bias', 'hidden_size', 'vocab_size',
    'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads',
    'head_dim', 'tie_word_embeddings', 'rms_norm_eps', 'max_position_embeddings', 'eos_token_id',
    'bos_token_id', 'pad_token_id', 'auto_map'}
_NEUTRAL = {
    'attention_dropout', 'initializer_range', 'use_cache', 'torch_dtype', 'dtype', 'pretraining_tp',
    'transformers_version', '_name_or_path', 'attn_implementation', '_attn_implementation',
    '_attn_implementation_autoset', 'is_llama_config', 'rope_interleaved', 'unsloth_fixed',
    'unsloth_version', 'is_encoder_decoder', 'output_attentions', 'output_hidden_states',
    'return_dict', 'id2label', 'label2id', 'problem_type', 'chunk_size_feed_forward',
    'transformers.js_config', 'finetuning_task', 'task_specific_params', 'name_or_path'}
# Our axis letter -> the key of its size.
_LETTERS = {'N': 'num_hidden_layers', 'D': 'hidden_size', 'H': 'num_attention_heads',
            'K': 'num_key_value_heads', 'E': 'head_dim', 'F': 'intermediate_size',
            'V': 'vocab_size'}
# Sizes beyond these are damage, refused before lists are made as long as they say.
MOST_LAYERS = 10_000
MOST_SIZE = 10 ** 8


_SIGHT = {
    'text_config', 'vision_config', 'image_token_index', 'image_token_id', 'video_token_index',
    'video_token_id', 'image_grid_pinpoints', 'vision_aspect_ratio', 'vision_feature_layer',
    'vision_feature_select_strategy', 'projector_hidden_act', 'multimodal_projector_bias',
    'image_size', 'patch_size', 'num_channels', 'layer_norm_eps', 'vision_use_head',
    'image_seq_length', 'projection_dim', 'projection_size', 'initializer_factor',
    'logit_scale_init_value',
    'image_aspect_ratio', 'image_crop_resolution', 'image_split_resolution', 'use_mm_proj',
    'tokenizer_model_max_length', 'tokenizer_padding_side', 'unfreeze_mm_vision_tower'}


def config_notes(config: dict[str, Any], architecture: str) -> tuple[str, ...]:
    """Return sentences on what a config says that is not used.

    Keys that begin with mm_ are LLaVA's, and known.
    """
    notes = []
    if config.get('auto_map'):
        notes.append(f'auto_map names code, which is never run; read as {architecture}')
    unused = set()
    for part in (config, config.get('text_config'), config.get('vision_config')):
        keys = part.keys() if isinstance(part, dict) else ()
        unused |= {key for key in keys if key not in _CHECKED | _NEUTRAL | _SIGHT
                   and not key.startswith('mm_')}
    if unused:
        names = ', '.join(sorted(repr(key)[1:-1][:30] for key in unused)[:6])
        more = ' and more' if len(unused) > 6 else ''
        notes.append(f'config.json: not used: {names}{more}')
    return tuple(notes)


def architecture_of(config: dict[str, Any], where: Path) -> str:
    """Return the architecture that a config names; ValueError listing the supported ones."""
    # Without a class the type says it, as in configs that were saved by hand.
    classes = config.get('architectures') or MODEL_TYPES.get(str(config.get('model_type')))
    name = classes[0] if isinstance(classes, list) else classes
    # A model without its head, as AutoModel saves it; where the head is tied, nothing is missing.
    name = {'Qwen3Model': 'Qwen3ForCausalLM', 'Qwen2Model': 'Qwen2ForCausalLM',
            'LlamaModel': 'LlamaForCausalLM'}.get(str(name), name)
    if name not in MODEL_TYPES.values():
        raise ValueError(f'{where}: unsupported architecture {str(name)[:40]!r}; supported are '
                         f'{", ".join(MODEL_TYPES.values())}')
    inner = config.get('text_config')
    if config.get('quantization_config') or (
            isinstance(inner, dict) and inner.get('quantization_config')):
        raise ValueError(f'{where}: the weights are quantised (quantization_config); import the '
                         'unquantised model')
    # pyrefly: ignore[bad-return]
    return name


def _refuse(where, what, holds):
    """Raise ValueError that `what` is not implemented, where that `holds` of a config."""
    if holds:
        raise ValueError(f'{where}: {what}, which is not implemented')


def _sizes(c, where, keys):
    """Raise ValueError unless each of `keys` is a whole number above 0, and none is absurd."""
    for key in keys:
        value = c.get(key)
        most = MOST_LAYERS if key == 'num_hidden_layers' else MOST_SIZE
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f'{where}: {key} {str(value)[:40]} is no whole number from 1 to '
                             f'{most}')


def _number(c, key, default, where):
    """Return a positive finite number of a config."""
    value = c.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise ValueError(f'{where}: {key} {str(value)[:40]} is no number above 0')
    return float(value)


def object_of(config: dict[str, Any], key: str, where: Path) -> dict[str, Any]:
    """Return the JSON object of a config at `key`, {} where there is none."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{where}: {key} {str(value)[:40]} is no JSON object')
    return value or {}


def _rope_theta(config, where):
    """Return the base of the rotary embedding, from either generation's keys, which must agree."""
    thetas = {_number(config, 'rope_theta', 10000.0, where)} if config.get('rope_theta') else set()
    for key in ('rope_parameters', 'rope_scaling'):
        rope = object_of(config, key, where)
        kind = rope.get('rope_type', rope.get('type', 'default'))
        # One dict for each kind of layer: some would turn otherwise than others.
        layered = any(isinstance(value, dict) for value in rope.values())
        part = rope.get('partial_rotary_factor', config.get('partial_rotary_factor'))
        _refuse(where, f'rotary scaling of type {str(kind)[:40]!r}', kind != 'default' or layered)
        _refuse(where, 'a rotary embedding of a part of each head', part not in (None, 1))
        if rope.get('rope_theta') is not None:
            thetas.add(_number(rope, 'rope_theta', 10000.0, where))
    if len(thetas) > 1:
        raise ValueError(f'{where}: rope_theta is {min(thetas):g} in one place and {max(thetas):g} '
                         'in another; keep the right one')
    return thetas.pop() if thetas else 10000.0


def _windowed(config, layers):
    """Return whether any layer uses sliding-window attention."""
    if config.get('layer_types'):
        return any(kind != 'full_attention' for kind in config['layer_types'])
    return bool(config.get('use_sliding_window') and config.get('sliding_window')
                and config['max_window_layers'] < layers)


def language_config(config: dict[str, Any], kind: str, where: Path) -> LanguageConfig:
    """Return the decoder of a config of model type `kind` ('qwen3', 'qwen2' or 'llama').

    Raises ValueError naming what the decoder does not implement.
    """
    c = {**TEXT_DEFAULTS[kind], **{key: v for key, v in config.items() if v is not None}}
    # Older configs knew no grouped queries: then each query head has its own.
    c.setdefault('num_key_value_heads', c['num_attention_heads'])
    _sizes(c, where, ('num_hidden_layers', 'hidden_size', 'num_attention_heads',
                      'num_key_value_heads', 'intermediate_size', 'vocab_size'))
    c.setdefault('head_dim', c['hidden_size'] // c['num_attention_heads'])
    c.setdefault('max_window_layers', 28)
    _sizes(c, where, ('head_dim',))
    if type(c['max_window_layers']) is not int or not isinstance(c.get('layer_types', []), list):
        raise ValueError(f'{where}: max_window_layers must be a number and layer_types a list')
    act = c.get('hidden_act', 'silu')
    # SiLU and swish are two names of one function.
    _refuse(where, f'hidden_act {str(act)[:40]!r}', act not in ('silu', 'swish'))
    _refuse(where, 'attention_bias', c.get('attention_bias', False) and kind != 'qwen2')
    _refuse(where, 'mlp_bias', c.get('mlp_bias', False))
    _refuse(where, 'sliding-window attention', _windowed(c, c['num_hidden_layers']))
    theta = _rope_theta(c, where)
    eps = _number(c, 'rms_norm_eps', 1e-6, where)
    sizes = {letter: c[key] for letter, key in _LETTERS.items()}
    return LanguageConfig(
        **sizes, tie=bool(c.get('tie_word_embeddings', False)), qk_norm=kind == 'qwen3',
        qkv_bias=kind == 'qwen2', theta=theta, eps=eps)


def vision_config(config: dict[str, Any], where: Path, unused: int = 0) -> VisionConfig:
    """Return the tower of a SigLIP vision config, of whose blocks the last `unused` are not run."""
    c = {**VISION_DEFAULTS, **config}
    _sizes(c, where, tuple(VISION_DEFAULTS))
    if c['patch_size'] > c['image_size']:
        raise ValueError(f'{where}: no patch of {c["patch_size"]} fits a picture of '
                         f'{c["image_size"]}')
    kind = c.get('model_type', 'siglip_vision_model')
    act = c.get('hidden_act', 'gelu_pytorch_tanh')
    colours = c.get('num_channels', 3)
    blocks = c['num_hidden_layers']
    _refuse(where, f'vision model_type {str(kind)[:40]!r}', kind != 'siglip_vision_model')
    _refuse(where, f'vision hidden_act {str(act)[:40]!r}', act != 'gelu_pytorch_tanh')
    _refuse(where, f'{str(colours)[:40]} colour channels', colours != 3)
    _refuse(where, f'{unused} unused of {blocks} vision blocks', not 0 <= unused < blocks)
    return VisionConfig(layers=blocks - unused, W=c['hidden_size'],
                        H=c['num_attention_heads'], F=c['intermediate_size'],
                        patch=c['patch_size'], image=c['image_size'],
                        eps=_number(c, 'layer_norm_eps', 1e-6, where))


def _grid_points(points, image):
    """Return pinpoints as a list of (width, height) in pixels.

    Training scripts write '(1x1),...,(6x6)', which names all between the two corners.
    """
    corners = re.findall(r'\((\d{1,2})x(\d{1,2})\)', points) if isinstance(points, str) else ()
    if not corners:
        return points
    (left, top), (right, bottom) = (map(int, corner) for corner in (corners[0], corners[-1]))
    tiles = itertools.product(range(left, right + 1), range(top, bottom + 1))
    return [[x * image, y * image] for x, y in tiles]


def _anyres(aspect, points, image, where):
    """Return the `Pictures` of an aspect as 'anyres_max_9' and its pinpoints.

    Those are (width, height) in pixels, multiples of the side `image` of a tile.
    """
    most = str(aspect).removeprefix('anyres_max_')
    points = _grid_points(points, image)
    _refuse(where, f'image_aspect_ratio {str(aspect)[:40]!r}',
            not re.fullmatch('[1-9][0-9]{0,2}', most))
    known = isinstance(points, list) and points and all(_in_tiles(point, image) for point in points)
    _refuse(where, 'image_grid_pinpoints that are no list of multiples of the image size',
            not known)
    return Pictures('anyres', int(most), tuple((x // image, y // image) for x, y in points))


def _in_tiles(point, image):
    """Return whether a pinpoint is two whole multiples of the side of a tile."""
    return isinstance(point, (list, tuple)) and len(point) == 2 and all(
        type(side) is int and side % image == 0 and side >= image for side in point)


def llava_qwen3(config: dict[str, Any],
                where: Path) -> tuple[LanguageConfig, VisionConfig, Pictures]:
    """Return (language, vision, pictures) of the reference's config.

    Without `vision_config` (the released checkpoints) the tower is so400m-patch14-384; the last
    block is dropped there already.
    """
    tower = str(config.get('mm_vision_tower', ''))[:80]
    merge = config.get('mm_patch_merge_type', 'flat')
    known = 'siglip-so400m-patch14-384'
    connector = config.get('mm_projector_type', 'mlp2x_gelu')
    _refuse(where, f'vision tower {tower!r}',
            'vision_config' not in config and known not in tower)
    _refuse(where, f'connector {str(connector)[:40]!r}', connector != 'mlp2x_gelu')
    _refuse(where, f'mm_patch_merge_type {str(merge)[:40]!r}',
            merge not in ('flat', 'spatial_unpad'))
    vision = SIGLIP['so400m-patch14-384']
    if 'vision_config' in config:
        vision = vision_config(object_of(config, 'vision_config', where), where)
    aspect = config.get('image_aspect_ratio') or 'square'
    if (aspect, merge) == ('square', 'flat'):
        pictures = Pictures('flat')
    elif (aspect, merge) == ('pad', 'spatial_unpad'):
        pictures = Pictures('padded')
    else:
        _refuse(where, f'{aspect!r} pictures with flat merging', merge == 'flat')
        pictures = _anyres(aspect, config.get('image_grid_pinpoints'), vision.image, where)
    return language_config(config, 'qwen3', where), vision, pictures


def llava_onevision(config: dict[str, Any],
                    where: Path) -> tuple[LanguageConfig, VisionConfig, Pictures]:
    """Return (language, vision, pictures) of transformers' config.

    Its pinpoints are (height, width).
    """
    text = object_of(config, 'text_config', where)
    layer = config.get('vision_feature_layer', -1)
    kind = text.get('model_type', 'qwen2')
    act = config.get('projector_hidden_act', 'gelu')
    # In a list, for an unhashable value is to be refused as well.
    _refuse(where, f'text model_type {str(kind)[:40]!r}', kind not in [*TEXT_DEFAULTS])
    _refuse(where, f'vision_feature_layer {str(layer)[:40]}', type(layer) is not int)
    _refuse(where, 'the selection of image features',
            config.get('vision_feature_select_strategy', 'full') != 'full')
    _refuse(where, 'a connector without bias', not config.get('multimodal_projector_bias', True))
    _refuse(where, f'connector activation {act!r}', act != 'gelu')
    tower = ONEVISION_TOWER
    if config.get('vision_config'):
        tower = object_of(config, 'vision_config', where)
    blocks = {**VISION_DEFAULTS, **tower}['num_hidden_layers']
    _sizes({'num_hidden_layers': blocks}, where, ('num_hidden_layers',))
    # hidden_states[0] is the embedding, so -1 uses all blocks and k >= 0 the first k.
    vision = vision_config(tower, where, -1 - layer if layer < 0 else blocks - layer)
    # The embedding is shared when either level says so (transformers 5).
    tie = config.get('tie_word_embeddings') or text.get('tie_word_embeddings')
    language = language_config({**text, 'tie_word_embeddings': bool(tie)}, kind, where)
    points = config.get('image_grid_pinpoints')
    if points is None:
        tiles = itertools.product(range(1, 7), range(1, 7))
        points = [[y * vision.image, x * vision.image] for y, x in tiles]
    if isinstance(points, list):
        points = [point[::-1] if isinstance(point, list) else point for point in points]
    pictures = _anyres(config.get('vision_aspect_ratio', 'anyres_max_9'), points, vision.image,
                       where)
    return language, vision, pictures
