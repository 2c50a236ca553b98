"""Data files of the engine: the default seccomp profile and what every container gets."""
