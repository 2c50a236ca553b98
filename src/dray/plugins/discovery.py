"""Where plugins are found (docker docs, "Plugin discovery").

    /run/docker/plugins/NAME.sock            a unix socket
    /run/docker/plugins/NAME/NAME.sock       the same, in a directory of the plugin's own
    /etc/docker/plugins/NAME.spec            a text file: unix:///path or tcp://host:port
    /usr/lib/docker/plugins/NAME.json        {"Name", "Addr", "TLSConfig": {"InsecureSkipVerify", "CAFile", "CertFile", "KeyFile"}}

Sockets come first, then the specs in the order of the folders. Nothing is cached: a look-up is a few lstat(2).

Invariants: a name that is no plain file name finds nothing, so no name leads out of the folders. A spec is believed
only if it is a small regular file that belongs to root (or to the daemon's own user) and that nobody else can write:
who writes it chooses what every request of the daemon is shown to.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from dray.base.errors import InvalidParameter, NotFound
from dray.base.malformed import MALFORMED
from dray.base.patterns import pattern

SOCKETS = ("/run/docker/plugins",)
SPECS = ("/etc/docker/plugins", "/usr/lib/docker/plugins")
NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_SPEC_LIMIT = 64 << 10


class TlsConfig(msgspec.Struct, frozen=True):
    """How a plugin on tcp:// is spoken to, as a spec's `TLSConfig` has it."""

    insecure_skip_verify: bool = msgspec.field(name="InsecureSkipVerify", default=False)
    ca_file: str = msgspec.field(name="CAFile", default="")
    cert_file: str = msgspec.field(name="CertFile", default="")
    key_file: str = msgspec.field(name="KeyFile", default="")


class _Spec(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="Name", default="")
    address: str = msgspec.field(name="Addr", default="")
    tls: TlsConfig | None = msgspec.field(name="TLSConfig", default=None)


class Address(Struct, frozen=True):
    """Where a plugin listens: `path` of its unix socket, or `host` and `port`; `tls` None is plain HTTP."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: TlsConfig | None = None


class Folders(Struct, frozen=True):
    """The folders that are looked through."""

    sockets: Sequence[str] = SOCKETS
    specs: Sequence[str] = SPECS

    def find(self, name: str) -> Address:
        """Return where a plugin listens; NotFound, InvalidParameter for a spec that is not to be believed."""
        if NAME.fullmatch(name):
            for folder in self.sockets:
                for path in (f"{folder}/{name}.sock", f"{folder}/{name}/{name}.sock"):
                    if _is_socket(path):
                        return Address(path=path)
            for folder in self.specs:
                for suffix in (".spec", ".json"):
                    path = f"{folder}/{name}{suffix}"
                    if os.path.lexists(path):
                        return _read(path, name)
        raise NotFound(f'plugin "{name}" not found')

    def names(self) -> list[str]:
        """Return the names of all plugins that could be asked, sorted; none of them is spoken to."""
        found: set[str] = set()
        for folder in self.sockets:
            for entry in _entries(folder):
                base = entry.name.removesuffix(".sock")
                if (entry.name.endswith(".sock") and _is_socket(entry.path)) or (
                    entry.is_dir() and _is_socket(f"{entry.path}/{entry.name}.sock")
                ):
                    found.add(base)
        for folder in self.specs:
            for entry in _entries(folder):
                base, dot, suffix = entry.name.rpartition(".")
                if dot and suffix in ("spec", "json"):
                    found.add(base)
        return sorted(name for name in found if NAME.fullmatch(name))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _read(path: str, name: str) -> Address:
    # Without O_NONBLOCK a FIFO in the folder would hold up whoever looks for a plugin.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidParameter(f'plugin "{name}": {path} cannot be read: {error.strerror}') from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidParameter(f'plugin "{name}": {path} is not a regular file')
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise InvalidParameter(
                f'plugin "{name}": {path} may be written by others than root: make it root\'s, mode 0644'
            )
        data = os.read(fd, _SPEC_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > _SPEC_LIMIT:
        raise InvalidParameter(f'plugin "{name}": {path} is larger than {_SPEC_LIMIT} bytes')
    if path.endswith(".json"):
        try:
            spec = msgspec.json.decode(data, type=_Spec)
        except MALFORMED as error:
            raise InvalidParameter(f'plugin "{name}": {path}: {error}') from error
        if spec.name not in ("", name):
            raise InvalidParameter(f'plugin "{name}": {path} says Name "{spec.name}": it must be the file\'s name')
        return _address(spec.address, spec.tls, name, path)
    return _address(data.decode(errors="replace").strip(), None, name, path)


def _address(text: str, tls: TlsConfig | None, name: str, path: str) -> Address:
    url = urlsplit(text)
    try:
        port = url.port
    except ValueError:
        port = None
    if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
        return Address(path=url.path)
    if url.scheme in ("tcp", "http", "https") and url.hostname and port:
        return Address(host=url.hostname, port=port, tls=tls or (TlsConfig() if url.scheme == "https" else None))
    raise InvalidParameter(
        f'plugin "{name}": {path}: address {text[:200]!r} is neither unix:///path nor tcp://host:port'
    )
