"""Conversations of other programs: what is taken, under which ids, and that their files stay as they are."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import old_stores
import pytest
from conftest import tree
from hypothesis import given
from hypothesis import strategies as st
from old_stores import chain, make, make_1x, response, said, session_1x, turn

from ollama_prompt import clock, foreign, foreign_database, records
from ollama_prompt.drafts import Conversation, derived_id
from ollama_prompt.errors import ImportFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

ID = "0a4df202-9ca1-42a0-ba22-8134812535bf"
OTHER = "1f72147e-8888-44f0-9df5-004cf5dcbd26"
ULID = "01jn9xmz7dbapct2s9w3tjjz1a"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
TALK = [
    said(10, "user", "Hello"),
    said(10, "assistant", "Hi!"),
    said(70, "user", "Ça va ?"),
    said(70, "assistant", "Oui"),
]


def read(path: Path, notes: list[str] | None = None) -> list[Conversation]:
    """Every conversation of a file; each can be stored, by the rules of the format."""
    with foreign.read(str(path), (notes if notes is not None else []).append) as (total, conversations):
        found = list(conversations)
    assert len(found) <= total
    for conversation in found:
        check(conversation)
    return found


def read_one(path: Path, notes: list[str] | None = None) -> Conversation:
    (found,) = read(path, notes)
    return found


def check(conversation: Conversation) -> None:
    header, *rest = map(records.decode, records.encode(conversation.header, *conversation.records).splitlines(True))
    assert header["type"] == "session"
    assert header["imported_from"]["format"] in {"ollama-prompt 1.x", "llm", "json"}
    assert header["session_id"] == clock.parse_id(session_id(conversation)) == conversation.ids[-1]
    assert records.settings_of(header) == {key: header[key] for key in records.SETTINGS if key in header}
    for record in (header, *rest):
        assert clock.normal_time(record["created_at"]) == record["created_at"]
    ids = [record["id"] for record in rest]
    assert ids == [clock.parse_id(id_) for id_ in ids]
    assert len(set(ids)) == len(ids)
    named = {name for record in rest for name in records.images_of(record)}
    assert named == set(conversation.images)


def session_id(conversation: Conversation) -> str:
    found: str = conversation.header["session_id"]
    return found


def ids_of(conversation: Conversation) -> list[str]:
    return [record["id"] for record in conversation.records]


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(record["role"], record["content"]) for record in conversation.records if record["type"] == "message"]


def fails(path: Path) -> ImportFailed:
    with pytest.raises(ImportFailed) as caught:
        read(path)
    assert caught.value.code == "import_failed"
    return caught.value


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the local time zone."""
    if not hasattr(time, "tzset"):
        pytest.skip("no time zones for a single process")

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


# --- Ids --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**48 - 1), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_a_derived_id_is_a_uuid_of_version_8_that_its_seed_decides(start: int, one: list[str], two: list[str]) -> None:
    import uuid

    made = uuid.UUID(derived_id(start, *one))
    assert (made.version, made.variant, made.int >> 80) == (8, uuid.RFC_4122, start)
    assert (derived_id(start, *one) == derived_id(start, *two)) == (one == two)


def test_a_derived_id_never_changes() -> None:
    """What was imported by this release must be found again by every later one."""
    assert derived_id(1_790_000_000_000, "a", "ü") == "01a0c450-6c00-8a2d-a465-3fe017337216"


# --- ollama-prompt 1.x --------------------------------------------------------------------------------


def test_a_session_of_1x(tmp_path: Path, in_zone: Any) -> None:
    in_zone("UTC-2")
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK, system_prompt="Be kind", max_context_tokens=8192))
    found = read_one(path)
    assert found.header == {
        "type": "session", "version": 1, "session_id": ID, "created_at": "2026-02-28T22:00:00.000Z",
        "model": "llama3.2", "max_context_tokens": 8192, "system": "Be kind",
        "imported_from": {"format": "ollama-prompt 1.x", "id": ID},
    }  # fmt: skip
    assert texts(found) == [(message["role"], message["content"]) for message in TALK]
    answer = found.records[1]
    assert {key: answer[key] for key in answer if key != "id"} == {
        "type": "message",
        "role": "assistant",
        "content": "Hi!",
        "created_at": "2026-02-28T22:00:10.123Z",
        "model": "llama3.2",
    }  # fmt: skip  the tokens that 1.x kept are estimates
    assert found.records[-1]["created_at"] == "2026-02-28T22:01:10.123Z"


def test_ids_do_not_depend_on_the_time_zone(tmp_path: Path, in_zone: Any) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x("mine", TALK))
    in_zone("UTC-14")
    east = read_one(path)
    in_zone("UTC+12")
    west = read_one(path)
    assert ids_of(east) == ids_of(west)
    assert session_id(east) == session_id(west)
    assert all(id_ < clock.new_id() for id_ in (session_id(east), *ids_of(east)))


def test_an_id_in_capitals_is_kept_in_lower_case_and_one_that_is_no_uuid_is_replaced(tmp_path: Path) -> None:
    path = make_1x(tmp_path / "sessions.db", *(session_1x(id_, TALK) for id_ in (ID.upper(), "my talk", "")))
    first, *others = map(session_id, read(path))
    assert first == ID
    assert [id_[14] for id_ in others] == ["8", "8"]
    assert [session_id(found) for found in read(path)] == [first, *others]


def test_the_last_use_is_kept_where_a_prompt_failed(tmp_path: Path) -> None:
    used = "2026-03-05T12:00:00.500000"
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK, last_used=used))
    found = read_one(path)
    assert texts(found) == [(message["role"], message["content"]) for message in TALK]
    assert found.records[-1] == {"type": "meta", "id": found.records[-1]["id"], "created_at": local(used)}


def local(text: str) -> str:
    moment = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    return clock.format_time(int(moment) * 1000 + int(text[20:23]))


def test_messages_without_times_get_that_of_the_session(tmp_path: Path) -> None:
    talk = [{"role": message["role"], "content": message["content"]} for message in TALK]
    row = session_1x(ID, talk, created_at="2026-03-01 10:00:00")
    found = read_one(make_1x(tmp_path / "sessions.db", row))
    began = "2026-03-01T10:00:00.000Z"  # SQLite's own time, which is UTC
    assert [record["created_at"] for record in found.records] == [began] * 4


def test_a_session_without_any_answer_is_none(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(make_1x(tmp_path / "sessions.db", session_1x(ID, [])), notes) == []
    assert notes == []


BROKEN_HISTORIES: tuple[object, ...] = (
    None, "", "{", "[" * 100_000, "null", "7", '{"messages": 7}', '{"messages": {}}', b"\xff\xfe", 3.5, "\0",
)  # fmt: skip


@pytest.mark.parametrize("history", BROKEN_HISTORIES, ids=lambda history: repr(history)[:12])
def test_a_broken_history_is_left_out_and_named(tmp_path: Path, history: object) -> None:
    notes: list[str] = []
    path = make_1x(tmp_path / "sessions.db", session_1x(OTHER, [], history_json=history), session_1x(ID, TALK))
    assert session_id(read_one(path, notes)) == ID
    assert len(notes) == 1
    assert OTHER in notes[0]


def test_a_broken_message_is_left_out_and_named(tmp_path: Path) -> None:
    notes: list[str] = []
    broken: list[Any] = [7, None, {}, {"role": "user"}, {"role": 3, "content": "x"}, {"role": "user", "content": {}}]
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, [*TALK[:2]], history_json=json.dumps(broken + TALK)))
    assert len(read_one(path, notes).records) == len(TALK)
    assert [f"message {number}," in note for number, note in enumerate(notes, 1)] == [True] * len(broken)


def test_text_is_made_valid_and_times_that_cannot_be_are_none(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "half \ud83d of \udc00", "timestamp": "9999-12-31T23:59:59"},
        {"role": "assistant", "content": "\0", "timestamp": 1e300},
    ]
    row = session_1x(ID, [], history_json=json.dumps(talk), created_at="0001-01-01T00:00:00", last_used="soon")
    found = read_one(make_1x(tmp_path / "sessions.db", row))
    assert [content for _, content in texts(found)] == ["half \ufffd of \ufffd", "\0"]
    assert found.records[0]["created_at"] == found.records[1]["created_at"] == found.header["created_at"]
    assert found.header["created_at"][:4] == clock.now()[:4]


def test_settings_of_a_wrong_type_are_left_out(tmp_path: Path) -> None:
    row = session_1x(ID, TALK, max_context_tokens="many", model_name=b"\xff", system_prompt="")
    header = read_one(make_1x(tmp_path / "sessions.db", row)).header
    assert not {"max_context_tokens", "system"} & header.keys()
    row = session_1x(ID, TALK, max_context_tokens=-5, model_name=None)
    header = read_one(make_1x(tmp_path / "negative.db", row)).header
    assert not {"max_context_tokens", "model"} & header.keys()


TURNS = st.lists(st.tuples(st.sampled_from(["yes", "no", "", "ü"]), st.integers(0, 3)), max_size=12)


def history(turns: list[tuple[str, int]]) -> list[Json]:
    """Turns with times that never fall and are often equal, as clocks have it."""
    now, messages = 0, []
    for text, later in turns:
        now += later
        messages += [said(now, "user", text), said(now, "assistant", text)]
    return messages


@given(TURNS, TURNS)
def test_a_history_that_grew_keeps_its_ids(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        whole = history(before + after)
        old = read(make_1x(Path(folder, "old.db"), session_1x(ID, whole[: 2 * len(before)])))
        new = read(make_1x(Path(folder, "new.db"), session_1x(ID, whole)))
        again = read(make_1x(Path(folder, "again.db"), session_1x(ID, whole)))
    assert [ids_of(one) for one in new] == [ids_of(one) for one in again]
    if before:
        assert ids_of(new[0])[: 2 * len(before)] == ids_of(old[0])


@given(TURNS.filter(lambda turns: len(turns) > 1), st.data())
def test_a_history_that_lost_its_oldest_keeps_the_ids_of_the_rest(
    turns: list[tuple[str, int]], data: st.DataObject
) -> None:
    cut = 2 * data.draw(st.integers(1, len(turns) - 1))
    whole = history([(text, later + 1) for text, later in turns])
    with TemporaryDirectory() as folder:
        old = read_one(make_1x(Path(folder, "old.db"), session_1x(ID, whole)))
        new = read_one(make_1x(Path(folder, "new.db"), session_1x(ID, whole[cut:])))
    assert ids_of(new) == ids_of(old)[cut:]


VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(
    ("session_id", "created_at", "last_used", "max_context_tokens", "history_json", "model_name", "system_prompt"),
    VALUES | st.just(json.dumps(TALK)),
)), max_size=3))  # fmt: skip
def test_any_row_of_1x_gives_records_or_a_note(rows: list[Json]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "sessions.db")
        make_1x(path)
        for row in rows:
            with suppress(sqlite3.IntegrityError):
                make(path, "", [("sessions", row)])
        first, second = read(path), read(path)
    assert [(session_id(one), ids_of(one)) for one in first] == [(session_id(one), ids_of(one)) for one in second]


# --- llm ------------------------------------------------------------------------------------------------


def test_llm_02_has_one_answer_a_conversation(tmp_path: Path) -> None:
    rows = [
        ("log", {"provider": "chatgpt", "system": "Be brief", "prompt": f"q{number}", "response": f"a{number}",
                 "model": "gpt-3.5-turbo", "timestamp": f"2023-06-0{number} 12:00:00.5"})
        for number in (1, 2)
    ]  # fmt: skip
    one, two = read(make(tmp_path / "log.db", old_stores.TABLES_LLM_02, rows))
    assert one.header["created_at"] == "2023-06-01T12:00:00.500Z"
    assert (one.header["model"], one.header["system"]) == ("gpt-3.5-turbo", "Be brief")
    assert texts(two) == [("user", "q2"), ("assistant", "a2")]
    assert two.records[1]["model"] == "gpt-3.5-turbo"


def chats() -> list[tuple[str, Json]]:
    """Two chats of llm 0.4: answers 1 and 3, answer 2."""
    rows = [(1, None), (2, None), (3, 1)]
    return [
        ("log", {"id": id_, "chat_id": chat, "prompt": f"q{id_}", "response": f"a{id_}", "model": "gpt-4",
                 "timestamp": f"2023-06-0{id_} 12:00:00"})
        for id_, chat in rows
    ]  # fmt: skip


def test_llm_04_names_the_first_answer_of_a_chat(tmp_path: Path) -> None:
    one, two = read(make(tmp_path / "logs.db", old_stores.TABLES_LLM_04, chats()))
    assert texts(one) == [("user", "q1"), ("assistant", "a1"), ("user", "q3"), ("assistant", "a3")]
    assert texts(two) == [("user", "q2"), ("assistant", "a2")]
    assert one.header["imported_from"] == {"format": "llm", "id": "1"}


def test_llm_04_keeps_its_ids_when_a_later_release_renames_the_table(tmp_path: Path) -> None:
    path = make(tmp_path / "logs.db", old_stores.TABLES_LLM_04, chats())
    before = read(path)
    make(path, "ALTER TABLE log RENAME COLUMN timestamp TO datetime_utc; ALTER TABLE log RENAME TO logs;")
    make(path, old_stores.TABLES_LLM_36.partition(";")[2])
    assert [(session_id(one), ids_of(one)) for one in read(path)] == [(session_id(one), ids_of(one)) for one in before]


def test_chats_of_two_databases_have_the_same_numbers_and_other_ids(tmp_path: Path) -> None:
    one = make(tmp_path / "one.db", old_stores.TABLES_LLM_04, chats())
    two = make(tmp_path / "two.db", old_stores.TABLES_LLM_04, chats())
    with closing(sqlite3.connect(two)) as database, database:
        database.execute("UPDATE log SET timestamp = '2023-07-01 09:00:00'")
    assert not {session_id(found) for found in read(one)} & {session_id(found) for found in read(two)}


def test_llm_05(tmp_path: Path) -> None:
    rows = [
        response("r1", ULID, "First", "One", system="Be brief", datetime_utc="2026-03-01T10:00:00.123456"),
        response("r2", ULID, "Second", "Two", options_json='{"temperature": 0.5, "max_tokens": 9, "logit_bias": {}}'),
        response("r3", None, "Alone", "Three"),
        response("r4", ULID, "Third", "Four", model="llama3", system="Be long"),
    ]
    one, two = read(make(tmp_path / "logs.db", old_stores.TABLES_LLM_05, rows))
    assert one.header["created_at"] == "2026-03-01T10:00:00.123Z"
    assert one.header["system"] == "Be brief"
    assert "max_context_tokens" not in one.header
    assert [record.get("role") or set(record) - {"type", "id", "created_at"} for record in one.records] == [
        "user", "assistant", {"options"}, "user", "assistant", {"model", "system", "options"}, "user", "assistant",
    ]  # fmt: skip
    assert one.records[2]["options"] == {"num_predict": 9, "temperature": 0.5}
    assert one.records[5]["options"] == {}
    assert one.records[7]["model"] == "llama3"
    assert texts(two) == [("user", "Alone"), ("assistant", "Three")]


def test_the_id_of_a_conversation_begins_with_the_time_in_its_own(tmp_path: Path) -> None:
    found = read_one(
        make(tmp_path / "logs.db", old_stores.TABLES_LLM_05, [response("r", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "q", "a")])
    )
    assert {id_[:13] for id_ in [session_id(found), *ids_of(found)]} == {
        "01563e3a-b5d3"
    }  # the example of ULID's own page
    found = read_one(make(tmp_path / "uuid.db", old_stores.TABLES_LLM_05, [response("r", ID.upper(), "q", "a")]))
    assert session_id(found) == ID


def test_counts_and_reason_are_taken_from_an_answer_of_ollama_only(tmp_path: Path) -> None:
    ollama = {
        "done_reason": "length",
        "prompt_eval_count": 31,
        "eval_count": 0,
        "message": {"content": {"$": "r:x"}, "thinking": "hm"},
    }
    openai = {"finish_reason": "stop", "usage": {"prompt_tokens": 30, "completion_tokens": 7}}
    odd = {"done_reason": ["stop"], "prompt_eval_count": True, "eval_count": -1, "message": 7}
    answers: list[Any] = [ollama, openai, odd, [], None]
    rows = [
        response(f"r{number}", ULID, "q", "a", response_json=json.dumps(answer), input_tokens=30, output_tokens=7)
        for number, answer in enumerate(answers)
    ]
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_27, rows))
    kept = [
        {key: record[key] for key in record if key in {"prompt_tokens", "tokens", "done_reason", "thinking"}}
        for record in found.records[1::2]
    ]
    assert kept == [
        {"prompt_tokens": 31, "tokens": 0, "done_reason": "length", "thinking": "hm"},
        {"done_reason": "stop"},
        {},
        {},
        {},
    ]


def test_fragments_belong_to_the_prompt_as_it_was_sent(tmp_path: Path) -> None:
    rows = [
        response("r1", ULID, "About it", "One", system="Be brief"),
        response("r2", ULID, None, "Two"),
        ("fragments", {"id": 1, "content": "A novel"}),
        ("fragments", {"id": 2, "content": " A role \n"}),
        ("prompt_fragments", {"response_id": "r1", "fragment_id": 2, "order": 1}),
        ("prompt_fragments", {"response_id": "r1", "fragment_id": 1, "order": 0}),
        ("prompt_fragments", {"response_id": "r2", "fragment_id": 1, "order": 0}),
        ("system_fragments", {"response_id": "r1", "fragment_id": 2, "order": 0}),
    ]
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_27, rows))
    assert found.header["system"] == "A role\n\nBe brief"
    assert [content for role, content in texts(found) if role == "user"] == ["A novel\n A role \n\nAbout it", "A novel"]


def test_pictures_are_kept_by_content_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(JPEG)
    attached: list[Json] = [
        {"content": PNG, "type": "text/plain"}, {"path": str(tmp_path / "photo")}, {"path": str(tmp_path / "gone.png")},
        {"url": "http://localhost/a.png"}, {"content": b"%PDF-1.7"}, {"path": str(tmp_path)}, {"path": "a\0b"}, {},
    ]  # fmt: skip
    rows = [response("r1", ULID, "What is this?", "A cat"), response("r2", ULID, "", "Nothing")]
    for number, row in enumerate(attached):
        rows.append(("attachments", {"id": f"a{number}", **row}))
        rows.append(("prompt_attachments", {"response_id": "r1", "attachment_id": f"a{number}", "order": number}))
    rows.append(("prompt_attachments", {"response_id": "r2", "attachment_id": "a0", "order": 0}))
    notes: list[str] = []
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_27, rows), notes)
    assert list(found.images.values()) == [PNG, JPEG]
    png, jpeg = found.images
    assert found.records[0]["images"] == [
        {"sha256": png, "bytes": len(PNG), "type": "image/png"},
        {"sha256": jpeg, "bytes": len(JPEG), "type": "image/jpeg", "path": str(tmp_path / "photo")},
    ]
    assert texts(found)[2] == ("user", "")
    assert found.records[2]["images"][0]["sha256"] == png
    assert len(notes) == 5
    assert any("gone.png" in note for note in notes)
    assert any("only linked" in note and "2 times" in note for note in notes)


def test_results_of_tools_are_messages_and_calls_are_none(tmp_path: Path) -> None:
    rows = [
        response("r1", ULID, "What time is it?", ""),
        ("tool_calls", {"response_id": "r1", "name": "clock", "arguments": "{}"}),
        response("r2", ULID, "", "It is noon"),
        ("tool_results", {"response_id": "r2", "name": "clock", "output": "12:00"}),
        response("r3", ULID, "Say nothing", ""),
    ]
    notes: list[str] = []
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_27, rows), notes)
    assert texts(found) == [
        ("user", "What time is it?"),
        ("tool", "12:00"),
        ("assistant", "It is noon"),
        ("user", "Say nothing"),
        ("assistant", ""),
    ]
    assert len(notes) == 1
    assert "tool" in notes[0]


FIRST = chain(("s", "system", "Be brief"), ("u1", "user", "First"), ("a1", "assistant", "One"))
SECOND = chain(
    *(("s", "system", ""), ("u1", "user", ""), ("a1", "assistant", "")),
    ("u2", "user", "Second"),
    ("a2", "assistant", "Two"),
)[6:]


def test_llm_36(tmp_path: Path) -> None:
    rows = [*FIRST, *SECOND, turn("t1", ULID, "u1", "a1"), turn("t2", ULID, "u2", "a2", options_json='{"seed": 1}')]
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows))
    assert found.header["system"] == "Be brief"
    assert texts(found) == [("user", "First"), ("assistant", "One"), ("user", "Second"), ("assistant", "Two")]
    assert found.records[2]["options"] == {"seed": 1}
    old = read_one(make(tmp_path / "old.db", old_stores.TABLES_LLM_36, [*FIRST, turn("t1", ULID, "u1", "a1")]))
    assert ids_of(found)[:2] == ids_of(old)


def test_parts_of_a_message(tmp_path: Path) -> None:
    def part(hash_: str, position: int, kind: str, text: str | None, payload: Any = None) -> tuple[str, Json]:
        row = {"message_hash": hash_, "position": position, "type": kind, "text": text}
        return "parts", {**row, "payload": json.dumps(payload) if payload else None}

    pieces = [{"literal": "Read: "}, {"fragment": 1}, {"fragment": "?"}, 7, {"fragment": 99}, {"fragment": 10**30}]
    rows = [
        *chain(("u", "user", "See"), ("a", "assistant", "Yes"), ("t", "tool", ""), ("b", "assistant", "Done")),
        part("u", 1, "attachment", None, {"attachment": {"id": "png"}}),
        part("u", 2, "text", None, {"text_ref": pieces}),
        part("u", 3, "hologram", None),
        part("u", 4, "attachment", None, {"attachment": {"id": "none"}}),
        part("a", 1, "reasoning", "hm"),
        part("a", 2, "tool_call", None, {"name": "clock", "arguments": {}}),
        part("t", 1, "tool_result", None, {"name": "clock", "output": "12:00"}),
        ("fragments", {"id": 1, "content": "A novel"}),
        ("attachments", {"id": "png", "content": PNG}),
        turn("t1", ULID, "u", "a"),
        turn("t2", ULID, "t", "b"),
    ]
    notes: list[str] = []
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows), notes)
    assert texts(found) == [
        ("user", "SeeRead: A novel"),
        ("assistant", "Yes"),
        ("tool", "12:00"),
        ("assistant", "Done"),
    ]
    assert list(found.images.values()) == [PNG]
    assert found.records[1]["thinking"] == "hm"
    assert len(notes) == 2


def test_a_conversation_of_an_older_release_goes_on_in_turns(tmp_path: Path) -> None:
    rows = [response("r1", ULID, "First", "One", system="Be brief"), *FIRST, *SECOND, turn("t2", ULID, "u2", "a2")]
    old = read_one(make(tmp_path / "old.db", old_stores.TABLES_LLM_27, rows[:1]))
    new = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows))
    assert texts(new) == [("user", "First"), ("assistant", "One"), ("user", "Second"), ("assistant", "Two")]
    assert ids_of(new)[:2] == ids_of(old)


def test_an_answer_that_was_written_into_both_tables_is_one_and_keeps_its_ids(tmp_path: Path) -> None:
    old = [response("r1", ULID, "First", "One", system="Be brief")]
    new = [*old, *FIRST, turn("r1", ULID, "u1", "a1")]
    before = read_one(make(tmp_path / "old.db", old_stores.TABLES_LLM_27, old))
    after = read_one(make(tmp_path / "new.db", old_stores.TABLES_LLM_36, new))
    assert texts(after) == texts(before)
    assert ids_of(after) == ids_of(before)


def test_a_first_turn_brings_what_it_was_given(tmp_path: Path) -> None:
    """A fork, or a client that holds the conversation itself."""
    rows = [*FIRST, *SECOND, turn("t2", "fork", "u2", "a2")]
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows))
    assert texts(found) == [("user", "First"), ("assistant", "One"), ("user", "Second"), ("assistant", "Two")]
    assert "model" not in found.records[1]
    assert found.records[3]["model"] == "smollm2"


def test_another_answer_to_the_same_prompt_does_not_repeat_it(tmp_path: Path) -> None:
    other: list[tuple[str, Json]] = [
        ("messages", {"hash": "b1", "parent_hash": "u1", "role": "assistant"}),
        ("parts", {"message_hash": "b1", "position": 0, "type": "text", "text": "Eins"}),
    ]
    rows = [*FIRST, *other, turn("t1", ULID, "u1", "a1"), turn("t2", ULID, "u1", "b1")]
    found = read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows))
    assert texts(found) == [("user", "First"), ("assistant", "One"), ("assistant", "Eins")]


def test_a_tree_with_circles_and_gaps_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    rows: list[tuple[str, Json]] = [
        ("messages", {"hash": "x", "parent_hash": "y", "role": "user"}),
        ("messages", {"hash": "y", "parent_hash": "x", "role": "assistant"}),
        ("parts", {"message_hash": "x", "position": 0, "type": "text", "text": "Ask"}),
        ("parts", {"message_hash": "y", "position": 0, "type": "text", "text": "Say", "payload": "[1]"}),
        ("messages", {"hash": "z", "parent_hash": "gone", "role": "user"}),
        ("parts", {"message_hash": "z", "position": 0, "type": "text", "text": "Alone"}),
        turn("t1", "circle", "x", "y"),
        turn("t2", "circle", None, None),
        turn("t3", "circle", "y", "x"),
        turn("t4", "gap", "z", "z"),
        turn("t5", "gap", "gone", "gone"),
    ]
    circle, gap = read(make(tmp_path / "logs.db", old_stores.TABLES_LLM_36, rows))
    assert texts(circle) == [("user", "Ask"), ("assistant", "Say")]
    assert texts(gap) == [("user", "Alone")]


def test_an_answer_without_any_id_is_left_out_and_named(tmp_path: Path) -> None:
    notes: list[str] = []
    rows = [response(None, None, "q", "a"), response("r", None, "q", "a")]
    read_one(make(tmp_path / "logs.db", old_stores.TABLES_LLM_05, rows), notes)
    assert len(notes) == 1
    assert "responses" in notes[0]


NAMES = st.sampled_from(["a", "b", "c", "", None]) | VALUES
ROWS = {
    "responses": (
        "id",
        "conversation_id",
        "prompt",
        "system",
        "options_json",
        "response",
        "response_json",
        "datetime_utc",
        "model",
    ),
    "turns": ("id", "thread_id", "parent_message_hash", "tip_message_hash", "model", "options_json", "datetime_utc"),
    "messages": ("hash", "parent_hash", "role"),
    "parts": ("message_hash", "position", "type", "text", "payload"),
    "tool_results": ("response_id", "output"),
    "prompt_fragments": ("response_id", "fragment_id", "order"),
    "fragments": ("id", "content"),
    "prompt_attachments": ("response_id", "attachment_id"),
    "attachments": ("id", "path", "content"),
}
ROW = st.sampled_from(sorted(ROWS)).flatmap(
    lambda table: st.tuples(st.just(table), st.fixed_dictionaries(dict.fromkeys(ROWS[table], NAMES)))
)


@given(st.lists(ROW, max_size=12))
def test_any_row_of_llm_gives_records_or_a_note(rows: list[tuple[str, Json]]) -> None:
    with TemporaryDirectory() as folder:
        path = make(Path(folder, "logs.db"), old_stores.TABLES_LLM_36)
        with closing(sqlite3.connect(path)) as database, database:
            for table, row in rows:
                with suppress(sqlite3.IntegrityError):
                    old_stores.insert(database, table, row)
        first, second = read(path), read(path)
    assert [(session_id(one), ids_of(one)) for one in first] == [(session_id(one), ids_of(one)) for one in second]


# --- JSON -------------------------------------------------------------------------------------------------


def write(path: Path, value: Any) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


LIST = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
]


def test_a_list_of_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.json", LIST)
    os.utime(path, (1_770_000_000, 1_770_000_000))
    found = read_one(path)
    assert found.header["system"] == "Be brief"
    assert found.header["imported_from"] == {"format": "json"}
    assert texts(found) == [(message["role"], message["content"]) for message in LIST[1:]]
    assert {record["created_at"] for record in [found.header, *found.records]} == {"2026-02-02T02:40:00.000Z"}
    os.utime(path, (1_780_000_000, 1_780_000_000))
    assert (session_id(read_one(path)), ids_of(read_one(path))) == (session_id(found), ids_of(found))


@pytest.mark.parametrize("mtime", [0, 315_532_800, 40_000_000_000])
def test_a_time_of_a_file_that_cannot_be_is_none(tmp_path: Path, mtime: int) -> None:
    path = write(tmp_path / "talk.json", LIST)
    os.utime(path, (mtime, mtime))
    assert read_one(path).header["created_at"][:4] == clock.now()[:4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = write(
        tmp_path / "talk.json",
        json.dumps([{"role": "user", "content": "Ça va ?"}], ensure_ascii=False).encode(encoding),
    )
    assert texts(read_one(path)) == [("user", "Ça va ?")]


def test_an_object_with_messages_and_settings(tmp_path: Path) -> None:
    body = {
        "model": "smollm2",
        "messages": LIST,
        "options": {"temperature": 0, "num_predict": 5},
        "stop": "END",
        "top_p": "high",
        "seed": True,
        "think": "low",
        "title": "Greetings",
        "max_context_tokens": 8192,
        "stream": False,
    }
    found = read_one(write(tmp_path / "body.json", body))
    assert records.settings_of(found.header) == {
        "model": "smollm2", "title": "Greetings", "system": "Be brief", "max_context_tokens": 8192, "think": "low",
        "options": {"num_predict": 5, "temperature": 0, "stop": ["END"]},
    }  # fmt: skip
    assert found.records[1]["model"] == "smollm2"
    assert session_id(found) == session_id(read_one(write(tmp_path / "list.json", LIST)))


@pytest.mark.parametrize(
    ("given", "kept"), [(["a", "\ud800"], ["a", "\ufffd"]), (["a", 7], None), (7, None), ("", [""])]
)
def test_words_to_stop_at(tmp_path: Path, given: Any, kept: Any) -> None:
    header = read_one(write(tmp_path / "body.json", {"messages": LIST, "options": {"stop": given}})).header
    assert header.get("options", {}).get("stop") == kept


def test_what_session_info_of_1x_printed_has_the_ids_of_its_database(tmp_path: Path) -> None:
    table, row = session_1x(ID, TALK, system_prompt="Be kind")
    database = read_one(make(tmp_path / "sessions.db", old_stores.TABLES_1X, [(table, row)]))
    shown = {**row, "messages": TALK, "message_count": 4, "context_usage_percent": 0.1, "metadata": {}}
    found = read_one(write(tmp_path / "shown.json", shown))
    assert found.records == database.records
    assert {**found.header, "imported_from": {}} == {**database.header, "imported_from": {}}


def test_what_session_info_of_ours_printed_keeps_its_ids(tmp_path: Path) -> None:
    talk: list[Json] = [
        {"id": clock.new_id(), "role": "user", "content": "Hello", "created_at": "2026-03-01T10:00:00Z"},
        {"id": clock.new_id(), "role": "assistant", "content": "Hi!", "created_at": "2026-03-01T10:00:09Z",
         "model": "smollm2", "prompt_tokens": 31, "tokens": 0, "done_reason": "stop", "thinking": "hm"},
        {"id": clock.new_id(), "role": "user", "content": "No", "created_at": "2026-03-01T10:00:10Z", "undone": True},
    ]  # fmt: skip
    notes: list[str] = []
    shown = {
        "session_id": ID,
        "created_at": "2026-03-01T10:00:00Z",
        "last_used": "2026-03-01T10:00:09Z",
        "messages": talk,
    }
    found = read_one(write(tmp_path / "shown.json", shown), notes)
    assert session_id(found) == ID
    assert ids_of(found) == [message["id"] for message in talk[:2]]
    assert found.records[1] == {"type": "message", **talk[1], "created_at": "2026-03-01T10:00:09.000Z"}
    assert len(notes) == 1


def test_the_last_use_is_kept_where_messages_have_no_times(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    times = {"created_at": "2026-03-01T10:00:00Z", "last_used": "2026-03-05T10:00:00Z"}
    found = read_one(write(tmp_path / "shown.json", {"session_id": ID, "messages": talk, **times}))
    assert [record["created_at"][:10] for record in found.records] == ["2026-03-01", "2026-03-01", "2026-03-05"]
    same = {"created_at": "2026-03-01T10:00:00Z", "last_used": "2026-03-01T10:00:00Z"}
    assert len(read_one(write(tmp_path / "same.json", {"session_id": ID, "messages": talk, **same})).records) == 2


def test_content_in_parts(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    jpeg = base64.b64encode(JPEG).decode()
    talk: list[Json] = [
        {
            "role": "user",
            "content": ["One", {"type": "text", "text": "Two"}, {"type": "image_url", "image_url": {"url": url}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": url},
                {"type": "image", "source": {"type": "base64", "data": jpeg}},
            ],
        },
        {"role": "user", "content": "Ollama's", "images": [jpeg, "!", 7, "AAAA"]},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://localhost/a.png"}}, {"type": "audio"}],
        },
        {"role": "assistant", "content": "Yes", "thinking": "hm", "images": 7},
    ]
    notes: list[str] = []
    found = read_one(write(tmp_path / "talk.json", talk), notes)
    assert [content for _, content in texts(found)] == ["One\nTwo", "", "Ollama's", "", "Yes"]
    assert list(found.images.values()) == [PNG, JPEG]
    assert [len(record.get("images", [])) for record in found.records] == [1, 2, 1, 0, 0]
    assert found.records[-1]["thinking"] == "hm"
    assert len(notes) == 3


def test_roles(tmp_path: Path) -> None:
    talk: list[Json] = [
        {"role": "developer", "content": "Be"},
        {"role": "System", "content": "brief"},
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]},
        {"role": "tool", "content": "12:00", "tool_name": "clock"},
        {"role": "system", "content": "Be long"},
        {"role": "assistant", "content": "Noon", "tool_calls": []},
    ]
    notes: list[str] = []
    found = read_one(write(tmp_path / "talk.json", talk), notes)
    assert found.header["system"] == "Be\n\nbrief"
    assert texts(found) == [("user", "Time?"), ("tool", "12:00"), ("system", "Be long"), ("assistant", "Noon")]
    assert len(notes) == 1


WRONG: dict[str, Any] = {
    "empty": b"",
    "blank": b" \n",
    "text": b"hello",
    "cut": b'[{"role": "user"',
    "deep": b"[" * 200_000,
    "binary": bytes(range(256)),
    "number": 7,
    "object": {"role": "user"},
    "no list": {"messages": {}},
    "no messages": [],
    "system only": LIST[:1],
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_is_no_conversation(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "talk.json", content)
    error = fails(path)
    assert str(path) in error.message
    assert error.hint


PLACES: list[tuple[Any, str]] = [
    ([*LIST, 7], "[5] is no object"),
    ([LIST], "[0] is no object"),
    ([*LIST, {"content": "x"}], "[5] has no role"),
    ([{"role": "user"}], "[0] has no content"),
    ([{"role": "user", "content": 7}], "[0] has no content"),
    ([{"role": "user", "content": [7]}], "[0] has a part that is no object"),
    ([{"role": " ", "content": ""}], "[0] has no role"),
    ({"messages": [*LIST, None]}, "messages[5] is no object"),
    ([{"role": "assistant", "content": None}], "[0] has no content"),
]


@pytest.mark.parametrize(("content", "problem"), PLACES, ids=[problem for _, problem in PLACES])
def test_a_wrong_message_is_named_by_its_place(tmp_path: Path, content: Any, problem: str) -> None:
    assert f": {problem}" in fails(write(tmp_path / "talk.json", content)).message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "messages",
                    "id",
                    "images",
                    "text",
                    "type",
                    "timestamp",
                    "model",
                    "options",
                    "stop",
                    "created_at",
                ],
            ),
            inner,
            max_size=5,
        )
    ),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=3) | st.lists(JSON, max_size=2)},
    optional=dict.fromkeys(
        ("id", "images", "timestamp", "model", "thinking", "tool_calls", "tokens", "done_reason"), JSON
    ),
)


@given(
    JSON
    | st.lists(MESSAGE, max_size=3)
    | st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, max_size=3)},
        optional=dict.fromkeys(
            (
                "id",
                "session_id",
                "created_at",
                "last_used",
                "options",
                "model",
                "system",
                "think",
                "title",
                "max_context_tokens",
            ),
            JSON,
        ),
    )
)
def test_any_json_gives_records_or_an_error(value: Any) -> None:
    with TemporaryDirectory() as folder, suppress(ImportFailed):
        path = write(Path(folder, "talk.json"), value)
        assert ids_of(read_one(path)) == ids_of(read_one(path))


# --- A list that has no id of its own ---------------------------------------------------------------------------


class Store:
    """A store as far as an import looks into it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "talk.json"
        self.sessions: dict[str, list[str]] = {}

    def take(self, talk: list[str]) -> str:
        """Import a talk of alternating messages; the session's id."""
        messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(talk)]
        found = read_one(write(self.path, messages))
        ids = sorted(found.ids, key=lambda id_: id_ not in self.sessions)
        chosen = next(id_ for id_ in ids if id_ not in self.sessions or found.is_in(id_, {*self.sessions[id_]}))
        there = self.sessions.setdefault(chosen, [])
        there += [id_ for id_ in ids_of(found) if id_ not in there]
        return chosen


def test_a_list_that_grew_goes_into_the_same_session_and_another_does_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.take(["hi", "hello"])
    store.sessions[first].append(clock.new_id())  # it went on in our store
    assert store.take(["hi", "hello", "one", "two"]) == first
    other = store.take(["hi", "hello", "other", "end"])
    assert other != first
    assert store.take(["hi", "hello"]) == first
    assert store.take(["hi", "hello", "other", "end", "more"]) == other
    assert store.take(["hi", "hello", "one", "two"]) == first
    assert store.take(["hey"]) not in {first, other}
    assert len(store.sessions) == 3
    del store.sessions[first]
    assert store.take(["hi", "hello", "other", "end"]) == other
    assert store.take(["hi", "hello"]) == other, "which begins so"
    assert store.take(["hi", "hello", "one"]) == first


LISTS = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=5), max_size=8)


@given(LISTS, st.data())
def test_deleting_a_list_moves_no_other(talks: list[list[str]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        taken = {tuple(talk): store.take(talk) for talk in [*talks, *talks]}
        if taken:
            del store.sessions[data.draw(st.sampled_from(sorted(store.sessions)))]
        before = {id_: list(ids) for id_, ids in store.sessions.items()}
        for talk in talks:
            if (session_id := taken[tuple(talk)]) in before:
                assert store.take(talk) == session_id
        assert store.sessions == before


@given(LISTS)
def test_importing_lists_again_adds_nothing_and_mixes_nothing(talks: list[list[str]]) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for talk in talks:
            store.take(talk)
        before = {id_: list(ids) for id_, ids in store.sessions.items()}
        for talk in talks:
            store.take(talk)
        assert store.sessions == before
        longest = {tuple(talk) for talk in talks if not any(other[: len(talk)] == talk != other for other in talks)}
        assert sorted(map(len, store.sessions.values())) == sorted(map(len, longest))


# --- Databases, read only -------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in fails(tmp_path / "none.db").message
    assert fails(tmp_path / "none.db").hint
    assert fails(tmp_path).message
    assert fails(tmp_path / "a\0b").message


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "ermission" in fails(path).message


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = make(
        tmp_path / "other.db", "CREATE TABLE sessions (id); CREATE TABLE responses (id, body); CREATE TABLE log (line);"
    )
    assert "another program" in fails(path).message
    index = make(tmp_path / "sessions.db", "CREATE TABLE files (path); CREATE TABLE readings (path);")
    assert "sessions" in (fails(index).hint or "")


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:100], lambda data: data[:16] + b"\xff" * 4000, lambda data: data[:50] + bytes(4050)]
)
def test_a_corrupt_database(tmp_path: Path, spoil: Any) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    path.write_bytes(spoil(path.read_bytes()))
    fails(path)
    assert not foreign.is_1x(str(path))


def test_a_corrupt_database_whose_error_is_no_text(tmp_path: Path) -> None:
    """SQLite names what is wrong in bytes that Python cannot decode."""
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    data = path.read_bytes()
    named = data.index(b"idx_sessions_modelsessions")  # name and table, as the schema has them
    path.write_bytes(
        data[:named]
        + b"\x85"
        + data[named + 1 :].replace(b"CREATE INDEX idx_sessions_model", b"XREATE INDEX idx_sessions_model")
    )
    assert "is damaged" in fails(path).message


def test_one_corrupt_conversation_costs_only_itself(tmp_path: Path) -> None:
    long = [said(1, "user", "x" * 50_000)]
    path = make_1x(tmp_path / "sessions.db", session_1x(OTHER, long, context=""), session_1x(ID, TALK))
    data = bytearray(path.read_bytes())
    page = data.index(b"xxxx" * 1000, data.index(b"xxxx" * 500) + 5000) // 4096 * 4096
    data[page : page + 4] = b"\xff\xff\xff\xff"  # the number of the page on which the text goes on
    path.write_bytes(data)
    notes: list[str] = []
    assert session_id(read_one(path, notes)) == ID
    assert len(notes) == 1
    assert OTHER in notes[0]


def test_a_locked_database_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    monkeypatch.setattr(foreign_database, "PATIENCE", 0.2)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        error = fails(path)
        assert foreign.is_1x(str(path))
    assert "locked" in error.message
    assert error.hint
    read_one(path)


def unchanged(path: Path) -> list[Conversation]:
    """Read a file, and see that neither it nor its folder changes."""
    before = {name: data for name, data in tree(path.parent).items() if not name.endswith("-shm")}
    names = set(tree(path.parent))
    assert foreign.is_1x(str(path))
    found = read(path)
    assert set(tree(path.parent)) == names
    assert {name: data for name, data in tree(path.parent).items() if not name.endswith("-shm")} == before
    return found


NAMES_OF_FILES = (
    ["sessions.db", "a b?c#d%20e&f=1.db", "été.db"] if sys.platform != "win32" else ["a b#d%20e&f=1.db", "été.db"]
)


@pytest.mark.parametrize("name", NAMES_OF_FILES)
def test_a_source_and_its_folder_stay_as_they_are(tmp_path: Path, name: str) -> None:
    path = make_1x(tmp_path / "été %41" / name, session_1x(ID, TALK))
    assert [session_id(one) for one in unchanged(path)] == [ID]


def test_a_link_to_a_database(tmp_path: Path) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links")
    assert [session_id(one) for one in unchanged(link)] == [ID]


def logged(path: Path) -> sqlite3.Connection:
    """A connection that keeps a write-ahead log, with all of its sessions in it."""
    make_1x(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    old_stores.insert(writer, *session_1x(ID, TALK))
    return writer


def test_a_database_with_a_log_that_nobody_writes_gets_no_files(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    logged(path).close()
    assert list(tree(tmp_path)) == ["sessions.db"]
    assert [session_id(one) for one in unchanged(path)] == [ID]


def test_a_database_with_a_log_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "old" / "sessions.db"
    path.parent.mkdir()
    logged(path).close()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert [session_id(one) for one in unchanged(path)] == [ID]
    finally:
        path.parent.chmod(0o700)


def test_what_another_program_is_writing_is_read_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with closing(logged(path)) as writer:
        assert [session_id(one) for one in unchanged(path)] == [ID]
        with foreign.read(str(path), print) as (_, conversations):
            seen = iter(conversations)
            next(seen)
            old_stores.insert(writer, *session_1x(OTHER, TALK))
            writer.execute("PRAGMA wal_checkpoint")
            assert [session_id(one) for one in seen] == []
        assert [session_id(one) for one in read(path)] == [ID, OTHER]


def test_a_reader_holds_up_no_writer(tmp_path: Path) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK), session_1x(OTHER, TALK))
    with foreign.read(str(path), print) as (_, conversations):
        seen = iter(conversations)
        next(seen)
        make(path, "", [session_1x("new", TALK)])
        assert [session_id(one) for one in seen] == [OTHER]


@pytest.mark.parametrize("left", [("-wal",), ("-wal", "-shm")])
def test_what_a_crash_left_in_the_log_is_read(tmp_path: Path, left: tuple[str, ...]) -> None:
    path = tmp_path / "crash" / "sessions.db"
    path.parent.mkdir()
    with closing(logged(tmp_path / "sessions.db")):
        for suffix in ("", *left):
            shutil.copyfile(f"{tmp_path / 'sessions.db'}{suffix}", f"{path}{suffix}")
    assert [session_id(one) for one in unchanged(path)] == [ID]


def test_a_change_that_a_crash_cut_off_is_not_seen(tmp_path: Path) -> None:
    """With a journal the old content is beside the database, and has to be put back."""
    path = tmp_path / "crash" / "sessions.db"
    path.parent.mkdir()
    alive = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK))
    with closing(sqlite3.connect(alive, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        for number in range(50):
            old_stores.insert(writer, *session_1x(f"half {number}", [said(1, "user", "x" * 5000)]))
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{alive}{suffix}", f"{path}{suffix}")
        writer.execute("ROLLBACK")
    assert [session_id(one) for one in unchanged(path)] == [ID]


def test_a_source_is_closed_when_its_reader_fails(tmp_path: Path) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(ID, TALK), session_1x(OTHER, TALK))
    with suppress(KeyError), foreign.read(str(path), print) as (_, conversations):
        next(seen := iter(conversations))
        raise KeyError("of the reader")
    assert seen
    path.unlink()  # Windows would not, as long as it is open


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_copy_has_no_name_while_it_is_read(tmp_path: Path, temporary: Path) -> None:
    """So a process that is ended on the way, by Ctrl-C too, leaves no copy of the conversations behind."""
    path = tmp_path / "sessions.db"
    logged(path).close()
    make(path, "", [session_1x(OTHER, TALK)])
    with foreign.read(str(path), print) as (_, conversations):
        assert sys.platform == "win32" or list(temporary.iterdir()) == []
        assert [session_id(one) for one in conversations] == [ID, OTHER]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_copy_that_cannot_be_made(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "sessions.db"
    logged(path).close()

    def copyfile(_source: str, _target: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    error = fails(path)
    assert str(path) in error.message
    assert ("TMPDIR" in (error.hint or "")) == (code == errno.ENOSPC)
    assert error.hint
    assert list(temporary.iterdir()) == []


def test_a_corrupt_database_that_is_copied_is_named_itself(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    logged(path).close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 4000)
    assert str(path) in fails(path).message


def test_a_conversation_that_is_too_large_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_1x(tmp_path / "sessions.db", session_1x(OTHER, [*TALK, *TALK]), session_1x(ID, TALK))

    def json_of(text: str) -> Any:
        if text.count("Hello") > 1:
            raise MemoryError
        return json.loads(text)

    monkeypatch.setattr("ollama_prompt.foreign_1x.json_of", json_of)
    notes: list[str] = []
    assert session_id(read_one(path, notes)) == ID
    assert notes == [f"session {OTHER}: left out: it is too large"]


def test_json_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(_text: str) -> None:
        raise MemoryError

    path = write(tmp_path / "talk.json", LIST)
    monkeypatch.setattr(json, "loads", loads)
    assert "too large" in fails(path).message


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert not foreign.is_1x(str(path))
    assert "no file" in fails(path).message


# --- Where 1.x kept its database ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1024, 4096, 16_384, 65_536])
def test_is_1x_whatever_the_size_of_its_pages(tmp_path: Path, size: int) -> None:
    path = make_1x(tmp_path / "sessions.db")
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"PRAGMA page_size = {size}; VACUUM;")
    assert foreign.is_1x(str(path))


def test_text_about_1x_is_not_1x(tmp_path: Path) -> None:
    path = make(tmp_path / "logs.db", old_stores.TABLES_LLM_27)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE a (text TEXT)")
        database.execute("INSERT INTO a VALUES (?)", (old_stores.TABLES_1X * 50,))
    assert not foreign.is_1x(str(path))


def test_is_1x(tmp_path: Path) -> None:
    assert foreign.is_1x(str(make_1x(tmp_path / "sessions.db")))
    for path in (
        make(tmp_path / "llm.db", old_stores.TABLES_LLM_36),
        write(tmp_path / "talk.json", LIST),
        write(tmp_path / "empty", b""),
        tmp_path,
        tmp_path / "none",
        tmp_path / "a\0b",
        make(tmp_path / "other.db", "CREATE TABLE sessions (id)"),
    ):
        assert not foreign.is_1x(str(path))


def test_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    usual = [
        str(tmp_path / ".config" / "ollama-prompt" / "sessions.db"),
        str(tmp_path / ".ollama-prompt" / "sessions.db"),
    ]
    assert foreign.usual_places({}) == usual
    assert foreign.usual_places({"XDG_CONFIG_HOME": "/elsewhere", "APPDATA": "/data"}) == usual
    monkeypatch.setattr(sys, "platform", "win32")
    appdata = str(tmp_path / "Roaming")
    assert foreign.usual_places({"APPDATA": appdata})[0] == os.path.join(appdata, "ollama-prompt", "sessions.db")
    assert foreign.usual_places({})[0] == str(tmp_path / "ollama-prompt" / "sessions.db")


@pytest.mark.parametrize(("path", "uri"), [
    (r"C:\Users\A B\x#1.db", "file:///C:/Users/A%20B/x%231.db?mode=ro"),
    (r"\\server\share\x.db", "file:////server/share/x.db?mode=ro"),
])  # fmt: skip
def test_paths_of_windows(monkeypatch: pytest.MonkeyPatch, path: str, uri: str) -> None:
    monkeypatch.setattr(os, "sep", "\\")
    assert foreign_database._uri(path, "mode=ro") == uri


# --- Cost ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_taken_for_one_conversation(tmp_path: Path) -> None:
    import tracemalloc

    long = [said(number, "user", "x" * 1_000_000) for number in range(10)]
    path = make_1x(tmp_path / "sessions.db", *(session_1x(f"s{number}", long, context="") for number in range(20)))
    tracemalloc.start()
    with foreign.read(str(path), print) as (_, conversations):
        assert sum(len(one.records) for one in conversations) == 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80_000_000
