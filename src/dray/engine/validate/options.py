"""The other options of a HostConfig: privileges, restarts, devices, names, and the warnings that go with them."""

from __future__ import annotations

import ipaddress
import re

from dray.api.models import HostConfig, RestartPolicy
from dray.base import units
from dray.base.errors import InvalidParameter
from dray.engine import security
from dray.engine.spec.resources import cgroup_rule

# getrlimit(2), as go-units names them.
_ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
        "as",
    ]
) - {"as"}
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_CONTAINER_PORT = re.compile(r"(\d{1,5})/(tcp|udp|sctp)", re.ASCII)
_TMPFS_FLAGS = frozenset(
    [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "unbindable",
        "runbindable",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "huge",
        "mpol",
        "noswap",
    ]
)
_TMPFS_VALUES = frozenset(["mode", "uid", "gid", "size", "nr_inodes", "nr_blocks", "mpol", "huge"])


def check(host: HostConfig) -> None:
    """Raise for the first option that makes no sense or cannot be kept."""
    if host.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    for field, names in (("CapAdd", host.cap_add), ("CapDrop", host.cap_drop)):
        try:
            security.normalize(names)
        except InvalidParameter as error:
            raise InvalidParameter(f"invalid {field}: {error}") from None
    asked = security.security_options(host.security_opt)
    if asked.seccomp not in ("", "unconfined", "builtin"):
        security.parse_profile(asked.seccomp)
    restart_policy(host.restart_policy)
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    if "" in (host.annotations or {}):
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    for text in host.extra_hosts or ():
        _extra_host(text)
    _ports(host)
    _devices(host)
    for ulimit in host.ulimits or ():
        if ulimit.name.lower() not in _ULIMITS:
            raise InvalidParameter(f"invalid ulimit type: {ulimit.name}")
        if ulimit.hard != -1 and (ulimit.soft > ulimit.hard or ulimit.soft == -1):
            raise InvalidParameter(
                f"ulimit soft limit must be less than or equal to hard limit: {ulimit.soft} > {ulimit.hard}"
            )
    for path, words in (host.tmpfs or {}).items():
        _tmpfs(path, words)
    storage_size(host)
    if host.console_size and (len(host.console_size) != 2 or min(host.console_size) < 0):
        raise InvalidParameter("ConsoleSize must be two numbers, height and width")


def storage_size(host: HostConfig) -> int:
    """Return the bytes that `--storage-opt size=` lets the container write; 0 without it."""
    for name, value in (host.storage_opt or {}).items():
        if name != "size":
            raise InvalidParameter(f"unknown option {name}: --storage-opt takes size=BYTES alone")
        size = units.parse_bytes(value)
        if size <= 0:
            raise InvalidParameter(f"invalid --storage-opt size={value}: it must be more than 0")
        return size
    return 0


def restart_policy(policy: RestartPolicy) -> None:
    """Check a restart policy, of a new container or an update."""
    name, count = policy.name, policy.maximum_retry_count
    if name not in ("", "no", "always", "on-failure", "unless-stopped"):
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or "
            "'unless-stopped'"
        )
    if count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if count and name != "on-failure":
        raise InvalidParameter("invalid restart policy: maximum retry count can only be used with 'on-failure'")


def _extra_host(text: str) -> None:
    name, _, address = text.partition(":")
    if not name or not address:
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    if address == "host-gateway":
        return
    try:
        ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from None


def _ports(host: HostConfig) -> None:
    for port, bindings in (host.port_bindings or {}).items():
        if (match := _CONTAINER_PORT.fullmatch(port)) is None or int(match[1]) > 65535:
            raise InvalidParameter(f'invalid port specification: "{port}"')
        for binding in bindings or ():
            text = binding.host_port
            if text:
                match = _PORT.fullmatch(text)
                if match is None or not int(match[1]) <= int(match[2] or match[1]) <= 65535:
                    raise InvalidParameter(f'invalid port specification: "{text}"')


def _devices(host: HostConfig) -> None:
    for rule in host.device_cgroup_rules or ():
        cgroup_rule(rule)
    for device in host.devices or ():
        access = device.cgroup_permissions
        if set(access) - set("rwm") or len(set(access)) != len(access):
            raise InvalidParameter(f"invalid device mode: {access}")
        if not device.path_on_host.startswith("/"):
            raise InvalidParameter(f"{device.path_on_host} is not an absolute path")


def _tmpfs(path: str, words: str) -> None:
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid mount path: '{path}' mount path must be absolute")
    if not path.strip("/"):
        raise InvalidParameter("invalid specification: destination can't be '/'")
    for word in words.split(",") if words else ():
        key, given, _ = word.partition("=")
        if key not in (_TMPFS_VALUES if given else _TMPFS_FLAGS):
            raise InvalidParameter(f'invalid tmpfs option "{word}"')


def warnings(host: HostConfig) -> list[str]:
    """Return what works otherwise than one might think."""
    found = []
    if host.network_mode == "host" and host.port_bindings:
        found.append("Published ports are discarded when using host network mode")
    labels = security.security_options(host.security_opt).labels
    if any(label != "disable" for label in labels):
        found.append(f"SELinux is not in use here: --security-opt label={labels[0]} has no effect")
    return found
