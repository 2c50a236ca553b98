"""From the flags of `run` and `create` to the body of the create request: pure functions, no I/O but flag files."""
