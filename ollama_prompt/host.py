"""Where Ollama is: OLLAMA_HOST, read the way Ollama's own client reads it.

    nothing                     http://127.0.0.1:11434
    name, name:port, :port      plain http; port 11434 where none is given
    http://…, https://…         port 80, 443 where none is given
    ollama.com                  https://ollama.com:443
    a path after the host       kept, the API lies below it
    0.0.0.0, ::                 addresses to listen on; a client connects to loopback

Pure, and free of imports that cost: a wrong OLLAMA_HOST is reported before the HTTP library is loaded.
Invariant: `Host.url` can be requested. What could not be is refused here, with OLLAMA_HOST's name, for no
later message would lead a user back to it.
"""

from __future__ import annotations

import re

from ollama_prompt.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = "11434"

_EXAMPLE = "For example OLLAMA_HOST=http://127.0.0.1:11434"
_IPV4 = r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}"
# \w: an underscore is common inside company networks, and names may be non-ASCII.
_LABEL = re.compile(r"[\w-]{1,63}")


class Host:
    """One server. `given` is what the user wrote, for `ollama serve`; `note` what they should be told."""

    __slots__ = ("given", "host", "note", "path", "port", "scheme")

    def __init__(
        self,
        scheme: str = "http",
        host: str = DEFAULT_HOST,
        port: int = int(DEFAULT_PORT),
        path: str = "",
        *,
        given: str | None = None,
        note: str | None = None,
    ) -> None:
        self.scheme = scheme
        self.host = host
        self.port = port
        self.path = path
        self.given = given
        self.note = note

    @property
    def url(self) -> str:
        """The address that `/api/…` is appended to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether this is the machine that we run on, reached through loopback."""
        if ":" in self.host:
            return _is_ipv6_loopback(self.host)
        name = self.host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost") or _is_ipv4(name, first="127.")

    @property
    def is_plain_loopback(self) -> bool:
        """Whether no TLS and no proxy can be involved."""
        return self.scheme == "http" and self.is_local


def parse_host(value: str | None) -> Host:
    """The host that OLLAMA_HOST names. Raises UsageError for one that cannot be connected to."""
    text = (value or "").strip().strip("\"'").strip()
    scheme, rest, default_port = _split_scheme(text)
    address, _, path = rest.partition("/")
    if "@" in address:  # not shown: it may be a password
        raise UsageError("OLLAMA_HOST has a user or a password in it, which Ollama does not take", hint=_EXAMPLE)
    host, port = _split_port(address, default_port)
    note = None
    if not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65535):
        note = f"OLLAMA_HOST: {port!r} is not a port; {default_port} is used"
        port = default_port
    if scheme.lower() not in ("http", "https"):
        raise UsageError(f"OLLAMA_HOST: {scheme!r} is not a scheme that Ollama speaks", hint=_EXAMPLE)
    return Host(scheme.lower(), _connectable(host), int(port), _url_path(path), given=value, note=note)


def _split_scheme(text: str) -> tuple[str, str, str]:
    """The scheme, what follows it, and the port that the two imply."""
    scheme, separator, rest = text.partition("://")
    if separator:
        return scheme, rest, {"http": "80", "https": "443"}.get(scheme, DEFAULT_PORT)
    if text == "ollama.com":
        return "https", text, "443"
    return "http", text, DEFAULT_PORT


def _split_port(address: str, default_port: str) -> tuple[str, str]:
    """Host and port; an IPv6 address has a port only behind brackets."""
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::([^:\[\]]*))?", address)
    if bracketed:
        return bracketed[1], default_port if bracketed[2] is None else bracketed[2]
    if address.count(":") == 1:
        host, _, port = address.partition(":")
        return host, port
    return address or DEFAULT_HOST, default_port


def _connectable(host: str) -> str:
    """The host as a client connects to it; an empty one, or one to listen on, is loopback."""
    if ":" in host:
        return _connectable_ipv6(host)
    if host in ("", "0.0.0.0"):  # noqa: S104  (compared with, not listened on)
        return DEFAULT_HOST
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError(f"OLLAMA_HOST: {host!r} is not the name of a host", hint=_EXAMPLE)
    return host


def _connectable_ipv6(host: str) -> str:
    import ipaddress  # 3 ms, for those who need it

    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise UsageError(f"OLLAMA_HOST: {host!r} is not the name of a host", hint=_EXAMPLE) from None
    if address.ipv4_mapped is not None:
        return _connectable(str(address.ipv4_mapped))
    return "::1" if address.is_unspecified else str(address)


def _is_ipv6_loopback(host: str) -> bool:
    import ipaddress

    return ipaddress.IPv6Address(host).is_loopback


def _is_ipv4(name: str, *, first: str) -> bool:
    return name.startswith(first) and re.fullmatch(_IPV4, name, re.ASCII) is not None


def _url_path(path: str) -> str:
    """The path as it stands in a URL, with a slash at its start and none at its end."""
    path = path.strip("/")
    if re.fullmatch(r"[\w.~/-]*", path, re.ASCII):
        return f"/{path}" if path else ""
    from urllib.parse import quote

    return "/" + quote(path, errors="surrogateescape")
