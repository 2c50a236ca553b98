"""Small file systems on loop devices."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def disk(folder: Path, *maker: str, size: int) -> Iterator[Path]:
    """A file system of `size` bytes made by `maker` (a command line), mounted below `folder` while in use."""
    image, place = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*maker, str(image)], check=True, capture_output=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        image.unlink()
