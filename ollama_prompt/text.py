"""Bytes, arguments and values of JSON → what can be stored and sent, at the border where it comes in.

No JSON writer takes the lone surrogates that an operating system uses for bytes it cannot decode.
"""

from __future__ import annotations

from ollama_prompt.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

LONGEST = 100_000_000
"""Bytes of the longest text that is taken from a pipe or a file; no model reads as much, and a device has no end."""
LARGEST_INTEGER = 2**63 - 1
"""SQLite and Ollama take no larger one."""
DEEPEST = 100


def read_text(file: IO[bytes], name: str) -> str:
    """The text in a pipe or a file, which errors call `name`. Raises `UsageError` if it is too long, OSError."""
    data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        hint = "no model reads as much; head -c 1000000 takes the beginning"
        raise UsageError(f"{name} has more than {LONGEST // 1_000_000} MB", hint=hint)
    return decode(data)


def decode(data: bytes) -> str:
    """Text from a pipe or a file: UTF-8, or UTF-16 with a mark, which PowerShell's > writes."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    return data.decode("utf-8", "replace")


def valid_text(text: str) -> str:
    """An argument as valid Unicode: undecodable bytes and lone surrogates become U+FFFD.

    The operating system hands undecodable bytes over as lone surrogates, which no JSON writer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        escapes_only = "".join("\ufffd" if _is_lone(char) else char for char in text)
        return escapes_only.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def _is_lone(char: str) -> bool:
    """Whether this is half of a surrogate pair that does not stand for an undecodable byte."""
    return "\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff"


def is_nested_too_deep(value: Any, depth: int = 0) -> bool:
    """Whether JSON writers may not come to its end: readers go deeper."""
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth >= DEEPEST or any(is_nested_too_deep(item, depth + 1) for item in inner)


def sendable(value: Any, depth: int = 0) -> Any:
    """A value of JSON as it can be stored and sent: valid text, numbers of 64 bits, not nested too deep."""
    if depth > DEEPEST:
        raise ValueError("is nested too deep")
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST_INTEGER:
        raise ValueError("has a number that is too large")
    if isinstance(value, list):
        return [sendable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {valid_text(key): sendable(item, depth + 1) for key, item in value.items()}
    return value
