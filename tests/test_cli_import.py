"""--import as a user runs it: from every kind of source, again and again, interrupted, and from what is none."""

from __future__ import annotations

import base64
import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import old_stores
import pytest
import stores
from conftest import Result, tree
from old_stores import chain, make, make_1x, response, session_1x, turn
from old_stores import said as said_1x
from stores import fail, succeed

from ollama_prompt.errors import StoreUnreadable
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn
    from warm import Warm

Json = dict[str, Any]
Env = dict[str, str]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and terminals")

OLD = "0a4df202-9ca1-42a0-ba22-8134812535bf"
OTHER = "1f72147e-8888-44f0-9df5-004cf5dcbd26"
ULID = "01jn9xmz7dbapct2s9w3tjjz1a"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
TALK = [said_1x(10, "user", "Hello"), said_1x(10, "assistant", "Hi!")]
MORE = [said_1x(70, "user", "Ça va ?"), said_1x(70, "assistant", "Oui")]
LIST: list[Json] = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
]
NOTHING_NEW = {"imported": 0, "sessions": []}


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


@pytest.fixture
def ollama(ollama: StandIn) -> StandIn:
    """The stand-in, which has the model of the imported sessions too."""
    ollama.set(models={"llama3.2": {"limit": 8192, "capabilities": ["completion"]}})
    return ollama


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of ollama-prompt 1.x with two sessions, where it kept it by its manual."""
    sessions = session_1x(OLD, TALK + MORE, system_prompt="Be kind"), session_1x(OTHER, TALK)
    return make_1x(tmp_path / ".ollama-prompt" / "sessions.db", *sessions)


def replace_session(path: Path, *session: tuple[str, Json]) -> None:
    """What 1.x does after a turn: the session's row is another."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, row in session:
            connection.execute("DELETE FROM sessions WHERE session_id = ?", (row["session_id"],))
            old_stores.insert(connection, table, row)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def old_llm(path: Path) -> Path:
    """The database of llm before 0.32, with a picture."""
    rows = [
        response("r1", ULID, "What is this?", "A cat", system="Be brief"),
        response("r2", ULID, "And now?", "A dog"),
        ("attachments", {"id": "a", "type": "image/png", "content": PNG}),
        ("prompt_attachments", {"response_id": "r1", "attachment_id": "a", "order": 0}),
    ]
    return make(path, old_stores.TABLES_LLM_27, rows)


def new_llm(path: Path) -> Path:
    """The database of llm since 0.32."""
    rows = [
        *chain(("s", "system", "Be brief"), ("u1", "user", "What is this?"), ("a1", "assistant", "A cat")),
        *chain(("s2", "system", ""), ("u2", "user", "And now?"), ("a2", "assistant", "A dog"))[2:],
    ]
    for table, row in rows:
        if table == "messages" and row["hash"] == "u2":
            row["parent_hash"] = "a1"
    return make(path, old_stores.TABLES_LLM_36, [*rows, turn("t1", ULID, "u1", "a1"), turn("t2", ULID, "u2", "a2")])


SOURCES = {
    "1.x": lambda folder: make_1x(folder / "my.db", session_1x(OLD, TALK), session_1x(OTHER, TALK + MORE)),
    "llm 0.4": lambda folder: make(folder / "logs.db", old_stores.TABLES_LLM_04, [
        ("log", {"id": 1, "prompt": "Hello", "response": "Hi!", "model": "gpt-4", "timestamp": "2023-06-01 12:00:00"})
    ]),
    "llm 0.27": lambda folder: old_llm(folder / "logs.db"),
    "llm 0.36": lambda folder: new_llm(folder / "logs.db"),
    "list": lambda folder: write(folder / "talk.json", LIST),
    "object": lambda folder: write(folder / "talk.json", {"id": OLD, "model": "llama3", "messages": LIST}),
}  # fmt: skip


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One source of each kind."""
    (tmp_path / "source").mkdir()
    made: Path = SOURCES[request.param](tmp_path / "source")
    return made


def imported(result: Result) -> list[str]:
    """The sessions that an import added something to."""
    assert list(succeed(result).json) == ["imported", "skipped", "sessions"]
    sessions: list[str] = result.json["sessions"]
    assert result.json["imported"] == len(sessions)
    return sessions


def file_of(home: Path, session_id: str) -> Path:
    (path,) = home.glob(f"sessions/*/{session_id}.jsonl")
    return path


def contents(messages: list[Json]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


# -- where from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".config/ollama-prompt", ".ollama-prompt"])
def test_without_a_path_from_where_1x_kept_it(run: Run, home: Path, tmp_path: Path, place: str) -> None:
    path = make_1x(tmp_path / place / "sessions.db", session_1x(OLD, TALK), session_1x(OTHER, TALK))
    assert "--import" in fail(run("--session-info", OLD), "session_not_found")["hint"]
    before = tree(path.parent)
    assert succeed(run("--import")).json == {"imported": 2, "skipped": 0, "sessions": [OLD, OTHER]}
    assert tree(path.parent) == before
    assert {path.stem for path in stores.files(home)} == {OLD, OTHER}


def test_without_a_path_from_both_places(run: Run, home: Path, tmp_path: Path, database: Path) -> None:
    make_1x(tmp_path / ".config" / "ollama-prompt" / "sessions.db", session_1x(ULID, TALK), session_1x(OLD, TALK))
    assert len(imported(run("--import"))) == 3
    assert stores.said(file_of(home, OLD))[:4] == contents(TALK + MORE)


def test_a_place_that_cannot_be_read_holds_up_no_other(run: Run, home: Path, tmp_path: Path, database: Path) -> None:
    cut = make_1x(tmp_path / ".config" / "ollama-prompt" / "sessions.db", session_1x("cut", TALK))
    cut.write_bytes(cut.read_bytes()[:5000])
    assert str(cut) in fail(run("--import"), "import_failed")["error"]
    assert {path.stem for path in stores.files(home)} == {OLD, OTHER}


def test_without_a_path_from_where_1x_was_told_to_keep_it_and_nowhere_else(
    run: Run, tmp_path: Path, database: Path
) -> None:
    path = make_1x(tmp_path / "project" / "chats.db", session_1x("mine", TALK))
    env = {"OLLAMA_PROMPT_DB_PATH": str(path), "OLLAMA_PROMPT_HOME": ""}
    assert len(imported(run("--import", env=env))) == 1
    assert succeed(run("--import", env=env)).json == {**NOTHING_NEW, "skipped": 1}
    elsewhere = {"OLLAMA_PROMPT_DB_PATH": str(tmp_path / "elsewhere" / "index.db"), "OLLAMA_PROMPT_HOME": ""}
    assert len(imported(run("--import", env=elsewhere))) == 2, "there is none where it says"


def test_an_empty_listing_tells_of_them(run: Run, home: Path, database: Path) -> None:
    result = run("--list-sessions")
    assert stores.listed(result) == []
    assert "--import" in result.stderr
    assert not home.exists()
    imported(run("--import"))
    assert succeed(run("--list-sessions")).stderr == ""


def test_without_a_path_and_without_a_database(run: Run, home: Path, tmp_path: Path) -> None:
    make(tmp_path / ".ollama-prompt" / "sessions.db", "CREATE TABLE sessions (id)")
    error = fail(run("--import"), "import_failed")
    assert str(tmp_path / ".config" / "ollama-prompt") in error["error"]
    assert "--import PATH" in error["hint"]
    assert not home.exists()


def test_every_kind_of_source(quick: Run, home: Path, source: Path) -> None:
    ids = imported(quick("--import", str(source)))
    assert {path.stem for path in stores.files(home)} == set(ids)
    listed = stores.assert_agreement(quick)
    assert all(session["message_count"] >= 2 for session in listed)
    assert all(session["model_name"] for session in listed) == (source.name != "talk.json" or OLD in ids)
    for session in listed:
        info = succeed(quick("--session-info", session["session_id"])).json
        assert info["imported_from"]["format"] in {"ollama-prompt 1.x", "llm", "json"}
        assert info["damage"] == []
    assert succeed(quick("--check")).json == {"ok": True, "sessions": len(ids), "damage": [], "index": "ok"}


def test_a_source_and_its_folder_stay_as_they_are(quick: Run, source: Path) -> None:
    before, status = tree(source.parent), source.stat()
    for _ in range(2):
        succeed(quick("--import", str(source)))
    assert tree(source.parent) == before
    assert source.stat().st_mtime_ns == status.st_mtime_ns


def test_text_and_ndjson(run: Run, database: Path) -> None:
    assert succeed(run("--import", "--output", "text")).stdout == "imported: 2, nothing new in: 0\n"
    printed = succeed(run("--import", "--output", "ndjson")).stdout
    assert printed == '{"imported": 0, "skipped": 2, "sessions": []}\n'


def test_a_session_lies_in_the_month_in_which_it_began(run: Run, home: Path, tmp_path: Path) -> None:
    path = make_1x(tmp_path / "my.db", session_1x(OLD, TALK, created_at="2025-12-31T12:00:00.000000"))
    imported(run("--import", str(path)))
    assert file_of(home, OLD).parent.name == "2025-12"


@pytest.mark.parametrize(("zone", "hour"), [("UTC", 0), ("UTC-9", -9), ("UTC+5", 5), ("Europe/Berlin", -1)])
def test_local_times(run: Run, home: Path, database: Path, zone: str, hour: int) -> None:
    imported(run("--import", env={"TZ": zone}))
    head, first, *_ = stores.records(file_of(home, OLD))
    expected = f"2026-02-28T{24 + hour}:00" if hour < 0 else f"2026-03-01T0{hour}:00"
    assert head["created_at"] == f"{expected}:00.000Z"
    assert first["created_at"] == f"{expected}:10.123Z"
    (listed,) = [one for one in stores.assert_agreement(run) if one["session_id"] == OLD]
    assert listed["created_at"] == f"{expected}:00Z"


def test_daylight_saving_time(run: Run, home: Path, tmp_path: Path) -> None:
    made = {"created_at": "2026-07-01T12:00:00.000000"}
    path = make_1x(tmp_path / "my.db", session_1x(OLD, TALK, **made))
    imported(run("--import", str(path), env={"TZ": "Europe/Berlin"}))
    assert stores.records(file_of(home, OLD))[0]["created_at"] == "2026-07-01T10:00:00.000Z"


# -- again -------------------------------------------------------------------------------------------------


def test_again_changes_no_byte(quick: Run, home: Path, source: Path) -> None:
    ids = imported(quick("--import", str(source)))
    before = tree(home / "sessions"), tree(home / "attachments")
    assert succeed(quick("--import", str(source))).json == {**NOTHING_NEW, "skipped": len(ids)}
    assert (tree(home / "sessions"), tree(home / "attachments")) == before
    stores.assert_agreement(quick)


def test_what_was_moved_into_folders_of_the_users_own_is_known(
    home: Path, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is new, the folders are not gone through again each time."""
    indexer = Indexer(Layout(str(home)), lambda _: None)
    made, _ = indexer.import_from(str(database), 0)
    moved = home / "sessions" / "work" / "old" / f"{OLD}.jsonl"
    moved.parent.mkdir(parents=True)
    file_of(home, OLD).rename(moved)
    assert indexer.import_from(str(database), 0) == ([], 2)
    walk = Mock(wraps=os.walk)
    monkeypatch.setattr(os, "walk", walk)
    replace_session(database, session_1x(OLD, TALK + MORE + TALK), *(session_1x(f"new {n}", TALK) for n in range(5)))
    added, known = indexer.import_from(str(database), 0)
    assert (len(added), known, walk.call_count) == (6, 1, 0)
    assert OLD in made
    assert len(list(home.glob("sessions/**/*.jsonl"))) == 7


def test_a_folder_that_cannot_be_read_holds_up_only_what_may_be_in_it(
    home: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexer = Indexer(Layout(str(home)), lambda _: None)
    indexer.import_from(str(database), 0)
    closed = home / "sessions" / "work" / "closed"
    closed.mkdir(parents=True)
    replace_session(database, session_1x("new", TALK), session_1x(OLD, TALK + MORE + TALK))
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), str(closed)))
    with pytest.raises(StoreUnreadable, match=r"closed.*; 1 sessions were imported"):
        indexer.import_from(str(database), 0)
    assert len(stores.said(file_of(home, OLD))) == 6
    assert len(stores.files(home)) == 2


def refusing(real: Callable[[str], Any], closed: str) -> Callable[[str], Any]:
    """The same function, to which one folder is closed."""

    def refuse(folder: str) -> Any:
        if str(folder) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return real(folder)

    return refuse


def test_in_another_time_zone_again_adds_nothing(quick: Run, run: Run, home: Path, database: Path) -> None:
    imported(run("--import", env={"TZ": "UTC-14"}))
    before = tree(home / "sessions")
    assert succeed(run("--import", env={"TZ": "UTC+12"})).json == {**NOTHING_NEW, "skipped": 2}
    assert tree(home / "sessions") == before


def test_a_source_that_grew(quick: Run, home: Path, database: Path) -> None:
    imported(quick("--import"))
    later = [said_1x(900, "user", "Encore"), said_1x(900, "assistant", "Bien")]
    replace_session(database, session_1x(OLD, TALK + MORE + later), session_1x("new", TALK))
    before = file_of(home, OLD).read_bytes()
    ids = imported(quick("--import"))
    assert len(ids) == 2
    assert OLD in ids
    assert file_of(home, OLD).read_bytes().startswith(before)
    assert stores.said(file_of(home, OLD)) == contents(TALK + MORE + later)
    assert len(stores.assert_agreement(quick)) == 3


def test_a_source_that_lost_its_oldest_messages(quick: Run, home: Path, database: Path) -> None:
    imported(quick("--import"))
    later = [said_1x(900, "user", "Encore"), said_1x(900, "assistant", "Bien")]
    replace_session(database, session_1x(OLD, MORE + later))
    assert imported(quick("--import")) == [OLD]
    assert stores.said(file_of(home, OLD)) == contents(TALK + MORE + later)
    assert succeed(quick("--import")).json == {**NOTHING_NEW, "skipped": 2}


def test_llm_that_went_on_in_its_new_tables(quick: Run, home: Path, tmp_path: Path) -> None:
    before = make(tmp_path / "old.db", old_stores.TABLES_LLM_05, [response("t1", ULID, "What is this?", "A cat")])
    (session_id,) = imported(quick("--import", str(before)))
    assert imported(quick("--import", str(new_llm(tmp_path / "logs.db")))) == [session_id]
    contents = [content for _, content in stores.said(file_of(home, session_id))]
    assert contents == ["What is this?", "A cat", "And now?", "A dog"]


def test_lists_that_begin_alike_and_one_that_grew(quick: Run, home: Path, tmp_path: Path) -> None:
    def take(*texts: str) -> list[str]:
        talk = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
        return imported(quick("--import", str(write(tmp_path / "talk.json", talk))))

    (first,) = take("hi", "hello")
    assert take("hi", "hello", "one", "two") == [first]
    succeed(quick("--session-id", first, "-p", "Three"))
    (other,) = take("hi", "hello", "other", "end")
    assert other != first
    assert take("hi", "hello") == take("hi", "hello", "one", "two") == take("hi", "hello", "other", "end") == []
    assert take("hi", "hello", "other", "end", "more") == [other]
    assert [len(stores.said(file_of(home, id_))) for id_ in (first, other)] == [6, 5]


def test_a_list_is_found_again_after_one_that_begins_alike_was_deleted(quick: Run, home: Path, tmp_path: Path) -> None:
    def take(text: str) -> list[str]:
        talk = [*LIST, {"role": "user", "content": text}, {"role": "assistant", "content": "Yes"}]
        return imported(quick("--import", str(write(tmp_path / "talk.json", talk))))

    (first,), (other,) = take("One?"), take("Two?")
    succeed(quick("--delete", first))
    assert take("Two?") == []
    assert take("One?") == [first]
    assert {path.stem for path in stores.files(home)} == {first, other}


def test_after_delete_an_import_brings_it_back(quick: Run, home: Path, database: Path) -> None:
    imported(quick("--import"))
    before = tree(home / "sessions")
    succeed(quick("--delete", OLD))
    assert imported(quick("--import")) == [OLD]
    assert tree(home / "sessions") == before


def test_what_was_taken_back_here_stays_so(quick: Run, home: Path, database: Path) -> None:
    imported(quick("--import"))
    succeed(quick("--undo", OLD))
    assert succeed(quick("--import")).json == {**NOTHING_NEW, "skipped": 2}
    (listed,) = [one for one in stores.assert_agreement(quick) if one["session_id"] == OLD]
    assert listed["message_count"] == 2


def test_a_session_of_ours_that_was_printed_and_deleted(quick: Run, home: Path, tmp_path: Path) -> None:
    asked = succeed(quick("-p", "Hi", "--system", "Be kind", "--temperature", "0.5", "--title", "A title")).json
    shown = succeed(quick("--session-info", asked["session_id"]))
    path = tmp_path / "shown.json"
    path.write_text(shown.stdout, encoding="utf-8")
    assert imported(quick("--import", str(path))) == [], "it is there"
    succeed(quick("--delete", asked["session_id"]))
    assert imported(quick("--import", str(path))) == [asked["session_id"]]
    back = succeed(quick("--session-info", asked["session_id"])).json
    assert back.pop("imported_from") == {"format": "json", "id": asked["session_id"]}
    assert back == shown.json


# -- what then ---------------------------------------------------------------------------------------------


def test_an_imported_session_goes_on(quick: Run, home: Path, ollama: StandIn, database: Path) -> None:
    imported(quick("--import"))
    asked = succeed(quick("--session-id", OLD.upper(), "-p", "Next")).json
    (chat,) = ollama.chats()
    assert chat["model"] == asked["model"] == "llama3.2"
    sent = [("system", "Be kind"), *contents(TALK + MORE), ("user", "Next")]
    assert contents(chat["messages"]) == sent
    assert asked["window"]["messages_sent"] == 5
    (listed,) = [one for one in stores.assert_agreement(quick) if one["session_id"] == OLD]
    assert listed["message_count"] == 6
    before = tree(home / "sessions")
    assert succeed(quick("--import")).json == {**NOTHING_NEW, "skipped": 2}
    assert tree(home / "sessions") == before
    replace_session(database, session_1x(OLD, TALK + MORE + [said_1x(900, "user", "There")]))
    assert imported(quick("--import")) == [OLD]
    said_since = [("user", "Next"), ("assistant", asked["response"]), ("user", "There")]
    assert stores.said(file_of(home, OLD))[4:] == said_since
    stores.assert_agreement(quick)


def test_the_one_used_last_is_continued(quick: Run, ollama: StandIn, tmp_path: Path) -> None:
    used = session_1x(OTHER, TALK, last_used="2026-03-05T00:00:00.000000")
    imported(quick("--import", str(make_1x(tmp_path / "my.db", session_1x(OLD, TALK + MORE), used))))
    assert succeed(quick("--continue", "-p", "Next")).json["session_id"] == OTHER


def test_purge_looks_at_the_last_use_in_the_source(quick: Run, home: Path, tmp_path: Path) -> None:
    import time

    yesterday = time.strftime("%Y-%m-%dT%H:%M:%S.000000", time.localtime(time.time() - 86400))
    path = make_1x(tmp_path / "my.db", session_1x(OLD, TALK), session_1x(OTHER, TALK, last_used=yesterday))
    imported(quick("--import", str(path)))
    assert succeed(quick("--purge", "30")).json["sessions"] == [OLD]
    assert [path.stem for path in stores.files(home)] == [OTHER]


def test_a_fork_of_an_imported_session(quick: Run, ollama: StandIn, database: Path) -> None:
    imported(quick("--import"))
    fork = succeed(quick("--fork", OLD)).json["session_id"]
    assert succeed(quick("--session-id", fork, "-p", "Next")).json["window"]["messages_sent"] == 5
    assert succeed(quick("--import")).json == {**NOTHING_NEW, "skipped": 2}


def test_pictures_are_kept_and_sent(quick: Run, home: Path, ollama: StandIn, tmp_path: Path) -> None:
    (of_llm,) = imported(quick("--import", str(old_llm(tmp_path / "logs.db"))))
    encoded = base64.b64encode(JPEG).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "See"}, part]}
    talk = [asked, {"role": "assistant", "content": "Yes"}]
    (of_list,) = imported(quick("--import", str(write(tmp_path / "talk.json", talk))))
    assert sorted(path.read_bytes() for path in (home / "attachments").iterdir()) == sorted([PNG, JPEG])
    for session_id, picture in ((of_llm, PNG), (of_list, JPEG)):
        succeed(quick("--session-id", session_id, "-p", "Again", "--model", "viewer"))
        sent = [data for message in ollama.chats()[-1]["messages"] for data in message.get("images", [])]
        assert [base64.b64decode(data) for data in sent] == [picture]
    succeed(quick("--delete", of_llm))
    assert [path.read_bytes() for path in (home / "attachments").iterdir()] == [JPEG]


# -- what is none ------------------------------------------------------------------------------------------


def corrupt(path: Path) -> Path:
    data = bytearray(make_1x(path, session_1x(OLD, TALK)).read_bytes())
    data[100:4000] = b"\xff" * 3900
    path.write_bytes(data)
    return path


def own_index(path: Path) -> Path:
    from ollama_prompt.index import Index

    Index(str(path), str(path) + ".made").rebuild([])
    return path


def touch(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


WRONG: dict[str, Any] = {
    "no such file": lambda path: path,
    "a folder": lambda path: path.parent,
    "below a file": lambda path: touch(path, b"") / "more",
    "a device": lambda path: path.parent.joinpath(os.devnull),
    "a pipe": fifo,
    "empty": lambda path: touch(path, b""),
    "text": lambda path: touch(path, b"hello"),
    "binary": lambda path: touch(path, bytes(range(256)) * 100),
    "no conversation": lambda path: write(path, {"a": 1}),
    "half a list": lambda path: touch(path, b'[{"role": "user", "content": "Hi"}'),
    "another database": lambda path: make(path, "CREATE TABLE notes (text)"),
    "corrupt": corrupt,
    "cut": lambda path: touch(path, make_1x(path, session_1x(OLD, TALK)).read_bytes()[:5000]),
    "our index": own_index,
    "our session": lambda path: touch(path, stores.lines(OLD)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_imported(run: Run, home: Path, tmp_path: Path, what: str) -> None:
    path = WRONG[what](tmp_path / "source")
    error = fail(run("--import", str(path), timeout=10), "import_failed")
    assert str(path) in error["error"]
    assert error["hint"]
    assert not home.exists()
    text = run("--import", str(path), "--output", "text", timeout=10)
    assert text.stderr == f"error: {error['error']}\nhint: {error['hint']}\n"
    assert text.stdout == ""


def test_a_locked_database(run: Run, home: Path, tmp_path: Path) -> None:
    path = make_1x(tmp_path / "my.db", session_1x(OLD, TALK))
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        error = fail(run("--import", str(path)), "import_failed")
    assert "locked" in error["error"]
    assert error["hint"]
    assert not home.exists()
    assert imported(run("--import", str(path))) == [OLD]


def test_a_broken_session_holds_up_no_other(run: Run, tmp_path: Path) -> None:
    path = make_1x(tmp_path / "my.db", session_1x(OTHER, [], history_json="{"), session_1x(OLD, TALK))
    result = run("--import", str(path))
    assert imported(result) == [OLD]
    assert OTHER in result.stderr
    assert result.stderr.startswith("note: ")


@pytest.mark.parametrize("arguments", [
    ("--import", ""), ("--import", " "), ("--import", "x", "--prompt", "y"), ("--import", "x", "--check"),
    ("--import", "--session-id", OLD), ("--import", "x", "y"),
])  # fmt: skip
def test_usage(run: Run, home: Path, database: Path, arguments: tuple[str, ...]) -> None:
    fail(run(*arguments), "usage", 2)
    assert not home.exists()


def test_a_session_that_is_in_use_holds_up_no_other(
    run: Run, start: Start, home: Path, ollama: StandIn, database: Path
) -> None:
    make_1x(database.with_name("first.db"), session_1x(OLD, TALK))
    imported(run("--import", str(database.with_name("first.db"))))
    ollama.hold()
    holder = start("--session-id", OLD, "-p", "Hold it")
    ollama.wait(held=1)
    error = fail(run("--import", "--lock-timeout", "0"), "session_busy", 75)
    assert error["session_id"] == OLD
    assert len(stores.said(file_of(home, OTHER))) == 2
    waiting = start("--import")
    assert waiting.stderr is not None
    assert b"waiting for it" in waiting.stderr.readline()
    ollama.release()
    holder.communicate(timeout=60)
    out, _ = waiting.communicate(timeout=60)
    assert json.loads(out) == {"imported": 1, "skipped": 1, "sessions": [OLD]}
    assert len(stores.said(file_of(home, OLD))) == 6


# -- cut short ---------------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Something of everything in one source: two conversations, one with a picture."""
    path = old_llm(tmp_path / "logs.db")
    return make(path, "", [response("r3", None, "Alone", "Yes")])


SHARDS = 2


@pytest.mark.parametrize("shard", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("signal", ["SIGKILL", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_cut_short_at_every_step_and_run_again(
    quick: Run, warm: Warm, environment: Env, home: Path, tmp_path: Path, both: Path, shard: int, signal: str
) -> None:
    import shutil

    count = len(warm.steps("--import", str(both), env=environment))
    expected = tree(home / "sessions"), tree(home / "attachments")
    assert len(stores.files(home)) == 2
    source = both.read_bytes()
    states = stores.States(home)
    codes = set()
    for step in range(1 + shard, count + 1, SHARDS):
        shutil.rmtree(home, ignore_errors=True)
        warm.start("--import", str(both), env=environment, die_at=step, signal=signal)
        cut = stores.clean(Result(*warm.end()))
        codes.add(cut.returncode)
        assert cut.returncode or len(imported(cut)) == 2
        if not states.is_new(str(cut.returncode), cut.stdout):
            continue
        if home.exists():
            assert succeed(quick("--check")).json["damage"] == []
        again = succeed(quick("--import", str(both))).json
        assert again["imported"] + again["skipped"] == 2
        assert (without_unfinished(home / "sessions"), without_unfinished(home / "attachments")) == expected
        assert len(stores.assert_agreement(quick)) == 2
    assert both.read_bytes() == source
    assert codes <= {0, -9 if signal == "SIGKILL" else 130}
    assert codes != {0}


def without_unfinished(folder: Path) -> dict[str, bytes | None]:
    return {name: data for name, data in tree(folder).items() if not name.endswith(".tmp")}


def test_many_imports_at_once(start: Start, run: Run, home: Path, both: Path, database: Path) -> None:
    talk = write(both.with_name("talk.json"), LIST)
    sources = [str(both), str(database), str(talk)] * 3
    results = [(process, *process.communicate(timeout=120)) for process in [start("--import", one) for one in sources]]
    ids = [id_ for process, out, err in results for id_ in imported(Result(process.returncode, out, err))]
    assert len(ids) == len(set(ids)) == 5
    assert {path.stem for path in stores.files(home)} == set(ids)
    assert stores.said(file_of(home, OLD)) == contents(TALK + MORE)
    assert len(stores.assert_agreement(run)) == 5
    assert succeed(run("--check")).json == {"ok": True, "sessions": 5, "damage": [], "index": "ok"}


def test_lists_that_begin_alike_at_once(start: Start, run: Run, home: Path, tmp_path: Path) -> None:
    def talk(number: int) -> str:
        return str(write(tmp_path / f"{number}.json", [*LIST, {"role": "user", "content": f"Question {number}"}]))

    running = [start("--import", talk(number % 4)) for number in range(8)]
    results = [Result(process.returncode, out, err) for process in running for out, err in [process.communicate()]]
    assert len({id_ for result in results for id_ in imported(result)}) == 4
    assert sorted(stores.said(path)[2][1] for path in stores.files(home)) == [f"Question {n}" for n in range(4)]


# -- progress ----------------------------------------------------------------------------------------------


def many(path: Path) -> Path:
    return make_1x(path, *(session_1x(f"session {number}", TALK) for number in range(25)))


def test_progress_is_not_shown_for_a_moment(environment: Env, tmp_path: Path) -> None:
    path = many(tmp_path / "my.db")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "ollama_prompt", "--import", str(path)]
    with subprocess.Popen(
        command, env=environment | {"TERM": "xterm"}, stdin=child, stdout=subprocess.PIPE, stderr=child
    ) as process:
        os.close(child)
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["imported"] == 25
    data = b""
    with suppress(OSError):  # Linux says so when nobody has the other end any more
        while piece := os.read(parent, 10_000):
            data += piece
    os.close(parent)
    shown = data.decode()
    assert shown == ""  # what is over in a moment needs none


def test_progress_is_not_shown_in_a_pipe(run: Run, tmp_path: Path) -> None:
    result = run("--import", str(many(tmp_path / "my.db")), env={"TERM": "xterm"})
    assert len(imported(result)) == 25
    assert result.stderr == ""
