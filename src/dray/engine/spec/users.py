"""`User` of a container → numbers, from the image's own passwd and group texts (moby `daemon/oci_linux.go`).

The texts are the image's and may be hostile: numbers beyond 2^31-1 are refused (a wrapped UID would be root), a
line longer than 4 KiB ends the reading with an error, and the caller reads regular files of limited size only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from dray.base.errors import InvalidParameter

_MAX_ID = (1 << 31) - 1
_MAX_LINE = 4096
_MAX_GROUPS = 65536  # NGROUPS_MAX


class User(Struct, frozen=True):
    """Numbers of a process: `groups` are the additional ones. `home` is from passwd, `/` where it names none."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)
    home: str = "/"


def resolve_user(passwd: str, group: str, user: str, group_add: Sequence[str] | None = None) -> User:
    """Read `user[:group]` (names or numbers; empty is root) and `--group-add`.

    A name must be in the texts; a number need not. The additional groups are: the primary one (so that it
    cannot be dropped unseen, CVE-2022-36109), unless a group was given those of which the user is a member, and
    what `group_add` names. Raises InvalidParameter in Docker's words.
    """
    asked, _, asked_group = user.partition(":")
    number = _number(asked or "0")
    account = _account(passwd, asked, number)
    if account is None:
        if number is None:
            raise InvalidParameter(f"unable to find user {asked}: no matching entries in passwd file")
        name, uid, gid, home = "", number, 0, "/"
    else:
        name, uid, gid, home = account
    members = _Groups(group)
    groups: list[int] = []
    if asked_group:
        gid = members.find(asked_group)
    elif name:
        groups = members.of(name)
    groups = [gid, *groups]
    for entry in group_add or ():
        try:
            groups.append(members.find(entry))
        except InvalidParameter:
            raise InvalidParameter(f"Unable to find group {entry}: no matching entries in group file") from None
    groups = list(dict.fromkeys(groups))
    if len(groups) > _MAX_GROUPS:
        raise InvalidParameter(f"user {user} is in {len(groups)} groups; the kernel allows {_MAX_GROUPS}")
    return User(uid, gid, tuple(groups), home or "/")


def _number(text: str) -> int | None:
    """Return a decimal number in the range of an id, None for a name."""
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        return None
    value = int(text) if len(text) < 20 else _MAX_ID + 1
    if not 0 <= value <= _MAX_ID:
        raise InvalidParameter(f"uids and gids must be in range 0-{_MAX_ID}")
    return value


def _entries(text: str, file: str, fields: int) -> Iterator[list[str]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start, start + _MAX_LINE + 1)
        if end < 0:
            end = len(text)
            if end - start > _MAX_LINE:
                raise InvalidParameter(f"{file}: a line is longer than {_MAX_LINE} bytes")
        line = text[start:end].strip()
        start = end + 1
        if line and not line.startswith("#"):
            parts = line.split(":")
            yield parts + [""] * (fields - len(parts))


def _field(text: str) -> int | None:
    """Return an id out of a file; an entry with a senseless one is no entry."""
    if text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= _MAX_ID:
        return int(text)
    return None


def _account(passwd: str, name: str, number: int | None) -> tuple[str, int, int, str] | None:
    """Return (name, uid, gid, home): the first entry of that name, or of that number."""
    for entry in _entries(passwd, "/etc/passwd", 7):
        uid, gid = _field(entry[2]), _field(entry[3])
        if entry[0] == name or (number is not None and uid == number):
            if uid is None or gid is None:
                raise InvalidParameter(f"/etc/passwd: the numbers of {entry[0]} are not in range 0-{_MAX_ID}")
            return entry[0], uid, gid, entry[5]
    return None


class _Groups:
    """The group file, read once and only if it is asked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._read: list[tuple[str, int, list[str]]] | None = None

    def _entries(self) -> list[tuple[str, int, list[str]]]:
        if self._read is None:
            self._read = []
            # A group may well have thousands of members: its line may be long, the file has its limit.
            for line in self._text.splitlines():
                parts = line.strip().split(":")
                gid = _field(parts[2]) if len(parts) > 2 else None
                if gid is not None and not line.startswith("#"):
                    self._read.append((parts[0], gid, parts[3].split(",") if len(parts) > 3 else []))
        return self._read

    def find(self, group: str) -> int:
        number = _number(group)
        for name, gid, _ in self._entries():
            if name == group or gid == number:
                return gid
        if number is None:
            raise InvalidParameter(f"unable to find group {group}: no matching entries in group file")
        return number

    def of(self, user: str) -> list[int]:
        return [gid for _, gid, members in self._entries() if user in members]
