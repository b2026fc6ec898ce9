"""--continue, --fork, --undo and --retry, as a user or a script uses them: the real command against the stand-in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result, tree
from stores import fail, header, line, make, new_id, records, replace, said, succeed, the_file
from test_faults import Repository, prelude
from test_parallel import end, wait_until_queued

from ollama_prompt import flags
from ollama_prompt.errors import UsageError

if TYPE_CHECKING:
    from conftest import Run, Start
    from standin import StandIn

Json = dict[str, Any]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

ONE, TWO, THREE = new_id(1), new_id(2), new_id(3)
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def ask(run: Run, *args: str, prompt: str = "Hi", **more: Any) -> Json:
    """The turn that was printed."""
    return succeed(run("-p", prompt, *args, **more)).json


def on(session_id: str, prompt: str = "Hi") -> tuple[str, ...]:
    """The arguments of a turn on a session."""
    return ("--session-id", session_id, "-p", prompt)


def context(standin: StandIn) -> list[str]:
    """What the model was sent last, system prompt and all."""
    return [message["content"] for message in standin.chats()[-1]["messages"]]


def info(run: Run, session_id: str) -> Json:
    return succeed(run("--session-info", session_id)).json


def taken_back(run: Run, session_id: str) -> list[str]:
    return [message["content"] for message in info(run, session_id)["messages"] if message.get("undone")]


def fork(run: Run, session_id: str, *args: str) -> str:
    """The id of a new fork."""
    made = succeed(run("--fork", session_id, *args)).json
    assert list(made) == ["session_id", "forked_from"]
    assert made["forked_from"] == session_id.lower()
    forked: str = made["session_id"]
    return forked


def path_of(home: Path, session_id: str) -> Path:
    (path,) = home.glob(f"sessions/**/{session_id}.jsonl")
    return path


def use(path: Path, number: int) -> None:
    """A turn comes into the file by git, which the index knows nothing of."""
    replace(path, path.read_bytes() + b"".join(map(line, stores.turn(number))))


# -- which flags go together -------------------------------------------------------------------------------

CONTRADICTIONS = [
    ("-p", "x", "-c", "--session-id", ONE),
    ("-p", "x", "--continue", "--no-session"),
    ("-c", "--list-sessions"),
    ("-c", "--retry", ONE),
    ("-p", "x", "--retry", ONE),
    ("--prompt-file", "f", "--retry", ONE),
    ("--stdin", "--retry", ONE),
    ("--session-id", ONE, "--retry", ONE),
    ("--no-session", "--retry", ONE),
    ("--image", "f", "--retry", ONE),
    ("-p", "x", "--undo", ONE),
    ("--title", "x", "--fork", ONE),
    ("--undo", ONE, "--retry", ONE),
    ("--fork", ONE, "--undo", ONE),
    ("--at", TWO, "--undo", ONE),
    ("--at", TWO, "--retry", ONE),
    ("-p", "x", "--at", TWO),
    ("--fork", ONE, "--at", ""),
    ("--fork", "last"),
    ("--undo", "x"),
    ("--retry", "x"),
]


@pytest.mark.parametrize("arguments", CONTRADICTIONS, ids=" ".join)
def test_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        flags.parse(arguments)


@pytest.mark.parametrize("flag", ["--fork", "--undo", "--retry"])
@pytest.mark.parametrize("value", [[], [""]])
def test_an_empty_variable_is_guessed(run: Run, ollama: StandIn, home: Path, flag: str, value: list[str]) -> None:
    assert "variable empty" in fail(run(flag, *value), "usage", 2)["hint"]
    assert not home.exists()


@pytest.mark.parametrize("flag", ["--fork", "--undo", "--retry"])
def test_an_unknown_session_leaves_no_trace(run: Run, ollama: StandIn, home: Path, flag: str) -> None:
    assert fail(run(flag, ONE), "session_not_found")["session_id"] == ONE
    assert not home.exists()
    make(home, 2)
    before = tree(home)
    fail(run(flag, ONE), "session_not_found")
    assert {**tree(home), **before} == tree(home)
    assert not [name for name in tree(home) if ONE in name]
    assert ollama.requests() == []


@pytest.mark.parametrize("flag", ["--fork", "--undo", "--retry", "--continue"])
def test_a_newer_format_is_left_alone(run: Run, ollama: StandIn, home: Path, flag: str) -> None:
    path = make(home, data=stores.lines(ONE).replace(b'"version":1', b'"version":2'))
    before = path.read_bytes()
    arguments = ("-p", "Hi", flag) if flag == "--continue" else (flag, ONE)
    error = fail(run(*arguments), "store_unreadable")
    assert "upgrade" in error["hint"]
    assert error["session_id"] == ONE
    assert the_file(home) == path
    assert path.read_bytes() == before
    assert ollama.chats() == []


# -- continue ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-c", "--continue"])
def test_the_session_used_last_is_continued(run: Run, ollama: StandIn, home: Path, flag: str) -> None:
    first = ask(run, prompt="First")["session_id"]
    ask(run, prompt="Second")
    assert ask(run, flag)["window"]["messages_sent"] == 3
    assert context(ollama)[0] == "Second"
    ask(run, "--session-id", first)
    assert ask(run, flag)["session_id"] == first
    assert len(context(ollama)) == 5
    assert len(stores.files(home)) == 2


def test_neither_the_newest_id_nor_the_newest_file_is_meant(run: Run, home: Path) -> None:
    used, *others = [make(home, number) for number in (1, 2, 3)]
    use(used, 50)
    for path in others:
        os.utime(path, (2_000_000_000, 2_000_000_000))
    os.utime(used, (1_000_000_000, 1_000_000_000))
    assert ask(run, "-c")["session_id"] == ONE


def test_a_tie_is_decided_by_the_ids_of_the_records(run: Run, home: Path, tmp_path: Path) -> None:
    """The clock stands still, in each of these processes."""
    env = prelude(tmp_path, f"import time\ntime.time_ns = lambda: {1_795_000_000 * 10**9 + 5_500_000}")
    for _ in range(3):
        ask(run, env=env)
    newest = max(stores.files(home), key=lambda path: max(record.get("id", "") for record in records(path)))
    assert len({record["created_at"] for path in stores.files(home) for record in records(path)}) == 1
    assert ask(run, "-c", env=env)["session_id"] == newest.stem
    before = [session["session_id"] for session in stores.assert_agreement(run)]
    assert ask(run, "-c", env=env)["session_id"] == before[0]


def ruin(home: Path, way: str) -> None:
    """Make the index something else."""
    index = home / "sessions.db"
    index.unlink()
    if way == "a folder":
        index.mkdir()
    elif way != "missing":
        index.write_bytes({"corrupt": b"SQLite format 3\0" + b"\xff" * 5000, "foreign": b"my notes"}[way])


@pytest.mark.parametrize("way", ["missing", "corrupt", "foreign", "a folder"])
def test_whatever_the_index_is(run: Run, home: Path, way: str) -> None:
    path = make(home, 1)
    use(make(home, 2), 50)
    assert ask(run, "-c")["session_id"] == TWO
    use(path, 90_000_000)
    ruin(home, way)
    for _ in range(2):
        assert ask(run, "-c")["session_id"] == ONE


def test_what_came_by_a_changed_file_counts(run: Run, ollama: StandIn, home: Path) -> None:
    paths = [make(home, number) for number in (1, 2, 3)]
    succeed(run("--list-sessions"))
    for number, path in enumerate([*paths, paths[0]], 50):
        use(path, number)
        assert succeed(run("-p", "Hi", "-c")).json["session_id"] == path.stem
        replace(path, b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))  # as it was, by another file
    assert context(ollama)[-3:-1] == ["Question 53", "Answer 53"]


@pytest.mark.parametrize("arguments", [(), ("--list-sessions",)])
def test_there_is_no_session(run: Run, ollama: StandIn, home: Path, arguments: tuple[str, ...]) -> None:
    if arguments:
        make(home, 1)
        succeed(run("--delete", ONE))
    before = tree(home)
    error = fail(run("-c", "-p", "Hi"), "session_not_found")
    assert error["hint"]
    assert "session_id" not in error
    assert tree(home) == before
    assert ollama.requests() == []


def test_its_settings_go_on_and_flags_change_them(run: Run, ollama: StandIn) -> None:
    ask(run, "--model", "viewer", "--system", "Be brief.", "--option", "seed=1")
    env = {"OLLAMA_PROMPT_MODEL": "thinker", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS": "3"}
    assert ask(run, "-c", env=env)["model"] == "viewer"
    assert context(ollama)[0] == "Be brief."
    ask(run, "-c", "--model", "smollm2", "--temperature", "0.5", "--system", "", "--title", "Mine")
    turn = ask(run, "-c")
    assert turn["model"] == "smollm2"
    assert ollama.chats()[-1]["options"] == {"seed": 1, "temperature": 0.5, "num_ctx": 8192}
    assert ollama.chats()[-1]["messages"][0]["role"] == "user"
    assert stores.assert_agreement(run)[0]["title"] == "Mine"


def test_a_prompt_from_stdin_continues(run: Run, ollama: StandIn) -> None:
    ask(run, prompt="One")
    succeed(run("-c", input="Two\n"))
    assert context(ollama)[::2] == ["One", "Two"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_turn_that_is_running_is_waited_for(
    run: Run, start: Start, ollama: StandIn, home: Path, is_new: bool
) -> None:
    """Its prompt is the newest record, also of a session that has nothing else yet."""
    ask(run, prompt="Older")
    make(home, 1)
    ollama.hold()
    running = start("-p", "Running", *(() if is_new else ("--session-id", ONE)))
    ollama.wait(held=1)
    error = fail(run("-c", "-p", "Hi", "--lock-timeout", "0"), "session_busy", 75)
    waiting = start("-c", "-p", "Next")
    wait_until_queued(waiting)
    ollama.release()
    turn = succeed(end(running)).json
    assert error["session_id"] == turn["session_id"]
    assert succeed(end(waiting)).json["session_id"] == turn["session_id"]
    assert context(ollama)[-3:] == ["Running", turn["response"], "Next"]


def test_a_fork_and_an_undo_are_uses(run: Run, home: Path) -> None:
    first = ask(run)["session_id"]
    second = ask(run)["session_id"]
    made = fork(run, first)
    assert ask(run, "-c")["session_id"] == made
    succeed(run("--undo", second))
    assert ask(run, "-c")["session_id"] == second
    succeed(run("--retry", first))
    assert ask(run, "-c")["session_id"] == first
    succeed(run("--delete", first))
    assert ask(run, "-c")["session_id"] == second


def test_an_unanswered_prompt_is_a_use_and_a_refused_one_is_none(run: Run, ollama: StandIn) -> None:
    first, second = ask(run)["session_id"], ask(run)["session_id"]
    ollama.fail("status", status=400, body={"error": "no"})
    fail(run(*on(first)), "ollama_error")
    assert ask(run, "-c")["session_id"] == second
    ollama.fail("empty")
    fail(run(*on(first)), "incomplete_answer")
    assert ask(run, "-c")["session_id"] == first


# -- fork --------------------------------------------------------------------------------------------------


def test_a_fork_goes_its_own_way(run: Run, ollama: StandIn, home: Path) -> None:
    source = ask(run, "--title", "Mine", "--temperature", "0.5", prompt="One")["session_id"]
    ask(run, "--session-id", source, "--system", "Be brief.", prompt="Two")
    before = path_of(home, source).read_bytes()
    made = fork(run, source.upper())
    newest, older = stores.assert_agreement(run)
    assert (newest["session_id"], newest["created_at"]) == (made, newest["last_used"])
    for key in ("title", "model_name", "message_count", "context_tokens"):
        assert newest[key] == older[key]
    assert info(run, made)["forked_from"] == source
    for session_id in (source, made):
        ask(run, "--session-id", session_id, prompt="Next")
    there, here = (chat for chat in ollama.chats()[-2:])
    assert there == here
    assert path_of(home, source).read_bytes().startswith(before)
    assert said(path_of(home, source)) == said(path_of(home, made))
    succeed(run("--undo", made))
    assert stores.assert_agreement(run)[1]["message_count"] == 6
    succeed(run("--delete", source))
    ask(run, "--session-id", made, prompt="Last")
    assert context(ollama)[:2] == ["Be brief.", "One"]
    assert context(ollama)[-2:] == ["Answer to: Two (messages: 4)", "Last"]


def test_the_outputs_of_a_fork(run: Run, home: Path) -> None:
    make(home, 1)
    made = succeed(run("--fork", ONE, "--output", "text")).stdout
    assert path_of(home, made.strip()).exists()
    assert made.endswith("\n")
    (event,) = succeed(run("--fork", ONE, "--output", "ndjson")).events
    assert path_of(home, event["session_id"]).exists()


def test_a_fork_begins_where_it_is_told(run: Run, ollama: StandIn, home: Path) -> None:
    source = ask(run, prompt="One")["session_id"]
    for prompt in ("Two", "Three"):
        ask(run, "--session-id", source, prompt=prompt)
    ids = [message["id"] for message in info(run, source)["messages"]]
    for _ in range(3):
        succeed(run("--undo", source))
    sent = []
    for id_ in ids:
        ask(run, "--session-id", fork(run, source, "--at", id_), prompt="Next")
        sent.append(context(ollama)[::2])
    assert sent == [
        ["Next"], ["One", "Next"], ["One", "Next"], ["One", "Two", "Next"], ["One", "Two", "Next"],
        ["One", "Two", "Three", "Next"],
    ]  # fmt: skip
    assert taken_back(run, source)[::2] == ["One", "Two", "Three"]


def test_a_prompt_that_a_fork_ends_with_can_be_asked_again(run: Run, ollama: StandIn, home: Path) -> None:
    make(home, 1)
    made = fork(run, ONE, "--at", new_id(2))
    assert succeed(run("--retry", made)).json["session_id"] == made
    assert context(ollama) == ["Question 0", "Answer 0", "Question 1"]


@pytest.mark.parametrize("at", ["nothing", new_id(77), TWO + "0", "\udcff"])
def test_a_fork_at_no_message_makes_nothing(run: Run, home: Path, at: str) -> None:
    make(home, 4)
    before = tree(home)
    error = fail(run("--fork", new_id(4), "--at", at), "usage", 2)
    assert "--session-info" in error["hint"]
    now = tree(home)
    assert {name: now[name] for name in before} == before
    assert not [name for name in now if name.endswith((".lock", ".tmp"))]


def test_a_session_in_use_is_forked_as_it_is(run: Run, start: Start, ollama: StandIn, home: Path) -> None:
    make(home, 1)
    ollama.hold()
    running = start(*on(ONE, "Running"))
    ollama.wait(held=1)
    made = succeed(run("--fork", ONE)).json["session_id"]
    ollama.release()
    end(running)
    assert said(path_of(home, made))[-1] == ("user", "Running")
    assert len(said(path_of(home, ONE))) == 6
    assert ask(run, "--session-id", made)["window"]["messages_sent"] == 5
    assert stores.assert_agreement(run)[0]["message_count"] == 7


def test_a_fork_of_what_was_torn(run: Run, ollama: StandIn, home: Path) -> None:
    path = make(home, data=stores.lines(ONE) + line(stores.turn(9)[0])[:-9])
    made = fork(run, ONE)
    assert path.read_bytes() == stores.lines(ONE) + line(stores.turn(9)[0])[:-9]
    assert said(path_of(home, made)) == said_of(stores.lines(ONE))
    assert ask(run, "--session-id", made)["window"]["messages_sent"] == 5
    assert succeed(run("--check")).json["damage"] == []


def said_of(data: bytes) -> list[tuple[str, str]]:
    stored = map(json.loads, data.splitlines())
    return [(record["role"], record["content"]) for record in stored if record["type"] == "message"]


def test_a_fresh_fork_of_an_old_session_is_not_purged(run: Run, home: Path, tmp_path: Path) -> None:
    old = ask(run, env=prelude(tmp_path, "import time\ntime.time_ns = lambda: 1_700_000_000 * 10**9"))["session_id"]
    made = fork(run, old)
    assert succeed(run("--purge", "30")).json["sessions"] == [old]
    assert the_file(home).stem == made


def test_a_fork_goes_on_with_the_window_of_its_origin(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer_tokens=100)
    source = ask(run, "--max-context-tokens", "600", "--max-tokens", "100")["session_id"]
    while not (turn := ask(run, "--session-id", source))["window"]["messages_left_out"]:
        pass
    made = fork(run, source)
    results = [succeed(run(*on(id_))) for id_ in (source, made)]
    assert [result.stderr for result in results] == ["", ""], "the window did not move"
    there, here = ollama.chats()[-2:]
    assert there == here
    assert results[0].json["window"] == results[1].json["window"]
    assert results[0].json["window"]["messages_left_out"] == turn["window"]["messages_left_out"]


def test_a_fork_keeps_the_pictures(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    source = ask(run, "--model", "viewer", "--image", "a.png")["session_id"]
    made = fork(run, source)
    succeed(run("--delete", source))
    ask(run, "--session-id", made)
    assert ollama.chats()[0]["messages"][0] == ollama.chats()[1]["messages"][0]
    assert "images" in ollama.chats()[1]["messages"][0]
    succeed(run("--delete", made))
    assert not list(home.glob("attachments/*"))


# -- undo --------------------------------------------------------------------------------------------------


def test_undoing_walks_back(run: Run, ollama: StandIn, home: Path) -> None:
    source = ask(run, prompt="One")["session_id"]
    for prompt in ("Two", "Three"):
        ask(run, "--session-id", source, prompt=prompt)
    ids = [record["id"] for record in records(the_file(home))[1:]]
    for number, last in ((3, 4), (2, 2)):
        before = the_file(home).read_bytes()
        undone = succeed(run("--undo", source.upper())).json
        assert undone == {"session_id": source, "undone": ids[2 * number - 2 : 2 * number]}
        assert the_file(home).read_bytes().startswith(before)
        record = records(the_file(home))[-1]
        assert (record["type"], record["ids"]) == ("undo", undone["undone"])
        assert the_file(home).read_bytes().count(b"\n") == before.count(b"\n") + 1
        (listed,) = stores.assert_agreement(run)
        assert listed["message_count"] == last
    assert taken_back(run, source)[::2] == ["Two", "Three"]
    ask(run, "--session-id", source, prompt="Next")
    assert context(ollama) == ["One", "Answer to: One (messages: 1)", "Next"]
    assert "(taken back)" in run("--session-info", source, "--output", "text").stdout


@pytest.mark.parametrize("flag", ["--undo", "--retry"])
def test_there_is_nothing_to_undo(run: Run, ollama: StandIn, home: Path, flag: str) -> None:
    path = make(home, 1)
    for number in (2, 2):
        assert succeed(run("--undo", ONE, "--output", "text")).stdout == f"messages taken back: {number}\n"
    before = path.read_bytes()
    assert fail(run(flag, ONE), "nothing_to_undo")["session_id"] == ONE
    assert run(flag, ONE, "--output", "text").stderr.startswith("error: ")
    assert path.read_bytes() == before
    assert ollama.chats() == []
    (listed,) = stores.assert_agreement(run)
    assert (listed["message_count"], listed["context_tokens"], listed["title"]) == (0, 0, None)


def test_after_all_was_undone_the_session_goes_on(run: Run, ollama: StandIn, home: Path) -> None:
    path = make(home, data=stores.lines(ONE, 1))
    succeed(run("--undo", ONE))
    turn = ask(run, "--session-id", ONE, prompt="Afresh")
    assert turn["window"]["messages_sent"] == 1
    assert stores.assert_agreement(run)[0]["title"] == "Afresh"
    assert succeed(run("--undo", ONE)).json["undone"] == [record["id"] for record in records(path)[-3:-1]]


@pytest.mark.parametrize("flag", ["--undo", "--retry"])
def test_a_session_in_use_is_waited_for(run: Run, start: Start, ollama: StandIn, home: Path, flag: str) -> None:
    path = make(home, 1)
    ollama.hold()
    running = start(*on(ONE, "Running"))
    ollama.wait(held=1)
    before = path.read_bytes()
    assert fail(run(flag, ONE, "--lock-timeout", "0"), "session_busy", 75)["session_id"] == ONE
    fail(run(flag, ONE, "--lock-timeout", "0.2"), "session_busy", 75)
    assert path.read_bytes() == before
    waiting = start(flag, ONE)
    wait_until_queued(waiting)
    ollama.release()
    succeed(end(running))
    succeed(end(waiting))
    assert taken_back(run, ONE) == ["Running", "Answer to: Running (messages: 5)"]


@posix_only
def test_an_undo_of_what_was_interrupted(start: Start, run: Run, ollama: StandIn, home: Path) -> None:
    make(home, 1)
    ollama.fail("hang_middle", chunks=3)
    process = start(*on(ONE, "Slow"), "--output", "text")
    assert process.stdout is not None
    assert process.stdout.read(len("Answer to:")) == b"Answer to:"
    process.send_signal(signal.SIGINT)
    assert end(process).returncode == 130
    assert len(succeed(run("--undo", ONE)).json["undone"]) == 2
    assert ask(run, "--session-id", ONE)["window"]["messages_sent"] == 5


# -- retry -------------------------------------------------------------------------------------------------


def test_the_last_prompt_is_asked_again(run: Run, ollama: StandIn, home: Path) -> None:
    path = make(home, 1)
    before = path.read_bytes()
    turn = succeed(run("--retry", ONE.upper())).json
    assert (turn["session_id"], turn["response"], turn["done"]) == (ONE, "Answer to: Question 1 (messages: 3)", True)
    assert turn["window"]["messages_sent"] == 3
    assert context(ollama) == ["Question 0", "Answer 0", "Question 1"]
    assert path.read_bytes().startswith(before)
    prompt, undo, answer = records(path)[-3:]
    assert list(prompt) == ["type", "id", "role", "content", "created_at"]
    assert undo["ids"] == [new_id(2), new_id(3)]
    assert answer["content"] == turn["response"]
    assert taken_back(run, ONE) == ["Question 1", "Answer 1"]
    assert stores.assert_agreement(run)[0]["message_count"] == 4
    succeed(run("--retry", ONE))
    assert context(ollama) == ["Question 0", "Answer 0", "Question 1"]
    ask(run, "--session-id", ONE, prompt="Next")
    assert context(ollama)[2:] == ["Question 1", "Answer to: Question 1 (messages: 3)", "Next"]
    assert stores.assert_agreement(run)[0]["message_count"] == 6


def test_prompt_and_undo_are_there_before_the_answer(start: Start, run: Run, ollama: StandIn, home: Path) -> None:
    path = make(home, 1)
    ollama.hold()
    process = start("--retry", ONE)
    ollama.wait(held=1)
    assert [record["type"] for record in records(path)[5:]] == ["message", "undo"]
    process.kill()
    ollama.release()
    assert taken_back(run, ONE) == ["Question 1", "Answer 1"]
    assert succeed(run("--retry", ONE)).json["window"]["messages_sent"] == 3
    assert stores.assert_agreement(run)[0]["message_count"] == 4


def test_the_outputs_of_a_retry(run: Run, home: Path) -> None:
    make(home, 1)
    text = "Answer to: Question 1 (messages: 3)"
    assert succeed(run("--retry", ONE, "--output", "text")).stdout == text + "\n"
    events = succeed(run("--retry", ONE, "--output", "ndjson")).events
    assert events[0] == {"event": "start", "session_id": ONE, "model": "smollm2"}
    assert "".join(event["text"] for event in events[1:-1]) == text
    assert (events[-1]["event"], events[-1]["response"]) == ("done", text)


def test_a_retry_with_other_settings(run: Run, ollama: StandIn, home: Path) -> None:
    path = make(home, data=line(header(ONE, options={"seed": 1})) + b"".join(map(line, stores.turn(1))))
    ollama.set(thinking="Hm.")
    given = ("--model", "thinker", "--think", "high", "--temperature", "0.9", "--system", "Be brief.", "--title", "T")
    turn = succeed(run("--retry", ONE, *given, "--format", "json")).json
    assert (turn["model"], turn["thinking"], turn["parsed"]) == ("thinker", "Hm.", {"ok": True})
    (chat,) = ollama.chats()
    assert (chat["think"], chat["format"], chat["messages"][0]["content"]) == ("high", "json", "Be brief.")
    assert chat["options"]["temperature"] == 0.9
    assert chat["options"]["seed"] == 1
    changed = next(record for record in records(path) if record["type"] == "meta")
    assert (changed["model"], changed["title"]) == ("thinker", "T")
    succeed(run("--retry", ONE))
    again = ollama.chats()[-1]
    assert (again["model"], again["think"], again.get("format")) == ("thinker", "high", None)


def test_what_belongs_to_the_prompt_is_sent_again(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "notes.txt").write_text("Buy milk.", encoding="utf-8")
    source = ask(run, "--model", "viewer", "--image", "a.png", prompt="Read @./notes.txt", cwd=tmp_path)["session_id"]
    for name in ("a.png", "notes.txt"):
        (tmp_path / name).unlink()
    succeed(run("--retry", source))
    first, second = ollama.chats()
    assert first["messages"] == second["messages"]
    assert "Buy milk." in second["messages"][0]["content"]
    assert second["messages"][0]["images"]
    old, new = (record for record in records(the_file(home)) if record.get("role") == "user")
    assert {**old, "id": "", "created_at": ""} == {**new, "id": "", "created_at": ""}
    assert (new["typed"], new["references"]) == ("Read @./notes.txt", ["@./notes.txt"])
    assert stores.assert_agreement(run)[0]["title"] == "Read @./notes.txt"
    fail(run("--retry", source, "--model", "smollm2"), "model_unsupported")
    assert len(records(the_file(home))) == 6
    assert succeed(run("--retry", source)).stderr == ""


def test_a_prompt_that_never_got_an_answer_is_asked_again(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("empty")
    error = fail(run("-p", "Hello?"), "incomplete_answer")
    turn = succeed(run("--retry", error["session_id"])).json
    assert (turn["window"]["messages_sent"], turn["window"]["messages_left_out"]) == (1, 0)
    assert said(the_file(home)) == [("user", "Hello?"), ("user", "Hello?"), ("assistant", turn["response"])]
    assert stores.assert_agreement(run)[0]["message_count"] == 2


def test_after_an_undo_the_prompt_before_it_is_asked_again(run: Run, ollama: StandIn, home: Path) -> None:
    make(home, 1)
    succeed(run("--undo", ONE))
    succeed(run("--retry", ONE))
    assert context(ollama) == ["Question 0"]
    succeed(run("--undo", ONE))
    fail(run("--retry", ONE), "nothing_to_undo")


REFUSED = [
    pytest.param(
        {"kind": "status", "path": "/api/show", "status": 404, "body": {"error": "model 'x' not found"}},
        "model_not_found",
    ),
    pytest.param({"kind": "status", "status": 404, "body": {"error": "model 'x' not found"}}, "model_not_found"),
    pytest.param({"kind": "status", "status": 400, "body": {"error": "no"}}, "ollama_error"),
    pytest.param({"kind": "status", "status": 401, "body": {"error": "unauthorized"}}, "signin_required"),
]


@pytest.mark.parametrize("tail", [b"", b'{"type":"mess'])
@pytest.mark.parametrize(("fault", "code"), REFUSED)
def test_a_refused_retry_leaves_every_byte(
    run: Run, ollama: StandIn, home: Path, fault: Json, code: str, tail: bytes
) -> None:
    path = make(home, data=stores.lines(ONE) + tail)
    before = path.read_bytes()
    ollama.fail(**fault)
    assert fail(run("--retry", ONE, "--model", "viewer"), code)["session_id"] == ONE
    assert path.read_bytes() == before
    assert stores.assert_agreement(run)[0]["message_count"] == 4
    assert succeed(run("--retry", ONE)).json["model"] == "smollm2"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--model", "absent"), "model_not_found"), (("--think",), "model_unsupported"),
     (("--max-context-tokens", "1"), "context_too_small")],
)  # fmt: skip
def test_a_retry_that_cannot_be_asked_leaves_every_byte(
    run: Run, ollama: StandIn, home: Path, arguments: tuple[str, ...], code: str
) -> None:
    path = make(home, 1)
    before = path.read_bytes()
    assert fail(run("--retry", ONE, *arguments), code)["session_id"] == ONE
    assert path.read_bytes() == before
    assert ollama.chats() == []


def test_a_retry_without_a_server_leaves_every_byte(run: Run, home: Path) -> None:
    path = make(home, 1)
    before = path.read_bytes()
    fail(run("--retry", ONE, env={"OLLAMA_HOST": "127.0.0.1:9"}), "ollama_unreachable")
    assert path.read_bytes() == before


BROKEN_OFF = [
    ({"kind": "status", "status": 500, "body": {"error": "no"}}, "ollama_error", ""),
    ({"kind": "empty"}, "incomplete_answer", ""),
    ({"kind": "cut", "chunks": 2}, "incomplete_answer", "Answer to"),
    ({"kind": "error_line", "chunks": 2}, "ollama_error", "Answer to"),
    ({"kind": "hang_middle", "chunks": 2}, "timeout", "Answer to"),
]


@pytest.mark.parametrize(("fault", "code", "came"), BROKEN_OFF)
def test_a_retry_that_breaks_off_keeps_the_prompt_and_what_came(
    run: Run, ollama: StandIn, home: Path, fault: Json, code: str, came: str
) -> None:
    path = make(home, 1)
    ollama.fail(**fault)
    error = fail(run("--retry", ONE, "--timeout", "1" if code == "timeout" else "30", "--system", "No"), code)
    assert error["session_id"] == ONE
    answers = [("assistant", came)] if came else []
    assert said(path)[4:] == [("user", "Question 1"), *answers]
    assert taken_back(run, ONE) == ["Question 1", "Answer 1"]
    assert stores.assert_agreement(run)[0]["message_count"] == 3 + len(answers)
    succeed(run("--retry", ONE))
    assert context(ollama) == ["Question 0", "Answer 0", "Question 1"], "without the system prompt of what failed"
    assert stores.assert_agreement(run)[0]["message_count"] == 4


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_retry_that_is_interrupted_while_the_model_is_checked_changes_nothing(
    start: Start, ollama: StandIn, home: Path, number: signal.Signals
) -> None:
    path = make(home, 1)
    before = path.read_bytes()
    ollama.fail("hang", path="/api/show")
    process = start("--retry", ONE)
    ollama.wait(requests=1, path="/api/show")
    process.send_signal(number)
    result = end(process)
    assert (result.returncode, result.stderr) == (128 + number, "")
    assert (result.json["done"], result.json["response"], result.json["session_id"]) == (False, "", ONE)
    assert path.read_bytes() == before


@posix_only
@pytest.mark.parametrize(
    ("fault", "came"), [({"kind": "hang"}, ""), ({"kind": "hang_middle", "chunks": 3}, "Answer to:")]
)
def test_a_retry_that_is_interrupted_while_the_model_answers(
    start: Start, run: Run, ollama: StandIn, home: Path, fault: Json, came: str
) -> None:
    path = make(home, 1)
    ollama.fail(**fault)
    process = start("--retry", ONE, "--output", "text")
    ollama.wait(requests=1)
    assert process.stdout is not None
    assert process.stdout.read(len(came)).decode() == came
    process.send_signal(signal.SIGINT)
    assert end(process).returncode == 130
    answer = [("assistant", came)] if came else []
    assert said(path)[4:] == [("user", "Question 1"), *answer]
    assert all(record["done_reason"] == "interrupted" for record in records(path)[7:])
    assert taken_back(run, ONE) == ["Question 1", "Answer 1"]
    assert ask(run, "--session-id", ONE)["window"]["messages_sent"] == (5 if came else 3)


def test_a_retry_does_not_touch_stdin(start: Start, home: Path) -> None:
    make(home, 1)
    reader, writer = os.pipe()
    os.write(writer, b"for the next command\n")
    for arguments in (("--retry", ONE), ("--undo", ONE), ("--fork", ONE)):
        assert start(*arguments, stdin=reader).wait(60) == 0
    assert os.read(reader, 100) == b"for the next command\n"
    os.close(reader)
    os.close(writer)


def test_a_loop_over_sessions_asks_each_again(environment: dict[str, str], home: Path) -> None:
    paths = [make(home, number) for number in (1, 2, 3)]
    loop = f'while read -r id; do {sys.executable} -m ollama_prompt --retry "$id" > /dev/null; done'
    subprocess.run(["bash", "-c", loop], input=f"{ONE}\n{TWO}\n{THREE}\n".encode(), env=environment, check=True)
    assert [len(said(path)) for path in paths] == [6, 6, 6]


def test_a_retry_says_how_much_is_left_out(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer_tokens=100)
    source = ask(run, "--max-context-tokens", "600", "--max-tokens", "100")["session_id"]
    for _ in range(8):
        last = ask(run, "--session-id", source)["window"]
    for _ in range(3):
        again = succeed(run("--retry", source)).json["window"]
        assert again["messages_sent"] + again["messages_left_out"] == 17
        assert (again["tokens"], again["messages_left_out"]) == (last["tokens"], last["messages_left_out"])
        assert not again["truncated"]


@posix_only
@pytest.mark.parametrize("output", ["text", "ndjson"])
def test_a_retry_whose_reader_went_away(start: Start, run: Run, home: Path, output: str) -> None:
    make(home, 1)
    reader, writer = os.pipe()
    os.close(reader)
    process = start("--retry", ONE, "--output", output, stdout=writer)
    os.close(writer)
    assert (process.wait(30), process.stderr.read() if process.stderr else b"") == (141, b"")
    assert taken_back(run, ONE) == ["Question 1", "Answer 1"]
    assert succeed(run("--retry", ONE)).json["window"]["messages_sent"] == 3
    assert stores.assert_agreement(run)[0]["message_count"] == 4


# -- two clones, merged by git -----------------------------------------------------------------------------


class Clones:
    """Two stores of one repository; each command runs in one of them."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self.homes = {"ours": folder / "store", "theirs": folder / "theirs"}
        make(self.homes["ours"], 1)
        self.run("ours", *on(ONE, "Both"))
        self._ours = Repository(self.homes["ours"])
        self._ours.git("clone", "-q", str(self.homes["ours"]), str(self.homes["theirs"]))

    def run(self, where: str, *args: str) -> Result:
        return succeed(self._run(*args, env={"OLLAMA_PROMPT_HOME": str(self.homes[where])}))

    def merge(self) -> None:
        """Each has what the other did; ours first."""
        for name in self.homes:
            self._git(name, "add", "-A")
            self._git(name, "commit", "-q", "--allow-empty", "-m", "Turns")
        self._git("ours", "pull", "-q", "--no-rebase", "--no-edit", str(self.homes["theirs"]), "main")
        self._git("theirs", "pull", "-q", str(self.homes["ours"]), "main")
        for home in self.homes.values():
            os.utime(home / ".git", (0, 0))  # long ago: a turn waits while git seems to be at work

    def _git(self, where: str, *arguments: str) -> None:
        self._ours.home = self.homes[where]
        self._ours.git(*arguments)

    def prompts(self, standin: StandIn) -> list[str]:
        """What both send now, which is the same; nothing is damaged, and the index is right."""
        sent = []
        for name, home in self.homes.items():
            self.run(name, *on(fork_in(self, name), "Next"))
            sent.append(context(standin))
            env = {"OLLAMA_PROMPT_HOME": str(home)}
            assert self.run(name, "--check").json["damage"] == []
            stores.assert_agreement(self._run, env)
        assert sent[0] == sent[1]
        return sent[0][4:-1:2]

    def info(self) -> Json:
        """The session, which is the same in both."""
        ours, theirs = (self.run(name, "--session-info", ONE).json for name in self.homes)
        assert {**ours, "path": ""} == {**theirs, "path": ""}
        found: Json = ours
        return found


def fork_in(clones: Clones, name: str) -> str:
    """A fork, so that looking changes nothing."""
    made: str = clones.run(name, "--fork", ONE).json["session_id"]
    return made


@pytest.fixture
def clones(run: Run, tmp_path: Path) -> Clones:
    """Both have a session with the prompts "Question 0", "Question 1" and "Both"."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return Clones(run, tmp_path)


RETRY, UNDO = ("--retry", ONE), ("--undo", ONE)
TURN, MORE = on(ONE, "Ours"), on(ONE, "Theirs")
MERGES: list[tuple[list[tuple[str, ...]], list[tuple[str, ...]], list[str]]] = [
    ([UNDO], [UNDO], []),
    ([UNDO], [MORE], ["Theirs"]),
    ([TURN], [UNDO], ["Ours"]),
    ([RETRY], [UNDO], ["Both"]),
    ([UNDO], [RETRY], ["Both"]),
    ([RETRY], [RETRY], ["Both", "Both"]),
    ([RETRY, RETRY], [MORE], ["Both", "Theirs"]),
    ([TURN, UNDO, TURN], [MORE, UNDO, MORE], ["Both", "Ours", "Theirs"]),
    ([TURN, RETRY], [UNDO, MORE, RETRY], ["Ours", "Theirs"]),
]


@pytest.mark.parametrize(("ours", "theirs", "prompts"), MERGES)
def test_what_two_clones_did_is_merged(
    clones: Clones, ollama: StandIn, ours: list[tuple[str, ...]], theirs: list[tuple[str, ...]], prompts: list[str]
) -> None:
    for name, commands in (("ours", ours), ("theirs", theirs)):
        for arguments in commands:
            clones.run(name, *arguments)
    clones.merge()
    found = clones.info()
    assert len({message["id"] for message in found["messages"]}) == len(found["messages"])
    assert clones.prompts(ollama) == prompts
    assert found["message_count"] == 4 + 2 * len(prompts)
    taken = clones.run("ours", "--undo", ONE).json["undone"]
    assert taken == [message["id"] for message in found["messages"] if not message.get("undone")][-2:]


def test_forks_of_two_clones_stand_side_by_side(clones: Clones) -> None:
    made = [fork_in(clones, name) for name in clones.homes]
    clones.run("ours", *on(made[0], "Ours"))
    clones.merge()
    listings = [stores.listed(clones.run(name, "--list-sessions")) for name in clones.homes]
    assert [[session["session_id"] for session in listing] for listing in listings] == [[made[0], made[1], ONE]] * 2
    for name in clones.homes:
        assert clones.run(name, "-c", "-p", "Hi").json["session_id"] == made[0]


# -- what cannot be told ------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_fork_that_cannot_be_printed_is_named_in_the_error(run: Run, start: Start, home: Path) -> None:
    source = ask(run)["session_id"]
    with open("/dev/full", "wb") as full:
        process = start("--fork", source, stdout=full)
    error = json.loads(process.communicate(timeout=30)[1])
    assert (process.returncode, error["code"]) == (1, "output_failed")
    assert {path.stem for path in stores.files(home)} == {source, error["session_id"]}


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
@pytest.mark.parametrize("action", ["--undo", "--fork", "--delete", "--session-info"])
def test_with_a_closed_stdout_nothing_is_changed(
    run: Run, environment: dict[str, str], home: Path, action: str
) -> None:
    source = ask(run)["session_id"]
    before = tree(home)
    command = f"{sys.executable} -m ollama_prompt {action} {source} >&-"
    done = subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "output_failed"
    assert tree(home) == before
