"""The archives of the tests, made when missing and kept:

    /var/tmp/dray-test-cache/
     debs-NAME/           packages as apt fetched them
     NAME-RECIPE.tar      an archive; RECIPE is a digest of the code that made it

An archive is written under another name and renamed, so what is there is whole. `python -m images.cache` (with
`tests` on the path) makes them all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from images import archive, bulk, busybox, debian, stack
from images.archive import Image

_APART = ("cache.py", "hostile.py", "machine.py", "stack.py")

FOLDER = Path(os.environ.get("DRAY_TEST_CACHE", "/var/tmp/dray-test-cache"))


def _recipe(name: str) -> str:
    """The large image, which takes minutes to make, depends on its own module alone."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        if source.name == "stack.py" if name == "stack" else source.name not in _APART:
            digest.update(source.read_bytes())
    digest.update(str(busybox.binary().stat().st_size).encode())
    return digest.hexdigest()[:12]


def _made(name: str, images: Callable[[], Sequence[Image]], layout: str = "docker") -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{name}-{_recipe(name)}.tar"
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for old in FOLDER.glob(f"{name}-????????????.tar"):
                old.unlink()
            partial = target.with_suffix(".partial")
            if layout == "docker":
                archive.write_docker_archive(images(), partial)
            else:
                archive.write_oci_layout(images(), partial, compression=layout)
            partial.rename(target)
    return target


def busybox_archive() -> Path:
    """busybox:latest and the variants, a Docker archive."""
    return _made("busybox", lambda: busybox.variants(busybox.base_layer()))


def busybox_layout(compression: str = "gzip") -> Path:
    """One image, `layout:COMPRESSION`, as an OCI layout."""

    def images() -> list[Image]:
        base = busybox.variants(busybox.base_layer())[1]
        return [Image(base.layers, base.config, [f"docker.io/library/layout:{compression}"])]

    return _made(f"layout-{compression}", images, compression)


def nginx_archive() -> Path:
    """nginx:latest."""
    return _made("nginx", lambda: [debian.nginx(FOLDER / "debs-nginx")])


def mariadb_archive() -> Path:
    """mariadb:latest."""
    return _made("mariadb", lambda: [debian.mariadb(FOLDER / "debs-mariadb")])


def medium_archive() -> Path:
    """bulk:medium, 60 MB in 12 layers: long enough to be killed in the middle of a load."""
    return _made("medium", lambda: [bulk.bulk(busybox.base_layer(), layers=12, megabytes=60, tag="bulk:medium")])


def bulk_archive() -> Path:
    """bulk:latest, more than 500 MB in 21 layers."""
    return _made("bulk", lambda: [bulk.bulk(busybox.base_layer())])


def stack_layout() -> Path:
    """stack:latest, 1 GB of Debian packages in 12 layers, as an OCI layout (only the bench needs it)."""
    return _made("stack", lambda: [stack.stack(FOLDER / "debs-stack")], "gzip")


def steps_layout() -> Path:
    """steps:latest, 60 small layers, as an OCI layout."""
    return _made("steps", lambda: [bulk.steps(busybox.base_layer(), tag="docker.io/library/steps:latest")], "gzip")


def machine() -> Path:
    """A folder with the disk, kernel and initial RAM disk of the tests' virtual machine."""
    from images import machine as recipe

    checkout = Path(__file__).parents[2]
    digest = hashlib.sha256(Path(recipe.__file__).read_bytes())
    for source in [checkout / "pyproject.toml", *sorted((checkout / "src/dray").rglob("*.py"))]:
        digest.update(source.read_bytes())
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"machine-{digest.hexdigest()[:12]}"
    with (FOLDER / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for old in FOLDER.glob("machine-????????????"):
                shutil.rmtree(old)
            partial = FOLDER / "machine.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            recipe.make(partial, FOLDER / "debs-machine", checkout)
            partial.rename(target)
    return target


if __name__ == "__main__":
    for make in (busybox_archive, busybox_layout, nginx_archive, medium_archive, bulk_archive):
        print(make())
