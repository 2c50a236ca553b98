"""The files of a running container that follow its networks: /etc/hosts and /etc/resolv.conf.

They are bound into the container, so they are changed in place, and only where that is not the container's affair:
lines of /etc/hosts with an address of ours; /etc/resolv.conf as long as it is what we wrote. Its digest stands
beside it in `resolv.conf.hash`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dray.network.model import Endpoint

_LARGEST = 1 << 20  # bytes of a file that a container may have written to


def write(directory: str, files: dict[str, str], owner: tuple[int, int] = (0, 0)) -> None:
    """Write a container's files anew, for its start; they are its root's, who is `owner` on the host."""
    resolv_conf = files.get("resolv.conf")
    if resolv_conf is not None:
        files = files | {"resolv.conf.hash": _digest(_encode(resolv_conf))}
    for name, text in files.items():
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            os.fchown(fd, *owner)
            _put(fd, _encode(text))
        finally:
            os.close(fd)


def replace_resolv_conf(directory: str, text: str) -> None:
    """Write another resolv.conf, unless somebody in the container has changed it."""
    with contextlib.suppress(FileNotFoundError), _opened(f"{directory}/resolv.conf") as fd:
        path = Path(directory, "resolv.conf.hash")
        old, new = os.pread(fd, _LARGEST, 0), _encode(text)
        if old != new and path.read_text() == _digest(old):
            _replace(fd, new)
            path.write_text(_digest(new))


def add_addresses(directory: str, endpoints: Iterable[Endpoint], names: str) -> None:
    """Add the container's own names for these endpoints' addresses to /etc/hosts."""
    lines = "".join(f"{address}\t{names}\n" for address in _addresses(endpoints))
    if lines and names:
        with contextlib.suppress(FileNotFoundError), _opened(f"{directory}/hosts") as fd:
            old = os.pread(fd, _LARGEST, 0)
            _replace(fd, old + (b"\n" if old and not old.endswith(b"\n") else b"") + _encode(lines))


def remove_addresses(directory: str, endpoints: Iterable[Endpoint]) -> None:
    """Take the lines with these endpoints' addresses out of /etc/hosts."""
    gone = {address.encode() for address in _addresses(endpoints)}
    with contextlib.suppress(FileNotFoundError), _opened(f"{directory}/hosts") as fd:
        old = os.pread(fd, _LARGEST, 0)
        new = b"".join(line for line in old.splitlines(keepends=True) if (line.split() or [b""])[0] not in gone)
        if new != old:
            _replace(fd, new)


def set_addresses(
    directory: str, endpoints: Iterable[Endpoint], names: str, *, others: Iterable[str] = ()
) -> None:
    """Have the container's own names in /etc/hosts for these endpoints' addresses alone, in lines as we write them.

    others: addresses that were given these names on purpose (`--add-host`)
    """
    wanted = _addresses(endpoints)
    with contextlib.suppress(FileNotFoundError), _opened(f"{directory}/hosts") as fd:
        old = os.pread(fd, _LARGEST, 0)
        lines, known = [], set()
        for line in old.splitlines():
            address, _, rest = line.decode(errors="surrogateescape").partition("\t")
            if rest != names or address in wanted or address in others:
                lines.append(line)
            known.add(address)
        lines += [_encode(f"{address}\t{names}") for address in wanted if names and address not in known]
        new = b"".join(line + b"\n" for line in lines)
        if new != old:
            _replace(fd, new)


def _addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    return [address for one in endpoints for address in (one.ipv4, one.ipv6) if address]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _replace(fd: int, data: bytes) -> None:
    _put(fd, data)
    os.ftruncate(fd, len(data))


def _put(fd: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
