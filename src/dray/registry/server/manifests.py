"""Manifests, tags, referrers and the catalogue (end-3, end-7 to end-9, end-12)."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from dray.base import digest as digests
from dray.oci.image import OCI_INDEX
from dray.registry.model import MANIFEST_LIMIT
from dray.registry.server import documents, names
from dray.registry.server.access import LIST, Wish
from dray.registry.server.call import Call, reply, reply_json
from dray.registry.server.errors import Refusal
from dray.registry.server.reading import unchanged

_REFERRERS_PAGE = 1000


async def get(call: Call) -> web.StreamResponse:
    """GET or HEAD of a manifest by tag or digest."""
    server = call.server
    if server.proxy is not None:
        found = await server.proxy.manifest(call.name, call.reference)
    else:
        found = await server.run(server.repositories.manifest, call.name, call.reference)
    headers = {
        "Content-Type": found.media_type,
        "Docker-Content-Digest": found.digest,
        "ETag": f'"{found.digest}"',
    }
    if unchanged(call, found.digest):
        return reply(304, headers)
    if call.request.method == "HEAD":
        answer = web.StreamResponse(headers={**headers, "Content-Length": str(len(found.data))})
        await answer.prepare(call.request)
        await answer.write_eof()
        return answer
    return web.Response(body=found.data, headers=headers)


async def put(call: Call) -> web.StreamResponse:
    """PUT of a manifest under a tag or its digest."""
    server, reference = call.server, call.reference
    by_digest = digests.is_digest(reference)
    if not by_digest and not names.is_tag(reference):
        raise Refusal(
            "DIGEST_INVALID" if ":" in reference else "MANIFEST_INVALID",
            {"reference": reference},
            message="the reference is neither a tag nor a digest",
        )
    data = await call.body(MANIFEST_LIMIT)
    digest = digests.of(data)
    if by_digest:
        check = digests.hasher(reference)
        check.update(data)
        digest = f"{digests.parse(reference)[0]}:{check.hexdigest()}"
        if digest != reference:
            raise Refusal("DIGEST_INVALID", {"digest": reference, "received": digest})
    document = documents.read(data, digest, call.request.headers.get("Content-Type", ""))
    tags = () if by_digest else (reference,)
    await server.run(server.repositories.put_manifest, call.name, digest, data, document, tags=tags)
    headers = {"Location": f"/v2/{call.name}/manifests/{digest}", "Docker-Content-Digest": digest}
    if document.subject is not None:
        headers["OCI-Subject"] = document.subject
    return reply(201, headers)


async def delete(call: Call) -> web.StreamResponse:
    """DELETE of a tag, or of a manifest with all its tags."""
    repositories, reference = call.server.repositories, call.reference
    if digests.is_digest(reference):
        await call.server.run(repositories.delete_manifest, call.name, reference)
    else:
        await call.server.run(repositories.delete_tag, call.name, reference)
    return reply(202)


def _page(
    call: Call, found: list[str], last_index: int, *, default: int | None = None
) -> tuple[list[str], str | None]:
    """Cut a page of `n` out of what follows `last_index`; also the Link to the next one."""
    text, limit = call.query.get("n"), default
    if text is not None:
        if not text.isascii() or not text.isdigit():
            raise Refusal("PAGINATION_NUMBER_INVALID", {"n": text})
        limit = int(text)
    rest = found[last_index:]
    if limit is None or len(rest) <= limit:
        return rest, None
    page = rest[:limit]
    if not page:
        return page, None
    query = urlencode({"last": page[-1], "n": limit})
    return page, f'<{call.request.path}?{query}>; rel="next"'


def _after(found: list[str], last: str | None, key: Any = lambda one: one) -> int:
    """The index of the first name that follows `last`, whether or not that is there."""
    if last is None:
        return 0
    return next((i for i, one in enumerate(found) if key(one) > key(last)), len(found))


async def tags(call: Call) -> web.StreamResponse:
    """GET of the list of tags, in pages."""
    server = call.server
    if server.proxy is not None:
        found = await server.proxy.tags(call.name)
    else:
        found = await server.run(server.repositories.tags, call.name)
    start = _after(found, call.query.get("last"), lambda tag: (tag.lower(), tag))
    page, link = _page(call, found, start)
    return reply_json({"name": call.name, "tags": page}, {"Link": link} if link else None)


async def catalog(call: Call) -> web.StreamResponse:
    """GET of the names of the repositories that the client may read, in pages."""
    found = await call.server.run(call.server.repositories.names)
    found = [name for name in found if call.identity.may(Wish(LIST, name))]
    page, link = _page(call, found, _after(found, call.query.get("last")), default=1000)
    return reply_json({"repositories": page}, {"Link": link} if link else None)


async def referrers(call: Call) -> web.StreamResponse:
    """GET of the manifests that refer to a digest, as an index; empty if there is none."""
    server, subject = call.server, names.check_digest(call.reference)
    if server.proxy is not None:
        found = await server.proxy.referrers(call.name, subject)
    else:
        found = await server.run(server.repositories.referrers, call.name, subject)
    headers = {}
    if wanted := call.query.get("artifactType"):
        found = [one for one in found if one.get("artifactType") == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    last = call.query.get("last", "")
    found = [one for one in found if one["digest"] > last]
    if len(found) > _REFERRERS_PAGE:
        found = found[:_REFERRERS_PAGE]
        query = {"artifactType": wanted} if wanted else {}
        headers["Link"] = f'<{call.request.path}?{urlencode({**query, "last": found[-1]["digest"]})}>; rel="next"'
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    return reply_json(index, headers, media_type=OCI_INDEX)
