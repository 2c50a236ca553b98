"""Mounts: `--mount`, `--volume` and `--tmpfs`."""

from __future__ import annotations

import os

from dray.base.errors import InvalidParameter
from dray.base.units import parse_bytes
from dray.cli.flags import FALSE, TRUE, parse_csv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RECURSIVE = {
    "enabled": {},
    "disabled": {"NonRecursive": True},
    "writable": {"ReadOnlyNonRecursive": True},
    "readonly": {"ReadOnlyForceRecursive": True},
}


def _flag(key: str, value: str, given: bool) -> bool:
    if not given or value in TRUE:
        return True
    if value in FALSE:
        return False
    raise InvalidParameter(f"invalid value for {key}: {value}")


class _Mount:
    """The fields of one `--mount`, gathered key by key."""

    def __init__(self) -> None:
        self.base: dict[str, Any] = {"Type": "volume"}
        self.bind: dict[str, Any] = {}
        self.volume: dict[str, Any] = {}
        self.driver: dict[str, Any] = {}
        self.tmpfs: dict[str, Any] = {}
        self.image: dict[str, Any] = {}

    def set(self, key: str, value: str, *, given: bool, field: str) -> None:
        base = self.base
        if not given and key not in ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"):
            raise InvalidParameter(f"invalid field '{field}' must be a key=value pair")
        if key == "type":
            base["Type"] = value.lower()
        elif key in ("source", "src"):
            is_relative = value.startswith(".") and (value in (".", "..") or value.startswith(("./", "../")))
            base["Source"] = os.path.abspath(value) if is_relative else value
        elif key in ("target", "dst", "destination"):
            base["Target"] = value
        elif key in ("readonly", "ro"):
            base["ReadOnly"] = _flag(key, value, given)
        elif key == "consistency":
            base["Consistency"] = value.lower()
        elif key == "bind-propagation":
            self.bind["Propagation"] = value.lower()
        elif key == "bind-nonrecursive":
            self.bind["NonRecursive"] = _flag(key, value, given)
        elif key == "bind-create-src":
            self.bind["CreateMountpoint"] = _flag(key, value, given)
        elif key == "bind-recursive":
            if value not in _RECURSIVE:
                raise InvalidParameter(
                    f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
                )
            self.bind.update(_RECURSIVE[value])
            self.bind["_recursive"] = value
        else:
            self.set_typed(key, value, given=given, field=field)

    def set_typed(self, key: str, value: str, *, given: bool, field: str) -> None:
        if key == "volume-subpath":
            self.volume["Subpath"] = value
        elif key == "volume-nocopy":
            self.volume["NoCopy"] = _flag(key, value, given)
        elif key == "volume-label":
            name, _, text = value.partition("=")
            self.volume.setdefault("Labels", {})[name] = text
        elif key == "volume-driver":
            self.driver["Name"] = value
        elif key == "volume-opt":
            name, _, text = value.partition("=")
            self.driver.setdefault("Options", {})[name] = text
        elif key == "image-subpath":
            self.image["Subpath"] = value
        elif key == "tmpfs-size":
            try:
                self.tmpfs["SizeBytes"] = parse_bytes(value)
            except InvalidParameter:
                raise InvalidParameter(f"invalid value for {key}: {value}") from None
        elif key == "tmpfs-mode":
            try:
                self.tmpfs["Mode"] = int(value, 8)
            except ValueError:
                raise InvalidParameter(f"invalid value for {key}: {value}") from None
        else:
            raise InvalidParameter(f"unexpected key '{key}' in '{field}'")

    def finish(self) -> dict[str, Any]:
        """Return the mount as the API has it; options of another type are an error."""
        base, kind = self.base, self.base["Type"]
        if not base.get("Target"):
            raise InvalidParameter("target is required")
        if self.driver:
            self.volume["DriverConfig"] = self.driver
        for prefix, options, name in (
            ("volume", self.volume, "VolumeOptions"),
            ("bind", self.bind, "BindOptions"),
            ("tmpfs", self.tmpfs, "TmpfsOptions"),
            ("image", self.image, "ImageOptions"),
        ):
            if options and kind != prefix:
                raise InvalidParameter(f"cannot mix '{prefix}-*' options with mount type '{kind}'")
            if options:
                base[name] = options
        recursive = self.bind.pop("_recursive", "")
        if self.bind.get("ReadOnlyNonRecursive") and not base.get("ReadOnly"):
            raise InvalidParameter(
                "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction"
            )
        if recursive == "readonly":
            if not base.get("ReadOnly"):
                raise InvalidParameter(
                    "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"
                )
            if self.bind.get("Propagation") != "rprivate":
                raise InvalidParameter(
                    "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction"
                )
        order = (
            "Type",
            "Source",
            "Target",
            "ReadOnly",
            "Consistency",
            "BindOptions",
            "VolumeOptions",
            "ImageOptions",
            "TmpfsOptions",
        )
        return {key: base[key] for key in order if base.get(key)}


def parse_mount(text: str) -> dict[str, Any]:
    """Read a `--mount`."""
    if not text:
        raise InvalidParameter("value is empty")
    mount = _Mount()
    for field in parse_csv(text):
        key, equals, value = field.partition("=")
        mount.set(key.lower(), value, given=bool(equals), field=field)
    return mount.finish()


def split_volumes(given: list[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Split `--volume`s into binds (a source and a target) and anonymous volumes (a target alone)."""
    binds: list[str] = []
    anonymous: dict[str, dict[str, str]] = {}
    for text in given:
        if not text:
            raise InvalidParameter("invalid empty volume spec")
        source, colon, rest = text.partition(":")
        if not colon:
            anonymous[text] = {}
            continue
        if not source or not rest:
            raise InvalidParameter(f"invalid spec: {text}: empty section between colons")
        if source.startswith("."):
            source = os.path.abspath(source)
        binds.append(f"{source}:{rest}")
    return binds, anonymous


def parse_tmpfs(given: list[str]) -> dict[str, str]:
    """Return `--tmpfs`s by target."""
    return {text.partition(":")[0]: text.partition(":")[2] for text in given}
