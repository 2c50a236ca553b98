"""Typed models of the Engine API and its version shims."""
