"""Times and the ids made of them.

A time is text in UTC with milliseconds, `2026-11-22T10:30:00.123Z`: always 24 characters, so that
comparing text compares times. An id is a UUIDv7 (RFC 9562): its first 48 bits are the Unix time in
milliseconds, so ids sort by age and a session's id tells the month that its file lies in.
"""

from __future__ import annotations

import os
import re
import time

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_TIME = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z", re.ASCII)
"""A time in our form; days that not every month has are left to `datetime`."""
_MONTH = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])", re.ASCII)

_last_tick = 0


def now() -> str:
    """The present time."""
    return format_time(time.time_ns() // 1_000_000)


def format_time(milliseconds: int) -> str:
    """Unix time in milliseconds → text. Raises ValueError for a year of other than four digits."""
    seconds, rest = divmod(milliseconds, 1000)
    moment = time.gmtime(seconds)
    if not 1000 <= moment.tm_year <= 9999:
        raise ValueError("a year of other than four digits does not sort as text")
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{rest:03d}Z"


def whole_seconds(time: str | None) -> str | None:
    """A time as it is printed: jq's `fromdate` takes no fraction."""
    return time[:19] + "Z" if time else None


def seconds_since(text: str | None) -> int | None:
    """How long ago a time in our form was, at least 0; None if it is none."""
    normal = normal_time(text)
    if normal is None:
        return None
    from calendar import timegm

    then = timegm(time.strptime(normal[:19], "%Y-%m-%dT%H:%M:%S"))
    return max(int(time.time()) - then, 0)


def days_ago(days: int) -> str:
    """The time that many days before now; the oldest time that can be written if there is none."""
    try:
        return format_time(max(time.time_ns() // 1_000_000 - days * 86_400_000, 0))
    except (OverflowError, ValueError):
        return format_time(0)


def normal_time(text: object) -> str | None:
    """A time written by hand or by another program in our form; None if it is not a time."""
    if not isinstance(text, str):
        return None
    if _TIME.fullmatch(text):
        return text
    from datetime import datetime, timedelta, timezone

    try:
        # Python 3.10 reads neither a Z nor a fraction of other than 3 or 6 digits.
        text = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), text.strip())
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        # In whole numbers: as a float, 00.123 s can become 122 ms.
        return format_time((moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1))
    except (ValueError, OverflowError, OSError):
        return None


def new_id() -> str:
    """A new UUIDv7, larger than every one that this process made before.

    Its 12 bits after the version are the fraction of the millisecond (RFC 9562, section 6.2, method 3).
    """
    global _last_tick  # noqa: PLW0603  the order of ids within a process is the state of the clock
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    _last_tick = max(milliseconds << 12 | nanoseconds * 4096 // 1_000_000, _last_tick + 1)
    random = int.from_bytes(os.urandom(8), "big") >> 2
    digits = f"{_last_tick >> 12:012x}7{_last_tick & 0xFFF:03x}{1 << 63 | random:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_id(text: str) -> str | None:
    """A UUID in any case → in lower case; None if it is not one."""
    text = text.lower()
    return text if _UUID.fullmatch(text) else None


def time_of_id(uuid: str) -> str | None:
    """When a UUIDv7 was made; None for other UUIDs."""
    if uuid[14:15] != "7":
        return None
    try:
        return format_time(int(uuid[:8] + uuid[9:13], 16))
    except (ValueError, OverflowError, OSError):
        return None


def month_of(uuid: str, created_at: str | None = None) -> str:
    """The folder for a session, `2026-11`: from its UUIDv7, else from `created_at`, else the present."""
    month = (time_of_id(uuid) or created_at or now())[:7]
    return month if _MONTH.fullmatch(month) else now()[:7]
