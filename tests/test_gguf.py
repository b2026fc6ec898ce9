"""The head of a GGUF file: what is read of it, and that damage is named and never costly."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_prompt.gguf import NotGguf, read_head

if TYPE_CHECKING:
    from pathlib import Path

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def words(*texts: str) -> bytes:
    return struct.pack("<IQ", STRING, len(texts)) + b"".join(map(string, texts))


def head(*entries: bytes, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, 0, len(entries)) + b"".join(entries)


WHOLE = head(
    entry("general.architecture", STRING, string("llama")),
    entry("llama.rope.freq_base", F32, struct.pack("<f", 10000.0)),
    entry("llama.context_length", U32, struct.pack("<I", 8192)),
    entry("tokenizer.ggml.tokens", ARRAY, words("a", "", "ŝ")),
    entry("tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ3i", 5, 3, 1, 1, 1)),
    entry("tokenizer.chat_template", STRING, string("{{ messages }} <think>")),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_reads_what_lies_before_and_behind_lists(file: Path) -> None:
    file.write_bytes(WHOLE + b"data")
    found = read_head(str(file))
    assert found.context_length == 8192
    assert found.chat_template == "{{ messages }} <think>"


def test_what_the_file_does_not_say_is_unknown(file: Path) -> None:
    file.write_bytes(head(entry("general.architecture", STRING, string("llama"))))
    found = read_head(str(file))
    assert found.context_length is None
    assert found.chat_template == ""


@pytest.mark.parametrize("value", [entry("llama.context_length", STRING, string("8192")), b""])
def test_a_limit_of_another_type_is_unknown(file: Path, value: bytes) -> None:
    entries = [entry("general.architecture", STRING, string("llama")), value]
    file.write_bytes(head(*filter(None, entries)))
    assert read_head(str(file)).context_length is None


def test_a_head_cut_off_anywhere_is_no_gguf(file: Path) -> None:
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(NotGguf, match=r"cut off|empty"):
            read_head(str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 and so on, long enough", "no GGUF"),
        (head(version=1), "no GGUF"),
        (head(version=0x03000000), "no GGUF"),  # big-endian
        (head(entry("a", 99, b"")), "damaged"),
        (head(entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))), "damaged"),
        (head(entry("a", ARRAY, struct.pack("<IQ", STRING, 2**63))) + bytes(4096), "damaged"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**64 - 1) + bytes(4096), "damaged"),
        (head(entry("a", STRING, struct.pack("<Q", 2**64 - 1))), "cut off"),
        (head(entry("a", ARRAY, struct.pack("<IQQ", STRING, 2, 2**64 - 1)), b""), "cut off"),
    ],
)
def test_damage_is_named(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(NotGguf, match=said):
        read_head(str(file))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    file.write_bytes(content)
    with suppress(NotGguf):
        read_head(str(file))
