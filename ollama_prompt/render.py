"""Data → text. Pure: nothing is read, written or asked.

JSON is indented where a person may look at one thing, and one session a line in the listing, so that it
can be grepped. Text from files and models is shown to people with its control characters made visible:
a title must not move the cursor.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ollama_prompt.errors import OllamaPromptError


# `re` compiles them when they are used: most commands use none or one.
_INVISIBLE = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
_UNESCAPED = "[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
_TURNING_UTF_8 = rb"\xe2(?:\x80[\x8e\x8f\xa8-\xae]|\x81[\xa6-\xa9])"
_UNESCAPED_UTF_8 = rb"\x7f|\xc2[\x80-\x9f]|\xd8\x9c|" + _TURNING_UTF_8
PART = 256
"""Sessions of a listing that are written at once."""


def as_json(data: dict[str, Any]) -> str:
    """One object, indented."""
    import json

    return escaped(json.dumps(data, ensure_ascii=False, indent=2)) + "\n"


def as_line(data: dict[str, Any]) -> str:
    """One object on one line."""
    import json

    return escaped(json.dumps(data, ensure_ascii=False)) + "\n"


def escaped(json_: str) -> str:
    """JSON without the control characters that may stand in it as they are.

    U+009B begins an escape sequence in some terminals, marks of writing from right to left turn the rest of a line
    around, and at U+0085, U+2028 and U+2029 many readers of lines end one, in JavaScript and Python for example.
    """
    return re.sub(_UNESCAPED, lambda found: f"\\u{ord(found[0]):04x}", json_)


def listing_as_json(lines: list[bytes], total: int) -> Iterator[bytes]:
    """The listing, one session a line; in UTF-8, as the index has it. In parts, so that memory is used again."""
    yield b'{"sessions": ['
    before = b"\n"
    for start in range(0, len(lines), PART):
        part = before + b",\n".join(lines[start : start + PART])
        before = b",\n"
        # The search for all of it takes as long as all else.
        if any(byte in part for byte in (b"\x7f", b"\xc2", b"\xd8")) or re.search(_TURNING_UTF_8, part):
            part = re.sub(_UNESCAPED_UTF_8, lambda found: b"\\u%04x" % ord(found[0].decode()), part)
        yield part
    yield b'%s],\n"total": %d}\n' % (b"\n" if lines else b"", total)


def listing_as_line(lines: list[bytes], total: int) -> str:
    """The listing as one object on one line."""
    return escaped(f'{{"sessions": [{b", ".join(lines).decode()}], "total": {total}}}') + "\n"


def error_as_json(error: OllamaPromptError) -> str:
    """An error as one object on one line."""
    return as_line(_error(error))


def error_as_event(error: OllamaPromptError) -> str:
    """An error as the last event of --output ndjson."""
    return as_line({"event": "error", **_error(error)})


def _error(error: OllamaPromptError) -> dict[str, Any]:
    data = {"error": error.message, "code": error.code, "hint": error.hint, "session_id": error.session_id}
    return {key: value for key, value in data.items() if value is not None}


def error_as_text(error: OllamaPromptError) -> str:
    """An error for a person."""
    hint = f"hint: {visible(error.hint)}\n" if error.hint else ""
    return f"error: {visible(error.message)}\n{hint}"


def visible(text: str) -> str:
    """Text with its control characters escaped, but for newlines and tabs; and with those that turn the line around."""
    return re.sub(_INVISIBLE, lambda found: repr(found[0])[1:-1], text)


def plain(text: str) -> str:
    """The same of text of several lines, which end as everywhere else, whatever they were written with."""
    return visible(text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str) -> str:
    """The same of text on one line."""
    return visible(" ".join(text.split()))


def listing_as_text(lines: list[bytes]) -> str:
    """The listing as a table."""
    import json

    rows = [_listed(json.loads(line)) for line in lines]
    return _table(("SESSION", "LAST USED", "MESSAGES", "MODEL", "TITLE"), rows)


def _listed(item: dict[str, Any]) -> tuple[str, ...]:
    title, model = one_line(item["title"] or ""), one_line(item["model_name"] or "")
    return item["session_id"], item["last_used"] or "", str(item["message_count"]), model, title


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    return "".join(line.rstrip() + "\n" for line in lines)


def matches_as_text(data: dict[str, Any]) -> str:
    """What was found, each with where that is."""
    blocks = [
        f"{match['session_id']}  {match['created_at'] or ''}  {one_line(match['role'] or 'title')}"
        f"  {one_line(match['title'] or '')}\n  {visible(match['snippet'])}\n"
        for match in data["matches"]
    ]
    more = data["total"] - len(blocks)
    return "\n".join([*blocks, f"{more} more; --limit shows them\n"] if more else blocks)


def info_as_text(data: dict[str, Any]) -> str:
    """One session as a person reads it: what it is, then the conversation."""
    head = [
        ("session", data["session_id"]), ("title", data["title"]), ("model", data["model_name"]),
        ("created", data["created_at"]), ("last used", data["last_used"]), ("messages", data["message_count"]),
        ("context", f"{data['context_tokens']} of {data['max_context_tokens']} tokens"),
        ("system", data["system_prompt"]), ("file", data["path"]),
    ]  # fmt: skip
    lines = [f"{name + ':':<11}{visible(str(value))}\n" for name, value in head if value is not None]
    lines += [f"damaged:   line {item['line']}: {visible(item['reason'])}\n" for item in data["damage"]]
    return "".join(lines) + "".join(map(_message_as_text, data["messages"]))


def _message_as_text(message: dict[str, Any]) -> str:
    marks = "".join(f" ({mark})" for mark in marks_of(message))
    text = plain(message["content"])
    named = "".join(f", {visible(message[key])}" for key in ("created_at", "id") if message.get(key))
    thinking = thinking_of(message)
    thought = f"[thinking]\n{thinking}\n[answer]\n" if thinking else ""
    pictures = "".join(f"{picture}\n" for picture in pictures_of(message))
    return f"\n--- {visible(message['role'])}{marks}{named}\n{thought}{text}\n{pictures}"


def marks_of(message: dict[str, Any]) -> list[str]:
    """What there is to say of a message that was taken back, or did not end by itself."""
    reason = message.get("done_reason")
    ended = [one_line(reason)] if isinstance(reason, str) and reason not in {"", "stop"} else []
    return (["taken back"] if message.get("undone") else []) + ended


def thinking_of(message: dict[str, Any]) -> str:
    """What the model thought before an answer."""
    thinking = message.get("thinking")
    return plain(thinking).strip() if isinstance(thinking, str) else ""


def pictures_of(message: dict[str, Any]) -> list[str]:
    """A line for each picture that a message came with; a record written by hand may have anything."""
    images = message.get("images")
    named = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    return [f"[picture: {one_line(str(image.get('path') or image.get('sha256')))}]" for image in named]


def purge_as_text(data: dict[str, Any]) -> str:
    """What a purge did."""
    lines = [*data["sessions"], *(f"in use: {id_}" for id_ in data["skipped"]), data["message"]]
    return "".join(f"{line}\n" for line in lines)


def git_setup_as_text(data: dict[str, Any]) -> str:
    """Where the store is kept now."""
    remote = f", remote: {visible(data['remote'])}" if data["remote"] else ""
    return f"{'made' if data['created'] else 'uses'} the repository {visible(data['repository'])}{remote}\n"


def sync_as_text(data: dict[str, Any]) -> str:
    """What a sync did."""
    lines = [f"in use, left for the next sync: {id_}\n" for id_ in data["skipped"]]
    numbers = ", ".join(f"{name}: {data[name]}" for name in ("committed", "received", "sent"))
    return "".join(lines) + f"sessions {numbers}\n"


def _repaired_as_text(item: dict[str, Any]) -> str:
    kept = f"; the old file is kept as {visible(item['kept'])}" if item["kept"] else ""
    return f"{visible(item['path'])}: {visible(item['reason'])}{kept}\n"


def check_as_text(data: dict[str, Any]) -> str:
    """What a check found, and mended; a line for each place."""
    damage = [f"{visible(item['path'])}:{item['line'] or 0}: {visible(item['reason'])}\n" for item in data["damage"]]
    repaired = map(_repaired_as_text, data.get("repaired", ()))
    secrets = [
        f"{visible(item['path'])}:{item['line']}: {item['kind']}: {visible(item['shown'])}\n"
        for item in data.get("secrets", ())
    ]
    last = f"sessions: {data['sessions']}, damaged places: {len(damage)}, index: {data['index']}"
    last += f", secrets: {len(secrets)}\n" if "secrets" in data else "\n"
    return "".join((*repaired, *damage, *secrets, last))
