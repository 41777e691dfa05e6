"""Does the input stream keep up with the train step? Rates of one machine, interleaved by round.

Stages of the smoke study: conversations, tokens and tiles per second of the stream alone; the same
that the train step takes from a batch that is ready; steps per second with the stream feeding it,
as a share of that. Beside them the batches that grain's own range pipeline makes of bare numbers,
which is what an input pipeline could reach that does no work.
Pictures of real sizes: the same stream over JPEGs of 300 to 1920 pixels cut into tiles of 384 (the
tiling of LLaVA-OneVision for SigLIP-so400m), in one shape and in the buckets that are proposed;
no model of that size trains here. Planning is what every process does alike: drawing, tokenising
and measuring, without a pixel.
Buckets: conversations per second of training a small model on pictures of 2 to 37 tiles, in one
shape and in the proposed buckets, against the ratio that the counted FLOPs promise.
"""
import dataclasses
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from begin import begin, parser

from downscale.stages.models import model_of

STAGES, SIZE, PICTURES, SHAPES = ('text', 'instruct', 'extract'), 'w64d4', 200, 4


def arguments():
    made = parser(__doc__, 'input_pipeline.py --rounds 5 --json out.json')
    made.add_argument('--rounds', type=int, default=3, help='timed rounds (default 3)')
    made.add_argument('--steps', type=int, default=10, help='batches of a round (default 10)')
    return begin(made, '6 minutes', {'rounds': 1, 'steps': 3})


def seconds(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def smoke_cell(folder):
    """The cell of the smoke study whose rates are measured, its data prepared in `folder`."""
    from downscale.experiment import file
    from downscale.experiment.expansion import cells_of
    from downscale.stages.inputs import prepare
    smoke = Path(__file__).parents[1] / 'experiments' / 'smoke.py'
    study_config, sweep = file.load_study(smoke, ())
    with study_config.unlocked():
        del study_config['platform']
    cells = cells_of(study_config, sweep)
    cell = next(cell for cell in cells if cell.size == SIZE)
    prepare(folder, cell)
    return cell


def make_step(cell, stage, batch):
    """A function that trains `count` steps, on `batch` or on what an iterator gives, and waits."""
    import jax

    from downscale.model.init import init_params
    from downscale.sharding import batch_sharding, mesh, shardings
    from downscale.train.state import new_state
    from downscale.train.step import compiled_step
    model, target = model_of(cell, stage.name), mesh()
    groups = ('language', *(('tower', 'connector') if stage.tiles else ()),
              *(('image_newline_D',) if stage.tiles and model.newline else ()))
    trainable, rates = tuple(stage.trainable), dict(stage.rates)
    with jax.set_mesh(target):
        state = new_state(init_params(model, 0, groups), cell.optimizer, trainable)
        held = [jax.device_put(state, shardings(state, target, model.rules))]
    step = compiled_step(model, stage.kind.loss, cell.optimizer, trainable, target)

    def run(count, batches=None):
        with jax.set_mesh(target):
            for _ in range(count):
                given = batch if batches is None else next(batches)
                held[0], metrics = step(
                    held[0], jax.device_put(given, batch_sharding(target, model.rules)), rates)
            return float(metrics['loss'])
    run(2)
    return run


def bare(rows):
    """Batches of numbers by grain's range pipeline, read as ours is."""
    import grain
    data = grain.MapDataset.range(10**6).seed(0).shuffle().repeat()
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1)).batch(rows))


def contents(batches):
    """(conversations, tokens, tiles) in batches; a tile counts when a token shows it."""
    import numpy as np
    found = np.zeros(3)
    for batch in batches:
        found[0] += batch['segments'].max(1).sum()
        found[1] += (batch['segments'] > 0).sum()
        if 'tiles' in batch:
            _, count, patches, _ = batch['tiles'].shape
            for index in batch['image_index']:
                shown = index[(index >= 0) & (index < count * patches)]
                found[2] += len(np.unique(shown // patches))
    return found


def measure_stage(cell, stage, folder, args):
    """Figures of one stage of the smoke study."""
    from downscale.data import pipeline
    from downscale.stages.inputs import sampler_of
    sampler, seed = sampler_of(folder, cell, stage)
    batches = iter(pipeline.stream(sampler, seed))
    taken = [next(batches) for _ in range(args.steps)]  # every example has been parsed by now
    step, plain = make_step(cell, stage, taken[0]), bare(stage.batch)
    times = {'stream': [], 'step': [], 'fed': [], 'bare': []}
    for _ in range(args.rounds):
        times['stream'].append(seconds(lambda: [next(batches) for _ in range(args.steps)]))
        times['step'].append(seconds(lambda: step(args.steps)))
        times['fed'].append(seconds(lambda: step(args.steps, batches)))
        times['bare'].append(seconds(lambda: [next(plain) for _ in range(args.steps)]))
    batches.close()
    plan = seconds(lambda: pipeline.epoch(sampler, seed))
    middle = {name: statistics.median(values) / args.steps for name, values in times.items()}
    amounts = contents(taken) / args.steps
    return {'stage': stage.name, 'seconds_per_batch': middle,
            'stream_per_second': list(amounts / middle['stream']),
            'step_per_second': list(amounts / middle['step']),
            'stream_over_step': middle['step'] / middle['stream'],
            'fed_over_ready': middle['step'] / middle['fed'],
            'bare_over_stream': middle['stream'] / middle['bare'],
            'planned_per_second': len(sampler.library) / plan}


class Photos:
    """Examples of one JPEG each, blurred noise of many sizes, with a caption of some words."""

    def __init__(self, seed, low, high):
        import numpy as np
        from PIL import Image
        rng = np.random.default_rng(seed)
        self.found = []
        for _ in range(PICTURES):
            size = tuple(int(side) for side in np.exp(rng.uniform(np.log(low), np.log(high), 2)))
            noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            file = io.BytesIO()
            noise.resize(size, Image.Resampling.BICUBIC).save(file, 'JPEG', quality=90)
            self.found.append(file.getvalue())

    def __len__(self):
        return len(self.found)

    def example(self, index):
        from downscale.data.records import Example

        return Example(
            scene_id=f'photo{index}',
            images=(self.found[index],),
            caption=' '.join(['red'] * 60),
            questions=(),
        )


def measure_pictures(tokenizer, world, args):
    """Figures of pictures of real sizes, in one shape and in buckets."""
    import numpy as np

    from downscale.accounting import train_flops
    from downscale.data import buckets, pipeline
    from downscale.data.chat import CHATS
    from downscale.data.scenes.conversations import Recipe
    from downscale.data.scenes.sampler import Sampler
    from downscale.data.tokens import Encoder, Layout
    from downscale.sizes import QWEN3, SIGLIP, Pictures
    vision = SIGLIP['so400m-patch14-384']
    encoder = Encoder(tokenizer, CHATS['micro'], Layout(vision, Pictures('anyres')))
    largest, figures = buckets.Shape(2, 8960, 37), []

    def flops(length, tiles):
        return train_flops(QWEN3['0.6b'], vision, rows=1, length=int(length),
                           tiles=int(tiles))['total']
    for count in (1, SHAPES):
        # Pictures of their own: what was cut once is remembered.
        sampler = Sampler(
            recipe=Recipe(stage='caption'),
            library=Photos(count, 300, 1920),
            encoder=encoder,
            world=world,
            shape=largest,
        )
        begin = time.perf_counter()
        sizes = pipeline.epoch(sampler, 0)
        planned = len(sizes) / (time.perf_counter() - begin)
        smaller = buckets.propose(sizes, largest, count, flops)
        batches = iter(pipeline.stream(dataclasses.replace(sampler, buckets=smaller), 0))
        found, begin = np.zeros(3), time.perf_counter()
        for _ in range(args.steps):
            found += contents([next(batches)])
        rates = found / (time.perf_counter() - begin)
        batches.close()
        figures.append({'shapes': [[s.batch, s.length, s.tiles] for s in (*smaller, largest)],
                        'stream_per_second': list(rates), 'planned_per_second': planned,
                        'waste': buckets.padding((*smaller, largest), sizes, flops)['total']})
    return figures


def measure_buckets(cell, tokenizer, args):
    """Training in one shape against training in the proposed buckets, interleaved."""
    from downscale.data import buckets, pipeline
    from downscale.data.scenes.sampler import Sampler
    from downscale.data.tokens import Encoder
    from downscale.sizes import Pictures
    from downscale.stages import padding
    cell = dataclasses.replace(cell, pictures=Pictures('anyres'),
                               vision=dataclasses.replace(cell.vision, image=160))
    stage = dataclasses.replace(cell.stage('caption'), batch=4, length=896, tiles=37)
    encoder = Encoder(tokenizer, cell.chat_of('caption'), cell.layout('caption'))
    sampler = Sampler(
        recipe=stage.recipe,
        library=Photos(0, 120, 820),
        encoder=encoder,
        world=cell.world,
        shape=stage.shape,
    )
    sizes, flops = pipeline.epoch(sampler, 0), padding.row_flops(cell, stage)
    smaller = buckets.propose(sizes, stage.shape, SHAPES, flops)
    runs, rates, useful = [], ([], []), []
    for chosen in ((), smaller):
        batches = iter(pipeline.stream(dataclasses.replace(sampler, buckets=chosen), 0))
        total = buckets.padding((*chosen, stage.shape), sizes, flops)['total']
        useful.append(1 - total['flop_waste'])
        runs.append((make_step(cell, stage, next(batches)), batches))
        compiled = set()
        while len(compiled) <= len(chosen):
            batch = next(batches)
            compiled.add(batch['image_index'].shape[1:2] + batch['tiles'].shape[1:2])
            runs[-1][0](1, iter([batch]))
    for _ in range(args.rounds):
        for (step, batches), found in zip(runs, rates):
            taken = [next(batches) for _ in range(args.steps)]
            spent = seconds(lambda: step(args.steps, iter(taken)))  # noqa: B023
            found.append(contents(taken)[0] / spent)
    for _, batches in runs:
        batches.close()
    one, several = (statistics.median(found) for found in rates)
    return {'shapes': [[s.batch, s.length, s.tiles] for s in (*smaller, stage.shape)],
            'one_shape_per_second': one, 'buckets_per_second': several,
            'ratio': several / one, 'promised': useful[1] / useful[0]}


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from downscale.stages.inputs import encoder_of
    result = {'stages': []}
    with tempfile.TemporaryDirectory(prefix='downscale-input-') as folder:
        cell = smoke_cell(folder)
        print(f'{SIZE}, per second         conversations    tokens   tiles   stream/step  '
              'fed/ready  bare grain/stream  planned')
        for name in STAGES:
            stage = cell.stage(name)
            row = measure_stage(cell, stage, folder, args)
            result['stages'].append(row)
            for what, more in (('stream', f'{row["stream_over_step"]:13.2f} '
                                f'{row["fed_over_ready"]:10.2f} {row["bare_over_stream"]:18.0f} '
                                f'{row["planned_per_second"]:8,.0f}'), ('step', '')):
                said, tokens, tiles = row[f'{what}_per_second']
                print(f'  {name:9s} {what:13s} {said:13,.0f} {tokens:9,.0f} {tiles:7,.0f} {more}',
                      flush=True)
        tokenizer = encoder_of(folder, cell, 'caption').tokenizer
        result['buckets'] = measure_buckets(cell, tokenizer, args)
        result['pictures'] = measure_pictures(tokenizer, cell.world, args)
    print('\npictures of 300 to 1920 pixels, per second')
    for row in result['pictures']:
        said, tokens, tiles = row['stream_per_second']
        print(f'  {len(row["shapes"])} shapes: {said:6.1f} pictures, {tokens:8,.0f} tokens, '
              f'{tiles:6.1f} tiles; {row["waste"]["tile_waste"]:.0%} of tiles and '
              f'{row["waste"]["flop_waste"]:.0%} of FLOPs are padding; '
              f'{row["planned_per_second"]:,.0f} planned', flush=True)
    row = result['buckets']
    print(f'\ntraining on pictures of 2 to 37 tiles: {row["one_shape_per_second"]:.1f} a second in '
          f'one shape, {row["buckets_per_second"]:.1f} in {len(row["shapes"])}: '
          f'{row["ratio"]:.2f} (FLOPs promise {row["promised"]:.2f})')
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
