"""Several processes on one run: who is first, what the first does alone, and how all end together.

Each process drives its own devices and runs the same program. `joined` is entered once, before JAX
touches a device; without it everything here behaves as one process does. Words go through the
key-value store of JAX's coordinator, which waits for hours where a collective would time out.
"""
import atexit
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import jax

# `jax.distributed` has no public way to its key-value store; this is the only private import.
from jax._src.distributed import global_state

VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
FAILED = 'downscale/failed'
TOGETHER_SECONDS, GOODBYE_SECONDS, LONGEST_SECONDS = 300, 10, 30 * 24 * 3600
POLL_SECONDS = 0.5
_turns = itertools.count()


def given():
    """Arguments of `jax.distributed.initialize` after the environment; None for a lone process.

    The three variables name any group of processes; on a machine with TPU chips JAX finds the rest
    of the slice by itself. ValueError when the variables do not make sense.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not values:
        on_tpu = os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu') and find_spec('libtpu')
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
    return {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(index),
            'cluster_detection_method': 'deactivate'}


@contextlib.contextmanager
def joined():
    """Join the processes that the environment names; an error in one ends all, with one line each.

    Returns at once for a lone process. One that waits for the others in vain says so and ends.
    """
    arguments = given()
    if arguments is None:
        yield
        return
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    late = threading.Timer(TOGETHER_SECONDS, _miss_others)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=2 * TOGETHER_SECONDS)
    except RuntimeError as error:
        raise RuntimeError(f'cannot join the other processes ({line_of(error)}); is the port of '
                           f'{VARIABLES[0]} free, and can all reach it?') from None
    finally:
        late.cancel()
    over = threading.Event()
    threading.Thread(target=_watch, args=(global_state.client, over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        over.set()
        _give_up(error)
        raise
    over.set()


def first():
    """Whether this process prints, writes metrics and JSON, prepares data. Touches no device."""
    return global_state.process_id == 0


def once(action):
    """What `action()` returns in process 0 (something JSON can hold); the others wait for it.

    Where it fails, process 0 raises its error and the others a RuntimeError that repeats it.
    """
    client = global_state.client
    if client is None:
        return action()
    key = f'downscale/once/{next(_turns)}'
    if first():
        try:
            value = action()
        except BaseException as error:
            client.key_value_set(key, json.dumps({'error': line_of(error)}))
            raise
        client.key_value_set(key, json.dumps({'value': value}))
        return value
    told = json.loads(client.blocking_key_value_get(key, 1000 * LONGEST_SECONDS))
    if 'error' in told:
        raise RuntimeError(f'process 0: {told["error"]}')
    return told['value']


def wait():
    """Every process has come here."""
    if global_state.client is not None:
        global_state.client.wait_at_barrier(f'downscale/wait/{next(_turns)}',
                                            1000 * LONGEST_SECONDS)


def line_of(error):
    """An error as one line."""
    return ' '.join(str(error).split()) or type(error).__name__


def _miss_others():
    """End this process with a line, before JAX does with pages."""
    print(f'error: not all processes have come together within {TOGETHER_SECONDS} s; start the '
          f'same command in each, with the same {VARIABLES[0]} and {VARIABLES[1]}',
          file=sys.stderr, flush=True)
    os._exit(1)


def _watch(client, over):
    """End this process, with one line, as soon as another one has failed."""
    while not over.wait(POLL_SECONDS):
        try:
            told = client.key_value_try_get(FAILED)
        except jax.errors.JaxRuntimeError:  # nobody has failed
            continue
        if over.wait(2 * POLL_SECONDS):  # this one fails as well, and has its own words for it
            return
        print(f'error: {told}', file=sys.stderr, flush=True)
        _leave(client, 1)  # the main thread may be stuck in a collective


def _give_up(error):
    """Tell the others; this process will end without JAX's own wait for them, of minutes."""
    client = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was quicker
        client.key_value_set(FAILED, f'process {global_state.process_id}: {line_of(error)}')
    atexit.register(_leave, client, 130 if isinstance(error, KeyboardInterrupt) else 1)


def _leave(client, code):
    """End at once, but process 0 after the others: JAX kills with pages those that outlive it."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier('downscale/goodbye', 1000 * GOODBYE_SECONDS)
    if first():
        time.sleep(POLL_SECONDS)
    os._exit(code)
