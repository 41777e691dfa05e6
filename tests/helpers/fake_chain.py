"""A chain with an engine that invents text, on a tiny study with two models for each part.

The engine's text hangs on the prompt, the pictures, the model and the randomness of a row, so any
mix-up of rows or any leak of batch, order or process into a record changes a file.
"""
import json
import shutil
import zlib
from functools import cache
from pathlib import Path

import orbax.checkpoint as ocp
import small

from downscale import config
from downscale.config import Experiment
from downscale.data.scenes.conversations import THINK
from downscale.data.tokens import Encoder
from downscale.evaluate import prompts
from downscale.evaluate.asked import open_questions
from downscale.evaluate.extract_think import Chain
from downscale.evaluate.plan import ChainPlan
from downscale.evaluate.runs import open_runs
from downscale.generate.engine import Reply, Stats
from downscale.model.init import init_params
from downscale.stages.loading import load
from downscale.train import checkpoint

LIMIT = 20
PLAN = ChainPlan(describe='extract', reason=('think', 'direct'), think_tokens=30, answer_tokens=8,
                 describe_tokens=20, temperature=0.6, repeats=2)
WORDS = ('red', 'blue', 'a1', 'b2', 'circle', 'square', 'yes', 'no', '1', '2')


class Fake:
    """An engine that answers in the order of its slots; `after` rows from now it is killed."""
    asked = []  # (folder, prompt text, has pictures, request) of every row of every engine
    after = None

    def __init__(self, folder, slots):
        _, _, tokenizer, cell = load(folder)
        self.encoder = Encoder(tokenizer, cell.chat_of(folder.name), cell.layout(folder.name))
        self.folder, self.slots, self.stats = folder, slots, Stats()

    def stream(self, requests, decoding):
        for start in range(0, len(requests), self.slots):
            for index in reversed(range(start, min(start + self.slots, len(requests)))):
                if Fake.after is not None:
                    if Fake.after == 0:
                        raise KeyboardInterrupt
                    Fake.after -= 1
                reply = self.reply(requests[index], decoding)
                self.stats.rows, self.stats.tokens = \
                    self.stats.rows + 1, self.stats.tokens + len(reply.ids)
                yield index, reply

    def reply(self, request, decoding):
        prompt = request.prompt
        text = self.encoder.text(prompt.tokens).replace(self.encoder.chat.assistant[0], '').strip()
        seen = b'' if prompt.tiles is None else prompt.tiles.tobytes()
        Fake.asked.append((self.folder, text, bool(seen), request))
        number = zlib.crc32(repr((self.folder.parts[-2:], prompt.tokens.tolist(), request.sample,
                                  request.think, decoding)).encode() + seen)
        said = ' '.join(WORDS[number // 10 ** k % 10] for k in range(1 + number % 3))
        thinks, close = request.think is not None, ''
        if thinks:
            close = ('natural', 'forced', 'open')[number % 7 % 3]
            said = f'{said} so' if close == 'open' else f'{said} {THINK[1]} {said}'
        ids = tuple(self.encoder.ids(said))
        return Reply(
            ids=ids,
            text=said,
            finish='length' if close == 'open' or number % 5 == 0 else 'stop',
            nll=float('nan'),
            close=close,
            thought=len(ids) // 2 if thinks else 0,
            answered=len(ids) // 2,
        )


def save_run(folder, groups, seed, depth=1):
    """A run folder of a model with random values, as training leaves it."""
    params = init_params(small.model(depth), seed)
    manager = checkpoint.open_manager(folder, every=1)
    manager.save(1, args=ocp.args.Composite(
        params=ocp.args.PyTreeSave({name: params[name] for name in groups}),
        meta=ocp.args.JsonSave({})))
    manager.close()
    config.save(
        Experiment(
            name=f'w32d{depth}-s0',
            size='w32',
            seed=0,
            language=small.language(depth),
            vision=small.VISION,
            pictures=small.PADDED,
        ),
        folder,
    )


@cache
def study():
    """A study with two perception models and two reasoners."""
    folder = Path(small._folder.name) / 'study'
    for depth in (1, 2):
        cell = folder / 'cells' / f'w32d{depth}-s0'
        save_run(cell / 'extract', ('language', 'tower', 'connector', 'image_newline_D'), 1, depth)
        save_run(cell / 'reason', ('language',), 2, depth)
    small.tokenizer()
    shutil.copy(Path(small._folder.name) / 'tokenizer.json', folder)
    (folder / 'data.json').write_text(json.dumps({'folder': str(small.data()), 'hash': 'h'}))
    return folder


@cache
def runs(role, count=2):
    stage = {'perception': 'extract', 'reasoner': 'reason'}[role]
    return open_runs([study() / 'cells' / f'w32d{k + 1}-s0' / stage for k in range(count)], role)


def chain(out, **changes):
    given = {'plan': PLAN, 'prompts': prompts.load('micro'),
             'questions': open_questions(study(), limit=LIMIT),
             'perceptions': runs('perception'), 'reasoners': runs('reasoner'), 'engine': Fake,
             'patience': 0.0, **changes}
    return Chain(out=Path(out), **given)


def files(out):
    """The bytes of everything that must not depend on how it was made."""
    return {path.name: path.read_bytes() for path in Path(out).iterdir()
            if not path.name.startswith('throughput')}


@cache
def plain_run():
    """(folder, summary, rows asked) of one uninterrupted run."""
    out = Path(small._folder.name) / 'plain'
    Fake.asked = []
    found = chain(out).run()
    return out, found, list(Fake.asked)
