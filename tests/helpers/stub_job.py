"""A job without JAX: `stub_job.py FOLDER HASH WHAT...` does one of WHAT in each attempt.

`done` and `fatal` write their marker, `kill` dies by SIGKILL, a number is an exit code, `wait`
saves and exits with 42 on SIGTERM.
"""
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(folder, spec, *whats):
    number = len(list(folder.glob('attempts/*.json')))
    what = whats[min(number, len(whats) - 1)]
    row = {
        'attempt': number, 'spec': spec, 'began': time.time(), 'ended': None, 'seen': time.time(),
        'exit': None, 'reason': what, 'task': None, 'first_step': number, 'last_step': number + 1,
        'steps_lost': 0, 'steps_s': 0.0, 'restore_s': 0.0, 'compile_s': 0.0}
    path = folder / 'attempts' / f'{number:03d}.json'
    path.parent.mkdir(exist_ok=True)

    def write(**more):
        partial = path.with_suffix('.partial')
        partial.write_text(json.dumps(row | more))
        partial.rename(path)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    write()
    if what == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if what == 'wait':
        signal.sigwait([signal.SIGTERM])
    code = {'done': 0, 'fatal': 64, 'wait': 42}[what] if what.isalpha() else int(what)
    write(ended=time.time(), exit=code)
    if what in ('done', 'fatal'):
        partial = folder / '.marker.partial'
        partial.write_text(json.dumps({'spec': spec, 'reason': what}))
        partial.rename(folder / f'{what.upper()}.json')
    return code


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
