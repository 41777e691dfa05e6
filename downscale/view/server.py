"""The explorer on this machine alone: an address with a token, and pages made when asked for."""
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import parse_qs, urlencode, urlsplit

from downscale.runtime import copies
from downscale.runtime.streams import LONGEST_ERROR, cause_of, shortened
from downscale.view.board import Board, picture_path
from downscale.view.columns import views_of
from downscale.view.item_page import item_page
from downscale.view.pages import Desk, fault, items_page
from downscale.view.query import Query, read_query
from downscale.view.select import select
from downscale.view.style import SCRIPT, policy

HOST = '127.0.0.1'


class ServedLinks:
    """Addresses below the token: the list is '.', an item is in the query, pictures are files."""
    pictures = "'self'"

    def __init__(self, board: Board) -> None:
        self.board = board

    def items(self, query: Query) -> str:
        """Return the address of a list."""
        return query.address() or '?'

    def item(self, number: int, query: Query) -> str:
        """Return the address of an item, with the list that it was reached from."""
        return query.but(item=self.board.ids[number].as_py()).address()

    def picture(self, run: int, cluster: str, place: int) -> str:
        """Return the address of a picture."""
        return 'picture?' + urlencode({'run': run, 'cluster': cluster, 'place': place})


class Explorer(ThreadingHTTPServer):
    """A server of the items of some runs; `address` opens it."""
    daemon_threads = True

    def __init__(self, board: Board, port: int = 0) -> None:
        super().__init__((HOST, port), Handler)
        self.desk = Desk(board=board, views=views_of(board.runs), links=ServedLinks(board))
        # Other users of this machine can reach the port, but cannot guess this.
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()   # columns are read when they are first asked for

    @property
    def address(self) -> str:
        """Where to look."""
        return f'http://{HOST}:{self.server_port}/{self.token}/'

    def page(self, text: str) -> str:
        """Return the page of a query as it stands in an address; ValueError for a wrong one."""
        desk = self.desk
        _, families = desk.board.coded('task')
        query = read_query(text, desk.views, families)
        items = select(desk.board, desk.view(query), query)
        if not query.item:
            return items_page(desk, query, items)
        number = desk.board.number_of(query.item)
        if number is None:
            raise ValueError(f'no item {query.item[:80]!r}')
        return item_page(desk, query, number, items)


class Handler(BaseHTTPRequestHandler):
    """Answers GET for pages and pictures, and nothing without the token."""
    server_version = 'downscale'
    sys_version = ''

    @property
    def explorer(self) -> Explorer:
        """The server of this request."""
        return cast(Explorer, self.server)

    def do_GET(self) -> None:
        """Answer one request."""
        parts = urlsplit(self.path)
        token, _, name = parts.path.removeprefix('/').partition('/')
        # A page of another site may have its own name resolve to this machine.
        host = self.headers.get('Host', '').rpartition(':')[0]
        if host not in (HOST, 'localhost') or not secrets.compare_digest(
                token.encode(), self.explorer.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, b'open the address that `downscale view` prints\n',
                       'text/plain; charset=utf-8')
        elif not parts.path.startswith(f'/{token}/'):
            self._send(HTTPStatus.MOVED_PERMANENTLY, b'', 'text/plain', Location=f'/{token}/')
        elif name == 'picture':
            self._picture(parts.query)
        elif name:
            self._page(HTTPStatus.NOT_FOUND, fault(f'no page {name[:80]!r}', "'self'"))
        else:
            self._list(parts.query)

    def _list(self, text):
        try:
            with self.explorer.lock:
                page = self.explorer.page(text)
        except (ValueError, OSError) as error:
            message = shortened(cause_of(error), LONGEST_ERROR)
            self._page(HTTPStatus.BAD_REQUEST, fault(message, "'self'"))
        else:
            self._page(HTTPStatus.OK, page)

    def _picture(self, text):
        given = {name: values[0] for name, values in parse_qs(text).items()}
        try:
            run = self.explorer.desk.board.runs[int(given['run'])]
            # `picture_path` leaves no slash in the name, so that it stays in its folder.
            path = picture_path(run, given['cluster'], int(given['place']))
            copies.fetch([path])
            data = path.read_bytes()
        except (KeyError, ValueError, IndexError, OSError, RuntimeError):
            self._send(HTTPStatus.NOT_FOUND, b'no such picture\n', 'text/plain; charset=utf-8')
        else:
            self._send(HTTPStatus.OK, data, 'image/png')

    def _page(self, status, page):
        self._send(status, page.encode(errors='replace'), 'text/html; charset=utf-8')

    def _send(self, status, data, kind, **headers):
        self.send_response(status)
        for name, value in (
                ('Content-Type', kind), ('Content-Length', str(len(data))),
                ('Content-Security-Policy',
                 policy(SCRIPT, "'self'") + "; frame-ancestors 'none'"),
                ('X-Content-Type-Options', 'nosniff'), ('Referrer-Policy', 'no-referrer'),
                ('Cross-Origin-Resource-Policy', 'same-origin'), ('Cache-Control', 'no-store'),
                *headers.items()):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: addresses hold the token."""
