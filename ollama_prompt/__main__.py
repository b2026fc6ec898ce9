"""`python -m ollama_prompt` is the same command as `ollama-prompt`."""

import sys

from ollama_prompt.cli import main

if __name__ == "__main__":
    sys.exit(main())
