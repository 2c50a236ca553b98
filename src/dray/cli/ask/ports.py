"""Published and exposed ports (`-p`, `--expose`)."""

from __future__ import annotations

from dray.base.errors import InvalidParameter
from dray.cli.flags import parse_csv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOLS = ("tcp", "udp", "sctp")


def parse_range(text: str) -> tuple[int, int]:
    """Read `80` or `80-90`."""
    if not text:
        raise InvalidParameter("empty string specified for ports")
    first, dash, last = text.partition("-")
    numbers = []
    for part in (first, last if dash else first):
        if not (part.isdigit() and part.isascii()):
            raise InvalidParameter(f'strconv.ParseUint: parsing "{part}": invalid syntax')
        if int(part) > 65535:
            raise InvalidParameter(f'strconv.ParseUint: parsing "{part}": value out of range')
        numbers.append(int(part))
    if numbers[1] < numbers[0]:
        raise InvalidParameter(f"invalid range specified for port: {text}")
    return numbers[0], numbers[1]


def _protocol(text: str) -> tuple[str, str]:
    port, slash, protocol = text.partition("/")
    return port, protocol.lower() if slash and protocol else "tcp"


def _split_address(text: str) -> tuple[str, str, str]:
    """Split `[ip:][host:]container`; an IPv6 address stands in brackets, or is told by its colons."""
    parts = text.split(":")
    if len(parts) <= 3:
        container = parts[-1]
        host = parts[-2] if len(parts) > 1 else ""
        address = parts[0] if len(parts) > 2 else ""
        return address, host, container
    return ":".join(parts[:-2]), parts[-2], parts[-1]


def _check_address(address: str, spec: str) -> str:
    import ipaddress

    if not address:
        return ""
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {address}") from None
    return bare


def _expand(spec: str) -> list[tuple[str, dict[str, str]]]:
    address, host, rest = _split_address(spec)
    container, protocol = _protocol(rest)
    address = _check_address(address, spec)
    if not container:
        raise InvalidParameter(f"no port specified: {spec}<empty>")
    try:
        start, end = parse_range(container)
    except InvalidParameter:
        raise InvalidParameter(f"invalid containerPort: {container}") from None
    host_start = host_end = 0
    if host:
        try:
            host_start, host_end = parse_range(host)
        except InvalidParameter:
            raise InvalidParameter(f"invalid hostPort: {host}") from None
    if host and end - start != host_end - host_start and (start != end):
        raise InvalidParameter(f"invalid ranges specified for container and host Ports: {container} and {host}")
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {protocol}")
    found = []
    for offset in range(end - start + 1):
        published = str(host_start + offset) if host else ""
        if start == end and host_start != host_end:
            # One container port and a range of host ports: the daemon picks a free one of them.
            published = f"{host_start}-{host_end}"
        found.append((f"{start + offset}/{protocol}", {"HostIp": address, "HostPort": published}))
    return found


def _long_form(text: str) -> str:
    """Turn `target=80,published=8080,protocol=tcp` into the short form."""
    fields = {}
    for field in parse_csv(text):
        key, equals, value = field.partition("=")
        if not equals or not value:
            raise InvalidParameter(f"invalid field: {field}")
        fields[key.lower()] = value
    mode = fields.pop("mode", "ingress")
    if mode not in ("ingress", "host"):
        raise InvalidParameter(f"invalid publish mode value ({mode}): must be either 'ingress' or 'host'")
    target, published, protocol = (
        fields.pop("target", ""),
        fields.pop("published", ""),
        fields.pop("protocol", "tcp"),
    )
    if fields:
        raise InvalidParameter(f"invalid field key: {next(iter(fields))}")
    if not target:
        raise InvalidParameter("missing mandatory field 'target'")
    return f"{published + ':' if published else ''}{target}/{protocol}"


def parse_publish(given: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, list[dict[str, str]]]]:
    """Return the exposed ports and the bindings of `-p` flags."""
    exposed: dict[str, dict[str, str]] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in given:
        spec = _long_form(text) if "=" in text else text
        for port, binding in _expand(spec):
            exposed[port] = {}
            bindings.setdefault(port, []).append(binding)
    return exposed, bindings


def parse_expose(given: list[str]) -> dict[str, dict[str, str]]:
    """Return the ports of `--expose` flags."""
    exposed: dict[str, dict[str, str]] = {}
    for text in given:
        if ":" in text:
            raise InvalidParameter(f"invalid port format for --expose: {text}")
        port, protocol = _protocol(text)
        try:
            start, end = parse_range(port)
        except InvalidParameter as error:
            raise InvalidParameter(f"invalid range format for --expose: {text}, error: {error}") from None
        for number in range(start, end + 1):
            if protocol not in PROTOCOLS:
                raise InvalidParameter(f"invalid proto: {protocol}")
            exposed[f"{number}/{protocol}"] = {}
    return exposed


def sorted_ports(ports: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping by port in the order of its keys."""
    return dict(sorted(ports.items()))
