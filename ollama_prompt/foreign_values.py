"""Values of other programs → ours: times, text, settings, what an answer tells of itself.

What is of a wrong type, or cannot be stored, is None, "" or left out, never an error.
"""

from __future__ import annotations

from contextlib import suppress

from ollama_prompt import clock, records
from ollama_prompt.text import LARGEST_INTEGER, valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ollama_prompt.records import Record

    Row = dict[str, Any]

_OLDEST = "2000-01-01T00:00:00.000Z"
"""What is older was never a conversation with a model, but a clock that was not set."""

_OPTIONS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "max_tokens": ("num_predict", int),
    **{name: (name, int) for name in ("num_predict", "seed", "top_k", "repeat_last_n", "num_keep")},
    **{name: (name, (int, float)) for name in (
        "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
    )},
    "stop": ("stop", (str, list)),
}  # fmt: skip
"""Options of other programs that mean the same as one of Ollama's, and the types that are taken."""


def time_of(value: object, local: bool = False) -> str | None:
    """A time in our form; None if it is none, or one at which nothing can have been said.

    `local`: without a zone it is this machine's time, else UTC. SQLite's own CURRENT_TIMESTAMP, which has a space
    in the middle, is UTC always.
    """
    if isinstance(value, str) and local and "T" in value:
        value = _with_zone(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _time_of_number(value)
    time = clock.normal_time(value)
    return time if time and _OLDEST <= time <= clock.days_ago(-1) else None


def _with_zone(text: str) -> str:
    from datetime import datetime

    with suppress(ValueError, OverflowError, OSError):
        moment = datetime.fromisoformat(text)
        return moment.astimezone().isoformat() if moment.tzinfo is None else text
    return text


def _time_of_number(seconds: float) -> str | None:
    try:
        return clock.format_time(int(seconds * 1000))
    except (ValueError, OverflowError, OSError):
        return None


def text_of(value: object) -> str:
    """A value of a database, or of JSON, as text that can be stored; "" if it is neither text nor a number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return valid_text(str(value)) if isinstance(value, (str, int, float)) else ""


def json_of(text: object) -> Any:
    """What JSON says; None if it is none."""
    import json

    try:
        return json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):
        return None


def object_of(text: object) -> Row:
    """The object that JSON says; empty if it is none."""
    value = json_of(text)
    return value if isinstance(value, dict) else {}


def settings_of(data: Row) -> Record:
    """The settings that an object names, by our names and by those of ollama-prompt 1.x."""
    system = [data.get(key) for key in ("system_prompt", "system")]
    named = {
        "model": data.get("model_name") or data.get("model"),
        "title": data.get("title"),
        "system": "\n\n".join(valid_text(text) for text in system if isinstance(text, str) and text),
        "max_context_tokens": data.get("max_context_tokens"),
        "options": _options(data),
        "think": data.get("think"),
    }
    texts = {key: valid_text(value).strip() for key, value in named.items() if isinstance(value, str)}
    settings = records.settings_of({**named, **texts, "system": named["system"]})
    return {key: value for key, value in settings.items() if value not in ("", {}) and _is_small(value)}


def _is_small(value: object) -> bool:
    """Whether a setting is no number, or one that can be stored and makes sense."""
    return isinstance(value, bool) or not isinstance(value, int) or 0 < value <= LARGEST_INTEGER


def _options(data: Row) -> Record:
    """What of these options Ollama has too; nested in `options`, or beside the messages as others send them."""
    nested = data.get("options")
    given = {**data, **nested} if isinstance(nested, dict) else data
    options: Record = {}
    for theirs, (ours, kind) in _OPTIONS.items():
        value = given.get(theirs)
        if isinstance(value, kind) and not isinstance(value, bool) and (option := _option(value)) is not None:
            options[ours] = option
    return options


def _option(value: Any) -> Any:
    if isinstance(value, str):
        return [valid_text(value)]
    if isinstance(value, list):
        return [valid_text(stop) for stop in value] if all(isinstance(stop, str) for stop in value) else None
    return value if abs(value) <= 1e9 else None


def facts_of(answer: Row) -> Record:
    """What a model's own answer, kept as JSON, tells for the record.

    Token counts only where it is Ollama's: other servers count with other tokenizers, some without the cached part.
    """
    counts = [answer.get(key) for key in ("prompt_eval_count", "eval_count")]
    facts: Record = dict(zip(("prompt_tokens", "tokens"), counts, strict=True)) if are_counts(counts) else {}
    reason = answer.get("done_reason") or answer.get("finish_reason")
    message = answer.get("message")
    thinking = message.get("thinking") if isinstance(message, dict) else None
    return facts | {"done_reason": reason if reason in ("stop", "length") else None, "thinking": text_of(thinking)}


def are_counts(values: Iterable[object]) -> bool:
    """Whether these are numbers of tokens."""
    return all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 for count in values)
