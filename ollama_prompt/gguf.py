"""What the head of a GGUF file says of the model in it.

    "GGUF"  version  number of tensors  number of entries  entry…  tensor…  data

An entry is a key, a type and a value; the lists among them (the words of the tokenizer) are stepped
over, not kept. Numbers are little-endian; version 1 and big-endian files are not read, llama.cpp does
not run them either. Nothing in a damaged file may make this loop for long or raise anything but
`OSError` and `NotGguf`.
"""

from __future__ import annotations

import mmap
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_HEAD = struct.Struct("<4sIQQ")
_SCALARS = {number: struct.Struct("<" + code) for number, code in enumerate("BbHhIif?")} | {
    number: struct.Struct("<" + code) for number, code in zip((10, 11, 12), "Qqd", strict=True)
}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 24  # far above any real file: a damaged count must not be counted through


class NotGguf(ValueError):
    """The file is no GGUF, or its head is damaged."""


class GgufHead:
    """The entries of a file's head that are no lists, by their key."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    @property
    def context_length(self) -> int | None:
        """The largest window that the model was made for, in tokens."""
        value = self._entries.get(f"{self._entries.get('general.architecture')}.context_length")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def chat_template(self) -> str:
        """How a conversation is written down for the model; empty if the file does not say."""
        value = self._entries.get("tokenizer.chat_template")
        return value if isinstance(value, str) else ""


def read_head(path: str) -> GgufHead:
    """Read the head of a file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return GgufHead(_Reader(data).entries())
    except (struct.error, OverflowError) as error:
        raise NotGguf("it is cut off") from error
    except ValueError as error:  # nothing to map
        raise error if isinstance(error, NotGguf) else NotGguf("it is empty") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def entries(self) -> dict[str, Any]:
        magic, version, _, count = self._take(_HEAD)
        if magic != b"GGUF" or not 2 <= version < 0x10000:
            raise NotGguf("it is no GGUF file")
        found = ((self._string(), self._value()) for _ in range(_sane(count)))
        return {key: value for key, value in found if value is not None}

    def _take(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self._data, self._at)
        self._at += form.size
        return values

    def _string(self) -> str:
        start = self._at + 8
        self._at = start + self._take(_U64)[0]
        if self._at > len(self._data):
            raise NotGguf("it is cut off")
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self) -> Any:
        kind = self._take(_U32)[0]
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._step_over_list()
        return self._take(_scalar(kind))[0]

    def _step_over_list(self) -> None:
        kind, count = self._take(_U32)[0], _sane(self._take(_U64)[0])
        if kind != _STRING:
            self._at += _scalar(kind).size * count
            return
        data, at, length = self._data, self._at, _U64.unpack_from
        for _ in range(count):
            at += 8 + length(data, at)[0]
        self._at = at


def _sane(count: int) -> int:
    if count > _MOST_ENTRIES:
        raise NotGguf("its head is damaged")
    return count


def _scalar(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        raise NotGguf("its head is damaged")
    return _SCALARS[kind]
