"""A byte-level BPE tokenizer of a few hundred tokens, cut and extended as Qwen3's is."""
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CONTROL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
USER_DEFINED = ('<think>', '</think>')
# What Qwen3's tokenizer.json cuts text with.
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = ('user system assistant', 'user\n\nand then', 'a picture of a red square.\n', 'What is it?',
        'You are a helpful assistant.', 'Two and three make five.\n\n', '\n\n\n', '12345 6789')
# Spaces, line breaks, digits, contractions, accents composed and not, other scripts, long runs.
AWKWARD = (
    '', ' ', '\n', '\n\n x\t\ty  \r\n', "I'll don't WE'RE 3.14 1234567", '  indented()\n  {};',
    'naïve nai\u0308ve', '日本語 हिन्दी العربية 🙂 👩\u200d👧',
    '<think>\n\n</think>\n\n<|im_end|> <|im_', 'a' * 300)


def qwen_cut():
    """Qwen's normaliser and pre-tokeniser."""
    cut = [pre_tokenizers.Split(Regex(QWEN), 'isolated'),
           pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return normalizers.NFC(), pre_tokenizers.Sequence(cut)


def smollm_cut():
    """SmolLM's: none, and single digits before GPT-2's cut."""
    cut = [pre_tokenizers.Digits(individual_digits=True),
           pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return None, pre_tokenizers.Sequence(cut)


@cache
def tokenizer(cut=qwen_cut, text=TEXT):
    """The tokenizer trained on `text`; special tokens follow the vocabulary, as in Qwen3."""
    made = Tokenizer(models.BPE())
    normalizer, made.pre_tokenizer = cut()
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    made.train_from_iterator(text * 3, trainer)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    made.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return made
