"""What several tests share: the stand-in Ollama, a store of their own, the command as a user runs it.

Nothing here reaches past loopback, and nothing of the developer's own environment (store, Ollama,
proxies) reaches a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEPT = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG", "LC_ALL", "COVERAGE_PROCESS_START", "PYTHONPATH")


class Result:
    """How a run of the command ended."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.returncode = done.returncode
        self.stdout = done.stdout.decode("utf-8")
        self.stderr = done.stderr.decode("utf-8")

    def __repr__(self) -> str:
        return f"<exit {self.returncode}\nstdout: {self.stdout}\nstderr: {self.stderr}>"

    @property
    def json(self) -> Any:
        """What was printed, which must be one JSON value."""
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        """The error object, the last line of stderr."""
        return json.loads(self.stderr.splitlines()[-1])

    @property
    def events(self) -> list[Any]:
        """The lines of --output ndjson."""
        return [json.loads(line) for line in self.stdout.splitlines()]


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


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command and go on; what still runs when the test ends is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*args: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-m", "ollama_prompt", *args],
            **{"cwd": tmp_path, "env": environment | (env or {}), **pipes, **options},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., Result]:
    """Run the command to its end: `run("-p", "Hi").json["response"]`."""

    def run(*args: str, input: str | bytes | None = None, timeout: float = 60, **options: Any) -> Result:  # noqa: A002
        given = input.encode() if isinstance(input, str) else input
        if given is not None:
            options["stdin"] = subprocess.PIPE
        process = start(*args, **options)
        out, err = process.communicate(given, timeout)
        return Result(subprocess.CompletedProcess(process.args, process.returncode, out, err))

    return run
