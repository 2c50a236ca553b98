"""Images on their way in and out: load, import, save."""

from dray.store.transfer.imports import import_image
from dray.store.transfer.load import Loaded, load
from dray.store.transfer.save import save

__all__ = ["Loaded", "import_image", "load", "save"]
