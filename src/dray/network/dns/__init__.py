"""Names in user-defined networks: the resolver at 127.0.0.11 of every container there.

`process` is the resolver itself (one process per daemon, forked from the zygote, that outlives the daemon), `service`
the daemon's side of it; `model` is what the two tell each other, the rest are the parts of the process.
"""
