"""A folder of web pages with all conversations, made again only where something changed.

    DIR/index.html               the list, with search
        sessions/<uuid>.html     one page a session
        archive.jsonl            what is known of each page: the stamp of the session's file when it was read
        .archive.lock            while it is written; not in the store, which need not be writable

Invariants:
- The folder is ours if archive.jsonl is, or if there is nothing in it. A file that does not begin as our pages do is
  never replaced or removed.
- A page is whole before it has its name, and is in archive.jsonl only then. So whatever interrupts an export, the next
  one does what is left.
- No page is removed for being of another store, or of one that is not there: see `_is_of_this_store`.
- A page is as its session while the session's file has the stamp that is noted. Where that is none (the file may
  still have changed within a tick of the clock, a picture was missing), the page is made again.
- At most one session is in memory, beside what a listing has of each.

archive.jsonl grows by a line with each page, and is put in order at the end: one line a session, below one that says
what made them. Another release, or another one of a library, makes all pages again.
"""

from __future__ import annotations

import itertools
import json
import os
from contextlib import ExitStack, contextmanager, suppress

from ollama_prompt import clock, page
from ollama_prompt.errors import ExportFailed, OllamaPromptError, SessionNotFound, StoreWriteFailed
from ollama_prompt.exporting import Pictures, cannot_write, is_unfinished, transcript_of, write
from ollama_prompt.render import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ollama_prompt.indexer import Indexer

    Item = dict[str, Any]

_NOTES = "archive.jsonl"
_LOCK = ".archive.lock"
_LIST = "index.html"
_PAGES = "sessions"
_SUFFIX = ".html"
_KIND = b'{"archive": "ollama-prompt"'


def export(indexer: Indexer, folder: str, lock_timeout: float) -> dict[str, Any]:
    """Bring an archive up to date; what was done.

    A session that cannot be read holds up no other; it is raised at the end. Raises `ExportFailed`, `SessionBusy`,
    `StoreError`s.
    """
    folder = os.path.abspath(folder)
    try:
        _claim(folder)
        with _locked(indexer, folder, lock_timeout):
            return _Archive(indexer, folder).update()
    except OSError as error:
        raise cannot_write(error.filename or folder, error) from error


def _claim(folder: str) -> None:
    """Make the folder, or see that we may write to it. Raises `ExportFailed`."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ExportFailed(f"{folder} is no folder", hint="--export --all writes a folder of pages")
    if not os.path.isdir(folder):
        os.mkdir(folder)
    visible = [name for name in os.listdir(folder) if not name.startswith(".")]
    if visible and _NOTES not in visible:
        hint = "name an empty folder, or one that is not there yet"
        raise ExportFailed(f"{folder} is no archive, and not empty", hint=hint)
    notes = os.path.join(folder, _NOTES)
    if visible and not _begins(notes, _KIND):
        raise _is_foreign(notes)


@contextmanager
def _locked(indexer: Indexer, folder: str, lock_timeout: float) -> Iterator[None]:
    """Nobody else writes to the archive meanwhile; the store need not be writable."""
    with ExitStack() as stack:
        try:
            stack.enter_context(indexer.exporting(os.path.join(folder, _LOCK), lock_timeout))
        except StoreWriteFailed as error:
            reason = error.__cause__ if isinstance(error.__cause__, OSError) else OSError(error.message)
            raise cannot_write(folder, reason) from error
        yield


def _begins(path: str, mark: bytes) -> bool:
    """Whether a file is one of ours."""
    try:
        with open(path, "rb") as file:
            return file.read(len(mark)) == mark
    except FileNotFoundError:
        return False


def _is_foreign(path: str) -> ExportFailed:
    hint = "move it away, or name another folder with --to"
    return ExportFailed(f"{path} was not written by ollama-prompt", hint=hint)


class _Archive:
    """One export of a store into a folder. `notes` has the line of archive.jsonl of each page, by session."""

    def __init__(self, indexer: Indexer, folder: str) -> None:
        self._indexer = indexer
        self._folder = folder
        self._list = os.path.join(folder, _LIST)
        self._notes = os.path.join(folder, _NOTES)
        self._pages = os.path.join(folder, _PAGES)
        self._failed: list[OllamaPromptError] = []

    def update(self) -> dict[str, Any]:
        """Do what is to be done; see `export`."""
        sizes = self._sizes()
        gone = self._gone(sizes)
        notes, was_finished = self._known()
        known = len(notes)
        lines = self._indexer.sessions()
        exported = self._make_pages(lines, notes, sizes)
        for path in gone:
            os.unlink(path)
        listed = [line for line in lines if json.loads(line)["session_id"] in notes]
        if exported or gone or known != len(listed) or not was_finished or not os.path.exists(self._list):
            write(self._list, page.index(_row(json.loads(line), notes) for line in listed))
            ids = (json.loads(line)["session_id"] for line in listed)
            write(self._notes, itertools.chain([self._head(len(listed))], map(notes.__getitem__, ids)))
        if self._failed:
            raise self._failed[0]
        return {"exported": exported, "unchanged": len(listed) - exported, "removed": len(gone), "path": self._folder}

    def _make_pages(self, lines: list[bytes], notes: dict[str, str], sizes: dict[str, int]) -> int:
        """Make the pages that are not as their sessions are; how many. What is noted of each goes into `notes`."""
        exported = 0
        with open(self._notes, "a", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(lines):
                self._indexer.progress(number, len(lines))
                item = json.loads(line)
                session_id = item["session_id"]
                if session_id in notes and self._is_current(item, json.loads(notes[session_id]), sizes):
                    continue
                notes.pop(session_id, None)
                if made := self._made(item):
                    exported += 1
                    notes[session_id] = made
                    file.write(made)
                    file.flush()
        self._indexer.progress(len(lines), len(lines))
        return exported

    # --- What is there -------------------------------------------------------------------------

    def _sizes(self) -> dict[str, int]:
        """The pages that are there."""
        if not os.path.lexists(self._notes):
            write(self._notes, [self._head(0)])  # first of all: a folder with anything else in it would not be ours
        os.makedirs(self._pages, exist_ok=True)
        with os.scandir(self._pages) as entries:
            found = [entry for entry in entries if entry.is_file() and _id_of(entry.name)]
        return {_id_of(entry.name): entry.stat().st_size for entry in found}

    def _gone(self, sizes: dict[str, int]) -> list[str]:
        """The pages of sessions that are gone; not of those whose file is there and cannot be read.

        Raises `ExportFailed` where the archive is of another store.
        """
        here = set(self._indexer.session_ids())
        paths = [os.path.join(self._pages, session_id + _SUFFIX) for session_id in set(sizes).difference(here)]
        gone = [path for path in paths if _begins(path, page.MARK)]
        if gone and not self._is_of_this_store(here, len(here.intersection(sizes)), len(gone)):
            home = self._indexer.layout.home
            hint = "set OLLAMA_PROMPT_HOME as it was; or name another folder with --to, or remove this one"
            raise ExportFailed(f"{self._folder} shows the sessions of another store than {home}", hint=hint)
        return gone

    def _is_of_this_store(self, here: set[str], kept: int, gone: int) -> bool:
        """Whether the archive's sessions are, or were, those of the store.

        In the same place they may all have been deleted. A store that was moved or cloned has most of them.
        """
        if self._noted().get("store") != self._store():
            return kept >= gone
        return kept > 0 or (not here and os.path.isdir(self._indexer.layout.sessions))

    def _store(self) -> str:
        """Where the store is, without telling it: an archive may be published."""
        from hashlib import sha256

        return sha256(os.fsencode(os.path.realpath(self._indexer.layout.home))).hexdigest()[:16]

    def _noted(self) -> Item:
        """What archive.jsonl says of the archive as a whole."""
        with open(self._notes, encoding="utf-8", errors="replace", newline="\n") as file:
            return _parsed(file.readline())

    def _known(self) -> tuple[dict[str, str], bool]:
        """What is noted of each page, and whether the last export came to its end.

        Notes of another release are dropped: they tell nothing of these pages. What an export that was killed left
        unfinished is removed.
        """
        if os.path.lexists(self._list) and not _begins(self._list, page.MARK):
            raise _is_foreign(self._list)
        for folder in (self._folder, self._pages):
            for name in filter(is_unfinished, os.listdir(folder)):
                with suppress(OSError):
                    os.unlink(os.path.join(folder, name))
        head = self._noted()
        if head.get("made_by") != page.fingerprint():
            write(self._notes, [self._head(0)])
            return {}, False
        with open(self._notes, encoding="utf-8", errors="replace", newline="\n") as file:
            lines = [(_parsed(line).get("session_id"), line) for line in itertools.islice(file, 1, None)]
        known = {session_id: line for session_id, line in lines if isinstance(session_id, str)}
        return known, len(lines) == len(known) == head.get("pages") and head.get("store") == self._store()

    def _head(self, pages: int) -> str:
        """The first line of archive.jsonl: how many lines follow tells whether an export came to its end."""
        head = {"archive": "ollama-prompt", "made_by": page.fingerprint(), "store": self._store(), "pages": pages}
        return json.dumps(head) + "\n"

    def _is_current(self, item: Item, note: Item, sizes: dict[str, int]) -> bool:
        stamp = self._indexer.settled_stamp(item["path"])
        is_whole = note.get("size") == sizes.get(item["session_id"]) and isinstance(note.get("words"), str)
        return stamp is not None and stamp == note.get("stamp") and is_whole

    # --- What is made --------------------------------------------------------------------------

    def _made(self, item: Item) -> str | None:
        """Make a session's page; what is noted of it. None if there is no such session any more, or it failed."""
        stamp = self._indexer.settled_stamp(item["path"])  # before it is read: a later change has another one
        pictures = Pictures(self._indexer)
        path = os.path.join(self._pages, item["session_id"] + _SUFFIX)
        try:
            transcript = transcript_of(self._indexer, item["session_id"])
            if os.path.lexists(path) and not _begins(path, page.MARK):
                raise _is_foreign(path)
            size = write(path, [page.conversation(transcript, pictures.read, f"../{_LIST}")])
        except SessionNotFound:
            return None
        except OllamaPromptError as error:
            self._failed.append(error)
            return None
        note = {"session_id": item["session_id"], "stamp": None if pictures.missing else stamp, "size": size}
        return json.dumps(note | {"words": transcript.first_words()}, ensure_ascii=False) + "\n"


def _parsed(line: str) -> Item:
    """A line of archive.jsonl; nothing for one that was cut off where an export was killed."""
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and line.endswith("\n"):
            return found
    return {}


def _id_of(name: str) -> str:
    """The session that a page is of, by its name; "" if that is no name of a page."""
    stem = name.removesuffix(_SUFFIX)
    return stem if stem != name and clock.parse_id(stem) == stem else ""


def _row(item: Item, notes: dict[str, str]) -> str:
    """A session in the list."""
    words = json.loads(notes[item["session_id"]])["words"]
    title, model = (one_line(item[key] or "") for key in ("title", "model_name"))
    values = [item["session_id"], title or "Conversation", model, item["last_used"] or item["created_at"] or ""]
    return json.dumps([*values, item["message_count"], words], ensure_ascii=False, separators=(",", ":"))
