"""Files and index in agreement: what is read, when, and how often, whatever happened to the files in between.

A row is trusted if its stamp is old enough. Time is forged: `late` makes every row trusted at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from hasty import do_not_wait
from stores import add, line, make, message, new_id, refuse, replace

from ollama_prompt import catalogue as catalogue_module
from ollama_prompt import index as index_module
from ollama_prompt import records, session_file
from ollama_prompt.catalogue import Catalogue
from ollama_prompt.errors import SessionBusy, StoreUnreadable, StoreWriteFailed
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    Json = dict[str, Any]
    Act = Callable[[Path], object]

HOUR_NS = 3600 * 10**9

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither FIFOs nor such names")


class Store:
    """A catalogue that a test works with, and what it did: `notes`, `locks` asked for, files `read`."""

    def __init__(self, home: Path, index: Path | None = None) -> None:
        self.home = home
        self.notes: list[str] = []
        self.locks: list[float] = []
        self.is_busy = False
        self.catalogue = Catalogue(Layout(str(home), str(index) if index else None), self._lock, self.notes.append)

    def _lock(self, timeout: float) -> AbstractContextManager[None]:
        self.locks.append(timeout)
        if self.is_busy:
            raise SessionBusy("the index is in use by another process")
        return nullcontext()

    def listing(self) -> list[Json]:
        return [json.loads(line) for line in self.catalogue.listing()[0]]

    def titles(self) -> list[str]:
        return [session["title"] for session in self.listing()]

    def plain(self) -> list[bytes]:
        """What reading every file gives, without an index."""
        return Store(self.home, self.home.parent / "no" / "index.db").catalogue.listing()[0]

    def assert_agrees(self) -> None:
        """The listing is what reading every file gives, and so is what is worked out from the rows."""
        plain = self.plain()
        assert self.catalogue.listing() == (plain, len(plain))
        assert self.catalogue.listing(1) == (plain[:1], len(plain))
        folder = self.catalogue.layout.sessions + os.sep
        assert [row.line(folder) for row, _ in self.catalogue.rows()] == plain


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power."""
    do_not_wait(monkeypatch)


@pytest.fixture
def store(home: Path, late: None) -> Store:
    """The store, with nothing in it, all of whose rows will be trusted."""
    return Store(home)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read long after it changed."""
    at(monkeypatch, HOUR_NS)


def at(monkeypatch: pytest.MonkeyPatch, later_ns: int) -> None:
    """Files are read that much later than now."""
    monkeypatch.setattr(catalogue_module, "read_time_ns", lambda: time.time_ns() + later_ns)


class Reads:
    """What was read since the last `take`: lines decoded, by file."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def take(self) -> dict[str, int]:
        lines, self.lines = self.lines, {}
        return lines


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Watches what is read."""
    reads, read, decode = Reads(), session_file.read, records.decode
    current = ""

    def watched_read(path: str, *args: Any) -> session_file.Reading:
        nonlocal current
        current = os.path.basename(path)
        reads.lines.setdefault(current, 0)
        return read(path, *args)

    def watched_decode(line: bytes) -> Json:
        reads.lines[current] += 1
        return decode(line)

    monkeypatch.setattr(session_file, "read", watched_read)
    monkeypatch.setattr(records, "decode", watched_decode)
    return reads


def session(number: int, title: str | None = None) -> bytes:
    """A session of one prompt, which gives its title."""
    prompt = message(number, "user", title or f"Title {number}")
    return line(stores.header(new_id(number))) + line(prompt)


def lay(home: Path, *numbers: int) -> list[Path]:
    return [make(home, number, session(number)) for number in numbers]


def edit(path: Path, old: bytes = b"Title", new: bytes = b"TITLE") -> None:
    """Change bytes in place: the same size, the same inode."""
    path.write_bytes(path.read_bytes().replace(old, new))


def set_times(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def sql(home: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask, or change, the index behind the back of the code."""
    with closing(sqlite3.connect(home / "sessions.db")) as database, database:
        database.execute("PRAGMA synchronous = OFF")
        return database.execute(query, values).fetchall()


def forge(home: Path, path: Path, **differences: int) -> None:
    """Give the file's row the stamp of the file as it is, with these differences."""
    stamp = session_file.stamp_at(str(path))
    assert stamp
    names = ("size", "mtime_ns", "ctime_ns", "inode")
    values = [value + differences.get(name, 0) for name, value in zip(names, stamp, strict=True)]
    sql(home, "UPDATE files SET stamp = ? WHERE path LIKE ?", index_module.packed(*values), f"%{path.name}")


# --- When a file is read ---------------------------------------------------------------------------


def test_a_file_is_read_once(store: Store, home: Path, reads: Reads) -> None:
    one, two = lay(home, 1, 2)
    assert store.titles() == ["Title 2", "Title 1"]
    assert reads.take() == {one.name: 2, two.name: 2}
    assert store.titles() == ["Title 2", "Title 1"]
    assert reads.take() == {}
    assert len(store.locks) == 1, "the lock is for changes"


def test_a_reader_with_nothing_to_write_writes_nothing(store: Store, home: Path) -> None:
    lay(home, 1, 2)
    store.listing()
    before, status = tree(home), (home / "sessions.db").stat()
    store.listing()
    store.catalogue.rows()
    assert tree(home) == before
    assert (home / "sessions.db").stat().st_ctime_ns == status.st_ctime_ns
    assert len(store.locks) == 1


def test_only_new_files_are_read(store: Store, home: Path, reads: Reads) -> None:
    lay(home, 1)
    store.listing()
    reads.take()
    (two,) = lay(home, 2)
    assert store.titles() == ["Title 2", "Title 1"]
    assert reads.take() == {two.name: 2}


def test_a_file_that_grew_is_read_from_where_the_index_stopped(store: Store, home: Path, reads: Reads) -> None:
    path = make(home, 1, stores.lines(new_id(1), turns=100))
    assert store.listing()[0]["message_count"] == 200
    assert reads.take() == {path.name: 201}
    add(path, b"".join(map(line, stores.turn(100))))
    assert store.listing()[0]["message_count"] == 202
    assert reads.take() == {path.name: 2}
    store.assert_agrees()


def test_a_torn_line_is_read_when_it_is_whole(store: Store, home: Path, reads: Reads) -> None:
    path = make(home, 1, session(1))
    more = line(message(2, "assistant", "Yes"))
    add(path, more[:20])
    assert store.listing()[0]["message_count"] == 1
    add(path, more[20:])
    reads.take()
    assert store.listing()[0]["message_count"] == 2
    assert reads.take() == {path.name: 1}


@pytest.mark.parametrize("part", ["size", "mtime_ns", "ctime_ns", "inode"])
@pytest.mark.parametrize("difference", [-1, 1, -(10**12), 10**12])
def test_a_file_whose_stamp_differs_at_all_is_read_again(store: Store, home: Path, part: str, difference: int) -> None:
    (path,) = lay(home, 1)
    store.listing()
    edit(path)
    forge(home, path)
    assert store.titles() == ["Title 1"], "or else the test shows nothing"
    forge(home, path, **{part: difference})
    assert store.titles() == ["TITLE 1"]
    store.assert_agrees()


def same_but_for_the_content(path: Path) -> None:
    mtime_ns = path.stat().st_mtime_ns
    replace(path, path.read_bytes().replace(b"Title", b"TITLE"))
    set_times(path, mtime_ns)


def touched_back(path: Path) -> None:
    edit(path)
    set_times(path, 10**18)


def touched_forward(path: Path) -> None:
    edit(path)
    set_times(path, time.time_ns() + 24 * HOUR_NS)


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 30])


def cut_and_grown(path: Path) -> None:
    cut(path)
    add(path, b"x" * 40 + b"\n" + line(message(50, "user", "New")))


def moved_deep(path: Path) -> None:
    deep = path.parent.parent / "a" / "b" / path.name
    deep.parent.mkdir(parents=True)
    path.rename(deep)


def copied(path: Path) -> Path:
    copy = path.parent.parent / "copy" / path.name
    copy.parent.mkdir()
    shutil.copy2(path, copy)
    return copy


def becomes(make_other: Act) -> Act:
    """Something else gets the name of the file."""

    def become(path: Path) -> None:
        path.rename(path.with_name("kept"))
        make_other(path)

    return become


UNDO = {"type": "undo", "id": new_id(90), "ids": [new_id(1)]}
HAPPENINGS: dict[str, Act] = {
    "edited in place": edit,
    "replaced, with size and mtime kept": same_but_for_the_content,
    "edited, and its mtime set back by git": touched_back,
    "edited, and its mtime set forward": touched_forward,
    "touched only": lambda path: set_times(path, 10**18),
    "cut": cut,
    "cut and grown again": cut_and_grown,
    "rewritten, longer": lambda path: path.write_bytes(session(1, "Quite another beginning") * 3),
    "emptied": lambda path: path.write_bytes(b""),
    "grown": lambda path: add(path, line(message(50, "user", "More"))),
    "torn": lambda path: add(path, b'{"type":"mess'),
    "repeated": lambda path: add(path, path.read_bytes()),
    "taken back": lambda path: add(path, line(UNDO)),
    "removed": os.remove,
    "removed with its folder": lambda path: shutil.rmtree(path.parent),
    "moved": lambda path: path.rename(path.parent.parent / path.name),
    "moved deep": moved_deep,
    "hidden": lambda path: path.parent.rename(path.parent.parent / ".hidden"),
    "renamed": lambda path: path.rename(path.with_name(f"{new_id(77)}.jsonl")),
    "renamed to what is no session": lambda path: path.rename(path.with_name("notes.jsonl")),
    "copied": copied,
    "copied, and the copy grew": lambda path: add(copied(path), line(message(50, "user", "More"))),
    "now a folder": becomes(os.mkdir),
}
if sys.platform != "win32":
    HAPPENINGS |= {
        "now a broken link": becomes(lambda path: path.symlink_to("nowhere")),
        "now a link to what it was": becomes(lambda path: path.symlink_to("kept")),
        "now a FIFO": becomes(os.mkfifo),
    }


@pytest.mark.parametrize("happen", HAPPENINGS.values(), ids=HAPPENINGS)
def test_whatever_happened_to_a_file_is_seen(store: Store, home: Path, happen: Act) -> None:
    path, *_ = lay(home, 1, 2, 3)
    make(home, 3, session(3))
    store.assert_agrees()
    happen(path)
    store.assert_agrees()
    assert store.catalogue.state(fresh_rows(store)) == "ok"
    assert store.notes == []


def fresh_rows(store: Store) -> list[Any]:
    return [index_module.Row.of(path, store.catalogue.read_file(path), young=False) for path in store.catalogue.files()]


def test_the_rows_of_files_that_are_gone_are_dropped(store: Store, home: Path) -> None:
    one, _ = lay(home, 1, 2)
    store.listing()
    one.unlink()
    assert store.titles() == ["Title 2"]
    assert [path for (path,) in sql(home, "SELECT path FROM files")] == [f"2026-09/{new_id(2)}.jsonl"]
    assert len(sql(home, "SELECT path FROM readings")) == 1


def test_times_come_from_the_records(store: Store, home: Path) -> None:
    one, two = lay(home, 1, 2)
    set_times(one, time.time_ns() + HOUR_NS)
    set_times(two, 10**18)
    assert [session["last_used"] for session in store.listing()] == ["2026-09-21T14:13:22Z", "2026-09-21T14:13:21Z"]


# --- Within one tick of the clock ------------------------------------------------------------------


@pytest.mark.parametrize(("read_later_ns", "seen"), [(0, "TITLE 1"), (HOUR_NS, "Title 1")])
def test_a_row_read_within_a_tick_of_the_change_is_not_trusted(
    home: Path, monkeypatch: pytest.MonkeyPatch, read_later_ns: int, seen: str
) -> None:
    store = Store(home)
    (path,) = lay(home, 1)
    set_times(path, time.time_ns() // 10**6 * 10**6)  # whole milliseconds: perhaps a clock that ticks every 2 s
    at(monkeypatch, read_later_ns)
    store.listing()
    edit(path)
    forge(home, path)  # as if it had happened within the same tick
    assert store.titles() == [seen]


def test_a_young_row_is_read_again_once(home: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads) -> None:
    store = Store(home)
    (path,) = lay(home, 1)
    ctime = path.stat().st_ctime_ns
    monkeypatch.setattr(catalogue_module, "read_time_ns", lambda: ctime)
    for _ in range(2):
        store.catalogue.stamps()
        assert reads.take().keys() == {path.name}
    at(monkeypatch, HOUR_NS)
    store.catalogue.stamps()
    assert reads.take() == {path.name: 0}, "nothing new in it"
    store.catalogue.stamps()
    assert reads.take() == {}
    store.assert_agrees()


@pytest.fixture
def young(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session whose row is young, and will stay so for an hour."""
    (path,) = lay(home, 1)
    monkeypatch.setattr(catalogue_module, "read_time_ns", lambda: path.stat().st_ctime_ns)
    Store(home).listing()
    return path


def test_a_listing_compares_young_files_and_takes_no_lock(home: Path, young: Path, reads: Reads) -> None:
    """The listing right after a turn need not read what that has just written."""
    store = Store(home)
    before = tree(home)
    assert store.titles() == ["Title 1"]
    assert (store.locks, reads.take(), tree(home)) == ([], {}, before)


@pytest.mark.parametrize(("limit", "locks"), [(0, 1), (10**6, 0)])
def test_large_young_files_are_read(
    home: Path, young: Path, monkeypatch: pytest.MonkeyPatch, limit: int, locks: int
) -> None:
    monkeypatch.setattr(catalogue_module, "MOST_COMPARED", limit)
    store = Store(home)
    assert store.titles() == ["Title 1"]
    assert len(store.locks) == locks


def test_a_young_file_that_was_not_whole_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line may have been finished since, within the same tick and at the same size."""
    path = make(home, 1, session(1) + line(message(50, "user", "Title 50"))[:-1] + b" ")
    monkeypatch.setattr(catalogue_module, "read_time_ns", lambda: path.stat().st_ctime_ns)
    store = Store(home)
    assert store.listing()[0]["message_count"] == 1
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    forge(home, path)
    assert store.listing()[0]["message_count"] == 2


def test_the_time_of_reading_is_taken_before_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home)
    (path,) = lay(home, 1)
    ctime = path.stat().st_ctime_ns
    real = session_file.read
    now = [ctime]

    def slow_read(*args: Any) -> session_file.Reading:
        now[0] += HOUR_NS
        return real(*args)

    monkeypatch.setattr(session_file, "read", slow_read)
    monkeypatch.setattr(catalogue_module, "read_time_ns", lambda: now[0])
    store.listing()
    assert [row.young for row in store.catalogue.index.rows()] == [True]


# --- Where files are found -------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "2026-09", "mine", "a/b/c/d", "with space", "ünï", "a.jsonl", "locks"])
def test_a_file_is_found_by_its_name_wherever_it_lies(store: Store, home: Path, folder: str) -> None:
    path = home / "sessions" / folder / f"{new_id(1)}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(session(1))
    for _ in range(2):
        assert [session["path"] for session in store.listing()] == [str(path)]
    store.assert_agrees()


@pytest.mark.parametrize(
    "name",
    [
        f".hidden/{new_id(1)}.jsonl",
        f"a/.git/b/{new_id(1)}.jsonl",
        f"2026-09/.{new_id(1)}.jsonl.tmp",
        f"2026-09/.{new_id(1)}.jsonl",
        f"2026-09/{new_id(1)}.json",
        f"2026-09/{new_id(1)}.jsonl~",
        f"2026-09/{new_id(1)}.JSONL",
        f"2026-09/{new_id(1).upper()}.jsonl",
        f"2026-09/x{new_id(1)[1:]}.jsonl",
        f"2026-09/{new_id(1)[:-1]}ß.jsonl",
        f"2026-09/copy of {new_id(1)}.jsonl",
        f"2026-09/{new_id(1)}.jsonl/{new_id(1)}.jsonl",
        "notes.jsonl",
    ],
)
def test_what_is_not_called_like_a_session_is_none(store: Store, home: Path, name: str) -> None:
    path = home / "sessions" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(session(1))
    assert store.listing() == []
    assert not (home / "sessions.db").exists()


@posix
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "FIFO", "folder"])
def test_what_is_no_file_is_left_alone(store: Store, home: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside" / f"{new_id(1)}.jsonl"
    outside.parent.mkdir()
    outside.write_bytes(session(1))
    (two,) = lay(home, 2)
    place = two.with_name(outside.name)
    if kind == "link to a file":
        place.symlink_to(outside)
    elif kind == "link to a folder":
        (home / "sessions" / "linked").symlink_to(outside.parent)
    elif kind == "FIFO":
        os.mkfifo(place)
    else:
        place.mkdir()
    assert store.titles() == ["Title 2"]
    store.assert_agrees()


def test_of_two_files_with_one_id_the_one_with_more_records_is_listed(store: Store, home: Path) -> None:
    (path,) = lay(home, 1)
    first, last = (home / "sessions" / name / path.name for name in ("0", "9"))
    for other in (first, last):
        other.parent.mkdir()
        other.write_bytes(path.read_bytes())
    assert [session["path"] for session in store.listing()] == [str(first)], "of equal ones the first"
    for number, longest in enumerate((last, path, first), start=50):
        add(longest, b"".join(line(message(n, "user", "More")) for n in range(50, number + 1)))
        assert [session["path"] for session in store.listing()] == [str(longest)]
        store.assert_agrees()


def test_a_store_that_was_moved_is_not_read_again(store: Store, home: Path, tmp_path: Path, reads: Reads) -> None:
    lay(home, 1)
    store.listing()
    reads.take()
    moved = home.rename(tmp_path / 'my "new" störe')
    (session,) = Store(moved).listing()
    assert session["path"] == str(moved / "sessions" / "2026-09" / f"{new_id(1)}.jsonl")
    assert reads.take() == {}


@posix
def test_a_folder_whose_name_is_no_unicode(store: Store, home: Path) -> None:
    lay(home, 1)
    store.listing()
    path = home / "sessions" / os.fsdecode(b"caf\xe9") / f"{new_id(2)}.jsonl"
    path.parent.mkdir()
    path.write_bytes(session(2))
    for _ in range(2):
        assert store.listing()[0]["path"] == str(path)
        store.assert_agrees()
    assert store.catalogue.rebuild(0) == 2
    store.assert_agrees()


# --- What cannot be read ---------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_told_and_hides_no_other(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = lay(home, 1, 2)
    refuse(monkeypatch, one)
    assert store.titles() == ["Title 2"]
    assert store.notes == [f"cannot read {one}: Permission denied"]
    store.assert_agrees()
    monkeypatch.undo()
    assert store.titles() == ["Title 2", "Title 1"]


def test_a_file_that_cannot_be_read_any_more_is_not_listed(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = lay(home, 1, 2)
    store.listing()
    edit(one)
    refuse(monkeypatch, one)
    assert store.titles() == ["Title 2"]
    store.assert_agrees()


def test_a_file_that_goes_while_it_is_read_is_gone(store: Store, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = lay(home, 1, 2)
    real = session_file.read

    def read(path: str, *args: Any) -> session_file.Reading:
        if path == str(one):
            one.unlink(missing_ok=True)
        return real(path, *args)

    monkeypatch.setattr(session_file, "read", read)
    assert store.titles() == ["Title 2"]
    assert store.notes == []


@pytest.mark.parametrize("call", ["listdir", "lstat"])
def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    lay(home, 1, 2)
    store.listing()

    def fail(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreUnreadable, match="cannot read"):
        store.listing()


# --- An index that cannot be had -------------------------------------------------------------------


def test_an_empty_store_gets_no_index(store: Store, home: Path) -> None:
    assert store.listing() == []
    assert store.catalogue.rebuild(0) == 0
    assert not home.exists()
    (home / "sessions").mkdir(parents=True)
    assert store.listing() == []
    assert tree(home) == {"sessions": None}


def test_a_busy_index_is_not_waited_for_twice(store: Store, home: Path) -> None:
    lay(home, 1)
    store.is_busy = True
    assert store.titles() == ["Title 1"]
    assert store.locks == [index_module.BUSY_SECONDS]
    assert index_module.BUSY_SECONDS == 2


def test_a_locked_index_is_not_waited_for_twice(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    (path,) = lay(home, 1)
    store.listing()
    add(path, line(message(2, "assistant", "Yes")))
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0.01)
    waited: list[float] = []
    real: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(*args: Any, **named: Any) -> sqlite3.Connection:
        waited.append(named["timeout"])
        return real(*args, **named)

    with closing(real(home / "sessions.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", connect)
        reads.take()
        assert store.listing()[0]["message_count"] == 2
    assert sum(waited) == pytest.approx(0.01)
    assert reads.take() == {path.name: 3}


def test_a_rebuild_of_an_index_that_another_program_holds_is_no_fault_of_the_disk(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(home, 1)
    store.listing()
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0.01)
    with closing(sqlite3.connect(home / "sessions.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SessionBusy):
            store.catalogue.rebuild(0)


@pytest.mark.parametrize("way", ["locked", "lock", "read-only", "foreign", "folder", "no folder"])
def test_without_the_index_the_answer_is_made_from_the_files(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    one, two, _ = lay(home, 1, 2, 3)
    store.listing()
    one.unlink()
    edit(two)
    lay(home, 4)
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0)
    database = home / "sessions.db"
    with closing(sqlite3.connect(":memory:" if way == "foreign" else database, isolation_level=None)) as other:
        spoil(store, way, other, monkeypatch)
        for _ in range(2):
            store.assert_agrees()
            assert store.titles() == ["Title 4", "Title 3", "TITLE 2"]
    assert len(store.notes) == (1 if way in {"foreign", "folder"} else 0), "once is enough"


def spoil(store: Store, way: str, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the index one that cannot be had, or not be written."""
    database = store.home / "sessions.db"
    real: Callable[..., sqlite3.Connection] = sqlite3.connect
    if way == "locked":
        other.execute("BEGIN EXCLUSIVE")
    elif way == "lock":
        store.is_busy = True
    elif way == "read-only":
        uri = f"{database.as_uri()}?mode=ro"
        monkeypatch.setattr(sqlite3, "connect", lambda _, **named: real(uri, uri=True, **named))
    elif way == "foreign":
        database.unlink()
        database.write_bytes(b"my notes")
    elif way == "folder":
        database.unlink()
        database.mkdir()
    else:
        store.catalogue.index.path = str(store.home / "no" / "sessions.db")


def test_what_the_index_knows_is_not_read_again_while_it_is_busy(store: Store, home: Path, reads: Reads) -> None:
    (one, *_) = lay(home, 1, 2, 3)
    store.listing()
    add(one, line(message(50, "user", "More")))
    reads.take()
    store.is_busy = True
    assert store.listing()[0]["message_count"] == 2
    assert reads.take() == {one.name: 1}


@pytest.mark.parametrize("table", ["files", "readings"])
@pytest.mark.parametrize("ruin", ["missing", "nonsense"])
def test_an_index_with_ruins_in_it_is_built_again(
    store: Store, home: Path, reads: Reads, table: str, ruin: str
) -> None:
    one, _ = lay(home, 1, 2)
    store.listing()
    if ruin == "missing":
        sql(home, f"DROP TABLE {table}")
    else:
        sql(home, "UPDATE readings SET saved = '{'")
    add(one, line(message(50, "user", "More")))
    assert store.titles() == ["Title 1", "Title 2"]
    store.assert_agrees()
    reads.take()
    assert store.titles() == ["Title 1", "Title 2"]
    assert reads.take() == {}, "from now on the index is used again"


# --- Two processes at once -------------------------------------------------------------------------


def test_what_another_process_read_while_we_waited_is_not_read_again(
    store: Store, home: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(home, 1)
    store.listing()
    lay(home, 2)

    @contextmanager
    def wait(_: float) -> Iterator[None]:
        assert Store(home).titles() == ["Title 2", "Title 1"]
        reads.take()
        yield

    monkeypatch.setattr(store.catalogue, "_lock", wait)
    assert store.titles() == ["Title 2", "Title 1"]
    assert reads.take() == {}


def test_a_turn_that_ends_while_its_file_is_read_keeps_its_row(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = lay(home, 1)
    store.listing()
    add(path, line(message(50, "user", "More")))
    real = session_file.read

    def read(name: str, *args: Any) -> session_file.Reading:
        reading = real(name, *args)
        monkeypatch.setattr(session_file, "read", real)
        add(path, line(message(51, "user", "and more")))
        newest = real(name, path.stem)
        store.catalogue.index.put(index_module.Row.of(f"2026-09/{path.name}", newest, young=False))
        return reading

    monkeypatch.setattr(session_file, "read", read)
    assert store.listing()[0]["message_count"] == 3
    assert sql(home, "SELECT stamp FROM files") == [(index_module.packed(*session_file.stamp_of(path.stat())),)]


def make_anew(home: Path, path: Path) -> None:
    """Throw the index away, as anybody may; and a turn on another session makes it, with its own row only."""
    (home / "sessions.db").unlink()
    other = Store(home).catalogue
    other.index.put(index_module.Row.of(f"2026-09/{path.name}", session_file.read(str(path), path.stem), young=False))


@pytest.mark.parametrize("when", ["stamps", "lines", "rows", "unused_since", "change"])
def test_an_index_that_is_made_anew_meanwhile_hides_no_session(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path, other = lay(home, 1, 2)
    store.listing()
    if when in {"change", "stamps"}:
        add(other, line(message(50, "user", "More")))
    index = store.catalogue.index
    real = getattr(index, when)

    def act(*arguments: Any, **more: Any) -> Any:
        if when != "stamps" or more:  # after the change
            monkeypatch.setattr(index, when, real)
            make_anew(home, path)
        return real(*arguments, **more)

    monkeypatch.setattr(index, when, act)
    if when in {"rows", "unused_since"}:
        rows = store.catalogue.rows() if when == "rows" else store.catalogue.unused_since("2030")[0]
        assert {row.path for row, _ in rows} == {f"2026-09/{each.name}" for each in (path, other)}
    else:
        assert store.titles() == ["Title 2", "Title 1"]
    assert getattr(index, when) == real, "it was made anew"
    store.assert_agrees()


def test_an_index_that_is_always_made_anew_is_done_without(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = lay(home, 1, 2)
    store.listing()
    real = store.catalogue.index.lines

    def act(*arguments: Any) -> list[bytes]:
        make_anew(home, path)
        return real(*arguments)

    monkeypatch.setattr(store.catalogue.index, "lines", act)
    assert store.titles() == ["Title 2", "Title 1"]
    assert store.notes == []


# --- Building it again -----------------------------------------------------------------------------


def test_a_rebuild_reads_everything_from_its_start(store: Store, home: Path, reads: Reads) -> None:
    one, two = lay(home, 1, 2)
    store.listing()
    sql(home, "UPDATE files SET listed = replace(listed, 'Title', 'A lie')")
    assert store.titles() == ["A lie 2", "A lie 1"], "a lie that no stamp shows"
    reads.take()
    assert store.catalogue.rebuild(5) == 2
    assert reads.take() == {one.name: 2, two.name: 2}
    assert store.locks[-1] == 5
    store.assert_agrees()


def test_a_rebuild_counts_sessions(store: Store, home: Path) -> None:
    path, *_ = lay(home, 1, 2)
    shutil.copytree(path.parent, home / "sessions" / "copy")
    assert store.catalogue.rebuild(0) == 2


def test_a_rebuild_that_cannot_be_written_is_an_error(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(home, 1)
    monkeypatch.setattr(store.catalogue.index, "path", str(home / "no" / "sessions.db"))
    with pytest.raises(StoreWriteFailed, match="cannot write the index"):
        store.catalogue.rebuild(0)
    store.is_busy = True
    with pytest.raises(SessionBusy):
        store.catalogue.rebuild(0)


def test_an_index_elsewhere_leaves_none_at_home(home: Path, tmp_path: Path, late: None, reads: Reads) -> None:
    store = Store(home, tmp_path / "fast" / "index.db")
    (tmp_path / "fast").mkdir()
    lay(home, 1)
    store.listing()
    assert not (home / "sessions.db").exists()
    reads.take()
    assert store.titles() == ["Title 1"]
    assert reads.take() == {}
