"""Names of published checkpoints and of our tree: tables that are read in both directions.

A row is (our leaf, their name, kind). `{n}` is the layer: such leaves are stacked on axis N. Kinds:
'copy' keeps the order of values; 'linear' is theirs [out, in], ours [in, out]; 'patch' is theirs
[W, 3, patch, patch], ours [Q, W] with Q running over rows, columns, channels (`images.patchify`).
A format differs from another by the prefixes of these sections alone.
"""
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from downscale.letters import axes_of
from downscale.sizes import LanguageConfig, VisionConfig

_ATTENTION = 'layers.{n}.self_attn.'
_MLP = 'layers.{n}.mlp.'
DECODER = (
    ('embedding_VD', 'embed_tokens.weight', 'copy'),
    ('final_norm/scale_D', 'norm.weight', 'copy'),
    ('blocks/attention_norm/scale_D', 'layers.{n}.input_layernorm.weight', 'copy'),
    ('blocks/attention/q_DHE', _ATTENTION + 'q_proj.weight', 'linear'),
    ('blocks/attention/k_DKE', _ATTENTION + 'k_proj.weight', 'linear'),
    ('blocks/attention/v_DKE', _ATTENTION + 'v_proj.weight', 'linear'),
    ('blocks/attention/o_HED', _ATTENTION + 'o_proj.weight', 'linear'),
    ('blocks/attention/q_bias_HE', _ATTENTION + 'q_proj.bias', 'copy'),
    ('blocks/attention/k_bias_KE', _ATTENTION + 'k_proj.bias', 'copy'),
    ('blocks/attention/v_bias_KE', _ATTENTION + 'v_proj.bias', 'copy'),
    ('blocks/attention/q_scale_E', _ATTENTION + 'q_norm.weight', 'copy'),
    ('blocks/attention/k_scale_E', _ATTENTION + 'k_norm.weight', 'copy'),
    ('blocks/mlp_norm/scale_D', 'layers.{n}.post_attention_layernorm.weight', 'copy'),
    ('blocks/mlp/gate_DF', _MLP + 'gate_proj.weight', 'linear'),
    ('blocks/mlp/up_DF', _MLP + 'up_proj.weight', 'linear'),
    ('blocks/mlp/down_FD', _MLP + 'down_proj.weight', 'linear'),
)
_BLOCK = 'encoder.layers.{n}.'
TOWER = (
    ('patch_QW', 'embeddings.patch_embedding.weight', 'patch'),
    ('patch_bias_W', 'embeddings.patch_embedding.bias', 'copy'),
    ('position_PW', 'embeddings.position_embedding.weight', 'copy'),
    ('blocks/attention_norm/scale_W', _BLOCK + 'layer_norm1.weight', 'copy'),
    ('blocks/attention_norm/bias_W', _BLOCK + 'layer_norm1.bias', 'copy'),
    ('blocks/q_WHE', _BLOCK + 'self_attn.q_proj.weight', 'linear'),
    ('blocks/q_bias_HE', _BLOCK + 'self_attn.q_proj.bias', 'copy'),
    ('blocks/k_WHE', _BLOCK + 'self_attn.k_proj.weight', 'linear'),
    ('blocks/k_bias_HE', _BLOCK + 'self_attn.k_proj.bias', 'copy'),
    ('blocks/v_WHE', _BLOCK + 'self_attn.v_proj.weight', 'linear'),
    ('blocks/v_bias_HE', _BLOCK + 'self_attn.v_proj.bias', 'copy'),
    ('blocks/o_HEW', _BLOCK + 'self_attn.out_proj.weight', 'linear'),
    ('blocks/o_bias_W', _BLOCK + 'self_attn.out_proj.bias', 'copy'),
    ('blocks/mlp_norm/scale_W', _BLOCK + 'layer_norm2.weight', 'copy'),
    ('blocks/mlp_norm/bias_W', _BLOCK + 'layer_norm2.bias', 'copy'),
    ('blocks/up_WF', _BLOCK + 'mlp.fc1.weight', 'linear'),
    ('blocks/up_bias_F', _BLOCK + 'mlp.fc1.bias', 'copy'),
    ('blocks/down_FW', _BLOCK + 'mlp.fc2.weight', 'linear'),
    ('blocks/down_bias_W', _BLOCK + 'mlp.fc2.bias', 'copy'),
)
# Section -> (where it lies in our tree, its rows).
SECTIONS = {
    'decoder': ('language/', DECODER),
    'head': ('language/', (('head_DV', 'weight', 'linear'),)),
    'tower': ('tower/', TOWER),
    'first': ('connector/', (('first_WD', 'weight', 'linear'), ('first_bias_D', 'bias', 'copy'))),
    'second': ('connector/', (('second_DD', 'weight', 'linear'),
                              ('second_bias_D', 'bias', 'copy'))),
    'newline': ('', (('image_newline_D', 'image_newline', 'copy'),)),
}
_TEXT = {'decoder': ('model.', 'language_model.model.', 'model.language_model.', ''),
         'head': ('lm_head.', 'language_model.lm_head.')}
# Architecture -> section -> prefixes: the first is what is written (and what transformers saves
# today, or the reference), the others were published at some time. For the one-stage names of
# transformers 4.52 and later see its `conversion_mapping`.
FORMATS = {
    'Qwen3ForCausalLM': _TEXT,
    'Qwen2ForCausalLM': _TEXT,
    'LlamaForCausalLM': _TEXT,
    'SiglipVisionModel': {'tower': ('vision_model.', '')},
    'SiglipModel': {'tower': ('vision_model.',)},
    'LlavaQwen3ForCausalLM': {
        **_TEXT, 'tower': ('model.vision_tower.vision_tower.vision_model.',),
        'first': ('model.mm_projector.0.',), 'second': ('model.mm_projector.2.',),
        'newline': ('model.',)},
    'LlavaOnevisionForConditionalGeneration': {
        'decoder': ('language_model.model.', 'model.language_model.', 'language_model.'),
        'head': ('language_model.lm_head.', 'lm_head.'),
        'tower': ('vision_tower.vision_model.', 'vision_tower.', 'model.vision_tower.vision_model.',
                  'model.vision_tower.'),
        'first': ('multi_modal_projector.linear_1.', 'model.multi_modal_projector.linear_1.'),
        'second': ('multi_modal_projector.linear_2.', 'model.multi_modal_projector.linear_2.'),
        'newline': ('', 'model.')},
}
# Unused by design, after the section's prefix: the tower is read before its final norm and pooling
# (arXiv 2511.17487), and rotary frequencies are computed.
UNUSED = {
    'decoder': (r'(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq',),
    'tower': (r'post_layernorm\..+', r'head\..+', r'embeddings\.position_ids'),
}
# Written as constants, so that other code finds every name it expects; no result depends on them.
FILLERS = {'tower': (('post_layernorm.weight', 1.0), ('post_layernorm.bias', 0.0))}
UNUSED_WHOLE = {'SiglipModel': (r'text_model\..+', 'logit_scale', 'logit_bias')}


@dataclass(frozen=True, kw_only=True)
class LeafEntry:
    """One of our leaves and the tensors that hold it: one, or one per layer."""
    leaf: str
    shape: tuple[int, ...]
    kind: str
    names: tuple[str, ...]
    theirs: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether axis N leads the leaf's shape."""
        return '/blocks/' in self.leaf


def letter_sizes(group: str, language: LanguageConfig | None,
                 vision: VisionConfig | None) -> dict[str, int]:
    """Return {axis letter: size} of one group of the parameter tree."""
    if group == 'tower':
        v = vision
        return {'N': v.layers, 'W': v.W, 'H': v.H, 'E': v.E, 'F': v.F, 'P': v.P, 'Q': v.Q}
    l = language
    sizes = {'N': l.N, 'D': l.D, 'H': l.H, 'K': l.K, 'E': l.E, 'F': l.F, 'V': l.V}
    return {**sizes, 'W': vision.W} if group == 'connector' else sizes


def inputs_of(axes: str) -> int:
    """Return how many leading axes of a kernel are its input: both H and E where heads are read."""
    return 2 if axes.startswith('HE') else 1


def their_shape(kind: str, axes: str, shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Return the shape of the published tensor of one layer's leaf with these axis letters."""
    if kind == 'patch':
        return shape[1], 3, patch, patch
    if kind == 'linear':
        cut = inputs_of(axes)
        return math.prod(shape[cut:]), math.prod(shape[:cut])
    return (math.prod(shape),) if axes in ('HE', 'KE') else tuple(shape)


def wanted(leaf: str, language: LanguageConfig) -> bool:
    """Return whether the model of `language` has this leaf of the decoder."""
    stem = leaf.rpartition('/')[2].rpartition('_')[0]
    if stem == 'head':
        return not language.tie
    if stem in ('q_bias', 'k_bias', 'v_bias'):
        return language.qkv_bias
    if stem in ('q_scale', 'k_scale'):
        return language.qk_norm
    return True


def entries(prefixes: dict[str, str], language: LanguageConfig | None,
            vision: VisionConfig | None) -> list[LeafEntry]:
    """Return the `LeafEntry` of every leaf of a model, in the order of the tables.

    `prefixes` maps each section that is present to its prefix. The language model may be None where
    only a tower is meant, and the other way round.
    """
    plan = []
    for section, prefix in prefixes.items():
        place, rows = SECTIONS[section]
        sizes = letter_sizes(place.rstrip('/'), language, vision)
        for leaf, name, kind in rows:
            # The tables list what any decoder may have; this one may lack head, norms or biases.
            # pyrefly: ignore[bad-argument-type]
            if place == 'language/' and not wanted(leaf, language):
                continue
            axes = axes_of(leaf.rpartition('/')[2])
            shape = tuple(sizes[letter] for letter in axes)
            theirs = their_shape(kind, axes, shape, vision.patch if vision else 0)
            names = (prefix + name,)
            if '{n}' in name:
                names = tuple(prefix + name.format(n=n) for n in range(sizes['N']))
                shape = (sizes['N'], *shape)
            plan.append(
                LeafEntry(leaf=place + leaf, shape=shape, kind=kind, names=names, theirs=theirs)
            )
    return plan


def present_prefixes(architecture: str, names: Collection[str],
                     sections: Iterable[str]) -> dict[str, str]:
    """Return {section: prefix} of the tensors called `names`; where none fits, what we write.

    A prefix fits when a section's first or last name follows it. One of the two may be missing: the
    embedding, where only the head that it is tied to is stored.
    """
    prefixes = {}
    for section in sections:
        candidates = FORMATS[architecture][section]
        rows = SECTIONS[section][1]
        first = rows[0][1].format(n=0)
        last = rows[-1][1].format(n=0)
        fitting = [prefix for prefix in candidates
                   if prefix + first in names or prefix + last in names]
        prefixes[section] = [*fitting, candidates[0]][0]
    return prefixes


def unused(architecture: str, prefixes: dict[str, str], names: Collection[str]) -> set[str]:
    """Return those of `names` that are left out by design."""
    patterns = []
    for section, tails in UNUSED.items():
        if section in prefixes:
            patterns += [re.escape(prefixes[section]) + tail for tail in tails]
    patterns += UNUSED_WHOLE.get(architecture, ())
    # '(?!)' matches nothing.
    pattern = re.compile('|'.join(patterns) or '(?!)')
    return {name for name in names if pattern.fullmatch(name)}
