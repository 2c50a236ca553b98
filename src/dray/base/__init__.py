"""What every floor may use: error kinds, digests, references, atomic files, units."""
