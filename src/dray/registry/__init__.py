"""Registries: the client of the distribution protocol, and a server of it."""
