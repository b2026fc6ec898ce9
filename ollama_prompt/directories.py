"""Open directories: what lies in one is reached from it, never through a link that was put there meanwhile.

A path that was resolved and checked a moment ago may lead elsewhere by now. So it is opened step by step from a
directory that is open already, following no link, and what may be read is decided on the open file, not on its
name. Nothing is read but files and directories, and nothing waits: no FIFO, no device. Windows opens no directories:
there, each path is resolved again after it was opened, and compared.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""Of what was there a moment ago: removed, or something else or a link by now."""
FILE, FOLDER, LINK = "file", "folder", "link"
BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
_NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0)
# O_PATH: to reach what lies in a directory one need not be allowed to list it.
_OPEN_FOLDER = _NOT_FOLLOWED | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", 0)
_OPEN_LISTING = os.O_RDONLY | _NOT_FOLLOWED | getattr(os, "O_DIRECTORY", 0)
OPEN_FILE = (
    os.O_RDONLY | _NOT_FOLLOWED | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
)
_JUNCTION = 0xA0000003
"""Windows' IO_REPARSE_TAG_MOUNT_POINT, a link between directories that does not call itself one."""
_BLOCK = 1 << 20


class NotAFile(Exception):
    """It is neither a file nor a directory: a device, a FIFO, a socket."""


class Folder:
    """An open directory. What lies in it is reached from there, and never through a link.

    Raises OSError with the whole path as its `filename`.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._descriptor)

    def below(self, name: str) -> Folder:
        """A directory in this one, open."""
        path = os.path.join(self.path, name)
        with _about(path):
            return Folder(path, os.open(name, _OPEN_FOLDER, dir_fd=self._descriptor))

    def below_if_there(self, name: str) -> Folder | None:
        """A directory in this one, open; None if it is gone, or no directory any more."""
        try:
            return self.below(name)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def status(self, name: str) -> os.stat_result:
        """What is known of an entry itself, be it a link."""
        with _about(os.path.join(self.path, name)):
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def read(self, name: str, most: int) -> bytes:
        """The beginning of a file; a file may be longer than it says, or grow."""
        with _about(os.path.join(self.path, name)):
            _check_is_file(self.status(name))  # before it is opened: opening some devices does something
            descriptor = self._open(name)
            try:
                _check_is_file(os.fstat(descriptor))
                return _read(descriptor, most)
            finally:
                os.close(descriptor)

    def scan(self) -> Generator[tuple[str, str], None, None]:
        """The names in the directory and what has them; without devices, FIFOs and sockets."""
        with _about(self.path):
            descriptor = os.open(".", _OPEN_LISTING, dir_fd=self._descriptor)
            try:
                yield from scan_entries(descriptor)
            finally:
                os.close(descriptor)

    def _open(self, name: str) -> int:
        return os.open(name, OPEN_FILE, dir_fd=self._descriptor)


class NamedFolder(Folder):
    """A directory where none can be opened: on Windows.

    So what was opened is compared afterwards with what the resolved path leads to.
    """

    __slots__ = ()

    def __init__(self, path: str) -> None:
        super().__init__(path, -1)

    def close(self) -> None:
        """Nothing is held."""

    def below(self, name: str) -> Folder:
        """A directory in this one."""
        path = os.path.join(self.path, name)
        with _about(path):
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            _check_is_same(path, status)
        return NamedFolder(path)

    def status(self, name: str) -> os.stat_result:
        """What is known of an entry itself, be it a link."""
        return os.lstat(os.path.join(self.path, name))

    def scan(self) -> Generator[tuple[str, str], None, None]:
        """The names in the directory and what has them."""
        before = os.stat(self.path)
        yield from scan_entries(self.path)
        _check_is_same(self.path, before)

    def _open(self, name: str) -> int:
        path = os.path.join(self.path, name)
        descriptor = os.open(path, OPEN_FILE)
        try:
            _check_is_same(path, os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def open_folder(path: str) -> Folder:
    """A directory by its resolved path."""
    if BY_DESCRIPTOR:
        return Folder(path, os.open(path, _OPEN_FOLDER))
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return NamedFolder(path)


def scan_entries(folder: int | str) -> Iterator[tuple[str, str]]:
    """(name, kind) of what is in a directory, by its descriptor or path; without devices, FIFOs and sockets."""
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = _kind(entry)
            if kind:
                yield entry.name, kind


def _kind(entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink() or (os.name == "nt" and _is_junction(entry)):
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return FILE if entry.is_file(follow_symlinks=False) else None


def _is_junction(entry: os.DirEntry[str]) -> bool:
    return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == _JUNCTION


def _check_is_file(status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):  # only a loop, or what was no link when the path was resolved
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile


def _check_is_same(path: str, opened: os.stat_result) -> None:
    """Refuse what the resolved path does not lead to, or leads to through a link that was put there meanwhile."""
    real = os.path.realpath(path)
    if os.path.normcase(real) != os.path.normcase(path) or not os.path.samestat(opened, os.stat(real)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _read(descriptor: int, most: int) -> bytes:
    blocks = []
    while most and (block := os.read(descriptor, min(most, _BLOCK))):
        blocks.append(block)
        most -= len(block)
    return b"".join(blocks)


@contextmanager
def _about(path: str) -> Iterator[None]:
    """Say of errors of the operating system what they are about: from a descriptor it knows a name only."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies below it; both without links."""
    path, folder = os.path.normcase(path), os.path.normcase(folder)
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
