"""What a store has acknowledged and what it may have lost, as whoever ran the commands knows; compared with the files.

An item is something that a session said and that must stay in its file: a message (its role and its content), or an id
that an undo has taken back. Prompts are unlike each other, and so are answers that are whole: an item tells its turn.

- What a process printed is acknowledged. What it did not print, because it was killed, may be there or not.
- Once a round is over and nothing runs, all that is in the files stays there from then on.
- A session may be gone if a process was told to remove it: surely, if that said so; perhaps, if it was killed.
- An item may be missing if a hand edit took it: `Permitted`, which stores that merge with each other share.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from torturing.reader import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torturing.reader import Session

Json = dict[str, Any]
Item = tuple[str, str]
Store = dict[str, "Session"]

EVERY = "every session"
BY_HAND = b"by hand: "
"""What a damaged line that was written on purpose has in it."""
TORN = b'{"type":'
"""How a line begins that a killed process left unfinished."""


class Permitted:
    """What was taken away on purpose: items by an editor, sessions by a removal; and damage that has a reason.

    `unanswered` are prompts that an editor took while their turns went on: an answer brings its prompt back.
    `torn` are sessions to which a process wrote that was killed in this round, `lines` are damaged for longer.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.items: set[Item] = set()
        self.unanswered: set[Item] = set()
        self.sessions: set[str] = set()
        self.torn: set[str] = set()
        self.lines: set[bytes] = set()

    def has(self, item: Item) -> bool:
        """Whether this item may be missing."""
        return item in self.items or item in self.unanswered


class Ledger:
    """The acknowledgements of one store. `merges`: git may bring back what was removed here."""

    def __init__(self, permitted: Permitted, merges: bool = False) -> None:
        self.permitted = permitted
        self.merges = merges
        self._kept: dict[str, Counter[Item]] = {}
        self._doubted: Counter[str] = Counter()
        self._lock = permitted.lock

    def sessions(self) -> list[str]:
        """The sessions that are known, oldest first."""
        with self._lock:
            return sorted(self._kept)

    def items(self, session_id: str) -> list[Item]:
        """What a session must have."""
        with self._lock:
            return list(self._kept.get(session_id, Counter()).elements())

    def acknowledge(self, session_id: str, items: Iterable[Item]) -> None:
        """These were printed."""
        with self._lock:
            if session_id not in self.permitted.sessions or self.merges:
                self._kept.setdefault(session_id, Counter()).update(items)

    def answered(self, prompt: str) -> None:
        """The answer to this prompt is stored, and so the prompt is there again if an editor had taken it."""
        with self._lock:
            self.permitted.unanswered.discard(("user", prompt))

    def edited(self, items: Iterable[Item], unanswered: Iterable[Item] = ()) -> None:
        """These were taken out of a file, and these prompts before their answers came."""
        with self._lock:
            self.permitted.items.update(items)
            self.permitted.unanswered.update(unanswered)

    def doubt(self, session_ids: Iterable[str]) -> None:
        """A process is being told to remove these, or `EVERY` one."""
        with self._lock:
            self._doubted.update(session_ids)

    def stands(self, session_ids: Iterable[str]) -> None:
        """It said that it has not, or has, and which: `removed`."""
        with self._lock:
            self._doubted.subtract(session_ids)

    def removed(self, session_ids: Iterable[str]) -> None:
        """These were removed."""
        with self._lock:
            for session_id in session_ids:
                self.permitted.sessions.add(session_id)
                self._kept.pop(session_id, None)

    def may_be_gone(self, session_id: str) -> bool:
        """Whether it was removed, or perhaps was."""
        with self._lock:
            doubts = self._doubted[session_id] + self._doubted[EVERY]
            return doubts > 0 or session_id in self.permitted.sessions

    def lost(self, store: Store) -> Iterator[str]:
        """What is missing without permission, and sessions that came back."""
        with self._lock:
            for session_id, items in self._kept.items():
                if session_id in store:
                    missing = items - items_of(store[session_id])
                    is_open = self.merges and self.may_be_gone(session_id)
                    yield from (
                        f"{session_id}: lost {shown(item)}"
                        for item in missing
                        if not self.permitted.has(item) and not is_open
                    )
                elif not self.may_be_gone(session_id):
                    yield f"{session_id}: the file is gone, with {items.total() if items else 0} items"
            if not self.merges:
                yield from (f"{id_}: removed, and there again" for id_ in self.permitted.sessions & store.keys())

    def damaged(self, store: Store) -> set[bytes]:
        """The damaged lines that are new."""
        return {line for session in store.values() for line in broken_lines(session)} - self.permitted.lines

    def unexplained(self, store: Store) -> Iterator[str]:
        """Those that nobody wrote by hand, and that no killed process left. What is not known yet may be torn, too."""
        new = self.damaged(store)
        for session_id, session in store.items():
            may_be_torn = session_id not in self._kept or not self.permitted.torn.isdisjoint({session_id, EVERY})
            for line in new.intersection(broken_lines(session)):
                if not is_by_hand(line) and not (may_be_torn and line.startswith(TORN)):
                    yield f"{session.path}: a damaged line: {line[:100]!r}"

    def settle(self, store: Store) -> None:
        """Nothing runs: what is there must stay."""
        with self._lock:
            if not self.merges:
                self.permitted.sessions |= self._kept.keys() - store.keys()
            self._kept = {session_id: items_of(session) for session_id, session in store.items()}
            self._doubted.clear()
            self.permitted.lines |= self.damaged(store)


def unanswered_in(session: Session) -> set[Item]:
    """The prompts behind the last answer: those whose turns may go on."""
    said = [(message["role"], message["content"]) for message in session.of_type("message")]
    behind = itertools.takewhile(lambda item: item[0] == "user", reversed(said))
    return set(behind)


def items_of(session: Session) -> Counter[Item]:
    """All that a file says, taken back or not."""
    said = [(message["role"], message["content"]) for message in session.of_type("message")]
    return Counter(said) + Counter(("undo", id_) for id_ in session.undone)


def is_by_hand(line: bytes) -> bool:
    """Whether a damaged line was written by hand; where the disk is full, some of it."""
    return BY_HAND in line or BY_HAND.startswith(line)


def broken_lines(session: Session) -> list[bytes]:
    """The damaged lines, and a last one that is torn: if another follows, it is damaged."""
    is_torn = session.torn and parse(session.torn) is None
    return [*session.damage.values(), *([session.torn] if is_torn else [])]


def shown(item: Item) -> str:
    """An item in a report."""
    return f"{item[0]}: {item[1][:60]}"


def compare_listing(store: Store, listing: Json) -> Iterator[str]:
    """Where a listing and the files differ."""
    listed = {entry["session_id"]: entry for entry in listing["sessions"]}
    yield from (f"{id_}: not in the listing" for id_ in store.keys() - listed.keys())
    yield from (f"{id_}: listed, and not there" for id_ in listed.keys() - store.keys())
    for session_id in store.keys() & listed.keys():
        for key, value in store[session_id].listed().items():
            if listed[session_id][key] != value:
                yield f"{session_id}: {key} is {value!r} in the file, and listed as {listed[session_id][key]!r}"
    times = [entry["last_used"] or "" for entry in listing["sessions"]]
    if times != sorted(times, reverse=True) or listing["total"] != len(times):
        yield "the listing is not in order, or counts wrongly"


def compare_check(store: Store, checked: Json) -> Iterator[str]:
    """Where --check and the files differ."""
    there = {(str(session.path), line) for session in store.values() for line in session.reported}
    told = {(item["path"], item["line"]) for item in checked["damage"]}
    yield from (f"{path}: line {line} is damaged, and --check does not say so" for path, line in there - told)
    yield from (f"{path}: line {line} is sound, and --check calls it damaged" for path, line in told - there)
    if checked["index"] != "ok" or checked["sessions"] != len(store) or checked["ok"] != (not told):
        yield f"--check says {checked['index']}, {checked['sessions']} sessions, ok: {checked['ok']}"


def compare_search(store: Store, word: str, found: Json) -> Iterator[str]:
    """Where a search for a word and the files differ."""
    there = {id_ for id_, session in store.items() if any(word in item["content"] for item in session.messages)}
    told = {match["session_id"] for match in found["matches"]}
    yield from (f"{id_}: has {word}, which is not found" for id_ in there - told)
    yield from (f"{id_}: does not have {word}, which is found" for id_ in told - there)
