"""What `dray-runtime spec` writes and `dray-runtime features` prints (runtime-spec features.md)."""

from __future__ import annotations

import errno
import os
from typing import Any

from dray.linux import libc, mounts, namespaces, privileges, seccomp
from dray.linux.seccomp.numbers import ARCHITECTURES, FOREIGN
from dray.runtime import scheduling
from dray.runtime.state import OCI_VERSION

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
_ACTIONS = ("KILL", "KILL_PROCESS", "KILL_THREAD", "ERRNO", "NOTIFY", "TRAP", "TRACE", "ALLOW", "LOG")
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")


def _mount(destination: str, type: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": type, "source": source, "options": list(options)}


def default_spec(*, rootless: bool = False) -> dict[str, Any]:
    """Return the example spec: a shell at a terminal on a read-only root."""
    kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    mount_list = [
        _mount("/proc", "proc", "proc"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
    ]
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": [
            *(f"/proc/{name}" for name in ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list")),
            *(f"/proc/{name}" for name in ("timer_stats", "sched_debug", "scsi")),
            "/sys/firmware",
        ],
        "readonlyPaths": [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")],
    }
    if rootless:
        linux["namespaces"] = [{"type": kind} for kind in [*kinds, "user"] if kind != "network"]
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        del linux["resources"]
        mount_list[2]["options"].remove("gid=5")
        mount_list[5] = _mount("/sys", "none", "/sys", "rbind", "nosuid", "noexec", "nodev", "ro")
        del mount_list[6]
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "dray",
        "mounts": mount_list,
        "linux": linux,
    }


def features() -> dict[str, Any]:
    """Return what this runtime can do on this machine."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": _HOOKS,
        "mountOptions": mounts.option_words(),
        "linux": {
            "namespaces": sorted(kind for kind in namespaces.FLAGS if namespaces.supported(kind)),
            "capabilities": list(privileges.CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": [f"SCMP_ACT_{action}" for action in _ACTIONS],
                "operators": [f"SCMP_CMP_{operator}" for operator in _OPERATORS],
                "archs": sorted([*ARCHITECTURES, *FOREIGN]),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(name for name, flag in seccomp.FLAGS.items() if _supported(flag)),
            },
            "apparmor": {"enabled": os.path.exists("/proc/self/attr/apparmor/exec")},
            "selinux": {"enabled": os.path.exists("/sys/fs/selinux/enforce")},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {
                "modes": sorted(scheduling.MEMORY_MODES),
                "flags": sorted(scheduling.MEMORY_FLAGS),
            },
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }


def _supported(flag: int) -> bool:
    """Ask the kernel for a filter flag: with no program it fails with EFAULT where it knows the flag."""
    if flag == seccomp.FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]:
        flag |= seccomp.NEW_LISTENER
    try:
        libc.seccomp(1, flag)
    except OSError as error:
        return error.errno == errno.EFAULT
    return True
