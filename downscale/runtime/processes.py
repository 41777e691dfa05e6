"""Several processes on one run: who is first, what the first does alone, and how all end together.

Each process drives its own devices and runs the same program. `joined` is entered once, before JAX
touches a device; without it everything here behaves as one process does. Words go through the
key-value store of JAX's coordinator, which waits for hours where a collective would time out.
"""
import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax._src.distributed import global_state  # see peers.py
from jax.experimental.multihost_utils import reached_preemption_sync_point

from downscale.runtime import exits
from downscale.runtime.peers import Peers, line_of, say, told_of_loss
from downscale.runtime.setup import SLICES

VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
LONGEST_SECONDS = 30 * 24 * 3600
_turns = itertools.count()
_polls = itertools.count(1)
_peers = Peers(0)


def given() -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`; None for a lone process.

    The three variables name any group of processes; on a machine with TPU chips JAX finds the rest
    of the slice by itself. ValueError when the variables do not make sense.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not values:
        on_tpu = os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu') and find_spec('libtpu')
        # libtpu may be installed where no chip is, and asking it would take the chips.
        chips = [*Path('/dev').glob('accel[0-9]*'), *Path('/dev/vfio').glob('[0-9]*')]
        return {} if on_tpu and chips else None
    missing = [name for name in VARIABLES if name not in values]
    if missing:
        raise ValueError(f'{", ".join(values)} without {", ".join(missing)}: give all three of '
                         f'{", ".join(VARIABLES)}, or none for a single process')
    address, count, index = values.values()
    host, colon, port = address.rpartition(':')
    if not (host and port.isdigit()):
        raise ValueError(f'{VARIABLES[0]}={address!r} must be HOST:PORT of process 0')
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise ValueError(f'{VARIABLES[2]}={index} must be a number from 0 to {VARIABLES[1]} - 1 '
                         f'({VARIABLES[1]}={count})')
    slices = os.environ.get(SLICES, '1')
    if not (slices.isdigit() and int(slices) and int(count) % int(slices) == 0):
        raise ValueError(f'{SLICES}={slices} must divide {VARIABLES[1]}={count}')
    return {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(index),
            'cluster_detection_method': 'deactivate'}


def seconds(name: str, default: int) -> int:
    """Return the whole number of seconds in DOWNSCALE_`name`_SECONDS, or `default`."""
    name = f'DOWNSCALE_{name}_SECONDS'
    value = os.environ.get(name, str(default))
    if not (value.isdigit() and int(value)):
        raise ValueError(f'{name}={value} must be a whole number of seconds above 0')
    return int(value)


@contextlib.contextmanager
def joined(ending: Callable[[int, str], object] = lambda code, text: None) -> Iterator[None]:
    """Join the processes that the environment names.

    An error in one ends all, with one line each and the exit code of the first, after
    `ending(code, text)`. A lone process goes on at once. One that waits for the others in vain says
    so and ends. SIGTERM ends all with `exits.PREEMPTED`: at a step where all have saved (`stop`),
    or at once where there is nothing to save. DOWNSCALE_INITIALIZATION_SECONDS,
    DOWNSCALE_HEARTBEAT_SECONDS and DOWNSCALE_SHUTDOWN_SECONDS change how long the others are waited
    for.
    """
    global _peers
    arguments = given()
    together = seconds('INITIALIZATION', 300)
    heartbeat = seconds('HEARTBEAT', 100)
    _peers = Peers(heartbeat / 2, ending)  # quicker than JAX, whose words are pages
    # 1. A lone process has nobody to wait for.
    if arguments is None:
        with _own_sigterm(ending):
            try:
                yield
            except BaseException as error:
                ending(exits.code_of(error), line_of(error))
                raise
        return
    # 2. Meet the others. JAX waits twice as long as the timer, which ends this process in one line.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    late = threading.Timer(together, _miss_others, [together])
    late.daemon = True
    late.start()
    try:
        with told_of_loss(_peers.lost):
            jax.distributed.initialize(
                **arguments, initialization_timeout=2 * together,
                heartbeat_timeout_seconds=heartbeat,
                shutdown_timeout_seconds=seconds('SHUTDOWN', 300))
    except RuntimeError as error:
        raise RuntimeError(f'cannot join the other processes ({line_of(error)}); is the port of '
                           f'{VARIABLES[0]} free, and can all reach it?') from None
    finally:
        late.cancel()
    say(f'process {global_state.process_id} of {global_state.num_processes}, coordinator '
        f'{global_state.coordinator_address}')
    # 3. Work, watched; whichever way that ends, the others are told.
    _peers.start()
    try:
        yield
    except BaseException as error:
        _peers.fail(error)
        raise
    _peers.part()


@contextlib.contextmanager
def stepping() -> Iterator[None]:
    """Let SIGTERM wait for `stop`, which is asked after every step in this context."""
    _peers.stepping = True
    yield
    _peers.stepping = False  # not after an error: then this process has its own reason to end


def stop(step: int) -> bool:
    """Return whether the loop must save now, after `step`, and end with `exits.Preempted`.

    All processes get the same answer, and all must ask.
    """
    # JAX wants a number that only grows; `step` starts anew with each stage.
    del step
    if global_state.preemption_sync_manager is None:
        return _peers.notice
    return reached_preemption_sync_point(next(_polls))


@contextlib.contextmanager
def _own_sigterm(ending):
    """Let SIGTERM set the notice, or end this process where nothing will ask for that."""
    # Python lets only the main thread handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(*_):
        _peers.notice = True
        if not _peers.stepping:  # an exception would come amid a compilation, and end in a crash
            say('stopped by SIGTERM, with nothing to save')
            try:
                ending(exits.PREEMPTED, 'stopped by SIGTERM')
            finally:
                os._exit(exits.PREEMPTED)
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _peers.notice = False


def first() -> bool:
    """Return whether this process is the one that prints, writes JSON and prepares data.

    Touches no device.
    """
    return global_state.process_id == 0


def several() -> bool:
    """Return whether other processes work on this run."""
    return global_state.client is not None


def once(action: Callable[[], Any]) -> Any:
    """Return what `action()` returns in process 0, a JSON value; the others wait for it.

    Where it fails, process 0 raises its error and the others an `exits.Failed` that repeats it.
    """
    client = global_state.client
    if client is None:
        return action()
    key = f'downscale/once/{next(_turns)}'
    if first():
        try:
            value = action()
        except BaseException as error:
            failure = {'error': line_of(error), 'code': exits.code_of(error)}
            # Else the others would wait for a value that never comes.
            client.key_value_set(key, json.dumps(failure))
            raise
        client.key_value_set(key, json.dumps({'value': value}))
        return value
    result = json.loads(client.blocking_key_value_get(key, 1000 * LONGEST_SECONDS))
    if 'error' in result:
        raise exits.Failed(f'process 0: {result["error"]}', result['code'])
    return result['value']


def wait() -> None:
    """Block until every process has called this."""
    if global_state.client is not None:
        global_state.client.wait_at_barrier(f'downscale/wait/{next(_turns)}',
                                            1000 * LONGEST_SECONDS)


def _miss_others(together):
    """End this process with a line, before JAX does with pages."""
    say(f'error: not all processes have come together within {together} s; start the same command '
        f'in each, with the same {VARIABLES[0]} and {VARIABLES[1]}')
    os._exit(exits.CRASHED)
