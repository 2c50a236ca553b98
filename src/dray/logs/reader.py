"""Reading a container's log across its rotated files, to the end or as it grows.

`read` is a plain generator. Files are opened together and read through their descriptors, so that a rotation in
the meantime takes nothing away; a compressed one is first unpacked into an unnamed file. When following, inotify
tells of growth, of rotations and of the end: the container is over when `exit.json` stands in its state directory,
which the shim writes when the log is complete.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import tempfile
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from dray.linux import libc
from dray.logs.model import Batch, LogFormat, Selection

_CHUNK = 1 << 20
_EXIT = "exit.json"
_EVENT = struct.Struct("iIII")
_ATTEMPTS = 20

Waiter = Callable[[int], bool]


class Source(Protocol):
    """Where the log is: what `read` needs of a driver."""

    def __call__(self, fd: int, /) -> LogFormat:
        """Return the format of one open file."""


def wait(inotify: int) -> bool:
    """The default waiter of `read`: wait until the descriptor is readable; True to go on."""
    poll = select.poll()
    poll.register(inotify, select.POLLIN)
    poll.poll()
    return True


def read(
    source: Source,
    path: str,
    selection: Selection,
    *,
    follow: str | None = None,
    waiter: Waiter = wait,
    opened: Callable[[], object] = bool,
) -> Generator[list[Batch], None, None]:
    """Yield the selected records, oldest first, some at a time.

    follow: the container's state directory: go on until its exit.json is there (None: read what there is)
    opened: called once the files are open: from here on their removal takes nothing away
    waiter: waits for a descriptor to become readable and returns whether to go on (a client may be gone)
    """
    watch = _Watch(path, follow) if follow is not None else None
    files: list[int] = []
    try:
        files = _open_files(path) if watch is None else watch.open_files()
        opened()
        chosen = _Chosen(selection)
        offset, skip, first = 0, 0, 0
        if selection.tail is not None:
            first, offset, skip = _find_tail(source, files, selection.tail)
        for index in range(first, len(files)):
            fd = files[index]
            position = offset if index == first else 0
            batches = _read_file(source(fd), fd, position)
            last = index == len(files) - 1
            if last and watch is not None:
                files[index] = -1
                batches = _follow(source, watch, fd, position, waiter)
            for found in batches:
                if skip:
                    found, skip = _skip(found, skip)  # noqa: PLW2901
                wanted = chosen(found)
                if wanted:
                    yield wanted
                if chosen.over:
                    return
    finally:
        for fd in files:
            if fd >= 0:
                os.close(fd)
        if watch is not None:
            watch.close()


class _Chosen:
    """Applies a selection; `over` once nothing more can come."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.over = False

    def __call__(self, batches: list[Batch]) -> list[Batch]:
        want = self._selection
        found = []
        for batch in batches:
            if want.until and batch.time > want.until:
                self.over = True
                break
            if batch.time >= want.since and (want.stdout if batch.stream == "stdout" else want.stderr):
                found.append(batch)
        return found


def _skip(batches: list[Batch], count: int) -> tuple[list[Batch], int]:
    kept = []
    for batch in batches:
        if count >= len(batch.lines):
            count -= len(batch.lines)
        else:
            kept.append(batch._replace(lines=batch.lines[count:]) if count else batch)
            count = 0
    return kept, count


def _open_files(path: str) -> list[int]:
    """Open the log's files, oldest first, as they were at one moment. No file is an empty list."""
    for _ in range(_ATTEMPTS):
        files: list[int] = []
        try:
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            number = 1
            while (fd := _open_rotated(f"{path}.{number}")) is not None:
                files.append(fd)
                number += 1
            if _same(files[0], path):
                return files[::-1]
        except FileNotFoundError:
            pass  # between the renaming and the creation of a new file, or no log at all
        for fd in files:
            os.close(fd)
    return []


def _same(fd: int, path: str) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(path))


def _open_rotated(path: str) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        return _unpacked(path + ".gz")
    # The compressor puts the packed file there before it takes the plain one away.
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _unpacked(path: str) -> int:
    from isal import isal_zlib

    with open(path, "rb") as packed, tempfile.TemporaryFile(dir=os.path.dirname(path)) as plain:
        inflate = isal_zlib.decompressobj(wbits=31)
        while data := packed.read(_CHUNK):
            plain.write(inflate.decompress(data))
        plain.flush()
        return os.dup(plain.fileno())


def _find_tail(source: Source, files: list[int], count: int) -> tuple[int, int, int]:
    """Return (file, offset, records to skip) of the last `count` records."""
    if not files:
        return 0, 0, 0
    if count <= 0:
        return len(files) - 1, os.fstat(files[-1]).st_size, 0
    offset = skip = 0
    for index in range(len(files) - 1, -1, -1):
        fd = files[index]
        offset, skip, found = source(fd).tail(fd, os.fstat(fd).st_size, count)
        if found >= count:
            return index, offset, skip
        count -= found
    return 0, 0, 0


def _read_file(form: LogFormat, fd: int, position: int) -> Iterator[list[Batch]]:
    """Yield what the file holds from `position` on."""
    reading = _Reading(form, fd, position)
    while batches := reading.some():
        yield batches


class _Reading:
    """A file and how far it is read."""

    def __init__(self, form: LogFormat, fd: int, position: int) -> None:
        self._form = form
        self.fd = fd
        self._position = position
        self._chunk = _CHUNK

    def some(self) -> list[Batch]:
        """Return the next records, [] if there is no whole one (yet)."""
        while True:
            data = os.pread(self.fd, self._chunk, self._position)
            if not data:
                return []
            batches, taken = self._form.parse(data)
            self._position += taken
            if batches:
                self._chunk = _CHUNK
                return batches
            if not taken:
                if len(data) < self._chunk:
                    return []
                self._chunk *= 2  # one record longer than the chunk


def _follow(source: Source, watch: _Watch, fd: int, position: int, waiter: Waiter) -> Iterator[list[Batch]]:
    """Yield what the newest file holds and what comes, through rotations; owns `fd`."""
    reading = _Reading(source(fd), fd, position)
    try:
        while True:
            over = watch.ended()  # asked before reading: what is there now is everything
            rotations = watch.rotations
            while batches := reading.some():
                yield batches
            if rotations:
                watch.rotations -= 1
                following = _newer(watch, rotations - 1)
                if following is not None:
                    os.close(reading.fd)
                    reading = _Reading(source(following), following, 0)
                continue
            if over:
                return
            if not waiter(watch.fd):
                return
            watch.take()
    finally:
        os.close(reading.fd)


def _newer(watch: _Watch, number: int) -> int | None:
    """Open the file that was rotated `number` times; where rotation has thrown it away, None."""
    if number:
        return _open_rotated(f"{watch.path}.{number}")
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return os.open(watch.path, os.O_RDONLY | os.O_CLOEXEC)
        select.select([], [], [], 0.01)
    return None


class _Watch:
    """inotify on the log's directory and on the state directory; owns the descriptor."""

    def __init__(self, path: str, state_dir: str) -> None:
        self.path = path
        self.rotations = 0
        self._ended = False
        self._name = os.path.basename(path).encode()
        # By descriptor: the directory may be moved away and deleted while we follow.
        self._directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mask = libc.IN_MODIFY | libc.IN_CREATE | libc.IN_MOVED_TO | libc.IN_MOVE_SELF
            for directory in {os.path.dirname(path) or ".", state_dir}:
                libc.inotify_add_watch(self.fd, directory, mask)
        except BaseException:
            self.close()
            raise

    def open_files(self) -> list[int]:
        """Open the log's files and count rotations from exactly then on."""
        while True:
            files = _open_files(self.path)
            if not files:  # the shim has not opened it yet: it will find it there
                files = [os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)]
            self.take()
            self.rotations = 0
            with contextlib.suppress(FileNotFoundError):
                if _same(files[-1], self.path):
                    return files
            for fd in files:
                os.close(fd)

    def take(self) -> None:
        """Take the events that have come."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size
            name = data[position : position + length].rstrip(b"\0")
            position += length
            if mask & libc.IN_CREATE and name == self._name:
                self.rotations += 1
            if name == _EXIT.encode() and mask & libc.IN_MOVED_TO:
                self._ended = True
            if mask & libc.IN_MOVE_SELF:  # the directory goes to the trash: the container has been removed
                self._ended = True

    def ended(self) -> bool:
        """Whether the run that is followed is over: said so, or the container has been removed."""
        self.take()
        return self._ended or os.access(_EXIT, os.F_OK, dir_fd=self._directory)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.fd)
        os.close(self._directory)
