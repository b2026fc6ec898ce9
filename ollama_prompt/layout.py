"""Where things lie in the store.

    HOME/                               0700
      sessions/2026-11/<uuid>.jsonl     0600; the month comes from the id (UUIDv7) itself
                       <uuid>.<time>.<why>.bak      what a repair replaced
      attachments/<sha256>              pictures that messages name
      sessions.db                       the index; may lie elsewhere
      search.db                         the index of --search
      history.jsonl                     what was typed in conversations
      sessions-1.x.db                   a database of ollama-prompt 1.x that lay in its place
      locks/<uuid>.lock                 of sessions, and index.lock and others of what is there once
            index.made, syncing         a second name of the index (see `index`), a note of `sync`
      .gitignore .gitattributes

A session file is found by its name, wherever below `sessions/` people moved it. Symbolic links
below `sessions/` are never followed, and no file of the store is opened through one (`open_own`): git brings links, and
what is written through one would go into any file of the user's.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from contextlib import suppress

from ollama_prompt import clock
from ollama_prompt.errors import StoreUnreadable, StoreWriteFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SUFFIX = ".jsonl"
BACKUP = ".bak"
_ITSELF = 0
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # Windows has only the last
    _ITSELF |= getattr(os, _flag, 0)

GITIGNORE = """\
# The index, the locks and unfinished files can be made again; the conversations cannot.
# What a repair replaced (*.bak) is for this machine only.
/sessions.db
/sessions.db-*
/search.db
/search.db-*
/sessions-1.x*
/history.jsonl
/locks/
*.tmp
*.bak
# What editors and merge tools leave.
*~
*.sw?
*.orig
*.rej
"""
GITATTRIBUTES = """\
# A conversation only grows, line by line, so that both sides of a merge are kept.
*.jsonl text eol=lf merge=union diff=ollama-prompt
/attachments/* binary
.gitattributes merge=union
.gitignore merge=union
"""


class Layout:
    """The paths of one store. `index` may lie outside `home`."""

    __slots__ = ("attachments", "history", "home", "index", "locks", "search", "sessions")

    def __init__(self, home: str, index: str | None = None) -> None:
        self.home = os.path.abspath(home)
        self.index = os.path.abspath(index) if index else os.path.join(self.home, "sessions.db")
        self.search = os.path.join(self.home, "search.db")
        self.history = os.path.join(self.home, "history.jsonl")
        self.sessions = os.path.join(self.home, "sessions")
        self.attachments = os.path.join(self.home, "attachments")
        self.locks = os.path.join(self.home, "locks")

    def absolute(self, name: str) -> str:
        """A path relative to `sessions`, with /, as the index keeps it → the path of the file."""
        return os.path.join(self.sessions, *name.split("/"))

    def name(self, path: str) -> str:
        """The path of a session file → relative to `sessions`, with /."""
        return os.path.relpath(path, self.sessions).replace(os.sep, "/")

    def new_path(self, session_id: str, created_at: str | None = None) -> str:
        """Where a session's file is made."""
        return os.path.join(self.sessions, clock.month_of(session_id, created_at), session_id + SUFFIX)

    def attachment(self, sha256: str) -> str:
        """Where the picture with this SHA-256 lies."""
        return os.path.join(self.attachments, sha256)

    def lock(self, name: str) -> str:
        """The lock file of a session, or of what the store has once: "index", "attachments" …"""
        return os.path.join(self.locks, name + ".lock")

    def locked(self) -> set[str]:
        """The sessions that have a lock file; not each of them is held, or exists."""
        try:
            names = [name.removesuffix(".lock") for name in os.listdir(self.locks)]
        except OSError:
            return set()
        return {name for name in names if clock.parse_id(name) == name}

    def backups(self) -> dict[str, list[str]]:
        """What repairs have replaced, by session."""
        found: dict[str, list[str]] = {}
        for folder, folders, names in os.walk(self.sessions):
            folders[:] = [below for below in folders if not below.startswith(".")]
            for name in names:
                if name.endswith(BACKUP) and clock.parse_id(name.partition(".")[0]):
                    found.setdefault(name.partition(".")[0], []).append(os.path.join(folder, name))
        return found

    def exposed(self) -> str | None:
        """Why others can change what is in the store; None if they cannot, or nothing is there yet.

        To root all files are others', in a container for example.
        """
        us = os.geteuid() if hasattr(os, "geteuid") else 0
        for folder in (self.home, self.sessions):
            with suppress(OSError):
                status = os.stat(folder)
                if us and status.st_uid not in {0, us}:
                    return f"{folder} belongs to another user, who can read and change the conversations"
                if us and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
                    return f"every user can change what is in {folder}: chmod o-w takes that away"
        return None

    def make(self, folder: str | None = None) -> None:
        """Make the store, and `folder` in it, where they are missing. Raises `StoreWriteFailed`."""
        try:
            for made in (self.home, self.sessions, self.locks, folder):
                if made and not os.path.isdir(made):
                    _make_private(made)
            self._write_once(".gitignore", GITIGNORE)
            self._write_once(".gitattributes", GITATTRIBUTES)
            if folder and os.path.dirname(folder) == self.sessions and os.path.islink(folder):
                raise OSError(errno.ELOOP, "it is a link, which is not followed", folder)
        except OSError as error:
            raise cannot_write(error) from error

    def _write_once(self, name: str, text: str) -> None:
        """Write a file that is missing, under another name first: half of it would stay for good.

        The other name is nobody else's: threads, and processes in two containers, have the same pid.
        """
        path = os.path.join(self.home, name)
        if os.path.lexists(path):
            return
        unfinished = f"{path}.{os.urandom(8).hex()}.tmp"
        try:
            with open(open_new(unfinished), "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(unfinished, path)
        except OSError:
            with suppress(OSError):
                os.unlink(unfinished)
            if not os.path.lexists(path):  # else another process did it
                raise

    def complete_git_files(self) -> None:
        """Add lines that the .gitignore and .gitattributes of an earlier release lack. Raises `StoreWriteFailed`.

        They go to the front: git heeds the last line that fits, which is the user's own.
        """
        try:
            _complete(os.path.join(self.home, ".gitignore"), GITIGNORE + self._own_index())
            _complete(os.path.join(self.home, ".gitattributes"), GITATTRIBUTES)
        except OSError as error:
            raise cannot_write(error) from error

    def _own_index(self) -> str:
        """Lines that keep an index out of git that lies in the store under a name of the user's."""
        name = os.path.relpath(self.index, self.home).replace(os.sep, "/")
        return "" if name.startswith("..") or name == "sessions.db" else f"/{name}\n/{name}-*\n"

    def set_aside_index(self) -> str:
        """Give the file in the index's place a name that is free; the name. Raises OSError."""
        aside = next(name for name in self._names_aside() if not os.path.lexists(name))
        os.rename(self.index, aside)
        return aside

    def history_files(self) -> list[str]:
        """What was typed, and a new one that is being written."""
        return [self.history, self.history + ".tmp"]

    def search_files(self) -> list[str]:
        """The index of --search, the one that is being made, and what SQLite may leave beside them."""
        ends = ("", "-journal", "-wal", "-shm", ".tmp", ".tmp-journal")
        return [self.search + end for end in ends]

    def set_aside(self) -> list[str]:
        """The files that were in the index's place once."""
        return list(itertools.takewhile(os.path.lexists, self._names_aside()))

    def _names_aside(self) -> Iterator[str]:
        stem = os.path.join(os.path.dirname(self.index), "sessions-1.x")
        return (f"{stem}{f'-{number}' if number else ''}.db" for number in itertools.count())

    def find(
        self,
        session_id: str,
        known: Iterable[str] = (),
        deep: bool | None = None,
        folders: Iterable[str] | None = None,
    ) -> list[str]:
        """Files of this session, usually one. Raises `StoreUnreadable`.

        They are looked for where they usually lie: in `sessions`, in a visible folder directly below it, or at a
        `known` path. That costs a look at one name in each folder. Only if there is none are all folders read: with
        `deep` in any case, to be sure of all; where it is False, never. `folders` are the visible ones if the caller
        knows them.
        """
        unread: list[OSError] = []
        name = session_id + SUFFIX
        visible = self.folders(unread) if folders is None else folders
        usual = [os.path.join(folder, name) for folder in (self.sessions, *visible)]
        found = _files_among([*usual, *known], unread)
        if deep if deep is not None else not found:
            found = _files_among([*found, *self._everywhere(name, unread)], unread)
        if unread and not found:  # "there is no such session" must be true
            raise cannot_read(unread[0], session_id)
        return found

    def folders(self, unread: list[OSError] | None = None) -> list[str]:
        """The visible folders directly below `sessions`."""
        try:
            with os.scandir(self.sessions) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
                return sorted(entry.path for entry in visible if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            _remember(error, unread if unread is not None else [])
            return []

    def _everywhere(self, name: str, unread: list[OSError]) -> list[str]:
        found: list[str] = []
        for folder, folders, names in os.walk(self.sessions, onerror=lambda error: _remember(error, unread)):
            folders[:] = [below for below in folders if not below.startswith(".")]
            found += [os.path.join(folder, name)] if name in names else []
        return found


def open_own(path: str, flags: int) -> int:
    """Open a file of the store's: a regular one, not what a link leads to; a new one is for its owner alone.

    Raises OSError for anything else: links and pipes come by git, or by accident.
    """
    # Not blocking: a FIFO that got the name of a session must not hang the listing.
    descriptor = os.open(path, flags | _ITSELF, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def open_new(path: str) -> int:
    """Open a new file under this name, to write it, in place of whatever was left there. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    return open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def _make_private(folder: str) -> None:
    """Make a folder, and those above it that are missing, for their owner alone, whatever the umask is."""
    above = os.path.dirname(folder)
    if not os.path.isdir(above):
        _make_private(above)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)


def _complete(path: str, text: str) -> None:
    with open(open_own(path, os.O_RDWR), "r+", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        there = file.read()
        missing = [line for line in text.splitlines() if line not in there.splitlines()]
        if missing:
            file.seek(0)
            file.write("".join(f"{line}\n" for line in missing) + there)


def _files_among(paths: list[str], unread: list[OSError]) -> list[str]:
    """The paths at which a file lies itself, not a link to one."""
    found = []
    for path in dict.fromkeys(paths):
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(path)
        except OSError as error:
            _remember(error, unread)
    return found


def _remember(error: OSError, unread: list[OSError]) -> None:
    """Keep an error that leaves open whether something is there."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        unread.append(error)


def cannot_read(error: OSError, session_id: str | None = None) -> StoreUnreadable:
    """An error of the operating system while reading as ours."""
    where = error.filename or "the store"
    return StoreUnreadable(f"cannot read {where}: {error.strerror or error}", session_id=session_id)


def cannot_write(error: OSError, session_id: str | None = None) -> StoreWriteFailed:
    """An error of the operating system as ours, with what to do about it."""
    where = f" {error.filename}" if error.filename else ""
    elsewhere = "OLLAMA_PROMPT_HOME moves the store, --no-session does without"
    hint = {
        errno.ENOSPC: "the disk is full: make room and ask again",
        errno.EDQUOT: "the disk quota is used up: make room and ask again",
        errno.EMFILE: "too many files are open at once: ulimit -n tells how many may be",
        errno.EROFS: f"the file system is read-only; {elsewhere}",
    }.get(error.errno or 0, elsewhere)
    return StoreWriteFailed(f"cannot write{where}: {error.strerror or error}", hint=hint, session_id=session_id)
