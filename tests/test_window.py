"""Which messages go to the model: single rules, and conversations of hundreds of turns with a model of arithmetic.

The model here counts `weight` times what `window` estimates, for each message by itself. So a test knows what
every request really takes, can compare each choice with a plain reading of the rules, and sees how much of a
request the server's prefix cache could not give.
"""

from __future__ import annotations

import random
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import message

from ollama_prompt import window
from ollama_prompt.window import FULL, LADDER, MARK, MESSAGE_OVERHEAD, Turn, choose, estimate_messages, turns_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ollama_prompt.window import Window

Json = dict[str, Any]

LIMIT = 4000
ROOM = 400  # a tenth: as much as is kept free anyway
FULL_AT = FULL * LIMIT
MARK_AT = MARK * LIMIT


def text(tokens: int, sign: str = "x") -> str:
    """A text that is estimated as so many tokens, with what a message takes."""
    return sign * (4 * (tokens - MESSAGE_OVERHEAD))


def estimated(content: str) -> float:
    return window.estimate(content) + MESSAGE_OVERHEAD if content else 0.0


class Conversation:
    """Asks as `plan` does, and answers as a server that counts with its own tokenizer."""

    def __init__(
        self, weight: Callable[[str], float] = lambda _: 1.0, limit: int = LIMIT, room: int = ROOM, system: str = ""
    ) -> None:
        self.weight = weight
        self.limit = limit
        self.room = room
        self.system = system
        self.records: list[Json] = []
        self.requests: list[list[str]] = []
        self._numbers = count()

    def size(self, *contents: str) -> float:
        """What the server counts for these."""
        return sum(self.weight(content) * estimated(content) for content in contents)

    def add(self, role: str, content: str, **more: Any) -> Json:
        """Store a message."""
        self.records.append(message(next(self._numbers), role, content, **more))
        return self.records[-1]

    def window(self, prompt: str) -> Window:
        """What would be sent now."""
        turns = turns_back(reversed(self.records))
        return choose(turns, estimated(self.system), estimated(prompt), self.limit, self.room)

    def ask(self, prompt: str, answer: str, **more: Any) -> Window:
        """Take a turn."""
        chosen = self.window(prompt)
        self.requests.append([self.system, *contents(chosen), prompt])
        asked = self.add("user", prompt)
        counts = {"prompt_tokens": round(self.sent), "tokens": round(self.size(answer))}
        kept = {"start": chosen.start or asked["id"], "limit": self.limit}
        self.add("assistant", answer, **counts | ({} if chosen.start is None else {"window": kept}) | more)
        return chosen

    def ask_often(self, turns: int, prompt: int = 20, answer: int = 80) -> None:
        """Turns of this size."""
        for _ in range(turns):
            self.ask(text(prompt), text(answer))

    @property
    def sent(self) -> float:
        """What the last request really took."""
        return self.size(*self.requests[-1])


def contents(chosen: Window) -> list[str]:
    return [sent["content"] for sent in chosen.messages]


def ids(chosen: Window) -> list[str]:
    return [sent["id"] for sent in chosen.messages]


def talk(*sizes: tuple[int, int]) -> list[Json]:
    """Records of turns with prompts and answers of these sizes, never counted."""
    numbers = count()
    return [
        message(next(numbers), role, text(size))
        for turn in sizes
        for role, size in zip(("user", "assistant"), turn, strict=True)
    ]


def chosen_of(records: list[Json], prompt: float = 100, system: float = 0, limit: int = LIMIT, room: int = 0) -> Window:
    return choose(turns_back(reversed(records)), system, prompt, limit, room)


def turns_of(*records: Json) -> list[list[str]]:
    """The contents of the turns, oldest first."""
    found = [[said["content"] for said in turn.messages] for turn in turns_back(reversed(records))]
    return found[::-1]


# --- Turns -----------------------------------------------------------------------------------------


def test_turns_come_newest_first_and_whole() -> None:
    records = [
        message(n, role, f"{n}") for n, role in enumerate(["user", "assistant", "assistant", "user", "assistant"])
    ]
    assert [[m["content"] for m in turn.messages] for turn in turns_back(reversed(records))] == [
        ["3", "4"],
        ["0", "1", "2"],
    ]


def test_a_prompt_without_an_answer_is_not_sent_again() -> None:
    roles = ["user", "user", "assistant", "user", "assistant", "user"]
    assert turns_of(*(message(n, role, f"{n}") for n, role in enumerate(roles))) == [["1", "2"], ["3", "4"]]


def test_what_was_taken_back_is_not_sent_again() -> None:
    records = talk((10, 10), (11, 11), (12, 12))
    undo = {"type": "undo", "id": "u", "ids": [record["id"] for record in records[2:4]]}
    assert turns_of(*records[:4], undo, *records[4:]) == [[text(10)] * 2, [text(12)] * 2]


def test_an_answer_without_its_prompt_is_sent_by_itself() -> None:
    answers = [message(0, "assistant", "damage took the question"), *talk((10, 10))[1:]]
    assert turns_of(*answers) == [["damage took the question", text(10)]]


def test_settings_and_unknown_roles_are_no_part_of_a_turn() -> None:
    first, last = talk((10, 10))
    others = [message(8, "tool", "42"), {"type": "meta", "id": "m", "model": "b"}, {"type": "sticker", "role": "user"}]
    assert turns_of(others[0], first, *others, last, *others) == [[text(10)] * 2]


def test_a_turn_begins_with_the_id_of_its_first_record() -> None:
    asked, answered = talk((10, 10))
    assert Turn(asked, [answered]).first_id == asked["id"]
    assert Turn(None, [answered]).first_id == answered["id"]


# --- Estimates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "tokens"),
    [("", 0), ("word" * 10, 10), ("日本語" * 10, 30), ("é" * 10, 6.25), ("if a:" + "\n" + " " * 90 + "b", 1.75)],
)
def test_a_text_is_estimated_by_its_characters(content: str, tokens: float) -> None:
    assert window.estimate(content) == pytest.approx(tokens)


def test_every_message_takes_what_the_template_puts_around_it() -> None:
    assert estimate_messages([message(0, "user", ""), message(1, "user", "abcd")]) == 2 * MESSAGE_OVERHEAD + 1


# --- The reply's room ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "max_tokens", "room"),
    [
        (64000, None, window.REPLY_ROOM),
        (64000, 500, 500),
        (64000, 20000, 20000),
        (64000, 10**9, 32000),
        (64000, -1, window.REPLY_ROOM),
        (64000, -2, window.REPLY_ROOM),
        (64000, 0, window.REPLY_ROOM),
        (64000, "500", window.REPLY_ROOM),
        (800, None, 100),
        (800, -1, 100),
    ],
)
def test_the_reply_gets_what_max_tokens_says_but_never_all(limit: int, max_tokens: object, room: int) -> None:
    assert window.reply_room(limit, max_tokens) == room


# --- What fits -------------------------------------------------------------------------------------


def test_a_new_conversation_sends_the_prompt_only() -> None:
    chosen = chosen_of([], prompt=100, system=50)
    assert (chosen.messages, chosen.start, chosen.tokens) == ([], None, 150)


def test_all_of_it_is_sent_oldest_first_as_long_as_it_fits() -> None:
    records = talk(*[(100, 200)] * 5)
    chosen = chosen_of(records)
    assert ids(chosen) == [record["id"] for record in records]
    assert (chosen.start, chosen.tokens) == (None, 1600)


@pytest.mark.parametrize("room", [0, ROOM, 1000, LIMIT // 2])
def test_the_window_moves_only_when_more_than_its_fill_would_be_sent(room: int) -> None:
    most = round(min(FULL_AT, LIMIT - room))
    records = talk((700, 700))
    assert chosen_of(records, prompt=most - 1400, room=room).start is None
    moved = chosen_of(records, prompt=most - 1399, room=room)
    assert (moved.messages, moved.start) == ([], "")


def test_it_moves_down_to_the_mark_in_one_step() -> None:
    records = talk(*[(50, 50)] * 40)
    chosen = chosen_of(records, prompt=100)
    assert MARK_AT - 100 < chosen.tokens <= MARK_AT
    assert ids(chosen) == [record["id"] for record in records[-len(chosen.messages) :]]
    assert chosen.start == chosen.messages[0]["id"]
    assert chosen.messages[0]["role"] == "user"


def test_the_system_prompt_and_the_new_prompt_take_their_part_of_the_mark() -> None:
    chosen = chosen_of(talk(*[(50, 50)] * 40), prompt=500, system=700)
    assert MARK_AT - 100 < chosen.tokens <= MARK_AT
    assert len(chosen.turns) == (MARK_AT - 1200) // 100


@pytest.mark.parametrize("room", [1000, 1500, LIMIT // 2])
def test_a_large_room_for_the_reply_makes_the_steps_no_smaller(room: int) -> None:
    chosen = chosen_of(talk(*[(10, 10)] * 400), prompt=20, room=room)
    assert chosen.tokens <= (LIMIT - room) * MARK / FULL
    assert chosen.tokens > (LIMIT - room) * MARK / FULL - 20


def test_a_turn_that_does_not_fit_ends_the_window_whatever_would_fit_behind_it() -> None:
    records = talk((20, 20), (20, 3900), (20, 20), (20, 20))
    assert ids(chosen_of(records)) == [record["id"] for record in records[4:]]


def test_the_newest_turn_is_sent_if_it_fits_at_all() -> None:
    records = talk((1000, 1000), (1000, 2000))
    chosen = chosen_of(records, prompt=500)
    assert ids(chosen) == [record["id"] for record in records[2:]]
    assert chosen.tokens == 3500 <= FULL_AT


def test_a_newest_turn_that_does_not_fit_is_left_out_whole() -> None:
    chosen = chosen_of(talk((20, 20), (2000, 2000)), prompt=100)
    assert (chosen.messages, chosen.start, chosen.tokens) == ([], "", 100)


def test_a_prompt_alone_above_the_limit_is_said_to_be_that() -> None:
    assert chosen_of([], prompt=LIMIT + 1).tokens == LIMIT + 1
    assert chosen_of(talk((20, 20)), prompt=LIMIT + 1).tokens == LIMIT + 1


def test_before_a_first_prompt_nothing_is_left_out_however_long_it_is() -> None:
    assert [chosen_of([], prompt=prompt).start for prompt in (LIMIT - 1, LIMIT, LIMIT + 1)] == [None] * 3


def test_little_more_is_read_than_the_window_needs() -> None:
    taken: list[Turn] = []

    def endless() -> Iterator[Turn]:
        asked, answered = talk((50, 50))
        while True:
            taken.append(Turn(asked, [answered]))
            yield taken[-1]

    choose(endless(), 0, 100, LIMIT, 0)
    assert len(taken) <= window.LOOK * FULL_AT / 100 + 2


def test_a_window_that_began_somewhere_is_read_to_there() -> None:
    conversation = Conversation()
    conversation.ask_often(200)
    taken: list[Turn] = []
    turns = turns_back(reversed(conversation.records))
    chosen = choose((taken.append(turn) or turn for turn in turns), 0, 26, LIMIT, ROOM)  # type: ignore[func-returns-value]
    assert len(taken) == len(chosen.turns) + 1


# --- The same cut next time ------------------------------------------------------------------------


@pytest.fixture
def moved() -> Conversation:
    """A conversation whose window moved a turn ago."""
    conversation = Conversation()
    while conversation.window(text(20)).start is None:
        conversation.ask_often(1)
    conversation.ask_often(2)
    assert len(conversation.requests[-1]) < len(conversation.records)
    return conversation


def start_of_last(conversation: Conversation) -> str:
    start: str = conversation.records[-1]["window"]["start"]
    return start


def test_the_window_starts_where_it_started_before(moved: Conversation) -> None:
    start = start_of_last(moved)
    chosen = moved.ask(text(20), text(80))
    assert chosen.start == start == chosen.messages[0]["id"]
    assert moved.requests[-1][: len(moved.requests[-2])] == moved.requests[-2]


@pytest.mark.parametrize("limit", [LIMIT - 500, LIMIT + 500, 4 * LIMIT])
def test_a_changed_limit_chooses_anew(moved: Conversation, limit: int) -> None:
    moved.limit = limit
    anew = moved.window(text(20))
    for record in moved.records:
        record.pop("window", None)
    fresh = moved.window(text(20))
    assert len(anew.messages) == len(fresh.messages)
    assert anew.start == fresh.start


def test_a_higher_limit_shows_the_model_again_what_was_left_out(moved: Conversation) -> None:
    moved.limit = 4 * LIMIT
    assert len(moved.window(text(20)).messages) == len(moved.records)


def test_an_answer_that_broke_off_does_not_move_the_window(moved: Conversation) -> None:
    start = start_of_last(moved)
    moved.add("user", text(20))
    moved.add("assistant", text(20), done_reason="interrupted")
    assert moved.window(text(20)).start == start


def test_a_prompt_without_an_answer_does_not_move_the_window(moved: Conversation) -> None:
    start = start_of_last(moved)
    moved.add("user", text(3000))
    assert moved.window(text(20)).start == start


def test_a_window_that_held_the_prompt_alone_starts_there_next_time() -> None:
    conversation = Conversation(weight=lambda content: 0.2 if content.startswith("y") else 1.0)
    conversation.ask_often(5)
    lonely = text(3590, "y")  # estimated to fill the window, and counted as a fifth
    assert conversation.ask(lonely, text(20)).start == ""
    chosen = conversation.window(text(20))
    assert contents(chosen) == [lonely, text(20)]


def test_taking_back_the_last_turn_keeps_the_window_of_the_one_before(moved: Conversation) -> None:
    start = start_of_last(moved)
    moved.ask_often(1)
    moved.records.append({"type": "undo", "id": "u", "ids": [record["id"] for record in moved.records[-2:]]})
    chosen = moved.window(text(20))
    assert chosen.start == start
    assert ids(chosen)[-1] == moved.records[-4]["id"]


def test_a_window_whose_first_message_is_gone_is_chosen_anew(moved: Conversation) -> None:
    start = start_of_last(moved)
    moved.records = [record for record in moved.records if record["id"] != start]
    chosen = moved.window(text(20))
    assert chosen.start not in {None, start}
    assert chosen.tokens <= FULL_AT


@pytest.mark.parametrize("kept", ["x", 3, {}, {"start": 5, "limit": LIMIT}, {"start": "?"}, {"limit": LIMIT}])
def test_a_window_written_by_hand_is_no_trouble(moved: Conversation, kept: object) -> None:
    for record in moved.records:
        if "window" in record:
            record["window"] = kept
    assert moved.window(text(20)).tokens <= FULL_AT


# --- Real counts -----------------------------------------------------------------------------------


def heavy(sign: str, weight: float) -> Callable[[str], float]:
    """A tokenizer that takes so much more for texts of this sign."""
    return lambda content: weight if content.startswith(sign) else 1.0


@pytest.mark.parametrize("weight", [0.25, 0.5, 2.0, 4.0])
def test_counts_come_before_estimates(weight: float) -> None:
    conversation = Conversation(heavy("y", weight))
    for _ in range(4):
        conversation.ask(text(20), text(50, "y"))
    assert conversation.window(text(20)).tokens == pytest.approx(
        conversation.sent + 20 + weight * 50, abs=20 * max(weight, 1)
    )


@pytest.mark.parametrize("weight", [0.5, 1.5, 3.0])
def test_what_was_never_counted_is_estimated_as_the_counted_text_was(weight: float) -> None:
    conversation = Conversation(lambda _: weight)
    conversation.ask_often(3)
    assert conversation.window(text(200)).tokens == pytest.approx(weight * 500, abs=2)
    conversation.add("user", text(20))
    conversation.add("assistant", text(80), done_reason="interrupted")
    assert conversation.window(text(200)).tokens == pytest.approx(weight * 600, abs=2)


def test_a_large_answer_that_was_never_counted_is_measured_by_the_others() -> None:
    conversation = Conversation(lambda _: 0.5)
    conversation.ask_often(10)
    conversation.add("user", text(20))
    conversation.add("assistant", text(4000), done_reason="interrupted")
    assert conversation.window(text(20)).start is None


def test_a_calibrated_estimate_decides_whether_the_window_moves() -> None:
    records = Conversation(lambda _: 3.0)
    records.ask_often(10)
    assert records.window(text(150)).start is None
    assert records.window(text(250)).start is not None


def test_what_the_template_takes_once_is_not_taken_for_what_text_takes() -> None:
    # A short first turn, and a template that puts 70 tokens in front of every conversation.
    records = [message(0, "user", "Hi"), message(1, "assistant", "Hello.", prompt_tokens=78, tokens=10)]
    assert chosen_of(records, prompt=1000).tokens == 1088


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_the_system_prompt_is_counted_too(weight: float) -> None:
    conversation = Conversation(lambda _: weight, system=text(600))
    conversation.ask_often(4)
    assert conversation.window(text(20)).tokens == pytest.approx(conversation.sent + weight * 100, abs=2)


def test_a_system_prompt_that_takes_more_than_estimated_is_known_from_the_counts() -> None:
    conversation = Conversation(heavy("y", 3.0), system=text(500, "y"))
    conversation.ask_often(4)
    assert conversation.window(text(20)).tokens == pytest.approx(conversation.sent + 100, abs=20)


def test_the_turn_that_moved_the_window_is_counted() -> None:
    conversation = Conversation(heavy("y", 3.0))
    while conversation.window(text(20)).start is None:
        conversation.ask_often(1)
    conversation.ask(text(20), text(120, "y"))
    for _ in range(3):
        assert conversation.window(text(20)).tokens == pytest.approx(
            conversation.sent + conversation.size(conversation.records[-1]["content"]) + 20, abs=20
        )
        conversation.ask_often(1)


def test_thinking_is_not_sent_again_and_does_not_count() -> None:
    conversation = Conversation()
    for _ in range(3):
        conversation.ask(text(20), text(80))
        conversation.records[-1] |= {"thinking": "t" * 4 * 9 * 74, "tokens": 80 * 10}
    assert conversation.window(text(20)).tokens == pytest.approx(320, abs=10)


def test_an_answer_that_is_thinking_only_takes_no_tokens() -> None:
    records = [message(0, "user", text(50)), message(1, "assistant", "", prompt_tokens=50, tokens=900, thinking="Hm.")]
    assert chosen_of(records, prompt=50).tokens == pytest.approx(100, abs=10)


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"prompt_tokens": None, "tokens": None},
        {"prompt_tokens": "100", "tokens": 5},
        {"prompt_tokens": 100},
        {"tokens": 100},
        {"prompt_tokens": 5, "tokens": 1},
        {"prompt_tokens": 10**7, "tokens": 10**7},
        {"prompt_tokens": -500, "tokens": 3},
        {"prompt_tokens": 1e9, "tokens": 1e9},
    ],
)
def test_counts_that_are_missing_or_cannot_be_true_are_estimated(counts: Json) -> None:
    records = talk(*[(50, 150)] * 5)
    for answer in records[1::2]:
        answer |= counts  # noqa: PLW2901
    assert chosen_of(records, prompt=100).tokens == 1100


def test_one_count_that_cannot_be_true_spoils_no_other() -> None:
    conversation = Conversation()
    conversation.ask_often(12)
    for at in (3, 11):
        conversation.records[at] |= {"prompt_tokens": 9, "tokens": 10**6}
        assert conversation.window(text(20)).tokens == pytest.approx(1220, abs=5)


def test_what_a_merge_brings_together_is_counted_once_each() -> None:
    ours, theirs = Conversation(), Conversation()
    for each in (ours, theirs):
        each.ask_often(3)
    ours.ask_often(12)
    theirs.ask_often(2)
    merged = [*ours.records, *(record | {"id": f"theirs {record['id']}"} for record in theirs.records[6:])]
    ours.records = merged
    assert ours.window(text(20)).tokens == pytest.approx(17 * 100 + 20, abs=5)


def test_a_line_that_damage_took_leaves_the_rest_counted() -> None:
    conversation = Conversation(lambda _: 2.0)
    conversation.ask_often(10)
    del conversation.records[8:10]
    assert conversation.window(text(20)).tokens == pytest.approx(9 * 200 + 40, abs=210)


@pytest.mark.parametrize("weight", [0.6, 1.6])
def test_another_model_counts_anew(weight: float) -> None:
    conversation = Conversation()
    conversation.ask_often(20)
    conversation.weight = lambda _: weight
    conversation.ask(text(20), text(80), model="other")
    conversation.ask(text(20), text(80), model="other")
    true = conversation.size(*conversation.requests[-1], text(80), text(20))
    assert conversation.window(text(20)).tokens == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(("before", "after"), [(0, 1500), (1500, 0), (200, 700)])
@pytest.mark.parametrize("first", [100, 1600])
def test_another_system_prompt_takes_what_it_takes(before: int, after: int, first: int) -> None:
    conversation = Conversation(limit=16000, room=1000, system=text(before) if before else "")
    conversation.ask(text(20), text(first - 20))
    conversation.ask_often(3)
    conversation.system = text(after) if after else ""
    conversation.ask_often(1)
    conversation.ask_often(1)
    assert conversation.window(text(20)).tokens == pytest.approx(conversation.sent + 100, abs=20)


# --- After a refusal -------------------------------------------------------------------------------


def test_a_refused_request_is_trimmed_by_the_servers_count() -> None:
    records = talk(*[(50, 50)] * 30)
    chosen = choose(turns_back(reversed(records)), 0, 100, LIMIT, ROOM, scale=2.0)
    assert MARK_AT - 200 < chosen.tokens <= MARK_AT
    assert len(chosen.turns) == (MARK_AT - 200) // 200


def test_a_refused_window_is_not_kept(moved: Conversation) -> None:
    start = start_of_last(moved)
    turns = turns_back(reversed(moved.records))
    assert choose(turns, 0, estimated(text(20)), LIMIT, ROOM, scale=3.0).start not in {None, start}


# --- num_ctx ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "loaded", "model_limit", "size"),
    [
        (1, None, None, 8192),
        (8192, None, None, 8192),
        (8193, None, None, 16384),
        (40000, None, None, 65536),
        (100, 4096, None, 8192),
        (100, 32768, None, 32768),
        (100, 10000, None, 10000),
        (20000, 16384, None, 32768),
        (100, None, 2048, 2048),
        (30000, None, 40960, 32768),
        (33000, None, 40960, 40960),
        (100, 131072, 40960, 40960),
    ],
)
def test_the_size_that_is_asked_for(needed: int, loaded: int | None, model_limit: int | None, size: int) -> None:
    assert window.num_ctx(needed, loaded, model_limit) == size


@given(st.integers(1, 2 * 10**6), st.none() | st.integers(1, 10**6), st.none() | st.integers(512, 10**6))
def test_the_size_is_enough_and_never_smaller_than_loaded(needed: int, loaded: int | None, limit: int | None) -> None:
    size = window.num_ctx(needed, loaded, limit)
    assert size >= min(max(needed, loaded or 0), limit or 10**9)
    assert size <= (limit or 10**9)
    assert size in {*LADDER, loaded, limit}


def test_the_ladder_is_short_and_starts_large() -> None:
    assert LADDER[0] == 8192
    assert all(larger >= 2 * smaller for smaller, larger in pairwise(LADDER))


# --- Whether the server cut ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "before", "asked", "cut"),
    [
        ((900, 50), 800, 1024, False),
        ((800, 50), 800, 1024, False),
        ((799, 50), 800, 1024, True),
        ((900, 124), 0, 1024, False),
        ((900, 125), 0, 1024, True),
        ((900, 125), 0, 1000, True),
        ((900, 124), 0, 1000, False),  # llama.cpp rounds up to 1024
        ((10**6, 50), 800, None, False),
        ((None, 50), 800, 1024, False),
        ((10, None), 800, 1024, False),
    ],
)
def test_only_the_servers_own_counts_are_evidence(
    counts: tuple[int | None, int | None], before: int, asked: int | None, cut: bool
) -> None:
    answer = {"prompt_eval_count": counts[0], "eval_count": counts[1]}
    assert window.was_cut(answer, before, asked) is cut
    assert not window.was_cut({}, before, asked)


# --- Hundreds of turns -----------------------------------------------------------------------------

sizes = st.integers(4, 60).map(lambda eighth: 8 * eighth - 2)  # texts whose halves are whole tokens
turn_sizes = st.lists(st.tuples(sizes, sizes), min_size=1, max_size=60)


def plainly(sizes: list[float], fixed: float, limit: int, room: int, kept: int) -> int:
    """The rules as they are written: how many of the newest turns are sent, if `kept` would be as before."""
    full = min(FULL * limit, limit - room)
    if fixed + sum(sizes[-kept:] if kept else []) <= full:
        return kept
    number = 0
    while number < len(sizes) and fixed + sum(sizes[-number - 1 :]) <= (MARK * limit if number else full):
        number += 1
    return number


@settings(max_examples=100)
@given(turn_sizes, st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.sampled_from([0, 46, 206]), st.sampled_from([0, 200, 400]))
def test_the_choice_is_that_of_a_plain_reading(
    turns: list[tuple[int, int]], weight: float, system: int, room: int
) -> None:
    conversation = Conversation(lambda _: weight, 4000, room, text(system) if system else "")
    with patch.object(window, "PREAMBLE", 0):
        assert_plain(conversation, turns)


def assert_plain(conversation: Conversation, turns: list[tuple[int, int]]) -> None:
    """Every choice is that of `plainly`."""
    weight, system = conversation.weight(""), round(estimated(conversation.system))
    known: list[float] = []
    kept = 0
    for number, (prompt, answer) in enumerate(turns):
        fixed = weight * (system + prompt) if number else float(system + prompt)
        kept = plainly(known, fixed, conversation.limit, conversation.room, kept)
        assert len(conversation.ask(text(prompt), text(answer)).turns) == kept
        known.append(weight * (prompt + answer))
        kept += 1


SIGNS = "abcdefgh"


def uneven(content: str) -> float:
    """A tokenizer that takes between half and twice of the estimate, for each text by its own measure."""
    return 0.5 * 2 ** (2 * SIGNS.index(content[0]) / (len(SIGNS) - 1)) if content else 0.0


seeds = st.integers(0, 2**32)
LARGEST = 2 * (30 + 150)  # of a turn, as `uneven` counts
MISJUDGED = 2 * 30  # of a prompt, which was never counted


def talk_of(seed: int) -> list[tuple[str, str]]:
    """Two hundred turns of all sizes."""
    chance = random.Random(seed)
    signs = [chance.choice(SIGNS) for _ in range(400)]
    return [
        (text(chance.randint(8, 30), asks), text(chance.randint(20, 150), answers))
        for asks, answers in zip(signs[::2], signs[1::2], strict=True)
    ]


def long_talk(talk: list[tuple[str, str]], system: str = "") -> tuple[Conversation, list[Window]]:
    """The whole conversation, and what was chosen for every turn."""
    conversation = Conversation(uneven, 16 * LARGEST, 400, system)
    return conversation, [conversation.ask(*turn) for turn in talk]


@settings(max_examples=8)
@given(seeds, st.sampled_from(["", text(300, "a"), text(300, "h")]))
def test_what_is_sent_is_known_and_never_more_than_fits(seed: int, system: str) -> None:
    conversation, chosen = long_talk(talk_of(seed), system)
    true = [conversation.size(*request) for request in conversation.requests]
    for last, this, sent in list(zip(chosen, chosen[1:], true[1:], strict=False))[1:]:
        assert sent <= conversation.limit - conversation.room
        # The turn that moved the window was counted together with the system prompt only.
        unknown = LARGEST / 2 if this.start != last.start else 0
        assert this.tokens == pytest.approx(sent, abs=MISJUDGED + unknown)


@settings(max_examples=8)
@given(seeds)
def test_moves_are_rare_and_large(seed: int) -> None:
    talk = talk_of(seed)
    conversation, chosen = long_talk(talk)
    limit = conversation.limit
    moves = [n for n, (last, this) in enumerate(pairwise(chosen), 1) if this.start != last.start]
    assert moves
    for number in moves:
        not_moved = conversation.size(*conversation.requests[number - 1], talk[number - 1][1], talk[number][0])
        assert not_moved > FULL * limit - MISJUDGED
        assert conversation.size(*conversation.requests[number]) < MARK * limit + MISJUDGED + LARGEST / 2
    steps = [later - earlier for earlier, later in pairwise(moves)]
    assert min(steps) > (FULL - MARK) * limit / LARGEST - 2


@settings(max_examples=8)
@given(seeds)
def test_the_server_works_out_little_again(seed: int) -> None:
    talk = talk_of(seed)
    conversation, _ = long_talk(talk)
    worked = 0.0
    for number, (last, this) in enumerate(pairwise(conversation.requests)):
        before = [*last, talk[number][1]]
        if this[: len(before)] == before:
            before, this = [], this[len(before) :]  # noqa: PLW2901
        worked += conversation.size(*this)
    new = sum(conversation.size(*turn) for turn in talk)
    assert worked / new < 1 + MARK / (FULL - MARK - 2 * LARGEST / conversation.limit)


@settings(max_examples=8)
@given(seeds)
def test_every_request_is_a_run_of_whole_turns_up_to_the_newest(seed: int) -> None:
    talk = talk_of(seed)
    conversation, chosen = long_talk(talk, text(100, "d"))
    said = [content for turn in talk for content in turn]
    for number, request in enumerate(conversation.requests):
        assert request[0] == text(100, "d")
        assert len(request) % 2 == 0
        assert request[1:] == said[2 * number - 2 * len(chosen[number].turns) : 2 * number + 1]
