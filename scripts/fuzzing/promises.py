"""What every target asks of the command: of JSON, of text for people, of errors, of what is shown while it arrives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from ollama_prompt import render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from ollama_prompt.errors import OllamaPromptError

CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON that we print never has as it is."""
DRIVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What text for people never has."""


def assert_json(text: str) -> Any:
    """It parses, and drives no terminal; its value."""
    assert not CONTROL.search(text), f"a control character in JSON: {CONTROL.search(text)}"
    return json.loads(text)


def assert_for_people(text: str) -> None:
    """It drives no terminal."""
    assert not DRIVING.search(text), f"a control character in text: {DRIVING.search(text)}"


def assert_error(error: OllamaPromptError) -> None:
    """It can be said."""
    told = assert_json(render.error_as_json(error))
    assert told["code"] != "error", f"an error without a code: {told}"


class Sink:
    """Takes what is shown while it arrives; it must be printable."""

    def start(self, model: str, session_id: str | None) -> None:
        assert_json(render.as_line({"model": model, "session_id": session_id}))

    def thinking(self, text: str) -> None:
        assert_json(render.as_line({"text": text}))

    def token(self, text: str) -> None:
        assert_json(render.as_line({"text": text}))


def run_command(
    argv: list[str], env: dict[str, str], stdin: bytes, cwd: Path | None = None
) -> tuple[int, bytes, bytes]:
    """The command as a process of its own, where a warning is an error: exit code, stdout, stderr."""
    command = [sys.executable, "-W", "error", "-m", "ollama_prompt", *argv]
    found = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(command, cwd=cwd, env=found | env, input=stdin, capture_output=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr
