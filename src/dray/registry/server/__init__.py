"""A registry: the server of the distribution protocol (distribution-spec 1.1), `dray registry serve`."""
