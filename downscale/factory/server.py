"""A teacher behind HTTP: any server that speaks OpenAI's chat completions."""
import base64
import email.utils
import io
import json
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from downscale.data.images import decode
from downscale.factory.teachers import Ask, Failure, TeacherReply

try:
    import httpx
except ImportError:
    raise ImportError("no httpx; pip install 'downscale[extract]'") from None

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
REFUSED = {401, 403, 404}  # any other ask would be refused as well
MOST_BYTES = 16 << 20  # of a reply; a server that sends on and on must not fill the memory
LONGEST_WAIT = 300.0  # seconds, whatever a Retry-After says
PASSED = {'PNG': 'image/png', 'JPEG': 'image/jpeg'}  # what every such server reads


class Retry(Exception):
    """An attempt failed in a way that may pass; `after` is what the server asked to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


@dataclass(kw_only=True)
class Pace:
    """A gate for at most `per_minute` calls (None: any number), and none before a hold ends."""
    per_minute: float | None
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    free: float = 0.0

    def enter(self) -> None:
        """Wait until it is this call's turn."""
        with self.lock:
            at = max(time.monotonic(), self.free)
            if self.per_minute:
                self.free = at + 60 / self.per_minute
        self.rest(at - time.monotonic())

    def hold(self, seconds: float) -> None:
        """Let nobody enter for so long."""
        with self.lock:
            self.free = max(self.free, time.monotonic() + seconds)

    def rest(self, seconds: float) -> None:
        """Sleep, but wake when the work is given up."""
        if seconds > 0:
            self.stopped.wait(seconds)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model at `url` (up to and with /v1). `key` is a secret and not part of the settings.

    `timeout` bounds a whole call in seconds, also where the reply trickles in. A call is tried
    `attempts` times in all, `backoff` seconds apart at first and twice as long each time.
    """
    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    temperature: float = 0.0
    top_p: float = 1.0
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 5
    backoff: float = 1.0
    per_minute: float | None = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides its text; where the server stands does not."""
        return {'teacher': 'openai', 'model': self.model, 'temperature': self.temperature,
                'top_p': self.top_p}

    def write(self, asks: Iterable[Ask]) -> Iterator[tuple[Ask, TeacherReply | Failure]]:
        """Yield what came of each of `asks`, as they end.

        ValueError in one line when the server refuses the key, the model or the address.
        """
        headers = {'Authorization': f'Bearer {self.key}'} if self.key else {}
        pace = Pace(per_minute=self.per_minute)
        pool = ThreadPoolExecutor(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency)
        with httpx.Client(headers=headers, timeout=self.timeout, limits=limits) as client:
            try:
                waiting = {}
                for ask in asks:
                    waiting[pool.submit(self._reply_to, client, pace, ask)] = ask
                    # As many again wait in line, so that no thread idles between two calls.
                    if len(waiting) >= 2 * self.concurrency:
                        yield from self._ended(waiting)
                while waiting:
                    yield from self._ended(waiting)
            finally:
                pace.stopped.set()
                pool.shutdown(cancel_futures=True)

    def _ended(self, waiting):
        """Yield what came of the asks that have ended, at least one, and take them off the list."""
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()

    def _reply_to(self, client, pace, ask):
        """Return the reply to one ask, or why there is none after every attempt."""
        body = self._body(ask)
        # Random pauses, so that calls that failed together do not come back together. No text
        # depends on them.
        chance = random.Random(ask.seed)
        for attempt in range(1, self.attempts + 1):
            pace.enter()
            if pace.stopped.is_set():
                return Failure('given up', attempt)
            try:
                return self._call(client, body, attempt)
            except Retry as error:
                reason = error.reason
                after = error.after
            except Unanswerable as error:
                return Failure(str(error), attempt)
            pause = self.backoff * 2 ** (attempt - 1) * (.5 + chance.random())
            if after is not None:
                pace.hold(min(after, LONGEST_WAIT))  # the others would be sent away too
            if attempt < self.attempts:
                pace.rest(min(max(pause, after or 0), LONGEST_WAIT))
        return Failure(reason, self.attempts)

    def _body(self, ask):
        content = ask.prompt
        if ask.image is not None:
            content = [{'type': 'image_url', 'image_url': {'url': address(ask.image)}},
                       {'type': 'text', 'text': ask.prompt}]
        return {'model': self.model, 'messages': [{'role': 'user', 'content': content}],
                'max_tokens': ask.limit, 'temperature': self.temperature, 'top_p': self.top_p,
                'seed': ask.seed % 2**31}  # some servers keep seeds in a signed int

    def _call(self, client, body, attempt):
        """Return the reply of one attempt; `Retry` when another may go better."""
        # httpx bounds each read; a reply that trickles would never meet that limit.
        end = time.monotonic() + self.timeout
        data = b''
        try:
            with client.stream('POST', f'{self.url.rstrip("/")}/chat/completions',
                               json=body) as response:
                for part in response.iter_bytes():
                    data += part
                    if time.monotonic() > end:
                        raise Retry('timeout')
                    if len(data) > MOST_BYTES:
                        raise Retry('reply without end')
        except httpx.TimeoutException:
            raise Retry('timeout') from None
        except httpx.RequestError as error:
            raise Retry(f'connection: {type(error).__name__}') from None
        if response.status_code in RETRIED:
            raise Retry(f'HTTP {response.status_code}', seconds(response.headers))
        if response.status_code in REFUSED:
            raise ValueError(f'{self.url} refuses (HTTP {response.status_code}: {_said(data)}); '
                             f'check the address, the model {self.model!r} and the key')
        if response.status_code != 200:
            raise Unanswerable(f'HTTP {response.status_code}: {_said(data)}')
        return _reply(data, attempt)


class Unanswerable(Exception):
    """An ask that the server will never answer."""


def _reply(data, attempt):
    """Return the `TeacherReply` in the body of an answer; `Retry` where there is none."""
    try:
        value = json.loads(data)
        choice = value['choices'][0]
        usage = value.get('usage') or {}
        text = choice['message'].get('content')
        text = text if isinstance(text, str) else ''
        text = text.encode(errors='replace').decode()  # half a surrogate pair fits no file
        return TeacherReply(
            text=text,
            finish=str(choice.get('finish_reason')),
            tokens_in=_count(usage.get('prompt_tokens')),
            tokens_out=_count(usage.get('completion_tokens')),
            attempts=attempt,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Retry('no chat completion in the reply') from None


def _count(value):
    """Return a number of tokens, None where a server sends no whole number."""
    return value if isinstance(value, int) else None


def _said(data):
    """Return the message in the body of an error, on one short line."""
    try:
        message = json.loads(data)['error']['message']
    except (ValueError, KeyError, TypeError):
        message = data.decode(errors='replace')
    return ' '.join(str(message).split())[:160]


def seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header (a number or a date) asks for, or None."""
    text = headers.get('retry-after')
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def address(data: bytes) -> str:
    """Return an encoded picture as a data address; what is neither PNG nor JPEG becomes PNG."""
    kind = PASSED.get(Image.open(io.BytesIO(data)).format or '')
    if kind is None:
        out = io.BytesIO()
        decode(data).save(out, 'PNG')
        kind = 'image/png'
        data = out.getvalue()
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def key_in(variable: str | None) -> str | None:
    """Return the secret in an environment variable, None without a name.

    ValueError when the variable is unset or empty.
    """
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ValueError(f'the environment variable {variable} holds no key; set it, or leave '
                         '--key-variable out')
    return os.environ[variable]
