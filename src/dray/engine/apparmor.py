"""The AppArmor profile of containers that name none: loaded into the kernel once a boot, before any container starts.

It has the name that Docker's users know, `docker-default`, and allows what Docker's does: everything a container's
namespaces contain, but no mounts, no writes to the kernel's switches in /proc and /sys, and signals and traces only
among the containers themselves. One that is loaded already (by a Docker on the same host) is left as it is.

The policy language is apparmor.d(5); `apparmor_parser` (apparmor_parser(8)) compiles and loads it.
"""

from __future__ import annotations

import logging
import shutil
import subprocess

from dray.api.models import HostConfig
from dray.engine.security import SecurityOptions

NAME = "docker-default"
_LOADED = "/sys/kernel/security/apparmor/profiles"
_SECONDS = 30

_PROFILE = """
#include <tunables/global>

profile {name} flags=(attach_disconnected,mediate_deleted) {{
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,

  # Whoever stops a container is outside of it: the shim, which is not confined.
  signal (receive) peer=unconfined,
  signal (send, receive) peer={name},
  ptrace (trace, read, tracedby, readby) peer={name},

  # The kernel's switches.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  deny mount,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""

log = logging.getLogger(__name__)


def chosen(host: HostConfig, options: SecurityOptions) -> str:
    """Return the profile of a container on a machine with AppArmor."""
    return options.apparmor or ("unconfined" if host.privileged else NAME)


def loaded() -> bool:
    """Tell whether the kernel has the profile."""
    try:
        with open(_LOADED) as profiles:
            return any(line.split(" ", 1)[0] == NAME for line in profiles)
    except OSError:
        return False


def ensure() -> None:
    """Load the profile if the kernel does not have it; some 50 ms. What is wrong is logged: containers that want the
    profile then do not start, and say so."""
    if loaded():
        return
    parser = shutil.which("apparmor_parser") or shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
    if parser is None:
        log.warning(
            "AppArmor is enabled, but apparmor_parser is not installed: containers start only with "
            "--security-opt apparmor=unconfined (install the package apparmor)"
        )
        return
    done = subprocess.run(
        [parser, "--replace", "--skip-cache"],
        input=_PROFILE.format(name=NAME).encode(),
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        log.error("apparmor_parser cannot load %s: %s", NAME, done.stderr.decode(errors="replace").strip())
