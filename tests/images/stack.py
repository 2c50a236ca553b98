"""A large image as Debian's packages make it: twelve layers, 1 GB, documentation and all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from images.archive import Image
from images.busybox import PATH
from images.debian import closure, names, tree_tar, unpack

# A layer has what its group needs and no layer below has.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("bash", "dash", "coreutils", "procps"),
    ("perl", "openssl", "ca-certificates"),
    ("python3",),
    ("git",),
    ("gcc-12",),
    ("g++-12", "make"),
    ("golang-1.19-src",),
    ("libboost1.74-dev",),
    ("python3-numpy",),
    ("python3-sympy",),
    ("vim-runtime", "ruby3.1"),
    ("php8.2-cli", "nginx"),
)


def stack(downloads: Path) -> Image:
    """stack:latest."""
    closure([name for group in GROUPS for name in group], downloads)
    layers: list[bytes] = []
    known: set[str] = set()
    for number in range(len(GROUPS)):
        needed = names([name for group in GROUPS[: number + 1] for name in group], downloads)
        new = [name for name in needed if name not in known]
        known.update(new)
        layers.append(_layer([next(downloads.glob(f"{name}_*.deb")) for name in sorted(new)], downloads, number))
    return Image(layers, {"Env": [PATH], "Cmd": ["bash"]}, ["docker.io/library/stack:latest"])


def _layer(debs: list[Path], downloads: Path, number: int) -> bytes:
    with tempfile.TemporaryDirectory(dir=downloads.parent) as folder:
        root = Path(folder)
        root.chmod(0o755)
        unpack(debs, root)
        if number == 0:
            for path in ("root", "tmp", "proc", "sys", "dev"):
                (root / path).mkdir(exist_ok=True)
            (root / "tmp").chmod(0o1777)
            (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
        return tree_tar(root)
