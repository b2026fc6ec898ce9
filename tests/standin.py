"""A stand-in for an Ollama server: real HTTP, a model made of arithmetic, and failures on demand.

    python tests/standin.py [--port 0]        prints its port; ends when its stdin is closed

What it answers, status, headers and keys, is what real servers answered (`wire_facts.json` holds those
facts, `test_standin.py` compares). What the model "says" is worked out from the request, so that a
test can see which context arrived:

    tokens     a word or a punctuation mark is one token; a message costs MESSAGE_TOKENS more.
    window     `num_ctx`, else `default_window`; never more than the model's limit. A prompt that does
               not fit loses its oldest messages in silence, or is refused with `"truncate": false`.
    answer     "Answer to: <the last prompt's start> (messages: N)", N being the messages that the
               model saw; or what `answers`, `answer` or `answer_tokens` say.

Everything else is control, through POST /_test/<verb> with a JSON object (class `Control`), from tests
through the client `StandIn`:

    set        change settings (class `Settings`); unknown names are refused
    fail       let a path fail, `times` times or always (the kinds: FAULTS_AT_ONCE, FAULTS_IN_STREAM)
    hold       chats wait at a gate; it opens by itself when `count` of them wait
    release    open the gate for good, or let `count` waiting chats through
    wait       answer when enough requests came, or wait at the gate
    requests   the requests so far; `forget` clears them
    reset      all of the above as at the start; whatever hangs is cut off

Invariants: one thread a connection; every piece of shared state is touched under `State.changed` only;
nothing but 127.0.0.1 is listened on.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import http.client
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = dict[str, Any]

MESSAGE_TOKENS = 4
JSON_TYPE = "application/json; charset=utf-8"
STREAM_TYPE = "application/x-ndjson"
TEXT_TYPE = "text/plain; charset=utf-8"

FAULTS_AT_ONCE = {
    "status": "answers `status` with `body` (text, or an object as JSON), `headers`, `content_type`",
    "slow_head": "50 headers, `delay` seconds before each, and an empty body",
    "redirect": "answers `status` (307) with a Location of `location`",
    "html": "answers `status` (200) with a page of HTML, as a proxy does",
    "hang": "reads the request and never answers",
    "close": "closes the connection without an answer",
    "reset": "resets the connection without an answer",
}
# Where chunks are counted, `tail` may name what follows them, the start of a line (latin-1 bytes).
FAULTS_IN_STREAM = {
    "empty": "the headers of a stream and no body",
    "hang_middle": "`chunks` chunks, then nothing more",
    "trickle": "a chunk every `delay` seconds, for ever",
    "cut": "`chunks` chunks, then the connection is gone",
    "no_done": "`chunks` chunks, then a clean end without `done`",
    "error_line": "`chunks` chunks, then a line with the error `message`",
    "junk_line": "`chunks` chunks, then the line `text` (latin-1 bytes)",
    "split": "the whole stream in pieces of `size` bytes, wherever they cut it",
    "one_chunk": "the whole stream in a single piece",
    "one_object": "one JSON object, as if no stream had been asked for",
}


# -- the model made of arithmetic ----------------------------------------------------------------------

TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


def tokens(text: str) -> list[str]:
    """The text in pieces of one token each; together they are the text, its trailing space aside."""
    return TOKEN.findall(text)


def count(text: str) -> int:
    """How many tokens the text has."""
    return len(tokens(text))


def count_messages(messages: list[Json]) -> int:
    """How many tokens a prompt of these messages has; `prompt_eval_count` when nothing is cut."""
    return sum(MESSAGE_TOKENS + count(message.get("content") or "") for message in messages)


def fit(messages: list[Json], window: int) -> list[Json]:
    """Drop the oldest messages that are not the system's until the rest fits; the last one stays."""
    kept = list(messages)
    while count_messages(kept) > window:
        oldest = next((i for i, m in enumerate(kept[:-1]) if m.get("role") != "system"), None)
        if oldest is None:
            break
        del kept[oldest]
    return kept


class Settings:
    """What a test may set; `reset` makes a new one."""

    def __init__(self) -> None:
        self.dialect = "0.33"  # or "0.24"
        self.cloud = "unreachable"  # or "ok", "signin", "disabled"
        self.signin_url = "https://ollama.com/connect?name=standin&key=abc"
        self.api_key: str | None = None  # asked for in an Authorization header when set
        self.default_window = 4096
        self.answers: list[str] = []  # one a chat, in this order, before `answer` counts
        self.answer: str | None = None
        self.answer_tokens: int | None = None
        self.thinking: str | None = None
        self.delay = 0.0  # seconds before every chunk
        self.models: dict[str, Json] = {
            "smollm2": {"limit": 8192, "capabilities": ["completion"]},
            "thinker": {"limit": 40960, "capabilities": ["completion", "thinking", "tools"]},
            "viewer": {"limit": 131072, "capabilities": ["completion", "vision"]},
        }

    def change(self, changes: Json) -> None:
        """Take over the given settings; models are added to those there are."""
        for name, value in changes.items():
            if not hasattr(self, name):
                raise KeyError(f"no setting {name}")
            if name == "models":
                self.models.update(value)
            else:
                setattr(self, name, value)


def full_name(name: str) -> str:
    """`SmolLM2` → `smollm2:latest`: the name as /api/ps and /api/tags print it."""
    bare = name.removesuffix(":local").lower()
    return bare if ":" in bare.rpartition("/")[2] else bare + ":latest"


def is_cloud(name: str) -> bool:
    """Whether Ollama passes requests for this name on to its cloud."""
    tag = name.rpartition(":")[2] if ":" in name else ""
    return tag == "cloud" or tag.endswith("-cloud")


def now() -> str:
    """The time as Go prints it, with nanoseconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "001Z"


def go_json(value: object) -> bytes:
    """JSON as Go's encoder writes it: compact, UTF-8 as it is, `<`, `>` and `&` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace")


# -- shared state --------------------------------------------------------------------------------------


class Fault:
    """One way to fail, waiting for requests of its path. `times` None: for ever."""

    def __init__(self, kind: str, path: str, times: int | None, after: int, details: Json) -> None:
        self.kind = kind
        self.path = path
        self.times = times
        self.after = after
        self.details = details


class State:
    """Everything that requests and tests share; touched while holding `changed` only."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.cut_off = threading.Event()
        with self.changed:
            self.clear()

    def clear(self) -> None:
        """As at the start. `cut_off` of the old life is set, so that what hangs lets go."""
        self.cut_off.set()
        self.cut_off = threading.Event()
        self.settings = Settings()
        self.faults: list[Fault] = []
        self.log: list[Json] = []
        self.loaded: dict[str, int] = {}
        self.holding = False
        self.opens_at: int | None = None
        self.permits = 0
        self.held = 0
        self.changed.notify_all()

    def note(self, entry: Json) -> None:
        """Log a request; a test may wait for it."""
        with self.changed:
            entry["number"] = len(self.log)
            self.log.append(entry)
            self.changed.notify_all()

    def fault_for(self, path: str) -> Fault | None:
        """Take the first fault that waits for this path."""
        with self.changed:
            for fault in self.faults:
                if fault.path not in (path, "*"):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                return fault
        return None

    def pass_gate(self) -> None:
        """Wait while a test holds the gate."""
        with self.changed:
            if not self.holding:
                return
            mine = self.cut_off
            self.held += 1
            if self.opens_at is not None and self.held >= self.opens_at:
                self.holding = False
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.holding or self.permits > 0 or mine.is_set())
            if mine.is_set():
                return
            self.held -= 1
            if self.holding:
                self.permits -= 1
            self.changed.notify_all()

    def next_answer(self, default: str) -> str:
        """The scripted answer of this chat, else the default."""
        with self.changed:
            setting = self.settings
            if setting.answers:
                return setting.answers.pop(0)
            if setting.answer is not None:
                return setting.answer
            if setting.answer_tokens is not None:
                return " ".join(f"word{i}" for i in range(setting.answer_tokens))
            return default


class Control:
    """The verbs below /_test/; each takes a JSON object and answers one."""

    def __init__(self, state: State) -> None:
        self.state = state

    def run(self, verb: str, order: Json) -> Json:
        """Do what the test says."""
        action: Callable[..., Json] = getattr(self, "do_" + verb)
        return action(**order)

    def do_set(self, **changes: object) -> Json:
        with self.state.changed:
            self.state.settings.change(changes)
        return {}

    def do_fail(
        self, kind: str, path: str = "/api/chat", times: int | None = 1, after: int = 0, **details: object
    ) -> Json:
        if kind not in FAULTS_AT_ONCE and kind not in FAULTS_IN_STREAM:
            raise KeyError(f"no fault {kind}")
        with self.state.changed:
            self.state.faults.append(Fault(kind, path, times, after, details))
        return {}

    def do_hold(self, count: int | None = None) -> Json:
        with self.state.changed:
            self.state.holding, self.state.opens_at, self.state.permits = True, count, 0
        return {}

    def do_release(self, count: int | None = None) -> Json:
        with self.state.changed:
            if count is None:
                self.state.holding = False
            else:
                self.state.permits += count
            self.state.changed.notify_all()
        return {}

    def do_wait(
        self, held: int = 0, requests: int = 0, gone: int = 0, path: str = "/api/chat", timeout: float = 30
    ) -> Json:
        """`held` chats at the gate, `requests` of `path` come, `gone` of them left by their client."""

        def reached() -> bool:
            ours = [entry for entry in self.state.log if entry["path"] == path]
            left = sum(1 for entry in ours if entry.get("gone"))
            return self.state.held >= held and len(ours) >= requests and left >= gone

        with self.state.changed:
            return {"reached": self.state.changed.wait_for(reached, timeout)}

    def do_requests(self, path: str | None = None) -> Json:
        with self.state.changed:
            return {"requests": [dict(e) for e in self.state.log if path in (None, e["path"])]}

    def do_forget(self) -> Json:
        with self.state.changed:
            self.state.log.clear()
        return {}

    def do_reset(self) -> Json:
        with self.state.changed:
            self.state.clear()
        return {}


# -- what the server says ------------------------------------------------------------------------------


class Refusal(Exception):
    """An answer other than the one asked for."""

    def __init__(self, status: int, message: str | None, more: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.more = more or {}

    @property
    def body(self) -> Json:
        """What is sent."""
        return {"error": self.message, **self.more}


GO_TYPES: dict[str, tuple[type, str]] = {
    "model": (str, "string"),
    "messages": (list, "[]api.Message"),
    "stream": (bool, "bool"),
    "truncate": (bool, "bool"),
    "shift": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
}
OPTION_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "num_ctx": ((int,), "integer"),
    "num_predict": ((int,), "integer"),
    "seed": ((int,), "integer"),
    "top_k": ((int,), "integer"),
    "temperature": ((int, float), "float32"),
    "top_p": ((int, float), "float32"),
    "stop": ((list,), "array"),
}
DURATION = re.compile(r"[-+]?(\d+(\.\d*)?(ns|us|ms|s|m|h))+|0")


def json_kind(value: object) -> str:
    """What Go calls this value in its complaints."""
    kinds: list[tuple[type, str]] = [(bool, "bool"), (str, "string"), (list, "array"), (dict, "object")]
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def parse_body(raw: bytes, request_name: str) -> Json:
    """The body as an object, or Go's complaint about it."""
    if not raw.strip():
        raise Refusal(400, "missing request body")
    try:
        body = json.loads(raw)
    except ValueError as error:
        complaint = "unexpected EOF" if getattr(error, "pos", 0) >= len(raw) - 1 else "invalid character"
        raise Refusal(400, complaint) from None
    if not isinstance(body, dict):
        into = f"into Go value of type api.{request_name}"
        raise Refusal(400, f"json: cannot unmarshal {json_kind(body)} {into}")
    check_types(body, request_name)
    return body


def check_types(body: Json, request_name: str) -> None:
    """Refuse fields of a type that Go would not take."""
    for field, (kind, go_type) in GO_TYPES.items():
        value = body.get(field)
        if value is not None and not isinstance(value, kind):
            into = f"into Go struct field {request_name}.{field} of type {go_type}"
            raise Refusal(400, f"json: cannot unmarshal {json_kind(value)} {into}")
    check_think(body.get("think"))
    check_keep_alive(body.get("keep_alive"))
    for message in body.get("messages") or []:
        check_images(message.get("images") or [])


def check_think(value: object) -> None:
    """`think` is a boolean or one of four words."""
    if value is None or isinstance(value, bool) or value in ("high", "medium", "low", "max"):
        return
    words = '"high", "medium", "low", "max", true, or false'
    raise Refusal(400, f"invalid think value: {json.dumps(value)} (must be {words})")


def check_keep_alive(value: object) -> None:
    """`keep_alive` is a number of seconds or a duration of Go's."""
    if not isinstance(value, str) or DURATION.fullmatch(value):
        return
    complaint = "missing unit in" if re.fullmatch(r"[-+]?\d+(\.\d*)?", value) else "invalid"
    raise Refusal(400, f'time: {complaint} duration "{value}"')


def check_images(images: list[str]) -> None:
    """Images are base64."""
    try:
        for image in images:
            base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        at = re.search(r"[^A-Za-z0-9+/=\r\n]", image)
        raise Refusal(400, f"illegal base64 data at input byte {at.start() if at else 0}") from None


def check_options(options: Json) -> None:
    """Options of the wrong type are refused late, and with a 500."""
    for name, (kinds, go_type) in OPTION_TYPES.items():
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise Refusal(500, f'option "{name}" must be of type {go_type}')


def shaped(wanted: Any) -> str:
    """An answer in JSON: the simplest one that has the properties of the schema."""
    simple: Json = {"string": "text", "number": 1.5, "integer": 1, "boolean": True, "array": [], "object": {}}
    properties = wanted.get("properties") if isinstance(wanted, dict) else None
    if not isinstance(properties, dict):
        return '{"ok": true}'
    return json.dumps({name: simple.get(str(kind.get("type"))) for name, kind in properties.items()})


def check_format(value: object) -> None:
    """`format` is "json" or a schema."""
    if value in (None, "", "json") or isinstance(value, dict):
        return
    got = json.dumps(json.dumps(value))
    raise Refusal(500, f'invalid format: {got}; expected "json" or a valid JSON Schema object')


def nested_error(message: str, kind: str, **more: int) -> str:
    """An error of the process behind the server: JSON inside the error string."""
    return go_json({"error": {"code": 400, "message": message, "type": kind, **more}}).decode()


def details(*, listed: bool, limit: int, dialect: str) -> Json:
    """The part of a model's description that several answers share."""
    common: Json = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }
    if listed and dialect != "0.24":
        common |= {"context_length": limit, "embedding_length": 576}
    return common


class Ollama:
    """The server's answers, without any HTTP: request bodies in, objects out."""

    def __init__(self, state: State) -> None:
        self.state = state

    @property
    def settings(self) -> Settings:
        return self.state.settings

    def model(self, name: str, *, shown: bool = False) -> Json:
        """The model of this name, or the refusal that its absence deserves."""
        if not name:
            raise Refusal(400, "model is required")
        if not re.fullmatch(r"[\w.:/\-]+", name):
            raise Refusal(400, "invalid model name")
        for known, model in self.settings.models.items():
            if full_name(known) == full_name(name):
                return model
        said = full_name(name) if shown and self.settings.dialect != "0.24" else name
        raise Refusal(404, f"model '{said}' not found")

    def cloud(self, path: str) -> Json:
        """The cloud's model, or what the server says when it cannot use its cloud."""
        mode = self.settings.cloud
        if mode == "ok":
            return {"limit": 163840, "capabilities": ["completion", "thinking", "tools"]}
        if mode == "signin":
            raise Refusal(401, "unauthorized", {"signin_url": self.settings.signin_url})
        if mode == "disabled":
            raise Refusal(403, "ollama cloud is disabled: remote inference is unavailable")
        where = f'Post "https://ollama.com:443{path}?ts=1795458366"'
        raise Refusal(502, f"{where}: dial tcp: lookup ollama.com on 192.0.2.53:53: no such host")

    def tags(self) -> Json:
        return {"models": [self.listed(name, model) for name, model in self.settings.models.items()]}

    def listed(self, name: str, model: Json) -> Json:
        entry: Json = {
            "name": full_name(name),
            "model": full_name(name),
            "modified_at": now(),
            "size": 98362780,
            "digest": "0" * 64,
            "details": details(listed=True, limit=model["limit"], dialect=self.settings.dialect),
        }
        if self.settings.dialect != "0.24":
            entry["capabilities"] = model["capabilities"]
        return entry

    def ps(self) -> Json:
        with self.state.changed:
            loaded = list(self.state.loaded.items())
        return {"models": [self.running(name, window) for name, window in loaded]}

    def running(self, name: str, window: int) -> Json:
        return {
            "name": name,
            "model": name,
            "size": 210690374,
            "digest": "0" * 64,
            "details": details(listed=False, limit=0, dialect=self.settings.dialect),
            "expires_at": now(),
            "size_vram": 0,
            "context_length": window,
        }

    def show(self, body: Json) -> Json:
        name = body.get("model") or body.get("name") or ""
        model = self.cloud("/api/show") if is_cloud(name) else self.model(name, shown=True)
        return {
            "modelfile": f'# Modelfile generated by "ollama show"\nFROM {name}\n',
            "parameters": 'stop                           "<|im_end|>"',
            "template": "{{- range .Messages }}{{ .Role }}\n{{ .Content }}{{ end }}",
            "details": details(listed=False, limit=model["limit"], dialect=self.settings.dialect),
            "model_info": self.model_info(model),
            "tensors": [{"name": "token_embd.weight", "type": "Q8_0", "shape": [576, 49152]}],
            "capabilities": model["capabilities"],
            "modified_at": now(),
        }

    def model_info(self, model: Json) -> Json:
        return {
            "general.architecture": "llama",
            "general.parameter_count": 134515008,
            "llama.block_count": 30,
            "llama.context_length": model["limit"],
            "llama.embedding_length": 576,
            "tokenizer.ggml.model": "gpt2",
        }

    def chat(self, body: Json) -> Chat:
        """Check a chat request the way the server does, in its order, and prepare the answer."""
        name: str = (body.get("model") or "").strip()
        cloud = is_cloud(name)
        model = self.cloud("/api/chat") if cloud else self.model(name)
        messages: list[Json] = body.get("messages") or []
        if not messages and body.get("keep_alive") in (0, "0"):
            return self.unload(name)
        self.check_capabilities(name, model, body)
        check_options(body.get("options") or {})
        window = model["limit"] if cloud else self.load(name, model, body)
        if not messages:
            return Chat(name, loaded="load")
        check_format(body.get("format"))
        return self.answer(name, model, body, window)

    def check_capabilities(self, name: str, model: Json, body: Json) -> None:
        able = model["capabilities"]
        if body.get("think") and "thinking" not in able:
            raise Refusal(400, f'"{name}" does not support thinking')
        if body.get("tools") and "tools" not in able:
            raise Refusal(400, f"registry.ollama.ai/library/{full_name(name)} does not support tools")
        images = any(message.get("images") for message in body.get("messages") or [])
        if images and "vision" not in able and self.settings.dialect != "0.24":
            text = "Multimodal data provided, but model does not support multimodal requests."
            raise Refusal(400, nested_error(text, "invalid_request_error"))

    def unload(self, name: str) -> Chat:
        with self.state.changed:
            self.state.loaded.pop(full_name(name), None)
        return Chat(name, loaded="unload")

    def load(self, name: str, model: Json, body: Json) -> int:
        """Load the model with the window that is asked for, and say how large it became."""
        wanted = (body.get("options") or {}).get("num_ctx") or self.settings.default_window
        window: int = min(wanted, model["limit"])
        with self.state.changed:
            self.state.loaded[full_name(name)] = window
        return window

    def answer(self, name: str, model: Json, body: Json, window: int) -> Chat:
        messages = body["messages"]
        if body.get("truncate") is False:
            self.refuse_overflow(count_messages(messages), window)
        seen = fit(messages, window)
        prompt = seen[-1].get("content") or ""
        text = shaped(body["format"]) if body.get("format") else f"Answer to: {prompt[:60]} (messages: {len(seen)})"
        chat = Chat(name, text=self.state.next_answer(text), prompt_tokens=self.evaluated(seen, window))
        chat.limit((body.get("options") or {}).get("num_predict"))
        chat.logprobs = bool(body.get("logprobs"))
        if "thinking" in model["capabilities"] and body.get("think", True):
            chat.thinking = self.settings.thinking or ""
        return chat

    def generate(self, body: Json) -> Json:
        """The older way to ask, without roles; never streamed here."""
        messages = [{"role": "user", "content": body.get("prompt") or ""}]
        whole = self.chat(body | {"messages": messages}).whole()
        text = whole.pop("message")["content"]
        return whole | {"response": text, "context": list(range(whole["prompt_eval_count"]))}

    def refuse_overflow(self, needed: int, window: int) -> None:
        if needed <= window:
            return
        if self.settings.dialect == "0.24":
            raise Refusal(400, "the input length exceeds the context length")
        text = f"request ({needed} tokens) exceeds the available context size ({window} tokens)"
        kind = "exceed_context_size_error"
        raise Refusal(400, nested_error(text + ", try increasing it", kind, n_prompt_tokens=needed, n_ctx=window))

    def evaluated(self, seen: list[Json], window: int) -> int:
        """`prompt_eval_count`; one message that is too large alone is cut in the middle."""
        needed = count_messages(seen)
        if needed <= window:
            return needed
        return window if self.settings.dialect == "0.24" else window // 2 + 2


class Chat:
    """One answer of the model, ready to be sent whole or in chunks."""

    def __init__(self, model: str, text: str = "", prompt_tokens: int = 0, loaded: str | None = None) -> None:
        self.model = model
        self.text = text
        self.thinking = ""
        self.prompt_tokens = prompt_tokens
        self.logprobs = False
        self.loaded = loaded
        self.reason = loaded or "stop"

    def limit(self, num_predict: int | None) -> None:
        """Cut the answer to this many tokens, as `num_predict` does."""
        pieces = tokens(self.text)
        if num_predict and 0 < num_predict < len(pieces):
            self.text, self.reason = "".join(pieces[:num_predict]), "length"

    def last(self, **message: str) -> Json:
        """The chunk that ends the answer."""
        end: Json = {
            "model": self.model,
            "created_at": now(),
            "message": {"role": "assistant", "content": "", **message},
            "done": True,
            "done_reason": self.reason,
        }
        return end if self.loaded else end | self.figures()

    def figures(self) -> Json:
        """Counts, and times that follow from them."""
        answered = count(self.text) + count(self.thinking)
        times = {"prompt_eval_duration": self.prompt_tokens * 1000, "eval_duration": answered * 1000}
        return {
            "total_duration": sum(times.values()) + 1000,
            "load_duration": 1000,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": times["prompt_eval_duration"],
            "eval_count": answered,
            "eval_duration": times["eval_duration"],
        }

    def whole(self) -> Json:
        """The answer as one object."""
        message = {"content": self.text}
        whole = self.last(**message, **({"thinking": self.thinking} if self.thinking else {}))
        if self.logprobs:
            pieces = [(piece, list(piece.encode())) for piece in tokens(self.text)]
            whole["logprobs"] = [{"token": text, "logprob": -0.5, "bytes": data} for text, data in pieces]
        return whole

    def chunks(self) -> Iterator[Json]:
        """The answer as a stream."""
        for piece in tokens(self.thinking):
            yield self.chunk(content="", thinking=piece)
        for piece in split_answer(self.text):
            yield self.chunk(content=piece)
        yield self.last()

    def chunk(self, **message: str) -> Json:
        """One chunk in the middle."""
        head = {"model": self.model, "created_at": now()}
        return {**head, "message": {"role": "assistant", **message}, "done": False}


def split_answer(text: str) -> list[str]:
    """The tokens of an answer, the space at its end with the last one."""
    pieces = tokens(text)
    rest = text[sum(map(len, pieces)) :]
    return [*pieces, rest] if rest else pieces


# -- HTTP ----------------------------------------------------------------------------------------------


class Gone(Exception):
    """The connection is to be given up without another word."""


LOCAL_NAMES = re.compile(r"localhost|127\..*|\[?::1\]?|0\.0\.0\.0|10\..*|192\.168\..*|.*\.(localhost|local|internal)")
METHODS = {
    "/": "GET",
    "/api/version": "GET",
    "/api/tags": "GET",
    "/api/ps": "GET",
    "/api/me": "POST",
    "/api/show": "POST",
    "/api/chat": "POST",
    "/api/generate": "POST",
}


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, logs them, sends what `Ollama` says or what a fault demands."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.state = self.server.state
        self.entry: Json = {}
        self.ollama = Ollama(self.state)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr; the log is for tests to ask."""

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_PUT(self) -> None:
        self.serve()

    def do_DELETE(self) -> None:
        self.serve()

    def serve(self) -> None:
        """Answer one request; whatever breaks the connection ends it quietly."""
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        try:
            if path.startswith("/_test/"):
                self.control(path.removeprefix("/_test/"), raw)
            else:
                self.public(path, raw)
        except Refusal as refusal:
            self.send_json(refusal.status, refusal.body)
        except Gone:
            self.close_connection = True
        except OSError:
            self.note_gone()
            self.close_connection = True

    def control(self, verb: str, raw: bytes) -> None:
        try:
            answer = Control(self.state).run(verb, json.loads(raw or b"{}"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.send_json(400, {"error": f"{type(error).__name__}: {error}"})
        else:
            self.send_json(200, answer)

    def public(self, path: str, raw: bytes) -> None:
        """A request as Ollama gets it."""
        self.entry = {
            "method": self.command,
            "path": path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": loads_or_text(raw),
            "time": time.monotonic(),
            "connection": self.client_address[1],
        }
        self.state.note(self.entry)
        fault = self.state.fault_for(path)
        if fault and fault.kind in FAULTS_AT_ONCE:
            self.fail_at_once(fault)
        elif self.allowed(path):
            self.answer(path, raw, fault)

    def allowed(self, path: str) -> bool:
        """What is decided before a path's own code runs: host, route, method, key."""
        host = self.headers.get("Host", "").lower()
        key = self.state.settings.api_key
        if not LOCAL_NAMES.fullmatch(re.sub(r":\d+$", "", host)):
            self.send_whole(403, b"", None)
        elif path not in METHODS:
            self.send_whole(404, b"404 page not found", "text/plain")
        elif self.command != METHODS[path]:
            self.send_whole(405, b"405 method not allowed", "text/plain")
        elif key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            self.send_json(401, {"error": "unauthorized"})
        else:
            return True
        return False

    def answer(self, path: str, raw: bytes, fault: Fault | None) -> None:
        if path == "/api/chat":
            self.answer_chat(raw, fault)
        elif path == "/api/show":
            self.send_stream(200, JSON_TYPE, [go_json(self.ollama.show(parse_body(raw, "ShowRequest")))])
        elif path == "/api/generate":
            self.send_json(200, self.ollama.generate(parse_body(raw, "GenerateRequest")))
        elif path == "/":
            self.send_whole(200, b"Ollama is running", TEXT_TYPE)
        elif path == "/api/me":
            self.send_json(503, {"error": "account unavailable"})
        elif path == "/api/version":
            self.send_json(200, {"version": "0.0.0"})
        else:
            self.send_json(200, self.ollama.tags() if path == "/api/tags" else self.ollama.ps())

    def answer_chat(self, raw: bytes, fault: Fault | None) -> None:
        body = parse_body(raw, "ChatRequest")
        streamed = body.get("stream") is not False
        self.state.pass_gate()
        try:
            chat = self.ollama.chat(body)
        except Refusal as refusal:
            if streamed and re.search("exceed_context_size_error|exceeds the context", refusal.message or ""):
                # The stream had begun inside the server: only then is the charset missing.
                self.send_stream(refusal.status, "application/json", [go_json(refusal.body)])
                return
            raise
        if fault:
            self.fail_in_stream(fault, chat)
        elif chat.loaded or not streamed:
            self.send_json(200, chat.whole())
        else:
            self.send_stream(200, STREAM_TYPE, self.lines(chat))

    def lines(self, chat: Chat, limit: int | None = None) -> Iterator[bytes]:
        """The stream's lines, `delay` before each; `limit` of them, `done` aside, for a fault."""
        delay = self.state.settings.delay
        for number, chunk in enumerate(chat.chunks()):
            if limit is not None and (number >= limit or chunk["done"]):
                return
            if delay:
                self.pause(delay)
            yield go_json(chunk) + b"\n"

    # -- failing --

    def fail_at_once(self, fault: Fault) -> None:
        details = fault.details
        if fault.kind == "hang":
            self.hang()
        if fault.kind == "slow_head":
            self.send_slow_head(details.get("delay", 0.05))
            return
        if fault.kind in ("close", "reset"):
            self.drop(reset=fault.kind == "reset")
        body = details.get("body", "")
        kind = details.get("content_type")
        headers = details.get("headers", {})
        status = details.get("status", 200)
        if fault.kind == "redirect":
            status, headers = details.get("status", 307), {"Location": details["location"]}
        elif fault.kind == "html":
            body, kind = "<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>", "text/html"
        elif not isinstance(body, str):
            body, kind = go_json(body).decode(), kind or JSON_TYPE
        self.send_whole(status, body.encode(), kind or TEXT_TYPE, headers)

    def fail_in_stream(self, fault: Fault, chat: Chat) -> None:
        details = fault.details
        if fault.kind == "one_object":
            self.send_json(200, chat.whole())
        elif fault.kind == "trickle":
            self.send_stream(200, STREAM_TYPE, self.endless(chat, details.get("delay", 0.05)))
        elif fault.kind in ("split", "one_chunk"):
            whole = b"".join(self.lines(chat))
            size = details.get("size", 1) if fault.kind == "split" else len(whole)
            self.send_stream(200, STREAM_TYPE, [whole[i : i + size] for i in range(0, len(whole), size)])
        else:
            limit = 0 if fault.kind == "empty" else details.get("chunks", 2)
            self.send_stream(200, STREAM_TYPE, self.broken(fault, self.lines(chat, limit)))

    def broken(self, fault: Fault, lines: Iterator[bytes]) -> Iterator[bytes]:
        """A stream that begins well."""
        yield from lines
        if tail := fault.details.get("tail"):
            yield tail.encode("latin-1")
        if fault.kind == "hang_middle":
            self.hang()
        elif fault.kind == "cut":
            self.drop(reset=False)
        elif fault.kind == "error_line":
            said = "an error was encountered while running the model: unexpected EOF"
            yield go_json({"error": fault.details.get("message", said)}) + b"\n"
        elif fault.kind == "junk_line":
            yield fault.details.get("text", "<html>").encode("latin-1") + b"\n"

    def endless(self, chat: Chat, delay: float) -> Iterator[bytes]:
        while True:
            yield go_json(chat.chunk(content="more ")) + b"\n"
            self.pause(delay)

    def hang(self) -> NoReturn:
        """Say nothing until the client goes, or the test has everything reset."""
        cut_off = self.state.cut_off  # of this life: a reset between two pauses makes a new one
        while not self.pause(0.05, cut_off):
            pass
        raise Gone

    def pause(self, seconds: float, cut_off: threading.Event | None = None) -> bool:
        """Wait; raises BrokenPipeError if the client left, returns True if everything was reset."""
        end = time.monotonic() + seconds
        cut_off = cut_off or self.state.cut_off
        while (left := end - time.monotonic()) > 0:
            if cut_off.is_set():
                return True
            readable, _, _ = select.select([self.connection], [], [], min(left, 0.05))
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError
        return cut_off.is_set()

    def drop(self, *, reset: bool) -> NoReturn:
        """Close the connection in the middle; `reset` lets the client see a reset."""
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # an orderly shutdown would turn the reset into a mere end
        raise Gone

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    # -- sending --

    def send_json(self, status: int, value: object) -> None:
        self.send_whole(status, go_json(value), JSON_TYPE)

    def send_whole(self, status: int, body: bytes, kind: str | None, headers: Json | None = None) -> None:
        self.send_head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def send_head(self, status: int, kind: str | None, headers: Json) -> None:
        self.send_response_only(status, HTTPStatus(status).phrase)
        if kind is not None:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Date", self.date_time_string())
        self.end_headers()

    def send_slow_head(self, delay: float) -> None:
        """Headers that come one by one."""
        self.send_response_only(HTTPStatus.OK)
        for number in range(50):
            self.pause(delay)
            self.send_header(f"X-{number}", "slow")
            self.flush_headers()
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_stream(self, status: int, kind: str, pieces: Iterator[bytes] | list[bytes]) -> None:
        """Chunked; every piece leaves at once."""
        self.send_head(status, kind, {"Transfer-Encoding": "chunked"})
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def note_gone(self) -> None:
        """The client left before its answer was whole; a test may wait for that."""
        with self.state.changed:
            self.entry["gone"] = True
            self.state.changed.notify_all()


def loads_or_text(raw: bytes) -> object:
    """A request's body for the log: parsed where that is possible."""
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode("utf-8", "replace")


class Server(ThreadingHTTPServer):
    """Many connections at once, on loopback."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int) -> None:
        self.state = State()
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self) -> None:
        """Without http.server's look-up of our host name, which can ask the network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A broken connection is what tests ask for; anything else is a bug worth seeing."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


# -- for tests -----------------------------------------------------------------------------------------


class StandIn:
    """A running stand-in, seen from a test."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-I", str(Path(__file__).resolve()), "--port", str(port)]
        # Its stdin ends with us, however we end: no server outlives a killed test run.
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End the server."""
        self.process.communicate()

    def order(self, verb: str, **order: object) -> Json:
        """Have the server do a verb of `Control`."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request("POST", f"/_test/{verb}", json.dumps(order))
            response = link.getresponse()
            answer: Json = json.loads(response.read())
        finally:
            link.close()
        assert response.status == HTTPStatus.OK, answer
        return answer

    def reset(self) -> None:
        """As if just started."""
        self.order("reset")

    def set(self, **settings: object) -> None:
        """Change settings; their names are those of class `Settings`."""
        self.order("set", **settings)

    def fail(
        self, kind: str, *, path: str = "/api/chat", times: int | None = 1, after: int = 0, **details: object
    ) -> None:
        """Let `times` requests of `path` fail (None: all), `after` that many went well."""
        self.order("fail", kind=kind, path=path, times=times, after=after, **details)

    def hold(self, count: int | None = None) -> None:
        """Let chats wait; with `count`, until that many wait."""
        self.order("hold", count=count)

    def release(self, count: int | None = None) -> None:
        """Let all waiting and coming chats go, or `count` of them."""
        self.order("release", count=count)

    def wait(self, **until: object) -> None:
        """Until `held=N` chats wait, or `requests=N` (or `gone=N`) of `path` were seen."""
        assert self.order("wait", **until)["reached"], f"not reached: {until}"

    def requests(self, path: str | None = None) -> list[Json]:
        """The requests so far, oldest first."""
        found: list[Json] = self.order("requests", path=path)["requests"]
        return found

    def chats(self) -> list[Json]:
        """The bodies of the chat requests so far."""
        return [request["body"] for request in self.requests("/api/chat")]

    def forget(self) -> None:
        """Clear the log of requests."""
        self.order("forget")


def end_with_stdin() -> None:
    """Whoever started us holds our stdin; when it ends, so do we."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until stdin is closed, or until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for an Ollama server.")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    server = Server(arguments.port)
    print(server.server_port, flush=True)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main()
