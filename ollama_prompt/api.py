"""The command as Python functions: the same modules, the same store, the same rules.

    answer = ask("Name three rivers.", model="smollm2")
    answer = continue_session(answer.session_id, "Which is the longest?")

Every keyword is the flag of the same name, and is checked as that is. Errors are exceptions of
`OllamaPromptError`'s tree, with `code` and `hint`; remarks are warnings. Ctrl-C raises KeyboardInterrupt when
what had come of the answer is stored. Functions may be called from several threads and processes at once, and
from asyncio with `await asyncio.to_thread(ask, "…")`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ollama_prompt import commands, config, flags, interrupts
from ollama_prompt.errors import Interrupted, UsageError
from ollama_prompt.text import valid_text

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from ollama_prompt.indexer import Indexer

    PathName = str | os.PathLike[str]


@dataclass(frozen=True)
class Answer:
    """An answer, and all that the command prints of it, as `turn`.

    `parsed` is the answer's value where a `format` was given; `session_id` is None where nothing was kept.
    """

    text: str
    turn: dict[str, Any] = field(repr=False)

    @property
    def session_id(self) -> str | None:
        """What `continue_session` takes."""
        return self.turn.get("session_id")

    @property
    def thinking(self) -> str | None:
        """What the model thought before it answered."""
        return self.turn.get("thinking")

    @property
    def parsed(self) -> Any:
        """The value that the answer says in JSON; None without `format`."""
        return self.turn.get("parsed")

    @property
    def window(self) -> dict[str, Any]:
        """What the model really got, in tokens and messages."""
        window: dict[str, Any] = self.turn["window"]
        return window

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        return self.text


@dataclass(frozen=True)
class Message:
    """A message of a session; `undone` if it was taken back. `stored` is all that is printed of it."""

    role: str
    content: str
    created_at: datetime | None
    undone: bool
    stored: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Session:
    """A session as it is listed."""

    session_id: str
    model: str | None
    title: str | None
    created_at: datetime | None
    last_used: datetime | None
    message_count: int
    context_tokens: int
    path: str


@dataclass(frozen=True)
class Conversation(Session):
    """A session with its messages, oldest first, and what --session-info shows of its settings."""

    messages: list[Message] = field(repr=False)
    system: str | None
    options: dict[str, Any]
    max_context_tokens: int


class Settings(TypedDict, total=False):
    """Keywords of `ask` and `continue_session`; what is absent or None is the session's own, or the default."""

    model: str | None
    system: str | None
    title: str | None
    temperature: float | None
    max_tokens: int | None
    options: Mapping[str, Any] | None  # other options of Ollama's
    think: bool | Literal["low", "medium", "high", "max"] | None
    format: Literal["json"] | Mapping[str, Any] | None  # JSON, or what a JSON Schema says
    images: PathName | Sequence[PathName] | None
    max_context_tokens: int | None
    num_ctx: int | None
    keep_alive: str | float | None
    timeout: float | None  # seconds
    lock_timeout: float | None  # seconds
    repo_root: PathName | None
    max_file_bytes: int | None


def ask(
    prompt: str,
    *,
    keep: bool = True,
    on_token: Callable[[str], object] | None = None,
    **settings: Unpack[Settings],
) -> Answer:
    """Ask a prompt in a new session.

    `settings`, all optional: model, system, title, temperature, max_tokens, options (a dict of others of
    Ollama's), think (True, False, "low", "medium", "high", "max"), format ("json", or a JSON Schema as a dict),
    images (one path or several), max_context_tokens, num_ctx, keep_alive, timeout and lock_timeout (seconds),
    repo_root and max_file_bytes. @references in the prompt are replaced only if `repo_root` says where they may
    lead. With `keep` False nothing is stored. `on_token` gets the answer piece by piece while it arrives.

    Raises `OllamaPromptError`s: `UsageError` for a wrong value, and what docs/cli.md lists.
    """
    return _ask(prompt, [] if keep else ["--no-session"], settings, on_token)


def continue_session(
    session_id: str | None,
    prompt: str,
    *,
    on_token: Callable[[str], object] | None = None,
    **settings: Unpack[Settings],
) -> Answer:
    """Ask a prompt in a session, with its context. Else as `ask`.

    Raises `UsageError` for None, which is the `session_id` of an answer of which nothing was kept.
    """
    return _ask(prompt, [f"--session-id={_kept(session_id)}"], settings, on_token)


def list_sessions(limit: int | None = None) -> list[Session]:
    """Every session, newest use first; the first `limit` of them if that is given."""
    given = [] if limit is None else [f"--limit={limit}"]
    lines, _ = _indexer().listing(flags.parse(["--list-sessions", *given]).limit)
    return [Session(**_listed(json.loads(line))) for line in lines]


def load_session(session_id: str | None) -> Conversation:
    """A session with every message ever stored. Raises `SessionNotFound`; for None as `continue_session`."""
    parsed = flags.parse([f"--session-info={_kept(session_id)}"])
    found = commands.session_info(_indexer(), parsed.session_info)
    return Conversation(
        **_listed(found),
        messages=[_message(message) for message in found["messages"]],
        system=found["system_prompt"],
        options=found["options"],
        max_context_tokens=found["max_context_tokens"],
    )


# --- Details ---------------------------------------------------------------------------------------


def _ask(prompt: str, arguments: list[str], settings: Settings, on_token: Callable[[str], object] | None) -> Answer:
    parsed = flags.parse([*arguments, *_arguments(dict(settings))])
    request = config.Request(parsed, os.environ, _prompt(prompt, parsed))
    indexer = _indexer() if request.keep else None
    try:
        with interrupts.within_library():
            turn = commands.ask(request, indexer, os.environ, _Sink(on_token), _warn, lean=False)
    except Interrupted as interruption:
        raise KeyboardInterrupt from interruption
    return Answer(turn["response"], turn)


def _kept(session_id: str | None) -> str:
    if session_id is None:
        raise UsageError("there is no session to go on with: nothing was kept of that answer")
    return session_id


def _prompt(prompt: str, parsed: Namespace) -> config.Prompt:
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt must be a str, not {type(prompt).__name__}")
    text = valid_text(prompt)
    if not text.strip():
        raise UsageError("the prompt is empty")
    return config.Prompt(text) if parsed.repo_root is None else config.expanded(text, parsed)


def _arguments(settings: dict[str, Any]) -> list[str]:
    """Keywords → the flags of the command, which are checked there."""
    unknown = settings.keys() - Settings.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
    found: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is None:
            continue
        if name == "think":
            found.append("--no-think" if value is False else f"--think={'true' if value is True else value}")
        elif name == "format":
            found.append(f"--format={value if isinstance(value, str) else json.dumps(value)}")
        elif name == "images":
            paths = [value] if isinstance(value, (str, os.PathLike)) else value
            found += [f"--image={os.fspath(path)}" for path in paths]
        elif name == "options":
            found += [f"--option={key}={_as_option(key, option)}" for key, option in value.items()]
        else:
            found.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return found


def _as_option(name: str, value: Any) -> str:
    """In JSON, so that "5" stays text. A `stop` that looks like a list is none."""
    return json.dumps([value] if name == "stop" and isinstance(value, str) else value)


def _indexer() -> Indexer:
    return commands.make_indexer(os.environ, _warn)


def _warn(text: str) -> None:
    """A remark, at the line of the program that called us, and not at ours."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"ollama_prompt", "contextlib"}:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


class _Sink:
    """Gives an answer on while it arrives."""

    def __init__(self, on_token: Callable[[str], object] | None) -> None:
        self._on_token = on_token

    def start(self, model: str, session_id: str | None) -> None:
        """Nothing to be said."""

    def thinking(self, text: str) -> None:
        """Is in the answer."""

    def token(self, text: str) -> None:
        """The next piece of the answer."""
        if self._on_token:
            self._on_token(text)


def _listed(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "session_id": found["session_id"],
        "model": found["model_name"],
        "title": found["title"],
        "created_at": _moment(found["created_at"]),
        "last_used": _moment(found["last_used"]),
        "message_count": found["message_count"],
        "context_tokens": found["context_tokens"],
        "path": found["path"],
    }


def _message(shown: dict[str, Any]) -> Message:
    undone = shown.get("undone", False)
    return Message(shown["role"], shown["content"], _moment(shown.get("created_at")), undone, shown)


def _moment(text: str | None) -> datetime | None:
    """A time as it is printed, in UTC. Python 3.10 reads no Z."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
