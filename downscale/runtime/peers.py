"""How each process of a run learns that another one has ended, and ends as well: one line each.

Everything goes through the key-value store of JAX's coordinator, which lives in process 0. Each
process counts up a key of its own; one whose count stands still has gone. What failed first is told
to all, with its exit code.
"""
import atexit
import contextlib
import ctypes
import functools
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

# JAX has no public way to be told of its loss, nor to its key-value store.
from jax._src import distributed as jax_distributed

from downscale.runtime import exits
from downscale.runtime.exits import line_of, say

ALIVE = 'downscale/alive/'
FAILED = f'{ALIVE}failed'
NOTICE = 'RECEIVED_PREEMPTION_NOTICE'  # JAX's own key: one process has had SIGTERM
POLL_SECONDS = 0.5
# How long an ending process waits for others, which may be gone themselves.
GOODBYE_SECONDS = 10
AGAIN = 'a restart continues from the last checkpoint'


class Peers:
    """The processes of this run, watched by a thread until `part` or `fail`.

    One that says nothing for `silence` seconds has gone. `ending(code, text)` is called before this
    process ends for a reason, its own or another's, in whichever thread finds it. `notice` is set
    once the machine of any of them is wanted back; `stepping` is whether the work is in a loop that
    will save by itself then.
    """

    def __init__(self, silence: float,
                 ending: Callable[[int, str], object] = lambda code, text: None) -> None:
        self.silence = silence
        self.ending = ending
        self.over = threading.Event()  # this process needs no more watching
        self.notice = False
        self.stepping = False
        self.leaving = False  # or the exit code with which this process is ending
        self.counts = {}  # key of a process -> (its count, when that was first seen)

    def start(self) -> None:
        """Watch from now on; JAX must be initialised."""
        self.client = jax_distributed.global_state.client
        self.rank = jax_distributed.global_state.process_id
        threading.Thread(target=self._watch, daemon=True).start()

    def part(self) -> None:
        """Say that this process has done its share; the others may go on without it."""
        self.over.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_delete(f'{ALIVE}{self.rank}')

    def fail(self, error: BaseException) -> None:
        """Tell the others of `error`, and end without JAX's own wait for them, which takes minutes.

        When the others may be the cause, first wait for what they have to say.
        """
        # 1. A collective that fails is mostly the echo of another process that has gone.
        if isinstance(error, jax.errors.JaxRuntimeError) and exits.code_of(error) == exits.CRASHED:
            self.over.wait(self.silence + 4 * POLL_SECONDS)
            if self.leaving:
                threading.Event().wait()  # the thread ends this process
        # 2. The first failure that was told decides text and exit code of all.
        self.over.set()
        code = exits.code_of(error)
        text = line_of(error)
        if code != exits.PREEMPTED:  # all have saved, each ends by itself
            self._tell(code, f'process {self.rank}: {text}')
            failure = json.loads(self._alive().get(FAILED, '{}'))
            code = failure.get('code', code)
            text = failure.get('text', text)
        # 3. At exit, once the caller has seen the error itself.
        atexit.register(self._leave, code)
        self.ending(code, text)

    def lost(self) -> None:
        """End at once, because JAX's client will not go on."""
        code = self.leaving or self._code()
        try:
            if not self.leaving:
                text = self._silent_longest() or (
                    'lost the coordinator in process 0, or it has lost a process (killed, or its '
                    f'machine is gone); {AGAIN}')
                say(f'error: {text}')
                self.ending(code, text)
        finally:
            os._exit(code)

    def _silent_longest(self):
        """Return a line on the process that JAX must mean when it tells process 0 of a loss.

        Return None in another one, for which it may be the coordinator.
        """
        others = {key: since for key, (_, since) in self.counts.items()
                  if key != f'{ALIVE}{self.rank}'}
        if self.rank or not others:
            return None
        key = min(others, key=others.get)
        return _gone(int(key.removeprefix(ALIVE)), round(time.monotonic() - others[key]))

    def _watch(self):
        """Count up the key of this process, and look at those of the others, until it is `over`."""
        for count in itertools.count():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.client.key_value_set(f'{ALIVE}{self.rank}', str(count), allow_overwrite=True)
            self._look()
            if self.over.wait(POLL_SECONDS):
                return

    def _look(self):
        """End this process, with one line, as soon as another has failed or gone."""
        # 1. One has told that it failed.
        alive = self._alive()
        now = time.monotonic()
        failure = alive.pop(FAILED, None)
        if failure:
            failure = json.loads(failure)
            if failure['gone'] is None and self.over.wait(2 * POLL_SECONDS):
                return  # this one fails as well, in its own words
            self._follow(**failure)
        # 2. The count of one stands still.
        counts = {}
        for key, count in alive.items():
            same = key in self.counts and self.counts[key][0] == count
            counts[key] = self.counts[key] if same else (count, now)
        self.counts = counts
        for key, (_, since) in self.counts.items():
            if now - since > self.silence:
                rank = int(key.removeprefix(ALIVE))
                self._tell(self._code(), _gone(rank, self.silence), rank)
        # 3. One has had SIGTERM, and nothing here would ask for it.
        if not self.notice:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has had SIGTERM
                self.notice = bool(self.client.key_value_try_get(NOTICE))
        if self.notice and not self.stepping:
            self._tell(exits.PREEMPTED, f'stopped by SIGTERM, with nothing to save; {AGAIN}')

    def _follow(self, code, text, gone):
        """End as another process did that failed, or that has `gone` (its rank)."""
        self.leaving = code
        say(text if code == exits.PREEMPTED else f'error: {text}')
        try:
            self.ending(code, text)
        finally:
            self._leave(code, gone)

    def _alive(self):
        """Return {key: count} of the processes, and what FAILED says where one has told it."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return dict(self.client.key_value_dir_get(ALIVE))
        return {}

    def _tell(self, code, text, gone=None):
        """Tell all why they end, unless another process has; `gone` is the rank of a lost one."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was quicker
            self.client.key_value_set(FAILED, json.dumps({'code': code, 'text': text,
                                                          'gone': gone}))

    def _code(self):
        """Return the exit code for a lost peer: after the notice its machine was taken back."""
        return exits.PREEMPTED if self.notice else exits.LOST

    def _leave(self, code, gone=None):
        """End at once, process 0 after the others: JAX ends those that outlive it."""
        self.leaving = code
        sys.stdout.flush()
        sys.stderr.flush()
        if gone is None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.client.wait_at_barrier('downscale/goodbye', 1000 * GOODBYE_SECONDS)
        if self.rank == 0:
            time.sleep(POLL_SECONDS if gone is None else 4 * POLL_SECONDS)
        os._exit(code)


def _gone(rank, seconds):
    """Return what is said of a process without a sign for so long."""
    return (f'process {rank} has gone: no sign of it for {seconds:g} s (killed, or its machine is '
            f'lost); {AGAIN}')


@contextlib.contextmanager
def told_of_loss(action: Callable[[], object]) -> Iterator[None]:
    """Let JAX's client, when it is made in this context, call `action` instead of aborting.

    By itself it aborts the process with pages of text.
    """
    make = jax_distributed._jax.get_distributed_runtime_client
    _catch_terminate(action)
    jax_distributed._jax.get_distributed_runtime_client = functools.partial(
        make, missed_heartbeat_callback=lambda *status: action())
    try:
        yield
    finally:
        jax_distributed._jax.get_distributed_runtime_client = make


def _catch_terminate(action):
    """Run `action` also where jaxlib 0.10 cannot hand its status to Python (std::bad_cast)."""
    try:
        library = ctypes.CDLL('libstdc++.so.6')
        library._ZSt13set_terminatePFvvE.restype = ctypes.CFUNCTYPE(None)
        kind = library.__cxa_current_exception_type
    except (OSError, AttributeError):  # another system: the process aborts with three lines
        return
    kind.restype = ctypes.POINTER(ctypes.c_char_p)

    @ctypes.CFUNCTYPE(None)
    def terminate():
        """Call `action` for that exception, then do as before."""
        info = kind()
        if info and info[1] == b'St8bad_cast':  # type_info: its table, then its name
            action()
        before()
    before = library._ZSt13set_terminatePFvvE(terminate)
    _kept.append(terminate)


_kept = []  # ctypes does not hold what C++ may call
