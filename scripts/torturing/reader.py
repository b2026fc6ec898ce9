"""A reader of session files, written from docs/format.md alone: what a store says, however it came to say it.

It takes nothing from the program, so that both can be compared. It is made to be plain, not fast: a file is read whole,
and nothing is remembered. Unlike the program it trusts what it reads to be of the right types.

    read(home) → every session, by its id
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

Json = dict[str, Any]

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NUL_RUN = re.compile(rb"\0{2,}")
TITLE_LENGTH = 200


class Session:
    """One file: its `header`, the `records` behind that, each id once; `damage` by line; `torn`, a line without end."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.session_id = path.stem
        self.path = path
        self.header: Json = {}
        self.records: list[Json] = []
        self.damage: dict[int, bytes] = {}
        self._ids: set[str] = set()
        *lines, self.torn = (path.read_bytes() if data is None else data).split(b"\n")
        self.is_empty = not lines
        for number, line in enumerate(lines, 1):
            if line.strip(b" \t\r\0"):
                self._take(number, line)

    def _take(self, number: int, line: bytes) -> None:
        record = parse(line)
        if record is None:
            self.damage[number] = line
        elif record["type"] == "session":
            self.header = self.header or record
        elif record.get("id") not in self._ids:
            self._ids |= {record["id"]} if "id" in record else set()
            self.records.append(record)

    @property
    def reported(self) -> set[int]:
        """The lines that are reported as damage."""
        return {1} if self.is_empty else set(self.damage)

    def of_type(self, wanted: str) -> list[Json]:
        """The records of one type."""
        return [record for record in self.records if record["type"] == wanted]

    @property
    def undone(self) -> set[str]:
        """The ids of what was taken back."""
        return {id_ for record in self.of_type("undo") for id_ in record["ids"]}

    @property
    def messages(self) -> list[Json]:
        """The prompts and answers that count."""
        undone = self.undone
        said = [record for record in self.of_type("message") if record["role"] in {"user", "assistant"}]
        return [record for record in said if record.get("id") not in undone]

    def listed(self) -> Json:
        """What a listing says of it."""
        settings: Json = {}
        for record in (self.header, *self.of_type("meta")):
            settings |= record
        times = [record["created_at"] for record in self.records if "created_at" in record]
        answers = [message for message in self.messages if message["role"] == "assistant"]
        return {
            "session_id": self.session_id,
            "model_name": settings.get("model"),
            "created_at": in_seconds(
                self.header.get("created_at") or next(iter(times), None) or time_of(self.session_id)
            ),
            "last_used": in_seconds(max(times, default=None)),
            "message_count": len(self.messages),
            "context_tokens": tokens(answers[-1]) if answers else 0,
            "title": settings.get("title") or self._first_line(),
            "path": str(self.path),
        }

    def _first_line(self) -> str | None:
        prompts = [message for message in self.messages if message["role"] == "user"]
        texts = [str(prompt.get("typed", prompt["content"])).strip() for prompt in prompts]
        line: str = next((text.splitlines()[0].strip() for text in texts if text), "")
        return (line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…") or None


def parse(line: bytes) -> Json | None:
    """A line's record; None if it is damaged."""
    try:
        record = json.loads(NUL_RUN.sub(b"", line).strip(b"\0\r"))
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        return None
    is_whole = record["type"] != "message" or {"role", "content"} <= record.keys()
    return record if is_whole else None


def time_of(session_id: str) -> str | None:
    """When a session began whose id is a UUIDv7; None for other ids."""
    seconds = int(session_id[:8] + session_id[9:13], 16) // 1000
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if session_id[14] == "7" else None


def in_seconds(moment: str | None) -> str | None:
    """A time as it is printed, without its fraction."""
    return moment[:19] + "Z" if moment else None


def tokens(answer: Json) -> int:
    """What the conversation took after this answer."""
    return int(answer.get("prompt_tokens", 0) + answer.get("tokens", 0))


def read(home: Path) -> dict[str, Session]:
    """Every session in a store. Of two files of one name the one with more records counts."""
    found: dict[str, Session] = {}
    for folder, folders, names in os.walk(home / "sessions"):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in sorted(Path(folder, name) for name in names if name.endswith(".jsonl")):
            if UUID.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
                session = Session(path)
                other = found.get(session.session_id)
                if other is None or len(session.records) > len(other.records):
                    found[session.session_id] = session
    return found
