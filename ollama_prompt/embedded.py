"""A GGUF file, run in this process by llama.cpp (the library xllamacpp, the extra `embedded`).

It answers as Ollama does: the same chunks, the same errors, real counts. One thread for each `chat`
loads the model if need be and generates; what it says goes through a queue to the caller, who is thereby
free to hear Ctrl-C and to keep the deadline while llama.cpp computes.

What llama.cpp is like, and what follows from it:

* xllamacpp holds Python's lock while it loads a model, so that not even Ctrl-C is heard. Most of that
  time would go to the disk: `_read_through` reads the file first, where both are heard.
* Generation can be stopped only between two batches of tokens. Without a GPU batches are small
  (`_CPU_BATCH`), which costs no speed there, and each reports its progress, so `close` waits for one
  batch at most. It must wait: a process that ends while llama.cpp computes may crash.
* xllamacpp always listens on a port of loopback. A random key keeps other people on this machine out.
* It logs to stderr, which is ours: it is told to be silent. Only when a load failed, the load is
  repeated with its log caught, because the exception does not say why.

Invariants: a prompt that does not fit is refused, never cut, and a full window ends the answer (no
context shift); only errors of the tree in `errors` leave this module. The loaded model is kept until
`close`, or by a conversation in a `Loaded` from turn to turn; and until another file, num_ctx or
num_thread is asked for.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from ollama_prompt import clock, gguf
from ollama_prompt.errors import (
    AnswerTimeout,
    ContextExceeded,
    EmbeddedUnavailable,
    IncompleteAnswer,
    ModelError,
    ModelNotFound,
    ModelUnsupported,
    OllamaError,
)
from ollama_prompt.model import ModelFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

INSTALL = 'pip install "ollama-prompt[embedded]"'
DEFAULT_NUM_CTX = 8192
POLL = 0.2  # seconds; on Windows a signal is heard only between two waits
_MOST_THREADS = 512  # llama.cpp's own limit, behind which it ends the process
_CPU_BATCH = 64  # tokens; measured: 32 is slower, 128 is no faster
_BLOCK = 1 << 20
LOG_LIMIT = 1.0  # seconds to wait for the end of a log
_LAST_OF_LOG = "exiting due to"

_INTEGERS = {
    "num_predict": "max_tokens",
    "num_keep": "n_keep",
    "repeat_last_n": "repeat_last_n",
    "seed": "seed",
    "top_k": "top_k",
}
_NUMBERS = {
    "frequency_penalty": "frequency_penalty",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
    "temperature": "temperature",
    "top_p": "top_p",
    "typical_p": "typical_p",
}
_THINKING = re.compile(r"enable_thinking|reasoning_content|reasoning_effort|<think>")


_NEVER_FREED: list[Any] = []
"""Servers that were loaded and never asked, as after Ctrl-C. xllamacpp waits for ever while it frees one whose
loop has not begun, and only an answer tells that it has."""


class EmbeddedModel:
    """The model in one file; see `model.Model` for what the methods promise.

    `deadline` is a time.monotonic() value or None; `note` says one line to the user. What is `kept` is asked, and not
    released: whoever keeps it does.
    """

    def __init__(
        self,
        path: str,
        *,
        deadline: float | None = None,
        note: Callable[[str], None] = lambda _: None,
        kept: Loaded | None = None,
    ) -> None:
        self._path = path
        self._name = os.path.basename(path)
        self._deadline = deadline
        self._note = note
        self._head: gguf.GgufHead | None = None
        self._is_kept = kept is not None
        self._loaded = kept or Loaded()
        self._work: _Work | None = None
        with suppress(EmbeddedUnavailable):  # now, when no interruption is heard; `check` tells if it is missing
            _import_xllamacpp()

    def check(self) -> ModelFacts:
        """Look at the file, and whether there is a library to run it."""
        head = self._read_head()
        _import_xllamacpp()
        thinking = ("thinking",) if _THINKING.search(head.chat_template) else ()
        return ModelFacts(context_length=head.context_length, capabilities=("completion", *thinking))

    def loaded_window(self) -> int | None:
        """The window of the model as it is loaded now."""
        return self._loaded.window(self._path)

    def chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask, and yield the chunks as they come; the last one has `done`."""
        facts = self.check()
        self._refuse_unsupported(body, facts)
        question, load = _question(body), (self._num_ctx(body, facts), _num_thread(body))
        answer = _Answer(self._path)
        for event in self._events(question, load):
            yield from answer.pieces(event)
        yield answer.end()

    def close(self) -> None:
        """Stop what still runs, and release the memory unless it is kept."""
        self._stop()
        if not self._is_kept:
            self._loaded.free()

    # -- before asking --

    def _read_head(self) -> gguf.GgufHead:
        if self._head is None:
            if not os.path.isfile(self._path):  # a folder, a pipe: nothing that could be mapped
                raise ModelNotFound(f"there is no model file {self._path}")
            try:
                self._head = gguf.read_head(self._path)
            except OSError as error:
                raise ModelNotFound(f"the model file {self._path} cannot be read: {error.strerror}") from error
            except gguf.NotGguf as error:
                raise OllamaError(f"{self._path} cannot be used: {error}", keeps_prompt=False) from error
        return self._head

    def _refuse_unsupported(self, body: dict[str, Any], facts: ModelFacts) -> None:
        if any(message.get("images") for message in body["messages"]):
            raise ModelUnsupported(f"{self._name} does not support images", hint="use a model of Ollama's with vision")
        if body.get("think") and "thinking" not in (facts.capabilities or ()):
            raise ModelUnsupported(f"{self._name} does not support thinking")

    def _num_ctx(self, body: dict[str, Any], facts: ModelFacts) -> int:
        wanted = _integer("num_ctx", (body.get("options") or {}).get("num_ctx")) or 0
        if wanted <= 0:
            wanted = DEFAULT_NUM_CTX
        limit = facts.context_length or wanted
        if wanted > limit:
            self._note(f"num_ctx {wanted} is more than the model can take; {limit} is used")
        return min(wanted, limit)

    # -- the thread, and the side that listens to it --

    def _events(self, question: dict[str, Any], load: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """What llama.cpp says, as it says it. Leaving early, for whatever reason, stops the generation."""
        self._stop()
        work = self._work = _Work(lambda work: self._generate(work, question, load))
        try:
            while (event := self._next(work)) is not None:
                yield event
        finally:
            work.stopped.set()

    def _next(self, work: _Work) -> dict[str, Any] | None:
        while True:
            left = POLL if self._deadline is None else self._deadline - time.monotonic()
            if left <= 0:
                raise AnswerTimeout("the answer took longer than --timeout allows")
            try:
                event = work.queue.get(timeout=min(left, POLL))
            except Empty:
                continue
            if isinstance(event, BaseException):
                raise _translated(event) from event
            return event

    def _stop(self) -> None:
        if self._work is not None:
            self._work.stopped.set()
            self._work.thread.join()
            self._work = None

    def _generate(self, work: _Work, question: dict[str, Any], load: tuple[int, int]) -> None:
        """The thread's work. Whatever comes or fails goes into the queue. `load`: num_ctx, num_thread."""
        begun = time.monotonic_ns()
        self._loaded.load(self._path, *load, work.stopped)
        if not work.stopped.is_set():
            work.queue.put({"load_duration": time.monotonic_ns() - begun})
            self._loaded.ask(question, work.take)


class Loaded:
    """llama.cpp with a model in memory, or nothing yet. It may outlive the turns that ask it."""

    def __init__(self) -> None:
        self.server: Any = None
        self._what: tuple[object, ...] | None = None
        self._num_ctx = 0
        self._was_asked = False

    def window(self, path: str) -> int | None:
        """The window of this file's model, if it is in memory."""
        return self._num_ctx if self._what and self._what[0] == path else None

    def load(self, path: str, num_ctx: int, num_thread: int, stopped: threading.Event) -> None:
        """Have this in memory, and nothing else, unless it is stopped before."""
        what = (path, num_ctx, num_thread, _stamp(path))
        if what == self._what:
            return
        self.free()
        _read_through(path, stopped)
        if not stopped.is_set():
            self.server = _load(path, num_ctx, num_thread)
            self._what, self._num_ctx = what, num_ctx

    def ask(self, question: dict[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
        """See `_ask`."""
        _ask(self.server, question, take)
        self._was_asked = True

    def free(self) -> None:
        """Release the memory. Nobody must be asking."""
        if self.server is not None and not self._was_asked:
            _NEVER_FREED.append(self.server)
        self.server, self._what, self._was_asked = None, None, False


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What differs once another file has taken its place."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


class _Work:
    """A thread, and the queue of what it says: events, at most one exception, None at the end."""

    def __init__(self, do: Callable[[_Work], None]) -> None:
        self.queue: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()
        self.stopped = threading.Event()
        self._do = do
        # A daemon, so that a caller who never calls close() is not kept from ending.
        self.thread = threading.Thread(target=self._run, name="llama.cpp", daemon=True)
        self.thread.start()

    def take(self, event: dict[str, Any]) -> bool:
        """xllamacpp's callback; true stops the generation."""
        self.queue.put(event)
        return self.stopped.is_set()

    def _run(self) -> None:
        try:
            self._do(self)
        except BaseException as error:  # raised again on the other side
            self.queue.put(error)
        self.queue.put(None)


# -- Ollama's words and llama.cpp's ----------------------------------------------------------------


def _question(body: dict[str, Any]) -> dict[str, Any]:
    """Ollama's body as llama.cpp takes it. What Ollama does not know it ignores, and so do we."""
    question: dict[str, Any] = {
        "messages": [{"role": item["role"], "content": item["content"]} for item in body["messages"]],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": True,
    }
    question.update(_sampling(body.get("options") or {}))
    if body.get("format"):
        question["response_format"] = _response_format(body["format"])
    if body.get("think") is not None:
        question["chat_template_kwargs"] = _template_arguments(body["think"])
    return question


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in _INTEGERS:
            found[_INTEGERS[name]] = _integer(name, value)
        elif name in _NUMBERS:
            found[_NUMBERS[name]] = _number(name, value)
        elif name == "stop":
            found["stop"] = _strings(name, value)
    return found


def _num_thread(body: dict[str, Any]) -> int:
    """How many threads to compute with; 0 leaves it to llama.cpp."""
    number = _integer("num_thread", (body.get("options") or {}).get("num_thread")) or 0
    if number > _MOST_THREADS:
        raise OllamaError(f'option "num_thread" must be {_MOST_THREADS} or less', keeps_prompt=False)
    return number


def _integer(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, "integer")
    return int(value)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(name, "float32")
    return float(value)


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong_type(name, "array")
    return value


def _wrong_type(name: str, wanted: str) -> OllamaError:
    return OllamaError(f'option "{name}" must be of type {wanted}', keeps_prompt=False)


def _response_format(wanted: object) -> dict[str, Any]:
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"schema": wanted}}
    raise OllamaError(f'invalid format: {wanted!r}; expected "json" or a valid JSON Schema object', keeps_prompt=False)


def _template_arguments(think: bool | str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"enable_thinking": bool(think)}
    return arguments | {"reasoning_effort": think} if isinstance(think, str) else arguments


class _Answer:
    """Turns llama.cpp's events into Ollama's chunks, and remembers what the last one must say."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._begun = time.monotonic_ns()
        self._load_duration = 0
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def pieces(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks, none or one, that an event gives."""
        if error := event.get("error"):
            raise _refused(error)
        self._load_duration = event.get("load_duration", self._load_duration)
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        for choice in event.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish
            delta = choice.get("delta") or {}
            thinking, content = delta.get("reasoning_content"), delta.get("content")
            if thinking or content:
                more = {"thinking": thinking} if thinking else {}
                yield self._chunk(content or "", **more) | {"done": False}

    def end(self) -> dict[str, Any]:
        """The last chunk. llama.cpp names a reason when it is done; without one the answer broke off."""
        if self._finish is None:
            raise IncompleteAnswer("the answer broke off: llama.cpp ended it without saying that it is done")
        reason = "length" if self._finish == "length" else "stop"
        return self._chunk("") | {"done": True, "done_reason": reason} | self._counts()

    def _chunk(self, content: str, **more: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": content, **more}
        return {"model": self._model, "created_at": clock.now(), "message": message}

    def _counts(self) -> dict[str, int]:
        cached_and_new = self._timings.get("cache_n", 0) + self._timings.get("prompt_n", 0)
        return {
            "total_duration": time.monotonic_ns() - self._begun,
            "load_duration": self._load_duration,
            "prompt_eval_count": self._usage.get("prompt_tokens", cached_and_new),
            "prompt_eval_duration": self._nanoseconds("prompt_ms"),
            "eval_count": self._usage.get("completion_tokens", self._timings.get("predicted_n", 0)),
            "eval_duration": self._nanoseconds("predicted_ms"),
        }

    def _nanoseconds(self, name: str) -> int:
        return round(float(self._timings.get(name, 0)) * 1_000_000)


def _refused(error: dict[str, Any]) -> ModelError:
    """What an error of llama.cpp means."""
    message, code = str(error.get("message") or error), error.get("code")
    if error.get("type") == "exceed_context_size_error":
        return ContextExceeded(message, prompt_tokens=error.get("n_prompt_tokens"), num_ctx=error.get("n_ctx"))
    if error.get("type") == "not_supported_error":
        return ModelUnsupported(message)
    return OllamaError(message, keeps_prompt=not (isinstance(code, int) and 400 <= code < 500))


def _ask(server: Any, question: dict[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
    """Generate until the end or until `take` says stop. What is raised was raised over the question itself
    (a schema that is none, a template that refuses it), before the first word; the rest are events.
    """
    try:
        server.handle_chat_completions(question, take)
    except Exception as error:
        raise OllamaError(f"llama.cpp refuses this: {error}", keeps_prompt=False) from error


def _translated(error: BaseException) -> ModelError:
    if isinstance(error, ModelError):
        return error
    return OllamaError(f"llama.cpp failed: {error or type(error).__name__}")


# -- xllamacpp -------------------------------------------------------------------------------------


def _import_xllamacpp() -> Any:
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise EmbeddedUnavailable(
            "to run a .gguf file, ollama-prompt needs its extra `embedded`", hint=INSTALL
        ) from error
    except ImportError as error:
        raise EmbeddedUnavailable(
            f"the library that runs .gguf files cannot be loaded: {error}", hint=INSTALL
        ) from error
    return xllamacpp


def _read_through(path: str, stopped: threading.Event) -> None:
    """Have the system keep the file in memory. What cannot be read is left for llama.cpp to report."""
    block = bytearray(_BLOCK)
    try:
        with open(path, "rb", buffering=0) as file:
            while not stopped.is_set() and file.readinto(block):
                pass
    except OSError:
        pass


def _load(path: str, num_ctx: int, num_thread: int) -> Any:
    xllamacpp = _import_xllamacpp()
    parameters = _parameters(xllamacpp, path, num_ctx, num_thread)
    try:
        return xllamacpp.Server(parameters)
    except (RuntimeError, MemoryError) as error:
        reason = _why_not(xllamacpp, parameters)
        raise OllamaError(
            f"llama.cpp cannot run {path}: {reason or error}",
            hint="a damaged file, too little memory, or a model newer than this xllamacpp (pip install -U xllamacpp)",
            keeps_prompt=False,
        ) from error


def _parameters(xllamacpp: Any, path: str, num_ctx: int, num_thread: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.model_alias = {os.path.basename(path)}
    parameters.n_ctx = num_ctx
    if num_thread > 0:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = num_thread
    parameters.n_parallel = 1
    parameters.ctx_shift = False
    parameters.cache_ram_mib = 0  # of other conversations; this one's stays in the window itself
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.n_threads_http = 1
    parameters.api_keys = [os.urandom(16).hex()]
    if not any("GPU" in device["type"].name for device in xllamacpp.get_device_info()):
        parameters.fit_params = False  # what to give to the GPU: half of the loading time
        parameters.n_batch = parameters.n_ubatch = _CPU_BATCH
    return parameters


def _why_not(xllamacpp: Any, parameters: Any) -> str | None:
    """Load again for the sake of the log: its first error is the cause, the others follow from it."""
    parameters.verbosity = 1
    log = _log_of(lambda: xllamacpp.Server(parameters))
    found = re.search(r"^[\d.]+ E (.*)$", log, re.MULTILINE)
    return re.sub(r"^(\w+ +)?[\w()~]+: +(error loading model: )?", "", found[1]) if found else None


def _log_of(work: Callable[[], object]) -> str:
    """What a piece of work writes to descriptor 2, where C++ logs; it is put back whatever happens."""
    import tempfile

    try:
        kept = os.dup(2)
    except OSError:
        return ""
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            work()
        except (RuntimeError, MemoryError):
            return _wait_for_log(file)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return ""


def _wait_for_log(file: IO[bytes]) -> str:
    """The log of a load that failed. It is written by a thread of its own: what comes after descriptor 2
    was put back would be seen, so wait for its last line.
    """
    give_up = time.monotonic() + LOG_LIMIT
    while True:
        file.seek(0)
        log = file.read().decode("utf-8", "replace")
        if _LAST_OF_LOG in log or time.monotonic() > give_up:
            return log
        time.sleep(0.01)
