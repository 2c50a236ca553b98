"""The user's configuration: `config.json` in `~/.docker` (or `--config`, `DOCKER_CONFIG`), shared with docker.

Read once, written back whole (keys we do not know are kept), atomically, mode 0600.
"""

from __future__ import annotations

import json
import os

from dray.base.errors import InvalidParameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def default_dir() -> str:
    """Return the configuration folder when no option names one."""
    return os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")


class Config:
    """The file's content in `data`; the folder it lies in."""

    def __init__(self, folder: str, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data

    @property
    def path(self) -> str:
        """Where the file is, or would be."""
        return os.path.join(self.folder, "config.json")

    def text(self, key: str) -> str:
        """Return a string setting, empty when it is absent."""
        value = self.data.get(key)
        return value if isinstance(value, str) else ""

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object setting, empty when it is absent."""
        value = self.data.get(key)
        return value if isinstance(value, dict) else {}

    def save(self) -> None:
        """Write the file, atomically and readable by its owner only."""
        # A link to a file kept elsewhere stays a link.
        target = os.path.realpath(self.path)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        temporary = f"{target}.{os.getpid()}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(json.dumps(self.data, indent="\t", ensure_ascii=False))
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def load(folder: str = "") -> Config:
    """Read the configuration; a missing file is an empty one, a broken one an error that names it."""
    folder = folder or default_dir()
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        return Config(folder, {})
    except (OSError, ValueError) as error:
        raise InvalidParameter(f"error loading config file: {path}: {error}") from error
    if not isinstance(data, dict):
        raise InvalidParameter(f"error loading config file: {path}: it must hold a JSON object")
    return Config(folder, data)
