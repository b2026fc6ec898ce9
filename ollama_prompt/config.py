"""Flags and environment → settings, checked. Pure but for reading stdin and the files that flags name.

Whatever is wrong with them is a `UsageError`, found before anything heavy is imported, stored or sent.
A flag beats the environment; an environment variable that is empty counts as not set.
"""

from __future__ import annotations

import os
import re
import sys

from ollama_prompt.errors import UsageError
from ollama_prompt.text import LARGEST_INTEGER, read_text, sendable, valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from typing import Any

    from ollama_prompt.images import Image
    from ollama_prompt.layout import Layout

DEFAULT_MODEL = "deepseek-v3.1:671b-cloud"
DEFAULT_MAX_CONTEXT_TOKENS = 64000
DEFAULT_LOCK_TIMEOUT = 600.0
DEFAULT_MAX_FILE_BYTES = 200_000
THINK_LEVELS = ("true", "low", "medium", "high", "max")

_INTEGER_OPTIONS = {
    "draft_num_predict", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_predict", "num_thread",
    "repeat_last_n", "seed", "top_k",
}  # fmt: skip
_NUMBER_OPTIONS = {
    "frequency_penalty", "min_p", "presence_penalty", "repeat_penalty", "temperature", "top_p", "typical_p",
}  # fmt: skip
_DURATION = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|ms|s|m|h))+"


class Request:
    """A prompt and how it is to be asked.

    `prompt` is None for --retry, whose prompt the session has. `continues` asks for the session used last. `given`
    has the settings that were given explicitly, `defaults` those of a new session where nothing was; `format` is
    for this answer only: "json", a JSON Schema, or None. Times are in seconds, `timeout` None for no limit.
    """

    __slots__ = (
        "continues", "defaults", "format", "given", "images", "keep", "lock_timeout", "prompt", "serve", "session_id",
        "timeout",
    )  # fmt: skip

    def __init__(self, flags: Namespace, environ: Mapping[str, str], prompt: Prompt | None) -> None:
        self.prompt = prompt
        self.images: list[Image] = _images(flags.image)
        self.session_id: str | None = flags.session_id or flags.retry
        self.continues: bool = getattr(flags, "continue")
        self.keep = not flags.no_session
        self.format: str | dict[str, Any] | None = flags.format
        self.timeout: float | None = flags.timeout
        self.lock_timeout: float = flags.lock_timeout
        self.serve = environ.get("OLLAMA_PROMPT_NO_SERVE", "") in {"", "0"}
        self.given = _given(flags)
        self.defaults = _defaults(self.given, environ)


class Prompt:
    """A prompt as it is sent: `typed` is what it was before its @references were replaced, None if it has none."""

    __slots__ = ("references", "text", "typed")

    def __init__(self, text: str, typed: str | None = None, references: list[str] | None = None) -> None:
        self.text = text
        self.typed = typed
        self.references = references


def _given(flags: Namespace) -> dict[str, Any]:
    given = {
        "model": flags.model,
        "title": flags.title,
        "system": _system(flags),
        "options": _options(flags),
        "think": False if flags.no_think else flags.think,
        "num_ctx": flags.num_ctx,
        "keep_alive": flags.keep_alive,
        "max_context_tokens": flags.max_context_tokens,
    }
    given["num_ctx"] = _one_num_ctx(given["options"].pop("num_ctx", None), flags.num_ctx)
    return {key: value for key, value in given.items() if value is not None and value != {}}


def _defaults(given: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    limit = DEFAULT_MAX_CONTEXT_TOKENS
    named = environ.get("OLLAMA_PROMPT_MAX_CONTEXT_TOKENS")
    if named and "max_context_tokens" not in given:
        limit = _from_environment("OLLAMA_PROMPT_MAX_CONTEXT_TOKENS", named, positive_integer)
    model = environ.get("OLLAMA_PROMPT_MODEL") or DEFAULT_MODEL
    if "model" not in given:
        model = _from_environment("OLLAMA_PROMPT_MODEL", model, model_name)
    return {"model": model, "max_context_tokens": limit}


def _from_environment(name: str, value: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise UsageError(f"the environment variable {name} has the value {value!r}: {error}") from None


def _system(flags: Namespace) -> str | None:
    if flags.system_file is not None:
        return _read_text_file(flags.system_file, "--system-file")
    return valid_text(flags.system) if flags.system is not None else None


def _options(flags: Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in flags.option or ():
        if name == "stop":
            options["stop"] = [*options.get("stop", ()), *value]
        else:
            options[name] = value
    for flag, name in (("temperature", "temperature"), ("max_tokens", "num_predict")):
        given = getattr(flags, flag)
        if given is not None and options.setdefault(name, given) != given:
            raise UsageError(f"--{flag.replace('_', '-')} and --option {name} contradict each other")
    return options


def _one_num_ctx(option: int | None, flag: int | None) -> int | None:
    """--option num_ctx=N means --num-ctx N: only one place decides on the window."""
    if option is not None and flag is not None and option != flag:
        raise UsageError("--num-ctx and --option num_ctx contradict each other")
    if option is not None and option < 1:
        raise UsageError("--option num_ctx: must be 1 or more")
    return option if flag is None else flag


def store_layout(environ: Mapping[str, str]) -> Layout:
    """Where the store is: OLLAMA_PROMPT_HOME, else the folder of OLLAMA_PROMPT_DB_PATH, else ~/.ollama-prompt."""
    from ollama_prompt.layout import Layout

    home, index = (
        _from_environment(name, environ[name], _absolute) if environ.get(name) else None
        for name in ("OLLAMA_PROMPT_HOME", "OLLAMA_PROMPT_DB_PATH")
    )
    return Layout(home or (os.path.dirname(index) if index else _home()), index)


def _home() -> str:
    try:
        return _absolute("~/.ollama-prompt")
    except ValueError:
        hint = "let OLLAMA_PROMPT_HOME name a folder for the conversations"
        raise UsageError("there is no home directory to keep conversations in", hint=hint) from None


def _absolute(path: str) -> str:
    if "\0" in path:
        raise ValueError("is no path")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):  # it would be a folder of that name, one for every current directory
        raise ValueError("begins with a home directory that is not known")
    try:
        return os.path.abspath(expanded)
    except OSError:
        raise ValueError("is a relative path, and the current directory does not exist any more") from None


# --- The prompt ------------------------------------------------------------------------------------


def read_prompt(flags: Namespace) -> Prompt:
    """The prompt from where the flags say, else from stdin.

    @references in what is given by flags are replaced; never in what is piped in. Raises `UsageError` when the
    prompt is empty, `ReferenceFailed`.
    """
    named = _named_prompt(flags)
    if named is None:
        prompt = Prompt(_piped_prompt())
    else:
        prompt = expanded(named, flags) if "@" in named else Prompt(named)
        if flags.stdin and (piped := _piped_prompt()):
            prompt.text = f"{_without_last_newline(prompt.text)}\n\n{piped}"
    if not prompt.text.strip():
        raise UsageError("the prompt is empty", hint='say what to ask: ollama-prompt --prompt "…"')
    return prompt


def expanded(text: str, flags: Namespace) -> Prompt:
    """The prompt with its @references replaced. Raises `ReferenceFailed`."""
    from ollama_prompt.references import expand

    expanded, references = expand(text, flags.repo_root or os.curdir, flags.max_file_bytes)
    return Prompt(expanded, text, references) if references else Prompt(expanded)


def _named_prompt(flags: Namespace) -> str | None:
    """The prompt that flags give; None if it is to be read from stdin."""
    if flags.prompt_file is not None and flags.prompt_file != "-":
        return _read_text_file(flags.prompt_file, "--prompt-file")
    if flags.prompt is not None and flags.prompt != "-":
        if not flags.prompt.strip():
            raise UsageError("the prompt is empty", hint='say what to ask: ollama-prompt --prompt "…"')
        return valid_text(flags.prompt)
    return None


def _piped_prompt() -> str:
    return _without_last_newline(_stdin())


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("there is no prompt, and stdin is closed", hint='ollama-prompt --prompt "…"')
    try:
        if os.name == "posix":  # else one that a parent reads without waiting gives half a prompt, or none
            os.set_blocking(sys.stdin.fileno(), True)
        return read_text(sys.stdin.buffer, "stdin")
    except OSError as error:
        raise UsageError(f"cannot read the prompt from stdin: {error.strerror or error}") from None


def _images(paths: list[str] | None) -> list[Image]:
    """The pictures that flags name. Raises `UsageError`."""
    if not paths:
        return []
    from ollama_prompt.images import read_image

    try:
        return [read_image(path) for path in paths]
    except ValueError as error:
        raise UsageError(f"--image: {error}") from None


def _without_last_newline(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _read_text_file(path: str, flag: str) -> str:
    """The text of a file that a flag names. Raises `UsageError`."""
    try:
        with open(path, "rb") as file:
            return read_text(file, f"{flag}: {path!r}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{flag}: cannot read {path!r}: {reason}") from None


# --- Values of flags: text → value, or ValueError with what it must be -------------------------------


def positive_integer(text: str) -> int:
    """A whole number from 1."""
    number = _integer(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def natural_number(text: str) -> int:
    """A whole number from 0."""
    number = _integer(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def token_count(text: str) -> int:
    """A number of tokens: from 1, or -1 (no limit) or -2 (until the window is full), as in Ollama."""
    number = _integer(text)
    if number < 1 and number not in {-1, -2}:
        raise ValueError("must be 1 or more, or -1 (no limit) or -2 (until the window is full)")
    return number


def positive_number(text: str) -> float:
    """A number above 0."""
    number = _number(text)
    if number <= 0:
        raise ValueError("must be above 0")
    return number


def number_from_0(text: str) -> float:
    """A number from 0."""
    number = _number(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text) or abs(int(text)) > LARGEST_INTEGER:
        raise ValueError("must be a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        if "_" in text or not text.isascii():  # Python reads 1_000 and digits of other scripts
            raise ValueError
        number = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not abs(number) <= 1e9:
        raise ValueError("must be a number, and not too large")
    return number


def model_name(text: str) -> str:
    """Any name that Ollama takes, or a path that ends in .gguf: made absolute, the session is used elsewhere too."""
    text = valid_text(text).strip()
    if not text:
        raise ValueError("must not be empty")
    return _absolute(text) if is_gguf(text) else text


def is_gguf(model: str) -> bool:
    """Whether a model is a file that runs in this process, without Ollama."""
    return model.lower().endswith(".gguf")


def think(text: str) -> bool | str:
    """How much the model is to think."""
    if text not in THINK_LEVELS:
        raise ValueError(f"must be one of {', '.join(THINK_LEVELS)}; --no-think turns it off")
    return True if text == "true" else text


def answer_format(text: str) -> str | dict[str, Any]:
    """Structured output: "json", or a JSON Schema."""
    from ollama_prompt.structured import read_format

    return read_format(text)


def folder(text: str) -> str:
    """A folder that exists."""
    if not os.path.isdir(text):
        raise ValueError(f"{text!r} is no folder")
    return text


def some_text(text: str) -> str:
    """Any text but none: an empty variable is no answer."""
    text = text.strip()
    if not text:
        raise ValueError("must not be empty")
    return text


def path(text: str) -> str:
    """A path as it is given, or - for a stream; a relative one leads nowhere without a current directory."""
    text = some_text(text)
    if text != "-" and not os.path.isabs(text):
        _absolute(os.path.join(os.curdir, text))
    return text


def remote(text: str) -> str:
    """A path of a repository, or any URL that git takes."""
    return some_text(text) if ":" in text else path(text)


def search_text(text: str) -> str:
    """Any text but none, as it may stand in a conversation."""
    return some_text(valid_text(text))


def since(text: str) -> str:
    """A time (a day begins at 00:00 UTC), or a number of days before now."""
    from ollama_prompt import clock

    text = text.strip()
    time = clock.days_ago(int(text)) if text.isascii() and text.isdigit() else clock.normal_time(text)
    if time is None:
        raise ValueError("must be a number of days, or a time such as 2026-11-01 or 2026-11-01T10:30:00")
    return time


def title(text: str) -> str:
    """One line for people."""
    return " ".join(valid_text(text).split())


def session_id(text: str) -> str:
    """A UUID in any case."""
    from ollama_prompt.clock import parse_id

    found = parse_id(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no session id, which is a whole UUID")
    return found


def keep_alive(text: str) -> str | int | float:
    """A duration as Ollama takes it: 5m, 1h30m, a number of seconds, -1 for ever, 0 for not at all.

    A bare number must go out as a number: Ollama refuses "-1" for want of a unit.
    """
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,9}\.[0-9]+", text):
        return float(text)
    if not re.fullmatch(_DURATION, text):
        raise ValueError("must be a duration like 5m or 1h30m, or a number of seconds")
    return text


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, with the type that Ollama wants: a number, true or false, text, or a JSON list."""
    name, equals, value = text.partition("=")
    name = valid_text(name).strip()
    if not equals or not name:
        raise ValueError("must be NAME=VALUE")
    try:
        if name in _INTEGER_OPTIONS:
            return name, _integer(value)
        if name in _NUMBER_OPTIONS:
            return name, _number(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    try:
        typed = sendable(_typed(value))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    if name == "stop":
        return name, [str(stop) for stop in typed] if isinstance(typed, list) else [valid_text(value)]
    return name, typed


def _typed(value: str) -> Any:
    import json

    try:
        return json.loads(value, parse_constant=lambda _: value)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError:
        return value
