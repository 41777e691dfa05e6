"""Records of a built mixture: does our stream give them as fast as torch's DataLoader would?

Both sides read the same ArrayRecord files and make the same arrays of each record with the same
functions: JPEGs of 300 to 1920 pixels, decoded and cut into tiles of 384 as LLaVA-OneVision does
for SigLIP-so400m, and text tokenised in ChatML. Ours then packs them into batches, in threads of
one process; DataLoader hands over lists of conversations, unpacked, from worker processes. Two
workers each, rounds interleaved; started workers and opened files are not timed.
Also: the share of making that is decoding and cutting, the fill of packed rows, and what building
the mixture took. Needs the extra [bench] for torch.
"""
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from begin import begin, parser

PICTURES, SIZES = 400, (300, 1920)
WORDS = ('red', 'green', 'square', 'above', 'the', 'left', 'of', 'a', 'small', 'circle')


def arguments():
    made = parser(__doc__, 'record_pipeline.py --tokenizer tokenizer.json')
    made.add_argument('--rounds', type=int, default=5, help='timed rounds (default 5)')
    made.add_argument('--workers', type=int, default=2, help='of each side (default 2)')
    made.add_argument('--tokenizer', type=Path, help='tokenizer.json with ChatML tokens '
                        '(default: a small byte-level BPE, made here)')
    return begin(made, '4 minutes', {'rounds': 1})


def make_tokenizer(path):
    """A byte-level BPE of 400 tokens with the tokens of ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([' '.join(WORDS)] * 3, trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(token) for token in ('<|im_start|>', '<|im_end|>')])
    made.save(str(path))


def write_photos(root):
    """LLaVA JSON and JPEGs, blurred noise of many sizes, with captions of 60 words."""
    import numpy as np
    from PIL import Image
    rng, rows = np.random.default_rng(0), []
    for k in range(PICTURES):
        size = tuple(int(side) for side in np.exp(rng.uniform(*np.log(SIZES), 2)))
        noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        out = io.BytesIO()
        noise.resize(size, Image.Resampling.BICUBIC).save(out, 'JPEG', quality=90)
        (root / f'{k}.jpg').write_bytes(out.getvalue())
        caption = ' '.join(rng.choice(WORDS, 60).tolist())
        rows.append({'id': k, 'image': f'{k}.jpg', 'conversations': [
            {'from': 'human', 'value': '<image>\nDescribe the image.'},
            {'from': 'gpt', 'value': caption}]})
    (root / 'photos.json').write_text(json.dumps(rows))


class Made:
    """Records of a sampler as a torch data set: the same arrays by the same functions."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return len(self.sampler.corpus)

    def __getitem__(self, index):
        return self.sampler.make(self.sampler.read(self.sampler.sequence(0)[index]))


def as_list(batch):
    return batch


def loader_of(sampler, workers):
    """An endless iterator of lists of conversations by torch's DataLoader."""
    from torch.utils.data import DataLoader
    loader = DataLoader(Made(sampler), batch_size=4, shuffle=True, num_workers=workers,
                        collate_fn=as_list, persistent_workers=True, prefetch_factor=2,
                        multiprocessing_context='spawn')
    while True:
        yield from loader


def conversations_in(batch):
    return len(batch) if isinstance(batch, list) else int(batch['segments'].max(1).sum())


def rate(batches, least):
    """Conversations per second over at least `least` of them."""
    begin, found = time.perf_counter(), 0
    while found < least:
        found += conversations_in(next(batches))
    return found / (time.perf_counter() - begin)


def decode_share(sampler):
    """The share of making a conversation that is decoding and cutting its pictures."""
    from downscale.data import images
    spent = [0.0, 0.0]
    for index in range(40):
        drawn = sampler.sequence(1)[index]
        images._cache.found.clear()
        begin = time.perf_counter()
        sampler.make(sampler.read(drawn))
        spent[0] += time.perf_counter() - begin
        images._cache.found.clear()
        talk = sampler.corpus.record(drawn.number).talk
        begin = time.perf_counter()
        sampler.encoder.layout.cut(talk.images)
        spent[1] += time.perf_counter() - begin
    return spent[1] / spent[0]


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from downscale.data import pipeline
    from downscale.data.buckets import Shape
    from downscale.data.corpora.build import build
    from downscale.data.corpora.build_settings import Settings
    from downscale.data.corpora.mixture import Corpus, Mixture
    from downscale.data.corpora.sampler import CorpusSampler
    from downscale.data.corpora.sources import Source
    from downscale.data.scenes.conversations import Recipe
    pipeline.MAKERS = args.workers
    with tempfile.TemporaryDirectory(prefix='downscale-records-') as folder:
        root = Path(folder)
        tokenizer = args.tokenizer or root / 'tokenizer.json'
        if not args.tokenizer:
            make_tokenizer(tokenizer)
        write_photos(root)
        settings = Settings(root=root, tokenizer=tokenizer)
        source = Source('photos', 'photos.json', licence='none', obtain='made here')
        begin = time.perf_counter()
        manifest = build(Mixture('photos', (source,)), root / 'built', settings, args.workers)
        built = PICTURES / (time.perf_counter() - begin)
        sampler = CorpusSampler(Corpus(root / 'built'), settings.encoder('instruct'),
                                Recipe(stage='instruct'), Shape(2, 9216, 40))
        ours, torch_s = iter(pipeline.stream(sampler, 0)), loader_of(sampler, args.workers)
        for batches in (ours, torch_s):
            rate(batches, 12)
        rates = {'ours': [], 'torch': []}
        for _ in range(args.rounds):
            rates['ours'].append(rate(ours, 100))
            rates['torch'].append(rate(torch_s, 100))
        found = [next(ours) for _ in range(8)]
        filled = [(batch['segments'] > 0).mean() for batch in found]
        ours.close()
        figures = {'ours_per_second': rates['ours'], 'torch_per_second': rates['torch'],
                   'ratio': statistics.median(a / b for a, b in zip(*rates.values())),
                   'decode_share': decode_share(sampler), 'fill': sum(filled) / len(filled),
                   'built_per_second': built,
                   'tokens': manifest['sources']['photos']['tokens']['all']['mean']}
    print(f'records per second: ours {statistics.median(rates["ours"]):.1f} (packed), torch '
          f'{statistics.median(rates["torch"]):.1f} (not packed), ratio {figures["ratio"]:.2f} '
          f'(median of {args.rounds} rounds)\n'
          f'{figures["decode_share"]:.0%} of making a record is decoding and cutting; rows are '
          f'{figures["fill"]:.0%} full; mean record {figures["tokens"]:,.0f} tokens\n'
          f'built at {built:.0f} records per second')
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()
