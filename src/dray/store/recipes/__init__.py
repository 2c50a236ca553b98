"""Rebuilding a layer's blob, byte for byte, from its unpacked files and a record of everything else."""
