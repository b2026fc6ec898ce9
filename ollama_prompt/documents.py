"""What is searched of a session: its messages, its title, its system prompt. Read as `session_file.load` does.

What was taken back is not found, nor a title that a later one replaced; but it is in the file.
"""

from __future__ import annotations

import zlib
from contextlib import suppress

from ollama_prompt import clock, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ollama_prompt.records import Record


class Document:
    """What is searched as one: a message, or (`field`) the "title" or "system" prompt in the record at this offset."""

    __slots__ = ("at", "field", "offset", "record")

    def __init__(self, record: Record, offset: int, field: str, at: str) -> None:
        self.record = record
        self.offset = offset
        self.field = field
        self.at = at

    @property
    def text(self) -> str:
        """What is searched."""
        return text_of(self.record, self.field)

    @property
    def crc(self) -> int:
        """The text as a number."""
        return zlib.crc32(self.text.encode())


def text_of(record: Record, field: str) -> str:
    """The text of a document."""
    if field:
        return str(record[field])
    texts = [record.get(key) for key in ("content", "typed", "thinking")]
    return "\n".join(text for text in texts if isinstance(text, str) and text)


class Documents:
    """The documents of one file, and the session's `model`; read as `session_file.load` does."""

    def __init__(self, data: bytes, session_id: str) -> None:
        self.model: str | None = None
        self.end = 0
        self._began = clock.time_of_id(session_id) or ""
        self._messages: list[Document] = []
        self._settings: dict[str, list[Document]] = {"title": [], "system": []}  # in each the last one counts
        self._seen: set[str] = set()
        self._undone: set[str] = set()
        self._has_header = False
        for line in data.split(b"\n")[:-1]:
            if not records.is_blank(line):
                with suppress(records.DamagedLine):
                    self._take(records.decode(line))
            self.end += len(line) + 1

    def shown(self) -> list[Document]:
        """Those that are found."""
        messages = [message for message in self._messages if message.record.get("id") not in self._undone]
        return messages + [each[-1] for each in self._settings.values() if each and each[-1].text]

    def crcs(self) -> set[int]:
        """The texts of all that are in the file, found or not."""
        return {document.crc for each in (self._messages, *self._settings.values()) for document in each}

    def _take(self, record: Record) -> None:
        at = clock.normal_time(record.get("created_at")) or self._began
        if record["type"] == "session":  # without an id: one that was written by hand makes nothing void
            if not self._has_header:
                self._has_header = True
                self._take_settings(record, at, is_header=True)
        elif self._is_new(record.get("id")):
            self._take_record(record, at)

    def _is_new(self, id_: str | None) -> bool:
        if id_ in self._seen:
            return False
        self._seen.update([id_] if id_ is not None else [])
        return True

    def _take_record(self, record: Record, at: str) -> None:
        if record["type"] == "message":
            self._messages.append(Document(record, self.end, "", at))
        elif record["type"] == "undo":
            self._undone.update(records.undone_ids(record))
        elif record["type"] == "meta":
            self._take_settings(record, at)

    def _take_settings(self, record: Record, at: str, is_header: bool = False) -> None:
        """A header is earlier than every other record, wherever it lies."""
        settings = records.settings_of(record)
        for field, documents in self._settings.items():
            if field in settings:
                documents.insert(0 if is_header else len(documents), Document(settings, self.end, field, at))
        if not (is_header and self.model):
            self.model = settings.get("model", self.model)
