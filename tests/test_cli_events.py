"""--output ndjson: events, one a line, each when it happens; the real command against the stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result, tree
from stores import fail, records, said, succeed, the_file
from test_faults import prelude

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from conftest import Run, Start
    from standin import StandIn

Json = dict[str, Any]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals and pipes")

WAIT = 30
"""Seconds after which what should have come makes the test fail."""
F_GETPIPE_SZ = 1032
"""Of Linux; Python has it from 3.10 on, but not everywhere."""
EVENTS = ("--output", "ndjson")
TURN_KEYS = [
    "event", "model", "created_at", "response", "done", "done_reason", "total_duration", "load_duration",
    "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration", "session_id", "window",
]  # fmt: skip
ODD_TEXTS = [
    "a\nb\r\n\tc", "\x00\x01\x07\x08\x0b\x0c\x1b[31m\x1c\x1d\x1e\x7f", "\x85\x9b\u2028\u2029\ufeff", '"\\/\\u0041\\n',
    "😀\u202e\U0010ffff\ufffe", "{}\n{}\n", "</script>&<!--", " ", "\n", "e\u0301\u200d",
]  # fmt: skip


BROKEN = """
import ollama_prompt.turn
def broken(*_):
    raise RuntimeError("odd\\nthing")
ollama_prompt.turn.take_turn = broken
"""


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def kinds(events: list[Json]) -> list[str]:
    """What happened, repetitions left out."""
    found = [event["event"] for event in events]
    return [kind for kind, before in zip(found, ["", *found], strict=False) if kind != before]


def text_of(events: list[Json], kind: str = "token") -> str:
    return "".join(event["text"] for event in events if event["event"] == kind)


def strictly(line: bytes) -> Json:
    """A line as a strict reader takes it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    assert line.endswith(b"\n")
    value: Json = json.loads(line.decode(), parse_constant=refuse)
    return value


@pytest.fixture
def lines() -> Iterator[Any]:
    """`lines(process.stdout)`: the next line, parsed; a reader that waits too long fails the test."""
    timers: list[threading.Timer] = []

    def read(process: subprocess.Popen[bytes]) -> Json:
        assert process.stdout is not None
        timer = threading.Timer(WAIT, process.kill)
        timers.append(timer)
        timer.start()
        try:
            return strictly(process.stdout.readline())
        finally:
            timer.cancel()

    yield read
    for timer in timers:
        timer.cancel()


def end(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=WAIT)
    return Result(process.returncode, out, err)


# -- a turn ------------------------------------------------------------------------------------------------


def test_a_turn(run: Run, home: Path) -> None:
    result = succeed(run("-p", "Hi", *EVENTS))
    assert result.stderr == ""
    first, *tokens, last = result.events
    assert first == {"event": "start", "session_id": the_file(home).stem, "model": "smollm2"}
    assert list(first) == ["event", "session_id", "model"]
    assert tokens == [
        {"event": "token", "text": text} for text in ["Answer", " to", ":", " Hi", " (", "messages", ":", " 1", ")"]
    ]
    assert list(last) == TURN_KEYS
    assert (last["event"], last["done"], last["response"]) == ("done", True, text_of(tokens))
    assert records(the_file(home))[-1]["content"] == last["response"]


def test_the_last_event_is_the_turn_as_json_prints_it(run: Run, ollama: StandIn) -> None:
    ollama.set(thinking="Hm.", answer='{"a": 1}')
    flags = ("-p", "Hi", "--model", "thinker", "--format", "json", "--no-session")
    turn, event = succeed(run(*flags)).json, succeed(run(*flags, *EVENTS)).events[-1]
    assert list(event) == ["event", *turn]
    assert event == {**turn, "event": "done", "created_at": event["created_at"]}


def test_without_a_session(run: Run, home: Path) -> None:
    events = succeed(run("-p", "Hi", *EVENTS, "--no-session")).events
    assert events[0] == {"event": "start", "model": "smollm2"}
    assert "session_id" not in events[-1]
    assert not home.exists()


def test_thoughts_come_first(run: Run, ollama: StandIn) -> None:
    ollama.set(thinking="Hm, hm.", answer="Yes, yes.")
    events = succeed(run("-p", "Hi", "--model", "thinker", *EVENTS)).events
    assert kinds(events) == ["start", "thinking", "token", "done"]
    assert (text_of(events, "thinking"), text_of(events)) == ("Hm, hm.", "Yes, yes.")
    assert all(list(event) == ["event", "text"] for event in events[1:-1])


def test_an_answer_of_nothing(run: Run, ollama: StandIn) -> None:
    ollama.set(answer="")
    assert kinds(succeed(run("-p", "Hi", *EVENTS)).events) == ["start", "done"]


def test_an_answer_in_one_piece(run: Run, ollama: StandIn) -> None:
    ollama.set(answer="word " * 50_000)
    ollama.fail("one_object")
    events = succeed(run("-p", "Hi", *EVENTS)).events
    assert text_of(events) == events[-1]["response"] == "word " * 50_000


def test_an_old_session_and_the_last_one(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home)
    for flags in (("--session-id", path.stem.upper()), ("--continue",)):
        events = succeed(run("-p", "Hi", *flags, *EVENTS)).events
        assert events[0]["session_id"] == events[-1]["session_id"] == path.stem
    events = succeed(run("--retry", path.stem, "--model", "viewer", *EVENTS)).events
    assert events[0] == {"event": "start", "session_id": path.stem, "model": "viewer"}
    assert kinds(events) == ["start", "token", "done"]


def test_asked_twice_it_starts_once(run: Run, ollama: StandIn, home: Path) -> None:
    """The server says that it was too much; the turn asks again with less."""
    path = stores.make(home, 1, stores.lines(stores.new_id(1), 40))
    nested = json.dumps({"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}})
    ollama.fail("status", status=400, body={"error": nested})
    events = succeed(run("-p", "Hi", "--session-id", path.stem, *EVENTS)).events
    assert kinds(events) == ["start", "token", "done"]
    assert len(ollama.chats()) == 2


def test_the_prompt_is_stored_when_it_starts(start: Start, ollama: StandIn, home: Path, lines: Any) -> None:
    ollama.hold()
    process = start("-p", "Hi", *EVENTS)
    first = lines(process)
    assert (first["event"], first["session_id"]) == ("start", the_file(home).stem)
    assert said(the_file(home)) == [("user", "Hi")]
    ollama.release()
    assert end(process).returncode == 0


def test_each_comes_when_it_happens(start: Start, ollama: StandIn, lines: Any) -> None:
    ollama.set(thinking="Hm, hm")
    ollama.fail("hang_middle", chunks=5)
    process = start("-p", "Hi", "--model", "thinker", *EVENTS)
    came = [lines(process) for _ in range(6)]
    assert [(event["event"], event.get("text")) for event in came[1:]] == [
        ("thinking", "Hm"), ("thinking", ","), ("thinking", " hm"), ("token", "Answer"), ("token", " to"),
    ]  # fmt: skip
    assert process.poll() is None, "the answer is not over"


def test_each_comes_alone_while_the_answer_is_slow(start: Start, ollama: StandIn, lines: Any) -> None:
    ollama.set(delay=0.2, answer="one two three four five")
    process = start("-p", "Hi", *EVENTS)
    assert lines(process)["event"] == "start"
    for number, word in enumerate(["one", " two", " three"]):
        assert lines(process) == {"event": "token", "text": word}, number
        assert process.poll() is None
    assert end(process).events[-1]["response"] == "one two three four five"


# -- odd texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts(run: Run, ollama: StandIn, home: Path, text: str) -> None:
    pieces = [{"thinking": text}, {"content": text}, {"content": ""}]
    chunks = [json.dumps({"message": piece, "done": piece == pieces[-1]}) for piece in pieces]
    ollama.fail("status", status=200, body="\n".join(chunks), content_type="application/x-ndjson")
    result = succeed(run("-p", "Hi", "--model", "thinker", *EVENTS))
    raw = result.stdout.encode().splitlines(keepends=True)
    events = [strictly(line) for line in raw]
    assert result.stdout.splitlines(keepends=True) == [line.decode() for line in raw], "whatever is taken for its end"
    assert (text_of(events), text_of(events, "thinking")) == (text, text)
    assert (events[-1]["response"], events[-1]["thinking"]) == (text, text)
    assert records(the_file(home))[-1]["content"] == text


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_of_errors(run: Run, ollama: StandIn, text: str) -> None:
    ollama.fail("error_line", message=f"no {text} memory", chunks=1)
    result = run("-p", "Hi", *EVENTS)
    error = fail(result, "ollama_error")
    assert error["error"] == f"no {text} memory"
    assert result.events[-1] == {"event": "error", **error}
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("escape", [r"\ud800", r"\udc80\ud800", r"\ud83d"])
def test_text_that_is_no_unicode(run: Run, ollama: StandIn, home: Path, escape: str) -> None:
    ollama.fail("junk_line", text=f'{{"message": {{"content": "{escape}"}}, "done": false}}', chunks=2)
    result = run("-p", "Hi", *EVENTS)
    fail(result, "ollama_error")
    assert kinds(result.events) == ["start", "token", "error"]
    assert records(the_file(home))[-1]["content"] == "Answer to"


def test_a_value_that_is_no_unicode(run: Run, ollama: StandIn) -> None:
    ollama.set(answer='{"a": "\\ud800 \\udc80\\u2028"}')
    result = succeed(run("-p", "Hi", "--format", "json", *EVENTS))
    assert result.events[-1]["parsed"] == {"a": "\ud800 \udc80\u2028"}
    assert len(result.stdout.splitlines()) == len(result.events)


@pytest.mark.parametrize("model", ["x\u2028y", "x\x85y", "a b"])
def test_odd_names(run: Run, model: str) -> None:
    result = run("-p", "Hi", "--model", model, *EVENTS)
    assert result.returncode == 1
    assert result.events[-1]["event"] == "error"


def test_no_key_of_an_event_is_taken_from_the_server(run: Run, ollama: StandIn) -> None:
    last = {
        "message": {"content": "Yes"},
        "done": True,
        "event": "error",
        "error": None,
        "text": "x",
        "session_id": "y",
    }
    ollama.fail("status", status=200, body=last)
    events = succeed(run("-p", "Hi", "--no-session", *EVENTS)).events
    assert kinds(events) == ["start", "token", "done"]
    assert next(iter(events[-1])) == "event"
    assert "session_id" not in events[-1]
    assert events[-1]["text"] == "x", "what Ollama adds is passed on"


@pytest.mark.parametrize("novelty", ["1e999", "NaN", "-Infinity"])
def test_numbers_that_are_none(run: Run, ollama: StandIn, novelty: str) -> None:
    ollama.fail("junk_line", text='{"message": {"content": "Yes"}, "done": true, "novelty": ' + novelty + "}")
    result = run("-p", "Hi", *EVENTS)
    assert [strictly(line) for line in result.stdout.encode().splitlines(keepends=True)][-1]["event"] == "error"
    fail(result, "ollama_error")


# -- errors ------------------------------------------------------------------------------------------------


def the_error(result: Result, code: str, exit_code: int = 1) -> Json:
    """The error, which is the last event and on stderr."""
    error = fail(result, code, exit_code)
    assert result.events[-1] == {"event": "error", **error}
    assert list(result.events[-1]) == ["event", *error]
    assert sum(event["event"] in {"error", "done"} for event in result.events) == 1
    return error


@pytest.mark.parametrize(
    "flags",
    [
        ("--bogus", *EVENTS), (*EVENTS, "-p", ""), (*EVENTS,), ("-p", "Hi", "--output=ndjson", "--timeout", "0"),
        ("-p", "Hi", *EVENTS, "--format", "{"), ("-p", "Hi", *EVENTS, "--image", "missing.png"), (*EVENTS, "Hi"),
        (*EVENTS, "--session-id", "5", "-p", "Hi"), (*EVENTS, "--list-sessions", "--check"), (*EVENTS, "-p"),
        ("--output", "json", "-p", "Hi", "--think", "--no-think", *EVENTS), (*EVENTS, "-p", "Hi", "--temperature", "x"),
    ],
)  # fmt: skip
def test_usage(run: Run, ollama: StandIn, home: Path, flags: tuple[str, ...]) -> None:
    result = run(*flags)
    the_error(result, "usage", 2)
    assert kinds(result.events) == ["error"]
    assert ollama.requests() == []
    assert not home.exists()


@pytest.mark.parametrize(
    "flags", [(*EVENTS, "--output", "json"), (*EVENTS, "--output=text"), ("--output", "xml"), ("--output",)]
)
def test_events_only_where_they_are_wanted(run: Run, flags: tuple[str, ...]) -> None:
    result = run("-p", "Hi", "--timeout", "0", *flags)
    assert (result.returncode, result.stdout) == (2, "")


def test_a_prompt_is_no_flag(run: Run) -> None:
    result = run("--timeout", "0", "--prompt=--output=ndjson")
    assert (result.returncode, result.stdout) == (2, "")


def test_no_server(run: Run, home: Path) -> None:
    result = run("-p", "Hi", *EVENTS, env={"OLLAMA_HOST": "127.0.0.1:1"})
    assert "hint" in the_error(result, "ollama_unreachable")
    assert kinds(result.events) == ["error"]
    assert not home.exists()


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--model", "nowhere"), "model_not_found"),
        (("--think",), "model_unsupported"),
        (("--session-id", stores.new_id(9)), "session_not_found"),
        (("--continue",), "session_not_found"),
        (("--max-context-tokens", "1"), "context_too_small"),
    ],
)
def test_refused_before_it_starts(run: Run, ollama: StandIn, home: Path, flags: tuple[str, ...], code: str) -> None:
    result = run("-p", "What is the longest river of them all?", *flags, *EVENTS)
    the_error(result, code)
    assert kinds(result.events)[-1] == "error"
    assert stores.files(home) == []


def test_a_reference_that_fails(run: Run, home: Path) -> None:
    result = run("-p", "Hi @./missing.txt", *EVENTS)
    the_error(result, "reference_failed")
    assert kinds(result.events) == ["error"]


@pytest.mark.parametrize(
    ("fault", "code", "stays"),
    [
        ({"kind": "status", "status": 400, "body": {"error": "no"}}, "ollama_error", False),
        ({"kind": "status", "status": 404, "body": {"error": "model 'x' not found"}}, "model_not_found", False),
        ({"kind": "status", "status": 500, "body": {"error": "no"}}, "ollama_error", True),
        ({"kind": "html"}, "ollama_error", True),
        ({"kind": "empty"}, "incomplete_answer", True),
        ({"kind": "cut", "chunks": 2}, "incomplete_answer", True),
        ({"kind": "no_done", "chunks": 2}, "incomplete_answer", True),
        ({"kind": "error_line", "chunks": 2}, "ollama_error", True),
        ({"kind": "close"}, "incomplete_answer", True),
    ],
)
def test_refused_or_broken_off(run: Run, ollama: StandIn, home: Path, fault: Json, code: str, stays: bool) -> None:
    ollama.fail(**fault)
    result = run("-p", "Hi", *EVENTS)
    error = the_error(result, code)
    assert kinds(result.events) in (["start", "token", "error"], ["start", "error"])
    assert ("session_id" in error) == stays == bool(stores.files(home))
    if stays:
        stored = "".join(text for role, text in said(the_file(home)) if role == "assistant")
        assert stored == text_of(result.events)
        assert error["session_id"] == result.events[0]["session_id"]


def test_a_timeout(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("hang_middle", chunks=2)
    result = run("-p", "Hi", "--timeout", "1.5", *EVENTS)
    the_error(result, "timeout")
    assert text_of(result.events) == records(the_file(home))[-1]["content"] == "Answer to"


def test_a_session_in_use(run: Run, start: Start, ollama: StandIn, home: Path) -> None:
    path = stores.make(home)
    ollama.hold()
    start("-p", "Slow", "--session-id", path.stem)
    ollama.wait(held=1)
    result = run("-p", "Hi", "--session-id", path.stem, "--lock-timeout", "0", *EVENTS)
    assert the_error(result, "session_busy", 75)["session_id"] == path.stem


def test_a_bug(run: Run, tmp_path: Path) -> None:
    """Whatever happens, the reader gets a last event."""
    result = run("-p", "Hi", *EVENTS, env=prelude(tmp_path, BROKEN))
    assert (result.returncode, result.error["code"]) == (1, "error")
    assert result.events == [{"event": "error", **result.error}]


def test_remarks_are_no_events(run: Run, ollama: StandIn) -> None:
    ollama.fail("status", status=503, body={"error": "busy"})
    result = succeed(run("-p", "Hi", *EVENTS))
    assert result.stderr == "note: Ollama is busy; asking again\n"
    assert kinds(result.events) == ["start", "token", "done"]


# -- interruptions -----------------------------------------------------------------------------------------

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
if sys.platform != "win32":
    SIGNALS.append((signal.SIGHUP, 129))


@posix_only
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_interrupted(
    start: Start, run: Run, ollama: StandIn, home: Path, lines: Any, number: signal.Signals, code: int
) -> None:
    ollama.set(thinking="Hm")
    ollama.fail("hang_middle", chunks=4)
    process = start("-p", "Hi", "--model", "thinker", *EVENTS)
    came = [lines(process) for _ in range(5)]
    process.send_signal(number)
    result = end(process)
    assert (result.returncode, result.stderr) == (code, "")
    (last,) = result.events
    assert last["event"] == "done"
    assert (last["done"], last["done_reason"]) == (False, "interrupted")
    assert (last["response"], last["thinking"]) == (text_of(came), text_of(came, "thinking")) == ("Answer to:", "Hm")
    assert last["session_id"] == came[0]["session_id"] == the_file(home).stem
    assert set(last["window"]) == {"tokens", "limit", "num_ctx", "messages_sent", "messages_left_out", "truncated"}
    answer = records(the_file(home))[-1]
    assert (answer["content"], answer["done_reason"]) == ("Answer to:", "interrupted")
    turn = succeed(run("-p", "On", "--session-id", the_file(home).stem)).json
    assert turn["window"]["messages_sent"] == 3


@posix_only
def test_interrupted_without_a_session(start: Start, ollama: StandIn, home: Path, lines: Any) -> None:
    ollama.fail("hang_middle", chunks=2)
    process = start("-p", "Hi", "--no-session", *EVENTS)
    for _ in range(3):
        lines(process)
    process.send_signal(signal.SIGINT)
    result = end(process)
    assert result.returncode == 130
    assert (result.events[-1]["response"], result.events[-1]["done"]) == ("Answer to", False)
    assert not home.exists()


@posix_only
def test_interrupted_before_anything_came(start: Start, ollama: StandIn, home: Path, lines: Any) -> None:
    ollama.fail("hang")
    process = start("-p", "Hi", *EVENTS)
    assert lines(process)["event"] == "start"
    ollama.wait(requests=1)
    process.send_signal(signal.SIGINT)
    result = end(process)
    assert (result.returncode, kinds(result.events)) == (130, ["done"])
    assert result.events[0]["response"] == ""
    assert said(the_file(home)) == [("user", "Hi")]


@posix_only
def test_interrupted_in_the_checks(start: Start, ollama: StandIn, home: Path) -> None:
    ollama.fail("hang", path="/api/show")
    process = start("-p", "Hi", *EVENTS)
    ollama.wait(requests=1, path="/api/show")
    process.send_signal(signal.SIGINT)
    result = end(process)
    assert (result.returncode, kinds(result.events)) == (130, ["done"])
    assert result.events[0]["session_id"] == the_file(home).stem


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how full a pipe is")
@pytest.mark.parametrize("text", ["short", "long"])
def test_interrupted_while_its_reader_is_slow(start: Start, ollama: StandIn, home: Path, text: str) -> None:
    """The pipe is full; the signal comes while an event waits to be written. It is not cut in two."""
    ollama.set(answer="word " * 60_000)
    if text == "long":
        ollama.fail("one_object")
    process = start("-p", "Hi", *EVENTS)
    wait_until_full(process.stdout)
    process.send_signal(signal.SIGINT)
    result = end(process)
    assert result.returncode == 130
    *before, last = [strictly(line) for line in result.stdout.encode().splitlines(keepends=True)]
    assert (last["event"], last["done"]) == ("done", False)
    assert kinds(before) == ["start", "token"]
    assert records(the_file(home))[-1]["content"] == last["response"]


def wait_until_full(pipe: IO[bytes] | None) -> None:
    """Until there is hardly room in the pipe for another event; of each page, a part may stay free."""
    import array
    import fcntl
    import termios

    assert pipe is not None
    there, deadline = array.array("i", [0]), time.monotonic() + WAIT
    while there[0] < fcntl.fcntl(pipe, F_GETPIPE_SZ) * 2 // 3:
        assert time.monotonic() < deadline, "the pipe does not fill"
        time.sleep(0.01)
        fcntl.ioctl(pipe, termios.FIONREAD, there)


# -- a reader that is not there ----------------------------------------------------------------------------


def closed_pipe() -> int:
    """The end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@posix_only
def test_a_reader_that_was_never_there(start: Start, ollama: StandIn, home: Path) -> None:
    writer = closed_pipe()
    process = start("-p", "Hi", *EVENTS, stdout=writer)
    os.close(writer)
    assert (process.communicate(timeout=WAIT)[1], process.returncode) == (b"", 141)
    assert said(the_file(home)) == [("user", "Hi")]
    assert ollama.chats() == [], "nobody would have seen the answer"


@posix_only
def test_a_reader_that_goes_away(start: Start, run: Run, ollama: StandIn, home: Path, lines: Any) -> None:
    ollama.set(delay=0.1, answer="one two three four five six seven eight nine ten")
    process = start("-p", "Hi", *EVENTS)
    assert [lines(process)["event"] for _ in range(3)] == ["start", "token", "token"]
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.wait(WAIT), process.stderr.read()) == (141, b"")
    ollama.wait(gone=1)
    answer = records(the_file(home))[-1]
    assert answer["done_reason"] == "interrupted"
    assert answer["content"].startswith("one two three")
    assert not answer["content"].endswith("ten")
    assert succeed(run("-p", "On", "--session-id", the_file(home).stem)).json["window"]["messages_sent"] == 3


@posix_only
def test_head(environment: dict[str, str], ollama: StandIn, home: Path) -> None:
    ollama.set(delay=0.1)
    command = f"{sys.executable} -m ollama_prompt -p Hi --output ndjson | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True)
    first, code = done.stdout.splitlines()
    assert json.loads(first)["session_id"] == the_file(home).stem
    assert (code, done.stderr) == (b"141", b"")
    assert records(the_file(home))[-1]["done_reason"] == "interrupted"


@posix_only
@pytest.mark.parametrize("flags", [("-p", ""), ("-p", "Hi", "--model", "nowhere"), ("--list-sessions",), ("--check",)])
def test_no_reader_for_an_error_or_an_action(start: Start, ollama: StandIn, flags: tuple[str, ...]) -> None:
    writer = closed_pipe()
    process = start(*flags, *EVENTS, stdout=writer)
    os.close(writer)
    err = process.communicate(timeout=WAIT)[1].decode()
    assert process.returncode == {"-p": 1 if "nowhere" in flags else 2}.get(flags[0], 141)
    assert "Traceback" not in err
    assert not err or json.loads(err)["code"] in {"usage", "model_not_found"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("session", [(), ("--no-session",)])
def test_a_full_disk_under_stdout(start: Start, ollama: StandIn, home: Path, session: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        process = start("-p", "Hi", *EVENTS, *session, stdout=full)
    result = end_without_stdout(process)
    error = fail(result, "output_failed")
    assert len(result.stderr.splitlines()) == 1
    if session:
        assert "session_id" not in error
    else:
        assert error["session_id"] == the_file(home).stem
        assert said(the_file(home)) == [("user", "Hi")]


def end_without_stdout(process: subprocess.Popen[bytes]) -> Result:
    err = process.communicate(timeout=WAIT)[1]
    return Result(process.returncode, b"", err)


@posix_only
def test_a_disk_that_fills_up_under_stdout(start: Start, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    """Part of the answer is printed: the error says where the rest is."""
    ollama.set(answer="word " * 3000)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n"
    with open(tmp_path / "events", "wb") as file:
        process = start("-p", "Hi", *EVENTS, env=prelude(tmp_path, limit), stdout=file)
    error = fail(end_without_stdout(process), "output_failed")
    assert error["session_id"] == the_file(home).stem
    answer = records(the_file(home))[-1]
    assert answer["done_reason"] == "interrupted"
    assert answer["content"].startswith("word word")


@posix_only
@pytest.mark.parametrize("flags", [("-p", "Hi"), ("-p", "")])
def test_a_closed_stdout(environment: dict[str, str], ollama: StandIn, home: Path, flags: tuple[str, ...]) -> None:
    command = f"{sys.executable} -m ollama_prompt {flags[0]} '{flags[1]}' --output ndjson >&-"
    done = subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE, check=False)
    assert json.loads(done.stderr)["code"] == ("output_failed" if flags[1] else "usage")
    assert ollama.requests() == []
    assert not home.exists()


# -- other programs ----------------------------------------------------------------------------------------


@posix_only
def test_jq(environment: dict[str, str], ollama: StandIn) -> None:
    """The answer as it comes, made of events."""
    ollama.set(answer="Größe:\n😀 \u2028!")
    program = 'select(.event == "token").text'
    command = f"{sys.executable} -m ollama_prompt -p Hi --output ndjson | jq --unbuffered -j '{program}'"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)
    if b"jq: command not found" in done.stderr:
        pytest.skip("no jq")
    assert done.stdout.decode() == "Größe:\n😀 \u2028!"


def test_whatever_the_locale(run: Run, ollama: StandIn) -> None:
    ollama.set(answer="Größe 😀")
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    assert text_of(succeed(run("-p", "Hi", *EVENTS, env=env)).events) == "Größe 😀"


# -- actions -----------------------------------------------------------------------------------------------


@pytest.fixture
def odd_session(home: Path) -> str:
    """A session with texts that some take for the end of a line."""
    session_id = stores.new_id(1)
    odd = "".join(ODD_TEXTS)
    header = stores.header(session_id, model="m\u2028\x85m", title="t\u2028\x85t", system=odd, options={odd: odd})
    rest = [stores.message(1, "user", odd), stores.message(2, "assistant", odd, thinking=odd)]
    stores.make(home, 1, b"".join(map(stores.line, [header, *rest])) + b"damaged \xe2\x80\xa8\n")
    return session_id


@pytest.mark.parametrize(
    "action",
    [
        ("--list-sessions",), ("--list-sessions", "--limit", "1"), ("--list-sessions", "--limit", "0"),
        ("--session-info", "{id}"), ("--purge", "9", "--dry-run"), ("--purge", "0"), ("--delete", "{id}"),
        ("--fork", "{id}"), ("--undo", "{id}"), ("--check",), ("--reindex",),
    ],
)  # fmt: skip
def test_an_action_prints_one_line(run: Run, home: Path, odd_session: str, action: tuple[str, ...]) -> None:
    stores.make(home, 2)
    flags = [flag.format(id=odd_session) for flag in action]
    before = tree(home)
    as_json = run(*flags)
    for path, data in before.items():
        if data is not None and path.endswith(".jsonl"):
            (home / path).write_bytes(data)
    result = run(*flags, *EVENTS)
    assert result.returncode == as_json.returncode
    (line,) = result.stdout.splitlines(keepends=True)
    printed = strictly(line.encode())
    assert list(printed) == list(as_json.json)
    assert "event" not in printed
    if action[0] in {"--list-sessions", "--session-info"}:
        assert printed == as_json.json


def test_a_listing_for_people_ends_lines_with_newlines_only(run: Run, odd_session: str) -> None:
    """It has one session a line, also for who takes U+2028 for the end of one."""
    printed = run("--list-sessions").stdout
    assert len(printed.splitlines()) == printed.count("\n")
    assert json.loads(printed)["sessions"][0]["title"] == "t\u2028\x85t"


def test_an_empty_listing(run: Run, home: Path) -> None:
    assert succeed(run("--list-sessions", *EVENTS)).stdout == '{"sessions": [], "total": 0}\n'
    assert not home.exists()


@pytest.mark.parametrize(
    ("action", "code"),
    [(("--session-info", stores.new_id(7)), "session_not_found"), (("--delete", stores.new_id(7)), "session_not_found"),
     (("--import", "missing.json"), "import_failed"), (("--undo", stores.new_id(7)), "session_not_found")],
)  # fmt: skip
def test_an_action_that_fails(run: Run, action: tuple[str, ...], code: str) -> None:
    the_error(run(*action, *EVENTS), code)


def test_damage_is_a_result(run: Run, odd_session: str) -> None:
    result = run("--check", *EVENTS)
    assert result.returncode == 1
    assert result.events[0]["ok"] is False
    assert result.stderr == ""
