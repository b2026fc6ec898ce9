"""Everything that can go wrong, as one tree.

    OllamaPromptError            exit 1
    ├── UsageError               usage, exit 2
    ├── StoreError
    │   ├── SessionNotFound      session_not_found
    │   ├── SessionBusy          session_busy, exit 75
    │   ├── StoreUnreadable      store_unreadable
    │   ├── StoreWriteFailed     store_write_failed
    │   └── NothingToUndo        nothing_to_undo
    ├── ReferenceFailed          reference_failed
    ├── ImportFailed             import_failed
    ├── ExportFailed             export_failed
    ├── GitFailed                git_failed
    ├── ModelError
    │   ├── OllamaUnreachable    ollama_unreachable
    │   ├── ModelNotFound        model_not_found
    │   ├── ModelUnsupported     model_unsupported
    │   ├── SigninRequired       signin_required
    │   ├── EmbeddedUnavailable  embedded_unavailable
    │   ├── ContextTooSmall      context_too_small
    │   ├── ContextExceeded      (inside a turn only; becomes ContextTooSmall)
    │   ├── OllamaBusy           ollama_busy
    │   ├── OllamaError          ollama_error
    │   ├── IncompleteAnswer     incomplete_answer
    │   └── AnswerTimeout        timeout
    ├── OutputFailed             output_failed
    └── OutputClosed             exit 141, said to nobody
    Interrupted                  Ctrl-C and TERM; outside the tree, like KeyboardInterrupt

Each class carries its stable `code` and its `exit_code`; a message says what happened, a `hint`
what to do about it. Foreign exceptions (httpx, sqlite3, OSError) are translated where their library
is owned, so that only this tree reaches `cli`.
"""

from __future__ import annotations


class OllamaPromptError(Exception):
    """Base of all errors that are meant for the user.

    `session_id` is the session that the error is about, where there is one.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, session_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.session_id = session_id

    def __str__(self) -> str:
        return self.message  # which may have got longer since


class UsageError(OllamaPromptError):
    """A wrong flag, a value out of range, an empty prompt."""

    code = "usage"
    exit_code = 2


class StoreError(OllamaPromptError):
    """The kept conversations could not be read or written."""


class SessionNotFound(StoreError):
    """No session has this id."""

    code = "session_not_found"


class SessionBusy(StoreError):
    """Another process holds the session, or the index, for longer than we may wait."""

    code = "session_busy"
    exit_code = 75


class StoreUnreadable(StoreError):
    """A file of the store cannot be read, or is of a version that we must not write."""

    code = "store_unreadable"


class StoreWriteFailed(StoreError):
    """The disk is full, the store is read-only, permission is missing."""

    code = "store_write_failed"


class NothingToUndo(StoreError):
    """The session has no turn that could be taken back, or asked again."""

    code = "nothing_to_undo"


class ReferenceFailed(OllamaPromptError):
    """An @reference of the prompt cannot be read, is binary or too large, or leads out of the root."""

    code = "reference_failed"


class ImportFailed(OllamaPromptError):
    """What is to be imported cannot be read, or is nothing that we know."""

    code = "import_failed"


class ExportFailed(OllamaPromptError):
    """What is exported cannot be written where it should be, or something else lies there."""

    code = "export_failed"


class GitFailed(OllamaPromptError):
    """git is missing, refuses, or cannot reach the remote."""

    code = "git_failed"


class ModelError(OllamaPromptError):
    """The model did not answer as asked.

    `keeps_prompt` tells what the turn leaves: a question that was refused before the first word
    leaves nothing (False), one that broke off leaves the prompt and what came of the answer (True). The turn sets
    it where the model had begun to answer.
    """

    keeps_prompt = False


class OllamaUnreachable(ModelError):
    """No server answers at OLLAMA_HOST."""

    code = "ollama_unreachable"


class ModelNotFound(ModelError):
    """The server, or the disk, has no such model."""

    code = "model_not_found"


class ModelUnsupported(ModelError):
    """The model cannot do what was asked: thinking, vision."""

    code = "model_unsupported"


class SigninRequired(ModelError):
    """A cloud model, and the server is not signed in."""

    code = "signin_required"


class EmbeddedUnavailable(ModelError):
    """A .gguf model was named and the extra `embedded` is not installed."""

    code = "embedded_unavailable"


class ContextTooSmall(ModelError):
    """The new prompt alone is larger than what may be sent."""

    code = "context_too_small"


class ContextExceeded(ModelError):
    """The server refused the request because it does not fit the model's window.

    `prompt_tokens` and `num_ctx` are the server's own figures, None where it gives none (Ollama 0.24
    says only "the input length exceeds the context length"). The turn trims by them and asks once more.
    """

    code = "context_too_small"

    def __init__(self, message: str, *, prompt_tokens: int | None = None, num_ctx: int | None = None) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.num_ctx = num_ctx


class OllamaBusy(ModelError):
    """The server answered 503 for as long as we may ask again."""

    code = "ollama_busy"
    keeps_prompt = True


class OllamaError(ModelError):
    """The server reported an error; `keeps_prompt` is False where it refused the request (400)."""

    code = "ollama_error"

    def __init__(self, message: str, *, hint: str | None = None, keeps_prompt: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.keeps_prompt = keeps_prompt


class IncompleteAnswer(ModelError):
    """The stream ended without `done`: cut, empty, or the server died."""

    code = "incomplete_answer"
    keeps_prompt = True


class AnswerTimeout(ModelError):
    """The whole answer took longer than --timeout."""

    code = "timeout"
    keeps_prompt = True


class OutputFailed(OllamaPromptError):
    """Stdout cannot be written, for example because its disk is full."""

    code = "output_failed"


class OutputClosed(OllamaPromptError):
    """Whoever read our stdout went away (`| head -1`). Nobody is left to be told."""

    exit_code = 141


class Interrupted(BaseException):
    """Ctrl-C or a request to terminate; `signal_number` gives the exit code, 128 + signal.

    `interrupts` tells where it is raised. `turn` is what had come of an answer, in the form that is printed.
    Not an Exception, so that no `except Exception` swallows it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.turn: dict[str, object] = {}

    @property
    def is_ctrl_c(self) -> bool:
        """Whether it is the one that a person may mean for the turn alone."""
        return self.signal_number == 2

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for TERM."""
        return 128 + self.signal_number
