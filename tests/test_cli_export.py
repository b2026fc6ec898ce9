"""Exporting, as a user does it; and what a browser makes of the pages."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from conftest import Result, tree
from filelock import FileLock
from stores import States, add, fail, header, line, make, message, month_of, new_id, succeed
from test_export import HOSTILE, PNG, outline

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run, Start
    from standin import StandIn
    from warm import Warm

Json = dict[str, Any]

ONE = new_id(1)


@pytest.fixture
def run(quick: Run) -> Run:
    """The command without the start of Python."""
    return quick


def wait() -> None:
    """Let the tick of the clock pass in which files were made."""
    time.sleep(0.06)


def archived(run: Run, folder: Path) -> tuple[int, int, int]:
    """What an export of everything did: pages made, left, removed."""
    done = succeed(run("--export", "--all", "--to", str(folder))).json
    assert list(done) == ["exported", "unchanged", "removed", "path"]
    assert done["path"] == str(folder)
    return done["exported"], done["unchanged"], done["removed"]


def pages(folder: Path) -> list[str]:
    """The sessions that have a page."""
    return sorted(path.stem for path in folder.glob("sessions/*.html"))


def rows(folder: Path) -> list[list[Any]]:
    """What the list of an archive shows."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    found: list[list[Any]] = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    return found


# -- one session -------------------------------------------------------------------------------------------


def test_markdown_is_the_default(run: Run, home: Path) -> None:
    make(home)
    printed = succeed(run("--export", ONE.upper())).stdout
    assert printed == succeed(run("--export", ONE, "--as", "markdown", "--to", "-", "--output", "text")).stdout
    assert outline(printed) == [
        ("h1", "Question 0"), ("h2", "User · 2026-09-21 14:13 UTC"), ("h2", "smollm2 · 2026-09-21 14:13 UTC"),
        ("h2", "User · 2026-09-21 14:13 UTC"), ("h2", "smollm2 · 2026-09-21 14:13 UTC"),
    ]  # fmt: skip
    assert f"- Model: smollm2\n- Date: 2026-09-21 20:26 UTC\n- Session: {ONE}\n" in printed


def test_what_was_taken_back_is_in_no_form(run: Run, home: Path) -> None:
    make(home)
    succeed(run("--undo", ONE))
    for form in ("markdown", "text", "json", "html"):
        printed = succeed(run("--export", ONE, "--as", form)).stdout
        assert "Answer 0" in printed
        assert "Answer 1" not in printed


def test_json_goes_back_in(run: Run, home: Path, tmp_path: Path, ollama: StandIn) -> None:
    session_id = succeed(run("-p", "Grüße 🦀\u2028\x7f", "--system", "Be brief.")).json["session_id"]
    succeed(run("--session-id", session_id, "-p", "And?"))
    assert succeed(run("--export", session_id, "--as", "json", "--to", "talk.json")).json == {
        "session_id": session_id, "path": str(tmp_path / "talk.json"),
    }  # fmt: skip
    talk = json.loads((tmp_path / "talk.json").read_bytes())
    assert talk == [*ollama.chats()[-1]["messages"], {"role": "assistant", "content": talk[-1]["content"]}]
    (imported,) = succeed(run("--import", "talk.json")).json["sessions"]
    assert imported != session_id
    assert succeed(run("--export", imported, "--as", "json")).stdout.encode() == (tmp_path / "talk.json").read_bytes()


def test_pictures(run: Run, home: Path) -> None:
    name = hashlib.sha256(PNG).hexdigest()
    make(home, 1, line(header(ONE)) + line(message(1, "user", "Look", images=[{"sha256": name, "path": "a/cat.png"}])))
    missing = run("--export", ONE, "--as", "html")
    assert "[picture: <bdi>cat.png</bdi>, which is missing]" in succeed(missing).stdout
    assert missing.stderr == "note: pictures that are missing or damaged: 1; --check tells which\n"
    (home / "attachments").mkdir()
    (home / "attachments" / name).write_bytes(PNG)
    there = run("--export", ONE, "--as", "html")
    assert '<img src="data:image/png;base64,iVBORw0KGgpwaWN0dXJl" alt="cat.png">' in there.stdout
    assert there.stderr == ""
    assert "[picture: cat.png]" in run("--export", ONE, "--as", "text").stdout


def test_a_file_is_replaced_whole(run: Run, home: Path, tmp_path: Path) -> None:
    make(home)
    target = tmp_path / "talk.txt"
    target.write_text("x" * 100_000)
    text = succeed(run("--export", ONE, "--as", "text", "--to", "talk.txt", "--output", "text"))
    assert text.stdout == f"{target}\n"
    assert target.read_text(encoding="utf-8").startswith("Question 0\n\nModel:   smollm2\n")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".ollama")] == []


@pytest.mark.parametrize("place", ["session", "link", "new"])
def test_no_document_takes_the_place_of_a_conversation(run: Run, home: Path, tmp_path: Path, place: str) -> None:
    target = make(home)
    if place == "link":
        target = tmp_path / "talk.md"
        try:
            target.symlink_to(make(home))
        except OSError:
            pytest.skip("no symbolic links here")
    elif place == "new":
        target = home / "sessions" / "talk.md"
    before = tree(home)
    assert "conversations" in fail(run("--export", ONE, "--to", str(target)), "export_failed", 1)["error"]
    assert tree(home) == before


@pytest.mark.parametrize(
    "name",
    ["sessions.db", "search.db", "history.jsonl", "sessions-1.x.db", "locks/index.lock", "attachments/" + 64 * "a"],
)
def test_no_document_takes_the_place_of_what_belongs_to_conversations(run: Run, home: Path, name: str) -> None:
    make(home)
    succeed(run("--search", "Question"))
    place = home / name
    place.parent.mkdir(exist_ok=True)
    if not place.exists():
        place.write_bytes(b"precious")
    before = tree(home)
    assert "conversations" in fail(run("--export", ONE, "--to", str(place)), "export_failed", 1)["error"]
    assert tree(home) == before


@pytest.mark.parametrize("name", ["sessions/archive", "attachments", "locks/archive"])
def test_no_archive_is_made_where_conversations_are_kept(run: Run, home: Path, name: str) -> None:
    make(home)
    succeed(run("--list-sessions"))
    before = tree(home)
    assert "conversations" in fail(run("--export", "--all", "--to", str(home / name)), "export_failed", 1)["error"]
    assert tree(home) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("what", [(ONE, "--to", "talk.html", "--as", "html"), ("--all", "--to", "archive")])
def test_interrupted_at_every_step(
    warm: Warm, home: Path, tmp_path: Path, environment: dict[str, str], what: tuple[str, ...], number: str, code: int
) -> None:
    make(home)
    codes: list[int] = []
    while not codes or codes[-1]:
        more: dict[str, Any] = {"cwd": str(tmp_path), "die_at": len(codes) + 1, "signal": number, "timeout": 60}
        warm.start("--export", *what, env=environment, **more)
        result = Result(*warm.end())
        assert result.stderr == ""
        codes.append(result.returncode)
        assert [path.name for path in tmp_path.rglob(".ollama-prompt.*")] == []
    assert set(codes) == {0, code}
    assert len(codes) > 10


def test_where_nothing_can_be_written(run: Run, home: Path, tmp_path: Path) -> None:
    make(home)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = tree(tmp_path)
    for target in ("no-such-folder/talk.md", "file/talk.md", "store", "store/", "new/", "file/", "loop", "x" * 300):
        error = fail(run("--export", ONE, "--to", target), "export_failed")
        assert "--to" in error["hint"]
        assert str(tmp_path) in error["error"]
    fail(run("--export", "--all", "--to", "no-such-folder/archive"), "export_failed")
    fail(run("--export", "--all", "--to", "file"), "export_failed")
    assert {name for name in set(tree(tmp_path)) - set(before) if not name.startswith("store")} == set()
    fail(run("--export", new_id(7), "--to", "new.md"), "session_not_found")
    assert not (tmp_path / "new.md").exists()
    assert succeed(run("--export", ONE, "--to", os.devnull)).json["path"] == os.devnull


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_what_is_no_file_is_written_to(start: Start, run: Run, home: Path, tmp_path: Path) -> None:
    """A pipe by its name, and one that a shell names: >(gzip) becomes /dev/fd/63."""
    make(home)
    expected = succeed(run("--export", ONE)).stdout
    os.mkfifo(tmp_path / "pipe")
    process = start("--export", ONE, "--to", "pipe")
    assert (tmp_path / "pipe").read_text(encoding="utf-8") == expected
    assert process.wait(60) == 0
    printed = start("--export", ONE, "--to", "/dev/stdout", "--output", "text").communicate(timeout=60)[0]
    assert printed.decode() == f"{expected}/dev/stdout\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("--export",),
        ("--export", "--to", "x"),
        ("--export", ONE, "--all", "--to", "x"),
        ("--export", "--all"),
        ("--export", "--all", "--to", "-"),
        ("--export", "--all", "--as", "json", "--to", "x"),
        ("--export", ONE, "--as", "pdf"),
        ("--export", ONE, "--as"),
        ("--export", ONE, "--to", ""),
        ("--export", ""),
        ("--export", ONE, "-p", "Hi"),
        ("--export", ONE, "--delete", ONE),
        ("--all", "--list-sessions"),
        ("-p", "Hi", "--as", "html"),
        ("--import", "x", "--to", "y"),
    ],
)
def test_contradictions(run: Run, home: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    make(home)
    before = tree(tmp_path)
    result = run(*flags)
    assert fail(result, "usage", 2)["error"]
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert tree(tmp_path) == before


def test_damage_is_told_and_the_rest_exported(run: Run, home: Path) -> None:
    add(make(home), b"{broken\n")
    result = run("--export", ONE, "--as", "text")
    assert "Answer 1" in succeed(result).stdout
    assert result.stderr == "note: damaged lines left out: 1; --check tells which\n"


# -- the archive -------------------------------------------------------------------------------------------


def test_only_what_changed_is_exported_again(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    paths = [make(home, number) for number in range(1, 4)]
    wait()
    assert archived(run, folder) == (3, 0, 0)
    before = tree(folder)
    assert sorted(before) == sorted(
        ["archive.jsonl", "index.html", "sessions", *(f"sessions/{path.stem}.html" for path in paths)]
    )
    assert archived(run, folder) == (0, 3, 0)
    assert tree(folder) == before
    add(paths[0], line(message(50, "user", "News")))
    succeed(run("--delete", new_id(2)))
    wait()
    assert archived(run, folder) == (1, 1, 1)
    assert pages(folder) == [new_id(1), new_id(3)]
    assert "News" in (folder / "sessions" / f"{new_id(1)}.html").read_text(encoding="utf-8")
    assert [row[0] for row in rows(folder)] == [new_id(1), new_id(3)], "newest use first"
    assert [row[4] for row in rows(folder)] == [5, 4]
    text = run("--export", "--all", "--to", str(folder), "--output", "text")
    assert succeed(text).stdout == "exported: 0, unchanged: 2, removed: 0\n"


def test_a_page_that_was_lost_or_cut_is_made_again(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    for number in (1, 2, 3):
        make(home, number)
    wait()
    archived(run, folder)
    before = tree(folder)
    (folder / "sessions" / f"{new_id(1)}.html").unlink()
    with open(folder / "sessions" / f"{new_id(2)}.html", "r+b") as file:
        file.truncate(200)
    assert archived(run, folder) == (2, 1, 0)
    assert tree(folder).keys() == before.keys()
    (folder / "index.html").unlink()
    assert archived(run, folder) == (0, 3, 0)
    (folder / "archive.jsonl").write_text('{"archive": "ollama-prompt", "made_by": "another release", "pages": 3}\n')
    assert archived(run, folder) == (3, 0, 0)
    contents = {name: data for name, data in tree(folder).items() if name != "archive.jsonl"}
    assert contents == {name: data for name, data in before.items() if name != "archive.jsonl"}


def test_what_others_have_there_stays(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    make(home)
    for name in ("notes", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    (tmp_path / "notes" / "archive.jsonl").write_text("mine")
    for name in ("notes", "full", "store"):
        before = tree(tmp_path / name)
        fail(run("--export", "--all", "--to", name), "export_failed")
        assert tree(tmp_path / name) == before
    folder.mkdir()
    (folder / ".git").mkdir()
    assert archived(run, folder) == (1, 0, 0), "a hidden one is no reason"
    others = ("sessions/index.html", f"sessions/{new_id(8)}.html", "sessions/photo.png", "README.md")
    for name in others:
        (folder / name).write_text("mine")
    wait()
    archived(run, folder)
    assert [(folder / name).read_text() for name in others] == ["mine"] * len(others)
    (folder / "index.html").write_text("<!DOCTYPE html>\nmine")
    make(home, 3)
    fail(run("--export", "--all", "--to", str(folder)), "export_failed")
    assert (folder / "index.html").read_text() == "<!DOCTYPE html>\nmine"


def test_a_page_in_whose_place_something_else_lies(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    make(home, 1)
    archived(run, folder)
    make(home, 2)
    make(home, 3)
    mine = folder / "sessions" / f"{new_id(2)}.html"
    mine.write_text("mine")
    assert str(mine) in fail(run("--export", "--all", "--to", str(folder)), "export_failed")["error"]
    assert mine.read_text() == "mine"
    assert [row[0] for row in rows(folder)] == [new_id(3), new_id(1)] or len(rows(folder)) == 2, "it held up no other"


def test_a_session_that_cannot_be_read_keeps_its_page(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    path = make(home, 1)
    make(home, 2)
    wait()
    archived(run, folder)
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    assert archived(run, folder) in {(0, 1, 1), (0, 1, 0)}
    path.rmdir()
    path.write_bytes(data)
    wait()
    assert archived(run, folder)[0] == 1
    assert pages(folder) == [new_id(1), new_id(2)]


def test_an_empty_store(run: Run, home: Path, tmp_path: Path) -> None:
    assert archived(run, tmp_path / "archive") == (0, 0, 0)
    assert rows(tmp_path / "archive") == []
    assert not home.exists()


def test_a_picture_that_comes_later(run: Run, home: Path, tmp_path: Path) -> None:
    name = hashlib.sha256(PNG).hexdigest()
    make(home, 1, line(header(ONE)) + line(message(1, "user", "Look", images=[{"sha256": name, "path": "cat.png"}])))
    wait()
    assert archived(run, tmp_path / "archive") == (1, 0, 0)
    (home / "attachments").mkdir()
    (home / "attachments" / name).write_bytes(PNG)
    assert archived(run, tmp_path / "archive") == (1, 0, 0)
    assert archived(run, tmp_path / "archive") == (0, 1, 0)


def test_the_store_is_not_written_to(run: Run, home: Path, tmp_path: Path) -> None:
    make(home)
    wait()
    succeed(run("--list-sessions"))
    before = tree(home)
    archived(run, tmp_path / "archive")
    assert tree(home) == before
    assert not (tmp_path / "archive" / ".archive.lock").exists()


def test_two_exports_to_one_archive_queue(run: Run, home: Path, tmp_path: Path) -> None:
    make(home)
    wait()
    archived(run, tmp_path / "archive")
    with FileLock(tmp_path / "archive" / ".archive.lock"):
        before = tree(tmp_path / "archive")
        everything = ("--export", "--all", "--to", "archive", "--lock-timeout", "0")
        assert "archive is in use" in fail(run(*everything), "session_busy", 75)["error"]
        assert tree(tmp_path / "archive") == before
        succeed(run("--export", "--all", "--to", "another", "--lock-timeout", "0"))
    assert archived(run, tmp_path / "archive") == (0, 1, 0)


def of_another_store(run: Run, folder: Path, home: Path) -> None:
    """An export of the store at `home` changes nothing, and says why."""
    before = tree(folder)
    error = fail(run("--export", "--all", "--to", str(folder), env={"OLLAMA_PROMPT_HOME": str(home)}), "export_failed")
    assert f"another store than {home}" in error["error"]
    assert "OLLAMA_PROMPT_HOME" in error["hint"]
    assert tree(folder) == before


def test_an_archive_of_another_store_stays(run: Run, home: Path, tmp_path: Path) -> None:
    """A mistyped home, a drive that is not mounted, or somebody else's conversations must not empty it."""
    folder, other = tmp_path / "archive", tmp_path / "other"
    for number in (1, 2, 3):
        make(home, number)
    archived(run, folder)
    of_another_store(run, folder, tmp_path / "mistyped")
    other.mkdir()
    of_another_store(run, folder, other)
    make(other, 1)
    make(other, 7)
    of_another_store(run, folder, other)
    shutil.move(home, tmp_path / "away")
    of_another_store(run, folder, home)
    home.mkdir()
    of_another_store(run, folder, home)
    make(home, 8)
    of_another_store(run, folder, home)


def test_a_store_that_was_moved_goes_on_with_its_archive(run: Run, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    for number in (1, 2, 3):
        make(home, number)
    wait()
    archived(run, folder)
    shutil.copytree(home, tmp_path / "moved")
    shutil.rmtree(home)
    moved = {"OLLAMA_PROMPT_HOME": str(tmp_path / "moved")}
    succeed(run("--delete", new_id(1), env=moved))
    assert succeed(run("--export", "--all", "--to", str(folder), env=moved)).json["removed"] == 1
    succeed(run("--purge", "0", env=moved))
    assert succeed(run("--export", "--all", "--to", str(folder), env=moved)).json["removed"] == 2
    assert (pages(folder), rows(folder)) == ([], [])


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_at_every_step(warm: Warm, run: Run, home: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """The first export, and a later one that adds, changes and removes a page."""
    for number in (1, 2):
        make(home, number)
    wait()
    archived(run, tmp_path / "before")
    succeed(run("--delete", new_id(1)))
    add(home / "sessions" / month_of(new_id(2)) / f"{new_id(2)}.jsonl", line(message(50, "user", "News")))
    make(home, 3)
    wait()
    succeed(run("--list-sessions"))
    archived(run, tmp_path / "whole")
    expected = {name: data for name, data in tree(tmp_path / "whole").items() if name != "archive.jsonl"}
    folder = tmp_path / "archive"
    states = States(home, folder)
    for start in (None, tmp_path / "before"):
        step = 0
        while True:
            step += 1
            shutil.rmtree(folder, ignore_errors=True)
            if start:
                shutil.copytree(start, folder)
            warm.start("--export", "--all", "--to", str(folder), env=environment, die_at=step, timeout=60)
            if Result(*warm.end()).returncode == 0:
                break
            if not states.is_new():
                continue
            exported, unchanged, _ = archived(run, folder)
            assert exported + unchanged == 2
            assert {name: data for name, data in tree(folder).items() if name != "archive.jsonl"} == expected
            assert archived(run, folder) == (0, 2, 0)
        assert step > 20


# -- in a browser ------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], str]:
    """What a page is when it was loaded and its scripts have run, as HTML."""

    def browse(address: str) -> str:
        profile = tmp_path / "profile"
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--disable-background-networking", "--no-first-run", "--virtual-time-budget=3000", "--dump-dom", address,
        ]  # fmt: skip
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=60,
            check=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        return done.stdout.decode()

    return browse


def attack(url: str) -> list[Json]:
    """A conversation that wants to run something, and to have something fetched."""
    fetching = (
        f"![pixel]({url}/pixel.png) <img src={url}/a> <link rel=stylesheet href={url}/b>\n\n"
        f"<iframe src={url}/c></iframe>\n\n<script src={url}/f></script>\n\n"
        f"<style>@import '{url}/d'; body {{ background: url({url}/e) }}</style>"
    )
    everything = "\n\n".join((*HOSTILE, fetching))
    return [
        header(ONE, title=f"{HOSTILE[0]} {HOSTILE[1]} {HOSTILE[2]}", model=HOSTILE[1], system=everything),
        message(1, "user", everything),
        message(2, "assistant", everything, model=HOSTILE[2], thinking=everything),
        *(message(number, "assistant", content) for number, content in enumerate((*HOSTILE, fetching), 3)),
    ]


@needs_browser
def test_a_hostile_conversation_does_nothing(
    run: Run, home: Path, tmp_path: Path, ollama: StandIn, browse: Callable[[str], str]
) -> None:
    make(home, 1, b"".join(map(line, attack(ollama.url))))
    archived(run, tmp_path / "archive")
    for name in (f"sessions/{ONE}.html", "index.html"):
        shown = browse((tmp_path / "archive").as_uri() + "/" + name)
        title = re.findall("<title>(.*?)</title>", shown, re.DOTALL)[0]
        assert title != "EXECUTED"
        assert title.startswith("&lt;script&gt;" if name.startswith("sessions") else "Conversations")
        assert "&lt;script&gt;document.title='EXECUTED'&lt;/script&gt;" in shown, "it is there, as text"
        assert ollama.requests() == []


@needs_browser
def test_the_policy_holds_where_escaping_would_not(
    run: Run, home: Path, tmp_path: Path, ollama: StandIn, browse: Callable[[str], str]
) -> None:
    make(home)
    text = succeed(run("--export", ONE, "--as", "html")).stdout
    bad = (
        f"<main><script>document.title='EXECUTED'</script><img src='{ollama.url}/a'>"
        f"<style>body {{ background: url({ollama.url}/b) }}</style><iframe src='{ollama.url}/c'></iframe>"
    )
    (tmp_path / "spoilt.html").write_text(text.replace("<main>", bad), encoding="utf-8")
    assert "<title>Question 0</title>" in browse((tmp_path / "spoilt.html").as_uri())
    assert ollama.requests() == []
    without = re.sub("<meta http-equiv[^>]*>", "", text).replace("<main>", bad)
    (tmp_path / "control.html").write_text(without, encoding="utf-8")
    assert "<title>EXECUTED</title>" in browse((tmp_path / "control.html").as_uri()), "this browser would run it"
    assert ollama.requests(), "and fetch it"


@needs_browser
def test_what_is_written_from_the_right_stands_on_the_right(
    run: Run, home: Path, tmp_path: Path, browse: Callable[[str], str]
) -> None:
    answer = "> اقتباس\n\n- أولا\n\n  ثانيا\n\n| اسم | قيمة |\n|---|---|\n| أ | 1 |\n\n> quoted\n\n- one\n\n  two\n"
    make(home, 1, line(header(ONE)) + line(message(1, "assistant", answer)))
    text = succeed(run("--export", ONE, "--as", "html")).stdout
    looking = (
        "<script>document.title = [...document.querySelectorAll('blockquote, ul, table')]"
        ".map((one) => getComputedStyle(one).direction).join()</script>"
    )
    without_policy = re.sub("<meta http-equiv[^>]*>", "", text).replace("</html>", looking)
    (tmp_path / "page.html").write_text(without_policy, encoding="utf-8")
    assert "<title>rtl,rtl,rtl,ltr,ltr</title>" in browse((tmp_path / "page.html").as_uri())


@needs_browser
def test_the_list_is_searched_in_the_page(run: Run, home: Path, tmp_path: Path, browse: Callable[[str], str]) -> None:
    for number in range(1, 151):
        titles = {7: "Zürich, Übung </script>", 8: "Größe: 3 Fuß 🦀 Οδυσσεύς"}
        title = titles.get(number, f"Number {number}")
        data = [header(new_id(number), title=title), message(number, "user", f"Prompt of {number}, 日本語のテスト")]
        make(home, number, b"".join(map(line, data)))
    archived(run, tmp_path / "archive")
    address = (tmp_path / "archive" / "index.html").as_uri()
    everything = browse(address)
    assert "150 conversations" in everything
    assert everything.count('<a dir="auto"') + everything.count("<a href=") == 100, "rows are made when they are needed"
    for words, found in (
        ("zurich%20UBUNG%20script", "Zürich"),
        (new_id(7)[:35], ""),
        ("2026-09%20number%2077", "Number"),
        ("本語のテスト%20148", "Number"),
    ):
        shown = browse(f"{address}#{words}")
        assert "1 of 150 conversations" in shown or not found, words
        assert found in shown
    assert "<mark>Zürich</mark>, <mark>Übung</mark> &lt;/<mark>script</mark>&gt;" in browse(
        f"{address}#zurich%20UBUNG%20script"
    )
    assert "<mark>Größe</mark>: 3 Fu<mark>ß</mark> 🦀 <mark>Οδυσσεύς</mark>" in browse(
        f"{address}#GROSSE%20s%20{quote('ΟΔΥΣΣΕΥΣ')}"
    )
    assert "0 of 150 conversations" in browse(f"{address}#nothing%20like%20it")
