"""drayd: configuration, wiring and the main loop."""
