"""A short run of each target of scripts/fuzz.py, and that a run finds, keeps and tells what is wrong."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fuzzing import mutations, runs
from fuzzing.arguments import Arguments
from fuzzing.client import Client
from fuzzing.reader import Reader
from hypothesis import given
from hypothesis import strategies as st

from ollama_prompt import config, flags
from ollama_prompt.errors import UsageError
from ollama_prompt.host import parse_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm and tells no peak of memory")

ROOT = Path(__file__).parent.parent
SEED = 20261122


@pytest.mark.parametrize(("kind", "cases"), [(Reader, 600), (Client, 25), (Arguments, 150)])
def test_a_short_run_finds_nothing(kind: Any, cases: int, tmp_path: Path) -> None:
    target = kind()
    try:
        figures = runs.run(target, SEED, cases, folder=tmp_path)
    finally:
        target.close()
    assert figures.findings == {}
    assert (figures.cases, figures.exceptions) == (cases, 0)


def test_a_store_is_put_to_the_test(reader: Reader) -> None:
    """The part of a case that only each 2000th has."""
    for number in range(3):
        reader._check_store(reader.make(runs.chance_of(SEED, number)))


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """The target for files, for several tests."""
    made = Reader()
    yield made
    made.close()


@given(st.lists(st.binary(max_size=60) | st.sampled_from([*mutations.PIECES, *mutations.VALUES]), max_size=12))
def test_any_bytes_are_read(reader: Reader, pieces: list[bytes]) -> None:
    reader.run(b"".join(pieces))


def test_a_case_is_the_same_in_every_run(reader: Reader) -> None:
    for target in (reader, Client(), Arguments()):
        made = [target.make(runs.chance_of(SEED, number)) for number in (5, 6, 5)]
        assert made[0] == made[2] != made[1]
        if target is not reader:
            target.close()


WORDS = st.text() | st.sampled_from(sorted(flags.make_parser()._option_string_actions))


def refusal(act: Callable[[], object]) -> str | None:
    """What is said where a value is refused."""
    try:
        act()
    except (ValueError, UsageError) as error:
        return str(error)
    return None


@given(st.lists(st.builds("".join, st.lists(WORDS, max_size=3)), max_size=6))
def test_any_words_are_flags_or_a_usage_error(words: list[str]) -> None:
    with suppress(SystemExit):  # help was asked for
        assert refusal(lambda: flags.parse(words)) != ""


CHECKS = [
    *(config.positive_integer, config.natural_number, config.token_count, config.positive_number, config.number_from_0),
    *(config.since, config.title, config.session_id, config.keep_alive, config.option, config.think, config.some_text),
    *(config.model_name, config.folder, config.answer_format),
]


@pytest.mark.parametrize("check", CHECKS)
@given(text=st.text() | st.text("0123456789-+.eE_nai", max_size=25) | st.text('{}[]",:\\a1=', max_size=25))
def test_any_value_is_taken_or_refused(check: Any, text: str) -> None:
    assert refusal(lambda: check(text)) != ""


@given(st.text() | st.text("htps:/[].0123456789@%?#é\\ ", max_size=30))
def test_any_host_is_one_or_a_usage_error(value: str) -> None:
    said = refusal(lambda: parse_host(value))
    assert said is None or "OLLAMA_HOST" in said
    assert said or parse_host(value).url.startswith(("http://", "https://"))


# -- the runs themselves ---------------------------------------------------------------------------------


class Spoilt:
    """A target that fails on some of its cases."""

    name = "spoilt"
    seconds = 0.5
    megabytes = 30.0

    def make(self, chance: Random) -> bytes:
        return b"%d" % chance.randrange(5)

    def run(self, data: bytes) -> None:
        if data == b"1":
            raise ValueError("one")
        if data == b"2":
            self.hang()
        if data == b"3":
            assert b"x" * (int(runs.peak_megabytes() + 50) << 20)

    def hang(self) -> None:
        while True:
            pass

    def close(self) -> None:
        pass


def test_what_is_wrong_is_found_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = runs.run(Spoilt(), SEED, 12, folder=tmp_path)
    # On a busy machine the one that takes too much may take too long first, and is found twice.
    assert {path.read_bytes() for path in figures.findings.values()} == {b"1", b"2", b"3"}
    assert figures.exceptions >= 3
    assert figures.slowest >= 0.5
    told = capsys.readouterr().out
    for path in figures.findings.values():
        assert f"python3 scripts/fuzz.py spoilt --again {path}\n" in told
    assert figures.row().startswith(f"| spoilt | 12 | {figures.seconds:.0f} | {figures.exceptions} |")


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (("reader", "--cases", "20", "--seed", "7"), "| reader | 20 |"),
        (("reader", "--again", "a file"), "a file: as promised"),
    ],
)
def test_the_command(tmp_path: Path, arguments: tuple[str, ...], last: str) -> None:
    (tmp_path / "a file").write_bytes(b"anything\n")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import fuzz; sys.exit(fuzz.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(last)
    assert ("seed: 7\n" in done.stdout) == ("--seed" in arguments)
