"""The real command in forked processes: a start without the start, and a death at the n-th step.

    python tests/warm.py 5      a server: it takes orders from the socket that is descriptor 5

A crash test kills the command at every step it takes, hundreds of times. Starting Python each time would
take minutes, so a process that has imported everything forks one child a run, any number of them at once.
The child has its own streams and environment, runs `cli.main` and ends; `die_at` N kills it just before its
N-th step, where a step is a call that changes, opens or reads something in the store (`Steps`). With `signal`
it gets that signal there instead. Without both the steps are counted only.

An order is one byte with descriptors: of a file with the order in it, of the child's three streams, and of
the pipe on which the server tells the child's process id, and later how it ended. So nothing that is read
from the socket can be cut in two, and nobody reads what is told of another child.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    File = int | IO[bytes]

Json = dict[str, Any]

NUMBER = struct.Struct("i")

COUNTED = (
    "open", "write", "read", "lseek", "fsync", "ftruncate", "close", "link", "rename", "replace", "unlink", "mkdir",
)  # fmt: skip
IMPORTED = (
    *(f"ollama_prompt.{name}" for name in ("cli", "commands", "held_session", "indexer", "locks", "render", "turn")),
    *(f"ollama_prompt.{name}" for name in ("attachments", "checkup", "images", "loopback", "removal", "repair")),
    *(f"ollama_prompt.{name}" for name in ("foreign", "foreign_1x", "importing", "archive", "search", "sync")),
    "base64", "tempfile",
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


def run_child(order: Json, streams: list[int]) -> int:
    """In the child: become the command; its exit code."""
    for number, (name, opened) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
        os.dup2(opened, number)
        # A stream knows whether it can be sought; the server's own may differ in that.
        old, mode = getattr(sys, name), "w" if number else "r"
        setattr(sys, name, open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False))  # noqa: SIM115
    os.closerange(3, 1024)  # the server's, also the pipes that tell of others
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order.get("cwd") or os.getcwd())
    signal.alarm(order.get("timeout") or 0)
    lethal = getattr(signal, order.get("signal") or "SIGKILL")
    steps = Steps(order.get("die_at"), lambda: os.kill(os.getpid(), lethal))
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


class Server:
    """Forks a child for every order; tells its process id, then how it ended."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._telling: dict[int, int] = {}
        self._woken, self._wake = os.pipe()

    def serve(self) -> None:
        """Until nobody is there who could give an order."""
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready = select.select([self._orders.fileno(), self._woken], [], [])[0]
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._orders.fileno() in ready:
                message, descriptors, *_ = socket.recv_fds(self._orders, 1, 5)
                if not message:
                    return
                self._take(*descriptors)

    def _take(self, order: int, *descriptors: int) -> None:
        *streams, told = descriptors
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with open(order, "rb") as file:
                end_child(json.load(file), streams)
        self._telling[child] = told
        os.write(told, NUMBER.pack(child))
        for descriptor in (order, *streams):
            os.close(descriptor)

    def _reap(self) -> None:
        while self._telling:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            told = self._telling.pop(child)
            with contextlib.suppress(BrokenPipeError):
                os.write(told, NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(told)


def end_child(order: Json, streams: list[int]) -> NoReturn:
    """Run the child to its end, without what Python does at the end of the server's own process."""
    code = 99
    try:
        code = run_child(order, streams)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def import_all() -> None:
    """Import what the command imports, as it does."""
    from ollama_prompt import flags, host, lean

    for name in IMPORTED:
        importlib.import_module(name)
    with lean.lean_imports(host.parse_host("127.0.0.1")):
        importlib.import_module("ollama_prompt.ollama")
    flags.parse(["-p", "Hi"])  # compiles the regular expressions of argparse


class Forked:
    """A command that was forked, to be used like a `subprocess.Popen`."""

    def __init__(self, argv: tuple[str, ...], told: int, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self.args = argv
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._told = open(told, "rb", buffering=0)  # noqa: SIM115
        self.pid = self._number()

    def _number(self) -> int:
        data = self._told.read(NUMBER.size)
        assert data, "the server ended"
        number: int = NUMBER.unpack(data)[0]
        return number

    def wait(self, timeout: float | None = None) -> int:
        """How it ended: its exit code, or minus the signal that killed it."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, *, timeout: float | None = None) -> tuple[bytes, bytes]:
        """What it printed, to the end."""
        said: dict[str, bytes] = {}

        def read(name: str, stream: IO[bytes]) -> None:
            with stream:
                said[name] = stream.read()

        streams = {"stdout": self.stdout, "stderr": self.stderr}.items()
        open_ = [named for named in streams if named[1] and not named[1].closed]
        readers = [threading.Thread(target=read, args=named, daemon=True) for named in open_]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said.get("stdout", b""), said.get("stderr", b"")


class Warm:
    """The server, seen from a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sending = threading.Lock()
        self._socket, orders = socket.socketpair()
        command = [sys.executable, "-W", "error", str(Path(__file__).resolve()), str(orders.fileno())]
        with orders:
            self._server = subprocess.Popen(command, pass_fds=[orders.fileno()])
        self._last: Forked | None = None

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._server.wait(timeout=60)

    def fork(
        self,
        *argv: str,
        env: dict[str, str],
        stdin: File = subprocess.DEVNULL,
        stdout: File = subprocess.PIPE,
        stderr: File = subprocess.PIPE,
        **more: Any,
    ) -> Forked:
        """Start the command.

        `gate` names a FIFO that holds it until there is a byte to read; `cwd` where it runs; `timeout` after how many
        seconds it is killed.
        """
        told, telling = os.pipe()
        ours = [os.pipe() if stream == subprocess.PIPE else None for stream in (stdout, stderr)]
        with tempfile.TemporaryFile() as order, open(os.devnull, "rb") as nothing:
            order.write(json.dumps({"argv": argv, "env": env, **more}).encode())
            order.seek(0)
            given = [nothing if stdin == subprocess.DEVNULL else stdin, stdout, stderr]
            streams = [pipe[1] if pipe else number_of(file) for pipe, file in zip([None, *ours], given, strict=True)]
            with self._sending:
                socket.send_fds(self._socket, [b"!"], [order.fileno(), *streams, telling])
        for end in (telling, *(pipe[1] for pipe in ours if pipe)):
            os.close(end)
        return Forked(argv, told, *(open(pipe[0], "rb") if pipe else None for pipe in ours))

    def run(self, *argv: str, env: dict[str, str], **more: Any) -> tuple[int, bytes, bytes]:
        """Run the command to its end: exit code (minus the signal that killed it), stdout, stderr."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = self.fork(*argv, env=env, stdout=out, stderr=err, **more).wait()
            for file in (out, err):
                file.seek(0)
            return code, out.read(), err.read()

    def start(self, *argv: str, env: dict[str, str], **more: Any) -> int:
        """Start the command, the only one until `end`; its process id."""
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            self._last = self.fork(*argv, env=env, stdout=out, stderr=err, **more)
        return self._last.pid

    def end(self) -> tuple[int, bytes, bytes]:
        """How it ended: exit code (minus the signal that killed it), stdout, stderr."""
        assert self._last is not None
        code = self._last.wait()
        return code, (self.folder / "out").read_bytes(), (self.folder / "err").read_bytes()

    def steps(self, *argv: str, env: dict[str, str]) -> list[str]:
        """The steps that the command takes."""
        path = self.folder / "steps"
        code, _, error = self.run(*argv, env=env, steps=str(path))
        assert code == 0, error
        found: list[str] = json.loads(path.read_text("utf-8"))
        return found


def number_of(file: File) -> int:
    """The number of an open file."""
    return file if isinstance(file, int) else file.fileno()


if __name__ == "__main__":
    import_all()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that has objects
    with socket.socket(fileno=int(sys.argv[1])) as socket_:
        Server(socket_).serve()
