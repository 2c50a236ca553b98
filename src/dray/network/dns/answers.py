"""What is answered to a query, or that it is to be asked elsewhere: pure but for the order of addresses."""

from __future__ import annotations

import os

from dray.network.dns import message
from dray.network.dns.message import Query
from dray.network.dns.model import Sandbox
from dray.network.dns.zone import Zone

_VERSION = {message.A: 4, message.AAAA: 6}


def local(query: Query, sandbox: Sandbox, zone: Zone, limit: int) -> tuple[bytes | None, bool]:
    """Return (the answer, None to forward the query; whether it is the same until the zone changes)."""
    if message.opcode(query) != 0:
        return message.answer(query, rcode=message.NOTIMP, limit=limit), False
    if query.edns_version != 0:
        return message.answer(query, rcode=message.BADVERS, limit=limit), False
    if query.klass == message.IN:
        records = _records(query, sandbox, zone)
        if records is not None:
            if len(records) > 1:
                records.sort(key=lambda _: os.urandom(4))
            return message.answer(query, records=records, limit=limit), len(records) < 2
    if not sandbox.forward or not sandbox.servers:
        return message.answer(query, rcode=message.SERVFAIL, limit=limit), False
    if sandbox.ndots and query.type in _VERSION and "." not in query.name:
        return message.answer(query, limit=limit), False
    return None, False


def _records(query: Query, sandbox: Sandbox, zone: Zone) -> list[bytes] | None:
    """Return the data of the records that are ours to tell; None for a name that is not ours."""
    if query.type in _VERSION:
        return zone.lookup(sandbox, query.name, _VERSION[query.type])
    if query.type == message.MX:  # a container has none, and nobody else can know of it
        return [] if zone.lookup(sandbox, query.name, 4) is not None else None
    if query.type == message.PTR:
        name = zone.reverse(sandbox, query.name)
        if name is not None:
            try:
                return [message.encode_name(name)]
            except message.Malformed:  # container names may be longer than a label
                return []
    return None
