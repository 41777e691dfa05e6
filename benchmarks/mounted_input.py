"""Input through a mounted bucket: does a step wait for it, where none waits for a local disk?

A mixture of JPEGs of 40 to 160 kB is built on this disk, and mounted a second time through FUSE by
a server in which each open and each read takes 30 ms, and each stream has 200 MB/s: what a bucket
answers like. The pictures are of 40 pixels and one small tile, with padding behind them: what is
fetched is of full size and what is decoded is not, so that reading decides on few cores, too. The
real stream reads both; a step takes half as long again as the local stream needs for a batch. What
each step waits for its batch is shown for the local disk, for the mount, and for the mount without
readahead (a batch ahead, read by the threads that decode). After the first ten steps none may wait:
the exit code is 1 where one does, and the local disk has it ready.
Also: records per second that are read through the mount without decoding, by 1 and 64 threads.
Needs the extra [bench] and libfuse 3; FUSE_LIBRARY_PATH says where that is. Without a
/dev/fuse, or with --stand-in, the same delays are slept in front of each record instead.
"""
import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from begin import begin, parser
from record_pipeline import WORDS, make_tokenizer

FIRST = 10  # steps that may wait
WAITS = 0.005  # seconds; handing over a batch that is ready takes less
SLACK = 1.5
PICTURES, SIDE, BYTES = 2000, 40, (40_000, 160_000)


def arguments():
    made = parser(__doc__, 'mounted_input.py --steps 60 --json out.json')
    made.add_argument('--steps', type=int, default=60, help='steps of each (default 60)')
    made.add_argument('--batch', type=int, default=16, help='rows of a batch (default 16)')
    made.add_argument('--latency', type=float, default=0.03, help='seconds (default 0.03)')
    made.add_argument('--rate', type=float, default=200e6,
                        help='bytes per second of a stream (default 200e6)')
    made.add_argument('--background', type=int, default=128,
                        help='requests that the kernel has under way at once (default 128; 12 is '
                        "the kernel's own)")
    made.add_argument('--stand-in', action='store_true', help='sleep, and mount nothing')
    made.add_argument('--serve', nargs=2, metavar=('FOLDER', 'POINT'), help=argparse.SUPPRESS)
    return begin(made, '2 minutes', {'steps': 20})


# --- a slow mount -----------------------------------------------------------------------------

def serve(args):
    """Serve a folder at a mount point until it is unmounted; each request waits as a bucket's."""
    import mfusepy
    folder, point = args.serve

    class Slow(mfusepy.Operations):
        use_ns = True

        def init_with_config(self, conn_info, config_3):
            conn_info.max_background = args.background

        def getattr(self, path, fh=None):
            try:
                stat = os.lstat(folder + path)
            except OSError as error:
                raise mfusepy.FuseOSError(error.errno) from None
            return {name: getattr(stat, name) for name in (
                'st_mode', 'st_size', 'st_nlink', 'st_uid', 'st_gid')}

        def readdir(self, path, fh):
            return ['.', '..', *os.listdir(folder + path)]

        def open(self, path, flags):
            time.sleep(args.latency)
            return os.open(folder + path, os.O_RDONLY)

        def read(self, path, size, offset, fh):
            time.sleep(args.latency + size / args.rate)
            return os.pread(fh, size, offset)

        def release(self, path, fh):
            os.close(fh)
    mfusepy.FUSE(Slow(), point, foreground=True, ro=True, max_threads=128)


def mounted(args, folder, point):
    """Start the server in a process of its own, for the interpreter lock; wait until it serves."""
    point.mkdir()
    server = subprocess.Popen([
        sys.executable, __file__, '--serve', folder, point, '--latency', str(args.latency),
        '--rate', str(args.rate), '--background', str(args.background)], stderr=subprocess.PIPE)
    until = time.monotonic() + 20
    while not os.path.ismount(point):
        if server.poll() is not None or time.monotonic() > until:
            server.kill()
            sys.exit(f'no mount: {server.communicate()[1].decode().strip()[-300:]}; try --stand-in')
        time.sleep(0.05)
    return server


def slept(corpus, args):
    """`corpus`, in front of whose records the delays of a read are slept."""
    read = corpus.record

    def record(index):
        found = read(index)
        time.sleep(args.latency + sum(map(len, found.talk.images)) / args.rate)
        return found
    corpus.record = record
    return corpus


def write_pictures(root):
    """LLaVA JSON and small JPEGs in large files, with captions of ten words."""
    import numpy as np
    from PIL import Image
    rng, rows = np.random.default_rng(0), []
    for k in range(PICTURES):
        noise = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        out = io.BytesIO()
        noise.save(out, 'JPEG')
        # Decoders stop at the end of the picture.
        (root / f'{k}.jpg').write_bytes(out.getvalue() + rng.bytes(int(rng.integers(*BYTES))))
        rows.append({'id': k, 'image': f'{k}.jpg', 'conversations': [
            {'from': 'human', 'value': '<image>\nDescribe the image.'},
            {'from': 'gpt', 'value': ' '.join(rng.choice(WORDS, 10).tolist())}]})
    (root / 'photos.json').write_text(json.dumps(rows))


# --- measuring --------------------------------------------------------------------------------

def waits(sampler, step_seconds, steps, **settings):
    """Seconds that each step waited for its batch; a step itself is slept, as a device's is."""
    from downscale.data import pipeline
    before = {name: getattr(pipeline, name) for name in settings}
    for name, value in settings.items():
        setattr(pipeline, name, value)
    batches = iter(pipeline.stream(sampler, 0))
    found = []
    try:
        for _ in range(steps):
            begin = time.perf_counter()
            next(batches)
            found.append(time.perf_counter() - begin)
            time.sleep(step_seconds)
    finally:
        batches.close()
        for name, value in before.items():
            setattr(pipeline, name, value)
    return found


def told(name, found):
    after = found[FIRST:]
    waiting = sum(wait > WAITS for wait in after)
    print(f'{name:34s} first batch {found[0]:6.2f} s; after {FIRST} steps {waiting:3d} of '
          f'{len(after)} wait, longest {1000 * max(after):7.1f} ms, in all {sum(after):6.2f} s',
          flush=True)
    return waiting


def read_rate(corpus, threads, count):
    """Records per second that `threads` threads read."""
    import numpy as np
    numbers = np.random.default_rng(threads).permutation(len(corpus))[:count]
    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        list(pool.map(corpus.record, numbers))
        return count / (time.perf_counter() - begin)


def measure(args, root, far):
    from downscale.data import pipeline
    from downscale.data.buckets import Shape
    from downscale.data.chat import CHATS
    from downscale.data.corpora.mixture import Corpus
    from downscale.data.corpora.sampler import CorpusSampler
    from downscale.data.scenes.conversations import Recipe
    from downscale.data.tokens import Encoder, Layout, load_tokenizer
    from downscale.sizes import Pictures, VisionConfig
    vision = VisionConfig(layers=1, W=32, H=2, F=64, patch=14, image=56)
    encoder = Encoder(load_tokenizer(root / 'tokenizer.json'), CHATS['chatml'],
                      Layout(vision, Pictures('padded')))

    def sampler(folder):
        corpus = Corpus(folder)
        if args.stand_in and folder == far:
            slept(corpus, args)
        return CorpusSampler(corpus, encoder, Recipe(stage='instruct'),
                             Shape(args.batch, 480, 4))
    # How long a batch takes from a local disk sets the pace of the steps.
    batches = iter(pipeline.stream(sampler(root / 'built'), 0))
    found = [next(batches) for _ in range(4)]
    begin = time.perf_counter()
    for _ in range(20):
        next(batches)
    batch_seconds = (time.perf_counter() - begin) / 20
    batches.close()
    records = sum(batch['segments'].max(1).sum() for batch in found) / len(found)
    step = SLACK * batch_seconds
    print(f'a local batch of {records:.0f} records takes {1000 * batch_seconds:.0f} ms; a step '
          f'{1000 * step:.0f} ms: {records / step:.0f} records per second', flush=True)
    result = {'step_seconds': step, 'records_per_batch': float(records), 'waits': {}}
    makers = min(pipeline.MAKERS, os.cpu_count())
    for name, folder, settings in (
            ('local', root / 'built', {}), ('mount', far, {}),
            ('mount, no readahead', far, {'AHEAD': 1, 'READERS': makers})):
        result['waits'][name] = waits(sampler(folder), step, args.steps, **settings)
    return result, sampler(far).corpus


def main():
    args = arguments()
    if args.serve:
        return serve(args)
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from downscale.data.corpora.build import build
    from downscale.data.corpora.build_settings import Settings
    from downscale.data.corpora.mixture import Mixture
    from downscale.data.corpora.sources import Source
    args.stand_in = args.stand_in or not os.path.exists('/dev/fuse')
    with tempfile.TemporaryDirectory(prefix='downscale-mounted-') as folder:
        root = Path(folder)
        make_tokenizer(root / 'tokenizer.json')
        write_pictures(root)
        source = Source('photos', 'photos.json', licence='none', obtain='made here')
        build(Mixture('photos', (source,)), root / 'built', Settings(root=root))
        far = root / 'stand-in'
        server = None
        if args.stand_in:
            far.symlink_to(root / 'built')
        else:
            server = mounted(args, root / 'built', far)
        try:
            result, corpus = measure(args, root, far)
            result['read_per_second'] = {str(n): read_rate(corpus, n, c)
                                         for n, c in ((1, 20), (64, 350))}
            # Open files keep a mount busy.
            del corpus
        finally:
            if server:
                subprocess.run(['umount', '--lazy', far], check=False)
                server.wait(10)
    waiting = {name: told(name, found) for name, found in result['waits'].items()}
    print('read through the mount, records per second: ' + ', '.join(
        f'{rate:.0f} by {threads} threads' for threads, rate in result['read_per_second'].items()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')
    return int(waiting['local'] == 0 and waiting['mount'] > 0)


if __name__ == '__main__':
    sys.exit(main())
