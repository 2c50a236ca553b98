"""Write `src/dray/api/models.py` from the Engine API's swagger files.

Usage: ``python tools/gen_api.py FOLDER`` where FOLDER holds ``v1.NN.yaml`` files. The newest file gives the shapes;
`KEPT` names fields that only older files have and that old clients still send or read.

Swagger does not say everything about the JSON that Docker's Go code reads and writes: which zero values are left
out, which empty lists are ``null``. The tables below say it, per structure; a field in no table follows these rules:

    string, number, boolean      always encoded, zero value when not set
    the same with x-nullable     `T | None`, left out while None
    list or map                  always encoded, `[]` or `{}` when not set; x-nullable: left out while empty
    structure                    `T | None`, left out while None
"""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

# Structures whose schema stands inline in a path: name -> (path, method, "body" or a status).
INLINE = {
    "ContainerPruneReport": ("/containers/prune", "post", "200"),
    "ContainerUpdateRequest": ("/containers/{id}/update", "post", "body"),
    "ImagePruneReport": ("/images/prune", "post", "200"),
    "BuildPruneReport": ("/build/prune", "post", "200"),
    "VolumePruneReport": ("/volumes/prune", "post", "200"),
    "NetworkPruneReport": ("/networks/prune", "post", "200"),
    "ImageSearchResult": ("/images/search", "get", "200"),
    "DiskUsage": ("/system/df", "get", "200"),
    "ExecConfig": ("/containers/{id}/exec", "post", "body"),
    "ExecStartConfig": ("/exec/{id}/start", "post", "body"),
    "ExecInspectResponse": ("/exec/{id}/json", "get", "200"),
    "NetworkCreateRequest": ("/networks/create", "post", "body"),
}

# What the server and the engine speak of. Everything these refer to comes along.
ROOTS = [
    *INLINE,
    "ContainerConfig",
    "HostConfig",
    "NetworkingConfig",
    "ContainerCreateResponse",
    "ContainerInspectResponse",
    "ContainerSummary",
    "ContainerStatsResponse",
    "ContainerTopResponse",
    "ContainerWaitResponse",
    "ContainerUpdateResponse",
    "FilesystemChange",
    "ImageInspect",
    "ImageSummary",
    "ImageHistoryResponseItem",
    "ImageDeleteResponseItem",
    "AuthConfig",
    "AuthResponse",
    "DistributionInspect",
    "Volume",
    "VolumeCreateRequest",
    "VolumeListResponse",
    "NetworkSummary",
    "NetworkInspect",
    "NetworkCreateResponse",
    "NetworkConnectRequest",
    "NetworkDisconnectRequest",
    "SystemInfo",
    "SystemVersion",
    "EventMessage",
    "IDResponse",
    "ErrorResponse",
    "ErrorDetail",
    "ProgressDetail",
    "AttestationStatement",
]

# Inline structures that deserve a name of their own.
NAMES = {
    "HostConfigLogConfig": "LogConfig",
    "HostConfigBlkioWeightDevice": "WeightDevice",
    "HostConfigUlimits": "Ulimit",
    "ContainerUpdateRequestBlkioWeightDevice": "WeightDevice",
    "ContainerUpdateRequestUlimits": "Ulimit",
    "GenericResources": "GenericResource",
    "MountBindOptions": "BindOptions",
    "MountVolumeOptions": "VolumeOptions",
    "MountVolumeOptionsDriverConfig": "VolumeDriverConfig",
    "MountImageOptions": "ImageMountOptions",
    "MountTmpfsOptions": "TmpfsOptions",
    "ImageInspectRootFS": "RootFS",
    "ImageInspectMetadata": "ImageMetadata",
    "VolumeUsageData": "VolumeUsage",
    "ContainerSummaryHostConfig": "SummaryHostConfig",
    "ContainerSummaryNetworkSettings": "SummaryNetworkSettings",
    "ContainerSummaryHealth": "HealthSummary",
    "SystemVersionPlatform": "VersionPlatform",
    "SystemVersionComponents": "ComponentVersion",
    "SystemInfoDefaultAddressPools": "AddressPool",
    "GenericResourcesNamedResourceSpec": "NamedResource",
    "GenericResourcesDiscreteResourceSpec": "DiscreteResource",
    "ContainerdInfoNamespaces": "ContainerdNamespaces",
    "ImageManifestSummarySize": "ManifestSize",
    "ImageManifestSummaryImageData": "ManifestImageData",
    "ImageManifestSummaryImageDataSize": "ManifestImageSize",
    "ImageManifestSummaryAttestationData": "ManifestAttestationData",
}

# Fields that the newest file lost, with their schema.
KEPT: dict[str, dict[str, Schema]] = {
    "ContainerConfig": {"MacAddress": {"type": "string"}},
    "Resources": {"KernelMemory": {"type": "integer"}, "KernelMemoryTCP": {"type": "integer"}},
    "AuthConfig": {
        "email": {"type": "string"},
        "auth": {"type": "string"},
        "identitytoken": {"type": "string"},
        "registrytoken": {"type": "string"},
    },
    "ImageInspect": {"Parent": {"type": "string"}, "DockerVersion": {"type": "string"}},
    "NetworkCreateRequest": {"CheckDuplicate": {"type": "boolean"}},
}

# Zero values left out (Go: omitempty).
OMIT = {
    "ContainerConfig": "ExposedPorts ArgsEscaped NetworkDisabled MacAddress OnBuild StopSignal Shell",
    "ImageConfig": "ExposedPorts ArgsEscaped OnBuild StopSignal Shell Volumes",
    "HealthConfig": "Test Interval Timeout StartPeriod StartInterval Retries",
    "HostConfig": "Annotations StorageOpt Tmpfs Sysctls Runtime Mounts KernelMemory KernelMemoryTCP",
    "ContainerUpdateRequest": "KernelMemory KernelMemoryTCP",
    "Mount": "Type Source Target ReadOnly Consistency",
    "BindOptions": "Propagation NonRecursive CreateMountpoint ReadOnlyNonRecursive ReadOnlyForceRecursive",
    "VolumeOptions": "NoCopy Labels Subpath",
    "VolumeDriverConfig": "Name Options",
    "ImageMountOptions": "Subpath",
    "TmpfsOptions": "SizeBytes Mode Options",
    "EndpointIPAMConfig": "IPv4Address IPv6Address LinkLocalIPs",
    "IPAMConfig": "Subnet IPRange Gateway AuxiliaryAddresses",
    "MountPoint": "Type Name Driver",
    "PortSummary": "IP PublicPort",
    "SummaryHostConfig": "NetworkMode Annotations",
    "HealthSummary": "Status FailingStreak",
    "ImageInspect": "Parent DockerVersion Comment Author Variant OsVersion Created Manifests",
    "ImageSummary": "Manifests",
    "RootFS": "Layers",
    "ImageDeleteResponseItem": "Untagged Deleted",
    "OCIDescriptor": "urls annotations data artifactType",
    "OCIPlatform": "os.version os.features variant",
    "Volume": "CreatedAt Status",
    "Network": "Peers",
    "NetworkSummary": "Peers",
    "NetworkInspect": "Peers Services",
    "NetworkCreateRequest": "CheckDuplicate",
    "ProcessConfig": "user",
    "EventMessage": "scope time timeNano",
    "AuthConfig": "username password auth email serveraddress identitytoken registrytoken",
    "AuthResponse": "IdentityToken",
    "ContainerStatsResponse": "id name os_type networks",
    "ContainerNetworkStats": "endpoint_id instance_id",
    "ContainerCPUUsage": "percpu_usage",
    "ContainerCPUStats": "system_cpu_usage online_cpus",
    "ContainerPidsStats": "current limit",
    "ContainerMemoryStats": "usage max_usage stats failcnt limit commitbytes commitpeakbytes privateworkingset",
    "ContainerStorageStats": "read_count_normalized read_size_bytes write_count_normalized write_size_bytes",
    "SystemInfo": "ProductLicense DefaultAddressPools DiscoveredDevices",
    "Runtime": "path runtimeArgs status",
    "SystemVersion": "MinAPIVersion Experimental BuildTime",
    "ComponentVersion": "Details",
    "SwarmInfo": "Nodes Managers RemoteManagers",
    "ContainersDiskUsage": "ActiveCount TotalCount Reclaimable TotalSize Items",
    "ImagesDiskUsage": "ActiveCount TotalCount Reclaimable TotalSize Items",
    "VolumesDiskUsage": "ActiveCount TotalCount Reclaimable TotalSize Items",
    "BuildCacheDiskUsage": "ActiveCount TotalCount Reclaimable TotalSize Items",
    "BuildCache": "Parents",
    "PullIdentity": "Repository",
    "BuildIdentity": "Ref CreatedAt",
    "Identity": "Signature Pull Build",
    "FirewallInfo": "Info",
    "NRIInfo": "Info",
    "ErrorDetail": "code",
    "ProgressDetail": "current total",
}

# Unset is `null` (Go: a nil slice, map or pointer without omitempty). For lists and maps unset differs from empty.
_RESOURCES_NULL = (
    "BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps Devices "
    "DeviceCgroupRules DeviceRequests MemorySwappiness OomKillDisable PidsLimit Ulimits"
)
NULL = {
    "ContainerConfig": "Env Cmd Volumes Entrypoint Labels",
    "ImageConfig": "Env Cmd Entrypoint Labels",
    "HostConfig": "Binds VolumesFrom CapAdd CapDrop Dns DnsOptions DnsSearch ExtraHosts GroupAdd Links SecurityOpt "
    "PortBindings MaskedPaths ReadonlyPaths " + _RESOURCES_NULL,
    "ContainerUpdateRequest": _RESOURCES_NULL,
    "DeviceRequest": "DeviceIDs Capabilities Options",
    "EndpointSettings": "IPAMConfig Links Aliases DriverOpts DNSNames",
    "NetworkingConfig": "EndpointsConfig",
    "Health": "Log",
    "ContainerInspectResponse": "ExecIDs",
    "DriverData": "Data",
    "ImageHistoryResponseItem": "Tags",
    "ImageSummary": "Labels",
    "Volume": "Labels Options",
    "VolumeListResponse": "Warnings",
    "IPAM": "Options",
    "ContainerPruneReport": "ContainersDeleted",
    "ImagePruneReport": "ImagesDeleted",
    "BuildPruneReport": "CachesDeleted",
    "VolumePruneReport": "VolumesDeleted",
    "NetworkPruneReport": "NetworksDeleted",
    "ExecInspectResponse": "ExitCode",
    "ContainerBlkioStats": "io_service_bytes_recursive io_serviced_recursive io_queue_recursive "
    "io_service_time_recursive io_wait_time_recursive io_merged_recursive io_time_recursive sectors_recursive",
    "SystemInfo": "DriverStatus GenericResources Warnings",
    "PluginsInfo": "Network Authorization",
    "SwarmInfo": "RemoteManagers",
    "ExecConfig": "Env Cmd ConsoleSize",
    "ExecStartConfig": "ConsoleSize",
    "NetworkCreateRequest": "EnableIPv4 EnableIPv6 Options Labels",
    "VolumeCreateRequest": "DriverOpts Labels",
    "ContainerUpdateResponse": "Warnings",
}

# `T | None`, left out while None (Go: a pointer with omitempty, or a length that may be a true zero).
OPTIONAL = {
    "ContainerConfig": "StopTimeout",
    "HostConfig": "Init",
    "ContainerUpdateRequest": "Init",
    "ContainerInspectResponse": "SizeRw SizeRootFs",
    "ContainerSummary": "SizeRw SizeRootFs",
    "BuildCache": "LastUsedAt",
    "AttestationStatement": "Statement",
    "ImageInspect": "Identity",
    "ManifestImageData": "Identity",
    "SwarmInfo": "Cluster",
    "Volume": "ClusterVolume",
    "VolumeCreateRequest": "ClusterVolumeSpec",
}

# A structure that is part of its parent by value: always encoded.
BY_VALUE = {
    "HostConfig": "LogConfig RestartPolicy",
    "ContainerUpdateRequest": "RestartPolicy",
    "EventMessage": "Actor",
    "ContainerInspectResponse": "State HostConfig Config NetworkSettings",
    "ContainerSummary": "HostConfig NetworkSettings",
    "ImageInspect": "RootFS Metadata",
    "ExecInspectResponse": "ProcessConfig",
    "ContainerStatsResponse": "cpu_stats memory_stats pids_stats blkio_stats storage_stats precpu_stats",
    "ContainerCPUStats": "cpu_usage throttling_data",
    "NetworkSummary": "IPAM ConfigFrom",
    "NetworkInspect": "IPAM ConfigFrom",
    "SystemInfo": "Plugins RegistryConfig Swarm ContainerdCommit RuncCommit InitCommit",
    "SystemVersion": "Platform",
    "ImageManifestSummary": "Size Descriptor",
    "ManifestImageData": "Platform Size",
    "DistributionInspect": "Descriptor",
    "DiskUsage": "ImageUsage ContainerUsage VolumeUsage BuildCacheUsage",
    "AttestationStatement": "Descriptor",
}

# Called nullable by swagger, yet always encoded.
PLAIN = {"ContainerInspectResponse": "Created LogPath"}

# Defaults that are neither zero nor empty.
DEFAULTS = {
    ("HostConfig", "ConsoleSize"): "no_console",
    ("ContainerState", "StartedAt"): "no_time",
    ("ContainerState", "FinishedAt"): "no_time",
    ("HealthcheckResult", "Start"): "no_time",
    ("HealthcheckResult", "End"): "no_time",
    ("ContainerStatsResponse", "read"): "no_time",
    ("ContainerStatsResponse", "preread"): "no_time",
    ("ImageMetadata", "LastTagTime"): "no_time",
    ("NetworkSummary", "Created"): "no_time",
    ("NetworkInspect", "Created"): "no_time",
    ("BuildCache", "CreatedAt"): "no_time",
}

# Types that swagger cannot say or says loosely.
TYPES = {
    ("ContainerConfig", "Cmd"): "StrSlice",
    ("ContainerConfig", "Entrypoint"): "StrSlice",
    ("ImageConfig", "Cmd"): "StrSlice",
    ("ImageConfig", "Entrypoint"): "StrSlice",
    ("ExecConfig", "Cmd"): "StrSlice",
    ("HostConfig", "CapAdd"): "StrSlice",
    ("HostConfig", "CapDrop"): "StrSlice",
    ("SystemInfo", "Containerd"): "ContainerdInfo",
    ("SwarmInfo", "Cluster"): "dict[str, Any]",
    ("VolumeCreateRequest", "ClusterVolumeSpec"): "dict[str, Any]",
    ("Volume", "ClusterVolume"): "dict[str, Any]",
    ("Volume", "Status"): "dict[str, Any]",
    ("NetworkInspect", "Services"): "dict[str, Any]",
    ("ImageInspect", "Identity"): "dict[str, Any]",
    ("ManifestImageData", "Identity"): "dict[str, Any]",
    ("ComponentVersion", "Details"): "dict[str, str]",
    ("NetworkCreateRequest", "EnableIPv4"): "bool",
    ("NetworkCreateRequest", "EnableIPv6"): "bool",
    ("ContainersDiskUsage", "Items"): "list[ContainerSummary]",
    ("ImagesDiskUsage", "Items"): "list[ImageSummary]",
    ("VolumesDiskUsage", "Items"): "list[Volume]",
    ("BuildCacheDiskUsage", "Items"): "list[BuildCache]",
    ("ContainerStatsResponse", "networks"): "dict[str, ContainerNetworkStats]",
    ("SummaryNetworkSettings", "Networks"): "dict[str, EndpointSettings]",
}

HEADER = '''"""The Engine API's structures. Generated by `tools/gen_api.py` from the API's swagger files; do not edit.

How a field is declared says how it is written:

    field(default_factory=str)             always there, zero value when not set
    field(default="") or (…=list)          left out while it has its zero value
    `T | None`, field(default_factory=null)  always there, `null` when not set
    `T | None`, field(default=None)        left out when not set

Nothing here is required on input: what a client leaves out, or sends as `null`, is the zero value
(`api.decoding` sees to it).
"""

from typing import Annotated, Any

from msgspec import Meta, Struct, field

null = type(None)

# A list that older clients may send as one string.
StrSlice = Annotated[list[str], Meta(extra={"accepts": "string"})]


def new_list() -> list[Any]:
    """Return an empty list that is encoded as `[]` (a field whose factory is `list` is left out while empty)."""
    return []


def new_dict() -> dict[str, Any]:
    """Return an empty map that is encoded as `{}`."""
    return {}


def no_console() -> list[int]:
    """Return a console of unknown height and width."""
    return [0, 0]


def no_time() -> str:
    """Return Go's zero time: clients parse these fields, so they are never empty."""
    return "0001-01-01T00:00:00Z"


class Empty(Struct):
    """The `{}` of sets written as maps."""
'''


class Generator:
    """Turns definitions into classes, each after those it refers to."""

    def __init__(self, document: Schema) -> None:
        self.document = document
        self.definitions: dict[str, Schema] = document["definitions"]
        self.inline = {name: self._path_schema(*where) for name, where in INLINE.items()}
        self.done: dict[str, str] = {}

    def _path_schema(self, path: str, method: str, part: str) -> Schema:
        operation = self.document["paths"][path][method]
        if part == "body":
            schema: Schema = next(p for p in operation["parameters"] if p["in"] == "body")["schema"]
        else:
            schema = {str(code): r for code, r in operation["responses"].items()}[part]["schema"]
        return schema["items"] if schema.get("type") == "array" else schema

    def properties(self, name: str, schema: Schema) -> dict[str, Schema]:
        """Return all fields, `allOf` flattened, with those kept from older versions."""
        found: dict[str, Schema] = {}
        for part in schema.get("allOf", []):
            if "$ref" in part:
                parent = part["$ref"].rsplit("/", 1)[1]
                found |= self.properties(parent, self.definitions[parent])
            else:
                found |= self.properties("", part)
        return found | schema.get("properties", {}) | KEPT.get(name, {})

    def type_of(self, schema: Schema, name: str) -> str:
        """Return the Python type of a schema; `name` is what an inline structure would be called."""
        if len(schema.get("allOf", [])) == 1:
            schema = {**schema["allOf"][0]}
        if "$ref" in schema:
            target = schema["$ref"].rsplit("/", 1)[1]
            definition = self.definitions[target]
            if target == "PortMap":
                return f"dict[str, list[{self.emit('PortBinding', self.definitions['PortBinding'])}] | None]"
            if "properties" not in definition and "allOf" not in definition:
                return self.type_of(definition, target)
            return self.emit(target, definition)
        match schema.get("type"):
            case "string":
                return "str"
            case "integer":
                return "int"
            case "number":
                return "float"
            case "boolean":
                return "bool"
            case "array":
                return f"list[{self.type_of(schema['items'], name)}]"
        if "properties" in schema:
            return self.emit(NAMES.get(name, name), schema, name)
        values = schema.get("additionalProperties")
        if not isinstance(values, dict):
            return "dict[str, Any]"
        if values.get("enum") == [{}]:
            return "dict[str, Empty]"
        return f"dict[str, {self.type_of(values, name)}]"

    def emit(self, name: str, schema: Schema, path: str = "") -> str:
        """Write the class of `schema` unless it is written already; return its name."""
        if name not in self.done:
            self.done[name] = ""
            fields = [
                self.declare(name, key, prop, path or name) for key, prop in self.properties(name, schema).items()
            ]
            del self.done[name]  # so that it stands after what it refers to
            lines = "\n".join(f"    {line}" for line in fields)
            self.done[name] = (
                f"class {name}(Struct, kw_only=True, omit_defaults=True):\n"
                f'    """`{name}` of the Engine API."""\n\n{lines}\n'
            )
        return name

    def declare(self, owner: str, key: str, schema: Schema, path: str) -> str:
        """Return the line that declares one field."""
        kind = TYPES.get((owner, key)) or self.type_of(schema, path + key)
        for word in re.findall(r"\w+", kind):
            if word in self.definitions:
                self.emit(word, self.definitions[word])
        zero = {"str": '""', "int": "0", "float": "0.0", "bool": "False"}.get(kind)
        base = kind.partition("[")[0] if kind != "StrSlice" else "list"

        def listed(table: dict[str, str]) -> bool:
            return key in table.get(owner, "").split()

        if listed(NULL):
            kind, default = f"{kind} | None", "default_factory=null"
        elif listed(OPTIONAL):
            kind, default = f"{kind} | None", "default=None"
        elif listed(BY_VALUE):
            default = f"default_factory={kind}"
        elif zero is not None:
            omitted = listed(OMIT) or schema.get("x-omitempty")
            if schema.get("x-nullable") and not omitted and not listed(PLAIN):
                kind, default = f"{kind} | None", "default=None"
            else:
                default = f"default={zero}" if omitted else f"default_factory={kind}"
        elif base in {"list", "dict"}:
            omitted = listed(OMIT) or schema.get("x-omitempty") or schema.get("x-nullable")
            default = f"default_factory={base}" if omitted else f"default_factory=new_{base}"
        else:
            kind, default = f"{kind} | None", "default=None"
        if factory := DEFAULTS.get((owner, key)):
            default = f"default_factory={factory}"
        attribute = snake_case(key)
        return f'{attribute}: {kind} = field(name="{key}", {default})'


def snake_case(key: str) -> str:
    """Return the attribute for a JSON key: `IPv6Gateway` -> `ipv6_gateway`, `os.version` -> `os_version`."""
    text = key.replace(".", "_").replace("IPv4", "Ipv4").replace("IPv6", "Ipv6").replace("IDs", "Ids")
    text = (
        text.replace("RootFS", "Rootfs").replace("OSType", "OsType").replace("IOps", "Iops").replace("IPs", "Ips")
    )
    text = text.replace("CIDRs", "Cidrs").replace("NFd", "Nfd").replace("NGoroutines", "Ngoroutines")
    text = text.replace("RootFs", "Rootfs").replace("NEvents", "Nevents").replace("OOMKilled", "OomKilled")
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text).lower()
    return text + "_" if keyword.iskeyword(text) else text


def main(folder: str) -> None:
    """Generate the module from the newest swagger file in `folder`."""
    files = sorted(Path(folder).glob("v1.*.yaml"), key=lambda path: int(path.stem.rsplit(".", 1)[1]))
    document = yaml.safe_load(files[-1].read_text())
    generator = Generator(document)
    for name in ROOTS:
        generator.emit(name, generator.inline.get(name) or generator.definitions[name])
    body = "\n\n".join(generator.done.values())
    target = Path(__file__).parents[1] / "src/dray/api/models.py"
    newest = document["info"]["version"]
    target.write_text(f'{HEADER}\n\nAPI_VERSION = "{newest}"\n\n\n{body}')


if __name__ == "__main__":
    main(sys.argv[1])
