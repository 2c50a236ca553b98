"""Images of the tests, made from Debian's packages and from nothing else; see `images.cache`."""
