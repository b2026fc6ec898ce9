"""The Python functions: the same store, the same wire and the same errors as the command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
import stores

import ollama_prompt
from ollama_prompt import (
    Answer,
    OllamaPromptError,
    Settings,
    ask,
    continue_session,
    flags,
    interrupts,
    list_sessions,
    load_session,
)
from ollama_prompt.errors import Interrupted, ModelUnsupported, ReferenceFailed, SessionNotFound, UsageError
from ollama_prompt.layout import GITIGNORE, Layout

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn


@pytest.fixture(autouse=True)
def _here(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process as the command would be started."""
    for name in [name for name in os.environ if name.startswith("OLLAMA")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "OLLAMA_HOST", "OLLAMA_PROMPT_HOME", "OLLAMA_PROMPT_NO_SERVE", "OLLAMA_PROMPT_MODEL"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir(tmp_path)


def test_a_conversation(ollama: StandIn, home: Path) -> None:
    first = ask("Hello")
    assert str(first) == first.text == "Answer to: Hello (messages: 1)"
    second = continue_session(first.session_id, "And then?")
    assert [message["content"] for message in ollama.chats()[-1]["messages"]] == ["Hello", first.text, "And then?"]
    assert second.session_id == first.session_id
    assert second.window["messages_sent"] == 3
    assert [role for role, _ in stores.said(stores.the_file(home))] == ["user", "assistant"] * 2


def test_the_session_used_last_is_the_first_that_is_listed(ollama: StandIn) -> None:
    one, other = ask("One"), ask("Other")
    continue_session(one.session_id, "again")
    last = list_sessions(1)[0].session_id
    assert continue_session(last, "more").session_id == one.session_id != other.session_id


def test_what_was_not_kept_is_not_continued_elsewhere(ollama: StandIn, home: Path) -> None:
    ask("Another conversation")
    said = stores.said(stores.the_file(home))
    secret = ask("A secret", keep=False)
    with pytest.raises(UsageError, match="nothing was kept"):
        continue_session(secret.session_id, "Go on")
    with pytest.raises(UsageError, match="nothing was kept"):
        load_session(secret.session_id)
    assert stores.said(stores.the_file(home)) == said


def test_the_same_is_stored_sent_and_printed_as_by_the_command(run: Run, ollama: StandIn, home: Path) -> None:
    given = ("--temperature", "0.5", "--system", "Be brief", "--title", "T", "--option", "seed=7", "--num-ctx", "4096")
    printed = stores.succeed(run("-p", "Hello", *given)).json
    answer = ask("Hello", temperature=0.5, system="Be brief", title="T", options={"seed": 7}, num_ctx=4096)
    chats = ollama.chats()
    assert chats[0] == chats[1]
    assert list(printed) == list(answer.turn)
    kept = [stores.records(path) for path in stores.files(home)]
    by_command, by_function = ([list(record) for record in records] for records in kept)
    assert by_command == by_function


def test_nothing_is_kept_if_it_is_not_to_be(home: Path) -> None:
    assert ask("Hello", keep=False).session_id is None
    assert not home.exists()


def test_an_answer_piece_by_piece(ollama: StandIn) -> None:
    pieces: list[str] = []
    answer = ask("Hello", on_token=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == answer.text


def test_structured_output_and_thinking(ollama: StandIn) -> None:
    ollama.set(thinking="Hmm.")
    answer = ask("Hello", format={"type": "object"}, think="low", model="thinker")
    assert (answer.parsed, answer.thinking) == ({"ok": True}, "Hmm.")
    assert (ollama.chats()[-1]["format"], ollama.chats()[-1]["think"]) == ({"type": "object"}, "low")
    assert ask("Hello", format="json", think=True, model="thinker").parsed == {"ok": True}
    assert ask("Hello", think=False, model="thinker").parsed is None


def test_images(ollama: StandIn, tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    given: list[Any] = [[picture], [str(picture)], (picture,), picture, str(picture)]
    for images in given:
        ask("What is it?", images=images, model="viewer")
        assert ollama.chats()[-1]["messages"][0]["images"] == ["iVBORw0KGgo="]


def test_options_keep_their_types(ollama: StandIn) -> None:
    options = {"stop": "[1]", "one": "5", "two": "true", "three": 5, "four": [1, "a"], "seed": 7, "top_p": 0.5}
    ask("Hello", options=options)
    sent = ollama.chats()[-1]["options"]
    assert {name: sent[name] for name in options} == {**options, "stop": ["[1]"]}
    ask("Hello", options={"stop": ["a", "[1]"]})
    assert ollama.chats()[-1]["options"]["stop"] == ["a", "[1]"]


def test_none_is_not_given(ollama: StandIn) -> None:
    nothing: Settings = {"model": None, "images": None, "think": None, "options": None, "repo_root": None}
    ask("Hello", **nothing)
    assert "think" not in ollama.chats()[-1]


def test_references_only_where_they_may_lead(ollama: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("its text", encoding="utf-8")
    ask("See @./file")
    ask("See @./file", repo_root=tmp_path)
    assert [chat["messages"][0]["content"] for chat in ollama.chats()] == ["See @./file", "See its text"]
    with pytest.raises(ReferenceFailed):
        ask("See @./missing", repo_root=tmp_path)


def test_listing_and_loading(ollama: StandIn) -> None:
    answer = ask("Hello\nthere")
    (session,) = list_sessions()
    assert (session.title, session.model, session.message_count) == ("Hello", "smollm2", 2)
    assert session.last_used is not None
    assert abs(session.last_used - datetime.now(timezone.utc)).total_seconds() < 60
    loaded = load_session(answer.session_id)
    assert [(message.role, message.content) for message in loaded.messages] == [
        ("user", "Hello\nthere"), ("assistant", answer.text),
    ]  # fmt: skip
    assert (loaded.system, loaded.options, loaded.max_context_tokens) == (None, {}, 64000)
    assert list_sessions(limit=0) == []
    assert os.path.isfile(loaded.path)


def test_what_was_taken_back_is_marked(run: Run) -> None:
    answer = ask("Hello")
    stores.succeed(run("--undo", str(answer.session_id)))
    assert [message.undone for message in load_session(answer.session_id).messages] == [True, True]


WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"temperature": "hot"}, UsageError),
    ({"temperature": -1}, UsageError),
    ({"think": "a lot"}, UsageError),
    ({"format": {"type": "strin"}}, UsageError),
    ({"format": "no-such-file"}, UsageError),
    ({"images": ["no-such-file"]}, UsageError),
    ({"model": ""}, UsageError),
    ({"timeout": 0}, UsageError),
    ({"options": {"seed": "x"}}, UsageError),
    ({"temprature": 1}, TypeError),
]


@pytest.mark.parametrize(("wrong", "expected"), WRONG, ids=str)
def test_wrong_values_are_found_before_anything_happens(
    wrong: dict[str, Any], expected: type[Exception], ollama: StandIn, home: Path
) -> None:
    with pytest.raises(expected):
        ask("Hello", **wrong)
    assert ollama.requests() == []
    assert not home.exists()


@pytest.mark.parametrize("prompt", ["", " \n", "-", "--help", "@./file", "\ud800"])
def test_any_text_is_a_prompt_but_none(prompt: str, ollama: StandIn) -> None:
    if prompt.strip():
        ask(prompt)
        assert ollama.chats()[-1]["messages"][0]["content"] == prompt.replace("\ud800", "\ufffd")
    else:
        with pytest.raises(UsageError):
            ask(prompt)


@pytest.mark.parametrize("prompt", [None, 3, b"Hello", ["Hello"]])
def test_a_prompt_is_text(prompt: Any, ollama: StandIn) -> None:
    with pytest.raises(TypeError, match="the prompt must be a str"):
        ask(prompt)
    assert ollama.requests() == []


@pytest.mark.parametrize("limit", [-1, "x", 1.5])
def test_a_wrong_limit_shortens_nothing_in_silence(limit: Any) -> None:
    ask("Hello")
    with pytest.raises(UsageError, match="--limit"):
        list_sessions(limit)


def test_errors_are_those_of_the_command(ollama: StandIn) -> None:
    with pytest.raises(OllamaPromptError) as caught:
        ask("Hello", model="no-such-model")
    assert (caught.value.code, caught.value.hint) == ("model_not_found", "ollama pull no-such-model")
    with pytest.raises(ModelUnsupported):
        ask("Hello", think=True)
    with pytest.raises(SessionNotFound):
        continue_session("01a20f1e-8d9d-7a55-8d14-f535b9dcc31c", "Hello")
    with pytest.raises(UsageError):
        load_session("../../etc/passwd")


def test_remarks_are_warnings(ollama: StandIn) -> None:
    with pytest.warns(UserWarning, match="not what the schema asks for"):
        ask("Hello", format={"type": "object", "required": ["missing"]})


def test_a_warning_is_shown_at_the_line_that_asked(ollama: StandIn) -> None:
    with pytest.warns(UserWarning, match="not what the schema asks for") as caught:
        ask("Hello", format={"type": "object", "required": ["missing"]})
    assert [warning.filename for warning in caught] == [__file__]


def test_asyncio(ollama: StandIn, home: Path) -> None:
    async def several() -> list[Answer]:
        return await asyncio.gather(*(asyncio.to_thread(ask, f"Question {number}") for number in range(4)))

    answers = asyncio.run(several())
    assert [answer.text for answer in answers] == [f"Answer to: Question {n} (messages: 1)" for n in range(4)]
    assert len(stores.files(home)) == 4


def test_a_store_that_two_threads_make_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one process, as two in two containers may seem to be."""
    replace, unfinished = os.replace, []

    def late(source: str, target: str) -> None:
        unfinished.append(source)
        if len(unfinished) == 1:
            Layout(str(home)).make()
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    Layout(str(home)).make()
    assert len(set(unfinished)) == len(unfinished), "one would remove what the other writes"
    assert (home / ".gitignore").read_text(encoding="utf-8") == GITIGNORE
    assert not list(home.glob("*.tmp"))


def test_threads_on_one_session(ollama: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = ask("Hello").session_id
    # Python 3.10 to 3.13 have one filter of warnings for all threads: the remark that one waits is an error here.
    monkeypatch.setattr("ollama_prompt.api._warn", lambda _: None)
    prompts = [f"Thread {number}" for number in range(8)]
    threads = [threading.Thread(target=continue_session, args=(session_id, prompt)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = [message.content for message in load_session(session_id).messages]
    assert len(contents) == 18
    assert [content for content in contents if "(messages: 17)" in content], "each saw those before it"


INTERRUPTED = """
from ollama_prompt import ask
try:
    ask("Hello", on_token=lambda text: print(text, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
input()
"""


def test_ctrl_c_stores_what_came_and_leaves_the_program_alive(
    environment: dict[str, str], ollama: StandIn, home: Path
) -> None:
    ollama.set(delay=0.05)
    command = [sys.executable, "-c", INTERRUPTED]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        printed = first + "".join(iter(process.stdout.readline, "interrupted\n"))
        process.send_signal(signal.SIGINT)  # Python's own handler is back
        _, said = process.communicate("\n", timeout=30)
    assert "KeyboardInterrupt" in said
    assert process.returncode in {130, -signal.SIGINT}
    answer = stores.records(stores.the_file(home))[-1]
    assert answer["done_reason"] == "interrupted"
    assert answer["content"].startswith(printed.replace("\n", "")[:6])


def test_signals_are_the_program_s_own_outside_of_a_call() -> None:
    before = signal.getsignal(signal.SIGINT)
    ask("Hello")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_program_s_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        ask("Hello")
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_whatever_ends_a_call_what_came_is_stored(ollama: StandIn, home: Path) -> None:
    def leave(text: str) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        ask("Hello", on_token=leave)
    answer = stores.records(stores.the_file(home))[-1]
    assert (answer["role"], answer["done_reason"]) == ("assistant", "interrupted")


def test_ctrl_c_is_heard_by_the_thread_that_it_is_for() -> None:
    """The main thread stores something when Ctrl-C comes; another one goes on with its own turn meanwhile."""
    heard: list[str] = []

    def turn(name: str) -> None:
        with interrupts.deferred():
            try:
                with interrupts.heard():
                    heard.append(f"{name} went on")
            except Interrupted:
                heard.append(f"{name} was interrupted")

    with interrupts.within_library(), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=turn, args=("the other",))
        thread.start()
        thread.join()
        with pytest.raises(Interrupted), interrupts.heard():
            pass
    assert heard == ["the other went on"]


def test_every_setting_is_a_flag() -> None:
    names = {action.dest for action in flags.make_parser()._actions}
    other = {"options": "option", "images": "image"}
    assert {other.get(name, name) for name in Settings.__annotations__} <= names


def test_importing_the_package_imports_nothing(environment: dict[str, str]) -> None:
    mine = "{'ollama_prompt', '__future__'}"
    code = f"import sys; before = set(sys.modules); import ollama_prompt; print([*set(sys.modules) - before - {mine}])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_everything_that_is_promised_is_there() -> None:
    assert all(hasattr(ollama_prompt, name) for name in ollama_prompt.__all__)
    assert dir(ollama_prompt) == sorted([*ollama_prompt.__all__, "__version__"]), "and nothing else is shown"
    with pytest.raises(AttributeError):
        _ = ollama_prompt.no_such_name


def test_https_still_works_in_a_program_that_asked(environment: dict[str, str]) -> None:
    """The command leaves TLS out while it imports its client; a program would miss it later."""
    code = "from ollama_prompt import ask; ask('Hello'); import httpx; httpx.create_ssl_context(); print('fine')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_a_notebook_shows_markdown() -> None:
    assert ask("Hello")._repr_markdown_() == "Answer to: Hello (messages: 1)"


def test_the_turn_is_what_the_command_would_print(run: Run) -> None:
    turn = ask("Hello").turn
    assert json.loads(json.dumps(turn)) == turn
