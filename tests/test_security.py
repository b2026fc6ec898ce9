"""What docs/security.md promises: attacks on a store, on a terminal and on the command, tried as an attacker would.

Attacks that belong to one module (a reference that leads out, a page that runs a script, a redirect) are tried in that
module's file; the page in docs names them all.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import screens
import stores
from conftest import tree
from stores import fail, header, line, message, new_id, succeed
from test_chat import PROMPT, talk
from test_sync import QUIET, hub, synced, two

from ollama_prompt import ollama
from ollama_prompt.errors import OllamaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Run
    from standin import StandIn
    from test_chat import Talk

__all__ = ("hub", "synced", "talk", "two")  # fixtures

posix_only = pytest.mark.skipif(os.name == "nt", reason="of POSIX")
Json = dict[str, Any]

# --- Escape sequences ------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
EVIL = (
    "\x1b[66m \x1b]0;title\x07 \x1b]8;;http://x/\x1b\\ \x1b]52;c;aGk=\x07 \x1bP$q\x1b\\ \x1b_x\x1b\\ \x1bc \x9b66m"
    " \x90q\x9c \x85 \x08 \x7f \x0e \r over \u061c \u200e \u200f \u202a \u202e \u2066 \u2069"
)
OBEYED = re.compile(
    "\x1b(?![\\[])|\x1b\\[66m|\x1b\\[[0-9;?]*(?![0-9;?mKhlABCDGHJ])|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
    "|\r(?!\r*\n|\x1b)|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""What a terminal must not see: all but the sequences with which the command itself colours, wipes and moves."""
IN_A_PIPE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

MANY = """
import json, os, sys
from ollama_prompt import cli, commands, indexer, render, terminal
from ollama_prompt.__main__ import main
for args in json.load(open(sys.argv[1])):
    pid = os.fork()
    if not pid:
        sys.argv = ["ollama-prompt", *args]
        main()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("\\n=== ended with", code, json.dumps(args), flush=True)
"""
"""Runs commands one after the other, in a process that has imported all they need."""


def evil_store(home: Path) -> str:
    """A store with the attack in every place that text has; a session of it."""
    session_id = new_id(1)
    head = header(session_id, title=EVIL, model=EVIL, system=EVIL, options={EVIL: EVIL}, think=EVIL, keep_alive=EVIL)
    odd = {"model": EVIL, "thinking": EVIL, "done_reason": EVIL, "typed": EVIL, "created_at": EVIL, EVIL: EVIL}
    images = [{"sha256": 64 * "a", "bytes": 1, "type": EVIL, "path": EVIL}]
    said = [
        message(1, "user", EVIL, images=images),
        message(2, "assistant", EVIL, prompt_tokens=5000, tokens=2000),
        message(3, EVIL, EVIL, **odd) | {"id": EVIL, "created_at": EVIL},
        message(4, "user", EVIL, typed=EVIL, images=[{"sha256": EVIL, "path": EVIL}]),
        message(5, "assistant", EVIL, model=EVIL, thinking=EVIL, done_reason=EVIL),
        {"type": EVIL, "id": EVIL, EVIL: EVIL},
    ]
    stores.make(home, 1, b"".join(map(line, [head, *said])) + EVIL.encode() + b"\n" + b"\x9b66m\xff\n")
    folder = home / "sessions" / EVIL.replace("/", "")
    folder.mkdir()
    secret = message(7, "user", f"over \x1b[66m AKIA{'Q' * 8}7N3XWP2K \x1b[66m ghp_{'a1B2c3D4e5' * 4}")
    (folder / f"{new_id(2)}.jsonl").write_bytes(
        line({**header(new_id(2)), "version": EVIL}) + line(secret) + b"{\x1b[66m\n"
    )
    stores.make(home, 3, line(header(new_id(3), version=99, title=EVIL)) + line(message(9, "user", EVIL)))
    return session_id


def evil_commands(home: Path, folder: Path) -> list[list[str]]:
    """Everything that shows text of files; what changes them comes last."""
    one, name = evil_store(home), EVIL.replace("/", "")
    (folder / "messages.json").write_text(json.dumps([{"role": EVIL, "content": EVIL}]), encoding="utf-8")
    (folder / "chat.json").write_text(
        json.dumps([{"role": "user", "content": EVIL, "images": [EVIL]}]), encoding="utf-8"
    )
    return [
        ["--list-sessions"], ["--list-sessions", "--limit", "1"], ["--session-info", one],
        ["--session-info", new_id(2)], ["--session-info", new_id(3)], ["--search", "over"], ["--search", EVIL],
        ["--check"], ["--check", "--secrets"],
        *(["--export", id_, "--as", form] for id_ in (one, new_id(2)) for form in ("markdown", "text", "html", "json")),
        ["--export", one, "--to", name], ["--export", one, "--to", f"{name}/{name}"], ["--export", EVIL],
        ["--session-id", EVIL, "-p", "x"], ["-p", "Hi", "--session-id", new_id(3)], ["--retry", one],
        ["--undo", one, EVIL],
        ["-p", f"@./{name}"], ["-p", f'@"./{name}"'], ["--import", name], ["--import", "messages.json"],
        ["--import", "chat.json"], ["-p", "x", "--image", name], ["-p", "x", "--format", name], [f"--{EVIL}"],
        ["-p", "x", "--option", EVIL], ["-p", "x", "--think", EVIL], ["--prompt-file", name], ["--delete", EVIL],
        ["-p", "x", "--model", EVIL], ["-p", "x", "--model", f"{name}.gguf"],
        ["-p", "x", "--repo-root", name, "--debug"],
        ["-p", "Hi", "--session-id", one], ["-p", "Hi", "--session-id", one, "--debug"],
        ["--git-setup", "--remote", f"https://user:pass@127.0.0.1:1/{name}"], ["--sync"], ["--completion", "bash"],
        ["--fork", one, "--at", EVIL], ["--check", "--repair"], ["--purge", "0", "--dry-run"], ["--reindex"],
    ]  # fmt: skip


def assert_harmless(shown: str, place: str = "terminal") -> None:
    """Nothing was shown that moves a cursor, sets a title, fills a clipboard, or turns a line around."""
    found = (OBEYED if place == "terminal" else IN_A_PIPE).search(shown)
    assert not found, repr(shown[max(0, found.start() - 300) : found.end() + 50])


@posix_only
@pytest.mark.parametrize(
    "more", [["--output", "json"], ["--output", "ndjson"], ["--output", "text"], ["--output", "text", "--plain"]]
)
@pytest.mark.parametrize("place", ["terminal", "pipe"])
def test_no_escape_sequence_of_files_is_obeyed(
    environment: dict[str, str], home: Path, ollama: StandIn, tmp_path: Path, more: list[str], place: str
) -> None:
    home /= "\x1b[66m\u202e"
    folder = tmp_path / "here"
    folder.mkdir()
    commands = [[*args, *more] for args in evil_commands(home, folder)]
    (tmp_path / "commands").write_text(json.dumps(commands), encoding="utf-8")
    variables = environment | QUIET | {"OLLAMA_PROMPT_HOME": str(home), "TERM": "xterm-256color", "PAGER": "cat"}
    program = ["-c", MANY, str(tmp_path / "commands")]
    if place == "terminal":
        _, shown = screens.shown(program, variables, columns=150, folder=folder)
    else:
        done = subprocess.run([sys.executable, *program], env=variables, capture_output=True, cwd=folder, check=True)
        shown = (done.stdout + done.stderr).decode()
    assert shown.count("=== ended with") == len(commands)
    assert "this is a bug" not in shown
    assert_harmless(shown, place)


@posix_only
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 500, "body": {"error": EVIL}},
        {"kind": "status", "status": 404, "body": {"error": f"{EVIL} not found"}},
        {"kind": "status", "status": 401, "body": {"error": EVIL, "signin_url": EVIL}},
        {"kind": "status", "status": 200, "body": EVIL},
        {"kind": "status", "status": 502, "body": EVIL}, {"kind": "error_line", "chunks": 1, "message": EVIL},
        {"kind": "junk_line", "chunks": 1, "text": "\x1b[66m\x9b66m"}, {"kind": "redirect", "location": "http://\x9b66m/"},
    ],
)  # fmt: skip
def test_no_escape_sequence_of_a_server_is_obeyed(
    environment: dict[str, str], ollama: StandIn, fault: Json, tmp_path: Path
) -> None:
    for output in ("text", "json", "ndjson"):
        command = ["-m", "ollama_prompt", "-p", "Hi", "--output", output, "--debug"]
        ollama.fail(**fault, times=1)
        code, shown = screens.shown(command, environment | {"TERM": "xterm-256color"}, folder=tmp_path)
        assert code == 1
        assert "66m" in shown
        assert_harmless(shown)
        ollama.fail(**fault, times=1)
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, check=False
        )
        assert_harmless(done.stderr.decode(), "pipe")


@posix_only
@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("output", ["text", "json", "ndjson"])
def test_no_escape_sequence_of_a_model_is_obeyed(
    environment: dict[str, str], ollama: StandIn, more: dict[str, str], output: str, tmp_path: Path
) -> None:
    ollama.set(answer=f"{EVIL}\n\n```{EVIL}\n{EVIL}\n```\n\n[{EVIL}](http://{EVIL})\n\n|{EVIL}|\n|-|\n", thinking=EVIL)
    command = ["-m", "ollama_prompt", "-p", "Hi", "--output", output, "--model", "thinker", "--think"]
    code, shown = screens.shown(command, environment | {"TERM": "xterm-256color"} | more, folder=tmp_path)
    assert code == 0
    assert "66m" in shown
    assert_harmless(shown)


def test_an_answer_goes_into_a_pipe_as_it_came(run: Run, ollama: StandIn) -> None:
    ollama.set(answer="\x1b[66m \x9b \x7f \u202e\n")
    assert succeed(run("-p", "Hi", "--output", "text")).stdout == "\x1b[66m \x9b \x7f \u202e\n"


@posix_only
def test_no_escape_sequence_of_a_remote_is_obeyed(
    environment: dict[str, str], home: Path, tmp_path: Path, ollama: StandIn, run: Run, hub: Path
) -> None:
    succeed(run("-p", "Hi"))
    succeed(run("--git-setup", "--remote", str(hub), env=QUIET))
    hook = hub / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\nprintf '%s' '{EVIL}' >&2; exit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    for output in ("text", "json"):
        command = ["-m", "ollama_prompt", "--sync", "--output", output, "--debug"]
        code, shown = screens.shown(command, environment | QUIET | {"TERM": "xterm-256color"}, folder=tmp_path)
        assert code == 1
        assert "66m" in shown
        assert_harmless(shown)


@posix_only
def test_no_escape_sequence_is_obeyed_in_a_conversation(talk: Talk, home: Path, ollama: StandIn) -> None:
    session_id = evil_store(home)
    (home / "history.jsonl").write_bytes(line({"session_id": session_id, "text": "\x1b[66m \x9b66m \x07 typed"}))
    ollama.set(answer=EVIL)
    terminal = talk("--session-id", session_id, "--model", "smollm2")
    terminal.type("\x1b[A")
    terminal.expect("typed")
    terminal.type("\x03")
    terminal.expect(PROMPT)
    for typed in ("/title", "/model", "/system", "/undo", "Hi", "/retry"):
        terminal.type(typed, "\r")
        terminal.expect("\n> " if False else PROMPT)
    assert terminal.end("/quit\r") == 0
    assert_harmless(terminal._bytes.decode())


# --- Keys and servers ----------------------------------------------------------------------------------

KEY = "sk-a-very-secret-key"


def test_the_api_key_is_written_nowhere(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    env = {"OLLAMA_API_KEY": KEY}
    ollama.set(api_key=KEY)
    said = [succeed(run("-p", "Hi", env=env))]
    for fault in ({"kind": "status", "status": 401, "body": {"error": "no"}}, {"kind": "cut"}, {"kind": "html"}):
        ollama.fail(**fault)
        said.append(run("-p", "Hi", "--debug", env=env))
    ollama.fail("redirect", location="http://127.0.0.2:1/api/chat", path="/api/show")
    said.append(run("-p", "Hi", "--debug", env=env))
    assert [result.returncode for result in said] == [0, 1, 1, 1, 1]
    assert KEY not in "".join(result.stdout + result.stderr for result in said)
    assert not any(data and KEY.encode() in data for data in tree(tmp_path).values())


def test_what_a_hint_says_can_be_pasted_into_a_shell(run: Run, home: Path, ollama: StandIn) -> None:
    stores.make(home, 1, line(header(new_id(1), model="x; rm -rf ~")) + line(message(1, "user", "Hi")))
    ollama.fail("status", status=404, body={"error": "model not found"}, path="/api/show")
    hint = fail(run("-p", "Hi", "--session-id", new_id(1)), "model_not_found")["hint"]
    assert hint == "ollama pull 'x; rm -rf ~'"
    ollama.fail("redirect", location="http://x/$(id)/api/show", path="/api/show")
    assert fail(run("-p", "Hi"), "ollama_error")["hint"] == "Set OLLAMA_HOST='http://x/$(id)'"


class Endless:
    """An answer without end, of a server that wants our memory."""

    def iter_bytes(self) -> Iterator[bytes]:
        while True:
            yield b"x" * 1000


@pytest.mark.parametrize("read", [ollama._whole, lambda response: list(ollama._lines(response))])
def test_an_answer_without_end_ends(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    monkeypatch.setattr(ollama, "LONGEST", 10_000)
    with pytest.raises(OllamaError, match="never ends: 10,000 bytes"):
        read(Endless())
