"""sessions.db: what the listing shows of every session file, kept in SQLite.

An index only, safe to throw away: each row is what reading one file gave, with the file's stamp from
that moment. A row is right exactly as long as the file still has that stamp. One caveat, known from
version control as racy timestamps: a file that changes twice within one tick of the file system's clock
can keep its stamp, so a row that was read within a tick of the file's last change is `young`: later the file
is compared with it, or read once more.

Rules:
- The file is ours if it carries our `application_id`, and nobody's conversations. One that is not ours is never
  written to, whatever it is. Bytes that are no database at all are ours only if they lie in the very file that we
  made: `made` is a second name of it, a hard link, which keeps its inode from being given to another file.
- Ours, but of another schema or corrupt: thrown away and built again, under the index lock.
- One that was made anew while we read it, after somebody threw it away, may lack rows yet: each making has an id, and
  what must fit the stamps that were read comes of the same making.
- Everything that SQLite can raise becomes `IndexUnusable` here, and only here.
- No WAL: the store may lie on a network drive.
- No fsync: what a power failure spoils is built again, and a hundred processes that each wait for the disk
  while they hold the index would keep the last of them waiting for seconds.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import time
from contextlib import contextmanager, suppress
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ollama_prompt.session_file import Reading, Stamp

    Stamps = dict[str, bytes]
    """Path below `sessions`, with / → the file's stamp as bytes; `YOUNG` if it is to be read again."""

APPLICATION_ID = 0x6F6C7072  # "olpr"
SCHEMA_VERSION = 4
FIRST_PAGE = 4096
"""Bytes at the beginning of a database where its tables are named."""
TABLE_OF_1X = b"CREATE TABLE sessions"
"""Conversations, which ollama-prompt 1.x puts into our index if it is told that its database is there."""
BUSY_SECONDS = 2.0
CROWD = 15
"""How many times `BUSY_SECONDS` a writer waits while it sees others get on."""

TICK_NS = 50_000_000
"""Longer than the clock tick of a local file system (up to 10 ms on Linux)."""
COARSE_TICK_NS = 2_000_000_000
"""FAT keeps times to 2 s; assumed where a time has no fraction of a millisecond."""

packed = struct.Struct("<4q").pack
"""A stamp as bytes: one value of SQLite's instead of four, as each costs in a listing, and one comparison."""
YOUNG = b""
_unpacked = struct.Struct("<4q").unpack
NO_CRC = -1
"""In place of the CRC-32 of a file that was not read to its last byte."""

_SCHEMA = f"""
CREATE TABLE files (
  last_used TEXT, last_id TEXT, path TEXT, session_id TEXT NOT NULL,
  stamp BLOB, young INTEGER,
  record_count INTEGER, listed TEXT, path_json TEXT,
  PRIMARY KEY (last_used DESC, last_id DESC, path)
) WITHOUT ROWID;
CREATE INDEX by_path ON files (path, stamp, young);
CREATE INDEX by_session ON files (session_id);
CREATE TABLE readings (path TEXT PRIMARY KEY, saved TEXT) WITHOUT ROWID;
CREATE TABLE making (id BLOB);
INSERT INTO making VALUES (randomblob(16));
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
"""`files` is kept in the order in which it is listed, so that listing is one scan without sorting, and without what
only a later reading needs. Stamps are read from `by_path` alone. `young` is NULL, or the CRC-32 of the file as read."""

_LINES = """
SELECT CAST(listed || ? || path_json || '"}' AS BLOB) FROM files ORDER BY last_used DESC, last_id DESC LIMIT ?
"""
_STAMPS = "SELECT path, CASE WHEN young IS NULL THEN stamp ELSE x'' END FROM files"
_CONTENT = "SELECT stamp, young FROM files WHERE path = ?"
_ROWS = "SELECT files.*, saved FROM files LEFT JOIN readings USING (path)"


class IndexUnusable(Exception):
    """The index cannot be used now: "missing", "foreign", "unreadable", "corrupt", "busy" or "remade"."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


class Row:
    """One session file as the index knows it.

    `path` is relative to `sessions`, with /. `listed` is the session's line of the listing as JSON, up to
    the value of its last key, the path: where the store lies may change. `saved` is what a later reading
    goes on from.
    """

    __slots__ = ("last_id", "last_used", "listed", "path", "record_count", "saved", "session_id", "stamp", "young")

    def __init__(self, path: str, session_id: str, stamp: Stamp, young: bool) -> None:
        self.path = path
        self.session_id = session_id
        self.stamp = stamp
        self.young = young
        self.last_used = self.last_id = self.listed = ""
        self.record_count = 0
        self.saved: dict[str, Any] = {}

    @classmethod
    def of(cls, path: str, reading: Reading, young: bool) -> Row:
        """The row for a file that was read just now."""
        import json  # not for the listing, which only prints what was made here

        summary = reading.summary
        row = cls(path, summary.session_id, reading.stamp, young)
        row.last_used, row.last_id = summary.last_used or "", summary.last_id
        row.record_count = summary.record_count
        row.listed = json.dumps(summary.listed(), ensure_ascii=False)[:-1] + ', "path": "'
        row.saved = summary.saved() | {"end": reading.end, "crc": reading.crc}
        return row

    @property
    def stamp_or_young(self) -> bytes:
        """As `Index.stamps` gives it."""
        return YOUNG if self.young else packed(*self.stamp)

    def line(self, folder: str) -> bytes:
        """As `Index.lines` gives it."""
        return f'{self.listed}{path_json(folder)}{path_json(self.path)}"}}'.encode()

    @property
    def title(self) -> str | None:
        """The session's title."""
        import json

        title: str | None = json.loads(self.listed + '"}')["title"]
        return title

    def values(self) -> tuple[Any, ...]:
        """As the table `files` takes it."""
        return (
            self.last_used, self.last_id, self.path, self.session_id, packed(*self.stamp), self._crc_if_young(),
            self.record_count, self.listed, path_json(self.path),
        )  # fmt: skip

    def _crc_if_young(self) -> int | None:
        if not self.young:
            return None
        crc: int = self.saved["crc"]
        return crc if self.saved["end"] == self.stamp[0] else NO_CRC


def path_json(path: str) -> str:
    """A path as part of a JSON string, with the separators of this platform.

    A name that is no valid Unicode, which neither SQLite nor UTF-8 takes, is escaped.
    """
    path = path.replace("/", os.sep)
    if path.isascii() and path.isprintable() and '"' not in path and "\\" not in path:
        return path
    import json

    return json.dumps(path, ensure_ascii=not can_keep(path))[1:-1]


def can_keep(path: str) -> bool:
    """Whether a path is valid Unicode. Of a file whose path is not there is no row: it is read every time."""
    return path.isascii() or path.encode("utf-8", "replace").decode() == path


def is_young(stamp: Stamp, read_at_ns: int) -> bool:
    """Whether a file with this stamp, read at this time, may have changed since without showing it."""
    tick = TICK_NS if stamp[1] % 1_000_000 else COARSE_TICK_NS
    # Either: an mtime that was set to the future must not hide a fresh ctime.
    return any(abs(read_at_ns - changed) <= tick for changed in stamp[1:3])


class Index:
    """The file `path`; `made` is where a second name of the file that we made is kept."""

    def __init__(self, path: str, made: str) -> None:
        self.path = path
        self.made = made
        self._is_busy = False
        self._making: bytes | None = None
        """The making of the index whose stamps were read, or which we made."""

    def state(self) -> str:
        """What lies at the path: "ok", "old", "missing", "corrupt", "foreign" or "unreadable". Opens no database."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                return "foreign"  # a folder; a pipe, which would be waited for; a device, which is everybody's
            with open(self.path, "rb") as file:
                head = file.read(FIRST_PAGE)
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError:
            return "unreadable"
        if not head:
            return "missing"
        if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
            return "corrupt" if self._is_made_by_us() else "foreign"
        if int.from_bytes(head[68:72], "big") != APPLICATION_ID or TABLE_OF_1X in head:
            return "foreign"
        return "ok" if int.from_bytes(head[60:64], "big") == SCHEMA_VERSION else "old"

    def stamps(self, again: bool = False) -> Stamps:
        """All files, in no order; `again` of the same making. Raises `IndexUnusable`."""
        with self._reading() as database:
            if again:
                self._must_be_same(database)
            self._making = _making_of(database)
            stamps = dict(database.execute(_STAMPS).fetchall())
            if None in stamps:
                raise ValueError("a path in a page that was cut")
            return stamps

    def contents(self, paths: Iterable[str]) -> list[tuple[int, bytes, int]]:
        """(Size, stamp, CRC-32 or `NO_CRC`) of each of these files that is young. Raises `IndexUnusable`."""
        with self._reading() as database:
            found = [database.execute(_CONTENT, (path,)).fetchone() for path in paths]
            return [(_unpacked(stamp)[0], stamp, crc) for stamp, crc in filter(None, found) if crc is not None]

    def lines(self, folder: str, limit: int | None = None) -> list[bytes]:
        """All rows, or the first, as they are listed, newest use first; `folder` goes before the paths. As `rows`.

        Raises `IndexUnusable`.
        """
        with self._reading_same() as database:
            found = database.execute(_LINES, (path_json(folder), -1 if limit is None else limit))
            lines = [line for (line,) in found]
            if None in lines:
                raise ValueError("a line in a page that was cut")
            return lines

    def rows(self) -> list[Row]:
        """All rows, of the making whose stamps were read, if any were. Raises `IndexUnusable`."""
        with self._reading_same() as database:
            return [_row(values) for values in database.execute(_ROWS)]

    def rows_at_once(self) -> list[Row]:
        """All rows there are now, if nobody must be waited for. Raises `IndexUnusable`."""
        with self._reading(wait=False) as database:
            return [_row(values) for values in database.execute(_ROWS)]

    def unused_since(self, time: str) -> list[Row]:
        """The rows of files that were last used before then. As `rows`. Raises `IndexUnusable`."""
        with self._reading_same() as database:
            return [_row(values) for values in database.execute(f"{_ROWS} WHERE last_used < ?", (time,))]

    def find(self, session_id: str) -> list[Row]:
        """The rows of one session, usually one. Raises `IndexUnusable`."""
        with self._reading() as database:
            return [_row(values) for values in database.execute(f"{_ROWS} WHERE session_id = ?", (session_id,))]

    def at(self, paths: Iterable[str]) -> dict[str, Row]:
        """The rows of these files, as far as there are any. Raises `IndexUnusable`."""
        with self._reading() as database:
            found = [
                database.execute(f"{_ROWS} WHERE path = ?", (path,)).fetchone() for path in filter(can_keep, paths)
            ]
            return {row[2]: _row(row) for row in found if row}

    def put(self, row: Row) -> None:
        """Keep the row of a file whose session we hold. Makes the index if it is missing. Raises `IndexUnusable`."""
        with self._writing() as database:
            _insert(database, [row])

    def remove(self, session_ids: Iterable[str]) -> None:
        """Forget sessions. Raises `IndexUnusable`."""
        query = "SELECT path FROM files WHERE session_id = ?"
        with self._writing() as database:
            _delete(database, [row for id_ in session_ids for row in database.execute(query, (id_,))])
        with self._connected() as database:  # their titles may be left in pages that moved
            database.execute("PRAGMA synchronous = OFF")
            database.execute("VACUUM")

    def change(self, put: Iterable[Row], gone: Iterable[str], seen: dict[str, Row]) -> None:
        """Keep what a refresh found, except where another process was faster.

        `seen` holds the rows that the refresh started from: one that has another stamp now was written by a
        process that read the file later than we did. Raises `IndexUnusable`.
        """
        stamps = {path: packed(*row.stamp) for path, row in seen.items()}
        with self._writing() as database:
            self._must_be_same(database)
            new = [row for row in put if can_keep(row.path)]
            kept = [row for row in new if _stamp_now(database, row.path) == stamps.get(row.path)]
            gone = filter(can_keep, gone)
            _delete(database, [(path,) for path in gone if _stamp_now(database, path) == stamps.get(path)])
            _insert(database, kept)

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Throw away what is there, if it is ours, and keep these rows. Raises `IndexUnusable`."""
        rows = list(rows)
        if self.state() in {"corrupt", "old"}:
            self.discard()
        try:
            self._replace_rows(rows)
        except IndexUnusable as error:
            if error.state != "corrupt" or self.state() == "foreign":  # laid there since we looked
                raise
            self.discard()
            self._replace_rows(rows)

    def _replace_rows(self, rows: list[Row]) -> None:
        with self._writing() as database:
            for table in ("files", "readings", "making"):  # made anew: with our mark, they may be of another shape
                database.execute(f"DROP TABLE IF EXISTS {table}")
            _make_tables(database)
            _insert(database, rows)
            self._making = _making_of(database)

    def discard(self) -> None:
        """Remove our own database, with the journal, which belongs to that content only."""
        for path in (self.path + "-journal", self.path, self.made):
            with suppress(OSError):
                os.unlink(path)

    @contextmanager
    def _reading(self, wait: bool = True) -> Iterator[sqlite3.Connection]:
        if (state := self.state()) != "ok":
            raise IndexUnusable("corrupt" if state == "old" else state)
        with self._connected(wait) as database:
            yield database

    @contextmanager
    def _reading_same(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            self._must_be_same(database)
            yield database

    def _must_be_same(self, database: sqlite3.Connection) -> None:
        if self._making not in {None, _making_of(database)}:
            raise IndexUnusable("remade")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction on a database with our schema."""
        state = self.state()
        if state not in {"ok", "missing"}:
            raise IndexUnusable("corrupt" if state == "old" else state)
        if state == "missing":  # SQLite would make one that others can read, if only for a moment
            with suppress(OSError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
        with self._connected() as database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("PRAGMA secure_delete = ON")  # what is deleted stays in no free page: titles are text
            self._begin(database)
            if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                self._make(database)
            yield database
            database.execute("COMMIT")

    @contextmanager
    def _connected(self, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection that waits for other processes, until it has done so once in vain."""
        timeout = BUSY_SECONDS if wait and not self._is_busy else 0
        try:
            with _translated(), _connected(self.path, timeout) as database:
                yield database
        except IndexUnusable as error:
            self._is_busy = self._is_busy or error.state == "busy"
            raise

    def _begin(self, database: sqlite3.Connection) -> None:
        """Begin to write. Gives up after `BUSY_SECONDS` without a change: a hundred processes at once all get
        their turn, and one that holds the index for long holds up nobody.
        """
        for _ in range(CROWD):
            before = self._stamp()
            try:
                database.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                if self._stamp() == before:
                    raise
        raise IndexUnusable("busy")

    def _stamp(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_mtime_ns

    def _make(self, database: sqlite3.Connection) -> None:
        if database.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise IndexUnusable("foreign")  # laid there since we looked
        _make_tables(database)
        with suppress(OSError):
            os.chmod(self.path, 0o600)
        with suppress(OSError):
            os.unlink(self.made)
        with suppress(OSError):
            os.link(self.path, self.made)

    def _is_made_by_us(self) -> bool:
        try:
            return os.path.samefile(self.made, self.path)
        except OSError:
            return False


def _row(values: tuple[Any, ...]) -> Row:
    import json

    row = Row(values[2], values[3], _unpacked(values[4]), values[5] is not None)
    if not _is_inside(row.path, row.session_id):  # an index that came from elsewhere must not lead out of the store
        raise ValueError("no path of this session")
    row.last_used, row.last_id, row.record_count, row.listed = *values[:2], *values[6:8]
    row.saved = json.loads(values[9])
    if row.saved.keys() != _saved_keys():
        raise ValueError("no saved reading")
    return row


def _is_inside(path: str, session_id: str) -> bool:
    """Whether this is the path of a session's file, below `sessions`."""
    *folders, name = path.split("/")
    return name == f"{session_id}.jsonl" and all(
        part == os.path.basename(part) and part not in {"", ".", ".."} for part in folders
    )


@cache
def _saved_keys() -> set[str]:
    from ollama_prompt.summary import SAVED  # not for the listing, which takes no rows

    return {*SAVED, "end", "crc"}


def _making_of(database: sqlite3.Connection) -> bytes:
    ((making,),) = database.execute("SELECT id FROM making")
    if not isinstance(making, bytes):
        raise ValueError("no id of a making")
    return making


def _make_tables(database: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        database.execute(statement)


def _insert(database: sqlite3.Connection, rows: list[Row]) -> None:
    import json

    rows = [row for row in rows if can_keep(row.path)]
    _delete(database, [(row.path,) for row in rows])
    saved = ((row.path, json.dumps(row.saved, ensure_ascii=False, separators=(",", ":"))) for row in rows)
    database.executemany(f"INSERT INTO files VALUES ({', '.join('?' * 9)})", (row.values() for row in rows))
    database.executemany("INSERT INTO readings VALUES (?, ?)", saved)


def _delete(database: sqlite3.Connection, paths: list[tuple[str]]) -> None:
    database.executemany("DELETE FROM files WHERE path = ?", paths)
    database.executemany("DELETE FROM readings WHERE path = ?", paths)


def _stamp_now(database: sqlite3.Connection, path: str) -> bytes | None:
    found: tuple[bytes] | None = database.execute("SELECT stamp FROM files WHERE path = ?", (path,)).fetchone()
    return found[0] if found else None


@contextmanager
def _connected(path: str, timeout: float) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path, timeout=timeout, isolation_level=None)
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
    except (sqlite3.Error, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise IndexUnusable("corrupt") from error
    except OSError as error:
        raise IndexUnusable("busy") from error


def read_time_ns() -> int:
    """The clock that `is_young` compares with a file's stamp."""
    return time.time_ns()
