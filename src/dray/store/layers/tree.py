"""A directory tree that is written by names a stranger chose.

Every name is resolved from one directory descriptor with openat2(2): RESOLVE_IN_ROOT for the directories above it,
so that no `..`, absolute name or symbolic link leaves the tree, and the last component is never followed. The
descriptors of directories in use are kept in a small cache; it is dropped whenever a directory or a link is
replaced, so a name never resolves through something that is gone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

from dray.base.errors import InvalidParameter
from dray.linux import libc
from dray.linux.trees import remove_at

_RESOLVE = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED = 48
_NAME_MAX = 255
_DEPTH_MAX = 256  # directories in one name: far beyond real trees, well within the interpreter's stack


def clean(name: bytes) -> bytes:
    """Return `name` relative to the root, without `.`, `..` or doubled slashes; b"" is the root itself.

    An absolute name is taken from the root, as every tar reader does. InvalidParameter for a name that leaves it.
    """
    name = name.removeprefix(b"./")
    if not name.startswith((b"/", b".")) and b"//" not in name and b"/." not in name and b"\0" not in name:
        name = name[:-1] if name.endswith(b"/") else name
        return name if name.count(b"/") < _DEPTH_MAX else _shallow(name.split(b"/"))
    if b"\0" in name:
        raise InvalidParameter(f"invalid name in layer: {name!r}")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidParameter(f"invalid name in layer: {os.fsdecode(name)} leaves the root")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return _shallow(parts)


def _shallow(parts: list[bytes]) -> bytes:
    if len(parts) > _DEPTH_MAX:
        raise InvalidParameter(f"invalid name in layer: {len(parts)} directories deep")
    return b"/".join(parts)


class Tree:
    """The tree below `root`, a path or a descriptor (which stays the caller's). Not thread-safe; close it."""

    def __init__(self, root: str | os.PathLike[str] | int) -> None:
        self.root = os.open(".", _DIRECTORY, dir_fd=root) if isinstance(root, int) else os.open(root, _DIRECTORY)
        self._cache: OrderedDict[bytes, int] = OrderedDict()
        self.implicit: set[bytes] = set()  # directories that were made only because something lies in them

    def close(self) -> None:
        """Close every descriptor."""
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """Drop the cached directories."""
        for fd in self._cache.values():
            os.close(fd)
        self._cache.clear()

    def keep(self, path: bytes, fd: int) -> None:
        """Cache the descriptor of the directory `path`; the tree owns it from here on."""
        if (old := self._cache.pop(path, None)) is not None:
            os.close(old)
        self._cache[path] = fd
        if len(self._cache) > _CACHED:
            os.close(self._cache.popitem(last=False)[1])

    def directory(self, path: bytes, *, make: bool = True) -> int:
        """Return a descriptor of the directory `path`, owned by the cache (use it at once).

        Missing directories are made 0755 and noted in `implicit`; without `make`, FileNotFoundError.
        InvalidParameter if something else stands there.
        """
        if not path:
            return self.root
        fd = self._cache.get(path)
        if fd is not None:
            self._cache.move_to_end(path)
            return fd
        try:
            fd = libc.openat2(self.root, path, os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
        except FileNotFoundError:
            if not make:
                raise
            fd = self._make(path)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise InvalidParameter(f"{os.fsdecode(path)} in the layer is not a directory") from error
            raise named(error, path) from error
        self.keep(path, fd)
        return fd

    def _make(self, path: bytes) -> int:
        above, _, base = path.rpartition(b"/")
        parent = self.directory(above)
        try:
            os.mkdir(base, 0o755, dir_fd=parent)
        except FileExistsError:
            # A link into the void: what it means can only be known inside the root, so ask there once more.
            target = clean_link(above, os.readlink(base, dir_fd=parent))
            return os.dup(self.directory(target))
        except OSError as error:
            raise named(error, path) from error
        fd = os.open(base, _DIRECTORY, dir_fd=parent)
        os.fchmod(fd, 0o755)
        self.implicit.add(path)
        return fd

    def remove(self, parent: int, base: bytes) -> bool:
        """Remove whatever `base` is; tell whether it was a directory or a link, whose names are now void."""
        mode = os.lstat(base, dir_fd=parent).st_mode
        if stat.S_ISDIR(mode):
            remove_at(parent, base)
        else:
            os.unlink(base, dir_fd=parent)
            if not stat.S_ISLNK(mode):
                return False
        self.forget()
        return True


def clean_link(above: bytes, target: bytes) -> bytes:
    """Return where a link in `above` leads, from the root; `..` stops at the root as in a chroot."""
    parts = [] if target.startswith(b"/") else [part for part in above.split(b"/") if part]
    for part in target.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def named(error: OSError, path: bytes) -> Exception:
    """Turn what a hostile or damaged name provokes into the user's error; give anything else its path."""
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ) or any(
        len(part) > _NAME_MAX for part in path.split(b"/")
    ):
        shown = os.fsdecode(path[:80]) + ("…" if len(path) > 80 else "")
        return InvalidParameter(f"invalid name in layer: {shown}: {os.strerror(error.errno or 0)}")
    return OSError(error.errno, error.strerror, os.fsdecode(path))
