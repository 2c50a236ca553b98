"""A pull-through cache: what is asked for and not here is fetched from another registry, and kept.

* A tag is asked for there every time (HEAD); if the other registry does not answer, the tag of before holds.
* Manifests by digest, and blobs, never change: what is here is served without asking.
* A blob goes to the clients while it comes in, and to the storage. One download serves all who wait for it. Its last
  byte is held back until the digest is proven; a client of a blob that lies sees a broken connection, never the whole.
* A download that breaks off goes on where it broke off.
* HEAD of a blob downloads nothing: the other registry is asked by HEAD.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from aiohttp import web

from dray.base import digest as digests
from dray.base.errors import DrayError, Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.oci.image import Descriptor
from dray.registry.server import documents, names
from dray.registry.server.call import Call
from dray.registry.server.errors import Refusal
from dray.registry.server.reading import blob_headers, parse_range, send_blob
from dray.registry.server.repositories import Found, Repositories
from dray.registry.server.uploads import Session, Uploads
from dray.registry.server.upstream import Upstream

log = logging.getLogger("dray.registry")

_BLOCK = 1 << 20
_TRIES = 4  # of a download that breaks off without a byte


class Fetch:
    """One blob on its way in. `available`: bytes that may be read; `finished`: it is over, well or with `error`."""

    def __init__(self, proxy: Proxy, name: str, digest: str) -> None:
        self._proxy = proxy
        self._name = name
        self._digest = digest
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._guard = threading.Lock()  # the upload's bytes: written by one thread, read by others
        self._session: Session | None = None
        self.size: int | None = None
        self.available = 0
        self.finished = False
        self.error: DrayError | Refusal | OSError | None = None

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def _tell(self) -> None:
        def wake() -> None:
            self._changed.set()
            self._changed = asyncio.Event()

        self._loop.call_soon_threadsafe(wake)

    def run(self) -> None:
        """Fetch the blob. Blocking; in a thread of its own."""
        uploads = self._proxy.uploads
        session = uploads.begin(self._name)
        uploads.open(session)
        self._session = session
        try:
            self._download(session)
            with self._guard:
                uploads.commit(session, self._digest)
                self._session = None
            self.available = session.offset
        except (DrayError, Refusal, OSError) as error:
            self.error = error
            with self._guard:
                self._session = None
                uploads.forget(session)
            log.warning("%s of %s could not be fetched: %s", self._digest, self._name, error)
        finally:
            self.finished = True
            self._tell()

    def _download(self, session: Session) -> None:
        tries = 0
        while True:
            before = session.offset
            try:
                self._stream(session)
                return
            except Unavailable:
                tries = tries + 1 if session.offset == before else 0
                if tries == _TRIES:
                    raise

    def _stream(self, session: Session) -> None:
        descriptor = Descriptor(digest=self._digest, size=self.size or 0)
        repository = self._proxy.upstream.repository(self._name)
        with repository.blob(descriptor, start=session.offset) as stream:
            self.size = stream.size if self.size is None else self.size
            self._tell()
            skip = session.offset - stream.start  # what we have, if ranges are ignored there
            while data := stream.read(_BLOCK):
                if skip:
                    data, skip = data[skip:], max(skip - len(data), 0)
                with self._guard:
                    session.write(data)
                self.available = session.offset if self.size is None else min(session.offset, self.size - 1)
                self._tell()

    def read(self, start: int, size: int) -> bytes:
        """Return up to `size` bytes from `start`, which must be available. Blocking."""
        with self._guard:
            session = self._session
            if session is not None and session.upload is not None:
                return session.upload.read(start, size)
        reader = self._proxy.repositories.open_blob(self._digest, start, start + size)
        if reader is None:
            return b""
        try:
            return reader.read(size)
        finally:
            reader.close()


class Proxy:
    """The cache of one registry."""

    def __init__(self, upstream: Upstream, repositories: Repositories, uploads: Uploads) -> None:
        self.upstream = upstream
        self.repositories = repositories
        self.uploads = uploads
        self._fetches: dict[str, Fetch] = {}
        self._threads: set[asyncio.Task[None]] = set()

    # --- manifests

    async def manifest(self, name: str, reference: str) -> Found:
        """Return a manifest, fetched if it is not here; refused if neither side has it."""
        return await asyncio.to_thread(self._manifest, name, reference)

    def _local(self, name: str, reference: str) -> Found | None:
        try:
            return self.repositories.manifest(name, reference)
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    def _manifest(self, name: str, reference: str) -> Found:
        if digests.is_digest(reference):
            return self._local(name, reference) or self._fetch_manifest(name, reference)
        if not names.is_tag(reference):
            raise Refusal("MANIFEST_UNKNOWN", {"tag": reference})
        try:
            digest = self.upstream.repository(name).resolve(reference).digest
            found = self._local(name, digest) or self._fetch_manifest(name, digest)
        except (Unavailable, NotFound, Unauthorized, Forbidden, InvalidParameter) as error:
            if isinstance(error, Unavailable) and (kept := self._local(name, reference)):
                log.warning("%s:%s is served as it was: %s", name, reference, error)
                return kept
            raise _refused(error, "MANIFEST_UNKNOWN") from error
        if self.repositories.storage.get(names.tag(name, reference)) != digest.encode():
            self.repositories.set_tag(name, reference, digest)
        return found

    def _fetch_manifest(self, name: str, digest: str) -> Found:
        try:
            descriptor, data = self.upstream.repository(name).manifest(digest)
        except DrayError as error:
            raise _refused(error, "MANIFEST_UNKNOWN") from error
        document = documents.read(data, digest, descriptor.media_type)
        self.repositories.put_manifest(name, digest, data, document, whole=False)
        return Found(digest, document.media_type, data)

    # --- lists

    async def tags(self, name: str) -> list[str]:
        """Return the tags that the other registry has; those that are here if it does not answer."""

        def ask() -> list[str]:
            try:
                found = list(self.upstream.repository(name).tags())
            except Unavailable:
                return self.repositories.tags(name)
            except DrayError as error:
                raise _refused(error, "NAME_UNKNOWN") from error
            return sorted(found, key=lambda tag: (tag.lower(), tag))

        return await asyncio.to_thread(ask)

    async def referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        """Return the referrers that the other registry has; those that are here if it does not answer."""

        def ask() -> list[dict[str, Any]]:
            try:
                found = self.upstream.repository(name).referrers(subject)
            except Unavailable:
                return self.repositories.referrers(name, subject)
            except DrayError as error:
                raise _refused(error, "NAME_UNKNOWN") from error
            return sorted(found, key=lambda one: str(one["digest"]))

        return await asyncio.to_thread(ask)

    # --- blobs

    async def get_blob(self, call: Call, digest: str) -> web.StreamResponse:
        """Answer with a blob that the repository does not have here yet."""
        if call.request.method == "HEAD":
            return await self._head_of_blob(call, digest)
        stored = await call.server.run(self.repositories.storage.stat, names.blob(digest))
        if stored is None and digest not in self._fetches:
            fetch = self._begin(call.name, digest)
        else:
            # Here for another repository, or soon: this one gets it if it has it there, too.
            if not await asyncio.to_thread(self._has, call.name, digest):
                raise Refusal("BLOB_UNKNOWN", {"digest": digest})
            if digest not in self._fetches and await call.server.run(
                self.repositories.link_blob, call.name, digest
            ):
                return await self._send_stored(call, digest)
            fetch = self._fetches.get(digest) or self._begin(call.name, digest)
        while fetch.size is None and not fetch.finished:
            await fetch.wait()
        if fetch.error is not None:
            raise _refused(fetch.error, "BLOB_UNKNOWN")
        if fetch.finished:
            await call.server.run(self.repositories.link_blob, call.name, digest)
            return await self._send_stored(call, digest)
        return await self._follow(call, digest, fetch)

    async def _head_of_blob(self, call: Call, digest: str) -> web.StreamResponse:
        size = await asyncio.to_thread(self._size, call.name, digest)
        if await call.server.run(self.repositories.link_blob, call.name, digest):
            return await self._send_stored(call, digest)
        length = {} if size is None else {"Content-Length": str(size)}
        answer = web.StreamResponse(headers={**blob_headers(digest), **length})
        await answer.prepare(call.request)
        await answer.write_eof()
        return answer

    def _size(self, name: str, digest: str) -> int | None:
        try:
            return self.upstream.repository(name).blob_size(digest)
        except DrayError as error:
            raise _refused(error, "BLOB_UNKNOWN") from error

    def _has(self, name: str, digest: str) -> bool:
        try:
            return self.upstream.repository(name).has_blob(digest)
        except DrayError as error:
            raise _refused(error, "BLOB_UNKNOWN") from error

    async def _send_stored(self, call: Call, digest: str) -> web.StreamResponse:
        size = await call.server.run(self.repositories.blob_size, call.name, digest)
        if size is None:
            raise Refusal("BLOB_UNKNOWN", {"digest": digest})
        return await send_blob(call, digest, size, head=call.request.method == "HEAD")

    def _begin(self, name: str, digest: str) -> Fetch:
        fetch = self._fetches[digest] = Fetch(self, name, digest)

        async def run() -> None:
            try:
                await asyncio.to_thread(fetch.run)
            finally:
                del self._fetches[digest]

        task = asyncio.ensure_future(run())
        self._threads.add(task)
        task.add_done_callback(self._threads.discard)
        return fetch

    async def _follow(self, call: Call, digest: str, fetch: Fetch) -> web.StreamResponse:
        """Send what has come of a blob, as it comes."""
        assert fetch.size is not None
        status, position, end = 200, 0, fetch.size
        headers = blob_headers(digest)
        if span := parse_range(call.request.headers.get("Range", ""), fetch.size):
            status, (position, end) = 206, span
            headers["Content-Range"] = f"bytes {position}-{end - 1}/{fetch.size}"
        answer = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(end - position)})
        await answer.prepare(call.request)
        while position < end:
            while fetch.available <= position and not fetch.finished:
                await fetch.wait()
            ready = min(fetch.available, end) - position
            if fetch.error is not None or ready <= 0:
                raise ConnectionResetError("the blob cannot be completed")
            data = await asyncio.to_thread(fetch.read, position, min(ready, _BLOCK))
            if not data:
                raise ConnectionResetError("the blob cannot be completed")
            await answer.write(data)
            position += len(data)
            call.sent += len(data)
        await call.server.run(self.repositories.link_blob, call.name, digest)
        await answer.write_eof()
        return answer


def _refused(error: DrayError | Refusal | OSError, unknown: str) -> Refusal:
    """Say in the protocol's words why the other registry gave nothing."""
    if isinstance(error, Refusal):
        return Refusal(
            "UNAVAILABLE", status=502, message=f"the registry behind this cache sent wrong data: {error}"
        )
    if isinstance(error, NotFound):
        return Refusal(unknown)
    if isinstance(error, Unauthorized | Forbidden):
        return Refusal("DENIED", message=f"the registry behind this cache refuses: {error}")
    status = 503 if isinstance(error, Unavailable) else 502
    return Refusal("UNAVAILABLE", status=status, message=f"the registry behind this cache: {error}")
