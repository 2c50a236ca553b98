"""TLS of a registry: the system's authorities, and what certs.d says of one host (dockerd `ReadCertsDirectory`).

    /etc/docker/certs.d/HOST[:PORT]/
     *.crt           authorities to be trusted for this host, beside the system's
     NAME.cert, .key a client certificate, and its key

The first folder of those configured that has a subfolder for the host is the one that counts.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from dray.base.errors import InvalidParameter


def tls_context(host: str, folders: Sequence[str], *, verify: bool) -> ssl.SSLContext:
    """Return the context for connections to `host[:port]`; InvalidParameter names a file that cannot be used."""
    folder = _folder(host, folders)
    if folder is None and verify:
        return _default()
    if verify:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if folder is not None:
        _load(context, folder)
    return context


@functools.cache
def _default() -> ssl.SSLContext:
    """Return the context of hosts without files of their own; reading the system's authorities takes ~20 ms."""
    return ssl.create_default_context()


def _folder(host: str, folders: Sequence[str]) -> Path | None:
    if "/" in host or host in ("", ".", ".."):
        return None
    return next((path for base in folders if (path := Path(base, host)).is_dir()), None)


def _load(context: ssl.SSLContext, folder: Path) -> None:
    names = sorted(os.listdir(folder))
    for name in names:
        path = folder / name
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(cafile=str(path))
            elif name.endswith(".cert"):
                key = name.removesuffix(".cert") + ".key"
                if key not in names:
                    raise InvalidParameter(
                        f"missing key {key} for client certificate {name} in {folder}: "
                        "CA certificates must use the extension .crt"
                    )
                context.load_cert_chain(str(path), str(folder / key))
            elif name.endswith(".key") and name.removesuffix(".key") + ".cert" not in names:
                raise InvalidParameter(
                    f"missing client certificate {name.removesuffix('.key')}.cert for key {path}"
                )
        except (OSError, ssl.SSLError) as error:
            raise InvalidParameter(f"{path} cannot be used for TLS: {error}") from error
