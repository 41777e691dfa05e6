"""Teachers: what a server does wrong is borne, bounded and said; a model of ours is one too."""
import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import small
from fake_chain import study
from openai_stub import OpenAiStub
from PIL import Image
from waiting import LIMIT, wait_until

from downscale.factory import server
from downscale.factory.oracle import Oracle
from downscale.factory.server import Server
from downscale.factory.teachers import Ask, Failure, TeacherReply, open_engine

ASKED = 'Question 1: where is the circle\nAnswer 1: a1\n'


def png(color=(200, 30, 30), form='PNG'):
    out = io.BytesIO()
    Image.new('RGB', (8, 8), color).save(out, form)
    return out.getvalue()


def asks(count=40):
    return [
        Ask(key=f'k{k}', prompt=ASKED + '#' * k, image=None, limit=20, seed=k) for k in range(count)
    ]


class Scripted(ThreadingHTTPServer):
    """Answers the n-th call with the n-th (code, headers, body or a function that writes it)."""
    daemon_threads = True

    def __init__(self, *script):
        super().__init__(('127.0.0.1', 0), _Scripted)
        self.script, self.bodies, self.headers, self.times = list(script), [], [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server_port}/v1'


class _Scripted(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.bodies.append(json.loads(
            self.rfile.read(int(self.headers['Content-Length']))))
        self.server.headers.append(dict(self.headers))
        self.server.times.append(time.monotonic())
        code, headers, body = self.server.script.pop(0)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client gave up
            body(self.wfile) if callable(body) else self.wfile.write(body)


def said(text='fine', finish='stop', **usage):
    return json.dumps({'choices': [{'message': {'content': text}, 'finish_reason': finish}],
                       'usage': usage}).encode()


def one(stub, image=None, **settings):
    """What a scripted server's answers come to for one ask."""
    settings = {'timeout': 5, 'backoff': .01, 'attempts': 3} | settings
    ((_, reply),) = Server(url=stub.url, model='m', **settings).write(
        [Ask(key='k', prompt='hello', image=image, limit=7, seed=2**31 + 5)]
    )
    return reply


def test_a_body_that_is_not_what_its_header_says_is_tried_again():
    reply = one(Scripted((200, {'Content-Encoding': 'gzip'}, b'no gzip'), (200, {}, said())))
    assert reply.text == 'fine' and reply.attempts == 2


def test_every_ask_is_answered_through_passing_failures():
    stub = OpenAiStub({}, {'500': .2, '429': .2, 'stall': .1, 'garbage': .2})
    teacher = Server(url=stub.url, model='m', timeout=1.2, backoff=.01, concurrency=6)
    found = {ask.key: reply for ask, reply in teacher.write(iter(asks()))}
    assert len(found) == 40
    assert {reply.text for reply in found.values()} == {'The circle is at a1.'}
    assert max(reply.attempts for reply in found.values()) > 1
    assert {kind for kind, n in stub.calls.items() if n} == {
        '500', '429', 'stall', 'garbage', 'answered'}
    assert 1 < stub.held <= 2 * 6  # stalled calls go on at the server after the client left


def test_a_failure_that_stays_is_a_result_and_says_why():
    stub = OpenAiStub({}, {'dead': 1.0})
    found = [
        reply
        for _, reply in Server(url=stub.url, model='m', attempts=3, backoff=0.01).write(asks(3))
    ]
    assert found == [Failure('HTTP 500', 3)] * 3 and stub.calls['dead'] == 9
    assert one(Scripted((400, {}, b'{"error": {"message": "too\\nlong"}}'))) == \
        Failure('HTTP 400: too long', 1)


def test_a_refused_key_or_model_ends_the_work_in_one_line():
    stub = OpenAiStub({}, {}, key='right')
    with pytest.raises(ValueError, match='HTTP 401: Incorrect API key') as error:
        list(Server(url=stub.url, model='m', key='wrong-secret').write(asks(3)))
    assert '\n' not in str(error.value) and 'wrong-secret' not in str(error.value)
    assert len(list(Server(url=stub.url, model='m', key='right').write(asks(3)))) == 3
    assert 'wrong-secret' not in repr(Server(url=stub.url, model='m', key='wrong-secret'))


def test_a_key_is_taken_from_the_environment_by_name(monkeypatch):
    monkeypatch.setenv('MY_KEY', 'secret')
    assert server.key_in('MY_KEY') == 'secret' and server.key_in(None) is None
    with pytest.raises(ValueError, match='OTHER_KEY holds no key'):
        server.key_in('OTHER_KEY')


def test_retry_after_holds_everyone_back():
    stub = Scripted((429, {'Retry-After': '0.4'}, b''), (200, {}, said()))
    assert one(stub).text == 'fine' and stub.times[1] - stub.times[0] >= .4

    def slow(file):
        time.sleep(.2)
        file.write(said())

    stub = Scripted((429, {'Retry-After': '0.6'}, b''), *[(200, {}, slow)] * 3)
    assert (
        len(list(Server(url=stub.url, model='m', concurrency=2, backoff=0.01).write(asks(3)))) == 3
    )
    assert stub.times[2] - stub.times[0] >= .55  # the third ask had a free hand all the while
    assert server.seconds({'retry-after': 'Wed, 21 Oct 2015 07:28:00 GMT'}) == 0
    assert server.seconds({'retry-after': 'soon'}) is None and server.seconds({}) is None


def test_no_more_calls_a_minute_than_allowed():
    stub = OpenAiStub({}, {})
    begun = time.monotonic()
    list(Server(url=stub.url, model='m', per_minute=600).write(asks(6)))
    # Counted from the start: on a busy machine a late call is followed by one that is in time.
    assert (np.sort(stub.times) - begun >= .1 * np.arange(6)).all()


def test_a_reply_that_trickles_or_never_ends_is_given_up(monkeypatch):
    def trickle(file):
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:  # or until the client has left
            file.write(b' ')
            file.flush()
            time.sleep(.05)

    assert one(Scripted((200, {}, trickle)), timeout=.3, attempts=1) == Failure('timeout', 1)
    monkeypatch.setattr(server, 'MOST_BYTES', 1000)
    assert one(Scripted((200, {}, b' ' * 5000)), attempts=1) == Failure('reply without end', 1)


def test_a_server_that_is_not_there_is_a_failure():
    ((_, reply),) = Server(url='http://127.0.0.1:9/v1', model='m', attempts=2, backoff=0.01).write(
        asks(1)
    )
    assert reply == Failure('connection: ConnectError', 2)


@pytest.mark.parametrize('body', [b'', b'null', b'[]', b'{}', b'{"choices": []}', b'\xff',
                                  b'{"choices": [{"message": null}]}'])
def test_a_body_that_is_no_completion_is_tried_again(body):
    assert one(Scripted((200, {}, body), (200, {}, said()))) == TeacherReply(
        text='fine', finish='stop', tokens_in=None, tokens_out=None, attempts=2)


def test_odd_replies_are_read_as_they_are():
    assert one(Scripted((200, {}, said(None)))).text == ''
    assert one(Scripted((200, {}, said('a\ud800b', 'length')))) == \
        TeacherReply(text='a?b', finish='length', tokens_in=None, tokens_out=None)
    assert one(Scripted((200, {}, said(prompt_tokens='many', completion_tokens=4)))) == \
        TeacherReply(text='fine', finish='stop', tokens_in=None, tokens_out=4)


def test_a_picture_goes_along_as_it_is_or_as_png():
    for form, kind in (('PNG', 'png'), ('JPEG', 'jpeg'), ('BMP', 'png')):
        stub = Scripted((200, {}, said()))
        one(stub, png(form=form))
        picture, text = stub.bodies[0]['messages'][0]['content']
        assert picture['image_url']['url'].startswith(f'data:image/{kind};base64,')
        assert text['text'] == 'hello' and stub.bodies[0]['max_tokens'] == 7
        assert stub.bodies[0]['seed'] == 5  # fits a signed int
        assert 'Authorization' not in stub.headers[0]


def test_work_that_is_given_up_does_not_wait_for_pauses():
    stub, begun = OpenAiStub({}, {'dead': 1.0}), time.monotonic()

    def broken():
        yield from asks(2)
        wait_until(lambda: stub.calls['dead'] == 2)  # both fail once and pause
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Server(url=stub.url, model='m', attempts=2, backoff=4 * LIMIT).write(broken()))
    assert stub.calls['dead'] == 2 and time.monotonic() - begun < LIMIT


def test_asks_are_taken_as_room_comes_free():
    taken = []

    def slowly():
        for ask in asks(60):
            taken.append(ask.key)
            yield ask

    work = Server(url=OpenAiStub({}, {}).url, model='m', concurrency=3).write(slowly())
    next(work)
    assert len(taken) <= 2 * 3 + 1
    work.close()


def test_a_model_of_ours_is_a_teacher():
    folder = study() / 'cells/w32d1-s0/extract'
    teacher = open_engine(folder, 'teacher', 0.0, 1.0, 2)
    assert len(teacher.fingerprint) > 5 and teacher.settings['teacher'] == 'engine'
    picture = small.library().example(23).images[0]
    given = [
        Ask(key='a', prompt='where is the circle', image=None, limit=4, seed=0),
        Ask(key='b', prompt='describe', image=picture, limit=4, seed=1),
    ]
    found = {ask.key: reply for ask, reply in teacher.write(given)}
    assert set(found) == {'a', 'b'}
    assert all(reply.finish in ('stop', 'length') and 0 <= reply.tokens_out <= 4
               for reply in found.values())
    assert found['b'].tokens_in > found['a'].tokens_in
    again = {ask.key: reply for ask, reply in teacher.write(given[::-1])}
    assert again == found


def test_the_oracle_answers_only_what_it_knows():
    with pytest.raises(ValueError, match='default prompts'):
        Oracle({}).text('What is this?')
    assert Oracle({}).text('Question 1: which is larger star or ring\nAnswer 1: ring\n') == \
        'The ring is larger than the star.'
