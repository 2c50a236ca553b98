"""The EROFS storage driver: overlay2 whose layers are images that the kernel mounts, not directories of files.

    <root>/                       0700
        <folder>/layer.erofs      a layer: its tar with an index behind it (see `image`)
        <folder>/diff/, work/     what a container has written, as in overlay2; diff/ alone: a layer made by `commit`
        trash/                    see `trash`

A layer is mounted once, when it is first needed, detached: the mount is a descriptor of this process, which holds it
until the layer is removed or the process ends. Overlays name it `/proc/<pid>/fd/<number>`; each holds what it was made
of by itself, so containers outlive the daemon, all that run on a layer share its page cache, and no mount is left
behind. A descriptor is never closed while a snapshot stands on its layer, so its number means nothing else.

Needs Linux 6.15 (overlayfs takes detached mounts as layers; 6.12 for EROFS in files).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence

from dray.base.errors import Unsupported
from dray.base.records import Records
from dray.linux import libc
from dray.store.erofs.indexing import IMAGE, Indexed, adopt, check_image, index_layer, mounted
from dray.store.erofs.worker import index_in_process
from dray.store.layers.extract import Applied
from dray.store.layers.worker import LARGE
from dray.store.overlay import Overlay
from dray.store.snapshots import LayerRecord, LayerSource


def probe(root: str | os.PathLike[str]) -> None:
    """Refuse a kernel that cannot mount what this driver writes below `root`; Unsupported, with the reason.

    An image and an overlay over it are mounted there, detached: nothing of them is left, whatever happens.
    """
    with contextlib.ExitStack() as scope:
        place = scope.enter_context(tempfile.TemporaryDirectory(prefix="erofs-", dir=root))
        for name in ("upper", "work"):
            os.mkdir(f"{place}/{name}")
        try:
            layer = check_image(place)
            scope.callback(os.close, layer)
            context = libc.fsopen("overlay")
            scope.callback(os.close, context)
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir", f"/proc/self/fd/{layer}")
            for name in ("upper", "work"):
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, f"{name}dir", f"{place}/{name}")
            libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
            os.close(libc.fsmount(context))
        except OSError as error:
            raise Unsupported(
                f"storage driver erofs: layers cannot be mounted in {root}: {error} (it needs Linux 6.15 with "
                "CONFIG_EROFS_FS_BACKED_BY_FILE; overlay2 works on older ones)"
            ) from error


class Erofs(Overlay):
    """`snapshots.Snapshots` over EROFS images and overlayfs; Unsupported where the kernel cannot mount them."""

    name = "erofs"

    def __init__(self, root: str | os.PathLike[str], records: Records) -> None:
        os.makedirs(root, mode=0o700, exist_ok=True)
        probe(root)
        super().__init__(root, records)
        self._mounts: dict[str, int] = {}
        self._mounting = threading.Lock()

    def close(self) -> None:
        """See `drivers.Driver`."""
        super().close()
        with self._mounting:
            while self._mounts:
                os.close(self._mounts.popitem()[1])

    def _layer(self, layer: LayerRecord) -> str:
        folder = f"{self._root}/{layer.folder}"
        mount = self._mounts.get(layer.folder)
        if mount is None:
            if not os.path.exists(f"{folder}/{IMAGE}"):
                return f"{folder}/diff"
            with self._mounting:
                mount = self._mounts.get(layer.folder)
                if mount is None:
                    mount = self._mounts[layer.folder] = mounted(folder)
        return f"/proc/{os.getpid()}/fd/{mount}/."  # `.`, for those who follow no link

    def _mountable(self, layer: LayerRecord) -> str:
        return self._layer(layer).removesuffix("/.")

    def _link(self, name: str) -> None:
        """Mounts have short names already."""

    def _discard(self, name: str) -> None:
        with self._mounting:
            mount = self._mounts.pop(name, None)
        if mount is not None:
            os.close(mount)
        super()._discard(name)

    def _extract(
        self, layer: LayerSource, folder: str, lower: Sequence[str] | None, tell: Callable[[int], None]
    ) -> Applied:
        if lower is None and layer.size >= LARGE:
            return index_in_process(layer, folder, tell=tell)
        return index_layer(layer, folder, lower=lower, tell=tell)

    def _adopt(self, folder: str, applied: Applied, below: list[str]) -> None:
        assert isinstance(applied, Indexed)
        adopt(folder, applied, below)
