"""Frozen model sizes: the published ones, a micro family, and any width x depth point of a base.

Everything that depends on a model's size is read from here; see `accounting.py` for its price.
Sources: the public model configurations, as listed in arXiv 2511.17487 and its releases.
"""
import itertools
from dataclasses import dataclass, replace
from typing import Annotated

from downscale.values import Choice, Range, Several, check

WIDEST = 2 ** 20  # of any axis


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A decoder: N layers of width D, MLP width F, H query heads of width E on K key/value heads.

    H * E need not equal D (Qwen3-0.6B: 2048 against 1024). V counts embedding rows.
    """
    N: Annotated[int, Range(1, 10_000, 'layers')]
    D: Annotated[int, Range(1, WIDEST, 'width')]
    H: Annotated[int, Range(1, WIDEST, 'query heads')]
    K: Annotated[int, Range(1, WIDEST, 'key/value heads')]
    E: Annotated[int, Range(2, WIDEST, 'width of a head')]
    F: Annotated[int, Range(1, WIDEST, 'width of the MLP')]
    V: Annotated[int, Range(0, 2 ** 24, 'rows of the embedding')]
    tie: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    theta: Annotated[float, Range(0, 1e12, 'base of the rotary angles', without=(0,))] = 1e6
    eps: Annotated[float, Range(0, 1, 'what the norms add to a variance', without=(0, 1))] = 1e-6

    def __post_init__(self):
        check(self)
        if self.H % self.K:
            raise ValueError(f'{self.H} query heads are not a multiple of {self.K} key/value heads '
                             f'({self.H} % {self.K} = {self.H % self.K}); change heads or width')
        if self.E % 2:
            raise ValueError(f'head width {self.E} is odd; rotary embedding needs pairs')


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A ViT tower: `layers` blocks of width W are run, on square images cut into square patches.

    `image` and `patch` are in pixels; pixels beyond the last whole patch are dropped, as a
    convolution with 'valid' padding does. SigLIP is used without its last block.
    """
    layers: Annotated[int, Range(1, 10_000, 'blocks that are run')]
    W: Annotated[int, Range(1, WIDEST, 'width')]
    H: Annotated[int, Range(1, WIDEST, 'heads')]
    F: Annotated[int, Range(1, WIDEST, 'width of the MLP')]
    patch: Annotated[int, Range(1, 4096, 'pixels along a patch')]
    image: Annotated[int, Range(1, 65_536, 'pixels along a tile')]
    eps: Annotated[float, Range(0, 1, 'what the norms add to a variance', without=(0, 1))] = 1e-6

    def __post_init__(self):
        check(self)
        if self.image < self.patch:
            raise ValueError(f'vision: a tile of {self.image} pixels holds no patch of '
                             f'{self.patch}; raise `image` or lower `patch`')
        if self.W % self.H:
            raise ValueError(f'vision width {self.W} is not divisible by {self.H} heads '
                             f'({self.W} % {self.H} = {self.W % self.H})')

    @property
    def P(self) -> int:
        """Patches of one tile."""
        return (self.image // self.patch) ** 2

    @property
    def Q(self) -> int:
        """Values of one RGB patch."""
        return 3 * self.patch ** 2

    @property
    def E(self) -> int:
        """Width of one head."""
        return self.W // self.H


@dataclass(frozen=True)
class Pictures:
    """How a picture becomes tiles and tokens (arXiv 2511.17487, section 3.1; LLaVA-OneVision).

    'flat': the whole picture squashed into one tile of P tokens, no newline (connector stage).
    'padded': squared with grey, one tile, P tokens and one newline (several pictures at once).
    'anyres': the squashed picture, then a grid of tiles that keeps the aspect, a newline after each
    row; reduced bilinearly when it exceeds `max_tiles` tiles' worth of tokens. `grids` lists the
    allowed (columns, rows), in the order in which ties are broken. Several pictures in one
    conversation are 'padded' in this mode too.
    """
    mode: Annotated[str, Choice(('flat', 'padded', 'anyres'), 'mode of pictures')] = 'padded'
    max_tiles: Annotated[int, Range(1, 10_000, 'tiles whose tokens a picture may take')] = 9
    grids: Annotated[
        tuple[tuple[Annotated[int, Range(1, 1000, 'columns of tiles')],
                    Annotated[int, Range(1, 1000, 'rows of tiles')]], ...],
        Several(1, 'the grids of tiles that a picture may be cut into')] = tuple(
            (x, y) for x in range(1, 7) for y in range(1, 7))

    def __post_init__(self):
        check(self)


def _qwen3(N, D, H, F, tie=True):
    # The table of a vocabulary is longer than its tokenizer: 151,936 = 128 x 1,187 rows.
    return LanguageConfig(N=N, D=D, H=H, K=8, E=128, F=F, V=151936, tie=tie, qk_norm=True)


def _smollm2(N, D, H, K, F, theta):
    return LanguageConfig(N=N, D=D, H=H, K=K, E=64, F=F, V=49152, theta=theta, eps=1e-5)


QWEN3 = {
    '0.6b': _qwen3(28, 1024, 16, 3072),
    '1.7b': _qwen3(28, 2048, 16, 6144),
    '4b': _qwen3(36, 2560, 32, 9728),
    '8b': _qwen3(36, 4096, 32, 12288, tie=False),
}
QWEN2 = {
    '0.5b': LanguageConfig(N=24, D=896, H=14, K=2, E=64, F=4864, V=151936, qkv_bias=True),
}
SMOLLM2 = {
    '135m': _smollm2(30, 576, 9, 3, 1536, 1e5),
    '360m': _smollm2(32, 960, 15, 5, 2560, 1e5),
    '1.7b': _smollm2(24, 2048, 32, 32, 8192, 1.3e5),
}
# Trained here from random initialisation; the same block as Qwen3, so a lesson carries over.
_MICRO_BASE = LanguageConfig(N=2, D=64, H=4, K=2, E=16, F=192, V=512, qk_norm=True, theta=1e4)
SIGLIP = {
    # 27 blocks are published, the last is not run; 384 pixels hold 27 x 27 patches of 14.
    'so400m-patch14-384': VisionConfig(layers=26, W=1152, H=16, F=4304, patch=14, image=384),
    'micro': VisionConfig(layers=2, W=64, H=4, F=192, patch=20, image=80),
}
PARTS = {'H': 'query heads', 'K': 'key-value heads', 'F': 'hidden units'}  # what scales with D


def scale(base: LanguageConfig, width: int | None = None, depth: int | None = None,
          vocabulary: int | None = None) -> LanguageConfig:
    """Return `base` at another width D and depth N, head width and the q:kv head ratio kept.

    H, K and F scale with the width and must come out whole; ValueError shows the arithmetic.
    """
    width = base.D if width is None else width
    depth = base.N if depth is None else depth
    if width < 1 or depth < 1:
        raise ValueError(f'width {width} and depth {depth} must be at least 1')
    fields = {'H': base.H, 'K': base.K, 'F': base.F}
    parts = {}
    for letter, field in fields.items():
        if field * width % base.D:
            best = _nearest_width(base, width)
            raise ValueError(f'width {width}: {letter} ({PARTS[letter]}) = {field} * {width} / '
                             f'{base.D} = {field * width / base.D:g} is not whole; nearest width '
                             f'is {best}')
        parts[letter] = field * width // base.D
    # pyrefly: ignore[bad-argument-type]
    return replace(base, D=width, N=depth, V=vocabulary or base.V, **parts)


def cut(base: LanguageConfig, layers: int | None = None, hidden: int | None = None,
        heads: int | None = None) -> LanguageConfig:
    """Return `base` with other numbers of layers N, hidden units F and query heads H.

    Key/value heads go with the query heads that share them; ValueError where heads are no whole
    groups.
    """
    H = base.H if heads is None else heads
    G = base.H // base.K
    if H % G:
        raise ValueError(f'{H} query heads are no whole groups: {G} share a key/value head; the '
                         f'nearest is {max(1, round(H / G)) * G}')
    return replace(base, N=base.N if layers is None else layers,
                   F=base.F if hidden is None else hidden, H=H, K=H // G)


def _nearest_width(base, width):
    """Return the width next to `width` at which H, K and F of `base` come out whole."""
    # A multiple of the base's width always comes out whole, so the range holds at least one.
    whole = [other for other in range(1, 2 * width + base.D)
             if not any(field * other % base.D for field in (base.H, base.K, base.F))]
    return min(whole, key=lambda other: abs(other - width))


_WIDTHS = (32, 64, 128, 256)
_DEPTHS = (2, 3, 4, 6, 8)
MICRO = {f'w{width}d{depth}': scale(_MICRO_BASE, width, depth)
         for width, depth in itertools.product(_WIDTHS, _DEPTHS)}
LANGUAGE = {'qwen3': QWEN3, 'qwen2': QWEN2, 'smollm2': SMOLLM2, 'micro': MICRO}


KINDS = ('standard', 'mup')


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How many times wider (m) and deeper (l) a model is than the base of its hyperparameters.

    `input` is what embeddings of tokens are multiplied by, `head` what the head reads at the base.
    """
    width: float = 1.0
    depth: float = 1.0
    input: float = 1.0
    head: float = 1.0

    @property
    def residual(self) -> float:
        """What each residual branch is multiplied by: 1 / l."""
        return 1 / self.depth

    @property
    def output(self) -> float:
        """What the head reads is multiplied by this, also where it is the embedding: head / m."""
        return self.head / self.width
BASE = Growth()


@dataclass(frozen=True, kw_only=True)
class Parametrisation:
    """How a cell's hyperparameters depend on its size: not at all ('standard'), or by 'mup'.

    The base is the size at which they were tuned: there both kinds are the same program. `input`
    and `output` multiply the embeddings of tokens and what the head reads, at the base: two more
    hyperparameters of models that start from random values (arXiv 2203.03466, section 6). With 8
    and 4 the micro family learns to look things up several times sooner than with 1 and 1.
    """
    kind: Annotated[str, Choice(KINDS, 'kind of parametrisation')] = 'standard'
    base_width: Annotated[int, Range(0, WIDEST, 'width at which the rates were tuned')] = 0
    base_depth: Annotated[int, Range(0, 10_000, 'depth at which the rates were tuned')] = 0
    input: Annotated[float, Range(0, 1e6, 'what token embeddings are multiplied by',
                                  without=(0,))] = 1.0
    output: Annotated[float, Range(0, 1e6, 'what the head reads is multiplied by',
                                   without=(0,))] = 1.0

    def __post_init__(self):
        check(self)
        if self.kind == 'mup' and min(self.base_width, self.base_depth) < 1:
            raise ValueError(f'parametrisation mup: base_width {self.base_width} and base_depth '
                             f'{self.base_depth} must say at which size the rates were tuned')

    def growth(self, language: LanguageConfig) -> Growth:
        """Return the `Growth` of a LanguageConfig; ValueError where its family has no such base."""
        if self.kind == 'standard':
            return Growth(input=self.input, head=self.output)
        # Heads must come out whole at the base too, or m would not be the ratio of anything.
        scale(language, self.base_width, self.base_depth)  # for its check
        return Growth(
            width=language.D / self.base_width,
            depth=language.N / self.base_depth,
            input=self.input,
            head=self.output,
        )
