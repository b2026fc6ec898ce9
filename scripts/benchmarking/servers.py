"""Servers for measurements: one that answers at once, and one that watches a real Ollama.

`InstantServer` is the tests' stand-in without its counting of tokens, which takes long for long conversations (four
bytes are a token here), and with the way to ask that OpenAI's clients use. `sent` holds the bodies that arrived.

`Witness` passes everything on to a real server and back, byte for byte as it comes. It only reads along: `counts`
holds what the server said at the end of each answer.

Both run in threads of the measuring process, whose own time is not counted.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import standin

Json = dict[str, Any]
COMPLETIONS = "/v1/chat/completions"


class InstantOllama(standin.Ollama):
    """Answers that name the prompt."""

    delay = 0.0
    """Seconds before every answer."""

    def answer(self, name: str, model: Json, body: Json, window: int) -> standin.Chat:  # noqa: ARG002
        """The answer to the last prompt, in a conversation with roles or in one text."""
        time.sleep(InstantOllama.delay)
        said = [message.get("content") or "" for message in body["messages"]]
        prompt = said[-1].rpartition("User: ")[2]
        return standin.Chat(name, f"Answer to: {prompt[:60]}", min(sum(map(len, said)) // 4, window))


class InstantHandler(standin.Handler):
    """Notes what was sent, and speaks OpenAI's dialect too."""

    def setup(self) -> None:
        """With answers that take no time."""
        super().setup()
        self.ollama = InstantOllama(self.state)

    def public(self, path: str, raw: bytes) -> None:
        """A request as Ollama gets it."""
        cast("InstantServer", self.server).sent.append(raw)
        if path == COMPLETIONS:
            self.answer_completion(raw)
        elif self.allowed(path):
            self.answer(path, raw, None)

    def answer_completion(self, raw: bytes) -> None:
        """OpenAI's stream of events."""
        chat = self.ollama.chat(json.loads(raw))
        texts = [*standin.split_answer(chat.text), None]
        events = [b"data: " + standin.go_json(completion(chat.model, text)) + b"\n\n" for text in texts]
        self.send_stream(200, "text/event-stream", [*events, b"data: [DONE]\n\n"])


def completion(model: str, text: str | None) -> Json:
    """One event of a stream; None ends the answer."""
    choice = {"index": 0, "delta": {"content": text or ""}, "finish_reason": None if text else "stop"}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


class Server(standin.Server):
    """Running until it is closed."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(0)
        self.RequestHandlerClass = handler
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 1}, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()


class InstantServer(Server):
    """Answers at once; `sent` are the bodies that arrived."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        super().__init__(InstantHandler)


class WitnessHandler(BaseHTTPRequestHandler):
    """One connection, passed on."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr."""

    def do_GET(self) -> None:
        """Pass it on."""
        self.pass_on()

    def do_POST(self) -> None:
        """Pass it on."""
        self.pass_on()

    def pass_on(self) -> None:
        """The request to the server, its answer back, piece by piece."""
        witness = cast("Witness", self.server)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        link = http.client.HTTPConnection(*witness.address, timeout=600)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        link.request(self.command, self.path, raw or None, headers)
        response = link.getresponse()
        self.send_response_only(response.status, response.reason)
        self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        answer = self.copy(response)
        link.close()
        witness.note(self.path, raw, answer)

    def copy(self, response: http.client.HTTPResponse) -> bytes:
        """Send the body on; the body."""
        whole = b""
        while piece := response.read1(65536):
            whole += piece
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
        return whole


class Witness(Server):
    """Between a program and a real server at host and port."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.counts: list[int] = []
        """`prompt_eval_count` of each answer."""
        self.asked: Json | None = None
        """The last conversation that was sent in OpenAI's dialect, whose answers have no such count."""
        super().__init__(WitnessHandler)

    def note(self, path: str, raw: bytes, answer: bytes) -> None:
        """Keep what one exchange tells."""
        if path == COMPLETIONS:
            self.asked = json.loads(raw)
        elif path in ("/api/chat", "/api/generate"):
            last: Json = json.loads(answer.strip().rpartition(b"\n")[2] or b"{}")
            if "prompt_eval_count" in last:
                self.counts.append(last["prompt_eval_count"])
