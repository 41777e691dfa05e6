"""What a command sees to before it begins: where it may write, what it inherits, how it is stopped.

Everything here either works by itself afterwards or is refused in one line.
"""
import locale
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from downscale.runtime.exits import say
from downscale.runtime.files import BUCKET, writable

SLICES = 'MEGASCALE_NUM_SLICES'  # as GKE gives it to the pods of several slices
DETERMINISTIC = 'DOWNSCALE_DETERMINISTIC'
# By the first flag sums run in one order wherever they can, and what cannot fails to compile; both
# leave out the race between programs that are equally right and round otherwise.
_SAME_EVERY_RUN = ('--xla_gpu_deterministic_ops=true', '--xla_gpu_autotune_level=0')
# What ends a command, and what it says then.
_INTERRUPTS = {signal.SIGINT: 'stopped; the same command continues',
               signal.SIGTERM: 'stopped by SIGTERM; the same command continues'}
# What JAX must be set to, where it is set: with others it computes other numbers than ever before.
_YES = ('1', 'true', 'on', 'yes', 't', 'y')
_NO = ('0', 'false', 'off', 'no', 'f', 'n')
_WANTED = {'JAX_ENABLE_X64': _NO, 'JAX_NUMPY_DTYPE_PROMOTION': ('standard',),
           'JAX_DEFAULT_PRNG_IMPL': ('threefry2x32',), 'JAX_THREEFRY_PARTITIONABLE': _YES}


def begin(console: bool) -> None:
    """Prepare this process for a command; ValueError for an environment that none can work in.

    `console` is whether the command is the whole program, so that interrupts are for it to handle.
    """
    if console:
        _catch_interrupts()
    _refuse_environment()
    asked = os.environ.get(DETERMINISTIC, '').lower()
    if asked in _YES:
        be_deterministic()
    elif asked and asked not in _NO:
        raise ValueError(f'{DETERMINISTIC}={asked} must be 1 or 0')


def be_deterministic() -> None:
    """Have XLA compute the same bits in every run on a GPU; call it before JAX asks for devices.

    Costs speed. Processes that this one starts inherit it.
    """
    flags = os.environ.get('XLA_FLAGS', '').split()
    # Behind those of the user: of two values the last holds.
    os.environ['XLA_FLAGS'] = ' '.join([
        *(flag for flag in flags if flag not in _SAME_EVERY_RUN), *_SAME_EVERY_RUN])


# --- where it may write -----------------------------------------------------------------------

def cache_folder() -> Path | str:
    """Return the folder for compiled programs: JAX_COMPILATION_CACHE_DIR, or the user's cache.

    A user who has none, or may not write there, gets one under the temporary folder.
    """
    folder = wanted_cache()
    # pyrefly: ignore[bad-argument-type]
    if str(folder).startswith(BUCKET) or writable(folder):
        return folder
    instead = Path(tempfile.gettempdir()) / f'downscale-{os.getuid()}' / 'xla'
    say(f'note: the cache {folder} cannot be written; compiled programs are kept in {instead}')
    return instead


def wanted_cache() -> Path | str:
    """Return the folder that compiled programs would be kept in, whether it can be written or not.
    """
    given = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    if given:
        return given if given.startswith(BUCKET) else Path(given)
    return user_cache() / 'downscale' / 'xla'


def user_cache():
    """Return the cache folder of this user by the rules of XDG.

    An XDG_CACHE_HOME that is empty or no absolute path does not count.
    """
    folder = Path(os.environ.get('XDG_CACHE_HOME', ''))
    if folder.is_absolute():
        return folder
    try:
        return Path.home() / '.cache'
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return Path(tempfile.gettempdir()) / f'downscale-{os.getuid()}'


# --- what it inherits -------------------------------------------------------------------------

def _refuse_environment():
    """Raise ValueError for variables that change JAX's numbers, and for text other than UTF-8."""
    for name, wanted in _WANTED.items():
        value = os.environ.get(name, '')
        if value and value.lower() not in wanted:
            raise ValueError(f'{name}={value} changes what JAX computes, and no result could be '
                             'compared with others; unset it')
    encoding = locale.getpreferredencoding(False)
    if encoding.lower().replace('-', '') != 'utf8':
        raise ValueError(f'files are UTF-8, and the locale of this shell reads them as {encoding}; '
                         'set PYTHONUTF8=1 or LC_ALL=C.UTF-8')


# --- how it is stopped ------------------------------------------------------------------------

def stopped(interrupt: KeyboardInterrupt, console: bool) -> int:
    """Say what has ended this command, let nothing disturb its end, and return its exit code.

    The code is that of a shell: 130 for Ctrl-C, 143 for SIGTERM.
    """
    number = interrupt.args[0] if interrupt.args else signal.SIGINT
    if console:
        for each in _INTERRUPTS:
            signal.signal(each, signal.SIG_IGN)
    say(_INTERRUPTS[number])
    return 128 + number


def _catch_interrupts():
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt wherever they come, a second one end all.

    What this process has started notices its end, and ends as well.
    """
    pressed = []
    hook = sys.unraisablehook

    def interrupt(number, frame):
        # Half an import may be tried again, and libraries abort when they are loaded twice.
        if pressed or _importing(frame):
            say(_INTERRUPTS[number])
            os._exit(128 + number)
        pressed.append(number)
        raise KeyboardInterrupt(number)

    def print_or_repeat(unraisable):
        if unraisable.exc_type is not KeyboardInterrupt:
            hook(unraisable)
            return
        # It came amid a callback or a destructor, which cannot raise; a moment later it can.
        threading.Timer(0.05, os.kill, (os.getpid(), pressed.pop())).start()
    for number in _INTERRUPTS:
        # What a parent has told this process to ignore stays ignored.
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, interrupt)
    sys.unraisablehook = print_or_repeat


def _importing(frame):
    """Return whether a module is being imported where `frame` is."""
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False
