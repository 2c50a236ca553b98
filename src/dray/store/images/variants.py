"""Removal of single platforms of an image (`docker rmi --platform`, Engine API 1.50).

The image keeps its names and its id, and its index stays as it is: only content goes. Pulling the image for that
platform brings it back.
"""

from __future__ import annotations

from collections.abc import Sequence

from dray.base.errors import InvalidParameter
from dray.oci.image import Descriptor
from dray.oci.platform import Platform
from dray.store.images.reading import REFERENCE_DIGEST, is_attestation
from dray.store.images.service import Images


def remove_platforms(images: Images, word: str, platforms: Sequence[Platform]) -> list[dict[str, str]]:
    """Remove the content of these platforms' manifests, and of the attestations about them; return the Engine API's
    list of `Deleted`.

    What other images, or other manifests of this one, refer to stays. Containers keep their layers. NotFound if the
    image or a platform of it is not there, InvalidParameter if the image has only one and is no index.
    """
    chosen: list[Descriptor] = []
    for platform in platforms:
        image = images.resolve(word, platform)
        if image.manifest == image.id:
            raise InvalidParameter(
                f"image {word} is for {image.platform} alone: remove it as a whole, without naming a platform"
            )
        chosen += [one for one in images.reading.manifests(image.target) if _belongs(one, image.manifest)]
    present = dict.fromkeys(one.digest for one in chosen if images.content.has(one.digest))
    images.collect(dropped=present.keys())
    return [{"Deleted": digest} for digest in present if not images.content.has(digest)]


def _belongs(descriptor: Descriptor, manifest: str) -> bool:
    about = (descriptor.annotations or {}).get(REFERENCE_DIGEST)
    return descriptor.digest == manifest or (is_attestation(descriptor) and about == manifest)
