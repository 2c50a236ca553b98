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
import stat
import threading
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 100


def remove_at(parent: int, base: bytes, *, lift: int = -1, depth: int = 0) -> None:
    """Remove the tree `base` of the directory `parent`, following nothing.

    lift: a directory on the same file system that receives what lies deeper than can be walked (else RecursionError)
    """
    try:
        fd = os.open(base, _DIRECTORY, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(base, dir_fd=parent)
        return
    try:
        with os.scandir(fd) as entries:
            for entry in list(entries):
                name = os.fsencode(entry.name)
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(name, dir_fd=fd)
                elif depth >= _DEEP and lift >= 0:
                    os.rename(name, secrets.token_hex(8), src_dir_fd=fd, dst_dir_fd=lift)
                else:
                    remove_at(fd, name, lift=lift, depth=depth + 1)
    finally:
        os.close(fd)
    os.rmdir(base, dir_fd=parent)


def remove_path(path: str | os.PathLike[str]) -> None:
    """Remove the tree at `path` at once; one that is gone is no error."""
    folder = Path(path)
    lift = os.open(folder.parent, _DIRECTORY)
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_at(lift, os.fsencode(folder.name))
    finally:
        os.close(lift)


class Trash:
    """One trash directory and the thread that empties it, started when first needed. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._queue: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
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
        self._wake(done)
        done.wait()

    def close(self) -> None:
        """Stop the thread after what it is deleting now; the rest goes at next start."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread:
            self._queue.put(None)
            thread.join()

    _ALREADY = threading.Event()

    def _wake(self, done: threading.Event | None = None) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trash", daemon=True)
                self._thread.start()
        self._queue.put(done or self._ALREADY)

    def _run(self) -> None:
        while (done := self._queue.get()) is not None:
            lift = os.open(self._folder, _DIRECTORY)
            try:
                while names := os.listdir(lift):
                    before = len(names)
                    for name in names:
                        with contextlib.suppress(OSError):
                            remove_at(lift, os.fsencode(name), lift=lift)
                    if set(os.listdir(lift)) >= set(names) and before:
                        break  # nothing of it can be removed (an immutable file, a mount): again at next start
            finally:
                os.close(lift)
            done.set()


def tree_usage(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (apparent bytes of files, inodes) of a tree, every hard-linked file counted once."""
    seen: set[tuple[int, int]] = set()
    size = inodes = 0
    waiting = [os.fspath(path)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                inodes += 1
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size, inodes
