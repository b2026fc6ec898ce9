"""A short torture, and that it would notice: a lost turn, a damaged line, a listing that is not true, and so on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stores
from torturing import ledger, reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run
    from standin import StandIn

Json = dict[str, Any]

SCRIPTS = Path(__file__).parent.parent / "scripts"
SEED = 7


@pytest.fixture
def run(quick: Run) -> Run:
    """Commands one after the other."""
    return quick


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals, and limits of a process")
def test_a_short_torture_breaks_nothing(tmp_path: Path) -> None:
    code = "import sys, torture; sys.exit(torture.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--seconds", "5", "--seed", str(SEED), "--processes", "3"]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "stores")],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"
    assert done.stderr.startswith(f"seed {SEED}\n")
    assert "| **turns lost** | 0 |" in done.stdout
    assert "| operations | 0 |" not in done.stdout


class Book:
    """A store with two turns in one session, all of them acknowledged."""

    def __init__(self, home: Path) -> None:
        self.home, self.path = home, stores.make(home)
        self.kept = ledger.Ledger(ledger.Permitted())
        self.kept.settle(self.store)

    @property
    def store(self) -> ledger.Store:
        """What the reader finds."""
        return reader.read(self.home)

    def lost(self) -> list[str]:
        return list(self.kept.lost(self.store))

    def differs(self, name: str, *said: Any) -> list[str]:
        """Where what was said differs from the files."""
        return list(getattr(ledger, "compare_" + name)(self.store, *said))

    def unexplained(self) -> list[str]:
        return list(self.kept.unexplained(self.store))


@pytest.fixture
def book(home: Path) -> Book:
    return Book(home)


def change(path: Path, how: Callable[[list[bytes]], object]) -> None:
    """Edit the lines of a file."""
    lines = path.read_bytes().splitlines(keepends=True)
    how(lines)
    path.write_bytes(b"".join(lines))


def test_what_is_as_it_was_is_not_lost(book: Book) -> None:
    assert book.lost() == []
    stores.add(book.path, stores.line(stores.message(90, "user", "More")) * 2)
    assert book.lost() == book.unexplained() == []


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_lost_message_is_noticed(book: Book, number: int) -> None:
    content = stores.records(book.path)[number]["content"]
    change(book.path, lambda lines: lines.pop(number))
    (told,) = book.lost()
    assert content in told


def test_one_of_two_that_say_the_same_is_noticed(book: Book) -> None:
    stores.add(book.path, stores.line(stores.message(90, "assistant", "Answer 1")))
    book.kept.settle(book.store)
    change(book.path, lambda lines: lines.pop())
    assert "Answer 1" in book.lost()[0]


def test_a_lost_undo_is_noticed(book: Book) -> None:
    ids = [record["id"] for record in stores.records(book.path)[3:]]
    stores.add(book.path, stores.line({"type": "undo", "id": stores.new_id(90), "ids": ids}))
    book.kept.settle(book.store)
    change(book.path, lambda lines: lines.pop())
    assert len(book.lost()) == 2


def test_a_lost_file_is_noticed_unless_it_was_removed(book: Book) -> None:
    data = book.path.read_bytes()
    book.path.unlink()
    assert "the file is gone" in book.lost()[0]
    book.kept.removed([book.path.stem])
    assert book.lost() == []
    stores.make(book.home, data=data)
    assert "there again" in book.lost()[0]


def test_a_removal_that_was_refused_removes_nothing(book: Book) -> None:
    book.path.unlink()
    book.kept.doubt([book.path.stem])
    assert book.lost() == []
    book.kept.stands([book.path.stem])
    assert len(book.lost()) == 1


def test_what_an_editor_took_is_not_lost(book: Book) -> None:
    book.kept.edited([("user", "Question 1")])
    change(book.path, lambda lines: lines.pop(3))
    assert book.lost() == []
    change(book.path, lambda lines: lines.pop(1))
    assert len(book.lost()) == 1


def test_a_prompt_that_an_editor_took_is_brought_back_by_its_answer(book: Book) -> None:
    prompt, answer = ("user", "Question 9"), ("assistant", "Answer to: Question 9")
    book.kept.acknowledge(book.path.stem, [prompt])
    book.kept.edited([], [prompt])
    assert book.lost() == []
    stores.add(book.path, stores.line(stores.message(90, *answer)))
    book.kept.acknowledge(book.path.stem, [prompt, answer])
    assert book.lost() == [], "a fork tells the same once more"
    book.kept.answered(prompt[1])
    assert "Question 9" in book.lost()[0]


def test_what_has_no_answer_yet(book: Book) -> None:
    stores.add(book.path, stores.line(stores.message(90, "user", "More")))
    assert ledger.unanswered_in(reader.Session(book.path)) == {("user", "More")}
    stores.add(book.path, stores.line(stores.message(91, "assistant", "")))
    assert ledger.unanswered_in(reader.Session(book.path)) == set()


def test_a_line_that_is_torn_in_the_middle_is_noticed(book: Book) -> None:
    change(book.path, lambda lines: lines.insert(3, lines[3][:60] + b"\n"))
    assert "message" in book.unexplained()[0]
    assert book.lost() == []
    book.kept.permitted.torn.add(book.path.stem)
    assert book.unexplained() == [], "as a killed process may leave it"
    change(book.path, lambda lines: lines.__setitem__(3, b'x{"half": 1}\n'))
    assert len(book.unexplained()) == 1, "no process writes that"


def test_a_line_that_was_torn_earlier_stays_explained(book: Book) -> None:
    stores.add(book.path, b'{"type":"mess')
    assert len(book.unexplained()) == 1
    book.kept.permitted.torn.add(book.path.stem)
    assert book.unexplained() == []
    book.kept.settle(book.store)
    book.kept.permitted.torn.clear()
    stores.add(book.path, b"\n")
    assert book.unexplained() == []
    stores.add(book.path, b'{"type":"undo"\n')
    assert len(book.unexplained()) == 1


def test_a_line_that_swallows_another_is_noticed(book: Book) -> None:
    change(book.path, lambda lines: lines.__setitem__(1, lines[1][:40]))
    assert sorted(line[38:] for line in book.lost()) == ["lost assistant: Answer 0", "lost user: Question 0"]


def test_garbage_that_was_written_on_purpose_is_explained(book: Book) -> None:
    stores.add(book.path, b"by hand: {\n")
    assert book.unexplained() == []
    assert [path for path, _ in damaged(book)] == [str(book.path)]


def damaged(book: Book) -> list[tuple[str, int]]:
    return [(str(session.path), line) for session in book.store.values() for line in session.damage]


WRONG: dict[str, object] = {
    "message_count": 5, "last_used": "2026-09-21T20:26:42Z", "created_at": None, "context_tokens": 1, "title": "",
    "model_name": "other", "path": "/elsewhere", "session_id": stores.new_id(2),
}  # fmt: skip


def test_a_true_listing_differs_in_nothing(book: Book, run: Run, ollama: StandIn) -> None:
    stores.succeed(run("-p", "  \nÄ long title\nand more", "--temperature", "0.5"))
    stores.succeed(run("--retry", book.path.stem, "--model", "thinker"))
    stores.succeed(run("--fork", book.path.stem))
    stores.add(book.path, b"by hand: {\n\n  \r\n" + stores.line(stores.message(90, "user", "x", typed="y")))
    listing = stores.succeed(run("--list-sessions")).json
    assert len(listing["sessions"]) == 3
    assert book.differs("listing", listing) == []
    stores.succeed(run("--reindex"))
    checked = run("--check").json
    assert book.differs("check", checked) == []
    assert [item["line"] for item in checked["damage"]] == [line for _, line in damaged(book)] == [10]


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_listing_is_noticed(book: Book, run: Run, key: str) -> None:
    listing = stores.succeed(run("--list-sessions")).json
    assert book.differs("listing", listing) == []
    listing["sessions"][0][key] = WRONG[key]
    assert any(key in told or "there" in told for told in book.differs("listing", listing))


def test_a_listing_in_another_order_is_noticed(book: Book, run: Run) -> None:
    data = stores.lines(stores.new_id(90)).replace(b"2026", b"2027")
    stores.make(book.home, 90, data)
    listing = stores.succeed(run("--list-sessions")).json
    assert book.differs("listing", listing) == []
    listing["sessions"].reverse()
    assert len(book.differs("listing", listing)) == 1
    listing = {"sessions": listing["sessions"][1:], "total": 2}
    assert len(book.differs("listing", listing)) == 2, "one is missing, and the total is wrong"


def test_a_wrong_check_is_noticed(book: Book, run: Run) -> None:
    stores.succeed(run("--list-sessions"))
    stores.succeed(run("--reindex"))
    checked = stores.succeed(run("--check")).json
    assert book.differs("check", checked) == []
    here = {"path": str(book.path), "line": 2}
    for wrong in ({"index": "stale"}, {"sessions": 2}, {"ok": False}, {"ok": False, "damage": [here]}):
        assert len(book.differs("check", checked | wrong)) == 1
    stores.add(book.path, b"by hand: {\n")
    assert len(book.differs("check", checked)) == 1


def test_a_file_without_a_whole_line_is_damaged(book: Book, run: Run) -> None:
    book.path.write_bytes(stores.line(stores.header(book.path.stem))[:-1])
    stores.succeed(run("--reindex"))
    assert book.differs("check", stores.clean(run("--check")).json) == []


def test_a_wrong_search_is_noticed(book: Book, run: Run) -> None:
    found = stores.succeed(run("--search", "Question")).json
    assert book.differs("search", "Question", found) == []
    assert len(book.differs("search", "Question", {"matches": []})) == 1
    assert len(book.differs("search", "Answer 7", found)) == 1


def test_the_reader_takes_nothing_from_the_program() -> None:
    code = "import sys, torturing.reader; print([name for name in sys.modules if 'ollama' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
