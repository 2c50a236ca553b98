"""Content, images, snapshots and the metadata of everything."""
