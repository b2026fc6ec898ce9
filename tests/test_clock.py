"""Times sort as text, ids sort by age, and no clock, however wrong, breaks either."""

from __future__ import annotations

import re
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_prompt import clock

FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NOON = 1_795_348_800_123  # 2026-11-22T12:00:00.123Z
LAST = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

MOMENTS = st.datetimes(
    min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(timezone.utc)
)


class Clock:
    """A clock that the test sets, in milliseconds."""

    def __init__(self, milliseconds: int) -> None:
        self.nanoseconds = milliseconds * 1_000_000

    def __call__(self) -> int:
        return self.nanoseconds

    def go(self, milliseconds: int) -> None:
        self.nanoseconds += milliseconds * 1_000_000


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of day, from now on."""
    made = Clock(NOON)
    monkeypatch.setattr(time, "time_ns", made)
    monkeypatch.setattr(clock, "_last_tick", 0)
    return made


# --- Times -----------------------------------------------------------------------------------------


def test_now_is_text_with_milliseconds(forged: Clock) -> None:
    assert clock.now() == "2026-11-22T12:00:00.123Z"


@given(st.lists(st.integers(0, LAST), min_size=2))
def test_comparing_text_compares_times(times: list[int]) -> None:
    texts = [clock.format_time(time) for time in times]
    assert all(FORM.fullmatch(text) for text in texts)
    assert sorted(texts) == [clock.format_time(time) for time in sorted(times)]


@pytest.mark.parametrize("milliseconds", [-62_135_596_800_000, LAST + 1, 1 << 48])
def test_a_year_that_would_not_sort_is_no_time(milliseconds: int) -> None:
    with pytest.raises(ValueError, match="year"):
        clock.format_time(milliseconds)


@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_a_time_in_any_zone_is_the_same_time(moment: datetime, minutes: int) -> None:
    elsewhere = moment.astimezone(timezone(timedelta(minutes=minutes)))
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1)
    assert clock.normal_time(elsewhere.isoformat()) == clock.format_time(milliseconds)


@given(MOMENTS)
def test_our_own_form_stays_as_it_is(moment: datetime) -> None:
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    assert clock.normal_time(text) == text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2026-11-22T10:30:00Z", "2026-11-22T10:30:00.000Z"),
        ("2026-11-22T10:30:00z", "2026-11-22T10:30:00.000Z"),
        ("2026-11-22T10:30:00.1Z", "2026-11-22T10:30:00.100Z"),
        ("2026-11-22T10:30:00.123456789Z", "2026-11-22T10:30:00.123Z"),
        ("2026-11-22T10:30:00.999999+02:00", "2026-11-22T08:30:00.999Z"),
        ("2026-11-22T00:30:00-05:30", "2026-11-22T06:00:00.000Z"),
        ("2026-11-22 10:30:00", "2026-11-22T10:30:00.000Z"),
        (" 2026-11-22T10:30 \n", "2026-11-22T10:30:00.000Z"),
        ("2026-11-22", "2026-11-22T00:00:00.000Z"),
        ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
        ("2024-02-29T00:00:00.000Z", "2024-02-29T00:00:00.000Z"),
    ],
)
def test_what_people_and_programs_write_is_understood(text: str, normal: str) -> None:
    assert clock.normal_time(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        *(None, 1_795_348_800, True, [], {}, "", "yesterday", "10:30"),
        "2026-13-01T00:00:00.000Z",
        "2026-00-01T00:00:00.000Z",
        "2026-11-31T00:00:00.000Z",
        "2026-02-29T00:00:00.000Z",
        "2026-11-22T24:30:00.000Z",
        "2026-11-22T10:60:00.000Z",
        "2026-11-22T10:30:61.000Z",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "٢٠٢٦-11-22T10:30:00.000Z",
    ],
)
def test_what_is_no_time_is_none(text: object) -> None:
    assert clock.normal_time(text) is None


@given(st.text() | st.from_regex(r"\A[0-9-]{8,10}[T ][0-9:.]{5,15}([zZ]|[+-][0-9:]{4,6})?\Z"))
def test_no_text_is_trouble(text: str) -> None:
    normal = clock.normal_time(text)
    assert normal is None or FORM.fullmatch(normal)


def test_printed_times_have_whole_seconds() -> None:
    assert clock.whole_seconds("2026-11-22T12:00:00.999Z") == "2026-11-22T12:00:00Z"
    assert clock.whole_seconds(None) is None
    assert clock.whole_seconds("") is None


@pytest.mark.parametrize(
    ("days", "time"),
    [
        (0, "2026-11-22T12:00:00.123Z"),
        (1, "2026-11-21T12:00:00.123Z"),
        (365, "2025-11-22T12:00:00.123Z"),
        (20_779, "1970-01-01T12:00:00.123Z"),
        (20_780, "1970-01-01T00:00:00.000Z"),
        (10**30, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_days_ago_ends_where_time_begins(forged: Clock, days: int, time: str) -> None:
    assert clock.days_ago(days) == time


# --- Ids -------------------------------------------------------------------------------------------


def test_an_id_is_a_uuid_of_version_7(forged: Clock) -> None:
    made = [uuid.UUID(clock.new_id()) for _ in range(100)]
    assert {(id_.version, id_.variant) for id_ in made} == {(7, uuid.RFC_4122)}
    assert {id_.int >> 80 for id_ in made} == {NOON}


@settings(max_examples=50)
@given(st.lists(st.integers(-3_600_000, 5), min_size=1, max_size=50))
def test_ids_grow_whatever_the_clock_does(steps: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made = Clock(NOON)
        patch.setattr(time, "time_ns", made)
        patch.setattr(clock, "_last_tick", 0)
        ids = [clock.new_id()]
        for step in steps:
            made.go(step)
            ids += [clock.new_id(), clock.new_id()]
    assert ids == sorted(set(ids))


def test_ids_of_one_millisecond_show_its_fraction(forged: Clock) -> None:
    first = clock.new_id()
    forged.nanoseconds += 999_999
    assert int(first[15:18], 16) == 0
    assert int(clock.new_id()[15:18], 16) == 4095


def test_ids_of_the_same_tick_differ_between_processes(monkeypatch: pytest.MonkeyPatch, forged: Clock) -> None:
    first = clock.new_id()
    monkeypatch.setattr(clock, "_last_tick", 0)
    assert clock.new_id()[19:] != first[19:]


def test_an_id_tells_its_time_and_month(forged: Clock) -> None:
    made = clock.new_id()
    assert clock.time_of_id(made) == "2026-11-22T12:00:00.123Z"
    assert clock.month_of(made) == "2026-11"


@pytest.mark.parametrize(
    ("id_", "created_at", "month"),
    [
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "2024-05-06T00:00:00.000Z", "2024-05"),
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", None, "2026-11"),
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "../../../etc", "2026-11"),
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "2024-99", "2026-11"),
        ("00000000-0000-7000-8000-000000000000", "2024-05-06T00:00:00.000Z", "1970-01"),
        ("ffffffff-ffff-7fff-bfff-ffffffffffff", "2024-05-06T00:00:00.000Z", "2024-05"),
    ],
)
def test_a_month_is_found_for_every_id(forged: Clock, id_: str, created_at: str | None, month: str) -> None:
    assert clock.month_of(id_, created_at) == month


@given(st.uuids())
def test_an_id_is_taken_in_any_case(id_: uuid.UUID) -> None:
    assert clock.parse_id(str(id_).upper()) == str(id_)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7c9e6679",
        "7c9e6679-7425-40de-944b-e07fc1f90ae",
        "7c9e6679-7425-40de-944b-e07fc1f90ae7\n",
        "{7c9e6679-7425-40de-944b-e07fc1f90ae7}",
        "7c9e6679742540de944be07fc1f90ae7",
        "\u0667c9e6679-7425-40de-944b-e07fc1f90ae7",
        "../../../../../../../../../etc/passwd",
    ],
)
def test_what_is_no_id_is_none(text: str) -> None:
    assert clock.parse_id(text) is None
