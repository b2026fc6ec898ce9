"""Pictures in prompts: the real command against the stand-in server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import stat
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result, tree
from stores import States, fail, header, line, make, message, new_id, records, succeed, the_file
from test_faults import Disk, disk, limited, prelude  # noqa: F401  disk is a fixture

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Run, Start
    from standin import StandIn
    from warm import Warm

Json = dict[str, Any]

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files or modes")

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(50)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(30)
PICTURES = {"a.png": PNG, "b.jpg": JPEG, "c.webp": WEBP}
ASK = ("-p", "What is it?", "--model", "viewer")
ONE = new_id(1)


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path) -> None:
    """Three of them, in the folder in which commands are run."""
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def on_wire(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sent(standin: StandIn) -> list[list[list[bytes]]]:
    """Of every chat, of each message, the pictures."""
    messages = [[message.get("images", []) for message in chat["messages"]] for chat in standin.chats()]
    return [[[base64.b64decode(image, validate=True) for image in images] for images in chat] for chat in messages]


def kept(home: Path) -> dict[str, bytes]:
    """The pictures in the store, which must be whole, and named by what they are."""
    folder = home / "attachments"
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}
    assert all(name == name_of(data) for name, data in found.items()), "a part of one, or a wrong name"
    return found


def named(home: Path) -> set[str]:
    """The pictures that sessions name, in whole lines."""
    whole = [text for path in stores.files(home) for text in path.read_bytes().split(b"\n")[:-1] if text]
    return {image["sha256"] for text in whole for image in json.loads(text).get("images", [])}


def picture(*data: bytes, number: int = 1, **more: Any) -> bytes:
    """A session whose prompt names these pictures, as git brings it."""
    images = [{"sha256": name_of(one), "bytes": len(one), "type": "image/png", "path": "a.png"} for one in data]
    prompt = message(2 * number, "user", "What is it?", **{"images": images, **more})
    answer = message(2 * number + 1, "assistant", "A picture.")
    return b"".join(map(line, [header(new_id(number), model="viewer"), prompt, answer]))


def lay(home: Path, *data: bytes, number: int = 1, **more: Any) -> Path:
    """The same, with the pictures."""
    path = make(home, number, picture(*data, number=number, **more))
    (home / "attachments").mkdir(exist_ok=True)
    for one in data:
        (home / "attachments" / name_of(one)).write_bytes(one)
    return path


# -- a turn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "type_"), [("a.png", "png"), ("b.jpg", "jpeg"), ("c.webp", "webp")])
def test_a_picture(run: Run, ollama: StandIn, home: Path, tmp_path: Path, name: str, type_: str) -> None:
    """What it is, its content tells."""
    data = PICTURES[name]
    (tmp_path / "picture.txt").write_bytes(data)
    result = succeed(run(*ASK, "--image", "picture.txt"))
    assert result.stderr == ""
    assert ollama.chats()[0]["messages"] == [{"role": "user", "content": "What is it?", "images": [on_wire(data)]}]
    prompt = records(the_file(home))[1]
    image = {"sha256": name_of(data), "bytes": len(data), "type": f"image/{type_}", "path": "picture.txt"}
    assert prompt["images"] == [image]
    assert list(prompt) == ["type", "id", "role", "content", "created_at", "images"]
    assert kept(home) == {name_of(data): data}
    assert on_wire(data).encode() not in the_file(home).read_bytes()
    assert "images" not in result.json


@posix_only
def test_pictures_are_the_users_own(run: Run, home: Path) -> None:
    succeed(run(*ASK, "--image", "a.png"))
    assert stat.S_IMODE((home / "attachments").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "attachments" / name_of(PNG)).stat().st_mode) == 0o600


def test_several_pictures_keep_their_order(run: Run, ollama: StandIn, home: Path) -> None:
    succeed(run(*ASK, "--image", "c.webp", "--image", "a.png", "--image", "b.jpg"))
    assert sent(ollama) == [[[WEBP, PNG, JPEG]]]
    assert [image["path"] for image in records(the_file(home))[1]["images"]] == ["c.webp", "a.png", "b.jpg"]
    assert len(kept(home)) == 3


def test_each_is_kept_once(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    succeed(run(*ASK, "--image", "a.png", "--image", "copy.png", "--image", "a.png"))
    succeed(run(*ASK, "--image", "copy.png"))
    assert sent(ollama) == [[[PNG, PNG, PNG]], [[PNG]]]
    assert kept(home) == {name_of(PNG): PNG}
    assert [len(records(path)[1]["images"]) for path in stores.files(home)] == [3, 1]


def test_later_turns_send_them_again(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    on = ("-p", "And?", "--session-id", session_id)
    (tmp_path / "a.png").unlink()
    succeed(run(*on))
    (tmp_path / "a.png").write_bytes(JPEG)  # the path that the record keeps is for people
    succeed(run(*on, "--image", "c.webp"))
    succeed(run(*on, cwd=home))
    assert sent(ollama) == [
        [[PNG]],
        [[PNG], [], []],
        [[PNG], [], [], [], [WEBP]],
        [[PNG], [], [], [], [WEBP], [], []],
    ]
    assert set(kept(home)) == {name_of(PNG), name_of(WEBP)}


def test_from_stdin_too(run: Run, ollama: StandIn) -> None:
    succeed(run("--image", "a.png", "--model", "viewer", "--no-session", input="What is it?\n"))
    assert sent(ollama) == [[[PNG]]]


def test_without_a_session_nothing_is_written(run: Run, ollama: StandIn, home: Path) -> None:
    succeed(run(*ASK, "--image", "a.png", "--no-session"))
    assert sent(ollama) == [[[PNG]]]
    assert not home.exists()


def test_a_retry_sends_them_again(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    (tmp_path / "a.png").unlink()
    succeed(run("--retry", session_id))
    assert sent(ollama) == [[[PNG]], [[PNG]]]
    prompts = [record for record in records(the_file(home)) if record.get("role") == "user"]
    assert [len(prompt["images"]) for prompt in prompts] == [1, 1]
    assert kept(home) == {name_of(PNG): PNG}


def test_what_was_taken_back_is_not_sent(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    succeed(run("--undo", session_id))
    succeed(run("-p", "And?", "--session-id", session_id))
    assert sent(ollama) == [[[PNG]], [[]]]
    assert kept(home) == {name_of(PNG): PNG}, "it stays in the file"


def test_what_is_shown(run: Run, home: Path) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    prompt, answer = succeed(run("--session-info", session_id)).json["messages"]
    assert prompt["images"] == records(the_file(home))[1]["images"]
    assert "images" not in answer
    (listed,) = stores.listed(run("--list-sessions"))
    assert (listed["title"], listed["message_count"]) == ("What is it?", 2)
    assert succeed(run("--check")).json == {"ok": True, "sessions": 1, "damage": [], "index": "ok"}
    assert succeed(run("--reindex")).json == {"sessions": 1}


def test_with_a_format_and_events(run: Run, ollama: StandIn) -> None:
    result = succeed(run(*ASK, "--image", "a.png", "--format", "json", "--output", "ndjson"))
    assert result.events[-1]["parsed"] == {"ok": True}
    assert sent(ollama) == [[[PNG]]]


# -- what is no picture ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text.png", "anim.gif", "empty.png", "missing.png", "folder", "", "secret.png"])
@pytest.mark.parametrize("session", ["new", "old", "none"])
def test_what_is_no_picture(run: Run, ollama: StandIn, home: Path, tmp_path: Path, name: str, session: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "anim.gif").write_bytes(b"GIF89a" + bytes(30))
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "secret.png").chmod(0)
    if name == "secret.png" and os.access(tmp_path / "secret.png", os.R_OK):
        pytest.skip("root may read everything")
    path = make(home, 1) if session == "old" else None
    before = tree(home)
    more = {"new": (), "old": ("--session-id", ONE), "none": ("--no-session",)}[session]
    error = fail(run(*ASK, *more, "--image", "a.png", "--image", name), "usage", 2)
    assert error["error"].startswith("--image: ")
    assert repr(name) in error["error"]
    assert ollama.requests() == []
    assert tree(home) == before
    assert home.exists() == bool(path)


def test_it_is_found_before_anything_is_asked(run: Run, ollama: StandIn, tmp_path: Path) -> None:
    fail(run(*ASK, "--image", "missing.png", env={"OLLAMA_HOST": "127.0.0.1:1"}), "usage", 2)
    fail(run("-p", "", "--image", "a.png"), "usage", 2)
    fail(run("--image", "a.png"), "usage", 2)  # a picture is no prompt
    fail(run("--list-sessions", "--image", "a.png"), "usage", 2)
    fail(run("--retry", ONE, "--image", "a.png"), "usage", 2)


# -- models that do not see --------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["new", "old", "none"])
def test_a_model_that_does_not_see(run: Run, ollama: StandIn, home: Path, session: str) -> None:
    if session == "old":
        make(home, 1)
    more = {"new": (), "old": ("--session-id", ONE), "none": ("--no-session",)}[session]
    before = {name: data for name, data in tree(home).items() if name.endswith("jsonl")}
    error = fail(run("-p", "What is it?", *more, "--image", "a.png"), "model_unsupported")
    assert error["error"] == "smollm2 does not support images"
    assert error.get("session_id") == (ONE if session == "old" else None)
    assert ollama.chats() == []
    assert {name: data for name, data in tree(home).items() if name.endswith("jsonl")} == before
    assert not (home / "attachments").exists()
    if session != "old":
        assert not home.exists()


@pytest.mark.parametrize("session", ["new", "old", "none"])
def test_a_server_that_finds_out_late(run: Run, ollama: StandIn, home: Path, session: str) -> None:
    """It does not say what the model can, and refuses by itself."""
    path = make(home, 1) if session == "old" else None
    before = path.read_bytes() if path else b""
    more = {"new": (), "old": ("--session-id", ONE), "none": ("--no-session",)}[session]
    ollama.fail("status", path="/api/show", status=200, body={"model_info": {}})
    fail(run("-p", "What is it?", *more, "--image", "a.png"), "model_unsupported")
    assert sent(ollama)[0][-1] == [PNG]
    assert kept(home) == {}
    assert stores.files(home) == ([path] if path else [])
    assert (path.read_bytes() if path else b"") == before


def test_a_session_goes_on_with_a_model_that_does_not_see(run: Run, ollama: StandIn, home: Path) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png", "--image", "b.jpg")).json["session_id"]
    on = ("-p", "And?", "--session-id", session_id)
    for flags in (("--model", "smollm2"), ()):
        result = succeed(run(*on, *flags))
        assert result.stderr == "note: smollm2 does not support images: earlier ones are not sent\n"
        assert sent(ollama)[-1][0] == []
    result = succeed(run(*on, "--model", "viewer"))
    assert (result.stderr, sent(ollama)[-1][0]) == ("", [PNG, JPEG])
    fail(run(*on, "--model", "smollm2", "--image", "a.png"), "model_unsupported")
    assert len(kept(home)) == 2


# -- pictures that are gone, or never were -----------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "altered", "empty", "no folder"])
def test_a_picture_that_is_missing_or_damaged(run: Run, ollama: StandIn, home: Path, harm: str) -> None:
    session_id = succeed(run(*ASK, "--image", "a.png", "--image", "b.jpg")).json["session_id"]
    path = home / "attachments" / name_of(PNG)
    if harm == "no folder":
        shutil.rmtree(home / "attachments")
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes(PNG[:-1] + b"!" if harm == "altered" else b"")
    before = tree(home / "attachments")
    result = succeed(run("-p", "And?", "--session-id", session_id))
    noted = result.stderr.splitlines()
    assert len(noted) == (2 if harm == "no folder" else 1)
    assert all(text.startswith("note: the picture ") and text.endswith("it is not sent") for text in noted)
    assert name_of(PNG) in noted[0]
    assert sent(ollama)[-1][0] == ([] if harm == "no folder" else [JPEG])
    assert "images" in ollama.chats()[-1]["messages"][0] or harm == "no folder"
    assert tree(home / "attachments") == before
    checked = run("--check").json["damage"]
    word = "missing" if harm in {"missing", "no folder"} else "damaged"
    assert checked[0]["reason"] == f"the picture {name_of(PNG)} is {word}"
    assert len(checked) == len(noted)
    # Given again, it is there again.
    succeed(run("-p", "Here", "--session-id", session_id, "--image", "a.png"))
    assert kept(home)[name_of(PNG)] == PNG
    assert sent(ollama)[-1][0] in ([PNG, JPEG], [PNG])


@pytest.mark.parametrize(
    "odd",
    [
        None, {}, [5], [{"sha256": None}], [{"sha256": "../secret"}], [{"sha256": "a" * 64}],
        [{"sha256": "\u0000" * 64}],
    ],
)  # fmt: skip
def test_a_record_written_by_hand(run: Run, ollama: StandIn, home: Path, tmp_path: Path, odd: object) -> None:
    (tmp_path / "secret").write_bytes(PNG)
    path = lay(home, images=odd)
    result = succeed(run("-p", "And?", "--session-id", path.stem))
    assert sent(ollama) == [[[], [], []]]
    assert result.stderr == "" or "a" * 64 in result.stderr
    assert succeed(run("--session-info", path.stem)).json["messages"][0]["images"] == odd
    assert succeed(run("--session-info", path.stem, "--output", "text")).stdout
    succeed(run("--undo", path.stem))
    again = run("--retry", path.stem, "--model", "smollm2")
    if odd == [{"sha256": "a" * 64}]:
        fail(again, "model_unsupported")
    else:
        assert sent(ollama)[-1] == [[]], succeed(again)
    assert len(stores.listed(run("--list-sessions"))) == 1
    assert succeed(run("--delete", succeed(run("--fork", path.stem)).json["session_id"]))
    succeed(run("--purge", "0"))
    assert (tmp_path / "secret").read_bytes() == PNG


@posix_only
@pytest.mark.parametrize("kind", ["link", "link to nowhere", "fifo", "folder", "device"])
def test_what_is_no_file_in_the_place_of_a_picture(
    run: Run, ollama: StandIn, home: Path, tmp_path: Path, kind: str
) -> None:
    path = lay(home, PNG)
    there = home / "attachments" / name_of(PNG)
    there.unlink()
    secret = tmp_path / "secret"
    secret.write_bytes(PNG)
    if kind == "fifo":
        os.mkfifo(there)
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to({"link": str(secret), "device": "/dev/zero"}.get(kind, "nowhere"))
    result = succeed(run("-p", "And?", "--session-id", path.stem, timeout=20))
    assert "is not sent" in result.stderr
    assert sent(ollama) == [[[], [], []]]
    given = run("-p", "Here", "--session-id", path.stem, "--image", "a.png", timeout=20)
    if kind == "folder":
        fail(given, "store_write_failed")
        assert there.is_dir()
    else:
        succeed(given)
        assert not there.is_symlink()
        assert kept(home) == {name_of(PNG): PNG}
    succeed(run("--delete", path.stem, timeout=20))
    assert secret.read_bytes() == PNG


@posix_only
def test_a_folder_of_pictures_elsewhere(run: Run, ollama: StandIn, home: Path, tmp_path: Path) -> None:
    """The user's own doing: a link to another disk."""
    home.mkdir()
    (tmp_path / "large disk").mkdir()
    (home / "attachments").symlink_to(tmp_path / "large disk")
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    succeed(run("-p", "And?", "--session-id", session_id))
    assert sent(ollama)[-1][0] == [PNG]
    assert os.listdir(tmp_path / "large disk") == [name_of(PNG)]
    succeed(run("--delete", session_id))
    assert os.listdir(tmp_path / "large disk") == []


# -- turns that fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["new", "old"])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 400, "body": {"error": "no"}},
        {"kind": "status", "status": 404, "body": {"error": "model 'viewer' not found"}},
        {"kind": "status", "status": 413, "body": "too large"},
        {"kind": "status", "status": 401, "body": {"error": "unauthorized"}},
    ],
)
def test_a_refused_turn_leaves_no_picture(run: Run, ollama: StandIn, home: Path, session: str, fault: Json) -> None:
    path = lay(home, JPEG) if session == "old" else None
    before = path.read_bytes() if path else b""
    ollama.fail(**fault)
    more = ("--session-id", ONE) if path else ()
    result = run(*ASK, *more, "--image", "a.png", "--image", "b.jpg")
    assert result.returncode == 1
    assert sent(ollama)[-1][-1] == [PNG, JPEG]
    assert set(kept(home)) == ({name_of(JPEG)} if path else set())
    assert stores.files(home) == ([path] if path else [])
    assert (path.read_bytes() if path else b"") == before


def test_a_refused_turn_leaves_the_pictures_of_others(run: Run, ollama: StandIn, home: Path) -> None:
    succeed(run(*ASK, "--image", "a.png"))
    ollama.fail("status", status=400, body={"error": "no"})
    fail(run(*ASK, "--image", "a.png", "--image", "b.jpg"), "ollama_error")
    assert kept(home) == {name_of(PNG): PNG}


@pytest.mark.parametrize("fault", [{"kind": "cut"}, {"kind": "close"}, {"kind": "status", "status": 500, "body": "no"}])
def test_a_turn_that_broke_off_keeps_its_picture(run: Run, ollama: StandIn, home: Path, fault: Json) -> None:
    ollama.fail(**fault)
    error = fail(run(*ASK, "--image", "a.png"), "ollama_error" if fault.get("status") else "incomplete_answer")
    assert kept(home) == {name_of(PNG): PNG}
    assert named(home) == {name_of(PNG)}
    succeed(run("--retry", error["session_id"]))
    assert sent(ollama)[-1] == [[PNG]]


@posix_only
def test_an_interrupted_turn_keeps_its_picture(start: Start, run: Run, ollama: StandIn, home: Path) -> None:
    ollama.fail("hang")
    process = start(*ASK, "--image", "a.png")
    ollama.wait(requests=1)
    process.send_signal(signal.SIGINT)
    assert end(process).returncode == 130
    assert named(home) == {name_of(PNG)} == set(kept(home))
    succeed(run("--retry", the_file(home).stem))
    assert sent(ollama)[-1] == [[PNG]]


def test_no_server(run: Run, home: Path) -> None:
    fail(run(*ASK, "--image", "a.png", env={"OLLAMA_HOST": "127.0.0.1:1"}), "ollama_unreachable")
    assert not home.exists()


def test_asked_again_with_less(run: Run, ollama: StandIn, home: Path) -> None:
    """The server says that it was too much: the pictures go with what is still sent."""
    session_id = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    nested = json.dumps({"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}})
    ollama.fail("status", status=400, body={"error": nested})
    succeed(run("-p", "And?", "--session-id", session_id, "--image", "b.jpg"))
    assert sent(ollama)[1:] == [[[PNG], [], [JPEG]]] * 2


# -- disks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["new", "old"])
def test_no_room_for_a_picture(
    run: Run,
    ollama: StandIn,
    home: Path,
    tmp_path: Path,
    disk: Disk,  # noqa: F811
    session: str,
) -> None:
    (tmp_path / "large.png").write_bytes(PNG + bytes(2_000_000))
    path = lay(home, WEBP) if session == "old" else None
    before = path.read_bytes() if path else b""
    more = ("--session-id", ONE) if path else ()
    error = fail(run(*ASK, *more, "--image", "a.png", "--image", "large.png"), "store_write_failed")
    assert "make room" in error["hint"]
    assert error.get("session_id") == (ONE if path else None)
    assert ollama.chats() == []
    assert set(kept(home)) == ({name_of(WEBP)} if path else set())
    assert stores.files(home) == ([path] if path else [])
    assert (path.read_bytes() if path else b"") == before
    assert not list(home.rglob("*.tmp"))
    succeed(run(*ASK, *more, "--image", "a.png"))


@posix_only
@pytest.mark.parametrize("session", ["new", "old"])
def test_no_room_for_the_prompt_behind_its_picture(
    run: Run, ollama: StandIn, home: Path, tmp_path: Path, session: str
) -> None:
    (tmp_path / "long.txt").write_text("word " * 4000)
    path = lay(home, WEBP) if session == "old" else None
    more = ("--session-id", ONE) if path else ()
    ask = ("--prompt-file", "long.txt", "--model", "viewer", *more, "--image", "a.png", "--image", "c.webp")
    fail(run(*ask, env=limited(tmp_path, 15_000)), "store_write_failed")
    assert ollama.chats() == []
    assert set(kept(home)) == ({name_of(WEBP)} if path else set())
    assert stores.files(home) == ([path] if path else [])
    succeed(run(*ask))


@posix_only
def test_a_store_that_may_not_be_written(run: Run, ollama: StandIn, home: Path, disk: Disk) -> None:  # noqa: F811
    path = lay(home, PNG)
    disk.remount("ro")
    try:
        fail(run(*ASK, "--session-id", path.stem, "--image", "b.jpg"), "store_write_failed")
        fail(run(*ASK, "--image", "a.png"), "store_write_failed")
        assert ollama.chats() == []
        assert succeed(run(*ASK, "--image", "b.jpg", "--no-session")).json["done"]
    finally:
        disk.remount("rw")
    assert set(kept(home)) == {name_of(PNG)}


# -- removing ----------------------------------------------------------------------------------------------


def test_deleting_removes_the_pictures_that_nothing_else_names(run: Run, home: Path) -> None:
    first = succeed(run(*ASK, "--image", "a.png", "--image", "b.jpg")).json["session_id"]
    second = succeed(run(*ASK, "--image", "b.jpg")).json["session_id"]
    succeed(run("--delete", first))
    assert set(kept(home)) == {name_of(JPEG)}
    succeed(run("--delete", second))
    assert kept(home) == {}


def test_purging_removes_the_pictures_that_nothing_else_names(run: Run, home: Path) -> None:
    lay(home, PNG, JPEG, created_at="2001-01-01T00:00:00.000Z")
    (path,) = stores.files(home)
    path.write_bytes(path.read_bytes().replace(b"2026-", b"2001-"))
    fresh = succeed(run(*ASK, "--image", "b.jpg")).json["session_id"]
    before = tree(home / "attachments")
    assert succeed(run("--purge", "30", "--dry-run")).json["removed"] == 1
    assert tree(home / "attachments") == before
    assert succeed(run("--purge", "30")).json["sessions"] == [ONE]
    assert set(kept(home)) == {name_of(JPEG)}
    assert succeed(run("--purge", "0")).json["sessions"] == [fresh]
    assert kept(home) == {}


def test_a_fork_shares_them(run: Run, ollama: StandIn, home: Path) -> None:
    first = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    second = succeed(run("--fork", first)).json["session_id"]
    assert kept(home) == {name_of(PNG): PNG}
    succeed(run("--delete", first))
    succeed(run("-p", "And?", "--session-id", second))
    assert sent(ollama)[-1][0] == [PNG]
    succeed(run("--delete", second))
    assert kept(home) == {}


def test_a_fork_of_nothing(run: Run, home: Path) -> None:
    lay(home, PNG)
    assert fail(run("--fork", new_id(7)), "session_not_found")["session_id"] == new_id(7)


def test_sessions_in_folders_of_the_users_own_name_them_too(run: Run, home: Path) -> None:
    first = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    second = succeed(run(*ASK, "--image", "a.png")).json["session_id"]
    (path,) = home.glob(f"sessions/*/{second}.jsonl")
    (home / "sessions" / "work" / "old").mkdir(parents=True)
    path.rename(home / "sessions" / "work" / "old" / path.name)
    succeed(run("--delete", first))
    assert kept(home) == {name_of(PNG): PNG}


@pytest.mark.parametrize("index", ["missing", "foreign", "corrupt"])
def test_without_an_index_it_is_the_same(run: Run, home: Path, index: str) -> None:
    first = succeed(run(*ASK, "--image", "a.png", "--image", "b.jpg")).json["session_id"]
    succeed(run(*ASK, "--image", "b.jpg"))
    (home / "sessions.db").unlink()
    if index != "missing":
        (home / "sessions.db").write_bytes(b"SQLite format 3\0" * 300 if index == "corrupt" else b"something else")
    assert run("--delete", first).returncode == 0
    assert set(kept(home)) == {name_of(JPEG)}


@pytest.mark.parametrize("action", ["delete", "purge"])
def test_they_stay_where_a_session_cannot_be_read(run: Run, home: Path, tmp_path: Path, action: str) -> None:
    lay(home, PNG)
    (path,) = stores.files(home)
    path.write_bytes(path.read_bytes().replace(b"2026-", b"2001-"))
    other = make(home, 2)
    refuse = f"""
import os
real = os.open
def open_(name, *args, **named):
    if str(name) == {str(other)!r}:
        raise PermissionError(13, "Permission denied", name)
    return real(name, *args, **named)
os.open = open_
"""
    flags = ("--delete", ONE) if action == "delete" else ("--purge", "30")
    run(*flags, env=prelude(tmp_path, refuse))
    assert stores.files(home) == [other]
    assert kept(home) == {name_of(PNG): PNG}


# -- many processes ----------------------------------------------------------------------------------------


def end(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def test_8_new_sessions_with_the_same_picture(start: Start, run: Run, ollama: StandIn, home: Path) -> None:
    ollama.hold(8)
    processes = [start(*ASK, "--image", "a.png") for _ in range(8)]
    results = [succeed(end(process)) for process in processes]
    assert len({result.json["session_id"] for result in results}) == 8
    assert all(result.stderr == "" for result in results)
    assert sent(ollama) == [[[PNG]]] * 8
    assert kept(home) == {name_of(PNG): PNG}
    assert succeed(run("--check")).json["damage"] == []
    assert len(stores.listed(run("--list-sessions"))) == 8


def test_a_lock_that_is_held_elsewhere(start: Start, run: Run, home: Path, tmp_path: Path) -> None:
    """Nobody holds it for long; who does not get it leaves nothing."""
    lay(home, PNG)
    hasty = prelude(tmp_path, "import ollama_prompt.indexer as i\ni.ATTACHMENTS_SECONDS = 0.2\n")
    from filelock import FileLock

    (home / "locks").mkdir(exist_ok=True)
    with FileLock(home / "locks" / "attachments.lock"):
        error = fail(run(*ASK, "--image", "b.jpg", env=hasty), "session_busy", 75)
        assert "pictures" in error["error"]
        assert "session_id" not in error
        assert "lock-timeout" not in error["hint"], "which is for sessions"
        succeed(run("-p", "And?", "--session-id", ONE))  # reading takes no lock
    assert set(kept(home)) == {name_of(PNG)}
    assert stores.files(home) == [the_file(home)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Warm, Warm]]:
    """Two servers that fork commands, so that two run at once."""
    if sys.platform == "win32":
        pytest.skip("needs fork")
    from warm import Warm

    servers = Warm(tmp_path_factory.mktemp("one")), Warm(tmp_path_factory.mktemp("two"))
    yield servers
    for server in servers:
        server.close()


class Race:
    """Two commands at the same moment, many times."""

    def __init__(self, warm: tuple[Warm, Warm], environment: dict[str, str], folder: Path) -> None:
        self._warm = warm
        self._env = environment
        self._gates = [str(folder / "gate 1"), str(folder / "gate 2")]
        for gate in self._gates:
            os.mkfifo(gate)

    def run(self, one: tuple[str, ...], other: tuple[str, ...]) -> tuple[Result, Result]:
        """How both end."""
        for server, argv, gate in zip(self._warm, (one, other), self._gates, strict=True):
            server.start(*argv, env=self._env, gate=gate)
        for descriptor in [os.open(gate, os.O_WRONLY) for gate in self._gates]:
            os.write(descriptor, b".")
            os.close(descriptor)
        return Result(*self._warm[0].end()), Result(*self._warm[1].end())


@pytest.fixture
def race(pair: tuple[Warm, Warm], environment: dict[str, str], tmp_path: Path) -> Race:
    return Race(pair, environment, tmp_path)


ROUNDS = 40


@posix_only
@pytest.mark.parametrize("removal", ["delete", "purge"])
def test_a_session_is_removed_while_another_takes_its_picture(
    race: Race, home: Path, tmp_path: Path, ollama: StandIn, removal: str
) -> None:
    picture_ = str(tmp_path / "a.png")
    for _ in range(ROUNDS):
        lay(home, PNG)
        (path,) = (path for path in stores.files(home) if path.stem == ONE)
        path.write_bytes(path.read_bytes().replace(b"2026-", b"2001-"))
        flags = ("--delete", ONE) if removal == "delete" else ("--purge", "30")
        removed, asked = race.run(flags, (*ASK, "--image", picture_))
        succeed(removed)
        assert named(home) == {name_of(PNG)} == set(kept(home)), (removed, asked)
        (mine,) = stores.files(home)
        assert mine.stem == succeed(asked).json["session_id"]
        mine.unlink()


@posix_only
def test_everything_is_removed_while_a_session_begins(race: Race, home: Path, tmp_path: Path, ollama: StandIn) -> None:
    """Whichever is first: what is named is there, and what is there is named."""
    picture_ = str(tmp_path / "a.png")
    for _ in range(ROUNDS):
        lay(home, JPEG)
        purged, asked = race.run(("--purge", "0"), (*ASK, "--image", picture_))
        assert ONE in succeed(purged).json["sessions"]
        assert succeed(asked).json["done"]
        assert named(home) == set(kept(home)), (purged, asked)
    succeed(race.run(("--purge", "0"), ("--check",))[0])
    assert kept(home) == {}


@posix_only
def test_a_session_is_deleted_while_it_is_forked(race: Race, home: Path) -> None:
    for _ in range(ROUNDS):
        lay(home, PNG)
        deleted, forked = race.run(("--delete", ONE), ("--fork", ONE))
        if deleted.returncode == 0 and forked.returncode == 0:
            (mine,) = stores.files(home)
            assert mine.stem == forked.json["session_id"]
        assert named(home) <= set(kept(home)), (deleted, forked)
        for path in stores.files(home):
            path.unlink()


@posix_only
def test_a_turn_is_refused_while_another_takes_its_picture(
    race: Race, home: Path, tmp_path: Path, ollama: StandIn
) -> None:
    picture_ = str(tmp_path / "a.png")
    for _ in range(ROUNDS):
        ollama.fail("status", status=400, body={"error": "no"})
        results = race.run((*ASK, "--image", picture_), (*ASK, "--image", picture_))
        assert sorted(result.returncode for result in results) == [0, 1], results
        assert named(home) == {name_of(PNG)} == set(kept(home))
        the_file(home).unlink()
        (home / "attachments" / name_of(PNG)).unlink()


# -- killed ------------------------------------------------------------------------------------------------


def put_back(before: Path, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(before, home)


@posix_only
@pytest.mark.parametrize("session", ["new", pytest.param("old", marks=pytest.mark.slow)])
def test_killed_at_every_step(
    warm: Warm, environment: dict[str, str], home: Path, tmp_path: Path, ollama: StandIn, session: str
) -> None:
    """A record names only what is there, and the next command works."""
    before = tmp_path / "before"
    lay(home, JPEG)
    home.rename(before)
    more = ("--session-id", ONE) if session == "old" else ()
    ask = (*ASK, *more, "--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.jpg"))

    def command(*argv: str) -> Result:
        warm.start(*argv, env=environment)
        return Result(*warm.end())

    put_back(before, home)
    states = States(home)
    steps = len(warm.steps(*ask, env=environment))
    assert steps > 30
    for step in range(1, steps + 1):
        put_back(before, home)
        warm.start(*ask, env=environment, die_at=step)
        code, out, _ = warm.end()
        if not states.is_new(str(code), out.decode(), json.dumps(ollama.chats())):
            continue
        there = home / "attachments"
        for name in named(home):
            assert name_of((there / name).read_bytes()) == name, f"step {step}: a record names what is not there"
        assert succeed(command("--check")).json["damage"] == [], step
        turn = succeed(command(*ask)).json
        assert sent(ollama)[-1][-1] == [PNG, JPEG]
        assert {name_of(PNG), name_of(JPEG)} <= {path.name for path in there.iterdir()}
        succeed(command("--delete", turn["session_id"]))
        ollama.forget()
    succeed(command("--purge", "0"))
    assert kept(home) == {}
