"""The one place that names every implementation: builds the house from a configuration, and serves it.

Order of start: records → shims found again → network put right → what ended is settled → sockets answer. Order of
stop: sockets close, and that is all: containers, their shims and the network stay as they are (`live-restore`),
unless the configuration says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import ssl
from pathlib import Path
from typing import Any

from dray.base.errors import DrayError, InvalidParameter
from dray.base.files import remove_tree, write_atomic
from dray.daemon.config import DaemonConfig
from dray.engine.containers import Containers
from dray.engine.control import Control
from dray.engine.creation import Creator, Defaults
from dray.engine.events import Events
from dray.engine.execs import ExecTable, ExecVerbs
from dray.engine.health import HealthChecks
from dray.engine.images import ImageVerbs
from dray.engine.launch import Launcher
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.networks import NetworkVerbs
from dray.engine.registry import Registry
from dray.engine.streams import Streams
from dray.engine.supervision import Supervisor
from dray.engine.system import Settings, System
from dray.engine.transfers import Transfers
from dray.engine.volumes import VolumeVerbs
from dray.linux import cgroups
from dray.network.controller import Controller
from dray.network.model import NetworkConfig
from dray.server.backends import Backends
from dray.server.listeners import Listener, Servers
from dray.server.tls import server_context
from dray.shim.spawn import Zygote
from dray.shim.tasks import Tasks
from dray.store.content import ContentStore
from dray.store.images import Images
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.snapshots import Snapshots
from dray.store.transfer import Transfer
from dray.store.vfs import Vfs
from dray.volumes.local import Volumes

log = logging.getLogger("dray.daemon")


def network_config(config: DaemonConfig) -> NetworkConfig:
    """Return the networking half of the configuration."""
    return NetworkConfig(
        bridge=config["bridge"] or "dray0",
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
        host_gateways=gateways,
        resolv_conf=config["resolv-conf"] or "/etc/resolv.conf",
    )


class House:
    """Everything of one daemon, built but not yet started."""

    def __init__(self, config: DaemonConfig, zygote: Zygote) -> None:
        self.config = config
        self.layout = Layout(config["data-root"], config["exec-root"])
        self.layout.prepare()
        root = self.layout.data_root
        self.metadata = Metadata(self.layout.database)
        self.snapshots: Snapshots
        if config["storage-driver"] == "vfs":
            self.snapshots = Vfs(f"{root}/vfs", self.metadata)
        else:
            self.snapshots = Overlay(f"{root}/overlay2", self.metadata)
        self.content = ContentStore(f"{root}/content")
        self.events = Events()
        self.images = Images(self.metadata, self.content, self.snapshots)
        self.volumes = Volumes(f"{root}/volumes", self.metadata)
        self.controller = Controller(self.metadata, network_config(config), zygote)
        self.registry = Registry(self.metadata)
        settings = defaults(config)
        self.execs = ExecTable(self.registry, self.events, self.layout)
        self.health = HealthChecks(self.registry, self.execs, self.events)
        self.tasks = Tasks(zygote, self)
        launcher = Launcher(
            self.registry, self.events, self.tasks, self.controller, self.snapshots, self.volumes, self.layout, settings
        )
        self.lifecycle = Lifecycle(
            self.registry,
            self.events,
            launcher,
            self.controller,
            self.snapshots,
            default_stop_timeout=config["default-stop-timeout"],
        )
        self.supervisor = Supervisor(
            self.registry, self.lifecycle, self.execs, self.health, self.events, self.layout
        )
        self.tasks.listener = self.supervisor
        self.zygote = zygote
        self._settings = settings
