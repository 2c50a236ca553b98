"""User namespaces as data: which ids of a container are which on the host; making namespaces with such maps.

A user namespace has no file of its own: it lives as long as a process in it, a descriptor, or another namespace that
it owns. A network namespace belongs to the user namespace in which it was made, so both are made together here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dray.base.errors import InvalidParameter
from dray.linux import libc, namespaces

OVERFLOW = 65534  # what the kernel shows for an id that is not mapped (proc_sys_kernel(5), overflowuid)
_NO_SETUID_FIXUP = 4  # securebits: capabilities stay when ids change (capabilities(7))
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28

Ranges = tuple[tuple[int, int, int], ...]  # (first id inside, first id outside, how many)


@dataclass(frozen=True, slots=True)
class IdMap:
    """The users and groups of a user namespace; at least id 0 of both is mapped."""

    uids: Ranges
    gids: Ranges

    @property
    def uid_map(self) -> str:
        """The text of /proc/<pid>/uid_map."""
        return _text(self.uids)

    @property
    def gid_map(self) -> str:
        """The text of /proc/<pid>/gid_map."""
        return _text(self.gids)

    @property
    def root(self) -> tuple[int, int]:
        """Who the namespace's root is on the host: (uid, gid)."""
        return self.outside(0, 0)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the host's ids of ids inside; InvalidParameter names one that has none."""
        found = _to(uid, self.uids, 0), _to(gid, self.gids, 0)
        for number, outside in ((uid, found[0]), (gid, found[1])):
            if outside < 0:
                raise InvalidParameter(
                    f"container ID {number} cannot be mapped to a host ID: the range is too small"
                )
        return found

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the ids inside of ids of the host; OVERFLOW for those that have none."""
        found = _to(uid, self.uids, 1), _to(gid, self.gids, 1)
        return tuple(OVERFLOW if number < 0 else number for number in found)  # type: ignore[return-value]


def _text(ranges: Ranges) -> str:
    return "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)


def _to(number: int, ranges: Ranges, side: int) -> int:
    for entry in ranges:
        if entry[side] <= number < entry[side] + entry[2]:
            return number - entry[side] + entry[1 - side]
    return -1


def parse(uid_map: str, gid_map: str) -> IdMap:
    """Read the texts of /proc/<pid>/uid_map and gid_map."""
    uids, gids = (tuple(_range(line) for line in text.splitlines()) for text in (uid_map, gid_map))
    return IdMap(uids, gids)


def _range(line: str) -> tuple[int, int, int]:
    inside, outside, size = (int(word) for word in line.split())
    return inside, outside, size


def of_process(pid: int) -> IdMap | None:
    """Return the maps of a process's user namespace; None if it is the caller's own, or one without maps."""
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
            return None
        with open(f"/proc/{pid}/uid_map") as uids, open(f"/proc/{pid}/gid_map") as gids:
            found = parse(uids.read(), gids.read())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found if found.uids and found.gids else None


def make(uid_map: str, gid_map: str) -> int:
    """Return the descriptor of a new user namespace with these maps."""
    return _made(libc.CLONE_NEWUSER, ("user",), maps=(uid_map, gid_map))[0]


def make_with_network(uid_map: str, gid_map: str, *, reap: bool = True) -> tuple[int, int]:
    """Return the descriptors of a new user namespace and of a new network namespace that it owns.

    reap: wait for the helper process; False: the caller's handler of SIGCHLD does
    """
    user, network = _made(
        libc.CLONE_NEWUSER | libc.CLONE_NEWNET, ("user", "network"), maps=(uid_map, gid_map), reap=reap
    )
    return user, network


def make_network_in(user: int) -> int:
    """Return the descriptor of a new network namespace that an existing user namespace owns."""
    return _made(0, ("network",), enter=user)[0]


def _made(
    flags: int, kinds: Sequence[str], *, maps: tuple[str, str] | None = None, enter: int = -1, reap: bool = True
) -> tuple[int, ...]:
    """Fork a process into the new namespaces, open them, and let it end."""
    waits, tells = os.pipe2(os.O_CLOEXEC)
    says, hears = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = libc.clone3(flags)
    if pid == 0:
        _wait(waits, tells, hears, enter)
    os.close(waits)
    os.close(hears)
    opened: list[int] = []
    try:
        if maps is not None:
            namespaces.map_ids(pid, *maps)
        else:
            code = os.read(says, 16)
            if code != b"0":
                raise OSError(int(code or b"3"), f"network namespace: {os.strerror(int(code or b'3'))}")
        for kind in kinds:
            opened.append(os.open(namespaces.file(kind, pid), os.O_RDONLY | os.O_CLOEXEC))
        return tuple(opened)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    finally:
        os.close(tells)
        os.close(says)
        os.close(pidfd)
        if reap:
            with contextlib.suppress(ChildProcessError):  # a caller's SIGCHLD handler may have been quicker
                os.waitpid(pid, 0)


def _wait(waits: int, tells: int, hears: int, enter: int) -> None:
    try:
        os.close(tells)
        if enter >= 0:
            try:
                libc.setns(enter, libc.CLONE_NEWUSER)
                libc.unshare(libc.CLONE_NEWNET)
                os.write(hears, b"0")
            except OSError as error:
                os.write(hears, b"%d" % (error.errno or 3))
        os.read(waits, 1)
    finally:
        os._exit(0)


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Have the calling thread make files as these ids (setfsuid(2)) and keep all its capabilities.

    In a tree with mapped ids nobody can make a file whose owner the map does not know, the host's root included.
    """
    bits = libc.prctl(_PR_GET_SECUREBITS)
    libc.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP)
    try:
        before_gid, before_uid = libc.setfsgid(gid), libc.setfsuid(uid)
        try:
            yield
        finally:
            libc.setfsuid(before_uid)
            libc.setfsgid(before_gid)
    finally:
        libc.prctl(_PR_SET_SECUREBITS, bits)
