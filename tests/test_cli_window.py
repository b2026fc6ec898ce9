"""The model's window, as a user or a script sees it: the real command against the stand-in server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import stores
from stores import fail, files, line, records, said, succeed, the_file

from ollama_prompt.window import MARK

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn

Json = dict[str, Any]

TINY = {"limit": 1000, "capabilities": ["completion"]}


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def ask(run: Run, session: Path | None, *args: str, prompt: str = "Hi") -> Json:
    """The turn that was printed; `session` is the file of the session to go on with."""
    follow = ("--session-id", session.stem) if session else ()
    return succeed(run("-p", prompt, *follow, *args)).json


def counted(turns: int, tokens: int = 100, **kept: Any) -> bytes:
    """A session in which each turn took so many tokens, as the stand-in counts."""
    words = " ".join(["word"] * (tokens // 2 - 4))
    made = [stores.header(stores.new_id(1), **kept)]
    for turn in range(turns):
        counts = {"model": "smollm2", "prompt_tokens": tokens * turn + tokens // 2, "tokens": tokens // 2 - 4}
        made += [stores.message(2 * turn, "user", words), stores.message(2 * turn + 1, "assistant", words, **counts)]
    return b"".join(map(line, made))


def sent(standin: StandIn) -> list[list[Json]]:
    """The messages of every chat."""
    return [chat["messages"] for chat in standin.chats()]


def sizes(standin: StandIn) -> list[int]:
    """num_ctx of every chat."""
    return [chat["options"]["num_ctx"] for chat in standin.chats()]


# --- Which messages --------------------------------------------------------------------------------


def test_the_window_moves_once_and_then_stays(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9, max_context_tokens=1000, system="Be brief."))
    ollama.set(answer="Yes.")
    windows = [ask(run, path)["window"] for _ in range(3)]
    first, *later = sent(ollama)
    assert windows[0]["messages_left_out"] > 0
    assert {window["messages_left_out"] for window in windows} == {windows[0]["messages_left_out"]}
    assert windows[0]["tokens"] <= 1000 * MARK + 20
    for messages in (first, *later):
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert messages[1]["role"] == "user"
    assert later[0][: len(first)] == first
    assert later[1][: len(later[0])] == later[0]
    assert {answer["window"]["start"] for answer in records(path)[-1::-2][:3]} == {
        records(path)[1 + windows[0]["messages_left_out"]]["id"]
    }


def test_the_note_comes_when_it_moves_and_not_again(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9, max_context_tokens=1000))
    notes = [succeed(run("-p", "Hi", "--session-id", path.stem)).stderr for _ in range(2)]
    assert notes[0].startswith("note: ")
    assert notes[1] == ""


def test_an_answer_that_broke_off_leaves_the_window_where_it_was(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9, max_context_tokens=1000))
    ask(run, path)
    ollama.fail("cut", chunks=2)
    fail(run("-p", "On", "--session-id", path.stem), "incomplete_answer")
    result = succeed(run("-p", "And?", "--session-id", path.stem))
    assert result.stderr == ""
    before, _, after = sent(ollama)
    assert after[: len(before)] == before


def test_a_window_that_moved_for_an_answer_that_broke_off_has_moved(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9, max_context_tokens=1000))
    ollama.set(answer_tokens=150)
    ollama.fail("cut", chunks=140)
    fail(run("-p", "On", "--session-id", path.stem), "incomplete_answer")
    ask(run, path)
    broken, after = sent(ollama)
    assert after[: len(broken)] == broken


def test_what_was_taken_back_or_never_answered_is_not_sent(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(3))
    stored = records(path)
    undo = {"type": "undo", "id": stores.new_id(90), "ids": [record["id"] for record in stored[3:5]]}
    alone = stores.message(91, "user", "Hello?")
    path.write_bytes(path.read_bytes() + line(undo) + line(alone))
    window = ask(run, path)["window"]
    assert [message["content"] for message in sent(ollama)[0]] == [
        *(record["content"] for record in (*stored[1:3], *stored[5:7])),
        "Hi",
    ]
    assert (window["messages_sent"], window["messages_left_out"], window["truncated"]) == (5, 0, False)


def test_a_higher_limit_brings_everything_back(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9, max_context_tokens=1000))
    assert ask(run, path)["window"]["messages_left_out"] > 0
    window = ask(run, path, "--max-context-tokens", "5000")["window"]
    assert (window["limit"], window["messages_sent"], window["messages_left_out"]) == (5000, 21, 0)
    assert "window" not in records(path)[-1]


def test_thinking_is_not_sent_again(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="Hm. " * 1900, answer="Yes.")
    limits = ("--model", "thinker", "--max-context-tokens", "4000")
    ask(run, None, *limits)
    window = ask(run, the_file(home))["window"]
    assert sent(ollama)[1][1] == {"role": "assistant", "content": "Yes."}
    assert window["messages_left_out"] == 0, "thinking does not fill the window of the next turn"


# --- num_ctx ---------------------------------------------------------------------------------------


def test_num_ctx_is_not_less_than_what_is_loaded(run: Run, ollama: StandIn) -> None:
    for args in (["--num-ctx", "20000"], [], ["--num-ctx", "4096"], []):
        ask(run, None, "--model", "viewer", "--no-session", *args)
    assert sizes(ollama) == [20000, 20000, 4096, 8192]


def test_num_ctx_is_not_more_than_the_model_takes(run: Run, ollama: StandIn) -> None:
    ollama.set(models={"tiny": TINY})
    window = ask(run, None, "--model", "tiny", "--no-session")["window"]
    assert (sizes(ollama), window["num_ctx"], window["limit"]) == ([1000], 1000, 1000)


def test_num_ctx_that_was_given_holds_the_conversation(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(20))
    window = ask(run, path, "--num-ctx", "1024")["window"]
    assert (window["num_ctx"], window["limit"], window["truncated"]) == (1024, 8192, False)
    assert window["messages_left_out"] > 0
    assert window["tokens"] <= 1024
    ask(run, path)
    assert sizes(ollama) == [1024, 1024]


@pytest.mark.parametrize("given", [(), ("--num-ctx", "4096")])
def test_a_cloud_model_is_never_sent_num_ctx(run: Run, ollama: StandIn, given: tuple[str, ...]) -> None:
    ollama.set(cloud="ok")
    assert ask(run, None, "--model", "big:cloud", "--no-session", *given)["window"]["num_ctx"] is None
    assert "num_ctx" not in ollama.chats()[0]["options"]
    assert ollama.chats()[0]["truncate"] is False


# --- Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["0.33", "0.24"])
def test_a_refused_request_is_repeated_with_a_larger_window(
    run: Run, ollama: StandIn, home: Path, dialect: str
) -> None:
    ollama.set(dialect=dialect)
    # One-letter words: twice as many tokens as their length suggests.
    turn = ask(run, None, "--model", "viewer", prompt="a " * 10000)
    assert sizes(ollama) == [8192, 16384]
    assert [chat["truncate"] for chat in ollama.chats()] == [False, False]
    assert sent(ollama)[0] == sent(ollama)[1]
    assert turn["window"] == {
        "tokens": turn["prompt_eval_count"] + turn["eval_count"], "limit": 64000, "num_ctx": 16384,
        "messages_sent": 1, "messages_left_out": 0, "truncated": False,
    }  # fmt: skip
    assert len(said(the_file(home))) == 2


@pytest.mark.parametrize("dialect", ["0.33", "0.24"])
def test_a_prompt_refused_twice_is_taken_back(run: Run, ollama: StandIn, home: Path, dialect: str) -> None:
    ollama.set(dialect=dialect, models={"tiny": TINY})
    path = stores.make(home, data=counted(6, model="tiny"))
    before = path.read_bytes()
    error = fail(run("-p", "a " * 1100, "--session-id", path.stem), "context_too_small")
    assert error["hint"]
    assert error["session_id"] == path.stem
    assert 1 <= len(ollama.chats()) <= 2, "asked once more at most"
    assert path.read_bytes() == before
    assert ask(run, path)["window"]["messages_sent"] == 13


def test_a_server_that_refuses_for_ever_is_asked_twice(run: Run, ollama: StandIn, home: Path) -> None:
    said_no = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}
    message = "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it"
    body = {"error": json.dumps({"error": {**said_no, "message": message}})}
    ollama.fail("status", status=400, body=body, times=None)
    path = stores.make(home, data=counted(6, model="viewer"))
    before = path.read_bytes()
    fail(run("-p", "Hi", "--session-id", path.stem), "context_too_small")
    assert len(ollama.chats()) == 2
    assert path.read_bytes() == before
    fail(run("-p", "Hi", "--model", "viewer"), "context_too_small")
    assert files(home) == [path]


def test_a_prompt_above_the_limit_is_neither_sent_nor_stored(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(2))
    before = path.read_bytes()
    fail(run("-p", "word " * 900, "--session-id", path.stem, "--max-context-tokens", "500"), "context_too_small")
    assert ollama.chats() == []
    assert path.read_bytes() == before
    assert ask(run, path)["window"]["limit"] == 8192, "the limit of the failed turn is not kept"


def test_of_a_long_first_prompt_nothing_is_said_to_be_left_out(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(models={"tiny": TINY})
    assert run("-p", "word " * 900, "--model", "tiny").stderr == ""
    assert "window" not in records(the_file(home))[-1]
    assert run("-p", "word " * 900, "--model", "tiny", "--no-session").stderr == ""


# --- What the model really got ---------------------------------------------------------------------


def answered(standin: StandIn, prompt_tokens: int) -> None:
    """Let the next chat be answered by a server that counts so much."""
    counts = {"done": True, "done_reason": "stop", "prompt_eval_count": prompt_tokens, "eval_count": 1}
    chunk = {"model": "smollm2", "message": {"role": "assistant", "content": "Yes."}, **counts}
    standin.fail("status", status=200, body=json.dumps(chunk) + "\n", content_type="application/x-ndjson")


def test_truncated_needs_evidence(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home, data=counted(9))
    assert ask(run, path)["window"]["truncated"] is False
    answered(ollama, 400)
    assert ask(run, path)["window"]["truncated"] is True
    answered(ollama, 20)
    assert ask(run, path, "--system", "Another.")["window"]["truncated"] is False
