"""Killed or interrupted at every step: nothing that was acknowledged is lost, and the next command works.

Every command is run once to count its steps, then killed at each of them. The steps are counted twice:
as Python calls, in any system that can fork (`warm.Steps`), and as the system calls that touch the store,
SQLite's own among them, by strace where there is one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result, tree

from ollama_prompt import interrupts
from ollama_prompt.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn
    from warm import Warm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

CALLS = (
    "openat", "write", "pwrite64", "read", "pread64", "lseek", "fsync", "fdatasync", "ftruncate", "close",
    "link", "rename", "unlink", "mkdir", "flock", "chmod", "fchmod", "getdents64", "newfstatat", "fcntl",
)  # fmt: skip


def first(home: Path) -> str:
    """The session that commands are about."""
    return stores.files(home)[0].stem


def commands(home: Path) -> dict[str, tuple[str, ...]]:
    """The commands that are killed; {n} is told apart by the stand-in."""
    return {
        "new turn": ("-p", "Killed"),
        "turn": ("--session-id", first(home), "-p", "Killed", "--temperature", "0.5"),
        "continue": ("-c", "-p", "Killed"),  # a listing and a turn
        "fork": ("--fork", first(home)),
        "undo": ("--undo", first(home)),
        "retry": ("--retry", first(home)),
        "listing": ("--list-sessions",),
        "purge": ("--purge", "0"),
        "delete": ("--delete", first(home)),
        "reindex": ("--reindex",),
    }


NAMES = ("new turn", "turn", "continue", "fork", "undo", "retry", "listing", "purge", "delete", "reindex")
EACH_STEP = [
    *((name, 1) for name in NAMES if name not in {"continue", "purge"}),
    ("purge", 4),  # it takes four times as long as others
    pytest.param("purge", 1, marks=pytest.mark.slow),
]
IN_CALLS = [name for name in NAMES if name not in {"continue", "listing", "purge"}]


class Crash:
    """A store as it was, and the command that is killed in a copy of it."""

    def __init__(self, name: str, warm: Warm, before: Path, home: Path, env: dict[str, str], ollama: StandIn) -> None:
        self.name = name
        self.home = home
        self._warm, self._env, self._ollama, self._before = warm, env, ollama, before
        self.restore()
        self.argv = commands(home)[name]
        self.stored = {path.name: path.read_bytes() for path in stores.files(home)}
        self._states = stores.States(home)

    def restore(self) -> None:
        """The store as it was, and no requests."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self._before, self.home)
        self._ollama.forget()

    def count(self) -> int:
        """How many steps the command takes."""
        return len(self._warm.steps(*self.argv, env=self._env))

    def run(self, *argv: str) -> Result:
        """A command that nobody kills."""
        self._warm.start(*argv, env=self._env)
        return Result(*self._warm.end())

    def start(self, **more: Any) -> int:
        """Start the command; its process id."""
        return self._warm.start(*self.argv, env=self._env, **more)

    def end(self) -> Result:
        """How it ended."""
        return Result(*self._warm.end())

    def kill_at(self, step: int, **more: str) -> Result:
        """The command, killed, or sent this `signal`."""
        self.restore()
        self.start(die_at=step, **more)
        return self.end()

    def check(self, killed: Result) -> None:
        """All that must hold after the command was killed, or came to its end."""
        if not self._states.is_new(str(killed.returncode), killed.stdout, json.dumps(self._ollama.chats())):
            return
        self._check_files()
        if "-p" in self.argv:
            self._check_turn(killed)
        if self.name in {"fork", "undo", "retry"}:
            getattr(self, "_check_" + self.name)(killed)
        self._check_next_turn()
        listing = stores.listed(self.run("--list-sessions"))
        checked = self.run("--check").json
        assert checked["index"] == "ok", "it has what reading every file gives"
        assert [item["reason"][:8] for item in checked["damage"]] in ([], ["not JSON"]), "a write may be torn"
        assert sorted(entry["session_id"] for entry in listing) == sorted(path.stem for path in stores.files(self.home))
        if self.name in {"new turn", "fork", "purge", "delete"}:
            self._check_removal()

    def has_answer(self) -> bool:
        """Whether the answer is stored, or a part of it."""
        prompt = "Question 7" if self.name == "retry" else "Killed"
        return any(f'"content":"Answer to: {prompt}'.encode() in path.read_bytes() for path in stores.files(self.home))

    def _check_files(self) -> None:
        """Whatever was there before is there, as it was; or the user wanted it removed."""
        now = {path.name: path.read_bytes() for path in stores.files(self.home)}
        for name, data in self.stored.items():
            may_be_gone = self.name == "purge" or (self.name == "delete" and name.startswith(first_of(self.stored)))
            assert now.get(name, data if may_be_gone else b"").startswith(data)

    def _check_turn(self, killed: Result) -> None:
        """What was sent is stored; what was printed is stored."""
        stored = b"".join(path.read_bytes() for path in stores.files(self.home))
        if self._ollama.chats():
            assert b'"role":"user","content":"Killed"' in stored
        if killed.stdout and killed.json["response"]:
            assert f'"content":"{killed.json["response"]}"'.encode() in stored

    def _check_fork(self, killed: Result) -> None:
        """There is none or a whole one, which is there if its id was printed."""
        made = [path for path in stores.files(self.home) if path.name not in self.stored]
        assert len(made) <= 1
        assert [path.stem for path in made] >= ([killed.json["session_id"]] if killed.stdout else [])
        for path in made:
            copied = b"".join(path.read_bytes().splitlines(keepends=True)[1:-1])
            assert self.stored[min(self.stored)].endswith(b"\n" + copied)

    def _check_undo(self, killed: Result) -> None:
        """The last turn counts, or it does not; if it was printed that it does not."""
        counts = self._what_counts()
        assert counts[6:] == [] if killed.stdout else counts[6:] in ([], ["Question 7", "Answer 7"])

    def _check_retry(self, killed: Result) -> None:
        """The answer that there was counts, or else the prompt was asked again; the prompt is never lost."""
        old, new = ["Question 7", "Answer 7"], ["Question 7"]
        answered = [*new, "Answer to: Question 7 (messages: 7)"]
        asked = bool(self._ollama.chats())
        allowed = [answered] if killed.stdout and killed.json["response"] else [new, answered]
        # The write of the new prompt may be torn behind it: then it has no answer, and is not sent.
        assert self._what_counts()[6:] in (allowed if asked else [old, [*old, *new], new])

    def _what_counts(self) -> list[str]:
        """The messages of the session that were not taken back."""
        messages = stores.succeed(self.run("--session-info", first(self.home))).json["messages"]
        return [message["content"] for message in messages if not message.get("undone")]

    def _check_next_turn(self) -> None:
        files = stores.files(self.home)
        where = ("--session-id", files[0].stem) if files else ()
        stores.succeed(self.run(*where, "-p", "Next"))

    def _check_removal(self) -> None:
        """Of what is removed nothing is left anywhere, also by the command that was killed."""
        argv = self.argv if self.name == "delete" else ("--purge", "0")
        again = stores.clean(self.run(*argv))
        assert again.returncode == 0 or again.error["code"] == "session_not_found", again
        gone = first_of(self.stored) if self.name == "delete" else "-7"
        assert not [name for name in tree(self.home) if gone in name]


def first_of(stored: dict[str, bytes]) -> str:
    """The session that is deleted."""
    return min(stored).removesuffix(".jsonl")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Where a store will be with two sessions: the index knows one as it was earlier, and one not at all."""
    return tmp_path / "before"


@pytest.fixture
def crash(
    request: pytest.FixtureRequest, run: Run, before: Path, home: Path, environment: dict[str, str],
    ollama: StandIn, warm: Warm,
) -> Crash:  # fmt: skip
    """The command that `request.param` names, ready to be killed."""
    in_before = {"OLLAMA_PROMPT_HOME": str(before)}
    known = stores.make(before, 2)
    stores.succeed(run("--session-id", known.stem, "-p", "One", env=in_before))
    stores.make(before, 3)
    with known.open("ab") as file:
        file.write(b"".join(map(stores.line, stores.turn(7))))
    return Crash(request.param, warm, before, home, environment, ollama)


@pytest.mark.parametrize(("crash", "stride"), EACH_STEP, indirect=["crash"])
def test_killed_at_every_step(crash: Crash, stride: int) -> None:
    count = crash.count()
    assert count > 5
    for step in range(1, count + 1, stride):
        killed = crash.kill_at(step)
        # A clock that ticks in between saves or costs a few steps, with each session that is read.
        assert killed.returncode == (-9 if step < count - count // 10 - 5 else killed.returncode), (step, killed)
        crash.check(killed)


@pytest.mark.parametrize(
    ("crash", "signal", "code"),
    [("new turn", "SIGINT", 130), ("turn", "SIGTERM", 143), ("retry", "SIGINT", 130)],
    indirect=["crash"],
)
def test_interrupted_at_every_step(crash: Crash, signal: str, code: int) -> None:
    codes = set()
    for step in range(1, crash.count() + 1):
        interrupted = stores.clean(crash.kill_at(step, signal=signal))
        assert interrupted.stderr == ""
        assert bool(interrupted.stdout) >= crash.has_answer(), "what had come is printed"
        codes.add(interrupted.returncode)
        crash.check(interrupted)
    assert codes == {0, code}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_at_some_moment_of_a_real_process(
    start: Start, run: Run, home: Path, ollama: StandIn, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Steps know nothing of imports. That the command opens its prompt shows that it is under way."""
    moments, codes = random.Random(number), set()
    as_usual = {"PYTHONWARNINGS": ""}  # a connection that is given up while it is made is the system's to close
    os.mkfifo(tmp_path / "prompt")
    for _ in range(15):
        process = start("--prompt-file", "prompt", env=as_usual)
        with open(tmp_path / "prompt", "wb") as prompt:
            prompt.write(b"Hi")
        with suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 0.2))
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        codes.add(process.returncode)
        assert (err, codes - {0, code}) == (b"", set())
        if out:
            turn = json.loads(out)
            assert turn["done"] >= (process.returncode == 0)
            (path,) = home.glob(f"sessions/*/{turn['session_id']}.jsonl")
            assert stores.said(path)[0] == ("user", "Hi")
    assert len(stores.files(home)) >= len(ollama.chats()), "what was sent is stored"
    assert stores.succeed(run("--check")).json["damage"] == []


def prelude(folder: Path, code: str) -> dict[str, str]:
    """The environment in which a command runs this code before its own."""
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.mark.parametrize("module", ["ollama_prompt.cli", "ollama_prompt.turn", "orjson", "httpx"])
def test_a_signal_while_a_module_is_imported_ends_the_process(
    run: Run, home: Path, tmp_path: Path, module: str
) -> None:
    code = f"""\
import os, sys
def audit(event, args, kill=os.kill):
    if event == "import" and args[0] == {module!r}:
        kill(os.getpid(), {signal.SIGTERM:d})
sys.addaudithook(audit)
"""
    ended = run("-p", "Hi", env=prelude(tmp_path, code))
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "")
    assert stores.files(home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_ends_changes_nothing(run: Run, tmp_path: Path, number: signal.Signals) -> None:
    """It is sent when modules are taken apart, and the handlers of signals are gone already."""
    code = f"""\
import os, sys
class Last:
    def __del__(self, kill=os.kill, own=os.getpid()):
        kill(own, {number:d})
sys.last = Last()
"""
    assert stores.succeed(run("-p", "Hi", env=prelude(tmp_path, code))).json["done"] is True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let signals come now, to a process that had none; where it would end, SystemExit is raised."""
    monkeypatch.setattr(os, "_exit", sys.exit)
    state = {"reaction": interrupts.END, "received": 0, "pending": None, "thread": threading.get_ident()}
    for name, value in state.items():
        monkeypatch.setattr(interrupts._State, name, value)

    def now(*numbers: signal.Signals) -> None:
        for number in numbers or (signal.SIGINT,):
            interrupts._handle(number, None)

    return now


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_where_nothing_was_begun(
    now: Callable[..., None], number: signal.Signals, code: int
) -> None:
    with pytest.raises(SystemExit) as anywhere:
        now(number)
    with interrupts.deferred(), interrupts.fatal(), pytest.raises(SystemExit) as fatal:
        now(number)
    assert anywhere.value.code == fatal.value.code == code


def test_a_signal_just_before_ends_it_too(now: Callable[..., None]) -> None:
    with interrupts.deferred():
        now()
        with pytest.raises(SystemExit), interrupts.fatal():
            pass


def test_a_signal_is_heard_where_a_turn_waits(now: Callable[..., None]) -> None:
    with interrupts.deferred():
        with pytest.raises(Interrupted) as caught, interrupts.heard():
            now(signal.SIGTERM)
        with interrupts.heard():
            pass
    assert caught.value.exit_code == 143


def test_a_deferred_signal_waits_for_the_next_place_where_it_is_heard(now: Callable[..., None]) -> None:
    reached = []
    with interrupts.deferred():
        now(signal.SIGTERM)
        reached.append("stored")
        with pytest.raises(Interrupted) as caught, interrupts.heard():
            reached.append("asked")
    assert (reached, caught.value.exit_code) == (["stored"], 143)


def test_a_signal_behind_the_last_such_place_is_too_late(now: Callable[..., None]) -> None:
    with interrupts.deferred():
        with interrupts.heard():
            pass
        now()
    with interrupts.deferred(), interrupts.heard():
        pass
    with pytest.raises(SystemExit):
        now()


def test_what_cleans_up_behind_an_interruption_is_not_interrupted(now: Callable[..., None]) -> None:
    def interrupted_twice() -> None:
        with interrupts.heard():
            try:
                now()
            finally:
                now()
                cleaned.append(True)

    cleaned: list[bool] = []
    with interrupts.deferred(), pytest.raises(Interrupted):
        interrupted_twice()
    assert cleaned == [True]


def test_the_third_signal_ends_the_process_wherever_it_is(now: Callable[..., None]) -> None:
    with interrupts.deferred(), pytest.raises(SystemExit) as caught:
        now(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert caught.value.code == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_finalizer_is_not_forgotten(
    now: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Python prints what is raised in one, and goes on."""

    class Finalized:
        def __del__(self) -> None:
            now(number)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def wait() -> None:
        with interrupts.heard():
            Finalized()
            time.sleep(20)

    interrupts.install()
    try:
        with interrupts.deferred(), pytest.raises(Interrupted) as caught:
            wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert (caught.value.signal_number, capfd.readouterr().err) == (number, "")
    assert interrupts._State.received == 1


@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_that_is_ignored_stays_so(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    others = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupts.install()
        assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == ignored
    finally:
        for number, handler in {signal.SIGHUP: before, **others}.items():
            signal.signal(number, handler)


# --- System calls ----------------------------------------------------------------------------------

STRACE = shutil.which("strace")


class Strace:
    """A command under strace, which begins at the gate."""

    def __init__(self, crash: Crash, *options: str) -> None:
        crash.restore()
        self._crash = crash
        self._gate = crash.home.parent / "gate"
        os.mkfifo(self._gate)
        pid = crash.start(gate=str(self._gate))
        # Waits for the command, so that what it did to get there is never counted.
        self._opened = os.open(self._gate, os.O_WRONLY)
        command = [STRACE or "", "-y", "-s", "300", *options, "-p", str(pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        self.attached = "attached" in self._strace.stderr.readline()

    def end(self) -> Result:
        """Open the gate; how the command ended."""
        os.write(self._opened, b"!")
        result = self._crash.end()
        os.close(self._opened)
        self._strace.communicate(timeout=60)
        self._gate.unlink()
        return result


def store_calls(crash: Crash, log: Path) -> list[tuple[str, int]]:
    """The system calls of the command that touch the store: (name, how many of that name there were with it)."""
    traced = Strace(crash, "-e", "trace=" + ",".join(CALLS), "-o", str(log))
    if not traced.attached:
        pytest.skip("strace may not attach to a process here")
    stores.succeed(traced.end())
    counts: dict[str, int] = {}
    found = []
    for text in log.read_text("utf-8", "replace").splitlines():
        if match := re.match(r"(\w+)\(", text):
            counts[match[1]] = counts.get(match[1], 0) + 1
            if str(crash.home) in text:
                found.append((match[1], counts[match[1]]))
    return found


def kill_in_calls(crash: Crash, log: Path, stride: int) -> None:
    """Kill the command at every `stride`th of its system calls."""
    calls = store_calls(crash, log)
    assert len(calls) > 10
    for name, number in calls[::stride]:
        inject = f"inject={name}:signal=KILL:when={number}"
        killed = Strace(crash, "-e", f"trace={name}", "-e", inject, "-o", os.devnull).end()
        assert killed.returncode in {-9, 0}, (name, number, killed)
        crash.check(killed)


@pytest.mark.skipif(not STRACE, reason="strace is not installed")
@pytest.mark.parametrize("crash", IN_CALLS, indirect=True)
def test_killed_in_some_system_calls(crash: Crash, tmp_path: Path) -> None:
    kill_in_calls(crash, tmp_path / "log", stride=12)


@pytest.mark.slow
@pytest.mark.skipif(not STRACE, reason="strace is not installed")
@pytest.mark.parametrize("crash", NAMES, indirect=True)
def test_killed_in_every_system_call(crash: Crash, tmp_path: Path) -> None:
    kill_in_calls(crash, tmp_path / "log", stride=1)
