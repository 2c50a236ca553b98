"""config.json as two processes need it: an outline for the caller of a runtime verb, everything for init.

The caller (a shim that lives as long as its container) keeps every page that it writes to. So it only looks at what
it must know before it forks, and init, whose memory goes with `execve`, parses and checks the rest. The seccomp
profile, four fifths of a usual config.json, stays text: its compiled program is found by the text's digest.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.malformed import MALFORMED

Document = dict[str, Any] | bytes  # parsed, or as it is on disk


class _Linux(msgspec.Struct, rename="camel"):
    namespaces: Any = None
    cgroups_path: Any = None
    uid_mappings: Any = None
    gid_mappings: Any = None
    memory_policy: Any = None
    net_devices: Any = None
    resources: msgspec.Raw = msgspec.Raw(b"null")


class _Process(msgspec.Struct, rename="camel"):
    rlimits: Any = None
    oom_score_adj: Any = None


class _Outline(msgspec.Struct):
    linux: _Linux | None = None
    process: _Process | None = None
    hooks: Any = None
    annotations: Any = None


class _Filter(msgspec.Struct):
    seccomp: msgspec.Raw = msgspec.Raw(b"null")


class _Filtered(msgspec.Struct):
    linux: _Filter | None = None


_outline = msgspec.json.Decoder(_Outline)
_filtered = msgspec.json.Decoder(_Filtered)
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_plain = msgspec.json.Decoder()
_NULL = msgspec.Raw(b"null")
_NOTHING = (b"null", b"{}")


def outline(document: Document) -> dict[str, Any]:
    """Return the part of a spec that the caller of `create` needs: namespaces, id maps, the cgroup's path, limits
    that are set from outside, hooks, annotations. Of a parsed document that is the document itself."""
    if not isinstance(document, bytes):
        return document
    try:
        read = _outline.decode(document)
    except MALFORMED as error:
        raise InvalidParameter(f"config.json: {error}") from None
    linux, process = read.linux or _Linux(), read.process or _Process()
    return {
        "linux": {
            "namespaces": linux.namespaces,
            "cgroupsPath": linux.cgroups_path,
            "uidMappings": linux.uid_mappings,
            "gidMappings": linux.gid_mappings,
            "memoryPolicy": linux.memory_policy,
            "netDevices": linux.net_devices,
        },
        "process": {"rlimits": process.rlimits, "oomScoreAdj": process.oom_score_adj},
        "hooks": read.hooks,
        "annotations": read.annotations,
    }


def resources(document: Document) -> Any:
    """Return `linux.resources`."""
    if not isinstance(document, bytes):
        return (document.get("linux") or {}).get("resources")
    linux = _outline.decode(document).linux
    return None if linux is None else _plain.decode(linux.resources)


def whole(document: Document) -> tuple[dict[str, Any], Document | None]:
    """Return (the spec, its seccomp profile); of a document that is text the spec lacks the profile."""
    if not isinstance(document, bytes):
        return document, (document.get("linux") or {}).get("seccomp")
    try:
        parts = _parts.decode(document) or {}
        linux = _parts.decode(parts.pop("linux", _NULL)) or {}
        profile = bytes(linux.pop("seccomp", _NULL))
        spec = {name: _plain.decode(value) for name, value in parts.items()}
        spec["linux"] = {name: _plain.decode(value) for name, value in linux.items()}
    except MALFORMED as error:
        raise InvalidParameter(f"config.json: {error}") from None
    return spec, None if profile in _NOTHING else profile


def profile_of(text: bytes) -> bytes | None:
    """Return the seccomp profile, still text, of a config.json; None where there is none."""
    linux = _filtered.decode(text).linux
    return None if linux is None or bytes(linux.seccomp) in _NOTHING else bytes(linux.seccomp)


def parsed(document: Document) -> dict[str, Any]:
    """Return the whole document as Python's own types."""
    if not isinstance(document, bytes):
        return document
    result: dict[str, Any] = _plain.decode(document)
    return result
