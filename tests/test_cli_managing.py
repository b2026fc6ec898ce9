"""Listing, looking into, purging, deleting, checking and reindexing, as a user or a script does."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from stores import fail, header, line, make, message, new_id, succeed, the_file

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn

Json = dict[str, Any]

LISTED_KEYS = [
    "session_id", "model_name", "created_at", "last_used", "message_count", "context_tokens", "title", "path",
]  # fmt: skip
INFO_KEYS = [
    *LISTED_KEYS, "max_context_tokens", "context_usage_percent", "system_prompt", "options", "messages", "damage",
]  # fmt: skip
WHOLE_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def used(home: Path, number: int, days_ago: float) -> str:
    """A session that was last used that many days ago; its id."""
    when = datetime.fromtimestamp(time.time() - days_ago * 86400, timezone.utc)
    stamp = when.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    prompt = message(number, "user", f"Question {number}") | {"created_at": stamp}
    head = header(new_id(number)) | {"created_at": stamp}
    make(home, number, line(head) + line(prompt))
    return new_id(number)


# -- the listing -------------------------------------------------------------------------------------------


def test_listing(run: Run, home: Path) -> None:
    make(home, 1)
    first = stores.listed(run("--list-sessions"))
    asked = succeed(run("-p", "Hi", "--title", "A title")).json
    result = succeed(run("--list-sessions"))
    assert list(result.json) == ["sessions", "total"]
    newest, oldest = result.json["sessions"]
    assert [oldest] == first, "newest use first"
    assert list(newest) == list(oldest) == LISTED_KEYS
    assert oldest == {
        "session_id": new_id(1), "model_name": "smollm2", "created_at": "2026-09-21T20:26:40Z",
        "last_used": "2026-09-21T14:13:23Z", "message_count": 4, "context_tokens": 34, "title": "Question 0",
        "path": str(home / "sessions" / "2026-09" / f"{new_id(1)}.jsonl"),
    }  # fmt: skip
    assert newest["session_id"] == asked["session_id"]
    assert newest["title"] == "A title"
    assert newest["context_tokens"] == asked["prompt_eval_count"] + asked["eval_count"]
    assert WHOLE_SECONDS.fullmatch(newest["created_at"])
    assert len([text for text in result.stdout.splitlines() if '"session_id"' in text]) == 2, "one session a line"


def test_limit_shortens_the_list_and_not_the_total(run: Run, home: Path) -> None:
    for number in range(1, 4):
        used(home, number, number)
    shorter = succeed(run("--list-sessions", "--limit", "2")).json
    assert [session["session_id"] for session in shorter["sessions"]] == [new_id(1), new_id(2)]
    assert shorter["total"] == 3
    assert succeed(run("--list-sessions", "--limit", "0")).json == {"sessions": [], "total": 3}
    assert len(run("--list-sessions", "--limit", "2", "--output", "text").stdout.splitlines()) == 3


def test_managing_nothing_leaves_no_trace(run: Run, home: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    assert succeed(run("--list-sessions")).json == {"sessions": [], "total": 0}
    assert succeed(run("--purge", "0")).json["removed"] == 0
    assert succeed(run("--check")).json == {"ok": True, "sessions": 0, "damage": [], "index": "missing"}
    assert succeed(run("--reindex")).json == {"sessions": 0}
    fail(run("--delete", new_id(1)), "session_not_found")
    fail(run("--session-info", new_id(1)), "session_not_found")
    assert tree(tmp_path) == before


def test_listing_as_a_table(run: Run, home: Path) -> None:
    make(home, 1)
    make(home, 2, line(header(new_id(2), title="Red \x1b[31m", model="m")) + line(message(90, "user", "x")))
    text = succeed(run("--list-sessions", "--output", "text")).stdout
    assert text == (
        "SESSION                               LAST USED             MESSAGES  MODEL    TITLE\n"
        f"{new_id(2)}  2026-09-21T14:14:50Z  1         m        Red \\x1b[31m\n"
        f"{new_id(1)}  2026-09-21T14:13:23Z  4         smollm2  Question 0\n"
    )


def test_listing_needs_no_server(run: Run, home: Path, ollama: StandIn) -> None:
    make(home, 1)
    env = {"OLLAMA_HOST": "ftp://nonsense", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS": "many"}
    assert succeed(run("--list-sessions", env=env)).json["total"] == 1
    assert ollama.requests() == []


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_jq_takes_the_times(run: Run, home: Path) -> None:
    succeed(run("-p", "Hi"))
    listing, info = run("--list-sessions").stdout, run("--session-info", the_file(home).stem).stdout
    for text, query in ((listing, ".sessions[].last_used"), (info, ".created_at, .messages[].created_at")):
        found = subprocess.run(["jq", f"{query} | fromdate"], input=text.encode(), capture_output=True, check=True)
        assert all(abs(int(second) - time.time()) < 600 for second in found.stdout.split())


# -- one session -------------------------------------------------------------------------------------------


def test_session_info(run: Run, home: Path) -> None:
    first = succeed(
        run("-p", "Hi", "--system", "Be brief.", "--temperature", "0.5", "--max-context-tokens", "1000")
    ).json
    session_id = first["session_id"]
    info = succeed(run("--session-info", session_id.upper())).json
    assert list(info) == INFO_KEYS
    listed = stores.listed(run("--list-sessions"))[0]
    assert {key: info[key] for key in LISTED_KEYS} == listed
    assert info["max_context_tokens"] == 1000
    assert info["context_usage_percent"] == round(info["context_tokens"] / 10, 1)
    assert (info["system_prompt"], info["options"]) == ("Be brief.", {"temperature": 0.5})
    prompt, answer = info["messages"]
    assert list(prompt) == ["id", "role", "content", "created_at"]
    assert list(answer) == [*prompt, "model", "prompt_tokens", "tokens", "done_reason"]
    assert (prompt["role"], prompt["content"], answer["role"]) == ("user", "Hi", "assistant")
    assert answer["content"] == first["response"]
    assert WHOLE_SECONDS.fullmatch(answer["created_at"])
    assert info["damage"] == []


def test_session_info_tells_what_was_taken_back_and_what_is_damaged(run: Run, home: Path) -> None:
    undo = {"type": "undo", "id": new_id(99), "created_at": "2026-09-22T00:00:00.000Z"}
    first, second = stores.turn(0), stores.turn(1)
    data = b"".join(map(line, [header(new_id(1)), *first, *second]))
    make(home, 1, data + b"{broken\n" + line(undo | {"ids": [record["id"] for record in second]}))
    info = succeed(run("--session-info", new_id(1))).json
    assert [message.get("undone", False) for message in info["messages"]] == [False, False, True, True]
    assert info["message_count"] == 2
    assert [(item["line"], list(item)) for item in info["damage"]] == [(6, ["line", "reason"])]
    text = succeed(run("--session-info", new_id(1), "--output", "text")).stdout
    assert f"--- user (taken back), 2026-09-21T14:13:22Z, {new_id(2)}\nQuestion 1\n" in text
    assert "damaged:   line 6: " in text


def test_a_time_that_is_none_hides_no_message(run: Run, home: Path) -> None:
    odd = [record | {"created_at": "yesterday"} for record in stores.turn(0)]
    make(home, 1, b"".join(map(line, [header(new_id(1)), *odd])))
    text = succeed(run("--session-info", new_id(1), "--output", "text")).stdout
    assert f"--- user, {new_id(0)}\nQuestion 0\n" in text


def test_session_info_as_text(run: Run, home: Path) -> None:
    path = make(home, 1)
    assert succeed(run("--session-info", new_id(1), "--output", "text")).stdout.startswith(
        f"session:   {new_id(1)}\ntitle:     Question 0\nmodel:     smollm2\ncreated:   2026-09-21T20:26:40Z\n"
        f"last used: 2026-09-21T14:13:23Z\nmessages:  4\ncontext:   34 of 64000 tokens\nfile:      {path}\n\n"
        f"--- user, 2026-09-21T14:13:20Z, {new_id(0)}\nQuestion 0\n\n"
        f"--- assistant, 2026-09-21T14:13:21Z, {new_id(1)}\nAnswer 0\n"
    )


# -- removing ----------------------------------------------------------------------------------------------


def test_purge(run: Run, home: Path) -> None:
    old, young = used(home, 1, days_ago=31), used(home, 2, days_ago=29)
    before = tree(home / "sessions")
    dry = succeed(run("--purge", "30", "--dry-run")).json
    assert dry == {
        "removed": 1,
        "message": "1 session would be removed",
        "sessions": [old],
        "skipped": [],
        "dry_run": True,
    }
    assert list(dry) == ["removed", "message", "sessions", "skipped", "dry_run"]
    assert tree(home / "sessions") == before
    done = succeed(run("--purge", "30")).json
    assert done == {"removed": 1, "message": "1 session removed", "sessions": [old], "skipped": []}
    assert [session["session_id"] for session in stores.listed(run("--list-sessions"))] == [young]
    assert succeed(run("--purge", "0", "--output", "text")).stdout == f"{young}\n1 session removed\n"
    assert stores.files(home) == []


def test_purge_leaves_a_session_in_use_alone(run: Run, start: Start, home: Path, ollama: StandIn) -> None:
    make(home, 1)
    ollama.hold()
    turn = start("-p", "Hi", "--session-id", new_id(1))
    ollama.wait(held=1)
    result = succeed(run("--purge", "0")).json
    assert result == {
        "removed": 0, "message": "0 sessions removed, 1 session in use left alone",
        "sessions": [], "skipped": [new_id(1)],
    }  # fmt: skip
    assert "in use: " in run("--purge", "0", "--output", "text").stdout
    busy = fail(run("--delete", new_id(1)), "session_busy", 75)
    assert "--lock-timeout" not in busy["hint"], "it does not wait, whatever is given"
    ollama.release()
    assert turn.wait(30) == 0
    assert len(stores.said(the_file(home))) == 6


def test_delete(run: Run, home: Path) -> None:
    keep = make(home, 2)
    session_id = succeed(run("-p", "Hi")).json["session_id"]
    assert succeed(run("--delete", session_id.upper())).json == {"deleted": session_id}
    assert stores.files(home) == [keep]
    assert not list(home.glob(f"locks/{session_id}*"))
    assert (
        session_id.encode() not in (home / "sessions.db").read_bytes()
        or len(stores.listed(run("--list-sessions"))) == 1
    )
    fail(run("-p", "Hi", "--session-id", session_id), "session_not_found")
    assert succeed(run("--delete", new_id(2), "--output", "text")).stdout == f"deleted {new_id(2)}\n"


def test_an_unknown_session(run: Run, home: Path) -> None:
    for flags in (("--session-info",), ("--delete",), ("-p", "Hi", "--session-id")):
        error = fail(run(*flags, new_id(7)), "session_not_found")
        assert list(error) == ["error", "code", "hint", "session_id"]
        assert error["session_id"] == new_id(7)
        assert "--list-sessions" in error["hint"]


# -- checking and the index --------------------------------------------------------------------------------


def test_check(run: Run, home: Path) -> None:
    path = make(home, 1)
    assert succeed(run("--check")).json == {"ok": True, "sessions": 1, "damage": [], "index": "missing"}
    assert not (home / "sessions.db").exists(), "a check changes nothing"
    succeed(run("--list-sessions"))
    assert succeed(run("--check")).json["index"] == "ok"
    path.write_bytes(path.read_bytes() + b"{broken\n")
    result = stores.clean(run("--check"))
    assert result.returncode == 1
    assert result.stderr == ""
    (damage,) = result.json.pop("damage")
    assert list(damage) == ["session_id", "path", "line", "reason"]
    assert (damage["session_id"], damage["path"], damage["line"]) == (new_id(1), str(path), 6)
    assert (result.json["ok"], result.json["index"]) == (False, "stale")
    text = run("--check", "--output", "text")
    assert text.returncode == 1
    assert text.stdout.startswith(f"{path}:6: ")
    assert text.stdout.endswith("\nsessions: 1, damaged places: 1, index: stale\n")


def test_a_corrupt_index_is_found_and_built_again(run: Run, home: Path) -> None:
    make(home, 1)
    succeed(run("--list-sessions"))
    with open(home / "sessions.db", "r+b") as file:
        file.write(b"ruins" * 100)
    result = run("--check")
    assert (result.returncode, result.json["index"]) == (1, "corrupt")
    assert succeed(run("--reindex")).json == {"sessions": 1}
    assert succeed(run("--check")).json["index"] == "ok"
    assert succeed(run("--reindex", "--output", "text")).stdout == "sessions in the index: 1\n"


@pytest.mark.parametrize("kind", ["sqlite", "text"])
def test_a_foreign_file_where_the_index_belongs(run: Run, home: Path, kind: str) -> None:
    make(home, 1)
    foreign = home / "sessions.db"
    if kind == "sqlite":
        with sqlite3.connect(foreign) as database:
            database.execute("CREATE TABLE sessions (session_id TEXT, messages TEXT)")
        database.close()
    else:
        foreign.write_text("my notes", encoding="utf-8")
    before = foreign.read_bytes()
    listing = succeed(run("--list-sessions"))
    assert listing.json["total"] == 1
    assert listing.stderr.startswith(f"note: {foreign} is not an index of ollama-prompt: left untouched")
    turn = succeed(run("-p", "Hi", "--session-id", new_id(1)))
    assert turn.stderr.count("note: ") == 1
    error = fail(run("--reindex"), "store_unreadable")
    assert "OLLAMA_PROMPT_DB_PATH" in error["hint"]
    check = run("--check")
    assert (check.returncode, check.json["index"], check.json["ok"]) == (1, "foreign", False)
    assert foreign.read_bytes() == before


@pytest.mark.parametrize("place", [".", "sessions"])
@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_what_is_no_folder_is_no_empty_store(run: Run, home: Path, place: str, kind: str) -> None:
    path = home / place
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("not mounted") if kind == "broken link" else path.touch()
    for flags in (("--list-sessions",), ("--check",), ("--reindex",), ("--purge", "0"), ("-c", "-p", "Hi")):
        assert str(path) in fail(run(*flags), "store_unreadable")["error"]
    fail(run("-p", "Hi"), "store_write_failed")


def test_the_same_session_in_two_folders(run: Run, home: Path) -> None:
    path = make(home, 1)
    other = home / "sessions" / "kept" / path.name
    other.parent.mkdir()
    other.write_bytes(path.read_bytes() + line(message(50, "user", "More")))
    (listed,) = stores.listed(run("--list-sessions"))
    assert (listed["path"], listed["message_count"]) == (str(other), 5)
    result = run("--check")
    assert result.returncode == 1
    assert {item["path"] for item in result.json["damage"]} == {str(path), str(other)}
    assert result.json["sessions"] == 1


def test_json_is_what_is_printed(run: Run, home: Path) -> None:
    make(home, 1)
    for flags in (
        ("--list-sessions",),
        ("--session-info", new_id(1)),
        ("--purge", "9999"),
        ("--check",),
        ("--reindex",),
    ):
        printed = succeed(run(*flags, "--output", "json", "--num-ctx", "4096")).stdout
        assert isinstance(json.loads(printed), dict)
        assert printed.endswith("}\n")
