"""What benchmarks report: costs as they were, and ranks that follow from values alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from benchmarking import costs
from benchmarking.tables import Table, Target

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows does not tell what a child used")


def python(code: str) -> costs.Cost:
    return costs.run([sys.executable, "-I", "-S", "-c", code], {})


@POSIX
def test_a_cost_is_that_of_the_process_alone(tmp_path: Path) -> None:
    ours = bytearray(200_000_000)
    small = python(f"open({str(tmp_path / 'file')!r}, 'w').write('x' * 50_000); print('said'); raise SystemExit(3)")
    assert (small.code, small.output) == (3, "said\n")
    assert small.written in (50_000, None)
    assert small.peak < 50_000_000 < len(ours)
    assert python("bytearray(90_000_000)").peak > 90_000_000


@POSIX
def test_cpu_time_is_not_time_on_the_clock() -> None:
    cost = python("import time; time.sleep(0.3)")
    assert cost.cpu < 0.2 < cost.clock


def table(best: str = "least") -> Table:
    made = Table("Speed", "", best=best)
    made.add("list", "ours", {"value": 2, "text": "two", "peak_mb": 10})
    made.add("list", "other", {"value": 1, "text": "one"})
    made.add("purge", "ours", {"value": 5, "text": "five", "peak_mb": 200})
    made.add("purge", "other", {"why": "cannot"})
    made.targets = {"list": Target(2), "purge": Target(8, 120)}
    return made


def test_the_best_is_bold_and_a_reason_stands_below() -> None:
    lines = table().markdown(["ours", "other"]).splitlines()
    assert "| list | two | **one** | ≤ 2, met |" in lines
    assert "| purge | **five** | — [1] | ≤ 8, ≤ 120 MB, **missed** |" in lines
    assert lines[-1] == "[1] other: cannot"


def test_alone_nobody_is_first() -> None:
    alone = Table("Speed", "")
    alone.add("list", "ours", {"value": 2, "text": "two"})
    alone.targets = {"list": Target(1.5)}
    assert alone.markdown(["ours"]).splitlines()[-1] == "| list | two | ≤ 1.5, **missed** |"


def test_being_behind_is_said() -> None:
    assert list(table().behind("ours")) == ["Speed, list: other one, ours two"]
    assert list(table("most").behind("ours")) == []
    assert list(table("none").behind("ours")) == []
