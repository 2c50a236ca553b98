"""Containers' files: `docker cp` both ways and `docker export`.

view     a container's file system as one directory descriptor, running or not
paths    what the API tells of a path: PathStat, Go's file modes, where links lead
backend  the `Archives` backend of the server
"""

from dray.engine.archives.backend import Archives

__all__ = ["Archives"]
