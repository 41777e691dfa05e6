"""A terminal of 80 columns and 24 lines for a program, as a person has it."""
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from waiting import LIMIT

COLOURS = re.compile(r'\x1b\[[\d;]*m')


@contextlib.contextmanager
def opened(argv, cwd=None, **env):
    """Yield `Terminal` in which a program runs; it is ended when this context ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    program = subprocess.Popen(argv, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
                               start_new_session=True, env=os.environ | {'TERM': 'xterm'} | env)
    os.close(theirs)
    try:
        yield Terminal(ours)
    finally:
        program.kill()
        program.wait()
        os.close(ours)


class Terminal:
    """What a program has shown so far, and the keyboard."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.text = ''

    def type(self, keys):
        """Press these keys."""
        os.write(self.descriptor, keys.encode())

    def read(self, until=None):
        """Return all that was shown, once it holds `until`, or once the program has ended.

        `until` stands there whatever colours it has.
        """
        limit = time.monotonic() + LIMIT
        while until is None or until not in COLOURS.sub('', self.text):
            assert time.monotonic() < limit, self.text
            if not select.select([self.descriptor], [], [], 1)[0]:
                continue
            try:
                self.text += os.read(self.descriptor, 4096).decode(errors='replace')
            except OSError:  # Linux says so when nobody has the other end any more
                assert until is None, self.text
                break
        return self.text


def shown(argv, **env):
    """All that a program shows in a terminal, its control sequences included."""
    with opened(argv, **env) as terminal:
        return terminal.read()
