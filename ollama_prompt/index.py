"""sessions.db: what the listing shows of every session file, kept in SQLite.

An index only, safe to throw away: each row is what reading one file gave, with the file's stamp from
that moment. A row is right exactly as long as the file still has that stamp. One caveat, known from
version control as racy timestamps: a file that changes twice within one tick of the file system's clock
can keep its stamp, so a row that was read within a tick of the file's last change is `young`, and read
once more later.

Rules:
- The file is ours if it carries our `application_id`. One that is not ours is never written to, whatever
  it is: it may hold somebody's conversations. Bytes that are no database at all are ours only if they lie
  in the very file that we made (`made` keeps its inode).
- Ours, but of another schema or corrupt: thrown away and built again, under the index lock.
- Everything that SQLite can raise becomes `IndexUnusable` here, and only here.
- No WAL: the store may lie on a network drive.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ollama_prompt.session_file import Reading, Stamp

APPLICATION_ID = 0x6F6C7072  # "olpr"
SCHEMA_VERSION = 1
BUSY_SECONDS = 2.0

TICK_NS = 50_000_000
"""Longer than the clock tick of a local file system (up to 10 ms on Linux)."""
COARSE_TICK_NS = 2_000_000_000
"""FAT keeps times to 2 s; assumed where a time has no fraction of a millisecond."""

COLUMNS = (
    "path", "session_id", "size", "mtime_ns", "ctime_ns", "inode", "young", "created_at", "last_used",
    "last_id", "model", "title", "message_count", "context_tokens", "record_count", "damage_count", "saved",
)  # fmt: skip

_LISTED = ", ".join(COLUMNS[:-1])
_SCHEMA = f"""
CREATE TABLE files (
  path TEXT PRIMARY KEY, session_id TEXT NOT NULL,
  size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, young INTEGER,
  created_at TEXT, last_used TEXT, last_id TEXT, model TEXT, title TEXT,
  message_count INTEGER, context_tokens INTEGER, record_count INTEGER, damage_count INTEGER,
  saved TEXT
) WITHOUT ROWID;
CREATE INDEX by_session ON files (session_id);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class IndexUnusable(Exception):
    """The index cannot be used now: "missing", "foreign", "corrupt" or "busy"."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


class Row:
    """One session file as the index knows it; `saved` is what a later reading goes on from."""

    __slots__ = COLUMNS

    path: str
    session_id: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    context_tokens: int
    record_count: int
    saved: dict[str, Any]

    def __init__(self, values: Iterable[Any]) -> None:
        for name, value in zip(COLUMNS, values, strict=False):
            setattr(self, name, value)

    @classmethod
    def of(cls, name: str, reading: Reading, young: bool) -> Row:
        """The row for a file that was read just now."""
        summary = reading.summary
        saved = summary.saved() | {"end": reading.end, "crc": reading.crc}
        return cls((
            name, summary.session_id, *reading.stamp, int(young), summary.created_at, summary.last_used,
            summary.last_id, summary.settings.get("model"), summary.settings.get("title") or summary.title,
            summary.message_count, summary.context_tokens, summary.record_count, summary.damage_count, saved,
        ))  # fmt: skip

    @property
    def stamp(self) -> Stamp:
        """The file's stamp when it was read."""
        return self.size, self.mtime_ns, self.ctime_ns, self.inode

    def values(self) -> tuple[Any, ...]:
        """As the database takes it."""
        row = [getattr(self, name) for name in COLUMNS]
        row[-1] = json.dumps(row[-1], ensure_ascii=False, separators=(",", ":"))
        return tuple(row)


def is_young(stamp: Stamp, read_at_ns: int) -> bool:
    """Whether a file with this stamp, read at this time, may have changed since without showing it."""
    changed = max(stamp[1], stamp[2])
    tick = TICK_NS if stamp[1] % 1_000_000 else COARSE_TICK_NS
    return abs(read_at_ns - changed) <= tick


class Index:
    """The file `path`; `made` is the file that remembers which inode was created as our index."""

    def __init__(self, path: str, made: str) -> None:
        self.path = path
        self.made = made

    def state(self) -> str:
        """What lies at the path: "ok", "old", "missing", "corrupt" or "foreign". Opens no database."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(100)
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError:
            return "foreign"
        if not head:
            return "missing"
        if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
            return "corrupt" if self._is_made_by_us() else "foreign"
        if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            return "foreign"
        return "ok" if int.from_bytes(head[60:64], "big") == SCHEMA_VERSION else "old"

    def rows(self) -> list[tuple[Any, ...]]:
        """All rows as plain tuples without `saved`, newest use first. Raises `IndexUnusable`."""
        with self._reading() as database:
            return database.execute(f"SELECT {_LISTED} FROM files ORDER BY last_used DESC, last_id DESC").fetchall()

    def find(self, session_id: str) -> list[Row]:
        """The rows of one session, usually one; the one with the most records first. Raises `IndexUnusable`."""
        query = "SELECT * FROM files WHERE session_id = ? ORDER BY record_count DESC, path"
        with self._reading() as database:
            return [_with_saved(values) for values in database.execute(query, (session_id,))]

    def saved(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What was saved for these files. Raises `IndexUnusable`."""
        with self._reading() as database:
            cursor = database.cursor()
            found = (
                cursor.execute("SELECT path, saved FROM files WHERE path = ?", (name,)).fetchone() for name in names
            )
            return {row[0]: json.loads(row[1]) for row in found if row}

    def put(self, row: Row) -> None:
        """Keep the row of a file whose session we hold. Makes the index if it is missing. Raises `IndexUnusable`."""
        with self._writing() as database:
            database.execute(_UPSERT, row.values())

    def remove(self, session_ids: Iterable[str]) -> None:
        """Forget sessions. Raises `IndexUnusable`."""
        with self._writing() as database:
            database.executemany("DELETE FROM files WHERE session_id = ?", [(id_,) for id_ in session_ids])

    def change(self, put: Iterable[Row], gone: Iterable[str], seen: dict[str, tuple[Any, ...]]) -> None:
        """Keep what a refresh found, except where another process was faster.

        `seen` holds the rows that the refresh started from: a row that has changed since was written by a
        process that read the file later than we did. Raises `IndexUnusable`.
        """
        with self._writing() as database:
            kept = [row.values() for row in put if _stamp_now(database, row.path) == _seen_stamp(seen, row.path)]
            lost = [(name,) for name in gone if _stamp_now(database, name) == _seen_stamp(seen, name)]
            database.executemany("DELETE FROM files WHERE path = ?", lost)
            database.executemany(_UPSERT, kept)

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Throw away what is there, if it is ours, and keep these rows. Raises `IndexUnusable`."""
        if self.state() in {"corrupt", "old"}:
            self.discard()
        try:
            self._replace_rows(rows)
        except IndexUnusable as error:
            if error.state != "corrupt":
                raise
            self.discard()
            self._replace_rows(rows)

    def discard(self) -> None:
        """Remove our own database, with the journal, which belongs to that content only."""
        for path in (self.path + "-journal", self.path):
            with suppress(OSError):
                os.unlink(path)

    def _replace_rows(self, rows: Iterable[Row]) -> None:
        with self._writing() as database:
            database.execute("DELETE FROM files")
            database.executemany(_UPSERT, (row.values() for row in rows))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if (state := self.state()) != "ok":
            raise IndexUnusable("corrupt" if state == "old" else state)
        with _translated(), _connected(self.path) as database:
            yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction on a database with our schema."""
        state = self.state()
        if state not in {"ok", "missing"}:
            raise IndexUnusable("corrupt" if state == "old" else state)
        with _translated(), _connected(self.path) as database:
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                self._make(database)
            yield database
            database.execute("COMMIT")

    def _make(self, database: sqlite3.Connection) -> None:
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        os.chmod(self.path, 0o600)
        with suppress(OSError), open(self.made, "w", encoding="ascii") as file:
            file.write(str(os.stat(self.path).st_ino))

    def _is_made_by_us(self) -> bool:
        try:
            with open(self.made, encoding="ascii") as file:
                return file.read() == str(os.stat(self.path).st_ino)
        except (OSError, ValueError):
            return False


_UPSERT = f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * len(COLUMNS))})"


def _with_saved(values: tuple[Any, ...]) -> Row:
    return Row((*values[:-1], json.loads(values[-1])))


def _stamp_now(database: sqlite3.Connection, name: str) -> tuple[Any, ...] | None:
    query = "SELECT size, mtime_ns, ctime_ns, inode FROM files WHERE path = ?"
    found: tuple[Any, ...] | None = database.execute(query, (name,)).fetchone()
    return found


def _seen_stamp(seen: dict[str, tuple[Any, ...]], name: str) -> tuple[Any, ...] | None:
    return seen[name][2:6] if name in seen else None


@contextmanager
def _connected(path: str) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        yield database
    finally:
        database.close()  # rolls back what was not committed


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        busy = ("locked", "busy", "readonly", "unable to open", "full", "I/O", "authorized", "read-only")
        raise IndexUnusable("busy" if any(word in str(error) for word in busy) else "corrupt") from error
    except (sqlite3.Error, ValueError, KeyError) as error:
        raise IndexUnusable("corrupt") from error
    except OSError as error:
        raise IndexUnusable("busy") from error


def read_time_ns() -> int:
    """The clock that `is_young` compares with a file's stamp."""
    return time.time_ns()
