"""Session files as tests make and read them, without the code under test; and how a store must be after trouble."""

from __future__ import annotations

import json
import os
import re
import stat
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from conftest import Result, Run

Json = dict[str, Any]

TRACES = ("Traceback", "Exception ignored", "Warning", "this is a bug")
"""What no command may ever print."""

LISTED_SINCE = 1_790_000_000_000
"""The time, in milliseconds, of the first id that `new_id` makes: September 2026."""


def new_id(number: int, milliseconds: int = LISTED_SINCE) -> str:
    """A UUIDv7 that the number alone decides, larger for larger numbers."""
    tick = milliseconds + number
    return str(uuid.UUID(int=tick << 80 | 7 << 76 | 2 << 62 | number))


def month_of(session_id: str) -> str:
    """The folder where the session of this UUIDv7 lies."""
    return time.strftime("%Y-%m", time.gmtime(int(session_id[:8] + session_id[9:13], 16) // 1000))


def line(record: Json) -> bytes:
    """A record as it is stored."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def header(session_id: str, **more: Any) -> Json:
    """Line 1 of a session."""
    first = {"type": "session", "version": 1, "session_id": session_id, "created_at": "2026-09-21T20:26:40.000Z"}
    return {**first, "model": "smollm2", "max_context_tokens": 64000, **more}


def message(number: int, role: str, content: str, **more: Any) -> Json:
    """A message; its number gives its id and its time."""
    created_at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(LISTED_SINCE // 1000 + number))
    return {
        "type": "message", "id": new_id(number), "role": role, "content": content, "created_at": created_at, **more
    }  # fmt: skip


def turn(number: int) -> list[Json]:
    """A question and its answer."""
    counted = {"model": "smollm2", "prompt_tokens": 20 * number + 5, "tokens": 9, "done_reason": "stop"}
    return [
        message(2 * number, "user", f"Question {number}"),
        message(2 * number + 1, "assistant", f"Answer {number}", **counted),
    ]


def lines(session_id: str, turns: int = 2) -> bytes:
    """A whole session."""
    records = [header(session_id), *(record for number in range(turns) for record in turn(number))]
    return b"".join(map(line, records))


def make(home: Path, number: int = 1, data: bytes | None = None) -> Path:
    """Lay a session into the store, as `git pull` or a backup would; its file."""
    session_id = new_id(number)
    return put(home, session_id, lines(session_id) if data is None else data)


def put(home: Path, session_id: str, data: bytes) -> Path:
    """The same under any id."""
    path = home / "sessions" / month_of(session_id) / f"{session_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def replace(path: Path, data: bytes) -> None:
    """As git and editors do: another file gets the name."""
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def add(path: Path, data: bytes) -> None:
    """As another program does, in place."""
    with path.open("ab") as file:
        file.write(data)


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Opening this file is not permitted; root could open it, whatever its mode."""
    real = os.open

    def open_(name: Any, *args: Any, **named: Any) -> int:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", name)
        return real(name, *args, **named)

    monkeypatch.setattr(os, "open", open_)


def files(home: Path) -> list[Path]:
    """Every session file, oldest session first."""
    return sorted(home.glob("sessions/*/*.jsonl"), key=lambda path: path.name)


def the_file(home: Path) -> Path:
    """The only session file."""
    (path,) = files(home)
    return path


def records(path: Path) -> list[Json]:
    """What is stored, header first; every line must be whole."""
    data = path.read_bytes()
    assert data.endswith(b"\n"), data[-200:]
    return [json.loads(text) for text in data.splitlines()]


def said(path: Path) -> list[tuple[str, str]]:
    """The conversation: (role, content) of every message."""
    return [(record["role"], record["content"]) for record in records(path) if record["type"] == "message"]


def clean(result: Result) -> Result:
    """The result, which shows no trace of a bug."""
    for trace in TRACES:
        assert trace not in result.stderr, result
    return result


def succeed(result: Result) -> Result:
    """The result of a command that must have worked."""
    assert result.returncode == 0, result
    return clean(result)


def fail(result: Result, code: str, exit_code: int = 1) -> Json:
    """The error of a command that must have failed with it."""
    assert clean(result).returncode == exit_code, result
    assert result.error["code"] == code, result
    return result.error


NEW = re.compile(
    rb"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=\.)[0-9a-f]{16}(?=\.tmp))"
    rb'|(?<=")20\d\d-\d\d-\d\dT[\d:.]+Z(?=")'
)
"""What is another at each run: ids, also in the names of unfinished files, and times."""


class States:
    """What a command that was killed left behind: whether it did so at an earlier step already.

    Most steps only read, so that a store is left again and again as it was, and what follows was seen before. States
    are the same if only the new ids and times in their texts differ. A database must have the same bytes, which it has
    until it is written to: what it knows of the files is then compared with them anew.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._known = {match["id"] for data in self._parts() for match in NEW.finditer(data)}
        self._seen: set[tuple[bytes, ...]] = set()

    def is_new(self, *more: str) -> bool:
        """Whether the folders were not yet like this, with the same `more`."""
        numbers: dict[bytes, int] = {}

        def neutral(match: re.Match[bytes]) -> bytes:
            found = match["id"]
            if found in self._known:
                return found
            return b"id %d" % numbers.setdefault(found, len(numbers)) if found else b"time"

        state = tuple(NEW.sub(neutral, part) for part in (*self._parts(), *map(str.encode, more)))
        is_new = state not in self._seen
        self._seen.add(state)
        return is_new

    def _parts(self) -> Iterator[bytes]:
        """Names, modes and contents."""
        for folder in self._folders:
            for path in sorted(folder.rglob("*")):
                status = path.lstat()
                yield b"%s %o" % (os.fsencode(path), status.st_mode)
                yield path.read_bytes() if stat.S_ISREG(status.st_mode) else b""


def listed(result: Result) -> list[Json]:
    """The sessions of a listing."""
    sessions: list[Json] = succeed(result).json["sessions"]
    assert result.json["total"] == len(sessions)
    return sessions


def assert_agreement(run: Run, env: dict[str, str] | None = None) -> list[Json]:
    """A listing gives what building the index again gives; the sessions."""
    before = listed(run("--list-sessions", env=env))
    assert succeed(run("--reindex", env=env)).json == {"sessions": len(before)}
    assert listed(run("--list-sessions", env=env)) == before
    return before
