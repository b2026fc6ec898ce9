"""Continuing, forking, undoing and retrying: first a machine that does them in any order, beside a plain model of each
conversation; then single rules, on files as people, merges and crashes leave them.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import stores
from hasty import do_not_wait
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from stores import add, header, line, make, message, new_id, records, refuse, replace

from ollama_prompt import clock, commands, config, flags, session_file
from ollama_prompt import records as records_
from ollama_prompt.errors import (
    IncompleteAnswer,
    ModelError,
    ModelNotFound,
    NothingToUndo,
    OllamaError,
    SessionNotFound,
    StoreUnreadable,
    UsageError,
)
from ollama_prompt.indexer import Indexer
from ollama_prompt.layout import Layout
from ollama_prompt.model import ModelFacts
from ollama_prompt.turn import take_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ollama_prompt.model import Model

Json = dict[str, Any]
Said = tuple[str, str]

MESSAGE_TOKENS = 8
"""What each message takes, as the model of these tests counts; about what is estimated for the texts used here."""


# --- A turn without a server -----------------------------------------------------------------------


class Scripted:
    """A model that answers as told: "whole", "partial", "none" (broken off), "refused" or "absent"."""

    def __init__(self, outcome: str, answer: str = "Yes.") -> None:
        self.outcome = outcome
        self.answer = answer
        self.sent: list[Said] = []

    def connect(self, *_: object) -> Model:
        """For whatever name, until whatever deadline."""
        return self

    def check(self) -> ModelFacts:
        if self.outcome == "absent":
            raise ModelNotFound("no such model")
        return ModelFacts(8192)

    def loaded_window(self) -> int | None:
        return None

    def chat(self, body: Json) -> Iterator[Json]:
        self.sent = [(sent["role"], sent["content"]) for sent in body["messages"]]
        if self.outcome in {"refused", "none"}:
            raise OllamaError("no", keeps_prompt=self.outcome == "none")
        yield {"message": {"content": self.answer}}
        if self.outcome == "partial":
            raise IncompleteAnswer("cut")
        counts = {"prompt_eval_count": MESSAGE_TOKENS * len(self.sent), "eval_count": MESSAGE_TOKENS}
        yield {"done": True, "done_reason": "stop", **counts}

    def close(self) -> None:
        pass


class Silent:
    """An answer goes nowhere."""

    def start(self, model: str, session_id: str | None) -> None:
        pass

    def thinking(self, text: str) -> None:
        pass

    def token(self, text: str) -> None:
        pass


def take(indexer: Indexer, model: Scripted, prompt: str | None, *arguments: str) -> Json:
    """A turn, as the command takes it; without a prompt one of --retry."""
    request = config.Request(flags.parse(arguments), {}, None if prompt is None else config.Prompt(prompt))
    return take_turn(request, indexer, model.connect, Silent(), lambda _: None)


def sent_next(indexer: Indexer, session_id: str) -> list[Said]:
    """What a next turn would send before its own prompt; it is refused, and leaves nothing."""
    model = Scripted("refused")
    with pytest.raises(OllamaError):
        take(indexer, model, "Next", "--session-id", session_id)
    assert model.sent[-1] == ("user", "Next")
    return model.sent[:-1]


# --- A plain model of a conversation ---------------------------------------------------------------


class Talk:
    """What happened in a conversation, in order: (id, role, content), or the ids that were taken back."""

    def __init__(self, events: list[tuple[str, str, str] | list[str]]) -> None:
        self.events = events

    @property
    def undone(self) -> set[str]:
        return {id_ for event in self.events if isinstance(event, list) for id_ in event}

    @property
    def everything(self) -> list[tuple[str, str, str]]:
        return [event for event in self.events if isinstance(event, tuple)]

    @property
    def messages(self) -> list[tuple[str, str, str]]:
        """Those that count."""
        return [event for event in self.everything if event[0] not in self.undone]

    @property
    def turns(self) -> list[list[tuple[str, str, str]]]:
        found: list[list[tuple[str, str, str]]] = []
        for event in self.messages:
            if event[1] == "user":
                found.append([])
            found[-1].append(event)
        return found

    @property
    def context(self) -> list[Said]:
        """What a next turn sends, where all of it fits."""
        return [(role, content) for turn in self.turns if len(turn) > 1 for _, role, content in turn]

    @property
    def title(self) -> str | None:
        return self.messages[0][2] if self.messages else None

    def last_turn(self) -> list[str]:
        return [id_ for id_, _, _ in self.turns[-1]] if self.turns else []

    def up_to(self, id_: str | None) -> Talk:
        for number, event in enumerate(self.events):
            if event[0] == id_:
                return Talk(self.events[: number + 1])
        return Talk(self.events.copy())


# --- Anything in any order -------------------------------------------------------------------------

picks = st.integers(0, 11)
outcomes = st.sampled_from(["whole", "whole", "whole", "partial", "none", "refused", "absent"])
FIRST_MOMENT = 1_790_000_000 * 10**9


class Branches(RuleBasedStateMachine):
    """A few sessions; time stands still unless it is moved. With `is_small`, little of a conversation fits."""

    @initialize(is_small=st.booleans())
    def begin(self, is_small: bool) -> None:
        self.folder = TemporaryDirectory()
        self.home = Path(self.folder.name) / "store"
        self.indexer = Indexer(Layout(str(self.home)), lambda _: None)
        self.limit = 60 if is_small else 8000
        self.talks: dict[str, Talk] = {}
        self.number = 0
        self.moment = FIRST_MOMENT
        self.patch = pytest.MonkeyPatch()
        do_not_wait(self.patch)
        self.patch.setattr(time, "time_ns", lambda: self.moment)
        self.another_process()
        self.ask("whole")

    def teardown(self) -> None:
        try:
            self.compare()
        finally:
            self.patch.undo()
            self.folder.cleanup()

    # Details

    def pick(self, number: int) -> str:
        return sorted(self.talks)[number % len(self.talks)]

    def path(self, session_id: str) -> Path:
        (path,) = self.home.glob(f"sessions/*/{session_id}.jsonl")
        return path

    def files(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in stores.files(self.home)}

    def say(self) -> str:
        self.number += 1
        return f"Text {self.number:03d}"

    def ask(self, outcome: str, session_id: str | None = None, prompt: str | None = None, *arguments: str) -> None:
        """A turn; `prompt` is what a retry must ask."""
        retried = self.talks[session_id].last_turn() if session_id and "--retry" in arguments else []
        model, before = Scripted(outcome, self.say()), self.files()
        text = prompt or self.say()
        turn: Json = {}
        try:
            turn = take(
                self.indexer, model, None if retried else text, "--max-context-tokens", str(self.limit), *arguments
            )
        except ModelError:
            assert outcome != "whole"
        talk = self.talks.get(session_id or "", Talk([]))
        events = [*talk.events, *([retried] if retried else [])]
        self.check_sent(Talk(events), model, text, turn)
        new = self.grown(before, session_id)
        roles = {"whole": ["user", "assistant"], "partial": ["user", "assistant"], "none": ["user"]}.get(outcome, [])
        said = [record for record in new if record["type"] == "message"]
        assert [(record["role"], record["content"]) for record in said] == list(
            zip(roles, [text, model.answer], strict=False)
        )
        assert [record["ids"] for record in new if record["type"] == "undo"] == ([retried] if retried and roles else [])
        if roles:
            events += [(record["id"], record["role"], record["content"]) for record in said]
            self.talks[session_id or next(iter(self.files().keys() - before.keys()))] = Talk(events)

    def check_sent(self, talk: Talk, model: Scripted, prompt: str, turn: Json) -> None:
        """The newest whole turns were sent, and the output says how many were not."""
        if model.outcome == "absent":
            return
        assert model.sent[-1] == ("user", prompt)
        context, sent = talk.context, model.sent[:-1]
        assert sent == context[len(context) - len(sent) :]
        assert not sent or sent[0][0] == "user"
        assert self.limit == 60 or sent == context
        if turn:
            assert turn["window"]["messages_left_out"] == len(context) - len(sent)

    def grown(self, before: dict[str, bytes], session_id: str | None) -> list[Json]:
        """What was added to this file, or is in the only new one; no other file changed."""
        now = self.files()
        changed = {id_ for id_ in now if now[id_] != before.get(id_)}
        assert before.keys() <= now.keys()
        assert changed <= ({session_id} if session_id else now.keys() - before.keys())
        assert len(changed) <= 1
        found: list[Json] = []
        for id_ in changed:
            assert now[id_].startswith(before.get(id_, b""))
            found = [json.loads(text) for text in now[id_][len(before.get(id_, b"")) :].splitlines()]
        return found

    def newest(self) -> str:
        """By the plain rule."""
        uses = {
            path.stem: max((record["created_at"], record["id"]) for record in records(path) if "id" in record)
            for path in stores.files(self.home)
        }
        return max(sorted(uses), key=lambda id_: uses[id_])

    # What happens

    @rule(outcome=outcomes)
    def new(self, outcome: str) -> None:
        if len(self.talks) < 4:
            self.ask(outcome)

    @rule(number=picks, outcome=outcomes)
    def turn(self, number: int, outcome: str) -> None:
        session_id = self.pick(number)
        self.ask(outcome, session_id, None, "--session-id", session_id)

    @rule(outcome=outcomes)
    def go_on(self, outcome: str) -> None:
        session_id = self.indexer.newest()
        assert session_id == self.newest()
        self.ask(outcome, session_id, None, "--session-id", session_id)

    @rule(number=picks)
    def undo(self, number: int) -> None:
        session_id, before = self.pick(number), self.files()
        talk = self.talks[session_id]
        wanted = talk.last_turn()
        if not wanted:
            with pytest.raises(NothingToUndo):
                self.indexer.undo(session_id, 0)
            assert self.files() == before
            return
        assert self.indexer.undo(session_id, 0) == wanted
        (record,) = self.grown(before, session_id)
        assert (record["type"], record["ids"]) == ("undo", wanted)
        talk.events.append(wanted)

    @rule(number=picks, outcome=outcomes)
    def retry(self, number: int, outcome: str) -> None:
        session_id = self.pick(number)
        talk = self.talks[session_id]
        if talk.turns:
            self.ask(outcome, session_id, talk.turns[-1][0][2], "--retry", session_id)
            return
        before = self.files()
        with pytest.raises(NothingToUndo):
            take(self.indexer, Scripted("whole"), None, "--retry", session_id)
        assert self.files() == before

    @rule(number=picks, at=st.none() | picks)
    @precondition(lambda self: len(self.talks) < 6)
    def fork(self, number: int, at: int | None) -> None:
        session_id, before = self.pick(number), self.files()
        talk = self.talks[session_id]
        last = None if at is None else talk.everything[at % len(talk.everything)][0]
        fork = self.indexer.fork(session_id, last)
        first, *_, use = self.grown(before, None)
        assert (first["session_id"], first["forked_from"]) == (fork, session_id)
        assert use.keys() == {"type", "id", "created_at"}
        self.talks[fork] = talk.up_to(last)

    @rule(number=picks, repeats=st.lists(picks, max_size=3))
    def pull(self, number: int, repeats: list[int]) -> None:
        """Another clone's turn comes by git, and lines that are there already."""
        path = self.path(self.pick(number))
        self.number += 1
        turn = stores.turn(1000 + self.number)
        lines = path.read_bytes().splitlines(keepends=True)
        again = [lines[repeat % len(lines)] for repeat in repeats]
        replace(path, b"".join([*lines, *again, *map(line, turn)]))
        self.talks[path.stem].events += [(said["id"], said["role"], said["content"]) for said in turn]

    @rule()
    def lose_index(self) -> None:
        (self.home / "sessions.db").unlink(missing_ok=True)

    @rule(milliseconds=st.sampled_from([1, 999, 3_600_000, -3_600_000]))
    def tick(self, milliseconds: int) -> None:
        self.moment += milliseconds * 10**6

    @rule()
    def another_process(self) -> None:
        """It knows nothing of the ids that were made before in the same millisecond."""
        self.patch.setattr(clock, "_last_tick", 0)

    @rule()
    def compare(self) -> None:
        """Listing, information and context are those of the plain model."""
        assert self.indexer.newest() == self.newest()
        listing = self.indexer.sessions()
        assert listing == Indexer(Layout(str(self.home), str(self.home / "no.db")), lambda _: None).sessions()
        for listed in map(json.loads, listing):
            talk = self.talks[listed["session_id"]]
            assert (listed["message_count"], listed["title"]) == (len(talk.messages), talk.title)
            info = commands.session_info(self.indexer, listed["session_id"])
            told = [(said["id"], said["role"], said["content"]) for said in info["messages"]]
            assert told == talk.everything
            assert {said["id"] for said in info["messages"] if said.get("undone")} == talk.undone
            assert info["damage"] == []


TestBranches = Branches.TestCase
TestBranches.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


# --- Whatever is in a file -------------------------------------------------------------------------

numbers = st.integers(1, 12)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["smollm2", "viewer", 5]),
        "title": st.sampled_from(["Mine", None]),
        "system": st.sampled_from(["Be brief.", ""]),
        "options": st.sampled_from([{"seed": 1}, [], {"temperature": 0.5}]),
        "max_context_tokens": st.sampled_from([40, 64000, "many"]),
        "version": st.sampled_from([1, "1", None]),
    },
)
COUNTS = st.sampled_from(
    [{}, {"prompt_tokens": 30, "tokens": 9}, {"prompt_tokens": "3", "window": {"start": new_id(3)}}]
)
ROLES = st.sampled_from(["user", "user", "assistant", "assistant", "tool"])
LINES = st.one_of(
    st.builds(
        lambda number, role, counts: line(message(number, role, f"Text {number}", **counts)), numbers, ROLES, COUNTS
    ),
    st.sets(numbers, max_size=3).map(
        lambda taken: line(undo(100 + sum(2**n for n in taken), *map(new_id, sorted(taken))))
    ),
    st.builds(lambda number, settings: line({**settings, **meta(40 + number)}), numbers, SETTINGS),
    st.builds(lambda settings: line({**header(new_id(1)), **settings}), SETTINGS),
    st.builds(lambda role: line(without_id(message(60, role, "By hand"))), ROLES),
    st.sampled_from(
        [b"junk\n", b"\n", b"\0" * 20 + b"\n", b"[]\n", b'{"type":"novelty"}\n', b'{"type":"novelty","id":7}\n']
    ),
)
FILES = st.builds(
    lambda lines, torn: b"".join(lines) + torn, st.lists(LINES, max_size=14), st.sampled_from([b"", b'{"ty'])
)


@contextmanager
def laid(data: bytes) -> Iterator[tuple[Indexer, Path]]:
    """A store with a session of these bytes."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        do_not_wait(patch)
        yield Indexer(Layout(folder), lambda _: None), make(Path(folder), 1, data)


def seen(indexer: Indexer, session_id: str) -> tuple[Json, list[Said], int]:
    """What is listed of a session, its context, and the number of answered messages; the index is right about it."""
    counts_of(indexer, session_id)
    listed, _, reading = indexer.info(session_id)
    of_the_file = {"session_id", "path", "created_at", "last_used"}
    shown = {key: value for key, value in listed.items() if key not in of_the_file}
    return shown, sent_next(indexer, session_id), reading.summary.answered_count


@given(FILES)
def test_a_fork_of_anything_is_like_it(data: bytes) -> None:
    with laid(data) as (indexer, path):
        fork = indexer.fork(path.stem, None)
        assert seen(indexer, fork) == seen(indexer, path.stem)
        assert path.read_bytes() == data
        assert indexer.info(fork)[2].damage == []


@given(FILES)
def test_a_fork_up_to_anything_is_like_the_file_was_then(data: bytes) -> None:
    with laid(data) as (indexer, path):
        found = [record for record in indexer.info(path.stem)[1] if record["type"] != "session"]
        for number, record in enumerate(found):
            behind = found[number + 1]["type"] if number + 1 < len(found) else ""
            if record["type"] != "message" or "id" not in record or (record["role"] == "user" and behind == "undo"):
                continue  # an undo there is taken for one of a retry
            fork = indexer.fork(path.stem, record["id"])
            assert indexer.info(fork)[1][1:-1] == found[: number + 1]


def can_be_named(turn: list[Json]) -> bool:
    """Whether an undo can take all of it out of the context."""
    return any("id" in said for said in turn) and all("id" in said for said in turn if said["role"] == "assistant")


@given(FILES)
def test_asking_anything_again_is_undoing_and_asking(data: bytes) -> None:
    with laid(data) as (indexer, path), laid(data) as (other, _):
        with indexer.open(path.stem, 0) as held:
            turn = held.last_turn()
        retried, asked = Scripted("whole"), Scripted("whole")
        if not turn or turn[0]["role"] != "user" or not can_be_named(turn):
            with pytest.raises(NothingToUndo):
                take(indexer, retried, None, "--retry", path.stem)
            assert path.read_bytes() == data
            return
        assert other.undo(path.stem, 0) == [record["id"] for record in turn if "id" in record]
        window = take(indexer, retried, None, "--retry", path.stem)["window"]
        assert window == take(other, asked, turn[0]["content"], "--session-id", path.stem)["window"]
        assert retried.sent == asked.sent
        assert seen(indexer, path.stem) == seen(other, path.stem)


# --- Single rules ----------------------------------------------------------------------------------


@pytest.fixture
def notes() -> list[str]:
    """What the user was told."""
    return []


@pytest.fixture
def indexer(home: Path, notes: list[str]) -> Indexer:
    """The store."""
    return Indexer(Layout(str(home)), notes.append)


def lay(home: Path, *stored: Json | bytes, number: int = 1) -> Path:
    """A session of these records behind a header; what is bytes is written as it is."""
    first = header(new_id(number))
    return make(home, number, b"".join(each if isinstance(each, bytes) else line(each) for each in (first, *stored)))


def undo(number: int, *ids: str) -> Json:
    return {"type": "undo", "id": new_id(number), "created_at": "2026-09-21T20:28:00.000Z", "ids": list(ids)}


def meta(number: int, **settings: Any) -> Json:
    return {"type": "meta", "id": new_id(number), "created_at": "2026-09-21T20:27:30.000Z", **settings}


def ids_of(stored: list[Json]) -> list[str]:
    return [record["id"] for record in stored]


def counts_of(indexer: Indexer, session_id: str) -> tuple[int, int]:
    """(Messages that count, tokens), which the index says as the files do."""
    fresh = Indexer(Layout(indexer.layout.home, indexer.layout.home + "/no.db"), lambda _: None)
    assert indexer.sessions() == fresh.sessions()
    found = next(item for item in map(json.loads, indexer.sessions()) if item["session_id"] == session_id)
    return found["message_count"], found["context_tokens"]


# Continuing


def test_ties_are_decided_by_the_id_of_the_newest_record(indexer: Indexer, home: Path) -> None:
    for number, last in ((1, 30), (2, 32), (3, 31)):
        moment = {"created_at": "2026-09-22T00:00:00.000Z"}
        lay(home, message(number, "user", "Hi"), {**message(last, "user", "Hi"), **moment}, number=number)
    assert indexer.newest() == new_id(2)
    (home / "sessions.db").write_bytes(b"my notes")
    assert indexer.newest() == new_id(2)


@pytest.mark.parametrize("kind", ["meta", "undo", "message", "novelty"])
def test_the_newest_record_counts_whatever_it_is_and_wherever_it_lies(indexer: Indexer, home: Path, kind: str) -> None:
    late = {"type": kind, "id": new_id(5), "role": "user", "content": "", "created_at": "2026-09-22T00:00:00.000Z"}
    lay(home, late, *stores.turn(1))
    lay(home, *stores.turn(2), number=2)
    assert indexer.newest() == new_id(1)


def test_another_session_is_continued_only_where_the_one_that_cannot_be_read_was_used_before_it(
    indexer: Indexer, home: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = lay(home, *stores.turn(1)), lay(home, *stores.turn(2), number=2)
    os.utime(older, (1e9, 1e9))
    refuse(monkeypatch, older)
    assert indexer.newest() == new_id(2)
    assert any(new_id(1) in note for note in notes)
    monkeypatch.undo()
    refuse(monkeypatch, newer)
    with pytest.raises(StoreUnreadable, match=f"used last may be .*{new_id(2)}"):
        Indexer(indexer.layout, notes.append).newest()


def test_that_there_is_no_session_is_not_said_of_one_that_cannot_be_read(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, lay(home, *stores.turn(2)))
    with pytest.raises(StoreUnreadable):
        indexer.newest()


def test_there_is_no_session_and_none_is_made(indexer: Indexer, home: Path) -> None:
    with pytest.raises(SessionNotFound):
        indexer.newest()
    assert not home.exists()


# Forking


def fork_of(indexer: Indexer, home: Path, session_id: str, at: str | None = None) -> list[Json]:
    """The records of a new fork, which is whole and says where it comes from; the other files stay as they are."""
    before = {path: path.read_bytes() for path in stores.files(home)}
    fork = indexer.fork(session_id, at)
    (path,) = home.glob(f"sessions/*/{fork}.jsonl")
    assert {path: path.read_bytes() for path in stores.files(home)} == before | {path: path.read_bytes()}
    first, *rest, use = records(path)
    assert (first["type"], first["session_id"], first["forked_from"]) == ("session", fork, session_id)
    assert first["created_at"] == clock.time_of_id(fork)
    assert list(use) == ["type", "id", "created_at"]
    return [first, *rest]


def test_a_fork_keeps_every_record_as_it_is(indexer: Indexer, home: Path) -> None:
    novelty = {"type": "novelty", "id": new_id(50), "created_at": "2026-09-21T20:28:00.000Z", "sense": [1, {"x": None}]}
    odd = message(51, "user", "Größe 😀 \u2028", colour="red", typed="@./x", references=["@./x"], images="none")
    stored = [*stores.turn(1), novelty, meta(52, model="viewer"), odd, undo(53, new_id(2)), {"type": "note"}]
    path = lay(home, *stored)
    assert fork_of(indexer, home, path.stem)[1:] == stored


def test_a_fork_has_what_can_be_read(indexer: Indexer, home: Path, notes: list[str]) -> None:
    question, reply = stores.turn(1)
    path = lay(
        home, b"junk\n", question, b"\0" * 50, reply, question, b"\n", b'{"type":"message","id":"x"}\n', b'{"type'
    )
    assert fork_of(indexer, home, path.stem)[1:] == [question, reply]
    assert notes == ["damaged lines left out: 2; --check tells which"]


def test_a_fork_of_a_session_without_a_header_has_one(indexer: Indexer, home: Path) -> None:
    early, late = meta(1, model="viewer", title="Mine"), meta(9, model="thinker", system="Be brief.")
    stored = [early, *stores.turn(1), late]
    path = make(home, data=b"".join(map(line, stored)))
    assert fork_of(indexer, home, path.stem)[1:] == stored
    fork = indexer.fork(path.stem, new_id(3))
    settings = indexer.info(fork)[2].summary.settings
    assert settings == {"model": "viewer", "title": "Mine"}, "what came later is not from then"


def test_a_fork_of_a_merge_with_two_headers(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1), header(new_id(1), model="viewer"), *stores.turn(2))
    first, *rest = fork_of(indexer, home, path.stem)
    assert first["model"] == "smollm2"
    assert rest == [*stores.turn(1), *stores.turn(2)]


@pytest.mark.parametrize("session_id", ["6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_a_fork_of_an_imported_session_has_an_id_that_tells_its_month(
    indexer: Indexer, home: Path, session_id: str
) -> None:
    path = home / "sessions" / "2024-02" / f"{session_id}.jsonl"
    path.parent.mkdir(parents=True)
    first = header(session_id, created_at="2024-02-01T00:00:00.000Z", imported_from="llm")
    path.write_bytes(b"".join(map(line, [first, *stores.turn(1)])))
    copied = fork_of(indexer, home, session_id)[0]
    assert copied["imported_from"] == "llm"
    (made,) = home.glob(f"sessions/*/{copied['session_id']}.jsonl")
    assert made.parent.name == stores.month_of(copied["session_id"])


def test_a_fork_of_a_fork_names_the_one_it_was_made_of(indexer: Indexer, home: Path) -> None:
    first = indexer.fork(lay(home, *stores.turn(1)).stem, None)
    assert fork_of(indexer, home, first)[0]["forked_from"] == first


@pytest.mark.parametrize("number", range(8))
def test_a_fork_up_to_any_message_sends_what_was_sent_after_it(indexer: Indexer, home: Path, number: int) -> None:
    """The file as it was then stands beside it, in a store of its own."""
    turns = [record for turn in range(4) for record in turn_of(turn)]
    path = lay(home, *turns[:4], meta(70, system="Be brief."), *turns[4:], undo(71, *ids_of(turns[2:])))
    fork = indexer.fork(path.stem, turns[number]["id"])
    then = Indexer(Layout(str(home.parent / "then")), lambda _: None)
    end = next(at for at, record in enumerate(records(path)) if record.get("id") == turns[number]["id"])
    make(home.parent / "then", data=b"".join(path.read_bytes().splitlines(keepends=True)[: end + 1]))
    assert sent_next(indexer, fork) == sent_next(then, path.stem)
    counts = counts_of(then, path.stem)
    assert counts_of(indexer, fork) == counts
    assert counts[0] == number + 1


def turn_of(number: int) -> list[Json]:
    """A turn in which the window had begun to move."""
    question, reply = stores.turn(number)
    window = {"window": {"start": new_id(2), "limit": 8192, "left_out": 2}} if number > 1 else {}
    return [question, reply | window]


def test_a_fork_up_to_a_prompt_that_was_asked_again_has_it_once(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1), *stores.turn(2))
    take(indexer, Scripted("whole"), None, "--retry", path.stem)
    again = next(record for record in records(path)[4:] if record.get("role") == "user")
    fork = indexer.fork(path.stem, again["id"])
    assert sent_next(indexer, fork) == [("user", "Question 1"), ("assistant", "Answer 1")]
    assert counts_of(indexer, fork)[0] == 3
    model = Scripted("whole")
    take(indexer, model, None, "--retry", fork)
    assert [text for _, text in model.sent] == ["Question 1", "Answer 1", "Question 2"]


def test_an_undo_behind_a_message_is_not_from_then(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1), *stores.turn(2)[:1])
    for _ in range(2):
        indexer.undo(path.stem, 0)
    fork = indexer.fork(path.stem, new_id(4))
    assert counts_of(indexer, fork)[0] == 3


@pytest.mark.parametrize("at", ["nothing", new_id(53), new_id(52), new_id(1)])
def test_a_fork_at_what_is_no_message_of_the_session_makes_nothing(indexer: Indexer, home: Path, at: str) -> None:
    path = lay(home, *stores.turn(1), meta(52, model="viewer"), undo(53, new_id(3)))
    before = path.read_bytes()
    with pytest.raises(UsageError):
        indexer.fork(path.stem, at)
    assert stores.files(home) == [path]
    assert path.read_bytes() == before
    assert not list(home.glob("locks/*"))


def test_a_fork_of_a_newer_format_makes_nothing(indexer: Indexer, home: Path) -> None:
    path = make(home, data=line(header(new_id(1), version=2)) + b"".join(map(line, stores.turn(1))))
    with pytest.raises(StoreUnreadable) as raised:
        indexer.fork(path.stem, None)
    assert "upgrade" in str(raised.value.hint)
    assert stores.files(home) == [path]


@pytest.mark.parametrize("depth", [240, 300, 1000])
def test_a_record_that_is_nested_too_deep_to_be_written_is_left_out(indexer: Indexer, home: Path, depth: int) -> None:
    deep = f'{{"type":"novelty","id":"{new_id(60)}","x":{"[" * depth}{"]" * depth}}}\n'.encode()
    path = lay(home, *stores.turn(1), deep, *stores.turn(2))
    fork = fork_of(indexer, home, path.stem)
    assert [record for record in fork[1:] if record["type"] == "message"] == [*stores.turn(1), *stores.turn(2)]


@pytest.mark.parametrize("act", [lambda indexer, id_: indexer.fork(id_, None), Indexer.info])
def test_a_session_that_is_deleted_meanwhile_is_not_found(
    indexer: Indexer, home: Path, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    path = lay(home, *stores.turn(1))
    real = session_file.load

    def load(*args: str) -> Any:
        path.unlink()
        return real(*args)

    monkeypatch.setattr(session_file, "load", load)
    with pytest.raises(SessionNotFound):
        act(indexer, path.stem)
    assert stores.files(home) == []


# Undoing


def test_an_undo_takes_back_all_answers_to_a_prompt(indexer: Indexer, home: Path) -> None:
    again = message(9, "assistant", "Another answer", prompt_tokens=9, tokens=9)
    tool = message(8, "tool", "42")
    path = lay(home, *stores.turn(1), *stores.turn(2), tool, again)
    assert indexer.undo(path.stem, 0) == ids_of([*stores.turn(2), tool, again])
    assert counts_of(indexer, path.stem) == (2, 34)


@pytest.mark.parametrize("reason", ["interrupted", "error"])
def test_an_undo_of_an_answer_that_broke_off(indexer: Indexer, home: Path, reason: str) -> None:
    broken = [message(8, "user", "Go on"), message(9, "assistant", "So f", done_reason=reason)]
    path = lay(home, *stores.turn(1), *broken)
    assert sent_next(indexer, path.stem)[-1] == ("assistant", "So f")
    assert indexer.undo(path.stem, 0) == ids_of(broken)
    assert sent_next(indexer, path.stem)[-1] == ("assistant", "Answer 1")


def test_undoing_walks_back_over_prompts_without_an_answer(indexer: Indexer, home: Path) -> None:
    one, two = message(8, "user", "Hello?"), message(9, "user", "Hello?")
    path = lay(home, *stores.turn(1), one, two)
    taken = [indexer.undo(path.stem, 0) for _ in range(3)]
    assert taken == [[two["id"]], [one["id"]], ids_of(stores.turn(1))]
    with pytest.raises(NothingToUndo):
        indexer.undo(path.stem, 0)
    assert counts_of(indexer, path.stem) == (0, 0)


def test_an_undo_in_front_of_what_it_takes_back_is_seen(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1), undo(60, *ids_of(stores.turn(2))), *stores.turn(2))
    assert indexer.undo(path.stem, 0) == ids_of(stores.turn(1))


def test_settings_that_changed_in_a_turn_stay_when_it_is_undone(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1))
    take(indexer, Scripted("whole"), "Hi", "--session-id", path.stem, "--system", "Be brief.")
    indexer.undo(path.stem, 0)
    assert sent_next(indexer, path.stem)[0] == ("system", "Be brief.")


def test_an_answer_whose_prompt_is_lost_can_be_undone(indexer: Indexer, home: Path) -> None:
    path = lay(home, b"junk\n", stores.turn(1)[1])
    with pytest.raises(NothingToUndo):
        take(indexer, Scripted("whole"), None, "--retry", path.stem)
    assert indexer.undo(path.stem, 0) == [new_id(3)]
    assert counts_of(indexer, path.stem) == (0, 0)


def without_id(record: Json) -> Json:
    return {key: value for key, value in record.items() if key != "id"}


@pytest.mark.parametrize("nameless", [[0], [1], [0, 1]])
def test_what_no_undo_can_name_is_not_taken_for_taken_back(indexer: Indexer, home: Path, nameless: list[int]) -> None:
    turn = [without_id(record) if at in nameless else record for at, record in enumerate(stores.turn(2))]
    path = lay(home, *stores.turn(1), *turn)
    if nameless == [0]:
        assert indexer.undo(path.stem, 0) == [new_id(5)]
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(NothingToUndo) as raised:
            indexer.undo(path.stem, 0)
    assert "by hand" in str(raised.value.hint)
    assert path.read_bytes() == before


def test_a_prompt_without_an_id_is_asked_again(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1), without_id(stores.turn(2)[0]), stores.turn(2)[1])
    model = Scripted("whole")
    take(indexer, model, None, "--retry", path.stem)
    assert [text for _, text in model.sent] == ["Question 1", "Answer 1", "Question 2"]
    assert [text for _, text in sent_next(indexer, path.stem)] == ["Question 1", "Answer 1", "Question 2", "Yes."]


# Asking again


def test_what_is_left_out_is_counted_without_the_turn_that_is_asked_again(indexer: Indexer, home: Path) -> None:
    tools = [message(90, "tool", "42"), message(91, "assistant", "It is 42.")]
    path = lay(home, *(record for number in range(9) for record in stores.turn(number)), *tools)
    model = Scripted("whole")
    turn = take(indexer, model, None, "--retry", path.stem, "--max-context-tokens", "60")
    assert model.sent[-1] == ("user", "Question 8")
    assert turn["window"]["messages_left_out"] == 16 - (len(model.sent) - 1) > 0


def test_a_retry_that_is_torn_anywhere_costs_neither_prompt_nor_context(indexer: Indexer, home: Path) -> None:
    """As by a crash in the middle of the write."""
    path = lay(home, *stores.turn(1), *stores.turn(2))
    before = path.read_bytes()
    with indexer.open(path.stem, 0) as held:
        last = held.replace_last_turn()
        held.begin(records_.message("user", last["content"]), {})
    after = path.read_bytes()
    old = [("user", "Question 2"), ("assistant", "Answer 2")]
    for end in range(len(before), len(after) + 1):
        path.write_bytes(after[:end])
        with indexer.open(path.stem, 0) as held:
            assert held.last_turn()[0]["content"] == "Question 2", after[len(before) : end]
        assert sent_next(indexer, path.stem)[2:] == (old if end < len(after) else [])


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_refused_retry_that_cannot_be_cut_back_keeps_the_prompt(indexer: Indexer, home: Path, when: str) -> None:
    path = lay(home, *stores.turn(1), *stores.turn(2))
    foreign = line({"type": "novelty", "id": new_id(900)})
    with indexer.open(path.stem, 0) as held:
        last = held.replace_last_turn()
        if when == "before":
            add(path, foreign)
        held.begin(records_.message("user", last["content"]), {})
        if when == "behind":
            add(path, foreign)
        held.take_back()
    assert foreign in path.read_bytes()
    with indexer.open(path.stem, 0) as held:
        assert held.last_turn()[0]["content"] == "Question 2"
    assert counts_of(indexer, path.stem)[0] == {"before": 4, "behind": 3}[when]


def test_a_refused_retry_of_a_file_that_was_replaced_leaves_that(indexer: Indexer, home: Path) -> None:
    path = lay(home, *stores.turn(1))
    data = path.read_bytes() + b"".join(map(line, stores.turn(2)))
    with indexer.open(path.stem, 0) as held:
        last = held.replace_last_turn()
        held.begin(records_.message("user", last["content"]), {})
        replace(path, data)
        held.take_back()
    assert path.read_bytes() == data


@pytest.mark.parametrize("kept", ["nothing", "the old turn", "a part"])
def test_a_retry_on_a_file_that_is_replaced_is_stored_again(indexer: Indexer, home: Path, kept: str) -> None:
    path = lay(home, *stores.turn(1), *stores.turn(2))
    old = path.read_bytes()
    with indexer.open(path.stem, 0) as held:
        last = held.replace_last_turn()
        held.begin(records_.message("user", last["content"]), {})
        now = path.read_bytes()
        replace(path, {"nothing": b"", "the old turn": old, "a part": now[: len(old) + 250]}[kept])
        held.add([records_.message("assistant", "Again")])
    context = [text for _, text in sent_next(indexer, path.stem)]
    assert context == [*([] if kept == "nothing" else ["Question 1", "Answer 1"]), "Question 2", "Again"]
