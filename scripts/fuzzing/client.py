"""The target `client`: a server on loopback that sends anything, and a turn that is asked of it.

A case is a script, as JSON: what the server does when /api/show, /api/ps and /api/chat are asked, byte for byte (one
byte a character). Scripts are made from what Ollama really answers: its JSON mutated in sound HTTP, its HTTP mutated,
or one of HOSTILE, which never end, lie about their length, drip, or are compressed a thousandfold. A turn is asked over
each of the client's two transports, and each 250th case is put to the command as a process of its own.

What may come of it is an answer that can be printed as JSON, or one of the documented errors, within the time that was
given and with bounded memory.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import zlib

import stores

from fuzzing import mutations
from fuzzing.promises import Sink, assert_error, assert_json, run_command
from ollama_prompt import config, flags, ollama, render
from ollama_prompt.errors import ModelError
from ollama_prompt.host import Host
from ollama_prompt.turn import take_turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random
    from typing import Any

    Json = dict[str, Any]
    Step = list[Any]

PROCESS_EVERY = 250
TIMEOUT = 0.25
BOMB_SIZE = 100_000_000
CODES = {
    "ollama_unreachable", "model_not_found", "model_unsupported", "signin_required", "context_too_small", "ollama_busy",
    "ollama_error", "incomplete_answer", "timeout",
}  # fmt: skip
"""How a turn may end that is not answered."""
SHOW: Json = {
    "license": "Apache", "details": {"family": "llama", "context_length": 8192},
    "capabilities": ["completion", "thinking"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
    "modified_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
LOADED: Json = {"models": [{"name": "smollm2:latest", "model": "smollm2:latest", "context_length": 4096, "size": 1}]}
COUNTS: Json = {
    "done_reason": "stop", "total_duration": 5, "prompt_eval_count": 31, "eval_count": 4, "eval_duration": 2
}  # fmt: skip


def _chunk(content: str, **more: Any) -> Json:
    message = {"role": "assistant", "content": content}
    return {"model": "smollm2", "created_at": "2026-01-01T00:00:00.1Z", "message": message, "done": False, **more}


CHUNKS = (_chunk("Hello "), _chunk("Größe 🌊\u2028", thinking="?"), _chunk("", done=True, **COUNTS))
ERRORS: tuple[Any, ...] = (
    {"error": "model 'x' not found"}, {"error": {"message": "no", "type": "exceed_context_size_error", "n_ctx": 5}},
    {"error": '{"error": {"message": "request (9 tokens) exceeds the available context size (5 tokens)"}}'},
    {"error": "unauthorized", "signin_url": "https://ollama.com/connect"}, {"error": "does not support thinking"},
    {"error": None}, {"error": [1]}, {"error": {"error": {"error": {"error": {"error": {"error": "x"}}}}}}, [], 5,
)  # fmt: skip
STATUSES = (
    200, 200, 200, 200, 100, 101, 204, 206, 301, 307, 400, 401, 403, 404, 405, 416, 429, 500, 502, 503, 599, 999, 99
)  # fmt: skip


def _ndjson(*chunks: Any) -> bytes:
    return b"".join(json.dumps(chunk, ensure_ascii=False).encode() + b"\n" for chunk in chunks)


SOUND = {"/api/show": _ndjson(SHOW), "/api/ps": _ndjson(LOADED), "/api/chat": _ndjson(*CHUNKS)}
"""What Ollama answers."""


# --- Scripts ---------------------------------------------------------------------------------------


def _send(data: bytes) -> Step:
    return ["send", data.decode("latin-1")]


def _repeat(data: bytes, times: int) -> Step:
    return ["repeat", data.decode("latin-1"), times]


def _head(status: int = 200, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d OK" % status, b"Content-Type: application/x-ndjson", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _framed(chance: Random, status: int, body: bytes) -> bytes:
    """A whole answer in sound HTTP, in one of the ways that it has."""
    way = chance.randrange(3)
    if way == 0:
        return _head(status, b"Content-Length: %d" % len(body)) + body
    if way == 1:
        return _head(status, b"Connection: close") + body
    size = chance.randint(1, 40)
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if len(body) < 5000 else [body]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return _head(status, b"Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"


def _end(chance: Random) -> list[Step]:
    """Mostly the connection ends: else what says of itself that it is longer is waited for."""
    return [["close"]] if chance.random() < 0.8 else []


def _mutated_body(chance: Random, path: str) -> list[Step]:
    body = SOUND[path] if chance.random() < 0.8 else _ndjson(*chance.choices(ERRORS, k=chance.randint(1, 2)))
    return [_send(_framed(chance, chance.choice(STATUSES), mutations.mutated(chance, body))), *_end(chance)]


def _mutated_http(chance: Random, path: str) -> list[Step]:
    return [_send(mutations.mutated(chance, _framed(chance, chance.choice(STATUSES), SOUND[path]))), *_end(chance)]


def _in_pieces(chance: Random, path: str) -> list[Step]:
    """With pauses between, or a connection that is gone in the middle."""
    data = _framed(chance, 200, SOUND[path])
    at = chance.randint(0, len(data))
    between = chance.choice((["pause", 0.01], ["pause", 1.0], ["reset"], ["close"]))
    return [_send(data[:at]), between, _send(data[at:])]


def _hostile(chance: Random, path: str) -> list[Step]:
    return chance.choice(HOSTILE)(SOUND[path])


_ENDLESS = 20_000_000
HOSTILE: tuple[Callable[[bytes], list[Step]], ...] = (
    lambda _: [_repeat(b"x", _ENDLESS)],
    lambda _: [_send(b"HTTP/1.1 200 "), _repeat(b"O", _ENDLESS)],
    lambda _: [_send(b"HTTP/1.1 200 OK\r\n"), _repeat(b"X-Header: x\r\n", _ENDLESS)],
    lambda _: [_send(b"HTTP/1.1 200 OK\r\nX-Header: "), _repeat(b"x", _ENDLESS)],
    lambda _: [_repeat(b"HTTP/1.1 100 Continue\r\n\r\n", _ENDLESS)],
    lambda _: [_send(_head() + b'{"message": {"content": "'), _repeat(b"x", _ENDLESS)],
    lambda _: [_send(_head()), _repeat(b" ", _ENDLESS)],
    lambda _: [_send(_head()), _repeat(b"\n", _ENDLESS)],
    lambda _: [_send(_head()), _repeat(b'{"message": {"content": ""}}\n', _ENDLESS)],
    lambda _: [_send(_head(404)), _repeat(b"x", _ENDLESS)],
    lambda _: [_send(_head(503, b"Retry-After: 999999")), _repeat(b"x", _ENDLESS)],
    lambda body: [_send(_head(200, b"Content-Length: 99999999999999999999999999") + body)],
    lambda body: [_send(_head(200, b"Content-Length: -5") + body)],
    lambda body: [_send(_head(200, b"Content-Length: 5", b"Content-Length: 7") + body)],
    lambda body: [_send(_head(200, b"Content-Length: 5", b"Transfer-Encoding: chunked") + body)],
    lambda body: [_send(_head(200, b"Transfer-Encoding: gzip, chunked") + body)],
    lambda _: [_send(_head(200, b"Transfer-Encoding: chunked") + b"fffffffffffffffffff\r\n"), _repeat(b"x", _ENDLESS)],
    lambda _: [_send(_head(200, b"Transfer-Encoding: chunked") + b"-1\r\n"), _repeat(b"x", 100)],
    lambda _: [_send(_head(200, b"Transfer-Encoding: chunked") + b"1;"), _repeat(b"x", _ENDLESS)],
    lambda _: [_send(_head(200, b"Transfer-Encoding: chunked")), _repeat(b"0" * 1000, _ENDLESS)],
    lambda _: [_send(_head(200, b"Transfer-Encoding: chunked") + b"0\r\n"), _repeat(b"X: y\r\n", _ENDLESS)],
    lambda body: [["drip", (_head() + body).decode("latin-1"), 0.05]],
    lambda body: [_send(_head() + body[:-1]), ["pause", 1.0]],
    lambda _: [["pause", 1.0]],
    lambda _: [["reset"]],
    lambda _: [],
    lambda _: [_send(_head(302, b"Location: /elsewhere"))],
    lambda _: [_send(_head(307, b"Location: http://127.0.0.1:1/api/chat", b"Location: \xff"))],
    lambda body: [_send(_head(200, b"Content-Encoding: gzip") + gzip.compress(body))],
    lambda body: [_send(_head(200, b"Content-Encoding: deflate") + zlib.compress(body))],
    lambda body: [_send(_head(200, b"Content-Encoding: br, zstd, x") + body)],
    lambda _: [_send(_head(200, b"Content-Encoding: gzip") + _bomb(1))],
    lambda _: [_send(_head(200, b"Content-Encoding: gzip, gzip") + _bomb(2))],
    lambda _: [_send(_head(200, b"Content-Encoding: gzip", b"Content-Encoding: gzip, gzip") + _bomb(3))],
    lambda _: [_send(b"SSH-2.0-OpenSSH_9.9\r\n")],
    lambda _: [_send(b"\x15\x03\x01\x00\x02\x02\x46")],
    lambda body: [_send(b"HTTP/0.9 200\r\n\r\n" + body)],
    lambda body: [_send(b"HTTP/2.0 200 OK\r\n\r\n" + body)],
)
_BOMBS: dict[int, bytes] = {}


def _bomb(times: int) -> bytes:
    """Zeros, compressed so many times."""
    if times not in _BOMBS:
        inner = bytes(BOMB_SIZE) if times == 1 else _bomb(times - 1)
        _BOMBS[times] = gzip.compress(inner, 9 if times > 1 else 1, mtime=0)
    return _BOMBS[times]


WAYS = (_mutated_body,) * 6 + (_mutated_http,) * 5 + (_in_pieces, _hostile)


def _script(chance: Random) -> Json:
    """What is done for each path; that the chat is reached at all takes sound answers before it."""
    answers = {path: [_send(_framed(chance, 200, body))] for path, body in SOUND.items()}
    wrong = chance.choice(("/api/chat", "/api/chat", "/api/chat", "/api/show", "/api/ps"))
    answers[wrong] = chance.choice(WAYS)(chance, wrong)
    own = [] if chance.random() < 0.7 else chance.choice((["--format", "json"], ["--think"], ["--max-tokens", "5"]))
    return {"answers": answers, "flags": own, "output": chance.choice(("json", "ndjson", "text"))}


# --- The server ------------------------------------------------------------------------------------


class Server:
    """Does what the script says; one thread a connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.answers: dict[str, list[Step]] = {}
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR) if sys.platform == "linux" else self._listener.close()
        self._thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, self.answers), daemon=True).start()

    def _serve(self, connection: socket.socket, answers: dict[str, list[Step]]) -> None:
        with connection:
            try:
                connection.settimeout(5)
                while path := _request(connection):
                    steps = answers.get(path, [])
                    if not all(_do(connection, step) for step in steps) or not _goes_on(steps):
                        return
            except OSError:
                return


def _request(connection: socket.socket) -> str:
    """Read one request whole; its path, "" if there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return ""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0 and (more := connection.recv(65536)):
        missing -= len(more)
    return head.split(b" ", 2)[1].decode("latin-1")


def _goes_on(steps: list[Step]) -> bool:
    """Whether the connection is used again: behind an answer that says itself where it ends."""
    whole = len(steps) == 1 and steps[0][0] == "send"
    return whole and "Connection: close" not in steps[0][1]


def _do(connection: socket.socket, step: Step) -> bool:
    """Do one step; False where the connection is given up."""
    verb, *rest = step
    if verb == "send":
        connection.sendall(rest[0].encode("latin-1"))
    elif verb == "repeat":
        _send_repeated(connection, rest[0].encode("latin-1"), rest[1])
    elif verb == "drip":
        for character in rest[0]:
            connection.sendall(character.encode("latin-1"))
            time.sleep(rest[1])
    elif verb == "pause":
        time.sleep(rest[0])
    elif verb == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return verb not in {"reset", "close"}


def _send_repeated(connection: socket.socket, data: bytes, times: int) -> None:
    """In blocks, until there is nobody who reads."""
    together = max(1, 65536 // len(data))
    block = data * together
    for _ in range(0, times, together):
        connection.sendall(block)


# --- The target ------------------------------------------------------------------------------------


class _OtherHost(Host):
    """A host that is treated like one elsewhere: httpx's own transport."""

    @property
    def is_plain_loopback(self) -> bool:
        return False


class Client:
    """The target; see the module. The client's own limits are shortened while it is there."""

    name = "client"
    seconds = 5.0
    megabytes = 300.0

    def __init__(self) -> None:
        self._server = Server()
        self._limits = ollama.METADATA_LIMIT, ollama.BUSY_LIMIT
        ollama.METADATA_LIMIT = ollama.BUSY_LIMIT = TIMEOUT

    def close(self) -> None:
        """End the server."""
        ollama.METADATA_LIMIT, ollama.BUSY_LIMIT = self._limits
        self._server.close()

    def make(self, chance: Random) -> bytes:
        """A script."""
        return json.dumps(_script(chance)).encode()

    def run(self, data: bytes) -> None:
        """Ask a turn over both transports."""
        script = json.loads(data)
        self._server.answers = script["answers"]
        for kind in (Host, _OtherHost):
            self._ask(kind(port=self._server.port), script["flags"])
        if zlib.crc32(data) % PROCESS_EVERY == 0:
            _run_process(self._server.port, script)

    def _ask(self, host: Host, more: list[str]) -> None:
        parsed = flags.parse(["-p", "Hi", "--no-session", "--model", "smollm2", "--timeout", str(TIMEOUT), *more])
        request = config.Request(parsed, {}, config.read_prompt(parsed))

        def connect(name: str, deadline: float | None) -> Any:
            return ollama.Ollama(host, name, deadline=deadline)

        try:
            turn = take_turn(request, None, connect, Sink(), lambda _: None)
        except ModelError as error:
            _check_error(error)
        else:
            assert assert_json(render.as_json(turn))["done"] is True


def _check_error(error: ModelError) -> None:
    assert_error(error)
    assert error.code in CODES, error.code
    assert len(error.message) < 100_000, "an error that nobody can read"


def _run_process(port: int, script: Json) -> None:
    """Put it to the command, as a script would run it."""
    output = script["output"]
    asked = ["-p", "Hi", "--no-session", "--output", output, "--model", "smollm2", "--timeout", "2", *script["flags"]]
    env = {"OLLAMA_HOST": f"http://127.0.0.1:{port}", "OLLAMA_PROMPT_NO_SERVE": "1", "HOME": os.devnull}
    code, out, err = run_command(asked, env, b"")
    stdout, stderr = out.decode(), err.decode()
    assert code in {0, 1}, (code, stderr)
    assert not any(trace in stderr for trace in stores.TRACES), stderr
    if code and output != "text":
        assert json.loads(stderr.splitlines()[-1])["code"] in CODES, stderr
    for line in {"json": [stdout] if stdout else [], "ndjson": stdout.splitlines(), "text": []}[output]:
        assert_json(line)
