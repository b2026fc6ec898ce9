"""Structured output and thinking, as a user or a script asks for them: the real command against the stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from stores import fail, records, said, succeed, the_file
from test_cli_asking import in_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn

Json = dict[str, Any]

SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city"],
}
CITY = '{"city": "Köln", "people": 1000000}'
HEAD = ["model", "created_at", "response"]


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


def inline(schema: Json) -> str:
    return json.dumps(schema)


def formats(standin: StandIn) -> list[object]:
    """What every chat asked for."""
    return [chat.get("format") for chat in standin.chats()]


def thinks(standin: StandIn) -> list[object]:
    """What every chat said of thinking; "" for nothing."""
    return [chat.get("think", "") for chat in standin.chats()]


# -- format: what is sent, printed and stored --------------------------------------------------------------


def test_any_json(run: Run, ollama: StandIn) -> None:
    turn = succeed(run("-p", "Hi", "--format", "json")).json
    assert formats(ollama) == ["json"]
    assert turn["response"] == '{"ok": true}'
    assert turn["parsed"] == {"ok": True}
    assert list(turn)[:5] == [*HEAD, "parsed", "done"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_schema_from_a_file(run: Run, ollama: StandIn, tmp_path: Path, encoding: str) -> None:
    """As editors write it, and Out-File of PowerShell."""
    schema = {**SCHEMA, "description": "Größe"}
    (tmp_path / "city.json").write_bytes((json.dumps(schema, ensure_ascii=False) + "\r\n").encode(encoding))
    ollama.set(answer=CITY)
    result = succeed(run("-p", "Hi", "--format", "city.json", cwd=tmp_path))
    assert formats(ollama) == [schema]
    assert result.json["parsed"] == {"city": "Köln", "people": 1000000}
    assert result.stderr == ""


def test_a_schema_as_it_is(run: Run, ollama: StandIn) -> None:
    ollama.set(answer=CITY)
    assert succeed(run("-p", "Hi", "--format", inline(SCHEMA))).json["parsed"]["city"] == "Köln"
    (chat,) = ollama.chats()
    assert json.dumps(chat["format"]) == inline(SCHEMA), "keys in another order have the model write in another order"
    assert "format" not in chat["options"]


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_a_schema_from_another_program(environment: dict[str, str], ollama: StandIn) -> None:
    ollama.set(answer=CITY)
    command = f"{sys.executable} -m ollama_prompt -p Hi --format <(echo '{inline(SCHEMA)}') | jq -e .parsed.people"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)
    if b"jq: command not found" in done.stderr:
        pytest.skip("no jq")
    assert done.stdout == b"1000000\n", done
    assert formats(ollama) == [SCHEMA]


@pytest.mark.parametrize("output", ["json", "ndjson"])
@pytest.mark.parametrize("session", [(), ("--no-session",)])
def test_the_value_follows_what_was_thought(run: Run, ollama: StandIn, output: str, session: tuple[str, ...]) -> None:
    ollama.set(thinking="Hm.", answer=CITY)
    result = succeed(run("-p", "Hi", "--model", "thinker", "--format", inline(SCHEMA), "--output", output, *session))
    turn = result.json if output == "json" else result.events[-1]
    assert [key for key in turn if key != "event"][:6] == [*HEAD, "thinking", "parsed", "done"]
    assert (turn["response"], turn["parsed"]) == (CITY, json.loads(CITY))


def test_text_is_the_answer_alone(run: Run, ollama: StandIn) -> None:
    ollama.set(answer=CITY)
    result = succeed(run("-p", "Hi", "--format", "json", "--output", "text"))
    assert (result.stdout, result.stderr) == (CITY + "\n", "")


@pytest.mark.parametrize(
    "answer", ["[]", "0", "null", "false", '""', '"text"', "-1.5e3", ' {"a":\n1} ', '"\\ud800"', '"\\u2028"', "1" * 300]
)
def test_any_kind_of_json_is_parsed(run: Run, ollama: StandIn, answer: str) -> None:
    ollama.set(answer=answer)
    turn = succeed(run("-p", "Hi", "--format", "json")).json
    assert (turn["response"], turn["parsed"]) == (answer, json.loads(answer))
    assert "parsed" in turn


def test_without_a_format_nothing_is_parsed(run: Run, ollama: StandIn) -> None:
    ollama.set(answer=CITY)
    assert "parsed" not in succeed(run("-p", "Hi")).json


def test_the_format_is_for_one_answer(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run("-p", "Hi", "--format", inline(SCHEMA))).json["session_id"]
    turn = succeed(run("-p", "And?", "--session-id", session_id)).json
    assert formats(ollama) == [SCHEMA, None]
    assert "parsed" not in turn
    assert b"format" not in the_file(home).read_bytes()
    assert b"parsed" not in the_file(home).read_bytes()
    assert "parsed" not in json.dumps(succeed(run("--session-info", session_id)).json)
    assert succeed(run("--retry", session_id, "--format", "json")).json["parsed"] == {"ok": True}
    assert formats(ollama)[2] == "json"


def test_an_old_session_is_asked_for_a_format(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home)
    assert succeed(run("-p", "Hi", "--session-id", path.stem, "--format", "json")).json["parsed"] == {"ok": True}
    assert [record["type"] for record in records(path)].count("meta") == 0


def test_no_key_of_ours_is_taken_from_the_server(run: Run, ollama: StandIn) -> None:
    last = {"message": {"content": "[1]"}, "done": True, "parsed": "x"}
    ollama.fail("status", status=200, body=last, times=2)
    assert "parsed" not in succeed(run("-p", "Hi", "--no-session")).json
    assert succeed(run("-p", "Hi", "--no-session", "--format", "json")).json["parsed"] == [1]


# -- format: what is none ----------------------------------------------------------------------------------

NOT_HEAVY = """
import sys
from ollama_prompt.cli import main
code = main(sys.argv[1:])
assert not {"httpx", "filelock", "sqlite3"} & set(sys.modules), "imported for nothing"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "not valid JSON"),
        ("{'type': 'object'}", "not valid JSON"),
        ('{"minimum": NaN}', "NaN"),
        ('{"minimum": 99999999999999999999}', "too large"),
        ('{"type": "objekt"}', "$.type"),
        ('{"type": 5}', "$.type"),
        ('{"$schema": []}', "$schema"),
        ('{"required": "city"}', "$.required"),
        ('{"const": "\\ud800"}', "Unicode"),
        ('{"const": "caf\udce9"}', "Unicode"),
        ('{"items":' * 500 + "{}" + "}" * 500, "too deep"),
        ('{"$ref": "http://127.0.0.1:1/schema.json"}', "not in it"),
        ("missing.json", "No such file"),
        ("folder", "folder"),
        ("list.json", "must be a JSON object"),
        ("picture.png", "not valid JSON"),
        ("empty.json", "not valid JSON"),
        ("", "cannot read"),
        ("XML", "cannot read"),
    ],
)
@pytest.mark.parametrize("session", ["new", "old", "none"])
def test_what_is_no_format(
    run: Run, ollama: StandIn, home: Path, tmp_path: Path, value: str, said: str, session: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "empty.json").touch()
    path = stores.make(home) if session == "old" else None
    before = tree(home)
    more = {"new": (), "old": ("--session-id", path.stem if path else ""), "none": ("--no-session",)}[session]
    error = fail(run("-p", "Hi", "--format", value, *more, cwd=tmp_path), "usage", 2)
    assert "--format" in error["error"]
    assert said in error["error"]
    assert len(error["error"]) < 500
    assert ollama.requests() == []
    assert tree(home) == before


@pytest.mark.parametrize("value", ["{", '{"type": 5}', "missing.json"])
def test_it_is_found_before_anything_heavy_is_imported(environment: dict[str, str], value: str) -> None:
    command = [sys.executable, "-c", NOT_HEAVY, "-p", "Hi", "--format", value]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr


def test_any_json_needs_no_library_for_schemas(environment: dict[str, str], ollama: StandIn) -> None:
    code = NOT_HEAVY.replace('"httpx", "filelock", "sqlite3"', '"jsonschema", "referencing"')
    command = [sys.executable, "-c", code, "-p", "Hi", "--format", "json"]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("action", [("--list-sessions",), ("--check",), ("--purge", "0"), ("--undo", stores.new_id(1))])
def test_an_action_has_no_format(run: Run, home: Path, action: tuple[str, ...]) -> None:
    fail(run(*action, "--format", "json"), "usage", 2)
    assert not home.exists()


# -- format: answers that are not what was asked for -------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ['{"city": "Kö', "Sure! Here it is:", "", "NaN", '{"a": 1e999}', "[Infinity]", "{} {}"]
)
def test_an_answer_that_is_no_json(run: Run, ollama: StandIn, home: Path, answer: str) -> None:
    ollama.set(answer=answer)
    result = run("-p", "Hi", "--format", "json")
    error = fail(result, "incomplete_answer")
    assert "not valid JSON" in error["error"]
    assert result.stdout == ""
    assert error["session_id"] == the_file(home).stem
    answered = records(the_file(home))[-1]
    assert (answered["content"], answered["done_reason"]) == (answer, "stop")
    assert answered["tokens"] == len(answer.split()) or answered["tokens"] >= 0
    assert succeed(run("--check")).json["damage"] == []


def test_an_answer_that_was_cut(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer=CITY)
    error = fail(run("-p", "Hi", "--format", inline(SCHEMA), "--max-tokens", "3"), "incomplete_answer")
    assert "--max-tokens" in error["hint"]
    answered = records(the_file(home))[-1]
    assert (answered["content"], answered["done_reason"], answered["tokens"]) == ('{"city', "length", 3)
    again = succeed(run("--retry", error["session_id"], "--format", inline(SCHEMA), "--max-tokens", "50"))
    assert again.json["parsed"] == json.loads(CITY)


def test_a_server_that_knows_no_formats(run: Run, ollama: StandIn) -> None:
    ollama.set(answer='```json\n{"city": "Köln"}\n```')
    error = fail(run("-p", "Hi", "--format", "json"), "incomplete_answer")
    assert "--format" in error["hint"]
    assert "max-tokens" not in error["hint"]


def test_an_answer_that_is_no_json_is_kept_and_goes_on(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run("-p", "Hi", "--temperature", "0.1")).json["session_id"]
    ollama.set(answers=["no JSON"])
    changes = ("--model", "viewer", "--temperature", "0.7", "--system", "Be brief.", "--title", "New")
    failed = run("-p", "A city?", "--session-id", session_id, "--format", "json", *changes)
    assert fail(failed, "incomplete_answer")["session_id"] == session_id
    assert [record["type"] for record in records(the_file(home))].count("meta") == 0
    turn = succeed(run("-p", "And?", "--session-id", session_id)).json
    assert (turn["model"], turn["window"]["messages_sent"]) == ("smollm2", 5)
    chat = ollama.chats()[-1]
    assert [message["content"] for message in chat["messages"]][2:] == ["A city?", "no JSON", "And?"]
    assert chat["options"] == {"temperature": 0.1, "num_ctx": 8192}
    assert succeed(run("--session-info", session_id)).json["title"] == "Hi"


def test_an_answer_that_is_no_json_without_a_session(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer="no JSON")
    result = run("-p", "Hi", "--format", "json", "--no-session")
    assert "session_id" not in fail(result, "incomplete_answer")
    assert result.stdout == ""
    assert not home.exists()


def test_text_has_been_printed_by_then(run: Run, ollama: StandIn) -> None:
    ollama.set(answer='{"city": "Kö')
    result = run("-p", "Hi", "--format", "json", "--output", "text")
    assert (result.returncode, result.stdout) == (1, '{"city": "Kö\n')
    assert result.stderr.startswith("error: the answer is not valid JSON: ")
    assert "\nhint: " in result.stderr


def test_events_have_been_printed_by_then(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(answer='{"city": "Kö')
    result = run("-p", "Hi", "--format", "json", "--output", "ndjson")
    error = fail(result, "incomplete_answer")
    assert "".join(event["text"] for event in result.events if event["event"] == "token") == '{"city": "Kö'
    assert result.events[-1] == {"event": "error", **error}
    assert error["session_id"] == result.events[0]["session_id"] == the_file(home).stem


@pytest.mark.parametrize("depth", [150, 500, 900, 990])
@pytest.mark.parametrize("output", ["json", "ndjson"])
def test_an_answer_that_is_too_deep(run: Run, ollama: StandIn, home: Path, depth: int, output: str) -> None:
    """More can be read than written: this must not end as a bug behind a turn that is stored."""
    ollama.set(answer="[" * depth + "]" * depth)
    fail(run("-p", "Hi", "--format", inline({"items": {"$ref": "#"}}), "--output", output), "incomplete_answer")
    assert records(the_file(home))[-1]["done_reason"] == "stop"


def test_a_broken_answer_is_no_matter_of_the_format(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("cut", chunks=2)
    assert "JSON" not in fail(run("-p", "Hi", "--format", "json"), "incomplete_answer")["error"]
    assert records(the_file(home))[-1]["done_reason"] == "error"


@pytest.mark.parametrize("output", ["json", "text", "ndjson"])
def test_json_that_the_schema_does_not_ask_for(run: Run, ollama: StandIn, home: Path, output: str) -> None:
    ollama.set(answer='{"city": 5}')
    result = succeed(run("-p", "Hi", "--format", inline(SCHEMA), "--output", output, "--title", "T"))
    assert result.stderr == "note: the answer is not what the schema asks for: $.city: 5 is not of type 'string'\n"
    if output != "text":
        turn = result.json if output == "json" else result.events[-1]
        assert turn["parsed"] == {"city": 5}
    assert records(the_file(home))[-1]["done_reason"] == "stop"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
@pytest.mark.parametrize("answer", ['{"city": 5}', '{"city": 5}\n'])
def test_the_remark_has_a_line_of_its_own(environment: dict[str, str], ollama: StandIn, answer: str) -> None:
    ollama.set(answer=answer)
    code, shown = in_terminal(environment, "-p", "Hi", "--format", inline(SCHEMA), "--output", "text")
    assert code == 0
    first, second, end = shown.rpartition("\x1b[K")[2].split("\r\n")
    assert (first, end) == ('{"city": 5}', "")
    assert second.startswith("note: ")


def test_the_remark_is_not_the_answer_once_more(run: Run, ollama: StandIn) -> None:
    ollama.set(answer=json.dumps({"text": "word " * 5000}))
    result = succeed(run("-p", "Hi", "--format", '{"anyOf": [{"type": "null"}]}'))
    assert len(result.stderr) < 500


def test_a_schema_that_has_no_end(run: Run, ollama: StandIn) -> None:
    result = succeed(run("-p", "Hi", "--format", '{"$ref": "#"}'))
    assert result.json["parsed"] == {"ok": True}


def test_a_pattern_that_takes_for_ever(run: Run, ollama: StandIn) -> None:
    answer = json.dumps("a" * 50 + "!")
    ollama.set(answer=answer)
    result = succeed(run("-p", "Hi", "--format", '{"type": "string", "pattern": "^(a+)+$"}', timeout=20))
    assert result.json["response"] == answer


# -- think -------------------------------------------------------------------------------------------------

LEVELS = [
    (("--think",), True), (("--think", "true"), True), (("--think", "low"), "low"), (("--think", "medium"), "medium"),
    (("--think", "high"), "high"), (("--think", "max"), "max"), (("--think=low",), "low"), (("--no-think",), False),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "sent"), LEVELS)
def test_levels(run: Run, ollama: StandIn, home: Path, flags: tuple[str, ...], sent: object) -> None:
    session_id = succeed(run(*flags, "-p", "Hi", "--model", "thinker")).json["session_id"]
    header = records(the_file(home))[0]
    assert header["think"] is sent or header["think"] == sent
    succeed(run("-p", "And?", "--session-id", session_id))
    assert thinks(ollama) == [sent, sent]
    assert all(isinstance(think, type(sent)) for think in thinks(ollama))
    assert all("think" not in chat["options"] for chat in ollama.chats())


def test_nothing_is_said_of_thinking_that_was_not_given(run: Run, ollama: StandIn, home: Path) -> None:
    succeed(run("-p", "Hi", "--model", "thinker"))
    assert thinks(ollama) == [""]
    assert "think" not in records(the_file(home))[0]


def test_thinking_changes_when_given_again(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run("-p", "Hi", "--model", "thinker", "--think", "high")).json["session_id"]
    on = ("-p", "And?", "--session-id", session_id)
    for flags in ((), ("--no-think",), (), ("--no-think",), ("--think",), ()):
        succeed(run(*on, *flags))
    assert thinks(ollama) == ["high", "high", False, False, False, True, True]
    metas = [record["think"] for record in records(the_file(home)) if record["type"] == "meta"]
    assert metas == [False, True], "what was the session's already is no change"


def test_thoughts_are_kept_apart_and_not_sent_again(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="I wonder about café.")
    turn = succeed(run("-p", "Hi", "--model", "thinker", "--think")).json
    assert list(turn)[:5] == [*HEAD, "thinking", "done"]
    assert turn["thinking"] == "I wonder about café."
    assert "wonder" not in turn["response"]
    answer = records(the_file(home))[-1]
    assert (answer["thinking"], answer["content"]) == ("I wonder about café.", turn["response"])
    succeed(run("-p", "And?", "--session-id", turn["session_id"]))
    assert "wonder" not in json.dumps(ollama.chats())
    assert all(set(message) == {"role", "content"} for message in ollama.chats()[1]["messages"])
    info = succeed(run("--session-info", turn["session_id"])).json
    assert info["messages"][1]["thinking"] == "I wonder about café."


def test_no_thoughts_where_none_are_wanted(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="Hm.")
    assert "thinking" not in succeed(run("-p", "Hi", "--model", "thinker", "--no-think")).json
    assert "thinking" not in records(the_file(home))[-1]


def test_text_is_the_answer_without_thoughts(run: Run, ollama: StandIn) -> None:
    ollama.set(thinking="Hm.", answer="Yes")
    result = succeed(run("-p", "Hi", "--model", "thinker", "--think", "--output", "text"))
    assert (result.stdout, result.stderr) == ("Yes\n", "")


def test_thoughts_without_a_session(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="Hm.")
    turn = succeed(run("-p", "Hi", "--model", "thinker", "--think", "max", "--no-session")).json
    assert turn["thinking"] == "Hm."
    assert thinks(ollama) == ["max"]
    assert not home.exists()


@pytest.mark.parametrize("session", [(), ("--no-session",)])
def test_a_model_that_cannot_think(run: Run, ollama: StandIn, home: Path, session: tuple[str, ...]) -> None:
    error = fail(run("-p", "Hi", "--think", *session), "model_unsupported")
    assert "smollm2" in error["error"]
    assert "session_id" not in error
    assert ollama.chats() == []
    assert not home.exists()


def test_an_old_session_and_a_model_that_cannot_think(run: Run, ollama: StandIn, home: Path) -> None:
    path = stores.make(home)
    before = path.read_bytes()
    assert fail(run("-p", "Hi", "--session-id", path.stem, "--think"), "model_unsupported")["session_id"] == path.stem
    assert path.read_bytes() == before
    assert ollama.chats() == []


def test_a_model_that_cannot_think_is_told_not_to(run: Run, ollama: StandIn) -> None:
    succeed(run("-p", "Hi", "--no-think"))
    assert thinks(ollama) == [False]


def test_from_a_model_that_thinks_to_one_that_does_not(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run("-p", "Hi", "--model", "thinker", "--think")).json["session_id"]
    before = the_file(home).read_bytes()
    change = ("-p", "And?", "--session-id", session_id, "--model", "smollm2")
    assert "--no-think" in fail(run(*change), "model_unsupported")["hint"]
    assert the_file(home).read_bytes() == before
    succeed(run(*change, "--no-think"))
    assert thinks(ollama) == [True, False]


@pytest.mark.parametrize("session", ["new", "old"])
def test_a_server_that_does_not_say_what_a_model_can(run: Run, ollama: StandIn, home: Path, session: str) -> None:
    """Then it refuses by itself."""
    path = stores.make(home) if session == "old" else None
    before = path.read_bytes() if path else b""
    ollama.fail("status", path="/api/show", status=200, body={"model_info": {}})
    more = ("--session-id", path.stem) if path else ()
    error = fail(run("-p", "Hi", "--think", *more), "model_unsupported")
    assert "does not support thinking" in error["error"]
    assert thinks(ollama) == [True]
    assert stores.files(home) == ([path] if path else [])
    assert (path.read_bytes() if path else b"") == before


@pytest.mark.parametrize("level", ["hard", "", "True", "false", "0", "hi there"])
def test_what_is_no_level(run: Run, ollama: StandIn, home: Path, level: str) -> None:
    error = fail(run("-p", "Hi", "--model", "thinker", f"--think={level}"), "usage", 2)
    assert "low, medium, high, max" in error["error"]
    assert "--no-think" in error["error"]
    assert ollama.requests() == []
    assert not home.exists()


@pytest.mark.parametrize("flags", [("--think", "--no-think"), ("--no-think", "--think", "low")])
def test_to_think_and_not_to(run: Run, ollama: StandIn, home: Path, flags: tuple[str, ...]) -> None:
    error = fail(run("-p", "Hi", *flags), "usage", 2)
    assert error["error"] == "--think and --no-think contradict each other"
    assert ollama.requests() == []
    assert not home.exists()


def test_a_failed_turn_does_not_change_what_is_thought(run: Run, ollama: StandIn) -> None:
    session_id = succeed(run("-p", "Hi", "--model", "thinker", "--think", "low")).json["session_id"]
    ollama.fail("cut", chunks=2)
    fail(run("-p", "And?", "--session-id", session_id, "--think", "high"), "incomplete_answer")
    succeed(run("-p", "And?", "--session-id", session_id))
    assert thinks(ollama) == ["low", "high", "low"]


def test_thoughts_that_broke_off_are_kept(run: Run, ollama: StandIn, home: Path) -> None:
    ollama.set(thinking="I was thinking of a river")
    ollama.fail("cut", chunks=3)
    error = fail(run("-p", "Hi", "--model", "thinker", "--think"), "incomplete_answer")
    assert said(the_file(home)) == [("user", "Hi"), ("assistant", "")]
    answer = records(the_file(home))[-1]
    assert (answer["thinking"], answer["done_reason"]) == ("I was thinking", "error")
    turn = succeed(run("-p", "And?", "--session-id", error["session_id"])).json
    assert turn["response"].startswith("Answer to: And?")
    assert "river" not in json.dumps(ollama.chats())
