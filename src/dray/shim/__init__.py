"""One process per container, the zygote that forks it, and the daemon's side of both.

Import nothing here: zygote and shim must stay free of what the daemon's side needs.
"""
