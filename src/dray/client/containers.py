"""Containers and execs over the Engine API."""

from __future__ import annotations

import json

from dray.client.http1 import Connection, Response
from dray.client.transport import Transport, path_name, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dray.client.transport import Readable

    # Named, since `list` is a method of the classes below.
    Objects = list[dict[str, Any]]
    Texts = list[str]


class Containers:
    """`/containers`: names and IDs are accepted alike, prefixes of IDs too."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def _path(self, name: str, verb: str = "") -> str:
        return f"/containers/{path_name(name)}{verb}"

    def list(
        self,
        *,
        all: bool = False,
        limit: int | None = None,
        size: bool = False,
        filters: Mapping[str, Any] | None = None,
    ) -> Objects:
        """Return summaries, newest first; only running ones unless `all`."""
        query = {"all": all, "limit": limit, "size": size, "filters": dict(filters) if filters else None}
        answer: Objects = self._t.request("GET", "/containers/json", query).json() or []
        return answer

    def create(
        self, body: Mapping[str, Any], *, name: str | None = None, platform: str | None = None
    ) -> dict[str, Any]:
        """Create a container; returns `{Id, Warnings}`. ApiError 404 when the image is missing."""
        query = {"name": name or None, "platform": platform or None}
        answer: dict[str, Any] = self._t.request("POST", "/containers/create", query, json_body=body).json()
        return answer

    def inspect(self, name: str, *, size: bool = False) -> dict[str, Any]:
        """Return everything about one container."""
        answer: dict[str, Any] = self._t.request("GET", self._path(name, "/json"), {"size": size}).json()
        return answer

    def start(self, name: str, *, checkpoint: str = "", checkpoint_dir: str = "") -> None:
        """Start a container; one that runs stays as it is."""
        query = {"checkpoint": checkpoint or None, "checkpoint-dir": checkpoint_dir or None}
        self._t.request("POST", self._path(name, "/start"), query).read()

    def write_checkpoint(
        self, name: str, checkpoint: str, *, directory: str = "", leave_running: bool = False
    ) -> None:
        """Write a container's processes down, and stop it."""
        body = {"CheckpointID": checkpoint, "CheckpointDir": directory, "Exit": not leave_running}
        self._t.request("POST", self._path(name, "/checkpoints"), json_body=body).read()

    def checkpoints(self, name: str, *, directory: str = "") -> Texts:
        """List the names of a container's checkpoints."""
        answer = self._t.request("GET", self._path(name, "/checkpoints"), {"dir": directory or None}).json() or []
        return [str(one["Name"]) for one in answer]

    def remove_checkpoint(self, name: str, checkpoint: str, *, directory: str = "") -> None:
        """Remove a checkpoint."""
        path = self._path(name, f"/checkpoints/{quote(checkpoint)}")
        self._t.request("DELETE", path, {"dir": directory or None}).read()

    def stop(self, name: str, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Stop a container: its stop signal, then SIGKILL after `timeout` seconds (-1: never)."""
        self._t.request("POST", self._path(name, "/stop"), {"t": timeout, "signal": signal or None}).read()

    def restart(self, name: str, *, timeout: int | None = None, signal: str | None = None) -> None:
        """Stop and start a container."""
        self._t.request("POST", self._path(name, "/restart"), {"t": timeout, "signal": signal or None}).read()

    def kill(self, name: str, *, signal: str | None = None) -> None:
        """Send a signal (SIGKILL by default) to the container's first process."""
        self._t.request("POST", self._path(name, "/kill"), {"signal": signal or None}).read()

    def pause(self, name: str) -> None:
        """Freeze all processes of a container."""
        self._t.request("POST", self._path(name, "/pause")).read()

    def unpause(self, name: str) -> None:
        """Thaw a container."""
        self._t.request("POST", self._path(name, "/unpause")).read()

    def edit(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change a container that exists (dray's own endpoint); return `{Warnings}`."""
        answer: dict[str, Any] = self._t.request("POST", self._path(name, "/edit"), json_body=body).json()
        return answer

    def rename(self, name: str, new: str) -> None:
        """Give a container another name."""
        self._t.request("POST", self._path(name, "/rename"), {"name": new}).read()

    def remove(self, name: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Remove a container; `force` kills a running one, `volumes` removes its anonymous volumes too."""
        self._t.request("DELETE", self._path(name), {"force": force, "v": volumes, "link": link}).read()

    def wait(self, name: str, *, condition: str = "") -> Response:
        """Start waiting; the response is here once the wait is registered, its body `{StatusCode, Error}` later."""
        return self._t.request("POST", self._path(name, "/wait"), {"condition": condition or None})

    def top(self, name: str, args: Texts) -> dict[str, Any]:
        """Return `{Titles, Processes}` as ps prints them."""
        query = {"ps_args": " ".join(args) or None}
        answer: dict[str, Any] = self._t.request("GET", self._path(name, "/top"), query).json()
        return answer

    def logs(self, name: str, **query: Any) -> Response:
        """Return the log stream (`stdout`, `stderr`, `follow`, `since`, `until`, `timestamps`, `details`, `tail`)."""
        return self._t.request("GET", self._path(name, "/logs"), query)

    def attach(self, name: str, **query: Any) -> tuple[Connection, str]:
        """Attach (`stream`, `stdin`, `stdout`, `stderr`, `logs`, `detachKeys`); returns stream and content type."""
        return self._t.upgrade(self._path(name, "/attach"), query)

    def resize(self, name: str, height: int, width: int) -> None:
        """Set the size of a container's terminal, in characters."""
        self._t.request("POST", self._path(name, "/resize"), {"h": height, "w": width}).read()

    def update(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change limits and restart policy; returns `{Warnings}`."""
        answer: dict[str, Any] = self._t.request("POST", self._path(name, "/update"), json_body=body).json()
        return answer

    def stats(self, name: str, *, stream: bool = True, one_shot: bool = False) -> Response:
        """Return resource usage, one JSON document a second, or just one."""
        query = {"stream": 1 if stream else 0, "one-shot": one_shot}
        return self._t.request("GET", self._path(name, "/stats"), query)

    def changes(self, name: str) -> Objects:
        """Return `[{Path, Kind}]`: 0 modified, 1 added, 2 deleted."""
        answer: Objects = self._t.request("GET", self._path(name, "/changes")).json() or []
        return answer

    def export(self, name: str) -> Response:
        """Return the container's filesystem as a tar stream."""
        return self._t.request("GET", self._path(name, "/export"))

    def stat_path(self, name: str, path: str) -> dict[str, Any]:
        """Return `{name, size, mode, mtime, linkTarget}` of a path; `mode` is a Go os.FileMode."""
        response = self._t.request("HEAD", self._path(name, "/archive"), {"path": path})
        return decode_stat(response)

    def get_archive(self, name: str, path: str) -> tuple[Response, dict[str, Any]]:
        """Return a path as a tar stream, with its stat."""
        response = self._t.request("GET", self._path(name, "/archive"), {"path": path})
        return response, decode_stat(response)

    def put_archive(
        self, name: str, path: str, body: Readable, *, no_overwrite: bool = False, copy_uid_gid: bool = False
    ) -> None:
        """Unpack a tar stream in a directory; `no_overwrite` refuses to turn a directory into a file or back."""
        query = {
            "path": path,
            "noOverwriteDirNonDir": "true" if no_overwrite else None,
            "copyUIDGID": "true" if copy_uid_gid else None,
        }
        self._t.request("PUT", self._path(name, "/archive"), query, body=body).read()

    def prune(self, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Remove stopped containers; returns `{ContainersDeleted, SpaceReclaimed}`."""
        query = {"filters": dict(filters) if filters else None}
        answer: dict[str, Any] = self._t.request("POST", "/containers/prune", query).json()
        return answer


class Execs:
    """`/exec`: processes started in running containers."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def create(self, container: str, body: Mapping[str, Any]) -> str:
        """Prepare a process; returns its ID."""
        response = self._t.request("POST", f"/containers/{path_name(container)}/exec", json_body=body)
        return str(response.json()["Id"])

    def start(self, exec_id: str, body: Mapping[str, Any]) -> None:
        """Start a process detached."""
        self._t.request("POST", f"/exec/{quote(exec_id)}/start", json_body=body).read()

    def attach(self, exec_id: str, body: Mapping[str, Any]) -> tuple[Connection, str]:
        """Start a process and attach to it; returns stream and content type."""
        return self._t.upgrade(f"/exec/{quote(exec_id)}/start", json_body=body)

    def inspect(self, exec_id: str) -> dict[str, Any]:
        """Return the process's state, `ExitCode` among it."""
        answer: dict[str, Any] = self._t.request("GET", f"/exec/{quote(exec_id)}/json").json()
        return answer

    def resize(self, exec_id: str, height: int, width: int) -> None:
        """Set the size of the process's terminal, in characters."""
        self._t.request("POST", f"/exec/{quote(exec_id)}/resize", {"h": height, "w": width}).read()


def decode_stat(response: Response) -> dict[str, Any]:
    """Read the `X-Docker-Container-Path-Stat` header (standard base64 of JSON)."""
    import base64

    raw = response.headers.get("x-docker-container-path-stat", "")
    stat: dict[str, Any] = json.loads(base64.b64decode(raw)) if raw else {}
    return stat
