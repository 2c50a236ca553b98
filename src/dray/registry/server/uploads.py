"""Uploads in progress: what arrived, its digest so far, and who is writing.

An upload outlives the connection, the request and the server; after a restart its bytes are read once to know the
digest so far. One request at a time writes to an upload: a newer one cancels an older one, whose client is gone (it
would not ask twice otherwise).
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from dray.base import digest as digests
from dray.registry.server import names
from dray.registry.server.errors import Refusal
from dray.registry.server.repositories import Repositories
from dray.registry.server.storage import Upload

_CHUNK = 1 << 20


@dataclass(eq=False)
class Session:
    """One upload. The blocking methods are called by one thread at a time."""

    identifier: str
    name: str
    upload: Upload | None = None
    sha256: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    writer: asyncio.Task[Any] | None = None
    used: float = field(default_factory=time.time)

    @property
    def offset(self) -> int:
        """How many bytes have arrived."""
        return self.hashed

    def write(self, data: bytes) -> None:
        """Append. Blocking."""
        assert self.upload is not None
        self.upload.write(data)
        self.sha256.update(data)
        self.hashed += len(data)

    def digest(self, algorithm: str) -> str:
        """Return the digest of what has arrived. Blocking: other algorithms than sha256 read it all again."""
        if algorithm == "sha256":
            return f"sha256:{self.sha256.hexdigest()}"
        assert self.upload is not None
        check, position = hashlib.new(algorithm), 0
        while data := self.upload.read(position, _CHUNK):
            check.update(data)
            position += len(data)
        return f"{algorithm}:{check.hexdigest()}"

    def catch_up(self) -> None:
        """Hash what an earlier process has received. Blocking."""
        assert self.upload is not None
        while self.hashed < self.upload.offset:
            data = self.upload.read(self.hashed, _CHUNK)
            if not data:
                break
            self.sha256.update(data)
            self.hashed += len(data)


class Uploads:
    """All uploads of one server. Blocking and thread-safe, but for what `Session` says."""

    def __init__(self, repositories: Repositories, expiry: float) -> None:
        self._repositories = repositories
        self._storage = repositories.storage
        self._expiry = expiry
        self._sessions: dict[str, Session] = {}
        self._guard = threading.Lock()

    def begin(self, name: str) -> Session:
        """Begin an upload to a repository."""
        session = Session(str(uuid.uuid4()), name)
        with self._guard:
            self._sessions[session.identifier] = session  # first, so that `expire` knows it
        self._storage.put({f"{names.upload(session.identifier)}/repository": name.encode()}, durable=False)
        return session

    def find(self, name: str, identifier: str) -> Session:
        """Return an upload to a repository; refused if there is none."""
        unknown = Refusal("BLOB_UPLOAD_UNKNOWN", {"upload": identifier})
        if not names.is_upload(identifier):
            raise unknown
        with self._guard:
            session = self._sessions.get(identifier)
        if session is None:
            owner = self._storage.get(f"{names.upload(identifier)}/repository")
            if owner is None:
                raise unknown
            session = Session(identifier, owner.decode())
            self.open(session)
            self.rest(session)
            with self._guard:
                session = self._sessions.setdefault(identifier, session)
        if session.name != name:
            raise unknown
        session.used = time.time()
        return session

    def open(self, session: Session) -> None:
        """Open an upload's bytes for a request."""
        if session.upload is None:
            session.upload = self._storage.upload(names.upload(session.identifier))
            session.catch_up()

    def rest(self, session: Session) -> None:
        """Close an upload's bytes between two requests; the digest so far stays in memory."""
        session.used = time.time()
        if session.upload is not None:
            try:
                session.upload.flush()
            finally:
                session.upload.close()
                session.upload = None

    def commit(self, session: Session, digest: str) -> None:
        """Make an upload a blob of its repository; refused, and forgotten, if its digest is another one."""
        assert session.upload is not None
        found = session.digest(digests.parse(digest)[0])
        if found != digest:
            self.forget(session)
            raise Refusal("DIGEST_INVALID", {"digest": digest, "received": found})
        self._repositories.keep(session.name, digest, session.upload)
        self.forget(session)

    def forget(self, session: Session) -> None:
        """Remove an upload with its bytes."""
        with self._guard:
            self._sessions.pop(session.identifier, None)
        if session.upload is not None:
            session.upload.close()
            session.upload = None
        self._storage.delete_folder(names.upload(session.identifier))

    def expire(self, *, now: float | None = None) -> int:
        """Remove uploads that nobody has used for the expiry time; return how many."""
        limit, count = (time.time() if now is None else now) - self._expiry, 0
        for entry in list(self._storage.list("uploads")):
            with self._guard:
                session = self._sessions.get(entry.name)
                if session is not None:
                    if session.writer is not None or session.used > limit:
                        continue
                    del self._sessions[entry.name]
            if session is None and self._last_change(entry.name) > limit:
                continue
            self._storage.delete_folder(names.upload(entry.name))
            count += 1
        return count

    def _last_change(self, identifier: str) -> float:
        folder, latest = names.upload(identifier), 0.0
        for entry in self._storage.list(folder):
            stat = self._storage.stat(f"{folder}/{entry.name}")
            latest = max(latest, stat.modified if stat else 0.0)
        return latest
