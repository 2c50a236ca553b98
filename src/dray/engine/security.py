"""What a container may do: capabilities, `--security-opt`, and Docker's seccomp profiles as OCI `linux.seccomp`.

Pure. A Docker profile is an OCI one with conditions: rules for some architectures, kernels or capabilities only
(`includes`, `excludes`), and an `archMap` that adds an architecture's 32-bit siblings (moby `profiles/seccomp`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from dray.base.errors import InvalidParameter

# By number, capability(7) and linux/capability.h.
ALL_CAPABILITIES: tuple[str, ...] = tuple(
    "CAP_" + name
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
)

# Go's name of an architecture → the profile's.
_ARCHITECTURES = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Return what every container gets: capabilities, mounts, masked and read-only paths, device rules."""
    return _data("defaults.json")


@functools.cache
def default_profile() -> Mapping[str, Any]:
    """Return Docker's default seccomp profile."""
    return _data("seccomp.json")


def _data(name: str) -> dict[str, Any]:
    text = resources.files("dray.engine").joinpath("data", name).read_bytes()
    return msgspec.json.decode(text, type=dict[str, Any])


# --- capabilities ---------------------------------------------------------------------------------------------


def normalize(names: Iterable[str] | None, available: Collection[str] = ALL_CAPABILITIES) -> list[str]:
    """Return names in capital letters with CAP_ (`ALL` stays); InvalidParameter names one that does not exist."""
    found = []
    for given in names or ():
        name = given.upper()
        if name == "ALL":
            found.append(name)
            continue
        if not name.startswith("CAP_"):
            name = "CAP_" + name
        if name not in ALL_CAPABILITIES:
            raise InvalidParameter(f'unknown capability: "{name}"')
        if name not in available:
            raise InvalidParameter(
                f'capability not supported by your kernel or not available in the current environment: "{name}"'
            )
        found.append(name)
    return found


def capabilities(
    add: Iterable[str] | None,
    drop: Iterable[str] | None,
    *,
    privileged: bool = False,
    available: Collection[str] = ALL_CAPABILITIES,
) -> list[str]:
    """Return the capabilities of a container (moby `caps.TweakCapabilities`).

    `available` are those that the engine itself may hand out.
    """
    if privileged:
        return [name for name in ALL_CAPABILITIES if name in available]
    added, dropped = normalize(add, available), normalize(drop, available)
    if "ALL" in added:
        return [name for name in ALL_CAPABILITIES if name in available and name not in dropped]
    kept = [] if "ALL" in dropped else [name for name in defaults()["capabilities"] if name not in dropped]
    return list(dict.fromkeys([*kept, *(name for name in added if name != "ALL")]))


# --- --security-opt -------------------------------------------------------------------------------------------


class SecurityOptions(Struct, frozen=True):
    """`HostConfig.SecurityOpt`, read.

    no_new_privileges, writable_cgroups: None where it is not said
    seccomp: "" (the daemon's default), `unconfined`, `builtin`, or a profile's JSON text
    apparmor: "" (the default) or a profile's name
    labels: SELinux label words
    """

    no_new_privileges: bool | None = None
    writable_cgroups: bool | None = None
    seccomp: str = ""
    apparmor: str = ""
    labels: tuple[str, ...] = ()
    system_paths_unconfined: bool = False


_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")


def security_options(options: Sequence[str] | None) -> SecurityOptions:
    """Read `--security-opt` words; of an option given twice the last counts (moby `parseSecurityOpt`)."""
    found: dict[str, Any] = {}
    labels: list[str] = []
    for option in options or ():
        if option == "disable":
            labels.append(option)
            continue
        if option in ("no-new-privileges", "writable-cgroups"):
            found[option.replace("-", "_")] = True
            continue
        separator = "=" if "=" in option else ":"  # the colon is the old way
        key, given, value = option.partition(separator)
        if not given:
            raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
        if key == "label":
            labels.append(value)
        elif key in ("apparmor", "seccomp"):
            found[key] = value
        elif key in ("no-new-privileges", "writable-cgroups") and value in _TRUE + _FALSE:
            found[key.replace("-", "_")] = value in _TRUE
        elif key == "systempaths" and value == "unconfined":
            found["system_paths_unconfined"] = True
        else:
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    return SecurityOptions(**found, labels=tuple(labels))


# --- seccomp --------------------------------------------------------------------------------------------------


class _Condition(msgspec.Struct, rename="camel", gc=False):
    index: int
    op: str
    value: int = 0
    value_two: int | None = 0


class _Circumstances(msgspec.Struct, rename="camel", gc=False):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,9}(\.[0-9]{1,9})?)?$")] = ""


class _Rule(msgspec.Struct, rename="camel", gc=False):
    action: str
    name: str = ""
    names: list[str] | None = None
    errno_ret: int | None = None
    args: list[_Condition] | None = None
    includes: _Circumstances | None = None
    excludes: _Circumstances | None = None


class _Siblings(msgspec.Struct, rename="camel", gc=False):
    architecture: str
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, rename="camel", gc=False):
    """The shape of a profile: moby `profiles/seccomp/seccomp.go`."""

    default_action: str = ""
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_Siblings] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[_Rule] | None = None


def parse_profile(text: str) -> Mapping[str, Any]:
    """Read a profile's JSON; InvalidParameter if it has not the shape of one."""
    try:
        profile = msgspec.json.decode(text, type=dict[str, Any])
        msgspec.convert(profile, _Profile)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidParameter(f"decoding seccomp profile failed: {error}") from None
    if not profile.get("defaultAction"):
        raise InvalidParameter("decoding seccomp profile failed: defaultAction is missing")
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' "
            "or 'archMap'"
        )
    return profile


def seccomp(
    profile: Mapping[str, Any], *, capabilities: Collection[str], architecture: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """Return the OCI `linux.seccomp` of a Docker profile for a container with these capabilities.

    architecture: Go's name (`amd64`, `arm64`); kernel: (major, minor). The result shares lists with the profile.
    """
    result: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if profile.get(key) not in (None, ""):
            result[key] = profile[key]
    native = _ARCHITECTURES.get(architecture)
    architectures = list(profile.get("architectures") or ())
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            architectures += [native, *(entry.get("subArchitectures") or ())]
    if architectures:
        result["architectures"] = architectures
    result["syscalls"] = [
        _rule(rule)
        for rule in profile.get("syscalls") or ()
        if _included(rule.get("includes") or {}, capabilities, architecture, kernel)
        and not _excluded(rule.get("excludes") or {}, capabilities, architecture, kernel)
    ]
    return result


@functools.lru_cache(maxsize=64)
def default_seccomp(capabilities: tuple[str, ...], architecture: str, kernel: tuple[int, int]) -> dict[str, Any]:
    """Return `seccomp` of the default profile; the result is shared and not to be changed."""
    return seccomp(default_profile(), capabilities=capabilities, architecture=architecture, kernel=kernel)


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    names, name = rule.get("names"), rule.get("name")
    if names and name:
        raise InvalidParameter(
            "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
        )
    result: dict[str, Any] = {"names": names or [name], "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        result["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        result["args"] = rule["args"]
    return result


def _at_least(kernel: tuple[int, int], text: str) -> bool:
    major, _, minor = text.partition(".")
    return kernel >= (int(major), int(minor or 0))


def _included(
    words: Mapping[str, Any], capabilities: Collection[str], architecture: str, kernel: tuple[int, int]
) -> bool:
    """All that is named must hold: one of the architectures, every capability, a kernel that new."""
    if words.get("arches") and architecture not in words["arches"]:
        return False
    if any(name not in capabilities for name in words.get("caps") or ()):
        return False
    return not words.get("minKernel") or _at_least(kernel, words["minKernel"])


def _excluded(
    words: Mapping[str, Any], capabilities: Collection[str], architecture: str, kernel: tuple[int, int]
) -> bool:
    """One that holds is enough."""
    if architecture in (words.get("arches") or ()):
        return True
    if any(name in capabilities for name in words.get("caps") or ()):
        return True
    return bool(words.get("minKernel")) and _at_least(kernel, words["minKernel"])
