"""Make the pictures of README and the pages: `make pictures`, into docs/pictures/.

    accuracy.png   accuracy against the size of the language model (the committed micro study)
    report.png     the top of the report of a synthetic study, as Chromium shows it
"""
import csv
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from downscale.accounting import totals
from downscale.analysis import synth
from downscale.commands import main
from downscale.experiment.expansion import language_of
from downscale.sizes import SIGLIP

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / 'docs' / 'pictures'
MICRO = ROOT / 'docs' / 'results' / 'micro_study'
VOCABULARY = 384             # of the micro study
SEEN, FACTS, FAINT, MUTED = '#2f6db3', '#c8643c', '#b4c9e2', '#7f9cc0'
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
STYLE = {'font.size': 11, 'axes.spines.top': False, 'axes.spines.right': False,
         'svg.hashsalt': 'downscale'}


def accuracies() -> dict[str, dict[str, dict[str, float]]]:
    """Return {family: {size: its row}} of the micro study, numbers as floats."""
    families = defaultdict(dict)
    with open(MICRO / 'accuracy.csv', newline='') as file:
        for row in csv.DictReader(file):
            numbers = {key: float(row[key]) for key in ('value', 'low', 'high', 'chance')}
            families[row['family']][row['size']] = numbers
    return families


def draw_accuracy(path: Path) -> None:
    """Draw every family faintly, and with intervals the facts and the mean of all families."""
    families = accuracies()
    mean, facts = families.pop('macro mean'), families.pop('fact')
    sizes = {name: totals(language_of('micro', name, VOCABULARY), SIGLIP['micro'])['n_nonembed']
             for name in mean}
    sizes = dict(sorted(sizes.items(), key=lambda pair: pair[1]))
    x = list(sizes.values())
    figure, axes = plt.subplots(figsize=(8, 3.6))
    for rows in families.values():
        axes.plot(x, [rows[name]['value'] for name in sizes], color=FAINT, linewidth=1)
    right = x[-1] * 1.05
    for rows, color, text in ((facts, FACTS, 'facts, no picture needed'),
                              (mean, SEEN, 'mean of all families')):
        values, lows, highs = ([rows[name][key] for name in sizes]
                               for key in ('value', 'low', 'high'))
        axes.plot(x, values, color=color, linewidth=3, marker='o')
        axes.fill_between(x, lows, highs, color=color, alpha=.13, linewidth=0)
        axes.text(right, values[-1], text, color=color, va='center')
    guess = next(iter(mean.values()))['chance']
    axes.plot((x[0], x[-1]), (guess, guess), color='grey', linestyle=':')
    axes.text(right, guess, 'mean of informed guesses', color='grey', va='center')
    highest = families['compare']['w96d4']['value']
    axes.text(right, highest + .05, 'a family each, with a picture', color=MUTED, va='center')
    axes.set(xscale='log', ylim=(0, 1.03), ylabel='accuracy',
             xlabel='parameters of the language model, embeddings left out')
    apart = [True, *(after > 1.3 * before for before, after in pairwise(x))]
    axes.set_xticks(x, [f'{size / 1e3:.0f}k' if wide else '' for size, wide in zip(x, apart)])
    axes.minorticks_off()
    save(figure, path)


def save(figure, path: Path) -> None:
    """Write a figure so that equal figures are equal bytes."""
    figure.savefig(path, dpi=130, bbox_inches='tight', metadata={'Software': None})
    plt.close(figure)


def draw_report(path: Path) -> None:
    """Take a picture of the top of a report; leave the one that is there without a browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f'{path.name} stays as it is: none of {", ".join(BROWSERS)} is on the path')
        return
    with tempfile.TemporaryDirectory() as folder:
        synth(seed=0, to=Path(folder) / 'study')
        if main.main(['report', f'{folder}/study']):
            raise RuntimeError('the report was not written')
        page = (Path(folder) / 'study' / 'report' / 'report.html').as_uri()
        subprocess.run([browser, '--headless', '--no-sandbox', '--disable-gpu',
                        '--hide-scrollbars', '--virtual-time-budget=4000',
                        f'--user-data-dir={folder}/browser', f'--screenshot={path}',
                        '--window-size=1200,760', page], check=True, capture_output=True)


if __name__ == '__main__':
    PICTURES.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        draw_accuracy(PICTURES / 'accuracy.png')
    draw_report(PICTURES / 'report.png')
    sys.stdout.write('docs/pictures/\n')
