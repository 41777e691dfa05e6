"""Published config.json to our sizes, refusing what the model does not implement; and back."""
import re

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
MODEL_TYPES = {
    'qwen3': 'Qwen3ForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'llama': 'LlamaForCausalLM',
    'siglip_vision_model': 'SiglipVisionModel', 'siglip': 'SiglipModel',
    'llava_qwen_3': 'LlavaQwen3ForCausalLM',
    'llava_onevision': 'LlavaOnevisionForConditionalGeneration'}


def architecture_of(config, where):
    """The architecture that a config names; ValueError listing the supported ones."""
    named = (config.get('architectures') or [MODEL_TYPES.get(config.get('model_type'))])[0]
    if named not in MODEL_TYPES.values():
        raise ValueError(f'{where}: unsupported architecture {named!r}; supported are '
                         f'{", ".join(MODEL_TYPES.values())}')
    if config.get('quantization_config'):
        raise ValueError(f'{where}: the weights are quantised (quantization_config); import the '
                         'unquantised model')
    return named


def _refuse(where, problems):
    """Raise ValueError with the first problem that holds; `problems` maps messages to truth."""
    for message, holds in problems.items():
        if holds:
            raise ValueError(f'{where}: {message}, which is not implemented')


def _rope_theta(config, where):
    """The base of the rotary embedding, from either generation's keys."""
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    layered = any(isinstance(value, dict) for value in rope.values())
    _refuse(where, {
        f'rotary scaling of type {kind!r}': kind != 'default' or layered,
        'a rotary embedding of a part of each head':
            rope.get('partial_rotary_factor', config.get('partial_rotary_factor', 1)) != 1})
    return float(rope.get('rope_theta', config.get('rope_theta', 10000.0)))


def _windowed(config, layers):
    """Whether any layer uses sliding-window attention."""
    if config.get('layer_types'):
        return set(config['layer_types']) != {'full_attention'}
    return bool(config.get('use_sliding_window') and config.get('sliding_window')
                and config.get('max_window_layers', 28) < layers)


def language_config(config, kind, where):
    """The decoder of a config of model type `kind` ('qwen3', 'qwen2' or 'llama').

    Raises ValueError naming what the decoder does not implement.
    """
    c = {**TEXT_DEFAULTS[kind], **{key: v for key, v in config.items() if v is not None}}
    _refuse(where, {
        f'hidden_act {c.get("hidden_act")!r}': c.get('hidden_act', 'silu') != 'silu',
        'attention_bias': c.get('attention_bias', False) and kind != 'qwen2',
        'mlp_bias': c.get('mlp_bias', False),
        'sliding-window attention': _windowed(c, c['num_hidden_layers'])})
    width, heads = c['hidden_size'], c['num_attention_heads']
    return LanguageConfig(
        N=c['num_hidden_layers'], D=width, H=heads, K=c.get('num_key_value_heads', heads),
        E=c.get('head_dim', width // heads), F=c['intermediate_size'], V=c['vocab_size'],
        tie=bool(c.get('tie_word_embeddings', False)), qk_norm=kind == 'qwen3',
        qkv_bias=kind == 'qwen2', theta=_rope_theta(c, where), eps=c.get('rms_norm_eps', 1e-6))


def vision_config(config, where, unused=0):
    """The tower of a SigLIP vision config, of whose blocks the last `unused` are not run."""
    c = {**VISION_DEFAULTS, **config}
    act = c.get('hidden_act', 'gelu_pytorch_tanh')
    _refuse(where, {
        f'vision model_type {c.get("model_type")!r}':
            c.get('model_type', 'siglip_vision_model') != 'siglip_vision_model',
        f'vision hidden_act {act!r}': act != 'gelu_pytorch_tanh',
        f'{c.get("num_channels")} colour channels': c.get('num_channels', 3) != 3,
        f'{unused} unused of {c["num_hidden_layers"]} vision blocks':
            not 0 <= unused < c['num_hidden_layers']})
    return VisionConfig(layers=c['num_hidden_layers'] - unused, W=c['hidden_size'],
                        H=c['num_attention_heads'], F=c['intermediate_size'],
                        patch=c['patch_size'], image=c['image_size'],
                        eps=c.get('layer_norm_eps', 1e-6))


def _grid_points(points, image):
    """Pinpoints as a list; '(1x1),...,(6x6)', as training scripts write them, names all between."""
    corners = re.findall(r'\((\d{1,2})x(\d{1,2})\)', points) if isinstance(points, str) else ()
    if not corners:
        return points
    (left, top), (right, bottom) = (map(int, corner) for corner in (corners[0], corners[-1]))
    return [[x * image, y * image] for x in range(left, right + 1) for y in range(top, bottom + 1)]


def _anyres(aspect, points, image, where):
    """'anyres_max_9' and its pinpoints, as (width, height) in pixels, to our tiling."""
    most, points = aspect.removeprefix('anyres_max_'), _grid_points(points, image)
    _refuse(where, {
        f'image_aspect_ratio {aspect!r}': not most.isdigit() or most == '0',
        'image_grid_pinpoints that are no list of multiples of the image size':
            not isinstance(points, list) or not points
            or any(side % image or side < image for point in points for side in point)})
    return Pictures('anyres', int(most), tuple((x // image, y // image) for x, y in points))


def llava_qwen3(config, where):
    """(language, vision, pictures) of the reference's config.

    Without `vision_config` (the released checkpoints) the tower is so400m-patch14-384; the last
    block is dropped there already.
    """
    tower = config.get('mm_vision_tower', '')
    merge = config.get('mm_patch_merge_type', 'flat')
    known = 'siglip-so400m-patch14-384'
    _refuse(where, {
        f'vision tower {tower!r}': 'vision_config' not in config and known not in tower,
        f'connector {config.get("mm_projector_type")!r}':
            config.get('mm_projector_type', 'mlp2x_gelu') != 'mlp2x_gelu',
        f'mm_patch_merge_type {merge!r}': merge not in ('flat', 'spatial_unpad')})
    vision = (vision_config(config['vision_config'], where) if 'vision_config' in config
              else SIGLIP['so400m-patch14-384'])
    aspect = config.get('image_aspect_ratio') or 'square'
    if (aspect, merge) == ('square', 'flat'):
        pictures = Pictures('flat')
    elif (aspect, merge) == ('pad', 'spatial_unpad'):
        pictures = Pictures('padded')
    else:
        _refuse(where, {f'{aspect!r} pictures with flat merging': merge == 'flat'})
        pictures = _anyres(aspect, config.get('image_grid_pinpoints'), vision.image, where)
    return language_config(config, 'qwen3', where), vision, pictures


def llava_onevision(config, where):
    """(language, vision, pictures) of transformers' config; its pinpoints are (height, width)."""
    text, layer = config.get('text_config') or {}, config.get('vision_feature_layer', -1)
    kind = text.get('model_type', 'qwen2')
    _refuse(where, {
        f'text model_type {kind!r}': kind not in TEXT_DEFAULTS,
        f'vision_feature_layer {layer!r}': not isinstance(layer, int),
        'the selection of image features':
            config.get('vision_feature_select_strategy', 'full') != 'full',
        'a connector without bias': not config.get('multimodal_projector_bias', True),
        f'connector activation {config.get("projector_hidden_act")!r}':
            config.get('projector_hidden_act', 'gelu') != 'gelu'})
    tower = {'hidden_size': 1152, 'intermediate_size': 4304, 'patch_size': 14, 'image_size': 384,
             'num_hidden_layers': 26, 'num_attention_heads': 16} \
        if not config.get('vision_config') else config['vision_config']
    blocks = {**VISION_DEFAULTS, **tower}['num_hidden_layers']
    # hidden_states[0] is the embedding, so -1 uses all blocks and k >= 0 the first k.
    vision = vision_config(tower, where, -1 - layer if layer < 0 else blocks - layer)
    # The embedding is shared when either level says so (transformers 5).
    tie = config.get('tie_word_embeddings') or text.get('tie_word_embeddings')
    language = language_config({**text, 'tie_word_embeddings': bool(tie)}, kind, where)
    points = config.get('image_grid_pinpoints')
    if points is None:
        points = [[y * vision.image, x * vision.image] for y in range(1, 7) for x in range(1, 7)]
    pictures = _anyres(config.get('vision_aspect_ratio', 'anyres_max_9'),
                       [[x, y] for y, x in points], vision.image, where)
    return language, vision, pictures
