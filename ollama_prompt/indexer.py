"""The way in to the store: open, list, look into, fork, undo, search, import, purge, delete, check, reindex.

Commands reach files, index and locks only through an `Indexer`. The files are the truth; the index
(`catalogue`) remembers what reading them gave; a turn holds its session (`held_session`) under its lock. What a
turn does not need lies in modules of its own: `importing`, `removal`, `checkup`, `search`, `history`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from ollama_prompt import clock
from ollama_prompt.catalogue import Catalogue, id_of
from ollama_prompt.errors import (
    OllamaPromptError,
    SessionBusy,
    SessionNotFound,
    StoreError,
    StoreUnreadable,
    StoreWriteFailed,
)
from ollama_prompt.index import IndexUnusable, Row
from ollama_prompt.layout import cannot_read, cannot_write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from ollama_prompt.attachments import Attachments
    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.layout import Layout
    from ollama_prompt.query import Scope
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Reading, Stamp

CLAIM_SECONDS = 10.0
"""How long a new session waits for its own lock."""
ATTACHMENTS_SECONDS = 60.0
"""How long to wait while another process keeps or removes pictures."""
HISTORY_SECONDS = 5.0
"""How long to wait while another process writes down what was typed."""

_SHARED = {
    "sync": ("the repository", "--lock-timeout waits longer"),
    "index": ("the index", "--lock-timeout waits longer"),
    "search": ("the index of --search", "search again when it is made"),
    "attachments": ("the folder of pictures", "ask again: nothing was sent or stored"),
    "history": ("the history of what was typed", "remove its lines in history.jsonl by hand"),
}
"""Locks of the store as a whole, and what to do where one cannot be had; every other one is a session's."""


class Indexer:
    """One store. `note` prints a remark for the user, `progress` tells how far something long has come: so many of so
    many. Nothing is made on disk before a session is.
    """

    def __init__(
        self, layout: Layout, note: Callable[[str], None], progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self.layout = layout
        self.catalogue = Catalogue(layout, lambda timeout: self.lock("index", timeout), note, progress)
        self.note = note
        self.progress = progress
        self._is_made = False
        self.adopted: dict[str, tuple[list[str], int]] = {}
        """What `adopt_1x` has imported, by the database's path: as `import_from` gives it."""

    # --- One session ---------------------------------------------------------------------------

    @contextmanager
    def open(self, session_id: str, lock_timeout: float) -> Iterator[HeldSession]:
        """Hold a session for a turn. Raises `SessionNotFound`, `SessionBusy`, `StoreUnreadable`."""
        self.find(session_id)  # before its lock is made: an unknown id leaves no trace
        with self.lock(session_id, lock_timeout), self.opened(session_id) as held:
            yield held

    @contextmanager
    def new(self) -> Iterator[HeldSession]:
        """A session that does not exist yet; on disk, lock and all, once its prompt is stored."""
        session_id = clock.new_id()
        with ExitStack() as stack:
            # Locked before it can be seen, so that nobody continues or purges it meanwhile.
            held = self.held(session_id, claim=lambda: self._claim(session_id, stack))
            try:
                yield held
            except OllamaPromptError as error:
                if held.path is None:
                    error.session_id = None  # there is no such session
                raise
            finally:
                self._keep_index(held)
                if held.path is None and os.path.isdir(self.layout.locks):
                    self.discard_lock(session_id)

    def locate(self, session_id: str) -> tuple[str, Row | None]:
        """The session's file, and its row if that holds for the file as it is. Raises `SessionNotFound`.

        Of several files with the same id the one with the most records is used; a second one deep in folders of
        the user's own is known from the next listing on. A young row is believed here: every turn leaves one, and
        reading the whole file before every next turn would cost more than an edit within that tick can spoil.
        """
        found, rows = self.find(session_id)
        if len(found) > 1:
            found.sort(key=lambda path: (-self.read(path).summary.record_count, path))
        row = rows.get(found[0])
        return found[0], row if row and row.stamp == _stamp_at(found[0]) else None

    def newest(self) -> str:
        """The session used last: by its newest record, ties by that record's id.

        Raises `SessionNotFound`; `StoreUnreadable` where it may be one that cannot be read.
        """
        import json

        lines, _ = self.listing(1)
        newest = json.loads(lines[0]) if lines else None
        for path in map(self.layout.absolute, self.catalogue.unread):
            if newest is None or _modified_ns(path) > _modified_ns(newest["path"]):
                hint = "--check tells why; --session-id continues another one"
                raise StoreUnreadable(f"the session used last may be {path}, which cannot be read", hint=hint)
        if newest is None:
            raise SessionNotFound("there is no session to continue", hint="without --continue a new one begins")
        session_id: str = newest["session_id"]
        return session_id

    def fork(self, session_id: str, message_id: str | None) -> str:
        """A new session that starts as a copy, up to a message if one is named; its id.

        Raises `SessionNotFound`, `UsageError` for a message that the session does not have, `StoreError`s.
        """
        from ollama_prompt import records

        with self._holding_images():
            _, found, reading = self.info(session_id)
            _check_version(reading, session_id)
            with self.new() as held:
                held.copy(*records.fork(found, session_id, held.session_id, message_id))
        self.tell_damage(reading)
        return held.session_id

    def undo(self, session_id: str, lock_timeout: float) -> list[str]:
        """Take back the last turn; the ids of its messages. Raises `NothingToUndo`, else as `open`."""
        from ollama_prompt import records

        with self.open(session_id, lock_timeout) as held:
            undo = held.undo_of(held.last_turn())
            held.add([undo])
        return records.undone_ids(undo)

    def change(self, session_id: str, settings: Record, lock_timeout: float) -> None:
        """Change settings of a session without a turn. Raises as `open`."""
        from ollama_prompt import records

        with self.open(session_id, lock_timeout) as held:
            held.add([records.meta(settings)])

    def import_for_turns(self) -> None:
        """Import what holding a session needs."""
        from ollama_prompt import held_session, locks  # noqa: F401  only to have it loaded

    def typed(self) -> list[str]:
        """What was typed in conversations, oldest first."""
        from ollama_prompt import history

        return history.texts(self.layout, self.lock_history)

    def remember(self, session_id: str, text: str) -> None:
        """Add to what was typed, in a session that has it."""
        from ollama_prompt import history

        history.add(self.layout, self.lock_history, session_id, text)

    def lock_history(self) -> AbstractContextManager[None]:
        """Held for a moment by who changes what was typed."""
        return self.lock("history", HISTORY_SECONDS)

    def attachments(self) -> Attachments:
        """The pictures of the conversations."""
        from ollama_prompt.attachments import Attachments

        return Attachments(self.layout, lambda: self.lock("attachments", ATTACHMENTS_SECONDS))

    def info(self, session_id: str) -> tuple[dict[str, Any], list[Record], Reading]:
        """All that is stored of one session: how it is listed, its records, and what could not be read."""
        from ollama_prompt import session_file

        path, _ = self.locate(session_id)
        try:
            found, reading = session_file.load(path, session_id)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.find(session_id)  # deleted meanwhile: say so
            raise cannot_read(error, session_id) from error
        return reading.summary.listed() | {"path": path}, found, reading

    def delete(self, session_id: str) -> None:
        """Remove a session for real: all that there is of it. Raises `SessionBusy` at once when it is in use."""
        from ollama_prompt import removal

        removal.delete(self, session_id)

    # --- Under git -----------------------------------------------------------------------------

    def syncing(self, lock_timeout: float) -> AbstractContextManager[None]:
        """Nobody else syncs meanwhile. Raises `SessionBusy`."""
        return self.lock("sync", lock_timeout, self.note_waiting)

    @contextmanager
    def holding(self, session_ids: list[str]) -> Iterator[list[str]]:
        """Hold those of these sessions that are here, without waiting; yields the ones that are in use."""
        from ollama_prompt import locks

        here = set(self.session_ids()).intersection(session_ids)
        locks.make_room(len(here))
        in_use: list[str] = []
        with ExitStack() as stack:
            for session_id in sorted(here):
                try:
                    stack.enter_context(self.lock(session_id, 0))
                except SessionBusy:
                    in_use.append(session_id)
            yield in_use

    def session_ids(self) -> list[str]:
        """The session of every file; one that lies in several files is there so many times."""
        return list(map(id_of, self.catalogue.files()))

    def images(self) -> set[str] | None:
        """The SHA-256 of every picture that any session names; None where a file cannot be read."""
        return self.catalogue.images()

    def damaged_pictures(self) -> list[str]:
        """Pictures in the store whose content is not what their name says."""
        pictures = self.attachments()
        there = (name for name in pictures.names() if os.path.exists(self.layout.attachment(name)))
        return [name for name in there if pictures.fault_of(name)]

    def give_back(self, path: str, data: bytes) -> None:
        """Add to a file, relative to the store, the lines of `data` that it has lost. The caller holds the session."""
        from ollama_prompt import session_file

        absolute = self._in_store(path)
        try:
            if not os.path.exists(absolute):
                self.layout.make(os.path.dirname(absolute))
                session_file.create(absolute, data)
                return
            with session_file.opened(absolute) as file:
                there = set(file.read().splitlines())
            if missing := [line + b"\n" for line in data.splitlines() if line not in there]:
                session_file.append(absolute, b"".join(missing))
        except OSError as error:
            raise cannot_write(error) from error

    def replace(self, path: str, data: bytes) -> None:
        """Put a file with these bytes in the place of one, relative to the store, whole or not at all.

        The caller holds the session. Raises `StoreWriteFailed`.
        """
        from ollama_prompt import session_file

        absolute = self._in_store(path)
        try:
            self.layout.make(os.path.dirname(absolute))
            session_file.replace(absolute, data)
        except OSError as error:
            raise cannot_write(error) from error

    def _in_store(self, path: str) -> str:
        return os.path.join(self.layout.home, *path.split("/"))

    # --- For an archive ------------------------------------------------------------------------

    @contextmanager
    def exporting(self, lock: str, lock_timeout: float) -> Iterator[None]:
        """Nobody else exports to the same archive, which has this file as its lock until the end.

        Raises `SessionBusy`, `StoreWriteFailed`.
        """
        from ollama_prompt import locks

        hint = "--lock-timeout waits longer"
        with locks.hold(lock, lock_timeout, "the archive", waiting=self.note_waiting, hint=hint):
            try:
                yield
            finally:
                locks.discard(lock)

    def settled_stamp(self, path: str) -> list[int] | None:
        """A file's stamp; None where it may change again within this tick of the clock, and keep it."""
        from ollama_prompt.index import is_young, read_time_ns

        read_at = read_time_ns()
        stamp = _stamp_at(path)
        return None if stamp is None or is_young(stamp, read_at) else list(stamp)

    # --- Many sessions -------------------------------------------------------------------------

    def sessions(self) -> list[bytes]:
        """Every session as its line of the listing in JSON, newest use first."""
        return self.listing(None)[0]

    def listing(self, limit: int | None) -> tuple[list[bytes], int]:
        """So many sessions as their lines of the listing in JSON, newest use first; and how many there are."""
        lines, total = self.catalogue.listing(limit)
        if not total and _is_1x_there():
            self.note("there are conversations of ollama-prompt 1.x: --import brings them along")
        return lines, total

    def window_limits(self, paths: Iterable[str]) -> dict[str, int]:
        """How many tokens of the conversations in these files may be sent, where they say it."""
        settings = {
            path: row.saved["settings"] for path, row in self.catalogue.at(map(self.layout.name, paths)).items()
        }
        limits = {self.layout.absolute(path): each.get("max_context_tokens") for path, each in settings.items()}
        return {path: limit for path, limit in limits.items() if limit is not None}

    def search(self, query: str, scope: Scope, limit: int | None, best_first: bool) -> tuple[list[dict[str, Any]], int]:
        """What was said with these words in it: (matches, how many there are without `limit`).

        Raises `UsageError`, `StoreError`s.
        """
        from ollama_prompt import search

        return search.search(self, query, scope, limit, best_first)

    def purge(self, days: int, dry_run: bool) -> tuple[list[str], list[str]]:
        """Remove what was last used more than `days` days ago (0: everything): (removed, in use).

        What cannot be removed holds up nothing else; it is raised at the end.
        """
        from ollama_prompt import removal

        return removal.purge(self, days, dry_run)

    def adopt_1x(self) -> None:
        """Import a database of ollama-prompt 1.x that lies where our index belongs, and set it aside."""
        if self.catalogue.index.state() == "foreign":
            from ollama_prompt import importing

            importing.adopt_1x(self)

    def import_from(self, path: str, lock_timeout: float) -> tuple[list[str], int]:
        """Keep the conversations of another program: (the sessions that something was added to, how many had nothing).

        Raises `ImportFailed`, `SessionBusy`, `StoreError`s.
        """
        from ollama_prompt import importing

        return importing.import_from(self, path, lock_timeout)

    def check(self) -> tuple[int, list[dict[str, Any]], str]:
        """Read every file whole: (sessions, damage, state of the index). Changes nothing."""
        from ollama_prompt import checkup

        return checkup.check(self)

    def secrets(self) -> list[dict[str, Any]]:
        """What looks like a key or a password in any line of any file."""
        from ollama_prompt import checkup

        return checkup.secrets(self)

    def repair(self) -> list[dict[str, Any]]:
        """Mend what can be mended; what was done to each file, and where its old bytes are kept (`repair.item`)."""
        from ollama_prompt import checkup

        return checkup.mend(self)

    def reindex(self, lock_timeout: float) -> int:
        """Throw the index away and build it again; the number of sessions. Raises `StoreError`s."""
        return self.catalogue.rebuild(lock_timeout)

    # --- For what does the larger work: importing, removal, checkup ---------------------------

    @contextmanager
    def opened(self, session_id: str) -> Iterator[HeldSession]:
        """The same as `open`, of a session whose lock the caller holds."""
        try:
            path, reading, indexed = self._read_for_turn(session_id)
        except SessionNotFound:
            self.discard_lock(session_id)  # deleted while we waited: its lock was made anew by waiting
            raise
        _check_version(reading, session_id)
        self.tell_damage(reading)
        held = self.held(session_id, path, reading, indexed)
        try:
            yield held
        finally:
            self._keep_index(held)

    def held(
        self,
        session_id: str,
        path: str | None = None,
        reading: Reading | None = None,
        indexed: bool = False,
        claim: Callable[[], object] | None = None,
    ) -> HeldSession:
        """A session whose lock the caller holds, or one to come, which `claim` locks. Nothing is read or made here."""
        from ollama_prompt.held_session import HeldSession

        return HeldSession(self.layout, session_id, self.note, self.attachments, path, reading, indexed, claim)

    def find(self, session_id: str) -> tuple[list[str], dict[str, Row]]:
        """The same as `files_of`. Raises `SessionNotFound` where there is none."""
        from ollama_prompt.checkouts import wait_for_git

        found, rows = self.files_of(session_id)
        if not found and wait_for_git(self.layout.sessions):  # which removes a file to make it anew
            found, rows = self.files_of(session_id)
        if not found:
            hint = "--list-sessions shows them all"
            if _is_1x_there():
                hint += "; --import brings those of ollama-prompt 1.x along"
            raise SessionNotFound(f"no session has the id {session_id}", hint=hint, session_id=session_id)
        return found, rows

    def files_of(
        self, session_id: str, known: Iterable[str] = (), deep: bool | None = None
    ) -> tuple[list[str], dict[str, Row]]:
        """The files of a session, usually one, found as by `Layout.find`, and the rows that the index has of it.

        Raises `StoreUnreadable`.
        """
        rows = {self.layout.absolute(row.path): row for row in self._rows_of(session_id)}
        return self.layout.find(session_id, [*rows, *known], deep), rows

    def read(self, path: str) -> Reading:
        """Read a session file whole. Raises `StoreUnreadable`."""
        return self.catalogue.read_file(self.layout.name(path))

    def _read_for_turn(self, session_id: str) -> tuple[str, Reading, bool]:
        """What a turn must know of the file; and whether that is from its row: where that holds, else not.

        A row that says that records repeat does not say which: then the file is read.
        """
        from ollama_prompt.session_file import Reading
        from ollama_prompt.summary import Summary

        path, row = self.locate(session_id)
        if row is None or not row.saved["simple"]:
            return path, self.read(path), False
        reading = Reading(Summary.resume(session_id, row.saved), row.stamp)
        reading.end, reading.crc = row.saved["end"], row.saved["crc"]
        return path, reading, True

    def _holding_images(self) -> AbstractContextManager[None]:
        """No picture is removed meanwhile: not between the look at records that name some and their copy either."""
        return self.attachments().lock() if os.path.isdir(self.layout.attachments) else nullcontext()

    def discard_images(self, names: set[str]) -> None:
        """Remove those of these pictures that no session names. They stay where that cannot be told."""
        if not names:
            return
        attachments = self.attachments()
        with suppress(StoreError), attachments.lock():
            named = self.catalogue.images()
            if named is not None:
                attachments.discard(names - named)

    def tell_damage(self, reading: Reading) -> None:
        """Note that lines were left out, if any were."""
        if reading.summary.damage_count:
            self.note(f"damaged lines left out: {reading.summary.damage_count}; --check tells which")

    def _rows_of(self, session_id: str) -> list[Row]:
        try:
            return self.catalogue.index.find(session_id)
        except IndexUnusable as error:
            self.catalogue.warn(error)
            return []

    def _keep_index(self, held: HeldSession) -> None:
        """Write a turn's row. An index that cannot be written is mended by the next listing."""
        try:
            held.keep_index(self.catalogue.index)
        except IndexUnusable as error:
            self.catalogue.warn(error)
        self.discard_images(held.unnamed_images)

    # --- Locks ---------------------------------------------------------------------------------

    def _claim(self, session_id: str, stack: ExitStack) -> None:
        """Lock a new session; the store is made for it."""
        from ollama_prompt import locks

        self.layout.make()
        # Only a purge can have it, which takes a lock without a session for a dead one, and only for a moment.
        path = self.layout.lock(session_id)
        stack.enter_context(locks.hold(path, CLAIM_SECONDS, f"session {session_id}", session_id))

    def lock(
        self, name: str, timeout: float, waiting: Callable[[str], None] | None = None
    ) -> AbstractContextManager[None]:
        """Hold the lock of a session, or of what `_SHARED` names. Waits for up to `timeout` seconds.

        `waiting` is told of it; for a session, a note is made. Raises `SessionBusy`, `StoreWriteFailed`.
        """
        from ollama_prompt import locks

        # The store may have come as files only, from git or a backup. A full disk must not keep anyone from deleting.
        if not self._is_made or not os.path.isdir(self.layout.locks):
            with suppress(StoreWriteFailed):
                self.layout.make()
                self._is_made = True
        path = self.layout.lock(name)
        if name in _SHARED:
            what, hint = _SHARED[name]
            return locks.hold(path, timeout, what, waiting=waiting, hint=hint)
        return locks.hold(path, timeout, f"session {name}", name, self.note_waiting)

    def note_waiting(self, in_use: str) -> None:
        """Note what is waited for."""
        self.note(f"{in_use}; waiting for it")

    def discard_lock(self, name: str) -> None:
        """Remove a session's lock file. The caller holds it, and the session has no file."""
        from ollama_prompt import locks

        locks.discard(self.layout.lock(name))


def _is_1x_there() -> bool:
    """Whether ollama-prompt 1.x has left a database."""
    from ollama_prompt import foreign

    return bool(foreign.left_by_1x(os.environ))


def _stamp_at(path: str) -> Stamp | None:
    from ollama_prompt.session_file import stamp_at

    return stamp_at(path)


def _modified_ns(path: str) -> int:
    stamp = _stamp_at(path)
    return stamp[1] if stamp else 0


def _check_version(reading: Reading, session_id: str) -> None:
    from ollama_prompt.records import VERSION

    if reading.summary.version > VERSION:
        raise StoreUnreadable(
            f"session {session_id} is of format version {reading.summary.version}; this release knows {VERSION}",
            hint="upgrade ollama-prompt to go on with it; nothing was changed",
            session_id=session_id,
        )
