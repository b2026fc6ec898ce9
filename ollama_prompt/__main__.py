"""The command, as `ollama-prompt` and as `python -m ollama_prompt`."""

from __future__ import annotations

from ollama_prompt import interrupts, lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command, and end the process with its exit code."""
    interrupts.install()  # Ctrl-C must show no traceback, from the first import on
    lean.put_off_imports()
    with lean.without_translations():
        from ollama_prompt import cli

    # The end of the interpreter would free every object, give up the handlers of signals before it is through, and
    # unload the library of the embedded model, which may crash.
    interrupts.end(cli.main())


if __name__ == "__main__":
    main()
