"""From a container back to the words of `run` that ask for it: the inverse of `ask.body`.

Pure. What the image brings by itself, and what the engine fills in when nothing is said, is left out; so running the
words makes the same request. Three things cannot be read off a container, and are told as notes: a seccomp profile is
a file of the client's, a MAC address that was asked for looks like one that was not once the container runs, and an
entry of the environment that only takes a variable away.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# (field of HostConfig, flag, what the engine has it be when nothing is said)
_TEXTS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("CpuShares", "cpu-shares", ()),
    ("Memory", "memory", ()),
    ("CgroupParent", "cgroup-parent", ()),
    ("BlkioWeight", "blkio-weight", ()),
    ("CpuPeriod", "cpu-period", ()),
    ("CpuQuota", "cpu-quota", ()),
    ("CpuRealtimePeriod", "cpu-rt-period", ()),
    ("CpuRealtimeRuntime", "cpu-rt-runtime", ()),
    ("CpusetCpus", "cpuset-cpus", ()),
    ("CpusetMems", "cpuset-mems", ()),
    ("KernelMemory", "kernel-memory", ()),
    ("MemoryReservation", "memory-reservation", ()),
    ("PidsLimit", "pids-limit", ()),
    ("VolumeDriver", "volume-driver", ()),
    ("CgroupnsMode", "cgroupns", ("private",)),
    ("IpcMode", "ipc", ("private",)),
    ("OomScoreAdj", "oom-score-adj", ()),
    ("PidMode", "pid", ()),
    ("UTSMode", "uts", ()),
    ("UsernsMode", "userns", ()),
    ("ShmSize", "shm-size", (64 << 20,)),
    ("Isolation", "isolation", ("default",)),
)
_LISTS = (
    ("Binds", "volume"),
    ("VolumesFrom", "volumes-from"),
    ("CapAdd", "cap-add"),
    ("CapDrop", "cap-drop"),
    ("DeviceCgroupRules", "device-cgroup-rule"),
    ("Dns", "dns"),
    ("DnsOptions", "dns-option"),
    ("DnsSearch", "dns-search"),
    ("ExtraHosts", "add-host"),
    ("GroupAdd", "group-add"),
)
_MAPS = (("Annotations", "annotation"), ("StorageOpt", "storage-opt"), ("Sysctls", "sysctl"))
_SWITCHES = (
    ("AutoRemove", "rm"),
    ("OomKillDisable", "oom-kill-disable"),
    ("Privileged", "privileged"),
    ("PublishAllPorts", "publish-all"),
    ("ReadonlyRootfs", "read-only"),
)
_DEVICES = (
    ("BlkioWeightDevice", "blkio-weight-device", "Weight"),
    ("BlkioDeviceReadBps", "device-read-bps", "Rate"),
    ("BlkioDeviceWriteBps", "device-write-bps", "Rate"),
    ("BlkioDeviceReadIOps", "device-read-iops", "Rate"),
    ("BlkioDeviceWriteIOps", "device-write-iops", "Rate"),
)
_RECURSIVE = (
    ("NonRecursive", "disabled"),
    ("ReadOnlyNonRecursive", "writable"),
    ("ReadOnlyForceRecursive", "readonly"),
)


def run_words(
    container: dict[str, Any], image: dict[str, Any], *, runtime: str = ""
) -> tuple[list[str], list[str]]:
    """Return the words after `run` that ask for a container, and notes on what they cannot say.

    container: what `inspect` answers; image: the `Config` of its image, {} if that is gone; runtime: the daemon's
    default one
    """
    config, host = container["Config"], container["HostConfig"]
    notes: list[str] = []
    words = [f"--name={container['Name'].removeprefix('/')}"]
    words += _streams(config)
    words += _identity(container, config, image)
    words += _environment(config, image, notes)
    words += _health(config.get("Healthcheck"), image.get("Healthcheck"))
    words += _network(container, config, host, image)
    words += _host(host, runtime, notes)
    words += _mounts(config, host, image)
    entrypoint, command = _command(config, image)
    return [*words, *entrypoint, config["Image"], *command], notes


def _streams(config: dict[str, Any]) -> Iterable[str]:
    attached = [name for name in ("Stdin", "Stdout", "Stderr") if config.get(f"Attach{name}")]
    if not attached:
        yield "--detach"
    elif "Stdout" not in attached or "Stderr" not in attached:
        yield from (f"--attach={name.lower()}" for name in attached)
    if config.get("OpenStdin"):
        yield "--interactive"
    if config.get("Tty"):
        yield "--tty"


def _identity(container: dict[str, Any], config: dict[str, Any], image: dict[str, Any]) -> Iterable[str]:
    hostname = config.get("Hostname") or ""
    if hostname != container["Id"][:12] and container["HostConfig"].get("UTSMode") != "host":
        network = container["HostConfig"].get("NetworkMode") or ""
        if hostname and network != "host" and not network.startswith("container:"):
            yield f"--hostname={hostname}"
    for field, flag in (
        ("Domainname", "domainname"),
        ("User", "user"),
        ("WorkingDir", "workdir"),
        ("StopSignal", "stop-signal"),
    ):
        if config.get(field) and config[field] != image.get(field):
            yield f"--{flag}={config[field]}"
    if config.get("StopTimeout") is not None:
        yield f"--stop-timeout={config['StopTimeout']}"
    labels = image.get("Labels") or {}
    for name, value in (config.get("Labels") or {}).items():
        if labels.get(name) != value:
            yield f"--label={name}={value}"


def _environment(config: dict[str, Any], image: dict[str, Any], notes: list[str]) -> Iterable[str]:
    given = image.get("Env") or ()
    for entry in config.get("Env") or ():
        if entry in given:
            continue
        if "=" not in entry:
            notes.append(f"{entry} is taken out of the environment: run this where {entry} is not set")
        yield f"--env={entry}"


def _duration(nanoseconds: int) -> str:
    return f"{nanoseconds}ns"


def _health(check: dict[str, Any] | None, image: dict[str, Any] | None) -> Iterable[str]:
    if not check or check == image:
        return
    test = check.get("Test") or []
    if test == ["NONE"]:
        yield "--no-healthcheck"
        return
    if test and test != (image or {}).get("Test"):
        if test[0] == "CMD":
            import shlex

            yield f"--health-cmd={shlex.join(test[1:])}"
        else:
            yield f"--health-cmd={' '.join(test[1:])}"
    for field, flag in (
        ("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start-period"),
        ("StartInterval", "start-interval"),
    ):  # fmt: skip
        if check.get(field):
            yield f"--health-{flag}={_duration(check[field])}"
    if check.get("Retries"):
        yield f"--health-retries={check['Retries']}"


# --- network ----------------------------------------------------------------------------------------------------


def _network(
    container: dict[str, Any], config: dict[str, Any], host: dict[str, Any], image: dict[str, Any]
) -> Iterable[str]:
    mode = host.get("NetworkMode") or "default"
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    stopped = not (container.get("State") or {}).get("Running")
    names = [mode, *(name for name in networks if name not in (mode, "default"))]
    own = networks.get(mode) or networks.get("bridge" if mode == "default" else mode) or {}
    for index, name in enumerate(names):
        fields = list(_endpoint(own if index == 0 else networks[name], stopped=stopped))
        if fields:
            yield f"--network={_csv([f'name={name}', *fields])}"
        elif index or name not in ("default", "bridge"):
            yield f"--network={name}"
    links = dict.fromkeys(own.get("Links") or ())  # both places may have the same one
    for text in host.get("Links") or ():
        source, _, alias = text.partition(":")
        links[f"{source.removeprefix('/')}:{alias.rpartition('/')[2]}"] = None
    for link in links:
        yield f"--link={link}"
    published: dict[str, Any] = host.get("PortBindings") or {}
    for port, bindings in published.items():
        for binding in bindings or [{}]:
            address, number = binding.get("HostIp") or "", binding.get("HostPort") or ""
            address = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
            yield f"--publish={address}{number + ':' if number or address else ''}{port}"
    exposed = image.get("ExposedPorts") or {}
    for port in config.get("ExposedPorts") or {}:
        if port not in exposed and port not in published:
            yield f"--expose={port}"


def _endpoint(settings: dict[str, Any], *, stopped: bool) -> Iterable[str]:
    yield from (f"alias={alias}" for alias in settings.get("Aliases") or ())
    ipam = settings.get("IPAMConfig") or {}
    if ipam.get("IPv4Address"):
        yield f"ip={ipam['IPv4Address']}"
    if ipam.get("IPv6Address"):
        yield f"ip6={ipam['IPv6Address']}"
    yield from (f"link-local-ip={address}" for address in ipam.get("LinkLocalIPs") or ())
    if stopped and settings.get("MacAddress"):
        yield f"mac-address={settings['MacAddress']}"
    yield from (f"driver-opt={name}={value}" for name, value in (settings.get("DriverOpts") or {}).items())
    if settings.get("GwPriority"):
        yield f"gw-priority={settings['GwPriority']}"


# --- the host's part --------------------------------------------------------------------------------------------


def _host(host: dict[str, Any], runtime: str, notes: list[str]) -> Iterable[str]:
    for field, flag, silent in _TEXTS:
        if host.get(field) and host[field] not in silent:
            yield f"--{flag}={host[field]}"
    for field, flag in _SWITCHES:
        if host.get(field):
            yield f"--{flag}"
    for field, flag in (pair for pair in _LISTS if pair[0] != "Binds"):
        yield from (f"--{flag}={value}" for value in host.get(field) or ())
    for field, flag in _MAPS:
        yield from (f"--{flag}={name}={value}" for name, value in (host.get(field) or {}).items())
    for field, flag, value in _DEVICES:
        yield from (f"--{flag}={entry['Path']}:{entry[value]}" for entry in host.get(field) or ())
    if host.get("NanoCpus"):
        whole, rest = divmod(host["NanoCpus"], 10**9)
        yield f"--cpus={whole}.{rest:09d}".rstrip("0").rstrip(".")
    swap = host.get("MemorySwap") or 0
    if swap and swap != 2 * (host.get("Memory") or 0):
        yield f"--memory-swap={swap}"
    if (host.get("MemorySwappiness") or -1) >= 0 or host.get("MemorySwappiness") == 0:
        yield f"--memory-swappiness={host['MemorySwappiness']}"
    if host.get("Init") is not None:
        yield "--init" if host["Init"] else "--init=false"
    if host.get("Runtime") and host["Runtime"] != runtime:
        yield f"--runtime={host['Runtime']}"
    policy = host.get("RestartPolicy") or {}
    if policy.get("Name") not in (None, "", "no"):
        count = policy.get("MaximumRetryCount") or 0
        yield f"--restart={policy['Name']}" + (f":{count}" if count else "")
    logs = host.get("LogConfig") or {}
    options = logs.get("Config") or {}
    if logs.get("Type") and (logs["Type"] != "json-file" or options):
        yield f"--log-driver={logs['Type']}"
    yield from (f"--log-opt={name}={value}" for name, value in options.items())
    for limit in host.get("Ulimits") or ():
        yield f"--ulimit={limit['Name']}={limit['Soft']}:{limit['Hard']}"
    for device in host.get("Devices") or ():
        path = device["PathInContainer"]
        yield f"--device={device['PathOnHost']}:{path}:{device.get('CgroupPermissions') or 'rwm'}"
    yield from _requests(host)
    yield from _security(host, notes)


def _requests(host: dict[str, Any]) -> Iterable[str]:
    for request in host.get("DeviceRequests") or ():
        if request.get("Driver") == "cdi":
            yield from (f"--device={name}" for name in request.get("DeviceIDs") or ())
            continue
        ids, count = request.get("DeviceIDs"), request.get("Count") or 0
        fields = [f"device={','.join(ids)}"] if ids else [f"count={'all' if count == -1 else count}"]
        if request.get("Driver"):
            fields.append(f"driver={request['Driver']}")
        words = [word for group in request.get("Capabilities") or () for word in group]
        if words and words[-1] == "gpu":
            words.pop()  # which the flag adds
        if words:
            fields.append(f"capabilities={','.join(words)}")
        if request.get("Options"):
            fields.append("options=" + _csv([f"{name}={value}" for name, value in request["Options"].items()]))
        yield f"--gpus={_csv(fields)}"


def _security(host: dict[str, Any], notes: list[str]) -> Iterable[str]:
    for option in host.get("SecurityOpt") or ():
        if option.startswith("seccomp={"):
            notes.append("the seccomp profile was read from a file: save it as seccomp.json")
            yield "--security-opt=seccomp=seccomp.json"
        else:
            yield f"--security-opt={option}"
    if host.get("MaskedPaths") == [] and host.get("ReadonlyPaths") == [] and not host.get("Privileged"):
        yield "--security-opt=systempaths=unconfined"


# --- mounts -----------------------------------------------------------------------------------------------------


def _mounts(config: dict[str, Any], host: dict[str, Any], image: dict[str, Any]) -> Iterable[str]:
    yield from (f"--volume={bind}" for bind in host.get("Binds") or ())
    volumes = image.get("Volumes") or {}
    for path in config.get("Volumes") or {}:
        if path not in volumes:
            yield f"--volume={path}"
    for mount in host.get("Mounts") or ():
        yield f"--mount={_csv(list(_mount(mount)))}"
    for path, words in (host.get("Tmpfs") or {}).items():
        yield f"--tmpfs={path}" + (f":{words}" if words else "")


def _mount(mount: dict[str, Any]) -> Iterable[str]:
    yield f"type={mount['Type']}"
    if mount.get("Source"):
        yield f"source={mount['Source']}"
    yield f"target={mount['Target']}"
    if mount.get("ReadOnly"):
        yield "readonly"
    if mount.get("Consistency"):
        yield f"consistency={mount['Consistency']}"
    bind = mount.get("BindOptions") or {}
    if bind.get("Propagation"):
        yield f"bind-propagation={bind['Propagation']}"
    if bind.get("CreateMountpoint"):
        yield "bind-create-src"
    yield from (f"bind-recursive={word}" for field, word in _RECURSIVE if bind.get(field))
    volume = mount.get("VolumeOptions") or {}
    if volume.get("NoCopy"):
        yield "volume-nocopy"
    if volume.get("Subpath"):
        yield f"volume-subpath={volume['Subpath']}"
    yield from (f"volume-label={name}={value}" for name, value in (volume.get("Labels") or {}).items())
    driver = volume.get("DriverConfig") or {}
    if driver.get("Name"):
        yield f"volume-driver={driver['Name']}"
    yield from (f"volume-opt={name}={value}" for name, value in (driver.get("Options") or {}).items())
    if (mount.get("ImageOptions") or {}).get("Subpath"):
        yield f"image-subpath={mount['ImageOptions']['Subpath']}"
    tmpfs = mount.get("TmpfsOptions") or {}
    if tmpfs.get("SizeBytes"):
        yield f"tmpfs-size={tmpfs['SizeBytes']}"
    if tmpfs.get("Mode"):
        yield f"tmpfs-mode={tmpfs['Mode']:o}"


# --- the command ------------------------------------------------------------------------------------------------


def _command(config: dict[str, Any], image: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the entrypoint's flag and the words after the image."""
    entrypoint, command = config.get("Entrypoint") or [], config.get("Cmd") or []
    if entrypoint == (image.get("Entrypoint") or []):
        return [], command if command != (image.get("Cmd") or []) else []
    return [f"--entrypoint={entrypoint[0] if entrypoint else ''}"], [*entrypoint[1:], *command]


def _csv(fields: list[str]) -> str:
    return ",".join(
        '"' + field.replace('"', '""') + '"'
        if any(mark in field for mark in '",\n') or field != field.strip()
        else field
        for field in fields
    )
