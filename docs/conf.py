"""Sphinx: Markdown pages, executed notebooks, parts made from the code. Built by `make docs`."""
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated  # noqa: E402

project = 'downscale'
author = 'the authors of downscale'
extensions = ['myst_nb', 'sphinx.ext.autodoc']
html_theme = 'furo'
html_title = 'downscale'
html_show_copyright = False
exclude_patterns = ['pictures']
default_role = 'code'

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'force'
nb_execution_timeout = 120
nb_execution_raise_on_error = True
autodoc_typehints = 'none'  # signatures say them
autodoc_preserve_defaults = True
autodoc_member_order = 'bysource'


def fill(app, name, source):
    """Put the generated parts of a page into its text."""
    source[0] = generated.filled(source[0])


def list_fields(app, what, name, thing, options, lines):
    """Make a list of the lines `name: meaning` of a docstring, and of what is indented below."""
    listed = []
    inside = False
    for line in lines:
        field = re.match(r'(\w+): (.*)', line)
        goes_on = inside and line.startswith('    ')
        if bool(field or goes_on) != inside:
            listed.append('')  # a list stands between empty lines
        inside = bool(field or goes_on)
        text = f'- **{field[1]}**: {field[2]}' if field else line
        listed.append(f'  {line.strip()}' if goes_on else text)
    lines[:] = listed


def setup(app):
    """Connect both."""
    app.connect('source-read', fill)
    app.connect('autodoc-process-docstring', list_fields)
    return {'parallel_read_safe': True}
