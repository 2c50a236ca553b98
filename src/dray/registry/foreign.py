"""Blobs that lie outside their registry: at the addresses (`urls`) of their descriptors (image-spec descriptor.md).

The addresses come from whoever wrote the manifest, so they are asked with care: only HTTPS with a verified
certificate, or what the user has listed in `insecure-registries` by himself (that loopback is trusted as a registry
does not count: what listens there was not written to be asked by strangers); no credentials, through the daemon's
proxies, never more bytes than the descriptor says. That the bytes are the right ones is found out as for every blob.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from dray.base.errors import DrayError, InvalidParameter, NotFound, Unavailable
from dray.oci.image import Descriptor
from dray.registry.answers import go_request
from dray.registry.blobs import RemoteBlob
from dray.registry.settings import LOOPBACK, Endpoint, RegistrySettings, addresses_of, host_name
from dray.registry.transport import Transport

MOST = 8  # addresses that are tried for one blob
_LOOPBACK = tuple(ipaddress.ip_network(text) for text in LOOPBACK)


def listed(settings: RegistrySettings, host: str) -> bool:
    """Tell whether the user has listed `host[:port]` as insecure, by name or network."""
    name = host_name(host.lower())
    if host.lower() in settings.insecure_hosts or name in settings.insecure_hosts:
        return True
    networks = [one for one in settings.insecure_networks if one not in _LOOPBACK]
    found = [ipaddress.ip_address(text.partition("%")[0]) for text in addresses_of(name)] if networks else []
    return any(address in network for address in found for network in networks)


def endpoint_of(settings: RegistrySettings, url: str) -> Endpoint:
    """Return how an address may be asked; InvalidParameter if it may not."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        parts = urlsplit("")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InvalidParameter(f"foreign address {url[:200]!r} is refused: it is no plain https:// URL")
    insecure = listed(settings, host)
    if parts.scheme == "http" and not insecure:
        raise InvalidParameter(
            f"foreign address {url[:200]!r} is refused: it is not https (list {host} in insecure-registries to "
            "allow it)"
        )
    return Endpoint(f"{parts.scheme}://{host}", verify=not insecure)


def open_foreign(
    transport: Transport, urls: Sequence[str], descriptor: Descriptor, start: int, end: int | None
) -> RemoteBlob:
    """Open a blob, or a part of it, at the first of its addresses that has it.

    Unavailable if one did not answer and no other one has it; NotFound, with the reason of each, if none has it.
    """
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    failed: list[DrayError] = []
    for url in urls[:MOST]:
        try:
            endpoint = endpoint_of(transport.settings, url)
            response = transport.send("GET", url, endpoint=endpoint, headers=headers)
            if response.status not in (200, 206):
                response.close()
                kind = Unavailable if response.status == 429 or response.status >= 500 else NotFound
                raise kind(f"{go_request('GET', url)}: unexpected status {response.status}")
            return RemoteBlob(response, descriptor, start, end)
        except DrayError as error:
            failed.append(error)
    words = "; ".join(error.message for error in failed)
    lacking = f"layer {descriptor.digest} is not in the registry, and not at its foreign addresses: {words}"
    if any(isinstance(error, Unavailable) for error in failed):
        raise Unavailable(lacking)
    raise NotFound(lacking)
