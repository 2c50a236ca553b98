"""Manifest lists in the making, kept in the user's folder as docker keeps them (`docker manifest`).

    <config folder>/manifests/<list>/<image>    JSON: Ref, Descriptor with platform, Raw (base64), and the manifest

Names of files are canonical references, with `/` as `_` and `:` as `-`. Either client goes on with what the other has
begun. A list's own document is made when it is shown or pushed, the same bytes as docker's: its entries are sorted by
their files' names, and its media type follows from its first entry's.
"""

from __future__ import annotations

import base64
import json
import os

from dray.base.errors import InvalidParameter
from dray.cli.command import Failure
from dray.oci.image import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.base.reference import Reference

    Entry = dict[str, Any]

# What an entry's platform may be (docker/cli `manifest/util.go`).
PLATFORMS = {
    "darwin": ("386", "amd64", "arm", "arm64"),
    "dragonfly": ("amd64",),
    "freebsd": ("386", "amd64", "arm"),
    "linux": ("386", "amd64", "arm", "arm64", "mips64", "mips64le", "ppc64le", "riscv64", "s390x"),
    "netbsd": ("386", "amd64", "arm"),
    "openbsd": ("386", "amd64", "arm"),
    "plan9": ("386", "amd64"),
    "solaris": ("amd64",),
    "windows": ("386", "amd64"),
}
_PLATFORM_KEYS = ("architecture", "os", "os.version", "os.features", "variant")
_MANIFEST_KEYS = ("schemaVersion", "mediaType", "config", "layers", "annotations")


def full(name: Reference) -> str:
    """Return a reference as it is written in files and messages."""
    return name.canonical


def entry_of(name: Reference, media_type: str, digest: str, raw: bytes, config: bytes) -> Entry:
    """Return what is kept of an image: its manifest, and its platform as its config tells it."""
    try:
        told, manifest = json.loads(config), json.loads(raw)
        platform = {key: told[key] for key in _PLATFORM_KEYS if told.get(key)}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidParameter(f"{full(name)}: invalid image: {error}") from error
    kind = "OCIManifest" if media_type == OCI_MANIFEST else "SchemaV2Manifest"
    return {
        "Ref": full(name),
        "Descriptor": {"mediaType": media_type, "digest": digest, "size": len(raw), "platform": platform},
        "Raw": base64.b64encode(raw).decode(),
        kind: {key: manifest[key] for key in _MANIFEST_KEYS if key in manifest},
    }


def manifest_of(entry: Entry) -> dict[str, Any]:
    """Return the manifest that an entry holds."""
    found = entry.get("SchemaV2Manifest") or entry.get("OCIManifest") or {}
    return dict(found)


def annotate(entry: Entry, *, changes: dict[str, str], features: list[str]) -> None:
    """Change an entry's platform; Failure for one that there is not."""
    platform = entry["Descriptor"].get("platform") or {}
    platform |= {key: value for key, value in changes.items() if value}
    known = platform.get("os.features", [])
    if combined := [*known, *(one for one in dict.fromkeys(features) if one not in known)]:
        platform["os.features"] = combined
    if platform.get("architecture") not in PLATFORMS.get(platform.get("os", ""), ()):
        raise Failure(
            "manifest entry for image has unsupported os/arch combination: "
            f"{changes.get('os', '')}/{changes.get('architecture', '')}"
        )
    entry["Descriptor"]["platform"] = {key: platform[key] for key in _PLATFORM_KEYS if key in platform}


def document(entries: list[Entry]) -> tuple[str, bytes]:
    """Return a list's media type and its bytes; Failure for an entry without a platform."""
    manifests = []
    for entry in entries:
        descriptor = entry["Descriptor"]
        platform = descriptor.get("platform") or {}
        if not platform.get("architecture") or not platform.get("os"):
            raise Failure(f"manifest {entry['Ref']} must have an OS and Architecture to be pushed to a registry")
        manifests.append(
            {key: descriptor[key] for key in ("mediaType", "size", "digest")} | {"platform": platform}
        )
    kind = OCI_INDEX if manifests and manifests[0]["mediaType"] == OCI_MANIFEST else DOCKER_LIST
    body = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
    return kind, _json(body, "   ").encode()


def _json(value: object, indent: str) -> str:
    """Return JSON as Go writes it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def shown(value: object) -> str:
    """Return JSON for a user."""
    return _json(value, "\t")


class Store:
    """The lists below a configuration folder."""

    def __init__(self, folder: str) -> None:
        self._root = os.path.join(folder, "manifests")

    def _folder(self, name: Reference) -> str:
        return os.path.join(self._root, _safe(full(name)))

    def entries(self, name: Reference) -> list[Entry]:
        """Return a list's entries, none if there is no such list."""
        folder = self._folder(name)
        try:
            files = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
        return [self._read(os.path.join(folder, file)) for file in files if not file.endswith(".tmp")]

    def exists(self, name: Reference) -> bool:
        """Tell whether there is such a list."""
        return os.path.isdir(self._folder(name))

    def get(self, name: Reference, image: Reference) -> Entry | None:
        """Return one entry, None if it is not there."""
        path = os.path.join(self._folder(name), _safe(full(image)))
        return self._read(path) if os.path.exists(path) else None

    @staticmethod
    def _read(path: str) -> Entry:
        try:
            with open(path, encoding="utf-8") as file:
                entry = json.load(file)
            str(entry["Ref"]), int(entry["Descriptor"]["size"]), str(entry["Descriptor"]["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failure(f"{path} is damaged ({error}): remove the list with `dray manifest rm`") from error
        return dict(entry)

    def save(self, name: Reference, image: Reference, entry: Entry) -> None:
        """Put an entry into a list, which is made if need be."""
        folder = self._folder(name)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        path = os.path.join(folder, _safe(full(image)))
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(entry, file, separators=(",", ":"), ensure_ascii=False)
        os.replace(temporary, path)

    def remove(self, name: Reference) -> None:
        """Remove a list."""
        import shutil

        shutil.rmtree(self._folder(name))


def _safe(text: str) -> str:
    return text.replace(":", "-").replace("/", "_")
