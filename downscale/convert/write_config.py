"""Our sizes as the config.json of a published format; `read_config.py` reads them back."""
from typing import Any

from downscale.convert.read_config import MODEL_TYPES, architecture_of
from downscale.sizes import SIGLIP, LanguageConfig, Pictures, VisionConfig

# Kept from the config that a model was imported with: our sizes do not have them.
CARRIED = ('max_position_embeddings', 'initializer_range', 'attention_dropout', 'bos_token_id',
           'eos_token_id', 'pad_token_id')
SO400M = 'google/siglip-so400m-patch14-384'


def text_kind(language: LanguageConfig) -> str:
    """Return the published decoder that computes what `language` does: qwen3, qwen2 or llama."""
    if language.qk_norm and language.qkv_bias:
        raise ValueError('no published format has both qk_norm and qkv_bias')
    if language.qk_norm:
        return 'qwen3'
    # Biases on queries, keys and values are what sets Qwen2 apart from Llama.
    kind = 'qwen2' if language.qkv_bias else 'llama'
    if kind == 'qwen2' and language.H * language.E != language.D:
        raise ValueError(f'qwen2 needs heads that fill the width; {language.H} * {language.E} is '
                         f'not {language.D}')
    return kind


def check_format(form: str, language: LanguageConfig | None, vision: VisionConfig | None,
                 pictures: Pictures | None) -> None:
    """Raise ValueError, in one line, when a model of these sizes cannot be written as `form`."""
    if form not in MODEL_TYPES or form.startswith('siglip'):
        known = ', '.join(name for name in MODEL_TYPES if not name.startswith('siglip'))
        raise ValueError(f'unknown export format {form!r}; known are {known}')
    if language is None:
        raise ValueError(f'{form} needs a language model, and this run has a tower alone')
    kind = text_kind(language)
    if form in ('qwen3', 'qwen2', 'llama', 'llava_qwen_3') and kind != form.replace(
            'llava_qwen_3', 'qwen3'):
        raise ValueError(f'{form} does not fit: the language model computes what {kind} does '
                         f'(qk_norm {language.qk_norm}, qkv_bias {language.qkv_bias})')
    if form.startswith('llava') and (vision is None or pictures is None):
        raise ValueError(f'{form} needs a vision tower, and this run has a language model alone')
    if form == 'llava_onevision' and pictures.mode != 'anyres':
        other = 'export it as llava_qwen_3' if kind == 'qwen3' else \
            f'no published form holds such a model with a language model of {kind}'
        raise ValueError(f"llava_onevision cuts pictures as 'anyres', this run as "
                         f'{pictures.mode!r}; {other}')


def describe(form: str, language: LanguageConfig | None, vision: VisionConfig | None,
             pictures: Pictures | None, dtype: Any, base: dict[str, Any] | None = None,
             image_token: int | None = None) -> dict[str, Any]:
    """Return the config.json of `form` as a dict.

    `base` is the config of the import, whose keys are kept where the format is the same.
    `image_token` is the placeholder id of llava_onevision; by default that of `base`, else the last
    row of the embedding, which is spare in the Qwen vocabularies.
    """
    base = base or {}
    # Keys of another format would contradict ours; of those only a few that both know are kept.
    # pyrefly: ignore[bad-argument-type]
    same = bool(base) and architecture_of(base, 'config.json') == MODEL_TYPES[form]
    inner = base.get('text_config') or base
    kept = {key: inner[key] for key in CARRIED if key in inner}
    if form == 'llava_onevision':
        # pyrefly: ignore[bad-argument-type]
        text = {**(inner if same else kept), **_text(language, text_kind(language), inner)}
        ours = _onevision(language, vision, pictures, text, base if same else {}, image_token)
    else:
        # pyrefly: ignore[bad-argument-type]
        ours = {**kept, **_text(language, text_kind(language), base if same else {})}
        if form == 'llava_qwen_3':
            ours.update(_llava_qwen3(vision, pictures, base if same else {}))
    # transformers 4 reads torch_dtype, 5 dtype.
    return {**(base if same else {}), **ours, 'architectures': [MODEL_TYPES[form]],
            'model_type': form, 'torch_dtype': str(dtype), 'dtype': str(dtype)}


def _text(language, kind, base):
    """Return the decoder's keys."""
    l = language
    # transformers 4 looks for the rotary base in one place, 5 in the other.
    rope = {'rope_theta': l.theta, 'rope_scaling': None,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': l.theta}}
    head = {} if kind == 'qwen2' else {'head_dim': l.E, 'attention_bias': False}
    if 'layer_types' in base:  # one for each layer, of which an import may keep a part
        head['layer_types'] = ['full_attention'] * l.N
    return {'model_type': kind, 'vocab_size': l.V, 'hidden_size': l.D, 'intermediate_size': l.F,
            'num_hidden_layers': l.N, 'num_attention_heads': l.H, 'num_key_value_heads': l.K,
            'rms_norm_eps': l.eps, 'tie_word_embeddings': l.tie, 'hidden_act': 'silu',
            **rope, **head}


def _tower(vision):
    """Return the `vision_config` of a tower, in the keys of SigLIP."""
    v = vision
    return {'model_type': 'siglip_vision_model', 'hidden_size': v.W, 'intermediate_size': v.F,
            'num_hidden_layers': v.layers, 'num_attention_heads': v.H, 'image_size': v.image,
            'patch_size': v.patch, 'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': v.eps,
            'vision_use_head': False}


def _llava_qwen3(vision, pictures, base):
    """Return the keys of the reference's config on pictures; its pinpoints are (width, height)."""
    aspect = {'flat': 'square', 'padded': 'pad'}.get(
        pictures.mode, f'anyres_max_{pictures.max_tiles}')
    side = vision.image
    ours = {'image_aspect_ratio': aspect, 'mm_hidden_size': vision.W,
            'mm_patch_merge_type': 'flat' if pictures.mode == 'flat' else 'spatial_unpad',
            'mm_projector_type': 'mlp2x_gelu', 'mm_vision_select_layer': -2,
            'mm_vision_select_feature': 'patch', 'use_mm_proj': True,
            'mm_vision_tower': base.get('mm_vision_tower', SO400M),
            'image_grid_pinpoints': [[x * side, y * side] for x, y in pictures.grids]}
    # The reference's code knows one tower by name; any other must be described.
    if 'vision_config' in base or vision != SIGLIP['so400m-patch14-384']:
        ours['vision_config'] = _tower(vision)
    return ours


def _onevision(language, vision, pictures, text, base, image_token):
    """Return the keys of transformers' config around `text`; its pinpoints are (height, width)."""
    side = vision.image
    if image_token is None:
        image_token = base.get('image_token_index', base.get('image_token_id', language.V - 1))
    video = base.get('video_token_index', base.get('video_token_id', language.V - 2))
    return {'text_config': text, 'vision_config': _tower(vision),
            'image_token_index': image_token, 'video_token_index': video,
            'image_grid_pinpoints': [[y * side, x * side] for x, y in pictures.grids],
            'vision_aspect_ratio': f'anyres_max_{pictures.max_tiles}',
            'vision_feature_layer': -1, 'vision_feature_select_strategy': 'full',
            'projector_hidden_act': 'gelu', 'multimodal_projector_bias': True,
            'tie_word_embeddings': language.tie}
