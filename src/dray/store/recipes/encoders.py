"""The compressors whose output can be made again, and which of them made a stream.

    none    a plain tar
    zlib    raw deflate of the zlib library, levels 1 to 9, memory levels 8 and 9 (Python, Java, nginx…)
    gzip    the program gzip, whose deflate is not zlib's, levels 1 to 9
    zstd    the program zstd, levels 1 to 19

A gzip stream is kept as its header, as it is, and the parameters of the deflate stream; its trailer follows from the
data. Not made again, since neither a library nor a program on the machine does: Go's compress/gzip (dockerd, BuildKit,
containerd), klauspost's gzip and zstd (podman, skopeo, BuildKit), pigz, and igzip, whose output depends on how its
input is cut. Design note 028 has the figures.

`guess` compresses the beginning with each candidate and compares; whether a candidate is right only the digest of the
whole says. Another version of an encoder may give other bytes: `version` tells what was used.
"""

from __future__ import annotations

import bisect
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct, field

from dray.base.errors import Unavailable
from dray.store.layers.stream import detect

PROBE = 1 << 20  # bytes of plain data that candidates are tried on
_HEADER_LIMIT = 64 << 10
_CHUNK = 1 << 20
_SLICE = 128 << 10
_UNIX = 3
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Encoding(Struct, frozen=True, omit_defaults=True):
    """How a plain tar became the blob.

    name: of the encoder; level: its level; memory: zlib's memory level; options: a program's further arguments
    header: the gzip header, as stored
    version: of the library or program
    """

    name: str = "none"
    level: int = 0
    memory: int = 0
    options: list[str] = field(default_factory=list)
    header: bytes = b""
    version: str = ""

    @property
    def shown(self) -> str:
        """For people: `zlib 1.2.13, level 6`."""
        return f"{self.name} {self.version}, level {self.level}" if self.level else "none"


def header_of(head: bytes) -> bytes | None:
    """Return the gzip header that `head` begins with (RFC 1952), None if it does not end there."""
    if len(head) < 10 or head[2] != 8:
        return None
    flags, at = head[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            at = head.find(b"\0", at) + 1
            if at <= 0:
                return None
    at += 2 if flags & 2 else 0
    return head[:at] if at <= min(len(head), _HEADER_LIMIT) else None


def version_of(name: str) -> str:
    """Return the version of an encoder on this machine, "" if it is not there."""
    if name == "zlib":
        return zlib.ZLIB_RUNTIME_VERSION
    if name == "none":
        return ""
    try:
        told = subprocess.run([name, "--version"], env=_environment(), capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    words = told.split(b"\n")[0].replace(b",", b" ").replace(b"v", b"").split()
    return next((word.decode() for word in words if word[:1].isdigit() and b"." in word), "")


def _environment() -> dict[str, str]:
    return {"PATH": _PATH, "LC_ALL": "C"}  # no GZIP, ZSTD_CLEVEL and the like


def candidates(head: bytes, size: int) -> list[Encoding]:
    """Return what may have made a stream that begins with `head` of `size` plain bytes, likeliest first."""
    kind = detect(head)
    if not kind:
        return [Encoding()]
    if kind == "gzip" and (header := header_of(head)) is not None:
        return list(_gzip(header))
    if kind == "zstd" and head.startswith(b"\x28\xb5\x2f\xfd"):
        return list(_zstd(head, size))
    return []


def _gzip(header: bytes) -> Iterator[Encoding]:
    hinted = {2: (9,), 4: (1,)}.get(header[8], (6, 5, 7, 8, 4, 3, 2))
    levels = [*hinted, *(level for level in (6, 9, 1, 5, 7, 8, 4, 3, 2) if level not in hinted)]
    version = version_of("zlib")
    for memory in (8, 9):
        for level in levels:
            yield Encoding("zlib", level, memory, header=header, version=version)
    if header[9] == _UNIX and (version := version_of("gzip")):  # Go and Python write 255, Java 0
        for level in levels:
            yield Encoding("gzip", level, header=header, version=version)


def _zstd(head: bytes, size: int) -> Iterator[Encoding]:
    version = version_of("zstd")
    if not version:
        return
    flags = head[4]
    options = [] if flags & 4 else ["--no-check"]
    if flags >> 6 or flags & 32:
        options.append(f"--stream-size={size}")
    for level in (3, *range(1, 3), *range(4, 20)):
        for threads in ("-T1", "--single-thread"):
            yield Encoding("zstd", level, options=[*options, threads], version=version)


def probe(encoding: Encoding, plain: bytes, stream: bytes, *, whole: bool) -> int:
    """Tell how many bytes of `stream` speak for `encoding` having made it of `plain`; -1 if it has not.

    `plain` is the beginning of the data, or all of it (`whole`).
    """
    if encoding.name == "none":
        return 0
    if encoding.name == "zlib":
        return _probe_zlib(encoding, plain, stream, whole=whole)
    try:
        made = b"".join(encode(encoding if whole else _sizeless(encoding), iter([plain])))
    except Unavailable:
        return -1
    if whole:
        return len(made) if made == stream else -1
    # What the program makes of the last blocks depends on the end of the data; the frame's header on its size.
    if encoding.name == "zstd":
        made, stream = made[_frame_header(made) :], stream[_frame_header(stream) :]
    same = bisect.bisect_left(range(len(made)), True, key=lambda end: not stream.startswith(made[: end + 1]))
    return same if same > len(made) // 3 else -1


def _probe_zlib(encoding: Encoding, plain: bytes, stream: bytes, *, whole: bool) -> int:
    deflate = zlib.compressobj(encoding.level, zlib.DEFLATED, -zlib.MAX_WBITS, encoding.memory)
    at = len(encoding.header)
    for start in range(0, len(plain), _SLICE):  # most are found wrong by their first block
        made = deflate.compress(plain[start : start + _SLICE])
        if not stream.startswith(made, at):
            return -1
        at += len(made)
    return at if not whole or stream.startswith(deflate.flush(), at) else -1


def _sizeless(encoding: Encoding) -> Encoding:
    """Leave out what tells zstd the size of all the data: it chooses a smaller window for small ones."""
    return msgspec.structs.replace(
        encoding, options=[item for item in encoding.options if not item.startswith("--stream-size")]
    )


def _frame_header(frame: bytes) -> int:
    """Return the length of a zstd frame's header (RFC 8878, 3.1.1.1)."""
    flags = frame[4]
    single = bool(flags & 32)
    return (
        5 + (not single) + (0, 1, 2, 4)[flags & 3] + (1 if single and not flags >> 6 else (0, 2, 4, 8)[flags >> 6])
    )


def guess(head: bytes, plain: bytes, size: int) -> list[Encoding]:
    """Return the encodings that fit the beginnings of the stream and of its plain bytes, likeliest first; `size` is
    that of all plain bytes, where it is known."""
    found = []
    for encoding in candidates(head, size):
        score = probe(encoding, plain, head, whole=len(plain) == size)
        if score >= 0:
            found.append((score, encoding))
    found.sort(key=lambda item: -item[0])
    return [encoding for _, encoding in found]


def encode(encoding: Encoding, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Compress as `encoding` says; Unavailable if its program is not there or fails."""
    if encoding.name == "none":
        yield from chunks
    elif encoding.name == "zlib":
        yield from _deflate(encoding, chunks)
    elif encoding.name == "gzip":
        made = _program(["gzip", "-n", "-c", f"-{encoding.level}"], chunks)
        yield from _headed(encoding.header, made)
    else:
        yield from _program(["zstd", "-q", "-c", f"-{encoding.level}", *encoding.options], chunks)


def _deflate(encoding: Encoding, chunks: Iterator[bytes]) -> Iterator[bytes]:
    deflate = zlib.compressobj(encoding.level, zlib.DEFLATED, -zlib.MAX_WBITS, encoding.memory)
    crc = size = 0
    yield encoding.header
    for data in chunks:
        crc, size = zlib.crc32(data, crc), size + len(data)
        if made := deflate.compress(data):
            yield made
    yield deflate.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _headed(header: bytes, made: Iterator[bytes]) -> Iterator[bytes]:
    """Exchange the ten bytes of gzip's own header."""
    first = b""
    for data in made:
        first += data
        if len(first) > 10:
            break
    yield header + first[10:]
    yield from made


def _program(command: Sequence[str], chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what a program makes of `chunks`, which a thread gives to it."""
    try:
        process = subprocess.Popen(
            command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise Unavailable(
            f"the program {command[0]} is needed, as when the layer was unpacked: {error}"
        ) from error
    assert process.stdin is not None
    assert process.stdout is not None
    feeder = _Feeder(process.stdin, chunks)
    try:
        while data := process.stdout.read1(_CHUNK):  # type: ignore[attr-defined]
            yield data
        feeder.join()
        if feeder.error is not None:
            raise feeder.error
        if process.wait() != 0:
            raise Unavailable(f"the program {command[0]} failed with status {process.returncode}")
    finally:
        process.kill()
        feeder.join()
        process.stdout.close()
        process.wait()


class _Feeder(threading.Thread):
    """Writes chunks to a pipe and closes it; `error` is what went wrong with the chunks."""

    def __init__(self, pipe: object, chunks: Iterator[bytes]) -> None:
        super().__init__(name="encode", daemon=True)
        self._pipe = pipe
        self._chunks = chunks
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """See `Thread`."""
        try:
            with self._pipe as pipe:  # type: ignore[attr-defined]
                for data in self._chunks:
                    pipe.write(data)
        except BrokenPipeError:
            pass  # the program has ended, or nobody wants the rest
        except BaseException as error:
            self.error = error
