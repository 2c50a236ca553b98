"""Plugins: programs beside the daemon that answer HTTP on a unix socket (Docker's legacy plugin protocol)."""
