"""One module per kernel facility; mechanisms only, no policy."""
