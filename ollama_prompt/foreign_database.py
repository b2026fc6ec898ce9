"""Databases of other programs: read only, but for the one that is set aside.

    opened    a connection to read with. Nothing is written to the database, nor beside it.
    watched   tells whether another program wrote to it meanwhile, and in the end keeps all from writing.

All that sqlite3 can raise becomes `ImportFailed` here, and only here.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import ExitStack, closing, contextmanager, suppress

from ollama_prompt.errors import ImportFailed
from ollama_prompt.foreign_values import text_of
from ollama_prompt.text import valid_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ollama_prompt.drafts import Conversation, Note
    from ollama_prompt.foreign_values import Row

    Found = tuple[int, Iterable[Conversation]]

MAGIC = b"SQLite format 3\0"
PATIENCE = 5.0
"""Seconds to wait for a program that holds its database."""


class _Damaged(ImportFailed):
    """A database, or a part of it, cannot be read."""

    def __init__(self, path: str, reason: object) -> None:
        hint = 'take a copy from a backup; or "sqlite3 FILE .recover" saves what can be saved'
        super().__init__(f"{valid_text(path)} is damaged: {reason}", hint=hint)


def cannot_read(path: str, error: Exception) -> ImportFailed:
    """What else keeps a file from being read."""
    reason = getattr(error, "strerror", None) or str(error) or "it is too large"
    hint = "look at the path, and who may read it"
    if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
        hint = "a copy of it is read: make room for that, or let TMPDIR name another folder"
    return ImportFailed(f"cannot read {valid_text(path)}: {reason}", hint=hint)


class _Unrecovered(Exception):
    """A database needs what only a writer may do: a change that a crash cut off has to be finished or undone."""


class Database:
    """A connection to read with."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._columns: dict[str, set[str]] = {}

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows that a query gives."""
        with _translated(self._path):
            return self._connection.execute(query, values).fetchall()

    def columns(self, table: str) -> set[str]:
        """The columns of a table; none if there is no such table."""
        if table not in self._columns:
            rows = self.rows("SELECT name FROM pragma_table_info(?)", table)
            self._columns[table] = {text_of(row[0]) for row in rows}
        return self._columns[table]

    def select(self, table: str, wanted: tuple[str, ...], where: str, *values: object) -> list[Row]:
        """Rows by column; a column that this release of the program did not have is None, a table has no rows then."""
        columns = self.columns(table)
        if not columns:
            return []
        named = ", ".join(name if name in {"rowid", *columns} else f"NULL AS {name}" for name in wanted)
        rows = self.rows(f"SELECT {named} FROM {table} WHERE {where}", *values)
        return [dict(zip(wanted, row, strict=True)) for row in rows]

    def each(
        self, items: Iterable[tuple[str, Any]], conversation: Callable[[Any], Conversation | None], note: Note
    ) -> Iterator[Conversation]:
        """The conversations of these (name, item). Each has a transaction of its own, so that nobody waits for long."""
        for name, item in items:
            try:
                self.rows("BEGIN")
                made = conversation(item)
            except (_Damaged, MemoryError) as error:
                note(f"{name}: left out: {str(error) or 'it is too large'}")
                made = None
            finally:
                with suppress(sqlite3.Error):
                    self._connection.rollback()
            if made:
                yield made


@contextmanager
def opened(path: str) -> Iterator[Database]:
    """A database. Raises `ImportFailed`."""
    with ExitStack() as stack:
        yield _opened(os.path.realpath(path), stack)


def _opened(path: str, stack: ExitStack) -> Database:
    try:
        if not _gets_files(path):
            with suppress(_Unrecovered):
                return _connected(path, _uri(path, "mode=ro"), stack)
        return _copied(path, stack)
    except (OSError, _Unrecovered) as error:
        raise cannot_read(path, error) from error


def _gets_files(path: str) -> bool:
    """Whether SQLite would make files beside a database to read it.

    One with a write-ahead log gets a log and an index of it from whoever opens it, unless another program that has
    it open has made them.
    """
    with open(path, "rb") as file:
        is_logged = file.read(20)[18:] == b"\2\2"
    return is_logged and not os.path.exists(path + "-shm")


def _copied(path: str, stack: ExitStack) -> Database:
    """A copy in a folder where SQLite may do what has to be done before it can be read."""
    import shutil
    import tempfile

    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    stack.callback(folder.cleanup)
    copy = os.path.join(folder.name, "copy.db")
    for suffix in ("-wal", "-journal", ""):
        with suppress(FileNotFoundError):
            shutil.copyfile(path + suffix, copy + suffix)
    database = _connected(path, _uri(copy, "mode=rw"), stack)
    folder.cleanup()  # what is open needs no name (but on Windows): so a process that is ended leaves no copy behind
    return database


def _connected(path: str, uri: str, stack: ExitStack) -> Database:
    """`path` is how messages name the database."""
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None)
        stack.enter_context(closing(connection))
        connection.text_factory = text_of
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if "readonly" in str(error) or "unable to open" in str(error):
            raise _Unrecovered(str(error)) from error
        raise _failure(path, error) from error
    except (sqlite3.Error, UnicodeError) as error:  # it decodes SQLite's message, which may quote any bytes
        raise _Damaged(path, error) from error
    return Database(path, connection)


@contextmanager
def watched(path: str) -> Iterator[Callable[[], bool]]:
    """Yields what stops all who write to a database, and tells whether nobody did since it was called last.

    What a crash cut off is finished or undone, so that the file alone holds all. Raises `ImportFailed`.
    """
    uri = _uri(os.path.realpath(path), "mode=rw")
    with (
        _translated(path),
        closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA journal_mode = DELETE")
        seen = _version(connection)

        def is_still() -> bool:
            nonlocal seen
            connection.execute("BEGIN IMMEDIATE")
            before, seen = seen, _version(connection)
            if seen != before:
                connection.execute("ROLLBACK")
            return seen == before

        yield is_still


def _version(connection: sqlite3.Connection) -> int:
    """Another number whenever another connection has committed something."""
    number: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return number


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _failure(path, error) from error
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise _Damaged(path, error) from error


def _failure(path: str, error: sqlite3.OperationalError) -> ImportFailed:
    said = str(error)
    if "locked" in said or "busy" in said:
        hint = "another program is writing to it: try again when it is done"
        return ImportFailed(f"{valid_text(path)} is locked", hint=hint)
    if "no such" in said or "I/O" in said or "too big" in said:
        return _Damaged(path, said)
    return cannot_read(path, error)


def _uri(path: str, way: str) -> str:
    from urllib.parse import quote

    if os.sep == "\\":
        path = path.replace("\\", "/")
    path = path if path.startswith("/") else "/" + path
    return f"file://{quote(os.fsencode(path), safe='/:')}?{way}"
