"""Flags and arguments to the body of `POST /containers/create`: field for field what the official client sends."""

from __future__ import annotations

from dray.base.errors import InvalidParameter, Unsupported
from dray.cli.ask import devices, limits, mounts
from dray.cli.ask.environment import collect, to_map
from dray.cli.ask.networks import parse_networks
from dray.cli.ask.ports import parse_expose, parse_publish, sorted_ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.flags import Values


def _check_namespaces(values: Values) -> None:
    """Refuse namespace modes that are none; an empty one is the daemon's default."""
    pid, uts, userns, cgroupns = values["pid"], values["uts"], values["userns"], values["cgroupns"]
    if pid not in ("", "host") and not (pid.startswith("container:") and pid != "container:"):
        raise InvalidParameter("--pid: invalid PID mode")
    if uts not in ("", "host"):
        raise InvalidParameter("--uts: invalid UTS mode")
    if userns not in ("", "host"):
        raise InvalidParameter("--userns: invalid USER mode")
    if cgroupns not in ("", "host", "private"):
        raise InvalidParameter("--cgroupns: invalid CGROUP mode")


def _entrypoint(values: Values) -> list[str] | None:
    if "entrypoint" not in values.changed:
        return None
    # An empty entrypoint clears the image's; the API says that with one empty word.
    return [values["entrypoint"]]


def _resources(values: Values) -> dict[str, Any]:
    plain = [one for one in values["device"] if not devices.is_cdi(one)]
    cdi = [one for one in values["device"] if devices.is_cdi(one)]
    requests = list(values["gpus"])
    if cdi:
        requests.append({"Driver": "cdi", "Count": 0, "DeviceIDs": cdi, "Capabilities": None, "Options": None})
    resources: dict[str, Any] = {
        "CpuShares": values["cpu-shares"],
        "Memory": values["memory"],
        "NanoCpus": values["cpus"],
        "CgroupParent": values["cgroup-parent"],
        "BlkioWeight": values["blkio-weight"],
        "BlkioWeightDevice": values["blkio-weight-device"],
        "BlkioDeviceReadBps": values["device-read-bps"],
        "BlkioDeviceWriteBps": values["device-write-bps"],
        "BlkioDeviceReadIOps": values["device-read-iops"],
        "BlkioDeviceWriteIOps": values["device-write-iops"],
        "CpuPeriod": values["cpu-period"],
        "CpuQuota": values["cpu-quota"],
        "CpuRealtimePeriod": values["cpu-rt-period"],
        "CpuRealtimeRuntime": values["cpu-rt-runtime"],
        "CpusetCpus": values["cpuset-cpus"],
        "CpusetMems": values["cpuset-mems"],
        "Devices": [devices.parse_device(devices.check_device(one)) for one in plain],
        "DeviceCgroupRules": values["device-cgroup-rule"] or None,
        "DeviceRequests": requests or None,
        "MemoryReservation": values["memory-reservation"],
        "MemorySwap": values["memory-swap"],
        "MemorySwappiness": values["memory-swappiness"],
        "OomKillDisable": values["oom-kill-disable"],
        "PidsLimit": values["pids-limit"],
        "Ulimits": sorted(
            {one["Name"]: one for one in values["ulimit"]}.values(), key=lambda one: str(one["Name"])
        ),
        "CpuCount": values["cpu-count"],
        "CpuPercent": values["cpu-percent"],
        "IOMaximumIOps": values["io-maxiops"],
        "IOMaximumBandwidth": values["io-maxbandwidth"],
    }
    if values["kernel-memory"]:
        resources["KernelMemory"] = values["kernel-memory"]
    return resources


def _host_config(values: Values, mode: str, binds: list[str], bindings: dict[str, Any]) -> dict[str, Any]:
    security, unconfined = limits.parse_security_options(values["security-opt"])
    cap_add, cap_drop = limits.normalize_capabilities(values["cap-add"], values["cap-drop"])
    host: dict[str, Any] = {
        "Binds": binds or None,
        "ContainerIDFile": values["cidfile"],
        "LogConfig": {
            "Type": values["log-driver"],
            "Config": limits.parse_log_options(values["log-driver"], values["log-opt"]),
        },
        "NetworkMode": mode,
        "PortBindings": bindings,
        "RestartPolicy": limits.parse_restart(values["restart"]),
        "AutoRemove": values["rm"],
        "VolumeDriver": values["volume-driver"],
        "VolumesFrom": values["volumes-from"] or None,
        "ConsoleSize": [0, 0],
        "CapAdd": cap_add or None,
        "CapDrop": cap_drop or None,
        "CgroupnsMode": values["cgroupns"],
        "Dns": values["dns"],
        "DnsOptions": values["dns-option"] + values["dns-opt"],
        "DnsSearch": values["dns-search"],
        "ExtraHosts": values["add-host"] or None,
        "GroupAdd": values["group-add"] or None,
        "IpcMode": values["ipc"],
        "Cgroup": "",
        "Links": values["link"] or None,
        "OomScoreAdj": values["oom-score-adj"],
        "PidMode": values["pid"],
        "Privileged": values["privileged"],
        "PublishAllPorts": values["publish-all"],
        "ReadonlyRootfs": values["read-only"],
        "SecurityOpt": security or None,
        "UTSMode": values["uts"],
        "UsernsMode": values["userns"],
        "ShmSize": values["shm-size"],
        "Isolation": values["isolation"],
        **_resources(values),
        "MaskedPaths": [] if unconfined else None,
        "ReadonlyPaths": [] if unconfined else None,
    }
    optional = {
        "Annotations": values["annotation"],
        "StorageOpt": limits.parse_storage_options(values["storage-opt"]),
        "Tmpfs": mounts.parse_tmpfs(values["tmpfs"]),
        "Sysctls": values["sysctl"],
        "Runtime": values["runtime"],
        "Mounts": values["mount"],
    }
    host.update({key: value for key, value in optional.items() if value})
    if "init" in values.changed:
        host["Init"] = values["init"]
    return host


def build(values: Values, image: str, command: list[str]) -> dict[str, Any]:
    """Return the create request's body; InvalidParameter when the flags contradict each other."""
    if values["use-api-socket"]:
        raise Unsupported(
            "--use-api-socket is not supported: mount the socket with -v /var/run/docker.sock:/var/run/docker.sock"
        )
    if values["memory-swappiness"] != -1 and not 0 <= values["memory-swappiness"] <= 100:
        raise InvalidParameter(
            f"invalid value: {values['memory-swappiness']}. Valid memory swappiness range is 0-100"
        )
    attach = values["attach"]
    exposed, bindings = parse_publish(values["publish"])
    exposed.update(parse_expose(values["expose"]))
    binds, anonymous = mounts.split_volumes(values["volume"])
    _check_namespaces(values)
    mode, endpoints = parse_networks(values)
    health = limits.parse_health(values)
    stdin = values["interactive"] or "stdin" in attach
    body: dict[str, Any] = {
        "Hostname": values["hostname"],
        "Domainname": values["domainname"],
        "User": values["user"],
        "AttachStdin": stdin,
        "AttachStdout": not attach or "stdout" in attach,
        "AttachStderr": not attach or "stderr" in attach,
    }
    if exposed:
        body["ExposedPorts"] = sorted_ports(exposed)
    body |= {
        "Tty": values["tty"],
        "OpenStdin": values["interactive"],
        "StdinOnce": values["interactive"] and stdin,
        "Env": collect(values["env-file"], values["env"], environment=True) or None,
        "Cmd": command or None,
    }
    if health is not None:
        body["Healthcheck"] = health
    body |= {
        "Image": image,
        "Volumes": anonymous,
        "WorkingDir": values["workdir"],
        "Entrypoint": _entrypoint(values),
        "OnBuild": None,
        "Labels": to_map(collect(values["label-file"], values["label"], environment=False)),
    }
    if values["stop-signal"]:
        body["StopSignal"] = values["stop-signal"]
    if "stop-timeout" in values.changed:
        body["StopTimeout"] = values["stop-timeout"]
    host = _host_config(values, mode, binds, sorted_ports(bindings))
    if host["AutoRemove"] and host["RestartPolicy"]["Name"] not in ("", "no"):
        raise InvalidParameter("conflicting options: cannot specify both --restart and --rm")
    return {**body, "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": endpoints}}
