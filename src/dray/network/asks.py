"""What is asked of a new network (`POST /networks/create`), and which asks make no sense whatever the driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from dray.base.errors import Forbidden, InvalidParameter, NotFound
from dray.base.patterns import pattern
from dray.network.model import IPAM_DRIVERS, NetworkTerms

_NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)


class NetworkAsk(NetworkTerms, frozen=True, kw_only=True):
    """A network to create; empty words stand for the engine's defaults."""

    driver: str = ""
    scope: str = ""
    ipam_driver: str = ""

    def terms(self) -> dict[str, Any]:
        """Return what the network takes over as it is, by field."""
        return {field: getattr(self, field) for field in NetworkTerms.__struct_fields__}


def check(ask: NetworkAsk, is_plugin: Callable[[str], bool] = lambda _: False) -> None:
    """Raise, in Docker's words where it has some, for an ask that no driver could obey. `is_plugin`: whether there
    is a plugin of a name."""
    if not ask.name.strip():
        raise InvalidParameter("invalid network name: name is empty")
    if not _NAME.fullmatch(ask.name):
        raise InvalidParameter(
            f"invalid network name: {ask.name}: only letters, digits and _.- are allowed, a letter or digit first"
        )
    if ask.scope not in ("", "local"):
        if ask.scope == "swarm":
            raise Forbidden("cannot create a swarm scoped network when swarm is not active")
        raise InvalidParameter(f"invalid network scope {ask.scope!r}: this engine's networks are local")
    if ask.ingress:
        raise Forbidden("Ingress network can only be global scope network")
    remote = ask.ipam_driver not in IPAM_DRIVERS
    if remote and not is_plugin(ask.ipam_driver):
        raise NotFound(
            f'IPAM driver "{ask.ipam_driver}" not found: this engine has default and null, and no plugin of that name'
        )
    if ask.ipam_driver == "null" and any(pool.subnet for pool in ask.pools):
        raise InvalidParameter("null ipam driver hands out no addresses: give no subnet with it")
    for option in () if remote else ask.ipam_options:
        raise InvalidParameter(f"unknown option {option} of the {ask.ipam_driver or 'default'} IPAM driver")
    if ask.config_only and ask.config_from:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    if not ask.ipv4 and not ask.ipv6:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    for pool in ask.pools:
        for text in filter(None, [pool.gateway, *pool.auxiliary.values()]):
            _check_address(text)


def _check_address(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise InvalidParameter(f"invalid address {text}: not an IP address") from None
