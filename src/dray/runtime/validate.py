"""What a spec may ask: checked before anything is made, so that a refusal leaves nothing behind.

Pure functions. A field that this runtime does not obey is refused by its name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dray.base.errors import InvalidParameter, Unsupported
from dray.linux import namespaces

_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The namespaces of a container.

    new: those made for it
    paths: those joined by path; descriptors: those joined by descriptor (given with the request)
    """

    new: frozenset[str]
    paths: Mapping[str, str]
    descriptors: Mapping[str, int]

    @property
    def own(self) -> frozenset[str]:
        """Every kind in which the container differs from the runtime."""
        return self.new | self.paths.keys() | self.descriptors.keys()

    @property
    def new_flags(self) -> int:
        """CLONE_NEW* for clone3; the cgroup namespace is made later, inside the cgroup."""
        flags = 0
        for kind in self.new - {"cgroup"}:
            flags |= namespaces.FLAGS[kind]
        return flags


def namespaces_of(spec: Mapping[str, Any], descriptors: Mapping[str, int]) -> Namespaces:
    """Sort `linux.namespaces`; InvalidParameter for an unknown or repeated kind, Unsupported for a missing one."""
    new: set[str] = set()
    paths: dict[str, str] = {}
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        kind, path = entry.get("type") or "", entry.get("path") or ""
        if kind not in namespaces.FLAGS:
            raise InvalidParameter(f"linux.namespaces: unknown type {kind!r}")
        if kind in new or kind in paths:
            raise InvalidParameter(f"linux.namespaces: {kind} is given twice")
        if kind in descriptors:
            continue
        if path:
            paths[kind] = path
        elif not namespaces.supported(kind):
            raise Unsupported(f"linux.namespaces: this kernel has no {kind} namespaces")
        else:
            new.add(kind)
    for kind in descriptors:
        if kind not in namespaces.FLAGS:
            raise InvalidParameter(f"namespace_fds: unknown type {kind!r}")
    return Namespaces(frozenset(new), paths, dict(descriptors))


def check(spec: Mapping[str, Any], own: frozenset[str]) -> None:
    """Refuse what cannot be obeyed."""
    linux = spec.get("linux") or {}
    version = str(spec.get("ociVersion") or "1")
    if version.split(".", maxsplit=1)[0] != "1":
        raise Unsupported(
            f"ociVersion: {version!r} is not a version of the specification that this runtime knows, 1.x"
        )
    if not spec.get("root"):
        raise InvalidParameter("root is missing")
    if "mount" not in own:
        raise InvalidParameter("linux.namespaces: a container needs its own mount namespace")
    if linux.get("intelRdt"):
        raise Unsupported("linux.intelRdt is not supported: this runtime makes no resctrl groups")
    if linux.get("netDevices") and "network" not in own:
        raise InvalidParameter("linux.netDevices: needs a network namespace of the container's own")
    if linux.get("mountLabel"):
        raise Unsupported("linux.mountLabel is not supported: this runtime does not label file systems")
    if (linux.get("uidMappings") or linux.get("gidMappings")) and "user" not in own:
        raise InvalidParameter("linux.uidMappings: needs a user namespace in linux.namespaces")
    for field in ("hostname", "domainname"):
        if spec.get(field) and "uts" not in own:
            raise InvalidParameter(f"{field}: needs a uts namespace of the container's own")
    if linux.get("timeOffsets") and ("time" not in own or "user" in own):
        raise InvalidParameter("linux.timeOffsets: needs a new time namespace, and no user namespace")
    for field in ("maskedPaths", "readonlyPaths"):
        if linux.get(field) and any(not str(path).startswith("/") for path in linux[field]):
            raise InvalidParameter(f"linux.{field}: paths must be absolute")
    sysctls_of(linux, own)


def sysctls_of(linux: Mapping[str, Any], own: frozenset[str]) -> dict[str, str]:
    """Return `linux.sysctl` as path below /proc/sys → value; InvalidParameter for one that would change the host."""
    result = {}
    for name, value in (linux.get("sysctl") or {}).items():
        dotted = _dotted(name)
        if dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
            needed = "ipc"
        elif dotted.startswith("net."):
            needed = "network"
        elif dotted == "kernel.domainname":
            needed = "uts"
        else:
            raise InvalidParameter(f'sysctl "{name}" is not in a separate kernel namespace')
        if needed not in own:
            raise InvalidParameter(f'sysctl "{name}" is not allowed in the host\'s {needed} namespace')
        result[sysctl_path(name)] = str(value)
    return result


def _dotted(name: str) -> str:
    slash, dot = name.find("/"), name.find(".")
    return name.replace("/", ".") if slash >= 0 and (dot < 0 or slash < dot) else name


def sysctl_path(name: str) -> str:
    """Return the path of a sysctl; with dots, a slash stands for a dot in a name (sysctl(8): `eth0/100`)."""
    slash, dot = name.find("/"), name.find(".")
    path = name if slash >= 0 and (dot < 0 or slash < dot) else name.translate(str.maketrans("./", "/."))
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidParameter(f'sysctl "{name}": not a name')
    return path


def id_map(mappings: list[dict[str, int]] | None, field: str) -> str:
    """Return the text of uid_map or gid_map (user_namespaces(7))."""
    if not mappings:
        raise InvalidParameter(f"linux.{field}: a new user namespace needs mappings")
    return "".join(f"{int(m['containerID'])} {int(m['hostID'])} {int(m['size'])}\n" for m in mappings)


def time_offsets(linux: Mapping[str, Any]) -> str:
    """Return the text of timens_offsets (time_namespaces(7)), "" without offsets."""
    lines = []
    for clock, offset in (linux.get("timeOffsets") or {}).items():
        if clock not in ("monotonic", "boottime"):
            raise InvalidParameter(f"linux.timeOffsets: unknown clock {clock!r}")
        lines.append(f"{clock} {int(offset.get('secs') or 0)} {int(offset.get('nanosecs') or 0)}\n")
    return "".join(lines)


def personality(linux: Mapping[str, Any]) -> int | None:
    """Return personality(2)'s argument, None to leave it."""
    wanted = linux.get("personality")
    if not wanted:
        return None
    domains = {"LINUX": 0x0000, "LINUX32": 0x0008}
    if wanted.get("domain") not in domains or wanted.get("flags"):
        raise InvalidParameter("linux.personality: domain must be LINUX or LINUX32, without flags")
    return domains[wanted["domain"]]
