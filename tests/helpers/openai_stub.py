"""A server that speaks OpenAI's chat completions and answers about scenes from the truth, badly.

What goes wrong with a request hangs on its content alone, so a second run meets the same trouble:
some requests fail on their first attempts (HTTP 500, 429 with Retry-After, a stall, a body that is
no JSON) or on all, some are answered with text that is cut off, rubbish, or planted with a leak or
a contradiction. `planted` says which: {(prompt, picture): kind}.
"""
import base64
import json
import re
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from downscale.evaluate.asked import digest
from downscale.factory.oracle import Oracle

STALL = 1.5  # seconds; clients here wait less
PASSING = ('500', '429', 'stall', 'garbage')  # gone after one or two attempts
RATES = {'500': .06, '429': .06, 'stall': .03, 'garbage': .03, 'dead': .01, 'truncated': .03,
         'html': .02, 'refusal': .02, 'loop': .02, 'leak': .15, 'swap': .15, 'omit': .05}
OTHER = {'red': 'green', 'green': 'blue', 'blue': 'yellow', 'yellow': 'purple', 'purple': 'orange',
         'orange': 'red', 'small': 'large', 'large': 'small', 'larger': 'smaller',
         'smaller': 'larger'}


def otherwise(statement, chance):
    """A statement of the scene world turned into one that contradicts it."""
    words = statement.rstrip('.').split()
    if 'not' in words:
        words.remove('not')
    elif found := [k for k, word in enumerate(words) if word in ('larger', 'smaller')]:
        words[found[0]] = OTHER[words[found[0]]]
    elif found := [k for k, word in enumerate(words) if word in ('of', 'above', 'below')
                   and words[0] == 'The' and words[1] != 'box' and words[1] != 'number']:
        at = words.index('is')
        words.insert(at + 1, 'not')
    elif words[-1] in OTHER:
        words[-1] = OTHER[words[-1]]
    elif words[-1].isdigit():
        words[-1] = str(int(words[-1]) + 1 + chance % 2)
    elif re.fullmatch('[a-d][1-4]', words[-1]):
        words[-1] = words[-1][0] + str(int(words[-1][1]) % 4 + 1)
    elif words[0] == 'At':
        words[-1] = 'square' if words[-1] != 'square' else 'circle'
    else:
        words[-1] = 'Q' if words[-1] != 'Q' else 'R'
    return ' '.join(words) + '.'


class OpenAiStub(ThreadingHTTPServer):
    """Listens at `url`. `rates` are shares of requests per kind of trouble (see `RATES`); `seen`
    counts attempts by request, `calls` what was done with them, `held` most calls at once."""
    daemon_threads = True
    request_queue_size = 128  # what the queue of connections drops comes back a second later

    def __init__(self, gold, rates=RATES, key=None, delay=0.0):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.oracle, self.rates, self.key, self.delay = Oracle(gold), rates, key, delay
        self.seen, self.calls, self.planted, self.lock = Counter(), Counter(), {}, threading.Lock()
        self.busy = self.held = 0
        self.times = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/v1'

    def trouble(self, body, salt):
        """The kind of trouble of a request, '' for none; each `salt` draws for itself."""
        number = zlib.crc32(json.dumps([salt, body['messages'], body['seed']]).encode()) / 2**32
        for kind, rate in self.rates.items():
            if (kind in PASSING or kind == 'dead') != (salt == 'transport'):
                continue
            if number < rate:
                return kind
            number -= rate
        return ''

    def answer(self, prompt, image, body):
        """(text, finish) of a reply, with its trouble."""
        kind = self.trouble(body, 'text')
        text = self.oracle.text(prompt, image)
        chance = zlib.crc32(prompt.encode())
        told = None
        if kind == 'leak' and image is None and prompt.endswith('observe:'):
            told = self._leaked(prompt, text, chance)
        elif kind in ('swap', 'omit') and image is not None:
            told = self._spoilt(kind, prompt, text, chance)
        elif kind in ('truncated', 'html', 'refusal', 'loop'):
            told = {'truncated': text[:len(text) // 2],
                    'html': f'<div class="answer">{text}</div>',
                    'refusal': "I'm sorry, but I cannot help with that picture.",
                    'loop': text + ' and it is there' * 40}[kind]
        if told is not None:
            with self.lock:
                self.planted[prompt, digest(image) if image else None] = kind
        return told or text, 'length' if kind == 'truncated' else 'stop'

    def _leaked(self, prompt, text, chance):
        """`text` with an answer that no question says, in one of several wordings; None where
        there is none to tell."""
        asked = re.findall(r'^Question \d+: (.*)$', prompt.rpartition('Now for')[2], re.MULTILINE)
        known = [entry['answers'] for entry in self.oracle.gold.values()
                 if set(entry['answers']) == set(asked)]
        said = set(' '.join(asked).split())
        secret = [(question, answer) for question, answer in known[0].items()
                  if answer not in ('yes', 'no') and not set(answer.split()) & said] \
            if len(known) == 1 else []
        if not secret:
            return None
        question, answer = secret[chance % len(secret)]
        number = {'1': 'one', '2': 'two', '3': 'three', '4': 'four'}.get(answer, answer)
        return text + ('; {}: {}', ', which is {1}', '; note the {1}', '; the answer is {1}')[
            chance // 7 % 4].format(question, number if chance % 2 else answer)

    def _spoilt(self, kind, prompt, text, chance):
        lines = re.findall(r'^- (.*)$', prompt, re.MULTILINE)
        line = lines[chance % len(lines)]
        if kind == 'swap':
            return text.replace(line, otherwise(line, chance))
        # Without the sentence, and without what the rest says of all that it is about.
        things = set(re.findall(r'\b(?:[a-d][1-4]|[a-z]{4,})\b', line)) - {
            'there', 'things', 'number', 'reads', 'than'}
        kept = [part for part in text.replace(line, '').split('. ')
                if not things & set(re.findall(r'\w+', part))]
        return '. '.join(kept) + ' It is a plain picture with a light background and nothing else.'


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _send(self, code, value, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in headers.items():
            self.send_header(name.replace('_', '-'), text)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with server.lock:
            server.busy += 1
            server.held = max(server.held, server.busy)
            server.times.append(time.monotonic())
        try:
            self._reply(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up
        finally:
            with server.lock:
                server.busy -= 1

    def _reply(self, body):
        server = self.server
        if server.key and self.headers.get('Authorization') != f'Bearer {server.key}':
            return self._send(401, {'error': {'message': 'Incorrect API key provided'}})
        if self.path != '/v1/chat/completions':
            return self._send(404, {'error': {'message': f'no {self.path}'}})
        name = json.dumps(body['messages'])
        kind = server.trouble(body, 'transport')
        with server.lock:
            server.seen[name] += 1
            attempt = server.seen[name]
            passing = kind in PASSING and attempt <= 1 + zlib.crc32(name.encode()) % 2
            server.calls[kind if passing or kind == 'dead' else 'answered'] += 1
        time.sleep(server.delay)
        if kind == 'dead' or kind == '500' and passing:
            return self._send(500, {'error': {'message': 'internal error'}})
        if kind == '429' and passing:
            return self._send(429, {'error': {'message': 'slow down'}}, Retry_After='0.05')
        if kind == 'stall' and passing:
            time.sleep(STALL)
        if kind == 'garbage' and passing:
            return self._send(200, b'<html>gateway</html>')
        content, image = body['messages'][0]['content'], None
        if isinstance(content, list):
            image = base64.b64decode(content[0]['image_url']['url'].partition(',')[2])
            content = content[1]['text']
        text, finish = server.answer(content, image, body)
        return self._send(200, {
            'choices': [{'index': 0, 'finish_reason': finish,
                         'message': {'role': 'assistant', 'content': text}}],
            'usage': {'prompt_tokens': len(content.split()),
                      'completion_tokens': len(text.split())}})
