"""A database of ollama-prompt 1.x that lies where our index belongs: imported at the first start, and set aside."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import old_stores
import pytest
import stores
from conftest import Result, tree
from filelock import FileLock
from old_stores import make_1x, session_1x
from old_stores import said as said_1x
from stores import fail, new_id, succeed

from ollama_prompt import foreign_database, layout, locks
from ollama_prompt.indexer import Indexer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn
    from warm import Warm

Env = dict[str, str]

assert locks  # what it imports asks for the platform

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, and files that are renamed while open")

OLD = "0a4df202-9ca1-42a0-ba22-8134812535bf"
OTHER = "1f72147e-8888-44f0-9df5-004cf5dcbd26"
TALK = [said_1x(10, "user", "Hello"), said_1x(10, "assistant", "Hi!")]
MODEL = {"model_name": "smollm2"}


@pytest.fixture
def database(home: Path) -> Path:
    """Where the index belongs, a database of 1.x with two sessions."""
    return make_1x(home / "sessions.db", session_1x(OLD, TALK, **MODEL), session_1x(OTHER, TALK, **MODEL))


def notes(result: Result) -> list[str]:
    """The remarks of a command that must have worked."""
    lines = succeed(result).stderr.splitlines()
    assert all(line.startswith("note: ") for line in lines), result
    return lines


def assert_adopted(run: Run, home: Path, original: bytes, ids: set[str]) -> None:
    """The sessions are there, once; the database is kept as it was; nothing is left to be done or said."""
    assert {path.name: path.read_bytes() for path in home.glob("sessions-1.x*")} == {"sessions-1.x.db": original}
    assert not list(home.glob("sessions.db-*"))
    listing = run("--list-sessions")
    assert notes(listing) == []
    assert {session["session_id"] for session in stores.assert_agreement(run)} >= ids
    assert sorted(path.stem for path in stores.files(home) if path.stem in ids) == sorted(ids)
    assert succeed(run("--check")).json["index"] == "ok"


# -- the first start ---------------------------------------------------------------------------------------


FIRST: dict[str, tuple[str, ...]] = {
    "listing": ("--list-sessions",),
    "info": ("--session-info", OLD),
    "turn": ("--session-id", OLD, "-p", "Next"),
    "continue": ("--continue", "-p", "Next"),
    "new turn": ("-p", "New"),
    "check": ("--check",),
    "reindex": ("--reindex",),
    "purge": ("--purge", "30", "--dry-run"),
    "fork": ("--fork", OLD),
    "undo": ("--undo", OLD),
    "retry": ("--retry", OLD),
    "import": ("--import",),
}


@posix_only
@pytest.mark.parametrize("first", FIRST)
def test_any_command_adopts_it(quick: Run, home: Path, database: Path, first: str) -> None:
    original = database.read_bytes()
    result = quick(*FIRST[first])
    said = notes(result)
    assert len(said) == 2
    assert f"{database} is a database of ollama-prompt 1.x" in said[0]
    assert "imported: 2" in said[1]
    assert str(home / "sessions-1.x.db") in said[1]
    assert result.json
    assert_adopted(quick, home, original, {OLD, OTHER})


def test_the_output_is_as_usual(run: Run, home: Path, ollama: StandIn, database: Path) -> None:
    listed = stores.listed(run("--list-sessions"))
    assert {session["session_id"] for session in listed} == {OLD, OTHER}
    assert succeed(run("--session-id", OLD, "-p", "Next", "--output", "text")).stderr == ""
    assert [message["content"] for message in ollama.chats()[0]["messages"]] == ["Hello", "Hi!", "Next"]


@pytest.mark.parametrize("command", [("--delete", OLD), ("--purge", "30")])
def test_what_the_first_command_removes_is_gone(run: Run, home: Path, database: Path, command: tuple[str, ...]) -> None:
    succeed(run(*command))
    left = {path.stem for path in stores.files(home)}
    assert left == ({OTHER} if "--delete" in command else set())
    assert {session["session_id"] for session in stores.listed(run("--list-sessions"))} == left
    succeed(run("--import"))
    assert {path.stem for path in stores.files(home)} == {OLD, OTHER}, "it can be brought back"


@pytest.mark.parametrize("arguments", [
    ("-p", "Hi", "--no-session"), ("--bogus",), ("-p", ""), ("--version",), ("--help",), ("--completion", "bash"),
])  # fmt: skip
def test_what_needs_no_store_does_not_touch_it(
    run: Run, home: Path, database: Path, arguments: tuple[str, ...]
) -> None:
    before = tree(home)
    stores.clean(run(*arguments))
    assert tree(home) == before


def test_it_lies_where_the_variable_says(run: Run, tmp_path: Path, home: Path) -> None:
    path = make_1x(tmp_path / "mine" / "chats.db", session_1x(OLD, TALK))
    original = path.read_bytes()
    env = {"OLLAMA_PROMPT_DB_PATH": str(path), "OLLAMA_PROMPT_HOME": ""}
    assert len(notes(run("--list-sessions", env=env))) == 2
    assert (path.parent / "sessions-1.x.db").read_bytes() == original
    assert [found.stem for found in stores.files(path.parent)] == [OLD]
    assert notes(run("--session-info", OLD, env=env)) == []
    assert not home.exists()


def test_it_lies_where_the_usual_store_is(run: Run, tmp_path: Path) -> None:
    path = make_1x(tmp_path / ".ollama-prompt" / "sessions.db", session_1x(OLD, TALK))
    succeed(run("--list-sessions", env={"OLLAMA_PROMPT_HOME": ""}))
    assert [found.stem for found in stores.files(path.parent)] == [OLD]


def test_import_counts_what_it_adopted(run: Run, home: Path, database: Path) -> None:
    everything = {"imported": 2, "skipped": 0, "sessions": [OLD, OTHER]}
    original = database.read_bytes()
    assert succeed(run("--import")).json == everything
    assert succeed(run("--import")).json == {"imported": 0, "skipped": 2, "sessions": []}
    shutil.rmtree(home)
    home.mkdir()
    database.write_bytes(original)
    assert succeed(run("--import", str(database))).json == everything
    succeed(run("--list-sessions"))
    assert "index" in fail(run("--import", str(database)), "import_failed")["error"]
    assert succeed(run("--import", str(home / "sessions-1.x.db"))).json["skipped"] == 2


def test_a_name_that_is_taken(run: Run, home: Path, database: Path) -> None:
    original = database.read_bytes()
    (home / "sessions-1.x.db").write_text("mine", encoding="utf-8")
    assert "sessions-1.x-1.db" in notes(run("--list-sessions"))[1]
    assert (home / "sessions-1.x.db").read_text(encoding="utf-8") == "mine"
    assert (home / "sessions-1.x-1.db").read_bytes() == original
    make_1x(home / "new.db", session_1x("new", TALK)).replace(database)
    assert "sessions-1.x-2.db" in notes(run("--list-sessions"))[1]
    assert len(stores.files(home)) == 3


def test_sessions_that_are_there_already_get_what_is_new(run: Run, home: Path, tmp_path: Path) -> None:
    succeed(run("--import", str(make_1x(tmp_path / "my.db", session_1x(OLD, TALK, **MODEL)))))
    succeed(run("--session-id", OLD, "-p", "Ours"))
    (home / "sessions.db").unlink()
    later = [said_1x(70, "user", "Theirs"), said_1x(70, "assistant", "Yes")]
    make_1x(home / "sessions.db", session_1x(OLD, TALK + later), session_1x(OTHER, TALK))
    assert len(notes(run("--list-sessions"))) == 2
    contents = [content for _, content in stores.said(home / "sessions" / "2026-03" / f"{OLD}.jsonl")]
    assert [contents.count(text) for text in ("Hello", "Ours", "Theirs")] == [1, 1, 1]
    stores.assert_agreement(run)


def test_what_1x_puts_into_our_index(run: Run, home: Path) -> None:
    """It makes its table in whatever database it is given."""
    asked = succeed(run("-p", "Hi")).json["session_id"]
    old_stores.make(home / "sessions.db", old_stores.TABLES_1X, [session_1x(OLD, TALK)])
    listing = run("--list-sessions")
    assert {session["session_id"] for session in stores.listed(listing)} == {OLD, asked}
    assert "imported: 1" in notes(listing)[1]
    assert succeed(run("--check")).json == {"ok": True, "sessions": 2, "damage": [], "index": "ok"}
    stores.assert_agreement(run)


@posix_only
def test_a_link_to_it(run: Run, home: Path, tmp_path: Path) -> None:
    path = make_1x(tmp_path / "elsewhere.db", session_1x(OLD, TALK))
    original = path.read_bytes()
    home.mkdir()
    (home / "sessions.db").symlink_to(path)
    assert len(notes(run("--list-sessions"))) == 2
    assert path.read_bytes() == (home / "sessions-1.x.db").read_bytes() == original
    assert notes(run("--list-sessions")) == []


# -- many at once ------------------------------------------------------------------------------------------


@posix_only
def test_20_processes_start_at_that_moment(start: Start, run: Run, home: Path, ollama: StandIn, database: Path) -> None:
    for number in range(30):
        make = session_1x(new_id(number), TALK, **MODEL)
        with closing(sqlite3.connect(database)) as connection, connection:
            old_stores.insert(connection, *make)
    original, ids = database.read_bytes(), {OLD, OTHER, *map(new_id, range(30))}
    turns = [("--session-id", session_id, "-p", "Next") for session_id in (OLD, new_id(29))]
    kinds = [("--list-sessions",), *turns, ("-p", "New"), ("--import",)]
    running = [start(*kinds[number % len(kinds)]) for number in range(20)]
    ended = [(process.communicate(timeout=120), process.returncode) for process in running]
    results = [succeed(Result(code, out, err)) for (out, err), code in ended]
    for result in results[::5]:
        assert {session["session_id"] for session in result.json["sessions"]} >= ids
    assert sum(result.stderr.count("importing its sessions") for result in results) == 1
    assert sum(result.json["imported"] for result in results[4::5]) in {0, 32}
    assert_adopted(run, home, original, ids)
    assert len(stores.files(home)) == 32 + 4
    for session_id in (OLD, new_id(29)):
        (path,) = home.glob(f"sessions/*/{session_id}.jsonl")
        assert [content for _, content in stores.said(path)].count("Next") == 4


@posix_only
def test_who_waits_for_it_is_told(start: Start, home: Path, database: Path) -> None:
    (home / "locks").mkdir()
    with FileLock(home / "locks" / "index.lock"):
        process = start("--list-sessions")
        assert process.stderr
        assert b"waiting for it" in process.stderr.readline()
    out, err = process.communicate(timeout=60)
    assert len(succeed(Result(process.returncode, out, err)).json["sessions"]) == 2


# -- killed ------------------------------------------------------------------------------------------------


SHARDS = 6


@posix_only
@pytest.mark.parametrize("shard", [0, *(pytest.param(shard, marks=pytest.mark.slow) for shard in range(1, SHARDS))])
@pytest.mark.parametrize("command", ["listing", "turn", pytest.param("import", marks=pytest.mark.slow)])
def test_killed_at_every_step(
    quick: Run, warm: Warm, environment: Env, home: Path, tmp_path: Path, database: Path, command: str, shard: int
) -> None:
    original = database.read_bytes()
    before = tmp_path / "before"
    shutil.copytree(home, before)
    states = stores.States(home)
    count = len(warm.steps(*FIRST[command], env=environment))
    expected = {path.name: path.read_bytes() for path in stores.files(home) if path.stem == OTHER}
    assert len(expected) == 1
    for step in range(1 + shard, count + 1, SHARDS):
        shutil.rmtree(home)
        shutil.copytree(before, home)
        warm.start(*FIRST[command], env=environment, die_at=step)
        killed = Result(*warm.end())
        assert killed.returncode in {-9, 0}
        assert stores.clean(killed).returncode == (-9 if step < count - 5 else killed.returncode)
        if not states.is_new(str(killed.returncode), killed.stdout):
            continue
        assert len(succeed(quick("--list-sessions")).json["sessions"]) == 2
        assert_adopted(quick, home, original, {OLD, OTHER})
        messages = succeed(quick("--session-info", OLD)).json["messages"]
        assert [message["content"] for message in messages[:2]] == ["Hello", "Hi!"]
        assert {path.name: path.read_bytes() for path in stores.files(home) if path.stem == OTHER} == expected


# -- what cannot be adopted --------------------------------------------------------------------------------


def works_without(run: Run, env: Env | None = None) -> list[str]:
    """A new turn and the listing work, and say something about the database; what the listing says."""
    session_id = succeed(run("-p", "Hi", env=env)).json["session_id"]
    succeed(run("--session-id", session_id, "-p", "Next", env=env))
    listing = run("--list-sessions", env=env)
    assert session_id in {session["session_id"] for session in stores.listed(listing)}
    return notes(listing)


CLOSED = """\
import os
real = os.rename
def rename(old, new):
    if "closed" in str(old):
        raise PermissionError(13, "Permission denied", old)
    real(old, new)
os.rename = rename
"""


@posix_only
def test_a_folder_that_cannot_be_written(run: Run, home: Path, tmp_path: Path) -> None:
    """The index may lie elsewhere than the store."""
    path = make_1x(tmp_path / "closed" / "sessions.db", session_1x(OLD, TALK))
    before = tree(path.parent)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(CLOSED, encoding="utf-8")
    early = os.pathsep.join(filter(None, [str(tmp_path / "early"), os.environ.get("PYTHONPATH")]))
    env = {"OLLAMA_PROMPT_DB_PATH": str(path), "PYTHONPATH": early}
    said = works_without(run, env)
    assert len(said) == 2
    assert f"{path} stays where it is" in said[1]
    assert "Permission denied" in said[1]
    assert tree(path.parent) == before
    assert {OLD} < {found.stem for found in stores.files(home)}, "all is there already"
    assert len(notes(run("--list-sessions", env={"OLLAMA_PROMPT_DB_PATH": str(path)}))) == 2
    assert not path.read_bytes().startswith(before["sessions.db"] or b"")


def test_a_corrupt_database(run: Run, home: Path, database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[100:4000] = b"\xff" * 3900
    database.write_bytes(data)
    said = works_without(run)
    assert len(said) == 1
    assert "left untouched" in said[0]
    assert database.read_bytes() == data
    assert fail(run("--reindex"), "store_unreadable")


def test_a_corrupt_session_costs_only_itself(run: Run, home: Path) -> None:
    database = make_1x(home / "sessions.db", session_1x(OTHER, [], history_json="{"), session_1x(OLD, TALK))
    original = database.read_bytes()
    said = notes(run("--list-sessions"))
    assert len(said) == 3
    assert OTHER in said[1]
    assert_adopted(run, home, original, {OLD})


def test_a_session_that_cannot_be_written(run: Run, home: Path, database: Path) -> None:
    original = database.read_bytes()
    month = home / "sessions" / "2026-03"
    month.mkdir(parents=True)
    (month / f".{OLD}.jsonl.tmp").mkdir()
    result = run("--list-sessions")
    assert {session["session_id"] for session in stores.listed(result)} == {OTHER}
    assert "next start" in notes(result)[1]
    assert database.read_bytes() == original
    (month / f".{OLD}.jsonl.tmp").rmdir()
    assert "imported: 1" in notes(run("--list-sessions"))[1]
    assert_adopted(run, home, original, {OLD, OTHER})


def test_a_store_that_cannot_be_written_is_told_which_database_stays(run: Run, home: Path, database: Path) -> None:
    (home / "locks").write_text("mine", encoding="utf-8")
    (note,) = notes(run("--list-sessions"))
    assert note.startswith(f"note: {database} stays where it is")


# -- 1.x still runs ----------------------------------------------------------------------------------------


@pytest.fixture
def indexer(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Indexer, list[str]]:
    """The store, in this process; and what it says."""
    said: list[str] = []
    monkeypatch.setattr(foreign_database, "PATIENCE", 0.2)
    return Indexer(layout.Layout(str(home)), said.append), said


@posix_only
def test_a_1x_that_has_it_open_and_writes_nothing(run: Run, home: Path, database: Path) -> None:
    original = database.read_bytes()
    with closing(sqlite3.connect(database)) as idle:
        idle.execute("SELECT * FROM sessions").fetchall()
        assert len(notes(run("--list-sessions"))) == 2
    assert_adopted(run, home, original, {OLD, OTHER})


def test_a_1x_in_the_middle_of_a_change(home: Path, database: Path, indexer: tuple[Indexer, list[str]]) -> None:
    store, said = indexer
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        old_stores.insert(writer, *session_1x("new", TALK))
        store.adopt_1x()
        assert "locked" in said[-1]
        assert database.exists()
        writer.execute("COMMIT")
    assert len(store.sessions()) == 2
    store.adopt_1x()
    assert not list(home.glob("sessions.db*"))
    assert len(store.sessions()) == 3


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_what_1x_commits_while_it_is_read(
    home: Path, database: Path, indexer: tuple[Indexer, list[str]], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    store, said = indexer
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute(f"PRAGMA journal_mode = {mode}")
    real = store.import_from
    times: list[tuple[list[str], int]] = []

    def import_from(*args: Any) -> tuple[list[str], int]:
        done = real(*args)
        if len(times) < 2:
            old_stores.insert(writer, *session_1x(f"later {len(times)}", TALK))
        times.append(done)
        return done

    monkeypatch.setattr(store, "import_from", import_from)
    with closing(writer):
        store.adopt_1x()
    assert len(times) == 3
    assert "imported: 4" in said[-1]
    assert len(store.sessions()) == 4
    for path in (database, home / "sessions-1.x.db"):
        imported, known = real(str(path), 0)
        assert (len(imported), known) == (4, 0)


def test_a_write_ahead_log_that_is_in_use(home: Path, database: Path, indexer: tuple[Indexer, list[str]]) -> None:
    store, said = indexer
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        old_stores.insert(writer, *session_1x("in the log", TALK))
        store.adopt_1x()
        assert "locked" in said[-1]
        old_stores.insert(writer, *session_1x("later", TALK))
    store.adopt_1x()
    assert "imported: " in said[-1]
    assert len(store.sessions()) == 4
    assert [path.name for path in home.glob("sessions*.db*")] == ["sessions.db", "sessions-1.x.db"]


@pytest.mark.parametrize("left", [("-wal",), ("-wal", "-shm")])
def test_a_write_ahead_log_that_a_crash_left(home: Path, tmp_path: Path, run: Run, left: tuple[str, ...]) -> None:
    alive = make_1x(tmp_path / "my.db")
    home.mkdir()
    with closing(sqlite3.connect(alive, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        old_stores.insert(writer, *session_1x(OLD, TALK))
        for suffix in ("", *left):
            shutil.copyfile(f"{alive}{suffix}", home / f"sessions.db{suffix}")
    assert [session["session_id"] for session in stores.listed(run("--list-sessions"))] == [OLD]
    aside = home / "sessions-1.x.db"
    assert sorted(path.name for path in home.glob("sessions*.db*")) == ["sessions-1.x.db", "sessions.db"]
    with closing(sqlite3.connect(aside)) as kept:
        assert kept.execute("SELECT session_id FROM sessions").fetchall() == [(OLD,)]


def test_a_change_that_a_crash_cut_off(home: Path, tmp_path: Path, run: Run) -> None:
    alive = make_1x(tmp_path / "my.db", session_1x(OLD, TALK))
    home.mkdir()
    with closing(sqlite3.connect(alive, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        for number in range(50):
            old_stores.insert(writer, *session_1x(f"half {number}", [said_1x(1, "user", "x" * 5000)]))
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{alive}{suffix}", home / f"sessions.db{suffix}")
        writer.execute("ROLLBACK")
    assert [session["session_id"] for session in stores.listed(run("--list-sessions"))] == [OLD]
    assert_adopted(run, home, alive.read_bytes(), {OLD})


WRITER = """\
import sqlite3, sys, time
sys.path.insert(0, sys.argv[2])
import old_stores
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
talk = [old_stores.said(10, "user", "Hello"), old_stores.said(10, "assistant", "Hi!")]
number = 0
while True:
    old_stores.insert(connection, *old_stores.session_1x(f"written {number}", talk))
    print(f"written {number}", flush=True)
    number += 1
    time.sleep(0.3)
"""


@posix_only
def test_a_1x_that_goes_on_writing(run: Run, home: Path, database: Path) -> None:
    """Whatever it had committed when the database was set aside is there; what it writes then is in that."""
    command = [sys.executable, "-c", WRITER, str(database), os.path.dirname(__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        result = run("--list-sessions")
        writer.kill()
        count = 1 + len(writer.stdout.read().splitlines())
    assert "kept as" in notes(result)[1], result
    with closing(sqlite3.connect(home / "sessions-1.x.db")) as kept:
        ids = [own for (own,) in kept.execute("SELECT session_id FROM sessions ORDER BY rowid")][2:]
    assert ids[:count] == [f"written {number}" for number in range(count)]
    shown = {
        stores.records(path)[0]["imported_from"]["id"] for path in stores.files(home)
    } - {OLD, OTHER}  # fmt: skip
    assert shown == set(ids[: len(shown)]), "the oldest, and none of them is missing"
    assert shown
    assert succeed(run("--import")).json["imported"] == len(ids) - len(shown)


# -- Windows -----------------------------------------------------------------------------------------------


def test_a_file_that_is_open_cannot_be_renamed_on_windows(
    home: Path, database: Path, indexer: tuple[Indexer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = indexer

    def rename(old: str, new: str) -> None:
        raise PermissionError(13, "The process cannot access the file because it is being used", old)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        store.adopt_1x()
        assert "being used" in said[-1]
        assert len(store.sessions()) == 2
    assert database.exists()
    store.adopt_1x()
    assert not database.exists()


def test_on_windows_we_do_not_have_it_open_ourselves(
    home: Path, database: Path, indexer: tuple[Indexer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = indexer
    renamed: list[str] = []
    real: Callable[[str, str], None] = os.rename

    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(old, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
        renamed.append(new)
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(sys, "platform", "win32")
    store.adopt_1x()
    assert renamed == [str(home / "sessions-1.x.db")], said
