"""How long a train step waits for a checkpoint, and what a restore costs, with our real state.

A Qwen3-shaped language model (width 1024) trains with AdamW in float32; its state is 12 bytes a
parameter. The steps run on one half of the cores and everything else on the other half, as on an
accelerator and its host; otherwise steps and writer would compete for cores, which is no stall.
Each round times, in turn and between plain steps,
- a save that the step waits for, until it is on the disk;
- a save as the loop does it: the call, and by how much the steps until it is on the disk are
  slower, by the clock and by the time that their threads run: the difference is waiting for cores,
  which on a busy machine says more about other programs than about the save;
- a step whose old state is held, as a save holds it, with nobody writing: it cannot be updated in
  place then. The call and this are the stall;
- reading the bytes of the step back with plain reads, and restoring it, neither of them from the
  page cache.
Ratios are of one round each; medians are printed.
"""
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from begin import begin, parser

TARGET, STEPS, TOKENS, VOCABULARY, BLOCK = 0.10, 3, 64, 32_000, 2 ** 24


def arguments():
    made = parser(__doc__, 'checkpoint.py --layers 24 --work scratch')
    made.add_argument('--layers', type=int, default=5, help='5 (default) are 111 million '
                        'parameters, 24 are 410 million')
    made.add_argument('--rounds', type=int, default=5, help='timed rounds (default 5)')
    made.add_argument('--work', metavar='DIR', help='folder on the disk to measure')
    return begin(made, '4 minutes', {'rounds': 1})


@contextlib.contextmanager
def timed(times, name):
    begin = time.perf_counter()
    yield
    times[name] = time.perf_counter() - begin


class Position:
    """As much of an input stream as a checkpoint needs."""

    def get_state(self):
        return {'next': 0}

    def set_state(self, state):
        assert state == {'next': 0}


class Trainer:
    """A model, its state, and the step that the loop takes."""

    def __init__(self, layers):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from downscale.config import Optimizer
        from downscale.model.init import init_params
        from downscale.model.vlm import Vlm
        from downscale.sharding import mesh, shardings
        from downscale.sizes import LANGUAGE, scale
        from downscale.train.state import abstract, new_state
        from downscale.train.step import compiled_step
        model = Vlm(scale(LANGUAGE['qwen3']['0.6b'], 1024, layers, VOCABULARY), None)
        grid, optimizer, trainable = mesh(), Optimizer(), ('language',)
        fresh = new_state(init_params(model, 0, trainable), optimizer, trainable)
        shards = shardings(fresh, grid, model.rules)
        self.state, self.target = jax.device_put(fresh, shards), abstract(fresh, shards)
        self.millions = sum(leaf.size for leaf in jax.tree.leaves(fresh['params'])) / 1e6
        self.compiled = compiled_step(model, 'tokens', optimizer, trainable, grid)
        shape, self.rates = (grid.size, TOKENS), {'language': jnp.float32(1e-4)}
        ones = np.ones(shape, np.int32)
        self.batch = {'tokens': ones, 'segments': ones, 'weights': np.ones(shape, np.float32),
                      'positions': np.broadcast_to(np.arange(TOKENS, dtype=np.int32), shape)}

    def step(self):
        """Seconds of one step, waited for."""
        import jax
        begin = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch, self.rates)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin

    def steps(self):
        return statistics.median(self.step() for _ in range(STEPS))

    def held(self):
        """Seconds that a step takes longer while the host holds the state before it."""
        import jax
        import numpy as np
        plain, held = [], []
        for _ in range(STEPS):
            plain.append(self.step())
            views = [np.asarray(leaf) for leaf in jax.tree.leaves(self.state)]
            held.append(self.step())
            del views
        return min(held) - min(plain)


def evict(folder):
    """No file of `folder` is in the page cache; returns their sizes by path."""
    sizes = {}
    for path in sorted(path for path in Path(folder).rglob('*') if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        sizes[path] = path.stat().st_size
    return sizes


def read(paths):
    block = bytearray(BLOCK)
    for path in paths:
        with open(path, 'rb', buffering=0) as file:
            while file.readinto(block):
                pass


def one_round(trainer, folder, cores):
    """{what: seconds} of one round, whose steps run on `cores`; leaves one step in `folder`."""
    from downscale.train import checkpoint
    times = {}
    manager = checkpoint.open_manager(folder, keep=1)
    with contextlib.closing(manager):
        trainer.step()  # the first on a restored state is slower
        begin, plain = ran(cores), [trainer.steps()]
        step_ran = (ran(cores) - begin) / STEPS
        with timed(times, 'blocking'):
            checkpoint.save(manager, trainer.state, Position(), {}, force=True)
            manager.wait_until_finished()
        plain.append(trainer.steps())
        with timed(times, 'call'):
            checkpoint.save(manager, trainer.state, Position(), {}, force=True)
        begin, during = ran(cores), []
        while manager.is_saving_in_progress():
            during.append(trainer.step())
        times['longer run'] = ran(cores) - begin - step_ran * len(during)
        manager.wait_until_finished()
        plain.append(trainer.steps())
        times['step'] = statistics.median(plain)
        times['until written'] = times['call'] + sum(during) - times['step'] * len(during)
        times['held'] = trainer.held()
        times['stall'] = times['call'] + max(0, times['held'])
        sizes = evict(checkpoint.latest(folder))
        with timed(times, 'read'):
            read(sizes)
        evict(checkpoint.latest(folder))
        with timed(times, 'restore'):
            trainer.state = None
            trainer.state, _ = checkpoint.restore(manager, trainer.target, Position())
    return {**times, 'bytes': sum(sizes.values())}


def halve_cores():
    """Threads of XLA stay on the half of the cores returned, those that start later on the other.
    """
    import jax
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    os.sched_setaffinity(0, cores[:half])
    jax.devices()
    os.sched_setaffinity(0, cores[half:] or cores)
    return set(cores[:half])


def ran(cores):
    """Seconds that the threads of this process on exactly `cores` have run, not waited."""
    total = 0
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            if os.sched_getaffinity(int(task.name)) == cores:
                total += int((task / 'schedstat').read_text().split()[0])
    return total / 1e9 / len(cores)


def main():
    args = arguments()
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from downscale.runtime.memory import keep_freed_memory
    keep_freed_memory()  # as the console does
    import jax

    from downscale.sharding import mesh
    cores = halve_cores()
    folder = Path(tempfile.mkdtemp(prefix='checkpoint-', dir=args.work)).absolute()
    try:
        with jax.set_mesh(mesh()):
            trainer = Trainer(args.layers)
            # Compiles, and gets memory from the system.
            one_round(trainer, folder / 'warm-up', cores)
            rounds = [one_round(trainer, folder / str(k), cores) for k in range(args.rounds)]
    finally:
        shutil.rmtree(folder)

    def median(name):
        return statistics.median(times[name] for times in rounds)

    def ratio(one, other):
        return statistics.median(times[one] / times[other] for times in rounds)
    print(f'{trainer.millions:.0f} million parameters, {median("bytes") / 1e9:.2f} GB a step; '
          f'medians of {args.rounds} rounds; a train step takes {median("step"):.2f} s')
    print(f'  save, waited for     {median("blocking"):6.2f} s')
    for name, words in (('call', 'save call of the loop'), ('held', 'state held by a save')):
        print(f'  {words:21s}{median(name):6.2f} s: {ratio(name, "blocking"):.3f} of it')
    print(f'  stall: both          {median("stall"):6.2f} s: {ratio("stall", "blocking"):.3f} of '
          f'it (target at most {TARGET:.2f})')
    print(f'  steps until written  {median("until written"):6.2f} s slower: '
          f'{ratio("until written", "blocking"):.2f} of it; their threads ran '
          f'{median("longer run"):.2f} s longer: {ratio("longer run", "blocking"):.3f} of it')
    print(f'  plain read           {median("read"):6.2f} s')
    print(f'  restore              {median("restore"):6.2f} s: {ratio("restore", "read"):.2f} of a '
          'read')
    if args.json:
        args.json.write_text(json.dumps({'millions': trainer.millions, 'rounds': rounds},
                                              indent=1))


if __name__ == '__main__':
    main()
