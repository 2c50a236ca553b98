"""The API's endpoints, one module per group: decode, call the engine, encode."""

from __future__ import annotations

from dray.server.router import Table
from dray.server.routes import (
    archives,
    build,
    checkpoints,
    containers,
    distribution,
    editing,
    execs,
    images,
    lifecycle,
    networks,
    plugins,
    streams,
    swarm,
    system,
    transfer,
    volumes,
)

TABLES: tuple[Table, ...] = (
    system.routes,
    containers.routes,
    lifecycle.routes,
    editing.routes,
    streams.routes,
    archives.routes,
    checkpoints.routes,
    execs.routes,
    images.routes,
    transfer.routes,
    build.routes,
    networks.routes,
    volumes.routes,
    distribution.routes,
    plugins.routes,
    swarm.routes,
)
