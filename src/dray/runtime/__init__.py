"""The OCI runtime: namespaces, root filesystem, privileges, execve."""
