"""Leave out what a client needs none of while the HTTP library is imported.

Only for a process that is ours alone, so only for the command: hidden modules stay unknown to the
modules that looked for them. All of these look for them in a `try`, and do without.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ollama_prompt.host import Host


@contextmanager
def lean_imports(host: Host) -> Iterator[None]:
    """Inside, import `ollama` and make its client; for plain http to this machine TLS is left out.

    For all other hosts httpcore is kept from importing anyio, and with it asyncio: a client that never
    awaits needs neither.
    """
    unneeded = ("ssl",) if host.is_plain_loopback else ("anyio", "trio")
    hidden = [name for name in unneeded if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
