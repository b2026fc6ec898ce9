"""The command, as `ollama-prompt` and as `python -m ollama_prompt`."""

import sys

from ollama_prompt import interrupts


def main() -> int:
    """Run the command; the exit code. Ctrl-C must show no traceback from the first import on."""
    interrupts.install()
    from ollama_prompt import cli

    code = cli.main()
    interrupts.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())
