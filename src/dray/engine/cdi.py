"""Devices by name: the Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md).

A CDI spec is a file in one of the daemon's `cdi-spec-dirs`, put there by a device's vendor. It names devices,
`vendor.com/class=name`, and for each what a container needs to use it: variables, device nodes, mounts, hooks,
groups. `find` reads the files right before a start that asks for devices, `apply` puts the edits into the OCI spec.

Of two directories the later one wins. A device that two files of one directory name, or whose file cannot be read, is
not to be had; what is wrong with which file is part of the error.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dray.api.models import DeviceRequest
from dray.base.errors import InvalidParameter, Unsupported

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*", re.ASCII)
_VERSIONS = ("0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_EDITS = ("env", "deviceNodes", "mounts", "hooks", "additionalGids")
_LARGEST = 4 << 20  # bytes of a file: a vendor's has a few kilobytes
GPU_KINDS = ("nvidia.com/gpu", "amd.com/gpu")  # what `--gpus` stands for: the first that there are specs of


@dataclass(slots=True)
class Catalog:
    """What the directories hold: device → (spec's file, spec's own edits, the device's edits); what is wrong."""

    devices: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(directories: Iterable[str]) -> Catalog:
    """Read every spec of the directories; one that is broken spoils its own devices alone."""
    catalog = Catalog()
    for directory in directories:
        here: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
        spoiled: set[str] = set()
        for path in _files(directory):
            try:
                found = _devices(path, _document(path))
            except (InvalidParameter, Unsupported, OSError, ValueError) as error:
                catalog.problems.append(f"{path}: {error}")
                continue
            for name, device in found.items():
                if name in here:
                    spoiled.add(name)
                    catalog.problems.append(f"{name} is in {here[name][0]} and in {path}")
                here[name] = device
        catalog.devices.update(here)
        for name in spoiled:
            catalog.devices.pop(name, None)
    return catalog


def _files(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [f"{directory}/{name}" for name in names if name.endswith((".json", ".yaml", ".yml"))]


def _document(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise InvalidParameter("larger than 4 MiB")
    if path.endswith(".json"):
        document = msgspec.json.decode(text)
    else:
        try:
            import yaml
        except ImportError:
            raise Unsupported(
                "reading YAML needs PyYAML: install it (dray[cdi]), or write the spec as JSON"
            ) from None
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidParameter(f"invalid YAML: {error}") from None
    if not isinstance(document, dict):
        raise InvalidParameter("not an object")
    return document


def _devices(path: str, document: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    version, kind = str(document.get("cdiVersion", "")).removeprefix("v"), str(document.get("kind", ""))
    if version not in _VERSIONS:
        raise InvalidParameter(f"cdiVersion {version!r} is not known: {_VERSIONS[0]} to {_VERSIONS[-1]}")
    if not _KIND.fullmatch(kind):
        raise InvalidParameter(f"kind {kind!r} is not vendor.com/class")
    common = _edits(document)
    found: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for device in document.get("devices") or ():
        name = str(device.get("name", "")) if isinstance(device, dict) else ""
        if not _NAME.fullmatch(name):
            raise InvalidParameter(f"invalid device name {name!r}")
        if f"{kind}={name}" in found:
            raise InvalidParameter(f"two devices are called {name}")
        found[f"{kind}={name}"] = (path, common, _edits(device))
    return found


def _edits(owner: dict[str, Any]) -> dict[str, Any]:
    edits = owner.get("containerEdits") or {}
    if not isinstance(edits, dict):
        raise InvalidParameter("containerEdits must be an object")
    given = sorted(name for name, value in edits.items() if value and name not in _EDITS)
    if given:
        raise Unsupported(f"containerEdits.{given[0]} is not supported")
    for name in _EDITS:
        if not isinstance(edits.get(name) or [], list):
            raise InvalidParameter(f"containerEdits.{name} must be a list")
    for hook in edits.get("hooks") or ():
        if hook.get("hookName") not in _HOOKS or not str(hook.get("path", "")).startswith("/"):
            raise InvalidParameter(f"invalid hook {hook.get('hookName')!r} {hook.get('path')!r}")
    for mount in edits.get("mounts") or ():
        if not mount.get("hostPath") or not str(mount.get("containerPath", "")).startswith("/"):
            raise InvalidParameter(f"invalid mount of {mount.get('hostPath')!r} at {mount.get('containerPath')!r}")
    for node in edits.get("deviceNodes") or ():
        if not str(node.get("path", "")).startswith("/"):
            raise InvalidParameter(f"invalid device node {node.get('path')!r}")
    for variable in edits.get("env") or ():
        if "=" not in variable[1:]:
            raise InvalidParameter(f"invalid variable {variable!r}")
    return edits


# --- what is asked --------------------------------------------------------------------------------------------


def find(requests: Sequence[DeviceRequest] | None, directories: Sequence[str]) -> list[dict[str, Any]]:
    """Return the edits, in order, that `HostConfig.DeviceRequests` come to.

    InvalidParameter, in Docker's words, for what no driver gives and for a device that no spec names.
    """
    if not requests:
        return []
    catalog = read(directories)
    names = [name for request in requests for name in _wanted(request, catalog)]
    missing = [name for name in names if name not in catalog.devices]
    if missing:
        why = "".join(f"; {problem}" for problem in catalog.problems)
        raise InvalidParameter(f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{why}")
    edits: list[dict[str, Any]] = []
    files: set[str] = set()
    for name in dict.fromkeys(names):
        path, common, own = catalog.devices[name]
        if path not in files:
            files.add(path)
            edits.append(common)
        edits.append(own)
    return edits


def _wanted(request: DeviceRequest, catalog: Catalog) -> list[str]:
    """Return the qualified names that a request means."""
    if request.driver == "cdi":
        if request.count:
            raise InvalidParameter("CDI devices are asked by name: Count must not be set")
        return list(request.device_ids or ())
    groups = [set(group) for group in request.capabilities or ()]
    if any("gpu" in group for group in groups):
        for kind in GPU_KINDS:
            if request.driver not in ("", kind.partition(".")[0]):
                continue
            if any(name.startswith(f"{kind}=") for name in catalog.devices):
                return [f"{kind}={device}" for device in _gpus(request)]
    words = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or ())
    raise InvalidParameter(f'could not select device driver "{request.driver}" with capabilities: [{words}]')


def _gpus(request: DeviceRequest) -> list[str]:
    if request.options:
        raise InvalidParameter(f"options of a GPU request are not supported: {', '.join(sorted(request.options))}")
    if request.device_ids:
        if request.count:
            raise InvalidParameter("cannot set both Count and DeviceIDs on device request")
        return list(request.device_ids)
    return ["all"] if request.count < 0 else [str(number) for number in range(request.count)]


# --- what it changes ------------------------------------------------------------------------------------------


def apply(spec: dict[str, Any], edits: Iterable[dict[str, Any]]) -> None:
    """Put edits into an OCI spec; of a variable set twice the last counts, mounts stay in the order of their depth."""
    process, linux = spec["process"], spec["linux"]
    variables = dict(entry.partition("=")[::2] for entry in process["env"])
    mounted = False
    for edit in edits:
        variables.update(entry.partition("=")[::2] for entry in edit.get("env") or ())
        for node in _nodes(edit, process["user"]):
            linux["devices"] = [one for one in linux.get("devices") or () if one["path"] != node["path"]]
            access = node.pop("access")
            linux["devices"].append(node)
            if node["type"] != "p":
                rule = {key: node[key] for key in ("type", "major", "minor")}
                linux["resources"]["devices"].append({"allow": True, **rule, "access": access})
        for mount in edit.get("mounts") or ():
            mounted = True
            spec["mounts"].append(
                {
                    "destination": mount["containerPath"],
                    "type": mount.get("type") or "bind",
                    "source": mount["hostPath"],
                    "options": list(mount.get("options") or ("rbind", "rprivate", "nosuid", "nodev", "ro")),
                }
            )
        for hook in edit.get("hooks") or ():
            entry = {key: hook[key] for key in ("path", "args", "env", "timeout") if hook.get(key)}
            spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(entry)
        groups = [gid for gid in edit.get("additionalGids") or () if gid]
        if groups:
            have = process["user"].get("additionalGids") or []
            process["user"]["additionalGids"] = list(dict.fromkeys([*have, *groups]))
    process["env"] = [f"{name}={value}" for name, value in variables.items()]
    if mounted:
        spec["mounts"].sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))


def _nodes(edit: dict[str, Any], user: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the OCI device nodes of an edit; what it leaves out is as on the host, or the container's user's."""
    for node in edit.get("deviceNodes") or ():
        kind, major, minor = node.get("type"), node.get("major"), node.get("minor")
        mode = node.get("fileMode")
        if not kind or (kind != "p" and major is None):
            source = node.get("hostPath") or node["path"]
            try:
                status = os.stat(source)
            except OSError as error:
                raise InvalidParameter(f"CDI device injection failed: {source}: {error.strerror}") from None
            kind = "b" if stat.S_ISBLK(status.st_mode) else "p" if stat.S_ISFIFO(status.st_mode) else "c"
            if kind == "c" and not stat.S_ISCHR(status.st_mode):
                raise InvalidParameter(f"CDI device injection failed: {source} is not a device")
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            mode = stat.S_IMODE(status.st_mode) if mode is None else mode
        yield {
            "path": node["path"],
            "type": "c" if kind == "u" else kind,
            "major": major or 0,
            "minor": minor or 0,
            "fileMode": 0o666 if mode is None else mode,
            "uid": user["uid"] if node.get("uid") is None else node["uid"],
            "gid": user["gid"] if node.get("gid") is None else node["gid"],
            "access": node.get("permissions") or "rwm",
        }
