"""What a turn needs of a model, wherever the model runs.

`ollama.Ollama` (a server, over HTTP) and `embedded.EmbeddedModel` (a GGUF file in this process)
both fulfil `Model`: the same chunks, the same errors, real token counts. A turn never asks which of
the two it talks to.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Protocol

    class Model(Protocol):
        """One model, ready to be asked. Every method raises only errors of the tree in `errors`."""

        def check(self) -> ModelFacts:
            """Reach the model and say what it is. Stores and generates nothing."""

        def loaded_window(self) -> int | None:
            """The window that the model is loaded with now, in tokens; None if it is not loaded."""

        def chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
            """Ask. `body` is the body of Ollama's POST /api/chat, `model` and `stream` aside.

            Yields the chunks of Ollama's stream: {"message": {"content": …, "thinking": …}, "done": false},
            the last with "done": true, "done_reason" and the counts. Raises `ContextExceeded` when the
            messages do not fit, `IncompleteAnswer` when the stream ends without `done`.
            """

        def close(self) -> None:
            """Let go of sockets and memory. The model must not be used afterwards."""


class ModelFacts:
    """What the model says of itself; None means that it does not say.

    `context_length` is the model's own limit in tokens, `capabilities` names such as "vision" and
    "thinking". A cloud model chooses its window itself: `num_ctx` is never sent to one.
    """

    __slots__ = ("capabilities", "cloud", "context_length")

    def __init__(
        self,
        context_length: int | None = None,
        capabilities: tuple[str, ...] | None = None,
        cloud: bool = False,
    ) -> None:
        self.context_length = context_length
        self.capabilities = capabilities
        self.cloud = cloud
