"""The engine's memory: one SQLite database in write-ahead-log mode, behind `base.records.Records`.

    <root>/metadata.db        the database
    <root>/metadata.db-wal    its log; every commit is appended here
    <root>/metadata.db-shm    the log's index
    <root>/metadata.db-spare  space given up when the disk is full, so that removals still go (`ballast`)

Invariants:

* A commit is a write(2) to the log and no fsync: it survives a killed process from the moment `write` returns.
  `sync` puts the log on disk; one fdatasync(2) serves every thread that waits for one.
* `synchronous=NORMAL` orders log, database and log reuse around each checkpoint (https://www.sqlite.org/wal.html),
  so a power loss at any point leaves a prefix of the commits, never a torn database.
* Checkpoints run inside `sync`, on a connection of their own, so that the thread that writes never waits for one.
* Nothing here opens the database's file beside SQLite once it is connected: closing any descriptor of it drops
  all of the process's locks on it (fcntl(2)), and the next program that only looks at the database would believe
  to be the last one and delete the log under us.
* `user_version` is the schema's version; a database made by a newer dray is refused, not guessed at.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from dray.base.errors import Internal
from dray.base.files import sync_directory
from dray.base.records import Change
from dray.store.ballast import Ballast

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID
"""
_PUT = "INSERT OR REPLACE INTO record (kind, key, value) VALUES (?, ?, ?)"
_DELETE = "DELETE FROM record WHERE kind = ? AND key = ?"
_CHECKPOINT_BYTES = 8 << 20
_PAGE = 4096  # a commit logs whole pages


class Metadata:
    """`base.records.Records` over SQLite; thread-safe. Close it to fold the log into the database."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()  # the connection below
        self._sync_lock = threading.Lock()  # the log's descriptor and the checkpoint connection
        self._written = 0
        self._synced = 0
        self._log_bytes = 0  # appended since the last checkpoint
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = self._connect()
        try:
            self._migrate()
            self._checkpoint = self._connect()
            self._wal = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            self._ballast = Ballast(Path(f"{self._path}-spare"))
        except BaseException:
            self._connection.close()
            raise
        sync_directory(self._path.parent)

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute("PRAGMA journal_size_limit=16777216")
        except sqlite3.DatabaseError as error:
            raise Internal(
                f"{self._path}: {error}; restore it from a backup or move it away to start empty"
            ) from error
        return connection

    def _migrate(self) -> None:
        with self._told():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise Internal(
                f"{self._path} has schema version {version}, this dray knows {SCHEMA_VERSION}: start a newer dray"
            )
        # Reading has made SQLite create the log, whose descriptor `sync` needs.
        if version < SCHEMA_VERSION:  # else nothing is written: a daemon must start on a full disk, too
            with self._told():
                self._create()

    def _create(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say which file SQLite's errors are about, and what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError) and type(error) is not sqlite3.DatabaseError:
                raise  # a mistake of ours
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            advice = (
                "free some space and try again" if full else "look at the disk, or restore the file from a backup"
            )
            raise Internal(f"{self._path}: {error}: {advice}") from error

    def get(self, kind: str, key: str) -> bytes | None:
        """Return a document, or None."""
        with self._lock, self._told():
            row = self._connection.execute(
                "SELECT value FROM record WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
        return row[0] if row else None

    def scan(self, kind: str) -> list[tuple[str, bytes]]:
        """Return all (key, document) of a kind, by key."""
        with self._lock, self._told():
            return self._connection.execute(
                "SELECT key, value FROM record WHERE kind = ? ORDER BY key", (kind,)
            ).fetchall()

    def write(self, changes: Sequence[Change]) -> None:
        """Write all changes or none; they survive a killed process when this returns.

        On a full disk, what only changes and removes records takes the space that is kept for it.
        """
        with self._lock, self._told():
            while True:
                try:
                    self._commit(changes)
                    break
                except sqlite3.OperationalError as error:
                    full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
                    if not (full and self._makes_nothing(changes) and self._ballast.release()):
                        raise
            self._written += 1
            self._log_bytes += sum(_PAGE + len(value or b"") for _, _, value in changes)

    def _commit(self, changes: Sequence[Change]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for kind, key, value in changes:
                if value is None:
                    execute(_DELETE, (kind, key))
                else:
                    execute(_PUT, (kind, key, value))
            execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back itself (a full disk); a second ROLLBACK would hide the cause.
            with contextlib.suppress(sqlite3.OperationalError):
                execute("ROLLBACK")
            raise

    def _makes_nothing(self, changes: Sequence[Change]) -> bool:
        """Tell whether every change is about a record that is there."""
        query = "SELECT 1 FROM record WHERE kind = ? AND key = ?"
        return all(
            change.value is None or self._connection.execute(query, (change.kind, change.key)).fetchone()
            for change in changes
        )

    def sync(self) -> None:
        """Put everything written so far on disk; concurrent callers share one fdatasync."""
        wanted = self._written
        with self._sync_lock:
            if self._synced >= wanted:
                return
            covered = self._written
            os.fdatasync(self._wal)
            self._synced = covered
            with self._lock:
                self._ballast.refill()
            if self._log_bytes > _CHECKPOINT_BYTES:
                self._log_bytes = 0
                self._checkpoint.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Sync and close; the object is of no use afterwards. Closing twice is harmless."""
        if self._wal < 0:
            return
        self.sync()
        with self._lock, self._sync_lock:
            os.close(self._wal)
            self._wal = -1
            self._ballast.close()
            self._checkpoint.close()
            self._connection.close()
