"""Waiting for a git that is at work in the store."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ollama_prompt import checkouts
from ollama_prompt.checkouts import wait_for_git


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder of a store, deep in a repository that nobody has touched for long."""
    folder = tmp_path / "project" / "store" / "sessions"
    folder.mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    rest(tmp_path / "project" / ".git")
    return folder


def rest(git_folder: Path) -> None:
    os.utime(git_folder, (1e9, 1e9))


def test_where_there_is_no_repository_nothing_is_waited_for(tmp_path: Path) -> None:
    assert not wait_for_git(str(tmp_path))


def test_a_repository_at_rest(store: Path) -> None:
    assert not wait_for_git(str(store))


@pytest.mark.parametrize("name", ["index.lock", "index.stash.123"])
def test_the_end_of_its_work_is_waited_for(store: Path, name: str) -> None:
    git_folder = store.parents[1] / ".git"
    lock = git_folder / name
    lock.touch()
    rest(git_folder)
    ended: list[float] = []

    def end() -> None:
        ended.append(time.monotonic())
        lock.unlink()
        rest(git_folder)

    timer = threading.Timer(0.1, end)
    timer.start()
    assert wait_for_git(str(store))
    assert ended
    timer.join()


def test_what_was_done_a_moment_ago_is_waited_for(store: Path) -> None:
    os.utime(store.parents[1] / ".git")
    assert wait_for_git(str(store))
    assert not wait_for_git(str(store))


def test_a_lock_that_was_left_is_not_waited_for_for_ever(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_folder = store.parents[1] / ".git"
    (git_folder / "index.lock").touch()
    rest(git_folder)
    monkeypatch.setattr(checkouts, "PATIENCE", 0.05)
    assert wait_for_git(str(store))


def test_a_lock_that_was_left_long_ago_is_no_work(store: Path) -> None:
    lock = store.parents[1] / ".git" / "index.lock"
    lock.touch()
    rest(lock)
    rest(lock.parent)
    assert not wait_for_git(str(store))


@pytest.mark.parametrize("is_relative", [True, False])
def test_a_work_tree_whose_git_folder_lies_elsewhere(store: Path, tmp_path: Path, is_relative: bool) -> None:
    there = store.parents[1] / ".git"
    work_tree = tmp_path / "other"
    work_tree.mkdir()
    named = os.path.relpath(there, work_tree) if is_relative else str(there)
    (work_tree / ".git").write_text(f"gitdir: {named}\n", encoding="utf-8")
    assert not wait_for_git(str(work_tree))
    os.utime(there)
    assert wait_for_git(str(work_tree))
