"""HTTP/1.1 to a daemon, blocking, over any stream socket: unix, tcp, TLS, and ssh through the ssh program.

One `Transport` keeps one idle connection and reuses it. The standard library's client is not used because importing
it costs more than all the rest of a short command.
"""

from __future__ import annotations

import json
import socket

from dray.client import address as addresses
from dray.client.errors import ApiError, ConnectError, ProtocolError
from dray.client.http1 import CHUNK, Connection, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Readable(Protocol):
        """Whatever a request body may be read from."""

        def read(self, size: int, /) -> bytes:
            """Return at most `size` bytes, none at the end."""


API_VERSION = "1.51"
MIN_API_VERSION = "1.24"


def version_key(version: str) -> tuple[int, ...]:
    """Return an API version as something that compares by number (`1.9` before `1.10`)."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def quote(text: str) -> str:
    """Percent-encode one path segment or query value (RFC 3986 unreserved characters stay)."""
    if text.isalnum() and text.isascii():
        return text
    return "".join(
        chr(b) if (48 <= b < 58 or 65 <= b < 91 or 97 <= b < 123 or b in b"-._~") else f"%{b:02X}"
        for b in text.encode()
    )


def path_name(name: str) -> str:
    """Quote a name whose slashes and colons are part of the path (`images/a/b:c/json`)."""
    return "".join(c if c in "/:@" else quote(c) for c in name)


def encode_query(pairs: Mapping[str, Any]) -> str:
    """Encode a query: None is left out, booleans are 1 or left out, lists repeat the key, mappings are JSON."""
    parts = []
    for key, value in pairs.items():
        if value is None or value is False:
            continue
        if value is True:
            parts.append(f"{key}=1")
        elif isinstance(value, (list, tuple)):
            parts.extend(f"{key}={quote(str(one))}" for one in value)
        elif isinstance(value, dict):
            parts.append(f"{key}={quote(json.dumps(value, separators=(',', ':')))}")
        else:
            parts.append(f"{key}={quote(str(value))}")
    return "&".join(parts)


class TlsFiles:
    """Where the client's TLS material lies; `verify` False accepts any server certificate."""

    __slots__ = ("ca", "cert", "key", "verify")

    def __init__(self, *, ca: str = "", cert: str = "", key: str = "", verify: bool = True) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key
        self.verify = verify


class Transport:
    """Requests to one daemon. Not safe for threads: `clone()` gives each thread its own.

    The API version is the newest both sides speak: one unversioned ping learns the daemon's, unless `version`
    fixes it.
    """

    def __init__(
        self,
        host: str = addresses.DEFAULT_HOST,
        *,
        tls: TlsFiles | None = None,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        user_agent: str = "dray",
    ) -> None:
        self.address = addresses.parse(host, tls=tls is not None)
        self._tls = tls
        self._fixed = version
        self._ping: dict[str, str] | None = None
        self._headers = dict(headers or {})
        self._agent = user_agent
        self._idle: Connection | None = None

    def clone(self) -> Transport:
        """Return a transport to the same daemon with no connection yet; what the ping learned is kept."""
        other = Transport(
            self.address.text, tls=self._tls, version=self._fixed, headers=self._headers, user_agent=self._agent
        )
        other._ping = self._ping
        return other

    def close(self) -> None:
        """Close the idle connection."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    # -- connections -------------------------------------------------------------------------------------------

    def _context(self, tls: TlsFiles) -> ssl.SSLContext:
        import ssl

        context = ssl.create_default_context(cafile=tls.ca or None)
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.cert or tls.key:
            context.load_cert_chain(tls.cert, tls.key or None)
        return context

    def _connect_ssh(self) -> Connection:
        import subprocess

        where = self.address
        argv = [
            "ssh",
            *(["-l", where.user] if where.user else []),
            *(["-p", str(where.port)] if where.port else []),
        ]
        argv += ["-o", "ConnectTimeout=30", "-T", "--", where.host, "docker"]
        argv += [*(["--host", f"unix://{where.path}"] if where.path else []), "system", "dial-stdio"]
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True)
        return Connection(ours, child)

    def connect(self) -> Connection:
        """Open a new connection; ConnectError names the address and keeps the system's reason."""
        where = self.address
        try:
            if where.scheme == "ssh":
                return self._connect_ssh()
            if where.scheme == "unix":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.connect(where.path)
                except BaseException:
                    sock.close()
                    raise
                return Connection(sock)
            sock = socket.create_connection((where.host, where.port), timeout=30)
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                try:
                    sock = self._context(self._tls).wrap_socket(sock, server_hostname=where.host)
                except BaseException:
                    sock.close()
                    raise
            return Connection(sock)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> ConnectError:
        where = self.address.text
        if isinstance(error, PermissionError):
            message = f"permission denied while trying to connect to the Docker daemon socket at {where}: {error.strerror}"
            return ConnectError(where, error, message)
        if not isinstance(error, (ConnectionError, FileNotFoundError, TimeoutError)):
            return ConnectError(where, error, f"error during connect: {where}: {error}")
        return ConnectError(where, error)

    def release(self, connection: Connection, *, keep: bool) -> None:
        """Take back a connection whose answer was read to its end."""
        if keep and self._idle is None and not connection.buffer:
            self._idle = connection
        else:
            connection.close()

    # -- requests ----------------------------------------------------------------------------------------------

    def _head(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        host = self.address.host if self.address.scheme == "tcp" else "api.moby.localhost"
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"User-Agent: {self._agent}"]
        lines += [f"{name}: {value}" for name, value in {**self._headers, **headers}.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ProtocolError("a header or path must not contain a line break")
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def _exchange(
        self, method: str, target: str, headers: dict[str, str], body: bytes | Readable | None
    ) -> Response:
        data: bytes | None = None
        if isinstance(body, bytes):
            data = body
            headers["Content-Length"] = str(len(body))
        elif body is not None:
            headers["Transfer-Encoding"] = "chunked"
        elif method in ("POST", "PUT"):
            headers["Content-Length"] = "0"
        head = self._head(method, target, headers)
        reused, self._idle = self._idle, None
        if reused is not None:
            try:
                return self._send(reused, method, head, data, body)
            except (ProtocolError, ConnectionError):
                # The daemon may close an idle connection at any time; only a request that cannot have been
                # answered and has no streamed body is sent again.
                reused.close()
                if not (body is None or isinstance(body, bytes)):
                    raise
        return self._send(self.connect(), method, head, data, body)

    def _send(self, connection: Connection, method: str, head: bytes, data: bytes | None, body: Any) -> Response:
        try:
            if data is not None or body is None:
                connection.sock.sendall(head + (data or b""))
            else:
                connection.sock.sendall(head)
                self._send_chunks(connection, body)
            return Response(self, connection, method)
        except BaseException:
            connection.close()
            raise

    def _send_chunks(self, connection: Connection, body: Readable) -> None:
        """Send the body; stop early, without error, when the daemon has answered and closed its side."""
        import select

        try:
            while data := body.read(CHUNK):
                if select.select([connection.sock], [], [], 0)[0] and not connection.fill():
                    return
                connection.sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
            connection.sock.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return

    def ping(self) -> dict[str, str]:
        """Return the headers of the daemon's ping (`api-version`, `ostype`, `builder-version`, `swarm`, …)."""
        if self._ping is None:
            response = self._exchange("HEAD", "/_ping", {}, None)
            self._ping = response.headers
        return self._ping

    @property
    def version(self) -> str:
        """The API version requests are made in."""
        if self._fixed:
            return self._fixed
        theirs = self.ping().get("api-version") or MIN_API_VERSION
        return min(theirs, API_VERSION, key=version_key)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        json_body: Any = None,
        body: bytes | Readable | None = None,
        headers: Mapping[str, str] | None = None,
        versioned: bool = True,
    ) -> Response:
        """Send a request and return its answer, whatever the status below 400; ApiError from 400 on."""
        sent = dict(headers or {})
        if json_body is not None:
            body = json.dumps(json_body, separators=(",", ":"), ensure_ascii=False).encode()
            sent["Content-Type"] = "application/json"
        encoded = encode_query(query) if query else ""
        target = (f"/v{self.version}" if versioned else "") + path + (f"?{encoded}" if encoded else "")
        try:
            response = self._exchange(method, target, sent, body)
        except OSError as error:
            raise ProtocolError(f"error during connect: {method} {target}: {error}") from error
        if response.status >= 400:
            raise api_error(response, method)
        return response

    def upgrade(
        self, path: str, query: Mapping[str, Any] | None = None, *, json_body: Any = None, protocol: str = "tcp"
    ) -> tuple[Connection, str]:
        """Ask for a raw stream; return the connection and the stream's content type."""
        headers = {"Connection": "Upgrade", "Upgrade": protocol}
        body = b"" if json_body is None else None
        if json_body is None:
            headers["Content-Type"] = "text/plain"
        response = self.request("POST", path, query, json_body=json_body, body=body, headers=headers)
        if response.status != 101:
            response.close()
            raise ProtocolError(f"unable to upgrade to {protocol}, received {response.status}")
        return response.hijack(), response.headers.get("content-type", "")


def api_error(response: Response, method: str) -> ApiError:
    """Read a refusal's body and return it as an error, in the daemon's words."""
    body = b"" if method == "HEAD" else response.read()
    text = body.decode("utf-8", "replace").strip()
    if response.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        try:
            text = str(json.loads(text)["message"]).strip()
        except (ValueError, KeyError, TypeError):
            pass
    if not text:
        text = f"request returned status {response.status} without a message; check that the daemon supports the API version asked for"
    return ApiError(response.status, text)
