"""`cp`'s rules: what a source and a destination come to, and unpacking an archive on this host safely.

A directory is copied under the destination when that is a directory (or, with `/.` behind the source, its content
is); else it becomes the destination. A file replaces a file or goes into a directory. Paths are those of docker cp.

Unpacking trusts nothing in the archive: names with `..` are refused, and no entry is written through a symbolic
link that the archive itself brought.
"""

from __future__ import annotations

import os
import stat
import tarfile

from dray.base.errors import InvalidParameter
from dray.cli.command import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

GO_DIR, GO_LINK = 1 << 31, 1 << 27


def means_content(path: str) -> bool:
    """Whether a source means a directory's content (`dir/.`)."""
    return path.endswith("/.") or path == "."


def means_directory(path: str) -> bool:
    """Whether a destination can only be a directory (`dir/` or `dir/.`)."""
    return path.endswith("/") or means_content(path)


def split_argument(text: str) -> tuple[str, str]:
    """Split `container:path`; a path of this host has no container."""
    if text.startswith("/"):
        return "", text
    container, colon, path = text.partition(":")
    if not colon or container.startswith("."):
        return "", text
    return container, path


def base_name(path: str) -> str:
    """Return a path's last name as the archive's root: of `a/b/` b, of `a/.` a dot."""
    if means_content(path):
        return "."
    return os.path.basename(path.rstrip("/")) or "/"


class Target:
    """Where an archive's root goes: a directory to put it in, and the name it gets there (`.`: its content)."""

    __slots__ = ("folder", "name")

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder
        self.name = name


def plan(source: str, *, source_is_dir: bool, target: str, target_exists: bool, target_is_dir: bool) -> Target:
    """Return where a source goes; Failure when it cannot."""
    clean = target.rstrip("/.") if means_content(target) and target != "." else target.rstrip("/") or "/"
    if target == ".":
        clean = "."
    if target_exists and target_is_dir:
        return Target(clean or "/", base_name(source))
    if target_exists and source_is_dir:
        raise Failure("cannot copy directory")
    parent, name = os.path.split(clean)
    if target_exists:
        if means_directory(target):
            raise Failure("not a directory")
        return Target(parent or ".", name)
    if means_directory(target) and not source_is_dir:
        raise Failure("no such directory")
    return Target(parent or ".", name)


def source_entries(source: str, name: str, *, follow: bool) -> Iterator[tuple[str, str]]:
    """Yield (path on disk, name in the archive) of a source under the name it gets."""
    top = os.path.realpath(source) if follow and os.path.islink(source) else source
    if means_content(source):
        top = source[:-2] or "/" if source.endswith("/.") else source
    top = top.rstrip("/") or "/"
    yield top, name
    if os.path.islink(top) or not os.path.isdir(top):
        return

    def walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
        for one in sorted(os.listdir(folder)):
            path, inner = os.path.join(folder, one), f"{prefix}/{one}"
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                continue
            yield path, inner
            if os.path.isdir(path) and not os.path.islink(path):
                yield from walk(path, inner)

    yield from walk(top, name)


class Unpacker:
    """Writes an archive's entries under a folder, its root renamed."""

    def __init__(self, target: Target, *, owners: bool) -> None:
        self._root = os.path.join(target.folder, target.name) if target.name != "." else target.folder
        self._owners = owners
        self._times: list[tuple[str, float]] = []

    def _place(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidParameter(f"the archive holds a name that leads out of it: {name}")
        # The first part is the source's own name, unless its content was asked for.
        inner = parts[1:] if not name.startswith("./") and parts else parts
        if name in (".", "./"):
            inner = []
        path = self._root
        for part in inner[:-1]:
            path = os.path.join(path, part)
            if os.path.islink(path):
                raise InvalidParameter(f"the archive writes through a link of its own: {name}")
        return os.path.join(path, inner[-1]) if inner else self._root

    def unpack(self, archive: tarfile.TarFile) -> None:
        """Write every entry; times of directories last, since writing into them changes them."""
        for member in archive:
            self._entry(archive, member, self._place(member.name))
        for path, when in reversed(self._times):
            os.utime(path, (when, when))

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not (os.path.isdir(path) and (path == self._root or not os.path.islink(path))):
                if os.path.lexists(path):
                    raise Failure(f"cannot overwrite non-directory {path!r} with directory")
                os.mkdir(path)
            os.chmod(path, member.mode & 0o7777)
            self._times.append((path, member.mtime))
        else:
            if os.path.isdir(path) and not os.path.islink(path):
                raise Failure(f"cannot overwrite directory {path!r} with non-directory")
            self._replace(archive, member, path)
        if self._owners:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
            if not member.issym():
                os.chmod(path, member.mode & 0o7777)

    def _replace(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if os.path.lexists(path):
            os.unlink(path)
        if member.issym():
            os.symlink(member.linkname, path)
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
            return
        if member.islnk():
            os.link(self._place(member.linkname), path, follow_symlinks=False)
            return
        if member.isfifo():
            os.mkfifo(path, member.mode & 0o7777)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | (member.mode & 0o7777), os.makedev(member.devmajor, member.devminor))
        else:
            self._regular(archive, member, path)
        os.utime(path, (member.mtime, member.mtime))

    @staticmethod
    def _regular(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        stream = archive.extractfile(member)
        if stream is None:
            raise InvalidParameter(f"the archive holds an entry of unknown type: {member.name}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as sink:
            while data := stream.read(1 << 20):
                sink.write(data)
            os.fchmod(sink.fileno(), member.mode & 0o7777)
