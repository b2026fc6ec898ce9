"""A virtual environment of the checkout's own, made once and used again.

What is installed follows from pyproject.toml and the Python that runs this. Both go into a fingerprint:
while it stays the same, the environment stays; when it changes, the environment is made anew. A step
counts as done only after it succeeded, so that an interrupted installation is continued.

Needs Python and its standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

OLDEST = (3, 10)
ROOT = Path(__file__).resolve().parent.parent
PIP = ["pip", "install", "--disable-pip-version-check"]


class Failed(Exception):
    """Something a person has to put right; the message says what."""


def say(text: str) -> None:
    """Print now: output of programs that are run follows it."""
    print(text, flush=True)


def short(path: Path | str) -> str:
    """A path as one would type it in the checkout."""
    try:
        return str(Path(path).relative_to(ROOT))
    except ValueError:
        return str(path)


class Environment:
    """The virtual environment in a folder of the checkout."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / name
        self._scripts = self.folder / ("Scripts" if os.name == "nt" else "bin")
        self._suffix = ".exe" if os.name == "nt" else ""
        self._done = self.folder / "installed.txt"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.command("python")

    def command(self, name: str) -> Path:
        """A command that is installed in it."""
        return self._scripts / (name + self._suffix)

    def make(self) -> None:
        """Have the environment there, empty if it is new."""
        _refuse_unfit_python()
        if self._steps()[:1] == [_fingerprint()] and self.python.exists():
            return
        self._make_way()
        say(f"Making {short(self.folder)} with Python {sys.version.split()[0]}")
        if subprocess.run([sys.executable, "-m", "venv", self.folder], check=False).returncode:
            raise Failed(f"python -m venv could not make {self.folder}; its message is above")
        # pip 21.2, which comes with the oldest Pythons, cannot install a checkout without setup.py editable.
        self._install("pip>=22")
        self._done.write_text(_fingerprint() + "\n", encoding="utf-8")

    def install(self, *arguments: str) -> None:
        """Have this installed: arguments of `pip install`, run in the checkout."""
        if not self.try_to_install(*arguments):
            raise Failed(f"pip could not install {arguments[-1]}; its message is above")

    def try_to_install(self, *arguments: str) -> bool:
        """The same for what can be done without."""
        step = " ".join(arguments)
        if step in self._steps():
            return True
        if not self._install(*arguments):
            return False
        with self._done.open("a", encoding="utf-8") as file:
            file.write(step + "\n")
        return True

    def install_as_users_do(self) -> None:
        """The checkout as it is now, not editable, byte-compiled."""
        self.make()
        self.install("-q", ".")
        if not self._install("-q", "--no-deps", "--force-reinstall", "--compile", "."):
            raise Failed("pip could not install the project; its message is above")

    def install_with_embedded(self, *extras: str) -> bool:
        """Have the project installed, editable. Whether with the extra `embedded`: not every platform has
        a wheel of its library, and building that takes a compiler and half an hour.
        """
        self.make()
        with_embedded = ",".join([*extras, "embedded"])
        if self.try_to_install("--only-binary", "xllamacpp", "-e", f".[{with_embedded}]"):
            return True
        self.install("-e", f".[{','.join(extras)}]" if extras else ".")
        return False

    def _make_way(self) -> None:
        """Remove an environment that is out of date, but never one that somebody else made."""
        if self.folder.exists():
            if not self._done.exists():
                raise Failed(f"{self.folder} was not made by this script; move it away and try again")
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._done.touch()

    def _install(self, *arguments: str) -> bool:
        say("$ " + " ".join([*PIP[:2], *arguments]))
        command = [str(self.python), "-m", *PIP, *arguments]
        return (
            subprocess.run(command, cwd=ROOT, stdout=sys.stdout, check=False).returncode == 0
        )  # also a redirected one

    def _steps(self) -> list[str]:
        """The fingerprint, then what was installed."""
        return self._done.read_text(encoding="utf-8").splitlines() if self._done.exists() else []


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a script, and end with its exit code."""
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def run_with_tests(main: Callable[[list[str]], int]) -> NoReturn:
    """The same in the environment of the tests, which is made where it is missing."""

    def start(arguments: list[str]) -> int:
        environment = Environment(".venv-test")
        if Path(sys.prefix) != environment.folder:
            environment.install_with_embedded("test")
            sys.stdout.flush()
            os.execv(environment.python, [str(environment.python), *sys.argv])
        return main(arguments)

    run(start)


def _refuse_unfit_python() -> None:
    if sys.version_info < OLDEST:
        raise Failed(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; this is {sys.version.split()[0]}")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Failed(f"this Python has no venv. On Debian and Ubuntu: sudo apt install python{version}-venv")


def _fingerprint() -> str:
    # A checkout that was moved needs a new environment too: the installed commands name their folder.
    known = [sys.version, sys.base_prefix, str(ROOT), (ROOT / "pyproject.toml").read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(known).encode()).hexdigest()
