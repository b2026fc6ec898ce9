"""Where to search."""

from __future__ import annotations


class Scope:
    """What is searched: what was said at a time or later (with "" ever), in one session, with one model; None: any."""

    def __init__(self, session_id: str | None = None, model: str | None = None, since: str = "") -> None:
        self.session_id = session_id
        self.model = model
        self.since = since

    def has_model(self, model: str | None) -> bool:
        """Whether a session with this model is searched; a tag may be left out."""
        return self.model is None or (model is not None and (model == self.model or model.startswith(self.model + ":")))
