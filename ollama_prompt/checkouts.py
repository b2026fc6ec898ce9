"""git at work in the repository that the store lies in, by hand, without our locks.

git looks at all files first, and then replaces those that it found unchanged: what is appended in between goes with
the old file, behind the back of whoever appended it. All this while git has an `index.lock`, or (`git stash`) has
just made and removed other files in its folder. So whoever has appended waits until that is over, and looks whether
it is still there; whoever does not find a file waits likewise, for git removes one to make it anew. What begins
later sees that the file has changed.
"""

from __future__ import annotations

import os
import time

QUIET_SECONDS = 0.25
"""How long nothing must have changed in git's folder: `git stash` resets files milliseconds after it saved them."""
PATIENCE = 5.0
"""Seconds to wait for git, in all."""
LEFT_SECONDS = 60.0
"""A lock that is older was left by a git that was killed: it stays until somebody removes it, and changes no file."""
_AT_WORK = ("index.lock", "index.stash.")


def wait_for_git(folder: str) -> bool:
    """Whether git was at work just now, in the repository that has this folder: then it is over now."""
    git_folder = _git_folder(folder)
    if git_folder is None or not _is_at_work(git_folder):
        return False
    end = time.monotonic() + PATIENCE
    while _is_at_work(git_folder) and time.monotonic() < end:
        time.sleep(0.01)
    return True


def _git_folder(folder: str) -> str | None:
    """Where git keeps what belongs to the work tree that this folder is in, wherever links to it lie."""
    folder = os.path.realpath(folder)
    while True:
        found = os.path.join(folder, ".git")
        if os.path.isdir(found):
            return found
        if os.path.isfile(found):  # a work tree of its own, or a submodule
            return _named_in(found)
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def _named_in(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            name = file.readline().removeprefix("gitdir:").strip()
    except OSError:
        return None
    return os.path.join(os.path.dirname(path), name)


def _is_at_work(git_folder: str) -> bool:
    try:
        with os.scandir(git_folder) as entries:
            locks = [entry.path for entry in entries if entry.name.startswith(_AT_WORK)]
        return _age(git_folder) < QUIET_SECONDS or any(_age(lock) < LEFT_SECONDS for lock in locks)
    except OSError:  # gone since we looked
        return False


def _age(path: str) -> float:
    return abs(time.time() - os.stat(path).st_mtime)
