"""dray: a Docker Engine in Python."""

__version__ = "0.1.0"
