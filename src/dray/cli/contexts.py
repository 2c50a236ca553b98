"""The context store, shared with docker: named daemon addresses with their TLS material.

Layout under the configuration folder (the directory's name is the SHA-256 of the context's name):

    contexts/meta/<sha256>/meta.json               {"Name", "Metadata": {"Description"}, "Endpoints": {"docker": {…}}}
    contexts/tls/<sha256>/docker/{ca,cert,key}.pem
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from dray.base.errors import InvalidParameter, NotFound
from dray.client.transport import TlsFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]+")
TLS_FILES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}


class Context:
    """A stored context: its meta.json and where its TLS files lie."""

    def __init__(self, meta: dict[str, Any], meta_dir: str, tls_dir: str) -> None:
        self.meta = meta
        self.meta_dir = meta_dir
        self.tls_dir = tls_dir

    @property
    def name(self) -> str:
        """The context's name."""
        return str(self.meta.get("Name", ""))

    @property
    def endpoint(self) -> dict[str, Any]:
        """The docker endpoint: `{Host, SkipTLSVerify}`."""
        found = (self.meta.get("Endpoints") or {}).get("docker")
        return found if isinstance(found, dict) else {}

    @property
    def host(self) -> str:
        """The daemon's address."""
        return str(self.endpoint.get("Host") or "")

    @property
    def description(self) -> str:
        """What the user noted about it."""
        return str((self.meta.get("Metadata") or {}).get("Description") or "")

    def tls_paths(self) -> dict[str, str]:
        """Return the TLS files there are: `ca`, `cert`, `key` to path."""
        folder = os.path.join(self.tls_dir, "docker")
        return {key: path for key, file in TLS_FILES.items() if os.path.exists(path := os.path.join(folder, file))}

    def tls(self) -> TlsFiles | None:
        """Return the TLS material, None when the context has none."""
        paths, skip = self.tls_paths(), bool(self.endpoint.get("SkipTLSVerify"))
        if not paths and not skip:
            return None
        return TlsFiles(
            ca=paths.get("ca", ""), cert=paths.get("cert", ""), key=paths.get("key", ""), verify=not skip
        )


def check_name(name: str) -> None:
    """Refuse a name that cannot be a context's."""
    if not name:
        raise InvalidParameter("context name cannot be empty")
    if name == "default":
        raise InvalidParameter('"default" is a reserved context name')
    if not _NAME.fullmatch(name):
        raise InvalidParameter(
            f'context name "{name}" is invalid, names are validated against regexp "^{_NAME.pattern}$"'
        )


class Store:
    """All contexts of a configuration folder."""

    def __init__(self, folder: str) -> None:
        self._root = os.path.join(folder, "contexts")

    def _dirs(self, name: str) -> tuple[str, str]:
        key = hashlib.sha256(name.encode()).hexdigest()
        return os.path.join(self._root, "meta", key), os.path.join(self._root, "tls", key)

    def exists(self, name: str) -> bool:
        """Whether the context is stored."""
        return os.path.exists(os.path.join(self._dirs(name)[0], "meta.json"))

    def load(self, name: str) -> Context:
        """Return a context; NotFound names it and the file that is missing."""
        meta_dir, tls_dir = self._dirs(name)
        path = os.path.join(meta_dir, "meta.json")
        try:
            with open(path, encoding="utf-8") as file:
                return Context(json.load(file), meta_dir, tls_dir)
        except FileNotFoundError:
            raise NotFound(
                f'context "{name}": context not found: open {path}: no such file or directory'
            ) from None

    def names(self) -> list[str]:
        """Return the stored contexts' names, sorted."""
        found = []
        root = os.path.join(self._root, "meta")
        for entry in os.listdir(root) if os.path.isdir(root) else []:
            try:
                with open(os.path.join(root, entry, "meta.json"), encoding="utf-8") as file:
                    found.append(str(json.load(file)["Name"]))
            except (OSError, ValueError, KeyError):
                continue
        return sorted(found)

    def save(self, name: str, meta: dict[str, Any], tls: dict[str, bytes] | None = None) -> None:
        """Write a context; `tls` (by `ca`, `cert`, `key`) replaces what TLS files it had, None keeps them."""
        meta_dir, tls_dir = self._dirs(name)
        os.makedirs(meta_dir, mode=0o755, exist_ok=True)
        temporary = os.path.join(meta_dir, f"meta.{os.getpid()}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(meta, file, separators=(",", ":"), ensure_ascii=False)
        os.replace(temporary, os.path.join(meta_dir, "meta.json"))
        if tls is None:
            return
        self._drop(tls_dir)
        for key, data in tls.items():
            folder = os.path.join(tls_dir, "docker")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            descriptor = os.open(
                os.path.join(folder, TLS_FILES[key]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
            )
            with os.fdopen(descriptor, "wb") as sink:
                sink.write(data)

    @staticmethod
    def _drop(folder: str) -> None:
        import shutil

        if os.path.isdir(folder):
            shutil.rmtree(folder)

    def remove(self, name: str) -> None:
        """Remove a context with its TLS files."""
        for folder in self._dirs(name):
            self._drop(folder)
