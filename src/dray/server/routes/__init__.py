"""One module per tag of the Engine API."""
