"""Building images, and the build cache."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from dray.api import decoding, filters
from dray.api.requests import BuildOptions, BuildPruneOptions
from dray.base.errors import InvalidParameter, Unsupported
from dray.server import replies
from dray.server.backends import Backends, Builds
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Builds:
    return need(backends.builds, "building images")


def _json(call: Call, key: str, kind: Any, default: Any) -> Any:
    text = call.text(key)
    if not text:
        return default
    try:
        return msgspec.convert(decoding.parse(text.encode("utf-8", "replace")), kind)
    except (msgspec.ValidationError, InvalidParameter) as error:
        raise InvalidParameter(f"error reading build parameter {key}: {error}") from error


def _registry_config(call: Call) -> dict[str, Any]:
    header = call.request.headers.get("X-Registry-Config", "")
    try:
        document = decoding.parse(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)) or b"{}")
    except (binascii.Error, ValueError, InvalidParameter):
        return {}
    return document if isinstance(document, dict) else {}


def _options(call: Call) -> BuildOptions:
    labels = _json(call, "labels", dict[str, str | None], {})
    return BuildOptions(
        dockerfile=call.text("dockerfile") or "Dockerfile",
        tags=call.many("t"),
        remote=call.text("remote"),
        quiet=call.flag("q"),
        no_cache=call.flag("nocache"),
        pull=call.flag("pull"),
        remove=call.flag("rm", default=True),
        force_remove=call.flag("forcerm"),
        squash=call.flag("squash"),
        build_args=_json(call, "buildargs", dict[str, str | None], {}),
        labels={name: value or "" for name, value in labels.items()},
        cache_from=tuple(_json(call, "cachefrom", list[str], ())),
        extra_hosts=tuple(host for text in call.many("extrahosts") for host in text.split(",")),
        network_mode=call.text("networkmode"),
        platform=call.text("platform") if call.version >= (1, 32) else "",
        target=call.text("target"),
        memory=call.integer("memory"),
        memory_swap=call.integer("memswap"),
        cpu_shares=call.integer("cpushares"),
        cpu_period=call.integer("cpuperiod"),
        cpu_quota=call.integer("cpuquota"),
        cpuset_cpus=call.text("cpusetcpus"),
        cpuset_mems=call.text("cpusetmems"),
        cgroup_parent=call.text("cgroupparent"),
        shm_size=call.integer("shmsize"),
        isolation=call.text("isolation"),
        security_opt=tuple(_json(call, "securityopt", list[str], ())),
        ulimits=tuple(_json(call, "ulimits", list[dict[str, Any]], ())),
        outputs=tuple(_json(call, "outputs", list[dict[str, Any]], ())),
        build_id=call.text("buildid"),
        session=call.text("session"),
        auths=_registry_config(call),
    )


@routes.post("/build")
async def build(backends: Backends, call: Call) -> StreamResponse:
    """Build an image from a Dockerfile, the classic way."""
    version = call.text("version", "1") or "1"
    if version not in {"1", "2"}:
        raise InvalidParameter(f"invalid version {version}")
    if version == "2":
        raise Unsupported(
            "BuildKit builds are not available in this daemon; set DOCKER_BUILDKIT=0 for the classic builder"
        )
    return await replies.progress(call, _part(backends).build(_options(call), call.upload()))


@routes.post("/build/cancel")
async def cancel(backends: Backends, call: Call) -> StreamResponse:
    """Cancel a build."""
    if not call.text("id"):
        raise InvalidParameter("build ID not provided")
    await _part(backends).cancel(call.text("id"))
    return replies.empty()


@routes.post("/build/prune", since=(1, 31))
async def prune(backends: Backends, call: Call) -> StreamResponse:
    """Remove build cache. `keep-storage` is the older name of `reserved-space`."""
    reserved = call.integer("reserved-space") if call.version >= (1, 48) else 0
    options = BuildPruneOptions(
        all=call.flag("all"),
        reserved_space=reserved or call.integer("keep-storage"),
        max_used_space=call.integer("max-used-space") if call.version >= (1, 48) else 0,
        min_free_space=call.integer("min-free-space") if call.version >= (1, 48) else 0,
    )
    return replies.json(await _part(backends).prune(options, call.filters(filters.BUILD_PRUNE)))


@routes.post("/session", since=(1, 31))
@routes.post("/grpc")
async def session(backends: Backends, call: Call) -> StreamResponse:
    """Refuse BuildKit sessions."""
    raise Unsupported(
        "BuildKit sessions are not available in this daemon; set DOCKER_BUILDKIT=0 for the classic builder"
    )
