"""The value of `userns-remap` and the subordinate ids it stands for (subuid(5), subgid(5)).

Forms, as dockerd's: `default`, `user`, `user:group`, `uid`, `uid:gid`. `default` is the user and group `dockremap`;
dockerd makes them where they are missing, and so do we, with the programs of the host's shadow suite. The ranges of
one name, in the order of the file, follow each other inside the namespace from id 0 on.

The files are the administrator's, but a mistake in them could give containers ids that are somebody's: a line that
is not name:number:number, a range that reaches id 0 or beyond 2³²-2, and ranges that overlap are refused.
"""

from __future__ import annotations

import grp
import itertools
import pwd
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from dray.base.errors import InvalidParameter, Unavailable
from dray.linux.usernamespaces import IdMap, Ranges

DEFAULT_NAME = "dockremap"
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
_LAST = 0xFFFFFFFE  # 2³²-1 is "no id"
_MOST_RANGES = 340  # lines that uid_map takes (user_namespaces(7))
_LARGEST_FILE = 1 << 22
_COUNT = 65536
_FIRST = 100_000


def resolve(setting: str, *, subuid: Path = SUBUID, subgid: Path = SUBGID) -> IdMap | None:
    """Return the maps of the setting, None for none; InvalidParameter tells what to do about one that fails."""
    if not setting:
        return None
    if setting == "default":
        user = group = DEFAULT_NAME
        if not (_is_known(subuid, user) and _is_known(subgid, group)):
            _make_default(subuid, subgid)
    else:
        user_word, colon, group_word = setting.partition(":")
        if not user_word or (colon and not group_word) or ":" in group_word:
            raise InvalidParameter(f"userns-remap: {setting!r}: give default, user, uid, user:group or uid:gid")
        user = _user(user_word)
        group = _group(group_word) if colon else _group_of(user)
    return IdMap(_ranges(subuid, user, _uid(user)), _ranges(subgid, group, _gid(group)))


def _user(word: str) -> str:
    try:
        return (pwd.getpwuid(int(word)) if _is_number(word) else pwd.getpwnam(word)).pw_name
    except (KeyError, OverflowError):
        raise InvalidParameter(f"userns-remap: there is no user {word!r} on this host") from None


def _group(word: str) -> str:
    try:
        return (grp.getgrgid(int(word)) if _is_number(word) else grp.getgrnam(word)).gr_name
    except (KeyError, OverflowError):
        raise InvalidParameter(f"userns-remap: there is no group {word!r} on this host") from None


def _group_of(user: str) -> str:
    """A user alone stands for the group of the same name, as with dockerd."""
    try:
        return grp.getgrnam(user).gr_name
    except KeyError:
        raise InvalidParameter(f"userns-remap: there is no group {user!r} on this host: give user:group") from None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _uid(name: str) -> str:
    try:
        return str(pwd.getpwnam(name).pw_uid)
    except KeyError:
        return ""


def _gid(name: str) -> str:
    try:
        return str(grp.getgrnam(name).gr_gid)
    except KeyError:
        return ""


# --- the files ------------------------------------------------------------------------------------------------


def entries(path: Path) -> list[tuple[str, int, int]]:
    """Return (name or number, first id, how many) of each line; InvalidParameter names a line that is none."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        return []
    if len(data) > _LARGEST_FILE:
        raise InvalidParameter(f"{path} is larger than {_LARGEST_FILE} bytes; it is not read")
    found = []
    for number, line in enumerate(data.decode(errors="surrogateescape").split("\n"), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        fields = text.split(":")
        if len(fields) != 3 or not fields[0] or not all(_is_number(field) for field in fields[1:]):
            raise InvalidParameter(f"{path}, line {number}: {text!r} is not name:first:count")
        found.append((fields[0], int(fields[1]), int(fields[2])))
    return found


def _ranges(path: Path, name: str, number: str) -> Ranges:
    own = [(first, count) for owner, first, count in entries(path) if owner in (name, number)]
    if not own:
        raise InvalidParameter(
            f"userns-remap: {path} has no range for {name!r}: add a line such as {name}:{_FIRST}:{_COUNT}"
        )
    if len(own) > _MOST_RANGES:
        raise InvalidParameter(f"userns-remap: {path} has more than {_MOST_RANGES} ranges for {name!r}")
    found, inside = [], 0
    for first, count in own:
        if first < 1 or count < 1 or first + count - 1 > _LAST:
            raise InvalidParameter(
                f"userns-remap: {path}: the range {first}:{count} of {name!r} must lie between 1 and {_LAST}"
            )
        found.append((inside, first, count))
        inside += count
    ordered = sorted((first, count) for first, count in own)
    for (first, count), (following, _) in itertools.pairwise(ordered):
        if following < first + count:
            raise InvalidParameter(f"userns-remap: {path}: two ranges of {name!r} overlap at {following}")
    return tuple(found)


# --- the default user -----------------------------------------------------------------------------------------


def _is_known(path: Path, name: str) -> bool:
    return any(owner == name for owner, _, _ in entries(path))


def free_range(taken: Sequence[tuple[str, int, int]]) -> int:
    """Return the first id of a range of `_COUNT` that nobody has, from `_FIRST` on."""
    start = _FIRST
    for _, first, count in sorted(taken, key=lambda entry: entry[1]):
        if first < start + _COUNT and start < first + count:
            start = first + count
    return start


def _make_default(subuid: Path, subgid: Path, run: Callable[[list[str]], None] | None = None) -> None:
    """Make user and group `dockremap` with ranges of their own."""
    run = run or _run
    try:
        pwd.getpwnam(DEFAULT_NAME)
    except KeyError:
        run(["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", DEFAULT_NAME])
    for path, flag in ((subuid, "--add-subuids"), (subgid, "--add-subgids")):
        if not _is_known(path, DEFAULT_NAME):
            start = free_range(entries(path))
            run(["usermod", flag, f"{start}-{start + _COUNT - 1}", DEFAULT_NAME])


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise Unavailable(
            f"userns-remap: user {DEFAULT_NAME!r} cannot be made, there is no {command[0]} on this host: make it and "
            "its lines in /etc/subuid and /etc/subgid yourself"
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        raise Unavailable(f"userns-remap: {' '.join(command)}: {reason}") from None
