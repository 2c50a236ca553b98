"""Every option of drayd: the `daemon.json` key, the flag, its type, and why it is refused where it is.

The names are dockerd's own. An option that this engine does not have is refused by name with the reason: none is
accepted and ignored.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

NO_SWARM = "there is no swarm mode yet"
NO_BUILD = "there is no image builder yet"
NO_CONTAINERD = "dray does without containerd"


class Option(Struct, frozen=True):
    """One option. `kind`: str, int, bool, list, map (key=value pairs), or json (an object or array, only in the
    file unless a flag's parser in `daemon.config` makes it). `refused`: the reason it cannot be set."""

    key: str
    kind: str
    flag: str = ""
    short: str = ""
    default: Any = None
    help: str = ""
    refused: str = ""


OPTIONS: tuple[Option, ...] = (
    Option("hosts", "list", "host", "H", ["unix:///var/run/docker.sock"], "Listen here (unix://, tcp://, fd://)"),
    Option("group", "str", "group", "G", "", "Group that may use the unix sockets (default: root alone)"),
    Option("tls", "bool", "tls", "", False, "Use TLS on tcp:// (implied by --tlsverify)"),
    Option("tlsverify", "bool", "tlsverify", "", False, "Use TLS and verify the clients"),
    Option("tlscacert", "str", "tlscacert", "", "", "Trust client certificates signed by this CA"),
    Option("tlscert", "str", "tlscert", "", "", "TLS certificate file"),
    Option("tlskey", "str", "tlskey", "", "", "TLS key file"),
    Option("data-root", "str", "data-root", "", "/var/lib/dray", "Where everything durable is kept"),
    Option("exec-root", "str", "exec-root", "", "/run/dray", "Where the state of running containers is kept"),
    Option("pidfile", "str", "pidfile", "p", "/run/dray.pid", "The daemon's pid file"),
    Option("debug", "bool", "debug", "D", False, "Log at debug level"),
    Option("log-level", "str", "log-level", "l", "info", "debug, info, warn, error or fatal"),
    Option("log-format", "str", "log-format", "", "text", "text or json"),
    Option("raw-logs", "bool", "raw-logs", "", False, "No colours in the daemon's log (it never has any)"),
    Option("labels", "list", "label", "", [], "Labels of the daemon, shown by info"),
    Option(
        "authorization-plugins", "list", "authorization-plugin", "", [], "Ask these plugins about every request"
    ),
    Option("live-restore", "bool", "live-restore", "", True, "Leave containers running when the daemon stops"),
    Option(
        "shutdown-timeout", "int", "shutdown-timeout", "", 15, "Seconds for containers to stop (live-restore off)"
    ),
    Option("min-api-version", "str", "", "", "1.24", "Oldest API version that is answered"),
    Option("experimental", "bool", "experimental", "", False, "Allow what is experimental: checkpoints"),
    # Containers
    Option("default-runtime", "str", "default-runtime", "", "dray", "Runtime of containers that name none"),
    Option("runtimes", "json", "add-runtime", "", {}, "Register an OCI runtime: name=path"),
    Option("exec-opts", "list", "exec-opt", "", [], "native.cgroupdriver=cgroupfs is the only one"),
    Option("cgroup-parent", "str", "cgroup-parent", "", "", "Parent cgroup of all containers (default /dray)"),
    Option("default-ulimits", "json", "default-ulimit", "", {}, "name=soft[:hard] for containers that name none"),
    Option("default-shm-size", "str", "default-shm-size", "", "64m", "Size of /dev/shm"),
    Option("default-ipc-mode", "str", "default-ipc-mode", "", "private", "private or shareable"),
    Option("default-cgroupns-mode", "str", "default-cgroupns-mode", "", "private", "private or host"),
    Option("default-stop-timeout", "int", "default-stop-timeout", "", 10, "Seconds before stop kills"),
    Option("no-new-privileges", "bool", "no-new-privileges", "", False, "Set no_new_privs by default"),
    Option("seccomp-profile", "str", "seccomp-profile", "", "builtin", "builtin, unconfined or a profile's path"),
    Option("userns-remap", "str", "userns-remap", "", "", "User namespaces for containers: default, user[:group]"),
    Option("init", "bool", "init", "", False, "Run an init inside containers by default"),
    Option("init-path", "str", "init-path", "", "", "That init's path (default: a tiny one of our own)"),
    Option("default-init", "str", refused="use init-path"),
    Option("log-driver", "str", "log-driver", "", "json-file", "Logging driver of containers that name none"),
    Option("log-opts", "map", "log-opt", "", {}, "Its options, key=value"),
    Option(
        "cdi-spec-dirs",
        "list",
        "cdi-spec-dir",
        "",
        ["/etc/cdi", "/var/run/cdi"],
        "Where CDI specs of devices are; the last one wins",
    ),
    # Storage
    Option("storage-driver", "str", "storage-driver", "s", "", "overlay2, fuse-overlayfs, btrfs, erofs or vfs"),
    Option(
        "discard-compressed-layers",
        "bool",
        "discard-compressed-layers",
        "",
        False,
        "Drop blobs of unpacked layers that can be made again byte for byte, and make them when needed",
    ),
    Option("storage-opts", "list", "storage-opt", "", [], "Options of storage drivers (none is supported)"),
    # Registries
    Option("registry-mirrors", "list", "registry-mirror", "", [], "URL of a mirror of docker.io"),
    Option(
        "insecure-registries",
        "list",
        "insecure-registry",
        "",
        [],
        "host[:port] or CIDR of registries without verified TLS",
    ),
    Option("proxies", "json", default={}, help="http-proxy, https-proxy and no-proxy as one object"),
    Option("http-proxy", "str", "http-proxy", "", "", "Proxy for plain HTTP (default: HTTP_PROXY)"),
    Option("https-proxy", "str", "https-proxy", "", "", "Proxy for HTTPS (default: HTTPS_PROXY)"),
    Option("no-proxy", "str", "no-proxy", "", "", "Hosts that need no proxy (default: NO_PROXY)"),
    Option(
        "max-concurrent-downloads",
        "int",
        "max-concurrent-downloads",
        "",
        3,
        "Connections that pulls receive over at a time",
    ),
    Option("max-concurrent-uploads", "int", "max-concurrent-uploads", "", 5, "Blobs that pushes send at a time"),
    Option(
        "max-download-attempts", "int", "max-download-attempts", "", 5, "Attempts at a download without progress"
    ),
    # Networks
    Option("bridge", "str", "bridge", "b", "", "Name of the default bridge (default dray0), or none"),
    Option("bip", "str", "bip", "", "", "Address of the default bridge, as CIDR"),
    Option("bip6", "str", "bip6", "", "", "IPv6 address of the default bridge, as CIDR"),
    Option("fixed-cidr", "str", "fixed-cidr", "", "", "Range of container addresses inside the bridge's subnet"),
    Option("fixed-cidr-v6", "str", "fixed-cidr-v6", "", "", "The same for IPv6"),
    Option("default-gateway", "str", "default-gateway", "", "", "Gateway of containers on the default bridge"),
    Option("default-gateway-v6", "str", "default-gateway-v6", "", "", "The same for IPv6"),
    Option("default-address-pools", "json", "default-address-pool", "", [], "base=CIDR,size=N"),
    Option("mtu", "int", "mtu", "", 1500, "MTU of the default bridge"),
    Option("icc", "bool", "icc", "", True, "Let containers on the default bridge talk to each other"),
    Option("ip", "str", "ip", "", "0.0.0.0", "Default host address of published ports"),
    Option("ip-forward", "bool", "ip-forward", "", True, "Enable IP forwarding on the host"),
    Option("ip-masq", "bool", "ip-masq", "", True, "Masquerade what leaves the host"),
    Option("iptables", "bool", "iptables", "", True, "Write packet filter rules (nftables)"),
    Option("ip6tables", "bool", "ip6tables", "", True, "The same for IPv6"),
    Option("ipv6", "bool", "ipv6", "", False, "IPv6 on the default bridge"),
    Option("userland-proxy", "bool", "userland-proxy", "", True, "Forward IPv6 ports to IPv4-only containers"),
    Option("firewall-backend", "str", "firewall-backend", "", "nftables", "nftables is the only one"),
    Option(
        "allow-direct-routing",
        "bool",
        "allow-direct-routing",
        "",
        False,
        "Let published ports be reached by the containers' own addresses from outside",
    ),
    Option(
        "bridge-accept-fwmark",
        "str",
        "bridge-accept-fwmark",
        "",
        "",
        "Let marked packets into bridges: mark[/mask]",
    ),
    Option(
        "default-network-opts",
        "json",
        "default-network-opt",
        "",
        {},
        "Driver option of new networks: driver=option=value",
    ),
    Option(
        "respect-host-firewall",
        "bool",
        "respect-host-firewall",
        "",
        False,
        "The host's own INPUT rules hold for published ports",
    ),
    Option("dns", "list", "dns", "", [], "Name servers of containers"),
    Option("dns-opts", "list", "dns-opt", "", [], "resolv.conf options of containers"),
    Option("dns-search", "list", "dns-search", "", [], "Search domains of containers"),
    Option("host-gateway-ip", "str", "host-gateway-ip", "", "", "Address that host-gateway stands for"),
    Option("host-gateway-ips", "list", "", "", [], "Addresses that host-gateway stands for"),
    Option("resolv-conf", "str", "", "", "", "The host's resolv.conf to start from"),
    # Not here (yet): refused by name
    Option(
        "userland-proxy-path", "str", "userland-proxy-path", refused="there is no proxy program: shims forward"
    ),
    Option(
        "ip-forward-no-drop", "bool", "ip-forward-no-drop", refused="the host's FORWARD policy is never changed"
    ),
    Option("network-control-plane-mtu", "int", "network-control-plane-mtu", refused=NO_SWARM),
    Option("network-diagnostic-port", "int", "network-diagnostic-port", refused=NO_SWARM),
    Option("swarm-default-advertise-addr", "str", "swarm-default-advertise-addr", refused=NO_SWARM),
    Option("swarm-raft-heartbeat-tick", "int", refused=NO_SWARM),
    Option("swarm-raft-election-tick", "int", refused=NO_SWARM),
    Option("node-generic-resources", "list", "node-generic-resource", refused=NO_SWARM),
    Option("builder", "json", refused=NO_BUILD),
    Option("features", "json", "feature", "", {}, "Switch a feature: cdi=false"),
    Option("containerd", "str", "containerd", refused=NO_CONTAINERD),
    Option("cri-containerd", "bool", "cri-containerd", refused=NO_CONTAINERD),
    Option("containerd-namespace", "str", "containerd-namespace", refused=NO_CONTAINERD),
    Option("containerd-plugin-namespace", "str", "containerd-plugins-namespace", refused=NO_CONTAINERD),
    Option("nri-opts", "json", "nri-opts", refused="there is no NRI"),
    Option("metrics-addr", "str", "metrics-addr", refused="there are no metrics yet"),
    Option("selinux-enabled", "bool", "selinux-enabled", refused="SELinux is not supported yet"),
    Option("rootless", "bool", "rootless", refused="run drayd as root"),
    Option(
        "cpu-rt-period", "int", "cpu-rt-period", refused="real-time scheduling of all containers is not built in"
    ),
    Option(
        "cpu-rt-runtime", "int", "cpu-rt-runtime", refused="real-time scheduling of all containers is not built in"
    ),
    Option(
        "allow-nondistributable-artifacts",
        "list",
        "allow-nondistributable-artifacts",
        refused="every layer that is here is pushed, as by Docker, which has removed the option",
    ),
    Option("deprecated-key-path", "str", refused="Docker itself removed it"),
)

BY_KEY = {option.key: option for option in OPTIONS}
