"""Removal that does not keep anybody waiting: rename into a trash directory, delete in the background.

    <trash>/<random>     a tree on its way out; what a crash leaves here goes at next start

A tree made by a stranger may be deeper than a path can be long or the interpreter's stack can hold, so deletion
goes by directory descriptors, and lifts whatever lies too deep into the trash directory itself.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from dray.linux.trees import remove_at

# Removes what `name` is in the directory `trash` (a descriptor, which may take what lies too deep); OSError.
Remover = Callable[[int, bytes], None]


def remove_entry(trash: int, name: bytes) -> None:
    """Remove a tree of plain files."""
    remove_at(trash, name, lift=trash)


class Trash:
    """One trash directory and the thread that empties it, started when first needed. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str], *, remover: Remover = remove_entry) -> None:
        self._folder = Path(folder)
        self._remover = remover
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if any(self._folder.iterdir()):
            self._wake()

    def throw(self, path: str | os.PathLike[str]) -> None:
        """Take the tree at `path` away at once; FileNotFoundError if there is none."""
        os.rename(path, self._folder / secrets.token_hex(8))
        self._wake()

    def empty(self) -> None:
        """Wait until everything thrown away so far is deleted."""
        done = threading.Event()
        self._wake()
        self.later(done.set)
        done.wait()

    def later(self, job: Callable[[], None]) -> None:
        """Run something in the background, after what was thrown away so far is deleted."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trash", daemon=True)
                self._thread.start()
        self._queue.put(job)

    def close(self) -> None:
        """Stop the thread after what it is deleting now; the rest goes at next start."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread:
            self._queue.put(None)
            thread.join()

    def _wake(self) -> None:
        self.later(self._delete)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _delete(self) -> None:
        lift = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while names := os.listdir(lift):
                for name in names:
                    with contextlib.suppress(OSError):
                        self._remover(lift, os.fsencode(name))
                if set(os.listdir(lift)) >= set(names):
                    break  # nothing of it can be removed (an immutable file, a mount): again at next start
        finally:
            os.close(lift)
