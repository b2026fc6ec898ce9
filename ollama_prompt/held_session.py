"""One session during one turn, under its lock: prompt first, answer later.

    new or found → begin → (the model answers) → add
                         → (the model refuses) → take_back

What was stored before is never touched. While the model answers, for seconds or minutes, `git pull`,
editors and people may replace, move or remove the file without our lock. So a stored record is looked
for again whenever the file is not the one that we left: appended once more if it is gone (ids make a
repeat harmless), followed if the file moved, written anew if it was removed.

The index comes after the file, and one that cannot be written is no failure: the next listing mends it.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, nullcontext, suppress

from ollama_prompt import index, records, session_file
from ollama_prompt.checkouts import wait_for_git
from ollama_prompt.errors import NothingToUndo, StoreError
from ollama_prompt.layout import Layout, cannot_read, cannot_write
from ollama_prompt.session_file import Reading
from ollama_prompt.summary import NeedsWholeFile, Summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ollama_prompt.attachments import Attachments
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Stamp

ATTEMPTS = 20
"""How often in a row the file may be replaced under an append before we give up."""


class HeldSession:
    """A session whose lock the caller holds.

    `path` is None until a new session is first stored; `claim` locks it before that. `indexed` tells that
    `reading` is what the index has. `unnamed_images` were kept for a prompt that was taken back.
    """

    def __init__(
        self,
        layout: Layout,
        session_id: str,
        note: Callable[[str], None],
        attachments: Callable[[], Attachments],
        path: str | None = None,
        reading: Reading | None = None,
        indexed: bool = False,
        claim: Callable[[], object] | None = None,
    ) -> None:
        self.session_id = session_id
        self.path = path
        self.settings: Record = dict(reading.summary.settings) if reading else {}
        self.answered_count = reading.summary.answered_count if reading else 0
        self._layout = layout
        self._note = note
        self._claim = claim
        self._reading = reading
        self._indexed = reading.stamp if reading and indexed else None
        self._attachments = attachments
        self._undo: Record | None = None
        self._begun: list[Record] = []
        self._images: dict[str, bytes] = {}
        self.unnamed_images: set[str] = set()
        self._after: Stamp | None = reading.stamp if reading else None  # the file as we left it
        self._cut_to: int | None = None  # its size before the prompt
        self._made = False

    def records_back(self) -> Iterator[Record]:
        """What was stored so far, newest first; costs what is taken of it. An undo to come counts already."""
        if self._undo and self._undo not in self._begun:
            yield self._undo
        path = self._find_again()
        if path is None:
            return
        with _read_errors():
            reading = self._reading
            if reading is None or session_file.stamp_at(path) != reading.stamp:
                reading = session_file.read(path, self.session_id)
            for record in session_file.read_back(path, reading.repeats):
                if record.get("id") not in reading.summary.undone:  # by an undo that lies in front of it
                    yield record

    def last_turn(self) -> list[Record]:
        """The last prompt that was not taken back and what followed it, oldest first; empty if there is none."""
        undone: set[str] = set()
        found: list[Record] = []
        for record in self.records_back():
            if record["type"] == "undo":
                undone.update(records.undone_ids(record))
            elif record["type"] == "message" and record.get("id") not in undone:
                found.append(record)
                if record["role"] == "user":
                    break
        return found[::-1]

    def replace_last_turn(self) -> Record:
        """The last prompt, for the next one to ask it again: its turn is not sent any more, and taken back with that.

        Raises `NothingToUndo`.
        """
        turn = self.last_turn()
        self._undo = self.undo_of(turn if turn and turn[0]["role"] == "user" else [], "prompt to ask again")
        counted = [message for message in turn if message["role"] in {"user", "assistant"}]
        self.answered_count -= len(counted) if len(counted) > 1 else 0
        return turn[0]

    def undo_of(self, turn: list[Record], what: str = "turn to take back") -> Record:
        """The record that takes this turn back. Raises `NothingToUndo` if there is none, or none that can be named."""
        ids = records.ids_of(turn)
        # A prompt without an id is no hindrance: without its answers it is not sent.
        if not ids or any("id" not in message for message in turn if message["role"] == "assistant"):
            hint = "the last messages were written by hand: give each an id, or remove their lines" if turn else None
            raise NothingToUndo(f"session {self.session_id} has no {what}", hint=hint, session_id=self.session_id)
        return records.undo(ids)

    def known_ids(self) -> set[str]:
        """The ids of all records, also of those that were taken back."""
        if self.path is None:
            return set()
        with _read_errors():
            return set(records.ids_of(session_file.load(self.path, self.session_id)[0]))

    def begin(self, prompt: Record, settings: Record, images: dict[str, bytes] | None = None) -> None:
        """Store the prompt; a new session is made with these settings.

        `images` are pictures that it names, by their SHA-256. Raises `StoreWriteFailed`.
        """
        # The prompt first: if a crash tears the write, the earlier turn still counts.
        turn = [prompt, self._undo] if self._undo else [prompt]
        self._begun, self._images = turn, images or {}
        with _write_errors(self.session_id), self._keeping(images):
            if self.path is None:
                self.settings = settings
                self._create(settings, turn)
            else:
                self._append(turn)

    def add(self, new: list[Record], images: dict[str, bytes] | None = None) -> None:
        """Store what came of the answer, and a change of settings; or an undo; or what an import brings.

        Raises `StoreWriteFailed`.
        """
        with _write_errors(self.session_id), self._keeping(images):
            self._append(new)

    def image(self, sha256: str) -> bytes | None:
        """A picture that a message names; None if it is missing."""
        return self._attachments().read(sha256)

    def take_back(self) -> None:
        """Remove the prompt again: the model refused it before the first word. Raises `StoreWriteFailed`."""
        if not self._begun or self.path is None:
            return
        prompt = self._begun[0]
        with _write_errors(self.session_id):
            if self._cut_back() or not (path := self._find_again()) or not _is_in(path, prompt):
                self.unnamed_images = set(self._images)
            elif not self._undo:  # a prompt that is asked again counts: the earlier one does not any more
                # Somebody wrote behind the prompt: it stays in the file, and is no longer sent.
                self._append([records.undo([prompt["id"]])])
        self._reading = None

    def keep_index(self, index_: index.Index) -> None:
        """Bring the session's row up to date, if what is in the file is known without reading it."""
        if self.path is None or self._reading is None or self._reading.stamp == self._indexed:
            return
        young = index.is_young(self._reading.stamp, index.read_time_ns())
        index_.put(index.Row.of(self._layout.name(self.path), self._reading, young))

    def copy(self, header: Record, rest: list[Record], images: dict[str, bytes] | None = None) -> None:
        """Make a new session of records that are there already: a fork, an import. Raises `StoreWriteFailed`."""
        with _write_errors(self.session_id), self._keeping(images):
            self._write(header, rest)

    def _keeping(self, images: dict[str, bytes] | None) -> AbstractContextManager[None]:
        return self._attachments().keeping(images) if images else nullcontext()

    def _create(self, settings: Record, turn: list[Record]) -> None:
        self._write(records.header(self.session_id, settings), turn)

    def _write(self, header: Record, rest: list[Record]) -> None:
        if self._claim:
            self._claim()
            self._claim = None
        path = self._layout.new_path(self.session_id, header["created_at"])
        self._make_folder(os.path.dirname(path))
        self._after = session_file.create(path, records.encode(header, *rest))
        self.path, self._made = path, True
        self._reading = Reading(Summary(self.session_id), self._after)
        try:
            for record in (header, *rest):
                self._reading.take(records.encode(record))
        except NeedsWholeFile:
            self._reading = None

    def _make_folder(self, folder: str) -> None:
        """A file is as durable as the folders that lead to it."""
        if not os.path.isdir(folder):
            self._layout.make(folder)
            session_file.sync_folder(self._layout.sessions)
            session_file.sync_folder(self._layout.home)

    def _append(self, new: list[Record]) -> None:
        """Add records, and see to it that they and what was begun are in the file that has the name now."""
        wanted = new if new is self._begun else [*self._begun, *new]
        for _ in range(ATTEMPTS):
            path = self._find_again()
            if path is None:
                with suppress(FileExistsError):  # given back meanwhile: look again
                    self._write_anew(wanted)
                    return
                continue
            found = session_file.stamp_at(path)
            untouched = found is not None and found == self._after
            missing = new if untouched else [record for record in wanted if not _is_in(path, record)]
            if self._append_once(path, missing, found, untouched) and self._outlasts_git(path):
                return
        raise OSError(errno.EBUSY, "its file is being replaced again and again", self.path)

    def _outlasts_git(self, path: str) -> bool:
        """Whether what was appended is still there once git, if it is at work, is through.

        We may have slept since the append, longer than a git that is through leaves traces: so look in any case.
        """
        wait_for_git(self._layout.sessions)
        return session_file.stamp_at(path) == self._after

    def _append_once(self, path: str, missing: list[Record], found: Stamp | None, untouched: bool) -> bool:
        """Append to the file that was `found`; False if that must be looked at again."""
        data = records.encode(*missing)
        try:
            stamp, stays = session_file.append(path, data, found) if missing else (found, True)
        except FileNotFoundError:
            return False
        if not stays or (missing and not _only_grew(found, stamp, len(data))):
            # Somebody was there between our look and our append: perhaps it is another file, without the prompt.
            self._after = self._reading = None
            return False
        self._keep_reading(missing, stamp if untouched else None)
        self._cut_to = found[0] if found and missing else None
        self._after = stamp
        return True

    def _keep_reading(self, added: list[Record], stamp: Stamp | None) -> None:
        """Go on with the summary; give it up (None) where only reading the file again would tell."""
        reading = self._reading
        if reading is None or stamp is None or reading.end != reading.stamp[0]:
            self._reading = None
            return
        try:
            for record in added:
                reading.take(records.encode(record))
            reading.stamp = stamp
            self._reading = reading if reading.end == stamp[0] else None
        except NeedsWholeFile:
            self._reading = None

    def _find_again(self) -> str | None:
        """Where the file is now: at its place, or moved elsewhere in the store, or nowhere."""
        if self.path is not None and not os.path.exists(self.path):
            found = self._layout.find(self.session_id)
            if not found and wait_for_git(self._layout.sessions):
                found = self._layout.find(self.session_id)
            if not found:
                return None
            self.path = found[0]
            self._reading = None
        return self.path

    def _write_anew(self, turn: list[Record]) -> None:
        self._create(self.settings, turn)
        self._note(f"the file of session {self.session_id} was removed meanwhile; it was written anew with this turn")

    def _cut_back(self) -> bool:
        """Bring the file back to what it was before the prompt; False if somebody changed it since."""
        assert self.path is not None
        if self._after is None or session_file.stamp_at(self.path) != self._after:
            return False
        if not self._made:
            return self._cut_to is not None and session_file.cut(self.path, self._cut_to, self._after)
        session_file.remove(self.path)
        self.path = None
        return True


def _only_grew(before: Stamp | None, after: Stamp | None, by: int) -> bool:
    """Whether it is the same file, grown by so many bytes and perhaps the newline behind a torn line."""
    if before is None or after is None:
        return False
    return before[3] == after[3] and after[0] - before[0] - by in {0, 1}


def _is_in(path: str, record: Record) -> bool:
    try:
        return session_file.contains(path, record["id"])
    except FileNotFoundError:
        return False


@contextmanager
def _write_errors(session_id: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:  # of the pictures
        error.session_id = error.session_id or session_id
        raise
    except OSError as error:
        raise cannot_write(error, session_id) from error


@contextmanager
def _read_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_read(error) from error
