"""What a page shows, as the part of its address behind the '?': every page is a permalink."""
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from urllib.parse import parse_qsl, urlencode

from downscale.values import unknown
from downscale.view.board import LOSSES
from downscale.view.columns import View

PAGE = 50   # items of a page
DISAGREE = {'sizes': 'some columns right, some wrong', 'scorers': 'scorers disagree'}
SORTS = {'loss': 'loss of the right answer, worst first', 'length': 'length, longest first'}
UNITS = {'loss': 'nats', 'length': 'tokens'}   # of what is sorted by


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which items, in which order and beside which columns; '' leaves a filter out.

    `right` and `wrong` are headings of columns: items that these had right, or wrong.
    """
    columns: str = ''
    family: str = ''
    loss: str = ''
    right: str = ''
    wrong: str = ''
    disagree: str = ''
    text: str = ''
    sort: str = ''
    seed: str = ''
    page: str = ''
    item: str = ''

    @property
    def number(self) -> int:
        """The page, from 1."""
        return int(self.page or 1)

    @property
    def only_seed(self) -> int | None:
        """The seed that is asked for, None for the lowest of each column."""
        return int(self.seed) if self.seed else None

    def but(self, **changes: str) -> 'Query':
        """Return this query with some fields changed; another selection starts at its first page.
        """
        if not set(changes) <= {'page', 'item'}:
            changes = {'page': '', 'item': '', **changes}
        return replace(self, **changes)

    def address(self) -> str:
        """Return the query as it stands in an address, '' for none."""
        given = {name: value for name, value in asdict(self).items() if value}
        return '?' + urlencode(given) if given else ''


NAMES = tuple(field.name for field in fields(Query))


def read_query(text: str, views: Mapping[str, View], families: list[str]) -> Query:
    """Return the query of a text such as 'family=position&sort=loss'.

    ValueError, with the nearest word, for a name or a value that does not exist.
    """
    pairs = parse_qsl(text.lstrip('?'), keep_blank_values=True, max_num_fields=30)
    given = {}
    for name, value in pairs:
        if name not in NAMES:
            raise ValueError(unknown('part of an address', name, NAMES))
        given[name] = value
    query = Query(**given)
    for name, known in (('columns', list(views)), ('family', families), ('loss', LOSSES),
                        ('disagree', list(DISAGREE)), ('sort', list(SORTS))):
        value = getattr(query, name)
        if value and value not in known:
            raise ValueError(unknown(name, value, known))
    for name in ('seed', 'page'):
        value = getattr(query, name)
        if value and not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ValueError(f'{name}={value[:40]!r} is no whole number')
    columns = _view(query, views).columns
    seeds = sorted({seed for column in columns for seed in column.cells})
    if query.seed and int(query.seed) not in seeds:
        raise ValueError(unknown('seed', query.seed, seeds))
    labels = [column.label for column in columns]
    for name in ('right', 'wrong'):
        value = getattr(query, name)
        if value and value not in labels:
            raise ValueError(unknown('column', value, labels))
    return query


def _view(query, views):
    return views[query.columns] if query.columns else next(iter(views.values()))
