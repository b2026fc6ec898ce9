"""The target `reader`: mutated session files, and files to import, through everything that reads their bytes.

A case is a file. It is read by the readers of sessions and by those of other programs' files, whatever it is. Only the
project's own errors may come out of it, and what several readers say of the same bytes must agree:

- reading twice, from the end, and on from where an earlier reading stopped gives what reading once gave;
- a search sees the messages that a listing counts, and the same model;
- a mended file has no damage, nothing left to mend, and every record of the old one;
- what is printed is JSON that parses, and no control character in it drives a terminal.

Half of the cases are read again and mended, the other half listed, shown and imported: a case costs half, and there are
twice as many. Each 200th case is written as a document too, each 2000th goes through a whole store: listed, searched,
exported, forked, continued with a model that is none, checked, mended.
"""

from __future__ import annotations

import json
import shutil
import zlib

import old_stores
import stores

from fuzzing import mutations, runs
from fuzzing.promises import Sink, assert_error, assert_for_people, assert_json
from ollama_prompt import (
    commands,
    config,
    credentials,
    flags,
    foreign,
    readable,
    records,
    render,
    repair,
    session_file,
    transcript,
)
from ollama_prompt.documents import Documents
from ollama_prompt.errors import ImportFailed, OllamaPromptError
from ollama_prompt.index import Row
from ollama_prompt.model import ModelFacts
from ollama_prompt.query import Scope
from ollama_prompt.turn import take_turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random
    from typing import Any

    from ollama_prompt.indexer import Indexer
    from ollama_prompt.records import Record
    from ollama_prompt.session_file import Reading

    Json = dict[str, Any]

ID = stores.new_id(1)
DOCUMENT_EVERY, STORE_EVERY = 200, 2000
IMAGES = [{"sha256": "ab" * 32, "bytes": 70, "type": "image/png", "path": "/home/me/a cat.png"}]
SETTINGS: Json = {
    "title": "Monads, explained", "system": "Be brief.\nAnswer in *Markdown*.",
    "options": {"seed": 1, "stop": ["\n\n"]},
    "think": "high", "num_ctx": 8192, "keep_alive": "5m",
}  # fmt: skip
ANSWER: Json = {"model": "qwen3", "prompt_tokens": 25, "tokens": 9, "done_reason": "stop", "thinking": "Hm … `x`"}
WINDOW: Json = {"start": stores.new_id(4), "limit": 8192, "left_out": 2}


def _undo(number: int, *taken: int) -> Json:
    made = {"type": "undo", "id": stores.new_id(number), "created_at": "2026-09-21T20:30:00.000Z"}
    return {**made, "ids": [stores.new_id(each) for each in taken]}


def _meta(number: int, **more: Any) -> Json:
    return {"type": "meta", "id": stores.new_id(number), "created_at": "2026-09-22T00:00:00.500Z", **more}


HEADERS: tuple[Json, ...] = (
    stores.header(ID),
    stores.header(ID, **SETTINGS, forked_from=stores.new_id(7)),
    stores.header(ID, version=2, imported_from={"format": "llm", "id": "01h"}, later=[1.5, None]),
)
RECORDS: tuple[Json, ...] = (
    *(record for number in range(4) for record in stores.turn(number)),
    stores.message(20, "user", "Look at this\r\n\tand that", typed="@./a.py", references=["@./a.py"], images=IMAGES),
    stores.message(21, "assistant", "# A cat\n\n```py\nx = [1]\n```\n\n> *so* | it | is\n\nGrüße 🌊 日本", **ANSWER),
    stores.message(22, "assistant", "The rest", **ANSWER, window=WINDOW),
    stores.message(23, "assistant", "", done_reason="interrupted"),
    stores.message(24, "system", "You are a pirate."),
    stores.message(25, "user", "key sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8tUv1wXy4z and <b>html</b> & [a](b)"),
    {"type": "message", "role": "user", "content": "by hand"},
    {"type": "message", "role": "assistant", "content": "by hand", "created_at": "2026-09-23 10:30"},
    _meta(30, **SETTINGS), _meta(31, model="llama3.2", title=""), _meta(32),
    _undo(40, 6, 7), _undo(41, 20), _undo(42, 21, 22), _undo(5, 2),
    {"type": "pinned", "id": stores.new_id(50), "why": "a later release", "ids": [stores.new_id(2)]},
)  # fmt: skip
LISTS: tuple[Any, ...] = (
    [
        {"role": "system", "content": "Be brief"},
        *({"role": r["role"], "content": r["content"]} for r in stores.turn(1)),
    ],
    {"messages": RECORDS[:4], **SETTINGS, "model": "m", "session_id": ID, "created_at": "2026-03-01T10:00:00"},
    [{"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "x"}}]}],
    {
        "id": "chat-1",
        "messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}, {**ANSWER, **RECORDS[0]}],
    },
)


class Reader:
    """The target; see the module."""

    name = "reader"
    seconds = 60.0
    megabytes = 400.0

    def __init__(self) -> None:
        self._folder = runs.make_folder()
        self._path = str(self._folder / f"{ID}.jsonl")
        self._lines = [stores.line(record) for record in RECORDS]
        self._headers = [stores.line(header) for header in HEADERS]
        self._lists = [json.dumps(value, indent=indent).encode() for value in LISTS for indent in (None, 1)]
        self._databases = _databases(self._folder)
        self._seed = b"".join((self._headers[0], *self._lines[:4]))
        self._put(self._seed)
        self._earlier = _saved(session_file.read(self._path, ID))

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def make(self, chance: Random) -> bytes:
        """A session of some records in any order, mutated; sometimes a file to import."""
        kind = chance.random()
        if kind < 0.1:
            return mutations.mutated(chance, chance.choice(self._lists))
        if kind < 0.11:
            return mutations.mutated(chance, chance.choice(self._databases))
        lines = chance.choices(self._lines, k=chance.randint(0, 6))
        if chance.random() < 0.7:
            lines.sort(key=self._lines.index)
        data = b"".join([chance.choice(self._headers), *lines] if chance.random() < 0.9 else lines)
        return mutations.mutated(chance, data)

    def run(self, data: bytes) -> None:
        """Read the file."""
        self._put(data)
        found, reading = session_file.load(self._path, ID)
        _check_documents(data, found, reading)
        number = zlib.crc32(data) or 1  # that of no bytes is 0, and there are many such files
        if number % 2:
            self._check_readings(data, found, reading)
            self._check_mended(data, found)
        else:
            _check_listing(reading)
            _check_info(found, reading)
            _check_shown(data)
            self._check_import()
        if number % DOCUMENT_EVERY == 0:
            _check_documents_made(found, reading)
            credentials_of(data)
        if number % STORE_EVERY == 0:
            self._check_store(data)

    def _put(self, data: bytes) -> None:
        with open(self._path, "wb") as file:
            file.write(data)

    def _check_readings(self, data: bytes, found: list[Record], reading: Reading) -> None:
        """Again, from the end, and on from an earlier reading."""
        second = session_file.read(self._path, ID)
        assert _seen(second) == _seen(reading), "reading twice gives two results"
        back = list(session_file.read_back(self._path, reading.repeats))[::-1]
        assert _are_same(back, found), "from the end it reads otherwise"
        if reading.summary.simple:
            assert not reading.repeats, "a file with repeated records is not simple"
        grown = session_file.read(self._path, ID, self._earlier)
        assert _saved(grown) == _saved(reading), "what changed is not read anew"
        cut = zlib.crc32(data) % (len(data) + 1)
        self._put(data[:cut])
        earlier = _saved(session_file.read(self._path, ID))
        self._put(data)
        grown = session_file.read(self._path, ID, earlier)
        assert _saved(grown) == _saved(reading), "what grew is not what is read whole"

    def _check_mended(self, data: bytes, found: list[Record]) -> None:
        mended, reasons = repair.mended(data, ID)
        assert repair.mended(mended, ID) == (mended, {}), "what is mended has something to mend"
        assert bool(reasons) == (mended != data), "a file is replaced for no reason, or without one"
        self._put(mended)
        kept, reading = session_file.load(self._path, ID)
        self._put(data)
        assert not reading.damage, reading.damage
        counted = [record for record in found if record["type"] != "session"]  # of headers one stays
        lost = set(records.ids_of(counted)) - set(records.ids_of(kept))
        assert not lost, f"records that a repair loses: {lost}"

    def _check_import(self) -> None:
        try:
            first, second = (_imported(self._path) for _ in range(2))
        except ImportFailed:
            return
        assert first == second, "importing twice gives two results"

    def _check_store(self, data: bytes) -> None:
        home = self._folder / "store"
        try:
            _use(home, stores.make(home, 1, data), data)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _saved(reading: Reading) -> Json:
    return reading.summary.saved() | {"end": reading.end, "crc": reading.crc}


def _are_same(some: list[Record], others: list[Record]) -> bool:
    """Whether these are the same records; by their ids where they are nested deeper than Python compares."""
    try:
        return some == others
    except RecursionError:
        return len(some) == len(others) and records.ids_of(some) == records.ids_of(others)


def _seen(reading: Reading) -> tuple[Any, ...]:
    return _saved(reading), reading.damage, reading.repeats, reading.summary.undone


def _databases(folder: Path) -> list[bytes]:
    """Databases of other programs, small ones."""
    said = [old_stores.said(number, role, "Hi") for number, role in enumerate(("user", "assistant"))]
    chain = old_stores.chain(("a", "user", "Hi"), ("b", "assistant", "Hello"))
    answers = [
        old_stores.response("r1", "c1", "Hi", "Hello"),
        ("conversations", {"id": "c1", "name": "n", "model": "m"}),
    ]
    tree = [*chain, ("threads", {"id": "t", "name": "n"}), old_stores.turn("u", "t", None, "b")]
    made = [
        old_stores.make_1x(folder / "1x.db", old_stores.session_1x(ID, said)),
        old_stores.make(folder / "llm.db", "PRAGMA page_size = 512;" + old_stores.TABLES_LLM_27, answers),
        old_stores.make(folder / "tree.db", "PRAGMA page_size = 512;" + old_stores.TABLES_LLM_36, tree),
    ]
    return [path.read_bytes() for path in made]


# --- What readers say ------------------------------------------------------------------------------


def _check_documents(data: bytes, found: list[Record], reading: Reading) -> None:
    """What a search sees is what a listing counts."""
    documents = Documents(data, ID)
    assert documents.end == reading.end, "a search reads to another place"
    shown = documents.shown()
    undone = reading.summary.undone
    messages = [r for r in found if r["type"] == "message" and r.get("id") not in undone]
    assert _are_same([each.record for each in shown if not each.field], messages), "a search sees other messages"
    assert documents.model == reading.summary.settings.get("model"), "a search sees another model"
    for field in ("title", "system"):
        texts = [each.text for each in shown if each.field == field]
        assert texts == [text for text in [reading.summary.settings.get(field)] if text], f"another {field}"
    documents.crcs()


def _check_listing(reading: Reading) -> None:
    """The row of the index, and the listing that is made of it."""
    row = Row.of("2026-09/x", reading, young=False)
    line = row.line("/store/")
    listing = b"".join(render.listing_as_json([line], 1)).decode()
    assert_json(listing)
    assert assert_json(render.listing_as_line([line], 1)) == json.loads(listing)
    assert json.loads(json.dumps(row.saved)) == row.saved, "the index cannot keep what was read"
    assert_for_people(render.listing_as_text([line]))


class _Found:
    """Stands in for an Indexer: what was read of one session."""

    def __init__(self, found: list[Record], reading: Reading) -> None:
        self._info = reading.summary.listed() | {"path": "/store/x"}, found, reading

    def info(self, session_id: str) -> Any:  # noqa: ARG002  there is one
        return self._info


def _check_info(found: list[Record], reading: Reading) -> None:
    """What --session-info prints."""
    indexer: Any = _Found(found, reading)
    info = commands.session_info(indexer, ID)
    assert assert_json(render.as_json(info)) == assert_json(render.as_line(info))
    assert_for_people(render.info_as_text(info))


def _check_shown(data: bytes) -> None:
    """What git shows of a difference."""
    for line in data.split(b"\n"):
        assert_for_people(readable.block(line + b"\n").decode())


def _check_documents_made(found: list[Record], reading: Reading) -> None:
    """Every form of an export."""
    from ollama_prompt import page

    made = transcript.Transcript(reading.summary.listed(), reading.summary.settings, found, reading.summary.undone)
    assert_for_people(transcript.as_text(made))
    assert_for_people(transcript.as_markdown(made))
    assert_for_people(page.conversation(made, lambda _: None))
    exported = json.loads(transcript.as_json(made, lambda _: None))
    assert all(isinstance(each["content"], str) for each in exported)


def credentials_of(data: bytes) -> None:
    """What --check --secrets finds."""
    for line in data.split(b"\n"):
        credentials.find(records.text_of(line))


def _imported(path: str) -> list[Any]:
    """What an import would store; it must be what a session file can hold."""
    with foreign.read(path, lambda _: None) as (_, conversations):
        found = []
        for conversation in conversations:
            if conversation is None:
                continue
            encoded = records.encode(conversation.header, *conversation.records)
            for line in encoded.splitlines(keepends=True):
                records.decode(line)
            found.append((conversation.ids, records.ids_of(conversation.records), sorted(conversation.images)))
        return found


# --- A store ---------------------------------------------------------------------------------------


class _Nobody:
    """A model that says the same to everything."""

    def check(self) -> ModelFacts:
        return ModelFacts(8192, ("completion", "thinking", "vision"))

    def loaded_window(self) -> int | None:
        return None

    def chat(self, body: Json) -> Iterator[Json]:
        json.dumps(body)
        yield {"message": {"content": "So"}, "done": False}
        yield {"message": {"content": "."}, "done": True, "prompt_eval_count": 30, "eval_count": 2}

    def close(self) -> None:
        pass


def _use(home: Path, path: Path, data: bytes) -> None:
    """Do with a store whatever can be done; errors of ours are answers too."""
    indexer = commands.make_indexer({"OLLAMA_PROMPT_HOME": str(home), "HOME": str(home)}, lambda _: None)
    listed = _check_lists(indexer)
    assert [json.loads(line)["session_id"] for line in listed] == [ID]
    assert_json(render.as_json(commands.session_info(indexer, ID)))
    for query in ("question", "grüße", "{"):
        found = _mine(lambda query=query: commands.search(indexer, query, Scope(None, None, ""), None, None))
        assert_json(render.as_json(found or {}))
    for form in ("markdown", "text", "json", "html"):
        commands.export(indexer, ID, form)
    assert_json(render.as_json(commands.check(indexer, secrets=True)))
    assert path.read_bytes() == data, "reading has changed the file"
    _check_turns(indexer, path, data)
    _check_lists(indexer)
    checked = commands.check(indexer, repair=True)
    if not any("left alone" in each["reason"] for each in checked["repaired"]):
        damage = [each for each in checked["damage"] if "picture" not in each["reason"]]
        assert not damage, damage
    _check_lists(indexer)


def _check_lists(indexer: Indexer) -> list[bytes]:
    """The listing, which is that of an index that is made anew."""
    listed = indexer.sessions()
    commands.reindex(indexer, 1)
    assert indexer.sessions() == listed, "an index that is made anew lists otherwise"
    return listed


def _check_turns(indexer: Indexer, path: Path, data: bytes) -> None:
    """Continue the session, ask again, take back, fork."""
    _mine(lambda: commands.fork(indexer, ID, None))
    for arguments in (["-p", "And now?", "--session-id", ID], ["--retry", ID]):
        turn = _mine(lambda arguments=arguments: _ask(indexer, arguments))
        if turn:
            assert path.read_bytes().startswith(data), "a turn has changed what was there"
            last = commands.session_info(indexer, ID)["messages"][-1]
            assert (last["role"], last["content"]) == ("assistant", "So."), last
    _mine(lambda: commands.undo(indexer, ID, 1))


def _ask(indexer: Indexer, arguments: list[str]) -> Json:
    parsed = flags.parse(arguments)
    request = config.Request(parsed, {}, config.read_prompt(parsed) if parsed.retry is None else None)
    return take_turn(request, indexer, lambda *_: _Nobody(), Sink(), lambda _: None)


def _mine(act: Any) -> Any:
    """What an action gives; None where it ends in an error of ours, which must be sayable."""
    try:
        return act()
    except OllamaPromptError as error:
        assert_error(error)
    return None
