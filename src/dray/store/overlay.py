"""The overlay2 storage driver: a layer is a directory, a container one more on top of them.

    <root>/                       0700: nobody else can walk into any layer (CVE-2021-41091)
        <folder>/diff/            a layer's files, or what a container has written
        <folder>/work/            overlayfs's own (active snapshots only)
        <folder>/                 a blank, made ahead: making directories is what takes time in `prepare`
        l/<folder>                -> ../<folder>/diff, short names for mount options
        trash/                    see `trash`

The root of a mounted overlay shows the attributes of its highest directory, so a container's `diff` takes those of
the layer below. Mounts are only described here (`runtime.model.Mount`) and made in the container's own mount
namespace. Layers of one image are unpacked in parallel, see `layers.extract` for what has to be done in order.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dray.base.errors import Conflict, InvalidParameter, NotFound, Unsupported
from dray.base.records import Records
from dray.linux import libc, privileges, quotas
from dray.linux.trees import copy_xattrs, remove_path, tree_usage
from dray.runtime.model import Mount
from dray.store.layers.extract import Applied, NeedsLower
from dray.store.layers.lower import LowerLayers, adopt
from dray.store.layers.unpack import unpack_layer
from dray.store.layers.worker import LARGE, unpack_in_process
from dray.store.ledger import Ledger
from dray.store.snapshots import Change, Info, LayerRecord, LayerSource, Progress, SnapshotRecord, Usage, check_key

_ROOT_MODE = 0o755  # of a file system that no layer says anything about, whatever the umask is
_SPARES = 8
_XFS = 0x58465342
_MOST_LAYERS = (
    499  # the kernel stacks 500 directories (OVL_MAX_STACK); a look at a container needs one for its own
)
_PAUSE = 0.005  # seconds: whoever has just got a snapshot goes on undisturbed
_PARAMETERS = Path("/sys/module/overlay/parameters")


def _fixed_options() -> tuple[str, ...]:
    """Turn off what would make the upper directory more than a plain record of changes, where a kernel has it on."""
    options = []
    for name in ("index", "metacopy", "redirect_dir"):
        with contextlib.suppress(OSError):
            if (_PARAMETERS / name).read_text().strip() == "Y":
                options.append(f"{name}=off")
    return tuple(options)


def _has_sys_resource() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective & privileges.mask(["CAP_SYS_RESOURCE"]))


def probe(root: str | os.PathLike[str]) -> None:
    """Refuse a place whose file system the kernel's overlayfs cannot write to; Unsupported, with the reason.

    An overlay is made there, detached: nothing of it is left, whatever happens.
    """
    with tempfile.TemporaryDirectory(prefix="overlay-", dir=root) as place:
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{place}/{name}")
        context = -1
        try:
            context = libc.fsopen("overlay")
            for name in ("lower", "upper", "work"):
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, f"{name}dir", f"{place}/{name}")
            libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
            mounted = libc.fsmount(context)
            try:
                with open(f"/proc/self/fd/{mounted}/file", "xb"):
                    pass
            finally:
                os.close(mounted)
        except OSError as error:
            raise Unsupported(f"storage driver overlay2: overlayfs cannot be used in {root}: {error}") from error
        finally:
            if context >= 0:
                os.close(context)


class Overlay:
    """`snapshots.Snapshots` over overlayfs."""

    name = "overlay2"
    mount_type = "overlay"
    marks_are_files = False  # whether opaque directories of an upper directory are marked by files in them

    def __init__(self, root: str | os.PathLike[str], records: Records) -> None:
        self._root = Path(root).absolute()
        if set(":,\\") & set(str(self._root)):
            raise InvalidParameter(
                f"{self._root}: overlay2 needs a data root without ':', ',' and backslash in it"
            )
        self._ledger = Ledger(self._root, records, self.name, own=("l",))
        self._links = self._root / "l"
        self._links.mkdir(mode=0o700, exist_ok=True)
        known = self._ledger.folders()
        for name in os.listdir(self._links):
            if name not in known:
                os.unlink(self._links / name)
        self._options = _fixed_options()
        self._spares: deque[str] = deque()
        self._unpacking = threading.Lock()

    def close(self) -> None:
        """Stop background work."""
        self._ledger.close()

    def settle(self) -> None:
        """Make unpacked layers durable (see `ledger`)."""
        self._ledger.settle()

    def empty_trash(self) -> None:
        """Wait until what was removed is deleted."""
        self._ledger.trash.empty()

    # --- active snapshots

    def prepare(self, key: str, parent: str | None, *, read_only: bool = False) -> list[Mount]:
        """See `Snapshots`."""
        check_key(key)
        if key in self._ledger.snapshots:
            raise Conflict(f"snapshot {key} already exists")
        lower = self._ledger.chain(parent)
        try:
            name = self._spares.popleft()
        except IndexError:
            name = self._blank()
        record = SnapshotRecord(name, parent, read_only)
        try:
            self._shape(name, lower)
            self._ledger.add_snapshot(key, record)
        except BaseException:
            self._discard(record.folder)
            raise
        self._ledger.trash.later(self._refill)
        return self._describe(record)

    def _blank(self) -> str:
        """Make the directories of a snapshot that is not anybody's yet."""
        name = self._ledger.folder()
        folder = f"{self._root}/{name}"
        for path, mode in ((folder, 0o700), (folder + "/diff", _ROOT_MODE), (folder + "/work", 0o700)):
            os.mkdir(path, mode)
        return name

    def _refill(self) -> None:
        """Keep a few blanks, made while nobody waits. A crash leaves them to the next start, which removes them."""
        time.sleep(_PAUSE)
        while len(self._spares) < _SPARES:
            try:
                self._spares.append(self._blank())
            except OSError:
                return  # a full disk is reported to whoever asks for a snapshot

    def _shape(self, name: str, lower: Sequence[LayerRecord]) -> None:
        """Give a snapshot's `diff` the attributes of the root that its mount is to show: those of the layer below."""
        diff = f"{self._root}/{name}/diff"
        if not lower:
            os.chmod(diff, _ROOT_MODE)
            return
        model = self._layer(lower[0])
        status = os.stat(model)
        if status.st_uid or status.st_gid:
            os.chown(diff, status.st_uid, status.st_gid)
        os.chmod(diff, stat.S_IMODE(status.st_mode))
        copy_xattrs(os.fsencode(model), os.fsencode(diff))

    def _layer(self, layer: LayerRecord) -> str:
        """Return the directory that shows the files of a layer."""
        return f"{self._root}/{layer.folder}/diff"

    def _mountable(self, layer: LayerRecord) -> str:
        """Return a short name of the same directory, for mount options."""
        return f"{self._links}/{layer.folder}"

    def _link(self, name: str) -> None:
        """Give a layer its short name."""
        os.symlink(f"../{name}/diff", f"{self._links}/{name}")

    def _discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._links / name)
        with contextlib.suppress(FileNotFoundError):
            self._ledger.trash.throw(self._root / name)

    def mounts(self, key: str) -> list[Mount]:
        """See `Snapshots`."""
        record = self._ledger.snapshots.get(key)
        if record is not None:
            return self._describe(record)
        top = self._ledger.layer(key)
        return self._read_only(self._layer(top), [] if top.cut else self._ledger.chain(top.parent))

    def _read_only(self, top: str, below: Sequence[LayerRecord]) -> list[Mount]:
        if not below:
            return [Mount("bind", top, ("rbind", "ro"))]
        lower = ":".join([top, *map(self._mountable, below)])
        return [Mount(self.mount_type, self.mount_type, (f"lowerdir={lower}", *self._options, "ro"))]

    def _describe(self, record: SnapshotRecord) -> list[Mount]:
        layers = self._ledger.chain(record.parent)
        diff, work = f"{self._root}/{record.folder}/diff", f"{self._root}/{record.folder}/work"
        if record.read_only:
            return self._read_only(diff, layers)
        if not layers:
            return [Mount("bind", diff, ("rbind", "rw"))]
        lower = [self._mountable(layer) for layer in layers]
        if not os.path.isdir(work):
            self._restore(record)
        options = (f"lowerdir={':'.join(lower)}", f"upperdir={diff}", f"workdir={work}", *self._options)
        return [Mount(self.mount_type, self.mount_type, options)]

    def _restore(self, record: SnapshotRecord) -> None:
        """Make the directories of a snapshot again that a power loss took before they were on disk."""
        folder = self._root / record.folder
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "work").mkdir(mode=0o700, exist_ok=True)
        if not (folder / "diff").is_dir():
            (folder / "diff").mkdir(mode=_ROOT_MODE)
            self._shape(record.folder, self._ledger.chain(record.parent))

    def upper(self, key: str) -> Path:
        """See `Snapshots`."""
        record = self._ledger.snapshots.get(key)
        return self._root / record.folder / "diff" if record else Path(self._layer(self._ledger.layer(key)))

    def limit(self, key: str, size: int) -> None:
        """Let an active snapshot that nothing has written to hold `size` bytes: a project quota on what overlayfs
        writes to. Unsupported where the file system keeps to none. On ext4 a writer with CAP_SYS_RESOURCE is held by
        no quota, and overlayfs writes with the rights of whoever mounted it: ours."""
        bound = libc.statfs(self._root).type == _XFS or not _has_sys_resource()
        if not bound or not quotas.is_enforced(self._root):
            raise Unsupported("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
        own = self.upper(key)
        taken = {quotas.project_of(f"{self._root}/{one.folder}/diff") for one in self._ledger.snapshots.values()}
        project = quotas.free_project(taken, first=quotas.CONTAINERS)
        for path in (own, own.parent / "work"):  # one project: overlayfs renames from one to the other
            quotas.limit(path, project, size)

    def resize(self, key: str, size: int) -> None:
        """See `SizedSnapshots`."""
        quotas.resize(self.upper(key), size)

    # --- layers

    def unpack(self, layers: Sequence[LayerSource], progress: Progress | None = None) -> None:
        """See `Snapshots`. One image at a time: its layers already use every processor."""
        with self._unpacking:
            missing = [layer for layer in layers if layer.chain_id not in self._ledger.layers]
            if not missing:
                return
            self._check_depth(missing)
            folders = {layer.chain_id: self._ledger.folder() for layer in missing}
            try:
                self._unpack(missing, folders, progress)
            except BaseException:
                for chain_id, name in folders.items():
                    if chain_id not in self._ledger.layers:
                        self._discard(name)
                raise
        self._ledger.settle_later()

    def _check_depth(self, missing: Sequence[LayerSource]) -> None:
        """Refuse more layers than can be mounted, before any is unpacked; InvalidParameter."""
        new = {layer.chain_id: layer.parent for layer in missing}
        for chain_id in new:
            depth, below = 0, chain_id
            while below in new and new[below] is not None:
                depth, below = depth + 1, new[below] or ""
            depth += 1 if below in new else len(self._ledger.chain(below))
            if depth > _MOST_LAYERS:
                raise InvalidParameter(
                    f"the image has {depth} layers or more: storage driver {self.name} can stack {_MOST_LAYERS} "
                    "(use --storage-driver vfs, or an image with fewer layers)"
                )

    def _unpack(self, missing: list[LayerSource], folders: dict[str, str], progress: Progress | None) -> None:
        def one(layer: LayerSource, lower: Sequence[str] | None = None) -> Applied | None:
            folder = f"{self._root}/{folders[layer.chain_id]}"
            os.mkdir(folder, 0o700)

            def tell(done: int) -> None:
                if progress:
                    progress(layer.chain_id, done, layer.size)

            try:
                return self._extract(layer, folder, lower, tell)
            except NeedsLower:
                remove_path(folder)
                return None

        if len(missing) == 1:
            results = [one(missing[0])]
        else:
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, 8), "unpack") as pool:
                futures = [pool.submit(one, layer) for layer in missing]
                try:
                    results = [future.result() for future in futures]
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        for layer, result in zip(missing, results, strict=True):
            below = [self._layer(record) for record in self._ledger.chain(layer.parent)]
            folder = folders[layer.chain_id]
            applied = result or one(layer, below)
            assert applied is not None
            try:
                self._adopt(f"{self._root}/{folder}", applied, below)
            except NeedsLower:
                remove_path(self._root / folder)
                applied = one(layer, below)
                assert applied is not None
            self._enter(layer, folder, applied)

    def _extract(
        self, layer: LayerSource, folder: str, lower: Sequence[str] | None, tell: Callable[[int], None]
    ) -> Applied:
        """Make a layer's files in its `folder`; NeedsLower without the directories below, `lower`, if it needs them."""
        diff = folder + "/diff"
        os.mkdir(diff, _ROOT_MODE)
        os.chmod(diff, _ROOT_MODE)
        if lower is None and layer.size >= LARGE:
            return unpack_in_process(layer, diff, overlay=True, tell=tell)
        below = None if lower is None else LowerLayers(lower)
        return unpack_layer(layer, diff, overlay=True, lower=below, tell=tell)

    def _adopt(self, folder: str, applied: Applied, below: list[str]) -> None:
        """Give a layer what it takes from those below. NeedsLower to have it made again, with them."""
        adopt(folder + "/diff", applied, below)

    def _enter(self, layer: LayerSource, folder: str, applied: Applied) -> None:
        """Let a layer be known that is complete."""
        record = LayerRecord(
            folder, layer.diff_id, layer.parent, applied.size, applied.inodes, cut=applied.opaque_root
        )  # fmt: skip
        self._link(folder)
        if not self._ledger.add_layer(layer.chain_id, record):
            self._discard(folder)

    def commit(self, key: str, chain_id: str, diff_id: str) -> None:
        """See `Snapshots`."""
        snapshot = self._ledger.snapshots.get(key)
        if snapshot is None:
            raise NotFound(f"snapshot {key} does not exist: not found")
        size, inodes = tree_usage(self._root / snapshot.folder / "diff")
        record = LayerRecord(snapshot.folder, diff_id, snapshot.parent, size, inodes)
        self._link(snapshot.folder)
        if not self._ledger.add_layer(chain_id, record, instead_of=key):
            self.remove(key)
            return
        with contextlib.suppress(FileNotFoundError):
            self._ledger.trash.throw(self._root / snapshot.folder / "work")
        self._ledger.settle_later()

    def remove(self, key: str) -> None:
        """See `Snapshots`."""
        folder = self._ledger.drop(key)
        quotas.unlimit_quietly(f"{self._root}/{folder}/diff")
        self._discard(folder)

    # --- what is there

    def exists(self, key: str) -> bool:
        """See `Snapshots`."""
        return key in self._ledger.snapshots or key in self._ledger.layers

    def usage(self, key: str) -> Usage:
        """See `Snapshots`."""
        layer = self._ledger.layers.get(key)
        if layer is not None:
            return Usage(layer.size, layer.inodes)
        return Usage(*tree_usage(self.upper(key)))

    def changes(self, key: str) -> list[Change]:
        """See `Snapshots`."""
        from dray.store.layers.diff import overlay_changes

        lower = [self._layer(layer) for layer in self._ledger.chain(self._ledger.parent(key))]
        own = self._ledger.layers.get(key)
        upper = self.upper(key) if own is None else self._layer(own)
        return overlay_changes(upper, lower, marks_are_files=self.marks_are_files)

    def list(self) -> list[Info]:
        """See `Snapshots`."""
        return self._ledger.list()
