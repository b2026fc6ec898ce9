"""Lines of a session file ⇄ records. Pure: bytes in, values out, no files.

A record is a JSON object on one line. Its `type` is "session" (the header), "message", "meta" or
"undo"; other types and unknown fields are kept in the file and ignored, so that an older and a newer
release can share a folder. `id` is unique; when git's union merge repeats a record, the first counts.

Damage is never fatal: `decode` raises `DamagedLine` with a reason for one line, and readers go on
with the next.
"""

from __future__ import annotations

import orjson

from ollama_prompt import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

VERSION = 1
"""The version of the format, promised in docs/format.md."""

SETTINGS = ("model", "title", "system", "options", "think", "num_ctx", "keep_alive", "max_context_tokens")
"""What a header sets for the session and a later `meta` changes."""


class DamagedLine(ValueError):
    """A line that is no record; the message is the reason."""


def clean(text: str) -> str:
    """Text from outside made valid Unicode: undecodable bytes and lone surrogates become U+FFFD.

    The operating system hands undecodable bytes over as lone surrogates; no JSON writer takes those.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        bytes_only = "".join("\ufffd" if _is_lone(char) else char for char in text)
        return bytes_only.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _is_lone(char: str) -> bool:
    """Whether this is half of a surrogate pair that does not stand for an undecodable byte."""
    return "\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff"


def encode(*records: Record) -> bytes:
    """Records → lines, to be written in one piece. Non-ASCII text stays as it is, so that grep finds it."""
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def decode(line: bytes) -> Record:
    """One line → its record. Raises `DamagedLine`."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # A crash can leave a run of NUL bytes where a file system had not yet written the data.
        if b"\0" in line:
            return decode(line.replace(b"\0", b""))
        raise DamagedLine(f"not JSON: {error.msg}") from None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise DamagedLine("not a record: no object with a type")
    if record["type"] == "message" and not _is_message(record):
        raise DamagedLine("a message without role or content")
    return record


def _is_message(record: Record) -> bool:
    return isinstance(record.get("role"), str) and isinstance(record.get("content"), str)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing at all: white space left by an editor, or only NUL bytes."""
    return not line.strip(b" \t\r\n\0")


def header(session_id: str, settings: Record, **more: Any) -> Record:
    """Line 1 of a new session; `settings` has the keys of SETTINGS."""
    known = {key: settings[key] for key in ("model", "max_context_tokens") if settings.get(key) is not None}
    rest = {key: settings[key] for key in SETTINGS if key not in known and settings.get(key) is not None}
    return {
        "type": "session",
        "version": VERSION,
        "session_id": session_id,
        "created_at": clock.time_of_id(session_id) or clock.now(),
        **known,
        **rest,
        **more,
    }


def message(role: str, content: str, **more: Any) -> Record:
    """A message said now; keys of `more` whose value is None stay absent."""
    return _stamped("message", {"role": role, "content": content}, more)


def meta(settings: Record) -> Record:
    """A change of settings."""
    return _stamped("meta", {}, {key: settings[key] for key in SETTINGS if key in settings})


def undo(ids: list[str]) -> Record:
    """Messages taken back: still stored, no longer sent."""
    return _stamped("undo", {}, {"ids": ids})


def undone_ids(record: Record) -> list[str]:
    """What an undo record takes back."""
    ids = record.get("ids")
    return [id_ for id_ in ids if isinstance(id_, str)] if isinstance(ids, list) else []


def _stamped(type_: str, first: Record, more: Record) -> Record:
    made = {"type": type_, "id": clock.new_id(), **first, "created_at": clock.now()}
    return made | {key: value for key, value in more.items() if value is not None}
