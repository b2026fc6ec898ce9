"""The way in to the store: open, list, look into, fork, undo, import, purge, delete, check, reindex.

Commands reach files, index and locks only through an `Indexer`. The files are the truth; the index
(`catalogue`) remembers what reading them gave; a turn holds its session (`held_session`) under its lock.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager, nullcontext, suppress

from ollama_prompt import clock
from ollama_prompt.catalogue import Catalogue, id_of
from ollama_prompt.errors import (
    ImportFailed,
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
    from ollama_prompt.drafts import Conversation
    from ollama_prompt.held_session import HeldSession
    from ollama_prompt.layout import Layout
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Reading


CLAIM_SECONDS = 10.0
"""How long a new session waits for its own lock."""
ADOPTION_SECONDS = 600.0
"""How long to wait while another process imports the database of ollama-prompt 1.x."""
ADOPTION_ATTEMPTS = 20
"""How often that is read until no process of 1.x has written to it meanwhile."""
ATTACHMENTS_SECONDS = 60.0
"""How long to wait while another process keeps or removes pictures."""

_SHARED = {
    "sync": ("the repository", "--lock-timeout waits longer"),
    "index": ("the index", "--lock-timeout waits longer"),
    "attachments": ("the folder of pictures", "ask again: nothing was sent or stored"),
}
"""Locks of the store as a whole, and what to do where one cannot be had; every other one is a session's."""


class Indexer:
    """One store. `note` prints a remark for the user; nothing is made on disk before a session is."""

    def __init__(self, layout: Layout, note: Callable[[str], None]) -> None:
        self.layout = layout
        self.catalogue = Catalogue(layout, lambda timeout: self._lock("index", timeout), note)
        self._note = note
        self._adopted: dict[str, tuple[list[str], int]] = {}

    # --- One session ---------------------------------------------------------------------------

    @contextmanager
    def open(self, session_id: str, lock_timeout: float) -> Iterator[HeldSession]:
        """Hold a session for a turn. Raises `SessionNotFound`, `SessionBusy`, `StoreUnreadable`."""
        self._find(session_id)  # before its lock is made: an unknown id leaves no trace
        with self._lock(session_id, lock_timeout), self._opened(session_id) as held:
            yield held

    @contextmanager
    def new(self) -> Iterator[HeldSession]:
        """A session that does not exist yet; on disk, lock and all, once its prompt is stored."""
        session_id = clock.new_id()
        with ExitStack() as stack:
            # Locked before it can be seen, so that nobody continues or purges it meanwhile.
            held = self._held(session_id, claim=lambda: self._claim(session_id, stack))
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

    def newest(self) -> str:
        """The session used last: by its newest record, ties by that record's id.

        Raises `SessionNotFound`; `StoreUnreadable` where it may be one that cannot be read.
        """
        import json

        lines = self.sessions()
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
        self._tell_damage(reading)
        return held.session_id

    def undo(self, session_id: str, lock_timeout: float) -> list[str]:
        """Take back the last turn; the ids of its messages. Raises `NothingToUndo`, else as `open`."""
        from ollama_prompt import records

        with self.open(session_id, lock_timeout) as held:
            undo = held.undo_of(held.last_turn())
            held.add([undo])
        return records.undone_ids(undo)

    def adopt_1x(self) -> None:
        """Import a database of ollama-prompt 1.x that lies where our index belongs, and set it aside.

        Whoever comes meanwhile waits for it: the sessions that it looks for may be in there. If it cannot be done,
        the database stays, and all works without an index.
        """
        if self.catalogue.index.state() != "foreign" or not self._is_1x():
            return
        self.catalogue.is_silent = True  # all that is to be said of it is said here
        path = self.layout.index
        try:
            with self._lock("index", ADOPTION_SECONDS, self._note_waiting):
                if not self._is_1x():
                    return  # another process did it
                self._note(f"{path} is a database of ollama-prompt 1.x: importing its sessions …")
                imported, known, aside = self._import_and_set_aside(path)
        except (OllamaPromptError, OSError) as error:
            self._note(f"{path} stays where it is, and the next start tries again: {error}")
            return
        self._adopted = dict.fromkeys((path, aside), (imported, known))
        self._note(f"sessions imported: {len(imported)}; the database is kept as {aside}")

    def import_from(
        self, path: str, lock_timeout: float, progress: Callable[[int, int], None] = lambda *_: None
    ) -> tuple[list[str], int]:
        """Keep the conversations of another program: (the sessions that something was added to, how many had nothing).

        What cannot be kept holds up nothing else; it is raised at the end. Raises `ImportFailed`, `SessionBusy`,
        `StoreError`s.
        """
        from ollama_prompt import foreign

        if adopted := self._adopted.get(os.path.abspath(path)):
            return adopted
        imported: list[str] = []
        failed: list[StoreError] = []
        skipped = 0
        with foreign.read(path, self._note) as (total, conversations):
            for number, conversation in enumerate(conversations):
                progress(number, total)
                try:
                    session_id = self._bring_in(conversation, lock_timeout)
                except StoreError as error:
                    failed.append(error)
                    continue
                imported += [session_id] if session_id else []
                skipped += not session_id
        if failed:
            failed[0].message += f"; {len(imported)} sessions were imported"
            raise failed[0]
        return imported, skipped

    def attachments(self) -> Attachments:
        """The pictures of the conversations."""
        from ollama_prompt.attachments import Attachments

        return Attachments(self.layout, lambda: self._lock("attachments", ATTACHMENTS_SECONDS))

    def info(self, session_id: str) -> tuple[dict[str, Any], list[Record], Reading]:
        """All that is stored of one session: how it is listed, its records, and what could not be read."""
        from ollama_prompt import session_file

        path, _ = self.locate(session_id)
        try:
            found, reading = session_file.load(path, session_id)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._find(session_id)  # deleted meanwhile: say so
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
                found = self.layout.find(session_id, deep=True)
                images = self._images_in(found)
                self._remove_files(session_id, found, self.layout.backups().get(session_id, []))
        except SessionBusy as error:
            error.hint = "delete it when its turn is over"
            raise
        self.catalogue.forget([session_id])
        self._discard_images(images)

    # --- Under git -----------------------------------------------------------------------------

    def syncing(self, lock_timeout: float) -> AbstractContextManager[None]:
        """Nobody else syncs meanwhile. Raises `SessionBusy`."""
        return self._lock("sync", lock_timeout, self._note_waiting)

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
                    stack.enter_context(self._lock(session_id, 0))
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

        absolute = os.path.join(self.layout.home, *path.split("/"))
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

    # --- Many sessions -------------------------------------------------------------------------

    def sessions(self) -> list[bytes]:
        """Every session as its line of the listing in JSON, newest use first."""
        lines = self.catalogue.listing()
        if not lines and _is_1x_there():
            self._note("there are conversations of ollama-prompt 1.x: --import brings them along")
        return lines

    def purge(self, days: int, dry_run: bool) -> tuple[list[str], list[str]]:
        """Remove what was last used more than `days` days ago (0: everything): (removed, in use).

        What cannot be removed holds up nothing else; it is raised at the end.
        """
        cutoff = clock.days_ago(days) if days else None
        removed: list[str] = []
        skipped: list[str] = []
        failed: list[StoreError] = []
        images: set[str] = set()
        rows = self.catalogue.rows()
        backups = {} if dry_run else self.layout.backups()
        for row, paths in rows:
            if not _is_unused(row.last_used, cutoff):
                continue
            images.update(row.saved["images"])
            try:
                if self._purge_one(row.session_id, paths, backups.get(row.session_id, []), cutoff, dry_run):
                    removed.append(row.session_id)
            except SessionBusy:
                skipped.append(row.session_id)
            except StoreError as error:
                failed.append(error)
        if not dry_run:
            self._forget(removed, {row.session_id for row, _ in rows})
            self._discard_images(images if cutoff else images | self.attachments().names())
        if failed:
            failed[0].message += f"; {len(removed)} others were removed" if removed and not dry_run else ""
            raise failed[0]
        return removed, skipped

    def check(self) -> tuple[int, list[dict[str, Any]], str]:
        """Read every file whole: (sessions, damage, state of the index). Changes nothing."""
        damage: list[dict[str, Any]] = []
        rows: list[Row] = []
        faults: dict[str, str | None] = {}
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
            damage += [self._damage(path, None, fault) for fault in self._faults(path, reading.summary.images, faults)]
        damage += [self._damage(path, None, "another file has the same session") for path in _doubles(paths)]
        return len({id_of(path) for path in paths}), damage, self.catalogue.state(rows)

    def secrets(self) -> list[dict[str, Any]]:
        """What looks like a key or a password in any line of any file, taken back or not, damaged or not.

        A file that cannot be read is left out: `check` reports it.
        """
        from ollama_prompt import credentials, records, session_file

        secrets: list[dict[str, Any]] = []
        for path in self.catalogue.files():
            with suppress(OSError), session_file.opened(self.layout.absolute(path)) as file:
                for number, line in enumerate(file, 1):
                    text = records.text_of(line)
                    found = {(each.kind, text[each.start : each.end]): each.shown for each in credentials.find(text)}
                    secrets += [self._secret(path, number, kind, shown) for (kind, _), shown in found.items()]
        return secrets

    def repair(self) -> list[dict[str, Any]]:
        """Mend what can be mended; what was done to each file, and where its old bytes are kept (`repair.item`).

        Sessions in use are left alone. What cannot be mended holds up nothing else; it is raised at the end.
        """
        from ollama_prompt import repair

        done = repair.tighten(self.layout, self._index_files())  # what may not be read cannot be mended
        failed: list[StoreError] = []
        files: dict[str, list[str]] = {}
        for path in self.catalogue.files():
            files.setdefault(id_of(path), []).append(self.layout.absolute(path))
        for session_id, paths in files.items():
            try:
                done += self._repair_session(session_id, paths)
            except StoreError as error:
                failed.append(error)
        try:
            done += self._remove_leftovers(set(files))
            done += self._repair_index(bool(done))
        except StoreError as error:
            failed.append(error)
        if failed:
            failed[0].message += f"; other places that were mended: {len(done)}" if done else ""
            raise failed[0]
        return done

    def reindex(self, lock_timeout: float) -> int:
        """Throw the index away and build it again; the number of sessions. Raises `StoreError`s."""
        return self.catalogue.rebuild(lock_timeout)

    # --- Details -------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, session_id: str) -> Iterator[HeldSession]:
        """The same as `open`, of a session whose lock the caller holds."""
        try:
            path, reading, indexed = self._read_for_turn(session_id)
        except SessionNotFound:
            self._discard_lock(session_id)  # deleted while we waited: its lock was made anew by waiting
            raise
        _check_version(reading, session_id)
        self._tell_damage(reading)
        held = self._held(session_id, path, reading, indexed)
        try:
            yield held
        finally:
            self._keep_index(held)

    def _bring_in(self, conversation: Conversation, lock_timeout: float) -> str | None:
        """Keep a conversation of another program, or what is new of it; its session, None if nothing is new.

        Raises `StoreError`s.
        """
        ids = conversation.ids
        if len(ids) > 1:  # it may be there under a later id, because what had an earlier one was deleted
            there = set(map(id_of, self.catalogue.files()))
            ids = sorted(ids, key=lambda session_id: session_id not in there)
        for session_id in ids:
            with self._lock(session_id, lock_timeout):
                if not self._files_of(session_id)[0]:
                    self._make(session_id, conversation)
                    return session_id
                with self._opened(session_id) as held:
                    known = held.known_ids()
                    if conversation.is_in(session_id, known):
                        new = [record for record in conversation.records if record["id"] not in known]
                        if new:
                            held.add(new, conversation.images)
                        return session_id if new else None
        return None

    def _make(self, session_id: str, conversation: Conversation) -> None:
        """Make a session, whose lock the caller holds, of a conversation of another program."""
        held = self._held(session_id)
        try:
            held.copy(conversation.header | {"session_id": session_id}, conversation.records, conversation.images)
        finally:
            if held.path is None:
                self._discard_lock(session_id)

    def _import_and_set_aside(self, path: str) -> tuple[list[str], int, str]:
        """What lies in the index's place, until nobody has written to it meanwhile: (imported, known, its new name).

        Raises as `import_from`, OSError.
        """
        from ollama_prompt import foreign

        imported: dict[str, None] = {}
        with ExitStack() as stack:
            is_still = stack.enter_context(foreign.watched(path))
            for _ in range(ADOPTION_ATTEMPTS):
                new, known = self.import_from(path, CLAIM_SECONDS)
                imported.update(dict.fromkeys(new))
                if is_still():
                    break
            else:
                raise ImportFailed(f"{path} is written to again and again")
            known -= len(imported) - len(new)
            if sys.platform == "win32":
                stack.close()  # there, a file that is open cannot be renamed, and so nobody else has it open
            return list(imported), known, self.layout.set_aside_index()

    def _is_1x(self) -> bool:
        from ollama_prompt import foreign

        return foreign.is_1x(self.catalogue.index.path)

    def _held(
        self,
        session_id: str,
        path: str | None = None,
        reading: Reading | None = None,
        indexed: bool = False,
        claim: Callable[[], object] | None = None,
    ) -> HeldSession:
        from ollama_prompt.held_session import HeldSession

        return HeldSession(self.layout, session_id, self._note, path, reading, indexed, claim, self.attachments)

    def _find(self, session_id: str) -> tuple[list[str], dict[str, Row]]:
        """The same as `_files_of`. Raises `SessionNotFound`."""
        from ollama_prompt.checkouts import wait_for_git

        found, rows = self._files_of(session_id)
        if not found and wait_for_git(self.layout.sessions):  # which removes a file to make it anew
            found, rows = self._files_of(session_id)
        if not found:
            hint = "--list-sessions shows them all"
            if _is_1x_there():
                hint += "; --import brings those of ollama-prompt 1.x along"
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

    def _purge_one(
        self, session_id: str, known: list[str], backups: list[str], cutoff: str | None, dry_run: bool
    ) -> bool:
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
                self._remove_files(session_id, found, backups)
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

    def _remove_files(self, session_id: str, paths: list[str], backups: list[str]) -> None:
        """Remove these files of a session that is held, and its lock. Raises `StoreWriteFailed`.

        One that `git pull` gives back meanwhile was not looked at: it stays.
        """
        from ollama_prompt import session_file

        for path in (*backups, *paths):  # in this order: a backup without its session would be removed by nobody
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

    def _images_in(self, paths: list[str]) -> set[str]:
        """The pictures that these files name, as far as they can be read; without pictures in the store none is."""
        images: set[str] = set()
        for path in paths if os.path.isdir(self.layout.attachments) else ():
            with suppress(StoreUnreadable):
                images.update(self._read(path).summary.images)
        return images

    def _holding_images(self) -> AbstractContextManager[None]:
        """No picture is removed meanwhile: not between the look at records that name some and their copy either."""
        return self.attachments().lock() if os.path.isdir(self.layout.attachments) else nullcontext()

    def _discard_images(self, names: set[str]) -> None:
        """Remove those of these pictures that no session names. They stay where that cannot be told."""
        if not names:
            return
        attachments = self.attachments()
        with suppress(StoreError), attachments.lock():
            named = self.catalogue.images()
            if named is not None:
                attachments.discard(names - named)

    def _tell_damage(self, reading: Reading) -> None:
        if reading.summary.damage_count:
            self._note(f"damaged lines left out: {reading.summary.damage_count}; --check tells which")

    def _damage(self, path: str, line: int | None, reason: str) -> dict[str, Any]:
        return {"session_id": id_of(path), "path": self.layout.absolute(path), "line": line, "reason": reason}

    def _secret(self, path: str, line: int, kind: str, shown: str) -> dict[str, Any]:
        where = {"session_id": id_of(path), "path": self.layout.absolute(path), "line": line}
        return {**where, "kind": kind, "shown": shown}

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
        self._discard_images(held.unnamed_images)

    # --- Repairing -----------------------------------------------------------------------------

    def _faults(self, path: str, images: list[str], known: dict[str, str | None]) -> list[str]:
        """What is wrong with the pictures that a file names; `known` keeps that of those already looked at."""
        for name in images:
            if name not in known:
                known[name] = self.attachments().fault_of(name)
        faults = {name: fault for name in images if (fault := known[name])}
        if not faults:
            return []
        try:
            still = self.catalogue.read_file(path).summary.images
        except StoreUnreadable:
            return []
        return [faults[name] for name in still if name in faults]  # the others were removed with what named them

    def _repair_session(self, session_id: str, paths: list[str]) -> list[dict[str, Any]]:
        """Mend the files of one session, if there is anything to mend. Raises `StoreError`s."""
        from ollama_prompt import repair

        if not repair.is_needed(session_id, paths):
            return []
        try:
            with self._lock(session_id, 0):
                found, _ = self._files_of(session_id, paths)
                if not found:
                    self._discard_lock(session_id)
                return repair.mend(session_id, found)
        except SessionBusy:
            return [repair.item(session_id, paths[0], "left alone: the session is in use")]

    def _remove_leftovers(self, known: set[str]) -> list[dict[str, Any]]:
        """Remove unfinished files of processes that were killed, and locks of sessions that are gone.

        `known` are the sessions that have a file.
        """
        from ollama_prompt import repair

        done = []
        gone = self.layout.locked() - known
        for lock, path in repair.leftovers(self.layout):
            with suppress(SessionBusy, OSError), self._lock(lock, 0):
                os.unlink(path)
                done.append(repair.item(None, path, "removed: an unfinished file that a killed process left"))
        for session_id in self.layout.locked() - known:
            self._clear_away(session_id)
        locks = [self.layout.lock(session_id) for session_id in sorted(gone - self.layout.locked())]
        return done + [repair.item(None, path, "removed: the lock of a session that is gone") for path in locks]

    def _index_files(self) -> list[str]:
        """Databases that are ours: the index, and what is kept of ollama-prompt 1.x."""
        is_ours = self.catalogue.index.state() in {"ok", "old", "corrupt"}
        return [*([self.layout.index] if is_ours else []), *self.layout.set_aside()]

    def _repair_index(self, is_stale: bool) -> list[dict[str, Any]]:
        """Build the index again if it is corrupt, and else bring it up to date. Raises `StoreError`s."""
        from ollama_prompt import repair

        if self.catalogue.state([]) == "corrupt":
            self.layout.make()
            self.catalogue.rebuild(CLAIM_SECONDS)
            return [repair.item(None, self.layout.index, "built again: the index was corrupt")]
        if is_stale:
            self.catalogue.rows()
        return []

    # --- Locks ---------------------------------------------------------------------------------

    def _claim(self, session_id: str, stack: ExitStack) -> None:
        """Lock a new session; the store is made for it."""
        from ollama_prompt import locks

        self.layout.make()
        # Only a purge can have it, which takes a lock without a session for a dead one, and only for a moment.
        path = self.layout.lock(session_id)
        stack.enter_context(locks.hold(path, CLAIM_SECONDS, f"session {session_id}", session_id))

    def _lock(
        self, name: str, timeout: float, waiting: Callable[[str], None] | None = None
    ) -> AbstractContextManager[None]:
        from ollama_prompt import locks

        with suppress(StoreWriteFailed):  # a full disk must not keep anyone from deleting
            self.layout.make()  # the store may have come as files only, from git or a backup
        path = self.layout.lock(name)
        if name in _SHARED:
            what, hint = _SHARED[name]
            return locks.hold(path, timeout, what, waiting=waiting, hint=hint)
        return locks.hold(path, timeout, f"session {name}", name, self._note_waiting)

    def _note_waiting(self, in_use: str) -> None:
        self._note(f"{in_use}; waiting for it")

    def _discard_lock(self, name: str) -> None:
        from ollama_prompt import locks

        locks.discard(self.layout.lock(name))


def _is_1x_there() -> bool:
    """Whether ollama-prompt 1.x has left a database."""
    from ollama_prompt import foreign

    return bool(foreign.left_by_1x(os.environ))


def _stamp_at(path: str) -> tuple[int, int, int, int] | None:
    from ollama_prompt.session_file import stamp_at

    return stamp_at(path)


def _modified_ns(path: str) -> int:
    stamp = _stamp_at(path)
    return stamp[1] if stamp else 0


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
