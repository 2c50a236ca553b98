"""The machinery below `libc`: system calls through ctypes, declared once, failing with OSError.

Nothing else in the project imports ctypes but this module, `libc` and `rights`. Standard library only, nothing
imported that is not needed: the client and the zygote pay for this module's start-up.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

from dray.linux.abi import number

Path = str | bytes | os.PathLike[str]

LIBC = ctypes.CDLL(None, use_errno=True)
PYTHON = ctypes.PyDLL(None, use_errno=True)  # calls that must not give up the interpreter lock

INT, UINT, LONG, ULONG = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
STR, POINTER = ctypes.c_char_p, ctypes.c_void_p


def declare(syscall: str, *argtypes: type, library: ctypes.CDLL = LIBC) -> Callable[..., int]:
    """Declare syscall(2) for one number; the result takes the remaining arguments."""
    function = library["syscall"]  # indexing, unlike an attribute, makes a new function object each time
    function.argtypes = (LONG, *argtypes)
    function.restype = LONG
    return functools.partial(function, number(syscall))


def oserror(syscall: str, path: Path | None = None, code: int | None = None) -> OSError:
    """Return the OSError of the call that just failed, naming `syscall` and `path`."""
    code = ctypes.get_errno() if code is None else code
    reason = f"{syscall}: {os.strerror(code)}"
    return OSError(code, reason) if path is None else OSError(code, reason, os.fsdecode(path))


def encode(path: Path) -> bytes:
    """os.fsencode, without its price where the path is text (the file system encoding of Linux is UTF-8)."""
    return path.encode("utf-8", "surrogateescape") if type(path) is str else os.fsencode(path)


def checked(result: int, syscall: str, path: Path | None = None) -> int:
    """Return the result of a call; raise `oserror` for a negative one."""
    if result < 0:
        raise oserror(syscall, path)
    return result


def native(address: int) -> Callable[[int], int]:
    """Return the function of machine code at an address, of one argument; it keeps the interpreter lock."""
    return ctypes.PYFUNCTYPE(LONG, POINTER)(address)


class Buffer:
    """Memory whose address may be put into a packed structure; it lives as long as this object."""

    __slots__ = ("_array", "address")

    def __init__(self, content: bytes | int) -> None:
        self._array = ctypes.create_string_buffer(content, content if isinstance(content, int) else len(content))
        self.address = ctypes.addressof(self._array)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def raw(self) -> bytes:
        """The bytes as they are now."""
        return self._array.raw

    @raw.setter
    def raw(self, content: bytes) -> None:
        self._array.raw = content
