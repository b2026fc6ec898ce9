"""Send a prompt to an Ollama model and keep the conversation as plain files.

    from ollama_prompt import ask, continue_session, list_sessions, load_session

See `api` for these, and docs/embedding.md. They are imported when they are asked for: every start of the command
passes through this file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ollama_prompt.api import (
        Answer,
        Conversation,
        Message,
        Session,
        Settings,
        ask,
        continue_session,
        list_sessions,
        load_session,
    )
    from ollama_prompt.errors import OllamaPromptError

__all__ = [
    "Answer", "Conversation", "Message", "OllamaPromptError", "Session", "Settings", "ask", "continue_session",
    "list_sessions", "load_session",
]  # fmt: skip

__version__ = "2.0.0"


def __getattr__(name: str) -> Any:
    if name == "OllamaPromptError":
        from ollama_prompt.errors import OllamaPromptError

        return OllamaPromptError
    if name in __all__:
        from ollama_prompt import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
