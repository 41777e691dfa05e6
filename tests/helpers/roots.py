"""Where tests find the repository, their data and their helpers."""
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / 'tests' / 'helpers'
DATA = ROOT / 'tests' / 'data'
