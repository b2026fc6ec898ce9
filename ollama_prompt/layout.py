"""Where things lie in the store.

    HOME/                               0700
      sessions/2026-11/<uuid>.jsonl     0600; the month comes from the id (UUIDv7) itself
      sessions.db                       the index; may lie elsewhere
      locks/<uuid>.lock, index.lock
      .gitignore .gitattributes

A session file is found by its name, wherever below `sessions/` people moved it. Symbolic links
below `sessions/` are never followed.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from ollama_prompt import clock
from ollama_prompt.errors import StoreWriteFailed

SUFFIX = ".jsonl"

GITIGNORE = """\
# The index, the locks and unfinished files can be made again; the conversations cannot.
/sessions.db
/sessions.db-*
/locks/
*.tmp
"""
GITATTRIBUTES = """\
# A conversation only grows, line by line, so that both sides of a merge are kept.
*.jsonl text eol=lf merge=union
"""


class Layout:
    """The paths of one store. `index` may lie outside `home`."""

    __slots__ = ("home", "index", "locks", "sessions")

    def __init__(self, home: str, index: str | None = None) -> None:
        self.home = os.path.abspath(home)
        self.index = os.path.abspath(index) if index else os.path.join(self.home, "sessions.db")
        self.sessions = os.path.join(self.home, "sessions")
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

    def lock(self, name: str) -> str:
        """The lock file of a session, or of the `index`."""
        return os.path.join(self.locks, name + ".lock")

    def locked(self) -> set[str]:
        """The sessions that have a lock file; not each of them is held, or exists."""
        try:
            names = [name.removesuffix(".lock") for name in os.listdir(self.locks)]
        except OSError:
            return set()
        return {name for name in names if clock.parse_id(name) == name}

    def make(self, folder: str | None = None) -> None:
        """Make the store, and `folder` in it, where they are missing. Raises `StoreWriteFailed`."""
        try:
            if not os.path.isdir(self.locks):
                os.makedirs(self.home, 0o700, exist_ok=True)
                for made in (self.sessions, self.locks):
                    os.makedirs(made, 0o700, exist_ok=True)
                self._write_once(".gitignore", GITIGNORE)
                self._write_once(".gitattributes", GITATTRIBUTES)
            if folder and not os.path.isdir(folder):
                os.makedirs(folder, 0o700, exist_ok=True)
        except OSError as error:
            raise cannot_write(error) from error

    def _write_once(self, name: str, text: str) -> None:
        with (
            suppress(FileExistsError),
            open(os.path.join(self.home, name), "x", encoding="utf-8", newline="\n") as file,
        ):
            file.write(text)

    def candidates(self, session_id: str) -> list[str]:
        """Files of this session where they usually lie: in `sessions` or a visible folder directly below it.

        Costs a look into each folder's name, not a listing of every session.
        """
        folders = [self.sessions, *self._folders()]
        paths = [os.path.join(folder, session_id + SUFFIX) for folder in folders]
        return list(filter(is_file, paths))

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.sessions) as entries:
                return sorted(
                    entry.path
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def everywhere(self, session_id: str) -> list[str]:
        """Files of this session anywhere below `sessions`."""
        found = []
        for folder, folders, names in os.walk(self.sessions):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(folder, name) for name in names if name == session_id + SUFFIX]
        return list(filter(is_file, found))


def is_file(path: str) -> bool:
    """Whether a file lies there itself, not a link to one."""
    return os.path.isfile(path) and not os.path.islink(path)


def cannot_write(error: OSError, session_id: str | None = None) -> StoreWriteFailed:
    """An error of the operating system as ours, with what to do about it."""
    where = f" {error.filename}" if error.filename else ""
    elsewhere = "OLLAMA_PROMPT_HOME moves the store, --no-session does without"
    hint = {
        errno.ENOSPC: "the disk is full: make room and ask again",
        errno.EDQUOT: "the disk quota is used up: make room and ask again",
        errno.EROFS: f"the file system is read-only; {elsewhere}",
    }.get(error.errno or 0, elsewhere)
    return StoreWriteFailed(f"cannot write{where}: {error.strerror or error}", hint=hint, session_id=session_id)
