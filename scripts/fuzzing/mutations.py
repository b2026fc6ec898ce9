"""Bytes → other bytes, as crashes, editors, merges, other programs and attackers leave them.

    mutated(chance, data)     one to a few changes, each drawn from MUTATIONS

All randomness comes from `chance`: the same state gives the same bytes. A change keeps the size of the data within a
few hundred bytes, but for the rare ones in LARGE, which make lines of megabytes and nesting of 100,000 levels.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Mutation = Callable[[Random, bytes], bytes]

VALUES: tuple[bytes, ...] = tuple(
    value.encode("utf-8", "surrogatepass")
    for value in (
        *("null", "true", "false", "0", "-0", "-1", "1", "0.5", "1e308"),
        *("1e400", "-1e-400", "NaN", "Infinity", "-Infinity"),
        *("9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551616", "9" * 400, "01"),
        *('""', '"x"', '" "', '"\\u0000"', '"\\u001b[2J\\u009b1m"', '"\u009b\u202e\u2028\x7f"'),
        *('"\\ud800"', '"\\udc00\\ud83d"'),
        *('"\u00e9\u0301\U0001f642"', '"\ud800"', "[]", "{}", "[[]]", "[null]"),
        *('["x", 1]', '{"a": {"a": []}}', "[" * 60 + "]" * 60),
        *('"2026-13-45T99:99:99Z"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59.999-23:59"'),
        *('"2026-02-29"', '"10:30"'),
        *('"00000000-0000-0000-0000-000000000000"', '"ffffffff-ffff-7fff-bfff-ffffffffffff"'),
        *('"../../etc/passwd"', '"message"'),
        *('"session"', '"undo"', '"user"', '"assistant"', '"system"', '[{"sha256": "' + "0" * 64 + '", "path": null}]'),
    )
)  # fmt: skip
"""What may stand where JSON has a value; some of it is no JSON."""

PIECES: tuple[bytes, ...] = (
    *(b"\0", b"\0\0\0\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3"),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"),
    *(b"\r", b"\r\n", b"\n", b"\n\n", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1b[2J", b"\x9b", b"\x7f", b"\t", b" "),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u", b"\\ud800", b"\\u0000", b",", b":", b'{"type":', b'"}\n', b"}{"),
    *(b"<<<<<<< HEAD\n", b"=======\n", b">>>>>>> theirs\n", b"||||||| base\n", b"//", b"#", b"'"),
)  # fmt: skip
"""What is put between bytes."""

_MEMBER = re.compile(rb'("(?:[^"\\\n]|\\.)*"\s*:\s*)("(?:[^"\\\n]|\\.)*"|\[[^\[\]\n]*\]|[^\s,{}\[\]"]+)')
_KEY = re.compile(rb'"((?:[^"\\\n]|\\.)*)"\s*:')


def mutated(chance: Random, data: bytes) -> bytes:
    """The data after one to four changes, rarely many."""
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4, 20))):
        data = chance.choice(MUTATIONS)(chance, data)
    return chance.choice(LARGE)(chance, data) if chance.random() < 1 / 2000 else data


def _span(chance: Random, data: bytes, most: int = 300) -> tuple[int, int]:
    """Where a part of the data begins and ends, mostly a short one."""
    start = chance.randint(0, len(data))
    return start, min(len(data), start + chance.randint(1, chance.choice((1, 4, 20, most))))


def _member(chance: Random, data: bytes) -> re.Match[bytes] | None:
    """A key with its value, if there is one."""
    found = list(_MEMBER.finditer(data))
    return chance.choice(found) if found else None


def flip_bit(chance: Random, data: bytes) -> bytes:
    """One bit is another one."""
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def set_bytes(chance: Random, data: bytes) -> bytes:
    """A part is random, or all NUL bytes, as a block that was never written."""
    start, end = _span(chance, data)
    size = end - start
    return data[:start] + (bytes(size) if chance.random() < 0.5 else chance.randbytes(size)) + data[end:]


def insert(chance: Random, data: bytes) -> bytes:
    """Something comes between."""
    at = chance.randint(0, len(data))
    piece = chance.choice(PIECES) if chance.random() < 0.8 else chance.randbytes(chance.randint(1, 12))
    return data[:at] + piece + data[at:]


def delete(chance: Random, data: bytes) -> bytes:
    """A part is missing."""
    start, end = _span(chance, data)
    return data[:start] + data[end:]


def duplicate(chance: Random, data: bytes) -> bytes:
    """A part is there twice, somewhere."""
    start, end = _span(chance, data)
    at = chance.randint(0, len(data))
    return data[:at] + data[start:end] + data[at:]


def move(chance: Random, data: bytes) -> bytes:
    """A part is elsewhere."""
    start, end = _span(chance, data)
    rest = data[:start] + data[end:]
    at = chance.randint(0, len(rest))
    return rest[:at] + data[start:end] + rest[at:]


def truncate(chance: Random, data: bytes) -> bytes:
    """The end is missing."""
    return data[: chance.randint(0, len(data))]


def shuffle_lines(chance: Random, data: bytes) -> bytes:
    """Lines are in another order."""
    lines = data.splitlines(keepends=True)
    chance.shuffle(lines)
    return b"".join(lines)


def change_lines(chance: Random, data: bytes) -> bytes:
    """One line is missing, repeated, or in the place of another."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[at : at + 1] = chance.choice(([], [lines[at]] * 2, [lines[other]]))
    return b"".join(lines)


def join_lines(chance: Random, data: bytes) -> bytes:
    """A newline is missing."""
    parts = data.split(b"\n")
    if len(parts) > 1:
        at = chance.randrange(len(parts) - 1)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return b"\n".join(parts)


def end_lines_otherwise(chance: Random, data: bytes) -> bytes:
    """Every line ends as on other systems."""
    return data.replace(b"\n", chance.choice((b"\r\n", b"\r", b"\0\n", b" \n", b"\xe2\x80\xa8\n")))


def encode_otherwise(chance: Random, data: bytes) -> bytes:
    """The file was saved again in another encoding."""
    codec = chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-7"))
    return data.decode("utf-8", "replace").encode(codec, "replace")


def change_value(chance: Random, data: bytes) -> bytes:
    """A key has another value."""
    member = _member(chance, data)
    if member is None:
        return data
    return data[: member.start(2)] + chance.choice(VALUES) + data[member.end(2) :]


def repeat_key(chance: Random, data: bytes) -> bytes:
    """A key is there twice, with two values."""
    member = _member(chance, data)
    if member is None:
        return data
    value = chance.choice(VALUES)
    return data[: member.start()] + member[1] + value + b"," + data[member.start() :]


def change_key(chance: Random, data: bytes) -> bytes:
    """A key has another name, perhaps that of another key."""
    found = list(_KEY.finditer(data))
    if not found:
        return data
    one, other = chance.choice(found), chance.choice(found)
    name = other[1] if chance.random() < 0.7 else chance.choice((b"", b"\\u0000", b"\xff", b"\\ud800", b"x" * 40))
    return data[: one.start(1)] + name + data[one.end(1) :]


def lengthen(chance: Random, data: bytes) -> bytes:
    """A line of one to eight megabytes."""
    at = chance.randint(0, len(data))
    piece = chance.choice((b"x", b"\0", b" ", b"\\u0041", b'"', b"\xff", b"ab ", b'{"type":'))
    return data[:at] + piece * (chance.randint(1, 8) * 1_000_000 // len(piece)) + data[at:]


def nest(chance: Random, data: bytes) -> bytes:
    """A value is nested deeply."""
    member = _member(chance, data)
    if member is None:
        return data
    depth = chance.choice((100, 253, 254, 255, 256, 990, 1023, 1024, 1025, 5000, 100_000))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    value = opened * depth + (b"1" + closed * depth if chance.random() < 0.8 else b"")
    return data[: member.start(2)] + value + data[member.end(2) :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bit, set_bytes, insert, insert, delete, duplicate, move, truncate, shuffle_lines, change_lines, join_lines),
    *(end_lines_otherwise, encode_otherwise, change_value, change_value, change_value, change_value, repeat_key),
    *(repeat_key, change_key, change_key),
)  # fmt: skip
"""What may happen to data; what is there more than once is more likely."""
LARGE: tuple[Mutation, ...] = (lengthen, nest, nest)
