"""A large image of many layers for loads: text that compresses as programs do, and some that does not.

Deterministic: the bytes come from SHAKE-256 of the file's number.
"""

from __future__ import annotations

import hashlib

from images.archive import Entry, Image, folder, layer_tar


def content(number: int, size: int) -> bytes:
    """`size` bytes, about half of which compress well."""
    seed = hashlib.shake_256(b"layer %d" % number).digest(max(1, size // 4))
    words = b"".join(b"%08x: the quick brown fox\n" % (n * 2654435761 % 2**32) for n in range(size // 64))
    return (seed + words + seed[: size // 4])[:size].ljust(size, b"\n")


def bulk(
    base: bytes, *, layers: int = 20, files: int = 100, megabytes: int = 520, tag: str = "bulk:latest"
) -> Image:
    """`layers` layers over `base`, `megabytes` in all, each layer of `files` files."""
    each = megabytes * 1_000_000 // layers // files
    made = [base]
    for number in range(layers):
        block = content(number, each * 2)
        entries = [folder(f"bulk{number}/")]
        entries += [
            Entry(f"bulk{number}/file{n}", data=block[n * 37 : n * 37 + each], mode=0o644) for n in range(files)
        ]
        made.append(layer_tar(entries))
    return Image(made, {"Cmd": ["sh"]}, [tag])


def steps(base: bytes, *, layers: int = 59, tag: str = "steps:latest") -> Image:
    """`layers` small layers over `base`: four files of 1 to 40 KB each, as a long Dockerfile leaves them."""
    made = [base]
    for number in range(layers):
        block = content(1000 + number, 40_000)
        entries = [folder(f"step{number}/")]
        entries += [Entry(f"step{number}/file{n}", data=block[: 1_000 + 13_000 * n], mode=0o644) for n in range(4)]
        made.append(layer_tar(entries))
    return Image(made, {"Cmd": ["sh"], "Env": ["PATH=/bin"]}, [tag])
