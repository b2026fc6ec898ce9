"""A conversation as a document, and files that are written whole or not at all.

A file is written under another name beside its own, and gets that when it is whole: who reads it sees the old one or
the new one. Until then nobody else can read it, and an interruption removes it. What is exported can be made again at
any time, so an archive's pages are not waited for until the disk has them; a single file is.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress

from ollama_prompt import interrupts
from ollama_prompt.errors import ExportFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from ollama_prompt.indexer import Indexer
    from ollama_prompt.transcript import Transcript

_UNFINISHED = (".ollama-prompt.", ".tmp")
"""How the name of a file begins and ends until it is whole."""


def document(indexer: Indexer, session_id: str, form: str) -> str:
    """A session as `form`: "markdown", "text", "json" or "html". Notes what it lacks.

    Raises `SessionNotFound`, `StoreUnreadable`.
    """
    pictures = Pictures(indexer)
    transcript = transcript_of(indexer, session_id, tell_damage=True)
    if form == "html":
        from ollama_prompt import page

        made = page.conversation(transcript, pictures.read)
    else:
        from ollama_prompt import transcript as forms

        if form == "json":
            made = forms.as_json(transcript, pictures.read)
        else:
            made = forms.as_text(transcript) if form == "text" else forms.as_markdown(transcript)
    if pictures.missing:
        indexer.note(f"pictures that are missing or damaged: {pictures.missing}; --check tells which")
    return made


def transcript_of(indexer: Indexer, session_id: str, tell_damage: bool = False) -> Transcript:
    """What is exported of a session. Raises `SessionNotFound`, `StoreUnreadable`."""
    from ollama_prompt.transcript import Transcript

    listed, found, reading = indexer.info(session_id)
    if tell_damage:
        indexer.tell_damage(reading)
    return Transcript(listed, reading.summary.settings, found, reading.summary.undone)


class Pictures:
    """The pictures of a store, and how many were asked for that are not there."""

    def __init__(self, indexer: Indexer) -> None:
        self._attachments = indexer.attachments()
        self.missing = 0

    def read(self, name: str) -> bytes | None:
        """The picture with this SHA-256."""
        data = self._attachments.read(name)
        self.missing += data is None
        return data


# --- Files -----------------------------------------------------------------------------------------


def check_place(indexer: Indexer, path: str) -> None:
    """Raise `ExportFailed` where conversations are kept, and what the store has beside them: a document must not
    replace any of it, and is none.
    """
    layout, place = indexer.layout, os.path.join(os.path.realpath(path), "")
    files = (layout.index, layout.search, layout.history, *layout.set_aside())
    for kept in (layout.sessions, layout.attachments, layout.locks, *files):
        if place.startswith(os.path.join(os.path.realpath(kept), "")):
            raise cannot_write(path, FileExistsError(0, f"{kept} belongs to the conversations", path))


def write(path: str, pieces: Iterable[str], durable: bool = False) -> int:
    """Write a text file, whole or not at all, in place of one that may be there; its size. Raises `ExportFailed`."""
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    try:
        status = _status(path)
        if status and not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            with open(path, "w", encoding="utf-8", newline="\n") as device:  # such as /dev/null, or a pipe
                return sum(map(device.write, pieces))
        if not os.path.basename(path):
            raise IsADirectoryError(0, "it is a folder", path)
        return _replace(os.path.realpath(path), pieces, status, durable)  # a link stays one
    except OSError as error:
        raise cannot_write(path, error) from error


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _replace(path: str, pieces: Iterable[str], status: os.stat_result | None, durable: bool) -> int:
    if status and stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(0, "it is a folder", path)
    if status and not os.access(path, os.W_OK):
        raise PermissionError(0, "it is write-protected", path)
    with interrupts.deferred(), _unfinished(os.path.dirname(path)) as (file, temporary):
        with interrupts.heard(), file:
            file.writelines(pieces)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        with suppress(PermissionError):  # a file system without modes
            os.chmod(temporary, stat.S_IMODE(status.st_mode) if status else _mode_of_new_files())
        os.replace(temporary, path)
        with interrupts.heard():  # one that came since: an archive has more to write
            return size


@contextmanager
def _unfinished(folder: str) -> Iterator[tuple[TextIO, str]]:
    """A file that nobody else can read, foresee or have put there; gone in the end. Interruptions are deferred."""
    temporary = os.path.join(folder, f"{_UNFINISHED[0]}{os.urandom(8).hex()}{_UNFINISHED[1]}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    file = open(descriptor, "w", encoding="utf-8", newline="\n")  # noqa: SIM115  closed before it gets its name
    try:
        yield file, temporary
    finally:
        with suppress(OSError):  # on a full disk it fails once more
            file.close()
        with suppress(OSError):
            os.unlink(temporary)


def _mode_of_new_files() -> int:
    """What the umask leaves. It can be asked for only by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def is_unfinished(name: str) -> bool:
    """Whether a file has the name that one has until it is whole."""
    return name.startswith(_UNFINISHED[0]) and name.endswith(_UNFINISHED[1])


def cannot_write(path: str, error: OSError) -> ExportFailed:
    """An error of the operating system as ours."""
    from ollama_prompt.text import valid_text

    folder = os.path.dirname(path) or "."
    reason = (error.strerror or str(error)) if os.path.isdir(folder) else f"there is no folder {folder}"
    return ExportFailed(f"cannot write {valid_text(path)}: {valid_text(reason)}", hint="name another place with --to")
