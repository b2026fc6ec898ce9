"""The way in to the store: open, list, look into, purge, delete, check, reindex.

Commands reach files, index and locks only through an `Indexer`. The files are the truth; the index
(`catalogue`) remembers what reading them gave; a turn holds its session (`held_session`) under its lock.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress

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

    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.layout import Layout
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Reading


CLAIM_SECONDS = 10.0
"""How long a new session waits for its own lock."""


class Indexer:
    """One store. `note` prints a remark for the user; nothing is made on disk before a session is."""

    def __init__(self, layout: Layout, note: Callable[[str], None]) -> None:
        self.layout = layout
        self.catalogue = Catalogue(layout, lambda timeout: self._lock("index", timeout), note)
        self._note = note

    # --- One session ---------------------------------------------------------------------------

    @contextmanager
    def open(self, session_id: str, lock_timeout: float) -> Iterator[HeldSession]:
        """Hold a session for a turn. Raises `SessionNotFound`, `SessionBusy`, `StoreUnreadable`."""
        from ollama_prompt.held_session import HeldSession

        self._find(session_id)  # before its lock is made: an unknown id leaves no trace
        with self._lock(session_id, lock_timeout):
            try:
                path, reading, indexed = self._read_for_turn(session_id)
            except SessionNotFound:
                self._discard_lock(session_id)  # deleted while we waited: its lock was made anew by waiting
                raise
            _check_version(reading, session_id)
            if reading.summary.damage_count:
                self._note(f"{reading.summary.damage_count} damaged lines are left out; --check tells which")
            held = HeldSession(self.layout, session_id, self._note, path, reading, indexed)
            try:
                yield held
            finally:
                self._keep_index(held)

    @contextmanager
    def new(self) -> Iterator[HeldSession]:
        """A session that does not exist yet; on disk, lock and all, once its prompt is stored."""
        from ollama_prompt.held_session import HeldSession

        session_id = clock.new_id()
        with ExitStack() as stack:
            # Locked before it can be seen, so that nobody continues or purges it meanwhile.
            held = HeldSession(self.layout, session_id, self._note, claim=lambda: self._claim(session_id, stack))
            try:
                yield held
            except OllamaPromptError as error:
                if held.path is None:
                    error.session_id = None  # there is no such session
                raise
            finally:
                self._keep_index(held)
                if held.path is None and os.path.isdir(self.layout.locks):
                    self._discard_lock(session_id)

    def locate(self, session_id: str) -> tuple[str, Row | None]:
        """The session's file, and its row if that holds for the file as it is. Raises `SessionNotFound`.

        Of several files with the same id the one with the most records is used; a second one deep in folders of
        the user's own is known from the next listing on. A young row is believed here: every turn leaves one, and
        reading the whole file before every next turn would cost more than an edit within that tick can spoil.
        """
        found, rows = self._find(session_id)
        if len(found) > 1:
            found.sort(key=lambda path: (-self._read(path).summary.record_count, path))
        row = rows.get(found[0])
        return found[0], row if row and row.stamp == _stamp_at(found[0]) else None

    def info(self, session_id: str) -> tuple[dict[str, Any], list[Record], Reading]:
        """All that is stored of one session: how it is listed, its records, and what could not be read."""
        from ollama_prompt import session_file

        path, _ = self.locate(session_id)
        try:
            found, reading = session_file.load(path, session_id)
        except OSError as error:
            raise cannot_read(error, session_id) from error
        return reading.summary.listed() | {"path": path}, found, reading

    def delete(self, session_id: str) -> None:
        """Remove a session for real: files, row, lock. Raises `SessionBusy` at once when it is in use."""
        try:
            self._find(session_id)
        except SessionNotFound:
            self._clear_away(session_id)
            raise
        try:
            with self._lock(session_id, 0):
                self._remove_files(session_id, self.layout.find(session_id, deep=True))
        except SessionBusy as error:
            error.hint = "delete it when its turn is over"
            raise
        self.catalogue.forget([session_id])

    # --- Many sessions -------------------------------------------------------------------------

    def sessions(self) -> list[bytes]:
        """Every session as its line of the listing in JSON, newest use first."""
        return self.catalogue.listing()

    def purge(self, days: int, dry_run: bool) -> tuple[list[str], list[str]]:
        """Remove what was last used more than `days` days ago (0: everything): (removed, in use).

        What cannot be removed holds up nothing else; it is raised at the end.
        """
        cutoff = clock.days_ago(days) if days else None
        removed: list[str] = []
        skipped: list[str] = []
        failed: list[StoreError] = []
        rows = self.catalogue.rows()
        for row, paths in rows:
            if not _is_unused(row.last_used, cutoff):
                continue
            try:
                if self._purge_one(row.session_id, paths, cutoff, dry_run):
                    removed.append(row.session_id)
            except SessionBusy:
                skipped.append(row.session_id)
            except StoreError as error:
                failed.append(error)
        if not dry_run:
            self._forget(removed, {row.session_id for row, _ in rows})
        if failed:
            failed[0].message += f"; {len(removed)} others were removed" if removed and not dry_run else ""
            raise failed[0]
        return removed, skipped

    def check(self) -> tuple[int, list[dict[str, Any]], str]:
        """Read every file whole: (sessions, damage, state of the index). Changes nothing."""
        damage: list[dict[str, Any]] = []
        rows: list[Row] = []
        paths = self.catalogue.files()
        for path in paths:
            try:
                reading = self.catalogue.read_file(path)
            except StoreUnreadable as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # removed since it was listed
                    damage.append(self._damage(path, None, error.message))
                continue
            rows.append(Row.of(path, reading, young=False))
            damage += [self._damage(path, line, reason) for line, reason in reading.damage]
        damage += [self._damage(path, None, "another file has the same session") for path in _doubles(paths)]
        return len({id_of(path) for path in paths}), damage, self.catalogue.state(rows)

    def reindex(self, lock_timeout: float) -> int:
        """Throw the index away and build it again; the number of sessions. Raises `StoreError`s."""
        return self.catalogue.rebuild(lock_timeout)

    # --- Details -------------------------------------------------------------------------------

    def _find(self, session_id: str) -> tuple[list[str], dict[str, Row]]:
        """The same as `_files_of`. Raises `SessionNotFound`."""
        found, rows = self._files_of(session_id)
        if not found:
            hint = "--list-sessions shows them all"
            raise SessionNotFound(f"no session has the id {session_id}", hint=hint, session_id=session_id)
        return found, rows

    def _files_of(self, session_id: str, known: Iterable[str] = ()) -> tuple[list[str], dict[str, Row]]:
        """The files of a session, usually one, and the rows that the index has for such paths."""
        rows = {self.layout.absolute(row.path): row for row in self._rows_of(session_id)}
        return self.layout.find(session_id, [*rows, *known]), rows

    def _read(self, path: str) -> Reading:
        return self.catalogue.read_file(self.layout.name(path))

    def _read_for_turn(self, session_id: str) -> tuple[str, Reading, bool]:
        """What a turn must know of the file; and whether that is from its row: where that holds, else not.

        A row that says that records repeat does not say which: then the file is read.
        """
        from ollama_prompt.session_file import Reading
        from ollama_prompt.summary import Summary

        path, row = self.locate(session_id)
        if row is None or not row.saved["simple"]:
            return path, self._read(path), False
        reading = Reading(Summary.resume(session_id, row.saved), row.stamp)
        reading.end, reading.crc = row.saved["end"], row.saved["crc"]
        return path, reading, True

    def _purge_one(self, session_id: str, known: list[str], cutoff: str | None, dry_run: bool) -> bool:
        """Remove one session if nobody holds it and it is still unused; whether it was, or would be.

        Nobody holds a session that has no lock file: a dry run makes none.
        """
        if dry_run and not os.path.exists(self.layout.lock(session_id)):
            return self._is_unused(*self._files_of(session_id, known), cutoff)
        with self._lock(session_id, 0):
            found, rows = self._files_of(session_id, known)
            if not self._is_unused(found, rows, cutoff):
                if not found and not dry_run:
                    self._discard_lock(session_id)
                return False
            if not dry_run:
                self._remove_files(session_id, found)
        return True

    def _forget(self, removed: list[str], known: set[str]) -> None:
        """Drop the rows of sessions that were removed, and what killed processes left of unknown ones."""
        if removed:
            self.catalogue.forget(removed)
        for session_id in self.layout.locked() - known:
            self._clear_away(session_id)

    def _is_unused(self, found: list[str], rows: dict[str, Row], cutoff: str | None) -> bool:
        """Whether there are files, all of which a purge removes, and none was used since the cutoff."""
        for path in found:
            row = rows.get(path)
            trusted = row is not None and not row.young and row.stamp == _stamp_at(path)
            last_used = row.last_used if row and trusted else self._read(path).summary.last_used
            if not _is_unused(last_used, cutoff):
                return False
        return bool(found)

    def _remove_files(self, session_id: str, paths: list[str]) -> None:
        """Remove these files of a session that is held, and its lock. Raises `StoreWriteFailed`.

        One that `git pull` gives back meanwhile was not looked at: it stays.
        """
        from ollama_prompt import session_file

        for path in paths:
            try:
                session_file.remove(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise cannot_write(error, session_id) from error
        if not any(map(os.path.lexists, paths)):
            self._discard_rest(session_id)

    def _clear_away(self, session_id: str) -> None:
        """Remove what a process left that was killed while it made or removed this session."""
        if os.path.exists(self.layout.lock(session_id)):
            with suppress(SessionBusy, StoreWriteFailed), self._lock(session_id, 0):
                if not self._files_of(session_id)[0]:
                    self._discard_rest(session_id)

    def _discard_rest(self, session_id: str) -> None:
        """Remove what else there is of a session without files, its lock last; the caller holds it."""
        from ollama_prompt import session_file

        with suppress(OSError):
            os.unlink(session_file.unfinished(self.layout.new_path(session_id)))
        self._discard_lock(session_id)

    def _damage(self, path: str, line: int | None, reason: str) -> dict[str, Any]:
        return {"session_id": id_of(path), "path": self.layout.absolute(path), "line": line, "reason": reason}

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

    # --- Locks ---------------------------------------------------------------------------------

    def _claim(self, session_id: str, stack: ExitStack) -> None:
        """Lock a new session; the store is made for it."""
        from ollama_prompt import locks

        self.layout.make()
        # Only a purge can have it, which takes a lock without a session for a dead one, and only for a moment.
        stack.enter_context(locks.hold(self.layout.lock(session_id), CLAIM_SECONDS, session_id))

    def _lock(self, name: str, timeout: float) -> AbstractContextManager[None]:
        from ollama_prompt import locks

        with suppress(StoreWriteFailed):  # a full disk must not keep anyone from deleting
            self.layout.make()  # the store may have come as files only, from git or a backup
        path = self.layout.lock(name)
        if name == "index":
            return locks.hold(path, timeout)
        return locks.hold(path, timeout, name, lambda text: self._note(f"{text}; waiting for it"))

    def _discard_lock(self, name: str) -> None:
        from ollama_prompt import locks

        locks.discard(self.layout.lock(name))


def _stamp_at(path: str) -> tuple[int, int, int, int] | None:
    from ollama_prompt.session_file import stamp_at

    return stamp_at(path)


def _is_unused(last_used: str | None, cutoff: str | None) -> bool:
    """Whether a session was last used before the cutoff; one that was never used has no such time."""
    return cutoff is None or "" < (last_used or "") < cutoff


def _doubles(paths: list[str]) -> list[str]:
    """The files whose session lies in another file too."""
    seen: dict[str, int] = {}
    for path in paths:
        seen[id_of(path)] = seen.get(id_of(path), 0) + 1
    return [path for path in paths if seen[id_of(path)] > 1]


def _check_version(reading: Reading, session_id: str) -> None:
    from ollama_prompt.records import VERSION

    if reading.summary.version > VERSION:
        raise StoreUnreadable(
            f"session {session_id} is of format version {reading.summary.version}; this release knows {VERSION}",
            hint="upgrade ollama-prompt to go on with it; nothing was changed",
            session_id=session_id,
        )
