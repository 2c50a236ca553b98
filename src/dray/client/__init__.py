"""A blocking client of the Engine API."""
