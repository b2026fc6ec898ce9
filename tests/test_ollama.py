"""Ollama over HTTP: what the client asks, what it makes of the answers, and of the lack of any."""

from __future__ import annotations

import gzip
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from standin import StandIn

from ollama_prompt import __version__
from ollama_prompt import ollama as module
from ollama_prompt.errors import (
    AnswerTimeout,
    ContextExceeded,
    IncompleteAnswer,
    Interrupted,
    ModelError,
    ModelNotFound,
    ModelUnsupported,
    OllamaBusy,
    OllamaError,
    OllamaUnreachable,
    SigninRequired,
    UsageError,
)
from ollama_prompt.host import Host, parse_host
from ollama_prompt.ollama import Ollama

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connect = Callable[..., Ollama]

Json = dict[str, Any]
CLOUD = "deepseek-v3.1:671b-cloud"
ASK: Json = {"messages": [{"role": "user", "content": "Hi"}]}


class HttpxOwnTransport(Host):
    """A host that is treated like one elsewhere: httpx's own transport, no server started."""

    @property
    def is_plain_loopback(self) -> bool:
        return False


@pytest.fixture
def connect(ollama: StandIn) -> Iterator[Connect]:
    """Make clients of the stand-in, closed when the test ends. `within` is seconds until the deadline."""
    made: list[Ollama] = []

    def connect(
        model: str = "smollm2", *, host: Host | None = None, within: float | None = None, **more: Any
    ) -> Ollama:
        deadline = None if within is None else time.monotonic() + within
        made.append(Ollama(host or parse_host(ollama.url), model, deadline=deadline, **more))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture(params=[Host, HttpxOwnTransport])
def host(request: pytest.FixtureRequest, ollama: StandIn) -> Host:
    """The stand-in, over either transport: both must behave alike."""
    made: Host = request.param(port=ollama.port)
    return made


@pytest.fixture
def raw_server() -> Iterator[Callable[[bytes], int]]:
    """Serve fixed bytes to whoever connects, and keep the connection open; returns the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []
        answer = b""

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                connection.recv(65536)
                connection.sendall(answer)

        def start(data: bytes) -> int:
            nonlocal answer
            answer = data
            thread.start()
            port: int = listener.getsockname()[1]
            return port

        thread = threading.Thread(target=serve)
        yield start
        # On Linux, close() alone leaves accept() waiting.
        listener.shutdown(socket.SHUT_RDWR) if sys.platform == "linux" else listener.close()
        thread.join(5)
        for connection in kept:
            connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def text(client: Ollama, **body: object) -> str:
    return "".join(chunk["message"]["content"] for chunk in client.chat({**ASK, **body}))


def caught(client: Ollama, **body: object) -> tuple[str, ModelError]:
    """What arrived before the error, and the error."""
    got: list[str] = []
    pieces = (chunk["message"]["content"] for chunk in client.chat({**ASK, **body}))
    with pytest.raises(ModelError) as info:
        got.extend(pieces)
    return "".join(got), info.value


# -- check ---------------------------------------------------------------------------------------------


def test_check_says_what_the_model_is(connect: Connect) -> None:
    facts = connect("thinker").check()
    assert facts.context_length == 40960
    assert facts.capabilities == ("completion", "thinking", "tools")
    assert not facts.cloud


@pytest.mark.parametrize(
    ("show", "length"),
    [
        ({"model_info": {"general.architecture": "x", "x.context_length": 5, "y.context_length": 6}}, 5),
        ({"model_info": {"general.architecture": "x", "y.context_length": 6}}, 6),
        ({"model_info": {}, "details": {"context_length": 7}}, 7),
        ({"model_info": None, "context_length": 8}, 8),
        ({"model_info": {"general.architecture": "x", "x.context_length": "many"}, "details": []}, None),
        ({}, None),
    ],
)
def test_the_models_limit_wherever_it_stands(ollama: StandIn, connect: Connect, show: Json, length: int | None) -> None:
    ollama.fail("status", path="/api/show", status=200, body=show)
    facts = connect().check()
    assert facts.context_length == length
    assert facts.capabilities is None


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        (CLOUD, True),
        ("gpt-oss:cloud", True),
        ("GPT-OSS:120B-Cloud ", True),
        ("my-cloud", False),
        ("host:80/x-cloud", False),
        ("smollm2", False),
        ("a:b-cloud:local", False),
    ],
)
def test_a_cloud_model_is_known_by_its_tag(name: str, cloud: bool) -> None:
    assert module.is_cloud_name(name) is cloud


def test_facts_of_a_cloud_model(ollama: StandIn, connect: Connect) -> None:
    ollama.set(cloud="ok")
    facts = connect(CLOUD).check()
    assert (facts.cloud, facts.context_length) == (True, 163840)


def test_a_model_that_runs_elsewhere_is_a_cloud_model(ollama: StandIn, connect: Connect) -> None:
    ollama.fail("status", path="/api/show", status=200, body={"remote_host": "https://ollama.com", "model_info": {}})
    client = connect()
    assert client.check().cloud
    assert client.loaded_window() is None
    assert ollama.requests("/api/ps") == []


def test_all_models_of_ollama_com_are_cloud_models(monkeypatch: pytest.MonkeyPatch) -> None:
    show = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    monkeypatch.setattr(module, "_client", lambda *_: httpx.Client(transport=show))
    client = Ollama(parse_host("ollama.com"), "gpt-oss:120b")
    assert client.check().cloud
    client.close()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 404, "body": "404 page not found"},
        {"kind": "status", "status": 404, "body": {"detail": "Not Found"}},
        {"kind": "status", "status": 405, "body": "405 method not allowed"},
        {"kind": "status", "status": 500, "body": {"error": "broken"}},
        {"kind": "status", "status": 502, "body": {"error": "dial tcp: no such host"}},
        {"kind": "status", "status": 503, "body": {"error": "busy"}},
        {"kind": "status", "status": 200, "body": "[]"},
        {"kind": "html"},
        {"kind": "html", "status": 404},
    ],
)
def test_what_does_not_settle_the_matter_is_left_to_chat(ollama: StandIn, connect: Connect, fault: Json) -> None:
    ollama.fail(path="/api/show", **fault)
    facts = connect().check()
    assert (facts.context_length, facts.capabilities, facts.cloud) == (None, None, False)


def test_an_unreachable_cloud_is_left_to_chat(connect: Connect) -> None:
    client = connect(CLOUD)
    assert client.check().cloud
    _, error = caught(client)
    assert isinstance(error, OllamaError)
    assert error.keeps_prompt
    assert "cloud" in str(error.hint)


REFUSALS: list[tuple[Json, str, type[ModelError], str]] = [
    ({}, "no-such-model", ModelNotFound, "ollama pull no-such-model"),
    ({}, "a b c", OllamaError, ""),
    ({"cloud": "signin"}, CLOUD, SigninRequired, "https://ollama.com/connect"),
    ({"cloud": "disabled"}, CLOUD, OllamaError, "settings"),
    ({"api_key": "other"}, "smollm2", SigninRequired, "OLLAMA_API_KEY"),
    ({"api_key": "other"}, CLOUD, SigninRequired, "ollama signin"),
]


@pytest.mark.parametrize(("settings", "model", "kind", "hint"), REFUSALS)
def test_refusals(
    ollama: StandIn, connect: Connect, settings: Json, model: str, kind: type[ModelError], hint: str
) -> None:
    ollama.set(**settings)
    client = connect(model)
    with pytest.raises(kind) as info:
        client.check()
    _, error = caught(client)
    assert type(error) is kind
    for found in (info.value, error):
        assert hint in str(found.hint)
        assert not found.keeps_prompt


def test_a_server_that_does_not_know_our_name_for_it(ollama: StandIn, connect: Connect) -> None:
    ollama.fail("status", path="/api/show", status=403)
    with pytest.raises(OllamaError) as info:
        connect().check()
    assert not info.value.keeps_prompt
    assert "OLLAMA_ORIGINS" in str(info.value.hint)


def test_redirects_are_reported_and_never_followed(ollama: StandIn, connect: Connect) -> None:
    ollama.fail("redirect", path="*", times=None, location=f"{ollama.url}/elsewhere/api/show")
    client = connect(api_key="secret")
    with pytest.raises(OllamaError) as info:
        client.check()
    assert info.value.hint == f"Set OLLAMA_HOST={ollama.url}/elsewhere"
    _, error = caught(client)
    assert not error.keeps_prompt
    assert [request["path"] for request in ollama.requests()] == ["/api/show", "/api/chat"]


def test_nobody_there(connect: Connect) -> None:
    port = free_port()
    client = connect(host=Host(port=port))
    with pytest.raises(OllamaUnreachable, match=str(port)) as info:
        client.check()
    assert ".gguf" in str(info.value.hint)
    _, error = caught(client)
    assert isinstance(error, OllamaUnreachable)
    assert not error.keeps_prompt


def test_nobody_there_over_httpx_own_transport(connect: Connect) -> None:
    with pytest.raises(OllamaUnreachable):
        connect(host=HttpxOwnTransport(port=free_port())).check()


@pytest.mark.parametrize("kind", ["close", "reset"])
def test_a_connection_cut_before_any_answer(ollama: StandIn, connect: Connect, host: Host, kind: str) -> None:
    ollama.fail(kind, path="/api/show")
    with pytest.raises(OllamaUnreachable, match="broke off"):
        connect(host=host).check()


def test_a_hanging_server_does_not_answer(
    ollama: StandIn, connect: Connect, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "METADATA_LIMIT", 0.1)
    ollama.fail("hang", path="/api/show")
    with pytest.raises(OllamaUnreachable, match="does not answer"):
        connect(host=host).check()


def test_the_deadline_counts_for_check_as_well(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.fail("hang", path="/api/show")
    with pytest.raises(AnswerTimeout):
        connect(host=host, within=0.1).check()


@pytest.mark.parametrize("transport", [Host, HttpxOwnTransport])
def test_an_answer_that_never_ends_does_not_answer(
    connect: Connect,
    raw_server: Callable[[bytes], int],
    monkeypatch: pytest.MonkeyPatch,
    transport: type[Host],
) -> None:
    monkeypatch.setattr(module, "METADATA_LIMIT", 0.1)
    port = raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    with pytest.raises(OllamaUnreachable):
        connect(host=transport(port=port)).check()


@pytest.mark.parametrize("transport", [Host, HttpxOwnTransport])
def test_a_server_of_another_kind(connect: Connect, raw_server: Callable[[bytes], int], transport: type[Host]) -> None:
    port = raw_server(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    with pytest.raises(OllamaUnreachable, match="broke off"):
        connect(host=transport(port=port)).check()


def test_an_answer_that_cannot_be_decoded_refuses(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.fail("status", path="/api/show", status=200, body="no gzip", headers={"Content-Encoding": "gzip"})
    with pytest.raises(OllamaError, match="cannot be read") as info:
        connect(host=host).check()
    assert not info.value.keeps_prompt


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "data", "keeps_prompt"),
    [
        ("/api/show", HEAD + b"x" * 1100, False),
        ("/api/chat", HEAD + b'{"message": {"content": "' + b"x" * 1100, True),
        ("/api/chat", HEAD.replace(b"200", b"400") + b"x" * 1100, True),
    ],
)
@pytest.mark.parametrize("transport", [Host, HttpxOwnTransport])
def test_what_never_ends_is_not_read_on(
    connect: Connect,
    raw_server: Callable[[bytes], int],
    monkeypatch: pytest.MonkeyPatch,
    transport: type[Host],
    path: str,
    data: bytes,
    keeps_prompt: bool,
) -> None:
    """The connection stays open: without a longest answer this would wait."""
    monkeypatch.setattr(module, "LONGEST", 1000)
    client = connect(host=transport(port=raw_server(data)), within=20)
    with pytest.raises(OllamaError, match="too long") as info:
        client.check() if path == "/api/show" else list(client.chat(ASK))
    assert info.value.keeps_prompt is keeps_prompt


@pytest.mark.parametrize("coding", ["gzip, gzip", "gzip, identity", "br", "x"])
def test_what_may_be_far_longer_than_it_looks_is_not_read(
    connect: Connect, raw_server: Callable[[bytes], int], coding: str
) -> None:
    data = gzip.compress(gzip.compress(b"{}")) if coding == "gzip, gzip" else b"{}"
    port = raw_server(b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\n\r\n" % coding.encode() + data)
    with pytest.raises(OllamaError, match="compressed"):
        connect(host=Host(port=port), within=20).check()


def test_what_is_compressed_once_is_read(connect: Connect, raw_server: Callable[[bytes], int]) -> None:
    data = gzip.compress(b'{"capabilities": ["vision"]}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data)
    assert connect(host=Host(port=raw_server(head + data))).check().capabilities == ("vision",)


def test_https_where_http_is_spoken(ollama: StandIn, connect: Connect) -> None:
    with pytest.raises(OllamaUnreachable, match="TLS") as info:
        connect(host=Host("https", port=ollama.port)).check()
    assert "http://" in str(info.value.hint)


# -- loaded_window -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2:latest", "library/smollm2", "registry.ollama.ai/library/smollm2"])
def test_the_loaded_window(ollama: StandIn, connect: Connect, name: str) -> None:
    client = connect()
    assert client.loaded_window() is None
    text(client, options={"num_ctx": 2048})
    assert connect(name).loaded_window() == 2048
    assert connect("thinker").loaded_window() is None


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), ("a:1", "a:2"), ("hf.co/org/a:Q4", "org/a:Q4"), ("host:80/n/a", "n/a"), ("x/a", "a")],
)
def test_names_of_different_models(one: str, other: str) -> None:
    assert not module.same_model(one, other)


@pytest.mark.parametrize(("one", "other"), [("a", "A:latest"), ("a:local", "a"), ("hf.co/o/a:q4", "HF.co/o/a:Q4")])
def test_names_of_one_model(one: str, other: str) -> None:
    assert module.same_model(one, other)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500, "body": {"error": "broken"}},
        {"kind": "status", "status": 200, "body": {"models": None}},
        {"kind": "status", "status": 200, "body": {"models": [None, {}, {"name": 1}]}},
        {"kind": "status", "status": 200, "body": {"models": [{"name": "smollm2:latest", "context_length": "x"}]}},
        {"kind": "html"},
        {"kind": "close"},
    ],
)
def test_an_unknown_window_is_no_error(ollama: StandIn, connect: Connect, fault: Json) -> None:
    ollama.fail(path="/api/ps", **fault)
    assert connect().loaded_window() is None


# -- chat ----------------------------------------------------------------------------------------------


def test_chat_streams_what_was_asked_for(ollama: StandIn, connect: Connect, host: Host) -> None:
    client = connect("thinker", host=host)
    ollama.set(thinking="Let me see.", answer="Grüße, Welt!\n")
    chunks = list(client.chat({**ASK, "options": {"seed": 1}, "stream": False, "model": "ignored?"}))
    assert "".join(chunk["message"].get("thinking", "") for chunk in chunks) == "Let me see."
    assert "".join(chunk["message"]["content"] for chunk in chunks) == "Grüße, Welt!\n"
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["eval_count"] > 0
    (body,) = ollama.chats()
    assert body == {**ASK, "options": {"seed": 1}, "model": "thinker", "stream": True}


def test_chunks_arrive_one_by_one(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.fail("hang_middle", chunks=3)
    chunks = connect(host=host).chat(ASK)
    assert [next(chunks)["message"]["content"] for _ in range(3)] == ["Answer", " to", ":"]
    chunks.close()  # type: ignore[attr-defined]  # a generator
    ollama.wait(gone=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_may_be_split_anywhere(ollama: StandIn, connect: Connect, host: Host, size: int) -> None:
    said = "Grüße 🦊 with\u2028and\u0085inside"
    ollama.set(answer=said)
    ollama.fail("split", size=size)
    assert text(connect(host=host)) == said


def test_all_lines_at_once(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.set(answer_tokens=20_000)
    ollama.fail("one_chunk")
    assert text(connect(host=host)).endswith(" word19999")


def test_one_object_instead_of_a_stream(ollama: StandIn, connect: Connect) -> None:
    ollama.fail("one_object")
    (chunk,) = connect().chat(ASK)
    assert chunk["done"]
    assert chunk["message"]["content"] == "Answer to: Hi (messages: 1)"


def test_the_last_line_may_lack_its_end(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.fail("no_done", tail='{"message": {"content": "!"}, "done": true}')
    assert text(connect(host=host)) == "Answer to!"


@pytest.mark.parametrize("count", [-1, True, 1.5, "7", 2**60, 2**70, None, [1]])
def test_counts_that_are_none_are_left_out(ollama: StandIn, connect: Connect, count: object) -> None:
    last = {"message": {"content": "Hi"}, "done": True, "prompt_eval_count": count, "eval_count": 7}
    ollama.fail("status", status=200, body=last)
    ollama.fail("status", status=200, body=last | {"prompt_eval_count": 0, "eval_count": count})
    chunks = [*connect().chat(ASK), *connect().chat(ASK)]
    counts = [(chunk.get("prompt_eval_count", "none"), chunk.get("eval_count", "none")) for chunk in chunks]
    assert counts == [("none", 7), (0, "none")]


def nested(message: str, **more: object) -> Json:
    """JSON inside the error's text, as the process behind the server reports."""
    inner = {"error": {"code": 500, "message": message, **more}}
    return {"error": httpx.Response(200, json=inner).text}


def deep(key: str) -> str:
    """An object 1000 deep: JSON readers take it, JSON writers do not."""
    return f'{{"{key}":' * 1000 + "1" + "}" * 1000


TOO_MANY_DIGITS = f"request ({'9' * 5000} tokens) exceeds the available context size (8 tokens)"

BROKEN: list[tuple[Json, type[ModelError], bool, str]] = [
    ({"kind": "close"}, IncompleteAnswer, True, "broke off"),
    ({"kind": "reset"}, IncompleteAnswer, True, "broke off"),
    ({"kind": "empty"}, IncompleteAnswer, True, "broke off"),
    ({"kind": "cut"}, IncompleteAnswer, True, "broke off"),
    ({"kind": "no_done"}, IncompleteAnswer, True, "without saying that it is done"),
    ({"kind": "error_line"}, OllamaError, True, "unexpected EOF"),
    ({"kind": "error_line", "message": nested("no memory")["error"]}, OllamaError, True, "^no memory$"),
    ({"kind": "junk_line"}, OllamaError, True, "<html>"),
    ({"kind": "junk_line", "text": '{"a": "\xff"}'}, OllamaError, True, "does not answer as Ollama"),
    ({"kind": "junk_line", "text": "[1]"}, OllamaError, True, "does not answer as Ollama"),
    ({"kind": "junk_line", "text": '{"done": true}'}, OllamaError, True, "does not answer as Ollama"),
    ({"kind": "junk_line", "text": '{"message": {"content": 1}}'}, OllamaError, True, "does not answer as Ollama"),
    ({"kind": "junk_line", "text": '{"message": {"thinking": ["x"]}}'}, OllamaError, True, "as Ollama"),
    ({"kind": "junk_line", "text": '{"message": {"content": ""}, "done": 1}'}, IncompleteAnswer, True, "without"),
    ({"kind": "no_done", "tail": '{"model": "smo'}, IncompleteAnswer, True, "without saying"),
    ({"kind": "no_done", "tail": '{"message": {"content": "Gr\xc3'}, IncompleteAnswer, True, "without saying"),
    ({"kind": "cut", "tail": '{"model": "smo'}, IncompleteAnswer, True, "broke off"),
    ({"kind": "no_done", "chunks": 0, "tail": '{"model": "smo'}, IncompleteAnswer, True, "without saying"),
    ({"kind": "no_done", "chunks": 0, "tail": "Please wait"}, OllamaError, True, "Please wait"),
    ({"kind": "error_line", "message": deep("error")}, OllamaError, True, '{"error":'),
    ({"kind": "junk_line", "text": deep("error")}, OllamaError, True, '{"error":'),
    ({"kind": "status", "status": 500, "body": deep("error")}, OllamaError, True, '{"error":'),
    ({"kind": "junk_line", "text": f'{{"message": {{}}, "done": true, "x": {deep("y")}}}'}, OllamaError, True, "as Ol"),
    ({"kind": "status", "status": 400, "body": {"error": TOO_MANY_DIGITS}}, OllamaError, False, "^request"),
    ({"kind": "html"}, OllamaError, True, "Welcome"),
    ({"kind": "html", "status": 502}, OllamaError, True, "502"),
    ({"kind": "html", "status": 404}, OllamaError, False, "404"),
    ({"kind": "status", "status": 500, "body": {"error": "broken"}}, OllamaError, True, "^broken$"),
    ({"kind": "status", "status": 500, "body": nested("no memory")}, OllamaError, True, "^no memory$"),
    ({"kind": "status", "status": 500, "body": {"error": {"message": "odd"}}}, OllamaError, True, "^odd$"),
    ({"kind": "status", "status": 500, "body": {"error": "{odd"}}, OllamaError, True, "^{odd$"),
    ({"kind": "status", "status": 500, "body": ""}, OllamaError, True, "an empty answer"),
    ({"kind": "status", "status": 400, "body": {"error": "bad"}}, OllamaError, False, "^bad$"),
    ({"kind": "status", "status": 429, "body": {"error": "limit"}}, OllamaError, False, "^limit$"),
    ({"kind": "status", "status": 404, "body": "404 page not found"}, OllamaError, False, "404 page"),
    ({"kind": "status", "status": 404, "body": {"error": "model 'x' not found"}}, ModelNotFound, False, "not found"),
    ({"kind": "status", "status": 204, "body": ""}, OllamaError, True, "204"),
    ({"kind": "redirect", "location": "/login"}, OllamaError, False, "/login"),
    ({"kind": "status", "status": 304}, OllamaError, False, "nowhere"),
    ({"kind": "status", "status": 401, "body": {"error": "unauthorized"}}, SigninRequired, False, "unauthorized"),
    ({"kind": "status", "status": 403, "body": {"error": "no subscription"}}, SigninRequired, False, "subscription"),
    ({"kind": "status", "status": 403, "body": ""}, OllamaError, False, "403"),
    (
        {"kind": "status", "status": 500, "body": {"error": "image input is not supported - hint: …"}},
        ModelUnsupported,
        False,
        "image input",
    ),
]


@pytest.mark.parametrize(("fault", "kind", "keeps", "message"), BROKEN)
def test_failures_of_chat(
    ollama: StandIn, connect: Connect, host: Host, fault: Json, kind: type[ModelError], keeps: bool, message: str
) -> None:
    ollama.fail(**fault)
    got, error = caught(connect(host=host))
    assert type(error) is kind, error
    assert error.keeps_prompt is keeps
    with pytest.raises(kind, match=message):
        raise error
    if fault["kind"] in ("cut", "no_done", "error_line", "junk_line") and "chunks" not in fault:
        assert got == "Answer to"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("smollm2", {"think": True}),
        ("smollm2", {"tools": [{"type": "function"}]}),
        ("smollm2", {"messages": [{"role": "user", "content": "?", "images": ["iVBORw0KGgo="]}]}),
    ],
)
def test_what_the_model_cannot_do(connect: Connect, model: str, body: Json) -> None:
    _, error = caught(connect(model), **body)
    assert type(error) is ModelUnsupported
    assert not error.keeps_prompt
    assert "{" not in error.message


@pytest.mark.parametrize(("dialect", "tokens", "window"), [("0.33", 105, 64), ("0.24", None, None)])
def test_what_does_not_fit(
    ollama: StandIn, connect: Connect, dialect: str, tokens: int | None, window: int | None
) -> None:
    ollama.set(dialect=dialect)
    long = {"messages": [{"role": "user", "content": "fox " * 101}], "truncate": False}
    _, error = caught(connect(), **long, options={"num_ctx": 64})
    assert isinstance(error, ContextExceeded)
    assert (error.prompt_tokens, error.num_ctx) == (tokens, window)


def test_what_does_not_fit_said_in_the_stream(ollama: StandIn, connect: Connect) -> None:
    message = "request (9 tokens) exceeds the available context size (8 tokens), try increasing it"
    ollama.fail("error_line", chunks=0, message=message)
    _, error = caught(connect())
    assert isinstance(error, ContextExceeded)
    assert (error.prompt_tokens, error.num_ctx) == (9, 8)


def test_the_connection_is_used_again(ollama: StandIn, connect: Connect, host: Host) -> None:
    client = connect(host=host)
    client.check()
    client.loaded_window()
    caught(client, think=True)  # an answer that is refused is read to its end as well
    text(client)
    requests = ollama.requests()
    assert len(requests) == 4
    assert len({request["connection"] for request in requests}) == 1


def test_a_connection_that_the_server_closed_is_not(ollama: StandIn, connect: Connect, host: Host) -> None:
    client = connect(host=host)
    ollama.fail("status", path="/api/show", headers={"Connection": "close"}, body={})
    client.check()
    assert text(client) == "Answer to: Hi (messages: 1)"


def test_an_answer_given_up_is_not_in_the_way(ollama: StandIn, connect: Connect, host: Host) -> None:
    client = connect(host=host)
    next(client.chat(ASK))
    assert text(client) == "Answer to: Hi (messages: 1)"


# -- busy ----------------------------------------------------------------------------------------------

BUSY: Json = {"kind": "status", "status": 503, "body": {"error": "server busy, please try again"}}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted instead of taken, and the clock goes on by them."""
    taken: list[float] = []
    monotonic = time.monotonic
    monkeypatch.setattr(time, "sleep", taken.append)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(taken))
    return taken


def test_a_busy_server_is_asked_again(ollama: StandIn, connect: Connect, pauses: list[float]) -> None:
    ollama.fail(times=4, **BUSY)
    notes: list[str] = []
    assert text(connect(note=notes.append)) == "Answer to: Hi (messages: 1)"
    assert notes == ["Ollama is busy; asking again"]
    assert pauses == [0.25, 0.5, 1, 2]


def test_a_server_that_stays_busy(ollama: StandIn, connect: Connect, pauses: list[float]) -> None:
    ollama.fail(times=None, **BUSY)
    _, error = caught(connect())
    assert isinstance(error, OllamaBusy)
    assert error.keeps_prompt
    assert sum(pauses) == pytest.approx(60, abs=2)


def test_a_server_that_stays_busy_until_the_deadline(ollama: StandIn, connect: Connect, pauses: list[float]) -> None:
    ollama.fail(times=None, **BUSY)
    _, error = caught(connect(within=10))
    assert isinstance(error, OllamaBusy)
    assert sum(pauses) == pytest.approx(10, abs=1)


@pytest.mark.parametrize(("wish", "pause"), [("3", 3), ("3600", 8), ("0", 0.25), ("soon", 0.25)])
def test_the_server_may_say_when(
    ollama: StandIn, connect: Connect, pauses: list[float], wish: str, pause: float
) -> None:
    ollama.fail(**BUSY, headers={"Retry-After": wish})
    text(connect())
    assert pauses == [pause]


# -- limits and interrupts -----------------------------------------------------------------------------


def test_the_deadline_limits_headers_too(ollama: StandIn, connect: Connect, host: Host) -> None:
    ollama.fail("slow_head")
    _, error = caught(connect(host=host, within=0.3))
    assert isinstance(error, AnswerTimeout)
    ollama.wait(gone=1, timeout=5)  # it left before they were whole


@pytest.mark.parametrize("start", ['{"mess', "Please wa", '{"message":{"content":"Hi"}}\n{"mess'])
def test_a_line_that_the_deadline_cuts_is_a_timeout(
    connect: Connect, raw_server: Callable[[bytes], int], start: str
) -> None:
    port = raw_server(b"HTTP/1.0 200 OK\r\n\r\n" + start.encode())
    _, error = caught(connect(host=Host(port=port), within=0.2))
    assert isinstance(error, AnswerTimeout)


@pytest.mark.parametrize(
    "fault", [{"kind": "hang"}, {"kind": "hang_middle"}, {"kind": "trickle", "delay": 0.02}, {"kind": "split"}]
)
def test_the_deadline_limits_the_whole_answer(ollama: StandIn, connect: Connect, host: Host, fault: Json) -> None:
    if fault["kind"] == "split":
        ollama.set(delay=0.3)  # before each of the lines that it then splits
    ollama.fail(**fault)
    began = time.monotonic()
    got, error = caught(connect(host=host, within=0.5))
    assert isinstance(error, AnswerTimeout)
    assert error.keeps_prompt
    assert 0.4 < time.monotonic() - began < 5
    assert bool(got) == (fault["kind"] in ("hang_middle", "trickle"))


def test_a_deadline_that_has_passed(ollama: StandIn, connect: Connect) -> None:
    _, error = caught(connect(within=-1))
    assert isinstance(error, AnswerTimeout)
    assert ollama.requests() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@pytest.mark.parametrize("fault", ["hang", "hang_middle"])
@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
def test_signals_pass_through_and_close_the_connection(
    ollama: StandIn, connect: Connect, host: Host, fault: str, kind: type[BaseException]
) -> None:
    def interrupt(*_: object) -> None:
        raise kind(signal.SIGINT)

    ollama.fail(fault)
    client = connect(host=host)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(kind):
            text(client)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ollama.wait(gone=1)


# -- headers, proxies, keys ----------------------------------------------------------------------------


def test_who_asks(ollama: StandIn, connect: Connect, host: Host) -> None:
    connect(host=host, api_key="s3cret").check()
    (request,) = ollama.requests()
    assert request["headers"]["user-agent"] == f"ollama-prompt/{__version__}"
    assert request["headers"]["authorization"] == "Bearer s3cret"
    assert request["headers"]["host"] == f"127.0.0.1:{ollama.port}"
    assert request["headers"]["content-type"] == "application/json"


def test_no_key_no_header(ollama: StandIn, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "not given to the client")
    connect(api_key=None).check()
    assert "authorization" not in ollama.requests()[0]["headers"]


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "nul\0"])
def test_a_key_that_cannot_be_sent(connect: Connect, key: str) -> None:
    with pytest.raises(UsageError, match="OLLAMA_API_KEY"):
        connect(api_key=key)


def test_loopback_is_never_asked_through_a_proxy(connect: Connect, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert connect(host=host).check().context_length == 8192


def test_other_hosts_are_asked_through_the_proxy(
    ollama: StandIn, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", ollama.url)
    with pytest.raises(OllamaError):  # the stand-in is no proxy, but it was the one who was asked
        connect(host=parse_host("http://ollama.example:11434")).check()
    assert [request["headers"]["host"] for request in ollama.requests()] == ["ollama.example:11434"]


@pytest.mark.parametrize("proxy", ["nonsense://x", "http://x:port", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UsageError, match="HTTP_PROXY"):
        connect(host=parse_host("http://ollama.example"))


def test_certificates_that_cannot_be_read(connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(UsageError, match="SSL_CERT_FILE"):
        connect(host=parse_host("https://127.0.0.1"))


# -- the border ----------------------------------------------------------------------------------------

REQUEST = httpx.Request("POST", "http://127.0.0.1:11434/api/chat")


def exceptions_of_httpx() -> list[Exception]:
    """One of each kind that httpx can raise."""
    made: list[Exception] = [OSError(5, "odd"), UnicodeError("label too long"), OverflowError("port")]
    for name in sorted(dir(httpx)):
        kind = getattr(httpx, name)
        if inspect.isclass(kind) and issubclass(kind, Exception):
            made.append(make(kind))
    return made


def make(kind: type[Exception]) -> Exception:
    wanted = {"message": "said", "request": REQUEST, "response": httpx.Response(500, request=REQUEST)}
    parameters = inspect.signature(kind).parameters
    return kind(**{name: wanted[name] for name in parameters if name in wanted})


def test_the_exceptions_of_httpx_are_all_there() -> None:
    kinds = {type(error) for error in exceptions_of_httpx()}
    assert {httpx.ConnectError, httpx.InvalidURL, httpx.StreamConsumed, httpx.CookieConflict} <= kinds
    assert len(kinds) > 25


class Broken(httpx.SyncByteStream):
    """A body that fails while it is read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"message":{"content":"so far"},"done":false}\n'
        raise self.error


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, late: bool, url: str | None = None) -> Ollama:
    """A client whose requests fail: when sent, or while the answer is read."""

    def handle(_: httpx.Request) -> httpx.Response:
        if late:
            return httpx.Response(200, stream=Broken(error))
        raise error

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(module, "_client", lambda *_: httpx.Client(transport=transport))
    return Ollama(parse_host(url), "smollm2")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", exceptions_of_httpx(), ids=lambda error: type(error).__name__)
def test_no_exception_of_httpx_escapes(monkeypatch: pytest.MonkeyPatch, error: Exception, late: bool) -> None:
    client = failing(monkeypatch, error, late=late)
    with pytest.raises(ModelError):
        client.check()
    assert client.loaded_window() is None
    got, found = caught(client)
    assert got == ("so far" if late else "")
    assert found.message
    client.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [Interrupted(2), KeyboardInterrupt(), ZeroDivisionError()])
def test_what_is_not_httpx_passes(monkeypatch: pytest.MonkeyPatch, error: BaseException, late: bool) -> None:
    client = failing(monkeypatch, error, late=late)
    with pytest.raises(type(error)):
        text(client)
    client.close()


def test_a_certificate_that_cannot_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
    client = failing(monkeypatch, httpx.ConnectError(said), late=False, url="https://ollama.example")
    with pytest.raises(OllamaUnreachable, match="certificate of https://ollama") as info:
        client.check()
    assert "SSL_CERT_FILE" in str(info.value.hint)
    client.close()


# -- starting a server ---------------------------------------------------------------------------------

SERVE = """#!{python}
import os, sys, time
assert sys.argv[1:] == ["serve"], sys.argv
with open({log!r}, "a") as log:
    log.write(f"{{os.getpid()}} {{os.environ['OLLAMA_HOST']}} {{os.getcwd()}} {{os.getsid(0) == os.getpid()}}\\n")
sys.path.insert(0, {tests!r})
from standin import Server
server = Server(int(os.environ["OLLAMA_HOST"].rpartition(":")[2]))
time.sleep(0.3)  # it listens by now, and answers a while later
server.serve_forever()
"""


class FakeOllama:
    """An `ollama` on the PATH; `starts` lists pid, OLLAMA_HOST, folder and own session of each start."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "starts"
        self.script = folder / "bin" / "ollama"
        self.script.parent.mkdir()
        monkeypatch.setenv("PATH", str(self.script.parent), prepend=os.pathsep)

    def write(self, text: str) -> None:
        tests = str(Path(__file__).parent)
        self.script.write_text(text.format(python=sys.executable, log=str(self.log), tests=tests))
        self.script.chmod(0o755)

    @property
    def starts(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def stop(self) -> None:
        for pid, *_ in self.starts:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def fake_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOllama]:
    if sys.platform == "win32":
        pytest.skip("a script cannot stand for a program")
    fake = FakeOllama(tmp_path, monkeypatch)
    fake.write(SERVE)
    yield fake
    fake.stop()


def test_a_server_is_started(fake_ollama: FakeOllama, connect: Connect) -> None:
    value = f"127.0.0.1:{free_port()}"
    notes: list[str] = []
    client = connect(host=parse_host(value), serve=True, note=notes.append)
    assert client.check().context_length == 8192
    assert text(client) == "Answer to: Hi (messages: 1)"
    assert notes == ["starting `ollama serve`"]
    ((_, given, folder, own_session),) = fake_ollama.starts
    assert (given, folder, own_session) == (value, "/", "True")


def test_a_server_that_runs_is_not_started_again(fake_ollama: FakeOllama, connect: Connect) -> None:
    connect(serve=True).check()
    assert fake_ollama.starts == []


def test_several_may_start_a_server_at_once(fake_ollama: FakeOllama, connect: Connect) -> None:
    host = parse_host(f"127.0.0.1:{free_port()}")
    lengths: list[int | None] = []
    clients = [connect(host=host, serve=True) for _ in range(4)]
    threads = [threading.Thread(target=lambda c=client: lengths.append(c.check().context_length)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [8192] * 4


def test_a_server_that_cannot_run(fake_ollama: FakeOllama, connect: Connect) -> None:
    fake_ollama.write("#!/bin/sh\nexit 3\n")
    with pytest.raises(OllamaUnreachable, match="exit code 3"):
        connect(host=Host(port=free_port()), serve=True).check()


def test_a_program_that_cannot_run(fake_ollama: FakeOllama, connect: Connect) -> None:
    fake_ollama.write("#!/no/such/interpreter\n")
    with pytest.raises(OllamaUnreachable, match="cannot be started"):
        connect(host=Host(port=free_port()), serve=True).check()


@pytest.mark.parametrize("limit", ["START_LIMIT", "deadline"])
def test_a_server_that_never_answers(
    fake_ollama: FakeOllama, connect: Connect, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    fake_ollama.write("#!{python}\nimport os, time\nopen({log!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(60)\n")
    within = 0.5 if limit == "deadline" else None
    if within is None:
        monkeypatch.setattr(module, "START_LIMIT", 0.5)
    with pytest.raises(AnswerTimeout if within else OllamaUnreachable):
        connect(host=Host(port=free_port()), serve=True, within=within).check()


@pytest.mark.parametrize("serve", [True, False])
def test_no_server_is_started_where_it_must_not_be(fake_ollama: FakeOllama, connect: Connect, serve: bool) -> None:
    host = Host(port=free_port(), path="/behind/a/proxy" if serve else "")
    with pytest.raises(OllamaUnreachable) as info:
        connect(host=host, serve=serve).check()
    assert "ollama serve" in str(info.value.hint)
    assert fake_ollama.starts == []


# -- what a start costs --------------------------------------------------------------------------------


def test_a_turn_on_loopback_imports_neither_httpcore_nor_tls(ollama: StandIn) -> None:
    code = f"""
import sys
from ollama_prompt.host import parse_host
from ollama_prompt.lean import lean_imports
host = parse_host({ollama.url!r})
with lean_imports(host):
    from ollama_prompt.ollama import Ollama
    client = Ollama(host, "smollm2")
client.check()
client.loaded_window()
for chunk in client.chat({ASK!r}):
    pass
client.close()
print(chunk["done"], *sys.modules)
"""
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    done, *imported = run.stdout.split()
    assert done == "True"
    assert not {"ssl", "httpcore", "h11", "anyio", "asyncio", "certifi"} & set(imported)


def test_other_hosts_need_no_asyncio() -> None:
    code = """
import sys
from ollama_prompt.host import parse_host
from ollama_prompt.lean import lean_imports
host = parse_host("https://127.0.0.1:1")
with lean_imports(host):
    from ollama_prompt.ollama import Ollama
    Ollama(host, "smollm2").close()
print(*sys.modules)
"""
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert "httpcore" in run.stdout.split()
    assert not {"anyio", "trio", "asyncio"} & set(run.stdout.split())
