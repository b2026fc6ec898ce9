"""Plain HTTP to this machine: a transport for httpx over the standard library's http.client.

httpx's own transport brings httpcore, h11 and TLS with it, a fifth of all that a start of the command
costs, and a server on loopback needs nothing of it. http.client is there already: httpx imports it.
Everything else (https, proxies, other machines) goes through httpx's own transport.

Invariants: only exceptions of httpx are raised, those that its own transport would raise; one
connection, one request at a time; a connection is used again only if its last answer was read to the
end and the server has said nothing since.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, IncompleteRead

import httpx

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from http.client import HTTPResponse

_BLOCK = 65536
_CUT = "the server closed the connection"


class Loopback(httpx.BaseTransport):
    """A transport for one plain server; give it to httpx.Client."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = HTTPConnection(host, port)
        # As bytes the name goes to the system as it is; for a str, socket imports the codec of foreign names.
        self._connection.host = host.encode("ascii")  # type: ignore[assignment]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the answer's body is read later, as it comes."""
        limits = request.extensions["timeout"]
        try:
            connection = self._connect(limits["connect"])
            connection.settimeout(limits["read"])
            if connected := request.extensions.get("connected"):
                connected(connection)  # who asks may want to shut it down: time-outs limit one read only
            self._send(request)
            with _as_httpx(httpx.ReadTimeout, httpx.ReadError):
                answer = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        body = _Body(self._connection, connection, answer)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.getheaders()]
        return httpx.Response(answer.status, headers=headers, stream=body, extensions={"network_stream": body})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _connect(self, limit: float | None) -> socket.socket:
        """The connection that is open, if it can be used again, else a new one."""
        connection: socket.socket | None = self._connection.sock
        if connection is not None and not _is_quiet(connection):
            self._connection.close()
            connection = None
        if connection is None:
            self._connection.timeout = limit
            with _as_httpx(httpx.ConnectTimeout, httpx.ConnectError):
                self._connection.connect()
            connection = self._connection.sock
        assert connection is not None
        return connection

    def _send(self, request: httpx.Request) -> None:
        with _as_httpx(httpx.WriteTimeout, httpx.WriteError):
            path = request.url.raw_path.decode("ascii")
            self._connection.putrequest(request.method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.raw:
                self._connection.putheader(name, value)
            # A server may refuse a request and hang up before it has read it whole: its answer counts.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._connection.endheaders(request.read() or None)


class _Body(httpx.SyncByteStream):
    """The body of an answer, as it arrives."""

    def __init__(self, owner: HTTPConnection, connection: socket.socket, answer: HTTPResponse) -> None:
        self._owner = owner
        self._connection = connection
        self._answer = answer
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx(httpx.ReadTimeout, httpx.ReadError):
            while data := self._answer.read1(_BLOCK):
                yield data
        if self._answer.length:
            raise httpx.RemoteProtocolError(_CUT)
        self._whole = True

    def close(self) -> None:
        """Done with this answer; what was not read would be in the way of the next one."""
        self._answer.close()
        if not self._whole:
            self._owner.close()

    def get_extra_info(self, name: str) -> socket.socket | None:
        """As the network streams of httpx's own transport have it."""
        return self._connection if name == "socket" else None


def _is_quiet(connection: socket.socket) -> bool:
    """Whether nothing came since the last answer: neither the server's goodbye nor anything else."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _as_httpx(too_late: type[httpx.TimeoutException], broken: type[httpx.NetworkError]) -> Iterator[None]:
    """Raise what httpx's own transport would raise."""
    try:
        yield
    except TimeoutError as error:
        raise too_late("timed out") from error
    except IncompleteRead as error:
        raise httpx.RemoteProtocolError(_CUT) from error
    except HTTPException as error:  # first: RemoteDisconnected is an OSError as well
        raise httpx.RemoteProtocolError(str(error) or type(error).__name__) from error
    except OSError as error:
        raise broken(str(error)) from error
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error)) from error
