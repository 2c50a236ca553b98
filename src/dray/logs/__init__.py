"""Logging drivers: what becomes of a container's output."""
