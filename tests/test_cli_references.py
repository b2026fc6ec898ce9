"""@references as users write them: replaced before anything is sent or stored, and stored as they were typed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import stores

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run
    from standin import StandIn


@pytest.fixture
def run(quick: Run) -> Run:
    """Hundreds of cases: without the start of Python."""
    return quick


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory to refer to."""
    folder = tmp_path / "project"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "build").mkdir()
    (folder / ".gitignore").write_text("build/\n", encoding="utf-8")
    (folder / "build" / "made.py").write_text("TODO made\n", encoding="utf-8")
    (folder / "src" / "main.py").write_text("print('hello')  # TODO greet\n", encoding="utf-8")
    (folder / "src" / "deep" / "größe.txt").write_text("Grüße, 世界\n", encoding="utf-8")
    (folder / "binary").write_bytes(b"a\0b")
    return folder


def sent(ollama: StandIn) -> str:
    """The last prompt that the server got."""
    content: str = ollama.chats()[-1]["messages"][-1]["content"]
    return content


def test_a_file(run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    stores.succeed(run("-p", "Explain @./src/main.py, please.", cwd=project))
    assert sent(ollama) == "Explain print('hello')  # TODO greet\n, please."
    prompt = stores.records(stores.the_file(home))[1]
    assert prompt["content"] == sent(ollama)
    assert prompt["typed"] == "Explain @./src/main.py, please."
    assert prompt["references"] == ["@./src/main.py"]
    assert list(prompt) == ["type", "id", "role", "content", "created_at", "typed", "references"]


def test_the_conversation_stays_readable_without_the_files(run: Run, ollama: StandIn, project: Path) -> None:
    session_id = stores.succeed(run("-p", "@./src/deep/größe.txt", cwd=project)).json["session_id"]
    (project / "src" / "deep" / "größe.txt").unlink()
    stores.succeed(run("--session-id", session_id, "-p", "Again"))
    assert ollama.chats()[-1]["messages"][0]["content"] == "Grüße, 世界\n"
    shown = stores.succeed(run("--session-info", session_id)).json["messages"][0]
    assert (shown["content"], shown["typed"]) == ("Grüße, 世界\n", "@./src/deep/größe.txt")
    assert stores.listed(run("--list-sessions"))[0]["title"] == "@./src/deep/größe.txt"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("@./src/", "deep/\nmain.py"),
        ("@./src/:list", "deep/\nmain.py"),
        ("@./:tree", "./\n├── .gitignore\n├── binary\n└── src/\n    ├── deep/\n    │   └── größe.txt\n    └── main.py"),
        ("@./:search:TODO", "src/main.py:1: print('hello')  # TODO greet"),
    ],
)
def test_directories(reference: str, expected: str, run: Run, ollama: StandIn, project: Path) -> None:
    stores.succeed(run("-p", f"See {reference} there", cwd=project))
    assert sent(ollama) == f"See {expected} there"


@pytest.mark.parametrize(
    "prompt",
    [
        "Mail me@./x or a@b.c",
        "@decorator above @property",
        "@ noon",
        "user@host:/tmp",
        "ends with @",
        "@.",
        "a@/b",
        "@~/x",
    ],
)
def test_what_only_looks_like_one(prompt: str, run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    stores.succeed(run("-p", prompt, cwd=project))
    assert sent(ollama) == prompt
    assert "typed" not in stores.records(stores.the_file(home))[1]


def test_an_escape(run: Run, ollama: StandIn, project: Path) -> None:
    stores.succeed(run("-p", r"Write \@./src/main.py", cwd=project))
    assert sent(ollama) == "Write @./src/main.py"


def test_a_prompt_file_has_references_and_what_they_bring_has_none(run: Run, ollama: StandIn, project: Path) -> None:
    (project / "one").write_text("@./two\n", encoding="utf-8")
    (project / "prompt.txt").write_text("See @./one", encoding="utf-8")
    stores.succeed(run("--prompt-file", "prompt.txt", cwd=project))
    assert sent(ollama) == "See @./two\n"


def test_stdin_and_system_prompts_have_none(run: Run, ollama: StandIn, project: Path) -> None:
    stores.succeed(run("--system", "@./binary", input="@./binary", cwd=project))
    stores.succeed(run("-p", "-", input="@./binary", cwd=project))
    stores.succeed(run("-p", "Review @./src/main.py", "--stdin", input="@./binary", cwd=project))
    assert [chat["messages"][-1]["content"] for chat in ollama.chats()] == [
        "@./binary", "@./binary", "Review print('hello')  # TODO greet\n\n@./binary",
    ]  # fmt: skip
    assert ollama.chats()[0]["messages"][0]["content"] == "@./binary"


def test_what_was_piped_in_is_not_stored_twice(run: Run, project: Path, home: Path) -> None:
    stores.succeed(run("-p", "Review @./src/main.py", "--stdin", input="a change", cwd=project))
    assert stores.records(stores.the_file(home))[1]["typed"] == "Review @./src/main.py"


REFUSED = {
    "missing": "@./missing.py",
    "binary": "@./binary",
    "a parent": "@../outside.txt",
    "an absolute path": "@/etc/passwd",
    "up and down": "@./src/../../outside.txt",
    "a link that leads out": "@./link",
    "a link to a directory outside": "@./link-dir/outside.txt",
    "a directory's mode on a file": "@./src/main.py:tree",
    "a bad pattern": "@./src/:search:(",
    "a device": "@/dev/zero",
    "a FIFO": "@./fifo",
    "one good, one bad": "@./src/main.py @./missing.py",
}


@pytest.mark.parametrize("reference", REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_sent_or_stored(
    reference: str, run: Run, ollama: StandIn, project: Path, home: Path
) -> None:
    (project.parent / "outside.txt").write_text("secret", encoding="utf-8")
    (project / "link").symlink_to("../outside.txt")
    (project / "link-dir").symlink_to("..")
    os.mkfifo(project / "fifo")
    error = stores.fail(run("-p", f"See {reference}", cwd=project, timeout=10), "reference_failed")
    assert error["hint"]
    assert "secret" not in str(error)
    assert ollama.requests() == []
    assert not home.exists()


def test_links_that_lead_out_are_left_out(run: Run, ollama: StandIn, project: Path) -> None:
    (project.parent / "outside.txt").write_text("TODO secret", encoding="utf-8")
    (project / "src" / "link").symlink_to("../../outside.txt")
    for mode in ("", ":list", ":tree", ":search:TODO"):
        stores.succeed(run("-p", f"@./src/{mode}", cwd=project))
        assert "link" not in sent(ollama)
        assert "secret" not in sent(ollama)


def test_the_root(run: Run, ollama: StandIn, project: Path, tmp_path: Path) -> None:
    stores.succeed(run("-p", "@../main.py", "--repo-root", str(project), cwd=project / "src" / "deep"))
    stores.succeed(run("-p", f"@{project}/src/main.py", cwd=project))
    stores.succeed(run("-p", "@./src/main.py", "--repo-root", str(project), cwd=tmp_path))
    stores.succeed(run("-p", "@./project/src/main.py", "--repo-root", "project", cwd=tmp_path))
    contents = {chat["messages"][0]["content"] for chat in ollama.chats()}
    assert contents == {"print('hello')  # TODO greet\n"}
    stores.fail(run("-p", "@./main.py", "--repo-root", str(project / "src" / "deep"), cwd=project), "reference_failed")
    stores.fail(run("-p", "@../main.py", cwd=project / "src" / "deep"), "reference_failed")


def test_the_largest_file(run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    (project / "large").write_text("x" * 200_001, encoding="utf-8")
    error = stores.fail(run("-p", "@./large", cwd=project), "reference_failed")
    assert "--max-file-bytes" in error["error"]
    assert not home.exists()
    more = ("--max-file-bytes", "200001", "--max-context-tokens", "99999", "--model", "viewer")
    stores.succeed(run("-p", "@./large", *more, cwd=project))
    stores.fail(run("-p", "@./src/main.py", "--max-file-bytes", "5", cwd=project), "reference_failed")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--repo-root", "no-such-dir"), ("--repo-root", "binary"), ("--repo-root", ""), ("--max-file-bytes", "0"),
        ("--max-file-bytes", "-1"), ("--max-file-bytes", "many"),
    ],
)  # fmt: skip
def test_wrong_values(wrong: tuple[str, str], run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    stores.fail(run("-p", "Hi", f"{wrong[0]}={wrong[1]}", cwd=project), "usage", 2)
    assert ollama.requests() == []
    assert not home.exists()


def test_a_retry_asks_what_was_sent(run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    session_id = stores.succeed(run("-p", "See @./src/main.py", cwd=project)).json["session_id"]
    (project / "src" / "main.py").unlink()
    stores.succeed(run("--retry", session_id))
    first, again = ollama.chats()
    assert first["messages"] == again["messages"]
    prompts = [record for record in stores.records(stores.the_file(home)) if record.get("role") == "user"]
    assert [prompt["references"] for prompt in prompts] == [["@./src/main.py"]] * 2


def test_nothing_is_kept_with_no_session(run: Run, ollama: StandIn, project: Path, home: Path) -> None:
    stores.succeed(run("-p", "See @./src/main.py", "--no-session", cwd=project))
    assert "hello" in sent(ollama)
    assert not home.exists()


def test_errors_as_text(run: Run, project: Path) -> None:
    result = stores.clean(run("-p", "@./missing", "--output", "text", cwd=project))
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot read @./missing: No such file or directory\nhint: ")


@pytest.mark.parametrize(("prompt", "code"), [("Mail a@b.c", 0), ("See @./x", 1)])
def test_a_removed_current_directory(prompt: str, code: int, tmp_path: Path, environment: dict[str, str]) -> None:
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "ollama_prompt", "-p", prompt]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done
