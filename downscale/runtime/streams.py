"""What leaves the console: errors of one line, and streams whose reader may go away."""
import io
import sys

from downscale.runtime.exits import LONGEST_ERROR, line_of

_CUT = ' ... '


def printable(text: str) -> str:
    """Return `text` with escapes in the place of letters that do not print."""
    return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shortened(text: str, most: int = LONGEST_ERROR) -> str:
    """Return `text` as one printable line of at most `most` characters for stderr.

    The cut is in the middle: what it is about stands in front of an error, and why at its end.
    """
    line = printable(' '.join(text.split()))
    encoding = sys.stderr.encoding or 'ascii'
    line = line.encode(encoding, 'backslashreplace').decode(encoding)
    if len(line) <= most:
        return line
    # Two fifths for the end: the reason is shorter than what it is about.
    tail = (most - len(_CUT)) * 2 // 5
    return line[:most - len(_CUT) - tail] + _CUT + line[-tail:]


def cause_of(error: BaseException) -> str:
    """Return what an exception says; of a system's error path and reason, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    return line_of(error)


class _Descriptor(io.FileIO):
    """An open descriptor. What nobody reads any more is dropped, and the work goes on."""
    failed = False

    def write(self, data):
        """Write `data`; an error other than a closed pipe is raised once, and then no more."""
        try:
            return len(data) if self.failed else super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError:
            self.failed = True  # else Python would print a traceback of its own when it ends
            raise


def _steady(stream):
    """Return `stream` over a `_Descriptor`, with escapes for letters that its encoding lacks."""
    raw = io.BufferedWriter(_Descriptor(stream.fileno(), 'w', closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, 'backslashreplace',
                            line_buffering=stream.isatty() or stream is sys.__stderr__)


def keep_streams() -> None:
    """Let stdout and stderr of this process survive `| head -1` and an ascii terminal."""
    # Only the real ones: a test or a notebook has put its own in their place.
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _steady(sys.stdout)
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _steady(sys.stderr)
