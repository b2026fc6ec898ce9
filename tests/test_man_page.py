"""The manual page that is committed is the one that scripts/make_man_page.py makes, and is sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ollama_prompt
from ollama_prompt import flags, layout

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "data" / "share" / "man" / "man1" / "ollama-prompt.1"
CHECKS = {
    "groff": ["groff", "-man", "-ww", "-z", "-Tutf8", str(PAGE)],
    "mandoc": ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)],
}


def read(page: str) -> str:
    """The page without what is only for roff."""
    return re.sub(r"\\f.|\\&", "", page).replace(r"\-", "-")


def test_the_page_is_up_to_date() -> None:
    code = "import make_man_page, sys; sys.stdout.buffer.write(make_man_page.page().encode())"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, check=True).stdout
    current = made == PAGE.read_bytes().replace(b"\r\n", b"\n")
    assert current, "the flags or docs/cli.md have changed: run python scripts/make_man_page.py"


def test_every_flag_is_in_the_page() -> None:
    page = read(PAGE.read_text(encoding="utf-8"))
    named = re.findall(r"^\.TP\n(-.+)$", page, re.MULTILINE)
    there = {name for line in named for name in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)}
    assert there == {name for action in flags.make_parser()._actions for name in action.option_strings}


def test_the_page_has_the_sections_that_readers_look_for() -> None:
    page = read(PAGE.read_text(encoding="utf-8"))
    sections = re.findall(r"^\.SH (.+)$", page, re.MULTILINE)
    groups = [str(group.title).upper() for group in flags.make_parser()._action_groups if group._group_actions]
    usual = ["OUTPUT", "EXIT STATUS", "ERRORS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"]
    assert sections == ["NAME", "SYNOPSIS", "DESCRIPTION", *groups, *usual]
    assert f'"ollama-prompt {ollama_prompt.__version__}"' in page.splitlines()[0]


def test_all_that_lies_in_a_store_is_named() -> None:
    files = read(PAGE.read_text(encoding="utf-8")).partition(".SH FILES")[2].partition(".SH ")[0]
    store = layout.Layout("store")
    places = {os.path.basename(getattr(store, name)) for name in store.__slots__} - {"store"}
    assert places == set(re.findall(r"/\.ollama-prompt/([\w.]+)", files))


def test_nothing_of_the_source_is_left_over() -> None:
    page = read(PAGE.read_text(encoding="utf-8"))
    assert page.isascii()
    assert not re.findall(r"`|\*\*|\]\(|^\||^#|None", page, re.MULTILINE)


@pytest.mark.parametrize("program", CHECKS)
def test_nothing_is_wrong_with_it(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(CHECKS[program], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if "missing date" not in line] == [], "it has a version, but no day"
