"""Images on their way in and out: load, import, save, pull, push."""

from dray.store.transfer.cancel import Cancellation, Cancelled
from dray.store.transfer.downloads import Downloads
from dray.store.transfer.imports import import_image
from dray.store.transfer.load import Loaded, load
from dray.store.transfer.pull import Puller, pull
from dray.store.transfer.push import Pusher, Uploads, push
from dray.store.transfer.save import save

__all__ = [
    "Cancellation",
    "Cancelled",
    "Downloads",
    "Loaded",
    "Puller",
    "Pusher",
    "Uploads",
    "import_image",
    "load",
    "pull",
    "push",
    "save",
]
