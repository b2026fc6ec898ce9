"""Locks between processes: what a lock that is not waited for shares with one that is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import filelock
import pytest

from ollama_prompt import locks
from ollama_prompt.errors import SessionBusy, StoreWriteFailed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

TIMEOUTS = (0.0, 0.2)
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file, and makes links for few")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "session.lock"


def hold(path: Path, timeout: float = 0.0) -> AbstractContextManager[None]:
    return locks.hold(str(path), timeout, "session one", "one")


def take_in_another_process(path: Path, timeout: float) -> str:
    """What another process says that wants the same lock."""
    code = f"from ollama_prompt import locks\nwith locks.hold({str(path)!r}, {timeout}, 'it'): print('taken')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", TIMEOUTS)
@pytest.mark.parametrize("second", TIMEOUTS)
def test_both_kinds_of_lock_keep_each_other_out(path: Path, first: float, second: float) -> None:
    with hold(path, first):
        assert take_in_another_process(path, second).endswith("it is in use by another process")
    assert take_in_another_process(path, second) == "taken"


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_the_lock_of_another_program_counts(path: Path, timeout: float) -> None:
    with (
        filelock.FileLock(path),
        pytest.raises(SessionBusy, match="session one is in use") as raised,
        hold(path, timeout),
    ):
        pass
    assert raised.value.session_id == "one"


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_a_lock_file_is_for_its_owner_alone(path: Path, timeout: float) -> None:
    before = os.umask(0)
    try:
        with hold(path, timeout):
            assert sys.platform == "win32" or path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@posix
def test_a_lock_on_a_file_that_was_removed_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it: another process may lock the new file of that name."""
    real = filelock.lock_descriptor

    def late(descriptor: int, *, blocking: bool) -> bool:
        path.unlink()
        path.touch()
        return real(descriptor, blocking=blocking)

    monkeypatch.setattr(locks, "lock_descriptor", late)
    with pytest.raises(SessionBusy), hold(path):
        pass
    monkeypatch.undo()
    with hold(path):
        pass


@posix
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_no_lock_is_taken_through_a_link(path: Path, timeout: float) -> None:
    target = path.with_name("target")
    path.symlink_to(target)
    with pytest.raises(StoreWriteFailed), hold(path, timeout):
        pass
    assert not target.exists()


@posix
@pytest.mark.parametrize("first", TIMEOUTS)
@pytest.mark.parametrize("second", TIMEOUTS)
def test_a_file_system_without_locks_gets_what_filelock_has_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, first: float, second: float
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        with hold(path, first), pytest.raises(SessionBusy), hold(path, second):
            pass


def in_a_new_process(code: str, path: Path) -> str:
    """What it prints: one that may fork, which this one must not."""
    start = "import os, signal, sys, time\nfrom ollama_prompt import locks\npath = sys.argv[1]\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@posix
def test_a_lock_is_free_though_a_process_lives_that_was_forked_meanwhile(path: Path) -> None:
    code = """
with locks.hold(path, 5, "it"):
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
with locks.hold(path, 0, "it"):
    print("free")
os.kill(child, signal.SIGKILL)
"""
    assert in_a_new_process(code, path) == "free\n"


@posix
def test_a_lock_is_free_once_its_holder_is_killed_that_has_forked(path: Path) -> None:
    code = """
read, write = os.pipe()
holder = os.fork()
if not holder:
    with locks.hold(path, 5, "it"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        os.write(write, b"%d" % child)
        time.sleep(60)
child = int(os.read(read, 20))
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
with locks.hold(path, 10, "it"):
    print("free")
os.kill(child, signal.SIGKILL)
"""
    assert in_a_new_process(code, path) == "free\n"


@posix
def test_a_forked_process_does_not_let_go_of_the_lock(path: Path) -> None:
    code = """
import subprocess
with locks.hold(path, 5, "it"):
    child = os.fork()
    if not child:
        file = os.open(os.devnull, os.O_RDONLY)  # gets the number that the lock's had
    else:
        print(os.waitpid(child, 0)[1])
        other = "from ollama_prompt import locks; import sys; locks.hold(sys.argv[1], 0, 'it').__enter__()"
        print(subprocess.run([sys.executable, "-c", other, path], stderr=subprocess.DEVNULL).returncode)
if not child:
    os.fstat(file)
    os._exit(0)
with locks.hold(path, 0, "it"):
    print("free")
"""
    assert in_a_new_process(code, path) == "0\n1\nfree\n"


@pytest.mark.parametrize("fails", [True, False])
def test_no_lock_is_left_open(path: Path, fails: bool) -> None:
    with filelock.FileLock(path) if fails else nullcontext():
        before = os.dup(0)
        os.close(before)
        with suppress(SessionBusy), hold(path):
            pass
        after = os.dup(0)
        os.close(after)
    assert before == after
