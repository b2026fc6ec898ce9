"""What the listing and the index keep of a session: a fold over its records, in file order.

    Summary.add(record)  for every record, first to last   ≡   the summary of the whole file

Whether a record repeats an earlier one is known without remembering them all: ids are UUIDv7, so one above
all earlier ids (`max_id`) is new. So a file takes little memory, and a summary can be saved and taken up
again where it stopped, when records were only added behind it. What cannot be decided so, an older id or
an undo, raises `NeedsWholeFile`: the file is read again from its start, with `undone` known beforehand and
every id remembered.

Invariants: of records with the same id the first counts; what an undo names does not count, wherever
it lies; `last_used` is the newest time in any record, never a file's time; `simple` is True only if
reading from the end gives the same as reading from the start (no repeated record, no undo in front of
what it takes back).
"""

from __future__ import annotations

from ollama_prompt import clock
from ollama_prompt.records import VERSION, images_of, settings_of, undone_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from typing import Any

    from ollama_prompt.records import Record

TITLE_LENGTH = 200
"""A title made from a prompt is cut here, in characters: it is one line of a listing, not a document."""

SAVED = (
    "created_at", "last_used", "last_id", "version", "settings", "title", "message_count", "answered_count",
    "context_tokens", "record_count", "line_count", "damage_count", "max_id", "unanswered", "simple", "images",
)  # fmt: skip
"""The fields that are enough to take the fold up again."""


class NeedsWholeFile(Exception):
    """What was kept so far cannot tell what this record changes."""


class Summary:
    """The fold; see the module.

    `title` is the one that was given, else the first line of the first prompt; `message_count` counts prompts and
    answers, `answered_count` those of answered turns only (the model's context); `context_tokens` is the size of
    the conversation after the last answer; `unanswered` tells that the last prompt has no answer yet; `images`
    has the SHA-256 of every picture that a stored message names. `undone` is what any undo in the file names;
    None if that is not known.
    """

    __slots__ = (*SAVED, "_passed", "_seen", "session_id", "undone")

    def __init__(self, session_id: str, undone: AbstractSet[str] | None = None) -> None:
        self.session_id = session_id
        self.undone = undone or frozenset()
        self.created_at: str | None = None
        self.last_used: str | None = None
        self.last_id = ""
        self.version = 0
        self.settings: Record = {}
        self.title: str | None = None
        self.message_count = 0
        self.answered_count = 0
        self.context_tokens = 0
        self.record_count = 0
        self.line_count = 0
        self.damage_count = 0
        self.max_id = ""
        self.unanswered = False
        self.simple = True
        self.images: list[str] = []
        self._seen: set[int | str] | None = None if undone is None else set()
        self._passed: set[str] = set()

    @classmethod
    def resume(cls, session_id: str, saved: dict[str, Any]) -> Summary:
        """A summary as it was saved, to be fed with what was added behind it."""
        summary = cls(session_id)
        for key in SAVED:
            setattr(summary, key, saved[key])
        summary.settings, summary.images = dict(summary.settings), list(summary.images)
        return summary

    def saved(self) -> dict[str, Any]:
        """The state from which `resume` goes on."""
        return {key: getattr(self, key) for key in SAVED}

    def listed(self) -> dict[str, Any]:
        """The session in a listing, without its path; times in whole seconds."""
        return {
            "session_id": self.session_id,
            "model_name": self.settings.get("model"),
            "created_at": clock.whole_seconds(self.created_at or clock.time_of_id(self.session_id)),
            "last_used": clock.whole_seconds(self.last_used),
            "message_count": self.message_count,
            "context_tokens": self.context_tokens,
            "title": self.settings.get("title") or self.title,
        }

    def add(self, record: Record) -> bool:
        """Fold one record in; False for a repeat, which changes nothing.

        Raises `NeedsWholeFile` when resumed state, or `undone`, cannot tell what it changes.
        """
        if record["type"] == "session":
            self._add_header(record)
            return True
        if not self._is_new(record.get("id")):
            self.simple = False
            return False
        self.record_count += 1
        self._see_time(record)
        if record["type"] == "message":
            self._add_message(record)
        elif record["type"] == "meta":
            self._change_settings(record)
        elif record["type"] == "undo":
            self._add_undo(record)
        return True

    def _is_new(self, id_: object) -> bool:
        if not isinstance(id_, str):
            return True  # written by hand, without an id: nothing can repeat it or take it back
        if self._seen is None:
            if id_ <= self.max_id:
                raise NeedsWholeFile
        else:
            key = _compact(id_)
            if key in self._seen:
                return False
            self._seen.add(key)
        self.max_id = max(self.max_id, id_)
        return True

    def _see_time(self, record: Record) -> None:
        time, id_ = clock.normal_time(record.get("created_at")), record.get("id")
        if time is None:
            return
        self.created_at = self.created_at or time
        newest = (time, id_ if isinstance(id_, str) else "")
        if newest > (self.last_used or "", self.last_id):
            self.last_used, self.last_id = newest

    def _add_header(self, record: Record) -> None:
        if self.version:
            return  # a merge can repeat the header; the first counts
        version = record.get("version")
        self.version = version if isinstance(version, int) and version > 0 else VERSION
        self.created_at = clock.normal_time(record.get("created_at")) or self.created_at
        later, self.settings = self.settings, {}
        self._change_settings(record)
        self._change_settings(later)

    def _change_settings(self, record: Record) -> None:
        self.settings |= settings_of(record)

    def _add_message(self, record: Record) -> None:
        if "images" in record:
            self.images += [name for name in dict.fromkeys(images_of(record)) if name not in self.images]
        if record.get("id") in self.undone:
            self.simple = self.simple and record["id"] not in self._passed
        elif record["role"] == "user":
            self.message_count += 1
            self.unanswered = True
            if self.title is None:
                self.title = title_of(record)
        elif record["role"] == "assistant":
            self.message_count += 1
            self.answered_count += 2 if self.unanswered else 1
            self.unanswered = False
            self.context_tokens = tokens_of(record)

    def _add_undo(self, record: Record) -> None:
        ids = undone_ids(record)
        if self._seen is None or not self.undone >= set(ids):
            raise NeedsWholeFile
        self._passed.update(ids)
        self.max_id = max([self.max_id, *ids])  # one of them that comes later must not be taken for new


def _compact(id_: str) -> int | str:
    """A UUID as the integer that it is: half the memory, in files with millions of records."""
    return int(id_.replace("-", ""), 16) if clock.parse_id(id_) == id_ else id_


def tokens_of(answer: Record) -> int:
    """The size of the conversation after this answer, as the model counted it; 0 if it was not counted."""
    counts = (answer.get("prompt_tokens"), answer.get("tokens"))
    return sum(count for count in counts if isinstance(count, int))


def title_of(prompt: Record) -> str | None:
    """The first line of a prompt that is not blank, as it was typed."""
    typed = prompt.get("typed")
    text = typed if isinstance(typed, str) else prompt["content"]
    lines = text.lstrip()[: 4 * TITLE_LENGTH].splitlines()
    line = lines[0].strip() if lines else None
    return line if line is None or len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"
