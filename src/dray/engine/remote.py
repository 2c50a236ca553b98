"""What the API asks of registries beside images' contents: search, an image's platforms, and who the user is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Sequence

import msgspec

from dray.api import models as api
from dray.api.filters import Filters, invalid_value
from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import Forbidden, InvalidParameter, Unauthorized
from dray.oci import image as oci
from dray.oci.platform import Platform
from dray.registry.model import ANONYMOUS, Credentials, Registries, Repository

SEARCH_RESULTS = 25  # without `limit`, as Docker has it
CONFIG_LIMIT = 8 << 20  # bytes of an image's config document


def credentials(auth: api.AuthConfig | None) -> Credentials:
    """Return what a client sent in X-Registry-Auth, or to /auth, as registries take it.

    `serveraddress` is not looked at, as in dockerd: a client sends the credentials of the registry it names.
    """
    if auth is None:
        return ANONYMOUS
    username, password = auth.username, auth.password
    if auth.auth and not username:
        with contextlib.suppress(ValueError):
            username, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    return Credentials(username, password, auth.identitytoken, auth.registrytoken)


def described(networks: Sequence[str], hosts: Sequence[str], mirrors: Sequence[str]) -> api.RegistryServiceConfig:
    """Return the `RegistryConfig` of `info`."""
    indexes = {host: api.IndexInfo(name=host, secure=False, official=False) for host in hosts}
    hub = api.IndexInfo(name=reference.DEFAULT_DOMAIN, mirrors=list(mirrors), secure=True, official=True)
    return api.RegistryServiceConfig(
        insecure_registry_cidrs=list(networks),
        index_configs={**indexes, reference.DEFAULT_DOMAIN: hub},
        mirrors=list(mirrors),
    )


async def search(
    registries: Registries, term: str, *, limit: int, filters: Filters, auth: Credentials
) -> list[api.ImageSearchResult]:
    """Search a registry and filter what it found."""
    if not term:
        raise InvalidParameter("a search needs a term")
    official = _flag(filters, "is-official")
    automated = _flag(filters, "is-automated")
    stars = 0
    for value in filters.values_of("stars"):
        if not (value.isascii() and value.isdigit()):
            raise invalid_value("stars", filters["stars"])
        stars = max(stars, int(value))
    try:
        found = await asyncio.to_thread(registries.search, term, limit=limit or SEARCH_RESULTS, auth=auth)
    except Unauthorized as error:  # a 401 would have clients ask for a login, and wait at a terminal
        raise Forbidden(error.message) from error
    return [
        one
        for entry in found
        if (one := _result(entry)) is not None
        and (official is None or one.is_official == official)
        and (automated is None or one.is_automated == automated)
        and one.star_count >= stars
    ]


def _flag(filters: Filters, key: str) -> bool | None:
    return filters.boolean(key, False) if filters.values_of(key) else None


def _result(entry: dict[str, object]) -> api.ImageSearchResult | None:
    """Read one result; None if it is not one."""
    try:
        one = msgspec.convert(entry, api.ImageSearchResult, strict=False)
    except msgspec.ValidationError:
        return None
    return one if one.name else None


async def distribution(registries: Registries, text: str, auth: Credentials) -> api.DistributionInspect:
    """Return the descriptor of an image at its registry, and the platforms it has there."""
    name = reference.parse(text).tagged()

    def ask() -> api.DistributionInspect:
        with contextlib.closing(registries.repository(name, auth)) as repository:
            return _inspect(repository, name.digest or name.tag or reference.DEFAULT_TAG)

    return await asyncio.to_thread(ask)


def _inspect(repository: Repository, wanted: str) -> api.DistributionInspect:
    descriptor, data = repository.manifest(wanted)
    document = oci.parse_document(data, descriptor.media_type)
    if isinstance(document, oci.Index):
        platforms = [entry.platform for entry in document.manifests or [] if entry.platform is not None]
    elif document.config.media_type in oci.CONFIG_TYPES:
        platforms = [_config(repository, document.config).platform]
    else:
        platforms = []
    return api.DistributionInspect(
        descriptor=api.OCIDescriptor(
            media_type=descriptor.media_type,
            digest=descriptor.digest,
            size=descriptor.size,
            annotations=document.annotations or {},
        ),
        platforms=[_platform(platform) for platform in platforms],
    )


def _config(repository: Repository, descriptor: oci.Descriptor) -> oci.ImageConfig:
    """Fetch an image's config document, and check it."""
    if descriptor.size > CONFIG_LIMIT:
        raise InvalidParameter(
            f"an image config of {descriptor.size} bytes is refused: the limit is {CONFIG_LIMIT}"
        )
    pieces, hasher, held = [], digests.hasher(descriptor.digest), 0
    with repository.blob(descriptor) as blob:
        while piece := blob.read(CONFIG_LIMIT):
            pieces.append(piece)
            hasher.update(piece)
            held += len(piece)
            if held > descriptor.size:
                break
    if hasher.hexdigest() != descriptor.digest.partition(":")[2]:
        raise InvalidParameter(f"the registry sent another image config than {descriptor.digest}")
    return oci.parse_config(b"".join(pieces))


def _platform(platform: Platform) -> api.OCIPlatform:
    return api.OCIPlatform(
        architecture=platform.architecture,
        os=platform.os,
        os_version=platform.os_version or "",
        os_features=platform.os_features or [],
        variant=platform.variant or "",
    )
