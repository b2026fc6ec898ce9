"""Lines ⇄ records: what is written can be read, by us and by grep, and no line is trouble."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_prompt import clock, records
from ollama_prompt.records import DamagedLine

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

BOM = b"\xef\xbb\xbf"
ID = "019aab12-3456-7000-8000-000000000001"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
AWKWARD = [
    "\u2028",
    "\u2029",
    "\x85",
    "\r\n",
    "\n\n",
    "\ufeff",
    "\0\0\0",
    "\x1b[31m",
    '"',
    "\\",
    "日本語",
    "👩‍👩‍👧",
    "",
]
JSON: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.builds(lambda more, role, content: more | {"type": "message", "role": role, "content": content},
                     st.dictionaries(TEXT.filter(lambda key: key != "id"), JSON, max_size=3), TEXT, TEXT)  # fmt: skip


# --- Round trips -----------------------------------------------------------------------------------


@given(MESSAGES)
def test_a_record_comes_back_as_it_was(record: dict[str, Any]) -> None:
    line = records.encode(record)
    assert records.decode(line) == record
    assert json.loads(line) == record


@given(st.lists(MESSAGES, max_size=5))
def test_each_record_is_one_line(several: list[dict[str, Any]]) -> None:
    data = records.encode(*several)
    assert data == b"".join(map(records.encode, several))
    assert data.count(b"\n") == len(several)
    assert [records.decode(line) for line in data.split(b"\n")[:-1]] == several


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_stays_on_its_line(text: str) -> None:
    line = records.encode(records.message("user", text))
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert records.decode(line)["content"] == text


@given(TEXT.filter(lambda text: not set(text) & {'"', "\\", "\x7f"} and text.isprintable()))
def test_grep_finds_the_text_as_it_was_said(text: str) -> None:
    assert text.encode() in records.encode(records.message("user", text))


def test_the_order_of_keys_is_always_the_same() -> None:
    header = records.header(ID, {"title": "T", "max_context_tokens": 1, "model": "m"}, forked_from="x")
    assert list(header) == [
        *("type", "version", "session_id", "created_at", "model", "max_context_tokens", "title", "forked_from")
    ]
    said = records.message("assistant", "Hi", model="m", prompt_tokens=1, tokens=None, done_reason="stop")
    assert list(said) == ["type", "id", "role", "content", "created_at", "model", "prompt_tokens", "done_reason"]
    assert list(records.meta({"model": "m"})) == ["type", "id", "created_at", "model"]
    assert list(records.undo(["x"])) == ["type", "id", "created_at", "ids"]


def test_a_header_is_as_old_as_its_id() -> None:
    header = records.header(ID, {})
    assert header["created_at"] == clock.time_of_id(ID)
    assert header["version"] == records.VERSION


# --- Lines as crashes, editors and people leave them ------------------------------------------------


@given(MESSAGES, st.data())
def test_nul_runs_are_dropped(record: dict[str, Any], data: st.DataObject) -> None:
    line = records.encode(record)
    at = data.draw(st.integers(0, len(line)))
    assert records.decode(line[:at] + b"\0" * 4096 + line[at:]) == record


@given(st.lists(st.sampled_from([b"\0", b"\0\0", b"\r", b"\n", BOM, b"a", b" "])).map(b"".join))
def test_what_is_cleaned_is_clean(line: bytes) -> None:
    assert records.cleaned(records.cleaned(line)) == records.cleaned(line)


def test_a_line_in_utf_16_is_not_read_as_another() -> None:
    """Without its NUL bytes 䅂䍄 would be BACD, or ABCD."""
    text = records.encode(records.message("user", "price 䅂䍄")).decode().rstrip("\n")
    for codec in ("utf-16-le", "utf-16-be"):
        with pytest.raises(records.DamagedLine, match="not JSON"):
            records.decode(text.encode(codec))


def test_one_nul_byte_at_either_end_of_a_line_is_dropped() -> None:
    """A block of the disk that was not written may begin with the last byte of a line, or end with its first."""
    record = records.message("user", "Hi")
    line = records.encode(record).rstrip(b"\n")
    for whole in (b"\0" + line + b"\n", line + b"\0", line + b"\0\n", line + b"\0\r\n"):
        assert records.decode(whole) == record


@pytest.mark.parametrize("front", [BOM, BOM * 3000, b" \t", b"\0" + BOM + b"\0"])
@pytest.mark.parametrize("end", [b"\r\n", b" \t\r\n", b"\n", b""])
def test_what_editors_put_around_a_line_is_no_damage(front: bytes, end: bytes) -> None:
    record = records.message("user", "Hi")
    assert records.decode(front + records.encode(record).rstrip(b"\n") + end) == record


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b" \t\n", b"", b"\0" * 4096, b"\0\0\n"])
def test_lines_with_nothing_on_them_are_blank(line: bytes) -> None:
    assert records.is_blank(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"<<<<<<< HEAD\n",
        b"not JSON",
        b"null",
        b"3",
        b"[]",
        b'"message"',
        b"{}",
        b'{"type":1}',
        b'{"type":null}',
        b'{"type":"message"}',
        b'{"type":"message","role":"user"}',
        b'{"type":"message","role":"user","content":null}',
        b'{"type":"message","role":1,"content":""}',
        b'{"type":"meta","title":"\xff"}',
        b'{"type":"meta","title":"\\ud800"}',
        b'{"type":"meta"}{"type":"meta"}',
        b'{"type":' + b"[" * 100_000,
        b'{"type":"meta","x":1e999}',
        b'{"type":"meta","x":NaN}',
        BOM,
    ],
)
def test_damage_has_a_reason(line: bytes) -> None:
    with pytest.raises(DamagedLine, match=r"."):
        records.decode(line)


@given(st.binary() | st.builds(lambda a, b: a + b, st.binary(max_size=3), st.just(b'{"type":"x"}')))
def test_no_bytes_are_trouble(line: bytes) -> None:
    try:
        record = records.decode(line)
    except DamagedLine:
        return
    assert isinstance(record["type"], str)


@pytest.mark.parametrize("id_", [None, 3, True, [], {}, ["x"]])
def test_an_id_of_a_wrong_type_is_no_id(id_: object) -> None:
    line = json.dumps({"type": "message", "id": id_, "role": "user", "content": "Hi"}).encode()
    assert records.decode(line) == {"type": "message", "role": "user", "content": "Hi"}


def test_unknown_types_and_fields_are_kept() -> None:
    line = b'{"type":"sticker","id":"x","picture":[1,{"a":null}]}'
    assert records.decode(line) == {"type": "sticker", "id": "x", "picture": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("record", "settings"),
    [
        ({"model": "m", "num_ctx": 3, "think": True, "unknown": 1}, {"model": "m", "num_ctx": 3, "think": True}),
        ({"model": 3, "title": None, "system": [], "options": "hot"}, {}),
        ({"num_ctx": True, "max_context_tokens": False, "keep_alive": True}, {}),
        ({"num_ctx": "8192", "max_context_tokens": 1.5}, {}),
        ({"think": "high", "keep_alive": 1.5}, {"think": "high", "keep_alive": 1.5}),
        ({"keep_alive": "5m", "options": {"seed": 1}}, {"keep_alive": "5m", "options": {"seed": 1}}),
    ],
)
def test_settings_of_a_wrong_type_are_left_out(record: dict[str, Any], settings: dict[str, Any]) -> None:
    assert records.settings_of(record) == settings


@pytest.mark.parametrize(
    ("ids", "undone"), [(None, []), (5, []), ("abc", []), ({"a": 1}, []), (["a", 5, None, ["b"], "c"], ["a", "c"])]
)
def test_an_undo_names_only_text(ids: object, undone: list[str]) -> None:
    assert records.undone_ids({"type": "undo", "ids": ids}) == undone
    assert records.undone_ids({"type": "undo"}) == []


@pytest.mark.parametrize(
    "odd",
    [
        None, 5, "x", [], {}, [None], [5], [[]], [{}], [{"sha256": None}], [{"sha256": 5}], [{"sha256": "../secret"}],
        [{"sha256": "/etc/hostname"}], [{"sha256": "A" * 64}], [{"sha256": "." * 64}], [{"sha256": ["a" * 64]}],
        {"sha256": "a" * 64}, [{"sha256": "\u0000" * 64}],
    ],
)  # fmt: skip
def test_what_names_no_picture(odd: object) -> None:
    assert records.images_of({"images": odd}) == []


def test_what_names_pictures() -> None:
    assert records.images_of({"images": [{"sha256": "a" * 64}, {}, {"sha256": "0" * 64}]}) == ["a" * 64, "0" * 64]
    assert records.images_of({}) == []
