"""Many processes at once: on one session they queue, on many they never meet; no turn is lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn

WAIT = 120
"""Seconds after which a process that should have ended makes the test fail."""


def end(process: subprocess.Popen[bytes]) -> Result:
    """How the process ends."""
    out, err = process.communicate(timeout=WAIT)
    return Result(process.returncode, out, err)


def end_all(processes: list[subprocess.Popen[bytes]]) -> list[Result]:
    """How the processes end; each must succeed."""
    return [stores.succeed(end(process)) for process in processes]


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line on stderr."""
    assert process.stderr is not None
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    try:
        return process.stderr.readline().decode()
    finally:
        timer.cancel()


def wait_until_queued(process: subprocess.Popen[bytes]) -> None:
    """Until the process says that it waits for the session."""
    assert "waiting for it" in read_line(process)


@pytest.fixture
def session(run: Run) -> str:
    """A session with one turn."""
    session_id: str = stores.succeed(run("-p", "Begin")).json["session_id"]
    return session_id


class Loop:
    """One command, again and again from a thread, until `stop`; what it printed."""

    def __init__(self, run: Run, *args: str) -> None:
        self.results: list[Result] = []
        self._done = threading.Event()
        self._run, self._args = run, args
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def _repeat(self) -> None:
        while not self._done.is_set():
            self.results.append(self._run(*self._args, timeout=WAIT))

    def stop(self) -> list[Result]:
        """The results, all of which are successes."""
        self._done.set()
        self._thread.join(WAIT)
        assert self.results
        return [stores.succeed(result) for result in self.results]


@pytest.fixture
def bystanders(run: Run) -> Iterator[dict[str, Loop]]:
    """Whatever looks at the whole store, all the time."""
    commands = {
        "list": ("--list-sessions",),
        "purge": ("--purge", "30"),
        "reindex": ("--reindex",),
        "check": ("--check",),
    }
    loops = {name: Loop(run, *args) for name, args in commands.items()}
    yield loops
    for loop in loops.values():
        loop.stop()


def assert_nothing_lost(loops: dict[str, Loop]) -> None:
    """What bystanders saw: never a damaged file, never fewer sessions than before, nothing purged."""
    results = {name: [result.json for result in loop.stop()] for name, loop in loops.items()}
    assert all(check["damage"] == [] for check in results["check"])
    assert all(purge["removed"] == 0 for purge in results["purge"])
    totals = [listing["total"] for listing in results["list"]]
    assert totals == sorted(totals)
    counts = [reindex["sessions"] for reindex in results["reindex"]]
    assert counts == sorted(counts)


def check(run: Run) -> dict[str, Any]:
    """What --check says."""
    return stores.succeed(run("--check")).json


# --- One session -----------------------------------------------------------------------------------


def test_40_turns_on_one_session_each_see_the_ones_before(
    start: Start, run: Run, home: Path, ollama: StandIn, session: str
) -> None:
    ollama.hold()
    first = start("--session-id", session, "-p", "Turn 0")
    ollama.wait(held=1)
    others = [start("--session-id", session, "-p", f"Turn {number}") for number in range(1, 40)]
    for process in others:
        wait_until_queued(process)
    ollama.release()
    end_all([first, *others])
    stored = stores.said(stores.the_file(home))
    assert len(stored) == 2 * 41
    assert sorted(stored[2::2]) == sorted(("user", f"Turn {number}") for number in range(40))
    for number, chat in enumerate(ollama.chats()):
        sent = [(message["role"], message["content"]) for message in chat["messages"]]
        assert sent == stored[: 2 * number + 1]
    assert check(run) == {"ok": True, "sessions": 1, "damage": [], "index": "ok"}
    assert stores.assert_agreement(run)[0]["message_count"] == 2 * 41


def test_a_session_in_use_is_busy_at_once_without_waiting(
    start: Start, run: Run, ollama: StandIn, session: str
) -> None:
    ollama.hold()
    holder = start("--session-id", session, "-p", "Hold it")
    ollama.wait(held=1)
    error = stores.fail(run("--session-id", session, "-p", "Hi", "--lock-timeout", "0"), "session_busy", 75)
    assert error["session_id"] == session
    assert stores.fail(run("--delete", session), "session_busy", 75)["session_id"] == session
    skipped = stores.succeed(run("--purge", "0")).json
    assert (skipped["removed"], skipped["skipped"]) == (0, [session])
    ollama.release()
    end_all([holder])
    assert len(ollama.chats()) == 2


def test_waiting_ends_after_the_given_time(start: Start, run: Run, home: Path, ollama: StandIn, session: str) -> None:
    ollama.hold()
    start("--session-id", session, "-p", "Hold it")
    ollama.wait(held=1)
    before = stores.the_file(home).read_bytes()
    result = run("--session-id", session, "-p", "Hi", "--lock-timeout", "0.3")
    stores.fail(result, "session_busy", 75)
    assert result.stderr.startswith("note: ")
    assert stores.the_file(home).read_bytes() == before


def test_a_killed_process_holds_nothing(start: Start, run: Run, home: Path, ollama: StandIn, session: str) -> None:
    ollama.hold()
    holder = start("--session-id", session, "-p", "Never answered")
    ollama.wait(held=1)
    waiter = start("--session-id", session, "-p", "Next")
    wait_until_queued(waiter)
    holder.kill()
    ollama.release()
    end_all([waiter])
    roles = [role for role, _ in stores.said(stores.the_file(home))]
    assert roles == ["user", "assistant", "user", "user", "assistant"]
    assert [message["content"] for message in ollama.chats()[-1]["messages"][::2]] == ["Begin", "Next"]


def test_who_waits_for_a_session_that_is_deleted_is_told(
    start: Start, run: Run, home: Path, ollama: StandIn, session: str
) -> None:
    ollama.hold()
    holder = start("--session-id", session, "-p", "Hold it")
    ollama.wait(held=1)
    waiters = [start("--session-id", session, "-p", "Wait") for _ in range(3)]
    for process in waiters:
        wait_until_queued(process)
    stores.the_file(home).unlink()
    holder.kill()
    for process in waiters:
        stores.fail(end(process), "session_not_found")
    assert stores.files(home) == []


def test_deleting_again_and_again_while_turns_queue_never_revives_the_session(
    start: Start, run: Run, home: Path, ollama: StandIn, session: str
) -> None:
    ollama.hold()
    holder = start("--session-id", session, "-p", "Hold it")
    ollama.wait(held=1)
    waiters = [start("--session-id", session, "-p", f"Wait {number}") for number in range(8)]
    for process in waiters:
        wait_until_queued(process)
    ollama.release()
    while (result := run("--delete", session)).returncode == 75:
        pass
    deleted = result.returncode == 0
    if not deleted:
        stores.fail(result, "session_not_found")
    stores.succeed(end(holder))
    for process in waiters:
        ended = stores.clean(end(process))
        assert ended.returncode == 0 or ended.error["code"] == "session_not_found", ended
    assert stores.files(home) == []
    assert check(run)["sessions"] == 0
    assert not list((home / "locks").glob("*-*.lock"))


def test_undos_at_once_take_back_a_turn_each(start: Start, run: Run, home: Path) -> None:
    path = stores.make(home, data=stores.lines(stores.new_id(1), turns=8))
    results = [end(process) for process in [start("--undo", path.stem) for _ in range(12)]]
    undone = [stores.clean(result).json["undone"] for result in results if result.returncode == 0]
    ids = [record["id"] for record in stores.records(path)[1:17]]
    assert sorted(undone) == [ids[number : number + 2] for number in range(0, 16, 2)]
    assert {stores.fail(result, "nothing_to_undo")["session_id"] for result in results if result.returncode} == {
        path.stem
    }
    assert stores.assert_agreement(run)[0]["message_count"] == 0


def test_retries_at_once_ask_the_same_prompt_again_each(start: Start, run: Run, home: Path, ollama: StandIn) -> None:
    path = stores.make(home)
    end_all([start("--retry", path.stem) for _ in range(10)])
    sent = [[message["content"] for message in chat["messages"]] for chat in ollama.chats()]
    assert sent == [["Question 0", "Answer 0", "Question 1"]] * 10
    assert len(stores.said(path)) == 4 + 20
    assert stores.assert_agreement(run)[0]["message_count"] == 4


def test_turns_undos_and_retries_at_once_leave_whole_turns(start: Start, run: Run, home: Path, ollama: StandIn) -> None:
    path = stores.make(home, data=stores.lines(stores.new_id(1), turns=8))
    commands = (("--session-id", path.stem, "-p", "New"), ("--undo", path.stem), ("--retry", path.stem))
    end_all([start(*commands[number % 3]) for number in range(18)])
    info = stores.succeed(run("--session-info", path.stem)).json
    left = [message["role"] for message in info["messages"] if not message.get("undone")]
    assert left == ["user", "assistant"] * 8
    for chat in ollama.chats():
        assert [message["role"] for message in chat["messages"]][:-1] == ["user", "assistant"] * (
            len(chat["messages"]) // 2
        )
    assert stores.assert_agreement(run)[0]["message_count"] == 16
    assert check(run)["damage"] == []


def test_who_continues_the_last_session_queues(
    start: Start, run: Run, home: Path, ollama: StandIn, session: str
) -> None:
    stores.make(home, 1)
    turns = [result.json for result in end_all([start("-c", "-p", f"Turn {number}") for number in range(12)])]
    assert {turn["session_id"] for turn in turns} == {session}
    assert sorted(turn["window"]["messages_sent"] for turn in turns) == list(range(3, 27, 2))


def test_forks_of_a_session_in_use_are_whole(start: Start, run: Run, home: Path, ollama: StandIn, session: str) -> None:
    turns = [start("--session-id", session, "-p", f"Turn {number}") for number in range(6)]
    forks = {result.json["session_id"] for result in end_all([start("--fork", session) for _ in range(12)])}
    end_all(turns)
    files = {path.stem: path for path in stores.files(home)}
    whole = stores.records(files.pop(session))[1:]
    assert files.keys() == forks
    for path in files.values():
        copied = stores.records(path)[1:-1]
        assert copied == whole[: len(copied)]
    assert len(stores.assert_agreement(run)) == 13
    assert check(run) == {"ok": True, "sessions": 13, "damage": [], "index": "ok"}


def test_a_fork_of_a_session_that_is_deleted_is_whole_or_is_not(start: Start, run: Run, home: Path) -> None:
    for number in range(8):
        path = stores.make(home, number)
        processes = [start("--fork", path.stem), start("--delete", path.stem)]
        forked, deleted = (stores.clean(end(process)) for process in processes)
        assert deleted.returncode == 0
        if forked.returncode:
            stores.fail(forked, "session_not_found")
        assert len(stores.files(home)) == (forked.returncode == 0)
        for made in stores.files(home):
            assert len(stores.said(made)) == 4
        stores.succeed(run("--purge", "0"))


# --- Many sessions ---------------------------------------------------------------------------------


def test_100_sessions_begin_at_the_same_instant_in_an_empty_home(
    start: Start, run: Run, home: Path, ollama: StandIn
) -> None:
    ollama.hold(100)
    results = end_all([start("-p", f"Session {number}") for number in range(100)])
    ids = {result.json["session_id"] for result in results}
    assert len(ids) == 100
    assert {path.stem for path in stores.files(home)} == ids
    assert check(run) == {"ok": True, "sessions": 100, "damage": [], "index": "ok"}
    listing = stores.assert_agreement(run)
    assert {entry["session_id"] for entry in listing} == ids
    assert {entry["message_count"] for entry in listing} == {2}


def test_bystanders_neither_fail_nor_lose_a_session(
    start: Start, run: Run, home: Path, ollama: StandIn, bystanders: dict[str, Loop]
) -> None:
    ollama.hold(30)
    ids = {result.json["session_id"] for result in end_all([start("-p", f"Session {n}") for n in range(30)])}
    ollama.hold(30)
    results = end_all([start("--session-id", id_, "-p", "Again") for id_ in ids])
    assert {result.json["session_id"] for result in results} == ids
    assert_nothing_lost(bystanders)
    assert {path.stem: len(stores.said(path)) for path in stores.files(home)} == dict.fromkeys(ids, 4)
    assert {entry["session_id"] for entry in stores.assert_agreement(run)} == ids
    assert check(run)["index"] == "ok"


def test_purging_all_removes_only_what_nobody_uses(start: Start, run: Run, home: Path, ollama: StandIn) -> None:
    unused = {stores.make(home, number).stem for number in range(20)}
    ollama.hold()
    turns = [start("-p", f"Session {number}") for number in range(5)]
    ollama.wait(held=5)
    in_use = {path.stem for path in stores.files(home)} - unused
    purges = [start("--purge", "0") for _ in range(6)]
    purged = [result.json for result in end_all(purges)]
    removed = [id_ for purge in purged for id_ in purge["sessions"]]
    assert len(removed) == 20
    assert set(removed) == unused
    ollama.release()
    end_all(turns)
    assert {path.stem for path in stores.files(home)} == in_use
    assert {entry["session_id"] for entry in stores.assert_agreement(run)} == in_use


def test_20_processes_list_a_store_that_has_no_index_yet(start: Start, run: Run, home: Path) -> None:
    for number in range(50):
        stores.make(home, number)
    printed = {result.stdout for result in end_all([start("--list-sessions") for _ in range(20)])}
    assert len(printed) == 1
    assert check(run) == {"ok": True, "sessions": 50, "damage": [], "index": "ok"}


@pytest.mark.parametrize("command", [("--list-sessions",), ("--purge", "30"), ("--check",), ("--reindex",)])
def test_looking_at_an_empty_home_leaves_no_trace(run: Run, home: Path, command: tuple[str, ...]) -> None:
    stores.succeed(run(*command))
    assert not home.exists()
