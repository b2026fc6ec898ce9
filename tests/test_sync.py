"""Conversations on several machines: homes on this one, a bare repository between them, and the real git."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from stores import fail, files, succeed

from ollama_prompt import catalogue, checkouts, records, session_file, sync
from ollama_prompt.errors import GitFailed, UsageError
from ollama_prompt.git import Git
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import GITATTRIBUTES, Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run, Start
    from standin import StandIn

Json = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs a shell, and modes of files")

QUIET = {"GIT_CONFIG_GLOBAL": str(Path(__file__).with_name("gitconfig")), "GIT_CONFIG_NOSYSTEM": "1"}
NO_NEWS = {"committed": 0, "received": 0, "sent": 0, "pushed": False, "skipped": []}


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own git configuration, and no identity."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checkouts, "QUIET_SECONDS", 0)


def git(folder: Path, *arguments: str, may_fail: bool = False) -> str:
    """What git says in this folder."""
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert may_fail or done.returncode == 0, done
    return done.stdout + done.stderr


class Machine:
    """A store of its own, as on another machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.notes: list[str] = []
        self.indexer = Indexer(Layout(str(home)), self.notes.append)

    def set_up(self, hub: Path | str | None = None) -> Json:
        return sync.set_up(self.indexer, str(hub) if hub else None, self.notes.append)

    def sync(self) -> Json:
        return sync.sync(self.indexer, 10, self.notes.append)

    def turn(self, text: str, session_id: str | None = None, **more: Any) -> str:
        """A turn; the session."""
        with self.indexer.new() if session_id is None else self.indexer.open(session_id, 10) as held:
            images = more.pop("images", None)
            held.begin(records.message("user", text, **more), {"model": "m"}, images)
            held.add([records.message("assistant", f"Answer to {text}", prompt_tokens=1, tokens=1)])
            return held.session_id

    def said(self, session_id: str) -> list[str]:
        """What a session says, as --session-info has it."""
        _, found, _ = self.indexer.info(session_id)
        return [record["content"] for record in found if record["type"] == "message"]

    def ids(self) -> list[str]:
        return sorted(path.stem for path in files(self.home))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The repository that all push to."""
    git(tmp_path, "init", "-q", "--bare", "hub.git")
    return tmp_path / "hub.git"


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two machines that have synced, and their hub: made once, and copied for each test."""
    folder = tmp_path_factory.mktemp("synced")
    git(folder, "init", "-q", "--bare", "hub.git")
    one, other = Machine(folder / "one"), Machine(folder / "other")
    for machine in (one, other):
        machine.set_up(folder / "hub.git")
        machine.sync()
    one.sync()
    return folder


@pytest.fixture
def two(tmp_path: Path, hub: Path, synced: Path) -> tuple[Machine, Machine]:
    """Two machines that have synced."""
    shutil.rmtree(hub)
    for name in ("hub.git", "one", "other"):
        shutil.copytree(synced / name, tmp_path / name)
    for name in ("one", "other"):
        config = tmp_path / name / ".git" / "config"
        config.write_text(config.read_text(encoding="utf-8").replace(str(synced), str(tmp_path)), encoding="utf-8")
    return Machine(tmp_path / "one"), Machine(tmp_path / "other")


def shared(one: Machine, other: Machine) -> str:
    """A session of one turn, which both have."""
    session_id = one.turn("Hello")
    one.sync()
    other.sync()
    return session_id


def assert_clean(machine: Machine) -> None:
    """All is committed, no merge is open, nothing is damaged."""
    assert git(machine.home, "status", "--porcelain") == ""
    assert not (machine.home / ".git" / "MERGE_HEAD").exists()
    assert machine.indexer.check()[1] == []


def assert_same(*machines: Machine) -> None:
    """All have the same files."""
    contents = [{path.name: path.read_bytes() for path in files(machine.home)} for machine in machines]
    assert all(content == contents[0] for content in contents)
    for machine in machines:
        assert_clean(machine)


# -- Setting up --------------------------------------------------------------------------------------------


def test_set_up(run: Run, home: Path, ollama: StandIn, hub: Path) -> None:
    succeed(run("-p", "Hi"))
    made = succeed(run("--git-setup", "--remote", str(hub), env=QUIET)).json
    assert made == {"repository": str(home), "remote": str(hub), "created": True}
    assert git(home, "show", "--name-only", "--format=%s%n%an").splitlines()[:2] == [
        "1 turn in 1 session",
        "ollama-prompt",
    ]
    assert sorted(git(home, "ls-files").splitlines())[:2] == [".gitattributes", ".gitignore"]
    assert len(git(home, "ls-files").splitlines()) == 3
    before = git(home, "rev-parse", "HEAD")
    again = succeed(run("--git-setup", "--remote", str(hub), env=QUIET)).json
    assert again == made | {"created": False}
    assert git(home, "rev-parse", "HEAD") == before
    assert git(home, "config", "branch.main.merge") == "refs/heads/main\n"
    text = succeed(run("--git-setup", "--output", "text", env=QUIET)).stdout
    assert text == f"uses the repository {home}, remote: {hub}\n"


def test_a_store_of_an_earlier_release_gets_the_lines_that_it_lacks(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "store")
    machine.indexer.layout.make()
    (machine.home / ".gitattributes").write_text("# mine\n*.jsonl text eol=lf merge=union", encoding="utf-8")
    machine.set_up()
    lines = (machine.home / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == ["# mine", "*.jsonl text eol=lf merge=union"], "git heeds the last line that fits"
    assert set(GITATTRIBUTES.splitlines()) <= set(lines)
    machine.set_up()
    assert (machine.home / ".gitattributes").read_text(encoding="utf-8").splitlines() == lines


def test_an_index_of_another_name_stays_out_of_git(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "store")
    machine.indexer = Indexer(Layout(str(machine.home), str(machine.home / "mine.db")), machine.notes.append)
    machine.turn("Hello")
    machine.indexer.sessions()
    machine.set_up()
    assert (machine.home / "mine.db").exists()
    assert "mine.db" not in git(machine.home, "ls-files")


def test_a_diff_shows_a_conversation_as_a_person_reads_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "store")
    machine.set_up()
    machine.turn("What is\na monad?")
    git(machine.home, "add", "-A")
    shown = git(machine.home, "diff", "--cached")
    assert "+What is\n+a monad?\n" in shown
    assert '"role"' not in shown


def test_another_remote_is_not_put_in_the_place_of_one(tmp_path: Path, hub: Path) -> None:
    machine = Machine(tmp_path / "store")
    machine.set_up(hub)
    with pytest.raises(GitFailed, match="another remote") as info:
        machine.set_up("https://example.org/x.git")
    assert "remote set-url" in str(info.value.hint)


def test_what_a_hint_says_can_be_pasted_into_a_shell(tmp_path: Path, hub: Path) -> None:
    machine = Machine(tmp_path / "my $(id) store")
    machine.set_up(hub)
    with pytest.raises(GitFailed) as info:
        machine.set_up("https://example.org/x.git")
    assert shlex.split(str(info.value.hint)) == ["git", "-C", str(machine.home), "remote", "set-url", "origin", "URL"]
    git(machine.home, "checkout", "-q", "-b", "$(id)")
    git(machine.home, "remote", "rename", "origin", "one")
    git(machine.home, "remote", "add", "other", str(hub))
    for said in ("is not clear: one, other", "follows no remote"):
        with pytest.raises(GitFailed, match=said) as info:
            machine.sync()
        assert str(info.value.hint).endswith("git config 'branch.$(id).remote' NAME")
        git(machine.home, "config", "branch.$(id).remote", str(hub))


def test_without_git(run: Run, home: Path, tmp_path: Path) -> None:
    for flag in ("--git-setup", "--sync"):
        error = fail(run(flag, env={"PATH": str(tmp_path)}), "git_failed")
        assert "git is not installed" in error["error"]


def test_not_set_up(run: Run, home: Path) -> None:
    error = fail(run("--sync", env=QUIET), "git_failed")
    assert error["hint"] == "ollama-prompt --git-setup"


@pytest.mark.parametrize("wrong", [("--git-setup", "--remote", ""), ("--remote", "x", "--sync"), ("--sync", "-p", "x")])
def test_wrong_flags(run: Run, home: Path, wrong: tuple[str, ...]) -> None:
    fail(run(*wrong), "usage", 2)
    assert not home.exists()


def test_a_repository_that_git_will_not_use_is_not_made_anew(run: Run, home: Path, ollama: StandIn) -> None:
    succeed(run("-p", "Hi"))
    succeed(run("--git-setup", env=QUIET))
    (home / ".git" / "config").write_text("[core\n", encoding="utf-8")
    for flag in ("--git-setup", "--sync"):
        assert "bad config" in fail(run(flag, env=QUIET), "git_failed")["error"]


# -- A larger repository -----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of somebody's, with a file that is staged and one that is not."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "main.py").write_text("print()\n", encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Mine")
    (folder / "staged.py").touch()
    git(folder, "add", "staged.py")
    (folder / "new.py").touch()
    return folder


def test_in_a_larger_repository_only_the_store_is_committed(project: Path) -> None:
    machine = Machine(project / "talks")
    session_id = machine.turn("Hello")
    assert machine.set_up() == {"repository": str(project), "remote": None, "created": False}
    machine.turn("And now?", session_id)
    assert machine.sync() == NO_NEWS | {"committed": 1}
    assert git(project, "status", "--porcelain").splitlines() == ["A  staged.py", "?? new.py"]
    names = set(git(project, "log", "-2", "--format=", "--name-only").split())
    assert {Path(name).parts[0] for name in names} == {"talks"}


def test_a_larger_repository_that_was_not_set_up_is_let_alone(project: Path) -> None:
    machine = Machine(project / "talks")
    machine.turn("Hello")
    before = git(project, "status", "--porcelain")
    with pytest.raises(GitFailed, match="not under git"):
        machine.sync()
    assert git(project, "status", "--porcelain") == before


def test_where_the_larger_repository_ignores_the_store_it_gets_its_own(project: Path) -> None:
    (project / ".gitignore").write_text("/talks/\n", encoding="utf-8")
    machine = Machine(project / "talks")
    assert machine.set_up()["repository"] == str(project / "talks")


def test_a_conflict_in_somebody_s_files_is_left_to_them(tmp_path: Path, project: Path, hub: Path) -> None:
    git(project, "commit", "-q", "-m", "Staged")
    git(project, "remote", "add", "origin", str(hub))
    git(project, "push", "-q", "origin", "trunk")
    git(tmp_path, "clone", "-q", "-b", "trunk", str(hub), "clone")
    here, there = Machine(project / "talks"), Machine(tmp_path / "clone" / "talks")
    for machine, text in ((there, "theirs"), (here, "ours")):
        machine.set_up()
        (machine.home.parent / "main.py").write_text(f"{text}\n", encoding="utf-8")
        git(machine.home.parent, "commit", "-q", "-a", "-m", text)
    there.sync()
    session_id = here.turn("Hello")
    with pytest.raises(GitFailed, match=r"main\.py"):
        here.sync()
    assert not (project / ".git" / "MERGE_HEAD").exists()
    assert (project / "main.py").read_text(encoding="utf-8") == "ours\n"
    assert here.said(session_id) == ["Hello", "Answer to Hello"]


# -- Syncing -----------------------------------------------------------------------------------------------


def test_two_machines(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = one.turn("Hello")
    assert one.sync() == NO_NEWS | {"committed": 1, "sent": 1, "pushed": True}
    assert other.sync() == NO_NEWS | {"received": 1}
    other.turn("There", session_id)
    one.turn("Here", session_id)
    assert other.sync() == NO_NEWS | {"committed": 1, "sent": 1, "pushed": True}
    assert one.sync() == NO_NEWS | {"committed": 1, "received": 1, "sent": 1, "pushed": True}
    assert other.sync() == NO_NEWS | {"received": 1}
    assert one.sync() == other.sync() == NO_NEWS
    assert_same(one, other)
    assert Counter(one.said(session_id)) == Counter(
        [text for prompt in ("Hello", "Here", "There") for text in (prompt, f"Answer to {prompt}")]
    )


def test_what_is_printed(run: Run, home: Path, ollama: StandIn, hub: Path) -> None:
    session_id = succeed(run("-p", "Hi")).json["session_id"]
    succeed(run("--git-setup", env=QUIET))
    alone = succeed(run("--sync", env=QUIET))
    assert alone.json == NO_NEWS
    assert "there is no remote" in alone.stderr
    succeed(run("--git-setup", "--remote", str(hub), env=QUIET))
    succeed(run("--session-id", session_id, "-p", "Again"))
    assert (
        succeed(run("--sync", "--output", "text", env=QUIET)).stdout == "sessions committed: 1, received: 0, sent: 1\n"
    )
    assert succeed(run("--sync", env=QUIET)).json == NO_NEWS
    subject, _, body = git(home, "show", "-s", "--format=%B").strip().partition("\n\n")
    assert (subject, body) == ("1 turn in 1 session", f"{session_id} +1")


def test_a_remote_that_cannot_be_reached(run: Run, home: Path, ollama: StandIn, tmp_path: Path) -> None:
    succeed(run("--git-setup", "--remote", str(tmp_path / "nowhere.git"), env=QUIET))
    succeed(run("-p", "Hi"))
    error = fail(run("--sync", env=QUIET), "git_failed")
    assert "nowhere.git" in error["error"]
    assert "is committed" in error["hint"]
    assert git(home, "status", "--porcelain") == ""


def test_the_context_after_a_merge_is_what_is_shown(
    run: Run, home: Path, ollama: StandIn, tmp_path: Path, hub: Path
) -> None:
    there = Machine(tmp_path / "there")
    session_id = succeed(run("-p", "Hi")).json["session_id"]
    succeed(run("--git-setup", "--remote", str(hub), env=QUIET))
    succeed(run("--sync", env=QUIET))
    there.set_up(hub)
    there.sync()
    there.turn("There", session_id)
    there.sync()
    succeed(run("--session-id", session_id, "-p", "Here"))
    succeed(run("--sync", env=QUIET))
    shown = succeed(run("--session-info", session_id)).json
    assert shown["message_count"] == 6
    succeed(run("--session-id", session_id, "-p", "Next"))
    assert [m["content"] for m in ollama.chats()[-1]["messages"]] == [m["content"] for m in shown["messages"]] + [
        "Next"
    ]


def test_a_turn_outlives_a_deletion(two: tuple[Machine, Machine]) -> None:
    one, other = two
    for deleting, going_on in ((one, other), (other, one)):
        session_id = one.turn("Hello")
        one.sync()
        other.sync()
        deleting.indexer.delete(session_id)
        going_on.turn("Still there", session_id)
        for machine in (one, other, one, other):
            machine.sync()
        assert_same(one, other)
        assert one.said(session_id)[2:] == ["Still there", "Answer to Still there"]


def test_a_deletion_goes_everywhere(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    one.indexer.delete(session_id)
    one.sync()
    assert other.sync() == NO_NEWS | {"received": 1}
    assert other.ids() == []
    assert other.indexer.sessions() == []
    assert "1 session removed" in git(one.home, "log", "-1", "--format=%s")


def test_a_fork_does_not_take_the_place_of_its_deleted_source(two: tuple[Machine, Machine]) -> None:
    one, other = two
    source = one.turn("Hello " * 100)
    one.sync()
    other.sync()
    fork = one.indexer.fork(source, None)
    one.indexer.delete(source)
    other.turn("Still there", source)
    for machine in (one, other, one):
        machine.sync()
    assert_same(one, other)
    assert "Still there" in one.said(source)
    assert "Still there" not in one.said(fork)


def test_a_file_that_was_moved_is_continued_where_it_is(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    (path,) = files(one.home)
    (one.home / "sessions" / "mine").mkdir()
    path.rename(one.home / "sessions" / "mine" / path.name)
    other.turn("There", session_id)
    for machine in (one, other, one):
        machine.sync()
    assert_same(one, other)
    assert one.said(session_id)[2:] == ["There", "Answer to There"]
    assert [file.parent.name for file in files(other.home)] == ["mine"]


def test_a_session_that_was_moved_and_continued_is_named(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    (path,) = files(one.home)
    (one.home / "sessions" / "mine").mkdir()
    path.rename(one.home / "sessions" / "mine" / path.name)
    one.indexer.sessions()
    one.turn("Here", session_id)
    one.sync()
    other.turn("There", session_id)
    other.sync()
    assert any(session_id in note and "--repair" in note for note in other.notes)
    other.indexer.repair()
    other.sync()
    one.sync()
    assert one.said(session_id) == other.said(session_id)
    assert {"Here", "There"} <= set(one.said(session_id))
    assert_same(one, other)


def test_a_picture_that_a_session_names_stays(two: tuple[Machine, Machine]) -> None:
    one, other = two
    data = b"\x89PNG\r\n\x1a\n" + bytes(20)
    name = hashlib.sha256(data).hexdigest()
    picture = {"images": [{"sha256": name, "bytes": len(data), "type": "image/png", "path": "a.png"}]}
    with one.indexer.new() as held:
        held.begin(records.message("user", "Look", **picture), {"model": "m"}, {name: data})
        session_id = held.session_id
    one.sync()
    other.sync()
    fork = other.indexer.fork(session_id, None)
    one.indexer.delete(session_id)
    assert not (one.home / "attachments" / name).exists()
    for machine in (one, other, one):
        machine.sync()
    assert one.ids() == other.ids() == [fork]
    for machine in (one, other):
        assert (machine.home / "attachments" / name).read_bytes() == data
        assert git(machine.home, "status", "--porcelain") == ""


def test_damage_stops_no_sync(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    (path,) = files(one.home)
    path.write_bytes(b"{torn\n" + path.read_bytes()[40:] + b'{"type":"mess')
    other.turn("There", session_id)
    for machine in (one, other, one):
        machine.sync()
    assert "There" in one.said(session_id)
    assert one.said(session_id) == other.said(session_id)


def test_a_session_in_use_waits_for_the_next_sync(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    other.turn("There", session_id)
    other.sync()
    with one.indexer.open(session_id, 0) as held:
        held.begin(records.message("user", "Here"), {})
        assert Machine(one.home).sync() == NO_NEWS | {"committed": 1, "skipped": [session_id]}
        assert git(one.home, "status", "--porcelain") == ""
        held.add([records.message("assistant", "Answer to Here")])
    assert one.sync() == NO_NEWS | {"committed": 1, "received": 1, "sent": 1, "pushed": True}
    other.sync()
    assert_same(one, other)
    assert {"Here", "Answer to Here", "There", "Answer to There"} <= set(one.said(session_id))


def test_many_push_at_once(tmp_path: Path, hub: Path) -> None:
    machines = [Machine(tmp_path / str(number)) for number in range(4)]
    for machine in machines:
        machine.set_up(hub)

    def work(machine: Machine) -> None:
        for number in range(3):
            machine.turn(f"{machine.home.name}.{number}")
            machine.sync()

    threads = [threading.Thread(target=work, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for machine in machines * 2:
        machine.sync()
    assert_same(*machines)
    assert len(machines[0].ids()) == 12


def test_syncs_of_one_store_wait_for_each_other(start: Start, run: Run, home: Path, ollama: StandIn, hub: Path) -> None:
    succeed(run("--git-setup", "--remote", str(hub), env=QUIET))
    for number in range(3):
        succeed(run("-p", f"Question {number}"))
    running = [start("--sync", env=QUIET) for _ in range(6)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert [code for _, code in ended] == [0] * 6
    assert sum(json.loads(out)["committed"] for (out, _), _ in ended) == 3


# -- By hand -----------------------------------------------------------------------------------------------


def test_in_the_middle_of_a_merge_by_hand(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    (one.home / ".git" / "MERGE_HEAD").write_text(git(one.home, "rev-parse", "HEAD"), encoding="utf-8")
    with pytest.raises(GitFailed, match="MERGE_HEAD"):
        one.sync()


def test_no_branch(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    git(one.home, "checkout", "-q", "--detach")
    with pytest.raises(GitFailed, match="no branch"):
        one.sync()


def test_a_hook_that_says_no(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    hook = one.home / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: there is a password' >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    session_id = one.turn("Hello")
    with pytest.raises(GitFailed, match="there is a password"):
        one.sync()
    hook.unlink()
    assert one.sync()["committed"] == 1
    assert one.said(session_id)[0] == "Hello"


def test_a_hook_that_refuses_a_merge_leaves_none_open(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    one.indexer.delete(session_id)
    one.sync()
    other.turn("There", session_id)
    hook = other.home / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ntest ! -e "$(git rev-parse --git-path MERGE_HEAD)"\n', encoding="utf-8")
    hook.chmod(0o755)
    with pytest.raises(GitFailed):
        other.sync()
    assert_clean(other)
    hook.unlink()
    assert other.sync()["pushed"]
    assert "There" in other.said(session_id)


def test_from_within_a_hook_of_another_repository(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, _ = two
    git(tmp_path, "init", "-q", "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere" / "index"))
    one.turn("Hello")
    assert one.sync()["sent"] == 1


def test_a_listing_after_a_pull_reads_what_came(two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two
    known = [one.turn(f"Hello {number}") for number in range(12)]
    one.sync()
    other.sync()
    monkeypatch.setattr(catalogue, "read_time_ns", lambda: time.time_ns() + 3600 * 10**9)  # else read again, once
    other.indexer.sessions()
    changed = {one.turn("There", session_id) for session_id in known[:3]} | {one.turn("New")}
    one.sync()
    other.sync()
    read, read_files = set(), session_file.read

    def reading(path: str, session_id: str, *more: Any) -> session_file.Reading:
        read.add(session_id)
        return read_files(path, session_id, *more)

    monkeypatch.setattr(session_file, "read", reading)
    assert len(other.indexer.sessions()) == 13
    assert read == changed


def test_plain_git_does_the_same(tmp_path: Path, two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = one.turn("Hello")
    one.sync()
    git(other.home, "pull", "-q", "--no-rebase")
    other.turn("There", session_id)
    one.turn("Here", session_id)
    one.sync()
    git(other.home, "add", "-A")
    git(other.home, "commit", "-q", "-m", "There")
    git(other.home, "pull", "-q", "--no-rebase", "--no-edit", "origin", "main")
    git(other.home, "push", "-q", "origin", "main")
    one.sync()
    assert_same(one, other)
    assert len(one.said(session_id)) == 6


def heads(machine: Machine) -> str:
    """What a sync notes before it merges: our commit and theirs."""
    return " ".join(git(machine.home, "rev-parse", name).strip() for name in ("HEAD", "origin/main"))


class Talking:
    """A thread that takes turns on a session, each with a moment between prompt and answer, until it is stopped."""

    def __init__(self, machine: Machine, session_id: str) -> None:
        self._machine = machine
        self._session_id = session_id
        self._stopped = threading.Event()
        self.acknowledged: list[str] = []
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def _talk(self) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            with self._machine.indexer.open(self._session_id, 30) as held:
                held.begin(records.message("user", f"Prompt {number}"), {})
                self._stopped.wait(0.03)
                held.add([records.message("assistant", f"Answer {number}")])
            self.acknowledged += [f"Prompt {number}", f"Answer {number}"]

    def stop(self) -> list[str]:
        self._stopped.set()
        self._thread.join()
        return self.acknowledged


def commit_by_hand(machine: Machine) -> None:
    git(machine.home, "add", "-A")
    git(machine.home, "commit", "-q", "-m", "By hand", may_fail=True)


def stash(machine: Machine) -> None:
    git(machine.home, "stash", may_fail=True)
    while git(machine.home, "stash", "list"):
        git(machine.home, "stash", "pop", may_fail=True)
        commit_by_hand(machine)


def switch(machine: Machine) -> None:
    commit_by_hand(machine)
    git(machine.home, "branch", "-f", "side", "origin/main")
    git(machine.home, "checkout", "-q", "side", may_fail=True)
    commit_by_hand(machine)
    git(machine.home, "checkout", "-q", "main", may_fail=True)
    commit_by_hand(machine)
    while git(machine.home, "symbolic-ref", "--short", "HEAD").strip() == "side":
        git(machine.home, "checkout", "-q", "main", may_fail=True)
    while git(machine.home, "branch", "--no-merged", "main"):  # else the next `branch -f` would drop its commits
        git(machine.home, "merge", "-q", "--no-edit", "side", may_fail=True)
        commit_by_hand(machine)


def pull(machine: Machine) -> None:
    commit_by_hand(machine)
    git(machine.home, "pull", "-q", "--no-rebase", "--no-edit", "origin", "main", may_fail=True)


def rebase(machine: Machine) -> None:
    commit_by_hand(machine)
    git(machine.home, "pull", "-q", "--rebase", "origin", "main", may_fail=True)
    while (machine.home / ".git" / "rebase-merge").exists():
        git(machine.home, "add", "-A")
        git(machine.home, "-c", "core.editor=:", "rebase", "--continue", may_fail=True)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: a turn waits for git."""
    monkeypatch.setattr(checkouts, "QUIET_SECONDS", 0.25)


@posix_only
@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("by_hand", [pull, stash, switch, rebase])
def test_git_by_hand_in_a_loop_during_turns(two: tuple[Machine, Machine], by_hand: Callable[[Machine], None]) -> None:
    one, other = two
    session_id = shared(one, other)
    talking = Talking(one, session_id)
    try:
        for number in range(6):
            other.turn(f"There {number}", session_id)
            other.sync()
            git(one.home, "fetch", "-q", "origin")
            by_hand(one)
    finally:
        acknowledged = talking.stop()
    for machine in (one, other, one):
        machine.sync()
    assert_same(one, other)
    there = one.said(session_id)
    assert len(acknowledged) > 4
    assert set(acknowledged) <= set(there)
    assert {f"There {number}" for number in range(6)} <= set(there)
    assert len(there) == len(set(there))


@posix_only
@pytest.mark.usefixtures("_patient")
def test_syncs_in_a_loop_during_turns(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    talking = [Talking(machine, session_id) for machine in (one, other)]
    for _ in range(8):
        for machine in (one, other):
            Machine(machine.home).sync()
    acknowledged = [talk.stop() for talk in talking]
    for machine in (one, other, one):
        machine.sync()
    assert_same(one, other)
    there = Counter(one.said(session_id))
    assert not Counter([*acknowledged[0], *acknowledged[1]]) - there


# -- Killed ------------------------------------------------------------------------------------------------


def test_a_sync_that_was_killed_in_the_middle_of_a_merge(two: tuple[Machine, Machine]) -> None:
    """git writes files in place: the one it was at is cut, another is not there yet."""
    one, other = two
    cut, gone = one.turn("Hello"), one.turn("Goodbye")
    one.sync()
    other.sync()
    for session_id in (cut, gone):
        other.turn("There", session_id)
        one.turn("Here", session_id)
    other.sync()
    git(one.home, "add", "-A")
    git(one.home, "commit", "-q", "-m", "Here")
    git(one.home, "fetch", "-q", "origin")
    commits = heads(one)
    by_id = {path.stem: path for path in files(one.home)}
    by_id[cut].write_bytes(by_id[cut].read_bytes()[:300])
    by_id[gone].unlink()
    (one.home / "locks" / "syncing").write_text(commits, encoding="utf-8")
    (one.home / ".git" / "index.lock").touch()
    one.sync()
    other.sync()
    assert not (one.home / "locks" / "syncing").exists()
    for session_id in (cut, gone):
        assert {"Here", "Answer to Here", "There", "Answer to There"} <= set(one.said(session_id))
        assert one.said(session_id) == other.said(session_id)


def test_a_sync_that_was_killed_with_a_merge_that_is_not_ended(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = shared(one, other)
    other.turn("There", session_id)
    other.sync()
    one.indexer.delete(session_id)
    git(one.home, "commit", "-q", "-a", "-m", "Deleted")
    git(one.home, "fetch", "-q", "origin")
    commits = heads(one)
    git(one.home, "merge", "-q", "-m", sync._MERGED, "origin/main", may_fail=True)
    assert (one.home / ".git" / "MERGE_HEAD").exists()
    (one.home / "locks" / "syncing").write_text(commits, encoding="utf-8")
    one.sync()
    other.sync()
    assert_same(one, other)
    assert "There" in one.said(session_id)


def diverge(one: Machine, other: Machine, *session_ids: str) -> None:
    """Turns of both machines on these sessions; the other's are pushed."""
    for machine in (one, other):
        machine.sync()
    for session_id in session_ids:
        one.turn("Here", session_id)
        other.turn("There", session_id)
    other.sync()


KILLED = """#!/bin/sh
case " $* " in
*" merge "*) rm -f "$(find "$2/sessions" -name "$VICTIM.jsonl")"; : > "$2/.git/index.lock"; kill -9 $$ ;;
esac
exec "$REAL_GIT" "$@"
"""


@posix_only
def test_a_git_that_was_killed_takes_no_lines_with_it(
    two: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    session_id = one.turn("Hello")
    diverge(one, other, session_id)
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(KILLED, encoding="utf-8")
    wrapper.chmod(0o755)
    monkeypatch.setattr(sync, "KILLED_SECONDS", 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REAL_GIT", shutil.which("git") or "")
        patch.setenv("VICTIM", session_id)
        patch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
        with pytest.raises(GitFailed, match="killed by signal 9"):
            one.sync()
    assert {"Here", "Answer to Here"} <= set(one.said(session_id))
    one.sync()
    other.sync()
    assert_same(one, other)
    assert {"Here", "There"} <= set(one.said(session_id))


def test_what_was_cut_and_is_in_use_is_given_back_later(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    session_id = one.turn("Hello")
    diverge(one, other, session_id)
    monkeypatch.setattr(sync, "KILLED_SECONDS", 0.1)
    commit_by_hand(one)
    git(one.home, "fetch", "-q", "origin")
    commits = git(one.home, "rev-parse", "HEAD", "origin/main")
    (path,) = files(one.home)
    path.write_bytes(path.read_bytes()[:300])
    (one.home / "locks" / "syncing").write_text(commits, encoding="utf-8")
    for name in ("HEAD", "refs/heads/main"):
        (one.home / ".git" / f"{name}.lock").touch()
    with one.indexer.open(session_id, 0):
        assert Machine(one.home).sync() == NO_NEWS | {"skipped": [session_id]}
    one.sync()
    other.sync()
    assert one.said(session_id) == other.said(session_id)
    assert {"Here", "Answer to Here", "There"} <= set(one.said(session_id))


def test_a_merge_of_somebody_s_is_not_ended_for_them(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = one.turn("Hello")
    diverge(one, other, session_id)
    commit_by_hand(one)
    git(one.home, "fetch", "-q", "origin")
    git(one.home, "merge", "-q", "--no-commit", "origin/main")
    (one.home / "locks" / "syncing").write_text("", encoding="utf-8")
    with pytest.raises(GitFailed, match="MERGE_HEAD"):
        one.sync()
    assert (one.home / ".git" / "MERGE_HEAD").exists()


# -- What git makes of odd things --------------------------------------------------------------------------


def test_nul_bytes_stop_no_sync(two: tuple[Machine, Machine]) -> None:
    """git takes a file with one for binary, which it does not merge."""
    one, other = two
    session_id = shared(one, other)
    (path,) = files(one.home)
    path.write_bytes(path.read_bytes() + bytes(50) + b"\n")
    diverge(one, other, session_id)
    one.sync()
    other.sync()
    assert one.said(session_id) == other.said(session_id)
    assert {"Here", "There"} <= set(one.said(session_id))


def test_of_two_pictures_the_sound_one_is_kept(two: tuple[Machine, Machine]) -> None:
    one, other = two
    name = hashlib.sha256(b"picture").hexdigest()
    for machine, content in ((one, b"pic"), (other, b"picture")):
        (machine.home / "attachments").mkdir()
        (machine.home / "attachments" / name).write_bytes(content)
    other.sync()
    one.sync()
    assert (one.home / "attachments" / name).read_bytes() == b"picture"
    assert_clean(one)


@pytest.mark.parametrize("value", ["only", "false"])
def test_whatever_git_is_told_of_fast_forwards(two: tuple[Machine, Machine], value: str) -> None:
    one, other = two
    session_id = one.turn("Hello")
    for machine in (one, other):
        git(machine.home, "config", "merge.ff", value)
    diverge(one, other, session_id)
    one.sync()
    other.sync()
    assert one.sync() == other.sync() == NO_NEWS
    assert_same(one, other)


def test_settings_that_change_what_git_prints(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    for name, value in {"noprefix": "true", "external": "false", "colorMoved": "zebra"}.items():
        git(one.home, "config", f"diff.{name}", value)
    git(one.home, "config", "color.ui", "always")
    one.turn("Hello")
    assert one.sync() == NO_NEWS | {"committed": 1, "sent": 1, "pushed": True}


def test_sessions_that_git_ignores_are_not_left_out_in_silence(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    (one.home / ".git" / "info").mkdir(exist_ok=True)
    (one.home / ".git" / "info" / "exclude").write_text("*.jsonl\n", encoding="utf-8")
    one.turn("Hello")
    with pytest.raises(GitFailed, match=r"exclude:1:\*\.jsonl"):
        one.sync()


def test_a_new_remote_gets_everything(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, _ = two
    one.turn("Hello")
    one.sync()
    git(tmp_path, "init", "-q", "--bare", "new.git")
    git(one.home, "remote", "set-url", "origin", str(tmp_path / "new.git"))
    assert one.sync() == NO_NEWS | {"sent": 1, "pushed": True}


def test_a_remote_whose_branch_is_not_fetched_by_itself(two: tuple[Machine, Machine]) -> None:
    one, other = two
    git(one.home, "config", "--unset-all", "remote.origin.fetch")
    other.turn("Hello")
    other.sync()
    assert one.sync() == NO_NEWS | {"received": 1}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@example.org/x.git", "https://example.org/x.git"),
        ("https://me:sec@secret@example.org/x.git", "https://example.org/x.git"),
        ("https://secret@example.org/x.git", "https://example.org/x.git"),
        ("ssh://me:secret@example.org/x.git", "ssh://me@example.org/x.git"),
        ("git@example.org:me/x.git", "git@example.org:me/x.git"),
    ],
)
def test_a_password_is_not_shown(tmp_path: Path, url: str, shown: str) -> None:
    machine = Machine(tmp_path / "store")
    assert machine.set_up(url)["remote"] == shown
    with pytest.raises(GitFailed) as info:
        machine.set_up("https://example.org/y.git")
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("remote", ["-x", "--upload-pack=touch x"])
def test_a_remote_that_is_a_flag(tmp_path: Path, remote: str) -> None:
    with pytest.raises(UsageError, match="no URL"):
        Machine(tmp_path / "store").set_up(remote)


@posix_only
def test_nobody_else_may_read_what_a_merge_writes(two: tuple[Machine, Machine], tmp_path: Path, hub: Path) -> None:
    one, other = two
    session_id = one.turn("Hello")
    diverge(one, other, session_id)
    one.sync()
    assert [path.stat().st_mode & 0o777 for path in files(one.home)] == [0o600]
    git(tmp_path, "clone", "-q", "-b", "main", str(hub), "clone")
    Machine(tmp_path / "clone").set_up()
    assert (tmp_path / "clone").stat().st_mode & 0o777 == 0o700


def test_a_hook_may_refuse_a_merge(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = one.turn("Hello")
    diverge(one, other, session_id)
    hook = one.home / ".git" / "hooks" / "pre-merge-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'error: not today' >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    with pytest.raises(GitFailed, match="not today"):
        one.sync()
    assert_clean(one)
    hook.unlink()
    assert one.sync()["received"] == 1


# -- Anything ----------------------------------------------------------------------------------------------

machines = st.integers(0, 2)
picks = st.integers(0, 3)


class ThreeMachines(RuleBasedStateMachine):
    """Turns, forks, deletions and syncs on three machines, in any order."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        root = Path(self.folder.name)
        git(root, "init", "-q", "--bare", "hub.git")
        self.machines = [Machine(root / name) for name in ("one", "two", "three")]
        for machine in self.machines:
            machine.set_up(root / "hub.git")
        self.count = 0
        self.stays: dict[str, set[str]] = {}
        """What must be there at the end: of each session, what was said since it was last deleted anywhere."""

    def pick(self, machine: Machine, number: int) -> str | None:
        ids = machine.ids()
        return ids[number % len(ids)] if ids else None

    @rule(where=machines, number=picks, is_new=st.booleans())
    def turn(self, where: int, number: int, is_new: bool) -> None:
        self.count += 1
        session_id = None if is_new else self.pick(self.machines[where], number)
        text = f"Prompt {self.count}"
        session_id = self.machines[where].turn(text, session_id)
        self.stays.setdefault(session_id, set()).update([text, f"Answer to {text}"])

    @rule(where=machines, number=picks)
    def fork(self, where: int, number: int) -> None:
        machine = self.machines[where]
        if session_id := self.pick(machine, number):
            self.stays[machine.indexer.fork(session_id, None)] = set(machine.said(session_id))

    @rule(where=machines, number=picks)
    def delete(self, where: int, number: int) -> None:
        machine = self.machines[where]
        if session_id := self.pick(machine, number):
            machine.indexer.delete(session_id)
            self.stays.pop(session_id, None)

    @rule(where=machines)
    def sync(self, where: int) -> None:
        self.machines[where].sync()

    def teardown(self) -> None:
        if not hasattr(self, "machines"):
            return
        for machine in self.machines * 2:
            machine.sync()
        assert_same(*self.machines)
        for session_id, expected in self.stays.items():
            there = self.machines[0].said(session_id)
            assert len(there) == len(set(there)), "none doubled"
            assert expected <= set(there), "none lost"
        listed = [[json.loads(line)["session_id"] for line in machine.indexer.sessions()] for machine in self.machines]
        assert listed[0] == listed[1] == listed[2]
        self.folder.cleanup()


TestThreeMachines = ThreeMachines.TestCase
TestThreeMachines.settings = settings(
    max_examples=8, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- Repositories that hold more ------------------------------------------------------------------------------


def tracked(repository: Path, commit: str = "HEAD") -> set[str]:
    return {name.split("/")[0] for name in git(repository, "ls-tree", "-r", "--name-only", commit).splitlines()}


def test_a_store_at_the_top_of_a_project_commits_conversations_only(project: Path) -> None:
    machine = Machine(project)
    (project / "main.py").write_text("changed", encoding="utf-8")
    machine.turn("Hello")
    with pytest.raises(GitFailed, match="not under git"):
        machine.sync()
    machine.set_up()
    machine.turn("There")
    assert machine.sync()["committed"] == 1
    assert tracked(project) == {"main.py", "sessions", ".gitignore", ".gitattributes"}
    assert git(project, "show", "HEAD:main.py") == "print()\n"
    assert git(project, "diff", "--cached", "--name-only") == "staged.py\n"


@posix_only
def test_the_folder_of_a_project_stays_open(project: Path) -> None:
    project.chmod(0o755)
    Machine(project).set_up()
    assert project.stat().st_mode & 0o777 == 0o755


def test_a_project_does_not_meet_a_hub_of_conversations(project: Path, two: tuple[Machine, Machine], hub: Path) -> None:
    shared(*two)
    git(project, "branch", "-m", "main")
    machine = Machine(project / "conversations")
    machine.set_up(hub)
    with pytest.raises(GitFailed, match="unrelated histories"):
        machine.sync()
    assert tracked(project) == {"main.py", "conversations"}
    assert "main.py" not in tracked(hub, "main")


def test_a_project_goes_on_with_the_remote_that_it_has(project: Path, tmp_path: Path, hub: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "public.git")
    git(project, "remote", "add", "upstream", str(tmp_path / "public.git"))
    machine = Machine(project / "conversations")
    with pytest.raises(GitFailed, match="another remote") as info:
        machine.set_up(hub)
    assert "set-url upstream" in str(info.value.hint)
    assert machine.set_up()["remote"] == str(tmp_path / "public.git")


def test_which_of_two_remotes_is_meant(tmp_path: Path, hub: Path) -> None:
    machine = Machine(tmp_path / "store")
    machine.set_up()
    for name in ("one", "other"):
        git(machine.home, "remote", "add", name, str(hub))
    machine.turn("Hello")
    with pytest.raises(GitFailed, match="not clear: one, other") as info:
        machine.sync()
    git(machine.home, *str(info.value.hint).replace("NAME", "other").split()[1:])
    assert machine.sync()["pushed"]


def test_a_branch_that_follows_one_here(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    git(one.home, "checkout", "-q", "--track", "-b", "side", "main")
    one.turn("Hello")
    assert one.sync()["pushed"]


def test_no_branch_is_checked_out(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    git(one.home, "checkout", "-q", "--detach")
    session_id = one.turn("Hello")
    with pytest.raises(GitFailed, match="no branch"):
        one.sync()
    git(one.home, "switch", "-q", "main")
    assert one.said(session_id) == ["Hello", "Answer to Hello"]
    assert one.sync()["sent"] == 1


def test_the_remote_has_other_branches(tmp_path: Path, two: tuple[Machine, Machine], hub: Path) -> None:
    shared(*two)
    git(hub, "branch", "-m", "main", "master")
    third = Machine(tmp_path / "third")
    third.set_up(hub)
    third.turn("Hello")
    third.sync()
    assert "the remote has no branch main yet, but: master" in third.notes


@pytest.mark.parametrize("rule", ["sessions/keep/", "/attachments"])
def test_what_git_ignores_is_told(two: tuple[Machine, Machine], rule: str) -> None:
    one, _ = two
    one.turn("Hello")
    (one.home / "sessions" / "keep").mkdir()
    (one.home / ".git" / "info" / "exclude").write_text(f"{rule}\n", encoding="utf-8")
    assert one.sync()["sent"] == 1
    assert any(note.startswith(f"git ignores {rule.strip('/')}") for note in one.notes)


@posix_only
def test_what_a_hook_refuses_does_not_stay_staged(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    hook = one.home / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no secrets >&2\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    one.turn("Hello")
    with pytest.raises(GitFailed, match="no secrets") as info:
        one.sync()
    assert "git commit" in str(info.value.hint)
    assert git(one.home, "diff", "--cached", "--name-only") == ""


@pytest.mark.parametrize("options", ["--no-commit", "--squash", "--strategy=ours", "--no-ff --edit"])
def test_options_for_merges_by_hand_do_no_harm(two: tuple[Machine, Machine], options: str) -> None:
    one, other = two
    git(one.home, "config", "branch.main.mergeOptions", options)
    session_id = shared(one, other)
    for machine, text in ((one, "Here"), (other, "There")):
        machine.turn(text, session_id)
    for machine in (other, one, other):
        machine.sync()
    assert_same(one, other)
    assert {"Here", "There"} <= set(one.said(session_id))


def test_files_that_git_would_overwrite_are_named(two: tuple[Machine, Machine]) -> None:
    one, other = two
    (other.home / "README.md").write_text("There", encoding="utf-8")
    git(other.home, "add", "README.md")
    git(other.home, "commit", "-q", "-m", "There")
    other.sync()
    (one.home / "README.md").write_text("Here", encoding="utf-8")
    with pytest.raises(GitFailed, match=r"overwritten by merge: README\.md"):
        one.sync()


# -- Filters, and lines that git does not merge by itself -----------------------------------------------------


ENCRYPT = "import sys, base64; sys.stdout.buffer.write(b'\\0CRYPT' + base64.b64encode(sys.stdin.buffer.read()))"
DECRYPT = """
import sys, base64
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(base64.b64decode(data[6:]) if data[:6] == b'\\0CRYPT' else data)
"""


def encrypt(machine: Machine) -> None:
    """As git-crypt does it."""
    for name, code in (("clean", ENCRYPT), ("smudge", DECRYPT)):
        script = machine.home.parent / f"{machine.home.name}-{name}.py"
        script.write_text(code, encoding="utf-8")
        git(machine.home, "config", f"filter.crypt.{name}", f'"{sys.executable}" "{script}"')


def test_encrypted_conversations_are_merged(tmp_path: Path, hub: Path) -> None:
    one, other = machines = Machine(tmp_path / "one"), Machine(tmp_path / "other")
    for machine in machines:
        machine.home.mkdir()
        git(machine.home, "init", "-q", "-b", "main")
        encrypt(machine)
        (machine.home / ".gitattributes").write_text("*.jsonl filter=crypt -text\n", encoding="utf-8")
        machine.set_up(hub)
    session_id = shared(one, other)
    assert "text: unset" in git(one.home, "check-attr", "text", "sessions/x.jsonl")
    assert git(one.home, "show", "--no-textconv", f"HEAD:sessions/{files(one.home)[0].parent.name}/{session_id}.jsonl")[
        1:
    ].startswith("CRYPT")
    for machine, text in ((one, "Here"), (other, "There")):
        machine.turn(text, session_id)
    for machine in (other, one, other):
        machine.sync()
    assert_same(one, other)
    assert {"Here", "There"} <= set(one.said(session_id))


def with_nul(machine: Machine, session_id: str) -> None:
    """A line in the file that keeps git from merging it by itself."""
    (path,) = (path for path in files(machine.home) if path.stem == session_id)
    path.write_bytes(path.read_bytes() + b"\0\0\n")


def killed_in_a_conflict(one: Machine, other: Machine) -> str:
    """A session with a merge that is open, as a sync leaves it that was killed; the session."""
    session_id = one.turn("Hello")
    with_nul(one, session_id)
    one.sync()
    other.sync()
    other.turn("There", session_id)
    other.sync()
    one.turn("Here", session_id)
    commit_by_hand(one)
    git(one.home, "fetch", "-q", "origin")
    commits = heads(one)
    git(one.home, "merge", "-q", "-m", sync._MERGED, "origin/main", may_fail=True)
    assert "UU" in git(one.home, "status", "--porcelain")
    (one.home / "locks" / "syncing").write_text(commits, encoding="utf-8")
    return session_id


def test_a_turn_after_a_sync_was_killed_in_a_conflict(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = killed_in_a_conflict(one, other)
    one.turn("Later", session_id)
    assert one.sync()["received"] == 1
    other.sync()
    assert {"Here", "There", "Later"} <= set(one.said(session_id))
    assert one.said(session_id) == other.said(session_id)
    assert not (one.home / ".git" / "MERGE_HEAD").exists()


def test_an_open_merge_of_a_session_in_use_waits(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = killed_in_a_conflict(one, other)
    with Indexer(Layout(str(one.home)), one.notes.append).open(session_id, 0):
        assert one.sync()["skipped"] == [session_id]
    one.sync()
    assert {"Here", "There"} <= set(one.said(session_id))


@posix_only
@pytest.mark.parametrize("later", [False, True])
def test_a_sync_that_was_killed_before_the_commit_of_a_merge(two: tuple[Machine, Machine], later: bool) -> None:
    one, other = two
    session_id = shared(one, other)
    for machine, text in ((other, "There"), (one, "Here")):
        machine.turn(text, session_id)
        commit_by_hand(machine)
    other.sync()
    git(one.home, "fetch", "-q", "origin")
    commits = heads(one)
    git(one.home, "merge", "-q", "-m", sync._MERGED, "--no-commit", "origin/main")
    (one.home / "locks" / "syncing").write_text(commits, encoding="utf-8")
    if later:
        one.turn("Later", session_id)
    assert one.sync()["received"] == 1
    other.sync()
    assert_same(one, other)
    assert {"Here", "There", *(["Later"] if later else [])} <= set(one.said(session_id))


def leave_empty_merge(machine: Machine) -> None:
    """As git does where another one holds the index for a moment: open, and with nothing of theirs."""
    folder = machine.home / ".git"
    (folder / "MERGE_HEAD").write_text(git(machine.home, "rev-parse", "origin/main"), encoding="utf-8")
    (folder / "MERGE_MSG").write_text(f"{sync._MERGED}\n\n# Conflicts:\n", encoding="utf-8")


@pytest.mark.parametrize("staged", [[], ["--all"], ["--intent-to-add", "--all"]])
@pytest.mark.parametrize("later", [False, True])
def test_a_sync_that_was_killed_when_git_had_merged_nothing(
    two: tuple[Machine, Machine], later: bool, staged: list[str]
) -> None:
    one, other = two
    session_id = shared(one, other)
    diverge(one, other, session_id)
    commit_by_hand(one)
    git(one.home, "fetch", "-q", "origin")
    leave_empty_merge(one)
    (one.home / "locks" / "syncing").write_text(heads(one), encoding="utf-8")
    if later:
        one.turn("Later", session_id)
        one.turn("New")
    if staged:
        git(one.home, "add", *staged)
    assert one.sync()["received"] == 1
    other.sync()
    assert_same(one, other)
    assert {"Here", "There", *(["Later"] if later else [])} <= set(one.said(session_id))


def test_a_merge_in_which_another_git_holds_the_index(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    session_id = shared(one, other)
    diverge(one, other, session_id)
    real = Git.attempt

    def attempt(self: Git, *arguments: str, text: str = "") -> subprocess.CompletedProcess[bytes]:
        if "merge" in arguments and "--quit" not in arguments:
            leave_empty_merge(one)
            return subprocess.CompletedProcess(arguments, 1, b"", b"error: Unable to write index.")
        return real(self, *arguments, text=text)

    monkeypatch.setattr(Git, "attempt", attempt)
    with pytest.raises(GitFailed, match="Unable to write index"):
        one.sync()
    monkeypatch.undo()
    assert not (one.home / ".git" / "MERGE_HEAD").exists()
    one.sync()
    other.sync()
    assert_same(one, other)
    assert {"Here", "There"} <= set(one.said(session_id))


def meanwhile(monkeypatch: pytest.MonkeyPatch, command: str, happens: Callable[[], object]) -> None:
    """Something happens whenever we are about to run this command of git's."""
    real = Git.attempt

    def attempt(self: Git, *arguments: str, text: str = "") -> subprocess.CompletedProcess[bytes]:
        if command in arguments:
            happens()
        return real(self, *arguments, text=text)

    monkeypatch.setattr(Git, "attempt", attempt)


def test_a_merge_by_hand_after_a_sync_was_killed_is_theirs(two: tuple[Machine, Machine]) -> None:
    """Of the same commit, before git had done anything for us."""
    one, other = two
    session_id = shared(one, other)
    diverge(one, other, session_id)
    commit_by_hand(one)
    git(one.home, "fetch", "-q", "origin")
    (one.home / "locks" / "syncing").write_text(heads(one), encoding="utf-8")
    git(one.home, "merge", "-q", "--no-commit", "origin/main")
    with pytest.raises(GitFailed, match="MERGE_HEAD"):
        one.sync()
    git(one.home, "commit", "-q", "-m", "By hand")
    one.sync()
    assert "By hand" in git(one.home, "log", "-3", "--format=%s")
    assert {"Here", "There"} <= set(one.said(session_id))


def test_a_merge_that_somebody_began_while_we_add_is_not_committed(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    session_id = shared(one, other)
    diverge(one, other, session_id)
    commit_by_hand(one)
    one.turn("New")
    git(one.home, "fetch", "-q", "origin")
    meanwhile(monkeypatch, "add", lambda: git(one.home, "merge", "-q", "--no-commit", "origin/main"))
    with pytest.raises(GitFailed, match="MERGE_HEAD"):
        one.sync()
    monkeypatch.undo()
    assert (one.home / ".git" / "MERGE_HEAD").exists()
    git(one.home, "commit", "-q", "-m", "By hand")
    one.sync()
    assert {"Here", "There"} <= set(one.said(session_id))


def test_a_conflict_that_was_added_by_hand_after_a_sync_was_killed(two: tuple[Machine, Machine]) -> None:
    one, other = two
    session_id = killed_in_a_conflict(one, other)
    (path,) = (path for path in files(one.home) if path.stem == session_id)
    path.write_bytes(git(one.home, "show", f"HEAD:{path.relative_to(one.home).as_posix()}").encode() + b"\n")
    git(one.home, "add", "--all")
    one.sync()
    other.sync()
    assert_same(one, other)
    assert {"Here", "There"} <= set(one.said(session_id))


@posix_only
@pytest.mark.parametrize("conflict", [False, True])
def test_a_merge_that_somebody_began_meanwhile_is_theirs(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch, conflict: bool
) -> None:
    one, other = two
    session_id = shared(one, other)
    diverge(one, other, session_id)
    if conflict:
        (one.home / ".gitattributes").write_text("", encoding="utf-8")
    by_hand = ("merge", "-q", "--no-commit", "origin/main")
    meanwhile(monkeypatch, "merge", lambda: git(one.home, *by_hand, may_fail=True))
    with pytest.raises(GitFailed, match="unmerged files" if conflict else "not concluded your merge"):
        one.sync()
    monkeypatch.undo()
    assert (one.home / ".git" / "MERGE_HEAD").exists()
    assert "There" in "".join(path.read_text(encoding="utf-8") for path in files(one.home))
    git(one.home, "add", "-A")
    git(one.home, "commit", "-q", "--no-edit")
    assert not (one.home / "locks" / "syncing").exists()


def test_the_locks_of_gits_that_are_at_work_stay(two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, so that there is always one; and one that was left behind goes."""
    one, _ = two
    one.turn("Hello")
    one.sync()
    monkeypatch.setattr(sync, "KILLED_SECONDS", 0.5)
    (one.home / "locks" / "syncing").touch()
    left, lock = one.home / ".git" / "HEAD.lock", one.home / ".git" / "index.lock"
    left.touch()
    over, vanished = threading.Event(), []

    def work() -> None:
        lock.touch()
        while not over.wait(0.02):
            if not lock.exists():
                vanished.append(lock)
            lock.with_name("index.new").touch()
            lock.with_name("index.new").replace(lock)
        lock.unlink()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sync._Repository(Git(str(one.home)), one.indexer, one.notes.append).recover()
    finally:
        over.set()
        thread.join()
    assert not left.exists()
    assert vanished == []


@posix_only
def test_a_side_that_git_cannot_show_is_not_taken_for_empty(
    two: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    session_id = killed_in_a_conflict(one, other)
    real = Git.content

    def content(self: Git, *arguments: str) -> bytes:
        if arguments[-1].startswith(":2:"):
            raise GitFailed("git cat-file: out of memory")
        return real(self, *arguments)

    monkeypatch.setattr(Git, "content", content)
    with pytest.raises(GitFailed, match="out of memory"):
        one.sync()
    monkeypatch.undo()
    one.sync()
    assert {"Here", "There"} <= set(one.said(session_id))


# -- What may refuse a merge ----------------------------------------------------------------------------------


def refuse_merges(machine: Machine, script: str = "") -> None:
    """A hook that lets no merge be committed."""
    for name in ("pre-merge-commit", "pre-commit"):
        hook = machine.home / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n[ ! -f .git/MERGE_HEAD ] || {{ {script} exit 1; }}\n", encoding="utf-8")
        hook.chmod(0o755)


@posix_only
@pytest.mark.parametrize("killed", [False, True])
def test_a_merge_that_is_refused_takes_no_turn_along(two: tuple[Machine, Machine], killed: bool) -> None:
    """In a conflict, with turns on other sessions, and new ones, while it is made."""
    one, other = two
    bystander = shared(one, other)
    session_id = killed_in_a_conflict(one, other)
    if not killed:
        git(one.home, "merge", "--abort")
        (one.home / "locks" / "syncing").unlink()
    (path,) = (path for path in files(one.home) if path.stem == bystander)
    refuse_merges(one, f"echo '# Meanwhile' >> {path};")
    new = one.turn("New")
    if killed:
        one.turn("Later", session_id)
    with pytest.raises(GitFailed):
        one.sync()
    assert not (one.home / ".git" / "MERGE_HEAD").exists()
    assert one.said(new) == ["New", "Answer to New"]
    assert {"Here", *(["Later"] if killed else [])} <= set(one.said(session_id))
    assert "Meanwhile" in path.read_text(encoding="utf-8")
    for name in ("pre-merge-commit", "pre-commit"):
        (one.home / ".git" / "hooks" / name).unlink()
    one.sync()
    other.sync()
    assert {"Here", "There"} <= set(one.said(session_id))
    assert one.said(session_id) == other.said(session_id)


def test_pictures_that_git_ignores_hold_up_nothing(two: tuple[Machine, Machine]) -> None:
    one, _ = two
    (one.home / ".git" / "info" / "exclude").write_text("attachments/\n", encoding="utf-8")
    picture = b"\x89PNG\r\n\x1a\n"
    sha256 = hashlib.sha256(picture).hexdigest()
    one.turn("Look", images={sha256: picture})
    assert (one.home / "attachments" / sha256).exists()
    assert one.sync()["sent"] == 1


@posix_only
@pytest.mark.parametrize("how", ["link", "repository"])
def test_sessions_that_git_does_not_look_into(two: tuple[Machine, Machine], tmp_path: Path, how: str) -> None:
    one, _ = two
    one.turn("Hello")
    if how == "link":
        shutil.move(one.home / "sessions", tmp_path / "elsewhere")
        (one.home / "sessions").symlink_to(tmp_path / "elsewhere")
    else:
        git(next(iter(files(one.home))).parent, "init", "-q")
    with pytest.raises(GitFailed, match="does not look into"):
        one.sync()


def test_a_branch_that_follows_a_url(two: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, _ = two
    git(tmp_path, "init", "-q", "--bare", "private.git")
    git(one.home, "config", "branch.main.remote", str(tmp_path / "private.git"))
    one.turn("Hello")
    with pytest.raises(GitFailed, match="follows no remote"):
        one.sync()


def test_conversations_do_not_go_into_a_project_that_was_named_by_mistake(tmp_path: Path, project: Path) -> None:
    git(project, "branch", "-m", "main")
    git(tmp_path, "clone", "-q", "--bare", str(project), "code.git")
    machine = Machine(tmp_path / "store")
    machine.turn("Hello")
    machine.set_up(tmp_path / "code.git")
    with pytest.raises(GitFailed, match="unrelated histories"):
        machine.sync()
    assert not (machine.home / "main.py").exists()
    assert tracked(tmp_path / "code.git", "main") == {"main.py"}
