"""What the end-to-end, parity and bench scenarios stand on: engines, terminals, a private world, leak checks."""
