"""The Engine's REST API: decode, call the engine, encode."""
