"""Mending: whoever reads sees the same as before, but for the damage; nothing is lost, and twice is once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import stores
from conftest import Result, tree
from hypothesis import given
from hypothesis import strategies as st
from stores import States, fail, header, line, make, message, new_id, succeed, turn

from ollama_prompt import records, repair, session_file
from ollama_prompt.errors import StoreWriteFailed
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run, Start
    from hypothesis.strategies import SearchStrategy
    from standin import StandIn
    from warm import Warm

Json = dict[str, Any]

ONE = new_id(1)
OTHER_KIND = "b3a1c9d2-1c54-4c1e-9f0a-2f1d5c7e8a90"
"""A session's id that tells no time."""
BOM = b"\xef\xbb\xbf"
MARKERS = [b"<<<<<<< HEAD\n", b"||||||| 4b825dc\n", b"=======\n", b">>>>>>> origin/main\n"]
SETTINGS = {"model": "smollm2", "title": "A title", "options": {"seed": 1}}

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")


@pytest.fixture
def run(quick: Run) -> Run:
    """Many cases: without the start of Python."""
    return quick


# --- Lines, without files --------------------------------------------------------------------------

HEADERS = st.builds(
    lambda version, settings, created_at: {"type": "session", **version, **settings, **created_at},
    st.sampled_from([{}, {"version": 1}, {"version": "one"}, {"version": True}]),
    st.sampled_from([{}, SETTINGS, {"model": 7}]),
    st.sampled_from([{}, {"created_at": "2026-01-02T03:04:05.678Z"}, {"created_at": "yesterday"}]),
)
NUMBERS = st.integers(0, 9)


def changed(record: Json, kind: str) -> Json:
    """As somebody may have written it by hand."""
    if kind == "nameless":
        del record["id"]
    elif kind == "id is no text":
        record["id"] = 7
    elif kind == "timeless":
        del record["created_at"]
    elif kind == "unknown field":
        record["later"] = {"release": [1.0, None]}
    return record


KINDS = st.sampled_from(["", "", "", "nameless", "id is no text", "timeless", "unknown field"])
RECORDS: SearchStrategy[Json] = st.one_of(
    HEADERS,
    st.builds(lambda n, kind: changed(message(n, "user", f"Question {n} ☂"), kind), NUMBERS, KINDS),
    st.builds(lambda n, kind: changed(message(n, "assistant", "Answer", tokens=n), kind), NUMBERS, KINDS),
    st.builds(lambda n, image: message(n, "user", "Look", images=[{"sha256": image * 64}]), NUMBERS, st.just("a")),
    st.builds(
        lambda n, more: {"type": "meta", "id": new_id(n + 20), "created_at": f"2026-09-2{n}T00:00:00.000Z", **more},
        NUMBERS,
        st.sampled_from([{}, {"model": "qwen3"}, {"system": "Be brief."}, {"num_ctx": "many"}]),
    ),
    st.builds(
        lambda n, ids: {"type": "undo", "id": new_id(1000 * n + sum(ids) + 40), "ids": [*map(new_id, ids)]},
        NUMBERS, st.lists(NUMBERS, unique=True, max_size=3).map(sorted),
    ),
    st.builds(lambda n: {"type": "pinned", "id": new_id(n + 30), "why": "a later release"}, NUMBERS),
)  # fmt: skip
WRITTEN: list[Callable[[bytes], bytes]] = [
    lambda text: text,
    lambda text: BOM + text,
    lambda text: text[:9] + b"\0" * 40 + text[9:],
    lambda text: b" " + text + b" \t",
    lambda text: text.replace(b":", b": "),
    lambda text: text + b"\r",
]
GOOD_LINES = st.builds(lambda record, write: write(line(record)[:-1]) + b"\n", RECORDS, st.sampled_from(WRITTEN))
BAD_LINES = st.one_of(
    st.sampled_from([*MARKERS, b"\n", b" \r\n", b"\0" * 50 + b"\n", BOM + b"\n", b"[1]\n", b"null\n", b"{}\n"]),
    st.sampled_from([b'{"type":"message"}\n', b"=======\r\n", b"<<<<<<<\n", b"{" * 2000 + b"\n", b" " + BOM + b"{}\n"]),
    st.builds(lambda text, at: text[: at % (len(text) - 2)] + b"\n", GOOD_LINES, st.integers(0)),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"") + b"\n"),
)
FILES = st.builds(
    lambda lines, again, last: b"".join([*lines, *(lines[n % len(lines)] for n in again if lines), last]),
    st.lists(GOOD_LINES | BAD_LINES, max_size=12),
    st.lists(NUMBERS, max_size=3),
    st.sampled_from(
        [b"", b"", b'{"type":"mess', b"\0\0", line(message(50, "user", "Last"))[:-1], b" ", b"=======", BOM]
    ),
)
IDS = st.sampled_from([ONE, OTHER_KIND])


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, str], tuple[list[Json], session_file.Reading]]:
    """What a reader sees in a file: the records that count, and the summary."""
    path = str(tmp_path_factory.mktemp("read") / "file")

    def read(data: bytes, session_id: str) -> tuple[list[Json], session_file.Reading]:
        with open(path, "wb") as file:
            file.write(data)
        return session_file.load(path, session_id)

    return read


Read = "Callable[[bytes, str], tuple[list[Json], session_file.Reading]]"


def seen(found: list[Json], reading: session_file.Reading) -> tuple[Any, ...]:
    """What of it may not change."""
    summary = reading.summary
    head = next((record for record in found if record["type"] == "session"), {})
    made = {"type", "version", "session_id", "created_at"}
    return (
        [record for record in found if record["type"] != "session"],
        {key: value for key, value in head.items() if key not in made},
        summary.listed(), summary.settings, summary.last_id, summary.record_count, summary.answered_count,
        summary.unanswered, summary.images,
    )  # fmt: skip


@given(data=FILES, session_id=IDS)
def test_a_reader_sees_what_he_saw(data: bytes, session_id: str, read: Any) -> None:
    last = data.rpartition(b"\n")[2]
    ended = data + b"\n" if last.endswith(b"}") else data
    mended, reasons = repair.mended(data, session_id)
    before, (found, after) = read(ended, session_id), read(mended, session_id)
    assert seen(found, after) == seen(*before)
    assert after.damage == []
    assert (mended != data) == bool(reasons)
    assert bool(before[1].damage) <= bool(reasons), "all that a check reports is mended"


@given(data=FILES, session_id=IDS)
def test_what_is_mended_has_nothing_to_mend(data: bytes, session_id: str) -> None:
    mended, _ = repair.mended(data, session_id)
    assert repair.mended(mended, session_id) == (mended, {})


@given(data=FILES, session_id=IDS)
def test_good_lines_stay_to_the_byte(data: bytes, session_id: str) -> None:
    mended, _ = repair.mended(data, session_id)
    there = {records.cleaned(text).rstrip(b"\r") for text in data.split(b"\n")}
    assert [text for text in mended.split(b"\n")[1:-1] if text not in there] == []


@given(st.lists(RECORDS.filter(lambda record: record["type"] != "session"), unique_by=lambda r: str(r.get("id", r))))
def test_a_file_without_damage_stays_as_it_is(found: list[Json]) -> None:
    data = b"".join(map(line, [header(ONE), *found]))
    assert repair.mended(data, ONE) == (data, {})


@given(data=FILES, others=st.lists(FILES, min_size=1, max_size=2))
def test_files_of_one_session_become_one(data: bytes, others: list[bytes], read: Any) -> None:
    def nameless(found: list[Json]) -> list[str]:
        return [str(record) for record in found if record["type"] != "session" and "id" not in record]

    joined, _ = repair.mended(data, ONE, *others)
    alone = repair.mended(data, ONE)[0].partition(b"\n")[2]
    assert joined.partition(b"\n")[2].startswith(alone), "what the others have comes behind"
    found, reading = read(joined, ONE)
    assert reading.damage == []
    for other in (data, *others):
        parts, _ = read(repair.mended(other, ONE)[0], ONE)
        assert set(records.ids_of(parts)) <= set(records.ids_of(found))
        assert set(nameless(parts)) <= set(nameless(found))
    ids = records.ids_of(found)
    assert len(ids) == len(set(ids))
    assert repair.mended(joined, ONE, *others) == (joined, {}), "again, there is nothing to add"


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"", {"header": 1}),
        (b"\n", {"blank": 1, "header": 1}),
        (b'{"type":"sess', {"torn": 1, "header": 1}),
        (stores.lines(ONE)[:-1], {"torn": 1}),
        (stores.lines(ONE) + b'{"type":"mess', {"torn": 1}),
        (stores.lines(ONE) + b'{"type":"mess\n', {"damaged": 1}),
        (BOM + stores.lines(ONE), {"nul": 1}),
        (stores.lines(ONE).replace(b"\n", b"\r\n"), {"crlf": 5}),
        (stores.lines(ONE).partition(b"\n")[2], {"header": 1}),
        (line(turn(0)[0]) + line(header(ONE)) + line(turn(0)[1]), {"header": 1}),
        (line(header(ONE)) * 3, {"repeated": 2}),
        (stores.lines(ONE) + b"".join(MARKERS), {"markers": 4}),
    ],
)
def test_what_is_wrong_is_named(data: bytes, reasons: dict[str, int]) -> None:
    mended, found = repair.mended(data, ONE)
    assert found == reasons
    assert set(reasons) <= set(repair.REASONS)
    assert mended.startswith(b'{"type":"session","version":1,')


def test_a_header_that_is_made_says_no_more_than_was_known() -> None:
    """Not the settings that a reader found: they were changed later, and stand there."""
    meta = records.meta({"model": "qwen3"})
    first = repair.mended(line(message(3, "user", "Hi")) + line(meta), OTHER_KIND)[0].splitlines()[0]
    created_at = message(3, "user", "Hi")["created_at"]
    assert json.loads(first) == {
        "type": "session", "version": 1, "session_id": OTHER_KIND, "created_at": created_at,
    }  # fmt: skip
    assert "created_at" not in json.loads(repair.mended(b"", OTHER_KIND)[0])
    assert json.loads(repair.mended(b"", ONE)[0])["created_at"].startswith("2026-09-2")


def test_the_header_of_the_other_file_is_better_than_none() -> None:
    whole = stores.lines(ONE)
    assert repair.mended(whole.partition(b"\n")[2], ONE, whole)[0] == whole


# --- Records in damaged lines ----------------------------------------------------------------------

KNOWN = RECORDS.filter(lambda record: record["type"] in records.TYPES)
WHOLE_FILES = st.lists(KNOWN, max_size=9, unique_by=lambda record: record.get("id", str(record))).map(
    lambda found: [header(ONE), *(record for record in found if record["type"] != "session")]
)


def nested(record: Json, depth: int) -> Json:
    """A record of a later release, with what looks like the beginning of others in it."""
    for number in range(depth):
        record = record | {"later": {"type": ["{", {"type": record["type"], "deep": record, "n": number}]}}
    return record


def pretty(record: Json, indent: int) -> bytes:
    return json.dumps(record, indent=indent, ensure_ascii=False).encode() + b"\n"


@given(WHOLE_FILES, st.integers(0, 4), st.integers(0, 5), st.booleans())
def test_a_file_that_was_reformatted_is_as_it_was(found: list[Json], indent: int, depth: int, is_ended: bool) -> None:
    found = [nested(record, depth) for record in found]
    data = b"".join(pretty(record, indent) for record in found)
    mended, reasons = repair.mended(data if is_ended else data[:-1], ONE)
    assert mended == b"".join(map(line, found))
    assert reasons["recovered"] == len(found)
    assert repair.mended(mended, ONE) == (mended, {})


@given(WHOLE_FILES, st.data())
def test_records_that_lost_the_newline_between_them(found: list[Json], data: st.DataObject) -> None:
    lost = data.draw(st.lists(st.sampled_from([b"", b" ", b"\0", b"\0\0\0", b"\n", b"\n"]), min_size=len(found)))
    written = data.draw(st.lists(st.sampled_from([*WRITTEN[:4], *WRITTEN[5:]]), min_size=len(found)))
    texts = [write(line(record)[:-1]) for record, write in zip(found, written, strict=False)]
    mended, _ = repair.mended(b"".join(text + end for text, end in zip(texts, lost, strict=False)), ONE)
    assert [json.loads(text) for text in mended.split(b"\n")[:-1]] == found
    assert repair.mended(mended, ONE) == (mended, {})


LAST = message(8, "user", "Behind")


@pytest.mark.parametrize(
    ("damaged", "reasons"),
    [
        (b'{"type":"message","id":"' + line(LAST), {"damaged": 1, "recovered": 1}),
        (b'{"type":"message","content":"Torn' + line(LAST), {"damaged": 1, "recovered": 1}),
        (b'{"type":"message","role":"user","content":"{\\"type\\"' + line(LAST), {"damaged": 1, "recovered": 1}),
        (line(LAST)[:-1] + b'{"type":"message","id":"\n', {"damaged": 1, "recovered": 1}),
        (line(LAST)[:-1] + b" }] behind\n", {"damaged": 1, "recovered": 1}),
        (b"{}[1] " + pretty(LAST, 2).replace(b"\n", b"\r\n"), {"damaged": 7, "recovered": 1}),
        (
            b"x" + line(LAST) + MARKERS[2] + b"x" + line(LAST),
            {"damaged": 2, "recovered": 2, "markers": 1, "repeated": 1},
        ),
        (line(LAST)[:-1], {"torn": 1}),
        (line(LAST)[:-1] + b'{"type":"message"', {"torn": 1, "recovered": 1}),
        (line(message(8, "user", "Be\nhind")).replace(b"\\n", b"\n"), {"damaged": 2, "recovered": 1}),
        (line(message(8, "user", "Be\0hind")).replace(b"\\u0000", b"\0"), {"damaged": 1, "recovered": 1}),
        (line(LAST | {"n": 7}).replace(b"7", b"7" * 30) * 2, {}),
        (b"x" + line(LAST | {"n": 7}).replace(b"7", b"7" * 30), {"damaged": 1, "recovered": 1}),
    ],
)
def test_a_whole_record_in_a_damaged_line(damaged: bytes, reasons: dict[str, int]) -> None:
    mended, found = repair.mended(WHOLE + damaged, ONE)
    assert json.loads(mended.splitlines()[-1])["content"].replace("\n", "").replace("\0", "") == "Behind"
    assert mended.startswith(WHOLE)
    assert mended.count(b"\n") == WHOLE.count(b"\n") + 1
    assert found == (reasons or {"repeated": 1})


@pytest.mark.parametrize(
    "damaged",
    [
        b'x{"type":"pinned","why":"a later release"}\n',
        b'x{"type":"message","role":"user"}\n',
        b'x{"type":7,"content":"7"}\n',
        b'x{"role":"user","content":"x"}\n',
        b'x{"type":"message","role":"user","content":"\\ud800"}\n',
        b'x{"type":"later","deep":' + line(LAST)[:-1] + b"}\n",
    ],
)
def test_what_is_no_record_is_not_taken_for_one(damaged: bytes) -> None:
    assert repair.mended(WHOLE + damaged, ONE) == (WHOLE, {"damaged": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"{" * 1_000_000,
        b'{"type"' * 150_000,
        b'{"type":[' * 100_000,
        b'{"type":[' * 400 + b"1," * 150_000,
        b'{"type":1,"a":[' + b'{"type":1},' * 100_000,
        b'{"type":"' + b'\\"' * 600_000,
    ],
    ids=lambda data: str(data[:12]),
)
def test_the_time_for_garbage_grows_with_its_length(data: bytes) -> None:
    """Were it quadratic, this would take several minutes at least."""
    before = time.process_time()
    repair.mended(data, ONE)
    assert time.process_time() - before < 60


# --- UTF-16 ----------------------------------------------------------------------------------------

CODECS = st.sampled_from([("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")])


@given(WHOLE_FILES, st.lists(st.text(), max_size=9), CODECS, st.sampled_from(["\n", "\r\n"]), st.integers(0, 9))
def test_a_file_saved_in_utf_16(
    found: list[Json], texts: list[str], codec: tuple[str, bytes], end: str, since: int
) -> None:
    """With turns that were added in UTF-8 since, behind a newline, as a line seemed to be torn there."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    found += [{"type": "message", "role": "user", "content": text} for text in texts]
    count = max(len(found) - since, 1)
    data = codec[1] + "".join(line(record)[:-1].decode() + end for record in found[:count]).encode(codec[0])
    data += (b"" if data.endswith(b"\n") else b"\n") if since else b""
    mended, reasons = repair.mended(data + b"".join(map(line, found[count:])), ONE)
    assert mended == b"".join(map(line, found))
    assert "utf16" in reasons
    assert set(reasons) <= {"utf16", "crlf", "torn"}
    assert repair.mended(mended, ONE) == (mended, {})


def test_no_text_in_utf_16_is_read_as_another(run: Run, home: Path, read: Any) -> None:
    prices = [header(ONE), message(1, "user", "price 䅂䍄"), message(2, "assistant", "€")]
    data = "".join(line(record).decode() for record in prices).encode("utf-16")
    assert read(data, ONE)[0] == []
    path = make(home, 1, data)
    (item,) = mend(run)
    assert item["reason"] == "mended: text in UTF-16: 1"
    assert path.read_bytes() == b"".join(map(line, prices))
    assert [text["content"] for text in run("--session-info", ONE).json["messages"]] == ["price 䅂䍄", "€"]


# --- Conflict markers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [*MARKERS, b"=======\r\n", b"=======", b"<<<<<<<", b">>>>>>> a b \xff\n", BOM + b"=======\n"]
)
def test_a_marker_is_named_as_what_it_is(text: bytes) -> None:
    with pytest.raises(records.DamagedLine, match=r"^a conflict marker that a merge left$"):
        records.decode(text)


@pytest.mark.parametrize(
    "text", [b"======\n", b"========\n", b"======= x\n", b"<<<<<<<x\n", b"<<<<<<\n", b" =======\n"]
)
def test_what_is_no_marker(text: bytes) -> None:
    with pytest.raises(records.DamagedLine, match=r"^not JSON: "):
        records.decode(text)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("style", ["--diff3", ""])
def test_a_merge_that_made_conflicts(run: Run, home: Path, tmp_path: Path, style: str) -> None:
    base = stores.lines(ONE)
    sides = [base, base + b"".join(map(line, turn(5))), base + b"".join(map(line, turn(6)))]
    for name, data in zip(("base", "ours", "theirs"), sides, strict=True):
        (tmp_path / name).write_bytes(data)
    command = ["git", "merge-file", "-p", *filter(None, [style]), "ours", "base", "theirs"]
    merged = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).stdout
    assert b"<<<<<<<" in merged
    path = make(home, 1, merged)
    before = succeed(run("--session-info", ONE)).json
    assert [text["content"] for text in before["messages"]][4:] == ["Question 5", "Answer 5", "Question 6", "Answer 6"]
    assert {item["reason"] for item in before["damage"]} == {"a conflict marker that a merge left"}
    (repaired,) = mend(run)
    assert "conflict markers of a merge: " in repaired["reason"]
    assert path.read_bytes() == sides[1] + b"".join(map(line, turn(6)))


# --- The command -----------------------------------------------------------------------------------


def mend(run: Run) -> list[Json]:
    """What a repair says that it did, but for permissions. All is well then, and a second one does nothing."""
    return [item for item in mend_all(run) if not item["reason"].startswith("permissions: ")]


def mend_all(run: Run) -> list[Json]:
    """What a repair says that it did."""
    first = succeed(run("--check", "--repair")).json
    assert (first["ok"], first["damage"]) == (True, [])
    home = stores_home(first)
    before = stamps(home) if home else None
    second = succeed(run("--check", "--repair")).json
    assert second["repaired"] == []
    assert home is None or stamps(home) == before
    assert succeed(run("--check")).json == {key: second[key] for key in ("ok", "sessions", "damage", "index")}
    repaired: list[Json] = first["repaired"]
    return repaired


def stores_home(result: Json) -> str | None:
    """The folder `sessions` that was repaired."""
    paths = [item["path"] for item in result["repaired"] if f"{os.sep}sessions{os.sep}" in item["path"]]
    return paths[0].rpartition(f"{os.sep}sessions{os.sep}")[0] + f"{os.sep}sessions" if paths else None


def stamps(folder: str) -> dict[str, Any]:
    """Every file, as it is."""
    return {
        os.path.join(where, name): session_file.stamp_at(os.path.join(where, name))
        for where, _, names in os.walk(folder) for name in names
    }  # fmt: skip


def kept(path: Path) -> list[Path]:
    """The backups of a session beside its file."""
    return sorted(path.parent.glob(f"{path.stem}.*.bak"))


WHOLE = stores.lines(ONE)
DAMAGED = {
    "damaged": WHOLE + b"{broken\n" + line(message(8, "user", "Behind")),
    "torn": WHOLE + b'{"type":"message","id":"',
    "markers": b"".join([WHOLE, *MARKERS]),
    "repeated": WHOLE + WHOLE,
    "header": WHOLE.partition(b"\n")[2],
    "nul": WHOLE + b"\0" * 4096 + line(message(8, "user", "Behind")),
    "blank": WHOLE + b"\n\n",
    "crlf": WHOLE.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("why", DAMAGED)
def test_damage_is_mended_and_kept(run: Run, home: Path, ollama: StandIn, why: str) -> None:
    path = make(home, 1, DAMAGED[why])
    path.chmod(0o600)
    other = make(home, 2)
    stamp = session_file.stamp_at(str(other)) if sys.platform == "win32" else None
    before = succeed(run("--session-info", ONE)).json
    (item,) = mend(run)
    assert list(item) == ["session_id", "path", "reason", "kept"]
    assert (item["session_id"], item["path"]) == (ONE, str(path))
    assert repair.REASONS[why] in item["reason"]
    (backup,) = kept(path)
    assert item["kept"] == str(backup)
    year, word = backup.name.removeprefix(f"{ONE}.").removesuffix(".bak").split(".")
    assert time.strptime(year, "%Y%m%dT%H%M%SZ").tm_year >= 2026
    assert word == why
    assert backup.read_bytes() == DAMAGED[why]
    assert succeed(run("--session-info", ONE)).json == before | {"damage": []}
    assert other.read_bytes() == stores.lines(new_id(2))
    assert stamp is None or session_file.stamp_at(str(other)) == stamp
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [session["session_id"] for session in stores.assert_agreement(run)].count(ONE) == 1
    turn_ = succeed(run("--session-id", ONE, "-p", "Next")).json
    assert turn_["window"]["messages_sent"] == 5, "a prompt without an answer is not sent"
    assert len(stores.said(path)) == len(before["messages"]) + 2


def test_an_empty_file_is_a_session_without_messages(run: Run, home: Path) -> None:
    path = make(home, 1, b"")
    mend(run)
    assert json.loads(path.read_bytes()) == {
        "type": "session", "version": 1, "session_id": ONE, "created_at": stores_time(ONE),
    }  # fmt: skip


def stores_time(session_id: str) -> str:
    milliseconds = int(session_id[:8] + session_id[9:13], 16)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000)) + f".{milliseconds % 1000:03d}Z"


def test_a_check_alone_changes_nothing(run: Run, home: Path) -> None:
    make(home, 1, DAMAGED["damaged"])
    before = tree(home)
    assert run("--check").json["damage"]
    assert tree(home) == before


def test_there_is_nothing_to_repair(run: Run, home: Path) -> None:
    assert succeed(run("--check", "--repair")).json["repaired"] == []
    assert not home.exists()


def test_repair_goes_with_check(run: Run) -> None:
    assert "--check" in fail(run("--repair"), "usage", 2)["error"]


def test_for_people(new_python: Run, home: Path) -> None:
    run = new_python
    path = make(home, 1, DAMAGED["damaged"])
    for folder in (home, *home.rglob("*")):
        folder.chmod(0o700 if folder.is_dir() else 0o600)
    first, *rest = succeed(run("--check", "--repair", "--output", "text")).stdout.splitlines()
    assert first == f"{path}: mended: damaged lines: 1; the old file is kept as {kept(path)[0]}"
    assert rest == ["sessions: 1, damaged places: 0, index: ok"]


def test_every_repair_keeps_what_it_replaces(run: Run, home: Path) -> None:
    """Two within one second have different names."""
    path = make(home, 1)
    for number in range(3):
        stores.add(path, b"broken %d\n" % number)
        succeed(run("--check", "--repair"))
    assert {backup.read_bytes() for backup in kept(path)} == {WHOLE + b"broken %d\n" % number for number in range(3)}


def test_a_newer_format_is_left_alone(run: Run, home: Path) -> None:
    data = line(header(ONE) | {"version": 2}) + b"broken\n"
    path = make(home, 1, data)
    result = stores.clean(run("--check", "--repair"))
    assert result.returncode == 1
    assert "format version 2" in result.json["repaired"][-1]["reason"]
    assert (path.read_bytes(), kept(path)) == (data, [])


def test_a_session_in_use_is_left_alone(run: Run, start: Start, home: Path, ollama: StandIn) -> None:
    path = make(home, 1, DAMAGED["damaged"])
    make(home, 2, DAMAGED["damaged"].replace(ONE.encode(), new_id(2).encode()))
    ollama.hold()
    asking = start("--session-id", ONE, "-p", "Hi")
    ollama.wait(held=1)
    before = path.read_bytes()
    result = stores.clean(run("--check", "--repair"))
    mended = {item["session_id"]: item for item in result.json["repaired"] if "permissions" not in item["reason"]}
    assert mended[ONE]["reason"] == "left alone: the session is in use"
    assert mended[ONE]["kept"] is None
    assert mended[new_id(2)]["kept"]
    assert result.returncode == 1, "what is left alone is still damaged"
    assert path.read_bytes() == before
    ollama.release()
    assert asking.wait(30) == 0
    mend(run)
    assert len(stores.said(path)) == 7


def test_a_picture_that_is_missing_or_damaged(run: Run, home: Path) -> None:
    names = [sha256(data).hexdigest() for data in (b"good", b"bad", b"gone")]
    shown = message(9, "user", "Look", images=[{"sha256": name} for name in names])
    path = make(home, 1, WHOLE + line(shown))
    (home / "attachments").mkdir()
    (home / "attachments" / names[0]).write_bytes(b"good")
    (home / "attachments" / names[1]).write_bytes(b"rotten")
    for arguments in (("--check",), ("--check", "--repair")):
        result = stores.clean(run(*arguments))
        assert result.returncode == 1
        assert result.json["damage"] == [
            {"session_id": ONE, "path": str(path), "line": None, "reason": f"the picture {names[1]} is damaged"},
            {"session_id": ONE, "path": str(path), "line": None, "reason": f"the picture {names[2]} is missing"},
        ]
    assert path.read_bytes() == WHOLE + line(shown)


# --- Several files of one session ------------------------------------------------------------------


def elsewhere(path: Path, data: bytes, folder: str = "kept") -> Path:
    """Another file of the session."""
    other = path.parent.parent / folder / path.name
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(data)
    return other


def test_two_files_become_the_one_with_the_most_records(run: Run, home: Path) -> None:
    path = make(home, 1, WHOLE + b"".join(map(line, turn(5))))
    other = elsewhere(path, WHOLE + b"".join(map(line, [*turn(6), *turn(7)])), "a/b")
    old = path.read_bytes(), other.read_bytes()
    items = {item["path"]: item for item in mend(run)}
    assert "records of another file of this session: 2" in items[str(other)]["reason"]
    assert str(other) in items[str(path)]["reason"]
    assert not path.exists()
    assert [backup.read_bytes() for backup in (*kept(path), *kept(other))] == list(old)
    assert other.read_bytes() == old[1] + b"".join(map(line, turn(5)))
    (listed,) = stores.assert_agreement(run)
    assert (listed["path"], listed["message_count"]) == (str(other), 10)


def test_a_copy_is_moved_away_only(run: Run, home: Path) -> None:
    path = make(home, 1)
    copies = [elsewhere(path, WHOLE, folder) for folder in ("kept", "kept/deep")]
    items = mend(run)
    assert len(items) == 2
    assert path.read_bytes() == WHOLE
    assert kept(path) == []
    assert [backup.read_bytes() for copy in copies for backup in kept(copy)] == [WHOLE, WHOLE]
    assert stores.files(home) == [path]


def test_two_files_by_hand_have_no_message_twice(run: Run, home: Path) -> None:
    by_hand = b"".join(line(changed(record, "nameless")) for record in turn(5))
    path = make(home, 1, WHOLE + by_hand + by_hand)
    elsewhere(path, WHOLE + by_hand)
    mend(run)
    assert path.read_bytes() == WHOLE + by_hand + by_hand


def test_a_double_that_may_not_be_read_stays(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(home, 1)
    other = elsewhere(path, WHOLE + line(message(9, "user", "More")))
    stores.refuse(monkeypatch, other)
    assert repair.mend(ONE, [str(path), str(other)]) == []
    assert other.exists()
    assert path.read_bytes() == WHOLE


# --- Backups ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_backups_stay_out_of_git(run: Run, home: Path) -> None:
    path = make(home, 1, DAMAGED["damaged"])
    mend(run)
    subprocess.run(["git", "init", "--quiet"], cwd=home, check=True)
    ignored = subprocess.run(["git", "check-ignore", str(kept(path)[0])], cwd=home, capture_output=True, check=False)
    assert ignored.returncode == 0
    assert (
        subprocess.run(["git", "check-ignore", str(path)], cwd=home, capture_output=True, check=False).returncode == 1
    )


@pytest.mark.parametrize("command", [("--delete", ONE), ("--purge", "0"), ("--purge", "1")])
def test_backups_go_with_their_session(run: Run, home: Path, command: tuple[str, ...]) -> None:
    """What a user removes is nowhere any more."""
    old = line(message(9, "user", "A secret") | {"created_at": "2020-01-01T00:00:00.000Z"})
    path = make(home, 1, line(header(ONE)) + old + b"broken\n")
    elsewhere(path, line(header(ONE)) + old, "a/b")
    young = make(home, 2, stores.lines(new_id(2)) + b"broken\n")
    mend(run)
    turn_ = succeed(run("--session-id", new_id(2), "-p", "Hi"))
    assert turn_.json["done"]
    assert succeed(run("--purge", "0", "--dry-run")).json["removed"] == 2
    assert len(kept(path)) == 1
    succeed(run(*command))
    assert not [name for name, data in tree(home).items() if ONE in name or b"A secret" in (data or b"")]
    assert len(kept(young)) == (command != ("--purge", "0"))


@pytest.fixture
def orphan(run: Run, home: Path) -> Path:
    """A backup from 2020 of a session whose file has gone with a pull."""
    path = make(home, 1, DAMAGED["damaged"])
    make(home, 2)
    mend(run)
    path.unlink()
    (backup,) = kept(path)
    return backup.rename(path.with_name(f"{ONE}.20200101T000000Z.damaged.bak"))


def test_a_backup_alone_can_be_deleted(run: Run, orphan: Path) -> None:
    assert succeed(run("--delete", ONE)).json == {"deleted": ONE}
    assert not orphan.exists()
    fail(run("--delete", ONE), "session_not_found")
    assert len(stores.assert_agreement(run)) == 1


@pytest.mark.parametrize("days", ["0", "30"])
def test_a_purge_removes_what_was_kept_of_sessions_that_are_gone(run: Run, home: Path, orphan: Path, days: str) -> None:
    there = tree(home / "sessions")
    planned = succeed(run("--purge", days, "--dry-run")).json
    assert ONE in planned["sessions"]
    assert tree(home / "sessions") == there
    done = succeed(run("--purge", days)).json
    assert done["sessions"] == planned["sessions"]
    assert not list(home.rglob(f"*{ONE}*"))
    assert succeed(run("--purge", days)).json["removed"] == 0


def test_a_purge_leaves_a_young_backup(run: Run, home: Path, orphan: Path) -> None:
    """As young as its name says, or else its file."""
    now = time.gmtime()
    young = orphan.with_name(f"{ONE}.{time.strftime('%Y%m%dT%H%M%SZ', now)}.torn.bak")
    by_hand = [orphan.with_name(f"{ONE}.{name}.bak") for name in ("young", "old")]
    for backup in (young, *by_hand):
        backup.write_bytes(b"")
    for backup in (young, by_hand[1]):
        os.utime(backup, (0, 0))
    for dry in (["--dry-run"], []):
        assert ONE in succeed(run("--purge", "30", *dry)).json["sessions"]
    assert kept(orphan.with_name(f"{ONE}.jsonl")) == sorted([young, by_hand[0]])
    assert ONE not in succeed(run("--purge", "30")).json["sessions"]


def test_a_purge_leaves_the_backups_of_what_may_not_be_read(
    home: Path, orphan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.refuse(monkeypatch, make(home, 1))
    removed, _ = Indexer(Layout(str(home)), lambda _: None).purge(30, False)
    assert removed == [new_id(2)]
    assert orphan.exists()


@pytest.mark.parametrize("command", [("--delete", ONE), ("--purge", "0")])
def test_a_backup_whose_session_is_held_stays(run: Run, home: Path, orphan: Path, command: tuple[str, ...]) -> None:
    filelock = pytest.importorskip("filelock")
    with filelock.FileLock(home / "locks" / f"{ONE}.lock"):
        result = run(*command)
        assert result.returncode or result.json["skipped"] == [ONE]
        assert succeed(run("--purge", "0", "--dry-run")).json["skipped"] == [ONE]
    assert orphan.exists()


# --- Permissions and leftovers ---------------------------------------------------------------------


@posix_only
def test_permissions(run: Run, home: Path) -> None:
    succeed(run("-p", "Hi"))
    succeed(run("--search", "Hi"))
    path, sessions = stores.the_file(home), home / "sessions"
    history = home / "history.jsonl"
    history.write_bytes(stores.line({"session_id": path.stem, "text": "Hi"}))
    notes = path.parent / "notes.sh"
    notes.write_text("mine", encoding="utf-8")
    secret = path.parent / ".mine"
    secret.mkdir(mode=0o755)
    (path.parent / "link").symlink_to(secret)
    wrong = {home: 0o755, sessions: 0o000, path.parent: 0o777, path: 0o000, notes: 0o755, history: 0o644}
    wrong |= {home / "sessions.db": 0o644, home / "search.db": 0o644}
    for place in reversed(wrong):
        place.chmod(wrong[place])
    repaired = mend_all(run)
    assert {item["path"] for item in repaired} == {str(place) for place in wrong}
    (item,) = (item for item in repaired if item["path"] == str(path))
    assert item == {"session_id": path.stem, "path": str(path), "reason": "permissions: 0000 is 0600 now", "kept": None}
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (*wrong, secret)]
    assert modes == [0o700, 0o700, 0o700, 0o600, 0o700, 0o600, 0o600, 0o600, 0o755]


@posix_only
def test_a_folder_that_others_use_too_stays_open(run: Run, home: Path) -> None:
    make(home, 1).chmod(0o644)
    (home / "website").mkdir()
    home.chmod(0o755)
    mend(run)
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "sessions").stat().st_mode) == 0o700


@posix_only
def test_read_only_for_us_may_be_meant(run: Run, home: Path) -> None:
    path = make(home, 1)
    path.chmod(0o444)
    mend(run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_what_killed_processes_left(run: Run, home: Path) -> None:
    path = make(home, 1)
    succeed(run("--list-sessions"))
    attachments = home / "attachments"
    attachments.mkdir(mode=0o700)
    left = [
        path.with_name(f".{path.name}.tmp"), path.with_name(f".{ONE}.20260101T000000Z.damaged.bak.tmp"),
        path.with_name(f".{new_id(7)}.jsonl.tmp"), attachments / f".{'a' * 64}.tmp", home / ".gitignore.123.tmp",
        home / "locks" / f"{new_id(8)}.lock",
    ]  # fmt: skip
    others = [path.with_name("notes.tmp"), path.with_name(".x.tmp"), home / "x.tmp", home / "locks" / f"{ONE}.lock"]
    for file in (*left, *others):
        file.touch(mode=0o600)
    items = mend(run)
    assert {item["path"] for item in items} == set(map(str, left))
    assert all(item["session_id"] is item["kept"] is None for item in items)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in others)
    assert not (home / "locks" / f"{new_id(7)}.lock").exists()


def test_what_a_running_process_writes_is_no_leftover(run: Run, home: Path, ollama: StandIn, start: Start) -> None:
    ollama.hold()
    asking = start("-p", "Hi")
    ollama.wait(held=1)
    path = stores.the_file(home)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.touch(mode=0o600)
    assert succeed(run("--check", "--repair")).json["repaired"] == []
    assert unfinished.exists()
    assert (home / "locks" / f"{path.stem}.lock").exists()
    ollama.release()
    assert asking.wait(30) == 0


# --- The index -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no database", "no tables"])
def test_a_corrupt_index_is_built_again(run: Run, home: Path, how: str) -> None:
    make(home, 1)
    succeed(run("--list-sessions"))
    if how == "no database":
        with open(home / "sessions.db", "r+b") as file:
            file.write(b"ruins" * 100)
    else:
        with sqlite3.connect(home / "sessions.db") as database:
            database.execute("DROP TABLE files")
        database.close()
    assert run("--check").json["index"] == "corrupt"
    (item,) = mend(run)
    assert item == {
        "session_id": None, "path": str(home / "sessions.db"), "kept": None,
        "reason": "built again: the index was corrupt",
    }  # fmt: skip
    assert succeed(run("--check")).json["index"] == "ok"


def test_an_index_that_is_stale_is_brought_up_to_date(run: Run, home: Path) -> None:
    """Though nothing else is to be mended."""
    path = make(home, 1)
    succeed(run("--list-sessions"))
    mend_all(run)
    stores.add(path, line(message(9, "user", "More")))
    assert run("--check").json["index"] == "stale"
    assert mend_all(run) == []
    assert run("--check").json["index"] == "ok"


def test_a_foreign_index_stays_as_it_is(run: Run, home: Path) -> None:
    make(home, 1, DAMAGED["damaged"])
    foreign = home / "sessions.db"
    foreign.write_text("my notes", encoding="utf-8")
    foreign.chmod(0o644)
    result = stores.clean(run("--check", "--repair"))
    assert (result.returncode, result.json["index"], result.json["damage"]) == (1, "foreign", [])
    assert foreign.read_text(encoding="utf-8") == "my notes"
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o644 or sys.platform == "win32"


# --- What goes wrong -------------------------------------------------------------------------------


def lay(folder: Path, data: bytes) -> Path:
    path = folder / f"{ONE}.jsonl"
    path.write_bytes(data)
    return path


def test_a_file_that_changes_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lay(tmp_path, DAMAGED["damaged"])
    other = elsewhere(path, WHOLE)
    real = session_file.create

    def create(name: str, data: bytes) -> Any:
        stamp = real(name, data)
        stores.replace(path, WHOLE)
        return stamp

    monkeypatch.setattr(session_file, "create", create)
    (item,) = repair.mend(ONE, [str(path), str(other)])
    assert (item["reason"], item["kept"]) == ("left alone: another program changed it meanwhile", None)
    assert path.read_bytes() == WHOLE
    assert other.exists(), "what it holds is nowhere else"
    assert kept(path) == []


@pytest.mark.parametrize("changes", ["first", "second"])
def test_a_double_that_changes_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: str
) -> None:
    paths = {"first": lay(tmp_path, WHOLE + line(message(9, "user", "More")))}
    paths["second"] = elsewhere(paths["first"], WHOLE)
    real = session_file.stamp_at

    def stamp_at(name: str) -> Any:
        if name == str(paths[changes]):
            stores.add(paths[changes], line(message(10, "user", "Even more")))
        return real(name)

    monkeypatch.setattr(session_file, "stamp_at", stamp_at)
    (item,) = repair.mend(ONE, list(map(str, paths.values())))
    assert item == repair.item(ONE, str(paths[changes]), "left alone: another program changed it meanwhile")
    assert all(path.exists() for path in paths.values())


@pytest.mark.parametrize("step", ["create", "replace"])
def test_what_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = lay(tmp_path, DAMAGED["damaged"])

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(session_file, step, refuse)
    with pytest.raises(StoreWriteFailed, match="No space left") as caught:
        repair.mend(ONE, [str(path)])
    assert "make room" in str(caught.value.hint)
    assert path.read_bytes() == DAMAGED["damaged"]


# --- Killed at every step --------------------------------------------------------------------------


class Killed:
    """A store with damage of many kinds, and repairs that are killed in a copy of it."""

    def __init__(self, warm: Warm, before: Path, home: Path, env: dict[str, str]) -> None:
        self._warm, self._before, self._home, self._env = warm, before, home, env
        self.restore()

    def restore(self) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._before, self._home)

    def run(self, *argv: str) -> Result:
        self._warm.start(*argv, env=self._env)
        return Result(*self._warm.end())

    def count(self) -> int:
        return len(self._warm.steps("--check", "--repair", env=self._env))

    def kill_at(self, step: int) -> int:
        self.restore()
        self._warm.start("--check", "--repair", env=self._env, die_at=step)
        return self._warm.end()[0]

    def lines(self) -> set[bytes]:
        """All that lies anywhere, in files and backups."""
        there = [data for name, data in tree(self._home).items() if name.endswith((".jsonl", ".bak"))]
        return {text for data in there for text in (data or b"").split(b"\n")}


@pytest.fixture
def killed(warm: Warm, tmp_path: Path, home: Path, environment: dict[str, str]) -> Killed:
    before = tmp_path / "before"
    path = make(before, 1, DAMAGED["damaged"] + b'{"type":"torn')
    elsewhere(path, WHOLE + b"".join(map(line, [*turn(6), *turn(7)])))
    make(before, 3).with_name(f".{new_id(3)}.jsonl.tmp").write_bytes(b"{")
    return Killed(warm, before, home, environment)


@posix_only
@pytest.mark.parametrize("first", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 3))])
def test_killed_at_every_step(killed: Killed, home: Path, first: int) -> None:
    there = killed.lines()
    said = {message["content"] for message in killed.run("--session-info", ONE).json["messages"]} | {"Behind"}
    count = killed.count()
    assert count > 30
    killed.restore()
    states = States(home)
    for step in range(first, count + 1, 3):
        code = killed.kill_at(step)
        assert code == -9 or step > count - 5, step
        assert there <= killed.lines(), step
        if not states.is_new():
            continue
        ended = succeed(killed.run("--check", "--repair")).json
        assert (ended["damage"], ended["sessions"]) == ([], 2), step
        assert there <= killed.lines(), step
        found = {message["content"] for message in killed.run("--session-info", ONE).json["messages"]}
        assert found == said, step
        assert not list(home.rglob("*.tmp"))
        assert killed.run("--check", "--repair").json["repaired"] == []


def test_backups_stay_out_of_a_git_that_an_earlier_release_set_up(home: Path) -> None:
    path = make(home, 1, stores.lines(new_id(1)) + b"garbage\n")
    (home / ".gitignore").write_text("/sessions.db\n", encoding="utf-8")
    Indexer(Layout(str(home)), lambda _: None).repair()
    assert list(path.parent.glob("*.bak"))
    assert "*.bak" in (home / ".gitignore").read_text(encoding="utf-8").splitlines()
