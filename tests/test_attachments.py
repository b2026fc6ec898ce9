"""Pictures: what a file is, and how the store keeps each once; on the real disk."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from contextlib import nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import tree
from hypothesis import given
from hypothesis import strategies as st
from stores import header, line, make, message, new_id, refuse

from ollama_prompt import attachments, images, session_file
from ollama_prompt.attachments import Attachments
from ollama_prompt.errors import SessionBusy, StoreWriteFailed
from ollama_prompt.images import kind_of, read_image
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files or modes")

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(50)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8 " + bytes(30)
ONE, TWO = new_id(1), new_id(2)


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def named(*pictures: bytes) -> list[dict[str, Any]]:
    """How a record names them."""
    return [{"sha256": name_of(data), "bytes": len(data), "type": "image/png", "path": "a.png"} for data in pictures]


@pytest.fixture
def layout(home: Path) -> Layout:
    return Layout(str(home))


@pytest.fixture
def kept(layout: Layout) -> Attachments:
    return Attachments(layout, nullcontext)


def keep(kept: Attachments, *pictures: bytes) -> None:
    with kept.keeping({name_of(data): data for data in pictures}):
        pass


def in_store(home: Path) -> list[str]:
    """What lies in the folder of pictures."""
    folder = home / "attachments"
    return sorted(os.listdir(folder)) if folder.exists() else []


# -- what a file is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"), (JPEG, "image/jpeg"), (b"\xff\xd8\xff\xdb", "image/jpeg"), (WEBP, "image/webp"),
        (b"", None), (b"\x89PNG", None), (b"\x89PNG\n\x1a\n\0\0", None), (b"GIF89a" + bytes(20), None),
        (b"\xff\xd8", None), (b"RIFF\x1a\0\0\0WAVEfmt ", None), (b"RIFF\x1a\0\0\0WEB", None), (b"BM" + bytes(30), None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None), (b"\0" + PNG, None), (b"\n" + JPEG, None),
        (b"\0\0\0\x1cftypavif", None), (b"%PDF-1.7", None), ("\ufeff".encode() + PNG, None),
    ],
)  # fmt: skip
def test_what_a_file_is_its_first_bytes_tell(tmp_path: Path, data: bytes, kind: str | None) -> None:
    assert kind_of(data) == kind
    path = tmp_path / "a.png"
    path.write_bytes(data)
    if kind is None:
        with pytest.raises(ValueError, match="is no PNG, JPEG or WebP picture"):
            read_image(str(path))
        return
    image = read_image(str(path))
    assert (image.data, image.type, image.path, image.sha256) == (data, kind, str(path), name_of(data))
    assert image.record() == {"sha256": name_of(data), "bytes": len(data), "type": kind, "path": str(path)}


@given(st.binary(max_size=20))
def test_all_else_is_none(data: bytes) -> None:
    """What begins like none is none, however long."""
    assert kind_of(data) == kind_of(data + bytes(100)) or len(data) < 12


@pytest.mark.parametrize("name", ["missing.png", "folder", "", "a\0b", "x" * 5000])
def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot read"):
        read_image(name)


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(PNG)

    def open_(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", open_)
    with pytest.raises(ValueError, match=r"cannot read '.*a.png': Permission denied"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False), (10_000, False)])
def test_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, is_taken: bool) -> None:
    monkeypatch.setattr(images, "LARGEST", 1000)
    data = PNG + bytes(1000 - len(PNG) + more)
    (tmp_path / "a.png").write_bytes(data)
    if is_taken:
        assert read_image(str(tmp_path / "a.png")).data == data
    else:
        with pytest.raises(ValueError, match="has more than 1000 bytes"):
            read_image(str(tmp_path / "a.png"))


@posix_only
def test_devices_that_never_end() -> None:
    for path in ("/dev/zero", "/dev/urandom"):
        with pytest.raises(ValueError, match="is no PNG, JPEG or WebP picture"):
            read_image(path)


@posix_only
def test_a_pipe(tmp_path: Path) -> None:
    """As a shell's <(…) gives it: in pieces."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            file.writelines(PNG[at : at + 5] for at in range(0, len(PNG), 5))

    writer = threading.Thread(target=write)
    writer.start()
    assert read_image(path).data == PNG
    writer.join()


@posix_only
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    with open(path, "wb") as file:
        file.write(PNG)
    assert read_image(path).record()["path"] == f"{tmp_path}/caf\ufffd.png"


# -- keeping -----------------------------------------------------------------------------------------------


def test_nothing_is_made_for_nothing(kept: Attachments, home: Path) -> None:
    keep(kept)
    assert not home.exists()
    assert kept.read(name_of(PNG)) is None
    kept.discard([name_of(PNG)])
    assert not home.exists()


def test_they_are_kept_and_read(kept: Attachments, home: Path) -> None:
    with kept.keeping({name_of(PNG): PNG, name_of(JPEG): JPEG}):
        assert in_store(home) == sorted([name_of(PNG), name_of(JPEG)]), "before a record names them"
    assert (kept.read(name_of(PNG)), kept.read(name_of(JPEG))) == (PNG, JPEG)
    assert not list(home.rglob("*.tmp"))
    kept.discard([name_of(PNG), name_of(WEBP)])
    assert (kept.read(name_of(PNG)), kept.read(name_of(JPEG))) == (None, JPEG)


@posix_only
def test_they_are_the_users_own(kept: Attachments, home: Path) -> None:
    before = os.umask(0)
    try:
        keep(kept, PNG)
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "attachments").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "attachments" / name_of(PNG)).stat().st_mode) == 0o600


def test_what_is_there_is_left_alone(kept: Attachments, home: Path) -> None:
    keep(kept, PNG)
    path = home / "attachments" / name_of(PNG)
    os.utime(path, ns=(5, 5))
    keep(kept, PNG, JPEG)
    assert path.stat().st_mtime_ns == 5


@pytest.mark.parametrize("there", [b"", PNG[:-1], PNG + b"x", JPEG, b"text"])
def test_what_is_damaged_is_not_read_and_made_anew(kept: Attachments, home: Path, there: bytes) -> None:
    keep(kept, JPEG)
    path = home / "attachments" / name_of(PNG)
    path.write_bytes(there)
    assert kept.read(name_of(PNG)) is None
    keep(kept, PNG)
    assert kept.read(name_of(PNG)) == path.read_bytes() == PNG


@posix_only
def test_a_link_is_not_followed(kept: Attachments, home: Path, tmp_path: Path) -> None:
    keep(kept, JPEG)
    secret, path = tmp_path / "secret", home / "attachments" / name_of(PNG)
    secret.write_bytes(PNG)
    path.symlink_to(secret)
    assert kept.read(name_of(PNG)) is None
    keep(kept, PNG)
    assert not path.is_symlink()
    kept.discard([name_of(PNG)])
    assert secret.read_bytes() == PNG


@posix_only
def test_a_pipe_is_not_waited_for(kept: Attachments, home: Path) -> None:
    keep(kept, JPEG)
    path = home / "attachments" / name_of(PNG)
    os.mkfifo(path)
    assert kept.read(name_of(PNG)) is None
    keep(kept, PNG)
    assert kept.read(name_of(PNG)) == PNG


def test_a_folder_in_the_place(kept: Attachments, home: Path) -> None:
    path = home / "attachments" / name_of(PNG)
    path.mkdir(parents=True)
    assert kept.read(name_of(PNG)) is None
    with pytest.raises(StoreWriteFailed):
        keep(kept, PNG)
    kept.discard([name_of(PNG)])
    assert path.is_dir()


@pytest.mark.parametrize(
    "name",
    ["", "../../secret", "/etc/hostname", "a" * 63, "A" * 64, "é" * 64, "a" * 63 + "/", "." * 64, "a" * 63 + "\n"],
)
def test_what_is_no_sha256_is_not_read(kept: Attachments, home: Path, tmp_path: Path, name: str) -> None:
    keep(kept, PNG)
    (tmp_path / "secret").write_bytes(PNG)
    assert kept.read(name) is None


# -- when they cannot be kept ------------------------------------------------------------------------------


class Disk:
    """A disk on which writing fails from some moment on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._create = session_file.create
        monkeypatch.setattr(attachments, "create", self.create)

    def create(self, path: str, data: bytes) -> object:
        if self.is_full or data == JPEG:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return self._create(path, data)


def test_a_full_disk_leaves_nothing(kept: Attachments, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch)
    with pytest.raises(StoreWriteFailed, match="No space left") as caught:
        keep(kept, PNG, JPEG)
    assert "make room" in (caught.value.hint or "")
    assert in_store(home) == []


def test_a_full_disk_leaves_what_was_there(kept: Attachments, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(kept, PNG)
    Disk(monkeypatch)
    with pytest.raises(StoreWriteFailed):
        keep(kept, WEBP, PNG, JPEG)
    assert in_store(home) == [name_of(PNG)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), StoreWriteFailed("no"), KeyboardInterrupt()])
def test_what_no_record_came_to_name_is_not_kept(kept: Attachments, home: Path, error: BaseException) -> None:
    keep(kept, PNG)
    with pytest.raises(type(error)), kept.keeping({name_of(data): data for data in (PNG, JPEG)}):
        raise error
    assert in_store(home) == [name_of(PNG)]


def test_a_folder_that_cannot_be_made(kept: Attachments, home: Path) -> None:
    home.mkdir()
    (home / "attachments").write_text("a file")
    with pytest.raises(StoreWriteFailed):
        keep(kept, PNG)
    assert (home / "attachments").read_text() == "a file"
    assert kept.read(name_of(PNG)) is None


# -- removing, with the sessions ---------------------------------------------------------------------------


def lay(home: Path, number: int, *pictures: bytes, **more: Any) -> Path:
    """A session whose prompt names these pictures, which are there."""
    prompt = message(2 * number, "user", "What is it?", **{"images": named(*pictures), **more})
    answer = message(2 * number + 1, "assistant", "A picture.")
    path = make(home, number, b"".join(map(line, [header(new_id(number)), prompt, answer])))
    keep(Attachments(Layout(str(home)), nullcontext), *pictures)
    return path


def store(home: Path) -> Indexer:
    return Indexer(Layout(str(home)), lambda _: None)


def test_deleting_removes_what_nothing_else_names(home: Path) -> None:
    lay(home, 1, PNG, JPEG)
    lay(home, 2, JPEG)
    store(home).delete(ONE)
    assert in_store(home) == [name_of(JPEG)]
    store(home).delete(TWO)
    assert in_store(home) == []


def test_purging_removes_what_nothing_else_names(home: Path) -> None:
    lay(home, 1, PNG, JPEG)
    lay(home, 2, JPEG, created_at="2099-01-01T00:00:00.000Z")
    assert store(home).purge(9999, dry_run=True) == ([], [])
    assert len(in_store(home)) == 2
    assert store(home).purge(0, dry_run=True)[0] == [TWO, ONE]
    assert len(in_store(home)) == 2
    store(home).purge(0, dry_run=False)
    assert in_store(home) == []


def test_a_deleted_session_of_which_a_double_stays(home: Path) -> None:
    """Both files go, and their pictures."""
    path = lay(home, 1, PNG)
    other = lay(home, 2, JPEG)
    (home / "sessions" / "mine").mkdir()
    other.rename(home / "sessions" / "mine" / path.name)
    store(home).delete(ONE)
    assert stores.files(home) == []
    assert in_store(home) == []


def test_what_was_taken_back_is_still_named(home: Path) -> None:
    path = lay(home, 1, PNG)
    stores.add(path, line({"type": "undo", "id": new_id(99), "ids": [new_id(2), new_id(3)]}))
    lay(home, 2, PNG)
    store(home).delete(TWO)
    assert in_store(home) == [name_of(PNG)]


@pytest.mark.parametrize("action", ["delete", "purge"])
def test_they_stay_where_a_session_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    lay(home, 1, PNG, created_at="2001-01-01T00:00:00.000Z")
    secret = lay(home, 2, created_at="2099-01-01T00:00:00.000Z")
    refuse(monkeypatch, secret)
    indexer = store(home)
    if action == "delete":
        indexer.delete(ONE)
    else:
        make_old(home, ONE)
        assert indexer.purge(1, dry_run=False)[0] == [ONE]
    assert stores.files(home) == [secret]
    assert in_store(home) == [name_of(PNG)]


def make_old(home: Path, session_id: str) -> None:
    """All of its records are of long ago."""
    (path,) = home.glob(f"sessions/*/{session_id}.jsonl")
    path.write_bytes(path.read_bytes().replace(b"2026-", b"2001-"))


def test_a_session_that_cannot_be_read_is_deleted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which pictures it named, nobody knows: they stay."""
    secret = lay(home, 1, PNG)
    lay(home, 2, JPEG)
    refuse(monkeypatch, secret)
    store(home).delete(ONE)
    assert not secret.exists()
    assert len(in_store(home)) == 2


def test_they_stay_where_their_lock_is_held(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(home, 1, PNG)
    monkeypatch.setattr("ollama_prompt.indexer.ATTACHMENTS_SECONDS", 0.0)
    with store(home).attachments().lock():
        store(home).delete(ONE)
        with pytest.raises(SessionBusy, match="pictures"):
            keep(store(home).attachments(), JPEG)
    assert stores.files(home) == []
    assert in_store(home) == [name_of(PNG)]


@pytest.mark.parametrize(
    "odd",
    [
        None, 5, "x", [], [None], [5], ["x"], [{}], [{"sha256": None}], [{"sha256": 5}], [{"sha256": "../../secret"}],
        [{"sha256": ["a"]}], {"sha256": "x"}, [{"sha256": "../sessions.db"}], [{"sha256": ""}], [{"sha256": "."}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", ["delete", "purge"])
def test_a_record_written_by_hand_leads_nowhere(home: Path, tmp_path: Path, odd: object, action: str) -> None:
    (tmp_path / "secret").write_text("secret")
    lay(home, 1, PNG)
    lay(home, 2, images=odd)
    before = tree(home / "attachments")
    indexer = store(home)
    indexer.sessions()
    if action == "delete":
        indexer.delete(TWO)
        assert tree(home / "attachments") == before
    else:
        indexer.purge(0, dry_run=False)
        assert in_store(home) == []
    assert (tmp_path / "secret").read_text() == "secret"
    assert home.is_dir()


def test_pictures_of_a_session_that_was_added_by_git(home: Path) -> None:
    """The index has not seen it yet."""
    lay(home, 1, PNG)
    indexer = store(home)
    indexer.sessions()
    lay(home, 2, PNG)
    indexer.delete(ONE)
    assert in_store(home) == [name_of(PNG)]


def test_after_everything_was_purged_nothing_is_left(home: Path, layout: Layout) -> None:
    """Not even what a process left that was killed between picture and record, or while it wrote one."""
    lay(home, 1, PNG)
    keep(Attachments(layout, nullcontext), JPEG)
    unfinished = home / "attachments" / f".{name_of(WEBP)}.tmp"
    unfinished.write_bytes(WEBP[:5])
    (home / "attachments" / "notes.txt").write_text("the user's own")
    store(home).purge(0, dry_run=True)
    assert len(in_store(home)) == 4
    store(home).purge(0, dry_run=False)
    assert in_store(home) == ["notes.txt"]


def test_a_purge_of_some_leaves_what_it_does_not_know(home: Path, layout: Layout) -> None:
    """git may bring pictures before it brings their sessions."""
    lay(home, 1, PNG)
    make_old(home, ONE)
    keep(Attachments(layout, nullcontext), JPEG)
    store(home).purge(1, dry_run=False)
    assert in_store(home) == [name_of(JPEG)]
