"""Bytes on the wire: stdcopy frames and the shim's messages."""
