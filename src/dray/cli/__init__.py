"""The dray command."""
