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

SETTINGS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "title": str,
    "system": str,
    "options": dict,
    "think": (bool, str),
    "num_ctx": int,
    "keep_alive": (str, int, float),
    "max_context_tokens": int,
}
"""What a header sets for the session and a later `meta` changes, with the types that are taken."""


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DamagedLine(ValueError):
    """A line that is no record; the message is the reason."""


def encode(*records: Record) -> bytes:
    """Records → lines, to be written in one piece. Non-ASCII text stays as it is, so that grep finds it."""
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def decode(line: bytes) -> Record:
    """One line → its record. Raises `DamagedLine`."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # A crash can leave a run of NUL bytes where a file system had not yet written the data, and some
        # editors put a byte order mark in front of the header.
        if (cleaned := line.replace(b"\0", b"").lstrip(_BYTE_ORDER_MARK)) != line:
            return decode(cleaned)
        raise DamagedLine(f"not JSON: {error.msg}") from None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise DamagedLine("not a record: no object with a type")
    if record["type"] == "message" and not _is_message(record):
        raise DamagedLine("a message without role or content")
    if not isinstance(record.get("id", ""), str):
        del record["id"]  # written by hand; no record can be named by it
    return record


def _is_message(record: Record) -> bool:
    return isinstance(record.get("role"), str) and isinstance(record.get("content"), str)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing at all: white space left by an editor, or only NUL bytes."""
    return not line.strip(b" \t\r\n\0")


def header(session_id: str, settings: Record, **more: Any) -> Record:
    """Line 1 of a new session; `settings` has the keys of SETTINGS."""
    known = settings_of(settings)
    first: Record = {key: known.pop(key) for key in ("model", "max_context_tokens") if key in known}
    made: Record = {"type": "session", "version": VERSION, "session_id": session_id}
    return {**made, "created_at": clock.time_of_id(session_id) or clock.now(), **first, **known, **more}


def message(role: str, content: str, **more: Any) -> Record:
    """A message said now; keys of `more` whose value is None stay absent."""
    return _stamped("message", {"role": role, "content": content}, more)


def meta(settings: Record) -> Record:
    """A change of settings."""
    return _stamped("meta", {}, settings_of(settings))


def undo(ids: list[str]) -> Record:
    """Messages taken back: still stored, no longer sent."""
    return _stamped("undo", {}, {"ids": ids})


def settings_of(record: Record) -> Record:
    """The settings that a header or meta record carries; values of a wrong type, as by hand, are left out."""
    return {key: record[key] for key, kind in SETTINGS.items() if key in record and _is_a(record[key], kind)}


def _is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """isinstance, but for true and false, which Python takes for numbers; and what is nested too deep is nothing."""
    if isinstance(value, dict) and not _can_be_encoded(value):
        return False
    return isinstance(value, kind) and (not isinstance(value, bool) or kind == SETTINGS["think"])


def _can_be_encoded(value: object) -> bool:
    """Whether it can be stored and sent: more can be read than written, and less where it lies deeper."""
    try:
        orjson.dumps([[[[value]]]])
    except TypeError:
        return False
    return True


def undone_ids(record: Record) -> list[str]:
    """What an undo record takes back."""
    ids = record.get("ids")
    return [id_ for id_ in ids if isinstance(id_, str)] if isinstance(ids, list) else []


def _stamped(type_: str, first: Record, more: Record) -> Record:
    made: Record = {"type": type_, "id": clock.new_id(), **first, "created_at": clock.now()}
    return made | {key: value for key, value in more.items() if value is not None}
