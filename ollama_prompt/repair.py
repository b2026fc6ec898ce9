"""Mending what a check finds: damaged files, several files of one session, permissions, leftovers.

    mended(data, session_id)  →  (what the repaired file holds, why it differs)

A line that can be read is kept byte for byte, in its place; what is no record goes. Whoever reads the mended file sees
what he saw in the old one, but for the damage, and what he could not see because of it:

- Every record that counted counts, in the same order, with the same settings. Of records with one id the first
  stays, of headers too. It moves to the front. One that is missing is made, without settings: those that counted stand
  in `meta` records, which stay.
- Whole records in damaged lines are taken out of them, each to a line of its own: several that lost the newline between
  them, one behind a torn one, one that was spread over many lines. What a record says decides that it is whole, so only
  those of known types are.
- A file that was saved again in UTF-16 is read as that, up to the first line that a turn added since.
- An unterminated last line is ended if it is a whole record: a reader left it out because it might be unfinished,
  and under the session's lock it is not.
- What is mended has nothing to mend; what has no damage stays as it is, to the byte.

On disk: the old bytes are kept beside the file first, `<uuid>.<time>.<why>.bak`, durably. The new file is then written
under another name and put in place of the old one, if that still is what was read; git and editors replace files
without our lock. So a crash at any step loses nothing, and the next repair does what is left.

Of several files of a session the one with the most records stays where it is. What it lacks of the others is added
behind; then those are given the name of a backup. A file of a later format is left alone.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import sys
from contextlib import suppress

from ollama_prompt import clock, records, session_file
from ollama_prompt.layout import BACKUP, SUFFIX, cannot_write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ollama_prompt.layout import Layout
    from ollama_prompt.records import Record

    Reasons = dict[str, int]

REASONS = {
    "markers": "conflict markers of a merge",
    "damaged": "damaged lines",
    "recovered": "records taken out of damaged lines",
    "torn": "an unterminated last line",
    "repeated": "repeated records",
    "header": "a missing header",
    "blank": "blank lines",
    "nul": "lines with NUL bytes or a byte order mark",
    "crlf": "Windows line ends",
    "utf16": "text in UTF-16",
    "double": "records of another file of this session",
}
"""Why a file is replaced: as the backup's name says it → as it is reported, with how many there are."""

_UNFINISHED = re.compile(r"\.([0-9a-f-]{36})\..*\.tmp")
_UNFINISHED_PICTURE = re.compile(r"\.[0-9a-f]{64}\.tmp")
_UNFINISHED_GIT_FILE = re.compile(r"\.git(?:ignore|attributes)\.[0-9a-f]+\.tmp")


# --- Lines, without files --------------------------------------------------------------------------


def mended(data: bytes, session_id: str, *others: bytes) -> tuple[bytes, Reasons]:
    """What a session file should hold, with the records that it lacks of other files; and why that differs, if it
    does.
    """
    lines = Lines(data, session_id)
    for other in others:
        lines.join(Lines(other, session_id))
    return lines.data(), lines.reasons


class Lines:
    """The good lines of a file, and what is wrong with the rest. `count` is the number of records that count."""

    def __init__(self, data: bytes, session_id: str) -> None:
        self._session_id = session_id
        self._header: bytes | None = None
        self._kept: list[tuple[str | None, bytes]] = []  # each with its record's id
        self._ids: set[str] = set()
        self._damaged: list[bytes] = []  # lines in a row that may hold records
        self._created_at: str | None = None
        self.version = 0
        self.reasons: Reasons = {}
        *lines, last = self._as_utf8(data).split(b"\n")
        for line in lines:
            self._take(line)
        if last:
            self._take_unterminated(last)
        self._take_from_damaged()
        if self._header is None:
            self._note("header")

    @property
    def count(self) -> int:
        """How many records count."""
        return len(self._kept)

    def data(self) -> bytes:
        """The file as it should be."""
        header = self._header or records.encode(self._new_header()).rstrip(b"\n")
        return b"".join(line + b"\n" for line in (header, *(line for _, line in self._kept)))

    def join(self, other: Lines) -> None:
        """Add what is only in the other file of the session. A line without an id is in both if it is the same."""
        nameless = {line for id_, line in self._kept if id_ is None}
        for id_, line in other._kept:
            if line not in nameless if id_ is None else id_ not in self._ids:
                self._kept.append((id_, line))
                self._ids.update([id_] if id_ else [])
                self._note("double")
        self._header = self._header or other._header
        self._created_at = self._created_at or other._created_at
        self.version = max(self.version, other.version)

    def _as_utf8(self, data: bytes) -> bytes:
        """The data in UTF-8, if it begins in UTF-16; what can be read in UTF-8 behind that stays as it is."""
        if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data
        self._note("utf16")
        lines = data.split(b"\n")
        count = next((number for number, line in enumerate(lines) if _is_record(line)), len(lines))
        head = b"\n".join(lines[:count])
        text = (head + b"\n"[: len(head) % 2]).decode("utf-16", "replace").encode()
        return b"\n".join([text.removesuffix(b"\n"), *lines[count:]]) if count < len(lines) else text

    def _take(self, line: bytes) -> None:
        if records.is_blank(line):
            self._note("blank")
            return
        try:
            record = records.decode(line)
        except records.DamagedLine:
            self._take_damaged(line)
            return
        self._take_from_damaged()
        self._take_readable(record, self._without_what_editors_add(line))

    def _take_readable(self, record: Record, line: bytes) -> None:
        if record["type"] == "session":
            self._take_header(record, line)
        else:
            self._take_record(record, line)

    def _take_unterminated(self, line: bytes) -> None:
        self._note("torn")
        if _is_record(line):
            self._take(line)
        else:
            self._damaged.append(records.cleaned(line))

    def _take_damaged(self, line: bytes) -> None:
        if records.is_conflict_marker(line):
            self._note("markers")
            self._take_from_damaged()
        else:
            self._note("damaged")
            self._damaged.append(records.cleaned(line))

    def _take_from_damaged(self) -> None:
        """Take the records that the last damaged lines hold together."""
        text = b"\n".join(self._damaged).decode(errors="replace")
        self._damaged = []
        for line in _records_in(text):
            self._note("recovered")
            self._take_readable(records.decode(line), line)

    def _take_header(self, record: Record, line: bytes) -> None:
        if self._header is not None:
            self._note("repeated")
            return
        if self._kept:
            self._note("header")
        self._header = line
        version = record.get("version")
        self.version = version if isinstance(version, int) else 0

    def _take_record(self, record: Record, line: bytes) -> None:
        id_ = record.get("id")
        if id_ in self._ids:
            self._note("repeated")
            return
        self._kept.append((id_, line))
        self._ids.update([id_] if id_ is not None else [])
        self._created_at = self._created_at or clock.normal_time(record.get("created_at"))

    def _without_what_editors_add(self, line: bytes) -> bytes:
        cleaned = records.cleaned(line)
        if cleaned != line:
            self._note("nul")
        if cleaned.endswith(b"\r"):
            self._note("crlf")
        return cleaned.rstrip(b"\r")

    def _new_header(self) -> Record:
        """A header that changes nothing of what readers see: the session is as old as they take it for."""
        made = records.header(self._session_id, {})
        known = self._created_at or clock.time_of_id(self._session_id)
        return made | {"created_at": known} if known else {k: v for k, v in made.items() if k != "created_at"}

    def _note(self, reason: str) -> None:
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


_START = re.compile(r'\{[ \t\r\n]*"type"')
"""How a record begins; no string in JSON can hold that, as its quotes would be escaped."""
_SPARE = 8
"""How often, all in all, damaged text may be read again in vain."""


def _records_in(text: str) -> Iterator[bytes]:
    """The whole records in damaged text, each as a line without its end.

    An object ends before the next start, or holds that: then what is read is doubled until it is whole, or wrong. The
    cost is that of the text, as there is a limit to what is read in vain.
    """
    starts = [*(found.start() for found in _START.finditer(text)), len(text)]
    spare = _SPARE * len(text)
    end = 0
    for number, start in enumerate(starts[:-1]):
        reach = 1
        while start >= end:
            piece = text[start : starts[min(number + reach, len(starts) - 1)]]
            found, size = _object_in(piece)
            spare -= len(piece)
            reach *= 2
            if found is not None:
                end = start + size
                yield from _line_of(found, piece[:size])
            elif size < len(piece) or start + size == len(text) or spare < 0:
                break


def _object_in(text: str) -> tuple[Record | None, int]:
    """The object that a text begins with and its length; or None, and where the text is wrong or ends too early."""
    try:
        return _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return None, error.pos if text[error.pos :].strip() else len(text)
    except (ValueError, RecursionError):
        return None, 0


_DECODER = json.JSONDecoder(strict=False)
"""Not strict: a string may hold what an editor has broken its line with."""


def _line_of(found: Record, text: str) -> Iterator[bytes]:
    """An object as a line, if it is a record of a known type; and the text that it was read from."""
    with suppress(TypeError, records.DamagedLine):
        try:
            line = records.encode(found)
        except TypeError:  # a number of more than 64 bits, say, which readers round
            line = records.encode(records.decode(text.encode()))
        if records.decode(line)["type"] in records.TYPES:
            yield line.rstrip(b"\n")


def _is_record(line: bytes) -> bool:
    with suppress(records.DamagedLine):
        return b"{" in line and bool(records.decode(line))
    return False


# --- The files of one session ----------------------------------------------------------------------


class _File:
    """A session file as it was read."""

    def __init__(self, path: str, session_id: str) -> None:
        self.path = path
        self.data, self.stamp = session_file.read_all(path)
        self.lines = Lines(self.data, session_id)


def item(session_id: str | None, path: str, reason: str, kept: str | None = None) -> dict[str, Any]:
    """One thing that was mended, or left alone; `kept` is where the old bytes are."""
    return {"session_id": session_id, "path": path, "reason": reason, "kept": kept}


def is_needed(session_id: str, paths: list[str]) -> bool:
    """Whether there is anything to mend in the files of a session, as far as they can be read."""
    return len(paths) > 1 or any(file.lines.reasons for file in _read(session_id, paths))


def mend(session_id: str, paths: list[str]) -> list[dict[str, Any]]:
    """Mend the files of a session, whose lock the caller holds: what was done. Raises `StoreWriteFailed`.

    A file that cannot be read is left to the check to report.
    """
    files = sorted(_read(session_id, paths), key=lambda file: (-file.lines.count, file.path))
    if not files:
        return []
    first, *others = files
    for other in others:
        first.lines.join(other.lines)
    if first.lines.version > records.VERSION and (others or first.lines.reasons):
        return [item(session_id, first.path, f"left alone: it is of format version {first.lines.version}")]
    try:
        return _mend(session_id, first, others)
    except OSError as error:
        raise cannot_write(error, session_id) from error


def _read(session_id: str, paths: list[str]) -> Iterator[_File]:
    for path in paths:
        with suppress(OSError):
            yield _File(path, session_id)


def _mend(session_id: str, first: _File, others: list[_File]) -> list[dict[str, Any]]:
    """Put the first file right, then move the others away: what it has not got yet is never moved. Raises OSError."""
    if first.lines.reasons:
        done = [_replace(session_id, first)]
    else:
        done = [_changed(session_id, first)] if session_file.stamp_at(first.path) != first.stamp else []
    if all(one["kept"] for one in done):
        done += [_move_away(session_id, other, first) for other in others]
    return done


def _replace(session_id: str, file: _File) -> dict[str, Any]:
    reasons = file.lines.reasons
    kept = _free_name(file.path, next(iter(reasons)) if len(reasons) == 1 else "damaged")
    session_file.create(kept, file.data)
    if not session_file.replace(file.path, file.lines.data(), file.stamp):
        session_file.remove(kept)
        return _changed(session_id, file)
    what = ", ".join(f"{REASONS[reason]}: {count}" for reason, count in reasons.items())
    return item(session_id, file.path, f"mended: {what}", kept)


def _move_away(session_id: str, file: _File, first: _File) -> dict[str, Any]:
    if session_file.stamp_at(file.path) != file.stamp:
        return _changed(session_id, file)
    kept = _free_name(file.path, "double")
    os.rename(file.path, kept)
    session_file.sync_folder(os.path.dirname(kept))
    return item(session_id, file.path, f"moved away: all that it holds is in {first.path}", kept)


def _changed(session_id: str, file: _File) -> dict[str, Any]:
    return item(session_id, file.path, "left alone: another program changed it meanwhile")


def _free_name(path: str, why: str) -> str:
    """A name for a backup beside a session's file that no earlier one has."""
    time = clock.now()[:19].replace("-", "").replace(":", "")
    stem = f"{path.removesuffix(SUFFIX)}.{time}Z.{why}"
    number = 1
    while os.path.lexists(name := f"{stem}{f'-{number}' if number > 1 else ''}{BACKUP}"):
        number += 1
    return name


# --- Permissions and leftovers ---------------------------------------------------------------------


def tighten(layout: Layout, index: Iterable[str]) -> list[dict[str, Any]]:
    """Take the rights of others away in the store and from the files of the `index`, and give us those that we lack.

    Windows, FAT and some network drives have no such rights: nothing is changed there. The store's own folder is
    shut only if nothing else lies in it.
    """
    if sys.platform == "win32":
        return []
    done = [_tighten(layout.home, others=0)]
    if _is_ours_alone(layout):
        done.append(_tighten(layout.home))
    done += map(_tighten, filter(os.path.isfile, (*index, *layout.history_files(), *layout.search_files())))
    for folder in (layout.sessions, layout.attachments, layout.locks):
        if not os.path.islink(folder):  # what lies behind one is not the store's
            done += [_tighten(folder), *map(_tighten, _below(folder))]
    return [one for one in done if one]


def _is_ours_alone(layout: Layout) -> bool:
    folders = {os.path.basename(path) for path in (layout.sessions, layout.attachments, layout.locks)}
    files = tuple(os.path.basename(path) for path in (layout.history, layout.search, layout.index))
    try:
        return all(name in folders or name.startswith((".git", "sessions", *files)) for name in os.listdir(layout.home))
    except OSError:
        return False


def _below(folder: str) -> Iterator[str]:
    """Everything in a folder that is not hidden; a folder before what is in it, so that it can be opened by then."""
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(where, name) for name in (*folders, *names))


def _tighten(path: str, others: int = 0o077) -> dict[str, Any] | None:
    try:
        before = os.lstat(path).st_mode
        wanted = _tightened(before, others)
        if wanted == stat.S_IMODE(before):
            return None
        os.chmod(path, wanted)
        if stat.S_IMODE(os.lstat(path).st_mode) != wanted:
            return None
    except OSError:
        return None
    return item(session_of(path), path, f"permissions: {stat.S_IMODE(before):04o} is {wanted:04o} now")


def _tightened(mode: int, others: int) -> int:
    """The mode that something should have: without the rights in `others`. What we made read-only for us stays so."""
    bits = stat.S_IMODE(mode)
    if stat.S_ISDIR(mode):
        return bits & ~others | (0 if bits & 0o500 == 0o500 else 0o700)
    return bits & ~others | (0 if bits & 0o400 else 0o600) if stat.S_ISREG(mode) else bits


def session_of(path: str) -> str | None:
    """The session whose file this is."""
    name = os.path.basename(path)
    id_ = name.removesuffix(SUFFIX)
    return id_ if id_ != name and clock.parse_id(id_) == id_ else None


def leftovers(layout: Layout) -> Iterator[tuple[str, str]]:
    """Unfinished files: (the lock that whoever writes it holds, its path)."""
    for path in _below(layout.sessions):
        found = _UNFINISHED.fullmatch(os.path.basename(path))
        if found and clock.parse_id(found[1]):
            yield found[1], path
    for folder, name, lock in (
        (layout.attachments, _UNFINISHED_PICTURE, "attachments"),
        (layout.home, _UNFINISHED_GIT_FILE, "index"),
    ):
        with suppress(OSError):
            yield from ((lock, os.path.join(folder, file)) for file in os.listdir(folder) if name.fullmatch(file))
