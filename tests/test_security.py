"""What docs/security.md promises: attacks on a store, on a terminal and on the command, tried as an attacker would.

Attacks that belong to one module (a reference that leads out, a page that runs a script, a redirect) are tried in that
module's file; the page in docs names them all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import screens
import stores
from conftest import tree
from stores import fail, header, line, message, new_id, succeed
from test_chat import PROMPT, talk
from test_sync import QUIET, Machine, git, hub, synced, two

from ollama_prompt import commands, index, layout, search_index
from ollama_prompt.errors import GitFailed
from ollama_prompt.query import Scope

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


@posix_only
def test_no_escape_sequence_in_the_name_of_a_model_is_obeyed(environment: dict[str, str]) -> None:
    """As a server may take one, though Ollama refuses it."""
    code = "from ollama_prompt import console; console.JsonSink().start(chr(27) + '[66m', None)"
    _, shown = screens.shown(["-c", code], environment | {"TERM": "xterm-256color"})
    assert shown == "waiting for \\x1b[66m …"


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
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Counting objects:  5% (" + "9" * 5000 + "/3)\r", 0),  # Python makes no number of so many digits
        ("Counting objects:  5% (1/3)\r" * 9000, 0),
        ("refused " * 9000, 1),
    ],
)
def test_what_a_remote_says_ends_no_sync(
    run: Run, home: Path, ollama: StandIn, hub: Path, tmp_path: Path, said: str, code: int
) -> None:
    succeed(run("-p", "Hi"))
    succeed(run("--git-setup", "--remote", str(hub), env=QUIET))
    (tmp_path / "said").write_text(said, encoding="utf-8")
    hook = hub / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\ncat '{tmp_path / 'said'}' >&2; exit {code}\n", encoding="utf-8")
    hook.chmod(0o755)
    done = run("--sync", env=QUIET)
    assert done.json["pushed"] if code == 0 else len(fail(done, "git_failed")["error"]) < 2000


@posix_only
def test_no_escape_sequence_is_obeyed_in_a_conversation(talk: Talk, home: Path, ollama: StandIn) -> None:
    session_id = evil_store(home)
    (home / "history.jsonl").write_bytes(line({"session_id": session_id, "text": "\x1b[66m \x9b66m \x07 typed"}))
    ollama.set(answer=EVIL)
    terminal = talk("--session-id", session_id, "--model", "smollm2", "-p", EVIL.strip())
    terminal.expect(PROMPT)
    terminal.type("\x1b[A")
    terminal.expect("typed")
    terminal.type("\x03")
    terminal.expect(PROMPT)
    for typed in ("/title", "/model", "/system", "/undo", "Hi", "/retry"):
        terminal.type(typed, "\r")
        terminal.expect(PROMPT)
    assert terminal.end("/quit\r") == 0
    assert_harmless(terminal._bytes.decode())


# --- Other users of the machine --------------------------------------------------------------------


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@posix_only
def test_files_are_private_whatever_the_umask(run: Run, tmp_path: Path, ollama: StandIn, no_umask: None) -> None:
    home = tmp_path / "not" / "there" / "store"
    env = {"OLLAMA_PROMPT_HOME": str(home), **QUIET}
    (tmp_path / "map.png").write_bytes(PNG)
    session_id = succeed(run("-p", "Hi", "--image", "map.png", "--model", "viewer", env=env)).json["session_id"]
    for args in (["--search", "Hi"], ["--fork", session_id], ["--undo", session_id], ["--git-setup"], ["--sync"]):
        succeed(run(*args, env=env))
    stores.add(next(home.glob("sessions/*/*.jsonl")), b"damaged\n")
    succeed(run("--check", "--repair", env=env))
    indexer = Machine(home).indexer
    indexer.remember(session_id, "Hi")
    names = {"sessions.db", "search.db", "history.jsonl", "attachments", "locks", ".gitignore"}
    assert names <= set(os.listdir(home))
    made = [tmp_path / "not", *(path for path in (tmp_path / "not").rglob("*") if ".git" not in path.parts)]
    assert [path for path in made if stat.S_IMODE(path.lstat().st_mode) & 0o077] == []


@posix_only
@pytest.mark.parametrize("module", [index, search_index])
def test_an_index_is_private_before_it_has_text(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, no_umask: None, module: Any
) -> None:
    stores.make(home)
    connect, modes = module.sqlite3.connect, []

    def connect_(path: str, **more: Any) -> Any:
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        return connect(path, **more)

    monkeypatch.setattr(module.sqlite3, "connect", connect_)
    indexer = Machine(home).indexer
    indexer.search("Question", Scope(), 10, False)
    assert set(modes) == {0o600}


def given_away(store: layout.Layout) -> int:
    """Who owns this new store; not root, whom nobody is told of."""
    store.make()
    owner = os.geteuid() or 1000
    if owner != os.geteuid():
        os.chown(store.home, owner, -1)
        os.chown(store.sessions, owner, -1)
    return owner


@posix_only
def test_that_a_store_is_another_users_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = layout.Layout(str(tmp_path / "store"))
    assert store.exposed() is None
    owner = given_away(store)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert store.exposed() == f"{store.home} belongs to another user, who can read and change the conversations"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert store.exposed() is None, "to root, all is others'"


@posix_only
def test_that_everybody_can_change_a_store_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = layout.Layout(str(tmp_path / "store"))
    owner = given_away(store)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert store.exposed() is None
    os.chmod(store.home, 0o777)
    assert store.exposed() == f"every user can change what is in {store.home}: chmod o-w takes that away"
    os.chmod(store.home, 0o1777)
    assert store.exposed() is None, "as in /tmp: only its owner can remove or rename what is there"


def test_the_note_of_an_exposed_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notes: list[str] = []
    monkeypatch.setattr(layout.Layout, "exposed", lambda _: "exposed")
    commands.make_indexer({"OLLAMA_PROMPT_HOME": str(tmp_path / "store")}, notes.append)
    assert notes == ["exposed"]


# --- Links, pipes and other files in the place of ours ----------------------------------------------


def everything(run: Run, session_id: str) -> None:
    """What reads and writes all that there is in a store; no command may end with a traceback."""
    for args in (
        ["-p", "Hi", "--session-id", session_id, "--lock-timeout", "0"], ["--list-sessions"], ["--search", "Question"],
        ["--session-info", session_id], ["-p", "new"], ["--fork", session_id], ["--check"], ["--check", "--repair"],
        ["--reindex", "--lock-timeout", "0"], ["--git-setup"], ["--sync", "--lock-timeout", "0"],
        ["--undo", session_id], ["--delete", session_id], ["--purge", "0"],
    ):  # fmt: skip
        stores.clean(run(*args, env=QUIET, timeout=30))


LINKED = [
    "history.jsonl", "history.jsonl.tmp", "search.db", "search.db.tmp", "search.db-journal", "sessions.db",
    ".gitignore", ".gitattributes", "locks/index.lock", "locks/history.lock", "locks/ID.lock", "locks/sync.lock",
    "locks/syncing", "locks/index.made", "FILE", "FOLDER/.ID.jsonl.tmp", "FOLDER/ID.jsonl.tmp", "FOLDER", "attachments",
]  # fmt: skip


@posix_only
@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link(quick: Run, home: Path, tmp_path: Path, ollama: StandIn, name: str) -> None:
    """As `git pull` by hand brings one, or whoever else can write into the store."""
    path = stores.make(home)
    path.parent.joinpath(f"{new_id(2)}.jsonl").write_bytes(stores.lines(new_id(2)))
    victim = tmp_path / "victim"
    victim.mkdir()
    target = victim / "precious"
    target.write_bytes(stores.lines(path.stem) if name == "FILE" else b"precious\n")
    place = home / name.replace("FILE", f"FOLDER/{path.name}").replace(
        "FOLDER", f"sessions/{path.parent.name}"
    ).replace("ID", path.stem)
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True, parents=True)
    place.unlink(missing_ok=True)
    is_folder = name in {"FOLDER", "attachments"}
    place.symlink_to(victim if is_folder else target)
    before, mode = tree(victim), target.stat().st_mode
    indexer = Machine(home).indexer
    indexer.remember(path.stem, "typed")
    indexer.typed()
    everything(quick, path.stem)
    assert tree(victim) == before
    assert target.stat().st_mode == mode


@posix_only
@pytest.mark.parametrize(
    "name", ["history.jsonl", "search.db", "locks/syncing", ".gitignore", "locks/index.lock", "sessions.db"]
)
@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
def test_nothing_is_waited_for_in_the_place_of_a_file(
    quick: Run, home: Path, ollama: StandIn, name: str, kind: str
) -> None:
    path = stores.make(home)
    place = home / name
    place.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    indexer = Machine(home).indexer
    indexer.remember(path.stem, "typed")
    assert indexer.typed() == ([] if name == "history.jsonl" else ["typed"])
    everything(quick, path.stem)


# --- A remote --------------------------------------------------------------------------------------


def pushed(machine: Machine, hub: Path, name: str, target: str | Path | None = None, text: str = "x\n") -> Path:
    """Somebody pushes a link, or a file with this text; their clone."""
    clone = machine.home.parent / "clone"
    git(clone.parent, "clone", "-q", "-b", "main", str(hub), "clone")
    place = clone / name
    if place.is_dir():
        shutil.rmtree(place)
    if place.parent.is_file():
        place.parent.unlink()
    place.parent.mkdir(exist_ok=True, parents=True)
    place.unlink(missing_ok=True)
    if target:
        place.symlink_to(target)
    else:
        place.write_text(text, encoding="utf-8")
    git(clone, "add", "-A", "-f")
    git(clone, "commit", "-qm", "Update")
    git(clone, "push", "-q")
    return clone


LINKS = ["locks", "sessions/2026-09", "sessions/here.jsonl", "attachments", ".gitignore", ".gitattributes"]
PRIVATE = ["locks/syncing", "Locks/index.lock", "history.jsonl", "sessions.db", "search.db-journal", "sessions-1.x.db"]


@posix_only
@pytest.mark.parametrize(
    ("name", "is_link"), [*((name, True) for name in LINKS + PRIVATE), *((name, False) for name in PRIVATE)]
)
def test_a_remote_plants_nothing(
    two: tuple[Machine, Machine], hub: Path, tmp_path: Path, name: str, is_link: bool
) -> None:
    one, other = two
    one.turn("Hello")
    one.sync()
    mine = other.turn("Mine")
    clone = pushed(one, hub, name, tmp_path / "victim" if is_link else None)
    with pytest.raises(GitFailed, match=re.escape(f"nothing was merged: somebody pushed {name}, which is")) as raised:
        other.sync()
    assert "log HEAD.." in (raised.value.hint or "")
    assert other.said(mine) == ["Mine", "Answer to Mine"]
    assert not (other.home / name).is_symlink()
    assert not (tmp_path / "victim").exists()
    git(clone, "revert", "--no-edit", "HEAD")
    git(clone, "push", "-q")
    assert other.sync()["received"] == 1


@pytest.mark.parametrize("name", ["sessions", "Attachments", ".gitignore/x"])
def test_nothing_comes_in_the_place_of_a_folder_or_a_file(two: tuple[Machine, Machine], hub: Path, name: str) -> None:
    one, other = two
    one.turn("Hello")
    one.sync()
    mine = other.turn("Mine")
    clone = pushed(one, hub, name)
    with pytest.raises(GitFailed, match=f"somebody pushed {name}, which lies in the place of another kind of file"):
        other.sync()
    assert other.said(mine) == ["Mine", "Answer to Mine"]
    git(clone, "revert", "--no-edit", "HEAD")
    git(clone, "push", "-q")
    assert other.sync()["received"] == 1


def test_a_repository_inside_the_store_is_not_taken(two: tuple[Machine, Machine], hub: Path) -> None:
    one, other = two
    one.turn("Hello")
    one.sync()
    clone = pushed(one, hub, ".gitmodules", text='[submodule "x"]\n\tpath = sessions/x\n\turl = ../hub.git\n')
    commit = git(clone, "rev-parse", "HEAD").strip()
    git(clone, "update-index", "--add", "--cacheinfo", f"160000,{commit},sessions/x")
    git(clone, "commit", "-qm", "Update")
    git(clone, "push", "-q")
    with pytest.raises(GitFailed, match="somebody pushed sessions/x, which is a link, or a repository"):
        other.sync()


@posix_only
def test_a_merge_writes_through_no_link(two: tuple[Machine, Machine], hub: Path, tmp_path: Path) -> None:
    one, other = two
    session_id = one.turn("Hello")
    one.sync()
    other.sync()
    (path,) = stores.files(other.home)
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    path.with_name(f"{path.name}.tmp").symlink_to(victim)
    for machine in (one, other):  # a NUL byte keeps git from merging it by itself
        (path,) = stores.files(machine.home)
        stores.add(path, b'\0{"type":"note","id":"%b"}\n' % machine.home.name.encode())
    one.sync()
    other.sync()
    assert victim.read_text(encoding="utf-8") == "precious"
    assert {b'"one"', b'"other"'} <= {name for name in (b'"one"', b'"other"') if name in path.read_bytes()}
    assert other.said(session_id)


@pytest.mark.parametrize("said", ["--output=victim x", "HEAD --exec=touch", "../../x y", "\0 \0"])
def test_a_note_of_a_sync_is_no_option_of_git(two: tuple[Machine, Machine], said: str) -> None:
    _, other = two
    other.turn("Hello")
    (other.home / "locks" / "syncing").write_text(said, encoding="utf-8")
    other.sync()
    assert not list(other.home.rglob("victim*"))


# --- Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", ["--session-id", "--session-info", "--export", "--fork", "--undo", "--retry", "--delete"]
)
def test_an_id_is_no_path(quick: Run, home: Path, tmp_path: Path, flag: str) -> None:
    stores.make(home)
    inside = home / "sessions" / "2026-09"
    (tmp_path / "secret.jsonl").write_bytes(stores.lines(new_id(2)))
    before = tree(tmp_path)
    names = [
        f"../{new_id(1)}",
        "../../../secret",
        str(tmp_path / "secret"),
        f"{inside.name}/{new_id(1)}",
        "a" * 5000,
        "%2e%2e",
    ]
    for name in (*names, f"{new_id(1)}/", f"{new_id(1)}.jsonl", f"{{{new_id(1)}}}", f"urn:uuid:{new_id(1)}\n"):
        fail(quick(flag, name, *(["-p", "x"] if flag == "--session-id" else [])), "usage", 2)
    assert tree(tmp_path) == before


def test_a_file_belongs_to_the_session_of_its_name(quick: Run, home: Path) -> None:
    data = line(header(new_id(2))) + line(message(1, "user", "Hi"))
    stores.make(home, 1, data)
    assert [session["session_id"] for session in stores.listed(quick("--list-sessions"))] == [new_id(1)]
    fail(quick("--session-info", new_id(2)), "session_not_found")


@pytest.mark.parametrize("name", ["victim", f"{new_id(9)}.jsonl"])
def test_no_index_leads_out_of_the_store(run: Run, home: Path, ollama: StandIn, name: str) -> None:
    stores.make(home)
    succeed(run("--list-sessions"))
    with closing(sqlite3.connect(home / "sessions.db", isolation_level=None)) as database:
        row = [*database.execute("SELECT * FROM files").fetchone()]
        row[2:4] = f"../../{name}", new_id(9)
        database.execute(f"INSERT INTO files VALUES ({', '.join('?' * len(row))})", row)
        database.execute("INSERT INTO readings SELECT ?, saved FROM readings", (row[2],))
    victim = home.parent / name
    victim.write_bytes(stores.lines(new_id(9)))
    for args in (["-p", "Hi", "--session-id", new_id(9)], ["--session-info", new_id(9)], ["--delete", new_id(9)]):
        fail(run(*args), "session_not_found")
    assert [session["session_id"] for session in stores.listed(run("--list-sessions"))] == [new_id(1)]
    succeed(run("--purge", "0"))
    assert victim.read_bytes() == stores.lines(new_id(9))


# --- The place where the command is run ---------------------------------------------------------------


@posix_only
def test_nothing_in_the_current_directory_is_run(
    environment: dict[str, str], home: Path, tmp_path: Path, ollama: StandIn
) -> None:
    command = Path(sys.executable).with_name("ollama-prompt")
    if not command.exists():
        pytest.skip("the command is not installed beside this Python")
    folder = tmp_path / "hostile"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "core.fsmonitor", "touch ran; false")
    git(folder, "config", "core.hooksPath", ".")
    for name in ("json", "httpx", "sqlite3", "filelock", "orjson", "ollama_prompt", "sitecustomize", "rich"):
        (folder / f"{name}.py").write_text("open('ran', 'w')", encoding="utf-8")
    for name in ("git", "ollama", "less", "pre-commit", "post-merge"):
        (folder / name).write_text("#!/bin/sh\ntouch ran\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / ".env").write_text(f"OLLAMA_PROMPT_HOME={folder}\nOLLAMA_HOST=evil:1\n", encoding="utf-8")
    variables = environment | QUIET | {"GIT_DIR": str(folder / ".git"), "GIT_WORK_TREE": str(folder)}
    for args in (["-p", "Hi"], ["--list-sessions"], ["--search", "Hi"], ["--git-setup"], ["--sync"], ["--check"]):
        done = subprocess.run([command, *args], env=variables, cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done
    assert not (folder / "ran").exists()
    assert (home / "sessions").is_dir()


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
