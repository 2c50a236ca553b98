"""From the ask, the image's configuration (merged into the ask) and the facts to an OCI spec: a pure function.

The spec is the one that dockerd writes for the same ask, field by field; where they differ on purpose, the place
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dray.api.models import ContainerConfig, HostConfig, Ulimit
from dray.base.errors import InvalidParameter, Unsupported
from dray.engine import apparmor, security
from dray.engine.security import SecurityOptions
from dray.engine.spec import mounts
from dray.engine.spec.facts import Device, Facts
from dray.engine.spec.resources import resources

OCI_VERSION = "1.2.0"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build(config: ContainerConfig, host: HostConfig, facts: Facts) -> dict[str, Any]:
    """Return the OCI runtime spec of a container.

    `config` is merged with the image's; `host` has the daemon's defaults in it and has passed
    `engine.validate.validate`. Raises InvalidParameter or Unsupported, naming the option.
    """
    options = security.security_options(host.security_opt)
    caps = security.capabilities(
        host.cap_add, host.cap_drop, privileged=host.privileged, available=facts.machine.capabilities
    )
    init = _wants_init(host, facts)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(config, host, facts, options, caps, init=init),
        "root": {"path": facts.rootfs, **({"readonly": True} if host.readonly_rootfs else {})},
        "hostname": "" if host.uts_mode == "host" else config.hostname,
        "mounts": mounts.build(host, facts, options, with_init=init),
        "linux": _linux(config, host, facts, options, caps),
    }
    if not spec["hostname"]:
        del spec["hostname"]
    if host.annotations:
        spec["annotations"] = dict(host.annotations)
    return spec


# --- process --------------------------------------------------------------------------------------------------


def environment(config: ContainerConfig, *, linked: Sequence[str] = ()) -> list[str]:
    """Return PATH, HOSTNAME, the links' and (with a terminal) TERM, overridden and followed by the ask's own.

    An entry without `=` removes a default. Of an entry given twice the last counts. HOME comes from the runtime.
    """
    defaults = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={config.hostname}", *linked]
    if config.tty:
        defaults.append("TERM=xterm")
    variables = dict(entry.split("=", 1) for entry in defaults)
    for entry in config.env or ():
        name, given, value = entry.partition("=")
        if given:
            variables[name] = value
        else:
            variables.pop(name, None)
    return [f"{name}={value}" for name, value in variables.items()]


def rlimits(asked: Sequence[Ulimit] | None, default: Sequence[Ulimit]) -> list[dict[str, Any]]:
    """Return the ask's ulimits and the daemon's default ones that it does not name; -1 is no limit."""
    named = {ulimit.name for ulimit in asked or ()}
    chosen = [*(asked or ()), *(ulimit for ulimit in default if ulimit.name not in named)]
    return [
        {
            "type": "RLIMIT_" + ulimit.name.upper(),
            "hard": ulimit.hard & 0xFFFFFFFFFFFFFFFF,
            "soft": ulimit.soft & 0xFFFFFFFFFFFFFFFF,
        }
        for ulimit in chosen
    ]


def capability_sets(names: Sequence[str], uid: int) -> dict[str, list[str]]:
    """Return the sets that Docker fills: for another user than root the bounding one alone, never the
    inheritable or ambient ones (CVE-2022-24769)."""
    sets = {"bounding": list(names)}
    if uid == 0:
        sets |= {"effective": list(names), "permitted": list(names)}
    return sets


def _process(
    config: ContainerConfig,
    host: HostConfig,
    facts: Facts,
    options: SecurityOptions,
    caps: Sequence[str],
    *,
    init: bool,
) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": facts.user.uid, "gid": facts.user.gid}
    if facts.user.groups:
        user["additionalGids"] = list(facts.user.groups)
    process: dict[str, Any] = {
        "user": user,
        "args": [*((mounts.INIT_PATH, "--") if init else ()), *facts.args],
        "env": environment(config, linked=facts.linked_env),
        "cwd": config.working_dir or "/",
        "capabilities": capability_sets(caps, facts.user.uid),
        "oomScoreAdj": host.oom_score_adj,
    }
    if config.tty:
        process["terminal"] = True
        if len(host.console_size) == 2 and any(host.console_size):
            process["consoleSize"] = {"height": host.console_size[0], "width": host.console_size[1]}
    if limits := rlimits(host.ulimits, facts.ulimits):
        process["rlimits"] = limits
    quiet = options.no_new_privileges
    if facts.no_new_privileges if quiet is None else quiet:
        process["noNewPrivileges"] = True
    if profile := apparmor_profile(host, options, facts):
        process["apparmorProfile"] = profile
    return process


def apparmor_profile(host: HostConfig, options: SecurityOptions, facts: Facts) -> str:
    """Return the AppArmor profile, "" on a machine without AppArmor.

    There only the two names that every Docker host knows are accepted, for they promise nothing here.
    """
    if not facts.machine.apparmor:
        if options.apparmor not in ("", "unconfined", apparmor.NAME):
            raise InvalidParameter(
                f"AppArmor profile {options.apparmor!r}: AppArmor is not enabled on this machine; leave "
                "--security-opt apparmor away"
            )
        return ""
    return apparmor.chosen(host, options)


def _wants_init(host: HostConfig, facts: Facts) -> bool:
    """Tell whether an init of the engine's becomes pid 1; where pid 1 is another's there is nothing to do."""
    if not (facts.init if host.init is None else host.init):
        return False
    if host.pid_mode == "host" or host.pid_mode.startswith("container:"):
        return False
    if not facts.init_path:
        raise Unsupported("--init: no init program is configured; set init-path in the daemon's configuration")
    return True


# --- linux ----------------------------------------------------------------------------------------------------


def _linux(
    config: ContainerConfig, host: HostConfig, facts: Facts, options: SecurityOptions, caps: Sequence[str]
) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "resources": resources(host, devices=facts.devices, block_devices=facts.block_devices),
        "cgroupsPath": cgroups_path(host, facts),
        "namespaces": namespaces(host, facts),
    }
    if sysctls := _sysctls(config, host, facts):
        linux["sysctl"] = sysctls
    if facts.devices:
        linux["devices"] = [_node(device) for device in facts.devices]
    if profile := _seccomp(host, facts, options, caps):
        linux["seccomp"] = profile
    if propagation := mounts.root_propagation(facts.mounts):
        linux["rootfsPropagation"] = propagation
    if facts.uid_mappings and host.userns_mode != "host":
        linux["uidMappings"] = [dict(mapping) for mapping in facts.uid_mappings]
        linux["gidMappings"] = [dict(mapping) for mapping in facts.gid_mappings]
    linux |= _hidden_paths(host, facts, options)
    return linux


def cgroups_path(host: HostConfig, facts: Facts) -> str:
    """Return `linux.cgroupsPath`: the container's own cgroup below its parent."""
    parent = host.cgroup_parent or facts.cgroup_parent
    return f"{parent.rstrip('/')}/{facts.id}"


def namespaces(host: HostConfig, facts: Facts) -> list[dict[str, str]]:
    """Return the namespaces to make or, with a path, to join; the host's own are left out."""
    found: list[dict[str, str]] = [{"type": "mount"}]
    for kind, mode in (
        ("network", host.network_mode),
        ("uts", host.uts_mode),
        ("pid", host.pid_mode),
        ("ipc", host.ipc_mode),
    ):
        if mode == "host":
            continue
        namespace = {"type": kind}
        if path := facts.namespaces.get(kind, ""):
            namespace["path"] = path
        elif mode.startswith("container:"):
            raise InvalidParameter(f"cannot join {kind} namespace of {mode}: it is not running")
        found.append(namespace)
    if facts.time_namespace:
        found.append({"type": "time"})
    if host.cgroupns_mode == "private" or (not host.cgroupns_mode and facts.machine.cgroup_version == 2):
        found.append({"type": "cgroup"})
    if facts.uid_mappings and host.userns_mode != "host":
        path = facts.namespaces.get("user", "")
        found.append({"type": "user", "path": path} if path else {"type": "user"})
    return found


def _sysctls(config: ContainerConfig, host: HostConfig, facts: Facts) -> dict[str, str]:
    """Return the sysctls: ports and ping for everybody in a network namespace of one's own, the network's, the
    NIS domain name, and the user's over all of them."""
    found: dict[str, str] = {}
    if host.network_mode != "host" and not host.network_mode.startswith("container:"):
        found["net.ipv4.ip_unprivileged_port_start"] = "0"
        # In a user namespace dockerd leaves ping to root: there the kernel takes mapped groups only.
        last = max((m["containerID"] + m["size"] - 1 for m in facts.gid_mappings), default=0x7FFFFFFF)
        found["net.ipv4.ping_group_range"] = f"0 {last}"
    found |= facts.sysctls
    if config.domainname and host.uts_mode != "host":
        found["kernel.domainname"] = config.domainname
    return found | (host.sysctls or {})


def _node(device: Device) -> dict[str, Any]:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }


def _seccomp(
    host: HostConfig, facts: Facts, options: SecurityOptions, caps: Sequence[str]
) -> Mapping[str, Any] | None:
    """Return `linux.seccomp`; a privileged container has one only if it names a profile itself."""
    asked = options.seccomp
    if asked == "unconfined" or (not asked and (host.privileged or facts.seccomp_unconfined)):
        return None
    if not facts.machine.seccomp:
        if asked:
            raise Unsupported("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
        return None
    machine = facts.machine
    if asked and asked != "builtin":
        profile = security.parse_profile(asked)
    elif not asked and facts.seccomp_profile is not None:
        profile = facts.seccomp_profile
    else:
        return security.default_seccomp(tuple(caps), machine.architecture, machine.kernel)
    return security.seccomp(profile, capabilities=caps, architecture=machine.architecture, kernel=machine.kernel)


def _hidden_paths(host: HostConfig, facts: Facts, options: SecurityOptions) -> dict[str, list[str]]:
    """Return maskedPaths and readonlyPaths: the ask's own lists, even empty ones, win; privileged has none."""
    defaults = security.defaults()
    masked, readonly = host.masked_paths, host.readonly_paths
    if options.system_paths_unconfined or host.privileged:
        masked, readonly = masked or [], readonly or []
    if masked is None:
        masked = [*defaults["masked_paths"], *facts.machine.masked_paths]
    if readonly is None:
        readonly = defaults["readonly_paths"]
    found = {"maskedPaths": list(masked), "readonlyPaths": list(readonly)}
    return {name: paths for name, paths in found.items() if paths}
