"""Asking, as a user or a script does: the real command against the stand-in server."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import screens
import stores
from conftest import tree
from stores import fail, records, said, succeed, the_file

from ollama_prompt import render

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Result, Run, Start
    from standin import StandIn

Json = dict[str, Any]

TURN_KEYS = [
    "model", "created_at", "response", "done", "done_reason", "total_duration", "load_duration", "prompt_eval_count",
    "prompt_eval_duration", "eval_count", "eval_duration", "session_id", "window",
]  # fmt: skip
WINDOW_KEYS = ["tokens", "limit", "num_ctx", "messages_sent", "messages_left_out", "truncated"]


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def ask(run: Run, *args: str, **more: Any) -> Json:
    """The turn that was printed."""
    return succeed(run("-p", "Hi", *args, **more)).json


def options(standin: StandIn) -> list[Json]:
    """The options of every chat, without the window."""
    return [{key: value for key, value in chat["options"].items() if key != "num_ctx"} for chat in standin.chats()]


def last_answer(path: Path) -> Json:
    return records(path)[-1]


# -- the turn that is printed ------------------------------------------------------------------------------


def test_turn(run: Run, ollama: StandIn, home: Path) -> None:
    result = succeed(run("--prompt", "How are you?"))
    assert list(result.json) == TURN_KEYS
    assert list(result.json["window"]) == WINDOW_KEYS
    assert result.json["response"] == "Answer to: How are you? (messages: 1)"
    assert result.json["model"] == "smollm2"
    assert result.json["done"] is True
    assert result.stderr == ""
    (chat,) = ollama.chats()
    assert chat == {
        "model": "smollm2", "messages": [{"role": "user", "content": "How are you?"}],
        "options": {"num_ctx": 8192}, "truncate": False, "stream": True,
    }  # fmt: skip
    session_id = result.json["session_id"]
    assert the_file(home).name == f"{session_id}.jsonl"
    header, prompt, answer = records(the_file(home))
    assert list(header) == ["type", "version", "session_id", "created_at", "model", "max_context_tokens"]
    assert list(prompt) == ["type", "id", "role", "content", "created_at"]
    assert list(answer) == [*prompt, "model", "prompt_tokens", "tokens", "done_reason"]


def test_turn_is_indented_and_ends_in_a_newline(run: Run) -> None:
    printed = run("-p", "Hi").stdout
    assert printed.startswith('{\n  "model": ')
    assert printed.endswith("\n}\n")


def test_follow_up_has_the_context(run: Run, ollama: StandIn, home: Path) -> None:
    first = ask(run)
    second = succeed(run("--session-id", first["session_id"].upper(), "-p", "And?")).json
    assert second["session_id"] == first["session_id"]
    assert second["response"] == "Answer to: And? (messages: 3)"
    assert second["window"] == {
        "tokens": second["prompt_eval_count"] + second["eval_count"], "limit": 8192, "num_ctx": 8192,
        "messages_sent": 3, "messages_left_out": 0, "truncated": False,
    }  # fmt: skip
    assert [message["content"] for message in ollama.chats()[1]["messages"]] == ["Hi", first["response"], "And?"]
    assert len(said(the_file(home))) == 4


def test_thinking_is_printed_and_stored_only_where_there_is_any(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="Hm, hm.")
    result = ask(run, "--model", "thinker")
    assert list(result) == [*TURN_KEYS[:3], "thinking", *TURN_KEYS[3:]]
    assert result["thinking"] == "Hm, hm."
    assert last_answer(the_file(home))["thinking"] == "Hm, hm."
    assert run("-p", "Hi", "--model", "thinker", "--no-session", "--output", "text").stdout == f"{result['response']}\n"


def test_keys_that_ollama_adds_are_passed_on(run: Run, ollama: StandIn) -> None:
    chunk = {"model": "m", "message": {"role": "assistant", "content": "Yes"}, "done": True, "novelty": [1]}
    ollama.fail("status", status=200, body=json.dumps(chunk) + "\n", content_type="application/x-ndjson")
    result = ask(run, "--no-session")
    assert result["novelty"] == [1]
    assert "message" not in result


def test_no_key_of_ours_is_taken_from_the_server(run: Run, ollama: StandIn, home: Path) -> None:
    last = {"message": {"content": "Yes"}, "done": True, "session_id": "x", "window": "y", "thinking": "z"}
    ollama.fail("status", status=200, body=last, times=2)
    assert not ask(run, "--no-session").keys() & {"session_id", "thinking"}
    turn = ask(run)
    assert turn["session_id"] == the_file(home).stem
    assert list(turn["window"]) == WINDOW_KEYS
    assert "thinking" not in turn


@pytest.mark.parametrize(
    ("prompt_tokens", "tokens", "total"), [(-5, 7, 7), (9, True, 9), (2**60, 7, 7), (None, "7", None), (1.5, -1, None)]
)
def test_counts_that_are_none_are_neither_shown_nor_stored(
    run: Run, ollama: StandIn, home: Path, prompt_tokens: object, tokens: object, total: int | None
) -> None:
    last = {"message": {"content": "Yes"}, "done": True, "prompt_eval_count": prompt_tokens, "eval_count": tokens}
    ollama.fail("status", status=200, body=last)
    turn, answer = ask(run), last_answer(the_file(home))
    assert (turn["window"]["tokens"], turn["window"]["truncated"]) == (total, False)
    for key, stored, count in (("prompt_eval_count", "prompt_tokens", prompt_tokens), ("eval_count", "tokens", tokens)):
        assert turn.get(key, total) == answer.get(stored, total) == total, count


def test_output_text_is_the_answer_and_a_newline(run: Run, ollama: StandIn) -> None:
    ollama.set(answers=["One\ntwo", "Ends itself.\n", "", "Größe 😀 \x1b[31m"])
    texts = [run("-p", "Hi", "--no-session", "--output", "text").stdout for _ in range(4)]
    assert texts == ["One\ntwo\n", "Ends itself.\n", "\n", "Größe 😀 \x1b[31m\n"]


def test_output_is_utf_8_whatever_the_locale(run: Run, ollama: StandIn) -> None:
    ollama.set(answer="Größe 😀")
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    assert ask(run, "--no-session", env=env)["response"] == "Größe 😀"
    assert run("-p", "Hi", "--no-session", "--output", "text", env=env).stdout == "Größe 😀\n"


def test_text_is_printed_while_it_arrives(start: Start, ollama: StandIn) -> None:
    ollama.fail("hang_middle", chunks=2)
    process = start("-p", "Hi", "--output", "text")
    assert process.stdout is not None
    assert process.stdout.read(6) == b"Answer"
    assert process.poll() is None


# -- where the prompt comes from ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piped", "prompt"),
    [
        (b"Hi", "Hi"),
        (b"Hi\n", "Hi"),
        (b"Hi\r\n", "Hi"),
        (b" Hi\n\n", " Hi\n"),
        (b"a\r\nb\r\n", "a\r\nb"),
        (b"\xef\xbb\xbfcaf\xc3\xa9\r\n", "café"),
        ("café\r\n".encode("utf-16"), "café"),
        (b"\xfe\xff" + "café\n".encode("utf-16-be"), "café"),
        (b"caf\xe9!", "caf\ufffd!"),
        (b"a\x00b", "a\x00b"),
    ],
)
def test_stdin_is_the_prompt(run: Run, ollama: StandIn, piped: bytes, prompt: str) -> None:
    succeed(run("--no-session", input=piped))
    assert ollama.chats()[0]["messages"][0]["content"] == prompt


def test_dash_is_stdin(run: Run, ollama: StandIn) -> None:
    succeed(run("-p", "-", "--no-session", input="Hi\n"))
    succeed(run("--prompt-file", "-", "--no-session", input="Ho\n"))
    assert [chat["messages"][0]["content"] for chat in ollama.chats()] == ["Hi", "Ho"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipe there can be read without waiting")
def test_a_stdin_that_does_not_wait_is_waited_for(start: Start, ollama: StandIn) -> None:
    """A program that reads from the same pipe may have left it so."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    process = start("--no-session", stdin=reader)
    os.close(reader)
    for piece in (b"The first half", b" and the second"):
        time.sleep(0.5)
        os.write(writer, piece)
    os.close(writer)
    assert process.wait(60) == 0
    assert ollama.chats()[0]["messages"][0]["content"] == "The first half and the second"


def test_stdin_is_not_touched_when_a_prompt_was_given(run: Run, start: Start, ollama: StandIn) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"for the next command\n")
    process = start("-p", "Hi", "--no-session", stdin=reader)
    assert process.wait(60) == 0, "it waited for the end of stdin, or failed"
    assert os.read(reader, 100) == b"for the next command\n"
    os.close(reader)
    os.close(writer)
    assert ollama.chats()[0]["messages"][0]["content"] == "Hi"


def test_a_loop_over_lines_asks_for_each(environment: dict[str, str], ollama: StandIn) -> None:
    loop = f'while read -r line; do {sys.executable} -m ollama_prompt --no-session -p "$line" > /dev/null; done'
    subprocess.run(["bash", "-c", loop], input=b"one\ntwo\nthree\n", env=environment, check=True)
    assert [chat["messages"][0]["content"] for chat in ollama.chats()] == ["one", "two", "three"]


def test_stdin_goes_under_the_prompt_when_asked_for(run: Run, ollama: StandIn) -> None:
    succeed(run("-p", "Review this", "--stdin", "--no-session", input="+ one\n+ two\n"))
    succeed(run("-p", "Review this", "--stdin", "--no-session", input=""))
    succeed(run("-p", "-", "--stdin", "--no-session", input="All of it\n"))
    prompts = [chat["messages"][0]["content"] for chat in ollama.chats()]
    assert prompts == ["Review this\n\n+ one\n+ two", "Review this", "All of it"]


@pytest.mark.parametrize("text", ["Review this", "Review this\n", "Review this\r\n"])
def test_one_blank_line_parts_a_file_and_stdin(run: Run, ollama: StandIn, tmp_path: Path, text: str) -> None:
    (tmp_path / "prompt.txt").write_bytes(text.encode())
    succeed(run("--prompt-file", "prompt.txt", "--stdin", "--no-session", input="+ one\n"))
    assert ollama.chats()[0]["messages"][0]["content"] == "Review this\n\n+ one"


def test_prompt_file(run: Run, ollama: StandIn, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes("\ufeffcafé\r\n".encode())
    succeed(run("--prompt-file", "prompt.txt", "--no-session", cwd=tmp_path))
    assert ollama.chats()[0]["messages"][0]["content"] == "café\r\n"


def test_undecodable_arguments_become_valid_text(run: Run, ollama: StandIn, home: Path) -> None:
    succeed(run("-p", "caf\udce9 ok", "--system", "\udcff", "--title", "t\udcfe"))
    (chat,) = ollama.chats()
    assert [message["content"] for message in chat["messages"]] == ["\ufffd", "caf\ufffd ok"]
    assert records(the_file(home))[0]["title"] == "t\ufffd"


def test_options_that_are_no_valid_text_become_it(run: Run, ollama: StandIn, home: Path) -> None:
    ask(run, "--option", r'foo={"\ud800": "\udc80"}', "--option", "caf\udce9=1", "--option", r'stop=["\ud800"]')
    given = {"foo": {"\ufffd": "\ufffd"}, "caf\ufffd": 1, "stop": ["\ufffd"]}
    assert options(ollama) == [given]
    assert records(the_file(home))[0]["options"] == given


# -- settings ----------------------------------------------------------------------------------------------


def test_flags_reach_the_model_with_their_types(run: Run, ollama: StandIn, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.", encoding="utf-8")
    ask(
        run, "--no-session", "--model", "viewer", "--system-file", "system.txt", "--temperature", "0.5",
        "--max_tokens", "7", "--option", "seed=42", "--option", "stop=END", "--option", 'stop=["a","b"]',
        "--option", "penalize_newline=true", "--option", "top_p=1", "--num-ctx", "2048", "--keep-alive", "-1",
        cwd=tmp_path,
    )  # fmt: skip
    (chat,) = ollama.chats()
    assert chat["model"] == "viewer"
    assert chat["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat["keep_alive"] == -1
    assert chat["options"] == {
        "temperature": 0.5, "num_predict": 7, "seed": 42, "stop": ["END", "a", "b"],
        "penalize_newline": True, "top_p": 1, "num_ctx": 2048,
    }  # fmt: skip


def test_settings_are_kept_with_the_session(run: Run, ollama: StandIn, home: Path) -> None:
    given = {
        "model": "viewer", "max_context_tokens": 5000, "system": "Be brief.", "title": "Tests",
        "options": {"temperature": 0.0, "num_predict": 50, "seed": 1}, "num_ctx": 4096, "keep_alive": "10m",
    }  # fmt: skip
    session_id = ask(
        run, "--model", "viewer", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "50",
        "--option", "seed=1", "--num-ctx", "4096", "--keep-alive", "10m", "--max-context-tokens", "5000",
        "--title", " Tests\n",
    )["session_id"]  # fmt: skip
    assert given.items() <= records(the_file(home))[0].items()
    second = ask(run, "--session-id", session_id)
    first_chat, second_chat = ollama.chats()
    assert first_chat | {"messages": []} == second_chat | {"messages": []}
    assert second_chat["messages"][0] == {"role": "system", "content": "Be brief."}
    assert second["window"]["limit"] == 5000
    assert second["window"]["num_ctx"] == 4096
    assert not [record for record in records(the_file(home)) if record["type"] == "meta"]


def test_settings_change_when_given_again(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = ask(run, "--system", "Be brief.", "--option", "seed=1")["session_id"]
    changes = ("--model", "viewer", "--system", "", "--max-context-tokens", "900", "--title", "New", "--num-ctx", "512")
    ask(run, "--session-id", session_id, *changes)
    meta = next(record for record in records(the_file(home)) if record["type"] == "meta")
    assert list(meta)[:3] == ["type", "id", "created_at"]
    changed = {"model": "viewer", "system": "", "max_context_tokens": 900, "title": "New", "num_ctx": 512}
    assert {key: value for key, value in meta.items() if key not in {"type", "id", "created_at"}} == changed
    third = ask(run, "--session-id", session_id)
    assert third["model"] == "viewer"
    assert third["window"]["limit"] == 900
    assert [message["role"] for message in ollama.chats()[2]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert ollama.chats()[2]["options"] == {"seed": 1, "num_ctx": 512}
    ask(run, "--session-id", session_id, "--model", "viewer")
    assert [record["type"] for record in records(the_file(home))].count("meta") == 1, "nothing changed"


def test_options_are_given_one_by_one(run: Run, ollama: StandIn) -> None:
    session_id = ask(run, "--option", "seed=1", "--temperature", "0.5")["session_id"]
    ask(run, "--session-id", session_id, "--temperature", "0.9", "--max-tokens", "20")
    ask(run, "--session-id", session_id)
    merged = {"seed": 1, "temperature": 0.9, "num_predict": 20}
    assert options(ollama) == [{"seed": 1, "temperature": 0.5}, merged, merged]


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 400}, {"kind": "cut"}, {"kind": "status", "status": 500}]
)
def test_settings_of_a_failed_turn_are_not_kept(run: Run, ollama: StandIn, fault: Json) -> None:
    session_id = ask(run, "--temperature", "0.1")["session_id"]
    ollama.fail(**{"body": {"error": "no"}, **fault})
    failed = run("-p", "Hi", "--session-id", session_id, "--model", "viewer", "--temperature", "0.7", "--system", "X")
    assert failed.returncode == 1
    assert ask(run, "--session-id", session_id)["model"] == "smollm2"
    assert options(ollama)[1:] == [{"temperature": 0.7}, {"temperature": 0.1}]
    assert ollama.chats()[2]["messages"][0]["role"] == "user", "the system prompt of the failed turn"


def test_the_environment_is_for_new_sessions(run: Run, ollama: StandIn, home: Path) -> None:
    env = {"OLLAMA_PROMPT_MODEL": "viewer", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS": "3000"}
    first = ask(run, env=env)
    assert (first["model"], first["window"]["limit"]) == ("viewer", 3000)
    again = ask(run, "--session-id", first["session_id"])
    assert (again["model"], again["window"]["limit"]) == ("viewer", 3000)
    flags = ask(run, "--model", "thinker", "--max-context-tokens", "2000", "--no-session", env=env)
    assert (flags["model"], flags["window"]["limit"]) == ("thinker", 2000)


def test_an_empty_variable_counts_as_not_set(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(cloud="ok")
    names = ("OLLAMA_PROMPT_MODEL", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS", "OLLAMA_PROMPT_DB_PATH", "OLLAMA_API_KEY")
    turn = ask(run, env=dict.fromkeys(names, ""))
    assert turn["model"] == "deepseek-v3.1:671b-cloud"
    assert turn["window"]["limit"] == 64000
    assert (home / "sessions.db").exists()


def test_db_path_alone_moves_the_store(run: Run, tmp_path: Path, home: Path) -> None:
    env = {"OLLAMA_PROMPT_HOME": "", "OLLAMA_PROMPT_DB_PATH": "~/elsewhere/my.db"}
    ask(run, env=env)
    assert (tmp_path / "elsewhere" / "my.db").is_file()
    assert the_file(tmp_path / "elsewhere")
    assert not home.exists()


def test_db_path_with_home_moves_the_index_only(run: Run, tmp_path: Path, home: Path) -> None:
    (tmp_path / "index").mkdir()
    ask(run, env={"OLLAMA_PROMPT_DB_PATH": str(tmp_path / "index" / "i.db")})
    assert (tmp_path / "index" / "i.db").is_file()
    assert the_file(home)
    assert not (home / "sessions.db").exists()


def test_the_api_key_goes_to_the_host(run: Run, ollama: StandIn) -> None:
    ollama.set(api_key="sesame")
    ask(run, "--no-session", env={"OLLAMA_API_KEY": "sesame"})
    error = fail(run("-p", "Hi", "--no-session"), "signin_required")
    assert "OLLAMA_API_KEY" in error["hint"]


# -- the window --------------------------------------------------------------------------------------------


def test_no_num_ctx_for_a_cloud_model(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(cloud="ok")
    result = succeed(run("-p", "Hi", "--model", "big:cloud", "--num-ctx", "4096"))
    assert result.stderr == "note: a cloud model chooses its window itself: --num-ctx is kept, but not sent\n"
    assert result.json["window"]["num_ctx"] is None
    assert result.json["window"]["limit"] == 64000
    assert ollama.chats()[0]["options"] == {}
    assert records(the_file(home))[0]["num_ctx"] == 4096


def test_old_messages_are_left_out_and_said_so(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer_tokens=200)
    session_id = ask(run, "--max-context-tokens", "1000", "--max-tokens", "200")["session_id"]
    results = [run("-p", "Hi", "--session-id", session_id) for _ in range(5)]
    windows = [succeed(result).json["window"] for result in results]
    assert windows[-1]["messages_left_out"] > 0
    assert windows[-1]["messages_sent"] + windows[-1]["messages_left_out"] == 11
    assert all(window["tokens"] <= 1000 and not window["truncated"] for window in windows)
    assert len(said(the_file(home))) == 12, "trimming changes what is sent, never what is stored"
    moved = next(result for result in results if result.json["window"]["messages_left_out"])
    assert moved.stderr.startswith("note: ")
    assert last_answer(the_file(home))["window"].keys() == {"start", "limit", "left_out"}


@pytest.mark.parametrize("dialect", ["0.33", "0.24"])
def test_a_refused_prompt_is_asked_again_with_less(run: Run, ollama: StandIn, home: Path, dialect: str) -> None:
    ollama.set(dialect=dialect, models={"tiny": {"limit": 400, "capabilities": ["completion"]}}, answer_tokens=30)
    session_id = ask(run, "--model", "tiny")["session_id"]
    for _ in range(3):
        ask(run, "--session-id", session_id)
    ollama.forget()
    # One-letter words: far more tokens than their length suggests.
    result = succeed(run("-p", "a " * 280, "--session-id", session_id))
    assert len(ollama.chats()) == 2
    assert len(ollama.chats()[1]["messages"]) < len(ollama.chats()[0]["messages"])
    assert result.json["window"]["messages_left_out"] > 0
    assert result.json["window"]["messages_sent"] == len(ollama.chats()[1]["messages"])


@pytest.mark.parametrize("dialect", ["0.33", "0.24"])
def test_a_prompt_that_the_server_finds_too_large_leaves_nothing(
    run: Run, ollama: StandIn, home: Path, dialect: str
) -> None:
    ollama.set(dialect=dialect, models={"tiny": {"limit": 100, "capabilities": ["completion"]}})
    error = fail(run("-p", "a " * 150, "--model", "tiny"), "context_too_small")
    assert error["hint"]
    assert not list(home.glob("sessions/*/*"))


def test_a_prompt_that_is_plainly_too_large_is_not_sent(run: Run, ollama: StandIn, home: Path) -> None:
    error = fail(run("-p", "word " * 500, "--max-context-tokens", "100"), "context_too_small")
    assert "--max-context-tokens" in error["hint"]
    assert ollama.chats() == []
    assert not home.exists()


# -- nothing is kept ---------------------------------------------------------------------------------------


def test_no_session_leaves_no_trace(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    turn = ask(run, "--no-session", "--system", "Be brief.")
    assert list(turn) == [key for key in TURN_KEYS if key != "session_id"]
    assert turn["window"]["messages_sent"] == 1
    assert tree(tmp_path) == before


def test_no_session_leaves_a_store_as_it_was(run: Run, ollama: StandIn, home: Path) -> None:
    ask(run)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}, tree(home)
    ask(run, "--no-session")
    ollama.fail("cut")
    fail(run("-p", "Hi", "--no-session"), "incomplete_answer")
    assert ({path: path.stat().st_mtime_ns for path in home.rglob("*")}, tree(home)) == before


# -- failures ----------------------------------------------------------------------------------------------

REFUSALS = [
    pytest.param({"kind": "status", "status": 400, "body": {"error": "no"}}, "ollama_error", id="400"),
    pytest.param({"kind": "status", "status": 401, "body": {"error": "unauthorized"}}, "signin_required", id="401"),
    pytest.param({"kind": "status", "status": 403}, "ollama_error", id="403"),
    pytest.param({"kind": "status", "status": 404, "body": {"error": "not found"}}, "model_not_found", id="404"),
    pytest.param(
        {"kind": "status", "status": 400, "body": {"error": '"x" does not support thinking'}},
        "model_unsupported", id="unsupported",
    ),
    pytest.param({"kind": "redirect", "location": "http://127.0.0.1:1/api/chat"}, "ollama_error", id="redirect"),
]  # fmt: skip
DEEP = '{"error":' * 1000 + "1" + "}" * 1000
DONE = '{"message": {}, "done": %s}'
BROKEN_OFF = [
    pytest.param({"kind": "status", "status": 500, "body": {"error": "boom"}}, "ollama_error", "", id="500"),
    pytest.param({"kind": "status", "status": 502, "body": "<html>"}, "ollama_error", "", id="502 of a proxy"),
    pytest.param({"kind": "html"}, "ollama_error", "", id="html"),
    pytest.param({"kind": "error_line"}, "ollama_error", "Answer to", id="error in the stream"),
    pytest.param({"kind": "junk_line"}, "ollama_error", "Answer to", id="junk in the stream"),
    pytest.param(
        {"kind": "junk_line", "text": '{"message": {"thinking": ["x"]}}'}, "ollama_error", "Answer to", id="no thoughts"
    ),
    pytest.param(
        {"kind": "junk_line", "text": f'{{"message": {{}}, "done": true, "x": {DEEP}}}'},
        "ollama_error", "Answer to", id="a deep end",
    ),
    pytest.param({"kind": "error_line", "message": DEEP}, "ollama_error", "Answer to", id="a deep error"),
    pytest.param({"kind": "junk_line", "text": DONE % "1"}, "incomplete_answer", "Answer to", id="done: 1"),
    pytest.param({"kind": "junk_line", "text": DONE % '"true"'}, "incomplete_answer", "Answer to", id="done: text"),
    pytest.param({"kind": "junk_line", "text": DONE % "[0]"}, "incomplete_answer", "Answer to", id="done: [0]"),
    pytest.param({"kind": "no_done", "tail": '{"mess'}, "incomplete_answer", "Answer to", id="cut in a line"),
    pytest.param({"kind": "empty"}, "incomplete_answer", "", id="empty"),
    pytest.param({"kind": "cut"}, "incomplete_answer", "Answer to", id="cut"),
    pytest.param({"kind": "no_done"}, "incomplete_answer", "Answer to", id="no done"),
    pytest.param({"kind": "close"}, "incomplete_answer", "", id="closed"),
    pytest.param({"kind": "hang_middle"}, "timeout", "Answer to", id="hangs"),
    pytest.param({"kind": "trickle", "delay": 5}, "timeout", "more ", id="trickles"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "code"), REFUSALS)
def test_what_is_refused_leaves_nothing(run: Run, ollama: StandIn, home: Path, fault: Json, code: str) -> None:
    session_id = ask(run)["session_id"]
    before = the_file(home).read_bytes()
    ollama.fail(**fault, times=2)
    error = fail(run("-p", "Secret", "--session-id", session_id), code)
    assert error["session_id"] == session_id
    assert the_file(home).read_bytes() == before
    fresh = home.with_name("fresh")
    error = fail(run("-p", "Secret", env={"OLLAMA_PROMPT_HOME": str(fresh)}), code)
    assert "session_id" not in error
    assert not list(fresh.glob("sessions/*/*"))
    assert not list(fresh.glob("locks/*-*"))


def test_what_is_refused_before_it_is_sent_makes_no_folder(run: Run, ollama: StandIn, home: Path) -> None:
    fail(run("-p", "Hi", "--model", "absent"), "model_not_found")
    fail(run("-p", "Hi", env={"OLLAMA_HOST": "127.0.0.1:1"}), "ollama_unreachable")
    fail(run("-p", "Hi", "--session-id", stores.new_id(1)), "session_not_found")
    fail(run("-p", "Hi", "--model", "absent.gguf"), "model_not_found")
    assert ollama.chats() == []
    assert not home.exists()


@pytest.mark.parametrize(("fault", "code", "partial"), BROKEN_OFF)
def test_what_breaks_off_keeps_the_prompt_and_what_came(
    run: Run, ollama: StandIn, home: Path, fault: Json, code: str, partial: str
) -> None:
    ollama.fail(**fault)
    error = fail(run("-p", "Hi", "--timeout", "1" if code == "timeout" else "30"), code)
    assert list(error) == [key for key in ("error", "code", "hint", "session_id") if key in error]
    assert the_file(home).stem == error["session_id"]
    answers = [("assistant", partial)] if partial else []
    assert said(the_file(home)) == [("user", "Hi"), *answers]
    if partial:
        assert last_answer(the_file(home))["done_reason"] == "error"
    again = succeed(run("-p", "Again", "--session-id", error["session_id"])).json
    assert again["window"]["messages_sent"] == (3 if partial else 1)


def test_a_broken_off_answer_with_output_text(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("error_line", message="out of memory")
    result = run("-p", "Hi", "--output", "text")
    assert result.returncode == 1
    assert result.stdout == "Answer to\n", "an error begins on a line of its own"
    retry = f"ollama-prompt --retry {the_file(home).stem} asks it again"
    assert result.stderr == f"error: out of memory\nhint: {retry}\n"


def test_what_was_not_kept_cannot_be_asked_again(run: Run, ollama: StandIn) -> None:
    ollama.fail("error_line", message="out of memory")
    assert "hint" not in fail(run("-p", "Hi", "--no-session"), "ollama_error")


def test_an_error_without_a_word(run: Run, ollama: StandIn) -> None:
    ollama.fail("status", status=500, body={"error": ""})
    assert fail(run("-p", "Hi"), "ollama_error")["error"] == '{"error":""}'


def test_a_busy_server_is_asked_again(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("status", status=503, body={"error": "server busy"}, times=2)
    result = succeed(run("-p", "Hi"))
    assert result.stderr == "note: Ollama is busy; asking again\n"
    assert len(ollama.chats()) == 3
    assert said(the_file(home)) == [("user", "Hi"), ("assistant", result.json["response"])]


def test_a_server_that_stays_busy(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("status", status=503, body={"error": "server busy"}, times=None)
    result = run("-p", "Hi", "--timeout", "1")
    fail(result, "ollama_busy")
    assert result.stderr.splitlines()[0].startswith("note: ")
    assert said(the_file(home)) == [("user", "Hi")]


def test_signing_in_to_the_cloud(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(cloud="signin")
    error = fail(run("-p", "Hi", "--model", "big:cloud"), "signin_required")
    assert "ollama signin" in error["hint"]
    assert not home.exists()


def test_errors_with_output_text(run: Run, ollama: StandIn) -> None:
    result = run("-p", "Hi", "--model", "absent", "--output", "text")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "error: model 'absent:latest' not found\nhint: ollama pull absent\n"


def test_embedded_models_need_the_extra(run: Run, tmp_path: Path, home: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "xllamacpp.py").write_text("raise ImportError('not installed')", encoding="utf-8")
    (tmp_path / "model.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])}
    error = fail(run("-p", "Hi", "--model", "model.gguf", env=env, cwd=tmp_path), "embedded_unavailable")
    assert "embedded" in error["hint"]
    assert not home.exists()


def test_what_cannot_be_decoded_leaves_nothing(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("status", path="/api/show", status=200, body="no gzip", headers={"Content-Encoding": "gzip"})
    assert "session_id" not in fail(run("-p", "Hi"), "ollama_error")
    assert not home.exists()


def test_a_session_in_use(run: Run, start: Start, ollama: StandIn) -> None:
    session_id = ask(run)["session_id"]
    ollama.hold()
    first = start("-p", "Slow", "--session-id", session_id)
    ollama.wait(held=1)
    for action in (("-p", "Hi", "--lock-timeout", "0", "--session-id"), ("--delete",)):
        assert fail(run(*action, session_id), "session_busy", 75)["session_id"] == session_id
    waited = run("-p", "Hi", "--lock-timeout", "0.3", "--session-id", session_id)
    assert fail(waited, "session_busy", 75)
    assert waited.stderr.startswith(f"note: session {session_id} is in use")
    ollama.release()
    assert first.wait(30) == 0


def test_a_newer_format_is_not_appended_to(run: Run, home: Path) -> None:
    session_id = stores.new_id(1)
    path = stores.make(home, 1, stores.line(stores.header(session_id) | {"version": 2}))
    before = path.read_bytes()
    error = fail(run("-p", "Hi", "--session-id", session_id), "store_unreadable")
    assert "upgrade" in error["hint"]
    assert path.read_bytes() == before


def test_a_store_that_cannot_be_made(run: Run, ollama: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = fail(run("-p", "Hi", env={"OLLAMA_PROMPT_HOME": str(tmp_path / "file" / "store")}), "store_write_failed")
    assert "OLLAMA_PROMPT_HOME" in error["hint"]
    assert ollama.chats() == [], "asked although nothing could be kept"


# -- interruptions, and a stdout that is not there ---------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_answer(
    start: Start, run: Run, ollama: StandIn, home: Path, number: signal.Signals, code: int
) -> None:
    ollama.fail("hang_middle", chunks=3)
    process = start("-p", "Hi", "--output", "text")
    assert process.stdout is not None
    said_so_far = process.stdout.read(len("Answer to:"))
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, b"")
    assert (said_so_far + out).decode().startswith("Answer to:")
    assert (said_so_far + out).endswith(b"\n")
    answer = last_answer(the_file(home))
    assert (answer["content"], answer["done_reason"]) == ("Answer to:", "interrupted")
    assert succeed(run("-p", "On", "--session-id", the_file(home).stem)).json["window"]["messages_sent"] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("times", [2, 3])
def test_an_impatient_interruption(start: Start, run: Run, ollama: StandIn, home: Path, times: int) -> None:
    ollama.fail("hang_middle", chunks=3)
    process = start("-p", "Hi", "--output", "text")
    assert process.stdout is not None
    said_so_far = process.stdout.read(len("Answer to:"))
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert (said_so_far + out).strip() == b"Answer to:"
    # The third signal ends the process wherever it is.
    assert said(the_file(home)) in ([[("user", "Hi"), ("assistant", "Answer to:")], [("user", "Hi")]][: times - 1])
    assert succeed(run("--check")).json["damage"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("output", ["json", "text"])
def test_interrupted_with_its_reader(start: Start, ollama: StandIn, output: str) -> None:
    """As by Ctrl-C in `ollama-prompt … | jq`, which ends both."""
    ollama.fail("hang_middle", chunks=3)
    process = start("-p", "Hi", "--output", output)
    ollama.wait(requests=1, path="/api/chat")
    assert process.stdout is not None
    if output == "text":
        assert process.stdout.read(len("Answer to:")) == b"Answer to:"
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert (process.wait(30), process.stderr.read()) == (130, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_it_waits_for_a_session(
    start: Start, ollama: StandIn, home: Path, number: signal.Signals, code: int
) -> None:
    path = stores.make(home)
    ollama.hold()
    start("-p", "Slow", "--session-id", path.stem)
    ollama.wait(held=1)
    before = path.read_bytes()
    process = start("-p", "Hi", "--session-id", path.stem)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"note: session")
    process.send_signal(number)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == code
    assert path.read_bytes() == before
    assert len(ollama.chats()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_an_interrupted_turn_as_json(start: Start, ollama: StandIn, home: Path) -> None:
    ollama.fail("hang")
    process = start("-p", "Hi")
    ollama.wait(requests=1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    turn = json.loads(out)
    assert (turn["done"], turn["done_reason"], turn["response"]) == (False, "interrupted", "")
    assert turn["session_id"] == the_file(home).stem
    assert list(turn["window"]) == WINDOW_KEYS
    assert said(the_file(home)) == [("user", "Hi")]


def run_closed(start: Start, *args: str) -> subprocess.Popen[bytes]:
    """The command with a stdout whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stdout=writer)
    os.close(writer)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_that_went_away(start: Start, ollama: StandIn, home: Path) -> None:
    whole = run_closed(start, "-p", "Hi")
    assert whole.communicate(timeout=30)[1] == b""
    assert whole.returncode == 141
    assert last_answer(the_file(home))["done_reason"] == "stop"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_of_text_that_went_away(start: Start, ollama: StandIn, home: Path) -> None:
    streamed = run_closed(start, "-p", "Hi", "--output", "text")
    assert streamed.communicate(timeout=30)[1] == b""
    assert streamed.returncode == 141
    answer = last_answer(the_file(home))
    assert answer["done_reason"] == "interrupted"
    assert answer["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe there cannot be made so")
@pytest.mark.parametrize("output", ["json", "text"])
def test_a_stdout_that_does_not_wait_is_waited_for(start: Start, ollama: StandIn, output: str) -> None:
    """A program that writes to the same pipe may have left it so."""
    ollama.set(answer="x" * 300_000)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = start("-p", "Hi", "--no-session", "--output", output, stdout=writer)
    os.close(writer)
    time.sleep(2)
    with open(reader, "rb") as file:
        assert file.read().count(b"x") >= 300_000
    assert process.wait(60) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout(start: Start, ollama: StandIn, home: Path, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        process = start("-p", "Hi", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    error = json.loads(process.communicate(timeout=30)[1])
    assert process.returncode == 1
    assert error["code"] == "output_failed"
    assert error["session_id"] == the_file(home).stem, "the turn is stored: say where"
    assert last_answer(the_file(home))["done_reason"] == "stop"


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_half_an_answer_on_stdout_is_a_failure(
    environment: dict[str, str], ollama: StandIn, home: Path, tmp_path: Path, unbuffered: str
) -> None:
    """With PYTHONUNBUFFERED Python's own stdout takes a write that is cut for a whole one."""
    ollama.set(answer="x" * 300_000)
    command = f"ulimit -f 100; {sys.executable} -m ollama_prompt -p Hi --no-session > answer.json"
    env = environment | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], env=env, cwd=tmp_path, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "output_failed"


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_a_closed_stdout_is_found_before_asking(environment: dict[str, str], ollama: StandIn, home: Path) -> None:
    command = f"{sys.executable} -m ollama_prompt -p Hi >&-"
    done = subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "output_failed"
    assert ollama.requests() == []


# -- a terminal --------------------------------------------------------------------------------------------


def in_terminal(environment: dict[str, str], *args: str) -> tuple[int, str]:
    """Run the command in a terminal of its own: (exit code, what it showed)."""
    return screens.shown(["-m", "ollama_prompt", *args], environment | {"TERM": "xterm", "NO_COLOR": "1"})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_in_a_terminal(environment: dict[str, str], ollama: StandIn) -> None:
    ollama.set(answer="Red: \x1b[31m!")
    code, shown = in_terminal(environment, "-p", "Hi", "--output", "text", "--no-session")
    assert code == 0
    assert shown == "waiting for smollm2 …\r\x1b[KRed: \\x1b[31m!\r\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_a_terminal_that_tells_no_size(environment: dict[str, str], ollama: StandIn) -> None:
    command, with_term = ["-m", "ollama_prompt"], environment | {"TERM": "xterm", "NO_COLOR": "1"}
    asked = [*command, "-p", "Hi", "--output", "text", "--no-session"]
    assert screens.shown(asked, with_term, 0, 0)[1].startswith("waiting for smollm2 …\r\x1b[K")
    wide = screens.shown([*command, "--help"], with_term, columns=100)
    assert screens.shown([*command, "--help"], with_term, 0, 0) == wide


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_ctrl_c_in_a_terminal_stops_a_loop_of_bash(
    environment: dict[str, str], ollama: StandIn, home: Path, tmp_path: Path
) -> None:
    import pty

    ollama.set(delay=0.2)
    loop = f"for n in 1 2 3; do {sys.executable} -m ollama_prompt -p Hi > $n; done"
    child, ours = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "-c", loop], environment)
    while not ollama.chats():
        time.sleep(0.05)
    os.write(ours, b"\x03")
    _, status = os.waitpid(child, 0)
    os.close(ours)
    assert os.waitstatus_to_exitcode(status) in {130, -signal.SIGINT}
    assert len(ollama.chats()) == 1
    assert not (tmp_path / "2").exists()
    assert said(the_file(home))[0] == ("user", "Hi")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ({"kind": "error_line", "message": "no memory"}, "Answer to\r\nerror: no memory\r\n"),
        ({"kind": "error_line", "message": "no memory", "chunks": 0}, "error: no memory\r\n"),
        (
            {"kind": "status", "status": 503, "body": {"error": "busy"}},
            "note: Ollama is busy; asking again\r\nAnswer to: Hi (messages: 1)\r\n",
        ),
    ],
)
def test_remarks_begin_on_lines_of_their_own(
    environment: dict[str, str], ollama: StandIn, fault: Json, shown: str
) -> None:
    ollama.fail(**fault)
    _, got = in_terminal(environment, "-p", "Hi", "--output", "text", "--no-session")
    assert got == "waiting for smollm2 …\r\x1b[K" + shown


@pytest.mark.parametrize(
    "text", ["a\n\tb", "«\u00a0où\u202f?\u00a0»", "漢\u3000字", "\u0645\u06cc\u200c\u062e", "👩\u200d👧", "e\u0301"]
)
def test_what_text_is_written_with_stays(text: str) -> None:
    assert render.visible(text) == text


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        ("\x00", r"\x00"), ("\x07", r"\x07"), ("\b", r"\x08"), ("\r", r"\r"), ("\x1b", r"\x1b"), ("\x7f", r"\x7f"),
        ("\x85", r"\x85"), ("\x9b", r"\x9b"), ("\u061c", r"\u061c"), ("\u200f", r"\u200f"), ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"), ("\u2069", r"\u2069"), ("\ud800", r"\ud800"),
    ],
)  # fmt: skip
def test_what_moves_the_cursor_or_turns_the_line_is_escaped(char: str, shown: str) -> None:
    assert render.visible(f"a{char}b") == f"a{shown}b"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_a_terminal_is_no_prompt(environment: dict[str, str], ollama: StandIn) -> None:
    code, shown = in_terminal(environment, "--output", "text")
    assert code == 2
    assert shown.startswith("error: there is no prompt\r\nhint: ")


def test_results_show(run: Run) -> None:
    result: Result = run("--version")
    assert repr(result).startswith("<exit 0\nstdout: ollama-prompt ")
