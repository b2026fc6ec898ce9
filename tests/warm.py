"""The real command in forked processes: a start without the start, and a death at the n-th step.

    python tests/warm.py        a server: one JSON object a line on stdin, one a line on stdout

A crash test kills the command at every step it takes, hundreds of times. Starting Python each time would
take minutes, so a process that has imported everything forks one child a run. The child has its own
streams and environment, runs `cli.main` and ends; `die_at` N kills it just before its N-th step, where a
step is a call that changes, opens or reads something in the store (`Steps`). With `signal` it gets that
signal there instead. Without both the steps are counted only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

COUNTED = (
    "open", "write", "read", "lseek", "fsync", "ftruncate", "close", "link", "rename", "replace", "unlink", "mkdir",
)  # fmt: skip
IMPORTED = (
    *(f"ollama_prompt.{name}" for name in ("cli", "commands", "held_session", "locks", "render", "turn")),
    *(f"ollama_prompt.{name}" for name in ("attachments", "images", "foreign", "foreign_1x", "repair", "archive")),
    *(f"ollama_prompt.{name}" for name in ("indexer", "search", "checkup", "removal", "sync", "readable", "terminal")),
    *(f"ollama_prompt.{name}" for name in ("structured", "directories", "gitignore", "references", "history")),
    "base64", "importlib.resources", "jsonschema", "pathspec", "tempfile",
)  # fmt: skip
AUDITED = ("open", "os.listdir", "os.scandir", "fcntl.flock", "os.chmod", "sqlite3.connect")


class Steps:
    """Counts the steps of this process, and acts at one of them."""

    def __init__(self, act_at: int | None, act: Callable[[], None]) -> None:
        self.names: list[str] = []
        self._act_at = act_at
        self._act = act

    def step(self, name: str) -> None:
        """One step is about to happen."""
        self.names.append(name)
        if len(self.names) == self._act_at:
            self._act()

    def watch(self) -> None:
        """From now on count the steps of the process."""
        for name in COUNTED:
            setattr(os, name, self._counted(name, getattr(os, name)))
        sqlite3.connect = self._connect  # type: ignore[assignment]
        sys.addaudithook(self._audit)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            self.step(name)
            if name == "write" and len(self.names) + 1 == self._act_at:
                args = (args[0], bytes(args[1])[: len(args[1]) // 2])  # a torn write
            return function(*args, **named)

        return counted

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in AUDITED and not (event == "open" and str(args[0]).endswith((".py", ".pyc", ".so"))):
            self.step(event)

    def _connect(self, path: str, **options: Any) -> sqlite3.Connection:
        step = self.step

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                step(f"sql {args[0].split()[0] if args[0].strip() else ''}")
                return super().execute(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                step("sql many")
                return super().executemany(*args)

        return sqlite3.dbapi2.connect(path, factory=Connection, **options)


def run_child(order: Json) -> int:
    """In the child: become the command; its exit code."""
    for descriptor, name in enumerate(("in", "out", "err")):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(order[name], flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order.get("cwd") or os.getcwd())
    signal.alarm(order.get("timeout") or 0)
    # A killed process leaves to the next what it wrote; only a power cut would not.
    os.fsync = lambda _: None  # type: ignore[assignment]
    number = getattr(signal, order.get("signal") or "SIGKILL")
    steps = Steps(order.get("die_at"), lambda: os.kill(os.getpid(), number))
    if "gate" in order:
        gate = os.open(order["gate"], os.O_RDONLY)
        os.read(gate, 1)
        os.close(gate)
    elif "die_at" in order or "steps" in order:
        steps.watch()
    from ollama_prompt.cli import main

    code = main(order["argv"])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    if "steps" in order:
        Path(order["steps"]).write_text(json.dumps(list(steps.names)), encoding="utf-8")
    return code


def serve() -> None:
    """Fork a child for every order; say its process id, then how it ended."""
    # The children get streams of their own on the descriptors 0, 1 and 2.
    with os.fdopen(os.dup(0)) as orders, os.fdopen(os.dup(1), "w", buffering=1) as answers:
        for line in orders:
            child = os.fork()
            if child == 0:
                end_child(json.loads(line))
            answers.write(json.dumps({"pid": child}) + "\n")
            _, status = os.waitpid(child, 0)
            answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")


def end_child(order: Json) -> NoReturn:
    """Run the child to its end, without what Python does at the end of the server's own process."""
    code = 99
    try:
        code = run_child(order)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def import_all() -> None:
    """Import what the command imports, as it does."""
    from ollama_prompt import host, lean

    for name in IMPORTED:
        importlib.import_module(name)
    with lean.lean_imports(host.parse_host("127.0.0.1")):
        importlib.import_module("ollama_prompt.ollama")
        importlib.import_module("ollama_prompt.loopback")
    gc.freeze()


class Warm:
    """The server, seen from a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-W", "error", str(Path(__file__).resolve())]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=60)

    def start(self, *argv: str, env: dict[str, str], **more: Any) -> int:
        """Start the command; its process id.

        `gate` names a FIFO that holds it until there is a byte to read; `in` a file for its stdin; `cwd` where it
        runs; `timeout` after how many seconds it is killed.
        """
        for name in ("out", "err"):
            (self.folder / name).write_bytes(b"")  # one that dies at once has printed nothing
        paths = {"in": os.devnull, "out": str(self.folder / "out"), "err": str(self.folder / "err")}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"argv": argv, "env": env, **paths, **more}) + "\n")
        pid: int = self._answer()["pid"]
        return pid

    def end(self) -> tuple[int, bytes, bytes]:
        """How it ended: exit code (minus the signal that killed it), stdout, stderr."""
        code: int = self._answer()["code"]
        return code, (self.folder / "out").read_bytes(), (self.folder / "err").read_bytes()

    def steps(self, *argv: str, env: dict[str, str]) -> list[str]:
        """The steps that the command takes."""
        path = self.folder / "steps"
        self.start(*argv, env=env, steps=str(path))
        code, _, error = self.end()
        assert code == 0, error
        found: list[str] = json.loads(path.read_text("utf-8"))
        return found

    def _answer(self) -> Json:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server ended"
        answer: Json = json.loads(line)
        return answer


if __name__ == "__main__":
    import_all()
    serve()
