"""The API's JSON as the Go structs that `--format` of inspect, info and version is written against.

JSON does not say which objects are structs and which are maps, nor which fields were left out because they are
empty; Go's templates can tell. The tables here hold what is needed to tell too: names of fields that are maps,
fields that are pointers (a null prints `<nil>`, not `[]`), and fields that an answer may lack.
"""

from __future__ import annotations

from dray.cli.template.values import NilList, NilMap, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAPS = frozenset(
    [
        "Labels",
        "ExposedPorts",
        "Volumes",
        "Ports",
        "PortBindings",
        "Networks",
        "Sysctls",
        "Tmpfs",
        "StorageOpt",
        "Annotations",
        "Data",
        "Options",
        "DriverOpts",
        "Containers",
        "AuxiliaryAddresses",
        "Metadata",
        "Details",
        "Runtimes",
        "IndexConfigs",
        "Services",
        "Endpoints",
        "TLSMaterial",
        "LogOpts",
        "ClusterStore",
        "RegistryOpts",
        "GenericResources",
    ]
)
_POINTERS = frozenset(
    [
        "PidsLimit",
        "MemorySwappiness",
        "OomKillDisable",
        "Init",
        "Health",
        "Healthcheck",
        "StopTimeout",
        "IPAMConfig",
        "SizeRw",
        "SizeRootFs",
        "ImageManifestDescriptor",
        "UsageData",
        "Descriptor",
        "Server",
        "ContainerConfig",
        "Warnings",
        "DefaultAddressPools",
    ]
)
# What an answer may leave out, by the name of the object that would hold it.
_OPTIONAL: dict[str, dict[str, Any]] = {
    "container": {"SizeRw": None, "SizeRootFs": None, "ImageManifestDescriptor": None},
    "State": {"Health": None},
    "Config": {
        "ExposedPorts": NilMap(),
        "ArgsEscaped": False,
        "Healthcheck": None,
        "MacAddress": "",
        "NetworkDisabled": False,
        "Shell": NilList(),
        "StopSignal": "",
        "StopTimeout": None,
    },
    "HostConfig": {
        "Annotations": NilMap(),
        "Init": None,
        "Mounts": NilList(),
        "Runtime": "",
        "StorageOpt": NilMap(),
        "Sysctls": NilMap(),
        "Tmpfs": NilMap(),
    },
    "image": {
        "Descriptor": None,
        "Manifests": NilList(),
        "VirtualSize": 0,
        "Comment": "",
        "Author": "",
        "Parent": "",
    },
    "volume": {"CreatedAt": "", "Status": NilMap(), "UsageData": None, "ClusterVolume": None},
    "network": {"Peers": NilList(), "Services": NilMap()},
    "Swarm": {"Cluster": None, "Warnings": NilList()},
}
_TYPES = {"versionInfo": "system.versionInfo", "info": "system.dockerInfo", "event": "*events.Message"}
_MAP_BY_PARENT = frozenset((("LogConfig", "Config"), ("Plugins", "Volume"), ("volume", "Status")))


def typed(value: Any, name: str, parent: str = "") -> Any:
    """Return JSON as Go values; `name` is the field's (or the kind of the whole: `container`, `image`, …)."""
    if isinstance(value, dict):
        if (name in _MAPS and parent != "info") or (parent, name) in _MAP_BY_PARENT:
            return {key: typed(one, "", name) for key, one in value.items()}
        found = Struct((key, typed(one, key, name)) for key, one in value.items())
        for key, default in _OPTIONAL.get(name, {}).items():
            found.setdefault(key, default)
        found.raw = value
        found.go_type = _TYPES.get(name, f"struct {name}")
        return found
    if isinstance(value, list):
        return [typed(one, "", name) for one in value]
    if value is None and name not in _POINTERS:
        return NilMap() if name in _MAPS or (parent, name) in _MAP_BY_PARENT else NilList()
    return value
