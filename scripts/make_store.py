"""Make a store for a measurement, with the project's own record and path code.

    python scripts/make_store.py HOME SESSIONS TURNS      prints {"session_id": the last one's id}

A turn is about 100 tokens, with the counts that a server would have given.
"""

from __future__ import annotations

import os
import sys

from ollama_prompt import clock, records
from ollama_prompt.layout import Layout

ANSWER = "An answer of some length, as models like to give them. " * 7


def session(number: int, session_id: str, turns: int) -> bytes:
    """The content of one session file."""
    made = [records.header(session_id, {"model": "smollm2", "max_context_tokens": 64000})]
    for turn in range(turns):
        made.append(records.message("user", f"Question {turn} of session {number}, and why it is so."))
        counts = {"prompt_tokens": 20 + 100 * turn, "tokens": 80}
        made.append(records.message("assistant", ANSWER, model="smollm2", **counts, done_reason="stop"))
    return records.encode(*made)


def main(home: str, sessions: int, turns: int) -> None:
    """Make the store."""
    layout = Layout(home)
    layout.make()
    for number in range(sessions):
        session_id = clock.new_id()
        path = layout.new_path(session_id)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(session(number, session_id, turns))
    print(f'{{"session_id": "{session_id}"}}')


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
