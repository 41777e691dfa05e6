"""How a run ends: one table for the trainer, manifests, the start-up script and the watcher."""
import errno
import os
import re
from dataclasses import dataclass

DONE = 0
CRASHED = 1
BUG = 3
PREEMPTED = 42
FATAL = 64
MISMATCH = 69
LOST = 70
INTERRUPTED = 130


@dataclass(frozen=True)
class Ending:
    """What an exit code means, and whether a job that ends with it starts again.

    `restart` is 'none', 'free' (as often as it happens), 'counted' (a few times) or 'never'.
    """
    meaning: str
    restart: str


TABLE = {
    DONE: Ending('done', 'none'),
    BUG: Ending('crashed by a fault of downscale itself', 'counted'),
    PREEMPTED: Ending('preempted, saved', 'free'),
    FATAL: Ending('fatal: configuration, data, or out of device memory', 'never'),
    MISMATCH: Ending('other devices than the launch expects', 'counted'),
    LOST: Ending('another process was killed, or its machine is gone', 'counted')}
_CRASH = Ending('crashed', 'counted')


def ending(code: int) -> Ending:
    """Return the `Ending` of an exit code; negative codes are signals, as in `subprocess`."""
    return TABLE.get(code, _CRASH)


class Failed(RuntimeError):
    """An error with an exit code of its own."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Preempted(SystemExit):
    """The end of a process whose machine is wanted back, with 42, once everything is saved."""

    def __init__(self, text: str) -> None:
        super().__init__(PREEMPTED)
        self.text = text

    def __str__(self):
        return self.text


# How the text of a ValueError of tensorstore begins: absl's names of status codes. Those of _STAYS
# say that what was asked for is wrong or missing; after those of _PASSES it may succeed later.
_STATUS = re.compile(r'([A-Z]+(?:_[A-Z]+)*): ')
_STAYS = ('INVALID_ARGUMENT', 'OUT_OF_RANGE', 'NOT_FOUND', 'ALREADY_EXISTS', 'DATA_LOSS',
          'UNIMPLEMENTED', 'FAILED_PRECONDITION')
_PASSES = ('UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'UNAUTHENTICATED',
           'DEADLINE_EXCEEDED', 'ABORTED', 'CANCELLED', 'INTERNAL', 'UNKNOWN')
_SYSTEM = re.compile(r"([^:]*) \[os_error_code='(\d+)'")
_HTTP = re.compile(r"http_response_code='(\d+)'")
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST)
# Libraries that speak to buckets and raise classes of their own.
_CLIENTS = ('gcsfs', 'aiohttp', 'google', 'requests', 'urllib3')
LONGEST_ERROR = 300


def code_of(error: BaseException) -> int:
    """Return the exit code that an exception stands for."""
    if isinstance(error, (Failed, SystemExit)):
        # pyrefly: ignore[bad-return]
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if passes(error):
        return CRASHED
    # A second try would only find the same settings, data or memory.
    if isinstance(error, (ValueError, FloatingPointError, FileNotFoundError)) \
            or 'RESOURCE_EXHAUSTED' in str(error):
        return FATAL
    return CRASHED


def passes(error: BaseException) -> bool:
    """Return whether an error of a disk, a bucket or a network may pass.

    A full disk, a quota and a bucket that refuses do; a file that is missing or wrong does not.
    """
    while error is not None:
        # 1. The system says so by number; a file that is missing or wrong stays so.
        if isinstance(error, OSError):
            missing = isinstance(error, (FileNotFoundError, FileExistsError))
            return not missing and error.errno not in _MISSING
        # 2. What a client of a bucket raises always counts as passing.
        if type(error).__module__.partition('.')[0] in _CLIENTS:
            return True
        # 3. tensorstore says so in its text.
        status = isinstance(error, ValueError) and _STATUS.match(str(error))
        if status and status[1] in _STAYS + _PASSES:
            return _status_passes(status[1], str(error))
        # 4. Otherwise what it was raised from decides.
        error = error.__cause__
    return False


def _status_passes(status, text):
    """Return whether an error of tensorstore may pass: by errno or HTTP code where it has one."""
    system = _SYSTEM.search(text)
    answer = _HTTP.search(text)
    if system:
        return int(system[2]) not in _MISSING
    if answer:
        return answer[1] not in ('400', '404')
    return status in _PASSES


def line_of(error: BaseException) -> str:
    """Return an error as one line; what tensorstore says is cut to path and cause."""
    text = ' '.join(str(error).split()) or type(error).__name__
    status = _STATUS.match(text)
    if isinstance(error, ValueError) and status and status[1] in _STAYS + _PASSES:
        text = _translated(text)
        return text if len(text) <= LONGEST_ERROR else f'{text[:LONGEST_ERROR - 4]} ...'
    return text


def _translated(text):
    """Return 'path: cause' of an error of tensorstore."""
    paths = re.findall(r'gs://[^\s":]+|(?<=")/[^"]+', text)
    system = _SYSTEM.search(text)
    answer = _HTTP.search(text)
    text = re.sub(r' \[[a-z_]+=.*', '', text)  # details, the body of an answer among them
    if system:
        cause = system[1].strip()
    elif answer:
        cause = f'the bucket answered {answer[1]} ({text.rpartition(": ")[2]})'
    else:
        cause = text.partition(': ')[2]
    # Of a checkpoint the step is enough.
    path = re.sub(r'(/checkpoints/\d+)\b.*', r'\1', paths[0]) if paths else ''
    return f'{path.rstrip("/")}: {cause}' if path and path not in cause else cause


def say(text: str) -> None:
    """Print a line on stderr now, from any thread."""
    os.write(2, f'{text}\n'.encode())
