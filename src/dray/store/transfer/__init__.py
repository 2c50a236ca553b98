"""Images on their way in and out: load, import, save."""

from dray.store.transfer.load import Loaded, load

__all__ = ["Loaded", "load"]
