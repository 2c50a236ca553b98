"""Unpacking a large layer in a process of its own.

Extraction is thousands of short system calls. In threads they would hand the interpreter lock to and fro, with each
other and with the daemon's loop; in processes every layer gets a processor, and the daemon stays quick meanwhile.

The process gets the blob as its standard input, its orders as arguments, and answers on standard output with JSON
lines: {"done": bytes read so far}…, and last one of {"applied": {…}}, {"needs_lower": true} and {"error": message,
"status": kind}. It ends by itself when the daemon that started it is gone. Names cross as text with surrogate
escapes.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from dray.base.errors import DrayError, Internal, Unavailable, by_status
from dray.store.layers.extract import Applied, NeedsLower
from dray.store.layers.unpack import unpack_layer
from dray.store.snapshots import LayerSource

LARGE = 8 << 20  # bytes of a blob from which a process (30 ms to start) pays
_MODULE = __name__


def unpack_in_process(
    layer: LayerSource, directory: str | os.PathLike[str], *, overlay: bool, tell: Callable[[int], None]
) -> Applied:
    """Do what `unpack_layer` does, in another process; the same errors."""
    return _applied(run_in_process(_MODULE, layer, directory, [str(int(overlay))], tell))


def run_in_process(
    module: str,
    layer: LayerSource,
    directory: str | os.PathLike[str],
    arguments: Sequence[str],
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Call the `main` of a module (which calls `serve`) in another process; return what it says of the layer."""
    script = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    arguments = [
        os.fspath(directory),
        layer.diff_id,
        str(int(layer.verified)),
        str(os.getpid()),
        *arguments,
    ]
    with layer.open() as blob:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script, *arguments], stdin=blob, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            with process.stdout:
                return _result(process.stdout, tell)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()


def _result(lines: IO[bytes], tell: Callable[[int], None]) -> dict[str, Any]:
    for line in lines:
        message = json.loads(line)
        if "done" in message:
            tell(message["done"])
        elif "applied" in message:
            applied: dict[str, Any] = message["applied"]
            return applied
        elif "needs_lower" in message:
            raise NeedsLower
        else:
            raise by_status(message["status"], message["error"])
    raise Internal("the process that unpacked a layer was killed: is the machine out of memory?")


def _applied(fields: dict[str, Any]) -> Applied:
    return Applied(
        size=fields["size"],
        inodes=fields["inodes"],
        implicit=set(map(os.fsencode, fields["implicit"])),
        opaque=set(map(os.fsencode, fields["opaque"])),
        opaque_root=fields["opaque_root"],
    )


def _names(paths: Iterable[bytes]) -> list[str]:
    return sorted(map(os.fsdecode, paths))


def main() -> None:
    """Be that process."""
    serve(lambda layer, directory, words, tell: told(_unpack(layer, directory, words, tell)))


def _unpack(layer: LayerSource, directory: str, words: Sequence[str], tell: Callable[[int], None]) -> Applied:
    return unpack_layer(layer, directory, overlay=words[0] == "1", tell=tell)


def told(applied: Applied) -> dict[str, object]:
    """Return what is said of a layer."""
    return {
        "size": applied.size,
        "inodes": applied.inodes,
        "opaque_root": applied.opaque_root,
        "implicit": _names(applied.implicit),
        "opaque": _names(applied.opaque),
    }


Work = Callable[[LayerSource, str, Sequence[str], Callable[[int], None]], dict[str, object]]


def serve(work: Work) -> None:
    """Do `work` on the layer that this process was started for; say how it goes and what came of it."""
    directory, diff_id, verified, parent, *words = sys.argv[1:]

    def say(message: dict[str, object]) -> None:
        os.write(1, json.dumps(message).encode() + b"\n")

    def tell(done: int) -> None:
        if os.getppid() != int(parent):
            os._exit(1)
        say({"done": done})

    layer = LayerSource(
        "", None, diff_id, open=lambda: os.fdopen(os.dup(0), "rb", buffering=0), verified=verified == "1"
    )  # fmt: skip
    try:
        applied = work(layer, directory, words, tell)
    except NeedsLower:
        say({"needs_lower": True})
    except DrayError as error:
        say({"error": error.message, "status": error.status})
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        say({"error": str(error), "status": Unavailable.status if full else Internal.status})
    else:
        say({"applied": applied})
