"""The flags that `run` and `create` share."""

from __future__ import annotations

from dray.base.errors import InvalidParameter
from dray.cli.ask import devices, mounts, networks
from dray.cli.ask.environment import check_env, check_label
from dray.cli.flags import Flag, parse_int


def _attach(text: str) -> str:
    low = text.lower()
    if low not in ("stdin", "stdout", "stderr"):
        raise InvalidParameter("valid streams are STDIN, STDOUT and STDERR")
    return low


def check_dns_search(text: str) -> str:
    """Check a DNS search domain; a single dot means none."""
    import re

    word = text.strip(" ")
    if word == ".":
        return word
    label = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])"
    if (
        len(word) >= 255
        or not re.fullmatch(rf"(?:{label})(?:\.{label})*", word)
        or not re.search("[a-zA-Z]", word)
    ):
        raise InvalidParameter(f"{text} is not a valid domain")
    return word


def check_ip(text: str) -> str:
    """Check an address; returns its canonical form."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise InvalidParameter(f"IP address is not correctly formatted: {text}") from None


def check_link(text: str) -> str:
    """Check a link, `name` or `name:alias`."""
    parts = text.split(":")
    if not text:
        raise InvalidParameter("empty string specified for links")
    if len(parts) > 2:
        raise InvalidParameter(f"bad format for links: {text}")
    return text


def check_extra_host(text: str) -> str:
    """Check `host:ip` or `host=ip`; returns it with a colon, as the API has it."""
    import ipaddress

    host, equals, address = text.partition("=")
    if not equals:
        host, equals, address = text.partition(":")
    if not equals or not host:
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    if address != "host-gateway":
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from None
    return f"{host}:{address}"


def check_sysctl(text: str) -> str:
    """Check that a sysctl is one a container has of its own."""
    key, equals, _ = text.partition("=")
    spaces = (
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    )
    if not equals or not (key in spaces or key.startswith(("net.", "fs.mqueue.")) or key == "kernel.domainname"):
        raise InvalidParameter(f"sysctl '{text}' is not allowed")
    return text


def _ulimit(text: str) -> dict[str, object]:
    from dray.cli.ask.limits import parse_ulimit

    return parse_ulimit(text)


def _blkio(text: str) -> int:
    return parse_int(text, 16, signed=False)


_LIST, _TEXT, _INT = "list", "string", "int"

SHARED_FLAGS: tuple[Flag, ...] = (
    Flag("add-host", _LIST, "Add a line to /etc/hosts (host:ip)", check=check_extra_host),
    Flag("annotation", "map", "Add an annotation that the OCI runtime sees (name=value)"),
    Flag("attach", _LIST, "Connect STDIN, STDOUT or STDERR", short="a", check=_attach),
    Flag("blkio-weight", "uint16", "Share of block I/O, from 10 to 1000; 0 turns it off"),
    Flag("blkio-weight-device", _LIST, "Share of a device's I/O (device:weight)", check=devices.parse_weight),
    Flag("cap-add", _LIST, "Give a Linux capability"),
    Flag("cap-drop", _LIST, "Take a Linux capability away"),
    Flag("cgroup-parent", _TEXT, "Cgroup that the container's is made in"),
    Flag("cgroupns", _TEXT, "Cgroup namespace: 'host', 'private', or empty for the daemon's default"),
    Flag("cidfile", _TEXT, "Write the container's ID to this file"),
    Flag("cpu-count", _INT, "Number of CPUs (Windows only)"),
    Flag("cpu-percent", _INT, "Percentage of CPU (Windows only)"),
    Flag("cpu-period", _INT, "Period of the CFS quota, in microseconds"),
    Flag("cpu-quota", _INT, "CPU time in each CFS period, in microseconds"),
    Flag("cpu-rt-period", _INT, "Period of the real-time quota, in microseconds"),
    Flag("cpu-rt-runtime", _INT, "Real-time CPU time in each period, in microseconds"),
    Flag("cpu-shares", _INT, "Relative share of CPU time", short="c"),
    Flag("cpus", "decimal", "Number of CPUs, such as 1.5"),
    Flag("cpuset-cpus", _TEXT, "CPUs it may run on (0-3, 0,1)"),
    Flag("cpuset-mems", _TEXT, "Memory nodes it may use (0-3, 0,1)"),
    Flag("device", _LIST, "Give a host device (host[:container[:rwm]])"),
    Flag("device-cgroup-rule", _LIST, "Add a rule to the devices cgroup", check=devices.check_rule),
    Flag(
        "device-read-bps",
        _LIST,
        "Limit reads from a device, bytes a second (device:rate)",
        check=devices.parse_bps,
    ),
    Flag("device-read-iops", _LIST, "Limit reads from a device, operations a second", check=devices.parse_iops),
    Flag("device-write-bps", _LIST, "Limit writes to a device, bytes a second", check=devices.parse_bps),
    Flag("device-write-iops", _LIST, "Limit writes to a device, operations a second", check=devices.parse_iops),
    Flag("disable-content-trust", "bool", "Do not verify signatures", default=True, hidden=True),
    Flag("dns", _LIST, "DNS server", check=check_ip),
    Flag("dns-opt", _LIST, "DNS option", hidden=True),
    Flag("dns-option", _LIST, "DNS option"),
    Flag("dns-search", _LIST, "DNS search domain", check=check_dns_search),
    Flag("domainname", _TEXT, "NIS domain name"),
    Flag("entrypoint", _TEXT, "Replace the image's ENTRYPOINT"),
    Flag(
        "env",
        _LIST,
        "Set an environment variable (NAME=value, or NAME to pass ours on)",
        short="e",
        check=check_env,
    ),
    Flag("env-file", _LIST, "Read environment variables from a file"),
    Flag("expose", _LIST, "Expose a port or a range of ports"),
    Flag("gpus", _LIST, "Give GPUs ('all', a number, or device=…)", check=devices.parse_gpus, label="gpu-request"),
    Flag("group-add", _LIST, "Join another group"),
    Flag("health-cmd", _TEXT, "Command that tells whether the container is healthy"),
    Flag("health-interval", "duration", "Time between health checks"),
    Flag("health-retries", _INT, "Failures in a row that make it unhealthy"),
    Flag("health-start-interval", "duration", "Time between health checks while it starts"),
    Flag("health-start-period", "duration", "Time it has to start before failures count"),
    Flag("health-timeout", "duration", "Time one health check may take"),
    Flag("hostname", _TEXT, "Host name", short="h"),
    Flag("init", "bool", "Run a small init that reaps processes and passes signals on"),
    Flag("interactive", "bool", "Keep standard input open", short="i"),
    Flag("io-maxbandwidth", "bytes", "Limit of the system drive's bandwidth (Windows only)"),
    Flag("io-maxiops", "uint", "Limit of the system drive's operations (Windows only)"),
    Flag("ip", _TEXT, "IPv4 address"),
    Flag("ip6", _TEXT, "IPv6 address"),
    Flag("ipc", _TEXT, "IPC namespace"),
    Flag("isolation", _TEXT, "Isolation technology"),
    Flag("kernel-memory", "bytes", "Limit of kernel memory"),
    Flag("label", _LIST, "Set a label (name=value)", short="l", check=check_label),
    Flag("label-file", _LIST, "Read labels from a file, one a line"),
    Flag("link", _LIST, "Link to another container", check=check_link),
    Flag("link-local-ip", _LIST, "Link-local address", check=check_ip),
    Flag("log-driver", _TEXT, "Logging driver"),
    Flag("log-opt", _LIST, "Logging driver option"),
    Flag("mac-address", _TEXT, "MAC address (such as 92:d0:c6:0a:29:33)"),
    Flag("memory", "bytes", "Limit of memory", short="m"),
    Flag("memory-reservation", "bytes", "Soft limit of memory"),
    Flag("memory-swap", "swap", "Limit of memory and swap together; -1 for no limit"),
    Flag("memory-swappiness", _INT, "Readiness to swap, 0 to 100", default=-1),
    Flag("mount", _LIST, "Mount something (type=bind,source=…,target=…)", check=mounts.parse_mount, label="mount"),
    Flag("name", _TEXT, "Name of the container"),
    Flag("net", _LIST, "Network", check=networks.parse_network, hidden=True),
    Flag("net-alias", _LIST, "Alias in the network", hidden=True),
    Flag("network", _LIST, "Connect to a network", check=networks.parse_network, label="network"),
    Flag("network-alias", _LIST, "Further name in the network"),
    Flag("no-healthcheck", "bool", "Run no health check"),
    Flag("oom-kill-disable", "bool", "Let the kernel's OOM killer spare it"),
    Flag("oom-score-adj", _INT, "Preference of the host's OOM killer (-1000 to 1000)"),
    Flag("pid", _TEXT, "PID namespace"),
    Flag("pids-limit", _INT, "Limit of processes; -1 for none"),
    Flag("platform", _TEXT, "Platform, where the image has several"),
    Flag("privileged", "bool", "Give it every privilege of the host's root"),
    Flag("publish", _LIST, "Publish a port ([[ip:]host:]container[/proto])", short="p"),
    Flag("publish-all", "bool", "Publish all exposed ports at free host ports", short="P"),
    Flag("pull", _TEXT, "When to pull the image: always, missing, never", default="missing"),
    Flag("quiet", "bool", "Show no progress of a pull", short="q"),
    Flag("read-only", "bool", "Mount its root filesystem read-only"),
    Flag("restart", _TEXT, "When to start it again: no, on-failure[:n], always, unless-stopped", default="no"),
    Flag("rm", "bool", "Remove it with its anonymous volumes when it ends"),
    Flag("runtime", _TEXT, "OCI runtime"),
    Flag("security-opt", _LIST, "Security option"),
    Flag("shm-size", "bytes", "Size of /dev/shm"),
    Flag("stop-signal", _TEXT, "Signal that stops it"),
    Flag("stop-timeout", _INT, "Seconds between that signal and SIGKILL"),
    Flag("storage-opt", _LIST, "Storage driver option"),
    Flag("sysctl", "map", "Kernel parameter (name=value)", check=check_sysctl),
    Flag("tmpfs", _LIST, "Mount a tmpfs"),
    Flag("tty", "bool", "Give it a terminal", short="t"),
    Flag("ulimit", _LIST, "Resource limit (name=soft[:hard])", check=_ulimit, label="ulimit"),
    Flag("use-api-socket", "bool", "Give it the engine's socket and our registry credentials"),
    Flag("user", _TEXT, "User and group (name or id[:group])", short="u"),
    Flag("userns", _TEXT, "User namespace"),
    Flag("uts", _TEXT, "UTS namespace"),
    Flag("volume", _LIST, "Mount a volume or a host folder ([source:]target[:options])", short="v"),
    Flag("volume-driver", _TEXT, "Driver of volumes made for it"),
    Flag("volumes-from", _LIST, "Mount another container's volumes"),
    Flag("workdir", _TEXT, "Working directory", short="w"),
)
