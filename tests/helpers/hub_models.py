"""Tiny random models of transformers, with what they compute: the truth that imports are held to.

`python tests/helpers/hub_models.py` (needs torch and transformers) writes `tests/data/hub/<name>/`:
the
model folder as transformers saves it, and `expected.npz`. The tests read those files; where both
libraries are installed they also run the models again.
"""
import json

import jax
import numpy as np
from roots import DATA

from downscale.convert.shards import open_tensors, write_tensors

FOLDER = DATA / 'hub'
TOKENS = np.random.default_rng(1).integers(0, 40, (2, 9))
TEXT = {'hidden_size': 32, 'intermediate_size': 40, 'num_hidden_layers': 2, 'vocab_size': 48,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 64}
TOWER = {'hidden_size': 24, 'intermediate_size': 36, 'num_hidden_layers': 3, 'image_size': 18,
         'num_attention_heads': 2, 'patch_size': 4}
NAMES = ('qwen3', 'qwen2', 'llama', 'siglip_vision', 'siglip', 'onevision_qwen2',
         'onevision_qwen3')


def build(name):
    """The transformers model `name`: every parameter random, in float32, the same each time."""
    import torch
    import transformers as t
    rope = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}
    text = {
        # Heads wider than the width, as in Qwen3-0.6B, and a head of its own.
        'qwen3': lambda: t.Qwen3Config(**TEXT, **rope, head_dim=12, tie_word_embeddings=False),
        'qwen2': lambda: t.Qwen2Config(**TEXT, **rope, tie_word_embeddings=True),
        'llama': lambda: t.LlamaConfig(**TEXT, **rope, rms_norm_eps=1e-5),
    }
    small = {'num_hidden_layers': 1, 'vocab_size': 40}
    torch.manual_seed(NAMES.index(name))
    if name in text:
        model = t.AutoModelForCausalLM.from_config(text[name]())
    elif name == 'siglip_vision':
        model = t.SiglipVisionModel(t.SiglipVisionConfig(**TOWER))
    elif name == 'siglip':
        words = {'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1,
                 'vocab_size': 12, 'num_attention_heads': 2, 'max_position_embeddings': 4}
        model = t.SiglipModel(t.SiglipConfig(vision_config=TOWER | {'num_hidden_layers': 2},
                                             text_config=words))
    else:
        inner = text[name.removeprefix('onevision_')]()
        inner.update(small)
        inner.layer_types = ['full_attention']
        model = t.LlavaOnevisionForConditionalGeneration(t.LlavaOnevisionConfig(
            text_config=inner, image_token_index=39, video_token_index=38,
            vision_config=t.SiglipVisionConfig(**TOWER | {'num_hidden_layers': 2},
                                               vision_use_head=False),
            image_grid_pinpoints=[[18 * y, 18 * x] for y in (1, 2) for x in (1, 2)]))
    for key, value in model.named_parameters():
        spread = torch.randn(value.shape) * (0.1 if value.ndim < 2 else 0.3)
        value.data = spread + ('norm' in key and key.endswith('weight'))
    return model.eval()


def pixels(side):
    """uint8 pixels [2, side, side, 3] of two pictures, and the same as the models want them."""
    import torch
    pictures = np.random.default_rng(2).integers(0, 256, (2, side, side, 3), np.uint8)
    return pictures, torch.tensor(pictures / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)


def compute(name, model):
    """{name: array} of what the model computes: logits of `TOKENS`, features of pictures.

    `features` is what a connector reads: the last block's output, or the one before where SigLIP
    is whole.
    """
    import torch
    found = {}
    with torch.no_grad():
        if name in ('qwen3', 'qwen2', 'llama'):
            found['logits'] = model(torch.tensor(TOKENS)).logits
        elif name.startswith('siglip'):
            tower = model if name == 'siglip_vision' else model.vision_model
            found['pictures'], ready = pixels(TOWER['image_size'])
            found['features'] = tower(ready, output_hidden_states=True).hidden_states[-2]
        else:
            found['pictures'], ready = pixels(TOWER['image_size'])
            features = model.model.vision_tower(ready, output_hidden_states=True)
            found['features'] = features.hidden_states[-1]
            found['projected'] = model.model.multi_modal_projector(found['features'])
            found['logits'] = model(torch.tensor(TOKENS % 38)).logits
    return {key: np.asarray(value) for key, value in found.items()}


def rewrite(name, to, rename=None, drop=(), add=(), config=(), cast=None):
    """A copy of a stored model with names, tensors, dtype or config keys changed."""
    to.mkdir()
    tensors = {(rename or (lambda n: n))(n): t.read()
               for n, t in open_tensors(FOLDER / name).items() if n not in drop}
    tensors.update(add)
    tensors = {n: array.astype(cast or array.dtype) for n, array in tensors.items()}
    write_tensors(to / 'model.safetensors', [(n, a.dtype, a.shape) for n, a in tensors.items()],
                  iter(tensors.values()))
    old = json.loads((FOLDER / name / 'config.json').read_text())
    (to / 'config.json').write_text(json.dumps({**old, **dict(config)}))
    return to


def values(source):
    return jax.tree.map(lambda leaf: leaf.read(), source.leaves)


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def llava_qwen3(to, cast=None, **config):
    """The stored OneVision model as the reference names it."""
    def rename(name):
        for old, new in (('language_model.model.', 'model.'), ('language_model.', ''),
                         ('vision_tower.', 'model.vision_tower.vision_tower.vision_model.'),
                         ('multi_modal_projector.linear_1', 'model.mm_projector.0'),
                         ('multi_modal_projector.linear_2', 'model.mm_projector.2'),
                         ('image_newline', 'model.image_newline')):
            if name.startswith(old):
                return new + name.removeprefix(old)
        raise KeyError(name)
    old = json.loads((FOLDER / 'onevision_qwen3' / 'config.json').read_text())
    ours = {**old['text_config'], 'architectures': ['LlavaQwen3ForCausalLM'],
            'model_type': 'llava_qwen_3', 'dtype': 'float32', 'vision_config': old['vision_config'],
            'mm_vision_tower': 'google/siglip-so400m-patch14-384',
            'mm_projector_type': 'mlp2x_gelu', 'mm_patch_merge_type': 'spatial_unpad',
            'image_aspect_ratio': 'anyres_max_4',
            'image_grid_pinpoints': [[18, 36], [36, 36], [54, 18]]}
    folder = rewrite('onevision_qwen3', to, rename, cast=cast)
    ours = {key: value for key, value in {**ours, **config}.items() if value != 'absent'}
    (folder / 'config.json').write_text(json.dumps(ours))
    return folder


def main():
    for name in NAMES:
        model = build(name)
        model.save_pretrained(FOLDER / name)
        np.savez_compressed(FOLDER / name / 'expected.npz', **compute(name, model))


if __name__ == '__main__':
    main()
