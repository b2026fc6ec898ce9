"""The system's git: found on the PATH, run without a shell, in one folder.

It has the user's configuration, and sees the repository of that folder only, whatever a hook that we may run in
names. It never waits for anybody: no editor opens, and without a terminal nothing is asked. What goes wrong is
`GitFailed`, with what git said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from ollama_prompt.errors import GitFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_A_REPOSITORY = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX",
)  # fmt: skip
_SETTINGS = ("merge.directoryRenames=false", "submodule.recurse=false")


class Git:
    """git in this folder. `apart` keeps Ctrl-C at the terminal from it: it ends what it has begun."""

    def __init__(self, folder: str) -> None:
        found = shutil.which("git")
        if found is None:
            raise GitFailed("git is not installed, or not on the PATH", hint="https://git-scm.com/downloads")
        self._command = [found, "-C", folder, *(part for setting in _SETTINGS for part in ("-c", setting))]
        self._environment = {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}
        self._environment |= {"LC_ALL": "C", "GIT_EDITOR": ":", "GIT_MERGE_AUTOEDIT": "no"}
        if sys.stdin is None or not sys.stdin.isatty():
            self._environment["GIT_TERMINAL_PROMPT"] = "0"

    def attempt(self, *arguments: str, text: str = "", apart: bool = False) -> subprocess.CompletedProcess[bytes]:
        """Run it, with `text` on its stdin: exit code and output. Raises `GitFailed` only if it cannot be started."""
        try:
            return subprocess.run(
                [*self._command, *arguments],
                env=self._environment, input=text.encode(), capture_output=True, check=False, start_new_session=apart,
            )  # fmt: skip
        except OSError as error:
            raise GitFailed(f"git cannot be run: {error.strerror or error}") from error

    def run(self, *arguments: str, text: str = "", apart: bool = False, hint: str | None = None) -> str:
        """What it prints, without the newline at the end. Raises `GitFailed`."""
        done = self.attempt(*arguments, text=text, apart=apart)
        if done.returncode:
            raise failure(arguments[0], done, hint)
        return os.fsdecode(done.stdout).removesuffix("\n")

    def ask(self, *arguments: str) -> str | None:
        """What it prints; None if it has no answer."""
        done = self.attempt(*arguments)
        return None if done.returncode else os.fsdecode(done.stdout).removesuffix("\n")

    def paths(self, *arguments: str) -> list[str]:
        """The paths that it prints with -z. Raises `GitFailed`."""
        return [path for path in self.run(*arguments).split("\0") if path]

    def lines(self, *arguments: str) -> Iterator[bytes]:
        """What it prints, line by line, however much that is."""
        command = [*self._command, *arguments]
        with subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as git:
            assert git.stdout
            yield from git.stdout


def failure(what: str, done: subprocess.CompletedProcess[bytes], hint: str | None = None) -> GitFailed:
    """What git said as our error: its last words, which hold the reason, in one line."""
    said = [line.strip() for line in os.fsdecode(done.stderr or done.stdout).splitlines()]
    said = [line for line in said if line and not line.startswith("hint:")]
    reason = next((line for line in said if line.startswith(("fatal:", "error:"))), said[-1] if said else "no reason")
    return GitFailed(f"git {what}: {reason}", hint=hint)
