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
import signal
from typing import Any

from dray.base.files import remove_tree, write_atomic
from dray.daemon.config import DaemonConfig
from dray.engine import validate
from dray.engine.containers import Containers
from dray.engine.control import Control
from dray.engine.creation import Creator, Defaults
from dray.engine.events import Events
from dray.engine.execs import Execs, ExecTable
from dray.engine.health import HealthChecks
from dray.engine.images import Images, Transfers
from dray.engine.launch import Launcher
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.networks import NetworkVerbs
from dray.engine.registry import Registry
from dray.engine.streams import Streams
from dray.engine.supervision import Supervisor
from dray.engine.system import Settings, System
from dray.engine.volumes import VolumeVerbs
from dray.network.controller import Controller
from dray.network.model import NetworkConfig
from dray.server.app import Server
from dray.server.backends import Backends
from dray.shim.tasks import Tasks, Zygote
from dray.store.content import ContentStore
from dray.store.images import ImageStore
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.vfs import Vfs
from dray.volumes.local import Volumes

log = logging.getLogger("dray.daemon")


class House:
    """Everything of one daemon, built but not yet started."""

    def __init__(self, config: DaemonConfig, zygote: Zygote) -> None:
        self.config = config
        self.layout = Layout(config["data-root"], config["exec-root"])
        self.layout.prepare()
        self.metadata = Metadata(self.layout.database)
        snapshotter = Vfs if config["storage-driver"] == "vfs" else Overlay
