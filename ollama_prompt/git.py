"""The system's git: found on the PATH, run without a shell, in one folder.

It has the user's configuration, and sees the repository of that folder only, whatever a hook that we may run in
names. It never waits for anybody: no editor opens, and without a terminal nothing is asked. What goes wrong is
`GitFailed`, with what git said.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

from ollama_prompt.errors import GitFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_OF_A_REPOSITORY = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
)  # fmt: skip
_SETTINGS = (
    "merge.directoryRenames=false", "merge.autoStash=false", "submodule.recurse=false", "core.safecrlf=false",
)  # fmt: skip
_NOISE = (
    "Please make sure you have",
    "and the repository exists",
    "Aborting",
    "Merge with strategy",
    "To ",
    "From ",
    "Done",
)
"""Lines that tell nobody anything."""
_FAR = re.compile(rb"(?:remote: )?([A-Z][a-z ]+):\s+\d+% \((\d{1,18})/(\d{1,18})\)")
"""How git tells how far it has come. The other side may say anything: Python makes no number of 5,000 digits."""
_CHATTER = re.compile(rb"(?:remote: )?(?:Enumerating objects|Delta compression|Total \d)")
"""What it says beside that."""
MOST_SAID = 600
"""Characters that are passed on of what git says, and as many of what the other side does."""
_PERSONS = ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
_NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "ollama-prompt"), ("EMAIL", "ollama-prompt@localhost"))
}


class Git:
    """git in this folder.

    `is_private` lets nobody else read the files that it writes; `was_killed` tells that locks of its may be left.
    """

    def __init__(self, folder: str) -> None:
        found = shutil.which("git")
        if found is None:
            raise GitFailed("git is not installed, or not on the PATH", hint="https://git-scm.com/downloads")
        self._command = [found, "-C", folder, *(part for setting in _SETTINGS for part in ("-c", setting))]
        self._environment = {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}
        self._environment |= {"LC_ALL": "C", "GIT_EDITOR": ":", "GIT_MERGE_AUTOEDIT": "no"}
        self._environment["GIT_OPTIONAL_LOCKS"] = "0"  # what only looks stands in nobody's way
        if sys.stdin is None or not sys.stdin.isatty():
            self._environment["GIT_TERMINAL_PROMPT"] = "0"
        self.is_private = False
        self.was_killed = False
        self._is_apart = False

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep Ctrl-C at the terminal from it meanwhile: it ends what it has begun."""
        before, self._is_apart = self._is_apart, True
        try:
            yield
        finally:
            self._is_apart = before

    def name_author(self) -> None:
        """Commit in our own name where git knows no name."""
        if not all(self.ask("var", person) for person in _PERSONS):
            self._environment |= _NOBODY

    def attempt(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[bytes]:
        """Run it, with `text` on its stdin: exit code and output. Raises `GitFailed` only if it cannot be started."""
        try:
            command = [*self._command, *arguments]
            done = subprocess.run(command, input=text.encode(), capture_output=True, check=False, **self._conditions())
        except OSError as error:
            raise _cannot_run(error) from error
        self.was_killed = self.was_killed or done.returncode < 0
        return done

    def watch(self, tell: Callable[[str], None], *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run it as `attempt` does, and tell how far it has come; it takes --progress."""
        import tempfile

        command = [*self._command, *arguments, "--progress"]
        with (
            tempfile.TemporaryFile() as printed,
            self._started(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.PIPE) as git,
        ):
            assert git.stderr
            said = _told(git.stderr.fileno(), tell)
            code = git.wait()
            self.was_killed = self.was_killed or code < 0
            printed.seek(0)
            return subprocess.CompletedProcess(command, code, printed.read(), said)

    def run(self, *arguments: str, text: str = "", hint: str | None = None) -> str:
        """What it prints, without the newline at the end. Raises `GitFailed`."""
        done = self.attempt(*arguments, text=text)
        if done.returncode:
            raise failure(arguments[0], done, hint)
        return os.fsdecode(done.stdout).removesuffix("\n")

    def content(self, *arguments: str) -> bytes:
        """What it prints, to the byte. Raises `GitFailed`."""
        done = self.attempt(*arguments)
        if done.returncode:
            raise failure(arguments[0], done)
        return done.stdout

    def ask(self, *arguments: str) -> str | None:
        """What it prints; None if it has no answer."""
        done = self.attempt(*arguments)
        return None if done.returncode else os.fsdecode(done.stdout).removesuffix("\n")

    def paths(self, *arguments: str) -> list[str]:
        """The paths that it prints with -z. Raises `GitFailed`."""
        return [path for path in self.run(*arguments).split("\0") if path]

    def lines(self, *arguments: str) -> Iterator[bytes]:
        """What it prints, line by line, however much that is. Raises `GitFailed`."""
        import tempfile

        command = [*self._command, *arguments]
        with (
            tempfile.TemporaryFile() as said,
            self._started(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as git,
        ):
            assert git.stdout
            yield from git.stdout
            if code := git.wait():
                said.seek(0)
                raise failure(arguments[0], subprocess.CompletedProcess(command, code, b"", said.read()))

    def _started(self, command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        """Raises `GitFailed`."""
        try:
            return subprocess.Popen(command, **streams, **self._conditions())
        except OSError as error:
            raise _cannot_run(error) from error

    def _conditions(self) -> dict[str, Any]:
        umask = 0o077 if self.is_private and os.name == "posix" else -1
        return {"env": self._environment, "start_new_session": self._is_apart, "umask": umask}


def _cannot_run(error: OSError) -> GitFailed:
    return GitFailed(f"git cannot be run: {error.strerror or error}")


def _told(descriptor: int, tell: Callable[[str], None]) -> bytes:
    """What git says on its stderr, without how far it has come: that is told."""
    kept = rest = b""
    while piece := os.read(descriptor, 4096):
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + piece)
        for line in lines:
            if far := _FAR.match(line):
                tell(f"{far[1].decode().lower()}, {int(far[2])} of {int(far[3])}")
            elif not _CHATTER.match(line):
                kept += line
    return kept + rest


def failure(what: str, done: subprocess.CompletedProcess[bytes], hint: str | None = None) -> GitFailed:
    """What git said as our error, in one line: what the other side said, and what it and its hooks did."""
    said = [line.strip() for line in os.fsdecode(done.stderr or done.stdout).splitlines()]
    theirs = [line.removeprefix("remote:").strip() for line in said if line.startswith("remote:")]
    ours = [line for line in said if line and not line.startswith(("hint:", "remote:", *_NOISE))]
    reason = _cut(ours)
    if done.returncode < 0:
        reason = f"it was killed by signal {-done.returncode}"
    if ".lock" in reason and "File exists" in reason:
        hint = "wait for the other git; if none is running, one was killed: remove that file"
    return GitFailed(f"git {what}: {' '.join(filter(None, (_cut(theirs), reason or 'no reason')))}", hint=hint)


def _cut(lines: list[str]) -> str:
    text = " ".join(filter(None, lines))
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]} …"
