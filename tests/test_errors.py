"""The tree of errors is what its docstring draws, and only this tree reaches a user."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from stores import records, said, the_file

from ollama_prompt import cli, commands, errors, interrupts
from ollama_prompt.errors import OllamaPromptError
from ollama_prompt.indexer import Indexer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from standin import StandIn

DRAWN = re.compile(r"^    ([ │├└─]*)(\w+) *(?!exit)(\w+)?(?:.*exit (\d+))?.*$")
INSIDE_ONLY = {"ContextExceeded"}
"""Never seen by a user under its own name."""


def drawn() -> Iterator[tuple[int, str, str | None, str | None]]:
    """(depth, class, code, exit code) of each line of the tree."""
    assert errors.__doc__
    for line in errors.__doc__.splitlines():
        found = DRAWN.match(line)
        if found and found[2][0].isupper():
            yield len(found[1]) // 4, found[2], found[3], found[4]


def classes() -> dict[str, type[BaseException]]:
    return {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and name[0].isupper()}


def codes() -> set[str]:
    """Every code that a user may meet."""
    return {
        kind.code
        for name, kind in classes().items()
        if issubclass(kind, OllamaPromptError) and not kind.__subclasses__()
    } - {"error"}


def test_the_drawing_is_the_tree() -> None:
    parents: list[str] = []
    for depth, name, code, exit_code in drawn():
        kind = classes()[name]
        del parents[depth:]
        if depth:
            assert kind.__bases__[0].__name__ == parents[-1], name
        parents.append(name)
        if issubclass(kind, OllamaPromptError):
            assert kind.exit_code == int(exit_code or 1), name
            if code and name not in INSIDE_ONLY and "_" in code:
                assert kind.code == code, name
    assert {name for _, name, _, _ in drawn()} == set(classes())


def test_every_class_has_a_code_of_its_own() -> None:
    leaves = [
        kind for name, kind in classes().items() if issubclass(kind, OllamaPromptError) and name not in INSIDE_ONLY
    ]
    leaves = [kind for kind in leaves if not kind.__subclasses__() and kind is not errors.OutputClosed]
    assert len({kind.code for kind in leaves}) == len(leaves)


def test_every_code_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [code for code in sorted(codes()) if f"`{code}`" not in text] == []


def raise_it(error: BaseException) -> Callable[..., None]:
    def raising(*args: object, **more: object) -> None:
        raise error

    return raising


FOREIGN = [
    OSError(5, "Input/output error", "somewhere"),
    PermissionError(13, "Permission denied", "somewhere"),
    sqlite3.OperationalError("disk I/O error"),
    sqlite3.DatabaseError("malformed"),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    ValueError("odd"),
    KeyError("missing"),
    UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed"),
    AssertionError(),
]


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`main` sets up a whole process; this one belongs to the tests."""
    monkeypatch.setattr(interrupts, "install", lambda: None)
    monkeypatch.setattr("ollama_prompt.console.prepare", lambda: None)
    monkeypatch.setattr("gc.disable", lambda: None)
    monkeypatch.setenv("OLLAMA_PROMPT_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("name", "arguments"), [("ask", ["-p", "Hi"]), ("check", ["--check"])])
def test_no_foreign_error_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, arguments: list[str], error: Exception,
) -> None:  # fmt: skip
    monkeypatch.setattr(commands, name, raise_it(error))
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    printed = json.loads(err)
    assert type(error).__name__ in printed["error"]
    assert "--debug" in printed["hint"]
    assert "Traceback" not in err
    assert cli.main([*arguments, "--output", "text"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {type(error).__name__}")


@pytest.mark.parametrize("module", ["indexer.Indexer.listing", "index.Index.state"])
def test_no_foreign_error_escapes_from_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    monkeypatch.setattr(f"ollama_prompt.{module}", raise_it(RecursionError("deep")))
    assert cli.main(["--list-sessions"]) == 1
    assert json.loads(capsys.readouterr().err)["code"] == "error"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Indexer, "listing", raise_it(MemoryError()))
    assert cli.main(["--list-sessions", "--debug"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    *traceback, last = err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert json.loads(last)["code"] == "error"


def test_debug_says_nothing_more_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list-sessions", "--debug"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bug_in_a_turn_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ollama: StandIn
) -> None:
    monkeypatch.setattr("ollama_prompt.console.JsonSink.token", raise_it(ZeroDivisionError("odd")))
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    assert cli.main(["-p", "Hi", "--model", "smollm2"]) == 1
    assert "--debug" in json.loads(capsys.readouterr().err)["hint"]
    stored = the_file(tmp_path / "store")
    assert said(stored) == [("user", "Hi"), ("assistant", "Answer")]
    assert records(stored)[-1]["done_reason"] == "error"


def test_interruptions_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = {130: errors.Interrupted(2), 143: errors.Interrupted(15)}
    for code, error in [*raised.items(), (130, KeyboardInterrupt())]:
        monkeypatch.setattr(Indexer, "listing", raise_it(error))
        assert cli.main(["--list-sessions"]) == code
        assert capsys.readouterr() == ("", "")


def test_an_error_carries_what_it_was_given() -> None:
    error = errors.SessionBusy("in use", hint="wait", session_id="1")
    assert (str(error), error.message, error.hint, error.session_id) == ("in use", "in use", "wait", "1")
    assert (error.code, error.exit_code) == ("session_busy", 75)
    error.message += "; others were not"
    assert str(error) == "in use; others were not"
