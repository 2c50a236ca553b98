"""The EROFS storage driver: a layer's tar stays one file, with an index behind it that the kernel mounts (`driver`)."""
