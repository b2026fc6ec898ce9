"""Lines of a session file ⇄ records. Pure: bytes in, values out, no files.

A record is a JSON object on one line. Its `type` is "session" (the header), "message", "meta" or
"undo"; other types and unknown fields are kept in the file and ignored, so that an older and a newer
release can share a folder. `id` is unique; when git's union merge repeats a record, the first counts.

Damage is never fatal: `decode` raises `DamagedLine` with a reason for one line, and readers go on
with the next.
"""

from __future__ import annotations

import re

import orjson

from ollama_prompt import clock
from ollama_prompt.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

VERSION = 1
"""The version of the format, promised in docs/format.md."""

TYPES = frozenset({"session", "message", "meta", "undo"})
"""The types that this release knows."""

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
_NUL_RUN = re.compile(rb"\0{2,}")
_CONFLICT_MARKER = re.compile(rb"(?:(?:<{7}|\|{7}|>{7})(?: .*)?|={7})\r*\n?", re.DOTALL)


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
        if (without := cleaned(line)) != line:
            return decode(without)
        if is_conflict_marker(line):
            raise DamagedLine("a conflict marker that a merge left") from None
        raise DamagedLine(f"not JSON: {error.msg}") from None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        raise DamagedLine("not a record: no object with a type")
    if record["type"] == "message" and not _is_message(record):
        raise DamagedLine("a message without role or content")
    if not isinstance(record.get("id", ""), str):
        del record["id"]  # written by hand; no record can be named by it
    return record


def cleaned(line: bytes) -> bytes:
    """A line without what is no text of anybody; no record can have it. Twice is once.

    A crash can leave a run of NUL bytes where a file system had not yet written the data, and some editors put a byte
    order mark in front of the header. At an end of the line the run may be one byte long. One between other bytes is
    half a character in UTF-16: without it others would be read than were written.
    """
    text = line.rstrip(b"\0\r\n")
    return _NUL_RUN.sub(b"", text).lstrip(b"\0" + _BYTE_ORDER_MARK) + line[len(text) :].replace(b"\0", b"")


def is_conflict_marker(line: bytes) -> bool:
    """Whether git put this line between the two sides of a merge."""
    return _CONFLICT_MARKER.fullmatch(line) is not None


def text_of(line: bytes) -> str:
    """All text in a line, one piece below the other, as it was before it was encoded; of a damaged line what is there.

    Names of fields count: what is damaged, or comes from a later release, may have anything anywhere.
    """
    try:
        waiting: list[object] = [decode(line)]
    except DamagedLine:
        text = line.replace(b"\0", b"").decode("utf-8", "replace")  # of UTF-16 what is ASCII, as keys are
        return _ESCAPE.sub(_unescaped, text)
    pieces: list[str] = []
    while waiting:  # as deep as JSON may be nested
        value = waiting.pop()
        if isinstance(value, str):
            pieces.append(value)
        elif isinstance(value, dict):
            waiting += [*value.values(), *value]
        elif isinstance(value, list):
            waiting += value
    return "\n".join(pieces)


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else {"n": "\n", "r": "\r", "t": "\t"}.get(found[2], found[2])


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


def ids_of(found: list[Record]) -> list[str]:
    """The ids of records; one written by hand may have none."""
    return [record["id"] for record in found if "id" in record]


def fork(found: list[Record], source_id: str, session_id: str, last: str | None) -> tuple[Record, list[Record]]:
    """A session's records → header and records of one that starts as its copy, up to the message `last`.

    Everything is taken over as it is, undone messages and unknown types too. At the end stands a `meta` without a
    setting: a session was last used at its newest record, and this one is used now. Raises `UsageError` when there
    is no such message.
    """
    found = [record for record in found if _can_be_encoded(record)]
    first = next((record for record in found if record["type"] == "session"), None) or header(source_id, {})
    rest = [record for record in found if record["type"] != "session"]
    if last is not None:
        rest = rest[: _end_of(last, rest, source_id)]
    own: Record = {"session_id": session_id, "created_at": clock.time_of_id(session_id), "forked_from": source_id}
    return {**first, **own}, [*rest, meta({})]


def _end_of(message_id: str, found: list[Record], session_id: str) -> int:
    """Where what goes with a message ends: behind it, or behind the undo that a retry stored with its prompt."""
    for number, record in enumerate(found):
        if record["type"] == "message" and record.get("id") == message_id:
            behind = found[number + 1] if record["role"] == "user" and number + 1 < len(found) else {}
            is_of_retry = behind.get("type") == "undo" and message_id not in undone_ids(behind)
            return number + 1 + is_of_retry
    raise UsageError(f"session {session_id} has no message {message_id}", hint="--session-info shows their ids")


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


def images_of(record: Record) -> list[str]:
    """The SHA-256 of each picture that a message's record names; what is none, as by hand, is left out."""
    images = record.get("images")
    named = [image.get("sha256") for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    return [name for name in named if isinstance(name, str) and is_sha256(name)]


def is_sha256(name: str) -> bool:
    """Whether this is a SHA-256 as text: what a file that came by git says must not lead elsewhere as a path."""
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _stamped(type_: str, first: Record, more: Record) -> Record:
    made: Record = {"type": type_, "id": clock.new_id(), **first, "created_at": clock.now()}
    return made | {key: value for key, value in more.items() if value is not None}
