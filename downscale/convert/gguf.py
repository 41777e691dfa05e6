"""A GGUF file: the decoder's size, its weights one at a time in float32, its tokenizer.

The package `gguf` dequantises; the header is read by `gguf_header.py`.
"""
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from downscale.convert.gguf_header import GgufHeader
from downscale.convert.vocabulary import PRE_TOKENIZERS, byte_pairs
from downscale.sizes import LanguageConfig

# GGUF architecture -> (Hugging Face class, what our decoder has of it).
ARCHITECTURES = {
    'llama': ('LlamaForCausalLM', {}),
    'qwen2': ('Qwen2ForCausalLM', {'qkv_bias': True}),
    'qwen3': ('Qwen3ForCausalLM', {'qk_norm': True}),
}
# (GGUF name, Hugging Face name, axes) of a layer: Q and K are all query and key/value rows.
_LAYER = (
    ('attn_norm.weight', 'input_layernorm.weight', 'D'),
    ('attn_q.weight', 'self_attn.q_proj.weight', 'QD'),
    ('attn_k.weight', 'self_attn.k_proj.weight', 'KD'),
    ('attn_v.weight', 'self_attn.v_proj.weight', 'KD'),
    ('attn_output.weight', 'self_attn.o_proj.weight', 'DQ'),
    ('ffn_norm.weight', 'post_attention_layernorm.weight', 'D'),
    ('ffn_gate.weight', 'mlp.gate_proj.weight', 'FD'),
    ('ffn_up.weight', 'mlp.up_proj.weight', 'FD'),
    ('ffn_down.weight', 'mlp.down_proj.weight', 'DF'),
)
_BIAS = (('attn_q.bias', 'self_attn.q_proj.bias', 'Q'),
         ('attn_k.bias', 'self_attn.k_proj.bias', 'K'),
         ('attn_v.bias', 'self_attn.v_proj.bias', 'K'))
_NORM = (('attn_q_norm.weight', 'self_attn.q_norm.weight', 'E'),
         ('attn_k_norm.weight', 'self_attn.k_norm.weight', 'E'))
# values of `tokenizer.ggml.token_type`
_CONTROL = 3
_USER_DEFINED = 4
_UNUSED = 5


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One weight in the file, dequantised to float32 when it is read.

    `kind` is its ggml type. Rows of `heads` > 0 heads are stored with the two halves of each head
    interleaved (llama.cpp's rotary layout) and come back as Hugging Face keeps them.
    """
    shape: tuple[int, ...]
    path: Path
    offset: int
    kind: int
    heads: int = 0
    dtype: np.dtype = np.dtype(np.float32)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return a new float32 array of the rows [start, stop) of axis 0 (all by default)."""
        stop = self.shape[0] if stop is None else stop
        # Interleaving moves rows only within a head, but those weights are small: read them whole.
        whole = bool(self.heads) or len(self.shape) == 1
        first = 0 if whole else start
        rows = math.prod(self.shape[:-1]) if whole else stop - start
        width = _bytes(self.kind, self.shape[-1])
        data = np.fromfile(self.path, np.uint8, rows * width, offset=self.offset + first * width)
        if data.size != rows * width:
            raise ValueError(f'{self.path} ended while it was read; copy it again')
        if self.heads:
            # [head, pair, half] to [head, half, pair], whatever the bytes of a row hold.
            data = data.reshape(self.heads, -1, 2, width).swapaxes(1, 2)
        gguf = _package()
        kind = gguf.GGMLQuantizationType(self.kind)
        values = gguf.quants.dequantize(data.reshape(rows, width), kind)
        return values.reshape(-1, *self.shape[1:])[start:stop] if whole else values


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """A language model in a GGUF file.

    `architecture` is the Hugging Face class that the names of `tensors` belong to; `files` are the
    JSON files that Hugging Face would have beside the weights, `context` the positions that the
    model was trained on (0: unknown).
    """
    architecture: str
    language: LanguageConfig
    tensors: dict[str, GgufTensor]
    tokenizer: Tokenizer
    files: dict[str, dict]
    context: int


def read_gguf(path: Path) -> Gguf:
    """Return the `Gguf` of a file; every name and shape is checked, no weight is read yet.

    One-line errors: FileNotFoundError; ImportError without the extra `gguf`; ValueError when it is
    no GGUF file, is truncated, or holds an architecture, rotary scaling, quantisation or tokenizer
    that is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}; give a .gguf file')
    _package()
    try:
        header = GgufHeader(path)
        name, traits = _supported(header.metadata, header.tensors)
        language = _language(header, traits)
        tensors = _tensors(path, header, language)
        tokenizer = _tokenizer(header.metadata, language.V)
        context = header.metadata.get(f'{header.metadata["general.architecture"]}.context_length')
        return Gguf(
            architecture=name,
            language=language,
            tensors=tensors,
            tokenizer=tokenizer,
            files=_side_files(header.metadata, tokenizer),
            context=context or 0,
        )
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _package():
    """Import and return the package `gguf`; ImportError says how to install it."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files need the package gguf: pip install 'downscale[gguf]'"
                          ) from error
    return gguf


def _bytes(kind, values):
    """Return the bytes of a row of so many `values` of a ggml type."""
    block, size = _package().GGML_QUANT_SIZES[kind]
    return values // block * size


def _supported(metadata, tensors):
    """Return the row of `ARCHITECTURES`; ValueError for what would be read wrongly."""
    arch = metadata.get('general.architecture')
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise ValueError(f'architecture {str(arch)[:40]!r} is not supported; supported are '
                         f'{", ".join(ARCHITECTURES)}')
    if metadata.get('split.count', 1) not in (0, 1):
        raise ValueError(f'this is one of {str(metadata["split.count"])[:9]} parts of a model; '
                         'join them with llama-gguf-split --merge')
    # Llama 3 and Phi keep their scaling as tensors.
    scaled = [name for name in tensors if name.startswith('rope_f')]
    if scaled:
        raise ValueError(f'rotary positions are scaled ({scaled[0]} holds the factors, as in Llama '
                         '3.1 and later), which is not supported; use a model without rope scaling')
    # Every kind of scaling changes the angles from the first token on, so none may be ignored.
    for key, value in metadata.items():
        if key.startswith(f'{arch}.rope.scaling.') and value not in ('none', ''):
            raise ValueError(f'rotary positions are scaled ({key} = {value}), which is not '
                             'supported; use a file without rope scaling')
    return ARCHITECTURES[arch]


def _language(header, traits):
    """Return the LanguageConfig of the metadata and of the embedding's shape."""
    metadata = header.metadata
    arch = metadata['general.architecture']

    def number(key, default=None):
        """Return a positive number of the metadata."""
        value = metadata.get(f'{arch}.{key}', default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) \
                or not 0 < value < 1e30:
            raise ValueError(f'metadata {arch}.{key} is {str(value)[:40]}, not a positive number')
        # Single precision is printed as it was meant: 1e-05, not 9.999999747378752e-06.
        return value if isinstance(value, int) else float(str(np.float32(value)))

    def whole(key, default=None):
        """Return a whole number above 0 of the metadata."""
        value = number(key, default)
        if not isinstance(value, int) or value > 10 ** 8:
            raise ValueError(f'metadata {arch}.{key} is {value!r}, not a whole number of this size')
        return value

    width = whole('embedding_length')
    heads = whole('attention.head_count')
    if len(header.tensors.get('token_embd.weight', ((),))[0]) != 2:
        raise ValueError('there is no tensor token_embd.weight, or it is no matrix')
    layers = whole('block_count')
    if layers > len(header.tensors):
        raise ValueError(f'{layers} layers, but {len(header.tensors)} tensors: the file is damaged')
    rows = header.tensors['token_embd.weight'][0][0]
    # Left out, key heads are as many as query heads, and heads fill the width, as in llama.cpp.
    language = LanguageConfig(
        N=layers, D=width, H=heads, K=whole('attention.head_count_kv', heads),
        E=whole('attention.key_length', width // heads), F=whole('feed_forward_length'), V=rows,
        tie='output.weight' not in header.tensors, theta=float(number('rope.freq_base', 10000.0)),
        eps=number('attention.layer_norm_rms_epsilon'), **traits)
    turned = number('rope.dimension_count', language.E)
    if turned != language.E:
        raise ValueError(f'{turned} of the {language.E} values of a head turn by position; only '
                         'whole heads are supported')
    return language


def _expected(c):
    """Return {GGUF name: (Hugging Face name, shape)} of every tensor of a decoder."""
    sizes = {'D': c.D, 'F': c.F, 'V': c.V, 'E': c.E, 'Q': c.H * c.E, 'K': c.K * c.E}
    rows = [('token_embd.weight', 'model.embed_tokens.weight', 'VD'),
            ('output_norm.weight', 'model.norm.weight', 'D')]
    if not c.tie:
        rows.append(('output.weight', 'lm_head.weight', 'VD'))
    layer = [*_LAYER]
    if c.qkv_bias:
        layer += _BIAS
    if c.qk_norm:
        layer += _NORM
    for n in range(c.N):
        rows += [(f'blk.{n}.{theirs}', f'model.layers.{n}.{name}', axes)
                 for theirs, name, axes in layer]
    expected = {}
    for theirs, name, axes in rows:
        expected[theirs] = name, tuple(sizes[axis] for axis in axes)
    return expected


def _tensors(path, header, language):
    """Return {Hugging Face name: `GgufTensor`}; names, shapes, types and places are checked."""
    expected = _expected(language)
    stored = header.tensors
    _check_names(expected, stored)
    for kind in {kind for _, kind, _ in stored.values()}:
        _check_kind(kind)
    # llama.cpp permutes these rows when it converts a Llama; Qwen's stay as published.
    llama = header.metadata['general.architecture'] == 'llama'
    interleaved = {'attn_q.weight': language.H, 'attn_k.weight': language.K} if llama else {}
    tensors = {}
    spans = []
    for theirs, (name, shape) in expected.items():
        _, kind, offset = stored[theirs]
        end = header.data + offset + math.prod(shape[:-1]) * _bytes(kind, shape[-1])
        if end > header.size:
            raise ValueError(f'the file is truncated: {theirs} ends at byte {end:,} of '
                             f'{header.size:,}; download it again')
        spans.append((offset, end - header.data, theirs))
        heads = interleaved.get(theirs.split('.', 2)[-1], 0)
        tensors[name] = GgufTensor(
            shape=shape, path=path, offset=header.data + offset, kind=kind, heads=heads
        )
    _check_places(spans, header.alignment)
    return tensors


def _check_names(expected, stored):
    """Raise ValueError unless the tensors that are stored are those expected, in their shapes."""
    wrong = [f'{name} {stored[name][0]} instead of {shape}' for name, (_, shape) in expected.items()
             if name in stored and stored[name][0] != shape]
    for what, names in (('missing', expected.keys() - stored.keys()),
                        ('unexpected', stored.keys() - expected.keys()),
                        ('mis-shaped', wrong)):
        if names:
            shown = ', '.join(sorted(names)[:3])
            raise ValueError(f'{what}: {shown} ({len(names)} of {len(expected)} tensors); the file '
                             'is damaged or of another architecture')


def _check_places(spans, alignment):
    """Raise ValueError unless each of `spans` (begin, end, name) begins where the one before ends.

    But for padding, that is; otherwise a tensor would be given the values of another.
    """
    due = 0
    for offset, end, theirs in sorted(spans):
        if offset != due:
            raise ValueError(f'the file is damaged: {theirs} begins at byte {offset:,} of the '
                             f'values, where {due:,} was due; download it again')
        due = end + -end % alignment


def _check_kind(kind):
    """Raise ValueError unless the package can dequantise this ggml type."""
    gguf = _package()
    try:
        known = gguf.GGMLQuantizationType(kind)
        # A try on a block of zeros: the package names types that it cannot dequantise.
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (ValueError, NotImplementedError):
        raise ValueError(f'the package gguf cannot dequantise ggml type {kind}; update it or use '
                         'another quantisation') from None


def _tokenizer(metadata, rows):
    """Return the byte-pair tokenizer of the metadata, with the ids of the file."""
    model = metadata.get('tokenizer.ggml.model')
    pre = metadata.get('tokenizer.ggml.pre')
    if model != 'gpt2' or pre not in [*PRE_TOKENIZERS]:
        raise ValueError(f'tokenizer {str(model)[:40]!r} cut by {str(pre)[:40]!r} is not '
                         'supported; supported is gpt2 cut by '
                         f'{" or ".join(PRE_TOKENIZERS)}')
    lists = ('tokens', 'token_type', 'merges')
    for name, kind in zip(lists, (str, int, str)):
        values = metadata.get(f'tokenizer.ggml.{name}')
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise ValueError(f'there is no metadata tokenizer.ggml.{name}, or it is no list of '
                             f'{"texts" if kind is str else "numbers"}')
    tokens, kinds, merges = (metadata[f'tokenizer.ggml.{name}'] for name in lists)
    used = max((k for k, kind in enumerate(kinds) if kind != _UNUSED), default=-1) + 1
    # Behind the last used one are fillers for spare embedding rows, which no text may reach.
    tokens = tokens[:used]
    if used > rows or len(set(tokens)) != used:
        raise ValueError(f'{used} tokens, {len(set(tokens))} different ones, for {rows} embedding '
                         'rows: the file is damaged')
    added = [(token, kind == _CONTROL) for token, kind in zip(tokens, kinds)
             if kind in (_CONTROL, _USER_DEFINED)]
    return byte_pairs({token: k for k, token in enumerate(tokens)},
                      [tuple(merge.split(' ')) for merge in merges], pre, added)


def _side_files(metadata: dict[str, Any], tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return {file name: JSON object}: the tokenizer's settings in the files of Hugging Face."""
    def token(key):
        """Return (id, text) of a special token, or (None, None)."""
        number = metadata.get(f'tokenizer.ggml.{key}_token_id')
        text = tokenizer.id_to_token(number) if isinstance(number, int) else None
        return (number, text) if text else (None, None)

    ids = {'bos': token('bos'), 'eos': token('eos'), 'pad': token('padding'),
           'unk': token('unknown')}
    config = {f'{key}_token': text for key, (_, text) in ids.items() if text}
    config |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False,
               'add_bos_token': bool(metadata.get('tokenizer.ggml.add_bos_token', False))}
    template = metadata.get('tokenizer.chat_template')
    if template:
        config['chat_template'] = template
    generation = {f'{key}_token_id': number for key, (number, _) in ids.items()
                  if number is not None and key != 'unk'}
    # Tokens that end a turn or a message end a reply as well.
    ends = sorted({ids['eos'][0], token('eot')[0], token('eom')[0]} - {None})
    if len(ends) > 1:
        generation['eos_token_id'] = ends
    return {'tokenizer_config.json': config, 'generation_config.json': generation}
