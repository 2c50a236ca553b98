"""The half of the configuration that concerns registries: from daemon.json, flags and environment to settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dray.base.errors import InvalidParameter
from dray.registry.proxies import Proxies, from_environment, parse_proxy, redacted
from dray.registry.settings import CERTIFICATES, RegistrySettings, parse_insecure, parse_mirror

DEFAULT_FILE = "/etc/dray/daemon.json"
_PROXY_KEYS = ("http-proxy", "https-proxy", "no-proxy")


def registry_settings(
    config: Mapping[str, Any], environment: Mapping[str, str] = os.environ, *, file: str = DEFAULT_FILE
) -> RegistrySettings:
    """Return the settings; InvalidParameter names what makes no sense.

    `config` is by daemon.json's keys, `file` that file's path: certificates are looked for in `certs.d` beside it,
    then in Docker's.
    """
    for key in ("registry-mirrors", "insecure-registries"):
        if not all(isinstance(entry, str) for entry in config[key]):
            raise InvalidParameter(f"configuration option {key!r} must be a list of strings")
    networks, hosts = parse_insecure(config["insecure-registries"])
    return RegistrySettings(
        mirrors=tuple(dict.fromkeys(parse_mirror(text) for text in config["registry-mirrors"])),
        insecure_networks=networks,
        insecure_hosts=hosts,
        proxies=_proxies(config, environment),
        certificate_folders=(f"{os.path.dirname(os.path.abspath(file))}/certs.d", CERTIFICATES),
        attempts=config["max-download-attempts"],
    )


def _proxies(config: Mapping[str, Any], environment: Mapping[str, str]) -> Proxies:
    """Merge flags, `proxies` of daemon.json and the environment; the first that says something counts."""
    block = config["proxies"]
    if not isinstance(block, dict) or not all(isinstance(value, str) for value in block.values()):
        raise InvalidParameter("configuration option 'proxies' must be an object of strings")
    unknown = sorted(set(block) - set(_PROXY_KEYS))
    if unknown:
        raise InvalidParameter(f"proxies: unsupported {', '.join(unknown)}; use {', '.join(_PROXY_KEYS)}")
    for key in _PROXY_KEYS:
        if config[key] and block.get(key):
            raise InvalidParameter(
                "the following directives are specified both as a flag and in the configuration file: "
                f"{key}: (from flag: {redacted(config[key])}, from file: {redacted(block[key])})"
            )
    around = from_environment(environment)
    http, https, no = (config[key] or block.get(key, "") for key in _PROXY_KEYS)
    return Proxies(parse_proxy(http or around.http), parse_proxy(https or around.https), no or around.no)


def shown_by_info(settings: RegistrySettings) -> dict[str, Any]:
    """Return what `docker info` tells of it, credentials blotted out; fields of `engine.system.Settings`."""
    return {
        "mirrors": [f"{mirror}/" for mirror in settings.mirrors],
        "insecure_networks": [str(network) for network in settings.insecure_networks],
        "insecure_hosts": sorted(settings.insecure_hosts),
        "http_proxy": redacted(settings.proxies.http),
        "https_proxy": redacted(settings.proxies.https),
        "no_proxy": settings.proxies.no,
    }
