"""Images: names for targets in the content store, and what can be told about them."""

from dray.store.images.model import Image, ImageUser, ManifestSummary
from dray.store.images.service import Images

__all__ = ["Image", "ImageUser", "Images", "ManifestSummary"]
