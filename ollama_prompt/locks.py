"""Locks between processes: filelock, in one place.

One lock a session, held for a whole turn; a few for what the store has once, such as the index; one an archive, held
while it is written. The kernel frees a lock with the process that held it, however that ended. A lock file is removed
only while it is held, together with its session, or when an archive is written: filelock gives a waiter that gets a
removed file's lock no lock, but lets it try again on the name.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from functools import partial

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

from ollama_prompt.errors import SessionBusy
from ollama_prompt.layout import cannot_write, open_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL_SECONDS = 0.05
"""How often a waiter tries again."""
_held: set[int] = set()
"""Descriptors of the locks that were taken at once; those of a `FileLock` are filelock's to look after."""


@contextmanager
def hold(
    path: str,
    timeout: float,
    what: str,
    session_id: str | None = None,
    waiting: Callable[[str], None] | None = None,
    hint: str = "--lock-timeout waits longer",
) -> Iterator[None]:
    """Hold the lock on this file, which is that of `what`: "the index", "session …". Waits up to `timeout` seconds.

    `waiting` is told once why, if it must wait. Raises `SessionBusy` when the time is over, `StoreWriteFailed` when the
    lock file cannot be had.
    """
    in_use = f"{what} is in use by another process"
    try:
        release = _locked(path, timeout, (lambda: waiting(in_use)) if waiting else None)
    except Timeout:
        raise SessionBusy(in_use, hint=hint, session_id=session_id) from None
    except OSError as error:
        raise cannot_write(error, session_id) from error
    try:
        yield
    finally:
        with suppress(OSError):
            release()


def _locked(path: str, timeout: float, waiting: Callable[[], None] | None) -> Callable[[], object]:
    """Lock the file; what lets it go. Raises `Timeout`, OSError."""
    try:
        return _locked_at_once(path)
    except Timeout:
        if timeout <= 0:
            raise
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a file system without such locks, for which `FileLock` has others
            raise
        warnings.filterwarnings("ignore", message="flock not supported")  # filelock's, on stderr in each turn
    lock = FileLock(path, mode=0o600, poll_interval=POLL_SECONDS)
    _acquire(lock, timeout, waiting)
    return lock.release


def _locked_at_once(path: str) -> Callable[[], None]:
    """The same lock as a `FileLock` without waiting, which costs five times as much, and nobody else holds most."""
    descriptor, is_new = _opened(path)
    _held.add(descriptor)  # before it is locked: another thread may fork
    try:
        if not lock_descriptor(descriptor, blocking=False) or not _names(path, descriptor):
            raise Timeout(path)
    except BaseException as error:
        _held.discard(descriptor)
        os.close(descriptor)
        if is_new and isinstance(error, OSError) and error.errno == errno.ENOSYS:
            discard(path)  # else `FileLock` takes it for that of somebody who is about to write into it
        raise
    return partial(_let_go, descriptor, os.getpid())


def _opened(path: str) -> tuple[int, bool]:
    """A descriptor of the file, and whether we made it."""
    try:
        return open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
    except FileExistsError:
        return open_own(path, os.O_RDWR | os.O_CREAT), False


def _let_go(descriptor: int, holder: int) -> None:
    if os.getpid() == holder:
        _held.discard(descriptor)
        try:
            unlock_descriptor(descriptor)  # a process that was forked just now may have it open yet
        finally:
            os.close(descriptor)


def _disown() -> None:
    """In a forked process: as long as it had them open too, nobody would get the locks of the other one."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


def _names(path: str, descriptor: int) -> bool:
    """Whether this is the file of that name yet: who held the lock may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _acquire(lock: FileLock, timeout: float, waiting: Callable[[], None] | None) -> None:
    start = time.monotonic()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if timeout <= 0:
            raise
        if waiting:
            waiting()
        lock.acquire(timeout=max(timeout - (time.monotonic() - start), 0))


def make_room(count: int) -> None:
    """Let this process hold so many more locks, as far as the system lets it: each is an open file."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def discard(path: str) -> None:
    """Remove a lock file, which the caller holds. On Windows an open file cannot be removed: it stays."""
    with suppress(OSError):
        os.unlink(path)
