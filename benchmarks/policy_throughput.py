"""The stage `perceive` of one micro cell: where its time goes, and what its parts need alone.

A small writer learns to write extractions and a reasoner to answer; then `perceive` runs twice, so
that everything is compiled, and is timed. Behind each timed run the same work is done part by part:
the engine alone writes the same requests, the reasoner alone answers its own, the same batches are
scored and learnt from. What is compared is the sum of the parts with the time of the stage, behind
its first step: by the clock, and in processor time, which others on the machine disturb less. One
core is used, as by a worker of `downscale study`; rates are next to nothing, so that texts stay.
"""
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from begin import begin, parser

ROOT = Path(__file__).parents[1]
PARTS = ('writing', 'reward', 'scoring', 'update')
SEES = ('language', 'tower', 'connector', 'image_newline_D')


def cell_of(size, steps, taught):
    """The cell of `experiments/micro_repair.py` with `steps` of perceive, and few of what it needs.
    """
    from downscale.experiment import expansion, file
    config, _ = file.load_study(ROOT / 'experiments' / 'micro_repair.py', [])
    with config.unlocked():
        del config['platform']
        config.data.train = 600
        stages = {name: config.stages[name].to_dict() for name in ('extract', 'reason', 'perceive')}
        for name in ('extract', 'reason'):
            stages[name] |= {'parents': {}, 'steps': taught, 'replay': {}, 'save_every': taught}
        stages['perceive'] |= {'steps': steps, 'save_every': steps,
                               'rates': dict.fromkeys(SEES[:3], 1e-9)}
        config.stages = stages
        config.claims = ()
    cell, = expansion.cells_of(config, [{'size': size, 'seed': 0}])
    return cell


def now():
    """(seconds by the clock, seconds of the processor)."""
    return time.perf_counter(), time.process_time()


def since(begun):
    """Seconds of both kinds since `now()` was `begun`."""
    return [end - start for end, start in zip(now(), begun)]


class Recorder:
    """What a run of `perceive` was asked to do behind its first step, and when steps ended."""

    def __init__(self):
        self.ended = []
        self.calls = {part: [] for part in PARTS}
        self.run = self.batches = self.scores = None

    def report(self, step, row):
        """Note when a step was written down; what came before the first of them is forgotten."""
        del step, row
        self.ended.append((now(), dict(self.batches.seconds)))
        if len(self.ended) == 1:
            for calls in self.calls.values():
                calls.clear()

    def window(self):
        """Return (seconds of both kinds, {part: seconds by the clock}) of as many steps as `calls`.

        A step is written down when the next is under way, and the last when none is.
        """
        (first, before), (last, after) = self.ended[0], self.ended[-2]
        return ([end - start for end, start in zip(last, first)],
                {part: after[part] - before[part] for part in PARTS})

    def write(self, real):
        """Return `Engine.write` that notes its requests: a writer is asked what tokens cost."""
        def write(engine, asked, *decoding):
            writes = bool(decoding) and decoding[0].costs
            self.calls['writing' if writes else 'reward'].append((engine, asked, decoding))
            return real(engine, asked, *decoding)
        return write

    def make(self, make):
        """Return the maker of rollouts that notes them, what they score and what is learnt."""
        def made(study, cell, stage, run, folder):
            self.run = run
            self.batches = batches = make(study, cell, stage, run, folder)
            nats, note = batches.nats, batches._note
            self.scores = nats

            def scored(params, batch):
                self.calls['scoring'].append(batch)
                return nats(params, batch)

            def noted(rows, written, learnt, *about):
                self.calls['update'].append(learnt)
                note(rows, written, learnt, *about)
            batches.nats, batches._note = scored, noted
            return batches
        return made


def stage_run(folder, cell):
    """Run `perceive` from its start; return its `Recorder`."""
    from downscale.generate.engine import Engine
    from downscale.policy.training import rollouts
    from downscale.stages import training
    from downscale.stages.folders import folder_of
    shutil.rmtree(folder_of(folder, cell, 'perceive'), ignore_errors=True)
    recorder = Recorder()
    with mock.patch.object(Engine, 'write', recorder.write(Engine.write)):
        training.train_stage(folder, cell, 'perceive', recorder.report, 'none',
                             recorder.make(rollouts))
    return recorder


def alone(folder, cell, recorder):
    """Return {part: seconds of both kinds} of the same work, each part by itself."""
    import jax

    from downscale.generate.engine import Engine
    from downscale.sharding import shardings
    from downscale.stages.start import start_params
    from downscale.train.state import new_state
    from downscale.train.step import compiled_step
    run, seconds = recorder.run, {}
    for part in ('writing', 'reward'):
        begun = now()
        for engine, asked, decoding in recorder.calls[part]:
            Engine.write(engine, asked, *decoding)
        seconds[part] = since(begun)
    with jax.set_mesh(run.mesh):
        stage = cell.stage('perceive')
        state = new_state(start_params(folder, cell, stage, run.mesh), run.optimizer, run.trainable)
        state = jax.device_put(state, shardings(state, run.mesh, run.model.rules))
        batches = recorder.calls['scoring']
        begun = now()
        for batch in batches:
            jax.block_until_ready(recorder.scores(state['params'], batch))
        seconds['scoring'] = since(begun)
        step = compiled_step(run.model, run.loss, run.optimizer, run.trainable, run.mesh,
                             tuple(sorted(run.attention.items())), run.teacher)
        rates = {group: jax.numpy.float32(rate) for group, rate in run.rates.items()}
        # As many batches as were learnt from; each was scored once or twice before.
        each = len(batches) // len(recorder.calls['update'])
        taught = [batch | {'slopes': learnt.slopes_BL.astype('float32'),
                           'weights': learnt.weights_BL.astype('float32')}
                  for batch, learnt in zip(batches[::each], recorder.calls['update'], strict=True)]
        state, _ = step(state, taught[0], rates)  # compiled anew where arrays are placed otherwise
        jax.block_until_ready(state)
        begun = now()
        for batch in taught:
            state, _ = step(state, batch, rates)
            jax.block_until_ready(state)
        seconds['update'] = since(begun)
    return seconds


def lines(rounds):
    """Yield the table: shares of the stage, and what each part needs alone, medians of rounds."""
    def median(values):
        return statistics.median(values)
    yield f'{"part":8s} {"of the stage":>13s} {"alone":>7s}   (shares of its time by the clock)'
    for part in PARTS:
        within, needs = (median([each[side][part] / each['stage'][0] for each in rounds])
                         for side in ('within', 'clock'))
        yield f'{part:8s} {within:13.0%} {needs:7.0%}'
    rest = median([1 - sum(each['within'].values()) / each['stage'][0] for each in rounds])
    yield f'{"rest":8s} {rest:13.0%}'
    for place, (name, what) in enumerate((('clock', 'by the clock'),
                                          ('core', 'in processor time'))):
        ratios = [sum(each[name].values()) / each['stage'][place] for each in rounds]
        yield (f'parts alone over stage, {what}: {median(ratios):.2f} '
               f'({min(ratios):.2f} to {max(ratios):.2f})')


def main():
    made = parser(__doc__, 'policy_throughput.py --rounds 5')
    made.add_argument('--size', default='w32d2', help='of micro_repair.py (default w32d2)')
    made.add_argument('--steps', type=int, default=24, help='of the stage (default 24)')
    made.add_argument('--taught', type=int, default=150, help='steps of what comes before')
    made.add_argument('--rounds', type=int, default=3)
    args = begin(made, '3 minutes', {'steps': 8, 'taught': 40, 'rounds': 2})
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()
    from downscale.policy.training import train_stage
    from downscale.stages.inputs import prepare
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        cell = cell_of(args.size, args.steps, args.taught)
        prepare(folder, cell)
        for name in ('extract', 'reason'):
            train_stage(folder, cell, name, tracker='none')
        for number in range(args.rounds + 1):
            recorder = stage_run(folder, cell)
            seconds = alone(folder, cell, recorder)
            if number:  # the first has compiled
                stage, within = recorder.window()
                rounds.append({'stage': stage, 'within': within,
                               'clock': {part: seconds[part][0] for part in PARTS},
                               'core': {part: seconds[part][1] for part in PARTS}})
                print(f'round {number} of {args.rounds}: {stage[0]:.1f} s', flush=True)
    print(f'perceive of {args.size}, {args.steps - 2} steps, median of {len(rounds)} rounds')
    print('\n'.join(lines(rounds)))
    if args.json:
        args.json.write_text(json.dumps({'size': args.size, 'steps': args.steps - 2,
                                         'rounds': rounds}, indent=1))


if __name__ == '__main__':
    main()
