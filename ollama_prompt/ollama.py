"""Ollama over HTTP: the only module that knows httpx, and the border where its errors end.

One object asks one model on one server for one turn: `check`, perhaps `loaded_window`, then `chat`.

What the wire is like, and what follows from it:

* Headers come only after the model is loaded, which can take minutes: `chat` has no read time-out of
  its own. `deadline` (from --timeout) limits the *whole* answer. Time-outs of httpx limit one read
  each, so a server that trickles would never meet one: a timer shuts the socket down instead.
* An error comes as a status with `{"error": …}`, as a line in a stream that began with 200, or as
  JSON inside the error's text. All three pass through `_Answer` and `_refused`.
* 503 is "busy": asked again. A stream without `"done": true` at its end is an incomplete answer.
* Lines are split on `\\n` only and decoded whole: a chunk may end anywhere, inside a character too.
* A line, or the answer to a small question, may never end: what is longer than LONGEST is not read on.

Invariants: only errors of the tree in `errors` leave this module (`_translated` is the one border);
`Interrupted` and KeyboardInterrupt pass through and close the response. The API key goes to the
configured host and nowhere else: redirects are reported, never followed.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import orjson

from ollama_prompt import __version__
from ollama_prompt.errors import (
    AnswerTimeout,
    ContextExceeded,
    IncompleteAnswer,
    ModelError,
    ModelNotFound,
    ModelUnsupported,
    OllamaBusy,
    OllamaError,
    OllamaUnreachable,
    SigninRequired,
    UsageError,
)
from ollama_prompt.model import ModelFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from typing import Any

    from ollama_prompt.host import Host

CONNECT_LIMIT = 10.0  # seconds for one connection
METADATA_LIMIT = 30.0  # seconds for an answer that needs no model
START_LIMIT = 30.0  # seconds for `ollama serve` to answer
BUSY_LIMIT = 60.0  # seconds for which a busy server is asked again
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
LAST_CHANCE = 0.5  # seconds before the deadline at which a busy server is asked for the last time
_CODINGS = {"identity", "gzip", "deflate"}  # others may be a million times as long as they look
_DEEPEST = 5  # errors in errors; Ollama's own reach 2
POLL = 0.05  # seconds between two looks for a server that starts
LONGEST = 1 << 25  # bytes of one answer, or of one line of a stream; Ollama's own are a thousandth of it

_OVERFLOW = r"request \((\d{1,18}) tokens\) exceeds the available context size \((\d{1,18}) tokens\)"
_OVERFLOW_OLD = "input length exceeds the context length"
_UNSUPPORTED = r"does not support|image input is not supported|missing data required for image input"
_ERRORS_OF_HTTPX = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    httpx.CookieConflict,
    OSError,
    UnicodeError,  # a host name that cannot be encoded
    OverflowError,  # a proxy's port that is none
)


# -- names ---------------------------------------------------------------------------------------------


def is_cloud_name(name: str) -> bool:
    """Whether Ollama hands requests for this name to its cloud: a tag `cloud`, or one that ends in `-cloud`."""
    _, colon, tag = name.strip().lower().rpartition(":")
    tag = tag.strip()
    return bool(colon) and (tag == "cloud" or (tag.endswith("-cloud") and "/" not in tag))


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: `smollm2` is registry.ollama.ai/library/smollm2:latest, in any case."""
    return _full_name(one) == _full_name(other)


def _full_name(name: str) -> str:
    path = name.strip().lower().removesuffix(":local")
    tag = "latest"
    if ":" in path.rpartition("/")[2]:
        path, _, tag = path.rpartition(":")
    missing = ("registry.ollama.ai", "library")[: max(0, 2 - path.count("/"))]
    return "/".join((*missing, path)) + ":" + tag


# -- the client ----------------------------------------------------------------------------------------


class Ollama:
    """One model on one server; see `model.Model` for what the methods promise.

    `deadline` is a time.monotonic() value or None. `serve` allows to start a server that is missing;
    `note` says one line to the user.
    """

    def __init__(
        self,
        host: Host,
        model: str,
        *,
        api_key: str | None = None,
        deadline: float | None = None,
        serve: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._host = host
        self._model = model
        self._deadline = deadline
        self._serve = serve
        self._note = note
        self._cloud = is_cloud_name(model) or host.host.rstrip(".").lower() == "ollama.com"
        self._server: subprocess.Popen[bytes] | None = None
        self._socket: Any = None  # the last one of httpx's own transport
        self._client = _client(host, api_key)

    def check(self) -> ModelFacts:
        """Reach the server, starting one if need be, and ask what the model is."""
        try:
            answer = self._show()
        except _NobodyListens:
            if not self._may_start():
                raise
            self._start()
            answer = self._show()
        error = self._refused(answer)
        # Show is only asked for facts. What does not settle the matter (an older server, a cloud that
        # cannot be reached, something that is no Ollama) is left for `chat` to report.
        if isinstance(error, ModelError) and answer.status in (400, 401, 403, 404) and answer.decisive:
            raise error
        if answer.status // 100 == 3 and error is not None:
            raise error
        facts = _facts(answer.value if answer.status == 200 else None)
        self._cloud = facts.cloud = facts.cloud or self._cloud
        return facts

    def loaded_window(self) -> int | None:
        """The window that the model has now, None if that is not known; never an error."""
        if self._cloud:
            return None
        try:
            answer = self._ask("GET", "/api/ps")
        except ModelError:
            return None
        models = answer.value.get("models") if answer.value else None
        for entry in models if isinstance(models, list) else ():
            if isinstance(entry, dict) and self._is_named(entry.get("model") or entry.get("name")):
                return _positive(entry.get("context_length"))
        return None

    def chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask, and yield the chunks as they arrive; the last one has `done`."""
        content = orjson.dumps({**body, "model": self._model, "stream": True})
        with self._open_chat(content) as (response, alarm), self._translated(alarm):
            for line in _lines(response):
                try:
                    chunk = self._chunk(line)
                except OllamaError:
                    alarm.check()  # it was cut by the end of its time
                    raise
                yield chunk
                if chunk.get("done") is True:
                    return
            # An alarm that went off between two lines looks like an orderly end.
            alarm.check()
            raise IncompleteAnswer(
                "the answer broke off: Ollama ended it without saying that it is done",
                hint="If it happens again, see Ollama's log.",
            )

    def close(self) -> None:
        """Close the connection. A server that was started goes on; it is meant to."""
        self._client.close()
        if self._server is not None and self._server.poll() is None:
            # Otherwise Popen warns that the process still runs, which is the point of it.
            self._server.returncode = 0

    # -- asking --

    def _show(self) -> _Answer:
        return self._ask("POST", "/api/show", orjson.dumps({"model": self._model}))

    def _is_named(self, name: object) -> bool:
        return isinstance(name, str) and same_model(name, self._model)

    def _ask(self, method: str, path: str, content: bytes | None = None, limit: float | None = None) -> _Answer:
        """One small question and its whole answer, within METADATA_LIMIT or what is left."""
        with self._open(method, path, content, limit or METADATA_LIMIT) as (response, alarm), self._translated(alarm):
            return self._whole(response, alarm)

    def _whole(self, response: httpx.Response, alarm: _Alarm) -> _Answer:
        """The answer, read to its end."""
        data = _read(response)
        alarm.check()
        return _Answer(response.status_code, response.headers, data)

    @contextmanager
    def _open(
        self, method: str, path: str, content: bytes | None, limit: float | None
    ) -> Iterator[tuple[httpx.Response, _Alarm]]:
        """A response whose headers are there; an alarm limits what follows. Closed at the end, always."""
        alarm = _Alarm(self._deadline, limit)
        try:
            response = self._send(alarm, method, path, content)
        except BaseException:
            alarm.cancel()
            raise
        try:
            stream = response.extensions.get("network_stream")
            alarm.watch(stream.get_extra_info("socket") if stream else None)
            yield response, alarm
        finally:
            alarm.cancel()
            response.close()

    def _send(self, alarm: _Alarm, method: str, path: str, content: bytes | None) -> httpx.Response:
        with self._translated(alarm, connected=False):
            left = alarm.left()
            patience = httpx.Timeout(left, connect=CONNECT_LIMIT if left is None else min(CONNECT_LIMIT, left))
            told = {"connected": alarm.watch, "trace": self._watched_by(alarm)}
            request = self._client.build_request(
                method, self._host.url + path, content=content, timeout=patience, extensions=told
            )
            return self._client.send(request, stream=True)

    def _watched_by(self, alarm: _Alarm) -> Callable[[str, dict[str, Any]], None]:
        """Takes what httpx's own transport tells, so that its socket is watched before the headers are there too."""

        def trace(event: str, info: dict[str, Any]) -> None:
            if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
                self._socket = info["return_value"].get_extra_info("socket")
            elif event.endswith(".send_request_headers.started"):
                alarm.watch(self._socket)

        return trace

    @contextmanager
    def _open_chat(self, content: bytes) -> Iterator[tuple[httpx.Response, _Alarm]]:
        """The response of /api/chat with status 200; a busy server is asked again."""
        pauses = _Pauses(self._deadline)
        while True:
            with self._open("POST", "/api/chat", content, None) as (response, alarm):
                if response.status_code == 200:
                    yield response, alarm
                    return
                with self._translated(alarm):
                    answer = self._whole(response, alarm)
            if answer.status != 503:
                raise self._refused(answer) or OllamaError(f"Ollama answered with status {answer.status}")
            if not pauses.begun:
                self._note("Ollama is busy; asking again")
            pauses.wait(answer)

    def _chunk(self, line: bytes) -> dict[str, Any]:
        """One line of the stream, known to be a chunk of Ollama's."""
        answer = _Answer(200, httpx.Headers(), line)
        if answer.value is None:
            raise self._not_ollama(answer)
        error = self._refused(answer)
        if error is not None:
            raise error
        message = answer.value.get("message")
        if answer.value.get("done") is True and not _can_be_printed(answer.value):
            raise self._not_ollama(answer)
        if not isinstance(message, dict) or not all(_is_text(message.get(key)) for key in ("content", "thinking")):
            raise self._not_ollama(answer)
        return _with_sane_counts(answer.value)

    # -- errors --

    @contextmanager
    def _translated(self, alarm: _Alarm, *, connected: bool = True) -> Iterator[None]:
        """The border: inside, httpx may raise; outside, only our own errors are seen."""
        try:
            yield
        except _ERRORS_OF_HTTPX as error:
            alarm.check()
            raise self._translate(error, alarm, connected=connected) from error

    def _translate(self, error: Exception, alarm: _Alarm, *, connected: bool) -> ModelError:
        where, said = self._host.url, str(error) or type(error).__name__
        metadata = alarm.limit is not None
        if isinstance(error, httpx.ConnectError) and not connected:
            return self._no_connection(error)
        if isinstance(error, httpx.TimeoutException):
            return OllamaUnreachable(f"Ollama at {where} does not answer", hint=self._hint_host())
        if isinstance(error, (httpx.ProxyError, httpx.UnsupportedProtocol)):
            hint = "See the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."
            return OllamaUnreachable(f"Ollama at {where} cannot be reached: {said}", hint=hint)
        if isinstance(error, (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError, OverflowError)):
            return OllamaError(f"no request can be sent to {where}: {said}", keeps_prompt=False)
        if isinstance(error, (httpx.DecodingError, httpx.StreamError)):
            message = f"the answer from {where} cannot be read: {said}"
            return OllamaError(message, hint=self._hint_host(), keeps_prompt=not metadata)
        if metadata:
            message = f"the connection to Ollama at {where} broke off: {said}"
            return OllamaUnreachable(message, hint=self._hint_host())
        return IncompleteAnswer(f"the answer broke off: {said}")

    def _no_connection(self, error: httpx.ConnectError) -> ModelError:
        where = self._host.url
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = str(error).partition("CERTIFICATE_VERIFY_FAILED] ")[2] or str(error)
            return OllamaUnreachable(
                f"the certificate of {where} cannot be trusted: {reason}",
                hint="SSL_CERT_FILE names a file of certificates to trust.",
            )
        if self._host.scheme == "https" and _is_about_tls(error):
            return OllamaUnreachable(
                f"{where} does not speak TLS: {error}", hint="Is it http:// that OLLAMA_HOST should say?"
            )
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
        return _NobodyListens(f"no Ollama answers at {where}: {reason}", hint=self._hint_start())

    def _refused(self, answer: _Answer) -> ModelError | None:
        """What this answer's status, or the error in it, means; None if it is no error."""
        if answer.status // 100 == 3:
            return self._redirected(answer)
        if answer.status < 400 and answer.error is None:
            return None
        return answer.overflow() or self._no_access(answer) or self._no_model(answer) or self._failed(answer)

    def _redirected(self, answer: _Answer) -> ModelError:
        target = answer.headers.get("location", "")
        from shlex import quote  # a hint is pasted into a shell

        base = re.sub(r"/api/\w+$", "", target)
        return OllamaError(
            f"{self._host.url} sends requests on to {target or 'nowhere'}",
            hint=f"Set OLLAMA_HOST={quote(base)}" if "://" in base else self._hint_host(),
            keeps_prompt=False,
        )

    def _no_access(self, answer: _Answer) -> ModelError | None:
        """401 and 403, and a stream's line that asks to sign in."""
        if answer.status == 403 and (answer.error is None or "is disabled" in answer.error):
            if answer.error is not None:
                return OllamaError(answer.error, hint="Ollama's own settings turn it off.", keeps_prompt=False)
            return OllamaError(
                f"{self._host.url} refuses this request (403)",
                hint="Ollama answers only to host names it knows: see OLLAMA_HOST here, OLLAMA_ORIGINS there.",
                keeps_prompt=False,
            )
        if answer.status not in (401, 403) and not answer.signin_url:
            return None
        return SigninRequired(
            f"{self._host.url} asks to sign in: {answer.said}", hint=self._hint_signin(answer.signin_url)
        )

    def _no_model(self, answer: _Answer) -> ModelError | None:
        """No such model, or one that cannot do what was asked."""
        error = answer.error
        if error is None or answer.status < 400:
            return None
        if answer.status == 404 and "not found" in error:
            return ModelNotFound(error, hint=self._hint_pull())
        if re.search(_UNSUPPORTED, error):
            return ModelUnsupported(error, hint="`ollama show` lists what a model can do.")
        return None

    def _failed(self, answer: _Answer) -> ModelError:
        if answer.error is None:
            return self._not_ollama(answer)
        hint = None
        if answer.status == 502 and self._cloud:
            hint = "Ollama could not reach its cloud; is this machine online?"
        elif answer.status == 429:
            hint = "The limit of the account or of the server is used up; ask again later."
        return OllamaError(answer.said, hint=hint, keeps_prompt=answer.keeps_prompt)

    def _not_ollama(self, answer: _Answer) -> ModelError:
        """Not JSON: a proxy's page, another program, a path that does not exist."""
        status = "" if answer.status == 200 else f" (status {answer.status})"
        return OllamaError(
            f"{self._host.url} does not answer as Ollama does{status}: {answer.said}",
            hint=self._hint_host(),
            keeps_prompt=answer.keeps_prompt,
        )

    # -- hints --

    def _hint_host(self) -> str:
        return f"Does OLLAMA_HOST name the right server? It leads to {self._host.url}."

    def _hint_start(self) -> str:
        if not self._host.is_local:
            return self._hint_host()
        embedded = "or give a .gguf file as --model"
        if _find_ollama() is None:
            return f"Install Ollama (https://ollama.com/download), set OLLAMA_HOST, {embedded}."
        return f"Start it with `ollama serve`, set OLLAMA_HOST, {embedded}."

    def _hint_signin(self, url: str | None) -> str:
        if url:
            return f"Run `ollama signin`, or open {url}"
        if self._cloud and self._host.is_local:
            return "Run `ollama signin`."
        return "Set OLLAMA_API_KEY to a key that the server takes."

    def _hint_pull(self) -> str:
        if self._cloud:
            return "See https://ollama.com/search?c=cloud for the models of the cloud."
        from shlex import quote  # a session that came from elsewhere may name any model

        if self._host.is_local:
            return f"ollama pull {quote(self._model)}"
        return f"OLLAMA_HOST={self._host.url} ollama pull {quote(self._model)}"

    # -- starting a server --

    def _may_start(self) -> bool:
        """Only plain Ollama on this machine; what lies behind https or a path is something else."""
        return self._serve and self._host.is_plain_loopback and not self._host.path and _find_ollama() is not None

    def _start(self) -> None:
        """Run `ollama serve` and wait until it answers; several processes may do so at once.

        Whoever comes second finds the port taken and its `serve` exits. That is no failure as long as
        somebody answers; only when our own has exited and nobody listens, nobody will.
        """
        self._note("starting `ollama serve`")
        self._server = _spawn(self._host)
        give_up = time.monotonic() + START_LIMIT
        while not self._answers(give_up):
            exited = self._server.poll()
            if exited is not None and not self._answers(give_up):
                raise OllamaUnreachable(
                    f"`ollama serve` ended at once (exit code {exited})",
                    hint="Run `ollama serve` in a terminal to see why.",
                )
            if time.monotonic() > give_up:
                raise OllamaUnreachable("`ollama serve` was started and does not answer", hint=self._hint_host())
            time.sleep(POLL)

    def _answers(self, give_up: float) -> bool:
        """Whether a server answers by now. It listens before it answers: then this waits."""
        try:
            self._ask("GET", "/api/version", limit=max(1.0, give_up - time.monotonic()))
        except OllamaUnreachable:
            return False
        return True


class _NobodyListens(OllamaUnreachable):
    """The connection was refused: the one case in which starting a server helps."""


class _Alarm:
    """Limits one request as a whole: what is left until the deadline, `limit` seconds at most."""

    def __init__(self, deadline: float | None, limit: float | None) -> None:
        self.limit = limit
        self._deadline = deadline
        ends = [] if deadline is None else [deadline]
        if limit is not None:
            ends.append(time.monotonic() + limit)
        self._end = min(ends, default=None)
        self._timer: threading.Timer | None = None
        self._connection: Any = None
        self._fired = False

    def left(self) -> float | None:
        """Seconds that are left, None if there is no limit; AnswerTimeout if there are none."""
        self.check()
        return None if self._end is None else max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise if the time is up, or so nearly that a time-out of httpx was meant for it."""
        if self._deadline is not None and time.monotonic() >= self._deadline - 0.01:
            raise AnswerTimeout("the answer took longer than --timeout")
        if self._fired:
            raise OllamaUnreachable("Ollama does not answer: its answer never ends")

    def watch(self, connection: Any) -> None:
        """From now on, shut this socket down when the time is up; a later one instead of an earlier one."""
        left = self.left()
        self._connection = connection or self._connection
        if left is None or self._connection is None or self._timer is not None:
            return
        self._timer = threading.Timer(left, self._shut_down)
        self._timer.daemon = True
        self._timer.start()

    def _shut_down(self) -> None:
        import socket

        self._fired = True
        # Not close(): another thread reads from it, and a closed number could be another file's by now.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """The answer is there, or given up."""
        if self._timer is not None:
            self._timer.cancel()


class _Pauses:
    """Growing pauses between two questions to a busy server, BUSY_LIMIT seconds in all."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._end = 0.0
        self._next = FIRST_PAUSE
        self.begun = False

    def wait(self, answer: _Answer) -> None:
        """Sleep until it is time to ask again; OllamaBusy when it is time to give up."""
        now = time.monotonic()
        if not self.begun:
            self.begun = True
            self._end = now + BUSY_LIMIT
            if self._deadline is not None:
                self._end = min(self._end, self._deadline - LAST_CHANCE)  # past that it could only be a timeout
        left = self._end - now
        if left <= 0:
            raise OllamaBusy(f"Ollama is busy: {answer.said}", hint="Ask again later.")
        wish = answer.retry_after() or self._next
        self._next = min(self._next * 2, LONGEST_PAUSE)
        time.sleep(min(wish, LONGEST_PAUSE, left))


class _Answer:
    """A whole answer, or one line of a stream: its status, and what its JSON says.

    `value` is the JSON object, None if it is none; `error` its error's text, unwrapped.
    """

    def __init__(self, status: int, headers: httpx.Headers, data: bytes) -> None:
        self.status = status
        self.headers = headers
        self._data = data
        self.value: dict[str, Any] | None = _json_object(data)
        self.details: dict[str, Any] = {}
        self.error = self._unwrap((self.value or {}).get("error"))

    def _unwrap(self, error: object) -> str | None:
        """The message in `{"error": …}`: text, JSON in text, or an object with a `message`."""
        for _ in range(_DEEPEST):
            inner = _json_object(error.encode()) if isinstance(error, str) and error.startswith("{") else error
            if not isinstance(inner, dict):
                break
            if "error" not in inner:
                self.details = inner
                error = inner.get("message", error)
                break
            error = inner["error"]
        return error if error is None or isinstance(error, str) else self._excerpt()

    @property
    def said(self) -> str:
        """The error for people, or the start of what came instead of one."""
        return self.error or self._excerpt()

    def _excerpt(self) -> str:
        text = " ".join(self._data[:400].decode("utf-8", "replace").split())
        return text[:160] + ("…" if len(text) > 160 else "") if text else "an empty answer"

    @property
    def decisive(self) -> bool:
        """Whether this is an error of Ollama's own, or its bare 403, and not some other program's."""
        return self.error is not None or self.status in (401, 403)

    @property
    def keeps_prompt(self) -> bool:
        """A 4xx refuses the request; all else breaks it off."""
        return not 400 <= self.status < 500

    @property
    def signin_url(self) -> str | None:
        """Where to sign in."""
        url = (self.value or {}).get("signin_url")
        return url if isinstance(url, str) and url else None

    def overflow(self) -> ContextExceeded | None:
        """The messages do not fit the window; with the server's figures, where it gives any."""
        if self.error is None:
            return None
        figures = re.search(_OVERFLOW, self.error)
        if self.details.get("type") != "exceed_context_size_error" and not figures:
            return ContextExceeded(self.error) if _OVERFLOW_OLD in self.error else None
        needed, window = map(int, figures.groups()) if figures else (None, None)
        return ContextExceeded(
            self.error,
            prompt_tokens=_positive(self.details.get("n_prompt_tokens")) or needed,
            num_ctx=_positive(self.details.get("n_ctx")) or window,
        )

    def retry_after(self) -> float | None:
        """The pause that the server asks for, in seconds."""
        wish = self.headers.get("retry-after", "")
        return float(wish) if re.fullmatch(r"\d{1,6}", wish) else None


# -- what the parts are made of ------------------------------------------------------------------------


def _client(host: Host, api_key: str | None) -> httpx.Client:
    """The HTTP client for this host; httpx's own, but for its transport to loopback."""
    headers = {
        "User-Agent": f"ollama-prompt/{__version__}",
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",  # compressed, a stream would arrive in blocks instead of words
    }
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("OLLAMA_API_KEY holds characters that no key has")
        headers["Authorization"] = f"Bearer {api_key}"
    if host.is_plain_loopback:
        from ollama_prompt.loopback import Loopback

        return httpx.Client(headers=headers, transport=Loopback(host.host, host.port), trust_env=False)
    return _client_with_tls(host, headers)


def _client_with_tls(host: Host, headers: dict[str, str]) -> httpx.Client:
    """A client for https and for other machines; loopback is never asked through a proxy.

    For plain http a context without certificates is enough and fails closed if it were ever used:
    loading them takes longer than the rest of a start.
    """
    import ssl

    try:
        tls = httpx.create_ssl_context() if host.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx.Client(headers=headers, verify=tls, trust_env=not host.is_local)
    except OSError as error:
        raise UsageError(f"SSL_CERT_FILE or SSL_CERT_DIR cannot be used: {error}") from error
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UsageError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from error


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """The lines of a stream, each as soon as it is whole. The last one may lack its end, unless it was cut."""
    started: list[bytes] = []
    size = 0
    is_first = True
    for data in _decoded(response):
        first, *rest = data.split(b"\n")
        started.append(first)
        size += len(first)
        if size > LONGEST:
            raise httpx.DecodingError("a line in it is too long")
        if rest:
            yield from filter(bytes.strip, (b"".join(started), *rest[:-1]))
            started, size, is_first = [rest[-1]], len(rest[-1]), False
    last = b"".join(started)
    is_cut = _json_object(last) is None and (not is_first or last.startswith(b"{"))
    if last.strip() and not is_cut:
        yield last


def _read(response: httpx.Response) -> bytes:
    """The whole body."""
    pieces: list[bytes] = []
    size = 0
    for data in _decoded(response):
        pieces.append(data)
        size += len(data)
        if size > LONGEST:
            raise httpx.DecodingError("it is too long")
    return b"".join(pieces)


def _decoded(response: httpx.Response) -> Iterator[bytes]:
    """The body as it arrives, without compression."""
    codings = response.headers.get_list("content-encoding", split_commas=True)
    if len(codings) > 1 or not _CODINGS.issuperset(codings):
        raise httpx.DecodingError(f"it is compressed: {', '.join(codings)}")
    return response.iter_bytes()


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _can_be_printed(chunk: dict[str, Any]) -> bool:
    """Whether it is not nested deeper than JSON writers go; readers go deeper."""
    try:
        orjson.dumps(chunk)
    except TypeError:
        return False
    return True


def _with_sane_counts(chunk: dict[str, Any]) -> dict[str, Any]:
    """The chunk without counts that are none: they would be stored, and believed by every later turn."""
    for key in ("prompt_eval_count", "eval_count"):
        count = chunk.get(key, 0)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 2**53:
            del chunk[key]
    return chunk


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _facts(show: dict[str, Any] | None) -> ModelFacts:
    """What /api/show says of a model; whatever is missing stays unknown."""
    if show is None:
        return ModelFacts()
    capabilities = show.get("capabilities")
    known = tuple(map(str, capabilities)) if isinstance(capabilities, list) else None
    cloud = bool(show.get("remote_host") or show.get("remote_model"))
    return ModelFacts(_context_length(show), known, cloud)


def _context_length(show: dict[str, Any]) -> int | None:
    """The model's limit: under its architecture's name, else under any, else beside the details."""
    info = show.get("model_info")
    info = info if isinstance(info, dict) else {}
    named = _positive(info.get(f"{info.get('general.architecture')}.context_length"))
    if named:
        return named
    others = (_positive(value) for key, value in info.items() if key.endswith(".context_length"))
    details = show.get("details")
    beside = details.get("context_length") if isinstance(details, dict) else None
    return next(filter(None, others), None) or _positive(beside) or _positive(show.get("context_length"))


def _is_about_tls(error: BaseException) -> bool:
    import ssl

    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return isinstance(error, ssl.SSLError)


def _find_ollama() -> str | None:
    import shutil

    found = shutil.which("ollama")
    return os.path.abspath(found) if found else None


def _spawn(host: Host) -> subprocess.Popen[bytes]:
    """`ollama serve`, on its own: it must outlive us, our terminal, and Ctrl-C."""
    import subprocess

    environment = dict(os.environ)
    if host.given is not None:
        environment["OLLAMA_HOST"] = host.given
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [_find_ollama() or "ollama", "serve"],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env=environment,
            cwd=os.path.abspath(os.sep),  # a server must not hold on to the folder that we were called in
            **detached,
        )
    except OSError as error:
        raise OllamaUnreachable(f"`ollama serve` cannot be started: {error}") from error
