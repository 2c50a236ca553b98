"""What a configuration means to the parts of the house: each key of daemon.json under the name its part has for it."""

from __future__ import annotations

import shutil
import zlib
from typing import Any

from dray.daemon.config import DaemonConfig, accept_mark
from dray.engine.creation import Defaults
from dray.linux.usernamespaces import IdMap
from dray.network.model import NetworkConfig
from dray.runtime import tinyinit


def network_config(config: DaemonConfig, maps: IdMap | None) -> NetworkConfig:
    """Return the networking half of the configuration; `maps` of the containers' user namespaces."""
    return NetworkConfig(
        bridge=config["bridge"] or "dray0",
        table=f"dray-{zlib.crc32(config['data-root'].encode()):08x}" if config["bridge"] == "none" else "",
        bip=config["bip"],
        bip6=config["bip6"],
        fixed_cidr=config["fixed-cidr"],
        fixed_cidr_v6=config["fixed-cidr-v6"],
        default_gateway=config["default-gateway"],
        default_gateway_v6=config["default-gateway-v6"],
        default_binding=config["ip"],
        mtu=config["mtu"],
        icc=config["icc"],
        ip_masq=config["ip-masq"],
        ip_forward=config["ip-forward"],
        ipv6=config["ipv6"],
        iptables=config["iptables"],
        ip6tables=config["ip6tables"],
        userland_proxy=config["userland-proxy"],
        default_network_opts=config["default-network-opts"],
        allow_direct_routing=config["allow-direct-routing"],
        accept_fwmark=accept_mark(config["bridge-accept-fwmark"]),
        respect_host_firewall=config["respect-host-firewall"],
        user_maps=None if maps is None else (maps.uid_map, maps.gid_map),
        address_pools=[(pool["base"], int(pool["size"])) for pool in config["default-address-pools"]],
    )


def runtimes(config: DaemonConfig) -> dict[str, Any]:
    """Return the OCI runtimes there are by name: ours, those of the configuration, and runc and crun if installed."""
    found: dict[str, Any] = {"dray": {"path": "dray-runtime"}}
    for name in ("runc", "crun"):
        if path := shutil.which(name):
            found[name] = {"path": path}
    return {**found, **config["runtimes"]}


def defaults(config: DaemonConfig) -> Defaults:
    """Return what the configuration gives to containers that do not say."""
    gateways = [address for address in [config["host-gateway-ip"], *config["host-gateway-ips"]] if address]
    return Defaults(
        runtime=config["default-runtime"],
        runtimes=runtimes(config),
        log_driver=config["log-driver"],
        log_opts=config["log-opts"],
        shm_size=config.shm_size,
        ipc_mode=config["default-ipc-mode"],
        cgroupns_mode=config["default-cgroupns-mode"],
        no_new_privileges=config["no-new-privileges"],
        ulimits=config["default-ulimits"],
        seccomp_profile=config["seccomp-profile"],
        cgroup_parent=config["cgroup-parent"],
        dns=config["dns"],
        dns_search=config["dns-search"],
        dns_options=config["dns-opts"],
        network="none" if config["bridge"] == "none" else "bridge",
        init=config["init"],
        init_path=config["init-path"] or tinyinit.install(f"{config['data-root']}/docker-init"),
        host_gateways=gateways,
        resolv_conf=config["resolv-conf"] or "/etc/resolv.conf",
        cdi_spec_dirs=cdi_spec_dirs(config),
    )


def cdi_spec_dirs(config: DaemonConfig) -> list[str]:
    """Return where CDI specs are, nowhere if the feature is switched off."""
    return list(config["cdi-spec-dirs"]) if config["features"].get("cdi", True) else []
