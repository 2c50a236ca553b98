"""OCI image and runtime documents as typed data."""
