"""SIGHUP: read daemon.json again and apply what can be applied to a daemon that runs.

Afterwards the daemon is as a restart with the same flags and the new file would have it, as far as `RELOADABLE` goes;
the others are named in the log, and wait for the restart. A file that is not right changes nothing at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dray.base.errors import DrayError
from dray.daemon import config as configuration
from dray.daemon.config import DaemonConfig
from dray.daemon.registries import registry_settings

if TYPE_CHECKING:
    from dray.daemon.wiring import House

log = logging.getLogger("dray.daemon")

# dockerd's own set (its documentation, "Configuration reload behavior"), and the log's level, of which debug is a part.
RELOADABLE = (
    "authorization-plugins", "debug", "default-runtime", "features", "insecure-registries", "labels", "live-restore",
    "log-level", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts", "registry-mirrors",
    "runtimes", "shutdown-timeout",
)  # fmt: skip


def reload(house: House) -> None:
    """Apply the configuration file as it is now, and tell so by the event `reload`; whatever is wrong is logged."""
    before = house.config
    log.info("reloading the configuration from %s", before.file)
    try:
        wanted, _ = configuration.load(before.arguments)
        registry_settings(wanted.values, file=wanted.file)
    except (DrayError, SystemExit) as error:
        log.error("the configuration is not reloaded, nothing has changed: %s", error)
        return
    later = sorted(key for key, value in wanted.values.items() if before[key] != value and key not in RELOADABLE)
    if later:
        log.warning("changed in %s, in force after a restart of the daemon: %s", wanted.file, ", ".join(later))
    values = {**before.values, **{key: wanted[key] for key in RELOADABLE}}
    house.apply(DaemonConfig(values, before.file, before.arguments))
    house.events.publish("daemon", "reload", house.engine_id, _attributes(house.config.values, house.hostname))
    log.info(
        "the configuration is reloaded: %s", ", ".join(_changes(before, house.config)) or "nothing has changed"
    )


def _changes(before: DaemonConfig, after: DaemonConfig) -> list[str]:
    return [key for key in RELOADABLE if before[key] != after[key]]


def _attributes(values: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return what the event tells: values as JSON, in dockerd's keys."""
    told = {key: msgspec.json.encode(values[key]).decode() for key in RELOADABLE}
    told |= {key: str(values[key]) for key in RELOADABLE if isinstance(values[key], str)}
    return told | {"name": name}
