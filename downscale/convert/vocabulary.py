"""Byte-pair tokenizers from their parts: of a GGUF file, or of vocab.json and merges.txt."""
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from downscale.convert.shards import read_object
from downscale.convert.side_files import named
from downscale.data.tokens import load_tokenizer

# How text is cut before byte pairs are merged. Qwen's expression is the one in its tokenizer.json;
# SmolLM's cuts digits apart and then as GPT-2 does.
_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE_TOKENIZERS = ('qwen2', 'smollm')
# tokenizer_class -> the cut of it; their tokenizers are read from vocab.json and merges.txt.
_CLASSES = {'Qwen2Tokenizer': 'qwen2', 'Qwen2TokenizerFast': 'qwen2', 'GPT2Tokenizer': 'gpt2',
            'GPT2TokenizerFast': 'gpt2'}
_SENTENCE_PIECE = ('tokenizer.model', 'spiece.model', 'sentencepiece.bpe.model')


def byte_pairs(vocab: dict[str, int], merges: list[tuple[str, str]], cut: str,
               added: Iterable[tuple[str, bool]], prefix_space: bool = False) -> Tokenizer:
    """Return the tokenizer of {token: id} and of pairs of tokens that are merged.

    Text is cut before that as 'qwen2', 'smollm' or 'gpt2' does. `added` is [(token, special)]; each
    is in `vocab`, so that it keeps its id whatever its place. ValueError in one line when a merge
    names what is no token.
    """
    try:
        tokenizer = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises bare Exception for an unknown merge
        line = ' '.join(str(error).split())[:120]
        raise ValueError(f'the tokenizer is damaged: {line}') from None
    whole = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    if cut == 'qwen2':
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_QWEN2), 'isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)])
    elif cut == 'smollm':
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), whole])
    else:
        tokenizer.pre_tokenizer = whole
    tokenizer.decoder = decoders.ByteLevel()
    # They are found in text before it is cut; only special ones can be left out of it.
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)
                          for token, special in added])
    return tokenizer


def open_tokenizer(folder: Path, rows: int) -> tuple[Tokenizer | None, bool, list[str]]:
    """Return (tokenizer or None, whether it has to be written anew, notes).

    Without a tokenizer.json it is built from vocab.json and merges.txt. ValueError where the folder
    has a tokenizer that cannot be read, or ids beyond the `rows` of the embedding.
    """
    folder = Path(folder)
    if (folder / 'tokenizer.json').is_file():
        tokenizer = load_tokenizer(folder / 'tokenizer.json', rows)
        settings = read_object(folder / 'tokenizer.json')
        # They would cut or pad every prompt without a word.
        limits = [key for key in ('truncation', 'padding') if settings.get(key)]
        if not limits:
            return tokenizer, False, []
        return tokenizer, True, [f'switched off in tokenizer.json: {" and ".join(limits)}']
    if (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
        tokenizer = _built(folder)
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if size > rows:
            raise ValueError(f'{folder / "vocab.json"} has token ids up to {size - 1}, the '
                             f'embedding only {rows} rows; give the files of one model')
        return tokenizer, True, ['built tokenizer.json from vocab.json and merges.txt']
    pieces = [name for name in _SENTENCE_PIECE if (folder / name).is_file()]
    if pieces:
        raise ValueError(f'{folder / pieces[0]} is a SentencePiece model, which is not read; save '
                         'a tokenizer.json beside it: AutoTokenizer.from_pretrained(FOLDER)'
                         '.save_pretrained(FOLDER)')
    return None, False, ['no tokenizer came along; give the study one']


def _built(folder):
    """Return the tokenizer of vocab.json, merges.txt and the added tokens of a folder."""
    config = read_object(folder / 'tokenizer_config.json')
    kind = config.get('tokenizer_class')
    if kind not in _CLASSES:
        raise ValueError(f'{folder}: no tokenizer.json, and vocab.json with merges.txt of '
                         f'tokenizer_class {str(kind)[:40]!r} is not known; known are '
                         f'{named(_CLASSES)}. Save a tokenizer.json with transformers')
    # 1. Tokens and ids, which the files must agree on.
    vocab = read_object(folder / 'vocab.json')
    added = _added(folder, config)
    for token, (number, _) in added.items():
        if vocab.setdefault(token, number) != number:
            raise ValueError(f'{folder}: {token[:40]!r} has id {vocab[token]} in vocab.json and '
                             f'{number} among the added tokens')
    wrong = [token for token, number in vocab.items()
             if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31]
    if wrong or len(set(vocab.values())) != len(vocab):
        raise ValueError(f'{folder / "vocab.json"} is damaged: its ids are not whole numbers, each '
                         f'used once ({named(wrong) or "some occur twice"})')
    # 2. Merges, a pair a line, in order.
    try:
        lines = (folder / 'merges.txt').read_text('utf-8').splitlines()
    except UnicodeDecodeError:
        raise ValueError(f'{folder / "merges.txt"} is no UTF-8; download it again') from None
    if lines and lines[0].startswith('#version'):
        lines = lines[1:]
    merges = [tuple(line.split(' ')) for line in lines if line]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f'{folder / "merges.txt"} is damaged: not every line has two tokens')
    return byte_pairs(vocab, merges, _CLASSES[kind],
                      [(token, special) for token, (_, special) in added.items()],
                      config.get('add_prefix_space') is True)


def _added(folder, config):
    """Return {token: (id, whether it is special)} of the tokens beside the vocabulary."""
    added = {}
    for number, token in (config.get('added_tokens_decoder') or {}).items():
        try:
            added[token['content']] = int(number), bool(token.get('special', False))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f'{folder / "tokenizer_config.json"}: added_tokens_decoder '
                             f'{str(number)[:20]!r} is no token with a content') from None
    special = read_object(folder / 'special_tokens_map.json')
    names = {str(value.get('content') if isinstance(value, dict) else value)
             for value in (*special.values(), *(special.get('additional_special_tokens') or ()))}
    for token, number in read_object(folder / 'added_tokens.json').items():
        added.setdefault(token, (number, token in names))
    # As text, for a damaged id need not be a number, and is refused later in words of its own.
    return dict(sorted(added.items(), key=lambda row: str(row[1][0]).zfill(12)))
