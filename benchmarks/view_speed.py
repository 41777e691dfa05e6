"""How long until the explorer shows the first page of a study of 100,000 items?

A synthetic study is written: 4 sizes, each asked with the picture and without, and as perception
and reasoner of pairs of ends and equals, 64 answers to every item. `downscale view` is then started
in a process of its own, and its first page fetched, several times; then one page of each kind.
Exit code 1 when the quickest start took longer than the limit.

Command:   python benchmarks/view_speed.py
Hardware:  two cores are used
Time:      one minute
"""
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

from begin import begin, parser

from downscale.analysis import synth

LIMIT = 2.   # seconds
PAGES = ({'family': 'position'}, {'loss': 'perception loss'}, {'disagree': 'scorers'},
         {'text': 'blue'}, {'sort': 'loss', 'page': '1000'}, {'columns': 'extraction-think'},
         {'item': 'attribute-00625'})


def fetch(address):
    """Return the seconds that a page takes."""
    begun = time.perf_counter()
    with urllib.request.urlopen(address) as reply:
        reply.read()
    return time.perf_counter() - begun


def opened(folder, pages):
    """Return (seconds until the first page is there, {query: seconds} of further pages)."""
    begun = time.perf_counter()
    command = [sys.executable, '-m', 'downscale.commands.main', 'view', str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[1]
        fetch(address)
        seconds = time.perf_counter() - begun
        queries = [urlencode(page) for page in pages]
        further = {query: round(fetch(f'{address}?{query}'), 2) for query in queries}
        process.terminate()
    return seconds, further


def main():
    """Print what was made and the seconds as one JSON object."""
    made = parser(__doc__, 'view_speed.py --starts 3')
    made.add_argument('--items', type=int, default=100_000)
    made.add_argument('--starts', type=int, default=5)
    args = begin(made, 'a minute', {'starts': 2})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / 'study'
        study = synth(0, folder, sizes=4, seeds=1, items=args.items, full=False).study
        found = {'items': args.items, 'answers': len(study.items['score'])}
        del study
        starts = [opened(folder, PAGES if number == args.starts - 1 else ())
                  for number in range(args.starts)]
    seconds = [start for start, _ in starts]
    found |= {'seconds to the first page': [round(start, 2) for start in seconds],
              'limit': LIMIT, 'seconds of further pages': starts[-1][1]}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return int(min(seconds) > LIMIT)


if __name__ == '__main__':
    sys.exit(main())
