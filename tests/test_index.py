"""sessions.db on a real disk: whose file it is, what it keeps, who wins a race; trouble is told and does no harm."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from hasty import do_not_wait

from ollama_prompt import index as index_module
from ollama_prompt.index import (
    APPLICATION_ID,
    CROWD,
    SCHEMA_VERSION,
    TICK_NS,
    YOUNG,
    Index,
    IndexUnusable,
    Row,
    is_young,
    path_json,
)
from ollama_prompt.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Act = Callable[[Index], object]

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes, and removes no open file")

SECOND = 1_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the index will be; not there yet."""
    return tmp_path / "sessions.db"


@pytest.fixture
def index(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index, which waits for nobody."""
    do_not_wait(monkeypatch)
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0)
    return Index(str(path), str(tmp_path / "index.made"))


@pytest.fixture
def kept(index: Index) -> Index:
    """The index with the rows 1 to 3."""
    index.rebuild([row(1), row(2), row(3)])
    return index


def row(number: int, path: str | None = None, **more: Any) -> Row:
    """A row as reading a file gives it; each number has its own."""
    session_id = stores.new_id(number)
    made = Row(path or f"2026-09/{session_id}.jsonl", session_id, (number, number * SECOND, 7, 4711), False)
    made.last_used, made.last_id = f"2026-09-21T20:26:40.{number:03d}Z", stores.new_id(number)
    made.record_count = number
    made.listed = json.dumps({"session_id": session_id, "title": f"Title {number}"})[:-1] + ', "path": "'
    made.saved = Summary(session_id).saved() | {"end": number, "crc": 0, "settings": {"model": "smollm2"}}
    for name, value in more.items():
        setattr(made, name, value)
    return made


def later(row: Row, size: int) -> Row:
    """The row of the same file, read when it had another size."""
    row.stamp = (size, *row.stamp[1:])
    return row


def as_dict(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def assert_holds(index: Index, *rows: Row) -> None:
    """These are the rows, and all ways to ask for them agree."""
    wanted = {row.path: as_dict(row) for row in rows}
    assert {row.path: as_dict(row) for row in index.rows()} == wanted
    assert {path: as_dict(row) for path, row in index.at(wanted).items()} == wanted
    for row in rows:
        assert as_dict(row) in [as_dict(found) for found in index.find(row.session_id)]
    assert index.stamps().keys() == set(wanted)


@contextmanager
def raises(state: str) -> Iterator[None]:
    """The index must say that it cannot be used, and why."""
    with pytest.raises(IndexUnusable) as raised:
        yield
    assert raised.value.state == state


def sql(path: Path, statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(statements)


READS: dict[str, Act] = {
    "stamps": lambda index: index.stamps(),
    "lines": lambda index: index.lines("/store/"),
    "rows": lambda index: index.rows(),
    "find": lambda index: index.find(stores.new_id(1)),
    "at": lambda index: index.at([row(1).path]),
}
WRITES: dict[str, Act] = {
    "put": lambda index: index.put(row(4)),
    "remove": lambda index: index.remove([stores.new_id(1)]),
    "change": lambda index: index.change([row(4)], [row(1).path], {row(1).path: row(1)}),
    "rebuild": lambda index: index.rebuild([row(4)]),
}
every_read = pytest.mark.parametrize("act", READS.values(), ids=READS)
every_write = pytest.mark.parametrize("act", WRITES.values(), ids=WRITES)
every_act = pytest.mark.parametrize("act", [*READS.values(), *WRITES.values()], ids=[*READS, *WRITES])


# --- What it keeps ---------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_kept(kept: Index) -> None:
    assert_holds(kept, row(1), row(2), row(3))
    assert kept.find(stores.new_id(9)) == []
    assert kept.at(["no/such.jsonl"]) == {}


def test_rows_are_listed_by_last_use_then_id_then_path(index: Index) -> None:
    same = {"last_used": "2026", "last_id": "a"}
    rows = [row(1, **same), row(2, "b", **same), row(3, "a", **same), row(4, last_used="2026", last_id="b"), row(5)]
    index.rebuild(rows)
    paths = [rows[n].path for n in (4, 3, 0, 2, 1)]
    assert [json.loads(line)["path"] for line in index.lines("")] == paths
    assert [json.loads(line)["path"] for line in index.lines("", 2)] == paths[:2]


def test_a_line_of_the_listing_ends_in_the_path_where_the_store_lies_now(kept: Index) -> None:
    for folder in ("/store/sessions/", '/it\'s "mine"/ü/'):
        line, *_ = kept.lines(folder)
        shown = {"session_id": stores.new_id(3), "title": "Title 3", "path": folder + row(3).path}
        assert list(json.loads(line).items()) == list(shown.items())


@pytest.mark.parametrize("folder", ['"quoted"', "back\\slash", "ünï/日本", "line\nfeed", "%s?"])
def test_any_path_is_shown_as_json(index: Index, folder: str) -> None:
    kept = row(1, f"{folder}/{stores.new_id(1)}.jsonl")
    assert json.loads(kept.line("/s/"))["path"] == "/s/" + kept.path
    index.put(kept)
    assert index.lines("/s/") == [kept.line("/s/")]
    assert_holds(index, kept)


def test_a_path_that_is_no_unicode_is_escaped() -> None:
    line = row(1, "caf\udce9/1.jsonl").line("/s/")
    assert line.isascii()
    assert json.loads(line)["path"] == "/s/caf\udce9/1.jsonl"


def test_paths_have_the_separators_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")
    assert json.loads(f'"{path_json("2026-09/x.jsonl")}"') == "2026-09\\x.jsonl"


def test_a_young_row_is_listed_without_a_stamp(index: Index) -> None:
    index.put(row(5, young=True))
    assert index.stamps() == {row(5).path: YOUNG}
    assert_holds(index, row(5, young=True))


def test_a_session_in_two_files_has_two_rows(kept: Index) -> None:
    kept.put(row(1, f"copy/{stores.new_id(1)}.jsonl"))
    assert len(kept.find(stores.new_id(1))) == 2


def test_a_row_takes_the_place_of_the_one_of_the_same_file(kept: Index) -> None:
    kept.put(row(1, last_used="2031", stamp=(9, 9, 9, 9), record_count=7))
    assert_holds(kept, row(1, last_used="2031", stamp=(9, 9, 9, 9), record_count=7), row(2), row(3))


def test_sessions_are_removed_with_all_their_files(kept: Index) -> None:
    kept.put(row(1, f"copy/{stores.new_id(1)}.jsonl"))
    kept.remove([stores.new_id(1), stores.new_id(3), stores.new_id(9)])
    assert_holds(kept, row(2))
    assert kept.rows()[0].path == row(2).path


def test_a_rebuild_keeps_nothing_of_before(kept: Index) -> None:
    kept.rebuild(iter([row(2, record_count=8), row(4)]))
    assert_holds(kept, row(2, record_count=8), row(4))


# --- The file --------------------------------------------------------------------------------------


@every_write
def test_an_index_says_whose_it_is(index: Index, path: Path, act: Act) -> None:
    act(index)
    head = path.read_bytes()[:100]
    assert head[68:72] == APPLICATION_ID.to_bytes(4, "big") == b"olpr"
    assert head[60:64] == SCHEMA_VERSION.to_bytes(4, "big")
    assert index.state() == "ok"


@posix
def test_an_index_is_ours_alone(index: Index, path: Path) -> None:
    index.put(row(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_network_drive_will_do(kept: Index, path: Path, tmp_path: Path) -> None:
    assert path.read_bytes()[18:20] == b"\1\1", "a rollback journal: WAL needs memory that is shared"
    assert set(tree(tmp_path)) == {"sessions.db", "index.made"}


def test_the_index_has_a_second_name_that_keeps_its_inode(kept: Index, path: Path) -> None:
    assert os.path.samefile(kept.made, path)
    kept.discard()
    assert not path.exists()
    assert not os.path.exists(kept.made)


@every_read
def test_a_reader_writes_nothing(kept: Index, path: Path, tmp_path: Path, act: Act) -> None:
    os.utime(path, ns=(5, 5))
    before, status = tree(tmp_path), path.stat()
    act(kept)
    assert tree(tmp_path) == before
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


@every_read
def test_a_reader_makes_no_index(index: Index, tmp_path: Path, act: Act) -> None:
    with raises("missing"):
        act(index)
    assert tree(tmp_path) == {}


@every_write
def test_a_writer_makes_an_index(index: Index, act: Act) -> None:
    act(index)
    assert len(index.rows()) == (0 if act is WRITES["remove"] else 1)


# --- Whose file it is ------------------------------------------------------------------------------


def other_inode(path: Path, data: bytes) -> None:
    """As `mv` does: another file gets the name."""
    path.with_name("other").write_bytes(data)
    path.with_name("other").replace(path)


def text_in_its_place(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"my notes")  # ext4 would give the freed inode number out again


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing": ("ok", lambda _: None),
    "a moved index": ("ok", lambda path: other_inode(path, path.read_bytes())),
    "gone": ("missing", lambda path: path.unlink()),
    "emptied": ("missing", lambda path: path.write_bytes(b"")),
    "an older schema": ("old", lambda path: sql(path, "PRAGMA user_version = 0")),
    "a newer schema": ("old", lambda path: sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")),
    "overwritten": ("corrupt", lambda path: path.write_bytes(b"ruins" * 100)),
    "cut in the header": ("corrupt", lambda path: path.write_bytes(path.read_bytes()[:99])),
    "a text": ("foreign", lambda path: other_inode(path, b"my notes " * 20)),
    "a short text": ("foreign", lambda path: other_inode(path, b"my notes")),
    "a text in its place": ("foreign", text_in_its_place),
    "half a header": ("foreign", lambda path: other_inode(path, path.read_bytes()[:99])),
    "of another program": ("foreign", lambda path: sql(path, "PRAGMA application_id = 7")),
    "of no program": ("foreign", lambda path: sql(path, "PRAGMA application_id = 0")),
    "a folder": ("foreign", folder_in_its_place),
}  # fmt: skip


@pytest.mark.parametrize(("state", "change"), CHANGES.values(), ids=CHANGES)
def test_what_lies_there_is_told_by_its_header(
    kept: Index, path: Path, state: str, change: Callable[[Path], object]
) -> None:
    change(path)
    assert kept.state() == state


def test_an_index_whose_folder_is_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Index(str(tmp_path / "file" / "sessions.db"), str(tmp_path / "made")).state() == "missing"


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a database": lambda path: sql(path, "CREATE TABLE sessions (id TEXT); INSERT INTO sessions VALUES ('mine')"),
    "with our tables": lambda path: sql(path, "CREATE TABLE files (id TEXT); CREATE TABLE readings (id TEXT)"),
    "a text": lambda path: path.write_bytes(b"my notes"),
    "a long text": lambda path: path.write_bytes(b"my notes" * 1000),
}


@every_act
@pytest.mark.parametrize("lay", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_never_written_to(
    index: Index, path: Path, tmp_path: Path, act: Act, lay: Callable[[Path], object]
) -> None:
    lay(path)
    before, status = tree(tmp_path), path.stat()
    with raises("foreign"):
        act(index)
    assert tree(tmp_path) == before
    assert path.stat().st_ctime_ns == status.st_ctime_ns


@every_write
def test_a_foreign_database_that_comes_between_look_and_open_is_not_written_to(
    index: Index, path: Path, tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(*args: Any, **named: Any) -> sqlite3.Connection:
        monkeypatch.setattr(sqlite3, "connect", real)
        FOREIGN["a database"](path)
        return real(*args, **named)

    monkeypatch.setattr(sqlite3, "connect", connect)
    with raises("foreign"):
        act(index)
    sql(tmp_path / "same.db", "CREATE TABLE sessions (id TEXT); INSERT INTO sessions VALUES ('mine')")
    assert path.read_bytes() == (tmp_path / "same.db").read_bytes()
    assert index.state() == "foreign"


def test_the_made_file_of_another_index_makes_no_text_ours(kept: Index, path: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in (path.name, "index.made"):
        shutil.copy(tmp_path / name, copied / name)
    (copied / path.name).write_bytes(b"my notes")
    assert Index(str(copied / path.name), str(copied / "index.made")).state() == "foreign"


# --- Ours, but of no use ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["an older schema", "a newer schema", "overwritten", "cut in the header"])
def test_ours_but_of_no_use_is_built_again(kept: Index, path: Path, change: str) -> None:
    CHANGES[change][1](path)
    for act in (*READS.values(), WRITES["put"], WRITES["remove"], WRITES["change"]):
        with raises("corrupt"):
            act(kept)
    kept.rebuild([row(4)])
    assert kept.state() == "ok"
    assert_holds(kept, row(4))


def test_ruins_anywhere_are_told_or_do_no_harm_and_are_built_again(index: Index, path: Path) -> None:
    rows = [row(number) for number in range(30)]
    index.rebuild(rows)
    whole, page = path.read_bytes(), 4096
    assert len(whole) > 8 * page
    for start in range(0, len(whole), page):
        head = max(start, 100)
        path.write_bytes(whole[:head] + b"\xff" * (start + page - head) + whole[start + page :])
        try:
            assert [json.loads(line)["path"] for line in index.lines("")] == [row.path for row in reversed(rows)]
            assert {row.path for row in index.rows()} == {row.path for row in rows}
        except IndexUnusable as error:
            assert error.state in {"corrupt", "remade"}  # noqa: PT017  either is fine
        index.rebuild(rows)
        assert_holds(index, *rows)


def killed_while_writing(path: Path) -> tuple[bytes, bytes]:
    """The index and its journal as a writer leaves them that is killed in the middle."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM files")
        for number in range(200):
            database.execute("INSERT INTO readings VALUES (?, ?)", (str(number), "x" * 500))
        return path.read_bytes(), path.with_name(path.name + "-journal").read_bytes()


def test_what_a_killed_writer_left_is_rolled_back(kept: Index, path: Path) -> None:
    before = path.read_bytes()
    half, journal = killed_while_writing(path)
    assert path.read_bytes() == before != half
    path.write_bytes(half)
    path.with_name(path.name + "-journal").write_bytes(journal)
    assert_holds(kept, row(1), row(2), row(3))


def test_the_journal_goes_with_the_content_that_it_belongs_to(kept: Index, path: Path, tmp_path: Path) -> None:
    _, journal = killed_while_writing(path)
    path.write_bytes(b"ruins" * 100)
    path.with_name(path.name + "-journal").write_bytes(journal)
    kept.discard()
    assert tree(tmp_path) == {}
    kept.rebuild([row(4)])
    assert_holds(kept, row(4))


# --- Busy ------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, how: str) -> Iterator[sqlite3.Connection]:
    """Another process that holds the index."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield other


@every_act
def test_an_index_that_others_hold_is_busy(kept: Index, path: Path, act: Act) -> None:
    with locked(path, "EXCLUSIVE"), raises("busy"):
        act(kept)
    assert_holds(kept, row(1), row(2), row(3))


def test_an_index_is_waited_for_in_vain_only_once(kept: Index, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    real = index_module._connected

    def connected(path: str, timeout: float) -> Any:
        waited.append(timeout)
        return real(path, 0)

    monkeypatch.setattr(index_module, "_connected", connected)
    with locked(path, "EXCLUSIVE"):
        for _ in range(3):
            with raises("busy"):
                kept.find(stores.new_id(1))
    assert waited == [index_module.BUSY_SECONDS, 0, 0]


@every_read
def test_a_reader_does_not_wait_for_a_writer(kept: Index, path: Path, act: Act) -> None:
    with locked(path, "IMMEDIATE"):
        act(kept)


@every_write
@pytest.mark.parametrize("way", ["read-only", "full", "no folder"])
def test_an_index_that_cannot_be_written_is_busy(
    kept: Index, path: Path, act: Act, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(_: str, **named: Any) -> sqlite3.Connection:
        if way == "read-only":
            return real(f"{path.as_uri()}?mode=ro", uri=True, **named)
        database = real(path if way == "full" else path / "no" / "folder", **named)
        if way == "full":
            database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr(sqlite3, "connect", connect)
    if way == "full":
        act = lambda index: index.put(row(4, listed="x" * 100_000))  # noqa: E731
    with raises("busy"):
        act(kept)
    monkeypatch.undo()
    assert_holds(kept, row(1), row(2), row(3))


def test_a_change_that_fails_changes_nothing(kept: Index) -> None:
    def rows() -> Iterator[Row]:
        yield row(4)
        raise OSError

    with raises("busy"):
        kept.change(rows(), [row(1).path], {row(1).path: row(1)})
    assert_holds(kept, row(1), row(2), row(3))


def looks(monkeypatch: pytest.MonkeyPatch, look: Callable[[int], object]) -> list[int]:
    """What a waiting writer sees of the file each time it looks, by the number of the look."""
    seen: list[int] = []

    def stamp(_: Index) -> object:
        seen.append(len(seen))
        return look(seen[-1])

    monkeypatch.setattr(Index, "_stamp", stamp)
    return seen


def test_a_writer_waits_as_long_as_others_get_on(kept: Index, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(path, "IMMEDIATE") as other:
        looks(monkeypatch, lambda number: other.execute("ROLLBACK") if number == 7 else number)
        kept.put(row(4))
    assert_holds(kept, row(1), row(2), row(3), row(4))


def test_a_writer_does_not_wait_for_one_that_does_nothing(
    kept: Index, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(monkeypatch, lambda _: "same")
    with locked(path, "IMMEDIATE"), raises("busy"):
        kept.put(row(4))
    assert len(seen) == 2


def test_a_writer_does_not_wait_for_ever(kept: Index, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(monkeypatch, lambda number: number)
    with locked(path, "IMMEDIATE"), raises("busy"):
        kept.put(row(4))
    assert len(seen) == 2 * CROWD


# --- Two refreshes at once -------------------------------------------------------------------------


def seen(*rows: Row) -> dict[str, Row]:
    """The rows that a refresh started from."""
    return {row.path: row for row in rows}


def test_a_refresh_changes_what_it_found(kept: Index) -> None:
    gone, changed = row(1), row(2)
    kept.change([later(row(2), 20), row(4)], [gone.path], seen(gone, changed))
    assert_holds(kept, later(row(2), 20), row(3), row(4))


def test_a_row_that_another_process_wrote_meanwhile_is_the_newer(kept: Index) -> None:
    start = seen(*kept.rows())
    kept.put(later(row(1), 30))
    kept.change([later(row(1), 20), later(row(2), 20)], [], start)
    assert_holds(kept, later(row(1), 30), later(row(2), 20), row(3))


def test_a_new_file_that_another_process_read_first_keeps_its_row(kept: Index) -> None:
    kept.put(later(row(4), 30))
    kept.change([later(row(4), 20)], [], {})
    assert_holds(kept, row(1), row(2), row(3), later(row(4), 30))


def test_a_file_that_another_process_found_given_back_is_not_gone(kept: Index) -> None:
    start = seen(row(1), row(2))
    kept.put(later(row(1), 30))
    kept.change([], [row(1).path, row(2).path], start)
    assert_holds(kept, later(row(1), 30), row(3))


def test_a_session_that_another_process_removed_does_not_come_back(kept: Index) -> None:
    start = seen(row(1))
    kept.remove([stores.new_id(1)])
    kept.change([later(row(1), 20)], [], start)
    assert_holds(kept, row(2), row(3))


# --- Racy timestamps -------------------------------------------------------------------------------

NOW = 1_800_000_000 * SECOND + 123_456_789
OLD = NOW - 3600 * SECOND
WHOLE = NOW - NOW % SECOND


@pytest.mark.parametrize(
    ("mtime", "ctime", "young"),
    [
        (NOW, NOW, True),
        (NOW - TICK_NS, NOW - TICK_NS, True),
        (NOW - TICK_NS - 1, NOW - TICK_NS - 1, False),
        (NOW + TICK_NS, NOW + TICK_NS, True),
        (OLD, NOW, True),  # git and touch set an mtime, no one a ctime
        (NOW + 3600 * SECOND, NOW, True),
        (NOW, OLD, True),  # a file system without a ctime
        (OLD, OLD, False),
        (WHOLE - 1 * SECOND, WHOLE - 1 * SECOND, True),  # FAT: whole seconds, every other one
        (WHOLE - 3 * SECOND, WHOLE - 3 * SECOND, False),
        (WHOLE - 3 * SECOND + 1_000, WHOLE - SECOND + 1_000, False),
    ],
)
def test_a_stamp_of_this_tick_is_young(mtime: int, ctime: int, young: bool) -> None:
    assert is_young((1, mtime, ctime, 4711), NOW) is young
