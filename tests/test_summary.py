"""The fold over a session's records, checked against a plain reading of the rules, whole and taken up again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_prompt.summary import TITLE_LENGTH, NeedsWholeFile, Summary, title_of

Json = dict[str, Any]

SESSION = "019aab12-3456-7000-8000-000000000001"
IDS = [f"019aab12-3456-7000-8000-{number:012d}" for number in range(12)]
HAND_IDS = ["", "first", "~last", IDS[3].upper(), IDS[4].replace("-", "")]
TIMES = [
    "2026-11-22T10:30:00.123Z",
    "2026-11-22T10:30:00.124Z",
    "2026-11-22 11:00",
    "2031-01-01T00:00:00+05:00",
    "x",
    3,
]

ids = st.sampled_from(IDS) | st.sampled_from(HAND_IDS)
fields = st.fixed_dictionaries({}, optional={"id": ids, "created_at": st.sampled_from(TIMES)})
settings_given = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["a", "b", 3]),
        "title": st.sampled_from(["T", "", None]),
        "num_ctx": st.sampled_from([8192, True, "8192"]),
    },
)
headers = st.builds(
    lambda more, settings, version: {"type": "session", "version": version} | more | settings,
    fields,
    settings_given,
    st.sampled_from([1, 2, None, "1", -1, True]),
)
prompts = st.builds(
    lambda more, content: {"type": "message", "role": "user", "content": content} | more,
    fields,
    st.sampled_from(["Hello", "", " \n", "\n two\nlines", "x" * 300]),
)
answers = st.builds(
    lambda more, counts: {"type": "message", "role": "assistant", "content": "Yes"} | more | counts,
    fields,
    st.sampled_from([{}, {"prompt_tokens": 5, "tokens": 2}, {"prompt_tokens": "5", "tokens": 2}, {"tokens": None}]),
)
others = st.builds(lambda more, kind: {"type": kind, "role": "tool", "content": ""} | more, fields,
                   st.sampled_from(["sticker", "message", ""]))  # fmt: skip
metas = st.builds(lambda more, settings: {"type": "meta"} | more | settings, fields, settings_given)
undos = st.builds(  # two with the same id name the same messages, as after a merge
    lambda more, named: {"type": "undo", "ids": named} | more | {"id": f"undo {named}"},
    fields,
    st.lists(ids, max_size=3) | st.just(5) | st.lists(st.just(None)),
)
sequences = st.lists(st.one_of(headers, prompts, answers, prompts, answers, metas, undos, others), max_size=12)


def undone_in(records: list[Json]) -> set[str]:
    named = [record["ids"] for record in records if record["type"] == "undo" and isinstance(record["ids"], list)]
    return {id_ for several in named for id_ in several if isinstance(id_, str)}


def fold(records: list[Json]) -> tuple[Summary, list[bool]]:
    """The summary of a whole file, and which records counted; read twice where there is an undo."""
    try:
        summary = Summary(SESSION)
        return summary, [summary.add(record) for record in records]
    except NeedsWholeFile:
        summary = Summary(SESSION, undone_in(records))
        return summary, [summary.add(record) for record in records]


def unique(records: list[Json]) -> list[Json]:
    """Without headers, and without records that repeat the id of an earlier one."""
    kept: dict[object, Json] = {}
    for number, record in enumerate(records):
        if record["type"] != "session":
            kept.setdefault(record.get("id", number), record)
    return list(kept.values())


def messages(records: list[Json]) -> list[Json]:
    undone = undone_in(records)
    return [record for record in unique(records) if record["type"] == "message" and record.get("id") not in undone]


def rising(records: list[Json]) -> list[Json]:
    """As a session grows: every record with an id above all before it; undos name what is there."""
    numbered: list[Json] = []
    for number, record in enumerate(records):
        record = record | {"id": f"019aab12-3456-7000-8000-{number:012d}"}  # noqa: PLW2901
        if record["type"] == "undo":
            record["ids"] = [numbered[-1]["id"]] if numbered else []
        numbered.append(record)
    return numbered


# --- Against the rules -----------------------------------------------------------------------------


@given(sequences)
def test_the_first_of_records_with_an_id_counts(records: list[Json]) -> None:
    summary, counted = fold(records)
    assert summary.record_count == len(unique(records))
    kept = [record for record, counts in zip(records, counted, strict=True) if counts and record["type"] != "session"]
    assert kept == unique(records)


@given(sequences)
def test_messages_are_counted_without_what_was_taken_back(records: list[Json]) -> None:
    summary, _ = fold(records)
    said = [record for record in messages(records) if record["role"] in {"user", "assistant"}]
    assert summary.message_count == len(said)
    roles = [record["role"] for record in said]
    last_answer = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    assert summary.unanswered == ("user" in roles[last_answer:])
    after = [*roles[1:], "user"]
    answered = [pair for pair in zip(roles, after, strict=False) if pair != ("user", "user")]
    assert summary.answered_count == len(answered)


@given(sequences)
def test_the_title_is_the_first_line_that_somebody_typed(records: list[Json]) -> None:
    summary, _ = fold(records)
    titles = [title_of(record) for record in messages(records) if record["role"] == "user"]
    assert summary.title == next((title for title in titles if title is not None), None)


@given(sequences)
def test_the_context_is_what_the_last_answer_counted(records: list[Json]) -> None:
    summary, _ = fold(records)
    counts = [(answer.get("prompt_tokens"), answer.get("tokens")) for answer in messages(records)
              if answer["role"] == "assistant"]  # fmt: skip
    assert summary.context_tokens == (sum(n for n in counts[-1] if isinstance(n, int)) if counts else 0)


@given(sequences)
def test_the_last_use_is_the_newest_time_in_any_record(records: list[Json]) -> None:
    summary, _ = fold(records)
    normal = {TIMES[2]: "2026-11-22T11:00:00.000Z", TIMES[3]: "2030-12-31T19:00:00.000Z", "x": "", 3: ""}
    uses = [(normal.get(record["created_at"], record["created_at"]), record.get("id", ""))
            for record in unique(records) if "created_at" in record]  # fmt: skip
    newest = max((use for use in uses if use[0]), default=(None, ""))
    assert (summary.last_used, summary.last_id) == newest


@given(sequences)
def test_the_newest_setting_wins(records: list[Json]) -> None:
    summary, _ = fold(records)
    first = next((record for record in records if record["type"] == "session"), {})
    changes = [first, *(record for record in unique(records) if record["type"] == "meta")]
    for key, kind in (("model", str), ("title", str), ("num_ctx", int)):
        values = [change[key] for change in changes if isinstance(change.get(key), kind) and change[key] is not True]
        assert summary.settings.get(key) == (values[-1] if values else None)


@given(sequences)
def test_simple_means_that_reading_from_the_end_is_enough(records: list[Json]) -> None:
    summary, counted = fold(records)
    if not summary.simple:
        return
    assert all(counted)
    undone: set[str] = set()
    seen: list[Json] = []
    for record in reversed(records):
        undone |= undone_in([record])
        if record["type"] == "message" and record.get("id") not in undone:
            seen.append(record)
    assert seen[::-1] == messages(records)


@given(sequences)
def test_a_session_that_grew_as_sessions_do_is_simple(records: list[Json]) -> None:
    assert fold(rising(records))[0].simple


# --- Taken up again --------------------------------------------------------------------------------


@settings(max_examples=300)
@given(sequences, st.integers(0, 12), st.booleans())
def test_taken_up_again_it_is_as_if_never_left(records: list[Json], at: int, grows: bool) -> None:
    records = rising(records) if grows else records
    whole, _ = fold(records)
    summary = Summary.resume(SESSION, fold(records[:at])[0].saved())
    try:
        for record in records[at:]:
            assert summary.add(record)
    except NeedsWholeFile:
        assert not grows or any(record["type"] == "undo" for record in records[at:])
        return
    assert summary.saved() == whole.saved()
    assert summary.listed() == whole.listed()


@given(sequences)
def test_what_is_saved_does_not_change_with_the_fold(records: list[Json]) -> None:
    saved = Summary(SESSION).saved()
    resumed = Summary.resume(SESSION, saved)
    for record in rising([record for record in records if record["type"] != "undo"]):
        resumed.add(record)
    assert saved == Summary(SESSION).saved()


def test_an_undo_that_lies_in_front_of_its_message_counts_for_later_readers_too() -> None:
    undo = {"type": "undo", "id": IDS[0], "ids": [IDS[5]]}
    summary = Summary.resume(SESSION, fold([undo])[0].saved())
    with pytest.raises(NeedsWholeFile):
        summary.add({"type": "message", "id": IDS[5], "role": "user", "content": "taken back"})


# --- Details ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Hello", "Hello"),
        ("\n\n  Hello  \nworld", "Hello"),
        ("Hello\r\nworld", "Hello"),
        ("Hello\u2028world", "Hello"),
        ("", None),
        (" \n\t\x1c\x85\u2029", None),
        ("x" * TITLE_LENGTH, "x" * TITLE_LENGTH),
        ("x" * (TITLE_LENGTH + 1), "x" * (TITLE_LENGTH - 1) + "…"),
        (" " * 10**6 + "late", "late"),
    ],
)
def test_a_title_is_one_short_line(content: str, title: str | None) -> None:
    assert title_of({"content": content}) == title
    assert title_of({"content": "expanded", "typed": content}) == title
    assert title_of({"content": content, "typed": 3}) == title


def test_a_given_title_comes_before_the_prompt() -> None:
    prompt = {"type": "message", "id": IDS[0], "role": "user", "content": "Hello"}
    meta = {"type": "meta", "id": IDS[1], "title": "Given"}
    assert fold([prompt])[0].listed()["title"] == "Hello"
    assert fold([prompt, meta])[0].listed()["title"] == "Given"


def test_listed_times_have_whole_seconds() -> None:
    prompt = {"type": "message", "role": "user", "content": "Hello", "created_at": "2026-11-22T10:30:00.999Z"}
    listed = fold([prompt])[0].listed()
    assert listed["created_at"] == listed["last_used"] == "2026-11-22T10:30:00Z"
    assert fold([])[0].listed()["last_used"] is None
