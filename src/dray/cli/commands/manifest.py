"""`dray manifest`: lists of images for several platforms, made at home and pushed to a registry. No daemon is needed."""

from __future__ import annotations

import json
import os

from dray.base.errors import InvalidParameter, NotFound
from dray.cli import manifests
from dray.cli.command import MANY, Command, Failure
from dray.cli.flags import Flag
from dray.oci.image import INDEX_TYPES, Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.base.reference import Reference
    from dray.cli.app import App
    from dray.cli.flags import Values
    from dray.registry.model import Repository

_CONFIG_LIMIT = 8 << 20
_CHUNK = 1 << 20


def _named(text: str) -> Reference:
    from dray.base.reference import parse

    name = parse(text)
    return name if name.digest else name.tagged()


class _Registries:
    """Repositories as the user may see them, for one command."""

    def __init__(self, app: App, *, insecure: bool) -> None:
        self._app = app
        self._insecure = insecure
        self._opened: list[Repository] = []

    def __enter__(self) -> _Registries:
        return self

    def __exit__(self, *_: object) -> None:
        for repository in self._opened:
            repository.close()

    def open(self, name: Reference, *, push: bool = False) -> Repository:
        """Return the repository of a name."""
        from dray.cli.credentials import Credentials, auth_key
        from dray.registry import model
        from dray.registry.proxies import from_environment
        from dray.registry.remote import RemoteRegistries
        from dray.registry.settings import RegistrySettings

        auth = Credentials(self._app.config).get(auth_key(name.domain))
        settings = RegistrySettings(
            insecure_hosts=frozenset({name.domain.lower()} if self._insecure else ()),
            proxies=from_environment(os.environ),
        )
        given = model.Credentials(
            username=auth.get("username", ""),
            password=auth.get("password", ""),
            identity_token=auth.get("identitytoken", ""),
            registry_token=auth.get("registrytoken", ""),
        )
        self._opened.append(RemoteRegistries(settings).repository(name, given, push=push))
        return self._opened[-1]

    def fetch(self, name: Reference) -> tuple[Repository, Descriptor, bytes]:
        """Return a manifest or list from its registry; Failure if there is none."""
        repository = self.open(name)
        try:
            return repository, *repository.manifest(name.digest or name.tag or "latest")
        except NotFound:
            raise Failure(f"no such manifest: {manifests.full(name)}") from None

    def image(self, name: Reference) -> manifests.Entry:
        """Return an image as lists keep it."""
        repository, descriptor, raw = self.fetch(name)
        if descriptor.media_type in INDEX_TYPES:
            raise Failure(f"{manifests.full(name)} is a manifest list")
        return _entry(repository, name, descriptor, raw)

    def images(self, name: Reference) -> list[manifests.Entry] | manifests.Entry:
        """Return an image, or all images of a list, as lists keep them."""
        from dray.base.reference import Reference

        repository, descriptor, raw = self.fetch(name)
        if descriptor.media_type not in INDEX_TYPES:
            return _entry(repository, name, descriptor, raw)
        found = []
        for item in json.loads(raw).get("manifests") or ():
            inner, data = repository.manifest(item["digest"])
            entry = _entry(repository, Reference(name.domain, name.path, name.tag, inner.digest), inner, data)
            entry["Descriptor"]["platform"] = item.get("platform") or entry["Descriptor"]["platform"]
            found.append(entry)
        return found


def _entry(repository: Repository, name: Reference, descriptor: Descriptor, raw: bytes) -> manifests.Entry:
    from dray.oci.image import parse_document

    config = parse_document(raw, descriptor.media_type).config  # type: ignore[union-attr]
    if config.size > _CONFIG_LIMIT:
        raise InvalidParameter(f"image config {config.digest} is larger than {_CONFIG_LIMIT} bytes")
    data = b""
    with repository.blob(config) as stream:
        while len(data) < config.size and (more := stream.read(_CHUNK)):
            data += more
    _check(config.digest, data)
    return manifests.entry_of(name, descriptor.media_type, descriptor.digest, raw, data)


def _check(digest: str, data: bytes) -> None:
    import hashlib

    algorithm, _, digits = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != digits:
        raise InvalidParameter(f"the registry sent another config than {digest}")


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Make a list of images that registries have."""
    store, target = manifests.Store(app.config.folder), _named(arguments[0])
    if store.exists(target) and not values["amend"]:
        raise Failure("refusing to amend an existing manifest list with no --amend flag")
    with _Registries(app, insecure=values["insecure"]) as registries:
        found = []
        for word in arguments[1:]:
            name = _named(word)
            found.append((name, store.get(target, name) or registries.image(name)))
    for name, entry in found:
        store.save(target, name, entry)
    app.line(f"Created manifest list {manifests.full(target)}")
    return 0


def run_annotate(app: App, values: Values, arguments: list[str]) -> int:
    """Say for which platform an image of a list is."""
    store, target, name = manifests.Store(app.config.folder), _named(arguments[0]), _named(arguments[1])
    entry = store.get(target, name)
    if entry is None:
        raise Failure(f"manifest for image {manifests.full(name)} does not exist in {manifests.full(target)}")
    changes = {
        "os": values["os"],
        "architecture": values["arch"],
        "os.version": values["os-version"],
        "variant": values["variant"],
    }
    manifests.annotate(entry, changes=changes, features=values["os-features"])
    store.save(target, name, entry)
    return 0


def run_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Show an image's manifest, or a list."""
    store, verbose = manifests.Store(app.config.folder), values["verbose"]
    name = _named(arguments[-1])
    found: Any
    if len(arguments) == 2:
        found = store.get(_named(arguments[0]), name)
        if found is None:
            raise Failure(f"No such manifest: {manifests.full(name)}")
    else:
        found = store.entries(name)
    if not found:
        with _Registries(app, insecure=values["insecure"]) as registries:
            found = registries.images(name)
    if verbose:
        app.line(manifests.shown(found))
    elif isinstance(found, list):
        app.line(manifests.document(found)[1].decode())
    else:
        app.line(manifests.shown(manifests.manifest_of(found)))
    return 0


def run_push(app: App, values: Values, arguments: list[str]) -> int:
    """Push a list, and what of its images is in other repositories of the registry."""
    store, target = manifests.Store(app.config.folder), _named(arguments[0])
    entries = store.entries(target)
    if not entries:
        raise Failure(f"No such manifest: {manifests.full(target)}")
    names = [_named(entry["Ref"]) for entry in entries]
    for name in names:
        if name.domain != target.domain:
            raise Failure(
                "cannot use source images from a different registry than the target image: "
                f"{name.domain} != {target.domain}"
            )
    kind, data = manifests.document(entries)
    with _Registries(app, insecure=values["insecure"]) as registries:
        repository = registries.open(target, push=True)
        for name, entry in zip(names, entries, strict=True):
            if name.path != target.path:
                _mount(repository, name, entry)
                digest = entry["Descriptor"]["digest"]
                app.line(f"Pushed ref {target.name}@{digest} with digest: {digest}")
        app.line(repository.put_manifest(target.digest or target.tag or "latest", kind, data))
    if values["purge"]:
        store.remove(target)
    return 0


def _mount(repository: Repository, name: Reference, entry: manifests.Entry) -> None:
    """Bring an image from another repository of the same registry."""
    import base64

    manifest = manifests.manifest_of(entry)
    for blob in (*(manifest.get("layers") or ()), manifest["config"]):
        if blob.get("urls") or repository.has_blob(blob["digest"]):
            continue
        upload = repository.upload(blob["digest"], mount_from=name.path)
        if upload is not None:
            upload.cancel()
            raise Failure(
                f"the registry cannot mount {blob['digest']} from {name.path}: push the image there first"
            )
    repository.put_manifest(
        entry["Descriptor"]["digest"], entry["Descriptor"]["mediaType"], base64.b64decode(entry["Raw"])
    )


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove lists that are kept here; registries are not asked."""
    store, status = manifests.Store(app.config.folder), 0
    for word in arguments:
        target = _named(word)
        if store.exists(target):
            store.remove(target)
        else:
            app.error(f"No such manifest: {manifests.full(target)}")
            status = 1
    return status


_INSECURE = Flag("insecure", "bool", "Allow communication with an insecure registry")

COMMANDS = {
    "manifest annotate": Command(
        "[OPTIONS] MANIFEST_LIST MANIFEST",
        run_annotate,
        flags=(
            Flag("arch", "string", "Set architecture"),
            Flag("os", "string", "Set operating system"),
            Flag("os-features", "strings", "Set operating system feature"),
            Flag("os-version", "string", "Set operating system version"),
            Flag("variant", "string", "Set architecture variant"),
        ),
        args=(2, 2),
    ),
    "manifest create": Command(
        "MANIFEST_LIST MANIFEST [MANIFEST...]",
        run_create,
        flags=(Flag("amend", "bool", "Amend an existing manifest list", short="a"), _INSECURE),
        args=(2, MANY),
    ),
    "manifest inspect": Command(
        "[OPTIONS] [MANIFEST_LIST] MANIFEST",
        run_inspect,
        flags=(
            _INSECURE,
            Flag("verbose", "bool", "Output additional info including layers and platform", short="v"),
        ),
        args=(1, 2),
    ),
    "manifest push": Command(
        "[OPTIONS] MANIFEST_LIST",
        run_push,
        flags=(
            _INSECURE,
            Flag("purge", "bool", "Remove the local manifest list after push", short="p"),
        ),
        args=(1, 1),
    ),
    "manifest rm": Command("MANIFEST_LIST [MANIFEST_LIST...]", run_rm, args=(1, MANY)),
}
