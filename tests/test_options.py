"""The flags of the scripts that run long: what cannot be meant is refused at once, and not after an hour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bench
import fuzz
import pytest
import torture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"], ["--rounds", "-3"], ["--rounds", "x"], ["--json", "."], ["--json", "no/such/folder.json"],
        ["--few"], ["--real"], ["--peers", "--git"], ["--git", "--search"], ["--git", "--few"],
    ],
)  # fmt: skip
def test_bench_refuses(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.wanted_of(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [["--processes", "0"], ["--seconds", "0"], ["--seconds", "-1"], ["--seconds", "nan"], ["--seconds", "inf"]],
)
def test_torture_refuses(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        torture.wanted_of(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [["--cases", "0"], ["--cases", "-1"], ["--first", "-1"], ["reader", "--again", "no such file"]],
)
def test_fuzz_refuses(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fuzz.main(arguments)
    assert ended.value.code == 2


def test_an_input_is_run_again_on_the_target_it_was_made_for(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"anything\n")
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--again", str(tmp_path / "input")])
    assert ended.value.code == 2


def test_what_is_meant_is_taken(tmp_path: Path) -> None:
    wanted = bench.wanted_of(["--peers", "--few", "--real", "--rounds", "1", "--json", str(tmp_path / "x.json")])
    assert (wanted.peers, wanted.few, wanted.real, wanted.rounds) == (True, True, True, 1)
    assert wanted.json == tmp_path / "x.json"
    assert torture.wanted_of(["--seconds", "0.5", "--processes", "1"]).seconds == 0.5
