"""A long run of cases against one target: seeded, limited in time and memory, and nothing that is found is lost.

    Target.make(chance) → the input of a case, as bytes      Target.run(input)    raises whatever is not as promised

Invariants: case N of a seed is the same input in every run, whatever came before it, so that it can be run again alone;
a target that takes longer than its `seconds` is interrupted, and one that raises the peak of memory by more than its
`megabytes` is found out; what `run` raises is a finding. POSIX only: Windows has neither the alarm nor the peak.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn, Protocol

    class Target(Protocol):
        """What is tested. `seconds` and `megabytes` limit one case."""

        name: str
        seconds: float
        megabytes: float

        def make(self, chance: random.Random) -> bytes:
            """The input of a case; `chance` is the only source of randomness."""

        def run(self, data: bytes) -> None:
            """Put it to the test. Raises what is found."""

        def close(self) -> None:
            """Remove what was made."""


IN_MEMORY = "/dev/shm"
REPORT_SECONDS = 30.0
"""How often a long run says how far it is."""
COLLECT_EVERY = 500
"""Cases after which cycles are collected, where the code under test turns that off."""


class TookTooLong(BaseException):
    """A case is not done in its time. Not an Exception, so that no `except Exception` swallows it."""


class TookTooMuch(Exception):
    """A case raised the peak of memory by more than it may."""


class Figures:
    """What a run came to; `findings` are the files with the inputs, one for each place that something came from."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cases = 0
        self.seconds = 0.0
        self.exceptions = 0
        self.slowest = 0.0
        self.slowest_case = 0
        self.peak = 0.0
        self.findings: dict[str, Path] = {}

    def row(self) -> str:
        """The row of the table."""
        slowest = f"{1000 * self.slowest:.0f} ms (case {self.slowest_case:,})"
        numbers = f"{self.cases:,} | {self.seconds:.0f} | {self.exceptions}"
        return f"| {self.name} | {numbers} | {slowest} | {self.peak:.0f} MB |"


HEAD = "| target | cases | seconds | exceptions | slowest case | peak memory |\n|---|---|---|---|---|---|"


def make_folder() -> Path:
    """A folder for the files of a target, in memory where the system has such a place."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=IN_MEMORY if os.path.isdir(IN_MEMORY) else None))


def chance_of(seed: int, number: int) -> random.Random:
    """The randomness of one case."""
    return random.Random(seed << 32 | number)


def run(target: Target, seed: int, cases: int, first: int = 0, folder: Path = Path()) -> Figures:
    """Run cases; what was found lies in `folder`."""
    figures = Figures(target.name)
    began = reported = time.monotonic()
    base = peak_megabytes()
    with _limited():
        for number in range(first, first + cases):
            data = target.make(chance_of(seed, number))
            base = _run_case(target, number, data, base, figures, folder / f"{target.name}-{seed}-{number}.bin")
            if number % COLLECT_EVERY == 0:
                gc.collect()
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                print(f"{target.name}: {figures.cases:,} of {cases:,}", flush=True)
    figures.seconds = time.monotonic() - began
    figures.peak = peak_megabytes()
    return figures


def _run_case(target: Target, number: int, data: bytes, base: float, figures: Figures, path: Path) -> float:
    """Run one case; the peak of memory that the next one is measured from."""
    started = time.monotonic()
    try:
        with _time_limit(target.seconds):
            target.run(data)
        if peak_megabytes() - base > target.megabytes:
            raise TookTooMuch(f"memory rose by {peak_megabytes() - base:.0f} MB")
    except (Exception, TookTooLong) as error:
        figures.exceptions += 1
        _keep(error, data, figures, path)
        base = peak_megabytes()
    took = time.monotonic() - started
    figures.cases += 1
    if took > figures.slowest:
        figures.slowest, figures.slowest_case = took, number
    return base


def _keep(error: BaseException, data: bytes, figures: Figures, path: Path) -> None:
    """Keep the input, if it is the first one that leads there, and say how to run it again."""
    place = _place_of(error)
    if place in figures.findings:
        return
    figures.findings[place] = path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    text = "".join(traceback.format_exception(error))
    again = f"python3 scripts/fuzz.py {figures.name} --again {path}"
    print(f"\n{text[-3000:]}\nThe input is kept. Again:\n    {again}\n", flush=True)


def _place_of(error: BaseException) -> str:
    """What tells findings apart: the kind of error and where it was raised, or the function that took too long."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, TookTooLong):  # which is raised by the alarm, wherever that came
        return f"TookTooLong in {frames[-2].filename}, {frames[-2].name}"
    return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"


def peak_megabytes() -> float:
    """The most memory that this process ever had."""
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


@contextmanager
def _limited() -> Iterator[None]:
    """Inside, the alarm raises `TookTooLong`."""
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  the signature of a handler
    raise TookTooLong


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should it be raised where exceptions are ignored
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
