"""What one request sends and asks for, what a refusal changes, and what is said of it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from stores import message

from ollama_prompt import window
from ollama_prompt.errors import ContextExceeded, ContextTooSmall
from ollama_prompt.model import ModelFacts
from ollama_prompt.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ollama_prompt.held_session import HeldSession

Json = dict[str, Any]

SETTINGS: Json = {"model": "m", "max_context_tokens": 64000}
WORDS = "word " * 100  # 125 tokens, and what a message takes
PROMPT = message(10**6, "user", WORDS)


class Held:
    """A session as far as a plan looks at it."""

    def __init__(self, *records: Json, **settings: Any) -> None:
        self.records = list(records)
        self.settings = {**SETTINGS, **settings}
        self.answered_count = sum(record["type"] == "message" for record in records)

    def records_back(self) -> Iterator[Json]:
        return reversed(self.records)


def talk(turns: int, start: str | None = None, limit: int = 0, system: int = 0) -> list[Json]:
    """Turns of 262 tokens behind a system prompt; the model counted as much as is estimated."""
    records: list[Json] = []
    for turn in range(turns):
        counts = {"model": "m", "prompt_tokens": system + 262 * turn + 131, "tokens": 131}
        kept = {"window": {"start": start, "limit": limit}} if start else {}
        records += [message(2 * turn, "user", WORDS), message(2 * turn + 1, "assistant", WORDS, **counts, **kept)]
    return records


def plan(
    held: Held | None = None,
    facts: ModelFacts | None = None,
    loaded: int | None = None,
    prompt: Json = PROMPT,
    **given: Any,
) -> Plan:
    """The plan of a turn with these settings given."""
    settings = {**(held.settings if held else SETTINGS), **given}
    return Plan(settings, prompt, cast("HeldSession | None", held), facts or ModelFacts(131072), loaded)


def refusal(tokens: int | None = None, there: int | None = None) -> ContextExceeded:
    return ContextExceeded("too much", prompt_tokens=tokens, num_ctx=there)


# --- The request -----------------------------------------------------------------------------------


def test_the_server_is_told_to_refuse_rather_than_to_cut() -> None:
    for each in (plan(), plan(facts=ModelFacts(cloud=True)), plan(num_ctx=512), plan(Held(*talk(400)))):
        assert each.body()["truncate"] is False


def test_messages_are_sent_with_their_roles_and_nothing_else() -> None:
    held = Held(*talk(1), system="Be brief.")
    held.records[-1] |= {"thinking": "Hm, hm."}
    assert plan(held).body()["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": WORDS},
        {"role": "assistant", "content": WORDS},
        {"role": "user", "content": WORDS},
    ]


def test_the_system_prompt_always_goes() -> None:
    for turns in (0, 10, 400):
        messages = plan(Held(*talk(turns)), system="Be brief.").body()["messages"]
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert [sent["role"] for sent in messages[1:]] == ["user", "assistant"] * (len(messages) // 2 - 1) + ["user"]


def test_an_empty_system_prompt_is_none() -> None:
    assert plan(system="").body()["messages"][0]["role"] == "user"


def test_options_are_sent_and_not_changed() -> None:
    options = {"seed": 1}
    body = plan(options=options, think="low", keep_alive=-1, title="T").body()
    assert body["options"] == {"seed": 1, "num_ctx": 8192}
    assert (body["think"], body["keep_alive"]) == ("low", -1)
    assert set(body) == {"messages", "options", "truncate", "think", "keep_alive"}
    assert options == {"seed": 1}


# --- Limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "of_model", "limit"),
    [(64000, 131072, 64000), (64000, 8192, 8192), (900, 8192, 900), (64000, None, 64000)],
)
def test_the_limit_is_the_smaller_of_what_may_be_sent_and_what_the_model_takes(
    asked: int, of_model: int | None, limit: int
) -> None:
    made = plan(facts=ModelFacts(of_model), max_context_tokens=asked)
    assert made.limit == limit
    assert made.shown({})["limit"] == limit


def test_what_is_sent_leaves_room_for_the_reply() -> None:
    held = Held(*talk(400))
    for max_tokens in (None, -1, -2, 2000, 10000, 10**9):
        made = plan(held, options={} if max_tokens is None else {"num_predict": max_tokens})
        assert made.room == window.reply_room(64000, max_tokens)
        assert 0 < made.window.tokens <= made.limit - made.room


def test_a_fixed_window_limits_what_is_sent() -> None:
    made = plan(Held(*talk(40)), num_ctx=2048)
    assert made.window.tokens <= 2048 - made.room
    assert made.window.turns
    assert made.limit == 64000


def test_a_cloud_models_window_is_not_limited_by_num_ctx() -> None:
    assert len(plan(Held(*talk(40)), ModelFacts(cloud=True), num_ctx=2048).window.turns) == 40


@pytest.mark.parametrize("held", [None, Held(), Held(*talk(3))])
def test_a_prompt_that_alone_exceeds_the_limit_is_refused(held: Held | None) -> None:
    with pytest.raises(ContextTooSmall) as caught:
        plan(held, max_context_tokens=98)
    assert "131" in caught.value.message
    assert "98" in caught.value.message
    assert caught.value.hint
    assert not caught.value.keeps_prompt


@pytest.mark.parametrize(("limit", "num_ctx"), [(99, 99), (130, 130), (131, 8192)])
def test_whether_a_prompt_fits_that_may_exceed_the_limit_is_left_to_the_server(limit: int, num_ctx: int) -> None:
    body = plan(max_context_tokens=limit).body()
    assert body["messages"] == [{"role": "user", "content": WORDS}]
    assert (body["options"]["num_ctx"], body["truncate"]) == (num_ctx, False)


def test_a_prompt_that_the_server_counts_above_the_limit_is_refused() -> None:
    asked = plan(max_context_tokens=99)
    with pytest.raises(ContextTooSmall):
        asked.shrink(ContextExceeded("too large", prompt_tokens=110, num_ctx=99))


def test_a_system_prompt_counts_with_the_prompt() -> None:
    with pytest.raises(ContextTooSmall):
        plan(max_context_tokens=190, system=WORDS)


@pytest.mark.parametrize(("before", "given"), [("", WORDS * 20), (WORDS * 20, WORDS), (WORDS, "")])
def test_a_system_prompt_that_was_just_given_is_reckoned_with(before: str, given: str) -> None:
    taken = {"": 0, WORDS: 131, WORDS * 20: 2506}
    held = Held(*talk(200, system=taken[before]), system=before)
    assert plan(held).window.tokens == 200 * 262 + 131 + taken[before]
    assert plan(held, system=given).window.tokens == 200 * 262 + 131 + taken[given]


# --- num_ctx ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "loaded", "of_model", "num_ctx"),
    [
        (0, None, None, 8192),
        (0, None, 131072, 8192),
        (0, 2048, 131072, 8192),
        (0, 32768, 131072, 32768),
        (0, None, 2048, 2048),
        (40, None, 131072, 16384),
        (30, None, 10000, 10000),
        (60, 8192, 131072, 32768),
        (200, None, 131072, 65536),
    ],
)
def test_num_ctx_holds_what_is_sent_and_the_reply(
    turns: int, loaded: int | None, of_model: int | None, num_ctx: int
) -> None:
    made = plan(Held(*talk(turns)), ModelFacts(of_model), loaded)
    assert made.body()["options"]["num_ctx"] == made.num_ctx == num_ctx
    assert made.shown({})["num_ctx"] == num_ctx


@pytest.mark.parametrize(("max_tokens", "num_ctx"), [(7900, 8192), (10000, 16384), (50000, 65536), (10**9, 65536)])
def test_num_ctx_holds_the_longest_reply_that_was_asked_for(max_tokens: int, num_ctx: int) -> None:
    assert plan(options={"num_predict": max_tokens}).num_ctx == num_ctx


@pytest.mark.parametrize("max_tokens", [-1, -2])
def test_a_reply_without_an_end_asks_for_no_larger_window(max_tokens: int) -> None:
    assert plan(options={"num_predict": max_tokens}).num_ctx == 8192


def test_num_ctx_that_was_given_is_what_is_asked_for() -> None:
    for turns, loaded in ((0, None), (0, 32768), (40, None)):
        assert plan(Held(*talk(turns)), ModelFacts(8192), loaded, num_ctx=3000).body()["options"]["num_ctx"] == 3000


@pytest.mark.parametrize("given", [{}, {"num_ctx": 4096}])
def test_num_ctx_is_never_sent_for_a_cloud_model(given: Json) -> None:
    made = plan(Held(*talk(40)), ModelFacts(163840, cloud=True), None, **given)
    made.shrink(refusal(100000, 50000))
    assert made.body()["options"] == {}
    assert made.shown({})["num_ctx"] is None


def test_num_ctx_steps_rarely() -> None:
    steps = [0]
    for turns in range(0, 400, 8):
        steps.append(plan(Held(*talk(turns)), loaded=steps[-1] or None).num_ctx or 0)
    assert sorted(set(steps)) == [0, 8192, 16384, 32768, 65536]
    assert steps == sorted(steps)


# --- After a refusal -------------------------------------------------------------------------------


def test_a_refused_request_gets_a_larger_window_while_the_model_allows() -> None:
    made = plan(Held(*talk(10)))
    messages = made.body()["messages"]
    made.shrink(refusal(9000, 8192))
    assert made.num_ctx == 16384
    assert made.body()["messages"] == messages


def test_without_figures_a_larger_window_is_tried_too() -> None:
    made = plan(Held(*talk(10)))
    made.shrink(refusal())
    assert (made.num_ctx, len(made.window.turns)) == (16384, 10)


@pytest.mark.parametrize("figures", [(12000, 8192), (None, None)])
@pytest.mark.parametrize("given", [{"num_ctx": 8192}, {"max_context_tokens": 8192}])
def test_else_it_is_trimmed_by_the_servers_figures(figures: tuple[int | None, int | None], given: Json) -> None:
    made = plan(Held(*talk(20)), **given)
    sent = len(made.window.turns)
    made.shrink(refusal(*figures))
    assert made.num_ctx == 8192
    assert 0 < len(made.window.turns) < sent
    takes = (figures[0] or 12288) / (262 * sent + 131)
    assert made.window.tokens == round((262 * len(made.window.turns) + 131) * takes) <= 8192 * window.MARK


def test_a_window_smaller_than_the_one_asked_for_is_the_limit_from_then_on() -> None:
    made = plan(Held(*talk(20)), ModelFacts(cloud=True))
    made.shrink(refusal(5371, 4096))
    assert 0 < len(made.window.turns) <= 4096 * window.MARK / 262
    assert made.window.tokens <= 4096 - made.room
    assert made.shown({})["limit"] == 64000


def test_a_refused_prompt_with_nothing_to_leave_out_is_too_small_a_context() -> None:
    made = plan(facts=ModelFacts(400))
    with pytest.raises(ContextTooSmall):
        made.shrink(refusal(600, 400))


def test_a_refused_prompt_is_sent_alone_if_it_fits_alone() -> None:
    made = plan(Held(*talk(1)), ModelFacts(500))
    made.shrink(refusal(600, 500))
    assert made.body()["messages"] == [{"role": "user", "content": WORDS}]


# --- What is kept and said -------------------------------------------------------------------------


def test_nothing_is_kept_while_nothing_is_left_out() -> None:
    made = plan(Held(*talk(3)))
    assert made.record() is None
    assert (made.left_out(), made.moved()) == (0, False)


def test_where_the_window_starts_is_kept_and_chosen_again() -> None:
    held = Held(*talk(300))
    first = plan(held)
    kept = first.record()
    assert kept == {"start": first.window.messages[0]["id"], "limit": 64000, "left_out": first.left_out()}
    assert first.moved()
    counts = {"model": "m", "prompt_tokens": first.window.tokens, "tokens": 131}
    held.records += [PROMPT, message(10**6 + 1, "assistant", WORDS, **counts, window=kept)]
    held.answered_count += 2
    second = plan(held)
    assert second.record() == kept
    assert not second.moved()
    assert len(second.window.messages) == len(first.window.messages) + 2


def test_an_answer_that_broke_off_makes_no_move() -> None:
    start = talk(20)[10]["id"]
    held = Held(*talk(20, start, 64000), message(900, "user", "?"), message(901, "assistant", "Well,"))
    made = plan(held)
    assert made.window.start == start
    assert not made.moved()


def test_a_window_of_the_prompt_alone_starts_at_the_prompt() -> None:
    made = plan(Held(*talk(2)), max_context_tokens=300)
    assert made.window.messages == []
    assert made.record() == {"start": PROMPT["id"], "limit": 300, "left_out": 4}
    assert made.moved()


def test_left_out_are_answered_messages_that_did_not_fit() -> None:
    held = Held(*talk(300))
    made = plan(held, system="Be brief.")
    shown = made.shown({})
    assert shown["messages_sent"] == len(made.body()["messages"]) - 1 == len(made.window.messages) + 1
    assert shown["messages_left_out"] == 600 - len(made.window.messages) > 0


@pytest.mark.parametrize(
    ("counts", "tokens"),
    [({"prompt_eval_count": 400, "eval_count": 30}, 430), ({"eval_count": 30}, 30), ({}, None)],
)
def test_tokens_are_what_the_model_counted(counts: Json, tokens: int | None) -> None:
    shown = plan(Held(*talk(1))).shown({**counts, "done": True})
    assert shown == {
        "tokens": tokens, "limit": 64000, "num_ctx": 8192,
        "messages_sent": 3, "messages_left_out": 0, "truncated": False,
    }  # fmt: skip


def test_without_a_session_the_prompt_is_all() -> None:
    made = plan()
    assert made.body()["messages"] == [{"role": "user", "content": WORDS}]
    assert (made.left_out(), made.record(), made.moved()) == (0, None, False)
    assert made.shown({"prompt_eval_count": 1, "eval_count": 1})["truncated"] is False


# --- Evidence that the server cut ------------------------------------------------------------------


def cut(held: Held, prompt_tokens: int, **given: Any) -> bool:
    """Whether this count is taken for evidence; the last answer's was 2489."""
    truncated = plan(held, **given).shown({"prompt_eval_count": prompt_tokens, "eval_count": 5})["truncated"]
    assert isinstance(truncated, bool)
    return truncated


def test_a_longer_prompt_that_takes_less_was_cut() -> None:
    assert cut(Held(*talk(10)), 2488)
    assert not cut(Held(*talk(10)), 2489)


def test_more_than_the_window_holds_was_cut() -> None:
    assert cut(Held(*talk(10)), 8192)
    assert not cut(Held(*talk(10)), 8187)


@pytest.mark.parametrize("given", [{"model": "other"}, {"system": "Be brief."}, {"max_context_tokens": 1500}])
def test_fewer_tokens_of_something_else_are_no_evidence(given: Json) -> None:
    assert not cut(Held(*talk(10)), 1000, **given)


def test_an_answer_that_was_never_counted_is_no_evidence() -> None:
    held = Held(*talk(10), message(900, "user", "?"), message(901, "assistant", "Well,", model="m"))
    assert not cut(held, 100)


def test_what_was_taken_back_from_in_front_of_the_last_answer_is_no_evidence() -> None:
    held = Held(*talk(10))
    held.records.append({"type": "undo", "id": "u", "ids": [record["id"] for record in held.records[2:6]]})
    assert not cut(held, 1500)


def test_a_last_turn_that_was_taken_back_leaves_the_evidence() -> None:
    held = Held(*talk(11))
    held.records.append({"type": "undo", "id": "u", "ids": [record["id"] for record in held.records[-2:]]})
    assert cut(held, 2488)
    assert not cut(held, 2489)


def test_an_answer_of_another_window_is_no_evidence() -> None:
    assert not cut(Held(*talk(10, talk(1)[0]["id"], 9999)), 100, max_context_tokens=1500)
