"""--search as a process: what it prints, in each form, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import stores
from stores import fail, header, line, message, succeed

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn


@pytest.fixture
def path(home: Path) -> Path:
    """A session that somebody half remembers."""
    said = [message(1, "user", "Which river flows through Köln?"), message(2, "assistant", "The Rhine\x1b[31m does.")]
    session_id = stores.new_id(1)
    return stores.make(home, 1, b"".join(map(line, [header(session_id, title="Rivers"), *said])))


def test_it_is_found_as_it_was_asked(run: Run, ollama: StandIn) -> None:
    turn = succeed(run("-p", "Tell me about the Große Walrus!")).json
    found = succeed(run("--search", "grosse walrus!")).json
    assert list(found) == ["matches", "total"]
    match = found["matches"][-1]  # before it the answer, which repeats it
    assert list(match) == ["session_id", "title", "message_id", "role", "created_at", "snippet"]
    assert match["session_id"] == turn["session_id"]
    assert match["snippet"] == "Tell me about the ⟦Große⟧ ⟦Walrus!⟧"
    assert len(ollama.requests("/api/chat")) == 1


def test_bytes_that_are_no_text_are_found_as_they_are_stored(run: Run) -> None:
    turn = succeed(run("-p", "caf\udce9 noir")).json
    found = succeed(run("--search", "caf\udce9")).json
    assert {match["session_id"] for match in found["matches"]} == {turn["session_id"]}
    assert "⟦caf\ufffd⟧ noir" in found["matches"][-1]["snippet"]


def test_as_text_and_on_one_line(quick: Run, path: Path) -> None:
    text = succeed(quick("--search", "rhine", "--output", "text")).stdout
    assert text.splitlines()[0].split() == [path.stem, "2026-09-21T14:13:22Z", "assistant", "Rivers"]
    assert "The ⟦Rhine⟧" in text
    assert "\x1b" not in text
    one = succeed(quick("--search", "rhine", "--output", "ndjson")).stdout
    assert json.loads(one) == succeed(quick("--search", "rhine")).json
    assert one.count("\n") == 1


def test_nothing_is_found(quick: Run, path: Path) -> None:
    assert succeed(quick("--search", "walrus")).json == {"matches": [], "total": 0}
    assert succeed(quick("--search", "walrus", "--output", "text")).stdout == ""


def test_undecodable_words_are_looked_for_as_they_would_be_stored(quick: Run, home: Path) -> None:
    stores.make(home, 1, b"".join(map(line, [header(stores.new_id(1)), message(1, "user", "caf\ufffd")])))
    (match,) = succeed(quick("--search", "caf\udce9")).json["matches"]
    assert match["snippet"] == "⟦caf\ufffd⟧"


def test_limit_and_total(quick: Run, home: Path) -> None:
    for number in range(30):
        stores.make(home, number)
    found = succeed(quick("--search", "question")).json
    assert (len(found["matches"]), found["total"]) == (20, 60)
    found = succeed(quick("--search", "question", "--limit", "0")).json
    assert found == {"matches": [], "total": 60}
    text = succeed(quick("--search", "question", "--limit", "1", "--output", "text")).stdout
    assert text.splitlines()[-1] == "59 more; --limit shows them"


def test_where_and_when(quick: Run, path: Path, home: Path) -> None:
    other = stores.make(home, 2)
    assert succeed(quick("--search", "r", "--in", path.stem)).json["total"] == 3
    assert succeed(quick("--search", "question", "--in", path.stem)).json["total"] == 0
    assert succeed(quick("--search", "question", "--in", other.stem)).json["total"] == 2
    assert succeed(quick("--search", "r", "--model", "qwen3")).json["total"] == 0
    assert succeed(quick("--search", "rhine", "--since", "2026-09-21T14:13:22Z")).json["total"] == 1
    assert succeed(quick("--search", "rhine", "--since", "2026-09-22")).json["total"] == 0
    error = fail(quick("--search", "x", "--in", stores.new_id(99)), "session_not_found")
    assert error["session_id"] == stores.new_id(99)


@pytest.mark.parametrize("flags", [["-p", "x"], ["--list-sessions"], ["--session-id", stores.new_id(1)]])
def test_one_action_at_a_time(quick: Run, flags: list[str]) -> None:
    fail(quick("--search", "x", *flags), "usage", 2)


@pytest.mark.parametrize("flag", [["--in", stores.new_id(1)], ["--since", "3"], ["--sort", "best"]])
def test_what_goes_with_a_search_only(quick: Run, flag: list[str]) -> None:
    error = fail(quick("--list-sessions", *flag), "usage", 2)
    assert error["error"] == f"{flag[0]} goes with --search"


def test_an_empty_store(quick: Run, home: Path) -> None:
    assert succeed(quick("--search", "x")).json["total"] == 0
    assert not (home / "search.db").exists()


@pytest.mark.skipif(shutil.which("grep") is None, reason="grep is not installed")
def test_what_grep_finds_is_found(quick: Run, home: Path) -> None:
    texts = ["don't (panic) [now] a.b*c", "POL-358: $HOME/x_y", "a+b=c ^start end$", "naïve Ünïcödé", "今天天气很好"]
    for number, text in enumerate(texts):
        stores.make(home, number, line(header(stores.new_id(number))) + line(message(number, "user", text)))
    for word in {word for text in texts for word in (*text.split(), text[2:5].strip(), text[3:4]) if word.strip()}:
        command = ["grep", "-rliF", "-e", word.strip(), str(home / "sessions")]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.stdout
        found = succeed(quick("--search", word.strip(), "--limit", "100")).json
        assert {match["session_id"] for match in found["matches"]} >= {
            name[-42:-6] for name in done.stdout.decode().splitlines()
        } - ids_where_only_names_match(home, word.strip())


def ids_where_only_names_match(home: Path, word: str) -> set[str]:
    """grep also finds names of fields."""
    has = {path.stem: json.loads(path.read_bytes().splitlines()[1])["content"] for path in stores.files(home)}
    return {session_id for session_id, content in has.items() if word.lower() not in content.lower()}
