"""Names, tags and digests as the distribution specification has them, and the key of everything in the storage.

    blobs/<algorithm>/<2 digits>/<digits>         the bytes of a blob or manifest
    repositories/<name>/blobs/<digest>            a link: this repository has the blob. Empty
    repositories/<name>/manifests/<digest>        a link, with the manifest's descriptor (JSON)
    repositories/<name>/tags/<tag>                the digest
    repositories/<name>/referrers/<digest>/<digest>   descriptor (JSON) of a manifest whose subject the first one is
    uploads/<id>/repository                       the repository that an upload belongs to
    uploads/<id>/                                 its bytes

In `<name>` a `/` is written `:`, so that every repository is one folder and none lies inside another. Bytes are shared
by all repositories; what a repository may serve is what it has a link to.
"""

from __future__ import annotations

import re

from dray.base import digest as digests
from dray.registry.server.errors import Refusal

_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_UPLOAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def check_name(name: str) -> str:
    """Return a repository's name if it is one; refuse it otherwise."""
    if len(name) > 255 or not _NAME.fullmatch(name):
        raise Refusal("NAME_INVALID", {"name": name})
    return name


def check_digest(text: str) -> str:
    """Return a digest if it is one of an algorithm we know; refuse it otherwise."""
    if not digests.is_digest(text):
        raise Refusal("DIGEST_INVALID", {"digest": text}, message="provided digest is malformed or not supported")
    return text


def is_tag(text: str) -> bool:
    """Tell whether `text` can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_upload(text: str) -> bool:
    """Tell whether `text` can be an upload's id."""
    return _UPLOAD.fullmatch(text) is not None


def folder(name: str) -> str:
    """Return the folder of a repository."""
    return f"repositories/{name.replace('/', ':')}"


def from_folder(component: str) -> str:
    """Return the repository's name that a component of a key stands for."""
    return component.replace(":", "/")


def blob(digest: str) -> str:
    """Return the key of a blob's bytes."""
    algorithm, digits = digests.parse(digest)
    return f"blobs/{algorithm}/{digits[:2]}/{digits}"


def blob_link(name: str, digest: str) -> str:
    """Return the key of a repository's link to a blob."""
    return f"{folder(name)}/blobs/{digest}"


def manifest_link(name: str, digest: str) -> str:
    """Return the key of a repository's link to a manifest."""
    return f"{folder(name)}/manifests/{digest}"


def tag(name: str, text: str) -> str:
    """Return the key of a tag."""
    return f"{folder(name)}/tags/{text}"


def referrers(name: str, subject: str) -> str:
    """Return the folder of the referrers of a digest."""
    return f"{folder(name)}/referrers/{subject}"


def upload(identifier: str) -> str:
    """Return the folder of an upload."""
    return f"uploads/{identifier}"
